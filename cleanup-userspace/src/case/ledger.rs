//! One case's account in the journal.

use std::os::unix::ffi::OsStrExt as _;

use super::decide::{Ownership, Step};
use super::record::{Record, key_name};
use super::{Death, Ending};
use crate::docker::JoinKey;
use crate::journal::{CaseId, Closing, Journal, Opening, unix_ns};
use crate::mesos::AgentDirs;
use crate::metrics::{CaseMeter, Metrics};
use crate::registry::Run;

/// Where a case's steps are written down. No call waits, and none fails.
#[derive(Debug)]
pub struct Ledger {
    journal: Journal,
    case: CaseId,
    seq: u32,
    /// The step that has begun and not ended.
    current: Option<Step>,
    /// The list that Docker has not answered.
    listing: Option<u32>,
    /// `None`: it is counted nowhere.
    meter: Option<CaseMeter>,
}

impl Ledger {
    /// Writes nothing until the case is [`opened`](Self::opened).
    pub fn new(journal: Journal, case: CaseId, metrics: Metrics) -> Self {
        Self {
            journal,
            case,
            seq: 0,
            current: None,
            listing: None,
            meter: Some(CaseMeter::new(metrics)),
        }
    }

    /// Nowhere.
    pub fn none() -> Self {
        Self {
            journal: Journal::disabled(),
            case: CaseId::next(),
            seq: 0,
            current: None,
            listing: None,
            meter: None,
        }
    }

    pub fn case(&self) -> CaseId {
        self.case
    }

    pub fn opened(&self, run: &Run, death: &Death, agent: &AgentDirs) {
        if !self.journal.is_enabled() {
            return;
        }
        let bytes = |id: &std::ffi::OsString| id.as_bytes().to_vec();
        let identity = run.identity.as_ref();
        self.journal.case_opened(
            self.case,
            Opening {
                container: run.container.to_string(),
                framework: identity.map(|identity| bytes(&identity.framework_id)),
                executor: identity.map(|identity| bytes(&identity.executor_id)),
                agent: Some(agent.work_dir.as_os_str().as_bytes().to_vec()),
                origin: death.origin.as_str().into(),
                death_unix_ns: unix_ns(death.at_unix),
                death_ns: death.at_ns,
                noticed_ns: death.noticed_ns,
                wait_status: death.wait_status,
                proof: Some(death.proof_text(run)),
            },
        );
    }

    pub fn joined(&self, id: &str, key: JoinKey) {
        self.journal.joined(self.case, id, key_name(key));
    }

    pub fn told_by_hook(&self) {
        self.journal.evidence(self.case, "hook", None);
    }

    pub fn planned(&self, plan: &str) {
        self.journal.planned(self.case, plan);
    }

    pub fn ended(&self, id: &str, ending: Ending, asked_ns: Option<u64>, ended_ns: Option<u64>) {
        self.journal
            .container_ended(self.case, id, ending.as_str(), asked_ns, ended_ns);
    }

    /// A step begins. Waiting for the same thing again goes on with the same wait.
    pub fn step(&mut self, step: Step) {
        if let Some(meter) = &mut self.meter {
            meter.step(step);
        }
        if self.current == Some(step) {
            return;
        }
        if matches!(step, Step::Close(_))
            && let Some(seq) = self.listing.take()
        {
            self.journal.step_ended(self.case, seq, "over", None);
        }
        // A wait is over when something else begins.
        if self.current.is_some() {
            self.step_ended("over", None);
        }
        self.seq += 1;
        self.current = Some(step);
        self.journal
            .step_began(self.case, self.seq, step.name(), None);
    }

    /// Whose the run's own cgroups are when this step begins.
    pub fn teardown(&mut self, step: Step, ownership: Ownership) {
        if let Some(meter) = &mut self.meter {
            meter.teardown(step, ownership);
        }
    }

    /// What the current step came to; a wait is not over by that.
    pub fn outcome(&mut self, outcome: &'static str, error: Option<&str>) {
        if !matches!(self.current, None | Some(Step::Wait(_))) {
            self.step_ended(outcome, error);
        }
    }

    /// The current step is a list that is asked for: what comes does not wait for it.
    pub fn listing(&mut self) {
        if self.current.take().is_some() {
            self.listing = Some(self.seq);
        }
    }

    /// What became of that.
    pub fn listed(&mut self, error: Option<&str>) {
        if let Some(seq) = self.listing.take() {
            let outcome = error.map_or("listed", |_| "failed");
            self.journal.step_ended(self.case, seq, outcome, error);
        }
    }

    fn step_ended(&mut self, outcome: &'static str, error: Option<&str>) {
        self.current = None;
        self.journal.step_ended(self.case, self.seq, outcome, error);
    }
}

/// Closes a case's account. One that was no case leaves the history.
pub fn close(journal: &Journal, record: &Record) {
    if !record.is_case() {
        journal.dismissed(record.case);
        return;
    }
    let identity = record.run.identity.as_ref();
    let bytes = |id: &std::ffi::OsString| id.as_bytes().to_vec();
    journal.closed(
        record.case,
        Closing {
            result: record.result.as_str().into(),
            framework: identity.map(|identity| bytes(&identity.framework_id)),
            executor: identity.map(|identity| bytes(&identity.executor_id)),
            directories_removed: record.directories_removed as u64,
            processes_ended: record.processes_ended as u64,
            first_stop_ns: record.first_stop_ns(),
            stopped_ns: record.stopped_ns,
            clean_ns: record.clean_ns,
        },
    );
}
