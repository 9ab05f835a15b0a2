//! What others may see of a case while it works: its step, since when, and how far
//! its containers are. Written by the case, read by whoever asks; neither waits for
//! more than a copy.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::decide::Step;
use super::record::{Contained, Progress, Record};
use crate::docker::JoinKey;
use crate::journal::CaseId;
use crate::mesos::Identity;

/// A case's window. All clones are one.
#[derive(Debug, Clone)]
pub struct Glance(Arc<Mutex<Seen>>);

/// What was to be seen at one moment.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its number in the journal.
    pub case: CaseId,
    pub identity: Option<Identity>,
    /// `None`: it has not looked at the host yet.
    pub step: Option<Step>,
    /// CLOCK_MONOTONIC: since when it is at this step.
    pub since_ns: u64,
    /// Why the last step that failed did, while nothing has succeeded since.
    pub trouble: Option<String>,
    /// By their ids.
    pub containers: BTreeMap<String, (JoinKey, Progress)>,
}

impl Glance {
    pub(super) fn new(record: &Record, now_ns: u64) -> Self {
        Self(Arc::new(Mutex::new(Seen {
            case: record.case,
            identity: record.run.identity.clone(),
            step: None,
            since_ns: now_ns,
            trouble: None,
            containers: progress_of(record),
        })))
    }

    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    pub(super) fn step(&self, step: Step, record: &Record, now_ns: u64) {
        let containers = progress_of(record);
        let mut seen = self.lock();
        if seen.step.replace(step) != Some(step) {
            seen.since_ns = now_ns;
        }
        if seen.identity.is_none() {
            seen.identity.clone_from(&record.run.identity);
        }
        seen.containers = containers;
    }

    pub(super) fn failed(&self, error: &anyhow::Error) {
        self.lock().trouble = Some(format!("{error:#}"));
    }

    pub(super) fn succeeded(&self) {
        self.lock().trouble = None;
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Every change is one step: a panic in between leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn progress_of(record: &Record) -> BTreeMap<String, (JoinKey, Progress)> {
    let of =
        |(id, container): (&String, &Contained)| (id.clone(), (container.key, container.progress));
    record.containers.iter().map(of).collect()
}
