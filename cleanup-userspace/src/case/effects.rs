//! What a case does to the host's file system and processes, off the event path.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::decide::Directory;
use super::host::Host;
use super::{Death, Proof};
use crate::cgroup::{Removal, RunCgroup, docker_child, kill_docker, kill_own};
use crate::config::Teardown;
use crate::mesos::{AgentState, Identity};
use crate::process::{self, Proc};
use crate::reconcile::shows_life;
use crate::registry::{Launcher, Run, cgroups_of, find_identity, known_identity};

/// How long a case waits for a round of file system work. Past that the work is
/// left to itself: a cgroup removal may wait in the kernel for a dying task.
pub const WORK_DEADLINE: Duration = Duration::from_secs(10);

/// What one look at the run found.
#[derive(Debug)]
pub struct Look {
    /// One entry for each directory of the run, of all hierarchies.
    pub directories: Vec<Directory>,
    /// Names of the hierarchies that have a cgroup of the run.
    pub hierarchies: Vec<String>,
    pub own_processes: Vec<u32>,
    /// Something shows that it lives; looked for if the operator's word is the only
    /// proof of its death.
    pub shows_life: bool,
    /// Processes in Docker's cgroups beneath the run's, without those that are kept.
    pub pod_processes: usize,
    pub agent: AgentState,
    /// The container is in the agent's runtime directory; `None`: that cannot be
    /// told, the directory is not there.
    pub owned: Option<bool>,
    /// Looked up if it was not known.
    pub identity: Option<Identity>,
}

/// Looks at the run's cgroups and processes, and at its agent.
///
/// With `search`, an executor that is not known is looked for in the agent's work
/// directory: as many lookups as the agent has known executors. Processes of the
/// containers in `keep` are not counted.
pub async fn look(
    host: &Arc<Host>,
    run: &Run,
    death: &Death,
    search: bool,
    keep: Vec<String>,
) -> anyhow::Result<Look> {
    let (host, run, death) = (Arc::clone(host), run.clone(), death.clone());
    off_path("look at the run's cgroups", move || {
        let cgroups = cgroups_of(&host.hierarchies, host.dirs(run.agent), run.container)?;
        let mut directories = Vec::new();
        for cgroup in &cgroups {
            let own = owner_of(cgroup, &run, &death);
            directories.extend(cgroup.tree()?.iter().map(|below| kind(below, own)));
        }
        let agent = &host.agents[run.agent];
        let mut pod_processes = 0;
        for cgroup in cgroups.iter().filter(|c| *c.hierarchy() == host.launcher) {
            pod_processes += cgroup.docker_procs(&keep)?.len();
        }
        Ok(Look {
            pod_processes,
            directories,
            hierarchies: cgroups
                .iter()
                .map(|cgroup| cgroup.hierarchy().name())
                .collect(),
            own_processes: run.own_processes(&cgroups)?,
            shows_life: death.origin.proof() == Proof::Word && shows_life(&host, &run)?.is_some(),
            agent: agent.state(),
            owned: agent.runtime.owns(run.container).ok(),
            identity: run.identity.or_else(|| {
                if search {
                    find_identity(&agent.dirs, run.container)
                } else {
                    known_identity(&agent.dirs, run.container)
                }
            }),
        })
    })
    .await
}

/// A cgroup directory of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of its hierarchy.
    pub hierarchy: String,
    pub path: PathBuf,
    pub kind: Directory,
}

/// Every cgroup directory of the run that exists, the deepest of each hierarchy
/// first. Blocks.
pub fn places(host: &Host, run: &Run, death: &Death) -> std::io::Result<Vec<Place>> {
    let root = &host.dirs(run.agent).cgroups_root;
    let mut found = Vec::new();
    for cgroup in cgroups_of(&host.hierarchies, host.dirs(run.agent), run.container)? {
        let own = owner_of(&cgroup, run, death);
        let top = cgroup.hierarchy().root(root).join(run.container.as_str());
        found.extend(cgroup.tree()?.iter().map(|below| Place {
            hierarchy: cgroup.hierarchy().name(),
            path: if below.as_os_str().is_empty() {
                top.clone()
            } else {
                top.join(below)
            },
            kind: kind(below, own),
        }));
    }
    Ok(found)
}

/// Begins to remove the empty directories of the run, bottom-up; with `agents`
/// those that are the agent's, too, if the proof for that still holds when it is
/// their turn: a removal may have to wait. The task's result is how many went.
pub fn begin_removal(
    host: &Arc<Host>,
    run: &Run,
    death: &Death,
    agents: bool,
) -> JoinHandle<anyhow::Result<usize>> {
    let (host, run, death) = (Arc::clone(host), run.clone(), death.clone());
    tokio::spawn(async move {
        // Held for as long as the kernel takes: no more threads hang than this.
        let permit = Arc::clone(&host.removals).acquire_owned().await?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let agent = &host.agents[run.agent];
            let state = agent.state();
            if state == AgentState::Recovering {
                return Ok(0);
            }
            let free = state == AgentState::Absent
                || host.config().teardown == Teardown::Immediate
                || !agent.runtime.owns(run.container).unwrap_or(true);
            // Some time has passed since the look that led here.
            if death.origin.proof() == Proof::Word && shows_life(&host, &run)?.is_some() {
                return Ok(0);
            }
            // One hierarchy that fails keeps no other from being cleaned.
            let (mut removed, mut failure) = (0, None);
            for cgroup in cgroups_of(&host.hierarchies, &agent.dirs, run.container)? {
                let own = owner_of(&cgroup, &run, &death);
                for below in cgroup.tree()? {
                    if !host.may_act() {
                        return Ok(removed);
                    }
                    if kind(&below, own) == Directory::Agents && !(agents && free) {
                        continue;
                    }
                    match cgroup.remove(&below) {
                        Ok(Removal::Removed) => {
                            host.metrics.cgroup_removed();
                            removed += 1;
                        }
                        Ok(Removal::Gone) => {}
                        Ok(Removal::Busy(busy)) => host.metrics.rmdir_retry(Some(busy)),
                        Err(error) => {
                            host.metrics.rmdir_retry(None);
                            failure.get_or_insert(error);
                        }
                    }
                }
            }
            match failure {
                // What went is counted; the next round meets the failure again.
                Some(error) if removed == 0 => Err(error.into()),
                _ => Ok(removed),
            }
        })
        .await?
    })
}

/// Ends the run's own processes; returns how many were signalled.
pub async fn end_stragglers(
    host: &Arc<Host>,
    run: &Run,
    agent: AgentState,
) -> anyhow::Result<usize> {
    let (host, run) = (Arc::clone(host), run.clone());
    // An agent uses the same freezer.
    let may_freeze = agent == AgentState::Absent;
    off_path("end what is left of the run", move || {
        let mut ended = 0;
        for cgroup in cgroups_of(&host.hierarchies, host.dirs(run.agent), run.container)? {
            if host.may_act() {
                ended += kill_own(&cgroup, may_freeze)?;
            }
        }
        if run.launcher == Launcher::Posix && host.may_act() {
            ended += end_session(&run)?;
        }
        Ok(ended)
    })
    .await
}

/// Ends the processes of the pod through their cgroups: for a Docker that does
/// not answer, or does not know of them. Those of the containers in `keep` are left.
pub async fn kill_pod(host: &Arc<Host>, run: &Run, keep: Vec<String>) -> anyhow::Result<usize> {
    let (host, run) = (Arc::clone(host), run.clone());
    off_path("end the pod through its cgroups", move || {
        let mut ended = 0;
        for cgroup in cgroups_of(&host.hierarchies, host.dirs(run.agent), run.container)? {
            if host.may_act() {
                ended += kill_docker(&cgroup, &keep)?;
            }
        }
        Ok(ended)
    })
    .await
}

/// Whose the run's own directory is in this hierarchy; where it is not known
/// whether the dead task sat in it, it counts as the agent's.
fn owner_of(cgroup: &RunCgroup, run: &Run, death: &Death) -> Directory {
    match run.sat_in(cgroup.hierarchy(), &cgroup.path(), death.sat_in.as_ref()) {
        Some(false) => Directory::Dockers,
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
            Directory::Dockers
        }
        Some(_) => Directory::Agents,
    }
}

/// Posix launcher: ends members of the run's session that carry its sandbox in
/// their environment.
fn end_session(run: &Run) -> std::io::Result<usize> {
    let (Some(session), Some(identity)) = (run.session(), run.identity.as_ref()) else {
        return Ok(0);
    };
    let names_the_run = |pid: u32| {
        process::environ(pid).is_ok_and(|env| {
            env.get(OsStr::new("MESOS_DIRECTORY"))
                .is_some_and(|dir| Path::new(dir) == identity.sandbox)
        })
    };
    let in_session = |pid: u32| {
        process::stat(pid).is_ok_and(|stat| stat.is_some_and(|stat| stat.session == session))
    };
    let mut ended = 0;
    for pid in process::session_members(session)? {
        let Some(member) = Proc::of(pid) else {
            continue;
        };
        ended += usize::from(member.kill_if(|| in_session(pid) && names_the_run(pid))?);
    }
    Ok(ended)
}

/// Runs file system work on a blocking thread.
pub(super) async fn off_path<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    match tokio::time::timeout(WORK_DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(panicked)) => Err(anyhow::anyhow!("could not {what}: {panicked}")),
        Err(_) => Err(anyhow::anyhow!("could not {what} within {WORK_DEADLINE:?}")),
    }
}
