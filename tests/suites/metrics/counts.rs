//! What happened, and what was counted.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::{Dockerd, OBEDIENT};
use cleanup_tests::host::{ENFORCE, Host};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent, StandInRun};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::{bins, command};

use super::*;

/// The numbers in a case's line: `1 agent_kill, 2 term`.
fn endings(case: &serde_json::Value) -> Result<Vec<(String, f64)>> {
    let text = case["endings"].as_str().context("no endings")?;
    let one = |part: &str| {
        let (count, name) = part.split_once(' ').context("not `count name`")?;
        Ok((name.to_owned(), count.parse()?))
    };
    text.split(", ").map(one).collect()
}

/// A real agent, a real pod: each side of one death is counted once, and no series
/// comes or goes with it.
#[test]
fn a_death_is_counted() -> Result<()> {
    let host = Host::start("counted", "1.11.0", AgentOptions::default())?;
    let watcher = host.watch(&format!("{ENFORCE}\n{LISTEN}"))?;
    let address = address(&watcher)?;
    let pod = host.run_pod("victim", 2, "")?;
    let neighbour = host.run_pod("neighbour", 1, "")?;
    let before = wait_value(address, "compose_cleanup_live_executors", &[], |live| {
        live == 2.0
    })?;
    for (name, value) in [
        ("compose_cleanup_cases_total", 0.0),
        ("compose_cleanup_containers_total", 0.0),
        ("compose_cleanup_open_cases", 0.0),
        ("compose_cleanup_enforcing", 1.0),
        ("compose_cleanup_docker_up", 1.0),
        ("compose_cleanup_held", 0.0),
        ("compose_cleanup_oldest_open_case_age_seconds", 0.0),
    ] {
        assert_eq!(before.sum(name, &[])?, value, "{name}");
    }
    wait_well(address)?;
    watcher.wait_executor_learnt(pod.executor.container_id())?;

    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    host.ensure_clean(&pod, &case)?;
    // The loop looks at what is nobody's event once a second.
    let after = wait_value(address, "compose_cleanup_live_executors", &[], |live| {
        live == 1.0
    })?;
    let count =
        |name: &str, labels: &[(&str, &str)]| after.sum(&format!("compose_cleanup_{name}"), labels);
    assert_eq!(count("cases_total", &[])?, 1.0, "{case}");
    let key = [("origin", "kernel"), ("result", "clean")];
    assert_eq!(count("cases_total", &key)?, 1.0, "{case}");
    assert_eq!(count("containers_total", &[])?, 2.0, "{case}");
    for (ending, times) in endings(&case)? {
        let counted = count("containers_total", &[("ending", &ending)])?;
        assert_eq!(counted, times, "{ending}: {case}");
    }
    assert_eq!(count("exits_total", &[("kind", "executor")])?, 1.0);
    let exits = count("exits_total", &[])?;
    assert_eq!(count("events_received_total", &[])?, exits);
    for (stage, field) in [
        ("event", "event_ms"),
        ("first_stop", "first_stop_ms"),
        ("stopped", "stopped_ms"),
        ("clean", "clean_ms"),
    ] {
        let stage = [("stage", stage)];
        assert_eq!(count("stage_duration_seconds_count", &stage)?, 1.0);
        let counted = count("stage_duration_seconds_sum", &stage)? * 1e3;
        let said = case[field].as_f64().context(field)?;
        // The line has two decimals.
        ensure!((counted - said).abs() < 0.006, "{counted} is not {said}");
    }
    let stops = [("operation", "stop")];
    ensure!(count("docker_requests_total", &stops)? >= 2.0);
    let removed = case["cgroups_removed"].as_f64().context("no count")?;
    // A round that fails in the middle tells the case of none.
    ensure!(count("cgroups_removed_total", &[])? >= removed, "{case}");
    assert_eq!(count("open_cases", &[])?, 0.0);
    assert_eq!(count("oldest_open_case_age_seconds", &[])?, 0.0);
    // The agent lived.
    assert_eq!(count("agent_takeovers_total", &[])?, 0.0);
    assert_eq!(count("panics_total", &[])?, 0.0);
    ensure!(count("reconcile_duration_seconds_count", &[])? >= 1.0);
    let written = "compose_cleanup_journal_records_written_total";
    wait_value(address, written, &[], |written| written > 0.0)?;

    assert_eq!(before.series(), after.series());
    assert_eq!(neighbour.executor.running_pod(&host.docker)?.len(), 1);
    Ok(())
}

/// A host with a stand-in agent and no daemon. Dropped from top to bottom.
struct Bed {
    agent: StandInAgent,
    docker: Dockerd,
    scratch: Scratch,
}

impl Bed {
    fn new(name: &str) -> Result<Self> {
        let (scratch, docker, agent) = StandInAgent::with_docker(name, CgroupLayout::V1)?;
        Ok(Self {
            agent,
            docker,
            scratch,
        })
    }

    fn watch(&self, options: &str) -> Result<Watcher> {
        let options = format!("{ENFORCE}\n{LISTEN}\n{options}\n");
        let agents = [self.agent.place()];
        Watcher::start(&self.scratch, &self.docker, &agents, &options)
    }

    /// A run with so many containers.
    fn launch(&self, containers: usize) -> Result<StandInRun> {
        let run = self.agent.launch("victim")?;
        for _ in 0..containers {
            self.docker
                .run_beneath(&run.cgroup_parent(), &[], OBEDIENT)?;
        }
        Ok(run)
    }
}

/// With its agent gone for good, the agent's part is done too, and that is counted.
#[test]
fn a_takeover_is_counted() -> Result<()> {
    let mut bed = Bed::new("takeover")?;
    let watcher = bed.watch("")?;
    let address = address(&watcher)?;
    let run = bed.launch(1)?;
    watcher.wait_executor_learnt(run.container_id())?;
    bed.agent.kill9()?;
    run.executor()?.kill();
    let case = watcher.wait_case(run.container_id())?;
    assert_eq!(case["result"], "clean", "{case}");
    let found = scrape(address)?;
    assert_eq!(
        found.sum("compose_cleanup_agent_takeovers_total", &[])?,
        1.0
    );
    let removed = case["cgroups_removed"].as_f64().context("no count")?;
    ensure!(removed >= 1.0, "{case}");
    ensure!(found.sum("compose_cleanup_cgroups_removed_total", &[])? >= removed);
    Ok(())
}

/// A death that nobody saw, and more containers than the cap: both can be seen from
/// outside, and the end of the hold too.
#[test]
fn a_hold_and_what_it_holds_are_seen() -> Result<()> {
    let mut bed = Bed::new("heldmetric")?;
    let run = bed.launch(2)?;
    let (executor, helper) = (run.executor()?, run.helper()?);
    bed.agent.kill9()?;
    executor.kill();
    let place = Path::new("/proc").join(helper.pid().to_string());
    wait::until(SOON, "the helper to be reaped", || {
        (!place.exists()).then_some(())
    })?;
    bed.agent.restart()?;

    let watcher = bed.watch("max_inferred_stops = 1")?;
    let address = address(&watcher)?;
    let held = wait_value(address, "compose_cleanup_held", &[], |held| held == 1.0)?;
    assert_eq!(
        held.sum("compose_cleanup_reconcile_orphans_total", &[])?,
        1.0
    );
    let waiting = [("step", "wait_release")];
    let open = "compose_cleanup_open_cases";
    let held = wait_value(address, open, &waiting, |cases| cases == 1.0)?;
    assert_eq!(held.sum(open, &[])?, 1.0);
    let age = "compose_cleanup_oldest_open_case_age_seconds";
    wait_value(address, age, &[], |age| age > 0.0)?;

    let mut release = std::process::Command::new(bins::find("compose-cleanup")?);
    let config = bed.scratch.path().join("compose-cleanup.toml");
    release.arg("release").arg("--config").arg(config);
    command::output(&mut release, SOON)?;
    wait_value(address, open, &waiting, |cases| cases == 0.0)?;
    wait_value(address, "compose_cleanup_held", &[], |held| held == 0.0)?;
    bed.agent.destroy(&run).finish()?;
    let case = watcher.wait_case(run.container_id())?;
    let key = [("origin", "scan"), ("result", "clean")];
    let cases = scrape(address)?.sum("compose_cleanup_cases_total", &key)?;
    assert_eq!(cases, 1.0, "{case}");
    Ok(())
}
