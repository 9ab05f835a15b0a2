//! The one thread that writes.
//!
//! Whatever the disk does, it goes on: what cannot be written stays in memory
//! (bounded), is tried again, and is caught up with.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::backlog::Backlog;
use super::entry::{Unfinished, unix_now_ns};
use super::queue::{Batch, Queue};
use super::retention::Limits;
use super::store::{Found, Store, StoreError};

const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How long a problem that lasts is not mentioned again.
const REMIND_AFTER: Duration = Duration::from_mins(10);
/// Old cases are looked for this often without any other reason.
const PRUNE_EVERY: Duration = Duration::from_hours(1);
/// When a journal stays too large (its cases are all open).
const PRUNE_AGAIN: Duration = Duration::from_mins(1);

/// What the thread tells of itself.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub queue: Queue,
    pub written: AtomicU64,
    pub dropped_steps: AtomicU64,
    pub dropped_cases: AtomicU64,
    pub bytes: AtomicU64,
    pub set_aside: AtomicU64,
    pub errors: AtomicU64,
    pub unwritten_cases: AtomicUsize,
    /// Nanoseconds since 1970; 0 while all is well.
    pub failing_since: AtomicI64,
}

#[derive(Debug)]
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub path: PathBuf,
    pub limits: Limits,
    store: Option<Store>,
    backlog: Backlog,
    waiting: Vec<oneshot::Sender<()>>,
    trouble: Option<Trouble>,
    prune_due: Instant,
    /// It is too large, and nothing more can go for now.
    full_until: Option<Instant>,
    /// Somebody waits, or it is the last chance: a retry is due now.
    urgent: bool,
    /// Entries that the queue itself refused.
    refused: (u64, u64),
}

#[derive(Debug)]
struct Trouble {
    since: Instant,
    said: Instant,
    retry_at: Instant,
    pause: Duration,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, path: PathBuf, limits: Limits) -> Self {
        Self {
            shared,
            path,
            limits,
            store: None,
            backlog: Backlog::default(),
            waiting: Vec::new(),
            trouble: None,
            prune_due: Instant::now(),
            full_until: None,
            urgent: false,
            refused: (0, 0),
        }
    }

    /// Until the last handle is gone. The cases that are open are told to `opened`
    /// after the first attempt to open the journal, successful or not.
    pub fn run(mut self, opened: &mpsc::SyncSender<Vec<Unfinished>>) {
        let unfinished = self.guarded(Self::open);
        // Nobody listens any more if this took too long.
        let _ = opened.try_send(unfinished);
        let mut spare = Batch::default();
        loop {
            let mut batch = self.shared.queue.take(self.until_due(), spare);
            let last = batch.last;
            self.guarded(|writer| writer.take(&mut batch));
            spare = batch.recycled();
            // With nothing left to write the disk is left alone: its directory may
            // have been removed, and would be made again.
            if !last || self.backlog.is_dirty() || !self.waiting.is_empty() {
                self.guarded(Self::work);
            }
            if last {
                return;
            }
        }
    }

    /// A panic is a defect that must not end the recording, nor more.
    fn guarded<T: Default>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        catch_unwind(AssertUnwindSafe(|| work(self))).unwrap_or_else(|_| {
            tracing::error!("the journal's thread panicked; it begins again");
            // Whatever was half done there is rolled back.
            self.store = None;
            self.note_trouble();
            T::default()
        })
    }

    fn until_due(&self) -> Duration {
        let now = Instant::now();
        match &self.trouble {
            Some(trouble) => trouble.retry_at.saturating_duration_since(now),
            None => self.prune_due.saturating_duration_since(now),
        }
    }

    fn take(&mut self, batch: &mut Batch) {
        self.refused.0 += batch.dropped_steps;
        self.refused.1 += batch.dropped_facts;
        if let Some(limits) = batch.limits.take()
            && limits != self.limits
        {
            self.limits = limits;
            self.prune_due = Instant::now();
            self.full_until = None;
        }
        self.urgent = batch.last || !batch.flushes.is_empty();
        self.waiting.append(&mut batch.flushes);
        self.backlog.absorb(batch.entries.drain(..));
    }

    fn work(&mut self) {
        let is_due = self
            .trouble
            .as_ref()
            .is_none_or(|trouble| trouble.retry_at <= Instant::now());
        if is_due || self.urgent {
            self.notice_deletion();
            if self.store.is_none() {
                self.open();
            }
            self.write();
            self.prune();
        }
        let stats = &self.shared;
        let bytes = self.store.as_ref().map_or(0, Store::bytes);
        stats.bytes.store(bytes, Ordering::Relaxed);
        stats
            .unwritten_cases
            .store(self.backlog.unwritten(), Ordering::Relaxed);
        let dropped = self.backlog.dropped;
        let (steps, facts) = self.refused;
        stats
            .dropped_steps
            .store(dropped.steps + steps, Ordering::Relaxed);
        stats
            .dropped_cases
            .store(dropped.cases + facts, Ordering::Relaxed);
        if !self.backlog.is_dirty() && self.trouble.is_none() {
            for flush in self.waiting.drain(..) {
                let _ = flush.send(());
            }
        }
        self.waiting.retain(|flush| !flush.is_closed());
    }

    fn open(&mut self) -> Vec<Unfinished> {
        match Store::open(&self.path) {
            Ok((store, found)) => {
                self.store = Some(store);
                self.opened(found)
            }
            Err(error) => {
                self.failed(&error);
                Vec::new()
            }
        }
    }

    fn opened(&mut self, found: Found) -> Vec<Unfinished> {
        let Found {
            set_aside,
            fresh,
            unfinished,
        } = found;
        if let Some((aside, problem)) = set_aside {
            self.say_set_aside(&aside, &problem);
        }
        if fresh {
            self.backlog.begin_anew();
        }
        self.prune_due = Instant::now();
        let mut cases = Vec::with_capacity(unfinished.len());
        for (case, row) in unfinished {
            self.backlog.remember(&case, row);
            cases.push(case);
        }
        cases
    }

    /// A database that was deleted is written to without any error.
    fn notice_deletion(&mut self) {
        let gone = self.store.take_if(|store| !store.still_there());
        if let Some(store) = gone {
            tracing::warn!(
                journal = %self.path.display(),
                "the journal was deleted or replaced while it was in use: it goes on with the open cases in what is there now"
            );
            store.abandon();
            self.backlog.begin_anew();
        }
    }

    fn write(&mut self) {
        let Some(store) = &mut self.store else { return };
        if self.backlog.is_dirty() {
            match store.write(&self.backlog) {
                Ok((rows, writes)) => {
                    self.backlog.written(rows);
                    self.shared.written.fetch_add(writes, Ordering::Relaxed);
                }
                Err(error) => return self.failed(&error),
            }
        }
        self.recovered();
    }

    fn prune(&mut self) {
        let Some(store) = &mut self.store else { return };
        let now = Instant::now();
        let is_too_large = store.bytes() > self.limits.max_bytes
            && self.full_until.is_none_or(|until| until <= now);
        if now < self.prune_due && !is_too_large {
            return;
        }
        match store.prune(self.limits) {
            Ok(removed) => {
                if removed > 0 {
                    tracing::debug!(removed, "old cases left the journal");
                }
                self.prune_due = now + PRUNE_EVERY;
                let is_full = store.bytes() > self.limits.max_bytes;
                self.full_until = is_full.then(|| now + PRUNE_AGAIN);
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &StoreError) {
        self.shared.errors.fetch_add(1, Ordering::Relaxed);
        match error {
            StoreError::Unusable { reason, problem } => {
                if let Some(store) = self.store.take() {
                    match store.set_aside(*reason) {
                        Ok(aside) => self.say_set_aside(&aside, problem),
                        Err(error) => return self.failed(&error.into()),
                    }
                }
                self.backlog.begin_anew();
            }
            StoreError::RowsGone(_) => {
                self.store = None;
                self.backlog.begin_anew();
            }
            StoreError::Place(_) | StoreError::Sql(_) => self.store = None,
        }
        if self.note_trouble() {
            tracing::warn!(
                journal = %self.path.display(),
                %error,
                advice = error.advice(),
                "the journal cannot be written: cases go on from memory, and it catches up when it can"
            );
        } else {
            tracing::debug!(journal = %self.path.display(), %error, "the journal still cannot be written");
        }
    }

    /// Returns whether it is time to say so.
    fn note_trouble(&mut self) -> bool {
        let now = Instant::now();
        let Some(trouble) = &mut self.trouble else {
            self.trouble = Some(Trouble {
                since: now,
                said: now,
                retry_at: now + FIRST_RETRY,
                pause: FIRST_RETRY,
            });
            let since = unix_now_ns();
            self.shared.failing_since.store(since, Ordering::Relaxed);
            return true;
        };
        trouble.pause = (trouble.pause * 2).min(LONGEST_RETRY);
        trouble.retry_at = now + trouble.pause;
        let is_news = now.duration_since(trouble.said) >= REMIND_AFTER;
        if is_news {
            trouble.said = now;
        }
        is_news
    }

    fn recovered(&mut self) {
        if let Some(trouble) = self.trouble.take() {
            self.shared.failing_since.store(0, Ordering::Relaxed);
            let (steps, facts) = self.refused;
            tracing::info!(
                journal = %self.path.display(),
                seconds = trouble.since.elapsed().as_secs(),
                steps_lost = self.backlog.dropped.steps + steps,
                cases_lost = self.backlog.dropped.cases + facts,
                "the journal can be written again and has caught up"
            );
        }
    }

    fn say_set_aside(&self, aside: &std::path::Path, problem: &str) {
        self.shared.set_aside.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            journal = %self.path.display(),
            aside = %aside.display(),
            problem,
            "the journal cannot be used and was set aside: a fresh one is begun (no effect on cleanups)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::{CaseId, Entry, Opening};
    use super::*;

    #[test]
    fn a_panic_costs_nothing_that_was_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits {
            max_age: Duration::from_hours(1),
            max_bytes: 4 << 20,
        };
        let path = dir.path().join("journal.db");
        let mut writer = Writer::new(Arc::default(), path, limits);
        writer.guarded(Writer::open);
        let opening = Box::new(Opening {
            container: "a run".to_owned(),
            ..Opening::default()
        });
        writer
            .backlog
            .absorb([Entry::Opened(CaseId::next(), opening)]);
        writer.guarded::<()>(|writer| {
            writer
                .store
                .as_mut()
                .unwrap()
                .write(&writer.backlog)
                .unwrap();
            panic!("a defect, before the backlog knows that it was written");
        });
        assert!(writer.store.is_none() && writer.backlog.is_dirty());
        writer.urgent = true;
        writer.guarded(Writer::work);
        assert!(!writer.backlog.is_dirty() && writer.trouble.is_none());
        assert_eq!(writer.shared.written.load(Ordering::Relaxed), 1);
    }
}
