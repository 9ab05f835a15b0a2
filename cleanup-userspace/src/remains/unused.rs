//! The networks' part of a round: finds out who uses them, or is about to, and
//! removes those that are left over.

use std::collections::HashMap;
use std::sync::Arc;

use super::containers::Owner;
use super::networks::{Claim, NetworkFacts, is_left, run_of_project};
use super::round::{Ended, Known, Memory, Object, Remains};
use super::standing::Standing;
use crate::case::{Host, key_of, printable};
use crate::config::Networks;
use crate::docker::{ComposeNetwork, Stopped};
use crate::mesos::ContainerId;
use crate::registry::Run;

/// Most that are asked for in one round.
const NETWORKS: usize = 64;

impl Remains {
    /// Removes the networks that nothing uses, nor will.
    pub(super) async fn remove_networks(
        &self,
        memory: &mut Memory,
        networks: Vec<ComposeNetwork>,
        known: &HashMap<ContainerId, Known>,
    ) -> Result<(), Ended> {
        self.host
            .networks
            .retain(|id| networks.iter().any(|network| network.id == id));
        let mut asked = 0;
        for network in networks {
            let object = Object::Network(network.id.clone());
            let mut facts = NetworkFacts {
                claim: self.claim(&network, known),
                users: 0,
                awaited: false,
            };
            if memory.is_later(&object) || asked >= NETWORKS || !is_left(&facts, &self.rules()) {
                continue;
            }
            asked += 1;
            let users = self.host.docker.users_of_network(&network.id).await;
            let Some(users) = memory.unless_away(object.clone(), users)? else {
                continue;
            };
            facts.users = users.len();
            if facts.claim == Claim::Nominated && facts.users == 0 {
                facts.awaited = self.is_awaited(&network.project).await?;
            }
            tracing::trace!(?network, ?facts, "network");
            // The configuration may have changed meanwhile.
            let may_go = self.host.may_act() && self.host.config().networks != Networks::Keep;
            if !may_go || !is_left(&facts, &self.rules()) {
                continue;
            }
            let removed = self.host.docker.remove_network(&network.id).await;
            if memory.unless_away(object, removed)? == Some(Stopped::Done) {
                tracing::info!(
                    network = %printable(network.name.as_ref()),
                    project = %printable(network.project.as_ref()),
                    "removed a network that dead runs left"
                );
            }
        }
        Ok(())
    }

    fn claim(&self, network: &ComposeNetwork, known: &HashMap<ContainerId, Known>) -> Claim {
        match run_of_project(&network.project) {
            Some(run) => Claim::Project(match known.get(&run) {
                Some(Known::Dead(run, proof)) => self.dead(run, *proof),
                Some(Known::InUse) => Owner::InUse,
                Some(Known::Unknown) | None => Owner::Unknown,
            }),
            None if self.host.networks.has(&network.id, &network.project) => Claim::Nominated,
            None => Claim::Nothing,
        }
    }

    /// Whether a run that lives, or may, could be about to attach containers to a
    /// network of this project.
    async fn is_awaited(&self, project: &str) -> Result<bool, Ended> {
        let (host, project) = (Arc::clone(&self.host), project.to_owned());
        let looked = tokio::task::spawn_blocking(move || {
            let mut listed = Vec::new();
            for agent in &host.agents {
                listed.extend(agent.runtime.list().ok()?);
            }
            (!may_attach(&host, &project)).then_some(listed)
        });
        let Ok(Some(listed)) = looked.await else {
            return Ok(true);
        };
        // A run that is being set up is not known yet.
        let standings = self.ask(listed).await?;
        Ok(standings
            .values()
            .any(|standing| matches!(standing, Standing::Unheard)))
    }
}

/// Whether a known run that lives or may live has no pod yet, or one of this
/// project.
fn may_attach(host: &Host, project: &str) -> bool {
    let live: Vec<Run> = {
        let registry = host.registry();
        if registry.has_unknown() {
            return true;
        }
        registry.iter().cloned().collect()
    };
    let running = host.index.running();
    if running.iter().any(|info| info.project() == Some(project)) {
        return true;
    }
    let has_pod = |run: &Run| running.iter().any(|info| key_of(host, run, info).is_some());
    !live.iter().all(has_pod)
}
