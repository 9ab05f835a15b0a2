//! What every test of this suite stands on, and what it asks of it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::Dockerd;
use cleanup_tests::host::ENFORCE;
use cleanup_tests::mesos::standin::{CgroupLayout, Destroy, StandInAgent, StandInRun};
use cleanup_tests::process::Process;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;
use cleanup_tests::watcher::Watcher;
use rustix::process::Signal;
use serde_json::Value;

pub const SOON: Duration = Duration::from_secs(60);

/// At work, and in no hurry to end what ignores its stop signal.
pub const PATIENT: &str = "mode = \"enforce\"\ngrace = \"10m\"\nsettle = \"200ms\"";

pub const STUCK: &str = "the agent has not finished its destroy of a dead container: its cgroups stay until it does, \
                     is restarted, or is gone";

pub const ORPHANED: &str = "the launcher helper is dead, the executor is not: its pod is left alone until the executor is gone";

pub const MISSED: &str = "a run was over before it was learnt; looking at everything";

pub const UNKNOWN: &str = "unknown run: left alone";

/// Counts its stop signals: one makes it end, a second later.
pub const COUNTING: &str = "trap 'echo term; told=1' TERM; \
                            until [ \"$told\" ]; do sleep 0.02; done; sleep 1";

/// The host of one test. Dropped from top to bottom.
pub struct Bed {
    pub watcher: Watcher,
    pub agent: StandInAgent,
    pub docker: Dockerd,
    pub scratch: Scratch,
    options: String,
}

impl Bed {
    /// In the layout that agents have on this host.
    pub fn start(name: &str, options: &str) -> Result<Self> {
        Self::with_layout(name, CgroupLayout::of_this_host()?, options)
    }

    pub fn with_layout(name: &str, layout: CgroupLayout, options: &str) -> Result<Self> {
        Self::configured(name, layout, &format!("{ENFORCE}\n{options}"))
    }

    pub fn configured(name: &str, layout: CgroupLayout, options: &str) -> Result<Self> {
        let (scratch, docker, agent) = StandInAgent::with_docker(name, layout)?;
        let mut options = format!("{options}\n");
        // What this host has is what the daemon has to find out by itself.
        if layout != CgroupLayout::of_this_host()? {
            options += "[cgroup]\nlayout = \"v2\"\n";
        }
        let watcher = Watcher::start_telling_steps(&scratch, &docker, &[agent.place()], &options)?;
        Ok(Self {
            watcher,
            agent,
            docker,
            scratch,
            options,
        })
    }

    /// Ends the daemon by a signal, lets something happen without it, and starts it
    /// again.
    pub fn restart_daemon(
        &mut self,
        signal: Signal,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.watcher.signal(signal)?;
        self.watcher.wait_end()?;
        meanwhile()?;
        let agents = [self.agent.place()];
        self.watcher =
            Watcher::start_telling_steps(&self.scratch, &self.docker, &agents, &self.options)?;
        Ok(())
    }

    /// A run that the daemon has learnt.
    pub fn launch(&self, executor_id: &str) -> Result<StandInRun> {
        let run = self.agent.launch(executor_id)?;
        self.watcher.wait_message_of(run.container_id(), "learnt")?;
        Ok(run)
    }

    /// A container of a run's pod.
    pub fn start_container(&self, run: &StandInRun, script: &str) -> Result<String> {
        self.docker.run_beneath(&run.cgroup_parent(), &[], script)
    }

    /// A pod with a container for each script.
    pub fn start_pod(&self, run: &StandInRun, scripts: &[&str]) -> Result<Vec<String>> {
        let start = |script: &&str| self.start_container(run, script);
        scripts.iter().map(start).collect()
    }

    pub fn ensure_running(&self, containers: &[String]) -> Result<()> {
        let running = self.docker.running()?;
        for id in containers {
            ensure!(running.contains(id), "{id} was stopped");
        }
        Ok(())
    }

    /// Directories as Docker makes them for containers of a run: in every hierarchy,
    /// named like containers, and empty. Far cheaper than containers.
    pub fn pretend_containers(&self, run: &StandInRun, count: u32) -> Result<()> {
        for root in self.scratch.cgroup_dirs() {
            for n in 0..count {
                let dir = root.join(run.container_id()).join(format!("{n:064x}"));
                fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
            }
        }
        Ok(())
    }

    pub fn wait_stopped(&self, id: &str) -> Result<()> {
        wait::try_until(SOON, format_args!("{id} to be stopped"), || {
            Ok((self.docker.inspect(id)?["State"]["Running"] == false).then_some(()))
        })
    }

    /// What there is of a run beneath the cgroups roots, of whomever.
    pub fn cgroups_of(&self, run: &StandInRun) -> Vec<PathBuf> {
        let mut left = self.scratch.leftovers();
        left.retain(|path| path.iter().any(|part| part == run.container_id()));
        left
    }

    /// The run's directories that Docker made, and not beneath the agent's: where
    /// nothing of the executor ever sat.
    pub fn dockers_cgroups_of(&self, run: &StandInRun) -> Vec<PathBuf> {
        let agents = run.agents_cgroups();
        let mut left = self.cgroups_of(run);
        left.retain(|path| !agents.contains(path));
        left
    }

    /// Says of a run how often its daemon has complained of the agent.
    pub fn complaints(&self, run: &StandInRun) -> Result<usize> {
        let mut complaints = self.watcher.said(STUCK)?;
        complaints.retain(|line| line["container"] == run.container_id());
        Ok(complaints.len())
    }

    /// The hook's request: a case of the executor looks again, and without one the
    /// daemon looks at everything.
    pub fn request(&self, executor_id: &str) -> Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let hex =
            |text: &str| -> String { text.bytes().map(|byte| format!("{byte:02x}")).collect() };
        let request = format!(
            "compose-cleanup-request 1\nframework_id={}\nexecutor_id={}\ntime_ns=1\nagent_pid=1\nmesos=1.11.0\nend\n",
            hex("stand-in-0000"),
            hex(executor_id),
        );
        let inbox = Watcher::inbox(&self.scratch);
        let unfinished = inbox.join(format!(".tmp-{count}"));
        fs::write(&unfinished, request)?;
        fs::rename(unfinished, inbox.join(format!("{count}.request")))?;
        Ok(())
    }

    /// Waits until the run's open case has looked at the host, and done what it
    /// found to be done, after this call.
    pub fn wait_looks(&self, run: &StandInRun) -> Result<()> {
        let before = self.watcher.steps(run.container_id())?;
        // One look may have begun before; the next step is taken after another.
        for more in 1..=3 {
            // Wakes a case that waits.
            self.request(run.executor_id())?;
            self.watcher.wait_steps(run.container_id(), before + more)?;
        }
        Ok(())
    }

    /// Waits until the daemon has looked at everything once after this call, and
    /// has judged what it saw: it says of a run without a process that it is left
    /// alone. What it takes for dead is judged with the next survey; two of these
    /// cover that.
    pub fn survey(&self) -> Result<()> {
        let canary = self.agent.prepare("canary")?;
        self.request("canary")?;
        self.watcher
            .wait_message_of(canary.container_id(), UNKNOWN)?;
        Ok(())
    }

    pub fn daemon(&self) -> Result<Process> {
        Process::of(self.watcher.pid()).context("the daemon")
    }

    /// The case is open, and what is the agent's is untouched.
    pub fn ensure_open(&self, run: &StandInRun, destroy: &Destroy) -> Result<()> {
        for cgroup in destroy.cgroups_left() {
            ensure!(cgroup.is_dir(), "{} is gone", cgroup.display());
        }
        let is_forgotten = destroy.next().is_none();
        ensure!(
            is_forgotten || run.runtime().is_dir(),
            "no runtime directory"
        );
        let cases = self.watcher.cases(run.container_id())?;
        ensure!(cases.is_empty(), "closed: {cases:?}");
        Ok(())
    }

    /// The run's end was noticed, whether it needed a case or not, and nothing
    /// of it is left.
    pub fn ensure_gone(&self, run: &StandInRun) -> Result<Value> {
        let end = self.watcher.wait_closed(run.container_id())?;
        let left = self.cgroups_of(run);
        ensure!(left.is_empty(), "{left:?} are left after {end}");
        Ok(end)
    }

    /// Nothing was in the way of anything, and nothing failed.
    pub fn ensure_no_warnings(&self) -> Result<()> {
        let mut lines = self.watcher.lines()?;
        lines.retain(|line| line["level"] == "WARN" || line["level"] == "ERROR");
        lines.retain(|line| line["message"] != ORPHANED);
        ensure!(lines.is_empty(), "{lines:?}");
        Ok(())
    }

    pub fn ensure_clean(&self, run: &StandInRun) -> Result<()> {
        let case = self.watcher.wait_case(run.container_id())?;
        ensure!(case["result"] == "clean", "{case}");
        let left = self.cgroups_of(run);
        ensure!(left.is_empty(), "{left:?} are left after {case}");
        Ok(())
    }
}
