//! What is tried, in this order.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::IGNORING_TERM;
use cleanup_tests::process::Process;
use cleanup_tests::wait;
use rustix::process::Signal;

use crate::bed::{
    self, Bed, CONFIG, METRICS, UNIT, expect, log, property, tell, tool, wait_for, wait_logged,
    wait_stopped,
};

/// Put there by `cargo xtask vm`.
const PACKAGE: &str = "/lab/compose-cleanup.deb";
const NEXT_PACKAGE: &str = "/lab/next.deb";
const INBOX_PATH: &str = "compose-cleanup-inbox.path";
const INBOX: &str = "compose-cleanup-inbox.service";
const SHORT: Duration = Duration::from_secs(60);

type Step = fn(&mut Bed) -> Result<()>;

pub(crate) const ALL: &[(&str, Step)] = &[
    ("install", install),
    ("observe", observe),
    ("reload", reload),
    ("enforce", enforce),
    ("crash", crash),
    ("watchdog", watchdog),
    ("docker", docker),
    ("inbox", inbox),
    ("upgrade", upgrade),
    ("remove", remove),
];

/// Nothing is started or enabled; what is started then is ready when `start` returns.
fn install(bed: &mut Bed) -> Result<()> {
    tool("dpkg", &["--install", PACKAGE])?;
    for unit in [UNIT, INBOX_PATH] {
        expect(unit, "UnitFileState", "disabled")?;
        expect(unit, "ActiveState", "inactive")?;
    }
    let shipped = fs::read_to_string(CONFIG).context(CONFIG)?;
    ensure!(
        shipped.contains("mode = \"observe\""),
        "{CONFIG}:\n{shipped}"
    );
    bed.configure("observe")?;
    println!("{}", tool("compose-cleanup", &["doctor"])?);
    tool("systemctl", &["start", UNIT])?;
    expect(UNIT, "ActiveState", "active")?;
    let said = property(UNIT, "StatusText")?;
    ensure!(!said.is_empty(), "nothing in StatusText");
    println!("StatusText={said}");
    let analyzed = tell("systemd-analyze", &["security", "--no-pager", UNIT]);
    println!("{}", analyzed.lines().last().unwrap_or_default());
    ensure!(log()?.contains("ready"), "the log does not say `ready`");
    Ok(())
}

/// The plan is told, and nothing is touched.
fn observe(bed: &mut Bed) -> Result<()> {
    let pod = bed.obedient_pod("observed")?;
    pod.kill_executor()?;
    wait_logged(&["plan: would end these containers", pod.run.container_id()])?;
    ensure!(bed::runs(&pod.docker_id)?, "its container was stopped");
    bed.agent.destroy(&pod.run).finish()?;
    // The stand-in kills what lies beneath its own cgroup, as an agent does.
    tool("docker", &["rm", "--force", &pod.docker_id])?;
    Ok(())
}

/// A file with a mistake changes nothing; a good one is taken over without a restart.
fn reload(bed: &mut Bed) -> Result<()> {
    let pid = property(UNIT, "MainPID")?;
    fs::write(CONFIG, "mode = \"maybe\"\n").context(CONFIG)?;
    tool("systemctl", &["reload", UNIT])?;
    wait_logged(&["configuration", "maybe"])?;
    expect(UNIT, "ActiveState", "active")?;
    bed.configure("enforce")?;
    tool("systemctl", &["reload", UNIT])?;
    wait::try_until(SHORT, "the mode to be enforce", || {
        let status = tool("compose-cleanup", &["status"])?;
        Ok(status.contains("enforce").then_some(()))
    })?;
    expect(UNIT, "MainPID", &pid)
}

/// With all that the unit takes from it, a dead executor's pod is stopped and nothing of it stays;
/// an executor that lives loses nothing.
fn enforce(bed: &mut Bed) -> Result<()> {
    let neighbour = bed.obedient_pod("neighbour")?;
    let pod = bed.obedient_pod("web")?;
    pod.kill_executor()?;
    wait_stopped(&pod.docker_id)?;
    bed.agent.destroy(&pod.run).finish()?;
    bed.wait_clean(&pod)?;

    // Without an agent, all that is left is the daemon's to end, whoever's it is.
    let alone = bed.obedient_pod("alone")?;
    let leftover = alone.leftover()?;
    bed.agent.kill9()?;
    alone.kill_executor()?;
    bed.wait_clean(&alone)?;
    ensure!(!leftover.alive(), "a process of another user is left");
    bed.agent.restart()?;

    ensure!(
        bed::runs(&neighbour.docker_id)?,
        "the neighbour's pod was touched"
    );
    ensure!(!bed.cgroups_of(&neighbour.run).is_empty(), "… its cgroups");
    let cases = tool("compose-cleanup", &["cases"])?;
    for run in [&pod.run, &alone.run] {
        let id = &run.container_id()[..8];
        ensure!(
            cases.contains(id),
            "no case of {id} in the journal:\n{cases}"
        );
    }
    let metrics = http_get("/metrics")?;
    ensure!(
        metrics.contains("compose_cleanup_"),
        "no metrics:\n{metrics}"
    );
    Ok(())
}

/// Killed in the middle of a case, it is started again and finishes it.
fn crash(bed: &mut Bed) -> Result<()> {
    let pod = bed.pod("stubborn", IGNORING_TERM)?;
    let restarts = property(UNIT, "NRestarts")?;
    pod.kill_executor()?;
    wait::try_until(SHORT, "the case to be open", || {
        let status = tool("compose-cleanup", &["status"])?;
        Ok(status.contains(&pod.run.container_id()[..8]).then_some(()))
    })?;
    main_process()?.signal(Signal::KILL)?;
    wait_for(UNIT, "NRestarts", |now| now != restarts)?;
    wait_for(UNIT, "ActiveState", |state| state == "active")?;
    wait_stopped(&pod.docker_id)?;
    bed.agent.destroy(&pod.run).finish()?;
    bed.wait_clean(&pod)
}

/// One that does nothing any more is killed and started again.
fn watchdog(_: &mut Bed) -> Result<()> {
    let drop_in = Path::new("/run/systemd/system/compose-cleanup.service.d");
    fs::create_dir_all(drop_in).context("a drop-in's directory")?;
    fs::write(drop_in.join("lab.conf"), "[Service]\nWatchdogSec=8s\n").context("a drop-in")?;
    tool("systemctl", &["daemon-reload"])?;
    tool("systemctl", &["restart", UNIT])?;
    let before = main_process()?;
    let restarts = property(UNIT, "NRestarts")?;
    before.signal(Signal::STOP)?;
    wait_for(UNIT, "NRestarts", |now| now != restarts)?;
    wait_for(UNIT, "ActiveState", |state| state == "active")?;
    ensure!(!before.alive(), "the stopped process lives");
    let log = log()?;
    ensure!(
        log.to_lowercase().contains("watchdog"),
        "not the watchdog:\n{log}"
    );
    fs::remove_file(drop_in.join("lab.conf")).context("a drop-in")?;
    tool("systemctl", &["daemon-reload"])?;
    tool("systemctl", &["restart", UNIT])?;
    Ok(())
}

/// It starts without Docker, outlives it, and goes on with it.
fn docker(bed: &mut Bed) -> Result<()> {
    tool("systemctl", &["stop", "docker.socket", "docker.service"])?;
    tool("systemctl", &["restart", UNIT])?;
    expect(UNIT, "ActiveState", "active")?;
    tool("systemctl", &["start", "docker.service"])?;
    let pod = bed.obedient_pod("after-docker")?;
    pod.kill_executor()?;
    wait_stopped(&pod.docker_id)?;
    bed.agent.destroy(&pod.run).finish()?;
    bed.wait_clean(&pod)
}

/// While the daemon does not run, the hook's requests start what does its work.
fn inbox(bed: &mut Bed) -> Result<()> {
    tool("systemctl", &["stop", UNIT])?;
    tool("systemctl", &["start", INBOX_PATH])?;
    let pod = bed.obedient_pod("asked-for")?;
    pod.kill_executor()?;
    bed::ask_through_the_inbox(&pod.run)?;
    wait_stopped(&pod.docker_id)?;
    bed.agent.destroy(&pod.run).finish()?;
    bed.wait_clean(&pod)?;
    wait_for(INBOX, "ActiveState", |state| state == "inactive")?;
    expect(INBOX, "Result", "success")?;
    tool("systemctl", &["start", UNIT])?;
    Ok(())
}

/// The daemon runs on as the new one, with the operator's configuration.
fn upgrade(_: &mut Bed) -> Result<()> {
    tool("systemctl", &["enable", UNIT])?;
    let before = property(UNIT, "MainPID")?;
    let mine = fs::read_to_string(CONFIG).context(CONFIG)?;
    let options = [
        "--force-confdef",
        "--force-confold",
        "--install",
        NEXT_PACKAGE,
    ];
    tool("dpkg", &options)?;
    wait_for(UNIT, "ActiveState", |state| state == "active")?;
    let after = property(UNIT, "MainPID")?;
    ensure!(before != after, "the old process runs on");
    let kept = fs::read_to_string(CONFIG).context(CONFIG)?;
    ensure!(kept == mine, "{CONFIG} was overwritten");
    expect(UNIT, "UnitFileState", "enabled")
}

/// Removed, it is stopped and disabled; purged, nothing is left.
fn remove(_: &mut Bed) -> Result<()> {
    let daemon = main_process()?;
    tool("dpkg", &["--remove", "compose-cleanup"])?;
    ensure!(!daemon.alive(), "the daemon runs on");
    expect(UNIT, "LoadState", "not-found")?;
    let link = Path::new("/etc/systemd/system/multi-user.target.wants").join(UNIT);
    ensure!(
        link.symlink_metadata().is_err(),
        "{} is left",
        link.display()
    );
    ensure!(
        Path::new(CONFIG).exists(),
        "{CONFIG} is gone before the purge"
    );
    tool("dpkg", &["--purge", "compose-cleanup"])?;
    for path in [
        "/etc/compose-cleanup",
        "/var/lib/compose-cleanup",
        "/run/compose-cleanup",
    ] {
        ensure!(!Path::new(path).exists(), "{path} is left");
    }
    Ok(())
}

fn main_process() -> Result<Process> {
    let pid: i32 = property(UNIT, "MainPID")?.parse().context("MainPID")?;
    Process::of(pid).context("the daemon's process")
}

fn http_get(path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(METRICS).context(METRICS)?;
    stream.set_read_timeout(Some(SHORT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("an answer")?;
    Ok(answer)
}
