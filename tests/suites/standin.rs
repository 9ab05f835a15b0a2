//! What a real agent cannot be brought to on demand: the cgroup v2 layout, its
//! failure modes, and precise races. Docker, the kernel's events and the cgroups
//! are real; the agent is a stand-in (`cleanup_tests::mesos::standin`).

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::{Dockerd, IMAGE};
use cleanup_tests::host::ENFORCE;
use cleanup_tests::mesos::standin::{CgroupLayout, Destroy, StandInAgent, StandInRun, Step};
use cleanup_tests::process::Process;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;
use cleanup_tests::watcher::Watcher;
use rustix::process::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

const OBEDIENT: &str = "trap 'exit 0' TERM; sleep 86400 & wait $!";
const IGNORING_TERM: &str = "trap '' TERM; exec sleep 86400";

/// At work, and in no hurry to end what ignores its stop signal.
const PATIENT: &str = "mode = \"enforce\"\ngrace = \"10m\"\nsettle = \"200ms\"";

const STUCK: &str = "the agent has not finished its destroy of a dead container: its cgroups stay until it does, \
                     is restarted, or is gone";

const ORPHANED: &str = "the launcher helper is dead, the executor is not: its pod is left alone until the executor is gone";

const MISSED: &str = "a run was over before it was learnt; looking at everything";

const UNKNOWN: &str = "unknown run: left alone";

/// Dropped from top to bottom.
struct Bed {
    watcher: Watcher,
    agent: StandInAgent,
    docker: Dockerd,
    scratch: Scratch,
}

impl Bed {
    fn start(name: &str, options: &str) -> Result<Self> {
        Self::with_layout(name, CgroupLayout::V1, options)
    }

    fn with_layout(name: &str, layout: CgroupLayout, options: &str) -> Result<Self> {
        Self::configured(name, layout, &format!("{ENFORCE}\n{options}"))
    }

    fn configured(name: &str, layout: CgroupLayout, options: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let docker = Dockerd::start(&scratch)?;
        docker.import_busybox()?;
        let agent = StandInAgent::start(&scratch, layout)?;
        let mut options = format!("{options}\n");
        if layout == CgroupLayout::V2 {
            options += "[cgroup]\nlayout = \"v2\"\n";
        }
        let watcher = Watcher::start_telling_steps(&scratch, &docker, &[agent.place()], &options)?;
        Ok(Self {
            watcher,
            agent,
            docker,
            scratch,
        })
    }

    /// A run that the daemon has learnt.
    fn launch(&self, executor_id: &str) -> Result<StandInRun> {
        let run = self.agent.launch(executor_id)?;
        self.watcher.wait_message_of(run.container_id(), "learnt")?;
        Ok(run)
    }

    /// A container of a run's pod.
    fn start_container(&self, run: &StandInRun, script: &str) -> Result<String> {
        let parent = format!("--cgroup-parent={}", run.cgroup_parent());
        let arguments = ["run", "--detach", "--network=none", &parent, IMAGE];
        self.docker
            .docker(&[&arguments[..], &["sh", "-c", script]].concat())
    }

    /// A pod with a container for each script.
    fn start_pod(&self, run: &StandInRun, scripts: &[&str]) -> Result<Vec<String>> {
        let start = |script: &&str| self.start_container(run, script);
        scripts.iter().map(start).collect()
    }

    fn ensure_running(&self, containers: &[String]) -> Result<()> {
        let running = self.docker.running()?;
        for id in containers {
            ensure!(running.contains(id), "{id} was stopped");
        }
        Ok(())
    }

    /// Directories as Docker makes them for containers of a run: in every hierarchy,
    /// named like containers, and empty. Far cheaper than containers.
    fn pretend_containers(&self, run: &StandInRun, count: u32) -> Result<()> {
        for root in self.scratch.cgroup_dirs() {
            for n in 0..count {
                let dir = root.join(run.container_id()).join(format!("{n:064x}"));
                fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
            }
        }
        Ok(())
    }

    fn wait_stopped(&self, id: &str) -> Result<()> {
        wait::try_until(SOON, format_args!("{id} to be stopped"), || {
            Ok((self.docker.inspect(id)?["State"]["Running"] == false).then_some(()))
        })
    }

    /// What there is of a run beneath the cgroups roots, of whomever.
    fn cgroups_of(&self, run: &StandInRun) -> Vec<PathBuf> {
        let mut left = self.scratch.leftovers();
        left.retain(|path| path.iter().any(|part| part == run.container_id()));
        left
    }

    /// The run's directories that Docker made, and not beneath the agent's: where
    /// nothing of the executor ever sat.
    fn dockers_cgroups_of(&self, run: &StandInRun) -> Vec<PathBuf> {
        let agents = run.agents_cgroups();
        let mut left = self.cgroups_of(run);
        left.retain(|path| !agents.contains(path));
        left
    }

    /// Says of a run how often its daemon has complained of the agent.
    fn complaints(&self, run: &StandInRun) -> Result<usize> {
        let mut complaints = self.watcher.said(STUCK)?;
        complaints.retain(|line| line["container"] == run.container_id());
        Ok(complaints.len())
    }

    /// The hook's request: a case of the executor looks again, and without one the
    /// daemon looks at everything.
    fn request(&self, executor_id: &str) -> Result<()> {
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
    fn wait_looks(&self, run: &StandInRun) -> Result<()> {
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
    fn survey(&self) -> Result<()> {
        let canary = self.agent.prepare("canary")?;
        self.request("canary")?;
        self.watcher
            .wait_message_of(canary.container_id(), UNKNOWN)?;
        Ok(())
    }

    fn daemon(&self) -> Result<Process> {
        Process::of(self.watcher.pid()).context("the daemon")
    }

    /// The case is open, and what is the agent's is untouched.
    fn ensure_open(&self, run: &StandInRun, destroy: &Destroy) -> Result<()> {
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
    fn ensure_gone(&self, run: &StandInRun) -> Result<Value> {
        let end = self.watcher.wait_closed(run.container_id())?;
        let left = self.cgroups_of(run);
        ensure!(left.is_empty(), "{left:?} are left after {end}");
        Ok(end)
    }

    /// Nothing was in the way of anything, and nothing failed.
    fn ensure_no_warnings(&self) -> Result<()> {
        let mut lines = self.watcher.lines()?;
        lines.retain(|line| line["level"] == "WARN" || line["level"] == "ERROR");
        lines.retain(|line| line["message"] != ORPHANED);
        ensure!(lines.is_empty(), "{lines:?}");
        Ok(())
    }

    fn ensure_clean(&self, run: &StandInRun) -> Result<()> {
        let case = self.watcher.wait_case(run.container_id())?;
        ensure!(case["result"] == "clean", "{case}");
        let left = self.cgroups_of(run);
        ensure!(left.is_empty(), "{left:?} are left after {case}");
        Ok(())
    }
}

/// The layout of cgroup v2, `<root>/<container id>/leaf`, which no Mesos release
/// has, on the real unified hierarchy.
#[test]
fn v2_leaf_layout() -> Result<()> {
    let bed = Bed::with_layout("leaf", CgroupLayout::V2, "")?;
    let run = bed.launch("E")?;
    let leaf = run.launcher_cgroup().join("leaf");
    let containers = bed.start_pod(&run, &[OBEDIENT, OBEDIENT])?;
    for id in &containers {
        let cgroup = run.launcher_cgroup().join(id);
        ensure!(cgroup.is_dir(), "no cgroup of {id} beneath the run's");
    }
    run.executor()?.kill();
    for id in &containers {
        bed.wait_stopped(id)?;
    }
    let destroy = bed.agent.destroy(&run);
    bed.wait_looks(&run)?;
    bed.ensure_open(&run, &destroy)?;
    ensure!(leaf.is_dir());
    destroy.finish()?;
    bed.ensure_clean(&run)?;
    let case = bed.watcher.wait_case(run.container_id())?;
    assert_eq!(case["origin"], "kernel", "{case}");
    assert_eq!(case["endings"], "2 term", "{case}");
    assert_eq!(case["executor"], "E", "{case}");
    Ok(())
}

/// The agent never goes on with its destroy, and then is gone.
#[test]
fn destroy_that_is_stuck_until_the_agent_goes() -> Result<()> {
    let mut bed = Bed::start("stuck", "agent_deadline = \"1s\"")?;
    let run = bed.launch("victim")?;
    let containers = bed.start_pod(&run, &[OBEDIENT, IGNORING_TERM])?;
    let neighbour = bed.launch("neighbour")?;
    let neighbours = bed.start_pod(&neighbour, &[OBEDIENT])?;
    ensure!(!bed.dockers_cgroups_of(&run).is_empty());

    run.executor()?.kill();
    let destroy = bed.agent.destroy(&run);
    for id in &containers {
        bed.wait_stopped(id)?;
    }
    bed.watcher.wait_message_of(run.container_id(), STUCK)?;
    bed.ensure_open(&run, &destroy)?;
    // What Docker made went at once, and nothing else.
    let dockers = bed.dockers_cgroups_of(&run);
    ensure!(dockers.is_empty(), "{dockers:?} are left");
    bed.wait_looks(&run)?;
    bed.ensure_open(&run, &destroy)?;
    assert_eq!(bed.complaints(&run)?, 1);

    bed.agent.kill9()?;
    bed.ensure_clean(&run)?;
    let case = bed.watcher.wait_case(run.container_id())?;
    assert_eq!(case["endings"], "1 grace_kill, 1 term", "{case}");
    assert_eq!(bed.complaints(&run)?, 1);

    // An agent that is gone is no reason to touch what lives.
    ensure!(neighbour.executor()?.alive());
    bed.ensure_running(&neighbours)?;
    for cgroup in neighbour.agents_cgroups() {
        ensure!(cgroup.is_dir(), "{} is gone", cgroup.display());
    }
    neighbour.executor()?.kill();
    bed.ensure_clean(&neighbour)
}

/// The agent's destroy fails half-way, for good. It is restarted, and recovers.
#[test]
fn destroy_that_failed_until_the_agent_recovers() -> Result<()> {
    let mut bed = Bed::start("failed", "agent_deadline = \"1s\"")?;
    let run = bed.launch("victim")?;
    let containers = bed.start_pod(&run, &[OBEDIENT])?;
    run.executor()?.kill();
    for id in &containers {
        bed.wait_stopped(id)?;
    }
    let mut destroy = bed.agent.destroy(&run);
    destroy.through(Step::RemoveSomeIsolators)?;
    bed.watcher.wait_message_of(run.container_id(), STUCK)?;
    bed.ensure_open(&run, &destroy)?;

    bed.agent.begin_recovery()?;
    // A container that comes now is stopped. What Docker made for it stays.
    let late = bed.start_container(&run, OBEDIENT)?;
    bed.wait_stopped(&late)?;
    bed.wait_looks(&run)?;
    bed.ensure_open(&run, &destroy)?;
    let dockers = bed.dockers_cgroups_of(&run);
    ensure!(!dockers.is_empty(), "removed while the agent recovers");

    bed.agent.finish_recovery()?;
    wait::until(SOON, "what Docker made to go", || {
        bed.dockers_cgroups_of(&run).is_empty().then_some(())
    })?;
    bed.wait_looks(&run)?;
    bed.ensure_open(&run, &destroy)?;
    // What is found dead in a recovery is destroyed.
    bed.agent.destroy(&run).finish()?;
    bed.ensure_clean(&run)?;
    let case = bed.watcher.wait_case(run.container_id())?;
    assert_eq!(case["endings"], "2 term", "{case}");
    assert_eq!(bed.watcher.cases(run.container_id())?.len(), 1);
    Ok(())
}

/// Between all steps of the agent's destroy nothing that is the agent's is
/// touched; the stand-in's own steps fail if it was.
#[test]
fn destroy_step_by_step() -> Result<()> {
    for layout in [CgroupLayout::V1, CgroupLayout::V2] {
        // Until the agent kills it, one container ignores what it is told.
        let bed = Bed::configured("slow", layout, PATIENT)?;
        let run = bed.launch("victim")?;
        let containers = bed.start_pod(&run, &[OBEDIENT, IGNORING_TERM])?;
        run.executor()?.kill();
        bed.wait_stopped(&containers[0])?;
        let mut destroy = bed.agent.destroy(&run);
        let state = run.launcher_cgroup().join("freezer.state");
        let mut frozen = "THAWED";
        while let Some(step) = destroy.next() {
            if step == Step::Forget {
                // Nothing is left for anybody: no reason to wait for the agent.
                bed.ensure_clean(&run)?;
            } else {
                bed.wait_looks(&run)?;
                bed.ensure_open(&run, &destroy)
                    .with_context(|| format!("{layout:?}, before {step:?}"))?;
            }
            if let Ok(now) = fs::read_to_string(&state) {
                assert_eq!(now.trim_end(), frozen, "before {step:?}");
            }
            destroy.step()?;
            match step {
                Step::Freeze => frozen = "FROZEN",
                Step::Thaw => frozen = "THAWED",
                // Docker has told of the pod's end by then.
                Step::Reap => {
                    bed.watcher.wait_for_the_agents_turn(run.container_id())?;
                }
                _ => {}
            }
        }
        bed.ensure_clean(&run)?;
        let case = bed.watcher.wait_case(run.container_id())?;
        assert_eq!(case["endings"], "1 agent_kill, 1 term", "{case}");
    }
    Ok(())
}

/// The agent and the daemon remove the same directories at the same time: what
/// Docker made, while the agent's destroy runs, and everything, as when an agent is
/// killed in the middle of that and its successor begins again.
#[test]
fn both_remove_at_once() -> Result<()> {
    const ROUNDS: usize = 12;
    /// While one side walks through them, the other catches up.
    const CONTAINERS: u32 = 64;
    let bed = Bed::start("race", "")?;
    let daemon = bed.daemon()?;
    let mut removed_by_us = 0;
    for round in 0..ROUNDS {
        let run = bed.launch(&format!("E{round}"))?;
        let mut destroy = bed.agent.destroy(&run);
        if round % 2 == 0 {
            bed.pretend_containers(&run, CONTAINERS)?;
            run.executor()?.kill();
            // Its steps fail if the daemon takes what is not Docker's.
            destroy.finish().with_context(|| format!("round {round}"))?;
        } else {
            run.executor()?.kill();
            destroy.through(Step::Reap)?;
            bed.watcher.wait_for_the_agents_turn(run.container_id())?;
            daemon.signal(Signal::STOP)?;
            bed.pretend_containers(&run, CONTAINERS)?;
            let before = bed.cgroups_of(&run);
            fs::remove_dir_all(run.runtime())?;
            daemon.signal(Signal::CONT)?;
            wait::until(SOON, "the daemon to begin", || {
                before.iter().any(|cgroup| !cgroup.exists()).then_some(())
            })?;
            // From the other end: both meet.
            for cgroup in bed.scratch.cgroup_dirs().iter().rev() {
                remove_beside(&cgroup.join(run.container_id()))?;
            }
        }
        let end = bed
            .ensure_gone(&run)
            .with_context(|| format!("round {round}"))?;
        removed_by_us += end["cgroups_removed"].as_u64().unwrap_or_default();
    }
    eprintln!("the daemon was first with {removed_by_us} directories in {ROUNDS} rounds");
    bed.ensure_no_warnings()
}

/// Removes a run's cgroup while somebody else does, too.
fn remove_beside(cgroup: &Path) -> Result<()> {
    let remove = |dir: &Path| match fs::remove_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(false),
        Err(error) => Err(error).context("removing a cgroup beside the daemon"),
    };
    wait::try_until(SOON, cgroup.display(), || {
        for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path())?;
            }
        }
        Ok(remove(cgroup)?.then_some(()))
    })
}

/// The executor is dead before anybody has learnt of it, at every moment that
/// there is: its pod was faster, as a pod can be that an earlier start left.
#[test]
fn executors_that_die_before_they_are_learnt() -> Result<()> {
    const ROUNDS: usize = 50;
    let bed = Bed::start("unlearnt", "")?;
    for round in 0..ROUNDS {
        let mut run = bed.agent.prepare(&format!("E{round}"))?;
        // Docker is slow: a few pods will do.
        let container = (round % 10 < 5 && round < 20)
            .then(|| bed.start_container(&run, OBEDIENT))
            .transpose()?;
        bed.pretend_containers(&run, 1)?;
        match round % 5 {
            0 => run.launch(&["false"])?,
            1 => {
                run.launch(&["sleep", "86400"])?;
                run.executor()?.kill();
            }
            2 => {
                run.launch(&["sleep", "86400"])?;
                let executor = run.executor()?;
                run.helper()?.kill();
                executor.kill();
            }
            3 => {
                // Waiting to be released.
                run.fork(&["sleep", "86400"])?;
                run.record_pid()?;
                run.helper()?.kill();
            }
            _ => {
                // The agent writes down the pid of a zombie.
                run.fork(&["sleep", "86400"])?.kill();
                run.record_pid()?;
            }
        }
        if let Some(id) = &container {
            bed.wait_stopped(id)
                .with_context(|| format!("round {round}"))?;
        }
        bed.agent.destroy(&run).finish()?;
        bed.ensure_gone(&run)
            .with_context(|| format!("round {round}"))?;
    }
    bed.ensure_no_warnings()
}

/// The helper is killed, and its executor lives on.
#[test]
fn helper_that_dies_before_its_executor() -> Result<()> {
    let bed = Bed::start("orphan", "")?;
    let run = bed.launch("E")?;
    let executor = run.executor()?;
    bed.watcher.wait_executor_learnt(run.container_id())?;
    let containers = bed.start_pod(&run, &[OBEDIENT, OBEDIENT])?;
    let before = bed.cgroups_of(&run);
    run.helper()?.kill();
    bed.watcher.wait_message_of(run.container_id(), ORPHANED)?;
    bed.survey()?;
    ensure!(executor.alive());
    bed.ensure_running(&containers)?;
    assert_eq!(bed.cgroups_of(&run), before);
    assert_eq!(bed.watcher.cases(run.container_id())?.len(), 0);

    executor.kill();
    for id in &containers {
        bed.wait_stopped(id)?;
    }
    bed.agent.destroy(&run).finish()?;
    bed.ensure_clean(&run)
}

/// All is over, and the agent done, before the daemon reads of any of it: of a run
/// that it knew, and of one that it never heard of.
#[test]
fn agent_that_is_done_before_the_event_is_read() -> Result<()> {
    let bed = Bed::start("late", "")?;
    let known = bed.launch("known")?;
    bed.watcher.wait_executor_learnt(known.container_id())?;
    let mut containers = bed.start_pod(&known, &[OBEDIENT])?;
    let daemon = bed.daemon()?;
    daemon.signal(Signal::STOP)?;
    let unknown = bed.agent.launch("unknown")?;
    containers.extend(bed.start_pod(&unknown, &[OBEDIENT])?);
    for run in [&known, &unknown] {
        run.executor()?.kill();
        // Kills the pod, too, as agents do. What Docker makes of that is its own.
        bed.agent.destroy(run).finish()?;
    }
    // The agent had no reason to look there.
    bed.pretend_containers(&unknown, 1)?;
    daemon.signal(Signal::CONT)?;
    bed.ensure_gone(&known)?;
    bed.watcher
        .wait_message_of(unknown.container_id(), MISSED)?;
    bed.ensure_clean(&unknown)?;
    let case = bed.watcher.wait_case(unknown.container_id())?;
    assert_eq!(case["origin"], "scan", "{case}");
    for id in &containers {
        bed.wait_stopped(id)?;
    }
    Ok(())
}

/// A run that is being set up looks like one that is over: directories, and no
/// process. It may take for as long as it likes.
#[test]
fn run_that_is_being_set_up() -> Result<()> {
    let bed = Bed::start("setup", "")?;
    let mut held = bed.agent.prepare("held")?;
    bed.pretend_containers(&held, 1)?;
    let container = bed.start_container(&held, OBEDIENT)?;
    let untouched = |held: &StandInRun, before: &[PathBuf]| -> Result<()> {
        for _ in 0..3 {
            bed.survey()?;
        }
        assert_eq!(bed.cgroups_of(held), before);
        ensure!(held.runtime().is_dir());
        bed.ensure_running(std::slice::from_ref(&container))?;
        assert_eq!(bed.watcher.cases(held.container_id())?.len(), 0);
        Ok(())
    };
    let before = bed.cgroups_of(&held);
    untouched(&held, &before)?;
    // The helper waits, and its pid is nowhere to be read.
    held.fork(&["sleep", "86400"])?;
    untouched(&held, &before)?;
    held.record_pid()?;
    untouched(&held, &before)?;

    held.isolate()?;
    held.release()?;
    bed.watcher.wait_executor_learnt(held.container_id())?;
    held.executor()?.kill();
    bed.wait_stopped(&container)?;
    bed.agent.destroy(&held).finish()?;
    bed.ensure_clean(&held)
}
