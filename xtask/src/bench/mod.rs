//! `cargo xtask bench`: the figures that the documentation gives, and the
//! commands that measure them.

mod agents;
mod hook;
mod latency;
mod reconcile;
mod report;
mod storm;
mod usage;

use std::process::ExitCode;

use anyhow::Result;

/// Measure the daemon and the hook module on this machine
///
/// Figures are measured, not judged: a goal is reported as met or missed, and
/// the exit status is 0 either way. Like the demo it works beside the host's own
/// Docker and Mesos, removes everything at the end, and needs root.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask bench latency                    200 deaths idle, 200 under load
  cargo xtask bench latency --deaths 50 --idle-only
  cargo xtask bench latency --json out.json    Every single death, too
  cargo xtask bench hook                       The hook module in every Mesos release
  cargo xtask bench reconcile                  A survey of a host with a long past")]
pub(crate) struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, clap::Subcommand)]
enum Bench {
    Latency(latency::Args),
    Hook(hook::Args),
    Reconcile(reconcile::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.bench {
        Bench::Latency(args) => latency::run(args),
        Bench::Hook(args) => hook::run(args),
        Bench::Reconcile(args) => reconcile::run(args),
    }
}
