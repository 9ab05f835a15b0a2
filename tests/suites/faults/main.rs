//! When something is in the way: a Docker that fails in every way it can, and what
//! the daemon itself may lack. In every case: nothing that lives is touched, nothing
//! that is dead is lost, and one stuck thing stops nothing else.
//!
//! Docker, the kernel's events and the cgroups are real. The agent is a stand-in
//! (`cleanup_tests::mesos::standin`), since a real one kills the pod of a dead
//! executor within a second, whatever Docker and the daemon do: here nothing but
//! the daemon under test ends a container.

mod cgroups;
mod clock;
mod descriptors;
mod docker;
mod dockerd;
mod journal;
mod ring;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::{Dockerd, IGNORING_TERM, OBEDIENT};
use cleanup_tests::docker_proxy::DockerProxy;
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent, StandInRun};
use cleanup_tests::process::Process;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;
use cleanup_tests::watcher::Watcher;
use rustix::process::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(90);

/// At work, with a Docker that is given up on soon.
const ENFORCE: &str =
    "mode = \"enforce\"\ngrace = \"2s\"\nsettle = \"200ms\"\ndocker.timeout = \"2s\"";

/// Said when an agent is past its deadline.
const STUCK: &str = "the agent has not finished its destroy of a dead container: its cgroups stay until it does, is restarted, or is gone";

/// Said when anything that a case tries fails.
const IN_THE_WAY: &str = "in the way of a cleanup; trying on";

/// Dropped from top to bottom.
struct Bed {
    watcher: Watcher,
    proxy: Option<DockerProxy>,
    agent: StandInAgent,
    docker: Dockerd,
    scratch: Scratch,
}

/// Pairs a run with the containers of its pod.
struct Pod {
    run: StandInRun,
    containers: Vec<String>,
}

impl Bed {
    /// The daemon talks to dockerd itself.
    fn start(name: &str, docker_options: &[&str], options: &str) -> Result<Self> {
        Self::make(name, docker_options, options, false, |_| Ok(()))
    }

    /// With something done to the scratch before there is a daemon.
    fn prepared(name: &str, prepare: impl FnOnce(&Scratch) -> Result<()>) -> Result<Self> {
        Self::make(name, &[], "", false, prepare)
    }

    /// The daemon talks to dockerd through a proxy that can break things.
    fn behind_proxy(name: &str, options: &str) -> Result<Self> {
        Self::make(name, &[], options, true, |_| Ok(()))
    }

    fn make(
        name: &str,
        docker_options: &[&str],
        options: &str,
        proxied: bool,
        prepare: impl FnOnce(&Scratch) -> Result<()>,
    ) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        prepare(&scratch)?;
        let docker = Dockerd::start_with(&scratch, docker_options)?;
        docker.import_busybox()?;
        let agent = StandInAgent::start(&scratch, CgroupLayout::V1)?;
        let proxy = proxied
            .then(|| DockerProxy::start(&scratch, &docker))
            .transpose()?;
        let socket = match &proxy {
            Some(proxy) => proxy.socket().to_owned(),
            None => docker.socket(),
        };
        let options = format!("{ENFORCE}\n{options}\n");
        let watcher = Watcher::start_at(&scratch, &socket, &[agent.place()], &options)?;
        Ok(Self {
            watcher,
            proxy,
            agent,
            docker,
            scratch,
        })
    }

    fn proxy(&self) -> Result<&DockerProxy> {
        self.proxy.as_ref().context("this bed has no proxy")
    }

    fn daemon(&self) -> Result<Process> {
        Process::of(self.watcher.pid()).context("the daemon")
    }

    /// Starts another daemon where one was, which is gone.
    fn watch_again(&mut self, options: &str) -> Result<()> {
        let options = format!("{ENFORCE}\n{options}\n");
        self.watcher = Watcher::start_at(
            &self.scratch,
            &self.docker.socket(),
            &[self.agent.place()],
            &options,
        )?;
        Ok(())
    }

    /// A run that the daemon has learnt, with a container for each script.
    fn pod(&self, executor_id: &str, scripts: &[&str]) -> Result<Pod> {
        self.pod_with(executor_id, &[], scripts)
    }

    /// [`Self::pod`], with more options for `docker run`.
    fn pod_with(&self, executor_id: &str, options: &[&str], scripts: &[&str]) -> Result<Pod> {
        let run = self.agent.launch(executor_id)?;
        self.watcher.wait_executor_learnt(run.container_id())?;
        let start = |script: &&str| self.start_container(&run, options, script);
        let containers = scripts.iter().map(start).collect::<Result<_>>()?;
        Ok(Pod { run, containers })
    }

    fn start_container(&self, run: &StandInRun, options: &[&str], script: &str) -> Result<String> {
        self.docker
            .run_beneath(&run.cgroup_parent(), options, script)
    }

    fn is_running(&self, id: &str) -> Result<bool> {
        Ok(self.docker.inspect(id)?["State"]["Running"] == true)
    }

    fn wait_stopped(&self, id: &str) -> Result<()> {
        wait::try_until(SOON, format_args!("{id} to be stopped"), || {
            Ok((!self.is_running(id)?).then_some(()))
        })
        .with_context(|| cleanup_tests::log::tail(self.watcher.log_path(), 30))
    }

    /// A container's first process.
    fn first_process(&self, id: &str) -> Result<Process> {
        let pid = self.docker.inspect(id)?["State"]["Pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
            .context("a pid")?;
        Process::of(pid).with_context(|| format!("{id} does not run"))
    }

    fn cgroups_of(&self, run: &StandInRun) -> Vec<PathBuf> {
        let mut left = self.scratch.leftovers();
        left.retain(|path| path.iter().any(|part| part == run.container_id()));
        left
    }

    /// Says once, of one run, what is in the way.
    fn complaints(&self, run: &StandInRun) -> Result<Vec<Value>> {
        let mut lines = self.watcher.said(IN_THE_WAY)?;
        lines.retain(|line| line["container"] == run.container_id());
        Ok(lines)
    }

    /// The pod's containers were all stopped; its agent goes on, and then nothing is
    /// left of it.
    fn ensure_cleaned(&self, pod: &Pod) -> Result<Value> {
        for id in &pod.containers {
            self.wait_stopped(id)?;
        }
        self.agent.destroy(&pod.run).finish()?;
        let case = self.watcher.wait_case(pod.run.container_id())?;
        self.ensure_clean(pod, &case)?;
        Ok(case)
    }

    fn ensure_clean(&self, pod: &Pod, case: &Value) -> Result<()> {
        ensure!(case["result"] == "clean", "{case}");
        let left = self.cgroups_of(&pod.run);
        ensure!(left.is_empty(), "{left:?} are left after {case}");
        for id in &pod.containers {
            ensure!(!self.is_running(id)?, "{id} runs after {case}");
        }
        Ok(())
    }

    /// A pod that nobody has a reason to touch.
    fn ensure_untouched(&self, pod: &Pod) -> Result<()> {
        ensure!(pod.run.executor()?.alive(), "the neighbour was ended");
        for id in &pod.containers {
            let found = self.docker.inspect(id)?;
            ensure!(found["State"]["Running"] == true, "{id} was stopped");
            ensure!(found["RestartCount"] == 0, "{id} was restarted");
        }
        let cases = self.watcher.cases(pod.run.container_id())?;
        ensure!(cases.is_empty(), "{cases:?}");
        for cgroup in pod.run.agents_cgroups() {
            ensure!(cgroup.is_dir(), "{} is gone", cgroup.display());
        }
        Ok(())
    }

    /// Stops the daemon for as long as `meanwhile` takes.
    fn while_stopped<T>(&self, meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
        let daemon = self.daemon()?;
        daemon.signal(Signal::STOP)?;
        let done = meanwhile();
        daemon.signal(Signal::CONT)?;
        done
    }
}
