//! What a case says when something is in its way: each kind of thing once, and
//! again after a while.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use super::decide::Facts;
use super::state::nanos;
use crate::mesos::ContainerId;

/// How long a problem is not mentioned again.
const REMIND_AFTER: Duration = Duration::from_secs(600);

/// One case's complaints. Times are CLOCK_MONOTONIC in nanoseconds.
#[derive(Debug)]
pub struct Complaints {
    container: ContainerId,
    last: HashMap<&'static str, u64>,
}

impl Complaints {
    pub fn new(container: ContainerId) -> Self {
        Self {
            container,
            last: HashMap::new(),
        }
    }

    fn is_news(&mut self, kind: &'static str, now: u64) -> bool {
        let last = self.last.get(kind);
        let news = last.is_none_or(|last| now.saturating_sub(*last) >= nanos(REMIND_AFTER));
        if news {
            self.last.insert(kind, now);
        }
        news
    }

    pub fn in_the_way(&mut self, kind: &'static str, error: &anyhow::Error, now: u64) {
        let error = format!("{error:#}");
        if self.is_news(kind, now) {
            tracing::warn!(container = %self.container, error, "in the way of a cleanup; trying on");
        } else {
            tracing::debug!(container = %self.container, error, "still in the way of a cleanup");
        }
    }

    pub fn of_the_agent(&mut self, facts: &Facts, now: u64) {
        if self.is_news("agent", now) {
            tracing::warn!(
                container = %self.container,
                agent = ?facts.agent,
                ownership = ?facts.ownership,
                own_processes = facts.own_processes,
                cgroups = facts.directories.len(),
                "the agent has not finished its destroy of a dead container: its cgroups stay until it does, \
                 is restarted, or is gone"
            );
        }
    }

    pub fn of_busy_cgroups(&mut self, cgroup: &Path, facts: &Facts, now: u64) {
        if self.is_news("busy", now) {
            tracing::warn!(
                container = %self.container,
                cgroup = %cgroup.display(),
                cgroups = facts.directories.len(),
                "cgroups of a dead run are not empty, though Docker says that nothing runs there: \
                 look at cgroup.procs beneath them"
            );
        }
    }

    pub fn of_docker(&mut self, now: u64) {
        if self.is_news("fallback", now) {
            tracing::warn!(
                container = %self.container,
                "Docker has not answered for too long: the pod's processes are ended through their cgroups (docker_fallback)"
            );
        }
    }

    pub fn of_the_disowned(&mut self, facts: &Facts, now: u64) {
        if self.is_news("disowned", now) {
            tracing::warn!(
                container = %self.container,
                processes = facts.pod_processes,
                "Docker does not know of processes in its cgroups beneath a dead run: they are ended through these"
            );
        }
    }

    pub fn of_the_hold(&mut self, facts: &Facts, now: u64) {
        if self.is_news("held", now) {
            tracing::warn!(
                container = %self.container,
                containers = facts.to_stop,
                "held: this death was only inferred; `compose-cleanup release` lets it go on"
            );
        }
    }

    pub fn of_the_identity(&mut self, now: u64) {
        if self.is_news("identity", now) {
            tracing::warn!(
                container = %self.container,
                "who this executor was is not known yet; with [[exclude]] rules nothing is done before that"
            );
        }
    }
}
