//! The blast radius: how many running containers deaths that were only inferred
//! may stop (architecture rule 10), and the operator's word about it.
//!
//! A wrong conclusion could be wrong about everything on a host at once: a
//! mount that is missing, a runtime directory that is not the agent's. So more
//! than a few containers a minute wait for a person. Deaths that the kernel has
//! proven are never held back.

use std::collections::{HashMap, VecDeque};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::Death;
use super::death::Proof;
use crate::mesos::ContainerId;
use crate::process::unix_seconds;

/// The window that the cap counts in.
pub const WINDOW: Duration = Duration::from_secs(60);

/// What the file in the run directory says; without one nothing is held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase", deny_unknown_fields)]
pub enum Word {
    /// Inferred deaths stop nothing. All times in seconds since the epoch.
    Held {
        since: f64,
        /// Absent: until it is released.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<f64>,
        by: HeldBy,
    },
    /// What was noticed before this time goes on without a cap.
    Released { at: f64 },
}

/// Who holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeldBy {
    Operator,
    /// More than `max_inferred_stops`.
    Cap,
}

impl Word {
    pub fn holds(&self, now: f64) -> bool {
        match self {
            Self::Held { until, .. } => until.is_none_or(|until| now < until),
            Self::Released { .. } => false,
        }
    }
}

/// The file that carries the operator's word from one process to another, and
/// over a restart of the daemon.
#[derive(Debug, Clone)]
pub struct WordFile(PathBuf);

impl WordFile {
    pub fn new(run_dir: &Path) -> Self {
        Self(run_dir.join("hold.json"))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `Ok(None)`: nobody has said anything.
    pub fn read(&self) -> io::Result<Option<Word>> {
        let text = match fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(io::Error::other)
    }

    /// Replaces what was said before.
    pub fn write(&self, word: &Word) -> io::Result<()> {
        let text = serde_json::to_string(word).map_err(io::Error::other)?;
        if let Some(dir) = self.0.parent() {
            // For root alone, as the daemon makes it.
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let new = self.0.with_extension("json.new");
        fs::write(&new, text + "\n")?;
        fs::rename(&new, &self.0)
    }
}

/// Decides for each inferred death whether its containers may be stopped now.
#[derive(Debug)]
pub struct Brake {
    /// Running containers in a window; 0 for no cap.
    cap: AtomicUsize,
    file: WordFile,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Stops that were allowed, with when.
    recent: VecDeque<(f64, usize)>,
    /// Containers of each run that were counted already.
    counted: HashMap<ContainerId, usize>,
    /// Held when last asked: for the log.
    held: bool,
    /// The cap's own hold, for as long as it cannot be written down.
    unwritten: bool,
}

impl Brake {
    pub fn new(cap: usize, run_dir: &Path) -> Self {
        Self {
            cap: AtomicUsize::new(cap),
            file: WordFile::new(run_dir),
            state: Mutex::default(),
        }
    }

    /// What is held already stays so, until it is released.
    pub fn set_cap(&self, cap: usize) {
        self.cap.store(cap, Ordering::Relaxed);
    }

    /// Whether a dead run's containers, so many by now, may be stopped.
    pub fn may_stop(&self, run: ContainerId, death: &Death, containers: usize) -> bool {
        death.origin.proof() == Proof::Kernel
            || self.may_stop_inferred(run, death.at_unix, containers, unix_seconds())
    }

    /// Whether inferred deaths are held back now, by whomever. What cannot be read
    /// holds.
    pub fn is_holding(&self) -> bool {
        let unwritten = self.lock().unwritten;
        let word = self.file.read();
        unwritten
            || word.map_or(true, |word| {
                word.is_some_and(|word| word.holds(unix_seconds()))
            })
    }

    /// What the hold file says.
    pub fn word(&self) -> io::Result<Option<Word>> {
        self.file.read()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_stop_inferred(
        &self,
        run: ContainerId,
        noticed: f64,
        containers: usize,
        now: f64,
    ) -> bool {
        let mut state = self.lock();
        let word = match self.file.read() {
            Ok(word) => word,
            Err(error) => {
                // What cannot be read may say "hold".
                if !std::mem::replace(&mut state.held, true) {
                    tracing::error!(
                        file = %self.file.path().display(), %error,
                        "the hold file cannot be read: inferred deaths are held; repair it, or write it anew with `compose-cleanup release`"
                    );
                }
                return false;
            }
        };
        let released = matches!(word, Some(Word::Released { at }) if noticed <= at);
        if released {
            state.unwritten = false;
        }
        if state.unwritten || word.as_ref().is_some_and(|word| word.holds(now)) {
            state.held = true;
            return false;
        }
        if std::mem::replace(&mut state.held, false) {
            tracing::info!("inferred deaths are not held any more");
        }
        let known = state.counted.get(&run).copied().unwrap_or(0);
        let more = containers.saturating_sub(known);
        let cap = self.cap.load(Ordering::Relaxed);
        if released || cap == 0 || more == 0 {
            return true;
        }
        let horizon = now - WINDOW.as_secs_f64();
        state.recent.retain(|(at, _)| *at > horizon);
        if state.recent.is_empty() {
            state.counted.clear();
        }
        let recent: usize = state.recent.iter().map(|(_, count)| count).sum();
        if recent + more > cap {
            state.held = true;
            state.unwritten = true;
            tracing::error!(
                cap,
                stopped = recent,
                wanted = more,
                "HELD: deaths that the kernel did not report would stop more containers in a minute than max_inferred_stops allows: \
                 look at the host (is an agent's runtime_dir or work_dir missing?), then run `compose-cleanup release`"
            );
            match self.file.write(&Word::Held {
                since: now,
                until: None,
                by: HeldBy::Cap,
            }) {
                Ok(()) => state.unwritten = false,
                Err(error) => tracing::error!(
                    file = %self.file.path().display(), %error,
                    "the hold cannot be written down: it lasts until the next start"
                ),
            }
            return false;
        }
        state.recent.push_back((now, more));
        state.counted.insert(run, containers);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> ContainerId {
        format!("857fd7a0-df05-458b-bd72-{n:012x}").parse().unwrap()
    }

    fn brake(cap: usize, dir: &Path) -> Brake {
        Brake::new(cap, dir)
    }

    #[test]
    fn the_cap_holds_until_a_person_releases() {
        let dir = tempfile::tempdir().unwrap();
        let brake = brake(5, dir.path());
        assert!(brake.may_stop_inferred(id(1), 100.0, 3, 100.0));
        // Asking again for the same run costs nothing.
        assert!(brake.may_stop_inferred(id(1), 100.0, 3, 100.5));
        assert!(brake.may_stop_inferred(id(2), 101.0, 2, 101.0));
        assert!(!brake.may_stop_inferred(id(3), 102.0, 1, 102.0));
        // Not by time, and not for anybody else.
        assert!(!brake.may_stop_inferred(id(3), 102.0, 1, 900.0));
        assert!(!brake.may_stop_inferred(id(4), 900.0, 1, 900.0));
        brake.file.write(&Word::Released { at: 901.0 }).unwrap();
        // All of what waited, however much.
        assert!(brake.may_stop_inferred(id(3), 102.0, 100, 902.0));
        assert!(brake.may_stop_inferred(id(4), 900.0, 100, 902.0));
        // What came later is counted anew.
        assert!(brake.may_stop_inferred(id(5), 903.0, 5, 903.0));
        assert!(!brake.may_stop_inferred(id(6), 904.0, 1, 904.0));
    }

    #[test]
    fn the_window_slides() {
        let dir = tempfile::tempdir().unwrap();
        let brake = brake(5, dir.path());
        assert!(brake.may_stop_inferred(id(1), 100.0, 5, 100.0));
        assert!(brake.may_stop_inferred(id(2), 161.0, 5, 161.0));
    }

    #[test]
    fn another_cap_counts_from_the_next_death_on() {
        let dir = tempfile::tempdir().unwrap();
        let brake = brake(2, dir.path());
        assert!(brake.may_stop_inferred(id(1), 100.0, 2, 100.0));
        brake.set_cap(5);
        assert!(brake.may_stop_inferred(id(2), 101.0, 3, 101.0));
        assert!(!brake.may_stop_inferred(id(3), 102.0, 1, 102.0));
        // No cap is no release.
        brake.set_cap(0);
        assert!(!brake.may_stop_inferred(id(3), 102.0, 1, 103.0));
    }

    #[test]
    fn a_hold_outlives_the_daemon_and_ends_by_itself_if_told_to() {
        let dir = tempfile::tempdir().unwrap();
        let word = Word::Held {
            since: 100.0,
            until: Some(200.0),
            by: HeldBy::Operator,
        };
        WordFile::new(dir.path()).write(&word).unwrap();
        let brake = brake(0, dir.path());
        assert!(!brake.may_stop_inferred(id(1), 150.0, 1, 150.0));
        assert!(brake.may_stop_inferred(id(1), 150.0, 1, 201.0));
    }

    #[test]
    fn no_cap_and_nobodys_word_is_no_hold() {
        let dir = tempfile::tempdir().unwrap();
        assert!(brake(0, dir.path()).may_stop_inferred(id(1), 1.0, 10_000, 1.0));
    }

    #[test]
    fn what_cannot_be_read_holds() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("hold.json"), "{\"state\":\"maybe\"}").unwrap();
        let brake = brake(0, dir.path());
        assert!(!brake.may_stop_inferred(id(1), 1.0, 1, 1.0));
    }
}
