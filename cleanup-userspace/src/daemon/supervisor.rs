//! What a service manager is told (sd_notify(3)): that the daemon watches, what it
//! still misses, and that it is alive. Nothing is said where `NOTIFY_SOCKET` is not
//! set, which is anywhere but under a manager.
//!
//! Written out and not taken from a crate: those send with calls that block, and the
//! loop that drains the ring must not wait for whoever reads the other end.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use crate::case::printable;
use crate::config::Mode;
use crate::mesos::AgentState;
use crate::process::monotonic_ns;

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Supervisor {
    line: Option<Line>,
    /// How often it wants a sign of life: half of `WATCHDOG_USEC`.
    feed_every: Option<Duration>,
    said: Mutex<Said>,
}

#[derive(Debug)]
struct Line {
    socket: UnixDatagram,
    address: SocketAddr,
}

#[derive(Debug)]
struct Said {
    ready: Ready,
    status: String,
    fed: Option<Instant>,
    /// A failure was reported.
    complained: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    NotYet,
    /// It could not be sent: it is tried again.
    Owed,
    Said,
    /// Said; a reload began since, and its end has to be told in the same way.
    Reloading,
}

impl Supervisor {
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var_os(name);
        let line = variable("NOTIFY_SOCKET").and_then(|name| match Line::new(&name) {
            Ok(line) => Some(line),
            Err(error) => {
                tracing::warn!(
                    socket = %name.display(), %error,
                    "NOTIFY_SOCKET cannot be used: the service manager is told nothing"
                );
                None
            }
        });
        let text = |name| variable(name).and_then(|value| value.into_string().ok());
        let feed_every = feed_every(
            text("WATCHDOG_USEC").as_deref(),
            text("WATCHDOG_PID").as_deref(),
            std::process::id(),
        );
        Self::new(line, feed_every)
    }

    fn new(line: Option<Line>, feed_every: Option<Duration>) -> Self {
        Self {
            feed_every: feed_every.filter(|_| line.is_some()),
            line,
            said: Mutex::new(Said {
                ready: Ready::NotYet,
                status: String::new(),
                fed: None,
                complained: false,
            }),
        }
    }

    /// Does what a daemon that starts does: it runs, and may lack something.
    pub fn ready(&self, status: &str) {
        let mut said = self.said();
        if said.ready == Ready::NotYet {
            said.ready = Ready::Owed;
        }
        self.pay(&mut said);
        self.say_status(&mut said, status);
    }

    /// A reload begins: [`reloaded`](Self::reloaded) has to follow. Of one that begins
    /// before the daemon was ready nothing is told.
    pub fn reloading(&self) {
        let mut said = self.said();
        // systemd tells by the time which of two reloads it was.
        let usec = monotonic_ns() / 1_000;
        let message = format!("RELOADING=1\nMONOTONIC_USEC={usec}");
        if said.ready == Ready::Said && self.send(&mut said, &message) {
            said.ready = Ready::Reloading;
        }
    }

    /// A reload is over, whatever came of it.
    pub fn reloaded(&self) {
        let mut said = self.said();
        if said.ready == Ready::Reloading {
            said.ready = Ready::Owed;
        }
        self.pay(&mut said);
    }

    /// Says what the daemon is at, if that is news.
    pub fn status(&self, status: &str) {
        self.say_status(&mut self.said(), status);
    }

    /// To be called at least as often as [`longest_pause`](Self::longest_pause)
    /// says, and as often as one likes: by whoever's life is to be proven.
    pub fn alive(&self) {
        if self.line.is_none() {
            return;
        }
        let mut said = self.said();
        self.pay(&mut said);
        let Some(every) = self.feed_every else { return };
        // A call that is due by the clock must not come a moment too early to count.
        let soon_enough = every / 2;
        if said.fed.is_none_or(|fed| fed.elapsed() >= soon_enough)
            && self.send(&mut said, "WATCHDOG=1")
        {
            said.fed = Some(Instant::now());
        }
    }

    /// `None`: nobody waits for signs of life.
    pub fn longest_pause(&self) -> Option<Duration> {
        self.feed_every
    }

    pub fn stopping(&self) {
        self.send(&mut self.said(), "STOPPING=1");
    }

    /// Gives signs of life while a step of the start or the end takes its time. The
    /// steps have deadlines of their own.
    pub async fn feeding<T>(&self, work: impl Future<Output = T>) -> T {
        let Some(pause) = self.longest_pause() else {
            return work.await;
        };
        let mut tick = interval(pause);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = tick.tick() => self.alive(),
            }
        }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pay(&self, said: &mut Said) {
        if said.ready == Ready::Owed && self.send(said, "READY=1") {
            said.ready = Ready::Said;
        }
    }

    fn say_status(&self, said: &mut Said, status: &str) {
        if said.status != status && self.send(said, &format!("STATUS={status}")) {
            status.clone_into(&mut said.status);
        }
    }

    /// Whether it went through, or nobody listens.
    fn send(&self, said: &mut Said, message: &str) -> bool {
        let Some(line) = &self.line else { return true };
        match line.send(message) {
            Ok(()) => true,
            Err(error) => {
                if !std::mem::replace(&mut said.complained, true) {
                    tracing::warn!(%error, message, "the service manager cannot be told; trying on");
                }
                false
            }
        }
    }
}

impl Line {
    /// A path, or an abstract name with `@` for its first byte.
    fn new(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "it begins with neither / nor @",
                ));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address })
    }

    fn send(&self, message: &str) -> io::Result<()> {
        let Self { socket, address } = self;
        socket.send_to_addr(message.as_bytes(), address).map(|_| ())
    }
}

/// The status line: what is at hand, and what is missing.
pub fn standing<'a>(
    mode: Mode,
    live: usize,
    open: usize,
    docker_up: Option<bool>,
    agents: impl Iterator<Item = (&'a Path, AgentState)>,
) -> String {
    let mode = match mode {
        Mode::Observe => "observing",
        Mode::Enforce => "cleaning up",
    };
    let docker = match docker_up {
        Some(true) => None,
        Some(false) => Some("Docker is not there".to_owned()),
        None => Some("Docker has not answered yet".to_owned()),
    };
    let agents = agents.filter_map(|(work_dir, state)| {
        let state = match state {
            AgentState::Alive => return None,
            AgentState::Recovering => "recovers",
            AgentState::Absent => "is not there",
        };
        // No line end of somebody else's: each line is a message.
        let work_dir = printable(work_dir.as_os_str());
        Some(format!("the agent of {work_dir} {state}"))
    });
    let first = format!("{mode}; executors alive: {live}, open cases: {open}");
    let parts: Vec<String> = [first].into_iter().chain(docker).chain(agents).collect();
    parts.join("; ")
}

/// Half of the watchdog's time, if it is this process that is watched.
fn feed_every(usec: Option<&str>, pid: Option<&str>, own_pid: u32) -> Option<Duration> {
    let is_meant = pid.is_none_or(|pid| pid.parse() == Ok(own_pid));
    let usec: u64 = usec.filter(|_| is_meant)?.parse().ok()?;
    (usec > 0).then(|| Duration::from_micros(usec / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixDatagram, Line, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        (manager, Line::new(path.as_os_str()).unwrap(), dir)
    }

    fn heard(manager: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 512];
        std::iter::from_fn(|| {
            manager
                .recv(&mut buffer)
                .ok()
                .map(|len| buffer[..len].to_vec())
        })
        .map(|bytes| String::from_utf8(bytes).unwrap())
        .collect()
    }

    #[test]
    fn who_is_watched_and_how_often() {
        let secs = Duration::from_secs;
        assert_eq!(feed_every(Some("30000000"), None, 7), Some(secs(15)));
        assert_eq!(feed_every(Some("30000000"), Some("7"), 7), Some(secs(15)));
        for (usec, pid) in [
            (None, None),
            (Some("0"), None),
            (Some("soon"), None),
            (Some("30000000"), Some("8")),
            (Some("30000000"), Some("x")),
        ] {
            assert_eq!(feed_every(usec, pid, 7), None, "{usec:?} {pid:?}");
        }
    }

    #[test]
    fn the_status_names_what_is_missing() {
        use AgentState::{Absent, Alive, Recovering};
        let all = [
            (Path::new("/a"), Alive),
            (Path::new("/b\nREADY=1"), Absent),
            (Path::new("/c"), Recovering),
        ];
        assert_eq!(
            standing(Mode::Enforce, 3, 1, Some(true), all[..1].iter().copied()),
            "cleaning up; executors alive: 3, open cases: 1"
        );
        let line = standing(Mode::Observe, 0, 0, Some(false), all.into_iter());
        assert!(!line.contains('\n'), "{line:?}");
        assert!(
            line.contains("; Docker is not there; the agent of /b"),
            "{line}"
        );
        assert!(
            line.ends_with("is not there; the agent of /c recovers"),
            "{line}"
        );
        let line = standing(Mode::Observe, 0, 0, None, [].into_iter());
        assert!(line.ends_with("Docker has not answered yet"), "{line}");
    }

    #[test]
    fn only_news_are_told() {
        let (manager, line, _dir) = pair();
        let supervisor = Supervisor::new(Some(line), Some(Duration::from_secs(3600)));
        supervisor.alive();
        supervisor.ready("a");
        supervisor.ready("a");
        supervisor.alive();
        supervisor.status("b");
        supervisor.status("b");
        supervisor.stopping();
        assert_eq!(
            heard(&manager),
            [
                "WATCHDOG=1",
                "READY=1",
                "STATUS=a",
                "STATUS=b",
                "STOPPING=1"
            ]
        );
    }

    #[test]
    fn a_reload_begins_and_ends_once_the_daemon_is_ready() {
        let (manager, line, _dir) = pair();
        let supervisor = Supervisor::new(Some(line), None);
        supervisor.reloading();
        supervisor.reloaded();
        assert_eq!(heard(&manager), [""; 0]);
        supervisor.ready("a");
        supervisor.reloading();
        // Its end is not told by a sign of life.
        supervisor.alive();
        supervisor.ready("a");
        let told = heard(&manager);
        assert_eq!(told[..2], ["READY=1", "STATUS=a"]);
        assert!(
            told.len() == 3 && told[2].starts_with("RELOADING=1\nMONOTONIC_USEC="),
            "{told:?}"
        );
        supervisor.reloaded();
        supervisor.reloaded();
        assert_eq!(heard(&manager), ["READY=1"]);
    }

    #[test]
    fn without_a_watchdog_no_sign_of_life() {
        let (manager, line, _dir) = pair();
        let supervisor = Supervisor::new(Some(line), None);
        supervisor.alive();
        assert_eq!(supervisor.longest_pause(), None);
        assert_eq!(heard(&manager), [""; 0]);
        // Nobody there: nothing happens.
        let nobody = Supervisor::new(None, Some(Duration::ZERO));
        nobody.ready("a");
        nobody.alive();
        assert_eq!(nobody.longest_pause(), None);
    }

    /// A manager that reads nothing must not hold up the loop, nor miss READY=1 for
    /// good.
    #[test]
    fn a_full_socket_is_not_waited_for() {
        let (manager, line, _dir) = pair();
        let supervisor = Supervisor::new(Some(line), None);
        let mut sent = 0;
        while supervisor.send(&mut supervisor.said(), "STATUS=flood") {
            sent += 1;
            assert!(sent < 1_000_000, "it never got full");
        }
        supervisor.ready("a");
        assert_eq!(supervisor.said().ready, Ready::Owed);
        assert_eq!(heard(&manager).len(), sent);
        supervisor.alive();
        supervisor.status("a");
        assert_eq!(heard(&manager), ["READY=1", "STATUS=a"]);
    }

    #[test]
    fn abstract_names_and_nonsense() {
        let name = format!("compose-cleanup-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        manager.set_nonblocking(true).unwrap();
        let line = Line::new(OsStr::new(&format!("@{name}"))).unwrap();
        Supervisor::new(Some(line), None).stopping();
        assert_eq!(heard(&manager), ["STOPPING=1"]);
        for name in ["", "notify", "vsock:2:1234"] {
            Line::new(OsStr::new(name)).unwrap_err();
        }
    }
}
