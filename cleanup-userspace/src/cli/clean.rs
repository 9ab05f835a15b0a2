//! `compose-cleanup clean`

mod by_hand;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use self::by_hand::ByHand;
use super::history::Output;
use super::settings::{Settings, duration, run_to_end, start_log};
use crate::daemon::{CleanOptions, CleanOutcome, clean_from_inbox};

/// Exit status: requests or cases are left.
const UNFINISHED: u8 = 3;
/// Exit status: another `clean` was at work all the time.
const BUSY: u8 = 4;
/// Exit status: nothing was done, for the reason that was said.
const REFUSED: u8 = 5;

const EXAMPLES: &str = "\
Examples:
  Clean up after a dead executor now; asks before anything is done:
      compose-cleanup clean web

  The same for one run of it, by its container id or the first digits (4 or more):
      compose-cleanup clean 857fd7a0

  After everything on this host that is proven dead, without being asked:
      compose-cleanup clean --orphans --yes

  What would that be?
      compose-cleanup clean --orphans --dry-run

  After a run that nobody has a record of, and that is surely dead:
      compose-cleanup clean 857fd7a0 --force-unknown

  Do what the Mesos hook module asked for, now:
      compose-cleanup clean --from-inbox --config /etc/compose-cleanup/config.toml

  Under a supervisor that starts it again whenever it ends:
      compose-cleanup clean --from-inbox --wait

Exit status:
  0  everything is done, or there was nothing to do, or --dry-run told of it; with
     --from-inbox also if `compose-cleanup watch` runs and does it
  1  there is no such run, or several fit, or this host or configuration will not do
     (the message says why)
  2  wrong usage of the command line
  3  the time was over, or a signal came, or only a person can end what is waited for.
     A daemon goes on with what it began; without one the next run does
  4  another `clean` was at work until the time was over, or a daemon runs and does
     not answer; nothing was done
  5  refused, and nothing was done: it lives, or is unknown, held back, excluded; the
     mode is \"observe\"; nobody said yes. Or something of it turned out to live";

/// Clean up after a dead executor now: stop its containers, remove its cgroups.
///
/// Shows the plan and asks. If a daemon runs, that does it, with its own configuration;
/// else the command does, by the same rules and with the same lock. A run counts as
/// dead if two looks at the host, 2 seconds apart, say so. What lives is never touched,
/// whatever is given here. What is unknown is left alone without --force-unknown.
///
/// With --from-inbox: what the Mesos hook module asked for, without a daemon; for
/// hosts, or moments, on which `compose-cleanup watch` does not run. Each request names
/// an executor; of its runs those that are proven dead are cleaned. A request for an
/// executor that lives, or of which nothing is left, is forgotten; one that may live,
/// after 10 seconds of looking. Nothing else on the host is touched.
///
/// Needs root and the host's PID and cgroup namespaces, but no BPF.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Clean {
    /// An executor id, whole, or the Mesos container id of a run, or its first digits.
    #[arg(
        value_name = "CONTAINER_ID|EXECUTOR",
        required_unless_present_any = ["orphans", "from_inbox"]
    )]
    of: Option<String>,

    /// Every run that is proven dead. What is unknown is left alone.
    #[arg(long, conflicts_with = "of")]
    orphans: bool,

    /// Take the requests from the hook's inbox (`inbox` in the configuration).
    #[arg(long, conflicts_with_all = ["of", "orphans"])]
    from_inbox: bool,

    /// Do not ask.
    #[arg(long, short, conflicts_with = "from_inbox")]
    yes: bool,

    /// Take an unknown run for dead: one that is neither known to live nor proven to be
    /// dead.
    ///
    /// It may be another agent's. Only containers and cgroups that carry its id are
    /// touched, and only while no process shows that it lives: that is looked for
    /// again before each step. What does live is refused with this, too.
    #[arg(long, conflicts_with_all = ["orphans", "from_inbox"])]
    force_unknown: bool,

    #[arg(long, value_enum, default_value_t, conflicts_with = "from_inbox")]
    output: Output,

    /// Wait for a request first, for as long as it takes.
    #[arg(long, conflicts_with_all = ["of", "orphans"])]
    wait: bool,

    /// When to give up ("2m"); counted from the first request with --from-inbox.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "2m")]
    timeout: Duration,

    #[command(flatten)]
    settings: Settings,
}

impl Clean {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self {
            of,
            orphans: _,
            from_inbox,
            yes,
            force_unknown,
            output,
            wait,
            timeout,
            settings,
        } = self;
        if !from_inbox {
            let by_hand = ByHand {
                of,
                yes,
                force_unknown,
                output,
                timeout,
            };
            return by_hand.run(&settings);
        }
        let config = settings.configuration()?;
        start_log(config.log_format, "info");
        let outcome = run_to_end(clean_from_inbox(config, CleanOptions { timeout, wait }))?;
        Ok(match outcome {
            CleanOutcome::Done | CleanOutcome::Watched => ExitCode::SUCCESS,
            CleanOutcome::Unfinished => ExitCode::from(UNFINISHED),
            CleanOutcome::Busy => ExitCode::from(BUSY),
        })
    }
}
