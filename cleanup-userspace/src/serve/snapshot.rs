//! What only the daemon's loop knows, handed out as a copy.

use std::collections::{BTreeMap, HashSet};

use tokio::sync::oneshot;

use super::target::Target;
use crate::case::{Death, Seen};
use crate::mesos::ContainerId;
use crate::probe::Losses;
use crate::registry::Run;

/// A question to the daemon's loop. It answers between two signals, and never
/// waits for whoever asked.
#[derive(Debug)]
pub struct Inquiry {
    /// Closed runs that are wanted, too.
    pub closed: Option<Target>,
    pub answer: oneshot::Sender<Snapshot>,
}

/// One moment of the loop.
#[derive(Debug)]
pub struct Snapshot {
    pub probe: ProbeState,
    pub docker: Option<DockerWord>,
    pub cases: Vec<CaseAtWork>,
    /// As the inquiry wanted.
    pub closed: Vec<(Run, Death)>,
    /// Every run that lives, or whose case is open or was closed.
    pub known: HashSet<ContainerId>,
    /// Runs that the last survey could not judge.
    pub unknown: usize,
    pub counts: Counts,
}

#[derive(Debug)]
pub struct ProbeState {
    pub kind: &'static str,
    pub works: bool,
    pub losses: Losses,
}

/// What Docker last said of itself.
#[derive(Debug, Clone, Copy)]
pub struct DockerWord {
    pub there: bool,
    /// Seconds since the epoch.
    pub since: f64,
}

/// An open case.
#[derive(Debug, Clone)]
pub struct CaseAtWork {
    pub run: Run,
    pub death: Death,
    pub seen: Seen,
}

#[derive(Debug, Default)]
pub struct Counts {
    pub exits: u64,
    pub foreign: u64,
    pub deaths: u64,
    pub requests: u64,
    pub results: BTreeMap<&'static str, u64>,
    pub containers: usize,
}
