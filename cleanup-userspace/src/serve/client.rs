//! The control API's only client: this program's own commands.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::{api, path_in};
use crate::case::printable;
use crate::run_dir::{Occupant, RunLock, Who};

/// For one request and its answer: a little more than the daemon gives itself.
const ANSWER: Duration = Duration::from_secs(25);
/// A daemon with too many connections closes the next one at once: how long to try.
const CROWDED: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
/// Bytes of an answer: tens of thousands of executors.
const LARGEST: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no daemon runs with the run directory {run_dir}: start it (`compose-cleanup watch`), \
         or name its configuration (--config)"
    )]
    NoDaemon { run_dir: PathBuf },
    #[error(
        "{occupant}, runs but has no control socket yet: it is starting, waits for an agent to be found, \
         or could not make {socket}; its log says which"
    )]
    NoSocket { occupant: Occupant, socket: PathBuf },
    #[error("cannot connect to {socket}: {error}; only root may")]
    Denied { socket: PathBuf, error: io::Error },
    #[error("cannot ask the daemon on {socket}: {problem}")]
    Silent { socket: PathBuf, problem: String },
    /// It answers, but not this.
    #[error("the daemon refuses: {0}")]
    Refused(String),
    #[error(
        "what answers on {socket} is another release, or no compose-cleanup: {problem}; \
         run the command of the daemon's release"
    )]
    Foreign { socket: PathBuf, problem: String },
}

/// Asks the daemon with this run directory. `path`: without the version,
/// percent-encoded.
pub async fn get<T: DeserializeOwned>(run_dir: &Path, path: &str) -> Result<T, ClientError> {
    exchange(run_dir, path, None).await
}

/// Tells the daemon with this run directory to do something.
pub async fn post<T: DeserializeOwned>(
    run_dir: &Path,
    path: &str,
    order: &impl Serialize,
) -> Result<T, ClientError> {
    let order = serde_json::to_vec(order).map_err(|error| ClientError::Silent {
        socket: path_in(run_dir),
        problem: format!("the order cannot be written: {error}"),
    })?;
    exchange(run_dir, path, Some(order.into())).await
}

/// `order`: the body, JSON; without one it is a question.
async fn exchange<T: DeserializeOwned>(
    run_dir: &Path,
    path: &str,
    order: Option<Bytes>,
) -> Result<T, ClientError> {
    let socket = path_in(run_dir);
    let began = Instant::now();
    let (status, body) = loop {
        let stream = connect(run_dir, &socket).await?;
        match timeout(ANSWER, request(stream, path, order.clone())).await {
            Ok(Ok(answer)) => break answer,
            Ok(Err(error)) if error.is_crowded() && began.elapsed() < CROWDED => {
                sleep(PAUSE).await;
            }
            Ok(Err(error)) => {
                return Err(ClientError::Silent {
                    socket,
                    problem: error.to_string(),
                });
            }
            Err(_) => {
                return Err(ClientError::Silent {
                    socket,
                    problem: format!("no answer within {ANSWER:?}; its log may say why"),
                });
            }
        }
    };
    let foreign = |problem: String| ClientError::Foreign {
        socket: socket.clone(),
        problem,
    };
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(|error| foreign(error.to_string()));
    }
    let said = serde_json::from_slice::<api::Failure>(&body);
    let said = said.map(|failure| printable(failure.error.as_ref()));
    match (status, said) {
        (StatusCode::SERVICE_UNAVAILABLE, Ok(problem)) => {
            Err(ClientError::Silent { socket, problem })
        }
        (_, Ok(error)) => Err(ClientError::Refused(error)),
        (_, Err(_)) => Err(foreign(format!("it answers {status}"))),
    }
}

async fn connect(run_dir: &Path, socket: &Path) -> Result<UnixStream, ClientError> {
    let socket = socket.to_owned();
    let error = match timeout(ANSWER, UnixStream::connect(&socket)).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(error)) => error,
        Err(_) => {
            let problem = format!("it accepts no connection within {ANSWER:?}");
            return Err(ClientError::Silent { socket, problem });
        }
    };
    Err(match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            match RunLock::occupant(run_dir) {
                Some(occupant) if occupant.who() == Some(Who::Watch) => {
                    ClientError::NoSocket { occupant, socket }
                }
                _ => ClientError::NoDaemon {
                    run_dir: run_dir.to_owned(),
                },
            }
        }
        io::ErrorKind::PermissionDenied => ClientError::Denied { socket, error },
        _ => ClientError::Silent {
            socket,
            problem: error.to_string(),
        },
    })
}

#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("the answer cannot be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("the request cannot be made: {0}")]
    Request(#[from] axum::http::Error),
}

impl RequestError {
    /// Closed before anything was answered: too many ask at once.
    fn is_crowded(&self) -> bool {
        matches!(self, Self::Http(error) if !error.is_parse())
    }
}

async fn request(
    stream: UnixStream,
    path: &str,
    order: Option<Bytes>,
) -> Result<(StatusCode, Bytes), RequestError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let path = format!("/{}/{path}", api::VERSION);
    let (request, body) = match order {
        None => (Request::get(path), Body::empty()),
        Some(order) => {
            let json = Request::post(path).header(header::CONTENT_TYPE, "application/json");
            (json, order.into())
        }
    };
    let request = request
        .header(header::HOST, "compose-cleanup")
        .header(header::CONNECTION, "close")
        .body(body)?;
    // The connection's work ends with this future: it is not left to itself.
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST);
        let body = body.collect().await.map_err(RequestError::Body)?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => {
            ended?;
            exchange.await
        }
    }
}
