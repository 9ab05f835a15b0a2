//! The journal: what became of each case, kept across restarts.
//!
//! It is memory, not truth. Nothing waits for it, and deleting it at any moment
//! changes nothing on the host: the survey finds what has to be done. It answers
//! an operator's questions (`compose-cleanup cases`), and it lets a case that was
//! interrupted go on under its number.
//!
//! One thread writes, in batches; recording is a push into a bounded queue. A disk
//! that is full, read-only, slow or gone costs history and nothing else.

mod backlog;
mod entry;
mod history;
mod place;
mod queue;
mod retention;
mod store;
mod write;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

pub use entry::{CaseId, Closing, Opening, Unfinished, Word, unix_ns};
pub use history::{
    CaseDetail, CaseSummary, ContainerRow, EvidenceRow, Filter, History, HistoryError, StepRow,
};

use crate::process::monotonic_ns;
use entry::{Entry, clip, clip_bytes, unix_now_ns};
use retention::Limits;
use writer::{Shared, Writer};

/// How long a start waits for the journal. Later it opens all the same.
const OPEN_DEADLINE: Duration = Duration::from_secs(2);

/// Where the journal is, and how much it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub path: PathBuf,
    /// Closed cases older than this are forgotten.
    pub max_age: Duration,
    /// Bytes on disk, the write-ahead log included; the oldest closed cases go
    /// first. Open cases are always kept.
    pub max_bytes: u64,
}

/// How the journal is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records that are in the database, since the start.
    pub written: u64,
    /// Records that wait in the queue.
    pub waiting: usize,
    pub dropped_steps: u64,
    pub dropped_cases: u64,
    /// Attempts to open or write it that failed.
    pub errors: u64,
    /// Cases with something that is in memory only.
    pub unwritten_cases: usize,
    /// Databases that could not be used and were set aside.
    pub set_aside: u64,
    /// On disk; 0 while it is not open.
    pub bytes: u64,
    /// Nanoseconds since 1970, while it cannot be written.
    pub failing_since_unix_ns: Option<i64>,
}

/// A handle for recording. Cheap to clone; no call blocks, and none fails.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    handle: Option<Arc<Handle>>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    /// Resolves when the writer has closed the database.
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

impl Journal {
    /// Opens the journal and returns the cases that it has open, newest first.
    ///
    /// Never fails: a place that cannot be used is tried again and again, and
    /// records are kept in memory meanwhile, as far as there is room. Blocks for at
    /// most 2 s; if the disk takes longer, no unfinished cases are returned, and a
    /// case of the same container goes on under its old number all the same.
    pub fn open(settings: Settings) -> (Self, Vec<Unfinished>) {
        let Settings {
            path,
            max_age,
            max_bytes,
        } = settings;
        let shared = Arc::new(Shared::default());
        let limits = Limits { max_age, max_bytes };
        let writer = Writer::new(Arc::clone(&shared), path, limits);
        let (opened, unfinished) = mpsc::sync_channel(1);
        let (ending, ended) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("journal".to_owned())
            .stack_size(512 << 10)
            .spawn(move || {
                writer.run(&opened);
                // Nobody may wait for it.
                let _ = ending.send(());
            });
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread for the journal: nothing is recorded until the next start");
            return (Self::disabled(), Vec::new());
        }
        let unfinished = unfinished.recv_timeout(OPEN_DEADLINE).unwrap_or_default();
        let handle = Handle {
            shared,
            ended: Mutex::new(Some(ended)),
        };
        let handle = Some(Arc::new(handle));
        (Self { handle }, unfinished)
    }

    /// Records nothing (`enabled = false`).
    pub fn disabled() -> Self {
        Self::default()
    }

    pub fn is_enabled(&self) -> bool {
        self.handle.is_some()
    }

    /// Other limits from now on: what is over them goes soon.
    pub fn keep(&self, max_age: Duration, max_bytes: u64) {
        if let Some(handle) = &self.handle {
            handle.shared.queue.keep(Limits { max_age, max_bytes });
        }
    }

    /// A case begins, or begins again. If the journal has a case of this container
    /// already, that one goes on: a dead run is in the history once.
    pub fn case_opened(&self, case: CaseId, mut opening: Opening) {
        clip_bytes(&mut opening.framework);
        clip_bytes(&mut opening.executor);
        clip_bytes(&mut opening.agent);
        opening.proof = opening.proof.map(|proof| clip(&proof));
        self.push(|| Entry::Opened(case, Box::new(opening)));
    }

    /// Another sign of the same death: the hook told of it, too.
    pub fn evidence(&self, case: CaseId, origin: impl Into<Word>, detail: Option<&str>) {
        self.push(|| Entry::Evidence {
            case,
            origin: origin.into(),
            at_ns: monotonic_ns(),
            detail: detail.map(clip),
        });
    }

    /// What is going to be done, for people.
    pub fn planned(&self, case: CaseId, plan: &str) {
        self.push(|| Entry::Planned(case, clip(plan)));
    }

    /// A Docker container belongs to the pod, by this key.
    pub fn joined(&self, case: CaseId, container: &str, key: impl Into<Word>) {
        self.push(|| Entry::Joined {
            case,
            container: clip(container),
            key: key.into(),
            at_ns: monotonic_ns(),
        });
    }

    /// How a container of the pod ended. Times are CLOCK_MONOTONIC.
    pub fn container_ended(
        &self,
        case: CaseId,
        container: &str,
        ending: impl Into<Word>,
        asked_ns: Option<u64>,
        ended_ns: Option<u64>,
    ) {
        self.push(|| Entry::ContainerEnded {
            case,
            container: clip(container),
            ending: ending.into(),
            asked_ns,
            ended_ns,
        });
    }

    /// A step begins. `seq` is the caller's, and unique within the case for as long
    /// as this process has it open.
    pub fn step_began(&self, case: CaseId, seq: u32, kind: impl Into<Word>, detail: Option<&str>) {
        self.push(|| Entry::StepBegan {
            case,
            seq,
            kind: kind.into(),
            detail: detail.map(clip),
            at_ns: monotonic_ns(),
        });
    }

    pub fn step_ended(
        &self,
        case: CaseId,
        seq: u32,
        outcome: impl Into<Word>,
        error: Option<&str>,
    ) {
        self.push(|| Entry::StepEnded {
            case,
            seq,
            outcome: outcome.into(),
            error: error.map(clip),
            at_ns: monotonic_ns(),
        });
    }

    /// The case is over. A case that is handed over to the next start is not: it
    /// stays open, and [`Journal::open`] returns it then.
    pub fn closed(&self, case: CaseId, mut closing: Closing) {
        clip_bytes(&mut closing.framework);
        clip_bytes(&mut closing.executor);
        self.push(|| Entry::Closed(case, Box::new(closing), unix_now_ns()));
    }

    /// It was no case: nothing was left behind. It leaves the history.
    pub fn dismissed(&self, case: CaseId) {
        self.push(|| Entry::Dismissed(case, unix_now_ns()));
    }

    /// Waits until everything recorded before is written, at most for `deadline`;
    /// returns whether it is. Written means: safe when this process is killed. A
    /// power failure may take the last seconds.
    pub async fn flush(&self, deadline: Duration) -> bool {
        let Some(handle) = &self.handle else {
            return true;
        };
        let done = handle.shared.queue.flush();
        matches!(tokio::time::timeout(deadline, done).await, Ok(Ok(())))
    }

    /// For the end of the daemon: [`flush`](Self::flush), then closes the database,
    /// at most for `deadline` each. What is recorded later is not written.
    pub async fn close(&self, deadline: Duration) -> bool {
        let Some(handle) = &self.handle else {
            return true;
        };
        let is_flushed = self.flush(deadline).await;
        handle.shared.queue.close();
        let ended = handle
            .ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(ended) = ended {
            // A disk that hangs: the database is as safe as after a kill.
            let _ = tokio::time::timeout(deadline, ended).await;
        }
        is_flushed
    }

    pub fn stats(&self) -> Stats {
        let Some(handle) = &self.handle else {
            return Stats::default();
        };
        let shared = &handle.shared;
        let get = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
        let failing = shared.failing_since.load(Ordering::Relaxed);
        Stats {
            written: get(&shared.written),
            waiting: shared.queue.waiting(),
            dropped_steps: get(&shared.dropped_steps),
            dropped_cases: get(&shared.dropped_cases),
            errors: get(&shared.errors),
            unwritten_cases: shared.unwritten_cases.load(Ordering::Relaxed),
            set_aside: get(&shared.set_aside),
            bytes: get(&shared.bytes),
            failing_since_unix_ns: (failing != 0).then_some(failing),
        }
    }

    fn push(&self, entry: impl FnOnce() -> Entry) {
        if let Some(handle) = &self.handle {
            handle.shared.queue.push(entry());
        }
    }
}

#[cfg(test)]
mod tests;
