//! What of the host all ways to work begin with: its cgroup hierarchies, the one that
//! the launcher uses, and Docker.

use std::sync::Arc;

use anyhow::Context as _;

use crate::case::Host;
use crate::cgroup::{Hierarchies, Hierarchy};
use crate::config::{self, Config};
use crate::docker::Docker;
use crate::journal::Journal;
use crate::mesos::AgentDirs;
use crate::metrics::Metrics;
use crate::probe;

#[derive(Debug)]
pub struct Place {
    hierarchies: Hierarchies,
    /// Where the launcher puts containers.
    pub launcher: Hierarchy,
    /// And how.
    pub layout: probe::Layout,
    docker: Docker,
}

impl Place {
    /// As the configuration says, and as this host is. Docker need not be there yet.
    pub fn of(config: &Config) -> anyhow::Result<Self> {
        let hierarchies = Hierarchies::discover()?;
        let (launcher, layout) = launcher_hierarchy(&hierarchies, config.cgroup.layout)?;
        let docker = Docker::new(&config.docker.socket, config.docker.timeout)?;
        Ok(Self {
            hierarchies,
            launcher,
            layout,
            docker,
        })
    }

    /// Counts what is asked of Docker there.
    #[must_use]
    pub fn counted_by(self, metrics: Metrics) -> Self {
        Self {
            docker: self.docker.counted_by(metrics),
            ..self
        }
    }

    /// With its agents.
    pub fn host(self, config: Config, journal: Journal, agents: Vec<AgentDirs>) -> Arc<Host> {
        let Self {
            hierarchies,
            launcher,
            layout: _,
            docker,
        } = self;
        Arc::new(Host::new(
            config,
            hierarchies,
            launcher,
            docker,
            journal,
            agents,
        ))
    }
}

/// Where the launcher puts containers, and how.
fn launcher_hierarchy(
    hierarchies: &Hierarchies,
    layout: config::Layout,
) -> anyhow::Result<(Hierarchy, probe::Layout)> {
    let freezer = || {
        hierarchies
            .freezer()
            .map(|h| (h.clone(), probe::Layout::V1))
    };
    let unified = || {
        hierarchies
            .unified()
            .map(|h| (h.clone(), probe::Layout::V2))
    };
    let found = match layout {
        config::Layout::Auto => freezer().or_else(unified),
        config::Layout::V1 => freezer(),
        config::Layout::V2 => unified(),
    };
    found.with_context(|| match layout {
        config::Layout::V1 => "cgroup.layout is \"v1\", but no freezer hierarchy is mounted",
        config::Layout::V2 => "cgroup.layout is \"v2\", but no cgroup2 is mounted",
        config::Layout::Auto => "neither a freezer hierarchy nor cgroup2 is mounted",
    })
}
