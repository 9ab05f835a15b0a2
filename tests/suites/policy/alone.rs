//! Whom to leave alone: the label, and the operator's exclusions.

use std::fs;

use anyhow::{Context, Result, ensure};
use cleanup_tests::host::{ENFORCE, Host};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::mesos::framework::Framework;
use cleanup_tests::watcher::Watcher;

use super::{Bed, wait_clean, wait_waiting};

const KEEP: &str = "--label=compose-cleanup.keep=true";

/// Its owner's word keeps one container of a pod, without an agent that could end
/// it; the case is closed when it has ended by itself.
#[test]
fn a_kept_container_lives_on() -> Result<()> {
    let mut bed = Bed::new("keep")?;
    let watcher = bed.watch("")?;
    let run = bed.launch(&watcher, "victim")?;
    let plain = bed.start_container(&run, &[])?;
    let kept = bed.start_container(&run, &[KEEP])?;
    let no = bed.start_container(&run, &["--label=compose-cleanup.keep=yes"])?;

    // Before it can end everything beneath the executor's cgroup.
    bed.agent.kill9()?;
    run.executor()?.kill();
    bed.wait_stopped(&plain)?;
    bed.wait_stopped(&no)?;
    wait_waiting(&watcher, &run, "Kept")?;
    bed.ensure_running(&kept)?;
    ensure!(run.launcher_cgroup().is_dir(), "its cgroup is gone");
    ensure!(watcher.cases(run.container_id())?.is_empty(), "closed");

    bed.docker.docker(&["stop", &kept])?;
    let case = wait_clean(&watcher, &run)?;
    assert_eq!(case["containers"], 3, "{case}");
    assert_eq!(case["endings"], "1 already, 2 term", "{case}");
    Ok(())
}

/// An observer does not name it among those that it would end.
#[test]
fn a_kept_container_is_in_no_plan() -> Result<()> {
    let bed = Bed::new("keepplan")?;
    let agents = [bed.agent.place()];
    let watcher =
        Watcher::start_telling_steps(&bed.scratch, &bed.docker, &agents, "mode = \"observe\"")?;
    let run = bed.launch(&watcher, "victim")?;
    let plain = bed.start_container(&run, &[])?;
    let kept = bed.start_container(&run, &[KEEP])?;
    run.executor()?.kill();
    let case = watcher.wait_case(run.container_id())?;
    assert_eq!(case["result"], "observed", "{case}");
    let plans = watcher.said(
        "plan: would end these containers and remove this cgroup in these hierarchies (mode is observe)",
    )?;
    let containers = plans[0]["containers"].as_str().unwrap_or_default();
    ensure!(containers.contains(&plain[..12]), "{plans:?}");
    ensure!(!containers.contains(&kept[..12]), "{plans:?}");
    Ok(())
}

/// … unless the operator does not take that word.
#[test]
fn the_label_may_be_ignored() -> Result<()> {
    let bed = Bed::new("nokeep")?;
    let watcher = bed.watch("keep_label = false")?;
    let run = bed.launch(&watcher, "victim")?;
    let kept = bed.start_container(&run, &[KEEP])?;
    run.executor()?.kill();
    bed.wait_stopped(&kept)?;
    bed.agent.destroy(&run).finish()?;
    let case = wait_clean(&watcher, &run)?;
    assert_eq!(case["endings"], "1 term", "{case}");
    Ok(())
}

/// A rule matches where all of its patterns do.
#[test]
fn executors_are_excluded_by_pattern() -> Result<()> {
    let bed = Bed::new("exclude")?;
    let watcher = bed.watch(
        "[[exclude]]\nframework = \"stand-in-*\"\nexecutor = \"db-?\"\n\
         [[exclude]]\nframework = \"other\"\nexecutor = \"*\"",
    )?;
    let excluded = bed.launch(&watcher, "db-1")?;
    let victim = bed.launch(&watcher, "db-10")?;
    let left = bed.start_container(&excluded, &[])?;
    let stopped = bed.start_container(&victim, &[])?;

    excluded.executor()?.kill();
    victim.executor()?.kill();
    let case = watcher.wait_case(excluded.container_id())?;
    assert_eq!(case["result"], "excluded", "{case}");
    bed.wait_stopped(&stopped)?;
    bed.agent.destroy(&victim).finish()?;
    wait_clean(&watcher, &victim)?;
    bed.ensure_running(&left)?;
    ensure!(excluded.launcher_cgroup().join(&left).is_dir());
    Ok(())
}

/// Two frameworks of a real master, one of them excluded. A container outside the
/// executor's cgroup, which the agent does not end.
#[test]
fn a_framework_is_excluded() -> Result<()> {
    let mut host = Host::start("frameworks", "1.11.0", AgentOptions::default())?;
    let watcher = host.watch(&format!("{ENFORCE}\n[[exclude]]\nframework = \"*-0000\""))?;
    let left = host.run_pod("same", 1, "--no-cgroup-parent")?;
    let second = Framework::connect(host.agent.endpoint(), true)?;
    host.framework.release_offers()?;
    let first = std::mem::replace(&mut host.framework, second);
    let victim = host.run_pod("other", 1, "--no-cgroup-parent")?;
    ensure!(left.executor.framework_id().ends_with("-0000"));
    ensure!(!victim.executor.framework_id().ends_with("-0000"));

    left.executor.sigkill_executor()?;
    victim.executor.sigkill_executor()?;
    let case = watcher.wait_case(left.executor.container_id())?;
    assert_eq!(case["result"], "excluded", "{case}");
    let case = watcher.wait_case(victim.executor.container_id())?;
    host.ensure_clean(&victim, &case)?;
    let running = host.docker.running()?;
    assert_eq!(running, left.containers);
    drop(first);
    Ok(())
}

/// Nothing is done to a run of which it is not known whether it is excluded.
#[test]
fn an_exclusion_waits_for_the_identity() -> Result<()> {
    let bed = Bed::new("identity")?;
    let run = bed.agent.launch("victim")?;
    let container = bed.start_container(&run, &[])?;
    let executor = run.executor()?;
    let hidden = bed.scratch.path().join("hidden");
    fs::rename(run.sandbox(), &hidden).context("hiding the sandbox")?;

    let watcher = bed.watch("[[exclude]]\nexecutor = \"db-*\"")?;
    watcher.wait_executor_learnt(run.container_id())?;
    executor.kill();
    watcher.wait_message_of(
        run.container_id(),
        "who this executor was is not known yet; with [[exclude]] rules nothing is done before that",
    )?;
    wait_waiting(&watcher, &run, "Identity")?;
    bed.ensure_running(&container)?;

    fs::rename(&hidden, run.sandbox()).context("showing the sandbox")?;
    bed.wait_stopped(&container)?;
    bed.agent.destroy(&run).finish()?;
    let case = wait_clean(&watcher, &run)?;
    assert_eq!(case["executor"], "victim", "{case}");
    Ok(())
}
