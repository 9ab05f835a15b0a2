//! What a case remembers between two looks, and the facts that follow from it.
//! No clock, no host: times and answers come in.

use std::time::Duration;

use super::decide::{Facts, Ownership, Swept};
use super::effects::Look;
use super::pod::{Answer, Found};
use super::record::{Contained, Progress, Record};
use super::{Death, Ending};
use crate::journal::CaseId;
use crate::registry::Run;

/// Repeating a refused request: doubling from the first to the longest.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// One case between two looks. All times are CLOCK_MONOTONIC.
#[derive(Debug)]
pub struct CaseState {
    pub record: Record,
    quiet_since: Option<u64>,
    /// When the last sweep that succeeded began.
    swept_at: Option<u64>,
    sweep_due: Option<u64>,
    sweep_failures: u32,
    seen_owned: bool,
    /// Until when nothing is removed, since something was busy.
    pub busy_until: Option<u64>,
    /// When Docker last answered as it should, or was first asked.
    answered_at: u64,
}

/// What a look and the host's configuration add to the facts.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    pub now: u64,
    pub settle: Duration,
    pub excluded: Option<bool>,
    pub held: bool,
}

impl CaseState {
    pub fn new(case: CaseId, run: Run, death: Death, now: u64) -> Self {
        Self {
            seen_owned: run.owned,
            record: Record::new(case, run, death),
            quiet_since: None,
            swept_at: None,
            sweep_due: None,
            sweep_failures: 0,
            busy_until: None,
            answered_at: now,
        }
    }

    /// The facts now; keeps account of since when they are so.
    pub fn facts(&mut self, look: &Look, given: Given) -> Facts {
        let Given {
            now,
            settle,
            excluded,
            held,
        } = given;
        let (mut to_stop, mut in_flight, mut kept, mut due) = (0, 0, 0, self.sweep_due);
        for container in self.record.containers.values() {
            match container.progress {
                Progress::Found => to_stop += 1,
                Progress::Failed { due_ns } if due_ns <= now => to_stop += 1,
                Progress::Failed { due_ns } => {
                    due = Some(due.map_or(due_ns, |due| due.min(due_ns)));
                }
                Progress::Asked => in_flight += 1,
                Progress::Kept => kept += 1,
                Progress::Ended(_) => {}
            }
        }
        let containers = self.record.containers.values();
        let running = containers
            .filter(|c| !matches!(c.progress, Progress::Ended(_) | Progress::Kept))
            .count();
        if running > 0 || !look.own_processes.is_empty() {
            self.quiet_since = None;
        } else {
            self.quiet_since.get_or_insert(now);
            let ended = self.record.containers.values().filter_map(|c| c.ended_ns);
            self.record.stopped_ns = ended.max();
            if look.directories.is_empty() {
                self.record.clean_ns.get_or_insert(now);
            } else {
                self.record.clean_ns = None;
            }
        }
        let swept = match (self.swept_at, self.quiet_since) {
            (None, _) => Swept::Never,
            (Some(swept), Some(quiet)) if swept >= quiet.saturating_add(nanos(settle)) => {
                Swept::Settled
            }
            (Some(swept), Some(quiet)) if swept >= quiet => Swept::Quiet,
            (Some(_), _) => Swept::Early,
        };
        let since = |at: u64| Duration::from_nanos(now.saturating_sub(at));
        let owes = in_flight > 0 || self.sweep_failures > 0 || self.failed();
        Facts {
            proof: self.record.death.origin.proof(),
            excluded,
            held,
            to_stop,
            kept,
            in_flight,
            retry_in: due
                .filter(|due| *due > now)
                .map(|due| Duration::from_nanos(due - now)),
            docker_silent_for: owes.then(|| since(self.answered_at)),
            pod_processes: look.pod_processes,
            quiet_for: self.quiet_since.map(since),
            swept,
            own_processes: look.own_processes.len(),
            shows_life: look.shows_life,
            agent: look.agent,
            ownership: Ownership::of(look.owned, self.seen_owned),
            directories: look.directories.clone(),
            busy: self.busy_until.is_some_and(|until| until > now),
            age: since(self.record.death.at_ns),
        }
    }

    fn failed(&self) -> bool {
        let mut containers = self.record.containers.values();
        containers.any(|c| matches!(c.progress, Progress::Failed { .. }))
    }

    /// Takes over what a look found beside the facts. `verified`: the runtime
    /// directory is the running agent's, so that absence from it means something.
    pub fn looked(&mut self, look: &Look, verified: bool) {
        self.seen_owned |= look.owned == Some(true) || verified;
        let known = self.record.run.identity.take();
        self.record.run.identity = known.or_else(|| look.identity.clone());
    }

    /// Containers that are to be asked to end now.
    pub fn due(&self, now: u64) -> Vec<String> {
        let due = |container: &Contained| match container.progress {
            Progress::Found => true,
            Progress::Failed { due_ns } => due_ns <= now,
            Progress::Asked | Progress::Kept | Progress::Ended(_) => false,
        };
        let containers = self.record.containers.iter();
        containers
            .filter(|(_, container)| due(container))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Returns when it was asked for the first time.
    pub fn asked(&mut self, id: &str, now: u64) -> u64 {
        let Some(container) = self.record.containers.get_mut(id) else {
            return now;
        };
        container.progress = Progress::Asked;
        *container.asked_ns.get_or_insert(now)
    }

    pub fn is_asked(&self) -> bool {
        let mut containers = self.record.containers.values();
        containers.any(|c| c.progress == Progress::Asked)
    }

    /// Containers of the pod that run; returns those that are new to the case.
    pub fn join(&mut self, found: Vec<Found>) -> Vec<Found> {
        let mut new = Vec::new();
        for found in found {
            let known = self.record.containers.contains_key(&found.id);
            let container = self
                .record
                .containers
                .entry(found.id.clone())
                .or_insert_with(|| Contained::found(&found));
            // It runs, although it had ended: started again.
            if matches!(container.progress, Progress::Ended(_)) {
                container.progress = Progress::of(&found);
            }
            if !known {
                new.push(found);
            }
        }
        new
    }

    /// A better key than the one that joined a container takes its place.
    pub fn trust(&mut self, found: &[Found]) {
        for Found { id, key, .. } in found {
            if let Some(container) = self.record.containers.get_mut(id) {
                container.key = container.key.min(*key);
            }
        }
    }

    /// Kept containers that do not run any more.
    pub fn kept_ended(&mut self, runs: impl Fn(&str) -> bool, now: u64) {
        for (id, container) in &mut self.record.containers {
            if container.progress == Progress::Kept && !runs(id) {
                container.progress = Progress::Ended(Ending::Already);
                container.ended_ns = Some(now);
            }
        }
    }

    pub fn kept(&self) -> Vec<String> {
        let containers = self.record.containers.iter();
        containers
            .filter(|(_, container)| container.progress == Progress::Kept)
            .map(|(id, _)| id.clone())
            .collect()
    }

    pub fn sweep_succeeded(&mut self, began: u64, now: u64) {
        self.swept_at = Some(began);
        self.sweep_due = None;
        self.sweep_failures = 0;
        self.answered_at = now;
    }

    pub fn sweep_failed(&mut self, now: u64) {
        self.sweep_due = Some(now + nanos(retry_after(self.sweep_failures)));
        self.sweep_failures += 1;
    }

    /// Docker is said to be there again: nothing waits for its time.
    pub fn retry_now(&mut self, now: u64) {
        self.sweep_due = None;
        for container in self.record.containers.values_mut() {
            if let Progress::Failed { due_ns } = &mut container.progress {
                *due_ns = now.min(*due_ns);
            }
        }
    }

    /// Docker's answer to a request; returns how the container ended, if it did.
    pub fn answered(&mut self, answer: &Answer) -> Option<Ending> {
        let is_dockers = !matches!(answer.outcome, Ok(Some(Ending::Unconfirmed)) | Err(_));
        if is_dockers {
            self.answered_at = answer.at_ns;
        }
        let container = self.record.containers.get_mut(&answer.id)?;
        match answer.outcome {
            Ok(Some(ending)) => {
                let ending = if container.killed_by_cgroup {
                    Ending::CgroupKill
                } else {
                    ending
                };
                container.progress = Progress::Ended(ending);
                container.ended_ns = Some(answer.at_ns);
                Some(ending)
            }
            // Again later: it was stopped and runs, or Docker did not do it.
            Ok(None) | Err(_) => {
                container.fail(answer.at_ns + nanos(retry_after(container.failures)));
                None
            }
        }
    }

    /// The pod was ended through its cgroups: what Docker says later of those
    /// that have not ended is that.
    pub fn pod_killed(&mut self) {
        for container in self.record.containers.values_mut() {
            let open = matches!(
                container.progress,
                Progress::Asked | Progress::Failed { .. }
            );
            container.killed_by_cgroup |= open;
        }
    }
}

pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn retry_after(failures: u32) -> Duration {
    FIRST_RETRY
        .saturating_mul(1 << failures.min(8))
        .min(LONGEST_RETRY)
}
