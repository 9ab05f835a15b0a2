//! Finds the runs that no event told of: those that died while the daemon did
//! not run, and what was lost.
//!
//! It walks what exists: containers of the runtime directories, directories
//! beneath the cgroups roots, running Docker containers. Absence of something is
//! never a proof of death; what cannot be proven is unknown, and left alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use std::{fs, io};

use crate::case::Host;
use crate::cgroup::{docker_child, membership};
use crate::docker::{ContainerInfo, named_runs};
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
    /// Of the known ones, those that have a cgroup.
    pub known_with_cgroups: Vec<ContainerId>,
    /// Launcher helpers of registered runs that are gone, whether somebody said so or
    /// not.
    pub gone_helpers: Vec<(ContainerId, Proc)>,
    /// When the look began; `None` for one that failed.
    pub began: Option<Instant>,
}

/// A run that may live.
#[derive(Debug)]
pub struct Unknown {
    pub why: &'static str,
    /// Where known.
    pub executor_id: Option<OsString>,
    /// What an agent has recorded of it, where one has.
    pub run: Option<Box<Run>>,
}

/// Containers that were looked for in an agent's work directory and have no
/// sandbox there. A sandbox is made before its container, so they never will.
///
/// Without this every survey would look through everything that the agent has
/// ever known, for each cgroup that somebody left behind.
#[derive(Debug, Default)]
pub struct Nowhere(Mutex<HashSet<(AgentIndex, ContainerId)>>);

/// Whose each container is, where that is known, for one survey.
type Identities = HashMap<(AgentIndex, ContainerId), Identity>;

impl Nowhere {
    /// Finds out who these are: from the runtime directories, else in one walk
    /// through each work directory.
    fn identify(&self, host: &Host, containers: &[ContainerId]) -> Identities {
        let mut found = Identities::new();
        for agent in 0..host.agents.len() {
            let dirs = host.dirs(agent);
            let mut wanted = HashSet::new();
            for container in containers.iter().copied() {
                if let Some(known) = registry::known_identity(dirs, container) {
                    found.insert((agent, container), known);
                } else if !self.lock().contains(&(agent, container)) {
                    wanted.insert(container);
                }
            }
            if wanted.is_empty() {
                continue;
            }
            match Identity::find_all(&dirs.work_dir, &wanted) {
                Ok(identities) => {
                    // A work directory that is not mounted says nothing.
                    if dirs.work_dir.join("slaves").is_dir() {
                        let nowhere = wanted.iter().filter(|id| !identities.contains_key(id));
                        self.lock().extend(nowhere.map(|id| (agent, *id)));
                    }
                    let identities = identities.into_iter();
                    found.extend(identities.map(|(id, identity)| ((agent, id), identity)));
                }
                Err(error) => {
                    tracing::warn!(%error, "executors cannot be looked for");
                }
            }
        }
        found
    }

    fn retain(&self, candidates: &BTreeSet<ContainerId>) {
        self.lock()
            .retain(|(_, container)| candidates.contains(container));
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<(AgentIndex, ContainerId)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at everything that exists, except the runs in `known`. Blocks.
pub fn survey(host: &Host, known: &HashSet<ContainerId>) -> Survey {
    let began = Instant::now();
    // With no executor alive there is no helper to tell whose the runtime
    // directory is, and what is dead would wait for its agent for ever.
    for agent in &host.agents {
        agent.verify();
    }
    let mut survey = Survey {
        began: Some(began),
        gone_helpers: gone_helpers(host),
        ..Survey::default()
    };
    let mut claimed = None;
    let mut candidates = with_cgroups(host);
    survey
        .known_with_cgroups
        .extend(candidates.iter().filter(|id| known.contains(id)));
    candidates.extend(others(host));
    host.nowhere.retain(&candidates);
    let new: Vec<ContainerId> = candidates
        .iter()
        .filter(|container| !known.contains(container))
        .copied()
        .collect();
    let identities = host.nowhere.identify(host, &new);
    for container in new {
        match judge(host, container, &identities, &mut claimed) {
            Judgement::Live(run) => survey.live.push(*run),
            Judgement::Dead(run) => survey.dead.push(*run),
            Judgement::Unknown(unknown) => {
                survey.unknown.insert(container, unknown);
            }
        }
    }
    tracing::debug!(
        took_ms = began.elapsed().as_secs_f64() * 1e3,
        candidates = candidates.len(),
        live = survey.live.len(),
        dead = survey.dead.len(),
        unknown = survey.unknown.len(),
        "surveyed"
    );
    survey
}

fn gone_helpers(host: &Host) -> Vec<(ContainerId, Proc)> {
    // Not with the registry locked: each is a look into `/proc`.
    let helpers: Vec<_> = {
        let registry = host.registry();
        let runs = registry.iter().filter(|run| !run.orphaned);
        runs.filter_map(|run| Some((run.container, run.helper?)))
            .collect()
    };
    let gone = helpers.into_iter().filter(|(_, helper)| !helper.is_alive());
    gone.collect()
}

/// Those of the runs that are dead, by the rules of a survey. One look: a second
/// one must agree before anything is done. Blocks.
pub fn dead_among(host: &Host, runs: &[ContainerId]) -> Vec<Run> {
    let mut claimed = None;
    let identities = host.nowhere.identify(host, runs);
    let judged = runs
        .iter()
        .map(|run| judge(host, *run, &identities, &mut claimed));
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

/// Every directory beneath an agent's cgroups root that looks like a run's.
fn with_cgroups(host: &Host) -> BTreeSet<ContainerId> {
    let mut found = BTreeSet::new();
    for agent in &host.agents {
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
    found
}

/// Everything else on this host that looks like a run.
fn others(host: &Host) -> BTreeSet<ContainerId> {
    let mut found = BTreeSet::new();
    for agent in &host.agents {
        match agent.runtime.list() {
            Ok(containers) => found.extend(containers),
            Err(error) => tracing::warn!(%error, "this agent's containers are skipped"),
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
    identities: &Identities,
    claimed: &mut Option<HashSet<ContainerId>>,
) -> Judgement {
    let mut unknown = Unknown {
        why: "no configured agent has a record of its process",
        executor_id: None,
        run: None,
    };
    for (agent, known) in host.agents.iter().enumerate() {
        let identity = identities.get(&(agent, container));
        let learnt = registry::learn(agent, &known.dirs, container, &host.launcher)
            .or_else(|| recorded_by_checkpoint(host, agent, identity?.clone()));
        let Some(mut run) = learnt else { continue };
        if run.identity.is_none() {
            run.identity = identity.cloned();
        }
        if run.helper.is_some_and(Proc::is_alive) {
            return Judgement::Live(Box::new(run));
        }
        unknown.run = Some(Box::new(run.clone()));
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
    processes_left(host, run).map(|left| !left.is_empty())
}

fn processes_left(host: &Host, run: &Run) -> io::Result<Vec<u32>> {
    let cgroups = cgroups_of(&host.hierarchies, host.dirs(run.agent), run.container)?;
    let own = run.own_processes(&cgroups)?;
    if !own.is_empty() {
        return Ok(own);
    }
    let runtime = &host.agents[run.agent].runtime;
    let session = run.session().or_else(|| runtime.helper_pid(run.container));
    let members = session.map(process::session_members).transpose()?;
    Ok(members.unwrap_or_default())
}

/// What shows that a run lives which a survey cannot judge, for people; `None`:
/// nothing does, which proves nothing. Reads every process' environment: blocks.
pub fn shows_life(host: &Host, run: &Run) -> io::Result<Option<String>> {
    if let Some(helper) = run.helper.filter(|helper| helper.is_alive()) {
        let helper = helper.pid;
        return Ok(Some(format!("its launcher helper, process {helper}, runs")));
    }
    // Several agents may have one root, and a run that none has a record of is any's.
    for agent in 0..host.agents.len() {
        let run = Run {
            agent,
            ..run.clone()
        };
        if let Some(pid) = processes_left(host, &run)?.first() {
            return Ok(Some(format!("a process of its own, pid {pid}, runs")));
        }
    }
    let mut claimed = None;
    let claimed = claimed_by_the_living(&mut claimed)?.contains(&run.container);
    Ok(claimed.then(|| "a process that is not in its cgroup belongs to it".to_owned()))
}

/// A run that nobody has a record of, with the agent whose cgroups root, or else one
/// of the `running` containers, has its id. Blocks.
pub fn stranger(host: &Host, container: ContainerId, running: &[Arc<ContainerInfo>]) -> Run {
    let has_cgroups = |agent: &AgentIndex| {
        cgroups_of(&host.hierarchies, host.dirs(*agent), container)
            .is_ok_and(|cgroups| !cgroups.is_empty())
    };
    let named = |agent: &AgentIndex| {
        let root = std::slice::from_ref(&host.dirs(*agent).cgroups_root);
        running
            .iter()
            .any(|info| named_runs(info, root).contains(&container))
    };
    let agents = 0..host.agents.len();
    let agent = agents
        .clone()
        .find(has_cgroups)
        .or_else(|| agents.clone().find(named));
    let agent = agent.unwrap_or(0);
    let dirs = host.dirs(agent);
    Run::of_helper(agent, dirs, container, &host.launcher, None, false)
}

/// A run that is not in the runtime directory (any more), by what the agent
/// checkpointed of it: `None` without a recorded process.
fn recorded_by_checkpoint(host: &Host, agent: AgentIndex, identity: Identity) -> Option<Run> {
    let dirs = host.dirs(agent);
    let container = identity.container;
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
