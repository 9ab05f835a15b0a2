//! Finding a dead run's pod, and ending its containers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::direct::{self, Direct};
use super::effects::off_path;
use super::host::Host;
use super::record::Ending;
use super::{Death, Proof, hollow};
use crate::config::{Action, Config, LabelJoin, Mode};
use crate::docker::{
    ContainerInfo, DockerError, JoinKey, LabelEvidence, Listed, RunScope, Stopped, exact_key,
    label_key,
};
use crate::mesos::ContainerId;
use crate::process::{monotonic_ns, unix_seconds};
use crate::registry::{AgentIndex, Run};

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
pub async fn beneath_cgroup(host: &Arc<Host>, run: &Run) -> Vec<Found> {
    let (own_host, own_run) = (Arc::clone(host), run.clone());
    let look = off_path("look for containers beneath the run's cgroup", move || {
        Ok(beneath(&own_host, &own_run))
    });
    let ids = look.await.unwrap_or_else(|error| {
        tracing::warn!(container = %run.container, error = format!("{error:#}"), "going on without it");
        Vec::new()
    });
    ids.iter()
        .filter_map(|id| host.index.get(id))
        .map(|info| Found::of(host, &info, JoinKey::Cgroup))
        .collect()
}

/// Ids of the containers whose cgroups are directories of the run's.
fn beneath(host: &Host, run: &Run) -> Vec<String> {
    let ids = host
        .launcher_cgroup(run.agent, run.container)
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

/// A container of a dead run that is to end.
#[derive(Debug, Clone)]
pub struct Ask {
    pub agent: AgentIndex,
    pub run: ContainerId,
    /// Docker's.
    pub id: String,
    /// CLOCK_MONOTONIC. Who asks again, since an answer was lost, says when it asked
    /// first.
    pub asked_ns: u64,
}

/// Ends one container as the configuration says, and finds out how it ended.
pub async fn ask_to_end(host: &Arc<Host>, ask: Ask) -> Answer {
    let outcome = end(host, &ask).await;
    Answer {
        id: ask.id,
        at_ns: monotonic_ns(),
        outcome,
    }
}

async fn end(host: &Arc<Host>, ask: &Ask) -> Result<Option<Ending>, DockerError> {
    let since = Duration::from_nanos(monotonic_ns().saturating_sub(ask.asked_ns));
    let asked = unix_seconds() - since.as_secs_f64();
    let (docker, id) = (&host.docker, ask.id.as_str());
    // How long it has had its stop signal.
    let mut signalled = Duration::ZERO;
    let mut place = host.crowd.enter();
    if place.is_one_too_many(host.index.untold()) {
        drop(place);
        let begin = Instant::now();
        match direct::stop(host, ask).await {
            Direct::Ended => {
                host.index.process_ended(id);
                return Ok(Some(Ending::Unconfirmed));
            }
            Direct::Outlived => signalled = begin.elapsed(),
            Direct::Not => {}
        }
        place = host.crowd.enter();
    }
    // Never closed: an error would be a defect here, and no reason not to ask.
    let permit = Arc::clone(&host.stops).acquire_owned().await;
    // One configuration for the whole of it, asked for after the wait.
    let config = host.config();
    let Config { action, grace, .. } = *config;
    if config.mode == Mode::Observe {
        return Ok(None);
    }
    // Docker counts in seconds.
    let left = grace.saturating_sub(signalled).as_secs_f64().ceil();
    let grace = signalled.as_secs_f64() + left;
    let left = Duration::from_secs_f64(left);
    let (asked_docker, asked_id) = (docker.clone(), id.to_owned());
    let mut request = Box::pin(async move {
        // Until Docker has answered.
        let _held = (place, permit);
        match action {
            Action::Stop | Action::Remove => asked_docker.stop(&asked_id, left).await,
            Action::Kill => asked_docker.kill(&asked_id).await,
        }
    });
    let answer = tokio::select! {
        biased;
        answer = &mut request => answer,
        () = direct::ended_unnoticed(host, ask) => {
            // A request that is taken back may be one that Docker does not finish.
            tokio::spawn(request);
            host.index.process_ended(id);
            return Ok(Some(Ending::Unconfirmed));
        }
    };
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
        (_, stopped) => Ending::of_stop(stopped, state, asked, grace),
    }))
}
