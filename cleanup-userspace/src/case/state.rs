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
    /// When the one began that Docker has not answered.
    sweeping: Option<u64>,
    sweep_due: Option<u64>,
    sweep_failures: u32,
    seen_owned: bool,
    /// The last look found processes of the pod.
    pod_ran: bool,
    /// Until when nothing is removed, since something was busy.
    pub busy_until: Option<u64>,
    /// When Docker last answered as it should, or was first asked after it owed nothing.
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
            pod_ran: false,
            record: Record::new(case, run, death),
            quiet_since: None,
            swept_at: None,
            sweeping: None,
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
        // What was quiet is so no more, whoever knows what it is that runs.
        let pod_runs = look.pod_processes > 0;
        let pod_ran = std::mem::replace(&mut self.pod_ran, pod_runs);
        let begins = pod_runs && !pod_ran;
        if running > 0 || begins || !look.own_processes.is_empty() {
            self.quiet_since = None;
            self.record.clean_ns = None;
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
        Facts {
            proof: self.record.death.origin.proof(),
            excluded,
            held,
            to_stop,
            kept,
            in_flight,
            sweeping: self.is_sweeping(),
            retry_in: due
                .filter(|due| *due > now)
                .map(|due| Duration::from_nanos(due - now)),
            docker_silent_for: self.is_owed().then(|| since(self.answered_at)),
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

    /// Whether Docker owes an answer.
    fn is_owed(&self) -> bool {
        let open = |c: &Contained| matches!(c.progress, Progress::Asked | Progress::Failed { .. });
        self.is_sweeping() || self.sweep_failures > 0 || self.record.containers.values().any(open)
    }

    /// Docker is asked for something: from now on it owes an answer.
    fn is_asking(&mut self, now: u64) {
        if !self.is_owed() {
            self.answered_at = now;
        }
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
        self.is_asking(now);
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

    /// Containers of the pod that ran at `as_of` or later; returns those that are new to
    /// the case.
    pub fn join(&mut self, found: Vec<Found>, as_of: u64) -> Vec<Found> {
        let mut new = Vec::new();
        for found in found {
            let known = self.record.containers.contains_key(&found.id);
            let container = self
                .record
                .containers
                .entry(found.id.clone())
                .or_insert_with(|| Contained::found(&found));
            // It runs, although it had ended: started again.
            let has_ended = matches!(container.progress, Progress::Ended(_));
            if has_ended && container.ended_ns.is_none_or(|ended| ended < as_of) {
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

    /// Kept containers that do not run any more. Docker is asked anew after that: one may
    /// only wait for its restart.
    pub fn kept_ended(&mut self, runs: impl Fn(&str) -> bool, now: u64) {
        for (id, container) in &mut self.record.containers {
            if container.progress == Progress::Kept && !runs(id) {
                container.progress = Progress::Ended(Ending::Already);
                container.ended_ns = Some(now);
                self.quiet_since = None;
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

    pub fn sweep_began(&mut self, now: u64) {
        self.is_asking(now);
        self.sweeping = Some(now);
    }

    pub fn is_sweeping(&self) -> bool {
        self.sweeping.is_some()
    }

    /// Docker says what runs: at the time that is returned, or later.
    pub fn sweep_succeeded(&mut self, now: u64) -> u64 {
        let began = self.sweeping.take().unwrap_or(now);
        self.swept_at = Some(began);
        self.sweep_due = None;
        self.sweep_failures = 0;
        self.answered_at = now;
        began
    }

    pub fn sweep_failed(&mut self, now: u64) {
        self.sweeping = None;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Origin;
    use crate::docker::JoinKey;
    use crate::mesos::AgentState;

    const SECOND: u64 = 1_000_000_000;

    fn state() -> CaseState {
        let death = Death {
            origin: Origin::Kernel,
            at_ns: 0,
            noticed_ns: 0,
            at_unix: 0.0,
            wait_status: None,
            sat_in: None,
        };
        CaseState::new(CaseId::next(), Run::specimen(), death, 0)
    }

    fn found() -> Vec<Found> {
        vec![Found {
            id: "a".to_owned(),
            key: JoinKey::Cgroup,
            keep: false,
        }]
    }

    fn facts(state: &mut CaseState, now: u64) -> Facts {
        facts_beside(state, now, 0)
    }

    fn facts_beside(state: &mut CaseState, now: u64, pod_processes: usize) -> Facts {
        let look = Look {
            directories: Vec::new(),
            hierarchies: Vec::new(),
            own_processes: Vec::new(),
            shows_life: false,
            pod_processes,
            agent: AgentState::Alive,
            owned: Some(true),
            identity: None,
        };
        let given = Given {
            now,
            settle: Duration::from_secs(1),
            excluded: Some(false),
            held: false,
        };
        state.facts(&look, given)
    }

    fn answer(at: u64) -> Answer {
        Answer {
            id: "a".to_owned(),
            at_ns: at,
            outcome: Ok(Some(Ending::Term)),
        }
    }

    #[test]
    fn docker_is_silent_from_when_it_was_asked() {
        let mut state = state();
        let hour = 3_600 * SECOND;
        assert_eq!(facts(&mut state, hour).docker_silent_for, None);
        // Long after the case was opened, and long after the last answer.
        for began in [hour, 2 * hour] {
            state.sweep_began(began);
            let silent = facts(&mut state, began + SECOND).docker_silent_for;
            assert_eq!(silent, Some(Duration::from_secs(1)));
            state.join(found(), began);
            assert_eq!(state.sweep_succeeded(began + 2 * SECOND), began);
            assert_eq!(
                facts(&mut state, began + 3 * SECOND).docker_silent_for,
                None
            );
            state.asked("a", began + 60 * SECOND);
            let silent = facts(&mut state, began + 61 * SECOND).docker_silent_for;
            assert_eq!(silent, Some(Duration::from_secs(1)));
            // Asked for one thing more, it owes the first one as long as before.
            state.sweep_began(began + 62 * SECOND);
            let silent = facts(&mut state, began + 63 * SECOND).docker_silent_for;
            assert_eq!(silent, Some(Duration::from_secs(3)));
            state.sweep_succeeded(began + 64 * SECOND);
            state.answered(&answer(began + 65 * SECOND));
            assert_eq!(
                facts(&mut state, began + 66 * SECOND).docker_silent_for,
                None
            );
        }
    }

    /// However long the case has been quiet before.
    #[test]
    fn what_begins_to_run_is_asked_for_anew() {
        let mut state = state();
        let settled = |state: &mut CaseState, now: u64| {
            state.quiet_since = None;
            facts(state, now);
            state.sweep_began(now + 2 * SECOND);
            state.sweep_succeeded(now + 3 * SECOND);
            let facts = facts(state, now + 4 * SECOND);
            assert_eq!(facts.swept, Swept::Settled);
            assert_eq!(facts.quiet_for, Some(Duration::from_secs(4)));
        };
        let hour = 3_600 * SECOND;
        settled(&mut state, SECOND);
        // Processes of nobody knows what.
        assert_eq!(facts_beside(&mut state, hour, 1).quiet_for, None);
        let begun = facts_beside(&mut state, hour + SECOND, 1);
        assert_eq!(
            (begun.quiet_for, begun.swept),
            (Some(Duration::ZERO), Swept::Early)
        );
        let goes_on = facts_beside(&mut state, hour + 2 * SECOND, 2);
        assert_eq!(goes_on.quiet_for, Some(Duration::from_secs(1)));
        // They end, and others begin.
        let over = facts(&mut state, hour + 3 * SECOND);
        assert_eq!(over.quiet_for, Some(Duration::from_secs(2)));
        assert_eq!(
            facts_beside(&mut state, hour + 4 * SECOND, 1).quiet_for,
            None
        );
        // A kept container that was listed, and waits for its restart now.
        let mut kept = found();
        kept[0].keep = true;
        settled(&mut state, 2 * hour);
        state.join(kept.clone(), 2 * hour);
        assert_eq!(facts(&mut state, 3 * hour).kept, 1);
        state.kept_ended(|_| false, 3 * hour);
        let over = facts(&mut state, 3 * hour);
        assert_eq!((over.kept, over.swept), (0, Swept::Early));
        state.sweep_began(3 * hour + 1);
        let began = state.sweep_succeeded(3 * hour + 2);
        state.join(kept, began);
        assert_eq!(facts(&mut state, 3 * hour + 3).kept, 1);
    }

    #[test]
    fn a_list_from_before_an_end_does_not_undo_it() {
        let mut state = state();
        state.join(found(), 1);
        state.asked("a", 2);
        state.sweep_began(3);
        state.answered(&answer(4));
        let began = state.sweep_succeeded(5);
        assert_eq!(state.join(found(), began), vec![]);
        assert_eq!(facts(&mut state, 6).to_stop, 0);
        assert_eq!(state.record.clean_ns, Some(6));
        // It was started again.
        state.sweep_began(7);
        let began = state.sweep_succeeded(8);
        state.join(found(), began);
        assert_eq!(facts(&mut state, 9).to_stop, 1);
        assert_eq!(state.record.clean_ns, None, "it is not clean any more");
    }
}
