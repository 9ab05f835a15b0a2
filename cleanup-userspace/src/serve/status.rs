//! `/v1/status`: the loop's word and the host's, put together.

use std::ffi::OsString;
use std::path::Path;

use super::api;
use super::snapshot::{CaseAtWork, Snapshot};
use crate::case::{HeldBy, Host, Progress, Seen, Step, Waiting, Word, printable};
use crate::config::Mode;
use crate::journal::unix_ns;
use crate::mesos::{AgentState, Identity};
use crate::process::{monotonic_ns, unix_seconds};

/// Reads `/proc` for the agents' states: not for the daemon's loop.
pub(super) fn status(host: &Host, snapshot: &Snapshot, started: f64) -> api::Status {
    let Snapshot {
        probe,
        docker,
        cases,
        closed: _,
        known: _,
        unknown,
        counts,
        ordered: _,
    } = snapshot;
    api::Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_unix_ns: unix_ns(started),
        now_unix_ns: unix_ns(unix_seconds()),
        mode: mode(host),
        configuration_refused: host.refused().clone(),
        probe: api::Probe {
            kind: probe.kind.to_owned(),
            works: probe.works,
            missed: probe.losses.missed(),
            losses: probe
                .losses
                .iter()
                .map(|(reason, count)| (reason.to_owned(), count))
                .collect(),
        },
        hold: hold(host),
        agents: agents(host),
        docker: api::Docker {
            socket: path_text(&host.config().docker.socket),
            state: match docker {
                None => api::DockerState::NotKnown,
                Some(word) if word.there => api::DockerState::There,
                Some(_) => api::DockerState::Away,
            },
            since_unix_ns: docker.map(|word| unix_ns(word.since)),
            running_containers: host.index.running().len(),
        },
        cases: open_cases(cases),
        unknown_runs: *unknown,
        counters: api::Counters {
            exits: counts.exits,
            foreign_exits: counts.foreign,
            deaths: counts.deaths,
            hook_requests: counts.requests,
            cases: counts
                .results
                .iter()
                .map(|(result, count)| ((*result).to_owned(), *count))
                .collect(),
            containers: counts.containers as u64,
        },
        journal: journal(host),
    }
}

pub(super) fn mode(host: &Host) -> api::Mode {
    match host.config().mode {
        Mode::Observe => api::Mode::Observe,
        Mode::Enforce => api::Mode::Enforce,
    }
}

fn hold(host: &Host) -> api::Hold {
    let mut hold = api::Hold {
        held: host.is_holding(),
        by: None,
        since_unix_ns: None,
        until_unix_ns: None,
    };
    if !hold.held {
        return hold;
    }
    match host.hold_word() {
        Ok(Some(Word::Held { since, until, by })) => {
            hold.by = Some(match by {
                HeldBy::Operator => "operator".to_owned(),
                HeldBy::Cap => "cap".to_owned(),
            });
            hold.since_unix_ns = Some(unix_ns(since));
            hold.until_unix_ns = until.map(unix_ns);
        }
        // The cap's own hold, that could not be written down.
        Ok(_) => hold.by = Some("cap".to_owned()),
        Err(_) => hold.by = Some("unreadable".to_owned()),
    }
    hold
}

fn agents(host: &Host) -> Vec<api::Agent> {
    let mut live = vec![0; host.agents.len()];
    for run in host.registry().iter() {
        live[run.agent] += 1;
    }
    let agents = host.agents.iter().zip(live);
    agents
        .map(|(agent, live_executors)| api::Agent {
            work_dir: path_text(&agent.dirs.work_dir),
            runtime_dir: path_text(&agent.dirs.runtime_dir),
            cgroups_root: agent.dirs.cgroups_root.to_string(),
            state: match agent.state() {
                AgentState::Alive => api::AgentState::Alive,
                AgentState::Recovering => api::AgentState::Recovering,
                AgentState::Absent => api::AgentState::Absent,
            },
            live_executors,
        })
        .collect()
}

fn journal(host: &Host) -> api::Journal {
    let stats = host.journal.stats();
    api::Journal {
        enabled: host.journal.is_enabled(),
        path: path_text(&host.config().journal.path),
        bytes: stats.bytes,
        written: stats.written,
        waiting: stats.waiting,
        dropped_steps: stats.dropped_steps,
        dropped_cases: stats.dropped_cases,
        failing_since_unix_ns: stats.failing_since_unix_ns,
    }
}

/// The oldest first.
fn open_cases(cases: &[CaseAtWork]) -> Vec<api::Case> {
    let now = monotonic_ns();
    let mut open: Vec<api::Case> = cases.iter().map(|case| open_case(case, now)).collect();
    open.sort_by(|a, b| b.age_ns.cmp(&a.age_ns).then_with(|| a.case.cmp(&b.case)));
    open
}

/// `now_ns`: CLOCK_MONOTONIC.
pub(super) fn open_case(case: &CaseAtWork, now_ns: u64) -> api::Case {
    let CaseAtWork { run, death, seen } = case;
    let identity = seen.identity.as_ref().or(run.identity.as_ref());
    api::Case {
        case: seen.case.to_string(),
        container: run.container.to_string(),
        framework: name(identity, |identity| &identity.framework_id),
        executor: name(identity, |identity| &identity.executor_id),
        origin: death.origin.as_str().to_owned(),
        status: death.status(),
        died_unix_ns: unix_ns(death.at_unix),
        age_ns: now_ns.saturating_sub(death.at_ns),
        step: seen.step.map_or("open", Step::name).to_owned(),
        step_age_ns: now_ns.saturating_sub(seen.since_ns),
        waits_for: seen.step.and_then(waits_for).map(str::to_owned),
        trouble: seen
            .trouble
            .as_ref()
            .map(|trouble| printable(trouble.as_ref())),
        pod: pod(seen),
    }
}

fn pod(seen: &Seen) -> api::Pod {
    let mut pod = api::Pod {
        containers: seen.containers.len(),
        ..api::Pod::default()
    };
    for (_, progress) in seen.containers.values() {
        match progress {
            Progress::Found | Progress::Failed { .. } => pod.to_stop += 1,
            Progress::Asked => pod.stopping += 1,
            Progress::Ended(_) => pod.ended += 1,
            Progress::Kept => pod.kept += 1,
        }
    }
    pod
}

fn waits_for(step: Step) -> Option<&'static str> {
    let Step::Wait(waiting) = step else {
        return None;
    };
    Some(match waiting {
        Waiting::Identity => "who the executor was, to know whether [[exclude]] names it",
        Waiting::Release => "`compose-cleanup release`: this death was only inferred",
        Waiting::Docker => "Docker's answer",
        Waiting::AgentKills => "the agent, to end the run's processes",
        Waiting::Settle => "the settle time",
        Waiting::AgentDestroys => "the agent, to finish its destroy",
        Waiting::AgentStuck => "the agent, which is past its deadline: restart it",
        Waiting::Busy => "a cgroup that is not empty",
        Waiting::Kept => "the end of a container that is to be kept",
    })
}

/// An id of the executor, if that is known.
pub(super) fn name(
    identity: Option<&Identity>,
    id: impl Fn(&Identity) -> &OsString,
) -> Option<String> {
    identity.map(|identity| printable(id(identity)))
}

pub(super) fn path_text(path: &Path) -> String {
    printable(path.as_os_str())
}
