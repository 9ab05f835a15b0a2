//! More stops at once than Docker is to have: the others get their stop signal from the
//! daemon.

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::{IGNORING_TERM, OBEDIENT};
use cleanup_tests::mesos::standin::StandInRun;
use cleanup_tests::{bins, command, wait};
use serde_json::Value;

use crate::bed::{Bed, COUNTING, SOON};

/// Docker's share is one container.
const CROWDED: &str = "docker.max_stops = 1";

impl Bed {
    /// Kills the executor once the daemon knows all of its pod, and returns the case.
    fn death_of(&self, run: &StandInRun, pod: &[String]) -> Result<Value> {
        wait::try_until(SOON, "the pod to be known", || {
            let mut ask = self.scratch.command(bins::find("compose-cleanup")?);
            ask.args(["executors", "--output", "json", "--config"]);
            ask.arg(self.scratch.path().join("compose-cleanup.toml"));
            let answer: Value = serde_json::from_str(&command::output(&mut ask, SOON)?)?;
            let known = answer["executors"][0]["pod"].as_array().map(Vec::len);
            Ok((known == Some(pod.len())).then_some(()))
        })?;
        run.executor()?.kill();
        for id in pod {
            self.wait_stopped(id)?;
        }
        self.agent.destroy(run).finish()?;
        self.ensure_clean(run)?;
        self.watcher.wait_case(run.container_id())
    }

    fn start_as(&self, run: &StandInRun, options: &[&str], script: &str) -> Result<String> {
        let parent = run.cgroup_parent();
        self.docker.run_beneath(&parent, options, script)
    }
}

/// Each gets one signal, from whomever, and its time to end; whoever takes longer than
/// the grace period is killed through Docker.
#[test]
fn each_is_signalled_once() -> Result<()> {
    let bed = Bed::start("crowd", CROWDED)?;
    let run = bed.launch("E")?;
    let scripts = [
        COUNTING,
        COUNTING,
        COUNTING,
        COUNTING,
        IGNORING_TERM,
        IGNORING_TERM,
    ];
    let pod = bed.start_pod(&run, &scripts)?;
    let case = bed.death_of(&run, &pod)?;
    let endings = case["endings"].as_str().context("endings")?;
    // Docker's one is any of them.
    let expected = [
        "2 grace_kill, 1 term, 3 unconfirmed",
        "2 grace_kill, 4 unconfirmed",
    ];
    ensure!(expected.contains(&endings), "{case}");
    for id in &pod[..4] {
        let log = bed.docker.docker(&["logs", id])?;
        assert_eq!(log, "term", "{id}");
        let state = &bed.docker.inspect(id)?["State"];
        assert_eq!(state["ExitCode"], 0, "{state}");
    }
    Ok(())
}

/// A container that a signal would not end for good, or not all of it, is Docker's to
/// stop, however much that has to do.
#[test]
fn only_where_a_stop_is_a_signal() -> Result<()> {
    let bed = Bed::start("crowd-not", CROWDED)?;
    let run = bed.launch("E")?;
    let on_usr1 = "trap 'exit 0' USR1; sleep 86400 & wait $!";
    let pod = [
        bed.start_as(&run, &["--restart=always"], OBEDIENT)?,
        bed.start_as(&run, &["--restart=on-failure"], OBEDIENT)?,
        bed.start_as(&run, &["--stop-signal=USR1"], on_usr1)?,
        bed.start_as(&run, &["--pid=host"], OBEDIENT)?,
    ];
    let case = bed.death_of(&run, &pod)?;
    assert_eq!(case["endings"], "4 term", "{case}");
    for id in &pod {
        let about = bed.docker.inspect(id)?;
        assert_eq!(about["RestartCount"], 0, "{id}");
    }
    Ok(())
}

/// Where a container's processes are not looked for, that none are found means nothing.
#[test]
fn one_that_lies_deeper_is_waited_for() -> Result<()> {
    let bed = Bed::start("crowd-deep", CROWDED)?;
    let run = bed.launch("E")?;
    let deeper = format!("--cgroup-parent={}/deeper", run.cgroup_parent());
    let pod = [
        bed.docker.run(&[&deeper], IGNORING_TERM)?,
        bed.docker.run(&[&deeper], IGNORING_TERM)?,
        bed.start_container(&run, OBEDIENT)?,
    ];
    let case = bed.death_of(&run, &pod)?;
    let endings = case["endings"].as_str().context("endings")?;
    ensure!(endings.starts_with("2 grace_kill"), "{case}");
    Ok(())
}

/// One that is paused has all of its grace period, too: Docker resumes it.
#[test]
fn one_that_is_paused_is_dockers() -> Result<()> {
    let bed = Bed::start("crowd-paused", CROWDED)?;
    let run = bed.launch("E")?;
    let pod = bed.start_pod(&run, &[COUNTING, COUNTING])?;
    for id in &pod {
        bed.docker.docker(&["pause", id])?;
    }
    let case = bed.death_of(&run, &pod)?;
    assert_eq!(case["endings"], "2 term", "{case}");
    Ok(())
}

/// A restart policy that was given to a container after the daemon had looked at it: it
/// comes back, and is stopped through Docker.
#[test]
fn one_that_comes_back_is_stopped_again() -> Result<()> {
    let bed = Bed::start("crowd-update", CROWDED)?;
    let run = bed.launch("E")?;
    let pod = bed.start_pod(&run, &[OBEDIENT; 4])?;
    for id in &pod {
        bed.docker.docker(&["update", "--restart=always", id])?;
    }
    let case = bed.death_of(&run, &pod)?;
    assert_eq!(case["result"], "clean", "{case}");
    bed.ensure_clean(&run)?;
    ensure!(bed.docker.running()?.is_empty(), "{case}");
    Ok(())
}
