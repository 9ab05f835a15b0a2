//! When to compare what exists with what is known, and when to believe it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::core::Message;
use crate::case::Host;
use crate::mesos::ContainerId;
use crate::reconcile::{Unknown, survey};
use crate::registry::Run;

/// Between the two looks that must agree before a run found dead by comparison
/// is believed to be: a run that is being set up looks dead for a moment.
pub const SECOND_LOOK: Duration = Duration::from_secs(2);

/// Runs one survey at a time.
#[derive(Debug)]
pub struct Surveyor {
    host: Arc<Host>,
    sender: UnboundedSender<Message>,
    /// Runs that the last survey found dead.
    suspects: HashSet<ContainerId>,
    /// Runs that were reported as unknown.
    unknown: HashSet<ContainerId>,
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
            let found = tokio::task::spawn_blocking(move || survey(&host, &known)).await;
            let _ = sender.send(Message::Surveyed(found.unwrap_or_default()));
        });
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

    /// Says once of each unknown run that it is left alone, and why.
    pub fn report_unknown(&mut self, unknown: &BTreeMap<ContainerId, Unknown>) {
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
