//! Many deaths at the same moment.
//!
//! `CLEANUP_MASS_DEATH=200` makes it that many executors; each of their containers
//! takes some 15 MB of memory, most of it its shim's.

use std::collections::HashMap;
use std::env;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::OBEDIENT;
use cleanup_tests::host::Host;
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::mesos::executors::ExecutorView;
use cleanup_tests::mesos::spec::ExecutorSpec;
use serde_json::Value;

const MESOS: &str = "1.11.0";
/// What a machine of two cores does in a minute.
const EXECUTORS: usize = 40;
const CONTAINERS: usize = 3;
const STARTERS: usize = 6;
const SOON: Duration = Duration::from_secs(120);
const ALL: Duration = Duration::from_secs(600);

/// Two containers in the run's cgroup, which the agent would kill, and one that
/// only its compose files tie to the run, which nobody would.
fn start_pod(host: &Host, executor: &ExecutorView) -> Result<Vec<String>> {
    let beneath = format!(
        "--cgroup-parent=/{}/{}",
        host.scratch.name(),
        executor.container_id()
    );
    let files = format!(
        "--label=com.docker.compose.project.working_dir={}",
        executor.sandbox().display()
    );
    let ties = [&beneath, &beneath, &files];
    assert_eq!(ties.len(), CONTAINERS);
    ties.iter()
        .map(|tie| host.docker.run(&[tie], OBEDIENT))
        .collect()
}

/// [`start_pod`] for all, some at a time.
fn start_pods(host: &Host, executors: &[ExecutorView]) -> Result<()> {
    thread::scope(|scope| {
        let share = executors.len().div_ceil(STARTERS);
        let starters: Vec<_> = executors
            .chunks(share)
            .map(|share| {
                scope.spawn(move || {
                    share
                        .iter()
                        .try_for_each(|one| start_pod(host, one).map(|_| ()))
                })
            })
            .collect();
        for starter in starters {
            starter.join().ok().context("a starter panicked")??;
        }
        Ok(())
    })
}

#[test]
fn everybody_dies_at_once() -> Result<()> {
    let count = match env::var("CLEANUP_MASS_DEATH") {
        Ok(count) => count.parse().context("CLEANUP_MASS_DEATH")?,
        Err(_) => EXECUTORS,
    };
    let host = Host::start("mass", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let specs = (0..count)
        .map(|index| {
            Ok(ExecutorSpec {
                mem_mb: 64,
                ..host.pod_spec(&format!("many-{index}"), "--no-pod")?
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let tasks = host.framework.launch_all(&specs)?;
    for task in &tasks {
        host.framework.wait_running(task, ALL)?;
    }
    let executors = specs
        .iter()
        .map(|spec| ExecutorView::find(&host.agent, &spec.executor_id))
        .collect::<Result<Vec<_>>>()?;
    let neighbour = host.run_pod("neighbour", 2, "")?;
    eprintln!(
        "{count} executors after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    start_pods(&host, &executors)?;
    let running = host.docker.running()?.len();
    assert_eq!(running, count * CONTAINERS + neighbour.containers.len());
    eprintln!(
        "{running} containers after {:.1} s",
        start.elapsed().as_secs_f64()
    );

    let start = Instant::now();
    for executor in &executors {
        executor.sigkill_executor()?;
    }
    eprintln!(
        "all killed within {:.1} ms",
        1e3 * start.elapsed().as_secs_f64()
    );
    let cases = watcher.wait_cases(count, ALL)?;
    eprintln!("all closed after {:.1} s", start.elapsed().as_secs_f64());
    let by_run: HashMap<&str, &Value> = cases
        .iter()
        .filter_map(|case| Some((case["container"].as_str()?, case)))
        .collect();
    for executor in &executors {
        let case = by_run.get(executor.container_id()).context("no case")?;
        assert_eq!(case["result"], "clean", "{case}");
        assert_eq!(case["origin"], "kernel", "{case}");
        assert_eq!(case["containers"], CONTAINERS, "{case}");
    }
    assert_eq!(cases.len(), count);
    for name in ["event_ms", "first_stop_ms", "stopped_ms", "clean_ms"] {
        let mut times: Vec<f64> = cases
            .iter()
            .filter_map(|case| case[name].as_f64())
            .collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times.get((times.len() as f64 * share) as usize);
        eprintln!(
            "{name}: p50 {:?} p90 {:?} max {:?}",
            at(0.5),
            at(0.9),
            times.last()
        );
    }
    for task in &tasks {
        host.framework.wait_terminal(task, SOON)?;
    }

    assert_eq!(
        neighbour.executor.running_pod(&host.docker)?,
        neighbour.containers
    );
    assert_eq!(host.docker.running()?.len(), neighbour.containers.len());
    ensure!(neighbour.executor.executor().alive());
    let mut left = host.scratch.leftovers();
    left.retain(|path| {
        !path
            .iter()
            .any(|part| part == neighbour.executor.container_id())
    });
    assert_eq!(left, Vec::<PathBuf>::new());
    host.ensure_agent_is_well()?;

    let log = watcher.log_path().to_owned();
    ensure!(watcher.stop()?.success());
    let text = std::fs::read_to_string(log)?;
    let last: Value = serde_json::from_str(text.lines().last().context("a last line")?)?;
    assert_eq!(last["message"], "stopped", "{last}");
    assert_eq!(last["lost"], 0, "{last}");
    assert_eq!(last["deaths"], count, "{last}");
    assert_eq!(last["containers"], count * CONTAINERS, "{last}");
    assert_eq!(last["unfinished"], 0, "{last}");
    Ok(())
}
