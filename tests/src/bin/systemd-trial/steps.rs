//! What is tried, in this order.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::IGNORING_TERM;
use cleanup_tests::process::real_time_threads;
use cleanup_tests::wait;
use rustix::process::Signal;
use serde_json::Value;

use crate::account::{Stop, Work, status, wait_open, wait_status, wait_worked};
use crate::bed::{self, Bed, CONFIG, METRICS, wait_stopped};
use crate::unit::{
    UNIT, expect, exposure, log, main_process, property, tell, tool, wait_for, wait_logged,
    wait_word,
};

/// Put there by `cargo xtask vm`.
const PACKAGE: &str = "/lab/compose-cleanup.deb";
const NEXT_PACKAGE: &str = "/lab/next.deb";
/// What its configuration ends with.
const NEXT_CONFIG: &str = "# next\n";
const MODULES: &str = "/etc/compose-cleanup/modules.json";
const INBOX_PATH: &str = "compose-cleanup-inbox.path";
const INBOX: &str = "compose-cleanup-inbox.service";
const SHORT: Duration = Duration::from_secs(60);
/// What docs/systemd.md says of `systemd-analyze security` and the running unit.
const EXPOSURE: f64 = 2.9;
/// Other releases of systemd weigh other points.
const MARGIN: f64 = 0.2;
const DOCKER_UNITS: [&str; 2] = ["docker.socket", "docker.service"];
const WANTS: &str = "/etc/systemd/system/multi-user.target.wants";

type Step = fn(&mut Bed) -> Result<()>;

pub(crate) const ALL: &[(&str, Step)] = &[
    ("install", install),
    ("observe", observe),
    ("reload", reload),
    ("enforce", enforce),
    ("crash", crash),
    ("watchdog", watchdog),
    ("docker", docker),
    ("away", away),
    ("agentless", agentless),
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
    let said = wait_for(UNIT, "StatusText", |text| text.starts_with("observing"))?;
    println!("StatusText={said}");
    let score = exposure(&tell("systemd-analyze", &["security", "--no-pager", UNIT]))?;
    println!("systemd-analyze security: {score}");
    ensure!(
        score <= EXPOSURE + MARGIN,
        "its exposure is {score}; docs/systemd.md says {EXPOSURE}"
    );
    wait_word("ready")?;
    let pid: i32 = property(UNIT, "MainPID")?.parse()?;
    wait::try_until(SHORT, "one thread with real-time priority", || {
        Ok((real_time_threads(pid)? == [pid]).then_some(()))
    })
}

/// The plan is told, and nothing is touched.
fn observe(bed: &mut Bed) -> Result<()> {
    let pod = bed.obedient_pod("observed")?;
    pod.kill_executor()?;
    wait_logged(&["plan: would end these containers", pod.run.container_id()])?;
    ensure!(bed::runs(&pod.docker_id)?, "its container was stopped");
    bed.agent.destroy(&pod.run).finish()?;
    // The stand-in kills what lies beneath its own cgroup, as an agent does.
    tool("docker", &["stop", "--time", "3", &pod.docker_id])?;
    let work = Work {
        result: "observed",
        pod: Stop::Found,
        ..Work::STOPPED
    };
    wait_worked(&pod, &work)
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
        Ok((status()?["mode"] == "enforce").then_some(()))
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
    let work = Work {
        cgroups: bed.dockers_cgroups(),
        ..Work::STOPPED
    };
    bed.wait_clean(&pod, &work)?;

    // Without an agent, all that is left is the daemon's to end, whoever's it is.
    let alone = bed.obedient_pod("alone")?;
    let leftover = alone.leftover()?;
    bed.agent.kill9()?;
    alone.kill_executor()?;
    let work = Work {
        // The run's own, at least.
        cgroups: 1,
        processes: 1,
        ..Work::STOPPED
    };
    bed.wait_clean(&alone, &work)?;
    ensure!(!leftover.alive(), "a process of another user is left");
    bed.agent.restart()?;

    ensure!(
        bed::runs(&neighbour.docker_id)?,
        "the neighbour's pod was touched"
    );
    ensure!(!bed.cgroups_of(&neighbour.run).is_empty(), "… its cgroups");
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
    wait_open(&pod, |_| true)?;
    main_process()?.signal(Signal::KILL)?;
    wait_for(UNIT, "NRestarts", |now| now != restarts)?;
    wait_for(UNIT, "ActiveState", |state| state == "active")?;
    wait_stopped(&pod.docker_id)?;
    bed.agent.destroy(&pod.run).finish()?;
    let work = Work {
        pod: Stop::Asked,
        cgroups: bed.dockers_cgroups(),
        resumed: true,
        ..Work::STOPPED
    };
    bed.wait_clean(&pod, &work)
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
    ensure!(log.contains("Watchdog timeout"), "not the watchdog:\n{log}");
    fs::remove_file(drop_in.join("lab.conf")).context("a drop-in")?;
    tool("systemctl", &["daemon-reload"])?;
    tool("systemctl", &["restart", UNIT])?;
    Ok(())
}

/// It starts without Docker, says so, and goes on with it.
fn docker(bed: &mut Bed) -> Result<()> {
    docker_is("stop")?;
    tool("systemctl", &["restart", UNIT])?;
    expect(UNIT, "ActiveState", "active")?;
    wait_for(UNIT, "StatusText", |text| {
        text.contains("Docker is not there")
    })?;
    tool("systemctl", &["start", "docker.service"])?;
    let pod = bed.obedient_pod("after-docker")?;
    pod.kill_executor()?;
    wait_stopped(&pod.docker_id)?;
    bed.agent.destroy(&pod.run).finish()?;
    bed.wait_clean(&pod, &Work::STOPPED)
}

/// Docker is stopped beneath a running daemon, and an executor dies meanwhile: its case waits,
/// and the pod, which Docker has left running, is stopped when Docker is back.
fn away(bed: &mut Bed) -> Result<()> {
    // It is started more often here than its unit allows in a minute.
    tool("systemctl", &["reset-failed", "docker.service"])?;
    bed::let_containers_outlive_docker()?;
    let pod = bed.obedient_pod("while-away")?;
    let container = bed::process_of(&pod.docker_id)?;
    let daemon = main_process()?;
    let restarts = property(UNIT, "NRestarts")?;

    // The daemon asks for Docker all the time, so the socket starts it again: that does not
    // keep it stopped.
    let docker = property("docker.service", "MainPID")?;
    tool("systemctl", &["stop", "docker.service"])?;
    wait_for("docker.service", "ActiveState", |state| state == "active")?;
    ensure!(
        property("docker.service", "MainPID")? != docker,
        "Docker was not stopped"
    );

    docker_is("stop")?;
    wait_status("Docker to be away", |status| {
        status["docker"]["state"] == "away"
    })?;
    pod.kill_executor()?;
    wait_open(&pod, |step| step == "wait_docker")?;
    ensure!(container.alive(), "the pod did not outlive Docker");
    wait_for(UNIT, "StatusText", |text| {
        text.contains("open cases: 1; Docker is not there")
    })?;

    docker_is("start")?;
    wait_stopped(&pod.docker_id)?;
    bed.agent.destroy(&pod.run).finish()?;
    bed.wait_clean(&pod, &Work::STOPPED)?;
    ensure!(main_process()? == daemon, "the daemon was started again");
    expect(UNIT, "NRestarts", &restarts)?;
    expect(UNIT, "ActiveState", "active")
}

fn docker_is(verb: &str) -> Result<()> {
    let arguments = [&[verb][..], &DOCKER_UNITS].concat();
    tool("systemctl", &arguments)?;
    Ok(())
}

/// It starts where there is no agent, is ready, and says so; what comes later is seen without
/// another start.
fn agentless(bed: &mut Bed) -> Result<()> {
    let agent_is =
        |state: &'static str| move |status: &Value| status["agents"][0]["state"] == state;
    bed.agent.kill9()?;
    tool("systemctl", &["restart", UNIT])?;
    expect(UNIT, "ActiveState", "active")?;
    wait_status("the agent to be absent", agent_is("absent"))?;
    wait_for(UNIT, "StatusText", |text| text.contains("is not there"))?;
    let daemon = main_process()?;
    bed.agent.restart()?;
    wait_status("the agent to be alive", agent_is("alive"))?;
    ensure!(main_process()? == daemon, "the daemon was started again");

    // Nor is one configured: then it is looked for.
    bed.agent.kill9()?;
    bed.configure_without_agent("enforce")?;
    tool("systemctl", &["restart", UNIT])?;
    expect(UNIT, "ActiveState", "active")?;
    wait_for(UNIT, "StatusText", |text| {
        text == "no agent is configured and none runs: waiting for one"
    })?;
    let told = tell("compose-cleanup", &["status"]);
    ensure!(told.contains("waits for an agent to be found"), "{told}");
    let daemon = main_process()?;
    bed.agent.restart()?;
    wait_for(UNIT, "StatusText", |text| text.starts_with("cleaning up"))?;
    wait_status("the agent to be alive", agent_is("alive"))?;
    let pod = bed.obedient_pod("found-later")?;
    pod.kill_executor()?;
    wait_stopped(&pod.docker_id)?;
    bed.agent.destroy(&pod.run).finish()?;
    bed.wait_clean(&pod, &Work::STOPPED)?;
    ensure!(main_process()? == daemon, "the daemon was started again");

    bed.configure("enforce")?;
    tool("systemctl", &["restart", UNIT])?;
    Ok(())
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
    bed.wait_clean(&pod, &Work::STOPPED)?;
    wait_for(INBOX, "ActiveState", |state| state == "inactive")?;
    expect(INBOX, "Result", "success")?;
    tool("systemctl", &["start", UNIT])?;
    Ok(())
}

/// The daemon runs on as the new one, with the operator's configuration; what the package has now
/// lies beside it.
fn upgrade(_: &mut Bed) -> Result<()> {
    tool("systemctl", &["enable", UNIT, INBOX_PATH])?;
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
    let theirs = fs::read_to_string(format!("{CONFIG}.dpkg-dist"));
    let theirs = theirs.context("the package's new configuration")?;
    ensure!(
        theirs.ends_with(NEXT_CONFIG) && theirs.contains("mode = \"observe\""),
        "not the package's new configuration:\n{theirs}"
    );
    // What nobody has changed is replaced, and not kept beside.
    let modules = fs::read_to_string(MODULES).context(MODULES)?;
    ensure!(modules.ends_with("\n\n"), "{MODULES} is the old one");
    for path in [CONFIG, MODULES] {
        for left in ["dpkg-old", "dpkg-new"] {
            ensure!(!exists(&format!("{path}.{left}")), "{path}.{left} is left");
        }
    }
    ensure!(
        !exists(&format!("{MODULES}.dpkg-dist")),
        "{MODULES} is twice"
    );
    for unit in [UNIT, INBOX_PATH] {
        expect(unit, "UnitFileState", "enabled")?;
        expect(unit, "ActiveState", "active")?;
        expect(unit, "NeedDaemonReload", "no")?;
    }
    Ok(())
}

/// Removed, its units are stopped, disabled and gone; purged, nothing is left.
fn remove(_: &mut Bed) -> Result<()> {
    let daemon = main_process()?;
    expect(INBOX_PATH, "ActiveState", "active")?;
    tool("dpkg", &["--remove", "compose-cleanup"])?;
    ensure!(!daemon.alive(), "the daemon runs on");
    for unit in [UNIT, INBOX_PATH, INBOX] {
        expect(unit, "LoadState", "not-found")?;
        expect(unit, "ActiveState", "inactive")?;
        let link = Path::new(WANTS).join(unit);
        ensure!(
            link.symlink_metadata().is_err(),
            "{} is left",
            link.display()
        );
    }
    ensure!(exists(CONFIG), "{CONFIG} is gone before the purge");
    tool("dpkg", &["--purge", "compose-cleanup"])?;
    for path in [
        "/etc/compose-cleanup",
        "/var/lib/compose-cleanup",
        "/run/compose-cleanup",
    ] {
        ensure!(!exists(path), "{path} is left");
    }
    Ok(())
}

fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

fn http_get(path: &str) -> Result<String> {
    let address = METRICS.parse().context(METRICS)?;
    let mut stream = TcpStream::connect_timeout(&address, SHORT).context(METRICS)?;
    stream.set_read_timeout(Some(SHORT))?;
    stream.set_write_timeout(Some(SHORT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("an answer")?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_the_score_that_is_asked_for() {
        let page = include_str!("../../../../docs/systemd.md");
        let sentence = format!("says {EXPOSURE:.1} of the running unit");
        assert!(page.contains(&sentence), "docs/systemd.md: {sentence}");
    }
}
