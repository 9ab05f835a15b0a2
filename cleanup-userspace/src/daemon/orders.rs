//! What the operator ordered to be cleaned up after, by `compose-cleanup clean`.
//!
//! An order is a reason to look, as a request of the hook is: a run that two looks find
//! dead becomes a case. Only of an unknown run the operator's word can be the proof;
//! then two looks find it unknown, and its case dismisses it if anything shows that
//! it lives.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::casebook::Casebook;
use super::surveyor::SECOND_LOOK;
use crate::case::{Death, Host, Origin, Record};
use crate::mesos::ContainerId;
use crate::process::Proc;
use crate::reconcile::{Survey, stranger};
use crate::registry::Run;
use crate::serve::{Order, Ordered};

/// How long it is told what became of an order, and how long at most two looks are
/// waited for.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The orders of the last minutes.
#[derive(Debug, Default)]
pub struct Orders(BTreeMap<ContainerId, Entry>);

#[derive(Debug)]
struct Entry {
    since: Instant,
    forced: bool,
    /// When the first of the looks began that could not judge it.
    first_look: Option<Instant>,
    state: Ordered,
}

impl Orders {
    /// Takes an order. What is proven dead already goes on at once; for the rest a
    /// survey has to be begun.
    pub fn take(&mut self, order: Order, host: &Host, casebook: &mut Casebook) {
        let Order { container, forced } = order;
        self.0.retain(|_, entry| {
            entry.since.elapsed() < REMEMBERED || entry.state == Ordered::AtWork
        });
        let state = if casebook.nudge(container) || casebook.reopen_closed(container) {
            Ordered::AtWork
        } else if let Some(pid) = living_process(host, container) {
            Ordered::Refused(format!("it lives: process {pid} runs"))
        } else {
            Ordered::Looking
        };
        tracing::info!(%container, forced, ?state, "the operator ordered a cleanup");
        let entry = Entry {
            since: Instant::now(),
            forced,
            first_look: None,
            state,
        };
        self.0.insert(container, entry);
    }

    /// Whether looks are needed.
    pub fn are_looking(&self) -> bool {
        self.0
            .values()
            .any(|entry| entry.state == Ordered::Looking && entry.since.elapsed() < REMEMBERED)
    }

    pub fn wants(&self, container: ContainerId) -> bool {
        self.0
            .get(&container)
            .is_some_and(|entry| entry.state == Ordered::Looking)
    }

    /// After the cases of a survey's dead were opened: what it means for the orders.
    /// Opens those that the operator's word is enough for. `complete`: Docker's part
    /// was known.
    pub fn on_survey(
        &mut self,
        survey: &Survey,
        complete: bool,
        host: &Host,
        casebook: &mut Casebook,
    ) {
        let Some(began) = survey.began else { return };
        for (container, entry) in &mut self.0 {
            let container = *container;
            if entry.state != Ordered::Looking {
                continue;
            }
            if casebook.is_open(container) {
                entry.state = Ordered::AtWork;
                continue;
            }
            let lives = survey.live.iter().find(|run| run.container == container);
            let lives = lives.and_then(|run| run.helper.map(|helper| helper.pid));
            if let Some(pid) = lives.or_else(|| living_process(host, container)) {
                entry.state = Ordered::Refused(format!("it lives: process {pid} runs"));
            }
            if entry.state != Ordered::Looking || began < entry.since {
                continue;
            }
            if let Some(unknown) = survey.unknown.get(&container) {
                if !entry.forced {
                    entry.state = Ordered::Refused(format!("it is unknown: {}", unknown.why));
                } else if began.duration_since(*entry.first_look.get_or_insert(began))
                    >= SECOND_LOOK
                {
                    let run = unknown.run.as_deref().cloned();
                    let run =
                        run.unwrap_or_else(|| stranger(host, container, &host.index.running()));
                    tracing::warn!(%container, why = unknown.why, "an unknown run that the operator calls dead");
                    casebook.open(run, Death::noticed(Origin::Forced));
                    entry.state = Ordered::AtWork;
                }
                continue;
            }
            let is_known = host.registry().get(container).is_some();
            let is_dead = survey.dead.iter().any(|run| run.container == container);
            if complete && !is_known && !is_dead {
                entry.state = Ordered::NothingLeft;
            }
        }
    }

    /// A case's task is done; whether it was ordered or not, it is closed.
    pub fn on_closed(&mut self, record: Record, casebook: &mut Casebook) {
        let container = record.run.container;
        let closed = Ordered::Closed {
            case: record.case,
            result: record.result,
            containers: record.containers.len(),
            cgroups_removed: record.directories_removed,
        };
        casebook.close(record);
        // A late container opens it again.
        let is_open = casebook.is_open(container);
        self.becomes(container, if is_open { Ordered::AtWork } else { closed });
    }

    /// A case's task died: it is begun again, or given up.
    pub fn on_panicked(&mut self, container: ContainerId, casebook: &mut Casebook) {
        casebook.panicked(container);
        if !casebook.is_open(container) {
            let why = "a defect ended its case; the log has more".to_owned();
            self.becomes(container, Ordered::Refused(why));
        }
    }

    fn becomes(&mut self, container: ContainerId, state: Ordered) {
        if let Some(entry) = self.0.get_mut(&container) {
            entry.state = state;
        }
    }

    /// What became of each.
    pub fn states(&self) -> Vec<(ContainerId, Ordered)> {
        let states = self.0.iter();
        states
            .map(|(container, entry)| (*container, entry.state.clone()))
            .collect()
    }
}

/// A process of a registered run that lives.
fn living_process(host: &Host, container: ContainerId) -> Option<u32> {
    let registry = host.registry();
    let Run {
        helper, executor, ..
    } = registry.get(container)?;
    let processes = executor.iter().chain(helper);
    let mut living = processes.copied().filter(|proc| Proc::is_alive(*proc));
    living.next().map(|proc| proc.pid)
}
