//! `cargo xtask mesos-runtime`: real Mesos releases, ready to be run.

use std::process::ExitCode;

use anyhow::Result;
use cleanup_tests::mesos::runtime;

use crate::setup::{self, Consent, Need};

/// Fetch Mesos releases, so that suites can run their agents
///
/// The suites fetch what they need by themselves. This does it beforehand, for
/// a machine that is about to lose its network or for a cache in CI. Releases
/// that are there cost nothing; a new one takes about 5 s and 0.1 GB in the
/// user's cache folder.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask mesos-runtime             One of each kind of release
  cargo xtask mesos-runtime 1.9.0 1.10.0")]
pub(crate) struct Args {
    /// Releases to fetch
    ///
    /// By default one of each kind: both orders of the hook's functions, the
    /// release of another compiler, both layouts of Resources.
    #[arg(default_values = ["1.4.3", "1.6.1", "1.7.3", "1.8.1", "1.11.0"])]
    versions: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Args { versions } = args;
    setup::ensure(&[Need::MesosRuntime], Consent::Given)?;
    let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
    for runtime in runtime::fetch(&versions)? {
        println!("{:<7} {}", runtime.version(), runtime.lib_dir().display());
    }
    Ok(ExitCode::SUCCESS)
}
