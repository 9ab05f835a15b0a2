//! `compose-cleanup clean`

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::settings::{Settings, duration, run_to_end, start_log};
use crate::daemon::{CleanOptions, CleanOutcome, clean_from_inbox};

/// Exit status: requests or cases are left.
const UNFINISHED: u8 = 3;
/// Exit status: another `clean` was at work all the time.
const BUSY: u8 = 4;

const EXAMPLES: &str = "\
Examples:
  Do what the Mesos hook module asked for, now:
      compose-cleanup clean --from-inbox --config /etc/compose-cleanup/config.toml

  Say what that would be, and keep the requests:
      compose-cleanup clean --from-inbox --dry-run

  Under a supervisor that starts it again whenever it ends:
      compose-cleanup clean --from-inbox --wait

Exit status:
  0  everything is done, or nothing was asked for, or `compose-cleanup watch` runs
     and does it (with mode \"observe\": the plan was printed)
  1  cannot work on this host, or with this configuration (the message says why)
  2  wrong usage of the command line
  3  the time was over, or a signal came, before everything was done (or the daemon
     runs and takes no requests); what is left to do is kept, the next run goes on
  4  another `clean` was at work until the time was over; nothing was done";

/// Do what the Mesos hook module asked for, without a daemon, and exit.
///
/// For hosts, or moments, on which `compose-cleanup watch` does not run. Each
/// request names an executor; of its runs those that are proven dead (by two looks
/// at the host, 2 seconds apart) are cleaned as the daemon cleans them. A request
/// for an executor that lives, or of which nothing is left, is forgotten; one that
/// may live, after 10 seconds of looking. Nothing else on the host is touched.
/// Needs root and the host's PID and cgroup namespaces, but no BPF.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Clean {
    /// Take the requests from the hook's inbox (`inbox` in the configuration).
    #[arg(long, required = true)]
    from_inbox: bool,

    /// Wait for a request first, for as long as it takes.
    #[arg(long)]
    wait: bool,

    /// When to give up and keep what is left for the next run ("2m"), counted from
    /// the first request.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "2m")]
    timeout: Duration,

    #[command(flatten)]
    settings: Settings,
}

impl Clean {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self {
            from_inbox: _,
            wait,
            timeout,
            settings,
        } = self;
        let config = settings.configuration()?;
        start_log(config.log_format);
        let outcome = run_to_end(clean_from_inbox(config, CleanOptions { timeout, wait }))?;
        Ok(match outcome {
            CleanOutcome::Done | CleanOutcome::Watched => ExitCode::SUCCESS,
            CleanOutcome::Unfinished => ExitCode::from(UNFINISHED),
            CleanOutcome::Busy => ExitCode::from(BUSY),
        })
    }
}
