//! What only the daemon's loop knows, handed out as a copy.

use std::collections::{BTreeMap, HashSet};

use tokio::sync::oneshot;

use super::plan::Wanted;
use crate::case::{CaseResult, Death, Seen};
use crate::journal::CaseId;
use crate::mesos::ContainerId;
use crate::probe::Losses;
use crate::registry::Run;

/// A question to the daemon's loop. It answers between two signals, and never
/// waits for whoever asked.
#[derive(Debug)]
pub struct Inquiry {
    /// Closed runs that are wanted, too.
    pub closed: Option<Wanted>,
    /// What is to be done first.
    pub orders: Vec<Order>,
    pub answer: oneshot::Sender<Snapshot>,
}

/// A dead run that the operator wants to be cleaned up after, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    pub container: ContainerId,
    /// Also if it is unknown: the operator says that it is dead.
    pub forced: bool,
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ordered {
    /// Two looks at the host have to agree first.
    Looking,
    /// Its case is open.
    AtWork,
    Closed {
        case: CaseId,
        result: CaseResult,
        containers: usize,
        cgroups_removed: usize,
    },
    /// There was nothing to do.
    NothingLeft,
    /// Nothing was done, for this reason.
    Refused(String),
}

impl Ordered {
    pub fn is_over(&self) -> bool {
        !matches!(self, Self::Looking | Self::AtWork)
    }
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
    /// What became of the operator's orders of the last minutes.
    pub ordered: Vec<(ContainerId, Ordered)>,
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
