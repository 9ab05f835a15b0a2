//! The open cases and the tombstones of closed ones.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::timeout_at;

use super::core::Message;
use crate::case::{
    CaseMessage, CaseResult, Death, Glance, Host, Proof, Reaper, Record, close_account,
    is_excluded, key_of,
};
use crate::config::Mode;
use crate::docker::{ContainerInfo, named_runs};
use crate::inbox::Request;
use crate::journal::{CaseId, Closing, Unfinished};
use crate::mesos::ContainerId;
use crate::metrics::Panicked;
use crate::process::monotonic_ns;
use crate::registry::Run;
use crate::serve::CaseAtWork;

/// Closed runs that are remembered, so that a late container reopens its case at
/// once; for a run that is not any more, the next survey does.
const TOMBSTONES: usize = 2_000;

const LATE: &str = "a container came after its executor's case was closed: reopened";

const LEFT_ALONE: &str = "a dead run was left alone, and is not to be any more (the configuration has changed): its case begins again";

/// Every case of this daemon's life.
#[derive(Debug)]
pub struct Casebook {
    host: Arc<Host>,
    sender: UnboundedSender<Message>,
    open: HashMap<ContainerId, Open>,
    tombstones: HashMap<ContainerId, Tombstone>,
    /// The tombstones, oldest first.
    buried: VecDeque<ContainerId>,
    /// Cases that were open when the daemon ended, and have not begun again.
    unfinished: HashMap<ContainerId, CaseId>,
    /// For the closing line.
    pub cases: u64,
    pub containers: usize,
    /// How many of the cases came to each result.
    pub results: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
struct Open {
    case: CaseId,
    /// CLOCK_MONOTONIC.
    since_ns: u64,
    inbox: UnboundedSender<CaseMessage>,
    glance: Glance,
    run: Run,
    death: Death,
    /// Its task died once already.
    panicked: bool,
}

#[derive(Debug)]
struct Tombstone {
    /// What its case is called if it begins again.
    case: CaseId,
    run: Run,
    death: Death,
    /// What its case came to.
    result: CaseResult,
    /// When nothing at all was left; `None` where something was left on purpose.
    clean_since: Option<Instant>,
}

impl Casebook {
    pub fn new(host: Arc<Host>, sender: UnboundedSender<Message>) -> Self {
        Self {
            unfinished: HashMap::new(),
            host,
            sender,
            open: HashMap::new(),
            tombstones: HashMap::new(),
            buried: VecDeque::new(),
            cases: 0,
            containers: 0,
            results: BTreeMap::new(),
        }
    }

    /// Whether the run's case is open or was closed.
    pub fn knows(&self, container: ContainerId) -> bool {
        self.open.contains_key(&container) || self.tombstones.contains_key(&container)
    }

    /// The run of a closed case, and how its death is known.
    pub fn closed(&self, container: ContainerId) -> Option<(&Run, Proof)> {
        let Tombstone { run, death, .. } = self.tombstones.get(&container)?;
        (!self.is_open(container)).then(|| (run, death.origin.proof()))
    }

    /// Whether the run's case is at work now.
    pub fn is_open(&self, container: ContainerId) -> bool {
        self.open.contains_key(&container)
    }

    pub fn known(&self) -> impl Iterator<Item = ContainerId> {
        self.open.keys().chain(self.tombstones.keys()).copied()
    }

    pub fn open_cases(&self) -> usize {
        self.open.len()
    }

    /// The open cases, as they are now.
    pub fn at_work(&self) -> Vec<CaseAtWork> {
        let at_work = |open: &Open| CaseAtWork {
            run: open.run.clone(),
            death: open.death.clone(),
            seen: open.glance.seen(),
        };
        self.open.values().map(at_work).collect()
    }

    /// Those of the closed runs for which `wanted` is true, and how they died.
    pub fn closed_runs(&self, wanted: impl Fn(&Run) -> bool) -> Vec<(Run, Death)> {
        let closed = self.tombstones.values();
        closed
            .filter(|tombstone| wanted(&tombstone.run))
            .filter(|tombstone| !self.is_open(tombstone.run.container))
            .map(|tombstone| (tombstone.run.clone(), tombstone.death.clone()))
            .collect()
    }

    /// Opens a case. The first wave of stop requests is sent before it returns.
    pub fn open(&mut self, run: Run, death: Death) {
        let container = run.container;
        let unfinished = self.unfinished.remove(&container);
        let buried = self.tombstones.get(&container);
        // As it was called before, here or in an earlier life of the daemon: the log and
        // the journal agree.
        let case = unfinished
            .or_else(|| buried.map(|tombstone| tombstone.case))
            .unwrap_or_else(CaseId::next);
        self.start(case, run, death, false);
    }

    fn start(&mut self, case: CaseId, run: Run, death: Death, panicked: bool) {
        let container = run.container;
        let ground = Arc::clone(&self.host);
        let (reaper, inbox) = Reaper::open(ground, case, run.clone(), death.clone());
        if let Some(identity) = &run.identity {
            self.host
                .registry()
                .ended(container, identity.executor_id.clone());
        }
        self.open.insert(
            container,
            Open {
                case,
                since_ns: monotonic_ns(),
                inbox,
                glance: reaper.glance(),
                run,
                death,
                panicked,
            },
        );
        self.note_oldest();
        let sender = self.sender.clone();
        let work = tokio::spawn(reaper.run());
        tokio::spawn(async move {
            let _ = sender.send(match work.await {
                Ok(record) => Message::Closed(Box::new(record)),
                Err(_) => Message::Panicked(container),
            });
        });
    }

    /// A case came to its end: writes its line and buries it.
    pub fn close(&mut self, record: Record) {
        let container = record.run.container;
        self.open.remove(&container);
        self.note_oldest();
        self.host.metrics.case_closed(&record);
        if record.is_case() {
            self.cases += 1;
            self.containers += record.containers.len();
            *self.results.entry(record.result.as_str()).or_default() += 1;
            record.log();
        } else {
            tracing::debug!(%container, "an executor ended and left nothing behind");
        }
        if record.result != CaseResult::HandedOver {
            close_account(&self.host.journal, &record);
        }
        // What is not dead is no tombstone: the next survey judges it anew. Nor is what
        // only the operator called dead: that was said of what was there then.
        let is_dead = record.death.origin.proof() != Proof::Word
            && !matches!(
                record.result,
                CaseResult::HandedOver | CaseResult::Dismissed
            );
        if !is_dead {
            return;
        }
        let Record {
            case,
            run,
            death,
            result,
            ..
        } = record;
        if let Some(identity) = &run.identity {
            self.host
                .registry()
                .ended(container, identity.executor_id.clone());
        }
        // What was started while the case closed was told to a case that did not
        // listen any more; the index has it.
        let late = result == CaseResult::Clean
            && self
                .host
                .index
                .running_that_may_be_of(container)
                .iter()
                .any(|info| key_of(&self.host, &run, info).is_some());
        let again = late.then(|| (run.clone(), death.clone()));
        // The paths it sat in are most of its size; without them what the event did
        // not tell of counts as the agent's.
        let run = Run { seat: None, ..run };
        let clean_since = (result == CaseResult::Clean).then(Instant::now);
        self.bury(Tombstone {
            case,
            run,
            death,
            result,
            clean_since,
        });
        if let Some((run, death)) = again {
            self.reopen(run, death, LATE);
        }
        // Decided by a word that does not hold any more.
        self.reopen_if_due(container);
    }

    fn bury(&mut self, tombstone: Tombstone) {
        let container = tombstone.run.container;
        if self.tombstones.insert(container, tombstone).is_none() {
            self.buried.push_back(container);
        }
        while self.buried.len() > TOMBSTONES {
            if let Some(oldest) = self.buried.pop_front() {
                self.tombstones.remove(&oldest);
            }
        }
    }

    /// Cases that an earlier start left open.
    pub fn expect(&mut self, unfinished: &[Unfinished]) {
        let of = |unfinished: &Unfinished| {
            Some((unfinished.opening.container.parse().ok()?, unfinished.case))
        };
        self.unfinished.extend(unfinished.iter().filter_map(of));
    }

    /// After everything was looked at: cases of an earlier life whose runs have
    /// left nothing behind are over. What is unknown stays open.
    pub fn settle_unfinished(&mut self, is_unknown: impl Fn(ContainerId) -> bool) {
        let lives = |container| self.host.registry().get(container).is_some();
        let mut over = Vec::new();
        self.unfinished.retain(|container, case| {
            let open = is_unknown(*container);
            if !open {
                over.push((*container, *case, lives(*container)));
            }
            open
        });
        for (container, case, lives) in over {
            let result = if lives { "dismissed" } else { "clean" };
            tracing::info!(%container, %case, result, "a case of an earlier start: nothing is left to do");
            let closing = Closing {
                result: result.into(),
                ..Closing::default()
            };
            self.host.journal.closed(case, closing);
        }
    }

    /// A case's task died: a defect, which must not cost the pod. It is begun
    /// again once.
    pub fn panicked(&mut self, container: ContainerId) {
        let Some(open) = self.open.remove(&container) else {
            return;
        };
        self.note_oldest();
        self.host.metrics.panicked(Panicked::Case);
        if open.panicked {
            tracing::error!(%container, "the task of a case panicked again; the case is given up until the next start");
            if open.death.origin.proof() == Proof::Word {
                return;
            }
            self.bury(Tombstone {
                case: open.case,
                run: open.run,
                death: open.death,
                result: CaseResult::Open,
                clean_since: None,
            });
        } else {
            tracing::error!(%container, "the task of a case panicked; it begins again");
            self.start(open.case, open.run, open.death, true);
        }
    }

    fn note_oldest(&self) {
        let oldest = self.open.values().map(|open| open.since_ns).min();
        self.host.metrics.oldest_open_case(oldest);
    }

    /// A case's task died while the daemon stops.
    pub fn forget(&mut self, container: ContainerId) {
        self.open.remove(&container);
    }

    /// A container that runs: if it belongs to a dead run, its case goes on, or
    /// begins again.
    pub fn on_active(&mut self, info: &Arc<ContainerInfo>) {
        for container in named_runs(info, self.host.roots()) {
            if let Some(case) = self.open.get(&container) {
                // A case that does not listen any more is about to be closed:
                // that looks at the index.
                let _ = case.inbox.send(CaseMessage::Active(Arc::clone(info)));
                continue;
            }
            let Some(Tombstone { run, death, .. }) = self.tombstones.get(&container) else {
                continue;
            };
            if key_of(&self.host, run, info).is_some() {
                let (run, death) = (run.clone(), death.clone());
                self.reopen(run, death, LATE);
            }
        }
    }

    /// A look at everything that began at `began` found cgroups of these runs: a
    /// start that fails in Docker makes them anew, and no container comes of it.
    pub fn have_cgroups(&mut self, containers: &[ContainerId], began: Instant) {
        for container in containers {
            let Some(tombstone) = self.tombstones.get(container) else {
                continue;
            };
            let came_back = tombstone.clean_since.is_some_and(|since| since < began);
            if came_back && !self.is_open(*container) {
                let (run, death) = (tombstone.run.clone(), tombstone.death.clone());
                self.reopen(
                    run,
                    death,
                    "cgroups came back after their executor's case was closed: reopened",
                );
            }
        }
    }

    /// Begins the closed case of a dead run again, if there is one.
    pub fn reopen_closed(&mut self, container: ContainerId) -> bool {
        let Some(Tombstone { run, death, .. }) = self.tombstones.get(&container) else {
            return false;
        };
        let (run, death) = (run.clone(), death.clone());
        self.reopen(
            run,
            death,
            "the operator wants a closed case to be looked at: reopened",
        );
        true
    }

    /// The configuration is another one: open cases go by it from now on, and those
    /// that were left alone, and are not to be any more, begin again.
    pub fn reconfigured(&self) {
        self.tell_all(|| CaseMessage::Nudge);
        for container in self.tombstones.keys() {
            if self.is_due(*container) {
                // One by one, between exits: there may be thousands.
                let _ = self.sender.send(Message::Due(*container));
            }
        }
    }

    /// Begins the case of a run again that was left alone, if it is not to be now.
    pub fn reopen_if_due(&mut self, container: ContainerId) {
        if !self.is_due(container) {
            return;
        }
        if let Some(Tombstone { run, death, .. }) = self.tombstones.get(&container) {
            let (run, death) = (run.clone(), death.clone());
            self.reopen(run, death, LEFT_ALONE);
        }
    }

    fn is_due(&self, container: ContainerId) -> bool {
        let config = self.host.config();
        if config.mode != Mode::Enforce || self.is_open(container) {
            return false;
        }
        let excluded = |run: &Run| is_excluded(&config.exclude, run.identity.as_ref());
        match self.tombstones.get(&container) {
            Some(Tombstone { run, result, .. }) => match result {
                CaseResult::Observed => excluded(run) != Some(true),
                CaseResult::Excluded => excluded(run) == Some(false),
                CaseResult::Open
                | CaseResult::Clean
                | CaseResult::Dismissed
                | CaseResult::HandedOver => false,
            },
            None => false,
        }
    }

    /// Ends the cases that are open without beginning anything new, within the
    /// configured deadline. All other messages of the loop come to nothing.
    pub async fn hand_over(&mut self, messages: &mut UnboundedReceiver<Message>) {
        self.tell_all(|| CaseMessage::HandOver);
        let deadline = tokio::time::Instant::now() + self.host.config().shutdown_deadline;
        while self.open_cases() > 0 {
            match timeout_at(deadline, messages.recv()).await {
                Ok(Some(Message::Closed(record))) => self.close(*record),
                Ok(Some(Message::Panicked(container))) => {
                    tracing::error!(%container, "the task of a case panicked; the next start finds the run again");
                    self.forget(container);
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }

    fn reopen(&mut self, run: Run, death: Death, why: &str) {
        tracing::info!(container = %run.container, "{why}");
        self.open(run, death);
    }

    /// The hook told of an executor: whoever has its case records that. Returns
    /// whether a case of it is open or was closed.
    pub fn requested(&self, request: &Request) -> bool {
        self.tell_all(|| CaseMessage::Requested(request.clone()));
        let open = self.open.values().map(|open| &open.run);
        let closed = self.tombstones.values().map(|tombstone| &tombstone.run);
        open.chain(closed).any(|run| {
            run.identity
                .as_ref()
                .is_some_and(|identity| request.names(identity))
        })
    }

    /// Something changed for one run: its case, if open, looks again.
    pub fn nudge(&self, container: ContainerId) -> bool {
        self.open
            .get(&container)
            .is_some_and(|case| case.inbox.send(CaseMessage::Nudge).is_ok())
    }

    pub fn tell_all(&self, message: impl Fn() -> CaseMessage) {
        for case in self.open.values() {
            let _ = case.inbox.send(message());
        }
    }
}
