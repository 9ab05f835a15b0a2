//! `/metrics` and `/healthz` over HTTP, for Prometheus and whoever probes.
//!
//! It answers two questions and takes nothing: no body is read, no header is looked
//! at. One request a connection, a deadline on all of it and a bound on how many
//! there are: whoever connects and says nothing costs a descriptor for ten seconds.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Metrics;

/// For a whole connection: request, answer, end.
const DEADLINE: Duration = Duration::from_secs(10);
/// More wait in the kernel's queue until one is over.
const CONNECTIONS: usize = 16;
/// A scrape's request takes a few hundred bytes. The smallest that hyper allows.
const REQUEST_BYTES: usize = 8192;
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// After an accept that failed: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Serves for as long as the process lives. An address that cannot be had is tried
/// again: cleanups do not depend on who listens.
pub async fn serve(address: SocketAddr, metrics: Metrics) {
    let listener = bind(address).await;
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let mut complained = false;
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                complained = false;
                let metrics = metrics.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    // Whoever is slow, or speaks no HTTP, has no answer to get.
                    let _ = timeout(DEADLINE, answer(stream, metrics)).await;
                });
            }
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(%error, "connections to the metrics cannot be taken; trying on");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn bind(address: SocketAddr) -> TcpListener {
    let mut pause = FIRST_RETRY;
    let mut complained = false;
    loop {
        let bound = TcpListener::bind(address).await;
        match bound.and_then(|listener| Ok((listener.local_addr()?, listener))) {
            Ok((address, listener)) => {
                tracing::info!(%address, "metrics are served");
                return listener;
            }
            Err(error) if !std::mem::replace(&mut complained, true) => {
                tracing::warn!(
                    %address, %error,
                    advice = advice(&error),
                    "metrics cannot be served; trying on (cleanups do not need them)"
                );
            }
            Err(error) => tracing::debug!(%address, %error, "metrics still cannot be served"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_RETRY);
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "see who listens there (ss -ltnp), or choose another port in [metrics] listen"
        }
        io::ErrorKind::AddrNotAvailable => {
            "[metrics] listen names an address that this host does not have (yet)"
        }
        io::ErrorKind::PermissionDenied => {
            "a port below 1024 needs CAP_NET_BIND_SERVICE: choose another in [metrics] listen"
        }
        _ => "see [metrics] listen",
    }
}

async fn answer(stream: TcpStream, metrics: Metrics) -> Result<(), hyper::Error> {
    let respond = service_fn(move |request: Request<Incoming>| {
        let metrics = metrics.clone();
        async move {
            let response = respond(&metrics, request.method(), request.uri().path()).await;
            Ok::<_, Infallible>(response)
        }
    });
    http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(REQUEST_BYTES)
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .serve_connection(TokioIo::new(stream), respond)
        .await
}

async fn respond(metrics: &Metrics, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    let (status, kind, text) = match path {
        "/metrics" | "/healthz" if !is_read => (
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "only GET and HEAD\n".to_owned(),
        ),
        "/metrics" => {
            metrics.refresh().await;
            match metrics.encode() {
                Ok(text) => (StatusCode::OK, OPENMETRICS, text),
                Err(error) => (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    TEXT,
                    format!("the metrics cannot be written: {error}\n"),
                ),
            }
        }
        "/healthz" => match metrics.illness().await {
            None => (StatusCode::OK, TEXT, "ok\n".to_owned()),
            Some(illness) => (
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                format!("{illness}\n"),
            ),
        },
        _ => (
            StatusCode::NOT_FOUND,
            TEXT,
            "there are /metrics and /healthz\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
