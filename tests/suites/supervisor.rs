//! What a service manager hears of the daemon (sd_notify(3)). The manager is the
//! test's own socket: a systemd here would take the host's cgroups for its own.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cleanup_tests::docker::Dockerd;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;
use cleanup_tests::watcher::{AgentPlace, Watcher, configure};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

const LIMIT: Duration = Duration::from_secs(120);

/// The manager's end of `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    heard: RefCell<Vec<String>>,
}

impl Manager {
    fn new(scratch: &Scratch) -> Result<(Self, String)> {
        let path = scratch.path().join("notify");
        let socket = UnixDatagram::bind(&path).context("binding the socket")?;
        socket.set_nonblocking(true)?;
        let heard = RefCell::default();
        let name = path.to_str().context("UTF-8")?.to_owned();
        Ok((Self { socket, heard }, name))
    }

    /// Everything until now.
    fn heard(&self) -> Result<Vec<String>> {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(len) => {
                    let message = std::str::from_utf8(&buffer[..len])?;
                    let lines = message.lines().map(str::to_owned);
                    self.heard.borrow_mut().extend(lines);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(self.heard.borrow().clone());
                }
                Err(error) => return Err(error).context("receiving"),
            }
        }
    }

    fn wait(&self, what: &str, fits: impl Fn(&[String]) -> bool) -> Result<Vec<String>> {
        wait::try_until(LIMIT, what, || {
            let heard = self.heard()?;
            Ok(fits(&heard).then_some(heard))
        })
        .with_context(|| format!("heard: {:?}", self.heard.borrow()))
    }

    fn wait_status(&self, part: &str) -> Result<Vec<String>> {
        self.wait(part, |heard| {
            let mut statuses = heard.iter().filter_map(|line| line.strip_prefix("STATUS="));
            statuses.any(|status| status.contains(part))
        })
    }

    fn signs_of_life(&self) -> Result<usize> {
        let heard = self.heard()?;
        Ok(heard.iter().filter(|line| *line == "WATCHDOG=1").count())
    }

    /// Waits for three more.
    fn wait_alive(&self) -> Result<()> {
        let before = self.signs_of_life()?;
        wait::try_until(LIMIT, "signs of life", || {
            Ok((self.signs_of_life()? >= before + 3).then_some(()))
        })
    }
}

#[test]
fn ready_status_signs_of_life_and_the_end() -> Result<()> {
    let scratch = Scratch::new("supervisor")?;
    let (manager, name) = Manager::new(&scratch)?;
    // An agent that never was, and a Docker that is to come.
    let agents = [AgentPlace::nowhere(&scratch)];
    let environment = [
        ("NOTIFY_SOCKET", name),
        ("WATCHDOG_USEC", "2000000".to_owned()),
    ];
    let mut docker = Dockerd::start(&scratch)?;
    docker.kill9()?;
    let watcher = Watcher::spawn_in(&scratch, &docker.socket(), &agents, "", &environment)?;

    let heard = manager.wait("READY=1", |heard| {
        heard.iter().any(|line| line == "READY=1")
    })?;
    // Attached, and everything was looked at.
    ensure!(watcher.said("ready")?.len() == 1, "{heard:?}");
    let heard = manager.wait_status("Docker is not there")?;
    ensure!(
        heard
            .iter()
            .any(|line| line.starts_with("STATUS=observing; executors alive: 0")),
        "{heard:?}"
    );
    manager.wait_alive()?;
    docker.restart()?;
    let before = heard.len();
    manager.wait("a status without Docker", |heard| {
        let mut later = heard.iter().skip(before);
        later.any(|line| line.starts_with("STATUS=") && !line.contains("Docker"))
    })?;

    // As systemd takes a reload: its beginning, with a time, and its end, whatever
    // came of it.
    for options in ["mode = \"enforce\"", "mode = \"nonsense\""] {
        let before = manager.heard()?.len();
        configure(&scratch, &docker.socket(), &agents, options)?;
        watcher.signal(Signal::HUP)?;
        let heard = manager.wait("the end of a reload", |heard| {
            heard[before..].iter().any(|line| line == "READY=1")
        })?;
        let told = |line: &String| {
            line.contains("READY") || line.contains("RELOADING") || line.contains("USEC")
        };
        let told: Vec<&String> = heard[before..].iter().filter(|line| told(line)).collect();
        let [begins, when, ends] = told[..] else {
            bail!("{told:?}");
        };
        ensure!(begins == "RELOADING=1" && ends == "READY=1", "{told:?}");
        let when = when.strip_prefix("MONOTONIC_USEC=").context("a time")?;
        let now = clock_gettime(ClockId::Monotonic).tv_sec;
        let at: i64 = when.parse::<i64>()? / 1_000_000;
        ensure!((now - 600..=now).contains(&at), "{at} is not before {now}");
    }
    manager.wait_status("cleaning up; ")?;
    manager.wait_alive()?;

    let status = watcher.stop()?;
    ensure!(status.success(), "{status}");
    let heard = manager.heard()?;
    let ready = heard.iter().filter(|line| *line == "READY=1").count();
    let stopping = heard.iter().filter(|line| *line == "STOPPING=1").count();
    ensure!(ready == 3 && stopping == 1, "{heard:?}");
    Ok(())
}

/// A loop that stands still gives no sign of life: the manager would end it.
#[test]
fn a_daemon_that_hangs_is_silent() -> Result<()> {
    let scratch = Scratch::new("supervisor-hang")?;
    let (manager, name) = Manager::new(&scratch)?;
    let dir = scratch.path();
    let agent = AgentPlace::nowhere(&scratch);
    // For somebody else: its parent's, say.
    let meant_for_others = [
        ("NOTIFY_SOCKET", name.clone()),
        ("WATCHDOG_USEC", "200000".to_owned()),
        ("WATCHDOG_PID", "1".to_owned()),
    ];
    let nowhere = dir.join("docker.sock");
    let agents = [agent];
    let watcher = Watcher::spawn_in(&scratch, &nowhere, &agents, "", &meant_for_others)?;
    manager.wait_status("Docker is not there")?;
    wait::try_until(LIMIT, "its second look, two seconds on", || {
        Ok((watcher.said("surveyed")?.len() >= 2).then_some(()))
    })?;
    ensure!(watcher.stop()?.success(), "it was not stopped cleanly");
    ensure!(manager.signs_of_life()? == 0, "{:?}", manager.heard()?);

    let watched = &meant_for_others[..2];
    let watcher = Watcher::spawn_in(&scratch, &nowhere, &agents, "", watched)?;
    manager.wait_alive()?;
    watcher.signal(Signal::STOP)?;
    wait::try_until(LIMIT, "all its threads to stand still", || {
        for task in fs::read_dir(format!("/proc/{}/task", watcher.pid()))? {
            if !fs::read_to_string(task?.path().join("stat"))?.contains(") T ") {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    let before = manager.signs_of_life()?;
    wait::holds(Duration::from_secs(1), "silent", || {
        manager.signs_of_life().is_ok_and(|now| now == before)
    })?;
    watcher.signal(Signal::CONT)?;
    manager.wait_alive()?;
    ensure!(watcher.stop()?.success(), "it was not stopped cleanly");
    Ok(())
}
