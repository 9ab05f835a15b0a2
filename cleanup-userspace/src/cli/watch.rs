//! `compose-cleanup watch`

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tracing_subscriber::EnvFilter;

use crate::config::{Action, Config, LogFormat, Mode, Teardown};
use crate::daemon;

const EXAMPLES: &str = "\
Examples:
  See what would be done on this host, and do nothing:
      compose-cleanup watch --dry-run

  Clean up, with the agent's directories from a file:
      compose-cleanup watch --config /etc/compose-cleanup/config.toml --mode enforce

  One JSON object a line, for a log shipper:
      compose-cleanup watch --log-format json

Signals:
  SIGTERM, SIGINT   stop: detach, finish the stop requests that run, exit 0

Exit status:
  0  stopped by a signal
  1  cannot work on this host, or with this configuration (the message says why)
  2  wrong usage of the command line";

/// Watch for dead executors and clean up after them, in the foreground.
///
/// Needs root, the host's PID and cgroup namespaces, and a kernel with BTF
/// (5.8 or later). Starts before Docker and before the agent, and outlives both.
/// Without a configuration file the defaults hold: the agents are found by
/// looking at what runs, and mode is "observe".
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Watch {
    /// Configuration file (TOML); flags override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Whether to act ("enforce") or only to say what would be done ("observe").
    #[arg(long, value_enum)]
    mode: Option<Mode>,

    /// The same as --mode observe.
    #[arg(long, conflicts_with = "mode")]
    dry_run: bool,

    /// What is done with the containers of a dead executor.
    #[arg(long, value_enum)]
    action: Option<Action>,

    /// When the run's own cgroups are removed.
    ///
    /// "immediate" does not wait for the agent: a living agent's own destroy of
    /// the container then fails (the container stays in DESTROYING until the
    /// agent is restarted, container_destroy_errors rises), and an early removal
    /// of the memory cgroup can be reported to the framework as an OOM kill.
    #[arg(long, value_enum)]
    teardown: Option<Teardown>,

    /// How long a container may take to end after its stop signal ("10s").
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    grace: Option<Duration>,

    /// Docker's socket.
    #[arg(long, value_name = "PATH")]
    docker_socket: Option<PathBuf>,

    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
}

impl Watch {
    pub fn run(self) -> anyhow::Result<()> {
        let config = self.configuration()?;
        start_log(config.log_format);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(32)
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let outcome = runtime.block_on(daemon::watch(config));
        // Blocked file system work must not keep the process alive.
        runtime.shutdown_background();
        outcome
    }

    fn configuration(self) -> anyhow::Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::load(path)?,
            None => Config::default(),
        };
        if self.dry_run {
            config.mode = Mode::Observe;
        }
        let Self {
            config: _,
            mode,
            dry_run: _,
            action,
            teardown,
            grace,
            docker_socket,
            log_format,
        } = self;
        set(&mut config.mode, mode);
        set(&mut config.action, action);
        set(&mut config.teardown, teardown);
        set(&mut config.grace, grace);
        set(&mut config.docker.socket, docker_socket);
        set(&mut config.log_format, log_format);
        Ok(config)
    }
}

fn set<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// To standard error; `RUST_LOG` filters.
fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Human => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
