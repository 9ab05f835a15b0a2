//! The ways in which executors, agents and pods behave, beyond the plain death:
//! real agents, real pods. What must not be touched is there in every test.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::{Dockerd, OBEDIENT};
use cleanup_tests::host::{ENFORCE, Host, Probe};
use cleanup_tests::mesos::agent::{Agent, AgentOptions, Registry};
use cleanup_tests::mesos::executors::ExecutorView;
use cleanup_tests::mesos::framework::Framework;
use cleanup_tests::mesos::{pod, runtime};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;
use cleanup_tests::watcher::{AgentPlace, Watcher};
use rustix::process::Signal;

const MESOS: &str = "1.11.0";
const SOON: Duration = Duration::from_secs(60);
/// Longer than a case takes, and than the daemon's next look at everything.
const A_WHILE: Duration = Duration::from_secs(3);

cleanup_tests::under_each_probe! {
    agent_restarted_while_executors_live_and_die,
    agent_dies_in_the_middle_of_a_case,
}

/// A container that is nobody's pod by its cgroup: labels only.
fn run_labelled(docker: &Dockerd, options: &[&str]) -> Result<String> {
    docker.run(options, OBEDIENT)
}

fn stays_running(docker: &Dockerd, id: &str) -> Result<()> {
    wait::holds(A_WHILE, format_args!("{id} runs"), || {
        docker
            .running()
            .is_ok_and(|running| running.iter().any(|other| other == id))
    })
}

fn wait_stopped(docker: &Dockerd, id: &str) -> Result<()> {
    wait::try_until(SOON, format_args!("{id} to be stopped"), || {
        Ok((docker.inspect(id)?["State"]["Running"] == false).then_some(()))
    })
}

/// Executor ids are unique within a framework only.
#[test]
fn two_frameworks_with_the_same_executor_id() -> Result<()> {
    for options in ["", "--no-cgroup-parent"] {
        let host = Host::start("twins", MESOS, AgentOptions::default())?;
        let watcher = host.enforce()?;
        let one = host.run_pod("pod", 2, options)?;
        let second = Framework::connect(host.agent.endpoint(), true)?;
        host.framework.release_offers()?;
        let task = second.launch(&host.pod_spec("pod", &format!("--services 2 {options}"))?)?;
        second.wait_running(&task, SOON)?;
        let twin = wait::try_until(SOON, "the second framework's executor", || {
            let found = ExecutorView::all(&host.agent, "pod");
            Ok(found
                .into_iter()
                .find(|view| view.container_id() != one.executor.container_id()))
        })?;
        twin.wait_pod_running(&host.docker, 2)?;

        one.executor.sigkill_executor()?;
        let case = watcher.wait_case(one.executor.container_id())?;
        assert_eq!(case["containers"], 2, "{case}");
        host.ensure_clean(&one, &case)?;
        wait::holds(A_WHILE, "the twin's pod runs", || {
            twin.running_pod(&host.docker)
                .is_ok_and(|running| running.len() == 2)
        })?;
        ensure!(twin.executor().alive());
    }
    Ok(())
}

/// Pods of one app share the name of their compose project.
#[test]
fn shared_compose_project() -> Result<()> {
    let host = Host::start("project", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let victim = host.run_pod("victim", 1, "")?;
    let other = host.run_pod("other", 1, "")?;
    let project = "--label=com.docker.compose.project=sampleapp";
    let of = |view: &ExecutorView| {
        format!(
            "--cgroup-parent=/{}/{}",
            host.scratch.name(),
            view.container_id()
        )
    };
    let ours = run_labelled(&host.docker, &[project, &of(&victim.executor)])?;
    let theirs = run_labelled(&host.docker, &[project, &of(&other.executor)])?;
    victim.executor.sigkill_executor()?;
    let case = watcher.wait_case(victim.executor.container_id())?;
    host.ensure_clean(&victim, &case)?;
    wait_stopped(&host.docker, &ours)?;
    stays_running(&host.docker, &theirs)
}

/// A container that the agent's own Docker containerizer would manage, with
/// everything that makes a pod.
#[test]
fn the_agents_own_container() -> Result<()> {
    let host = Host::start("own", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 1, "")?;
    let sandbox = format!(
        "--label=com.docker.compose.project.working_dir={}",
        pod.executor.sandbox().display()
    );
    let labels = ["--label=executorId=pod", &sandbox];
    let named = format!("--name=mesos-{}", pod.executor.container_id());
    let own = run_labelled(&host.docker, &[&labels[..], &[&named]].concat())?;
    let by_environment = run_labelled(
        &host.docker,
        &[&labels[..], &["--env=MESOS_CONTAINER_NAME=x"]].concat(),
    )?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    host.ensure_clean_but(&pod, &case, &[&own, &by_environment])?;
    stays_running(&host.docker, &own)?;
    stays_running(&host.docker, &by_environment)
}

/// The pod of a Java executor: labels, and nothing else. It is stopped when all
/// that is known agrees, and not touched when anything does not.
#[test]
fn java_pod_with_and_without_corroboration() -> Result<()> {
    let host = Host::start("java", MESOS, AgentOptions::default())?;
    // Created before the executor started: somebody else's.
    let before = run_labelled(&host.docker, &["--label=executorId=java"])?;
    let watcher = host.enforce()?;
    let pod = host.run_pod("java", 0, "--no-pod")?;
    let joined = run_labelled(
        &host.docker,
        &["--label=executorId=java", "--label=taskId=t"],
    )?;
    let other_id = run_labelled(&host.docker, &["--label=executorId=jav"])?;
    let elsewhere = format!(
        "--label=com.docker.compose.project.working_dir={}",
        pod.executor
            .sandbox()
            .with_file_name("11111111-2222-3333-4444-555555555555")
            .display()
    );
    let other_run = run_labelled(&host.docker, &["--label=executorId=java", &elsewhere])?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["endings"], "1 term", "{case}");
    wait_stopped(&host.docker, &joined)?;
    // And one that comes after the settle time.
    let after = run_labelled(&host.docker, &["--label=executorId=java"])?;
    for untouched in [&before, &other_id, &other_run, &after] {
        stays_running(&host.docker, untouched)?;
    }
    Ok(())
}

/// The same pod, when the host's state forbids a join by label.
#[test]
fn java_pod_that_must_not_be_joined() -> Result<()> {
    // By configuration.
    let host = Host::start("labeloff", MESOS, AgentOptions::default())?;
    let watcher = host.watch(&format!("{ENFORCE}\nlabel_join = \"off\""))?;
    let pod = host.run_pod("java", 0, "--no-pod")?;
    let container = run_labelled(&host.docker, &["--label=executorId=java"])?;
    pod.executor.sigkill_executor()?;
    watcher.wait_message("an executor ended and left nothing behind")?;
    stays_running(&host.docker, &container)?;
    drop(watcher);
    host.docker.docker(&["rm", "-f", &container])?;

    // A run of the same id lives, of another framework.
    let watcher = host.enforce()?;
    let pod = host.run_pod("twin", 0, "--no-pod")?;
    let second = Framework::connect(host.agent.endpoint(), true)?;
    host.framework.release_offers()?;
    let task = second.launch(&host.pod_spec("twin", "--no-pod")?)?;
    second.wait_running(&task, SOON)?;
    let container = run_labelled(&host.docker, &["--label=executorId=twin"])?;
    pod.executor.sigkill_executor()?;
    watcher.wait_message("an executor ended and left nothing behind")?;
    stays_running(&host.docker, &container)?;
    drop(watcher);

    // Two agents are configured.
    let agent = AgentPlace::of(&host.agent, &host.scratch);
    let other = AgentPlace {
        work_dir: host.scratch.path().join("other-work"),
        runtime_dir: host.scratch.path().join("other-run"),
        cgroups_root: agent.cgroups_root.clone(),
    };
    let watcher = Watcher::start(&host.scratch, &host.docker, &[agent, other], ENFORCE)?;
    drop(second);
    let pod = host.run_pod("single", 0, "--no-pod")?;
    let container = run_labelled(&host.docker, &["--label=executorId=single"])?;
    pod.executor.sigkill_executor()?;
    wait::try_until(SOON, "the executor's end to be noticed", || {
        let said = watcher.said("an executor ended and left nothing behind")?;
        Ok(said
            .into_iter()
            .find(|line| line["container"] == pod.executor.container_id()))
    })?;
    stays_running(&host.docker, &container)
}

/// The posix launcher, and a pod that only its compose files tie to its run.
#[test]
fn posix_launcher_without_cgroup_parent() -> Result<()> {
    let host = Host::start("posixfiles", MESOS, AgentOptions::posix())?;
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 2, "--no-cgroup-parent --restart always")?;
    let neighbour = host.run_pod("neighbour", 1, "--no-cgroup-parent")?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["endings"], "2 term", "{case}");
    host.ensure_clean(&pod, &case)?;
    wait::holds(A_WHILE, "the neighbour's pod runs", || {
        neighbour
            .executor
            .running_pod(&host.docker)
            .is_ok_and(|running| running.len() == 1)
    })
}

/// An executor that leaves a process of its own behind in its cgroup.
#[test]
fn executor_that_daemonises() -> Result<()> {
    let host = Host::start("daemonises", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let mut spec = host.pod_spec("pod", "--services 2")?;
    spec.command = format!("setsid sleep 86400 & {}", spec.command);
    let task = host.framework.launch(&spec)?;
    host.framework.wait_running(&task, SOON)?;
    let executor = ExecutorView::find(&host.agent, "pod")?;
    executor.wait_pod_running(&host.docker, 2)?;
    executor.sigkill_executor()?;
    let case = watcher.wait_case(executor.container_id())?;
    assert_eq!(case["result"], "clean", "{case}");
    assert_eq!(executor.running_pod(&host.docker)?, Vec::<String>::new());
    assert_eq!(host.scratch.leftovers(), Vec::<PathBuf>::new());
    host.ensure_agent_is_well()
}

/// An agent that is not configured, with the cgroups root of one that is: its
/// executors are unknown, living or dead.
#[test]
fn a_second_agent_with_the_same_root() -> Result<()> {
    let host = Host::start("first", MESOS, AgentOptions::default())?;
    let stranger = Scratch::new("second")?;
    let runtime = runtime::fetch(&[MESOS])?.pop().context("a runtime")?;
    let options = AgentOptions {
        env: vec![(
            "MESOS_CGROUPS_ROOT".to_owned(),
            host.scratch.name().to_owned(),
        )],
        ..AgentOptions::default()
    };
    let agent = Agent::start(&stranger, &runtime, options)?;
    let framework = Framework::connect(agent.endpoint(), true)?;
    let watcher = host.enforce()?;
    let task = framework.launch(&pod::executor(
        &host.scratch,
        &host.docker,
        "pod",
        "--services 2 --no-cgroup-parent",
    )?)?;
    framework.wait_running(&task, SOON)?;
    let executor = ExecutorView::find(&agent, "pod")?;
    executor.wait_pod_running(&host.docker, 2)?;
    let ours = host.run_pod("pod", 1, "")?;

    executor.sigkill_executor()?;
    framework.wait_terminal(&task, SOON)?;
    ours.executor.sigkill_executor()?;
    let case = watcher.wait_case(ours.executor.container_id())?;
    assert_eq!(case["containers"], 1, "{case}");
    wait::holds(A_WHILE, "the stranger's pod is left alone", || {
        executor
            .running_pod(&host.docker)
            .is_ok_and(|running| running.len() == 2)
    })?;
    assert_eq!(watcher.cases(executor.container_id())?.len(), 0);
    host.ensure_agent_is_well()
}

/// The agent is killed and comes back while executors live, and while one dies.
fn agent_restarted_while_executors_live_and_die(probe: Probe) -> Result<()> {
    let options = AgentOptions {
        registry: Registry::Replicated,
        ..AgentOptions::default()
    };
    let mut host = Host::start("recovers", MESOS, options)?.under(probe);
    let watcher = host.enforce()?;
    let survivor = host.run_pod("survivor", 1, "")?;
    let victim = host.run_pod("victim", 2, "")?;
    host.agent.kill9()?;
    victim.executor.sigkill_executor()?;
    host.agent.restart()?;
    let case = watcher.wait_case(victim.executor.container_id())?;
    host.ensure_clean(&victim, &case)?;
    probe.ensure_noticed(&case)?;

    ensure!(survivor.executor.executor().alive());
    assert_eq!(
        survivor.executor.running_pod(&host.docker)?,
        survivor.containers
    );
    survivor.executor.sigkill_executor()?;
    let case = watcher.wait_case(survivor.executor.container_id())?;
    host.ensure_clean(&survivor, &case)
}

/// The agent dies in the middle of a case, for good.
fn agent_dies_in_the_middle_of_a_case(probe: Probe) -> Result<()> {
    let mut host = Host::start("middle", MESOS, AgentOptions::default())?.under(probe);
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 3, "--ignore-term 1")?;
    pod.executor.sigkill_executor()?;
    host.agent.kill9()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["result"], "clean", "{case}");
    assert_eq!(
        pod.executor.running_pod(&host.docker)?,
        Vec::<String>::new()
    );
    assert_eq!(host.scratch.leftovers(), Vec::<PathBuf>::new());
    Ok(())
}

/// Executor ids are any bytes but `/`, `\` and control characters.
#[test]
fn odd_executor_ids() -> Result<()> {
    let host = Host::start("odd", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let witness = host.scratch.path().join("pwned");
    let shell = format!(
        "x$(touch {})`id`;\"'",
        witness.file_name().context("a name")?.to_string_lossy()
    );
    for id in [
        shell.as_str(),
        "we *b[a-z]?",
        "pod-é\u{202e}-漢字",
        // As long as a name in a file system can be.
        &"x".repeat(255),
        "latest",
        "--help",
        "a:b,c=d",
    ] {
        let pod = host.run_pod(id, 1, "").with_context(|| id.to_owned())?;
        pod.executor.sigkill_executor()?;
        let case = watcher.wait_case(pod.executor.container_id())?;
        assert_eq!(case["containers"], 1, "{id}: {case}");
        host.ensure_clean(&pod, &case)
            .with_context(|| id.to_owned())?;
        let shown = case["executor"].as_str().context("an executor")?;
        assert!(!shown.contains('\u{202e}'), "{shown}");
    }
    assert!(!witness.exists());
    Ok(())
}

/// `--cgroups_root` of more than one component.
#[test]
fn cgroups_root_of_several_components() -> Result<()> {
    let scratch = Scratch::new("deep")?;
    let docker = Dockerd::start(&scratch)?;
    docker.import_busybox()?;
    let root = format!("{}/a/mesos", scratch.name());
    let runtime = runtime::fetch(&[MESOS])?.pop().context("a runtime")?;
    let options = AgentOptions {
        env: vec![("MESOS_CGROUPS_ROOT".to_owned(), root.clone())],
        ..AgentOptions::default()
    };
    let agent = Agent::start(&scratch, &runtime, options)?;
    let framework = Framework::connect(agent.endpoint(), true)?;
    let place = AgentPlace {
        cgroups_root: root.clone(),
        ..AgentPlace::of(&agent, &scratch)
    };
    let watcher = Watcher::start(&scratch, &docker, &[place], ENFORCE)?;
    let mut spec = pod::executor(&scratch, &docker, "pod", "--services 2")?;
    for (name, value) in &mut spec.env {
        if name == pod::ROOT_VARIABLE {
            value.clone_from(&root);
        }
    }
    let task = framework.launch(&spec)?;
    framework.wait_running(&task, SOON)?;
    let executor = ExecutorView::find(&agent, "pod")?;
    executor.wait_pod_running(&docker, 2)?;
    executor.sigkill_executor()?;
    let case = watcher.wait_case(executor.container_id())?;
    assert_eq!(case["origin"], "kernel", "{case}");
    assert_eq!(case["containers"], 2, "{case}");
    let mut left = scratch.leftovers();
    left.retain(|path| path.iter().any(|part| part == executor.container_id()));
    assert_eq!(left, Vec::<PathBuf>::new());
    Ok(())
}

/// Work directory, sandboxes and Docker on another file system.
#[test]
fn sandbox_on_another_file_system() -> Result<()> {
    if env::var_os("ON_ANOTHER_FILE_SYSTEM").is_none() {
        let output = Command::new(env::current_exe()?)
            .args(["--exact", "sandbox_on_another_file_system"])
            .env("ON_ANOTHER_FILE_SYSTEM", "1")
            .env("TMPDIR", "/dev/shm")
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
        return Ok(());
    }
    let host = Host::start("shm", MESOS, AgentOptions::default())?;
    ensure!(host.scratch.path().starts_with("/dev/shm"));
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 1, "")?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    host.ensure_clean(&pod, &case)
}

/// What a framework's user can forge: nothing of it reaches another run.
#[test]
fn forgeries() -> Result<()> {
    let host = Host::start("forged", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let victim = host.run_pod("victim", 1, "")?;
    // Variables of the executor's environment that name the victim's run.
    let mut spec = host.pod_spec("forger", "--services 1")?;
    let sandbox = victim.executor.sandbox().display().to_string();
    for (name, value) in [
        ("MESOS_EXECUTOR_ID", "victim"),
        ("MESOS_SANDBOX", &sandbox),
        (
            "MESOS_CONTAINERIZER_RUNTIME_DIRECTORY",
            "/nowhere/containers/x",
        ),
        ("MESOS_WORK_DIR", "/nowhere"),
    ] {
        spec.env.push((name.to_owned(), value.to_owned()));
    }
    // The agent knows the executor by its true id; the forged one cannot register.
    spec.command = format!(
        "MESOS_EXECUTOR_ID=forger; export MESOS_EXECUTOR_ID; {}",
        spec.command
    );
    let task = host.framework.launch(&spec)?;
    host.framework.wait_running(&task, SOON)?;
    let forger = ExecutorView::find(&host.agent, "forger")?;
    forger.wait_pod_running(&host.docker, 1)?;
    // A container of the forger that claims to be the victim's: by label, and by
    // compose files. The second has a cgroup of its own run, which decides.
    let parent = format!(
        "--cgroup-parent=/{}/{}",
        host.scratch.name(),
        forger.container_id()
    );
    let files = format!("--label=com.docker.compose.project.working_dir={sandbox}");
    let claimed = run_labelled(
        &host.docker,
        &["--label=executorId=victim", &parent, &files],
    )?;

    victim.executor.sigkill_executor()?;
    let case = watcher.wait_case(victim.executor.container_id())?;
    assert_eq!(case["containers"], 1, "{case}");
    stays_running(&host.docker, &claimed)?;
    ensure!(forger.executor().alive());
    // And the forger's own death is seen for what it is.
    forger.executor().signal(Signal::KILL)?;
    let case = watcher.wait_case(forger.container_id())?;
    assert_eq!(case["executor"], "forger", "{case}");
    assert_eq!(case["containers"], 2, "{case}");
    wait_stopped(&host.docker, &claimed)?;
    host.ensure_agent_is_well()
}
