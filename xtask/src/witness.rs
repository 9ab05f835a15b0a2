//! An eye-witness that owes nothing to the daemon: it sees processes end and
//! directories vanish, and notes when.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use cleanup_tests::wait;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How closely directories are looked at: nothing tells when a cgroup goes.
const LOOK: Duration = Duration::from_millis(1);
/// Processes tell by themselves; this is how soon [`Witness::finish`] is heard.
const IDLE: Duration = Duration::from_millis(20);

/// A thread that watches until it has seen everything, or is told to finish.
#[derive(Debug)]
pub(crate) struct Witness {
    finish: Arc<AtomicBool>,
    thread: JoinHandle<Result<Sightings, Errno>>,
}

/// When each process had ended and each directory was gone, in the order in
/// which they were given; `None` for those that are still there.
#[derive(Debug, Clone)]
pub(crate) struct Sightings {
    pub(crate) processes: Vec<Option<Instant>>,
    pub(crate) directories: Vec<Option<Instant>>,
}

impl Sightings {
    fn is_complete(&self) -> bool {
        self.processes
            .iter()
            .chain(&self.directories)
            .all(Option::is_some)
    }
}

impl Witness {
    pub(crate) fn watch(pids: &[i32], directories: Vec<PathBuf>) -> Result<Self> {
        let processes = pids
            .iter()
            .map(|&pid| {
                let pid = Pid::from_raw(pid).context("a pid is above 0")?;
                pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")
            })
            .collect::<Result<Vec<_>>>()?;
        let finish = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&finish);
        let thread = thread::spawn(move || look(&processes, &directories, &told));
        Ok(Self { finish, thread })
    }

    /// Waits until everything was seen, for no longer than `limit`.
    pub(crate) fn wait_all(&self, limit: Duration) -> Result<()> {
        wait::until(limit, "the last process to end", || {
            self.thread.is_finished().then_some(())
        })
    }

    pub(crate) fn finish(self) -> Result<Sightings> {
        self.finish.store(true, Ordering::Relaxed);
        let seen = self
            .thread
            .join()
            .map_err(|_| anyhow!("the witness panicked"))?;
        seen.context("poll")
    }
}

fn look(
    processes: &[OwnedFd],
    directories: &[PathBuf],
    finish: &AtomicBool,
) -> Result<Sightings, Errno> {
    let mut seen = Sightings {
        processes: vec![None; processes.len()],
        directories: vec![None; directories.len()],
    };
    while !seen.is_complete() {
        // A last look after the word to finish: what had happened by then counts.
        let last = finish.load(Ordering::Relaxed);
        let pause = match (last, directories.is_empty()) {
            (true, _) => Duration::ZERO,
            (false, true) => IDLE,
            (false, false) => LOOK,
        };
        note_ends(processes, &mut seen.processes, pause)?;
        for (directory, gone) in directories.iter().zip(&mut seen.directories) {
            if gone.is_none() && !directory.exists() {
                *gone = Some(Instant::now());
            }
        }
        if last {
            break;
        }
    }
    Ok(seen)
}

/// Waits for one of the processes to end; a pidfd of one that has is readable.
fn note_ends(
    processes: &[OwnedFd],
    ended: &mut [Option<Instant>],
    pause: Duration,
) -> Result<(), Errno> {
    let waiting: Vec<usize> = (0..processes.len())
        .filter(|&at| ended[at].is_none())
        .collect();
    let mut polled: Vec<PollFd<'_>> = waiting
        .iter()
        .map(|&at| PollFd::new(&processes[at], PollFlags::IN))
        .collect();
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(pause.subsec_nanos()),
    };
    match poll(&mut polled, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error),
    }
    let now = Instant::now();
    for (at, polled) in waiting.into_iter().zip(&polled) {
        if !polled.revents().is_empty() {
            ended[at] = Some(now);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn ends_and_removals_are_seen_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let [first, stays] = ["first", "stays"].map(|name| dir.path().join(name));
        fs::create_dir(&first).unwrap();
        fs::create_dir(&stays).unwrap();
        let start = Instant::now();
        let mut children =
            ["0.1", "60"].map(|time| Command::new("sleep").arg(time).spawn().unwrap());
        let pids = children.each_ref().map(|child| child.id().cast_signed());

        let witness = Witness::watch(&pids, vec![first.clone(), stays]).unwrap();
        children[0].wait().unwrap();
        fs::remove_dir(first).unwrap();
        let seen = witness.finish().unwrap();
        children[1].kill().unwrap();
        children[1].wait().unwrap();

        let ended = seen.processes[0].expect("the first child ended");
        assert!(ended >= start + Duration::from_millis(100));
        assert!(seen.directories[0].expect("the directory is gone") >= ended);
        assert_eq!((seen.processes[1], seen.directories[1]), (None, None));
    }
}
