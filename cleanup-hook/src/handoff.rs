//! Handing a request over: one file, written and renamed. No lock, no fsync, no
//! process; nothing in here waits for anybody.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::{fs, io, process};

use crate::guard::say;
use crate::proto::Ids;
use crate::request::{Origin, content};

/// Beside the final name, in the same directory; readers skip it.
const TEMPORARY: &str = ".tmp-";
/// Nobody empties the inbox: do not fill the host's memory.
const MOST_PENDING: u64 = 16_384;
/// On tmpfs, what a directory's size grows by with each entry
/// (`BOGO_DIRENT_SIZE` in the kernel's mm/shmem.c).
const TMPFS_ENTRY: u64 = 20;
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// A short write or a signal; a regular file knows neither, in practice.
const MOST_WRITES: usize = 16;

/// What went wrong with the inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    System(&'static str, Errno),
    NotOurs,
    Full,
    Incomplete,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(operation, errno) => write!(f, "{operation}: {errno}"),
            Self::NotOurs => f.write_str("not owned by root, or writable by others"),
            Self::Full => write!(f, "{MOST_PENDING} requests lie there: nobody takes them"),
            Self::Incomplete => f.write_str("write: incomplete"),
        }
    }
}

/// Counts the requests and tells of failures, once.
#[derive(Debug)]
pub(crate) struct Handoff {
    count: AtomicU64,
    /// Since the last request that went through.
    lost: AtomicU64,
    told_of_bad_request: AtomicBool,
}

impl Handoff {
    pub(crate) const fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            told_of_bad_request: AtomicBool::new(false),
        }
    }

    /// Puts a request into the inbox, or a line on the log.
    pub(crate) fn hand_off(&self, inbox: &Path, mesos: &str, ids: &Ids) {
        let origin = Origin::now(self.count.fetch_add(1, Ordering::Relaxed), mesos);
        let content = match content(ids, &origin) {
            Ok(content) => content,
            Err(why) => return self.tell_of_bad_request(format_args!("{why}")),
        };
        match put(inbox, &origin.file_name(), content.as_bytes()) {
            Ok(()) => {
                let lost = self.lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    say(format_args!(
                        "{} takes requests again; lost meanwhile: {lost}",
                        inbox.display()
                    ));
                }
            }
            Err(failure) => {
                // Until one goes through, the first one is told.
                if self.lost.fetch_add(1, Ordering::Relaxed) == 0 {
                    say(format_args!(
                        "cannot tell the clean-up daemon of a dead executor, and will not repeat \
                         this until it can: {}: {failure}",
                        inbox.display()
                    ));
                }
            }
        }
    }

    /// An executor that no request can be written for.
    pub(crate) fn tell_of_bad_request(&self, why: fmt::Arguments<'_>) {
        if !self.told_of_bad_request.swap(true, Ordering::Relaxed) {
            say(format_args!(
                "ignored the end of an executor, as any further one of this kind without a word: {why}"
            ));
        }
    }
}

fn put(inbox: &Path, name: &str, content: &[u8]) -> Result<(), Failure> {
    let inbox = open_inbox(inbox)?;
    let inbox = inbox.as_fd();
    check(inbox)?;
    let temporary = format!("{TEMPORARY}{name}");
    let file = create(inbox, &temporary)?;
    let moved = write(file.as_fd(), content).and_then(|()| {
        fs::renameat(inbox, &temporary, inbox, name)
            .map_err(|errno| Failure::System("rename", errno))
    });
    if moved.is_err() {
        // What cannot be removed is removed by the daemon, by its name.
        let _ = fs::unlinkat(inbox, &temporary, AtFlags::empty());
    }
    moved
}

/// A directory by this very name: a link is not followed, a pipe not waited for.
fn open_inbox(inbox: &Path) -> Result<OwnedFd, Failure> {
    let flags =
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    fs::open(inbox, flags, Mode::empty()).map_err(|errno| Failure::System("open", errno))
}

fn check(inbox: BorrowedFd<'_>) -> Result<(), Failure> {
    let stat = fs::fstat(inbox).map_err(|errno| Failure::System("fstat", errno))?;
    let is_trusted = stat.st_uid == 0 || stat.st_uid == process::geteuid().as_raw();
    let others = Mode::WGRP | Mode::WOTH;
    if !is_trusted || Mode::from_raw_mode(stat.st_mode).intersects(others) {
        return Err(Failure::NotOurs);
    }
    let system = fs::fstatfs(inbox).map_err(|errno| Failure::System("fstatfs", errno))?;
    let is_tmpfs = u64::try_from(system.f_type).is_ok_and(|magic| magic == TMPFS_MAGIC);
    let entries = u64::try_from(stat.st_size).unwrap_or(0) / TMPFS_ENTRY;
    // `.` and `..` count.
    if is_tmpfs && entries >= MOST_PENDING + 2 {
        return Err(Failure::Full);
    }
    Ok(())
}

fn create(inbox: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Failure> {
    let flags = OFlags::WRONLY
        | OFlags::CREATE
        | OFlags::EXCL
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    fs::openat(inbox, name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| Failure::System("create", errno))
}

fn write(file: BorrowedFd<'_>, mut content: &[u8]) -> Result<(), Failure> {
    for _ in 0..MOST_WRITES {
        match io::write(file, content) {
            Ok(written) => content = content.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::System("write", errno)),
        }
        if content.is_empty() {
            return Ok(());
        }
    }
    Err(Failure::Incomplete)
}
