//! What is known and not yet written, one picture for each case.
//!
//! Open cases are kept whole: a journal that is deleted while the daemon runs is
//! begun anew with them. Everything else is bounded.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;

use super::entry::{CaseId, Closing, Entry, Opening, Unfinished, Word};

/// Steps that wait for a disk, of all cases.
const STEPS: usize = 16_384;
/// Closed cases that wait for a disk.
const CLOSED: usize = 4_000;
/// Steps of one case: one that goes round in circles for weeks must not fill the
/// journal, since open cases are never removed from it.
const STEPS_OF_A_CASE: u32 = 1_000;
const CONTAINERS_OF_A_CASE: usize = 4_096;

#[derive(Debug, Default)]
pub(super) struct Backlog {
    pub cases: BTreeMap<CaseId, Case>,
    steps: usize,
    pub dropped: Dropped,
}

/// What could not be kept, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    pub steps: u64,
    pub cases: u64,
}

/// Where a case stands in the journal, and what its times are relative to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub id: i64,
    /// How often the case was begun again.
    pub resumed: i64,
    pub boot: String,
    pub death_unix_ns: i64,
    pub death_ns: i64,
}

#[derive(Debug, Default)]
pub(super) struct Case {
    /// `None` once written: the case has a row.
    pub row: Option<Row>,
    pub opening: Option<Opening>,
    /// The opening was not written yet, or the case was opened again.
    pub reopened: bool,
    pub plan: Option<String>,
    pub evidence: BTreeMap<Word, Evidence>,
    pub containers: BTreeMap<String, Container>,
    /// Only what is to be written.
    pub steps: BTreeMap<u32, StepFacts>,
    pub steps_seen: u32,
    pub steps_dropped: u32,
    /// With the wall-clock time of the call.
    pub closing: Option<(Closing, i64)>,
    /// It was no case after all.
    pub dismissed: Option<i64>,
    pub dirty: bool,
}

#[derive(Debug, Default)]
pub(super) struct Evidence {
    pub first_ns: u64,
    pub detail: Option<String>,
    pub times: i64,
    pub dirty: bool,
}

#[derive(Debug, Default)]
pub(super) struct Container {
    pub key: Option<Word>,
    pub joined_ns: Option<u64>,
    pub asked_ns: Option<u64>,
    pub ended_ns: Option<u64>,
    pub ending: Option<Word>,
    pub dirty: bool,
}

#[derive(Debug, Default)]
pub(super) struct StepFacts {
    pub began: Option<(u64, Word, Option<String>)>,
    pub ended: Option<(u64, Word, Option<String>)>,
}

impl Backlog {
    /// A case that the journal has open.
    pub fn remember(&mut self, unfinished: &Unfinished, row: Row) {
        self.cases.entry(unfinished.case).or_insert_with(|| Case {
            row: Some(row),
            opening: Some(unfinished.opening.clone()),
            ..Case::default()
        });
    }

    pub fn is_dirty(&self) -> bool {
        self.cases.values().any(|case| case.dirty)
    }

    /// Cases with something that is not written.
    pub fn unwritten(&self) -> usize {
        self.cases.values().filter(|case| case.dirty).count()
    }

    pub fn absorb(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            self.take(entry);
        }
        self.bound();
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Opened(id, opening) => {
                // It was remembered under the number that the journal has for it.
                self.cases.retain(|other, case| {
                    let same = case.opening.as_ref().map(|known| &known.container)
                        == Some(&opening.container);
                    *other == id || case.dirty || !same
                });
                let case = self.case(id);
                case.opening = Some(*opening);
                case.reopened = true;
                case.closing = None;
                case.dismissed = None;
            }
            Entry::Evidence {
                case,
                origin,
                at_ns,
                detail,
            } => {
                let evidence = self.case(case).evidence.entry(origin).or_default();
                if evidence.times == 0 {
                    evidence.first_ns = at_ns;
                }
                evidence.times += 1;
                evidence.detail = detail.or(evidence.detail.take());
                evidence.dirty = true;
            }
            Entry::Planned(case, plan) => self.case(case).plan = Some(plan),
            Entry::Joined {
                case,
                container,
                key,
                at_ns,
            } => {
                if let Some(container) = self.case(case).container(container) {
                    container.key = Some(key);
                    container.joined_ns.get_or_insert(at_ns);
                }
            }
            Entry::ContainerEnded {
                case,
                container,
                ending,
                asked_ns,
                ended_ns,
            } => {
                if let Some(container) = self.case(case).container(container) {
                    container.ending = Some(ending);
                    container.asked_ns = asked_ns;
                    container.ended_ns = ended_ns;
                }
            }
            Entry::StepBegan {
                case,
                seq,
                kind,
                detail,
                at_ns,
            } => {
                let case = self.case(case);
                case.steps_seen += 1;
                if case.steps_seen > STEPS_OF_A_CASE {
                    case.steps_dropped += 1;
                } else {
                    let began = Some((at_ns, kind, detail));
                    let old = case.steps.insert(seq, StepFacts { began, ended: None });
                    self.steps += usize::from(old.is_none());
                }
            }
            Entry::StepEnded {
                case,
                seq,
                outcome,
                error,
                at_ns,
            } => {
                let steps = &mut self.case(case).steps;
                let ended = Some((at_ns, outcome, error));
                match steps.entry(seq) {
                    Place::Occupied(mut step) => step.get_mut().ended = ended,
                    Place::Vacant(step) => {
                        step.insert(StepFacts { began: None, ended });
                        self.steps += 1;
                    }
                }
            }
            Entry::Closed(id, closing, at) => self.case(id).closing = Some((*closing, at)),
            Entry::Dismissed(id, at) => {
                let case = self.case(id);
                if case.row.is_none() {
                    self.forget(id);
                } else {
                    case.dismissed = Some(at);
                }
            }
        }
    }

    fn case(&mut self, id: CaseId) -> &mut Case {
        let case = self.cases.entry(id).or_default();
        case.dirty = true;
        case
    }

    fn forget(&mut self, id: CaseId) {
        if let Some(case) = self.cases.remove(&id) {
            self.steps -= case.steps.len();
        }
    }

    /// Drops what there is no place for: steps first, the oldest closed case last.
    fn bound(&mut self) {
        if self.steps > STEPS {
            for case in self.cases.values_mut() {
                let dropped = case.steps.len();
                case.steps_dropped += u32::try_from(dropped).unwrap_or(u32::MAX);
                case.steps.clear();
                self.dropped.steps += dropped as u64;
            }
            self.steps = 0;
        }
        // Counting is cheap next to writing, and only cases at work are here.
        let closed = self.cases.values().filter(|case| case.is_over()).count();
        if closed > CLOSED {
            let oldest: Vec<CaseId> = self
                .cases
                .iter()
                .filter(|(_, case)| case.is_over())
                .map(|(id, _)| *id)
                .take(closed - CLOSED)
                .collect();
            for id in oldest {
                self.forget(id);
                self.dropped.cases += 1;
            }
        }
    }

    /// All that is dirty was written; `rows` are those that cases got.
    pub fn written(&mut self, rows: Vec<(CaseId, Row)>) {
        for (id, row) in rows {
            if let Some(case) = self.cases.get_mut(&id) {
                case.row = Some(row);
                case.reopened = false;
            }
        }
        self.cases.retain(|_, case| !(case.dirty && case.is_over()));
        for case in self.cases.values_mut().filter(|case| case.dirty) {
            case.dirty = false;
            case.steps.clear();
            case.steps_dropped = 0;
            for container in case.containers.values_mut() {
                container.dirty = false;
            }
            for evidence in case.evidence.values_mut() {
                evidence.dirty = false;
            }
        }
        self.steps = self.cases.values().map(|case| case.steps.len()).sum();
    }

    /// The journal is another one, and empty: open cases are written again.
    pub fn begin_anew(&mut self) {
        for case in self.cases.values_mut() {
            case.row = None;
            case.reopened = true;
            case.dirty = true;
            for container in case.containers.values_mut() {
                container.dirty = true;
            }
            for evidence in case.evidence.values_mut() {
                evidence.dirty = true;
            }
        }
    }
}

impl Case {
    fn container(&mut self, id: String) -> Option<&mut Container> {
        if self.containers.len() >= CONTAINERS_OF_A_CASE && !self.containers.contains_key(&id) {
            return None;
        }
        let container = self.containers.entry(id).or_default();
        container.dirty = true;
        Some(container)
    }

    fn is_over(&self) -> bool {
        // Facts of a case that nobody opened have no place in the journal.
        self.closing.is_some() || self.dismissed.is_some() || self.opening.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(id: CaseId, container: &str) -> Entry {
        let opening = Opening {
            container: container.to_owned(),
            ..Opening::default()
        };
        Entry::Opened(id, Box::new(opening))
    }

    fn began(case: CaseId, seq: u32) -> Entry {
        Entry::StepBegan {
            case,
            seq,
            kind: "stop".into(),
            detail: None,
            at_ns: 1,
        }
    }

    fn row() -> Row {
        Row {
            id: 1,
            resumed: 0,
            boot: String::new(),
            death_unix_ns: 0,
            death_ns: 0,
        }
    }

    #[test]
    fn without_a_disk_steps_go_first_then_the_oldest_closed_cases() {
        let mut backlog = Backlog::default();
        let ids: Vec<CaseId> = (0..CLOSED + 3).map(|_| CaseId::next()).collect();
        for (n, id) in ids.iter().enumerate() {
            let steps = (0..10).map(|seq| began(*id, seq));
            backlog.absorb([opened(*id, &n.to_string())].into_iter().chain(steps));
            assert!(backlog.steps <= STEPS);
        }
        assert_eq!((backlog.cases.len(), backlog.dropped.cases), (ids.len(), 0));
        assert!(backlog.dropped.steps > 0);
        for id in &ids {
            backlog.absorb([Entry::Closed(*id, Box::default(), 7)]);
        }
        let left: Vec<CaseId> = backlog.cases.keys().copied().collect();
        assert_eq!(left, ids[3..]);
        assert_eq!(backlog.dropped.cases, 3);
    }

    #[test]
    fn written_closed_cases_are_forgotten_and_open_ones_kept() {
        let mut backlog = Backlog::default();
        let (open, over) = (CaseId::next(), CaseId::next());
        backlog.absorb([opened(open, "a"), began(open, 0), opened(over, "b")]);
        backlog.absorb([Entry::Closed(over, Box::default(), 7)]);
        // A fact of a case that nobody opened has no place, and does not stay.
        backlog.absorb([began(CaseId::next(), 0)]);
        backlog.written(vec![(open, row()), (over, row())]);
        assert!(!backlog.is_dirty() && backlog.steps == 0);
        assert_eq!(backlog.cases.keys().copied().collect::<Vec<_>>(), [open]);
        backlog.begin_anew();
        assert!(backlog.is_dirty() && backlog.cases[&open].reopened);
    }

    #[test]
    fn a_case_under_another_number_replaces_the_remembered_one() {
        let mut backlog = Backlog::default();
        let (old, new, other) = (CaseId::next(), CaseId::next(), CaseId::next());
        for (case, container) in [(old, "a"), (other, "b")] {
            let opening = Opening {
                container: container.to_owned(),
                ..Opening::default()
            };
            let containers = Vec::new();
            let unfinished = Unfinished {
                case,
                opening,
                containers,
            };
            backlog.remember(&unfinished, row());
        }
        backlog.absorb([opened(new, "a")]);
        assert_eq!(
            backlog.cases.keys().copied().collect::<Vec<_>>(),
            [new, other]
        );
    }
}
