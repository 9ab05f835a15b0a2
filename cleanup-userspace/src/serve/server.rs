//! Who may ask, how much at once, and for how long.
//!
//! A client can hurt nobody but itself: a connection answers one request and has
//! [`CONNECTION`] for all of it; there are at most [`CONNECTIONS`], the next one is
//! closed at once; a request's head is small and its body is not read; looks at the
//! host run one at a time beside the daemon's loop, which is only asked for a copy
//! of what it knows.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::routes::{App, Refusal, router};
use super::snapshot::Inquiry;
use super::socket::{SocketError, SocketFile};
use crate::case::Host;

/// Connections at one time.
const CONNECTIONS: usize = 32;
/// For the request, the answer, and the time until it is read.
const CONNECTION: Duration = Duration::from_secs(20);
/// For a request's head.
const HEAD: Duration = Duration::from_secs(3);
/// Bytes of a request's head, and as much of an answer as waits to be sent.
const BUFFER: usize = 16 << 10;
const HEADERS: usize = 32;
/// Questions that wait for the daemon's loop.
const INQUIRIES: usize = 32;
/// After an accept that failed: for want of descriptors, usually.
const PAUSE: Duration = Duration::from_secs(1);

/// The loop's end of the control API.
#[derive(Debug)]
pub struct Inquiries(mpsc::Receiver<Inquiry>);

impl Inquiries {
    /// The next question; never, if there is no control API.
    pub async fn next(&mut self) -> Inquiry {
        match self.0.recv().await {
            Some(inquiry) => inquiry,
            None => std::future::pending().await,
        }
    }
}

/// The control API, until it is dropped.
#[derive(Debug)]
pub struct Server {
    work: AbortHandle,
    /// Here and not with the work: that may end after the runtime has.
    _file: SocketFile,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Server {
    /// Listens in the run directory, whose lock the caller holds. Without a server
    /// the daemon does its work all the same.
    pub fn start(host: &Arc<Host>) -> (Result<Self, SocketError>, Inquiries) {
        let (sender, inquiries) = mpsc::channel(INQUIRIES);
        let started = SocketFile::bind(&host.config().run_dir).map(|(listener, file)| {
            tracing::debug!(socket = %file.path().display(), "the control API answers");
            let router = router(App::new(Arc::clone(host), sender));
            let work = tokio::spawn(serve(listener, router)).abort_handle();
            Self { work, _file: file }
        });
        (started, Inquiries(inquiries))
    }
}

async fn serve(listener: UnixListener, router: Router) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    // Dropped with this task, and they with it.
    let mut connections = JoinSet::new();
    loop {
        let stream = accept(&listener).await;
        while connections.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let router = router.clone();
        connections.spawn(async move {
            let _slot = slot;
            // A client that is slow, gone or speaks no HTTP: its own matter.
            let _ = timeout(CONNECTION, answer(stream, router)).await;
        });
    }
}

async fn accept(listener: &UnixListener) -> UnixStream {
    let mut complained = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(%error, "no connection to the control socket can be accepted; trying on");
                }
                sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, router: Router) -> Result<(), hyper::Error> {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    let own = rustix::process::geteuid().as_raw();
    let mut connection = http1::Builder::new();
    connection
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .max_headers(HEADERS)
        .keep_alive(false);
    let io = TokioIo::new(stream);
    if peer.as_ref().is_ok_and(|uid| *uid == 0 || *uid == own) {
        let service = TowerToHyperService::new(router);
        connection.serve_connection(io, service).await
    } else {
        tracing::debug!(?peer, "a stranger on the control socket");
        let refuse =
            |_: Request<_>| async { Ok::<Response<Body>, Infallible>(Refusal::stranger()) };
        connection.serve_connection(io, service_fn(refuse)).await
    }
}
