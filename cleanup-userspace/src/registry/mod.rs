//! Live executors, learnt while they live, and what an exit means for them.
//!
//! The kernel event carries the identity of what ended (architecture rule 1);
//! the registry adds who that was: the launcher helper of a run, the executor
//! that the helper started, or nobody that matters.

mod judge;
mod learn;

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::{Duration, Instant};

pub use judge::{Ended, Role, Verdict, judge};
pub use learn::{
    executor_of, find_identity, is_recorded, known_identity, learn, search_identity, seat_of,
};

use crate::cgroup::{Hierarchies, Hierarchy, Membership, RunCgroup};
use crate::mesos::{AgentDirs, ContainerId, Identity};
use crate::probe::TaskHierarchies;
use crate::process::{self, Proc};

/// An executor id is free for joins by label this long after its last run.
const RECENT: Duration = Duration::from_secs(600);

/// Index of an agent in the configuration.
pub type AgentIndex = usize;

/// How a run's processes were started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// In a cgroup of their own.
    Linux,
    /// In the agent's cgroups: no `<root>/<container id>` of theirs exists.
    Posix,
}

/// One executor run.
#[derive(Debug, Clone)]
pub struct Run {
    pub container: ContainerId,
    pub agent: AgentIndex,
    /// Known once the run's sandbox was found beneath the agent's work directory.
    pub identity: Option<Identity>,
    pub launcher: Launcher,
    pub helper: Option<Proc>,
    /// The process that the helper started, once it has become the executor.
    pub executor: Option<Proc>,
    /// The cgroups that the living executor was seen in; only if it is sure that
    /// it was not about to exit, since then v1 answers `/` everywhere.
    pub seat: Option<Membership>,
    /// The agent's runtime directory had this container.
    pub owned: bool,
    /// The helper ended before the executor did.
    pub orphaned: bool,
}

impl Run {
    /// One that nothing is known of but that an agent has it.
    #[cfg(test)]
    pub(crate) fn specimen() -> Self {
        Self {
            container: "857fd7a0-df05-458b-bd72-f5c280790aa0".parse().unwrap(),
            agent: 0,
            identity: None,
            launcher: Launcher::Linux,
            helper: None,
            executor: None,
            seat: None,
            owned: true,
            orphaned: false,
        }
    }

    /// The session that the helper started: on the posix launcher it holds
    /// everything of the run that did not leave on purpose.
    pub fn session(&self) -> Option<u32> {
        self.helper.map(|helper| helper.pid)
    }

    /// The run's own processes that live now, by every way they are known.
    pub fn own_processes(&self, cgroups: &[RunCgroup]) -> std::io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for cgroup in cgroups {
            pids.extend(cgroup.own_procs()?);
        }
        if self.launcher == Launcher::Posix
            && let Some(session) = self.session()
        {
            pids.extend(process::session_members(session)?);
        }
        pids.sort_unstable();
        pids.dedup();
        let mut left = Vec::new();
        for pid in pids {
            // A zombie is only waiting for its parent.
            if process::stat(pid)?.is_some_and(|stat| !stat.ended) {
                left.push(pid);
            }
        }
        Ok(left)
    }

    /// Whether the dead task itself sat in the run's cgroup of this hierarchy.
    /// `None` where nothing is known of it: then it is treated as if it had.
    pub fn sat_in(
        &self,
        hierarchy: &Hierarchy,
        path: &Path,
        event: Option<&TaskHierarchies>,
    ) -> Option<bool> {
        let seen = self
            .seat
            .as_ref()
            .and_then(|seat| seat.path(hierarchy))
            .map(|seat| seat.starts_with(path));
        let reported = event.and_then(|event| {
            if hierarchy.unified {
                return Some(event.unified());
            }
            // The kernel program cannot see a hierarchy without controllers.
            let named = hierarchy
                .controllers
                .iter()
                .all(|controller| controller.starts_with("name="));
            (!named).then(|| {
                hierarchy
                    .controllers
                    .iter()
                    .any(|controller| event.contains_controller(controller))
            })
        });
        match (seen, reported) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (Some(false), _) | (_, Some(false)) => Some(false),
            (None, None) => None,
        }
    }
}

/// The agents and their live runs.
#[derive(Debug, Default)]
pub struct Registry {
    /// What is known of runs that the last survey could not judge.
    unknown: Vec<Option<OsString>>,
    runs: HashMap<ContainerId, Run>,
    /// Runs that ended lately, with their executor ids, oldest first.
    ended: VecDeque<(Instant, ContainerId, OsString)>,
}

impl Registry {
    pub fn get(&self, container: ContainerId) -> Option<&Run> {
        self.runs.get(&container)
    }

    pub fn get_mut(&mut self, container: ContainerId) -> Option<&mut Run> {
        self.runs.get_mut(&container)
    }

    pub fn insert(&mut self, run: Run) {
        self.runs.insert(run.container, run);
    }

    pub fn remove(&mut self, container: ContainerId) -> Option<Run> {
        self.runs.remove(&container)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    /// Remembers a run that ended, for as long as it can mislead a join by label.
    pub fn ended(&mut self, container: ContainerId, executor_id: OsString) {
        self.ended.retain(|(at, ..)| at.elapsed() < RECENT);
        self.ended
            .push_back((Instant::now(), container, executor_id));
    }

    /// The executor ids, where known, of the runs that a survey could not judge.
    pub fn set_unknown(&mut self, executor_ids: Vec<Option<OsString>>) {
        self.unknown = executor_ids;
    }

    /// Whether there are runs that the last survey could not judge.
    pub fn has_unknown(&self) -> bool {
        !self.unknown.is_empty()
    }

    /// Whether a run other than `container` that lives, may live, or ended in the
    /// last minutes, has this executor id, or may have it.
    pub fn other_run_of(&self, container: ContainerId, executor_id: &OsStr) -> bool {
        let same = |id: Option<&OsString>| id.is_none_or(|id| id == executor_id);
        let live = self.runs.values().filter(|run| run.container != container);
        let mut ended = self
            .ended
            .iter()
            .filter(|(at, other, _)| *other != container && at.elapsed() < RECENT);
        live.map(|run| run.identity.as_ref().map(|identity| &identity.executor_id))
            .any(same)
            || ended.any(|(.., id)| id == executor_id)
            || self.unknown.iter().map(Option::as_ref).any(same)
    }
}

/// The run's cgroup in every hierarchy that has one.
pub fn cgroups_of(
    hierarchies: &Hierarchies,
    dirs: &AgentDirs,
    container: ContainerId,
) -> std::io::Result<Vec<RunCgroup>> {
    let mut found = Vec::new();
    for hierarchy in hierarchies.iter() {
        found.extend(RunCgroup::open(hierarchy, &dirs.cgroups_root, container)?);
    }
    Ok(found)
}
