//! The main job, end to end: a real agent, real executors, real pods.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::Dockerd;
use cleanup_tests::host::{Host, Probe, RunningPod};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::mesos::framework::Framework;
use cleanup_tests::wait;
use serde_json::Value;

const MESOS: &str = "1.11.0";
const SOON: Duration = Duration::from_secs(60);

cleanup_tests::under_each_probe! {
    sigkill_of_one_of_two,
    clean_exit,
    restart_policy_always_and_a_deaf_container,
    executor_without_a_pod,
    agent_absent,
    posix_launcher_with_cgroup_parent,
    helper_killed_while_the_executor_lives,
    observe_changes_nothing,
    non_checkpointing_framework,
    death_while_the_daemon_was_down,
}

fn exit_codes(docker: &Dockerd, pod: &RunningPod) -> Result<Vec<i64>> {
    let code = |id: &String| {
        docker.inspect(id)?["State"]["ExitCode"]
            .as_i64()
            .context("an exit code")
    };
    pod.containers.iter().map(code).collect()
}

/// SIGKILL of one of two executors: its pod is stopped and its cgroups are
/// gone in every hierarchy; the other one's are as they were.
fn sigkill_of_one_of_two(probe: Probe) -> Result<()> {
    let host = Host::start("sigkill", MESOS, AgentOptions::default())?.under(probe);
    let watcher = host.enforce()?;
    let victim = host.run_pod("victim", 3, "")?;
    let neighbour = host.run_pod("neighbour", 3, "")?;

    victim.executor.sigkill_executor()?;
    let case = watcher.wait_case(victim.executor.container_id())?;
    host.ensure_clean(&victim, &case)?;
    probe.ensure_noticed(&case)?;
    assert_eq!(case["status"], probe.status("signal 9"), "{case}");
    assert_eq!(case["executor"], "victim", "{case}");
    assert_eq!(case["framework"], victim.executor.framework_id(), "{case}");
    assert_eq!(case["containers"], 3, "{case}");
    let update = host.framework.wait_terminal(&victim.task_id, SOON)?;
    assert_eq!(update.reason.as_deref(), Some("REASON_EXECUTOR_TERMINATED"));

    assert!(neighbour.executor.executor().alive());
    assert_eq!(neighbour.executor.running_pod(&host.docker)?.len(), 3);
    for id in &neighbour.containers {
        let state = &host.docker.inspect(id)?["State"];
        assert_eq!(state["Running"], true);
        assert_eq!(host.docker.inspect(id)?["RestartCount"], 0);
    }
    assert_eq!(watcher.said("case")?.len(), 1);
    assert!(watcher.stop()?.success());
    Ok(())
}

/// A clean exit of the executor leaves its pod as an orphan, too.
fn clean_exit(probe: Probe) -> Result<()> {
    let host = Host::start("exit", MESOS, AgentOptions::default())?.under(probe);
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 2, "--exit-after 300")?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["status"], probe.status("exit 0"), "{case}");
    host.ensure_clean(&pod, &case)
}

/// The kernel kills the executor for its memory.
#[test]
fn oom_kill() -> Result<()> {
    let host = Host::start("oom", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 2, "--oom")?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["status"], "signal 9", "{case}");
    host.ensure_clean(&pod, &case)
}

/// A container that its restart policy would bring back, and one that ignores
/// SIGTERM: both end, and the agent's destroy does not fail over the first.
fn restart_policy_always_and_a_deaf_container(probe: Probe) -> Result<()> {
    let host = Host::start("restart", MESOS, AgentOptions::default())?.under(probe);
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 3, "--restart always --ignore-term 1")?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    host.ensure_clean(&pod, &case)?;
    // Longer than Docker takes to restart something.
    wait::holds(Duration::from_secs(2), "the pod stays stopped", || {
        pod.executor
            .running_pod(&host.docker)
            .is_ok_and(|running| running.is_empty())
    })?;
    assert_eq!(watcher.cases(pod.executor.container_id())?.len(), 1);
    Ok(())
}

/// A service without labels that lies beneath the executor's cgroup.
#[test]
fn untagged_service() -> Result<()> {
    let host = Host::start("untagged", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 2, "--untagged 2")?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["containers"], 2, "{case}");
    host.ensure_clean(&pod, &case)
}

/// Most executors have no pod: they are no cases, and nothing of them is left.
fn executor_without_a_pod(probe: Probe) -> Result<()> {
    let host = Host::start("nopod", MESOS, AgentOptions::default())?.under(probe);
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 0, "--no-pod")?;
    watcher.wait_executor_learnt(pod.executor.container_id())?;
    let bystander =
        host.docker
            .docker(&["run", "-d", "--network=none", "pod:test", "sleep", "1000"])?;
    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    let said = watcher.wait_message("an executor ended and left nothing behind")?;
    assert_eq!(said["container"], pod.executor.container_id());
    assert_eq!(host.scratch.leftovers(), Vec::<std::path::PathBuf>::new());
    assert_eq!(watcher.said("case")?, Vec::<Value>::new());
    assert_eq!(host.docker.running()?, [bystander.trim()]);
    host.ensure_agent_is_well()
}

/// The agent is dead for good: what it would have removed goes, too.
fn agent_absent(probe: Probe) -> Result<()> {
    let mut host = Host::start("absent", MESOS, AgentOptions::default())?.under(probe);
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 2, "")?;
    host.agent.kill9()?;
    ensure!(
        pod.executor.executor().alive(),
        "an executor outlives its agent"
    );
    ensure!(pod.executor.running_pod(&host.docker)?.len() == 2);
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["result"], "clean", "{case}");
    probe.ensure_noticed(&case)?;
    // Nobody else ended them: they had their grace.
    assert_eq!(case["endings"], "2 term", "{case}");
    assert_eq!(host.scratch.leftovers(), Vec::<std::path::PathBuf>::new());
    assert!(
        exit_codes(&host.docker, &pod)?
            .iter()
            .all(|code| *code != 137)
    );
    Ok(())
}

/// The posix launcher has no cgroups of its own; the pod is found by the cgroup
/// that Docker made for it.
fn posix_launcher_with_cgroup_parent(probe: Probe) -> Result<()> {
    let host = Host::start("posix", MESOS, AgentOptions::posix())?.under(probe);
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 2, "")?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    // No cgroup, no report of the kernel.
    Probe::Poll.ensure_noticed(&case)?;
    host.ensure_clean(&pod, &case)
}

/// A pod without cgroup parent is found by where its compose files lie.
#[test]
fn pod_without_cgroup_parent() -> Result<()> {
    let host = Host::start("nocgroup", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 2, "--no-cgroup-parent")?;
    let neighbour = host.run_pod("neighbour", 1, "--no-cgroup-parent")?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["endings"], "2 term", "{case}");
    host.ensure_clean(&pod, &case)?;
    assert_eq!(neighbour.executor.running_pod(&host.docker)?.len(), 1);
    Ok(())
}

/// The helper is killed, the executor lives on: nothing is touched until the
/// agent, or somebody else, ends the executor.
fn helper_killed_while_the_executor_lives(probe: Probe) -> Result<()> {
    let mut host = Host::start("helper", MESOS, AgentOptions::default())?.under(probe);
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 2, "")?;
    watcher.wait_executor_learnt(pod.executor.container_id())?;
    // A living agent would end the executor itself.
    host.agent.kill9()?;
    pod.executor
        .helper()
        .signal(rustix::process::Signal::KILL)?;
    watcher.wait_message(
        "the launcher helper is dead, the executor is not: its pod is left alone until the executor is gone",
    )?;
    wait::holds(Duration::from_secs(1), "the pod runs", || {
        pod.executor
            .running_pod(&host.docker)
            .is_ok_and(|running| running.len() == 2)
    })?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["result"], "clean", "{case}");
    assert_eq!(host.scratch.leftovers(), Vec::<std::path::PathBuf>::new());
    Ok(())
}

/// Observe mode changes nothing, and says what it would have done.
fn observe_changes_nothing(probe: Probe) -> Result<()> {
    // The posix launcher's agent touches no cgroup: whatever changes is our doing.
    let host = Host::start("observe", MESOS, AgentOptions::posix())?.under(probe);
    let watcher = host.watch("mode = \"observe\"")?;
    let pod = host.run_pod("pod", 2, "")?;
    let state = || -> Result<_> {
        let mut containers = Vec::new();
        for id in host.docker.containers()? {
            containers.push(host.docker.inspect(&id)?);
        }
        Ok((containers, host.scratch.leftovers()))
    };
    let before = state()?;
    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["result"], "observed", "{case}");
    assert_eq!(case["endings"], "2 would_stop", "{case}");
    assert!(watcher.stop()?.success());
    assert_eq!(state()?, before);
    Ok(())
}

/// A framework that does not checkpoint: the agent leaves no record of the run
/// beyond its sandbox and its runtime directory.
fn non_checkpointing_framework(probe: Probe) -> Result<()> {
    let mut host = Host::start("nocheck", MESOS, AgentOptions::default())?.under(probe);
    let watcher = host.enforce()?;
    host.framework = Framework::connect(host.agent.endpoint(), false)?;
    let pod = host.run_pod("pod", 2, "")?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["framework"], pod.executor.framework_id(), "{case}");
    assert_eq!(case["executor"], "pod", "{case}");
    host.ensure_clean(&pod, &case)
}

/// A container that is started for a dead run after its case was closed, as an
/// `up -d` in flight would: the case is reopened.
#[test]
fn a_container_comes_late() -> Result<()> {
    let host = Host::start("late", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 1, "")?;
    let id = pod.executor.container_id().to_owned();
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(&id)?;
    let parent = format!("--cgroup-parent=/{}/{id}", host.scratch.name());
    host.docker.docker(&[
        "run",
        "-d",
        "--network=none",
        &parent,
        "pod:test",
        "sleep",
        "1000",
    ])?;
    let reopened = wait::try_until(SOON, "the case to be closed again", || {
        Ok(watcher.cases(&id)?.into_iter().nth(1))
    })?;
    assert_eq!(reopened["containers"], 1, "{reopened}");
    assert!(case["case"].is_string(), "{case}");
    assert_eq!(reopened["case"], case["case"], "one case, one number");
    host.ensure_clean(&pod, &reopened)
}

/// A start that fails in Docker, after it has made the cgroups of its container
/// again, leaves those of a run whose case was closed, and no container.
#[test]
fn cgroups_come_back() -> Result<()> {
    let host = Host::start("cameback", MESOS, AgentOptions::default())?;
    let watcher = host.watch("mode = \"enforce\"\nreconcile_interval = \"5s\"")?;
    let pod = host.run_pod("pod", 1, "")?;
    let id = pod.executor.container_id().to_owned();
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(&id)?;
    host.ensure_clean(&pod, &case)?;
    let roots = host.scratch.cgroup_dirs();
    for root in roots {
        fs::create_dir_all(root.join(&id).join("a".repeat(64)))?;
    }
    let reopened = wait::try_until(SOON, "the case to be closed again", || {
        Ok(watcher.cases(&id)?.into_iter().nth(1))
    })?;
    assert_eq!(reopened["cgroups_removed"], 2 * roots.len(), "{reopened}");
    host.ensure_clean(&pod, &reopened)
}

/// `action = "remove"` removes the containers as well.
#[test]
fn action_remove() -> Result<()> {
    let host = Host::start("remove", MESOS, AgentOptions::default())?;
    let watcher = host.watch("mode = \"enforce\"\naction = \"remove\"\ngrace = \"2s\"")?;
    let pod = host.run_pod("pod", 2, "")?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    host.ensure_clean(&pod, &case)?;
    assert_eq!(host.docker.containers()?, Vec::<String>::new());
    Ok(())
}

/// An executor that died while the daemon did not run is found at the start.
fn death_while_the_daemon_was_down(probe: Probe) -> Result<()> {
    let host = Host::start("down", MESOS, AgentOptions::posix())?.under(probe);
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 2, "")?;
    let neighbour = host.run_pod("neighbour", 1, "")?;
    watcher.kill9()?;
    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    ensure!(
        pod.executor.running_pod(&host.docker)?.len() == 2,
        "posix: the agent leaves the pod"
    );

    let watcher = host.enforce()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["origin"], "scan", "{case}");
    host.ensure_clean(&pod, &case)?;
    assert_eq!(neighbour.executor.running_pod(&host.docker)?.len(), 1);
    // And the one that was there before the daemon is known to it.
    neighbour.executor.sigkill_executor()?;
    let case = watcher.wait_case(neighbour.executor.container_id())?;
    host.ensure_clean(&neighbour, &case)
}
