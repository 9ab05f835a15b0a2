//! Reading what an agent, a helper and an executor show of a run.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::{AgentIndex, Launcher, Run};
use crate::cgroup::{Hierarchy, Membership, membership};
use crate::mesos::{AgentDirs, ContainerId, Identity, RuntimeDir};
use crate::process::{self, Proc};

/// Reads what can be known of a run now, except who it is: looking for its
/// sandbox walks directories, see [`find_identity`]. `None`: the agent has not (or
/// no longer) recorded a helper for it.
pub fn learn(
    agent: AgentIndex,
    dirs: &AgentDirs,
    container: ContainerId,
    launcher_hierarchy: &Hierarchy,
) -> Option<Run> {
    let runtime = RuntimeDir::new(&dirs.runtime_dir);
    let pid = runtime.helper_pid(container)?;
    let recorded = runtime.container(container).join("pid");
    let helper = Proc::of(pid).filter(|helper| is_recorded(*helper, &recorded, container));
    Some(Run::of_helper(
        agent,
        dirs,
        container,
        launcher_hierarchy,
        helper,
        true,
    ))
}

impl Run {
    /// What a helper shows of its run.
    pub fn of_helper(
        agent: AgentIndex,
        dirs: &AgentDirs,
        container: ContainerId,
        hierarchy: &Hierarchy,
        helper: Option<Proc>,
        owned: bool,
    ) -> Self {
        let mut run = Self {
            container,
            agent,
            identity: None,
            launcher: launcher_of(helper, hierarchy, dirs, container),
            helper,
            executor: None,
            seat: None,
            owned,
            orphaned: false,
        };
        if let Some(executor) = helper.and_then(executor_of) {
            run.seat = seat_of(executor, run.launcher, hierarchy, dirs, container);
            run.executor = Some(executor);
        }
        run
    }
}

/// Whether a process that has the recorded PID is the helper, not one that has
/// inherited the number: the agent records no start time. It was started before
/// the PID was written down, or its own environment names the container (the
/// wall clock may have been set since).
pub fn is_recorded(helper: Proc, pid_file: &Path, container: ContainerId) -> bool {
    let written = std::fs::metadata(pid_file)
        .and_then(|meta| meta.modified())
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let by_time = written.is_some_and(|time| helper.started_at() <= time.as_secs_f64() + 1.0);
    by_time
        || process::environ(helper.pid).is_ok_and(|env| {
            env.get(OsStr::new("MESOS_CONTAINERIZER_RUNTIME_DIRECTORY"))
                .is_some_and(|dir| {
                    Path::new(dir).ends_with(Path::new("containers").join(container.as_str()))
                })
        })
}

/// Which launcher started a run. The linux launcher makes the container's cgroup
/// in its hierarchy before anything runs in it.
fn launcher_of(
    helper: Option<Proc>,
    hierarchy: &Hierarchy,
    dirs: &AgentDirs,
    container: ContainerId,
) -> Launcher {
    let own = PathBuf::from(dirs.cgroups_root.absolute(container.as_str()));
    let seat = helper
        .filter(|helper| helper.is_alive())
        .and_then(|helper| membership(helper.pid));
    match seat.as_ref().and_then(|seat| seat.path(hierarchy)) {
        Some(path) if path.starts_with(own) => Launcher::Linux,
        Some(_) => Launcher::Posix,
        // A helper that is gone: its cgroup is not to be known any more.
        None => Launcher::Linux,
    }
}

/// The cgroups of a living executor, if they can be trusted: a process that is
/// about to exit reads as sitting in `/` everywhere on v1, just as one of the
/// posix launcher does. The container's cgroup in the launcher's hierarchy tells
/// the two apart: who is not in it has none (yet).
pub fn seat_of(
    executor: Proc,
    launcher: Launcher,
    hierarchy: &Hierarchy,
    dirs: &AgentDirs,
    container: ContainerId,
) -> Option<Membership> {
    let own = PathBuf::from(dirs.cgroups_root.absolute(container.as_str()));
    let has_own = hierarchy
        .root(&dirs.cgroups_root)
        .join(container.as_str())
        .try_exists()
        .unwrap_or(true);
    let seat = membership(executor.pid)?;
    let inside = seat.path(hierarchy)?.starts_with(own);
    let trusted = match launcher {
        Launcher::Linux => inside,
        Launcher::Posix => !inside && !has_own,
    };
    (trusted && executor.is_alive()).then_some(seat)
}

/// The run's sandbox, if it lies beneath the agent's work directory.
pub fn find_identity(dirs: &AgentDirs, container: ContainerId) -> Option<Identity> {
    known_identity(dirs, container).or_else(|| search_identity(dirs, container))
}

/// As the agent wrote it down: one file. `None` does not say that there is no
/// sandbox.
pub fn known_identity(dirs: &AgentDirs, container: ContainerId) -> Option<Identity> {
    let sandbox = RuntimeDir::new(&dirs.runtime_dir).sandbox(container)?;
    Identity::of_directory(&dirs.work_dir, &sandbox, container).ok()?
}

/// Looks for the sandbox: as many lookups as the agent has known executors.
pub fn search_identity(dirs: &AgentDirs, container: ContainerId) -> Option<Identity> {
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
