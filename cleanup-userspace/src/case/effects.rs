//! What a case does to the host's file system and processes, off the event path.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Death;
use super::decide::Directory;
use super::host::Host;
use crate::cgroup::{Removal, RunCgroup, docker_child, kill_own};
use crate::mesos::AgentState;
use crate::process::{self, Proc};
use crate::registry::{Launcher, Run, cgroups_of};

/// How long one round of file system work may take before it is left behind.
const WORK_DEADLINE: Duration = Duration::from_secs(10);

/// What one look at the run found.
#[derive(Debug)]
pub struct Look {
    /// The run's cgroup in every hierarchy that has one.
    pub cgroups: Vec<RunCgroup>,
    /// One entry for each directory of the run, of all hierarchies.
    pub directories: Vec<Directory>,
    pub own_processes: Vec<u32>,
    pub agent: AgentState,
    /// The container is in the agent's runtime directory.
    pub owned: bool,
}

/// Looks at the run's cgroups and processes, and at its agent.
pub async fn look(host: &Arc<Host>, run: &Run, death: &Death) -> anyhow::Result<Look> {
    let (host, run, death) = (Arc::clone(host), run.clone(), death.clone());
    off_path("look at the run's cgroups", move || {
        let cgroups = cgroups_of(&host.hierarchies, host.dirs(run.agent), run.container)?;
        let mut directories = Vec::new();
        for cgroup in &cgroups {
            let own = owner_of(cgroup, &run, &death);
            directories.extend(cgroup.tree()?.iter().map(|below| kind(below, own)));
        }
        let own_processes = run.own_processes(&cgroups)?;
        let agent = &host.agents[run.agent];
        let owned = agent.runtime.owns(run.container)?;
        Ok(Look {
            agent: agent.state(),
            cgroups,
            directories,
            own_processes,
            owned,
        })
    })
    .await
}

/// Removes the empty directories of the run that may be removed, bottom-up;
/// `agents`: those that are the agent's, too. Returns how many went.
pub async fn remove(
    host: &Arc<Host>,
    run: &Run,
    death: &Death,
    look: Look,
    agents: bool,
) -> anyhow::Result<usize> {
    let (run, death) = (run.clone(), death.clone());
    let _permit = host.removals.acquire().await?;
    off_path("remove the run's cgroups", move || {
        let mut removed = 0;
        for cgroup in &look.cgroups {
            let own = owner_of(cgroup, &run, &death);
            for below in cgroup.tree()? {
                if kind(&below, own) == Directory::Agents && !agents {
                    continue;
                }
                removed += usize::from(cgroup.remove(&below)? == Removal::Removed);
            }
        }
        Ok(removed)
    })
    .await
}

/// Ends the run's own processes; returns how many were signalled.
pub async fn end_stragglers(run: &Run, look: Look) -> anyhow::Result<usize> {
    let run = run.clone();
    // An agent uses the same freezer.
    let may_freeze = look.agent == AgentState::Absent;
    off_path("end what is left of the run", move || {
        let mut ended = 0;
        for cgroup in &look.cgroups {
            ended += kill_own(cgroup, may_freeze)?;
        }
        if run.launcher == Launcher::Posix {
            ended += end_session(&run, &look.own_processes)?;
        }
        Ok(ended)
    })
    .await
}

/// Whose the run's own directory is in this hierarchy: Docker made it where the
/// dead task did not sit in it; where that is not known it counts as the agent's.
fn owner_of(cgroup: &RunCgroup, run: &Run, death: &Death) -> Directory {
    match run.sat_in(cgroup.hierarchy(), &cgroup.path(), death.sat_in.as_ref()) {
        Some(false) => Directory::Foreign,
        Some(true) | None => Directory::Agents,
    }
}

/// Whose a directory beneath a run's cgroup is; `own` for the run's own.
fn kind(below: &Path, own: Directory) -> Directory {
    match below.components().next() {
        None => own,
        Some(first)
            if first
                .as_os_str()
                .to_str()
                .is_some_and(|name| docker_child(name).is_some()) =>
        {
            Directory::Docker
        }
        Some(_) => Directory::Agents,
    }
}

/// Posix launcher: ends members of the run's session that carry its sandbox in
/// their environment.
fn end_session(run: &Run, members: &[u32]) -> std::io::Result<usize> {
    let (Some(session), Some(identity)) = (run.session(), run.identity.as_ref()) else {
        return Ok(0);
    };
    let mut ended = 0;
    for pid in members {
        let Some(member) = Proc::of(*pid) else {
            continue;
        };
        let sent = member.kill_if(|| {
            process::stat(*pid).is_some_and(|stat| stat.session == session)
                && process::environ(*pid).is_ok_and(|env| {
                    env.get(std::ffi::OsStr::new("MESOS_DIRECTORY"))
                        .is_some_and(|dir| Path::new(dir) == identity.sandbox)
                })
        })?;
        ended += usize::from(sent);
    }
    Ok(ended)
}

/// Runs file system work on a blocking thread. Past the deadline it is left to
/// itself: a cgroup removal may wait in the kernel for a dying task.
async fn off_path<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    match tokio::time::timeout(WORK_DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(panicked)) => Err(anyhow::anyhow!("could not {what}: {panicked}")),
        Err(_) => Err(anyhow::anyhow!("could not {what} within {WORK_DEADLINE:?}")),
    }
}
