//! Processes as seen in `/proc`: identity that survives PID reuse, environment,
//! children, and signals that can only reach the process they were meant for.
//!
//! `/proc` is asked about *living* processes only: on cgroup v1 it denies an
//! exiting task's cgroup (architecture rule 1), and a PID alone may be reused.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;

use procfs::FromRead as _;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel's clock ticks per second in `/proc` (USER_HZ), fixed on Linux.
const NANOS_PER_TICK: u64 = 1_000_000_000 / 100;

/// One process for as long as it lives: its PID and when it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Proc {
    pub pid: u32,
    /// Start time since boot in clock ticks (10 ms), field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
}

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub proc: Proc,
    pub ppid: u32,
    pub session: u32,
    /// Zombie or dead, with all of its threads: exited, at most not yet reaped.
    pub ended: bool,
}

impl Proc {
    /// The process that has this PID now; `None` if there is none, or none that
    /// can be looked at.
    pub fn of(pid: u32) -> Option<Self> {
        stat(pid).ok().flatten().map(|stat| stat.proc)
    }

    /// The process that a kernel event is about.
    pub fn of_event(tgid: u32, start_boottime_ns: u64) -> Self {
        Self {
            pid: tgid,
            start_ticks: start_boottime_ns / NANOS_PER_TICK,
        }
    }

    /// Whether exactly this process still runs. A zombie does not. What cannot be
    /// looked at (no descriptor left, say) counts as running: never as proof of a
    /// death.
    pub fn is_alive(self) -> bool {
        self.runs().unwrap_or(true)
    }

    fn runs(self) -> io::Result<bool> {
        Ok(stat(self.pid)?.is_some_and(|stat| stat.proc == self && !stat.ended))
    }

    /// Whether a kernel event with this thread group and start time is about
    /// this process.
    pub fn matches(self, tgid: u32, start_boottime_ns: u64) -> bool {
        self == Self::of_event(tgid, start_boottime_ns)
    }

    /// A descriptor that becomes readable when exactly this process has ended.
    /// `Ok(None)`: it has ended already.
    pub fn pidfd(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Between reading the PID and opening it, it may have been reused.
            Ok(fd) => Ok(self.runs()?.then_some(fd)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for its end, without a look at it meanwhile. An error: that cannot be had of
    /// this kernel, or of the descriptors that are left.
    pub async fn end(self) -> io::Result<()> {
        let Some(fd) = self.pidfd()? else {
            return Ok(());
        };
        // SAFETY: an OwnedFd keeps its descriptor, never changes it, and closes it last.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        fd.readable().await.map(drop)
    }

    /// As [`signal_if`](Self::signal_if), with SIGKILL.
    pub fn kill_if(self, still: impl FnOnce() -> bool) -> io::Result<bool> {
        self.signal_if(Signal::KILL, still)
    }

    /// Sends a signal to this process if `still` holds after it was pinned.
    /// Returns whether it was sent.
    ///
    /// Without pidfds (before Linux 5.3) it is looked at right before the signal
    /// instead: to hit another one, the kernel would have to go through all of its
    /// PIDs between two system calls.
    pub fn signal_if(self, signal: Signal, still: impl FnOnce() -> bool) -> io::Result<bool> {
        let pinned = match self.pidfd() {
            Ok(Some(fd)) => Some(fd),
            Ok(None) => return Ok(false),
            Err(error) if has_no_pidfds(&error) => None,
            Err(error) => return Err(error),
        };
        if !still() {
            return Ok(false);
        }
        let sent = match pinned {
            Some(fd) => pidfd_send_signal(&fd, signal),
            None => match i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
                Some(pid) if self.runs()? => kill_process(pid, signal),
                _ => return Ok(false),
            },
        };
        match sent {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// When it was started, in wall-clock seconds since the epoch.
    pub fn started_at(self) -> f64 {
        let now_boot = clock_ns(rustix::time::ClockId::Boottime);
        let age = now_boot.saturating_sub(self.start_ticks * NANOS_PER_TICK);
        unix_seconds() - age as f64 / 1e9
    }
}

/// Whether processes can be watched by pidfd; if not, why.
pub fn pidfds_work() -> io::Result<()> {
    pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    Ok(())
}

/// Whether a pidfd could not be had because the kernel has none (before Linux 5.3),
/// or a filter of system calls refuses them as if it had none.
pub fn has_no_pidfds(error: &io::Error) -> bool {
    [rustix::io::Errno::NOSYS, rustix::io::Errno::PERM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// `Ok(None)`: no such process. An error says nothing about the process.
pub fn stat(pid: u32) -> io::Result<Option<Stat>> {
    let bytes = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(bytes) => bytes,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let stat = procfs::process::Stat::from_read(bytes.as_slice()).map_err(io::Error::other)?;
    Ok(Some(Stat {
        proc: Proc {
            pid,
            start_ticks: stat.starttime,
        },
        ppid: u32::try_from(stat.ppid).unwrap_or(0),
        session: u32::try_from(stat.session).unwrap_or(0),
        // The state is the first thread's, which is a zombie, too, while others run on.
        ended: match stat.state {
            'Z' => stat.num_threads <= 1,
            state => matches!(state, 'X' | 'x'),
        },
    }))
}

/// Whether a file in `/proc` could not be had because its process is gone:
/// opening says ENOENT then, reading ESRCH.
pub fn is_gone(error: &io::Error) -> bool {
    [rustix::io::Errno::NOENT, rustix::io::Errno::SRCH]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// The processes of a session that run now.
pub fn session_members(session: u32) -> io::Result<Vec<u32>> {
    let mut members = Vec::new();
    for pid in all()? {
        if stat(pid)?.is_some_and(|stat| stat.session == session && !stat.ended) {
            members.push(pid);
        }
    }
    Ok(members)
}

/// The environment the process was started with. Values may be any bytes.
pub fn environ(pid: u32) -> io::Result<HashMap<OsString, OsString>> {
    let bytes = fs::read(format!("/proc/{pid}/environ"))?;
    Ok(parse_environ(&bytes))
}

fn parse_environ(bytes: &[u8]) -> HashMap<OsString, OsString> {
    bytes
        .split(|byte| *byte == 0)
        .filter_map(|entry| {
            let at = entry.iter().position(|byte| *byte == b'=')?;
            Some((
                OsString::from_vec(entry[..at].to_vec()),
                OsString::from_vec(entry[at + 1..].to_vec()),
            ))
        })
        // The first of two equal names wins, as it does for getenv(3).
        .fold(HashMap::new(), |mut map, (name, value)| {
            map.entry(name).or_insert(value);
            map
        })
}

/// The arguments the process was started with.
pub fn arguments(pid: u32) -> io::Result<Vec<OsString>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline"))?;
    Ok(bytes
        .split(|byte| *byte == 0)
        .map(|argument| OsString::from_vec(argument.to_vec()))
        .collect())
}

/// The children of every thread of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for task in tasks.flatten() {
        match fs::read_to_string(task.path().join("children")) {
            Ok(text) => found.extend(
                text.split_ascii_whitespace()
                    .filter_map(|c| c.parse::<u32>().ok()),
            ),
            // A kernel without CONFIG_PROC_CHILDREN: look at every process.
            Err(_) => {
                let is_child = |child: &u32| {
                    stat(*child).is_ok_and(|stat| stat.is_some_and(|s| s.ppid == pid))
                };
                return all()
                    .unwrap_or_default()
                    .into_iter()
                    .filter(is_child)
                    .collect();
            }
        }
    }
    found
}

/// Every PID of the host now.
pub fn all() -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok()),
        );
    }
    Ok(pids)
}

/// Whether any process of the host sits in a cgroup of this container, or beneath
/// one: Docker names them `<id>` or, in systemd's manner, `docker-<id>.scope`.
pub fn sits_in_cgroup_named(id: &str) -> io::Result<bool> {
    for pid in all()? {
        match fs::read_to_string(format!("/proc/{pid}/cgroup")) {
            Ok(cgroups) if cgroups.contains(id) => return Ok(true),
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// CLOCK_MONOTONIC in nanoseconds: the clock of `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    clock_ns(rustix::time::ClockId::Monotonic)
}

fn clock_ns(clock: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Wall-clock seconds since the epoch.
pub fn unix_seconds() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_has_an_identity() {
        let me = Proc::of(std::process::id()).expect("own stat");
        assert!(me.is_alive());
        assert!(me.pidfd().expect("pidfd_open").is_some());
        assert!(me.matches(me.pid, me.start_ticks * NANOS_PER_TICK + 1));
        assert!(!me.matches(me.pid, (me.start_ticks + 1) * NANOS_PER_TICK));
        assert!((me.started_at() - unix_seconds()).abs() < 86_400.0);
    }

    #[test]
    fn another_start_time_is_another_process() {
        let me = Proc::of(std::process::id()).expect("own stat");
        let other = Proc {
            start_ticks: me.start_ticks + 1,
            ..me
        };
        assert!(!other.is_alive());
        assert!(other.pidfd().expect("pidfd_open").is_none());
    }

    #[test]
    fn a_zombie_is_not_alive_and_a_child_is_found() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep");
        let proc = Proc::of(child.id()).expect("child");
        assert!(children(std::process::id()).contains(&child.id()));
        assert!(proc.kill_if(|| true).expect("kill"));
        // Unreaped until wait(): a zombie by the time its pidfd is readable.
        let fd = pidfd_open(
            Pid::from_raw(child.id() as i32).expect("pid"),
            PidfdFlags::empty(),
        )
        .expect("pidfd of a zombie");
        let mut poll = [rustix::event::PollFd::new(
            &fd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut poll, None).expect("poll");
        assert!(!proc.is_alive());
        child.wait().expect("wait");
    }

    #[test]
    fn out_of_descriptors_nobody_counts_as_dead() {
        // In a process of its own: the limit would hit the other tests.
        if std::env::var_os("WITHOUT_DESCRIPTORS").is_none() {
            let status = std::process::Command::new(std::env::current_exe().expect("path"))
                .args([
                    "--exact",
                    "process::tests::out_of_descriptors_nobody_counts_as_dead",
                ])
                .env("WITHOUT_DESCRIPTORS", "1")
                .stdout(std::process::Stdio::null())
                .status()
                .expect("run");
            assert!(status.success());
            return;
        }
        let me = Proc::of(std::process::id()).expect("own stat");
        let mut all = Vec::new();
        while let Ok(file) = fs::File::open("/dev/null") {
            all.push(file);
        }
        assert!(stat(me.pid).is_err());
        assert!(me.is_alive());
        assert!(me.pidfd().is_err());
        assert!(session_members(me.pid).is_err());
        // With one descriptor for the pidfd and none to look at it.
        all.pop();
        assert!(me.pidfd().is_err());
    }

    #[test]
    fn environ_keeps_any_bytes_and_the_first_of_two() {
        let env = parse_environ(b"A=1\0B=x=y\0A=2\0=odd\0\xff=\xfe\0none\0");
        assert_eq!(
            env.get(std::ffi::OsStr::new("A")).map(OsString::as_os_str),
            Some("1".as_ref())
        );
        assert_eq!(
            env.get(std::ffi::OsStr::new("B")).map(OsString::as_os_str),
            Some("x=y".as_ref())
        );
        assert_eq!(env.len(), 4);
    }
}
