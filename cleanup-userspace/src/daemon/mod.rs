//! `compose-cleanup watch`, and `clean`, which does its work once: everything put
//! together.

mod agents;
mod alone;
mod casebook;
mod clean;
mod core;
mod deaths;
mod learn;
mod memory;
pub(crate) mod preflight;
mod surveyor;
mod turn;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

pub use self::alone::plan_alone;
pub use self::clean::{CleanOptions, CleanOutcome, clean_from_inbox};
use self::core::Core;
use self::turn::Turn;
use crate::case::Host;
use crate::cgroup::{Hierarchies, Hierarchy};
use crate::config::{Config, Layout, Mode};
use crate::docker::Docker;
use crate::journal::{Journal, Unfinished};
use crate::mesos::{AgentDirs, discover};
use crate::probe::{self, Probe, ProbeOptions, RootSpec};
use crate::serve::Server;

/// How often to look for an agent while none is known.
const DISCOVERY: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT. An error says why the daemon cannot work here.
pub async fn watch(config: Config) -> anyhow::Result<()> {
    preflight::check()?;
    preflight::raise_descriptor_limit();
    memory::keep_small();
    let mut stop = Stop::new()?;
    let run_dir = config.run_dir.clone();
    let turn = Turn::of_watch(&run_dir)?;
    let hierarchies = Hierarchies::discover()?;
    let (launcher, layout) = launcher_hierarchy(&hierarchies, config.cgroup.layout)?;
    let docker = Docker::new(&config.docker.socket, config.docker.timeout)?;

    let agents = tokio::select! {
        agents = find_agents(&config) => agents,
        () = stop.wait() => return Ok(()),
    };
    // Several agents may share a root: the kernel program knows it once.
    let mut roots: Vec<RootSpec> = Vec::new();
    for agent in &agents {
        let spec = RootSpec {
            path: launcher.root(&agent.cgroups_root),
            layout,
        };
        if !roots.contains(&spec) {
            roots.push(spec);
        }
    }
    let probe = Probe::start(ProbeOptions {
        roots,
        ring_bytes: config.probe.ring_bytes,
        kernel_log: config.probe.kernel_log,
    })
    .await
    .context("the exit probe cannot run on this host")?;
    memory::give_back();

    for agent in &agents {
        tracing::info!(
            work_dir = %agent.work_dir.display(),
            runtime_dir = %agent.runtime_dir.display(),
            cgroups_root = %agent.cgroups_root,
            "agent"
        );
    }
    // What ends meanwhile waits in the ring.
    let _turn = tokio::select! {
        turn = turn.come(&run_dir) => turn?,
        () = stop.wait() => return Ok(()),
    };
    let mode = config.mode;
    let (journal, unfinished) = open_journal(&config).await?;
    let host = Arc::new(Host::new(
        config,
        hierarchies,
        launcher,
        docker,
        journal,
        agents,
    ));
    if mode == Mode::Observe {
        tracing::info!(
            "mode is observe: nothing will be stopped or removed; set mode = \"enforce\" to clean up"
        );
    }
    let (control, inquiries) = Server::start(&host);
    let _control = control.inspect_err(|error| {
        tracing::warn!(%error, "no control socket: `status` cannot be answered; everything else goes on");
    });
    Core::new(host, probe, &unfinished)
        .run(inquiries, stop.wait())
        .await;
    Ok(())
}

/// The journal, and the cases that it has open.
async fn open_journal(config: &Config) -> anyhow::Result<(Journal, Vec<Unfinished>)> {
    if !config.journal.enabled {
        return Ok((Journal::disabled(), Vec::new()));
    }
    let settings = (&config.journal).into();
    Ok(tokio::task::spawn_blocking(|| Journal::open(settings)).await?)
}

/// Where the launcher puts containers, and how.
fn launcher_hierarchy(
    hierarchies: &Hierarchies,
    layout: Layout,
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
        Layout::Auto => freezer().or_else(unified),
        Layout::V1 => freezer(),
        Layout::V2 => unified(),
    };
    found.with_context(|| match layout {
        Layout::V1 => "cgroup.layout is \"v1\", but no freezer hierarchy is mounted",
        Layout::V2 => "cgroup.layout is \"v2\", but no cgroup2 is mounted",
        Layout::Auto => "neither a freezer hierarchy nor cgroup2 is mounted",
    })
}

/// The configured agents, else the ones that run now.
async fn configured_or_running(config: &Config) -> Vec<AgentDirs> {
    if !config.agents.is_empty() {
        return config.agents.iter().map(AgentDirs::from).collect();
    }
    tokio::task::spawn_blocking(discover)
        .await
        .unwrap_or_default()
}

/// The configured agents, else the ones that run; waits for the first of those.
async fn find_agents(config: &Config) -> Vec<AgentDirs> {
    let mut complained = false;
    loop {
        let found = configured_or_running(config).await;
        if !found.is_empty() {
            return found;
        }
        if !complained {
            tracing::warn!(
                "no agent is configured and no mesos-agent runs: waiting for one; \
                 name its directories in [[agents]] to watch before it starts"
            );
            complained = true;
        }
        tokio::time::sleep(DISCOVERY).await;
    }
}

/// SIGTERM or SIGINT.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot handle SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot handle SIGINT")?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
