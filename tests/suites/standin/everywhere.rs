//! The main job on whatever this host has: any kernel, cgroups of version 1, of both
//! or of version 2. `cargo xtask vm` runs these in each of its guests.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::{IGNORING_TERM, OBEDIENT};
use cleanup_tests::host::Probe;
use cleanup_tests::mesos::standin::CgroupLayout;
use cleanup_tests::watcher::Watcher;
use cleanup_tests::{bins, command, wait};
use rustix::process::Signal;
use serde_json::Value;

use crate::bed::{Bed, PATIENT, SOON};

cleanup_tests::under_each_probe! {
    pod_of_a_dead_executor,
    death_without_an_agent,
    death_while_the_daemon_was_down,
}

/// An executor that leaves a process of its own behind in its cgroup.
const WITH_A_CHILD: [&str; 3] = ["sh", "-c", "sleep 86400 & exec sleep 86400"];

/// Its pod is stopped, and its cgroups are gone in every hierarchy that is mounted;
/// the other executor's are as they were.
fn pod_of_a_dead_executor(probe: Probe) -> Result<()> {
    let bed = Bed::start("death", probe.option())?;
    let victim = bed.launch("victim")?;
    let neighbour = bed.launch("neighbour")?;
    let pod = bed.start_pod(&victim, &[OBEDIENT, IGNORING_TERM])?;
    let neighbours = bed.start_pod(&neighbour, &[OBEDIENT])?;
    // Without them a clean host would prove nothing.
    for id in &pod {
        let beneath = bed.cgroups_of(&victim);
        let is_theirs = beneath.iter().any(|cgroup| cgroup.ends_with(id));
        ensure!(is_theirs, "no cgroup of {id} among {beneath:?}");
    }
    let before = bed.cgroups_of(&neighbour);

    victim.executor()?.kill();
    for id in &pod {
        bed.wait_stopped(id)?;
    }
    bed.agent.destroy(&victim).finish()?;
    bed.ensure_clean(&victim)?;
    let case = bed.watcher.wait_case(victim.container_id())?;
    probe.ensure_noticed(&case)?;
    assert_eq!(case["executor"], "victim", "{case}");
    assert_eq!(case["endings"], "1 grace_kill, 1 term", "{case}");

    ensure!(neighbour.executor()?.alive());
    bed.ensure_running(&neighbours)?;
    assert_eq!(bed.cgroups_of(&neighbour), before);
    Ok(())
}

/// Nobody else ends what the executor left running, and nobody else removes its
/// cgroups: by `cgroup.kill` where the kernel has it, else process by process.
fn death_without_an_agent(probe: Probe) -> Result<()> {
    let mut bed = Bed::start("alone", probe.option())?;
    let neighbour = bed.launch("neighbour")?;
    let mut run = bed.agent.prepare("victim")?;
    run.launch(&WITH_A_CHILD)?;
    let executor = run.executor()?;
    bed.watcher.wait_executor_learnt(run.container_id())?;
    let child = wait::until(SOON, "the executor's child", || executor.children().pop())?;
    let pod = bed.start_pod(&run, &[OBEDIENT])?;

    bed.agent.kill9()?;
    executor.kill();
    bed.ensure_clean(&run)?;
    ensure!(!child.alive(), "what the executor left runs on");
    for id in &pod {
        bed.wait_stopped(id)?;
    }
    ensure!(neighbour.executor()?.alive());
    for cgroup in neighbour.agents_cgroups() {
        ensure!(cgroup.is_dir(), "{} is gone", cgroup.display());
    }
    Ok(())
}

/// Nobody told of it: the daemon's first look finds it.
fn death_while_the_daemon_was_down(probe: Probe) -> Result<()> {
    let mut bed = Bed::start("down", probe.option())?;
    let victim = bed.launch("victim")?;
    let neighbour = bed.launch("neighbour")?;
    let pod = bed.start_pod(&victim, &[OBEDIENT])?;
    let neighbours = bed.start_pod(&neighbour, &[OBEDIENT])?;
    bed.restart_daemon(Signal::TERM, || {
        victim.executor()?.kill();
        victim.helper()?.wait_gone(SOON)
    })?;
    for id in &pod {
        bed.wait_stopped(id)?;
    }
    bed.agent.destroy(&victim).finish()?;
    bed.ensure_clean(&victim)?;
    let case = bed.watcher.wait_case(victim.container_id())?;
    // A helper that nobody has reaped yet is as good as the kernel's word; else the
    // survey concludes it.
    let noticed = ["pidfd", "scan"]
        .iter()
        .any(|origin| case["origin"] == *origin);
    ensure!(noticed, "nobody could tell: {case}");

    bed.ensure_running(&neighbours)?;
    // What was there before the daemon is known to it.
    let learnt = bed.watcher.wait_executor_learnt(neighbour.container_id())?;
    ensure!(neighbour.executor()?.alive(), "{learnt}");
    neighbour.executor()?.kill();
    bed.agent.destroy(&neighbour).finish()?;
    bed.ensure_gone(&neighbour).map(drop)
}

/// Killed while it waits for a container: the next one goes on with the same case.
#[test]
fn daemon_killed_in_the_middle_of_a_case() -> Result<()> {
    let layout = CgroupLayout::of_this_host()?;
    let mut bed = Bed::configured("resumed", layout, PATIENT)?;
    let run = bed.launch("victim")?;
    let pod = bed.start_pod(&run, &[OBEDIENT, IGNORING_TERM])?;
    run.executor()?.kill();
    bed.wait_stopped(&pod[0])?;
    // It has looked again since, so what it began is in the journal.
    bed.wait_looks(&run)?;
    let begun = wait::until(SOON, "the case in the journal", || {
        let case = history(&bed, run.container_id()).ok()?;
        (case["closed"] == Value::Null).then(|| case["id"].clone())
    })?;
    ensure!(begun.is_string(), "a case without a number: {begun}");
    bed.restart_daemon(Signal::KILL, || Ok(()))?;
    bed.ensure_running(&pod[1..])?;
    // The agent ends it, as agents do.
    bed.agent.destroy(&run).finish()?;
    bed.ensure_clean(&run)?;
    let case = bed.watcher.wait_case(run.container_id())?;
    assert_eq!(case["case"], begun, "another case: {case}");
    Ok(())
}

/// The one case that the journal has of a run.
fn history(bed: &Bed, container_id: &str) -> Result<Value> {
    let mut show = Command::new(bins::find("compose-cleanup")?);
    show.args(["case", container_id, "--output", "json", "--journal"]);
    show.arg(Watcher::journal(&bed.scratch));
    let text = command::output(&mut show, SOON)?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}
