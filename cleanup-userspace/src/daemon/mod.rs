//! `compose-cleanup watch`, and `clean`, which does its work once: everything put
//! together.

mod agents;
mod alone;
mod answers;
mod casebook;
mod clean;
mod core;
mod deaths;
mod exits;
mod learn;
mod memory;
mod orders;
mod place;
pub(crate) mod preflight;
mod priority;
mod privileges;
mod reload;
mod supervisor;
mod surveyor;
mod surveys;
mod turn;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;

pub use self::alone::plan_alone;
pub use self::clean::{CleanOptions, CleanOutcome, HandOutcome, clean_by_hand, clean_from_inbox};
use self::core::{Core, Feeds};
use self::place::Place;
use self::priority::ThreadPriority;
use self::reload::{Reread, Source};
use self::supervisor::Supervisor;
use self::turn::Turn;
use crate::config::{Config, Mode, Priority};
use crate::journal::{Journal, Unfinished};
use crate::mesos::{AgentDirs, discover};
use crate::metrics::{self, Metrics};
use crate::probe::{self, ProbeOptions, RootSpec};
use crate::run_dir::RunLock;
use crate::serve::{Inquiries, Server};

/// How often to look for an agent while none is known.
const DISCOVERY: Duration = Duration::from_secs(5);

/// What `watch` does before its process has a second thread: it takes the limits that
/// a capability may be needed for, and gives up the capabilities that are not.
pub fn settle_rights(config: &Config) {
    preflight::raise_descriptor_limit();
    probe::raise_limits();
    let limited = config.priority == Priority::Realtime && !priority::raise_limit();
    privileges::drop_unneeded(config, limited);
}

/// Runs until SIGTERM or SIGINT. At SIGHUP `source` tells the configuration anew. An
/// error says why the daemon cannot work here.
///
/// The loop has the calling thread for itself, with a runtime of its own that polls
/// the ring: an exit wakes it at once, not by way of another thread, and a loop that
/// hangs takes no task with it, the ones that say so among them. Everything else is
/// the workers'.
pub fn watch(workers: &Runtime, config: Config, source: impl Source) -> anyhow::Result<()> {
    preflight::check()?;
    memory::keep_small();
    let supervisor = Arc::new(Supervisor::from_environment());
    let priority = config.priority;
    let started = workers.block_on(Box::pin(start(config, source, &supervisor)))?;
    let Some((started, mut stop)) = started else {
        supervisor.stopping();
        return Ok(());
    };
    let Started {
        core,
        feeds,
        _control,
        _turn,
    } = started;
    memory::unmap_files();
    let priority = ThreadPriority::of_this_thread(priority);
    let (sleeper, woken) = (Arc::clone(&priority), Arc::clone(&priority));
    let own = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || sleeper.falls_asleep())
        .on_thread_unpark(move || woken.awake())
        .build()
        .context("cannot start the loop's runtime")?;
    own.block_on(core.run(feeds, &priority, stop.wait()));
    Ok(())
}

/// Everything before the loop. `None`: stopped meanwhile.
async fn start(
    config: Config,
    source: impl Source,
    supervisor: &Arc<Supervisor>,
) -> anyhow::Result<Option<(Started, Stop)>> {
    let mut stop = Stop::new()?;
    let hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    let reloads = reload::follow(hangup, source, Arc::clone(supervisor));
    let prepared = supervisor.feeding(prepare(config, &mut stop, reloads, supervisor));
    let Some(prepared) = prepared.await? else {
        return Ok(None);
    };
    let Prepared {
        mut core,
        inquiries,
        _control,
        _turn,
    } = prepared;
    let feeds = core.start(inquiries).await;
    let started = Started {
        core,
        feeds,
        _control,
        _turn,
    };
    Ok(Some((started, stop)))
}

/// What runs, and what has to last as long as it does.
struct Started {
    core: Core,
    feeds: Feeds,
    _control: Option<Server>,
    _turn: RunLock,
}

/// What the loop needs, and what has to last as long as it does.
struct Prepared {
    core: Core,
    inquiries: Inquiries,
    _control: Option<Server>,
    _turn: RunLock,
}

/// Everything before the loop. `None`: stopped meanwhile.
async fn prepare(
    mut config: Config,
    stop: &mut Stop,
    mut reloads: UnboundedReceiver<Reread>,
    supervisor: &Arc<Supervisor>,
) -> anyhow::Result<Option<Prepared>> {
    let metrics = Metrics::default();
    let run_dir = config.run_dir.clone();
    let turn = Turn::of_watch(&run_dir)?;
    if let Some(address) = config.metrics.listen {
        tokio::spawn(metrics::serve(address, metrics.clone()));
    }
    let place = Place::of(&config)?.counted_by(metrics);

    // Whether an agent ever comes is not the service manager's concern.
    let waits = || supervisor.ready("no agent is configured and none runs: waiting for one");
    let agents = loop {
        tokio::select! {
            agents = find_agents(&config, waits) => break agents,
            Some(read) = reloads.recv() => {
                config = reload::judge(&config, read).unwrap_or(config);
                supervisor.reloaded();
            }
            () = stop.wait() => return Ok(None),
        }
    };
    // Several agents may share a root: the kernel program knows it once.
    let mut roots: Vec<RootSpec> = Vec::new();
    for agent in &agents {
        let spec = RootSpec {
            path: place.launcher.root(&agent.cgroups_root),
            layout: place.layout,
        };
        if !roots.contains(&spec) {
            roots.push(spec);
        }
    }
    let options = ProbeOptions {
        roots,
        ring_bytes: config.ebpf.ring_bytes,
        kernel_log: config.ebpf.kernel_log,
    };
    let exits = exits::choose(config.probe, options).await?;
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
    let turn = tokio::select! {
        turn = turn.come(&run_dir) => turn?,
        () = stop.wait() => return Ok(None),
    };
    let mode = config.mode;
    let (journal, unfinished) = open_journal(&config).await?;
    let host = place.host(config, journal, agents);
    if mode == Mode::Observe {
        tracing::info!(
            "mode is observe: nothing will be stopped or removed; set mode = \"enforce\" to clean up"
        );
    }
    let (control, inquiries) = Server::start(&host);
    let control = control.inspect_err(|error| {
        tracing::warn!(%error, "no control socket: `status` cannot be answered; everything else goes on");
    });
    Ok(Some(Prepared {
        core: Core::new(host, exits, &unfinished, reloads, Arc::clone(supervisor)),
        inquiries,
        _control: control.ok(),
        _turn: turn,
    }))
}

/// The journal, and the cases that it has open.
async fn open_journal(config: &Config) -> anyhow::Result<(Journal, Vec<Unfinished>)> {
    if !config.journal.enabled {
        return Ok((Journal::disabled(), Vec::new()));
    }
    let settings = (&config.journal).into();
    Ok(tokio::task::spawn_blocking(|| Journal::open(settings)).await?)
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

/// The same, for a command that does not wait for one.
async fn agents_now(config: &Config) -> anyhow::Result<Vec<AgentDirs>> {
    let found = configured_or_running(config).await;
    ensure!(
        !found.is_empty(),
        "no agent is configured and no mesos-agent runs: name its directories in [[agents]] of the configuration (--config)"
    );
    Ok(found)
}

/// The configured agents, else the ones that run; waits for the first of those, and
/// says so once by calling `waits`.
async fn find_agents(config: &Config, waits: impl Fn()) -> Vec<AgentDirs> {
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
            waits();
            complained = true;
        }
        tokio::time::sleep(DISCOVERY).await;
    }
}

/// SIGTERM or SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
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
