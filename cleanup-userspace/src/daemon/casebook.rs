//! The open cases and the tombstones of closed ones.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use super::core::Message;
use crate::case::{CaseMessage, CaseResult, Death, Host, Reaper, Record, key_of};
use crate::docker::{ContainerInfo, named_runs};
use crate::mesos::ContainerId;
use crate::registry::Run;

/// Closed runs that are remembered, so that a late container reopens its case.
const TOMBSTONES: usize = 10_000;

/// Every case of this daemon's life.
#[derive(Debug)]
pub struct Casebook {
    host: Arc<Host>,
    sender: UnboundedSender<Message>,
    open: HashMap<ContainerId, UnboundedSender<CaseMessage>>,
    tombstones: HashMap<ContainerId, (Run, Death)>,
    /// The tombstones, oldest first.
    buried: VecDeque<ContainerId>,
    /// For the closing line.
    pub cases: u64,
    pub containers: usize,
}

impl Casebook {
    pub fn new(host: Arc<Host>, sender: UnboundedSender<Message>) -> Self {
        Self {
            host,
            sender,
            open: HashMap::new(),
            tombstones: HashMap::new(),
            buried: VecDeque::new(),
            cases: 0,
            containers: 0,
        }
    }

    /// Whether the run's case is open or was closed.
    pub fn knows(&self, container: ContainerId) -> bool {
        self.open.contains_key(&container) || self.tombstones.contains_key(&container)
    }

    pub fn known(&self) -> impl Iterator<Item = ContainerId> {
        self.open.keys().chain(self.tombstones.keys()).copied()
    }

    pub fn open_cases(&self) -> usize {
        self.open.len()
    }

    /// Opens a case. The first wave of stop requests is sent before it returns.
    pub fn open(&mut self, run: Run, death: Death) {
        let container = run.container;
        let (reaper, case) = Reaper::open(Arc::clone(&self.host), run, death);
        self.open.insert(container, case);
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
        if record.is_case() {
            self.cases += 1;
            self.containers += record.containers.len();
            record.log();
        } else {
            tracing::debug!(%container, "an executor ended and left nothing behind");
        }
        if record.result == CaseResult::HandedOver {
            return;
        }
        if let Some(identity) = &record.run.identity {
            self.host
                .registry()
                .ended(container, identity.executor_id.clone());
        }
        if self
            .tombstones
            .insert(container, (record.run, record.death))
            .is_none()
        {
            self.buried.push_back(container);
        }
        while self.buried.len() > TOMBSTONES {
            if let Some(oldest) = self.buried.pop_front() {
                self.tombstones.remove(&oldest);
            }
        }
    }

    /// A case's task died: its run may be found again.
    pub fn forget(&mut self, container: ContainerId) {
        self.open.remove(&container);
    }

    /// A container that runs: if it belongs to a dead run, its case goes on, or
    /// begins again.
    pub fn on_active(&mut self, info: &Arc<ContainerInfo>) {
        for container in named_runs(info, &self.host.roots()) {
            if let Some(case) = self.open.get(&container) {
                let _ = case.send(CaseMessage::Active(Arc::clone(info)));
                continue;
            }
            let Some((run, death)) = self.tombstones.get(&container) else {
                continue;
            };
            if key_of(&self.host, run, info).is_some() {
                tracing::info!(%container, docker = %info.id, "a container came after its executor's case was closed: reopened");
                self.open(run.clone(), death.clone());
            }
        }
    }

    /// Something changed for one run: its case, if open, looks again.
    pub fn nudge(&self, container: ContainerId) -> bool {
        self.open
            .get(&container)
            .is_some_and(|case| case.send(CaseMessage::Nudge).is_ok())
    }

    pub fn tell_all(&self, message: impl Fn() -> CaseMessage) {
        for case in self.open.values() {
            let _ = case.send(message());
        }
    }
}
