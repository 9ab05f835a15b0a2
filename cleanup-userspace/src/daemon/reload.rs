//! SIGHUP: the configuration is read again, and what of it may change while the
//! daemon runs holds from then on.
//!
//! Reading is a task of its own, on a thread that may block: a file system that hangs
//! must not stop the loop that drains the ring.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinHandle;

use super::supervisor::Supervisor;
use crate::case::printable;
use crate::config::{Change, Config};

/// How long a reload waits for the file.
const DEADLINE: Duration = Duration::from_secs(5);

const KEPT: &str = "the configuration was not taken over: the daemon goes on with what it has; \
                    correct it (`compose-cleanup config check`), then reload again";

/// What came of reading the configuration again.
pub type Reread = anyhow::Result<Config>;

/// Reads the configuration as it was read at the start, command line included.
/// Blocks for as long as the file system does.
pub trait Source: Fn() -> Reread + Send + Sync + 'static {}
impl<F: Fn() -> Reread + Send + Sync + 'static> Source for F {}

/// Reads it at each SIGHUP; several that come while it is read count as one. The
/// service manager hears of the beginning here, and of the end from whoever takes
/// the outcome.
pub fn follow(
    hangup: Signal,
    source: impl Source,
    supervisor: Arc<Supervisor>,
) -> UnboundedReceiver<Reread> {
    let (sender, outcomes) = mpsc::unbounded_channel();
    let source = Arc::new(source);
    tokio::spawn(read_again(hangup, source, DEADLINE, supervisor, sender));
    outcomes
}

async fn read_again(
    mut hangup: Signal,
    source: Arc<impl Source>,
    deadline: Duration,
    supervisor: Arc<Supervisor>,
    sender: UnboundedSender<Reread>,
) {
    let mut hanging: Option<JoinHandle<Reread>> = None;
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: the configuration is read again");
        supervisor.reloading();
        // Never a second one beside it: each could hang a thread.
        let outcome = if hanging.as_ref().is_some_and(|work| !work.is_finished()) {
            Err(anyhow!(
                "an earlier attempt to read it still hangs in its file system"
            ))
        } else {
            let source = Arc::clone(&source);
            let mut work = tokio::task::spawn_blocking(move || source());
            match tokio::time::timeout(deadline, &mut work).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(panicked)) => Err(anyhow!("reading it failed: {panicked}")),
                Err(_) => {
                    hanging = Some(work);
                    Err(anyhow!(
                        "it could not be read within {deadline:?}: its file system hangs"
                    ))
                }
            }
        };
        if sender.send(outcome).is_err() {
            return;
        }
    }
}

/// Says what is different in a configuration that was read again, and returns the one
/// to go on with. An error: it was refused, and the one that runs stays.
pub fn judge(running: &Config, read: Reread) -> Result<Config, String> {
    let wanted = read.map_err(|error| {
        let error = printable(format!("{error:#}").as_ref());
        tracing::warn!(%error, "{KEPT}");
        error
    })?;
    let next = wanted.while_running(running);
    let (changed, later) = (running.changes(&next), next.changes(&wanted));
    for Change { key, old, new } in &changed {
        tracing::info!(%key, %old, %new, "a setting has changed");
    }
    for Change { key, old, new } in &later {
        tracing::warn!(%key, %old, %new, "needs a restart: this setting keeps its old value until then");
    }
    tracing::info!(
        changed = changed.len(),
        need_restart = later.len(),
        "the configuration was read again"
    );
    Ok(next)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc as blocking;

    use tokio::signal::unix::{SignalKind, signal};

    use super::*;

    fn hang_up(kind: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::getpid(), kind).unwrap();
    }

    /// A file system that hangs keeps neither the loop nor a later reload.
    #[tokio::test]
    async fn a_file_that_hangs_is_not_waited_for() {
        // Another signal: what SIGHUP does to the other tests is their affair.
        let hangup = signal(SignalKind::user_defined2()).unwrap();
        let (answer, answers) = blocking::channel::<Config>();
        let answers = Mutex::new(answers);
        let source = move || Ok(answers.lock().unwrap().recv()?);
        let (sender, mut outcomes) = mpsc::unbounded_channel();
        let supervisor = Arc::new(Supervisor::from_environment());
        tokio::spawn(read_again(
            hangup,
            Arc::new(source),
            Duration::from_millis(20),
            supervisor,
            sender,
        ));
        let mut refused = async || {
            hang_up(rustix::process::Signal::USR2);
            let outcome = outcomes.recv().await.unwrap();
            outcome.map_err(|error| error.to_string())
        };
        assert!(refused().await.unwrap_err().contains("within 20ms"));
        assert!(refused().await.unwrap_err().contains("still hangs"));
        // The answer to the first one comes too late for that; the next one reads anew.
        answer.send(Config::default()).unwrap();
        let wanted = Config {
            max_inferred_stops: 7,
            ..Config::default()
        };
        loop {
            answer.send(wanted.clone()).unwrap();
            if let Ok(config) = refused().await {
                assert_eq!(config, wanted);
                break;
            }
        }
    }

    #[test]
    fn what_is_refused_changes_nothing_and_is_one_line() {
        let running = Config::default();
        let error = judge(&running, Err(anyhow!("no\u{1b}[2J\nfile"))).unwrap_err();
        assert!(!error.contains(char::is_control), "{error:?}");
        assert_eq!(judge(&running, Ok(Config::default())).unwrap(), running);
    }
}
