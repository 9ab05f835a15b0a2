//! When to compare what exists with what is known, and when to believe it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::core::Message;
use crate::case::{Host, Origin};
use crate::inbox::Request;
use crate::mesos::{ContainerId, Identity};
use crate::reconcile::{Survey, Unknown, survey};
use crate::registry::Run;

/// Between the two looks that must agree before a run found dead by comparison
/// is believed to be: a run that is being set up looks dead for a moment.
pub const SECOND_LOOK: Duration = Duration::from_secs(2);

/// Requests that are remembered, and for how long: a survey every minute looks for
/// what they name, and the executor's next run may die of something else.
const REQUESTS: usize = 1000;
const REMEMBERED: Duration = Duration::from_secs(300);

/// One survey, off the event path, and counted: [`survey`] itself serves those who
/// only ask, too. An error: it panicked.
pub async fn look(
    host: Arc<Host>,
    known: HashSet<ContainerId>,
) -> Result<Survey, tokio::task::JoinError> {
    let metrics = host.metrics.clone();
    let began = Instant::now();
    let found = tokio::task::spawn_blocking(move || survey(&host, &known)).await;
    match &found {
        Ok(_) => metrics.reconciled(began.elapsed()),
        Err(_) => metrics.reconcile_failed(),
    }
    found
}

/// Runs one survey at a time.
#[derive(Debug)]
pub struct Surveyor {
    host: Arc<Host>,
    sender: UnboundedSender<Message>,
    /// Runs that the last survey found dead.
    suspects: HashSet<ContainerId>,
    /// Runs that were reported as unknown.
    unknown: HashSet<ContainerId>,
    /// Executors that the hook named and nobody knew.
    requests: VecDeque<(Instant, Request)>,
    running: bool,
    /// Somebody asked for another one meanwhile.
    again: Option<Duration>,
}

impl Surveyor {
    pub fn new(host: Arc<Host>, sender: UnboundedSender<Message>) -> Self {
        Self {
            host,
            sender,
            suspects: HashSet::new(),
            unknown: HashSet::new(),
            requests: VecDeque::new(),
            running: false,
            again: None,
        }
    }

    /// Begins a survey `after` some time; its result comes as a message. While
    /// one runs, the wish is remembered.
    pub fn begin(&mut self, after: Duration, known: HashSet<ContainerId>) {
        if std::mem::replace(&mut self.running, true) {
            self.again = Some(self.again.map_or(after, |again| again.min(after)));
            return;
        }
        let (host, sender) = (Arc::clone(&self.host), self.sender.clone());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let found = look(host, known).await;
            let _ = sender.send(Message::Surveyed(found.unwrap_or_default()));
        });
    }

    /// Remembers whom the hook named, so that their deaths are said to be its find.
    pub fn remember(&mut self, request: Request) {
        self.requests
            .retain(|(since, _)| since.elapsed() < REMEMBERED);
        self.requests.push_back((Instant::now(), request));
        if self.requests.len() > REQUESTS {
            self.requests.pop_front();
        }
    }

    /// Who told of a death that a survey found.
    pub fn origin_of(&self, run: &Run) -> Origin {
        let named = |identity: &Identity| {
            self.requests
                .iter()
                .any(|(since, request)| since.elapsed() < REMEMBERED && request.names(identity))
        };
        if run.identity.as_ref().is_some_and(named) {
            Origin::Hook
        } else {
            Origin::Scan
        }
    }

    /// A survey is over. Returns when another one is due, if one is. With suspects
    /// the second look decides, and needs its distance from the first.
    pub fn finished(&mut self) -> Option<Duration> {
        self.running = false;
        let again = self.again.take();
        if self.suspects.is_empty() {
            again
        } else {
            Some(SECOND_LOOK)
        }
    }

    /// Takes the runs that one survey found dead; returns those that the one
    /// before found dead, too.
    pub fn confirm(&mut self, dead: Vec<Run>) -> Vec<Run> {
        let (confirmed, new): (Vec<Run>, Vec<Run>) = dead
            .into_iter()
            .partition(|run| self.suspects.contains(&run.container));
        self.suspects = new.iter().map(|run| run.container).collect();
        confirmed
    }

    /// How many runs the last survey could not judge.
    pub fn unknown_runs(&self) -> usize {
        self.unknown.len()
    }

    /// Says once of each unknown run that it is left alone, and why.
    pub fn report_unknown(&mut self, unknown: &BTreeMap<ContainerId, Unknown>) {
        self.host.metrics.unknown_runs(unknown.len());
        for (container, Unknown { why, .. }) in unknown {
            if self.unknown.insert(*container) {
                tracing::info!(%container, why, "unknown run: left alone");
            }
        }
        self.unknown
            .retain(|container| unknown.contains_key(container));
        let executor_ids = unknown
            .values()
            .map(|unknown| unknown.executor_id.clone())
            .collect();
        self.host.registry().set_unknown(executor_ids);
    }
}
