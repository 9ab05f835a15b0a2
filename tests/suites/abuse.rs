//! What a framework's user may leave in a sandbox, and say of its processes: the
//! death is handled as any other, nothing hangs, nobody else is touched, and the
//! log stays readable.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::{Dockerd, IMAGE, OBEDIENT};
use cleanup_tests::host::{ENFORCE, Host, RunningPod};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::mesos::executors::ExecutorView;
use cleanup_tests::mesos::pod;
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent};
use cleanup_tests::process;
use cleanup_tests::wait;
use cleanup_tests::watcher::{AgentPlace, Watcher};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;

const MESOS: &str = "1.11.0";
const SOON: Duration = Duration::from_secs(60);

const GIB: u64 = 1 << 30;
const FILES: usize = 20_000;
/// Two lines for a log, and orders for a terminal: clear it, name its window.
const FORGED: &str = "x\nERROR forged \u{1b}[2J\u{1b}]0;y\u{7}\r\u{9b}31m\u{202e}z";

fn ensure_pod_runs(host: &Host, pod: &RunningPod) -> Result<()> {
    ensure!(pod.executor.executor().alive(), "the executor was ended");
    let running: BTreeSet<_> = pod
        .executor
        .running_pod(&host.docker)?
        .into_iter()
        .collect();
    ensure!(
        pod.containers.iter().all(|id| running.contains(id)),
        "of {:?} run {running:?}",
        pod.containers
    );
    Ok(())
}

fn make_fifo(path: &Path) -> Result<()> {
    mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).with_context(|| path.display().to_string())
}

/// Everything that a user can make, and the directories of others in reach.
fn fill(sandbox: &Path, neighbour: &Path) -> Result<()> {
    let own = sandbox.file_name().context("a run")?;
    for (name, target) in [
        ("root", Path::new("/")),
        ("neighbour", neighbour),
        ("containers", neighbour),
        ("self", sandbox),
        ("loop", Path::new("loop")),
        ("nowhere", Path::new("/nonexistent/x")),
        ("latest", neighbour),
        ("slaves", Path::new("../../../../../../../slaves")),
    ] {
        symlink(target, sandbox.join(name))?;
    }
    // As if it were a sandbox of its own.
    let inner = sandbox.join("slaves2/S/frameworks/F/executors/E/runs");
    fs::create_dir_all(&inner)?;
    symlink(neighbour, inner.join(own))?;
    make_fifo(&sandbox.join("fifo"))?;
    // Its name is relative: a sandbox's path is too long for a socket.
    let socket = UnixListener::bind(sandbox.join("s"));
    if let Err(error) = socket {
        let short = std::env::temp_dir().join(format!("cct-socket-{}", std::process::id()));
        drop(UnixListener::bind(&short).with_context(|| format!("after {error}"))?);
        fs::rename(&short, sandbox.join("s"))?;
    }
    File::create(sandbox.join("huge"))?.set_len(64 * GIB)?;
    let many = sandbox.join("many");
    fs::create_dir(&many)?;
    for n in 0..FILES {
        File::create(many.join(n.to_string()))?;
    }
    for name in [
        FORGED.as_bytes(),
        b"\xff\xfe not UTF-8",
        b"$(touch pwned); `id` * ?",
        b"-rf",
        &[b'x'; 255],
    ] {
        let directory = sandbox.join(OsStr::from_bytes(name));
        fs::create_dir(&directory)?;
        fs::write(
            directory.join(OsString::from_vec(name[..name.len().min(200)].to_vec())),
            "x",
        )?;
    }
    Ok(())
}

/// A container that names a directory as that of its compose file, and nothing
/// else.
fn run_with_files_in(docker: &Dockerd, directory: &str) -> Result<String> {
    let label = format!("--label=com.docker.compose.project.working_dir={directory}");
    docker.run(&[&label], OBEDIENT)
}

#[test]
fn sandbox_full_of_traps() -> Result<()> {
    let host = Host::start("traps", MESOS, AgentOptions::default())?;
    let watcher = host.enforce()?;
    let victim = host.run_pod("victim", 2, "")?;
    let neighbour = host.run_pod("neighbour", 1, "")?;
    let sandbox = victim.executor.sandbox();
    let others = neighbour.executor.sandbox();
    fill(sandbox, others)?;
    // Who reads the compose file waits for ever.
    let file = pod::file(sandbox);
    fs::remove_file(&file)?;
    make_fifo(&file)?;
    // Compose files in odd places: through links they would be somebody else's.
    let odd = format!("{}/{FORGED}", sandbox.display());
    let claimed = [
        run_with_files_in(&host.docker, &odd)?,
        run_with_files_in(&host.docker, &format!("{}/neighbour/x", sandbox.display()))?,
    ];

    victim.executor.sigkill_executor()?;
    let case = watcher.wait_case(victim.executor.container_id())?;
    host.ensure_clean(&victim, &case)?;
    assert_eq!(case["executor"], "victim", "{case}");
    assert_eq!(case["containers"], 4, "{case}");
    for id in &claimed {
        ensure!(
            host.docker.inspect(id)?["State"]["Running"] == false,
            "{id}"
        );
    }
    ensure_pod_runs(&host, &neighbour)?;
    assert_eq!(watcher.said("case")?.len(), 1);
    watcher.ensure_printable_log()?;

    // Nothing of a sandbox is touched, and nothing behind its links.
    ensure!(fs::symlink_metadata(sandbox.join("root"))?.is_symlink());
    assert_eq!(fs::metadata(sandbox.join("huge"))?.len(), 64 * GIB);
    assert_eq!(fs::read_dir(sandbox.join("many"))?.count(), FILES);
    ensure!(pod::file(others).is_file());

    // With a daemon that has to find it: its next start meets the same sandboxes.
    watcher.stop()?;
    fill(others, sandbox)?;
    let watcher = host.enforce()?;
    ensure_pod_runs(&host, &neighbour)?;
    neighbour.executor.sigkill_executor()?;
    let case = watcher.wait_case(neighbour.executor.container_id())?;
    assert_eq!(case["containers"], 1, "{case}");
    host.ensure_clean(&neighbour, &case)?;
    watcher.ensure_printable_log()
}

/// Names and environments of an executor's processes claim to be an agent's, a
/// helper's, and another run's.
#[test]
fn processes_that_claim_to_be_others() -> Result<()> {
    let host = Host::start("liars", MESOS, AgentOptions::default())?;
    let agent = AgentPlace::of(&host.agent, &host.scratch);
    let place = agent.clone();
    let watcher = Watcher::start_with_human_log(&host.scratch, &host.docker, &[agent], ENFORCE)?;
    let victim = host.run_pod("victim", 1, "")?;
    let victims = victim.executor.sandbox().display().to_string();
    let mut spec = host.pod_spec("liar", "--services 1")?;
    let container = place
        .runtime_dir
        .join("containers")
        .join(victim.executor.container_id());
    for (name, value) in [
        ("MESOS_DIRECTORY", victims.as_str()),
        ("MESOS_SANDBOX", &victims),
        ("MESOS_EXECUTOR_ID", FORGED),
        ("MESOS_FRAMEWORK_ID", FORGED),
        ("MESOS_WORK_DIR", &place.work_dir.display().to_string()),
        (FORGED_VARIABLE, FORGED),
    ] {
        spec.env.push((name.to_owned(), value.to_owned()));
    }
    let helper = format!(
        "MESOS_CONTAINERIZER_RUNTIME_DIRECTORY={}",
        container.display()
    );
    // The shell stays, as the executor, with a name of two lines. Its children
    // are called like an agent of that work directory, and like the victim's
    // helper. Mesos has to be told the truth.
    let truth = "MESOS_DIRECTORY=\"$PWD\" MESOS_SANDBOX=\"$PWD\" MESOS_EXECUTOR_ID=liar \
                 MESOS_FRAMEWORK_ID=\"$(basename \"$(cd ../../../.. && pwd)\")\"";
    let program = spec.command.replacen("exec ", "", 1);
    spec.command = format!(
        "printf 'mesos-agent\\nx' > /proc/$$/comm; \
         bash -c 'exec -a mesos-agent sleep 86400' & \
         {helper} bash -c 'exec -a mesos-containerizer sleep 86400' & \
         {truth} {program}; :"
    );
    let task = host.framework.launch(&spec)?;
    host.framework.wait_running(&task, SOON)?;
    let liar = ExecutorView::find(&host.agent, "liar")?;
    liar.wait_pod_running(&host.docker, 1)?;
    let comm = fs::read(format!("/proc/{}/comm", liar.executor().pid()))?;
    assert_eq!(comm, b"mesos-agent\nx\n");
    let forged = format!("MESOS_DIRECTORY={victims}");
    ensure!(
        liar.executor().has_environment(&forged),
        "Mesos had it otherwise"
    );

    // The end of a false helper is nobody's.
    let fakes = wait::until(SOON, "the false helper", || {
        let mut found = process::with_environment(&helper);
        found.retain(|process| process.command_line() == "mesos-containerizer 86400");
        (!found.is_empty()).then_some(found)
    })?;
    for fake in fakes {
        fake.signal(Signal::KILL)?;
    }
    liar.executor().signal(Signal::KILL)?;
    let line = watcher.wait_text(&format!("case container={}", liar.container_id()))?;
    for wanted in ["executor=liar ", "result=\"clean\"", "containers=1 "] {
        ensure!(line.contains(wanted), "no {wanted} in {line}");
    }
    ensure_pod_runs(&host, &victim)?;
    ensure!(liar.running_pod(&host.docker)?.is_empty());
    host.ensure_agent_is_well()?;
    watcher.ensure_printable_log()?;
    let log = fs::read_to_string(watcher.log_path())?;
    let of_victim = format!("case container={}", victim.executor.container_id());
    ensure!(!log.contains(&of_victim), "a case of the victim");
    Ok(())
}

/// A name that is no name.
const FORGED_VARIABLE: &str = "MESOS_CONTAINERIZER\n\u{1b}[31m";

/// No master lets such ids through, but a directory may be called so.
#[test]
fn ids_with_control_characters() -> Result<()> {
    let (scratch, docker, agent) = StandInAgent::with_docker("ids", CgroupLayout::V1)?;
    let watcher = Watcher::start_with_human_log(&scratch, &docker, &[agent.place()], ENFORCE)?;
    let mut run = agent.prepare(FORGED)?;
    let parent = format!("--cgroup-parent={}", run.cgroup_parent());
    let container = docker.docker(&[
        "run",
        "--detach",
        "--network=none",
        &parent,
        IMAGE,
        "sleep",
        "86400",
    ])?;
    run.launch(&["sleep", "86400"])?;
    run.executor()?.kill();
    wait::try_until(SOON, "the container to be stopped", || {
        Ok((docker.inspect(&container)?["State"]["Running"] == false).then_some(()))
    })?;
    agent.destroy(&run).finish()?;
    let line = watcher.wait_text(&format!("case container={}", run.container_id()))?;
    ensure!(line.contains("result=\"clean\""), "{line}");
    let mut left = scratch.leftovers();
    left.retain(|path| path.iter().any(|part| part == run.container_id()));
    ensure!(left.is_empty(), "{left:?}");
    watcher.ensure_printable_log()
}
