//! `cargo xtask lint`: formatting and clippy.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::exec::Failure;
use crate::setup::{self, Consent, Need};
use crate::workspace;

const LIMIT: Duration = Duration::from_mins(30);

/// Check formatting and run clippy, with warnings as errors
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask lint
  cargo fmt --all    Mend the formatting that it found")]
pub(crate) struct Args {}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Args {} = args;
    setup::ensure(&[Need::BpfToolchain], Consent::Given)?;
    Ok(if check() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs every check, so that one run shows all that is wrong.
pub(crate) fn check() -> bool {
    let fmt = workspace::cargo(["fmt", "--all", "--check"], LIMIT).show();
    let clippy =
        workspace::cargo(["clippy", "--all-targets", "--", "-D", "warnings"], LIMIT).show();
    [fmt, clippy]
        .into_iter()
        .filter_map(Result::err)
        .inspect(|failure: &Failure| eprintln!("error: {failure}"))
        .count()
        == 0
}
