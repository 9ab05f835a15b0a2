//! Live executors, learnt while they live, and what an exit means for them.
//!
//! The kernel event carries the identity of what ended (architecture rule 1);
//! the registry adds who that was: the launcher helper of a run, the executor
//! that the helper started, or nobody that matters.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cgroup::{Hierarchies, Hierarchy, Membership, RunCgroup, membership};
use crate::mesos::{AgentDirs, ContainerId, Identity, RuntimeDir};
use crate::probe::{ExitRecord, TaskHierarchies};
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
    /// The cgroups the run's processes were seen in while they lived.
    pub seat: Option<Membership>,
    /// The agent's runtime directory had this container.
    pub owned: bool,
    /// The helper ended before the executor did.
    pub orphaned: bool,
}

impl Run {
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
            pids.extend(
                process::all()
                    .filter(|pid| process::stat(*pid).is_some_and(|s| s.session == session)),
            );
        }
        pids.sort_unstable();
        pids.dedup();
        // A zombie is only waiting for its parent.
        pids.retain(|pid| process::stat(*pid).is_some_and(|stat| !stat.ended));
        Ok(pids)
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

/// What ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A thread group in the container's cgroup, by a kernel event.
    Group {
        tgid: u32,
        ppid: u32,
        start_boottime_ns: u64,
    },
    /// The launcher helper, by its pidfd.
    Helper(Proc),
    /// The executor, by its pidfd.
    Executor(Proc),
}

impl From<&ExitRecord> for Ended {
    fn from(record: &ExitRecord) -> Self {
        Self::Group {
            tgid: record.tgid,
            ppid: record.ppid,
            start_boottime_ns: record.start_boottime_ns,
        }
    }
}

/// What an exit means for its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The executor is dead: proven.
    Dead,
    /// The helper is dead and the executor was never learnt: dead if no process
    /// of the run is left, else wait for those.
    DeadIfAlone,
    /// The helper is dead, the executor lives: nothing is stopped.
    Orphaned,
    /// A child of the helper ended that was not known to be the executor: a
    /// command that prepares the container, or an executor too short-lived to
    /// be learnt. The helper's own end, which follows, decides.
    HelperDecides,
    /// A child of a monitor, somebody who was adopted by init, …
    Nobody,
}

/// Judges an exit by what is known of the run. `alive` is asked of the executor
/// only.
pub fn judge(run: &Run, ended: Ended, alive: impl Fn(Proc) -> bool) -> Verdict {
    let is = |proc: Option<Proc>| {
        proc.is_some_and(|proc| match ended {
            Ended::Group {
                tgid,
                start_boottime_ns,
                ..
            } => proc.matches(tgid, start_boottime_ns),
            Ended::Helper(ended) | Ended::Executor(ended) => proc == ended,
        })
    };
    if is(run.executor) {
        return Verdict::Dead;
    }
    if is(run.helper) {
        return match run.executor {
            Some(executor) if alive(executor) => Verdict::Orphaned,
            Some(_) => Verdict::Dead,
            None => Verdict::DeadIfAlone,
        };
    }
    match (ended, run.helper) {
        (Ended::Group { ppid, .. }, Some(helper))
            if ppid == helper.pid && run.executor.is_none() =>
        {
            Verdict::HelperDecides
        }
        // Whoever is left of an orphaned run that was never learnt whole.
        (Ended::Group { .. }, _) if run.orphaned && run.executor.is_none() => Verdict::DeadIfAlone,
        _ => Verdict::Nobody,
    }
}

/// The agents and their live runs.
#[derive(Debug, Default)]
pub struct Registry {
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

    /// Whether a run other than `container` that lives, or ended in the last
    /// minutes, has this executor id.
    pub fn other_run_of(&self, container: ContainerId, executor_id: &OsStr) -> bool {
        let live = self
            .runs
            .values()
            .filter_map(|run| Some((run.container, &run.identity.as_ref()?.executor_id)));
        let ended = self
            .ended
            .iter()
            .filter(|(at, ..)| at.elapsed() < RECENT)
            .map(|(_, container, id)| (*container, id));
        live.chain(ended)
            .any(|(other, id)| other != container && id == executor_id)
    }
}

/// Reads what can be known of a run now. `None`: the agent has not (or no
/// longer) recorded a helper for it.
pub fn learn(
    agent: AgentIndex,
    dirs: &AgentDirs,
    container: ContainerId,
    launcher_hierarchy: &Hierarchy,
) -> Option<Run> {
    let runtime = RuntimeDir::new(&dirs.runtime_dir);
    let pid = runtime.helper_pid(container)?;
    let seat = membership(pid);
    let mut run = Run {
        container,
        agent,
        identity: find_identity(dirs, container),
        launcher: launcher_of(seat.as_ref(), launcher_hierarchy, dirs, container),
        helper: Proc::of(pid).filter(|helper| is_recorded(*helper, &runtime, container)),
        executor: None,
        seat,
        owned: true,
        orphaned: false,
    };
    run.executor = run.helper.and_then(executor_of);
    Some(run)
}

/// Whether a process that has the recorded PID can be the helper: it was
/// started before the agent wrote the PID down. (The agent records no start
/// time; a later process has only inherited the number.)
pub fn is_recorded(helper: Proc, runtime: &RuntimeDir, container: ContainerId) -> bool {
    let written = std::fs::metadata(runtime.container(container).join("pid"))
        .and_then(|meta| meta.modified())
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    written.is_none_or(|time| helper.started_at() <= time.as_secs_f64() + 1.0)
}

fn launcher_of(
    seat: Option<&Membership>,
    hierarchy: &Hierarchy,
    dirs: &AgentDirs,
    container: ContainerId,
) -> Launcher {
    let own = PathBuf::from(dirs.cgroups_root.absolute(container.as_str()));
    match seat.and_then(|seat| seat.path(hierarchy)) {
        // A zombie, or a helper that is gone: its cgroup is not to be known.
        None => Launcher::Linux,
        Some(path)
            if path == Path::new("/")
                && !hierarchy
                    .root(&dirs.cgroups_root)
                    .join(container.as_str())
                    .is_dir() =>
        {
            Launcher::Posix
        }
        Some(path) if path.starts_with(&own) || path == Path::new("/") => Launcher::Linux,
        Some(_) => Launcher::Posix,
    }
}

/// The run's sandbox, if it lies beneath the agent's work directory.
pub fn find_identity(dirs: &AgentDirs, container: ContainerId) -> Option<Identity> {
    match Identity::find(&dirs.work_dir, container) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%container, %error, "executor skipped: its sandbox cannot be looked for");
            None
        }
    }
}

/// The executor among a helper's children.
///
/// The helper also runs commands that prepare the container. Those inherit the
/// helper's environment; the executor gets one of its own, with what every
/// executor is told (src/slave/slave.cpp, `executorEnvironment`). The values are
/// not trusted, a framework's user may override them.
pub fn executor_of(helper: Proc) -> Option<Proc> {
    process::children(helper.pid).into_iter().find_map(|pid| {
        let proc = Proc::of(pid)?;
        let env = process::environ(pid).ok()?;
        let told = env.contains_key(OsStr::new("MESOS_EXECUTOR_ID"))
            && env.contains_key(OsStr::new("MESOS_DIRECTORY"));
        let helpers = env
            .keys()
            .any(|name| name.as_encoded_bytes().starts_with(b"MESOS_CONTAINERIZER_"));
        (told && !helpers && helper.is_alive()).then_some(proc)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    const HELPER: Proc = Proc {
        pid: 100,
        start_ticks: 5,
    };
    const EXECUTOR: Proc = Proc {
        pid: 101,
        start_ticks: 6,
    };

    fn run(executor: Option<Proc>) -> Run {
        Run {
            container: "857fd7a0-df05-458b-bd72-f5c280790aa0".parse().unwrap(),
            agent: 0,
            identity: None,
            launcher: Launcher::Linux,
            helper: Some(HELPER),
            executor,
            seat: None,
            owned: true,
            orphaned: false,
        }
    }

    fn group(tgid: u32, ppid: u32, ticks: u64) -> Ended {
        Ended::Group {
            tgid,
            ppid,
            start_boottime_ns: ticks * 10_000_000 + 1,
        }
    }

    #[test]
    fn every_exit_has_one_meaning() {
        let known = run(Some(EXECUTOR));
        let unlearnt = run(None);
        let orphan = Run {
            orphaned: true,
            ..run(None)
        };
        for (what, run, ended, alive, verdict) in [
            (
                "executor, helper lives",
                &known,
                group(101, 100, 6),
                false,
                Verdict::Dead,
            ),
            (
                "executor after its helper",
                &known,
                group(101, 1, 6),
                false,
                Verdict::Dead,
            ),
            (
                "executor's PID reused",
                &known,
                group(101, 100, 7),
                true,
                Verdict::Nobody,
            ),
            (
                "helper, executor lives",
                &known,
                group(100, 50, 5),
                true,
                Verdict::Orphaned,
            ),
            (
                "helper after its executor",
                &known,
                group(100, 50, 5),
                false,
                Verdict::Dead,
            ),
            (
                "helper's PID reused",
                &known,
                group(100, 50, 6),
                true,
                Verdict::Nobody,
            ),
            (
                "monitor's child",
                &known,
                group(300, 101, 9),
                true,
                Verdict::Nobody,
            ),
            (
                "adopted by init",
                &known,
                group(300, 1, 9),
                true,
                Verdict::Nobody,
            ),
            (
                "another child of the helper",
                &known,
                group(99, 100, 5),
                true,
                Verdict::Nobody,
            ),
            (
                "child of a helper whose executor is unlearnt",
                &unlearnt,
                group(99, 100, 5),
                true,
                Verdict::HelperDecides,
            ),
            (
                "helper, executor unlearnt",
                &unlearnt,
                group(100, 50, 5),
                true,
                Verdict::DeadIfAlone,
            ),
            (
                "last of an orphaned run",
                &orphan,
                group(555, 1, 9),
                false,
                Verdict::DeadIfAlone,
            ),
            (
                "pidfd of the executor",
                &known,
                Ended::Executor(EXECUTOR),
                false,
                Verdict::Dead,
            ),
            (
                "pidfd of the helper",
                &known,
                Ended::Helper(HELPER),
                true,
                Verdict::Orphaned,
            ),
            (
                "pidfd of another helper",
                &known,
                Ended::Helper(Proc {
                    pid: 100,
                    start_ticks: 4,
                }),
                false,
                Verdict::Nobody,
            ),
        ] {
            assert_eq!(judge(run, ended, |_| alive), verdict, "{what}");
        }
    }
}
