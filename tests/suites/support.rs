//! Smoke tests of the suites' support, against nothing but real Docker and Mesos.

use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::cgroups::CgroupRoot;
use cleanup_tests::docker::{Dockerd, IMAGE};
use cleanup_tests::host::Host;
use cleanup_tests::mesos::agent::{Agent, AgentOptions, Registry};
use cleanup_tests::mesos::executors::ExecutorView;
use cleanup_tests::mesos::framework::Framework;
use cleanup_tests::mesos::runtime;
use cleanup_tests::mesos::spec::ExecutorSpec;
use cleanup_tests::process::Process;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::{command, wait};

const MESOS: &str = "1.11.0";
const SOON: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_secs(60);

/// With the linux launcher a pod lies beneath its executor's cgroup.
#[test]
fn linux_launcher() -> Result<()> {
    let host = Host::start("linux", MESOS, AgentOptions::default())?;
    let pod = host.run_pod("pod-1", 3, "--untagged 1")?;

    let parent = format!("{}/{}", host.scratch.name(), pod.executor.container_id());
    let mut tagged = 0;
    for id in &pod.containers {
        let freezer = Path::new("/sys/fs/cgroup/freezer").join(&parent).join(id);
        ensure!(freezer.is_dir(), "no {}", freezer.display());
        let config = host.docker.inspect(id)?;
        assert_eq!(config["HostConfig"]["CgroupParent"], format!("/{parent}"));
        tagged += usize::from(config["Config"]["Labels"]["executorId"] == "pod-1");
    }
    assert_eq!(tagged, 2);
    assert!(!host.scratch.leftovers().is_empty());

    pod.executor.sigkill_executor()?;
    let update = host.framework.wait_terminal(&pod.task_id, MINUTE)?;
    assert_eq!(update.state, "TASK_FAILED");
    assert_eq!(update.reason.as_deref(), Some("REASON_EXECUTOR_TERMINATED"));
    assert!(!pod.executor.helper().alive());
    // The agent killed what was in the freezer, and was content with that.
    pod.executor.wait_pod_running(&host.docker, 0)?;
    assert_eq!(host.agent.errors_in_log()?, Vec::<String>::new());
    let metrics = host.agent.metrics()?;
    assert_eq!(metrics["containerizer/mesos/container_destroy_errors"], 0.0);
    Ok(())
}

/// With the posix launcher a pod outlives its executor.
#[test]
fn posix_launcher() -> Result<()> {
    let host = Host::start("posix", MESOS, AgentOptions::posix())?;
    let pod = host.run_pod(
        "pod-1",
        2,
        "--no-cgroup-parent --restart always --ignore-term 1",
    )?;
    assert_eq!(host.scratch.leftovers(), Vec::<&Path>::new());
    for id in &pod.containers {
        let config = &host.docker.inspect(id)?["HostConfig"];
        assert_eq!(config["CgroupParent"], "");
        assert_eq!(config["RestartPolicy"]["Name"], "always");
    }

    pod.executor.sigkill_executor()?;
    let update = host.framework.wait_terminal(&pod.task_id, MINUTE)?;
    assert_eq!(update.state, "TASK_FAILED");
    assert_eq!(pod.executor.running_pod(&host.docker)?.len(), 2);
    Ok(())
}

/// A killed task takes its pod with it, also after a crash of agent and master.
#[test]
fn agent_restart() -> Result<()> {
    let options = AgentOptions {
        registry: Registry::Replicated,
        ..AgentOptions::default()
    };
    let mut host = Host::start("restart", MESOS, options)?;
    let pod = host.run_pod("pod-1", 1, "")?;

    host.agent.kill9()?;
    assert!(pod.executor.executor().alive());
    host.agent.restart()?;
    let same = ExecutorView::find(&host.agent, "pod-1")?;
    assert_eq!(same.executor(), pod.executor.executor());

    // The framework has to be back at the master, and the executor at the agent.
    let update = wait::until(SOON, "the task's end", || {
        let _ = host.framework.kill(&pod.task_id);
        host.framework
            .wait_terminal(&pod.task_id, Duration::from_secs(1))
            .ok()
    })?;
    assert_eq!(update.state, "TASK_KILLED");
    pod.executor.wait_pod_running(&host.docker, 0)?;
    Ok(())
}

/// Other compilers, other layouts, no libevent of their own.
#[test]
fn older_releases() -> Result<()> {
    for runtime in runtime::fetch(&["1.4.3", "1.6.1", "1.8.1"])? {
        let name = format!("mesos-{}", runtime.version().replace('.', "-"));
        let scratch = Scratch::new(&name)?;
        let agent = Agent::start(&scratch, &runtime, AgentOptions::default())?;
        let framework = Framework::connect(agent.endpoint(), false)?;
        let task = framework.launch(&ExecutorSpec {
            executor_id: "plain".to_owned(),
            command: "exec sleep 1000".to_owned(),
            ..ExecutorSpec::default()
        })?;
        let executor = ExecutorView::find(&agent, "plain")?;
        executor.sigkill_executor()?;
        assert_eq!(framework.wait_terminal(&task, MINUTE)?.state, "TASK_FAILED");
        wait::until(SOON, "the agent to remove its cgroups", || {
            scratch.leftovers().is_empty().then_some(())
        })?;
    }
    Ok(())
}

/// Ends that nobody sent a signal for.
#[test]
fn oom_and_exit() -> Result<()> {
    let host = Host::start("oom-exit", MESOS, AgentOptions::default())?;
    let mut oom = host.pod_spec("oom", "--no-pod --oom")?;
    oom.mem_mb = 64;
    let oom = host.framework.launch(&oom)?;
    let exit = host
        .framework
        .launch(&host.pod_spec("exit", "--no-pod --exit-after 100")?)?;

    let update = host.framework.wait_terminal(&oom, MINUTE)?;
    assert_eq!(
        update.reason.as_deref(),
        Some("REASON_CONTAINER_LIMITATION_MEMORY")
    );
    let update = host.framework.wait_terminal(&exit, MINUTE)?;
    assert_eq!(update.reason.as_deref(), Some("REASON_EXECUTOR_TERMINATED"));
    Ok(())
}

#[test]
fn runtime_is_fetched_once() -> Result<()> {
    let first = runtime::fetch(&[MESOS])?;
    let library = first[0].lib_dir().join("libmesos.so");
    let made = fs::metadata(&library)?.created()?;
    let several: Vec<_> = (0..4)
        .map(|_| thread::spawn(|| runtime::fetch(&[MESOS])))
        .collect();
    for fetch in several {
        assert_eq!(fetch.join().expect("no panic")?, first);
    }
    assert_eq!(fs::metadata(&library)?.created()?, made);

    let unknown = runtime::fetch(&["0.0.1"]).expect_err("there is no such release");
    assert!(
        format!("{unknown:#}").contains("no hash is known"),
        "{unknown:#}"
    );
    Ok(())
}

/// Containers outlive a crash of dockerd, which finds them again.
#[test]
fn docker_crash_and_hang() -> Result<()> {
    let scratch = Scratch::new("docker")?;
    let mut docker = Dockerd::start_with(&scratch, &["--live-restore"])?;
    docker.import_busybox()?;
    let id = docker.docker(&["run", "-d", "--network", "none", IMAGE, "sleep", "86400"])?;
    let pid = docker.inspect(&id)?["State"]["Pid"]
        .as_i64()
        .context("a pid")?;
    let container = Process::of(i32::try_from(pid)?).context("the container")?;

    docker.kill9()?;
    assert!(container.alive());
    docker.restart()?;
    assert_eq!(docker.running()?, [id.as_str()]);

    docker.pause()?;
    let mut client = docker.client("docker");
    assert!(command::output(client.args(["ps"]), Duration::from_millis(300)).is_err());
    docker.resume()?;
    assert_eq!(docker.running()?, [id.as_str()]);

    drop(docker);
    container.wait_gone(SOON)
}

#[test]
fn panic_leaves_nothing_behind() -> Result<()> {
    let mut name = String::new();
    let mut child = None;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let scratch = Scratch::new("panic").expect("a scratch");
        scratch.name().clone_into(&mut name);
        child = Some(litter(&scratch).expect("litter"));
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert!(is_swept(&name)?);
    child.context("started before the panic")?.wait()?;
    Ok(())
}

/// A test that is killed cannot clean up: the next one does.
#[test]
fn abandoned_scratch_is_swept() -> Result<()> {
    const ABANDON: &str = "CLEANUP_TESTS_ABANDON";
    if let Some(file) = env::var_os(ABANDON) {
        let scratch = Scratch::new("abandoned")?;
        let _child = litter(&scratch)?;
        fs::write(file, scratch.name())?;
        std::process::abort();
    }
    let scratch = Scratch::new("finder")?;
    let file = scratch.path().join("name");
    let mut own_binary = Command::new(env::current_exe()?);
    own_binary
        .args(["--exact", "abandoned_scratch_is_swept"])
        .env(ABANDON, &file);
    assert!(
        command::output(&mut own_binary, MINUTE).is_err(),
        "it aborts"
    );
    let name = fs::read_to_string(file)?;
    let _next = Scratch::new("next")?;
    assert!(is_swept(&name)?);
    Ok(())
}

/// Leaves a process behind in a frozen cgroup.
fn litter(scratch: &Scratch) -> Result<Child> {
    let mut sleep = scratch.command("sleep");
    let child = sleep
        .arg("86400")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let cgroup = Path::new("/sys/fs/cgroup/freezer")
        .join(scratch.name())
        .join("litter");
    fs::create_dir_all(&cgroup)?;
    fs::write(cgroup.join("cgroup.procs"), child.id().to_string())?;
    fs::write(cgroup.join("freezer.state"), "FROZEN")?;
    assert!(!scratch.leftovers().is_empty());
    Ok(child)
}

/// A cgroup cannot be removed before the last process in it.
fn is_swept(name: &str) -> Result<bool> {
    Ok(!env::temp_dir().join(name).exists() && CgroupRoot::new(name)?.tree().is_empty())
}
