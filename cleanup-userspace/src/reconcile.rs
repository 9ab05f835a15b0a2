//! Finds the runs that no event told of: those that died while the daemon did
//! not run, and what was lost.
//!
//! It walks what exists: containers of the runtime directories, directories
//! beneath the cgroups roots, running Docker containers. Absence of something is
//! never a proof of death; what cannot be proven is unknown, and left alone.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::case::Host;
use crate::cgroup::{docker_child, membership};
use crate::docker::named_runs;
use crate::mesos::{ContainerId, Identity};
use crate::process::{self, Proc};
use crate::registry::{self, AgentIndex, Launcher, Run, cgroups_of};

/// What one look at the host found, about runs that were not known before.
#[derive(Debug, Default)]
pub struct Survey {
    /// Runs whose launcher helper lives.
    pub live: Vec<Run>,
    /// Runs that are positively ours, and of which nothing lives: their recorded
    /// process is gone, no process sits in their cgroups, none carries their
    /// sandbox in its environment.
    pub dead: Vec<Run>,
    /// Everything else, with why.
    pub unknown: BTreeMap<ContainerId, &'static str>,
}

/// Looks at everything that exists, except the runs in `known`. Blocks.
pub fn survey(host: &Host, known: &HashSet<ContainerId>) -> Survey {
    let mut survey = Survey::default();
    let mut claimed = None;
    for container in candidates(host) {
        if known.contains(&container) {
            continue;
        }
        match judge(host, container, &mut claimed) {
            Judgement::Live(run) => survey.live.push(*run),
            Judgement::Dead(run) => survey.dead.push(*run),
            Judgement::Unknown(why) => {
                survey.unknown.insert(container, why);
            }
        }
    }
    survey
}

enum Judgement {
    Live(Box<Run>),
    Dead(Box<Run>),
    Unknown(&'static str),
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
            .flat_map(|container| named_runs(container, &roots)),
    );
    found
}

fn judge(host: &Host, container: ContainerId, claimed: &mut Option<HashSet<PathBuf>>) -> Judgement {
    for (agent, known) in host.agents.iter().enumerate() {
        let run = match registry::learn(agent, &known.dirs, container, &host.launcher) {
            Some(run) => run,
            None => match recorded_by_checkpoint(host, agent, container) {
                Some(run) => run,
                None => continue,
            },
        };
        if run.helper.is_some_and(Proc::is_alive) {
            return Judgement::Live(Box::new(run));
        }
        if run.identity.is_none() {
            return Judgement::Unknown("its sandbox is not beneath the agent's work directory");
        }
        let processes = cgroups_of(&host.hierarchies, &known.dirs, container)
            .and_then(|cgroups| run.own_processes(&cgroups));
        match processes {
            Ok(processes) if processes.is_empty() => {}
            Ok(_) => return Judgement::Unknown("its helper is gone, processes of it are left"),
            Err(_) => return Judgement::Unknown("its cgroups cannot be read"),
        }
        let claimed = claimed.get_or_insert_with(claimed_sandboxes);
        return if run
            .identity
            .as_ref()
            .is_some_and(|identity| claimed.contains(&identity.sandbox))
        {
            Judgement::Unknown("a process that is not in its cgroup belongs to it")
        } else {
            Judgement::Dead(Box::new(run))
        };
    }
    Judgement::Unknown("no configured agent has a record of its process")
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
    let written = fs::metadata(&path).and_then(|meta| meta.modified()).ok()?;
    let written = written
        .duration_since(std::time::UNIX_EPOCH)
        .ok()?
        .as_secs_f64();
    // A process that started later has only inherited the number.
    let helper = Proc::of(pid).filter(|proc| proc.started_at() <= written + 1.0);
    Some(Run {
        container,
        agent,
        identity: Some(identity),
        launcher: Launcher::Posix,
        // On the posix launcher the session is looked for by this PID.
        helper: helper.or(Some(Proc {
            pid,
            start_ticks: 0,
        })),
        executor: None,
        seat: None,
        owned: false,
        orphaned: false,
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

/// The sandboxes that living processes name in their environment, Docker's
/// containers apart (an executor may pass its environment on to them).
fn claimed_sandboxes() -> HashSet<PathBuf> {
    process::all()
        .filter_map(|pid| {
            let sandbox = process::environ(pid)
                .ok()?
                .remove(OsStr::new("MESOS_DIRECTORY"))?;
            let in_docker = membership(pid).is_some_and(|seat| {
                seat.paths().any(|path| {
                    path.components().any(|part| {
                        part.as_os_str()
                            .to_str()
                            .is_some_and(|name| docker_child(name).is_some())
                    })
                })
            });
            (!in_docker && process::stat(pid).is_some_and(|stat| !stat.ended))
                .then(|| PathBuf::from(sandbox))
        })
        .collect()
}
