//! Whose turn it is: `watch` and `clean` never act on a host together.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use crate::run_dir::{Attempt, Occupant, RunLock, Who};

/// How long `watch` waits for a `clean` that is at work: longer than that takes
/// by default.
const LONGEST_WAIT: Duration = Duration::from_secs(150);
const PAUSE: Duration = Duration::from_millis(50);
/// By then a holder has said who it is.
const SPEECHLESS: Duration = Duration::from_secs(1);

/// The turn of `watch`: taken, or expected soon.
#[derive(Debug)]
pub struct Turn(Attempt);

impl Turn {
    /// An error if another `watch` runs.
    pub fn of_watch(run_dir: &Path) -> anyhow::Result<Self> {
        let attempt = RunLock::attempt(run_dir, Who::Watch)?;
        if let Attempt::Held(occupant) = attempt {
            refuse_a_second(run_dir, occupant)?;
            tracing::info!(
                "{occupant} is at work: nothing is done before it ends; exits are noted meanwhile"
            );
        }
        Ok(Self(attempt))
    }

    /// Waits until whoever is at work has ended.
    pub async fn come(self, run_dir: &Path) -> anyhow::Result<RunLock> {
        let deadline = Instant::now() + LONGEST_WAIT;
        let mut attempt = self.0;
        loop {
            let occupant = match attempt {
                Attempt::Taken(lock) => return Ok(lock),
                Attempt::Held(occupant) => occupant,
            };
            refuse_a_second(run_dir, occupant)?;
            if Instant::now() >= deadline {
                bail!(
                    "{occupant} has been at work for more than {LONGEST_WAIT:?}: look at its log, or stop it; \
                     this one would act on the same containers (lock in {})",
                    run_dir.display()
                );
            }
            tokio::time::sleep(PAUSE).await;
            attempt = RunLock::attempt(run_dir, Who::Watch)?;
        }
    }
}

fn refuse_a_second(run_dir: &Path, occupant: Occupant) -> anyhow::Result<()> {
    if occupant.who() == Some(Who::Watch) {
        bail!(
            "{occupant}, is at work on this host already: one is enough, two would act on the same containers \
             (lock in {}; stop that one first, or give this one another `run_dir` if it is for other agents)",
            run_dir.display()
        );
    }
    Ok(())
}

/// How `clean` came by its turn.
#[derive(Debug)]
pub enum CleanTurn {
    Taken(RunLock),
    /// A `watch` runs: there is nothing to do that it does not do.
    Watched(Occupant),
    /// Another `clean` did not end in time.
    Busy(Occupant),
}

/// The turn of `clean`, which waits for another one until `deadline`.
pub async fn turn_of_clean(run_dir: &Path, deadline: Instant) -> anyhow::Result<CleanTurn> {
    let began = Instant::now();
    loop {
        let occupant = match RunLock::attempt(run_dir, Who::Clean)? {
            Attempt::Taken(lock) => return Ok(CleanTurn::Taken(lock)),
            Attempt::Held(occupant) => occupant,
        };
        match occupant.who() {
            Some(Who::Watch) => return Ok(CleanTurn::Watched(occupant)),
            None if began.elapsed() < SPEECHLESS => {}
            Some(Who::Clean) | None if Instant::now() < deadline => {}
            Some(Who::Clean) | None => return Ok(CleanTurn::Busy(occupant)),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
