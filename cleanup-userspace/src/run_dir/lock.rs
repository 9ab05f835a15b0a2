//! One at a time: `watch` and `clean` never act on a host together.
//!
//! The lock is flock(2) on `daemon.lock` in the run directory: the kernel lets go
//! of it however its holder ends. The text in the file, `watch 1234 5678` (PID and
//! start time), is for messages and for the one question of who holds it; the lock
//! itself is the proof that somebody does. Words of a process that has ended say
//! nothing. The file is never removed by us: a lock on a file
//! without a name locks nobody out.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, fstat, openat, statat};

use super::open_private;
use crate::process::Proc;

const NAME: &str = "daemon.lock";
/// Longer than what any holder writes.
const LONGEST: u64 = 64;

/// Which command of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Watch,
    Clean,
}

impl Who {
    fn as_str(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Clean => "clean",
        }
    }
}

/// Who holds the lock, by its own words: `None` in the moment between the lock
/// and the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupant(Option<(Who, u32)>);

impl Occupant {
    pub fn who(self) -> Option<Who> {
        self.0.map(|(who, _)| who)
    }
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((who, pid)) => write!(f, "`compose-cleanup {}`, process {pid}", who.as_str()),
            None => f.write_str("another process of compose-cleanup"),
        }
    }
}

/// How an attempt to take the lock ended.
#[derive(Debug)]
pub enum Attempt {
    Taken(RunLock),
    Held(Occupant),
}

/// Held until it is dropped.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

/// The lock could neither be taken nor be found held.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot lock {path}: {error}; two cleaners must not act at once, so the run directory \
     (`run_dir`) has to be one that only root may write to"
)]
pub struct LockError {
    path: PathBuf,
    error: io::Error,
}

impl RunLock {
    /// Who is at work, if somebody is, by its own words. Takes nothing and makes
    /// nothing.
    pub fn occupant(run_dir: &Path) -> Option<Occupant> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(run_dir.join(NAME), flags, Mode::empty()).ok()?;
        let occupant = read(&mut File::from(file));
        occupant.0.is_some().then_some(occupant)
    }

    /// Takes the lock if nobody has it. Never waits.
    pub fn attempt(run_dir: &Path, who: Who) -> Result<Attempt, LockError> {
        attempt(run_dir, who).map_err(|error| LockError {
            path: run_dir.join(NAME),
            error,
        })
    }
}

fn attempt(run_dir: &Path, who: Who) -> io::Result<Attempt> {
    let dir = open_private(run_dir)?;
    loop {
        // NONBLOCK: whatever was put there must not hold anybody up.
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = File::from(openat(&dir, NAME, flags, Mode::RUSR | Mode::WUSR)?);
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Attempt::Held(read(&mut file))),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Somebody may have tidied the file away between its opening and its lock.
        let ours = fstat(&file)?;
        let named = match statat(&dir, NAME, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => named,
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        if (ours.st_dev, ours.st_ino) != (named.st_dev, named.st_ino) {
            continue;
        }
        // A full tmpfs takes no words; the lock holds without them.
        let _ = file
            .set_len(0)
            .and_then(|()| file.write_all(words(who).as_bytes()));
        return Ok(Attempt::Taken(RunLock { _file: file }));
    }
}

fn words(who: Who) -> String {
    let pid = std::process::id();
    let start = Proc::of(pid).map_or(0, |own| own.start_ticks);
    format!("{} {pid} {start}\n", who.as_str())
}

fn read(file: &mut File) -> Occupant {
    let mut text = String::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(LONGEST).read_to_string(&mut text));
    Occupant(read.ok().and_then(|_| parse(&text)))
}

fn parse(text: &str) -> Option<(Who, u32)> {
    let mut words = text.trim_end().split(' ');
    let name = words.next()?;
    let who = [Who::Watch, Who::Clean]
        .into_iter()
        .find(|known| known.as_str() == name)?;
    let proc = Proc {
        pid: words.next()?.parse().ok()?,
        start_ticks: words.next()?.parse().ok()?,
    };
    proc.is_alive().then_some((who, proc.pid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn take(dir: &Path, who: Who) -> Attempt {
        RunLock::attempt(dir, who).unwrap()
    }

    #[test]
    fn one_at_a_time_and_the_other_is_told_who() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("a/run");
        let Attempt::Taken(lock) = take(&run_dir, Who::Clean) else {
            panic!("nobody has it");
        };
        let Attempt::Held(occupant) = take(&run_dir, Who::Watch) else {
            panic!("it is held");
        };
        assert_eq!(occupant.who(), Some(Who::Clean));
        let said = occupant.to_string();
        assert!(
            said.contains("`compose-cleanup clean`")
                && said.contains(&std::process::id().to_string()),
            "{said}"
        );
        assert_eq!(RunLock::occupant(&run_dir), Some(occupant));
        drop(lock);
        assert!(matches!(take(&run_dir, Who::Watch), Attempt::Taken(_)));
        assert_eq!(RunLock::occupant(dir.path()), None);
    }

    #[test]
    fn words_of_the_dead_say_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let _lock = take(&run_dir, Who::Clean);
        // Its start time is another one: an earlier process with this PID.
        let own = std::process::id();
        fs::write(run_dir.join(NAME), format!("watch {own} 1\n")).unwrap();
        assert!(matches!(
            take(&run_dir, Who::Clean),
            Attempt::Held(Occupant(None))
        ));
    }

    #[test]
    fn what_an_earlier_one_or_anybody_wrote_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        drop(take(&run_dir, Who::Watch));
        fs::write(run_dir.join(NAME), [0xff; 500]).unwrap();
        let Attempt::Taken(_lock) = take(&run_dir, Who::Watch) else {
            panic!("nobody has it");
        };
        let text = fs::read_to_string(run_dir.join(NAME)).unwrap();
        assert_eq!(text, words(Who::Watch));
        // Garbage while it is held: held by somebody.
        fs::write(run_dir.join(NAME), "clean me").unwrap();
        assert!(matches!(
            take(&run_dir, Who::Clean),
            Attempt::Held(Occupant(None))
        ));
    }

    #[test]
    fn a_file_that_was_tidied_away_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let _old = take(&run_dir, Who::Watch);
        fs::remove_file(run_dir.join(NAME)).unwrap();
        assert!(matches!(take(&run_dir, Who::Watch), Attempt::Taken(_)));
    }

    #[test]
    fn neither_links_nor_other_peoples_directories() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        fs::create_dir(&run_dir).unwrap();
        let other = dir.path().join("other");
        fs::write(&other, "mine").unwrap();
        std::os::unix::fs::symlink(&other, run_dir.join(NAME)).unwrap();
        let error = RunLock::attempt(&run_dir, Who::Watch).unwrap_err();
        assert!(error.to_string().contains("run_dir"), "{error}");
        assert_eq!(fs::read_to_string(&other).unwrap(), "mine");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(RunLock::attempt(&link, Who::Watch).is_err());
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(&run_dir, mode).unwrap();
        assert!(RunLock::attempt(&run_dir, Who::Watch).is_err());
    }
}
