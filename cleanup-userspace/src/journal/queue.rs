//! Between those who record and the one thread that writes.
//!
//! A lock that is held for a push or a swap, never for a write: whoever records is
//! as fast with a hung disk as without.

use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::entry::Entry;
use super::retention::Limits;

/// Entries that lead to a write at once.
const BATCH: usize = 256;
/// How long the first entry of a batch waits for company.
const GATHER: Duration = Duration::from_millis(100);
/// Past this steps are dropped. Only a writer that hangs in the kernel gets here.
const STEPS_UP_TO: usize = 8192;
/// Past this everything is.
const UP_TO: usize = 16_384;
/// The memory that a quiet queue keeps.
const KEEP: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    batch: Batch,
    closing: bool,
}

/// What was recorded since the last one.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub entries: Vec<Entry>,
    /// Answered once everything before is written.
    pub flushes: Vec<oneshot::Sender<()>>,
    /// New ones, if there are.
    pub limits: Option<Limits>,
    /// Nobody records any more.
    pub last: bool,
    pub dropped_steps: u64,
    pub dropped_facts: u64,
}

impl Queue {
    /// Never blocks for longer than a push.
    pub fn push(&self, entry: Entry) {
        let mut state = self.lock();
        let batch = &mut state.batch;
        let waiting = batch.entries.len();
        if waiting >= UP_TO {
            batch.dropped_facts += 1;
            return;
        }
        if waiting >= STEPS_UP_TO && entry.is_step() {
            batch.dropped_steps += 1;
            return;
        }
        batch.entries.push(entry);
        drop(state);
        // In between the writer sleeps on: one wake-up for each batch.
        if waiting == 0 || waiting + 1 == BATCH {
            self.wake.notify_one();
        }
    }

    /// Asks for a write of all that was pushed; the answer tells that it is done.
    pub fn flush(&self) -> oneshot::Receiver<()> {
        let (sender, done) = oneshot::channel();
        self.lock().batch.flushes.push(sender);
        self.wake.notify_one();
        done
    }

    /// The writer takes these limits over, and looks at once what is over them.
    pub fn keep(&self, limits: Limits) {
        self.lock().batch.limits = Some(limits);
        self.wake.notify_one();
    }

    pub fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
    }

    pub fn waiting(&self) -> usize {
        self.lock().batch.entries.len()
    }

    /// Waits for something to write, no longer than `limit`, and takes it all.
    /// `spare` is an empty batch whose memory is used again.
    pub fn take(&self, limit: Duration, spare: Batch) -> Batch {
        let idle = |state: &mut State| {
            let batch = &state.batch;
            let is_quiet = batch.entries.is_empty() && batch.flushes.is_empty();
            is_quiet && batch.limits.is_none() && !state.closing
        };
        let gathering = |state: &mut State| {
            state.batch.entries.len() < BATCH && state.batch.flushes.is_empty() && !state.closing
        };
        let (mut state, _) = self
            .wake
            .wait_timeout_while(self.lock(), limit, idle)
            .unwrap_or_else(PoisonError::into_inner);
        if !state.batch.entries.is_empty() {
            (state, _) = self
                .wake
                .wait_timeout_while(state, GATHER, gathering)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let mut batch = mem::replace(&mut state.batch, spare);
        batch.last = state.closing;
        batch
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nobody panics while holding it, and a list of entries is never half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batch {
    /// Emptied, for [`Queue::take`].
    pub fn recycled(mut self) -> Self {
        self.entries.clear();
        self.entries.shrink_to(KEEP);
        Self {
            entries: self.entries,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::CaseId;
    use super::*;

    fn step() -> Entry {
        Entry::StepBegan {
            case: CaseId::next(),
            seq: 0,
            kind: "look".into(),
            detail: None,
            at_ns: 0,
        }
    }

    #[test]
    fn a_writer_that_hangs_costs_steps_first_and_never_time() {
        let queue = Queue::default();
        for _ in 0..STEPS_UP_TO + 5 {
            queue.push(step());
        }
        for _ in 0..UP_TO {
            queue.push(Entry::Dismissed(CaseId::next(), 0));
        }
        let batch = queue.take(Duration::ZERO, Batch::default());
        assert_eq!(batch.entries.len(), UP_TO);
        assert_eq!(batch.dropped_steps, 5);
        assert_eq!(batch.dropped_facts, STEPS_UP_TO as u64);
        assert_eq!(batch.recycled().entries.capacity(), KEEP);
    }

    #[test]
    fn a_flush_waits_for_nobody() {
        let queue = Queue::default();
        queue.push(step());
        let mut done = queue.flush();
        let batch = queue.take(Duration::from_secs(3600), Batch::default());
        assert_eq!((batch.entries.len(), batch.last), (1, false));
        assert!(done.try_recv().is_err());
        for flush in batch.flushes {
            flush.send(()).unwrap();
        }
        assert!(done.try_recv().is_ok());
        queue.close();
        assert!(queue.take(Duration::from_secs(3600), Batch::default()).last);
    }
}
