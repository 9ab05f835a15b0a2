//! `compose-cleanup clean --from-inbox`: the hook's requests, without a daemon; and
//! [`by_hand`], what an operator named.
//!
//! The way is the daemon's own: a survey finds dead runs, two looks that agree
//! make one a case, the reaper carries it out. Only what a request names is
//! opened, and a request's file goes when nothing more is to be done for it: a
//! run that is killed leaves its requests to the next one.

mod by_hand;
mod cleaner;
mod verdict;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, sleep_until};

pub use self::by_hand::{HandOutcome, clean_by_hand};
use self::cleaner::Cleaner;
use super::core::JOURNAL_DEADLINE;
use super::learn::learn_agent;
use super::place::Place;
use super::turn::{CleanTurn, turn_of_clean};
use super::{Stop, find_agents, open_journal, preflight};
use crate::case::Host;
use crate::config::Config;
use crate::inbox::{Inbox, Letter, wait_for_request};
use crate::mesos::ContainerId;
use crate::registry::Run;
use crate::run_dir::Occupant;

/// A daemon at work takes a request within milliseconds, one that starts within
/// seconds.
const DAEMON_TAKES: Duration = Duration::from_secs(20);
const DAEMON_PAUSE: Duration = Duration::from_millis(250);

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct CleanOptions {
    /// When to give up what is not finished.
    pub timeout: Duration,
    /// Wait for a request first.
    pub wait: bool,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CleanOutcome {
    /// Everything that was asked for is done; or nothing was.
    Done,
    /// The daemon runs, and takes the requests itself.
    Watched,
    /// The time is over, or a signal came: the rest is left to the next run.
    Unfinished,
    /// Another `clean` has been at work all the time.
    Busy,
}

/// Takes the inbox' requests. An error says why that cannot be done here.
pub async fn clean_from_inbox(
    config: Config,
    options: CleanOptions,
) -> anyhow::Result<CleanOutcome> {
    preflight::check()?;
    preflight::raise_descriptor_limit();
    let mut stop = Stop::new()?;
    let path = config.inbox_dir();
    if options.wait {
        tracing::info!(inbox = %path.display(), "waiting for a request");
        tokio::select! {
            waited = wait_for_request(&path) => waited.with_context(|| inbox_trouble(&path))?,
            () = stop.wait() => return Ok(CleanOutcome::Done),
        }
    }
    let deadline = Instant::now() + options.timeout;
    let turn = tokio::select! {
        turn = turn_of_clean(&config.run_dir, deadline) => turn?,
        () = stop.wait() => return Ok(CleanOutcome::Unfinished),
    };
    let _turn = match turn {
        CleanTurn::Taken(lock) => lock,
        CleanTurn::Watched(occupant) => {
            return tokio::select! {
                outcome = watched(occupant, &path) => outcome,
                () = stop.wait() => Ok(CleanOutcome::Unfinished),
            };
        }
        CleanTurn::Busy(occupant) => {
            tracing::warn!("{occupant} is still at work: nothing was done");
            return Ok(CleanOutcome::Busy);
        }
    };
    let inbox = Inbox::open(&path).with_context(|| inbox_trouble(&path))?;
    let letters = inbox.read_all().with_context(|| inbox_trouble(&path))?;
    if letters.is_empty() {
        tracing::info!(inbox = %path.display(), "no requests: nothing to do");
        return Ok(CleanOutcome::Done);
    }
    let place = Place::of(&config)?;
    let agents = tokio::select! {
        agents = find_agents(&config, || ()) => agents,
        () = sleep_until(deadline) => {
            tracing::warn!("no agent was found in time: the requests are kept for the next run");
            return Ok(CleanOutcome::Unfinished);
        }
        () = stop.wait() => return Ok(CleanOutcome::Unfinished),
    };
    let (journal, _) = open_journal(&config).await?;
    let host = place.host(config, journal.clone(), agents);
    let outcome = Cleaner::new(host, inbox).run(deadline, stop.wait()).await;
    journal.close(JOURNAL_DEADLINE).await;
    Ok(outcome)
}

/// The runs that live now: their executor ids are nobody else's, and their
/// parents are agents.
fn learn_living(host: &Host, live: &[Run]) {
    {
        let mut registry = host.registry();
        let ended: Vec<ContainerId> = registry.iter().map(|run| run.container).collect();
        for container in ended {
            registry.remove(container);
        }
        for run in live {
            registry.insert(run.clone());
        }
    }
    for run in live {
        learn_agent(host, run);
    }
}

/// The daemon takes the requests: looks that it does. Whoever starts this for each
/// request does not start it again meanwhile.
async fn watched(occupant: Occupant, path: &Path) -> anyhow::Result<CleanOutcome> {
    let deadline = Instant::now() + DAEMON_TAKES;
    loop {
        let letters = Inbox::open(path)
            .and_then(|inbox| inbox.read_all())
            .with_context(|| inbox_trouble(path))?;
        if letters.iter().all(Letter::is_held) {
            tracing::info!("{occupant}, runs and takes the requests itself: nothing to do here");
            return Ok(CleanOutcome::Watched);
        }
        if Instant::now() >= deadline {
            tracing::warn!(
                inbox = %path.display(),
                "{occupant}, runs, but takes no requests from this inbox: is `inbox` another one in its configuration?"
            );
            return Ok(CleanOutcome::Unfinished);
        }
        tokio::time::sleep(DAEMON_PAUSE).await;
    }
}

fn inbox_trouble(path: &Path) -> String {
    format!("cannot read the inbox {}", path.display())
}
