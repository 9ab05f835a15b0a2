//! The Docker requests that a cleanup needs, each with a deadline, over
//! connections that stay open.
//!
//! Requests carry no API version: every Docker answers in its own, and what is
//! asked for here has been the same since 1.24.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bollard::errors::Error as BollardError;
use bollard::models::EventMessage;
use bollard::query_parameters::{
    EventsOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
    ListContainersOptionsBuilder, ListNetworksOptionsBuilder, RemoveContainerOptionsBuilder,
    StopContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, BollardRequest};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use hyperlocal::UnixConnector;

use super::container::PROJECT_LABEL;
use super::network::{ComposeNetwork, NETWORK_LABEL};
use super::{ContainerInfo, ContainerState, Operation};
use crate::metrics::Metrics;

/// Idle connections kept open. bollard's own transport keeps none, which costs
/// 0.1 ms a request, and needs the socket to exist when it is made.
const IDLE_CONNECTIONS: usize = 8;

/// What Docker answered, as far as a caller decides by it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DockerError {
    #[error("Docker at {socket} did not answer within {limit:?}: {what}")]
    Timeout {
        what: String,
        socket: String,
        limit: Duration,
    },
    /// No connection, or it broke: try again later.
    #[error("cannot reach Docker at {socket} to {what}: {error}")]
    Unreachable {
        what: String,
        socket: String,
        error: String,
    },
    #[error("Docker refused to {what}: {message} (status {status})")]
    Refused {
        what: String,
        status: u16,
        message: String,
    },
}

impl DockerError {
    /// Whether the same request may succeed later without anything else changing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
        }
    }
}

/// What a Docker daemon says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerFacts {
    /// Of the daemon: `20.10.24`.
    pub version: String,
    /// `cgroupfs`, `systemd`, `none` (rootless), or `unknown`.
    pub cgroup_driver: String,
}

/// How a stop, kill or remove went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    Done,
    /// No such container (any more), or it does not run.
    NothingToDo,
}

/// A Docker daemon behind its Unix socket.
#[derive(Debug, Clone)]
pub struct Docker {
    client: bollard::Docker,
    socket: String,
    timeout: Duration,
    metrics: Metrics,
}

impl Docker {
    /// Connects nowhere yet: the daemon may come later.
    pub fn new(socket: &Path, timeout: Duration) -> Result<Self, DockerError> {
        let pool: Client<UnixConnector, _> = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(UnixConnector);
        let transport = move |request: BollardRequest| {
            let response = pool.request(request);
            async move { response.await.map_err(BollardError::from) }
        };
        // hyperlocal finds the socket's path, in hexadecimal, in the host of the URI.
        let host: String = socket
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let socket = socket.display().to_string();
        let client = bollard::Docker::connect_with_custom_transport(
            transport,
            Some(format!("unix://{host}")),
            timeout.as_secs().max(1),
            API_DEFAULT_VERSION,
        )
        .map_err(|error| DockerError::Unreachable {
            what: "connect".to_owned(),
            socket: socket.clone(),
            error: error.to_string(),
        })?;
        Ok(Self {
            client,
            socket,
            timeout,
            metrics: Metrics::default(),
        })
    }

    /// Counts its requests there.
    #[must_use]
    pub fn counted_by(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// Where its requests are counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether the daemon answers; keeps a connection warm.
    pub async fn ping(&self) -> Result<(), DockerError> {
        self.within(Operation::Ping, self.timeout, "ping", self.client.ping())
            .await
            .map(|_| ())
    }

    /// What this Docker is.
    pub async fn facts(&self) -> Result<DockerFacts, DockerError> {
        let info = self
            .within(
                Operation::Info,
                self.timeout,
                "tell what it is",
                self.client.info(),
            )
            .await?;
        Ok(DockerFacts {
            version: info.server_version.unwrap_or_else(|| "?".to_owned()),
            cgroup_driver: info
                .cgroup_driver
                .map_or_else(|| "unknown".to_owned(), |driver| driver.to_string()),
        })
    }

    /// Asks Docker to stop a container; returns when it has ended, which may
    /// take as long as the grace period.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<Stopped, DockerError> {
        let seconds = i32::try_from(grace.as_secs_f64().ceil() as i64).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::new().t(seconds).build();
        // Docker answers when the container has ended: the transport's own
        // deadline comes on top of the grace period.
        let limit = grace + self.timeout;
        let mut client = self.client.clone();
        client.set_timeout(limit);
        let asked = client.stop_container(id, Some(options));
        absent_is_done(
            self.within(
                Operation::Stop,
                limit,
                &format!("stop container {id}"),
                asked,
            )
            .await,
        )
    }

    /// SIGKILL through Docker: it will not be restarted.
    pub async fn kill(&self, id: &str) -> Result<Stopped, DockerError> {
        let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
        let asked = self.client.kill_container(id, Some(options));
        absent_is_done(
            self.within(
                Operation::Kill,
                self.timeout,
                &format!("kill container {id}"),
                asked,
            )
            .await,
        )
    }

    /// Removes a container that has ended; one that runs, Docker refuses. With
    /// `volumes` its anonymous volumes go too, if no other container uses them:
    /// named ones stay in any case.
    pub async fn remove(&self, id: &str, volumes: bool) -> Result<Stopped, DockerError> {
        let options = RemoveContainerOptionsBuilder::new()
            .v(volumes)
            .force(false)
            .build();
        let asked = self.client.remove_container(id, Some(options));
        match self
            .within(
                Operation::Remove,
                self.timeout,
                &format!("remove container {id}"),
                asked,
            )
            .await
        {
            Ok(()) => Ok(Stopped::Done),
            Err(DockerError::Refused { status: 404, .. }) => Ok(Stopped::NothingToDo),
            Err(error) => Err(error),
        }
    }

    /// `None`: no such container.
    pub async fn inspect(
        &self,
        id: &str,
    ) -> Result<Option<(ContainerInfo, ContainerState)>, DockerError> {
        let asked = self
            .client
            .inspect_container(id, None::<InspectContainerOptions>);
        match self
            .within(
                Operation::Inspect,
                self.timeout,
                &format!("inspect container {id}"),
                asked,
            )
            .await
        {
            Ok(answer) => Ok(Some((
                ContainerInfo::from_inspect(&answer),
                ContainerState::from_inspect(&answer),
            ))),
            Err(DockerError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ids of the containers that run, or may run again by themselves.
    pub async fn list_running(&self) -> Result<Vec<String>, DockerError> {
        let states = ["running", "paused", "restarting"];
        self.list(&[("status", &states)]).await
    }

    /// Ids of compose's containers that do not run: ended, or never started.
    pub async fn list_stopped(&self) -> Result<Vec<String>, DockerError> {
        let states = ["exited", "created", "dead"];
        self.list(&[("status", &states), ("label", &[PROJECT_LABEL])])
            .await
    }

    /// Ids of the containers that are attached to a network, or would be if they
    /// ran.
    pub async fn users_of_network(&self, id: &str) -> Result<Vec<String>, DockerError> {
        self.list(&[("network", &[id])]).await
    }

    async fn list(&self, filters: &[(&str, &[&str])]) -> Result<Vec<String>, DockerError> {
        let filters = filters_of(filters);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let listed = self
            .within(
                Operation::List,
                self.timeout,
                "list containers",
                self.client.list_containers(Some(options)),
            )
            .await?;
        Ok(listed
            .into_iter()
            .filter_map(|container| container.id)
            .collect())
    }

    /// The networks that compose made.
    pub async fn compose_networks(&self) -> Result<Vec<ComposeNetwork>, DockerError> {
        let filters = filters_of(&[("label", &[NETWORK_LABEL])]);
        let options = ListNetworksOptionsBuilder::new().filters(&filters).build();
        let asked = self.client.list_networks(Some(options));
        let listed = self
            .within(
                Operation::ListNetworks,
                self.timeout,
                "list networks",
                asked,
            )
            .await?;
        Ok(listed
            .iter()
            .filter_map(ComposeNetwork::from_list)
            .collect())
    }

    /// Removes a network that nothing is attached to; others, Docker refuses.
    pub async fn remove_network(&self, id: &str) -> Result<Stopped, DockerError> {
        let asked = self.client.remove_network(id);
        let what = format!("remove network {id}");
        match self
            .within(Operation::RemoveNetwork, self.timeout, &what, asked)
            .await
        {
            Ok(()) => Ok(Stopped::Done),
            // In use (403, later releases 409), or gone.
            Err(DockerError::Refused {
                status: 403 | 404 | 409,
                ..
            }) => Ok(Stopped::NothingToDo),
            Err(error) => Err(error),
        }
    }

    /// Containers being created, started and ending, from `back` ago on and as
    /// they happen. Ends when the connection breaks: list again after that.
    pub fn events(
        &self,
        back: Duration,
    ) -> impl Stream<Item = Result<EventMessage, DockerError>> + use<> {
        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            (
                "event".to_owned(),
                ["create", "start", "die", "destroy"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
        ]);
        let since = (crate::process::unix_seconds() - back.as_secs_f64()).max(0.0);
        let options = EventsOptionsBuilder::new()
            .filters(&filters)
            .since(&format!("{since:.3}"))
            .build();
        let socket = self.socket.clone();
        self.client
            .events(Some(options))
            .map_err(move |error| describe("follow events", &socket, &error))
            .boxed()
    }

    /// The error of a connection that ended without one.
    pub(super) fn lost(&self, what: &str) -> DockerError {
        DockerError::Unreachable {
            what: "follow events".to_owned(),
            socket: self.socket.clone(),
            error: what.to_owned(),
        }
    }

    async fn within<T>(
        &self,
        operation: Operation,
        limit: Duration,
        what: &str,
        asked: impl Future<Output = Result<T, BollardError>>,
    ) -> Result<T, DockerError> {
        let answer = match tokio::time::timeout(limit, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(BollardError::RequestTimeoutError)) | Err(_) => Err(DockerError::Timeout {
                what: what.to_owned(),
                socket: self.socket.clone(),
                limit,
            }),
            Ok(Err(error)) => Err(describe(what, &self.socket, &error)),
        };
        self.metrics.docker_request(operation, &answer);
        answer
    }
}

fn filters_of(filters: &[(&str, &[&str])]) -> HashMap<String, Vec<String>> {
    let owned = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
    filters
        .iter()
        .map(|&(key, values)| (key.to_owned(), owned(values)))
        .collect()
}

fn describe(what: &str, socket: &str, error: &BollardError) -> DockerError {
    match error {
        BollardError::DockerResponseServerError {
            status_code,
            message,
        } => DockerError::Refused {
            what: what.to_owned(),
            status: *status_code,
            message: message.trim().to_owned(),
        },
        other => DockerError::Unreachable {
            what: what.to_owned(),
            socket: socket.to_owned(),
            // hyper's own text does not name the cause.
            error: chain(other),
        },
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Already stopped (304), not running or being removed (409), gone (404): what
/// was asked for is so.
fn absent_is_done(answer: Result<(), DockerError>) -> Result<Stopped, DockerError> {
    match answer {
        Ok(()) => Ok(Stopped::Done),
        Err(DockerError::Refused {
            status: 304 | 404 | 409,
            ..
        }) => Ok(Stopped::NothingToDo),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16) -> Result<(), DockerError> {
        Err(DockerError::Refused {
            what: "stop".into(),
            status,
            message: "m".into(),
        })
    }

    #[test]
    fn what_is_already_so_is_a_success() {
        for status in [304, 404, 409] {
            assert_eq!(
                absent_is_done(refused(status)).unwrap(),
                Stopped::NothingToDo
            );
        }
        assert!(absent_is_done(refused(500)).unwrap_err().is_transient());
        assert!(!absent_is_done(refused(400)).unwrap_err().is_transient());
    }

    #[tokio::test]
    async fn no_socket_is_unreachable_and_says_so() {
        let docker = Docker::new(
            Path::new("/nonexistent/docker.sock"),
            Duration::from_secs(1),
        )
        .unwrap();
        let error = docker.ping().await.unwrap_err();
        assert!(error.is_transient());
        let text = docker.metrics().encode().unwrap();
        let counted =
            "compose_cleanup_docker_requests_total{operation=\"ping\",outcome=\"unreachable\"} 1\n";
        assert!(text.contains(counted), "{text}");
        let text = error.to_string();
        assert!(
            text.contains("/nonexistent/docker.sock") && text.contains("ping"),
            "{text}"
        );
    }
}
