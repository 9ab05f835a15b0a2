//! An executor dies while containers are still being made for it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use cleanup_tests::command::system_program;
use cleanup_tests::docker::{Dockerd, IMAGE};
use cleanup_tests::host::Host;
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::mesos::executors::ExecutorView;
use cleanup_tests::wait;
use serde_json::json;

const MESOS: &str = "1.11.0";
const SOON: Duration = Duration::from_secs(60);
/// Longer than a case takes, and than the daemon's next look at everything.
const A_WHILE: Duration = Duration::from_secs(3);

fn nothing_runs(docker: &Dockerd) -> Result<()> {
    wait::holds(A_WHILE, "nothing runs", || {
        docker.running().is_ok_and(|running| running.is_empty())
    })
}

/// An executor without a pod, which starts `command` beside itself.
fn run_beside(host: &Host, command: &str) -> Result<ExecutorView> {
    let mut spec = host.pod_spec("pod", "--no-pod")?;
    spec.command = format!("({command}) & {}", spec.command);
    let task = host.framework.launch(&spec)?;
    host.framework.wait_running(&task, SOON)?;
    ExecutorView::find(&host.agent, "pod")
}

/// A real `docker-compose up -d` that waits for its first service to be healthy
/// before it starts the second, and a living agent, which ends it.
#[test]
fn up_in_a_slow_step() -> Result<()> {
    let host = Host::start("slowstep", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let source = host.scratch.path().join("slow.yml");
    let command = format!(
        "id=$(basename $MESOS_DIRECTORY); dir=$MESOS_DIRECTORY/poddata_$id; mkdir $dir; \
         sed s/CONTAINER/$id/ {source} > $dir/docker-compose-generated.yml; \
         cd $dir; exec {compose} -f docker-compose-generated.yml up -d",
        source = source.display(),
        compose = system_program("docker-compose").display(),
    );
    let service = json!({
        "image": IMAGE,
        "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 86400 & wait $$!"],
        "network_mode": "none",
        "cgroup_parent": format!("/{}/CONTAINER", host.scratch.name()),
    });
    let mut first = service.clone();
    first["healthcheck"] = json!({ "test": ["CMD", "false"], "interval": "1s", "retries": 86400 });
    let mut second = service;
    second["depends_on"] = json!({ "first": { "condition": "service_healthy" } });
    let services = json!({ "version": "2.4", "services": { "first": first, "second": second } });
    fs::write(&source, services.to_string())?;

    let executor = run_beside(&host, &command)?;
    executor.wait_pod_running(&host.docker, 1)?;
    let up = host.scratch.cgroups().processes();
    ensure!(
        up.iter()
            .any(|process| process.command_line().contains(" up -d")),
        "compose waits between the services"
    );
    executor.sigkill_executor()?;
    let case = watcher.wait_case(executor.container_id())?;
    assert_eq!(case["result"], "clean", "{case}");
    // How they ended is a race: the agent kills, too, and a container that was only
    // created has ended before it can be asked to.
    ensure!(case["containers"].as_u64() >= Some(1), "{case}");
    nothing_runs(&host.docker)?;
    assert!(
        host.docker.containers()?.len() <= 2,
        "nothing was made after the end"
    );
    assert_eq!(host.scratch.leftovers(), Vec::<PathBuf>::new());
    host.ensure_agent_is_well()
}

/// What makes containers outlives the executor, since the agent is slow to notice:
/// containers come after the death, in the run's cgroup and outside of it, where no
/// agent would end them. All of them are stopped, while the agent still hangs.
#[test]
fn containers_that_come_after_the_death() -> Result<()> {
    let host = Host::start("inflight", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let name = host.scratch.name();
    let run = format!(
        "{} run -d --network=none",
        system_program("docker").display()
    );
    let go = host.scratch.path().join("go");
    let command = format!(
        "id=$(basename $MESOS_DIRECTORY); \
         beneath=--cgroup-parent=/{name}/$id; \
         files=--label=com.docker.compose.project.working_dir=$MESOS_DIRECTORY/poddata_$id; \
         {run} $beneath --name=first-{name} {IMAGE} sleep 86400; \
         until [ -e {go} ]; do sleep 0.05; done; \
         {run} $files --name=second-{name} {IMAGE} sleep 86400; \
         {run} $beneath --name=third-{name} {IMAGE} sleep 86400; \
         sleep 86400",
        go = go.display(),
    );
    let executor = run_beside(&host, &command)?;
    let started = |which: &str| {
        wait::until(SOON, format_args!("the {which} service"), || {
            let container = host.docker.inspect(&format!("{which}-{name}")).ok()?;
            (container["State"]["StartedAt"] != "0001-01-01T00:00:00Z").then_some(())
        })
    };
    let stopped = |which: &str| {
        wait::until(SOON, format_args!("the end of the {which} service"), || {
            let container = host.docker.inspect(&format!("{which}-{name}")).ok()?;
            (container["State"]["Status"] == "exited").then_some(())
        })
    };
    started("first")?;
    host.agent.pause()?;
    executor.sigkill_executor()?;
    stopped("first")?;
    fs::write(&go, "")?;
    for which in ["second", "third"] {
        started(which)?;
        stopped(which)?;
    }
    ensure!(
        watcher.said("case")?.is_empty(),
        "closed while something of the run was alive"
    );
    host.agent.resume()?;
    let case = watcher.wait_case(executor.container_id())?;
    assert_eq!(case["result"], "clean", "{case}");
    assert_eq!(case["containers"], 3, "{case}");
    nothing_runs(&host.docker)?;
    assert_eq!(host.scratch.leftovers(), Vec::<PathBuf>::new());
    host.ensure_agent_is_well()
}

/// The executor dies while an `up -d` of it is between two services, and no
/// agent is there to end that.
#[test]
fn up_without_an_agent() -> Result<()> {
    let mut host = Host::start("inflight", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let mut spec = host.pod_spec("pod", "--no-pod")?;
    let slow = format!(
        "({docker} run -d --network=none --cgroup-parent=/{root}/$(basename $MESOS_DIRECTORY) --name=first-{root} pod:test sleep 86400; \
         sleep 3; \
         {docker} run -d --network=none --cgroup-parent=/{root}/$(basename $MESOS_DIRECTORY) --name=second-{root} pod:test sleep 86400) & ",
        docker = "/usr/bin/docker",
        root = host.scratch.name(),
    );
    spec.command = slow + &spec.command;
    let task = host.framework.launch(&spec)?;
    host.framework.wait_running(&task, SOON)?;
    let executor = ExecutorView::find(&host.agent, "pod")?;
    let first = format!("first-{}", host.scratch.name());
    wait::until(SOON, "the first service", || {
        host.docker.inspect(&first).ok()
    })?;
    host.agent.kill9()?;
    executor.sigkill_executor()?;
    let case = watcher.wait_case(executor.container_id())?;
    assert_eq!(case["result"], "clean", "{case}");
    nothing_runs(&host.docker)?;
    assert_eq!(host.scratch.leftovers(), Vec::<PathBuf>::new());
    Ok(())
}
