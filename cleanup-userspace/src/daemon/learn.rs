//! Learning runs while they live, and noticing their end by pidfd.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::core::Message;
use crate::case::Host;
use crate::mesos::ContainerId;
use crate::process::{Proc, has_no_pidfds, stat};
use crate::registry::{self, AgentIndex, Ended, Run, cgroups_of, find_identity, seat_of};

/// How fast to look for a PID file or for an executor that the helper is about
/// to start: doubling from the first to the longest. A helper may fetch for
/// minutes; one whose executor cannot be recognised is looked at for ever.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
pub const LONGEST_PAUSE: Duration = Duration::from_millis(200);
const SLOWEST_PAUSE: Duration = Duration::from_secs(5);

/// Learns a run: its helper first, its sandbox, and then its executor.
pub async fn learn_run(
    host: Arc<Host>,
    agent: AgentIndex,
    container: ContainerId,
    sender: UnboundedSender<Message>,
) {
    let mut pause = FIRST_PAUSE;
    let run = loop {
        let shared = Arc::clone(&host);
        let learnt = blocking(move || {
            let dirs = shared.dirs(agent);
            let run = registry::learn(agent, dirs, container, &shared.launcher)?;
            Some(Run {
                identity: find_identity(dirs, container),
                ..run
            })
        });
        match learnt.await {
            Some(Some(run)) => break run,
            Some(None) if host.agents[agent].runtime.owns(container).unwrap_or(true) => {}
            _ => {
                let _ = sender.send(Message::Missed(container));
                return;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    let _ = sender.send(Message::Learnt(Box::new(run)));
}

/// Looks for the sandbox of a run that was learnt on the event path, where there
/// is no time to walk directories.
pub async fn identify(host: Arc<Host>, run: Run, sender: UnboundedSender<Message>) {
    let found = blocking(move || find_identity(host.dirs(run.agent), run.container));
    if let Some(Some(identity)) = found.await {
        let _ = sender.send(Message::Identified(Box::new(identity)));
    }
}

/// Learns what a helper starts, now or minutes later. Ends when it is known, or
/// the helper is gone.
pub async fn learn_executor(host: Arc<Host>, run: Run, sender: UnboundedSender<Message>) {
    let (Some(helper), container) = (run.helper, run.container) else {
        return;
    };
    let run = Arc::new(run);
    let mut pause = FIRST_PAUSE;
    while helper.is_alive() && !sender.is_closed() {
        let (shared, run) = (Arc::clone(&host), Arc::clone(&run));
        let found = blocking(move || {
            let executor = registry::executor_of(helper)?;
            // Now it sits in every cgroup that the agent's isolators have for it.
            let seat = seat_of(
                executor,
                run.launcher,
                &shared.launcher,
                shared.dirs(run.agent),
                container,
            );
            Some((executor, seat))
        });
        if let Some((executor, seat)) = found.await.flatten() {
            let _ = sender.send(Message::ExecutorLearnt {
                container,
                executor,
                seat,
            });
            return;
        }
        tokio::time::sleep(pause).await;
        pause = if pause < LONGEST_PAUSE {
            pause * 2
        } else {
            (pause * 9 / 8).min(SLOWEST_PAUSE)
        };
    }
}

/// Tells the agent's watch who the helper's parent is.
pub fn learn_agent(host: &Host, run: &Run) {
    if let Some(helper) = run.helper.filter(|helper| helper.is_alive())
        && let Ok(Some(stat)) = stat(helper.pid)
        && let Some(parent) = Proc::of(stat.ppid)
    {
        host.agents[run.agent].learn(parent, run.owned);
    }
}

/// Waits for a process to end and says so.
pub async fn watch_process(
    container: ContainerId,
    proc: Proc,
    ended: Ended,
    sender: UnboundedSender<Message>,
) {
    let end = tokio::select! {
        end = proc.end() => end,
        () = sender.closed() => return,
    };
    if let Err(error) = end {
        // Before Linux 5.3: said once, at the start.
        if !has_no_pidfds(&error) {
            tracing::warn!(%container, pid = proc.pid, %error, "no pidfd can be waited for; polling");
        }
        poll(proc, &sender).await;
    }
    let _ = sender.send(Message::Ended(container, ended));
}

async fn poll(proc: Proc, sender: &UnboundedSender<Message>) {
    while proc.is_alive() && !sender.is_closed() {
        tokio::time::sleep(LONGEST_PAUSE).await;
    }
}

/// Waits until no process of an orphaned run is left.
pub async fn await_alone(host: Arc<Host>, run: Run, sender: UnboundedSender<Message>) {
    let container = run.container;
    let mut pause = FIRST_PAUSE;
    while !sender.is_closed() {
        let (shared, run) = (Arc::clone(&host), run.clone());
        let left = blocking(move || {
            cgroups_of(&shared.hierarchies, shared.dirs(run.agent), run.container)
                .and_then(|cgroups| run.own_processes(&cgroups))
        })
        .await;
        if matches!(left, Some(Ok(ref processes)) if processes.is_empty()) {
            let _ = sender.send(Message::Alone(container));
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// `None`: the work panicked, which was logged.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
