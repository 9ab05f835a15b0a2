//! The lives of executors and agents, with every kind of release: other cgroups,
//! other files, another order of things at the end.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::host::{Host, RunningPod};
use cleanup_tests::mesos::agent::{AgentOptions, Registry};
use cleanup_tests::wait;
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(60);

/// What there is of a run's cgroups.
fn leftovers(host: &Host, pod: &RunningPod) -> Vec<PathBuf> {
    let mut left = host.scratch.leftovers();
    left.retain(|path| path.iter().any(|part| part == pod.executor.container_id()));
    left
}

/// One host and one daemon from the first step to the last, and an executor that
/// lives through all of it until its own turn comes.
fn life_cycles(name: &str, version: &str) -> Result<()> {
    let options = AgentOptions {
        registry: Registry::Replicated,
        ..AgentOptions::default()
    };
    let mut host = Host::start(name, version, options)?;
    let watcher = host.enforce()?;
    let bystander = host.run_pod("bystander", 1, "")?;

    // The executor is killed.
    let pod = host.run_pod("killed", 2, "--restart always")?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["origin"], "kernel", "{case}");
    assert_eq!(case["status"], "signal 9", "{case}");
    host.ensure_clean(&pod, &case).context("killed")?;
    let update = host.framework.wait_terminal(&pod.task_id, SOON)?;
    assert_eq!(update.state, "TASK_FAILED", "{update:?}");

    // Its launcher helper is killed: for the agent that is the container's end,
    // and it kills the executor. Only that is a death.
    let pod = host.run_pod("helper", 2, "")?;
    pod.executor.helper().signal(Signal::KILL)?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    ensure!(!pod.executor.executor().alive());
    // The agent kills the pod in the same moment: there may be nothing to stop.
    host.ensure_clean(&pod, &case).context("helper")?;

    // It exits by itself.
    let pod = host.run_pod("exit", 2, "--exit-after 300")?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["status"], "exit 0", "{case}");
    host.ensure_clean(&pod, &case).context("exit")?;

    // Its task is killed: it stops its pod itself.
    let pod = host.run_pod("task", 1, "")?;
    host.framework.kill(&pod.task_id)?;
    let update = host.framework.wait_terminal(&pod.task_id, SOON)?;
    assert_eq!(update.state, "TASK_KILLED", "{update:?}");
    wait::until(SOON, "the cgroups of a killed task to go", || {
        leftovers(&host, &pod).is_empty().then_some(())
    })?;
    ensure!(pod.executor.running_pod(&host.docker)?.is_empty());
    host.ensure_agent_is_well().context("task")?;

    // The agent dies, then an executor.
    let pod = host.run_pod("absent", 2, "")?;
    host.agent.kill9()?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["result"], "clean", "{case}");
    assert_eq!(case["endings"], "2 term", "{case}");
    assert_eq!(leftovers(&host, &pod), Vec::<PathBuf>::new());

    // It comes back, to the executor that lived on and to a new one.
    // (Whether it then tells of the task that ended is up to the agent: 1.4.3 does
    // not always.)
    host.agent.restart()?;
    let pod = host.run_pod("new", 1, "")?;
    ensure!(bystander.executor.executor().alive());
    assert_eq!(
        bystander.executor.running_pod(&host.docker)?,
        bystander.containers
    );
    for pod in [&bystander, &pod] {
        pod.executor.sigkill_executor()?;
        let case = watcher.wait_case(pod.executor.container_id())?;
        assert_eq!(case["origin"], "kernel", "{case}");
        host.ensure_clean(pod, &case).context("after the restart")?;
    }
    Ok(())
}

#[test]
fn life_cycles_1_4_3() -> Result<()> {
    life_cycles("life143", "1.4.3")
}

#[test]
fn life_cycles_1_6_1() -> Result<()> {
    life_cycles("life161", "1.6.1")
}

#[test]
fn life_cycles_1_8_1() -> Result<()> {
    life_cycles("life181", "1.8.1")
}

#[test]
fn life_cycles_1_11_0() -> Result<()> {
    life_cycles("life1110", "1.11.0")
}
