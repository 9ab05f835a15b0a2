//! What the commands that act share: where the configuration is, which of it is
//! overridden, and the log.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

use crate::config::{Action, Config, LogFormat, Mode, Teardown};

#[derive(Debug, Args)]
pub(super) struct Settings {
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

impl Settings {
    /// The flags that override the configuration, as they were given.
    pub(super) fn overridden(&self) -> Vec<&'static str> {
        let Self {
            config: _,
            mode,
            dry_run: _,
            action,
            teardown,
            grace,
            docker_socket,
            log_format: _,
        } = self;
        let given = [
            ("--mode", mode.is_some()),
            ("--action", action.is_some()),
            ("--teardown", teardown.is_some()),
            ("--grace", grace.is_some()),
            ("--docker-socket", docker_socket.is_some()),
        ];
        let given = given.into_iter().filter(|(_, given)| *given);
        given.map(|(flag, _)| flag).collect()
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run || self.mode == Some(Mode::Observe)
    }

    /// The file, or the defaults, with what was given on the command line.
    pub(super) fn configuration(&self) -> anyhow::Result<Config> {
        let mut config = Config::of(self.config.as_deref())?;
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
        set(&mut config.mode, mode.as_ref());
        set(&mut config.action, action.as_ref());
        set(&mut config.teardown, teardown.as_ref());
        set(&mut config.grace, grace.as_ref());
        set(&mut config.docker.socket, docker_socket.as_ref());
        set(&mut config.log_format, log_format.as_ref());
        config.check_overridden()?;
        Ok(config)
    }
}

fn set<T: Clone>(value: &mut T, given: Option<&T>) {
    if let Some(given) = given {
        value.clone_from(given);
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// Carries out work that asks or looks, on this thread.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    Ok(runtime.block_on(work))
}

/// Runs a command that acts until it is done.
pub(super) fn run_to_end<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    with_workers(|workers| workers.block_on(work))
}

/// The same, of a command that does a part of its work on this thread.
pub(super) fn with_workers<T>(
    work: impl FnOnce(&Runtime) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let workers = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(32)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = work(&workers);
    // Blocked file system work must not keep the process alive.
    workers.shutdown_background();
    outcome
}

/// To standard error; `RUST_LOG` filters, else `level` does.
pub(super) fn start_log(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Human => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
