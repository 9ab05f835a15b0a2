//! Follows Docker's events for as long as the daemon runs, through restarts of
//! Docker: after every reconnect everything that runs is listed again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::mpsc;

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
    // From a moment ago: what happens while the stream connects is told, too.
    let events = docker.events(Duration::from_secs(5));
    tokio::pin!(events);
    let list = list_all(docker, index);
    tokio::pin!(list);
    let mut listed = false;
    loop {
        tokio::select! {
            outcome = &mut list, if !listed => {
                if let Err(error) = outcome {
                    return error;
                }
                listed = true;
                *backoff = FIRST_BACKOFF;
                let _ = changes.send(DockerChange::Connected);
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
                    Some("die") => index.ended(&id),
                    Some("destroy") => index.removed(&id),
                    Some(action @ ("create" | "start")) => match docker.inspect(&id).await {
                        Ok(Some((info, state))) => {
                            let info = Arc::new(info);
                            index.insert(info.as_ref().clone(), state.running || action == "start");
                            let _ = changes.send(DockerChange::Active(info));
                        }
                        Ok(None) => index.removed(&id),
                        Err(error) if error.is_transient() => return error,
                        Err(error) => tracing::warn!(%error, "a new container could not be looked at"),
                    },
                    _ => {}
                }
            }
        }
    }
}

/// Puts every running container into the index.
pub async fn list_all(docker: &Docker, index: &Index) -> Result<(), DockerError> {
    let ids = docker.list_running().await?;
    index.replace_running(&ids);
    let unknown: Vec<String> = ids
        .into_iter()
        .filter(|id| index.get(id).is_none())
        .collect();
    let mut answers = futures_util::stream::iter(unknown)
        .map(|id| async move { (docker.inspect(&id).await, id) })
        .buffer_unordered(INSPECTS);
    while let Some((answer, id)) = answers.next().await {
        match answer {
            Ok(Some((info, state))) => index.insert(info, state.running),
            Ok(None) => index.removed(&id),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => tracing::warn!(%error, "a container could not be looked at"),
        }
    }
    Ok(())
}
