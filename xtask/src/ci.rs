//! `cargo xtask ci`: what `.ci/run` runs.

use std::process::ExitCode;

use anyhow::Result;

use crate::test;

/// Run exactly what CI runs: `cargo xtask test --lint`
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example:
  cargo xtask ci && git push")]
pub(crate) struct Args {}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Args {} = args;
    test::run(&test::Args {
        lint: true,
        ..test::Args::default()
    })
}
