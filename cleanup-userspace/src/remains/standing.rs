//! What the daemon's loop knows of a run, asked by who has no share in its state.

use std::collections::HashMap;

use tokio::sync::{mpsc, oneshot};

use crate::case::Proof;
use crate::mesos::ContainerId;
use crate::registry::Run;

/// What is known of a run.
#[derive(Debug, Clone)]
pub enum Standing {
    /// It lives, or its case is open.
    InUse,
    /// Its case was closed in this life of the daemon.
    Closed(Box<Run>, Proof),
    Unheard,
}

/// A question to the loop, which answers at once.
#[derive(Debug)]
pub struct Question {
    pub runs: Vec<ContainerId>,
    pub answer: oneshot::Sender<HashMap<ContainerId, Standing>>,
}

/// Asks. `None`: the daemon stops.
pub async fn ask(
    questions: &mpsc::UnboundedSender<Question>,
    runs: impl IntoIterator<Item = ContainerId>,
) -> Option<HashMap<ContainerId, Standing>> {
    let (answer, answered) = oneshot::channel();
    let runs = runs.into_iter().collect();
    questions.send(Question { runs, answer }).ok()?;
    answered.await.ok()
}
