//! Finding a dead run's pod, and ending its containers.

use std::time::Duration;

use super::host::Host;
use super::record::Ending;
use super::{Death, reaper::key_of};
use crate::cgroup::RunCgroup;
use crate::config::Action;
use crate::docker::{DockerError, JoinKey, LabelEvidence, Listed, Stopped, label_key};
use crate::process::{monotonic_ns, unix_seconds};
use crate::registry::Run;

/// Docker's answer to the request to end a container.
#[derive(Debug)]
pub struct Answer {
    pub id: String,
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// `None`: Docker did as asked, and the container runs again.
    pub outcome: Result<Option<Ending>, DockerError>,
}

/// What can be known of the pod without a question: the names of the
/// directories beneath the run's cgroup, and the index.
pub fn first_wave(host: &Host, run: &Run) -> Vec<(String, JoinKey)> {
    let mut found: Vec<(String, JoinKey)> = beneath(host, run)
        .into_iter()
        .map(|id| (id, JoinKey::Cgroup))
        .collect();
    for info in host.index.running() {
        if let Some(key) = key_of(host, run, &info)
            && !found.iter().any(|(id, _)| *id == info.id)
        {
            found.push((info.id.clone(), key));
        }
    }
    found
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
) -> Result<Vec<(String, JoinKey)>, DockerError> {
    let running = host.lists.list(&host.docker, &host.index).await?;
    let evidence = label_evidence(host, run, death);
    let beneath = beneath(host, run);
    let join = |listed: &Listed| {
        if beneath.contains(&listed.id) {
            return Some(JoinKey::Cgroup);
        }
        let info = listed.info.as_ref()?;
        key_of(host, run, info).or_else(|| label_key(info, host.roots(), evidence.as_ref()?))
    };
    Ok(running
        .iter()
        .filter_map(|listed| Some((listed.id.clone(), join(listed)?)))
        .collect())
}

/// `None`: something that a join by label must know is not known.
fn label_evidence(host: &Host, run: &Run, death: &Death) -> Option<LabelEvidence> {
    if host.config.label_join == crate::config::LabelJoin::Off {
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
        until: death.at_unix + host.config.settle.as_secs_f64(),
        other_run: host
            .registry()
            .other_run_of(run.container, &identity.executor_id),
        several_agents: host.agents.len() > 1,
    })
}

/// Ends one container as the configuration says, and finds out how it ended.
pub async fn ask_to_end(host: &Host, id: String) -> Answer {
    let asked = unix_seconds();
    let grace = host.config.grace;
    let outcome = end(host, &id, asked, grace).await;
    Answer {
        id,
        at_ns: monotonic_ns(),
        outcome,
    }
}

async fn end(
    host: &Host,
    id: &str,
    asked: f64,
    grace: Duration,
) -> Result<Option<Ending>, DockerError> {
    let docker = &host.docker;
    // Never closed: an error would be a defect here, and no reason not to ask.
    let permit = host.stops.acquire().await;
    let stopped = match host.config.action {
        Action::Stop | Action::Remove => docker.stop(id, grace).await?,
        Action::Kill => docker.kill(id).await?,
    };
    drop(permit);
    let mut state = docker.inspect(id).await?.map(|(_, state)| state);
    if host.config.action == Action::Kill {
        // A kill returns when the signal is sent.
        let deadline = tokio::time::Instant::now() + host.config.docker.timeout;
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
    if host.config.action == Action::Remove {
        docker.remove(id).await?;
    }
    Ok(Some(match (host.config.action, stopped) {
        (Action::Kill, Stopped::Done) => Ending::Kill,
        (_, stopped) => Ending::of_stop(stopped, state, asked, grace.as_secs_f64().ceil()),
    }))
}
