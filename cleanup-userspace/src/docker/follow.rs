//! Follows Docker's events for as long as the daemon runs, through restarts of
//! Docker: after every reconnect everything that runs is listed again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;

use super::shared::Shared;
use super::{ContainerInfo, Docker, DockerError, Index};

/// How many inspects may be asked for at once.
const INSPECTS: usize = 8;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// What happened in Docker.
#[derive(Debug, Clone)]
pub enum DockerChange {
    /// Connected, and everything that runs is in the index.
    Connected,
    Disconnected(String),
    /// A container was created or started.
    Active(Arc<ContainerInfo>),
}

/// Keeps `index` current and reports changes until the receiver is gone.
pub async fn follow_docker(
    docker: Docker,
    index: Index,
    changes: mpsc::UnboundedSender<DockerChange>,
) {
    let mut backoff = FIRST_BACKOFF;
    while !changes.is_closed() {
        let error = tokio::select! {
            error = follow_once(&docker, &index, &changes, &mut backoff) => error,
            () = changes.closed() => return,
        };
        let _ = changes.send(DockerChange::Disconnected(error.to_string()));
        // A jitter from the clock: hosts that lost one registry together do not
        // come back in step.
        let jitter = Duration::from_millis(crate::process::monotonic_ns() % 50);
        tokio::time::sleep(backoff + jitter).await;
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}

/// Returns when the connection is lost.
async fn follow_once(
    docker: &Docker,
    index: &Index,
    changes: &mpsc::UnboundedSender<DockerChange>,
    backoff: &mut Duration,
) -> DockerError {
    if let Err(error) = docker.ping().await {
        return error;
    }
    // Of what was not heard of, Docker's word is the best there is.
    index.forget_the_dead();
    // From a moment ago: what happens while the stream connects is told, too.
    let events = docker.events(Duration::from_secs(5));
    tokio::pin!(events);
    let list = list_all(docker, index);
    tokio::pin!(list);
    let mut listed = false;
    // Beside the stream: one container that cannot be looked at delays no other.
    let mut looks = FuturesUnordered::new();
    // Containers whose last event was their end, while something is being looked
    // at: an answer from before that end may come after it, and the start of one
    // that has ended is told again after every reconnect.
    let mut ended: HashSet<String> = HashSet::new();
    loop {
        if listed && looks.is_empty() {
            ended.clear();
        }
        tokio::select! {
            outcome = &mut list, if !listed => {
                if let Err(error) = outcome {
                    return error;
                }
                listed = true;
                for id in &ended {
                    index.ended(id);
                }
                *backoff = FIRST_BACKOFF;
                let _ = changes.send(DockerChange::Connected);
            }
            Some(looked) = looks.next() => {
                let (id, outcome): (String, _) = looked;
                match outcome {
                    Ok(Some(_)) if ended.contains(&id) => index.ended(&id),
                    Ok(Some(info)) => {
                        let _ = changes.send(DockerChange::Active(info));
                    }
                    Ok(None) => {}
                    Err(error) => return error,
                }
            }
            event = events.next() => {
                let event = match event {
                    Some(Ok(event)) => event,
                    Some(Err(error)) => return error,
                    None => return docker.lost("the event stream ended"),
                };
                let Some(id) = event.actor.and_then(|actor| actor.id) else {
                    continue;
                };
                match event.action.as_deref() {
                    Some("die") => {
                        index.died(&id);
                        ended.insert(id);
                    }
                    Some("destroy") => index.removed(&id),
                    Some(action @ ("create" | "start")) => {
                        let started = action == "start";
                        if started {
                            index.starts(&id);
                        }
                        ended.remove(&id);
                        looks.push(async move {
                            let outcome = look(docker, index, id.clone(), started).await;
                            (id, outcome)
                        });
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A container that runs.
#[derive(Debug, Clone)]
pub struct Listed {
    pub id: String,
    /// `None`: Docker does not answer for this one.
    pub info: Option<Arc<ContainerInfo>>,
}

/// Lists for many cases at the same time: a list is as long as there are
/// containers, and one for each of many dead runs keeps Docker from stopping them.
#[derive(Debug, Default)]
pub struct Lists(Shared<Result<Arc<[Listed]>, DockerError>>);

impl Lists {
    /// What runs, as Docker says after this call began. See [`list_all`].
    pub async fn list(&self, docker: &Docker, index: &Index) -> Result<Arc<[Listed]>, DockerError> {
        let list = async { list_all(docker, index).await.map(Arc::from) };
        self.0.ask(list).await
    }
}

/// Lists what runs, and puts it into the index. A container that Docker does not
/// answer for is said so once.
async fn list_all(docker: &Docker, index: &Index) -> Result<Vec<Listed>, DockerError> {
    let mark = index.mark();
    let ids = docker.list_running().await?;
    index.replace_running(&ids, mark);
    let looks = ids.into_iter().map(|id| async move {
        let info = match index.get(&id).filter(|_| !index.is_hollow(&id)) {
            Some(info) => Some(info),
            None if index.is_hung(&id) || index.is_dead(&id) => None,
            None => look(docker, index, id.clone(), false).await?,
        };
        // Of these Docker's word for running is not enough.
        Ok((!index.counts_as_ended(&id)).then_some(Listed { id, info }))
    });
    futures_util::stream::iter(looks)
        .buffer_unordered(INSPECTS)
        .try_filter_map(|listed| async { Ok(listed) })
        .try_collect()
        .await
}

/// Inspects a container into the index. `Ok(None)`: there is none, or Docker does
/// not answer for this one. An error: Docker itself is away.
async fn look(
    docker: &Docker,
    index: &Index,
    id: String,
    started: bool,
) -> Result<Option<Arc<ContainerInfo>>, DockerError> {
    match docker.inspect(&id).await {
        Ok(Some((info, state))) => {
            let info = Arc::new(info);
            let has_process = state.first_process.is_some() && !index.is_dead(&id);
            let runs = started || has_process || state.running && !index.counts_as_ended(&id);
            index.insert(Arc::clone(&info), runs);
            index.has_process(&id, state.first_process);
            Ok(Some(info))
        }
        Ok(None) => {
            index.removed(&id);
            Ok(None)
        }
        Err(error @ DockerError::Unreachable { .. }) => Err(error),
        Err(error) => {
            if index.hangs(&id) {
                tracing::warn!(%error, "a container cannot be looked at; it is joined by its cgroup only");
            }
            Ok(None)
        }
    }
}
