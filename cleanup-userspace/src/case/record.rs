//! What a case did, and when.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use crate::docker::{ContainerState, JoinKey, Stopped};
use crate::journal::CaseId;
use crate::mesos::Identity;
use crate::registry::Run;

use super::Death;
use super::pod::Found;

/// How a container of a dead run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// By itself, after the stop signal.
    Term,
    /// After it was asked to, or got its stop signal from us. Docker has too much to do to
    /// say how.
    Unconfirmed,
    /// By Docker's SIGKILL when the grace period was over.
    GraceKill,
    /// By somebody else's SIGKILL meanwhile: a living agent's, usually.
    AgentKill,
    /// By our SIGKILL through Docker (`action = "kill"`).
    Kill,
    /// By our SIGKILL through its cgroup, while Docker did not answer.
    CgroupKill,
    /// It had ended before it was asked to.
    Already,
    /// Docker says that it runs and refuses to stop it, but has no process for it,
    /// and nobody sits in a cgroup of it.
    NoProcess,
}

impl Ending {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Term => "term",
            Self::Unconfirmed => "unconfirmed",
            Self::GraceKill => "grace_kill",
            Self::AgentKill => "agent_kill",
            Self::Kill => "kill",
            Self::CgroupKill => "cgroup_kill",
            Self::Already => "already",
            Self::NoProcess => "no_process",
        }
    }

    /// Reads a stop's outcome. `asked` is the wall-clock time of the request.
    pub fn of_stop(
        stopped: Stopped,
        state: Option<ContainerState>,
        asked: f64,
        grace: f64,
    ) -> Self {
        const SIGKILLED: i64 = 137;
        let Some(state) = state else {
            return if stopped == Stopped::Done {
                Self::Term
            } else {
                Self::Already
            };
        };
        if state.exit_code != SIGKILLED {
            // Docker's "not modified" (304) reaches us as done.
            return if stopped == Stopped::Done && state.finished >= asked {
                Self::Term
            } else {
                Self::Already
            };
        }
        // Docker rounds nothing here: its own kill comes no earlier than the grace.
        if state.finished >= asked + grace - 0.05 {
            Self::GraceKill
        } else {
            Self::AgentKill
        }
    }
}

/// One container of the pod.
#[derive(Debug, Clone)]
pub struct Contained {
    pub key: JoinKey,
    pub progress: Progress,
    /// CLOCK_MONOTONIC of the first request to end it.
    pub asked_ns: Option<u64>,
    pub ended_ns: Option<u64>,
    pub failures: u32,
    pub killed_by_cgroup: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Found,
    /// It runs, and the operator wants it to.
    Kept,
    Asked,
    /// The last request failed; due again at this CLOCK_MONOTONIC time.
    Failed {
        due_ns: u64,
    },
    Ended(Ending),
}

impl Progress {
    /// Of every progress there is: [`as_str`](Self::as_str).
    pub const NAMES: [&str; 11] = [
        "term",
        "unconfirmed",
        "grace_kill",
        "agent_kill",
        "kill",
        "cgroup_kill",
        "already",
        "no_process",
        "kept",
        "would_stop",
        "unfinished",
    ];

    /// How a container ended, or how it was left when its case was over.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ended(ending) => ending.as_str(),
            Self::Found => "would_stop",
            Self::Kept => "kept",
            Self::Asked | Self::Failed { .. } => "unfinished",
        }
    }

    /// Of a container that was found to run.
    pub fn of(found: &Found) -> Self {
        if found.keep { Self::Kept } else { Self::Found }
    }
}

impl Contained {
    pub fn found(found: &Found) -> Self {
        Self {
            key: found.key,
            progress: Progress::of(found),
            asked_ns: None,
            ended_ns: None,
            failures: 0,
            killed_by_cgroup: false,
        }
    }

    /// The last request failed: it is due again at this time.
    pub fn fail(&mut self, due_ns: u64) {
        self.progress = Progress::Failed { due_ns };
        self.failures += 1;
    }
}

/// A case, closed or not.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its number in the journal.
    pub case: CaseId,
    pub run: Run,
    pub death: Death,
    /// The Mesos hook told of it, too.
    pub told_by_hook: bool,
    pub containers: BTreeMap<String, Contained>,
    /// When the last container of the pod had ended.
    pub stopped_ns: Option<u64>,
    /// When no cgroup of the run was left.
    pub clean_ns: Option<u64>,
    pub directories_removed: usize,
    pub processes_ended: usize,
    /// What it came to.
    pub result: CaseResult,
}

/// What a case came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaseResult {
    Open,
    Clean,
    /// The operator's rules leave this run alone.
    Excluded,
    /// Something of the run lives: its death had only been inferred.
    Dismissed,
    /// Nothing was done: `mode = "observe"`.
    Observed,
    /// Not finished when the daemon stopped: the next start goes on.
    HandedOver,
}

impl CaseResult {
    /// Everything that a case which is not open can have come to.
    pub const CLOSED: [Self; 5] = [
        Self::Clean,
        Self::Excluded,
        Self::Dismissed,
        Self::Observed,
        Self::HandedOver,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Clean => "clean",
            Self::Excluded => "excluded",
            Self::Dismissed => "dismissed",
            Self::Observed => "observed",
            Self::HandedOver => "handed_over",
        }
    }
}

impl Record {
    pub fn new(case: CaseId, run: Run, death: Death) -> Self {
        Self {
            case,
            run,
            death,
            told_by_hook: false,
            containers: BTreeMap::new(),
            stopped_ns: None,
            clean_ns: None,
            directories_removed: 0,
            processes_ended: 0,
            result: CaseResult::Open,
        }
    }

    /// Whether there was anything to do: a dead executor without a pod that left
    /// nothing behind is no case.
    pub fn is_case(&self) -> bool {
        // What was left alone was not even looked for.
        self.result == CaseResult::Excluded
            || !self.containers.is_empty()
            || self.directories_removed > 0
            || self.processes_ended > 0
    }

    pub fn first_stop_ns(&self) -> Option<u64> {
        self.containers
            .values()
            .filter_map(|container| container.asked_ns)
            .min()
    }

    /// `2 term, 1 grace_kill`; `none` without any container.
    pub fn endings(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for container in self.containers.values() {
            *counts.entry(container.progress.as_str()).or_default() += 1;
        }
        if counts.is_empty() {
            return "none".to_owned();
        }
        counts
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Writes the one line of a finished case: who died, what was done, and how
    /// many milliseconds after the exit each stage was reached.
    pub fn log(&self) {
        let after = |at: u64| (at.saturating_sub(self.death.at_ns) as f64 / 1e4).round() / 100.0;
        let identity = self.run.identity.as_ref();
        let name = |id: fn(&Identity) -> &OsString| {
            identity.map_or_else(|| "?".to_owned(), |i| printable(id(i)))
        };
        tracing::info!(
            container = %self.run.container,
            case = %self.case,
            executor = %name(|identity| &identity.executor_id),
            framework = %name(|identity| &identity.framework_id),
            origin = self.death.origin.as_str(),
            also = self.told_by_hook.then_some("hook"),
            status = %self.death.status(),
            result = self.result.as_str(),
            containers = self.containers.len(),
            endings = %self.endings(),
            cgroups_removed = self.directories_removed,
            event_ms = after(self.death.noticed_ns),
            first_stop_ms = self.first_stop_ns().map(after),
            stopped_ms = self.stopped_ns.map(after),
            clean_ms = self.clean_ns.map(after),
            "case"
        );
    }
}

pub fn key_name(key: JoinKey) -> &'static str {
    match key {
        JoinKey::Cgroup => "cgroup",
        JoinKey::CgroupParent => "cgroup_parent",
        JoinKey::WorkingDir => "working_dir",
        JoinKey::ConfigFiles => "config_files",
        JoinKey::Label => "label",
    }
}

/// Text of somebody else's making, safe on a terminal and in a log: control
/// characters and what is not UTF-8 are escaped.
pub fn printable(text: &OsStr) -> String {
    text.as_encoded_bytes()
        .utf8_chunks()
        .flat_map(|chunk| {
            let valid = chunk.valid().chars().flat_map(|c| {
                if c.is_control() || is_format(c) {
                    c.escape_unicode().collect::<String>()
                } else {
                    c.to_string()
                }
                .chars()
                .collect::<Vec<_>>()
            });
            let invalid = chunk
                .invalid()
                .iter()
                .flat_map(|byte| format!("\\x{byte:02x}").chars().collect::<Vec<_>>());
            valid.chain(invalid).collect::<Vec<_>>()
        })
        .collect()
}

/// Characters that reorder or hide what is around them.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    #[test]
    fn nobodys_terminal_is_tricked() {
        let text = OsStr::from_bytes(b"web \x1b[2J\n\xffz\xc3\xa9\xe2\x80\xae");
        assert_eq!(printable(text), "web \\u{1b}[2J\\u{a}\\xffzé\\u{202e}");
    }

    #[test]
    fn endings_are_told_apart() {
        let state = |exit_code, finished| {
            Some(ContainerState {
                exit_code,
                finished,
                ..ContainerState::default()
            })
        };
        for (stopped, state, ending) in [
            (Stopped::Done, state(143, 100.2), Ending::Term),
            (Stopped::Done, state(0, 100.2), Ending::Term),
            (Stopped::Done, state(137, 110.01), Ending::GraceKill),
            (Stopped::Done, state(137, 100.3), Ending::AgentKill),
            (Stopped::NothingToDo, state(137, 100.0), Ending::AgentKill),
            (Stopped::NothingToDo, state(0, 50.0), Ending::Already),
            (Stopped::Done, state(0, 50.0), Ending::Already),
            (Stopped::NothingToDo, None, Ending::Already),
            (Stopped::Done, None, Ending::Term),
        ] {
            assert_eq!(
                Ending::of_stop(stopped, state, 100.0, 10.0),
                ending,
                "{stopped:?} {state:?}"
            );
        }
    }
}
