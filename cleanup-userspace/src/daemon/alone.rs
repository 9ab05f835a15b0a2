//! `compose-cleanup plan` where no daemon runs: one look at the host by itself.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::learn::learn_agent;
use super::place::Place;
use super::{agents_now, preflight};
use crate::case::Host;
use crate::config::Config;
use crate::journal::Journal;
use crate::mesos::AgentState;
use crate::reconcile::survey;
use crate::serve::{Known, Wanted, api, list, plans};

/// An agent is absent after 5 s without a sign of it: a little more than that.
const PATIENCE: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(500);

/// What would be done, by what one look can tell. Takes no lock and changes nothing.
///
/// `forced`: as if the operator said of unknown runs that they are dead.
pub async fn plan_alone(
    config: Config,
    wanted: Wanted,
    forced: bool,
) -> anyhow::Result<api::Plans> {
    preflight::check()?;
    let place = Place::of(&config)?;
    let agents = agents_now(&config).await?;
    let host = place.host(config, Journal::disabled(), agents);
    // First: the survey looks at what runs, too.
    let listed = list(&host).await;
    let work = Arc::clone(&host);
    let learnt = tokio::task::spawn_blocking(move || {
        // Whoever lives has an executor id that is nobody else's, and a parent that
        // is an agent.
        let found = survey(&work, &HashSet::new());
        for run in found.live {
            learn_agent(&work, &run);
            work.registry().insert(run);
        }
        let executor_ids = found.unknown.into_values().map(|run| run.executor_id);
        work.registry().set_unknown(executor_ids.collect());
    });
    learnt.await?;
    await_agents(&host).await?;
    let runs = host.registry().iter().map(|run| run.container).collect();
    let known = Known {
        runs,
        forced,
        ..Known::default()
    };
    Ok(tokio::task::spawn_blocking(move || plans(&host, &known, &wanted, listed)).await?)
}

/// That an agent is gone shows by its silence only.
async fn await_agents(host: &Arc<Host>) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let looked = Arc::clone(host);
        let settled = tokio::task::spawn_blocking(move || {
            // Each is looked at each time: silence counts only while somebody listens.
            let states: Vec<bool> = looked
                .agents
                .iter()
                .map(|agent| agent.state() == AgentState::Absent || agent.is_verified())
                .collect();
            states.into_iter().all(|settled| settled)
        });
        if settled.await? || tokio::time::Instant::now() >= deadline {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
