//! Precise races between an executor's end, its agent, and the daemon.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::OBEDIENT;
use cleanup_tests::mesos::standin::{StandInRun, Step};
use cleanup_tests::wait;
use rustix::process::Signal;

use crate::bed::{Bed, MISSED, ORPHANED, SOON};

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
