//! `compose-cleanup watch`

use std::process::ExitCode;

use clap::Args;

use super::settings::{Settings, start_log, with_workers};
use crate::config::{Config, ProbeChoice};
use crate::daemon;

const EXAMPLES: &str = "\
Examples:
  See what would be done on this host, and do nothing:
      compose-cleanup watch --dry-run

  On a host where eBPF cannot run (what that loses: docs/operations.md):
      compose-cleanup watch --probe poll

  Clean up, with the agent's directories from a file:
      compose-cleanup watch --config /etc/compose-cleanup/config.toml --mode enforce

  One JSON object a line, for a log shipper:
      compose-cleanup watch --log-format json

Signals:
  SIGTERM, SIGINT   stop: detach, finish the stop requests that run, exit 0
  SIGHUP            read the configuration again; options of the command line still
                    override it. The log says what has changed, and what of it needs
                    a restart; a file with a mistake is refused, and nothing changes

Exit status:
  0  stopped by a signal
  1  cannot work on this host, or with this configuration (the message says why)
  2  wrong usage of the command line";

/// Watch for dead executors and clean up after them, in the foreground.
///
/// Needs root, the host's PID and cgroup namespaces, and a kernel with BTF
/// (5.8 or later) unless --probe says otherwise. Starts before Docker and before
/// the agent, and outlives both.
/// Without a configuration file the defaults hold: the agents are found by
/// looking at what runs, and mode is "observe".
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Watch {
    #[command(flatten)]
    settings: Settings,

    /// How deaths are noticed.
    #[arg(long, value_enum)]
    probe: Option<ProbeChoice>,
}

impl Watch {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let config = self.configuration()?;
        start_log(config.log_format, "info");
        daemon::settle_rights(&config);
        with_workers(|workers| daemon::watch(workers, config, move || self.configuration()))?;
        Ok(ExitCode::SUCCESS)
    }

    fn configuration(&self) -> anyhow::Result<Config> {
        let mut config = self.settings.configuration()?;
        if let Some(probe) = self.probe {
            config.probe = probe;
        }
        Ok(config)
    }
}
