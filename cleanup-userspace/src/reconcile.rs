//! Finds the runs that no event told of: those that died while the daemon did
//! not run, and what was lost.
//!
//! It walks what exists: containers of the runtime directories, directories
//! beneath the cgroups roots, running Docker containers. Absence of something is
//! never a proof of death; what cannot be proven is unknown, and left alone.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::case::Host;
use crate::cgroup::{docker_child, membership};
use crate::docker::named_runs;
use crate::mesos::{ContainerId, Identity};
use crate::process::{self, Proc};
use crate::registry::{self, AgentIndex, Run, cgroups_of};

/// What one look at the host found, about runs that were not known before.
#[derive(Debug, Default)]
pub struct Survey {
    /// Runs whose launcher helper lives.
    pub live: Vec<Run>,
    /// Runs that are positively ours, and of which nothing lives: their recorded
    /// process is gone, no process sits in their cgroups, none carries their
    /// sandbox in its environment.
    pub dead: Vec<Run>,
    /// Everything else.
    pub unknown: BTreeMap<ContainerId, Unknown>,
}

/// A run that may live.
#[derive(Debug)]
pub struct Unknown {
    pub why: &'static str,
    /// Where known.
    pub executor_id: Option<OsString>,
}

/// Looks at everything that exists, except the runs in `known`. Blocks.
pub fn survey(host: &Host, known: &HashSet<ContainerId>) -> Survey {
    // With no executor alive there is no helper to tell whose the runtime
    // directory is, and what is dead would wait for its agent for ever.
    for agent in &host.agents {
        agent.verify();
    }
    let mut survey = Survey::default();
    let mut claimed = None;
    for container in candidates(host) {
        if known.contains(&container) {
            continue;
        }
        match judge(host, container, &mut claimed) {
            Judgement::Live(run) => survey.live.push(*run),
            Judgement::Dead(run) => survey.dead.push(*run),
            Judgement::Unknown(unknown) => {
                survey.unknown.insert(container, unknown);
            }
        }
    }
    survey
}

/// Those of the runs that are dead, by the rules of a survey. One look: a second
/// one must agree before anything is done. Blocks.
pub fn dead_among(host: &Host, runs: &[ContainerId]) -> Vec<Run> {
    let mut claimed = None;
    let judged = runs.iter().map(|run| judge(host, *run, &mut claimed));
    judged
        .filter_map(|judgement| match judgement {
            Judgement::Dead(run) => Some(*run),
            Judgement::Live(_) | Judgement::Unknown(_) => None,
        })
        .collect()
}

enum Judgement {
    Live(Box<Run>),
    Dead(Box<Run>),
    Unknown(Unknown),
}

/// Everything on this host that looks like a run.
fn candidates(host: &Host) -> BTreeSet<ContainerId> {
    let mut found = BTreeSet::new();
    for agent in &host.agents {
        match agent.runtime.list() {
            Ok(containers) => found.extend(containers),
            Err(error) => tracing::warn!(%error, "this agent's containers are skipped"),
        }
        for hierarchy in host.hierarchies.iter() {
            let entries = fs::read_dir(hierarchy.root(&agent.dirs.cgroups_root))
                .into_iter()
                .flatten()
                .flatten();
            found.extend(
                entries.filter_map(|entry| entry.file_name().to_str()?.parse::<ContainerId>().ok()),
            );
        }
    }
    let roots = host.roots();
    found.extend(
        host.index
            .running()
            .iter()
            .flat_map(|container| named_runs(container, roots)),
    );
    found
}

fn judge(
    host: &Host,
    container: ContainerId,
    claimed: &mut Option<HashSet<ContainerId>>,
) -> Judgement {
    let mut unknown = Unknown {
        why: "no configured agent has a record of its process",
        executor_id: None,
    };
    for (agent, known) in host.agents.iter().enumerate() {
        let learnt = registry::learn(agent, &known.dirs, container, &host.launcher)
            .or_else(|| recorded_by_checkpoint(host, agent, container));
        let Some(mut run) = learnt else { continue };
        if run.identity.is_none() {
            run.identity = registry::find_identity(&known.dirs, container);
        }
        if run.helper.is_some_and(Proc::is_alive) {
            return Judgement::Live(Box::new(run));
        }
        let Some(identity) = run.identity.as_ref() else {
            unknown.why = "its sandbox is not beneath the agent's work directory";
            continue;
        };
        unknown.executor_id = Some(identity.executor_id.clone());
        unknown.why = match what_is_left(host, &run) {
            Ok(true) => "its helper is gone, processes of it are left",
            Err(_) => "its processes cannot be looked at",
            Ok(false) => match claimed_by_the_living(claimed) {
                Err(_) => "the processes of this host cannot be looked at",
                Ok(claimed) if claimed.contains(&container) => {
                    "a process that is not in its cgroup belongs to it"
                }
                Ok(_) => return Judgement::Dead(Box::new(run)),
            },
        };
        return Judgement::Unknown(unknown);
    }
    Judgement::Unknown(unknown)
}

/// Whether anything lives in the run's cgroups, or in the session that its helper
/// led, whichever launcher it was.
fn what_is_left(host: &Host, run: &Run) -> io::Result<bool> {
    let cgroups = cgroups_of(&host.hierarchies, host.dirs(run.agent), run.container)?;
    if !run.own_processes(&cgroups)?.is_empty() {
        return Ok(true);
    }
    let runtime = &host.agents[run.agent].runtime;
    let session = run.session().or_else(|| runtime.helper_pid(run.container));
    Ok(session
        .map(process::session_members)
        .transpose()?
        .is_some_and(|members| !members.is_empty()))
}

/// A run that is not in the runtime directory (any more), by what the agent
/// checkpointed of it: `None` without a recorded process.
fn recorded_by_checkpoint(host: &Host, agent: AgentIndex, container: ContainerId) -> Option<Run> {
    let dirs = host.dirs(agent);
    let identity = registry::find_identity(dirs, container)?;
    let path = forked_pid(&dirs.work_dir, &identity);
    let pid: u32 = fs::read_to_string(&path)
        .ok()?
        .trim()
        .parse()
        .ok()
        .filter(|pid| *pid > 1)?;
    let helper = Proc::of(pid).filter(|proc| registry::is_recorded(*proc, &path, container));
    // Gone: its session may outlive it, and is named by its PID.
    let helper = helper.unwrap_or(Proc {
        pid,
        start_ticks: 0,
    });
    let run = Run::of_helper(agent, dirs, container, &host.launcher, Some(helper), false);
    Some(Run {
        identity: Some(identity),
        ..run
    })
}

fn forked_pid(work_dir: &Path, identity: &Identity) -> PathBuf {
    work_dir
        .join("meta/slaves")
        .join(&identity.agent_id)
        .join("frameworks")
        .join(&identity.framework_id)
        .join("executors")
        .join(&identity.executor_id)
        .join("runs")
        .join(identity.container.as_str())
        .join("pids/forked.pid")
}

/// The runs that living processes name in their environment, as their own or the
/// one they were started from. Pods beneath a run's cgroup do not count: an
/// executor may pass its environment on to its containers.
fn claimed_by_the_living(
    claimed: &mut Option<HashSet<ContainerId>>,
) -> io::Result<&HashSet<ContainerId>> {
    if claimed.is_none() {
        let mut found = HashSet::new();
        for pid in process::all()? {
            let env = match process::environ(pid) {
                Ok(env) => env,
                // Gone, or a process without an address space.
                Err(error) if process::is_gone(&error) => continue,
                // Init may keep its own to itself, and is nobody's executor.
                Err(_) if pid == 1 => continue,
                Err(error) => return Err(error),
            };
            let named = ["MESOS_DIRECTORY", "MESOS_SANDBOX"]
                .iter()
                .filter_map(|name| env.get(OsStr::new(name)));
            let runs: Vec<ContainerId> = named
                .flat_map(|path| Path::new(path).components())
                .filter_map(|part| part.as_os_str().to_str()?.parse().ok())
                .collect();
            let lives = || process::stat(pid).is_ok_and(|stat| stat.is_none_or(|stat| !stat.ended));
            if !runs.is_empty() && lives() && !in_a_runs_pod(pid) {
                found.extend(runs);
            }
        }
        *claimed = Some(found);
    }
    Ok(claimed.get_or_insert_default())
}

/// Whether a process sits in a Docker container beneath a run's cgroup.
fn in_a_runs_pod(pid: u32) -> bool {
    let pod = |path: &Path| {
        let names: Vec<_> = path.iter().filter_map(OsStr::to_str).collect();
        names
            .windows(2)
            .any(|pair| pair[0].parse::<ContainerId>().is_ok() && docker_child(pair[1]).is_some())
    };
    membership(pid).is_some_and(|seat| seat.paths().any(pod))
}
