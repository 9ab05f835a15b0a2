//! Containers within an executor's container, made by real agents: nested ones,
//! as the default executor has for the tasks of a group, and debug sessions. They
//! come and go without a word about the executor.
//!
//! The released packages have no default executor; the executor here is a custom
//! one, and the test launches the nested containers through the agent's API, as
//! the default executor would. What the agent makes of them is the same.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::command::system_program;
use cleanup_tests::docker::IMAGE;
use cleanup_tests::host::{Host, RunningPod};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::mesos::nested::Nested;
use cleanup_tests::mesos::pod::{self, Pod};
use cleanup_tests::mesos::spec::ExecutorSpec;
use cleanup_tests::process::Process;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::Watcher;
use cleanup_tests::{log, wait};
use rustix::process::Signal;
use serde_json::Value;

const MESOS: &str = "1.11.0";
const SOON: Duration = Duration::from_secs(60);
/// Longer than a case takes to begin.
const A_WHILE: Duration = Duration::from_secs(1);
/// Ids as the default executor makes them.
const CHILD: &str = "0c41d2e6-6f0a-4b9a-8a53-7d2f0e5b1c9d";
const SIBLING: &str = "e5d9c5a4-31f3-45a8-9d0b-8c4f3a2b1d07";

/// The main processes of a pod's containers.
fn processes(host: &Host, pod: &RunningPod) -> Result<Vec<Process>> {
    let main = |id: &String| {
        let pid = host.docker.inspect(id)?["State"]["Pid"].as_i64();
        Process::of(i32::try_from(pid.context("a pid")?)?).context("a running container")
    };
    pod.containers.iter().map(main).collect()
}

/// The executor and its pod are as they were, and the daemon saw no death.
fn ensure_untouched(
    host: &Host,
    watcher: &Watcher,
    pod: &RunningPod,
    before: &[Process],
) -> Result<()> {
    wait::holds(A_WHILE, "the executor and its pod live", || {
        pod.executor.executor().alive() && before.iter().all(Process::alive)
    })?;
    ensure!(watcher.said("case")?.is_empty(), "{:?}", watcher.lines()?);
    ensure!(processes(host, pod)? == before);
    host.ensure_agent_is_well()
}

/// Every way in which a nested container ends, and then the executor's death with
/// nested containers alive.
fn nested_containers(name: &str, version: &str) -> Result<()> {
    let host = Host::start(name, version, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 2, "")?;
    let neighbour = host.run_pod("neighbour", 1, "")?;
    let before = processes(&host, &pod)?;
    let launch =
        |id: &str, command: &str| Nested::launch(&host.agent, &pod.executor, id, command, &[]);

    // By itself; its task; its launcher helper; at the agent's word; and a debug
    // session.
    let done = launch(CHILD, "sleep 0.3; exit 3")?;
    assert_eq!(done.wait()?, 3 << 8);
    let task = launch("task", "exec sleep 86400")?;
    let process = task.process().context("the task")?;
    process.signal(Signal::KILL)?;
    assert_eq!(task.wait()?, 9);
    let helped = launch("helped", "exec sleep 86400")?;
    let left = helped.process().context("the task")?;
    helped.helper().context("a helper")?.signal(Signal::KILL)?;
    assert_eq!(helped.wait()?, 9);
    left.wait_gone(SOON)?;
    let killed = launch("killed", "exec sleep 86400")?;
    killed.kill()?;
    killed.wait()?;
    let (session, refused) = Nested::debug(&host.agent, &pod.executor, "debug", "sleep 86400");
    // The agent of a local cluster attaches nobody: it started the session's
    // container, and destroys it.
    let refused = refused
        .err()
        .context("a session that nobody can attach to")?;
    ensure!(
        format!("{refused:#}").contains("Not supported in local mode"),
        "{refused:#}"
    );
    assert_eq!(session.wait()?, 9);
    ensure_untouched(&host, &watcher, &pod, &before)?;

    let alive = [
        launch(SIBLING, "exec sleep 86400")?,
        launch("second", "sleep 86400 & wait")?,
    ];
    let freezer = host
        .scratch
        .leftovers()
        .into_iter()
        .filter(|dir| dir.ends_with(format!("{}/mesos/{SIBLING}", pod.executor.container_id())))
        .count();
    ensure!(freezer > 0, "no cgroup of a nested container");
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["origin"], "kernel", "{case}");
    assert_eq!(case["containers"], 2, "{case}");
    host.ensure_clean(&pod, &case)?;
    for nested in &alive {
        ensure!(!nested.record().exists() && nested.process().is_none());
    }
    ensure!(neighbour.executor.executor().alive());
    assert_eq!(
        neighbour.executor.running_pod(&host.docker)?,
        neighbour.containers
    );
    assert_eq!(watcher.said("case")?.len(), 1);
    Ok(())
}

#[test]
fn nested_containers_1_4_3() -> Result<()> {
    nested_containers("nested143", "1.4.3")
}

#[test]
fn nested_containers_1_6_1() -> Result<()> {
    nested_containers("nested161", "1.6.1")
}

#[test]
fn nested_containers_1_8_1() -> Result<()> {
    nested_containers("nested181", "1.8.1")
}

#[test]
fn nested_containers_1_11_0() -> Result<()> {
    nested_containers("nested1110", "1.11.0")
}

/// A pod that is started from within a nested container, as dce-go would be as a
/// task of a group: it takes the last part of its working directory, the *child's*
/// id, for the run's, and puts its containers into a cgroup that no agent knows.
fn pod_of_nested(host: &Host, parent: &RunningPod, id: &str, services: u32) -> Result<Nested> {
    let compose = Pod {
        executor_id: "task".to_owned(),
        task_id: id.to_owned(),
        services,
        cgroup_parent: Some(format!("/{}/{id}", host.scratch.name())),
        ..Pod::default()
    };
    let source = host.scratch.path().join(format!("{id}.yml"));
    fs::write(&source, compose.compose_file().to_string())?;
    let sandbox = parent.executor.sandbox().join("containers").join(id);
    let (dir, file) = (pod::directory(&sandbox), pod::file(&sandbox));
    let command = format!(
        "mkdir {dir} && cp {source} {file} && cd {dir} && {compose} -f {file} up -d && exec sleep 86400",
        dir = dir.display(),
        source = source.display(),
        file = file.display(),
        compose = system_program("docker-compose").display(),
    );
    let (mark, scratch) = host.scratch.mark();
    let env = [
        ("DOCKER_HOST".to_owned(), host.docker.host()),
        (mark.to_owned(), scratch.to_owned()),
    ];
    let nested = Nested::launch(&host.agent, &parent.executor, id, &command, &env)?;
    wait::try_until(SOON, "the pod of a nested container", || {
        Ok((running_pod(host, &nested)?.len() == services as usize).then_some(()))
    })?;
    Ok(nested)
}

fn running_pod(host: &Host, nested: &Nested) -> Result<Vec<String>> {
    host.docker.running_with(&pod::filter(nested.sandbox()))
}

/// dce-go in a nested container. The agent does not know of the pod, so nobody
/// but us ends it: by its compose files, in the dead run's own directory of the
/// very container that its cgroup is named after.
#[test]
fn pods_of_nested_containers_end_with_their_executor() -> Result<()> {
    let host = Host::start("group", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let group = host.run_pod("group", 0, "--no-pod")?;
    let other = host.run_pod("other", 0, "--no-pod")?;
    let first = pod_of_nested(&host, &group, CHILD, 2)?;
    let others = pod_of_nested(&host, &other, SIBLING, 1)?;
    let bogus = |id: &str| -> Vec<PathBuf> {
        let mut dirs = host.scratch.leftovers();
        dirs.retain(|dir| dir.ends_with(format!("{}/{id}", host.scratch.name())));
        dirs
    };
    ensure!(!bogus(CHILD).is_empty());

    // One of the group's tasks ends: its pod outlives it. Only the executor's end
    // is ours.
    first.process().context("the task")?.signal(Signal::KILL)?;
    first.wait()?;
    wait::holds(A_WHILE, "the pod of a dead task runs", || {
        running_pod(&host, &first).is_ok_and(|running| running.len() == 2)
    })?;

    group.executor.sigkill_executor()?;
    let case = watcher.wait_case(group.executor.container_id())?;
    assert_eq!(case["endings"], "2 term", "{case}");
    host.ensure_clean(&group, &case)?;
    assert_eq!(running_pod(&host, &first)?, Vec::<String>::new());
    // The empty directories of no run stay: they are not beneath the dead one's
    // cgroup, the only place where we remove anything.
    ensure!(
        !bogus(CHILD).is_empty(),
        "they went: then say so in the docs"
    );
    wait::holds(A_WHILE, "the other group's pod runs", || {
        running_pod(&host, &others).is_ok_and(|running| running.len() == 1)
    })?;
    assert_eq!(watcher.said("case")?.len(), 1);
    ensure!(other.executor.executor().alive());
    ensure!(others.process().is_some());
    host.ensure_agent_is_well()
}

/// The same claim, made about a cgroup that is a living run's own: that decides.
#[test]
fn a_nested_containers_id_that_is_a_living_run() -> Result<()> {
    let host = Host::start("claim", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let victim = host.run_pod("victim", 1, "")?;
    let forger = host.run_pod("forger", 1, "")?;
    let of_victim = victim.executor.container_id();
    let files = format!(
        "--label=com.docker.compose.project.working_dir={}/containers/{of_victim}",
        forger.executor.sandbox().display()
    );
    let parent = format!("--cgroup-parent=/{}/{of_victim}", host.scratch.name());
    let claimed = host.docker.docker(&[
        "run",
        "-d",
        "--network=none",
        &parent,
        &files,
        "pod:test",
        "sleep",
        "86400",
    ])?;
    forger.executor.sigkill_executor()?;
    let case = watcher.wait_case(forger.executor.container_id())?;
    assert_eq!(case["containers"], 1, "{case}");
    wait::holds(A_WHILE, "what lies in a living run's cgroup runs", || {
        host.docker
            .inspect(claimed.trim())
            .is_ok_and(|container| container["State"]["Running"] == Value::Bool(true))
    })?;
    ensure!(victim.executor.executor().alive());
    victim.executor.sigkill_executor()?;
    let case = watcher.wait_case(of_victim)?;
    assert_eq!(case["containers"], 2, "{case}");
    host.ensure_clean(&victim, &case)
}

/// An executor in a container of the agent's own Docker containerizer, beside one
/// that runs a pod. Neither its life nor its death is ours. (Older releases take
/// the image from the task, and have no executor for that in their packages.)
#[test]
fn executors_of_the_docker_containerizer() -> Result<()> {
    let scratch = Scratch::new("dockerised")?;
    let socket = scratch.path().join("docker/docker.sock");
    let options = AgentOptions {
        env: [
            ("MESOS_CONTAINERIZERS", "docker,mesos".into()),
            (
                "MESOS_DOCKER",
                system_program("docker").display().to_string(),
            ),
            ("MESOS_DOCKER_SOCKET", socket.display().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec(),
        ..AgentOptions::default()
    };
    let host = Host::on(scratch, MESOS, options, &[])?;
    let watcher = host.enforce()?;
    let spec = ExecutorSpec {
        executor_id: "contained".to_owned(),
        command: "exec sleep 86400".to_owned(),
        image: Some(IMAGE.to_owned()),
        ..ExecutorSpec::default()
    };
    let task = host.framework.launch(&spec)?;
    let own = wait::try_until(SOON, "the agent's own container", || {
        Ok(host.docker.running_with("name=^/mesos-")?.pop())
    })
    .with_context(|| log::tail(&host.agent.log_path(), 20))?;
    let inspected = host.docker.inspect(&own)?;
    let main = inspected["State"]["Pid"].as_i64().context("a pid")?;
    let main = Process::of(i32::try_from(main)?).context("the executor")?;

    let pod = host.run_pod("pod", 2, "")?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["containers"], 2, "{case}");
    host.ensure_clean(&pod, &case)?;
    wait::holds(A_WHILE, "the agent's own container runs", || main.alive())?;

    let neighbour = host.run_pod("neighbour", 2, "")?;
    main.signal(Signal::KILL)?;
    let update = host.framework.wait_terminal(&task, SOON)?;
    assert_eq!(update.state, "TASK_FAILED", "{update:?}");
    wait::holds(A_WHILE, "the neighbour's pod runs", || {
        neighbour
            .executor
            .running_pod(&host.docker)
            .is_ok_and(|running| running == neighbour.containers)
    })?;
    assert_eq!(watcher.said("case")?.len(), 1, "{:#?}", watcher.lines()?);
    assert_eq!(host.docker.inspect(&own)?["State"]["ExitCode"], 137);
    drop(watcher);

    // Nor is it for a daemon that was not there to see it.
    let watcher = host.enforce()?;
    let known = watcher.wait_message("learnt")?;
    assert_eq!(known["container"], neighbour.executor.container_id());
    wait::holds(A_WHILE, "no case", || {
        watcher.said("case").is_ok_and(|cases| cases.is_empty())
    })?;
    host.ensure_agent_is_well()
}
