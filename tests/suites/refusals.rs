//! Bad input and unfit hosts: a clear error, no effect, the right exit status.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result};
use cleanup_tests::docker::Dockerd;
use cleanup_tests::host::Host;
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::{AgentPlace, Watcher};
use cleanup_tests::{bins, wait};

const FAILURE: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);

/// Runs the daemon, which is expected to end by itself.
fn run(mut command: Command) -> Result<(Option<i32>, String)> {
    let Output { status, stderr, .. } = command.output().context("running compose-cleanup")?;
    Ok((status.code(), String::from_utf8_lossy(&stderr).into_owned()))
}

fn watch(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(bins::find("compose-cleanup")?);
    command.arg("watch").args(arguments);
    Ok(command)
}

/// The command line in an environment of util-linux's making.
fn through(program: &[&str]) -> Result<Command> {
    let mut command = Command::new(program[0]);
    command
        .args(&program[1..])
        .arg(bins::find("compose-cleanup")?)
        .arg("watch");
    Ok(command)
}

#[track_caller]
fn assert_says(outcome: &(Option<i32>, String), code: Option<i32>, words: &[&str]) {
    let (status, text) = outcome;
    assert_eq!(*status, code, "{text}");
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
    assert!(
        !text.contains("panicked") && !text.contains("backtrace"),
        "{text}"
    );
}

#[test]
fn wrong_usage() -> Result<()> {
    assert_says(&run(watch(&["--frobnicate"])?)?, USAGE, &["--frobnicate"]);
    assert_says(
        &run(watch(&["--mode", "maybe"])?)?,
        USAGE,
        &["maybe", "observe", "enforce"],
    );
    assert_says(
        &run(watch(&["--grace", "soon"])?)?,
        USAGE,
        &["--grace", "soon"],
    );
    assert_says(
        &run(watch(&["--dry-run", "--mode", "enforce"])?)?,
        USAGE,
        &["--dry-run"],
    );
    Ok(())
}

#[test]
fn bad_configuration() -> Result<()> {
    let scratch = Scratch::new("config")?;
    let path = scratch.path().join("config.toml");
    let file = path.to_str().context("UTF-8")?;
    assert_says(
        &run(watch(&["--config", file])?)?,
        FAILURE,
        &[file, "No such file"],
    );
    for (text, words) in [
        (
            "mode = \"enforce\"\nmdoe = 1\n",
            &[":2:1: ", "mdoe", "`mode`"][..],
        ),
        ("mode = enforce\n", &[":1:8: "]),
        (
            "grace = \"2 fortnights\"\n",
            &[":1:1: ", "grace", "fortnights"],
        ),
        (
            "[[agents]]\nwork_dir = \"relative\"\n",
            &["agents[0].work_dir", "absolute"],
        ),
        (
            "[[agents]]\nwork_dir = \"/w\"\ncgroups_root = \"../up\"\n",
            &[":3:1: ", "cgroups root", "../up"],
        ),
        ("\u{0}\u{1}garbage", &[":1:"]),
    ] {
        fs::write(&path, text)?;
        let mut expected = vec![file];
        expected.extend(words);
        assert_says(&run(watch(&["--config", file])?)?, FAILURE, &expected);
    }
    fs::write(
        &path,
        "action = \"remove\"\nanonymous_volumes = \"remove\"\n",
    )?;
    for (options, words) in [
        (["--grace", "2h"], ["`grace`", "at most 1h"]),
        (
            ["--docker-socket", "docker.sock"],
            ["`docker.socket`", "absolute"],
        ),
        // Each is in order by itself.
        (
            ["--action", "stop"],
            ["`anonymous_volumes`", "command line"],
        ),
    ] {
        let arguments = [&["--config", file][..], &options].concat();
        assert_says(&run(watch(&arguments)?)?, FAILURE, &words);
    }
    fs::write(&path, b"mode = \"\xff\"")?;
    assert_says(
        &run(watch(&["--config", file])?)?,
        FAILURE,
        &[file, "UTF-8"],
    );
    Ok(())
}

#[test]
fn not_root() -> Result<()> {
    // Where a user without rights can reach it.
    let scratch = Scratch::new("user")?;
    let program = scratch.path().join("compose-cleanup");
    fs::copy(bins::find("compose-cleanup")?, &program)?;
    fs::set_permissions(
        scratch.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let mut command = Command::new(&program);
    command.arg("watch").uid(65534).gid(65534);
    assert_says(&run(command)?, FAILURE, &["must run as root", "sudo"]);
    Ok(())
}

#[test]
fn root_without_capabilities() -> Result<()> {
    let mut command = through(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"])?;
    let scratch = Scratch::new("caps")?;
    command.arg("--config").arg(config_with_an_agent(&scratch)?);
    let otherwise = "probe = \"poll\"";
    assert_says(
        &run(command)?,
        FAILURE,
        &["CAP_BPF", "CAP_PERFMON", otherwise],
    );
    Ok(())
}

#[test]
fn not_the_hosts_namespaces() -> Result<()> {
    let pid = through(&["unshare", "--pid", "--fork", "--mount-proc"])?;
    assert_says(&run(pid)?, FAILURE, &["pid namespace", "--pid=host"]);
    let cgroup = through(&["unshare", "--cgroup"])?;
    assert_says(
        &run(cgroup)?,
        FAILURE,
        &["cgroup namespace", "--cgroupns=host"],
    );
    Ok(())
}

/// A kernel without BTF, as far as a mount over its file can make it one.
#[test]
fn no_btf() -> Result<()> {
    let scratch = Scratch::new("btf")?;
    let config = config_with_an_agent(&scratch)?;
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    let mut command = through(&["unshare", "--mount", "sh", "-c", script, "sh"])?;
    command.arg("--config").arg(config);
    assert_says(
        &run(command)?,
        FAILURE,
        &[
            "BTF",
            "CONFIG_DEBUG_INFO_BTF",
            "probe = \"poll\"",
            "\"auto\"",
        ],
    );
    Ok(())
}

fn config_with_an_agent(scratch: &Scratch) -> Result<std::path::PathBuf> {
    let path = scratch.path().join("agent.toml");
    let dir = scratch.path().display();
    fs::write(
        &path,
        format!(
            "run_dir = \"{dir}/run-dir\"\n[[agents]]\nwork_dir = \"{dir}/work\"\nruntime_dir = \"{dir}/run\"\ncgroups_root = \"{}\"\n",
            scratch.name()
        ),
    )?;
    Ok(path)
}

/// Without Docker the daemon starts and says so; a death meanwhile is kept until
/// Docker comes.
#[test]
fn no_docker_yet() -> Result<()> {
    // Containers that outlive their daemon: a Docker that is only away.
    let options = AgentOptions::default();
    let mut host = Host::start_with("nodocker", "1.11.0", options, &["--live-restore"])?;
    let pod = host.run_pod("pod", 2, "--no-cgroup-parent")?;
    let agent = AgentPlace::of(&host.agent, &host.scratch);
    host.docker.kill9()?;
    let watcher = Watcher::spawn(
        &host.scratch,
        &host.docker.socket(),
        &[agent],
        "mode = \"enforce\"\ngrace = \"2s\"\nsettle = \"200ms\"",
    )?;
    watcher.wait_message("ready")?;
    let said = watcher.wait_message("Docker is not there; trying on, cases are kept")?;
    let error = said["error"].as_str().context("an error")?;
    assert!(
        error.contains(&*host.docker.socket().to_string_lossy()),
        "{error}"
    );

    pod.executor.sigkill_executor()?;
    host.framework
        .wait_terminal(&pod.task_id, Duration::from_secs(60))?;
    wait::holds(Duration::from_secs(1), "the case stays open", || {
        watcher.said("case").is_ok_and(|cases| cases.is_empty())
    })?;
    host.docker.restart()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["result"], "clean", "{case}");
    assert_eq!(case["origin"], "kernel", "{case}");
    assert_eq!(
        pod.executor.running_pod(&host.docker)?,
        Vec::<String>::new()
    );
    assert_eq!(host.scratch.leftovers(), Vec::<std::path::PathBuf>::new());
    Ok(())
}

/// Garbage where an agent keeps its things: said, skipped, and nothing touched.
#[test]
fn garbage_in_the_agents_directories() -> Result<()> {
    let scratch = Scratch::new("garbage")?;
    let docker = Dockerd::start(&scratch)?;
    docker.import_busybox()?;
    let (work_dir, runtime_dir) = (scratch.path().join("work"), scratch.path().join("run"));
    let containers = runtime_dir.join("containers");
    let id = |last: u32| format!("857fd7a0-df05-458b-bd72-{last:012}");
    // A PID file of nonsense, one of somebody else's process, a file for a directory.
    fs::create_dir_all(containers.join(id(1)))?;
    fs::write(containers.join(id(1)).join("pid"), "\u{0}\u{1}not a pid")?;
    fs::create_dir_all(containers.join(id(2)))?;
    fs::write(
        containers.join(id(2)).join("pid"),
        std::process::id().to_string(),
    )?;
    fs::write(containers.join(id(3)), "a file")?;
    fs::create_dir_all(containers.join("..garbage\nwith a newline"))?;
    // `slaves` is a file: sandboxes cannot be looked for.
    fs::create_dir_all(&work_dir)?;
    fs::write(work_dir.join("slaves"), "not a directory")?;
    // And a container beneath a cgroup that looks like a run's.
    let parent = format!("--cgroup-parent=/{}/{}", scratch.name(), id(4));
    let container = docker.docker(&[
        "run",
        "-d",
        "--network=none",
        &parent,
        "pod:test",
        "sleep",
        "1000",
    ])?;
    let before = scratch.leftovers();

    let agent = AgentPlace {
        work_dir: work_dir.clone(),
        runtime_dir,
        cgroups_root: scratch.name().to_owned(),
    };
    let watcher = Watcher::start(
        &scratch,
        &docker,
        &[agent],
        "mode = \"enforce\"\nsettle = \"200ms\"",
    )?;
    let skipped = watcher.wait_message("executor skipped: its sandbox cannot be looked for")?;
    let error = skipped["error"].as_str().context("an error")?;
    assert!(
        error.contains(&*work_dir.join("slaves").to_string_lossy()),
        "{error}"
    );
    let unknown = wait::try_until(
        Duration::from_secs(20),
        "the unknown run to be named",
        || {
            let said = watcher.said("unknown run: left alone")?;
            Ok(said.into_iter().find(|line| line["container"] == id(4)))
        },
    )?;
    assert!(unknown["why"].is_string());
    // Longer than two surveys.
    wait::holds(Duration::from_secs(5), "nothing is touched", || {
        scratch.leftovers() == before
            && docker
                .running()
                .is_ok_and(|running| running == [container.trim()])
    })?;
    assert_eq!(watcher.said("case")?.len(), 0);
    assert!(watcher.stop()?.success());
    Ok(())
}

/// A daemon that was not told of an agent finds the real one by its helper, and
/// in observe mode touches nobody's (other tests run their agents meanwhile).
#[test]
fn an_agent_is_found_without_a_configuration() -> Result<()> {
    let host = Host::start("discover", "1.11.0", AgentOptions::default())?;
    let pod = host.run_pod("pod", 1, "")?;
    let watcher = Watcher::spawn(
        &host.scratch,
        &host.docker.socket(),
        &[],
        "mode = \"observe\"",
    )?;
    let place = AgentPlace::of(&host.agent, &host.scratch);
    let found = wait::try_until(Duration::from_secs(30), "the agent to be found", || {
        let said = watcher.said("agent")?;
        Ok(said
            .into_iter()
            .find(|line| line["cgroups_root"] == place.cgroups_root))
    })?;
    assert_eq!(found["work_dir"], *place.work_dir.to_string_lossy());
    assert_eq!(found["runtime_dir"], *place.runtime_dir.to_string_lossy());
    watcher.wait_message("Docker is there")?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["result"], "observed", "{case}");
    Ok(())
}
