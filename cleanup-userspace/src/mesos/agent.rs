//! Whether an agent lives, is recovering, or is gone.
//!
//! A living agent owns its containers: what it still has to remove, we must not
//! (architecture rule 5). So it counts as alive until everything that is known of
//! it says otherwise, for [`ABSENT_AFTER`] without a break. What is known: the
//! processes that were seen to be the parents of its launcher helpers, processes
//! that are called like an agent and do not name another work directory, and
//! whoever listens on the port it checkpointed.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use prost::Message as _;

use super::AgentDirs;
use super::discover::{agent_flag, is_agent_process, same_directory};
use crate::process::{self, Proc};

/// How long every sign of an agent must be missing before it counts as absent.
pub const ABSENT_AFTER: Duration = Duration::from_secs(5);

/// What an agent is doing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// It owns its containers.
    Alive,
    /// It was started and has not finished its recovery: nothing may be removed
    /// under its eyes, a vanished cgroup can end it.
    Recovering,
    /// Proven to be gone.
    Absent,
}

/// `meta/slaves/latest/slave.info`, as far as it matters here
/// (include/mesos/mesos.proto, the same from 1.0 to 1.11).
#[derive(Clone, PartialEq, prost::Message)]
struct SlaveInfo {
    #[prost(int32, optional, tag = "8")]
    port: Option<i32>,
}

/// Follows one agent.
#[derive(Debug)]
pub struct AgentWatch {
    dirs: AgentDirs,
    /// Processes seen to be this agent.
    known: HashSet<Proc>,
    /// Processes of it that were seen to have finished their recovery.
    recovered: HashSet<Proc>,
    /// Those by which the last look took it to be alive.
    alive: Vec<Proc>,
    /// How long every sign of it has been missing, as far as anybody looked; `None`: the
    /// last look found one.
    silent: Option<Duration>,
    looked: Option<Instant>,
}

/// By what an agent was taken to be what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentSign {
    /// This process of it is the newest that lives.
    Process(Proc),
    /// Every sign of it is missing, now or for long enough.
    Silence,
    /// Nothing proves that it is gone.
    Doubt,
}

/// What one look found.
#[derive(Debug)]
enum Look {
    /// These, or nothing that proves the contrary.
    Alive(Vec<Proc>),
    /// Every sign of it is missing.
    Silence,
}

/// A pause between two looks counts for no more than this: a silence that nobody
/// listened to proves nothing.
const LONGEST_BREAK: Duration = Duration::from_secs(1);

impl AgentWatch {
    pub fn new(dirs: AgentDirs) -> Self {
        Self {
            dirs,
            known: HashSet::new(),
            recovered: HashSet::new(),
            alive: Vec::new(),
            silent: None,
            looked: None,
        }
    }

    /// A living launcher helper has this parent: the agent that started it,
    /// unless that is gone and the helper was adopted. Only a parent that is
    /// called like an agent, or listens where the agent does, is believed.
    pub fn learn(&mut self, parent: Proc) {
        let listens = || {
            self.checkpointed_port()
                .is_some_and(|port| listeners(port, &[parent.pid]).contains(&parent))
        };
        if parent.pid > 1 && (is_agent_process(parent.pid) || listens()) {
            self.known.insert(parent);
            // Helpers are started after the recovery only.
            self.recovered.insert(parent);
        }
    }

    /// Reads much of `/proc` where the agent is not the process that it was: milliseconds
    /// on a busy host. The kernel's tables of sockets alone take some.
    pub fn state(&mut self, now: Instant) -> AgentState {
        let since_last = self
            .looked
            .replace(now)
            .map_or(Duration::ZERO, |last| now.duration_since(last));
        match self.look() {
            Look::Alive(processes) => {
                self.silent = None;
                self.alive = processes;
                self.alive_or_recovering()
            }
            Look::Silence => {
                self.alive.clear();
                let silent = self.silent.map_or(Duration::ZERO, |silent| {
                    silent + since_last.min(LONGEST_BREAK)
                });
                self.silent = Some(silent);
                if silent >= ABSENT_AFTER {
                    AgentState::Absent
                } else {
                    AgentState::Alive
                }
            }
        }
    }

    /// By what the last look took it to be what it is.
    pub fn sign(&self) -> AgentSign {
        match (self.newest(), self.silent) {
            (Some(process), _) => AgentSign::Process(process),
            (None, Some(_)) => AgentSign::Silence,
            (None, None) => AgentSign::Doubt,
        }
    }

    fn newest(&self) -> Option<Proc> {
        self.alive
            .iter()
            .copied()
            .max_by_key(|proc| proc.start_ticks)
    }

    fn look(&self) -> Look {
        let known = self.known.iter().copied();
        let mut alive: Vec<Proc> = known.filter(|proc| proc.is_alive()).collect();
        if !alive.is_empty() {
            return Look::Alive(alive);
        }
        let port = self.checkpointed_port();
        // What cannot be looked at may well be there.
        let listening = port.map(|port| is_listened_to(port).unwrap_or(true));
        let Ok(everybody) = process::all() else {
            return Look::Alive(Vec::new());
        };
        alive = self.lookalikes(&everybody);
        if alive.is_empty() && listening == Some(true) {
            alive = port
                .map(|port| listeners(port, &everybody))
                .unwrap_or_default();
        }
        // Without any way to tell, it counts as alive.
        let can_tell = !self.known.is_empty() || port.is_some();
        if !alive.is_empty() || listening == Some(true) || !can_tell {
            Look::Alive(alive)
        } else {
            Look::Silence
        }
    }

    fn alive_or_recovering(&mut self) -> AgentState {
        let Some(newest) = self.newest() else {
            return AgentState::Alive;
        };
        if self.recovered.contains(&newest) {
            return AgentState::Alive;
        }
        // The last thing that a recovery does is to write this file.
        let written = fs::metadata(self.dirs.work_dir.join("meta/boot_id"))
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        // A start time is exact to one tick of 10 ms. A file from the future was
        // written before the clock was set back: nobody knows how long before.
        let is_of_this_life = |time: Duration| {
            let time = time.as_secs_f64();
            time + 0.02 >= newest.started_at() && time <= process::unix_seconds() + 1.0
        };
        if written.is_some_and(is_of_this_life) {
            self.recovered.insert(newest);
            return AgentState::Alive;
        }
        AgentState::Recovering
    }

    /// Processes that are called like an agent and do not name another work
    /// directory.
    fn lookalikes(&self, among: &[u32]) -> Vec<Proc> {
        among
            .iter()
            .copied()
            .filter(|pid| is_agent_process(*pid))
            .filter(|pid| {
                agent_flag(*pid, "work_dir").is_none_or(|dir| same_place(&dir, &self.dirs.work_dir))
            })
            .filter_map(Proc::of)
            .filter(|proc| proc.is_alive())
            .collect()
    }

    fn checkpointed_port(&self) -> Option<u16> {
        let bytes = read_small(&self.dirs.work_dir.join("meta/slaves/latest/slave.info")).ok()?;
        // A record: its length in four bytes, then the message.
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
        let message = bytes.get(4..)?.get(..usize::try_from(length).ok()?)?;
        let port = SlaveInfo::decode(message).ok()?.port.unwrap_or(5051);
        u16::try_from(port).ok().filter(|port| *port != 0)
    }
}

/// Whether a directory that an agent names is ours; it may see it under another
/// name (in a container).
fn same_place(theirs: &Path, ours: &Path) -> bool {
    theirs == ours
        || same_directory(theirs, ours)
        || ours.ends_with(theirs.strip_prefix("/").unwrap_or(theirs))
}

/// Reads a file that has no reason to be large.
fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(1 << 20)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn listening_sockets(port: u16) -> io::Result<Vec<u64>> {
    let listens = |entry: &procfs::net::TcpNetEntry| {
        entry.state == procfs::net::TcpState::Listen && entry.local_address.port() == port
    };
    let mut inodes = Vec::new();
    let v4 = procfs::net::tcp().map_err(io::Error::other)?;
    // A host without IPv6 has no such file.
    let v6 = procfs::net::tcp6().unwrap_or_default();
    inodes.extend(
        v4.iter()
            .chain(&v6)
            .filter(|entry| listens(entry))
            .map(|entry| entry.inode),
    );
    Ok(inodes)
}

fn is_listened_to(port: u16) -> io::Result<bool> {
    Ok(!listening_sockets(port)?.is_empty())
}

/// Those of the processes that hold a listening socket on this port.
fn listeners(port: u16, among: &[u32]) -> Vec<Proc> {
    let sockets = listening_sockets(port).unwrap_or_default();
    let names: Vec<PathBuf> = sockets
        .iter()
        .map(|inode| PathBuf::from(format!("socket:[{inode}]")))
        .collect();
    let holds = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        descriptors
            .map(|fd| fs::read_link(fd.path()))
            .any(|target| target.is_ok_and(|target| names.contains(&target)))
    };
    among
        .iter()
        .filter(|pid| holds(pid))
        .filter_map(|pid| Proc::of(*pid))
        .collect()
}

/// The base name of a path as text, for comparison with names of programs.
pub(super) fn base_name(path: &OsStr) -> &[u8] {
    Path::new(path)
        .file_name()
        .map_or(b"", |name| name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::CgroupsRoot;

    fn watch(work_dir: &Path) -> AgentWatch {
        AgentWatch::new(AgentDirs {
            work_dir: work_dir.to_owned(),
            runtime_dir: work_dir.join("run"),
            cgroups_root: CgroupsRoot::default(),
        })
    }

    fn checkpoint_port(work_dir: &Path, port: u16) {
        let dir = work_dir.join("meta/slaves/latest");
        fs::create_dir_all(&dir).unwrap();
        let message = SlaveInfo {
            port: Some(i32::from(port)),
        }
        .encode_to_vec();
        let mut record = u32::try_from(message.len()).unwrap().to_ne_bytes().to_vec();
        record.extend(message);
        fs::write(dir.join("slave.info"), record).unwrap();
    }

    #[test]
    fn without_any_evidence_an_agent_is_alive() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = watch(dir.path());
        assert_ne!(watch.state(Instant::now()), AgentState::Absent);
    }

    /// Looks every half second.
    fn looks(watch: &mut AgentWatch, from: Instant, count: u32) -> Vec<AgentState> {
        (1..=count)
            .map(|n| watch.state(from + Duration::from_millis(500) * n))
            .collect()
    }

    #[test]
    fn absent_only_after_a_while_of_silence() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        checkpoint_port(dir.path(), listener.local_addr().unwrap().port());
        let mut watch = watch(dir.path());
        let me = Proc::of(std::process::id()).unwrap();
        watch.learn(me);
        assert!(watch.known.contains(&me), "it listens where the agent does");
        // Never was: the same PID with another start time.
        watch.known = HashSet::from([Proc {
            start_ticks: me.start_ticks + 1,
            ..me
        }]);
        drop(listener);
        let start = Instant::now();
        assert_eq!(watch.state(start), AgentState::Alive);
        assert_eq!(looks(&mut watch, start, 9), vec![AgentState::Alive; 9]);
        assert_eq!(watch.state(start + ABSENT_AFTER), AgentState::Absent);
    }

    #[test]
    fn a_silence_that_nobody_listened_to_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = watch(dir.path());
        let me = Proc::of(std::process::id()).unwrap();
        watch.known.insert(Proc {
            start_ticks: me.start_ticks + 1,
            ..me
        });
        let start = Instant::now();
        assert_eq!(watch.state(start), AgentState::Alive);
        assert_eq!(
            watch.state(start + Duration::from_secs(3600)),
            AgentState::Alive
        );
    }

    #[test]
    fn a_silence_begins_with_the_first_look_that_heard_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = watch(dir.path());
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let agent = Proc::of(child.id()).unwrap();
        watch.known.insert(agent);
        let start = Instant::now();
        assert_eq!(watch.state(start), AgentState::Recovering);
        assert_eq!(watch.sign(), AgentSign::Process(agent));
        child.kill().unwrap();
        child.wait().unwrap();
        // An hour in which it lived, and then silence for all but half a second of it.
        let later = start + Duration::from_secs(3600);
        let short = looks(&mut watch, later, 10);
        assert_eq!(short, vec![AgentState::Alive; 10]);
        assert_eq!(watch.sign(), AgentSign::Silence);
        let long = watch.state(later + Duration::from_millis(5_500));
        assert_eq!(long, AgentState::Absent);
    }

    #[test]
    fn who_adopts_a_helper_is_no_agent() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = watch(dir.path());
        watch.learn(Proc::of(std::process::id()).unwrap());
        watch.learn(Proc::of(1).unwrap());
        assert!(watch.known.is_empty());
    }

    #[test]
    fn a_listener_on_the_checkpointed_port_is_an_agent() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        checkpoint_port(dir.path(), listener.local_addr().unwrap().port());
        let mut watch = watch(dir.path());
        let start = Instant::now();
        // This test process started before it "wrote" a boot id: recovering.
        assert_eq!(watch.state(start), AgentState::Recovering);
        fs::write(dir.path().join("meta/boot_id"), "x").unwrap();
        assert_eq!(watch.state(start), AgentState::Alive);
        assert_eq!(looks(&mut watch, start, 20), vec![AgentState::Alive; 20]);
        drop(listener);
        let later = start + Duration::from_secs(10);
        assert_eq!(
            looks(&mut watch, later, 12).last(),
            Some(&AgentState::Absent)
        );
    }

    #[test]
    fn a_file_from_the_future_ends_no_recovery() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        checkpoint_port(dir.path(), listener.local_addr().unwrap().port());
        let file = fs::File::create(dir.path().join("meta/boot_id")).unwrap();
        let mut watch = watch(dir.path());
        let now = std::time::SystemTime::now();
        file.set_modified(now + Duration::from_secs(3600)).unwrap();
        assert_eq!(watch.state(Instant::now()), AgentState::Recovering);
        file.set_modified(now).unwrap();
        assert_eq!(watch.state(Instant::now()), AgentState::Alive);
    }

    #[test]
    fn garbage_in_the_checkpoint_is_no_evidence() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("meta/slaves/latest")).unwrap();
        for garbage in [
            &b""[..],
            b"\x01",
            b"\xff\xff\xff\xff",
            b"\x02\0\0\0\xff\xff",
        ] {
            fs::write(dir.path().join("meta/slaves/latest/slave.info"), garbage).unwrap();
            assert_eq!(watch(dir.path()).checkpointed_port(), None, "{garbage:?}");
        }
    }
}
