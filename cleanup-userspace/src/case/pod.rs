//! Finding a dead run's pod, and ending its containers.

use std::path::PathBuf;
use std::time::Duration;

use super::host::Host;
use super::record::Ending;
use super::{Death, Proof, hollow};
use crate::cgroup::RunCgroup;
use crate::config::{Action, Config, LabelJoin, Mode};
use crate::docker::{
    ContainerInfo, DockerError, JoinKey, LabelEvidence, Listed, RunScope, Stopped, exact_key,
    label_key,
};
use crate::mesos::ContainerId;
use crate::process::{monotonic_ns, unix_seconds};
use crate::registry::Run;

/// Docker's answer to the request to end a container.
#[derive(Debug)]
pub struct Answer {
    pub id: String,
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// `None`: it runs. Docker did as asked, and it was started again; or the mode is
    /// observe by now, and Docker was not asked.
    pub outcome: Result<Option<Ending>, DockerError>,
}

/// A container of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub id: String,
    /// What makes it the run's.
    pub key: JoinKey,
    /// The operator wants it to be kept.
    pub keep: bool,
}

impl Found {
    pub fn of(host: &Host, info: &ContainerInfo, key: JoinKey) -> Self {
        Self {
            id: info.id.clone(),
            key,
            keep: host.keeps(info),
        }
    }
}

/// The run-exact key that makes a container part of a dead run.
///
/// Must not be called with the registry locked.
pub fn key_of(host: &Host, run: &Run, info: &ContainerInfo) -> Option<JoinKey> {
    let sandboxes = run
        .identity
        .as_ref()
        .map(|identity| [&identity.sandbox, &identity.resolved]);
    let is_run = |id: ContainerId| {
        host.registry().get(id).is_some()
            || host
                .agents
                .iter()
                .any(|agent| agent.runtime.owns(id).unwrap_or(true))
    };
    exact_key(
        info,
        &RunScope {
            container: run.container,
            cgroups_root: &host.dirs(run.agent).cgroups_root,
            all_roots: host.roots(),
            sandboxes: sandboxes
                .into_iter()
                .flatten()
                .map(PathBuf::as_path)
                .collect(),
        },
        is_run,
    )
}

/// What is known of the pod from memory alone.
pub fn indexed(host: &Host, run: &Run) -> Vec<Found> {
    let mut found = Vec::new();
    for info in host.index.running_that_may_be_of(run.container) {
        if let Some(key) = key_of(host, run, &info) {
            found.push(Found::of(host, &info, key));
        }
    }
    found
}

/// What the names of the directories beneath the run's cgroup add to that. What
/// Docker has not told of yet waits for the second wave, which asks.
pub fn beneath_cgroup(host: &Host, run: &Run) -> Vec<Found> {
    beneath(host, run)
        .iter()
        .filter_map(|id| host.index.get(id))
        .map(|info| Found::of(host, &info, JoinKey::Cgroup))
        .collect()
}

/// Ids of the containers whose cgroups are directories of the run's.
fn beneath(host: &Host, run: &Run) -> Vec<String> {
    let root = &host.dirs(run.agent).cgroups_root;
    let ids = RunCgroup::open(&host.launcher, root, run.container)
        .and_then(|cgroup| cgroup.map_or_else(|| Ok(Vec::new()), |cgroup| cgroup.docker_ids()));
    let mut ids = ids.unwrap_or_else(|error| {
        tracing::warn!(container = %run.container, %error, "the run's cgroup cannot be read; going on without it");
        Vec::new()
    });
    ids.retain(|id| host.index.get(id).is_none_or(|info| !info.agents_own));
    ids
}

/// Asks Docker for everything that runs, and joins it to the run by every key.
pub async fn discover_pod(
    host: &Host,
    run: &Run,
    death: &Death,
) -> Result<Vec<Found>, DockerError> {
    let running = host.lists.list(&host.docker, &host.index).await?;
    let found = |(listed, key): (Listed, JoinKey)| Found {
        keep: listed.info.as_ref().is_some_and(|info| host.keeps(info)),
        id: listed.id,
        key,
    };
    let pod = joined(host, run, death, &running).into_iter();
    Ok(pod.map(found).collect())
}

/// Those of the running containers that are the run's, by every key; of a run that
/// lives, with a death that happened now.
///
/// Must not be called with the registry locked.
pub fn joined(host: &Host, run: &Run, death: &Death, running: &[Listed]) -> Vec<(Listed, JoinKey)> {
    let evidence = label_evidence(host, run, death);
    let beneath = beneath(host, run);
    let join = |listed: &Listed| {
        if beneath.contains(&listed.id) {
            return Some((listed.clone(), JoinKey::Cgroup));
        }
        let info = listed.info.as_ref()?;
        let key = key_of(host, run, info)
            .or_else(|| label_key(info, host.roots(), evidence.as_ref()?))?;
        Some((listed.clone(), key))
    };
    running.iter().filter_map(join).collect()
}

/// `None`: something that a join by label must know is not known.
fn label_evidence(host: &Host, run: &Run, death: &Death) -> Option<LabelEvidence> {
    // A run that nobody can judge is known by keys that name it, and by nothing else.
    if host.config().label_join == LabelJoin::Off || death.origin.proof() == Proof::Word {
        return None;
    }
    let identity = run.identity.as_ref()?;
    let started = run
        .executor
        .or(run.helper)
        .filter(|proc| proc.start_ticks > 0)?
        .started_at();
    Some(LabelEvidence {
        executor_id: identity.executor_id.to_str()?.to_owned(),
        // Creation and start come from two clocks, one of 10 ms.
        started: started - 0.1,
        until: death.at_unix + host.config().settle.as_secs_f64(),
        other_run: host
            .registry()
            .other_run_of(run.container, &identity.executor_id),
        several_agents: host.agents.len() > 1,
    })
}

/// Ends one container as the configuration says, and finds out how it ended. Who
/// asks again, since an answer was lost, says when it asked first.
pub async fn ask_to_end(host: &Host, id: String, asked_ns: u64) -> Answer {
    let since = Duration::from_nanos(monotonic_ns().saturating_sub(asked_ns));
    let asked = unix_seconds() - since.as_secs_f64();
    let outcome = end(host, &id, asked).await;
    Answer {
        id,
        at_ns: monotonic_ns(),
        outcome,
    }
}

async fn end(host: &Host, id: &str, asked: f64) -> Result<Option<Ending>, DockerError> {
    let docker = &host.docker;
    // Never closed: an error would be a defect here, and no reason not to ask.
    let permit = host.stops.acquire().await;
    // One configuration for the whole of it, asked for after the wait.
    let config = host.config();
    let Config { action, grace, .. } = *config;
    if config.mode == Mode::Observe {
        return Ok(None);
    }
    let answer = match action {
        Action::Stop | Action::Remove => docker.stop(id, grace).await,
        Action::Kill => docker.kill(id).await,
    };
    drop(permit);
    let stopped = match answer {
        Ok(stopped) => stopped,
        Err(refused @ DockerError::Refused { .. }) => {
            return if hollow::is_hollow(host, id).await? {
                host.index.is_found_hollow(id);
                Ok(Some(Ending::NoProcess))
            } else {
                Err(refused)
            };
        }
        Err(error) => return Err(error),
    };
    let inspected = docker.inspect(id).await?;
    let (info, mut state) = inspected.unzip();
    if action == Action::Kill {
        // A kill returns when the signal is sent.
        let deadline = tokio::time::Instant::now() + config.docker.timeout;
        let mut pause = Duration::from_millis(5);
        while state.is_some_and(|state| state.running) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
            state = docker.inspect(id).await?.map(|(_, state)| state);
        }
    }
    if state.is_some_and(|state| state.running) {
        return Ok(None);
    }
    if action == Action::Remove && host.may_act() {
        if let Some(info) = &info {
            host.note_networks(info);
        }
        docker.remove(id, host.removes_volumes()).await?;
    }
    Ok(Some(match (action, stopped) {
        (Action::Kill, Stopped::Done) => Ending::Kill,
        (_, stopped) => Ending::of_stop(stopped, state, asked, grace.as_secs_f64().ceil()),
    }))
}
