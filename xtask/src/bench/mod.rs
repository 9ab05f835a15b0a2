//! `cargo xtask bench`: the figures that the documentation gives, and the
//! commands that measure them.

mod agents;
mod latency;
mod report;
mod storm;
mod usage;

use std::process::ExitCode;

use anyhow::Result;

/// Measure the daemon on this machine
///
/// Figures are measured, not judged: a goal is reported as met or missed, and
/// the exit status is 0 either way. Like the demo it works beside the host's own
/// Docker and Mesos, removes everything at the end, and needs root.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask bench latency                    200 deaths idle, 200 under load
  cargo xtask bench latency --deaths 50 --idle-only
  cargo xtask bench latency --json out.json    Every single death, too")]
pub(crate) struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, clap::Subcommand)]
enum Bench {
    Latency(latency::Args),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.bench {
        Bench::Latency(args) => latency::run(args),
    }
}
