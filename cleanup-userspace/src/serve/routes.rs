//! What can be asked, and how the answers come about.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::snapshot::{Inquiry, Order, Snapshot};
use super::target::Target;
use super::{Known, Wanted, api, clean, executors, list, plans, status};
use crate::case::Host;
use crate::process::unix_seconds;

/// For an answer of the daemon's loop.
const LOOP: Duration = Duration::from_secs(3);
/// For a look at the host, and for its turn.
const LOOK: Duration = Duration::from_secs(10);

/// What the handlers share.
#[derive(Debug, Clone)]
pub(super) struct App {
    pub(super) host: Arc<Host>,
    inquiries: mpsc::Sender<Inquiry>,
    /// One look at the host at a time. Whoever looks holds it, even if nobody waits
    /// for that any more: no more than one thread hangs.
    look: Arc<Semaphore>,
    started: f64,
}

impl App {
    pub(super) fn new(host: Arc<Host>, inquiries: mpsc::Sender<Inquiry>) -> Self {
        Self {
            host,
            inquiries,
            look: Arc::new(Semaphore::new(1)),
            started: unix_seconds(),
        }
    }

    /// What the daemon's loop knows now.
    pub(super) async fn ask(
        &self,
        closed: Option<Wanted>,
        orders: Vec<Order>,
    ) -> Result<Snapshot, Refusal> {
        const BUSY: Refusal = Refusal::Busy(
            "the daemon is starting, stopping or very busy: ask again in a moment, or look at its log",
        );
        let (answer, answered) = oneshot::channel();
        self.inquiries
            .try_send(Inquiry {
                closed,
                orders,
                answer,
            })
            .map_err(|_| BUSY)?;
        match timeout(LOOP, answered).await {
            Ok(Ok(snapshot)) => Ok(snapshot),
            Ok(Err(_)) | Err(_) => Err(BUSY),
        }
    }

    /// What would be done about these runs now.
    pub(super) async fn plans(&self, wanted: Wanted, forced: bool) -> Result<api::Plans, Refusal> {
        let listed = list(&self.host).await;
        let snapshot = self.ask(wanted.of_closed(), Vec::new()).await?;
        let known = Known {
            cases: snapshot.cases,
            closed: snapshot.closed,
            runs: snapshot.known,
            by_daemon: true,
            forced,
        };
        self.look(move |host| plans(host, &known, &wanted, listed))
            .await
    }

    /// Looks at the host on a thread that may block.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Host) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        const SLOW: Refusal = Refusal::Busy(
            "a look at this host takes too long: is a work_dir on a file system that hangs?",
        );
        let host = Arc::clone(&self.host);
        let looked = async {
            let turn = Arc::clone(&self.look).acquire_owned().await;
            tokio::task::spawn_blocking(move || {
                let _turn = turn;
                work(&host)
            })
            .await
        };
        match timeout(LOOK, looked).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(_)) => Err(Refusal::Failed(
                "a defect: the look at this host panicked; the daemon's log has the place",
            )),
            Err(_) => Err(SLOW),
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Refusal {
    Stranger,
    NoSuchPath(Uri),
    NotThis(Method),
    BadQuery(String),
    BadOrder(String),
    InTheWay(&'static str),
    Busy(&'static str),
    Failed(&'static str),
}

impl Refusal {
    /// For whoever is not to ask anything.
    pub(super) fn stranger() -> Response {
        Self::Stranger.into_response()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Self::Stranger => (
                StatusCode::FORBIDDEN,
                "only root and the daemon's own user may ask".to_owned(),
            ),
            Self::NoSuchPath(uri) => (
                StatusCode::NOT_FOUND,
                format!(
                    "there is no {}; this is version {} of docs/control-api.md: /{0}/status",
                    uri.path()
                        .chars()
                        .take(100)
                        .collect::<String>()
                        .escape_debug(),
                    api::VERSION
                ),
            ),
            Self::NotThis(method) => (
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{method} changes nothing here: use GET (or POST to /v1/clean)"),
            ),
            Self::BadQuery(why) => (
                StatusCode::BAD_REQUEST,
                format!("plan?of=ID or plan?orphans=true: {}", why.escape_debug()),
            ),
            Self::BadOrder(why) => (
                StatusCode::BAD_REQUEST,
                format!("not a CleanRequest: {}", why.escape_debug()),
            ),
            Self::InTheWay(what) => (StatusCode::CONFLICT, what.to_owned()),
            Self::Busy(why) => (StatusCode::SERVICE_UNAVAILABLE, why.to_owned()),
            Self::Failed(why) => (StatusCode::INTERNAL_SERVER_ERROR, why.to_owned()),
        };
        (status, Json(api::Failure { error })).into_response()
    }
}

pub(super) fn router(app: App) -> Router {
    let path = |name: &str| format!("/{}/{name}", api::VERSION);
    Router::new()
        .route(&path("status"), get(get_status))
        .route(&path("executors"), get(get_executors))
        .route(&path("plan"), get(get_plan))
        .route(
            &path("clean"),
            get(clean::get_clean)
                .post(clean::post_clean)
                .layer(DefaultBodyLimit::max(clean::LARGEST)),
        )
        .fallback(async |uri: Uri| Refusal::NoSuchPath(uri))
        .method_not_allowed_fallback(async |method: Method| Refusal::NotThis(method))
        .with_state(app)
}

async fn get_executors(State(app): State<App>) -> Result<Json<api::Executors>, Refusal> {
    app.look(executors::executors).await.map(Json)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanQuery {
    of: Option<String>,
    #[serde(default)]
    orphans: bool,
    /// As if the operator said of unknown runs that they are dead.
    #[serde(default)]
    force_unknown: bool,
}

async fn get_plan(
    State(app): State<App>,
    query: Result<Query<PlanQuery>, QueryRejection>,
) -> Result<Json<api::Plans>, Refusal> {
    let Query(query) = query.map_err(|error| Refusal::BadQuery(error.body_text()))?;
    let wanted = match query {
        PlanQuery {
            of: Some(ref of),
            orphans: false,
            ..
        } => Wanted::Of(Target::new(of)),
        PlanQuery {
            of: None,
            orphans: true,
            force_unknown: false,
        } => Wanted::Orphans,
        _ => return Err(Refusal::BadQuery("one of the two".to_owned())),
    };
    app.plans(wanted, query.force_unknown).await.map(Json)
}

async fn get_status(State(app): State<App>) -> Result<Json<api::Status>, Refusal> {
    let snapshot = app.ask(None, Vec::new()).await?;
    let started = app.started;
    let look = move |host: &Host| status::status(host, &snapshot, started);
    app.look(look).await.map(Json)
}
