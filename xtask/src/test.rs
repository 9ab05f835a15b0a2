//! `cargo xtask test`: everything that can be tested on this machine.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::exec::Tool;
use crate::setup::{self, Consent, Need};
use crate::{lint, workspace};

const BUILD_LIMIT: Duration = Duration::from_mins(45);
/// The whole run takes some twenty minutes: past this, something hangs.
const TEST_LIMIT: Duration = Duration::from_mins(50);

/// Set this machine up, build everything, run unit tests and end-to-end suites
///
/// Installs what the machine lacks without asking (see `cargo xtask setup`):
/// running this command is the consent. The suites need root; they start a
/// Docker daemon and Mesos agents of their own, and never touch the host's.
#[derive(Debug, Default, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask test                          All of it
  cargo xtask test --lint                   Formatting and clippy first
  cargo xtask test --all-mesos              The hook module with all 14 releases
  cargo xtask test --suite support          tests/suites/support.rs only
  cargo xtask test --suite support -- docker --nocapture
                                            Only tests with `docker` in their name
  cargo test -p cleanup-userspace decide    Plain cargo works, too, on a machine set up once")]
pub(crate) struct Args {
    /// Run only this end-to-end suite (may be repeated)
    #[arg(long, value_name = "NAME")]
    pub(crate) suite: Vec<String>,

    /// Check formatting and run clippy first
    #[arg(long)]
    pub(crate) lint: bool,

    /// Take the machine as it is
    #[arg(long)]
    pub(crate) no_setup: bool,

    /// Drive the hook module with every Mesos release there is, not just five
    #[arg(long)]
    pub(crate) all_mesos: bool,

    /// Build with optimisations
    #[arg(long)]
    pub(crate) release: bool,

    /// Passed on to the test programs
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if !args.no_setup {
        setup::ensure(Need::ALL, Consent::Given)?;
    }
    let is_clean = !args.lint || lint::check();
    // The suites run the programs in target/: cargo builds those only for the
    // tests of their own package.
    build(args).show()?;
    let tests = test(args).show();
    if let Err(failure) = &tests {
        eprintln!("error: {failure}");
    }
    if !is_clean {
        eprintln!("error: formatting or clippy, see above");
    }
    Ok(if is_clean && tests.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn build(args: &Args) -> Tool {
    let tool = workspace::cargo(["build"], BUILD_LIMIT);
    if args.release {
        tool.arg("--release")
    } else {
        tool
    }
}

fn test(args: &Args) -> Tool {
    let Args {
        suite,
        lint: _,
        no_setup: _,
        all_mesos,
        release,
        rest,
    } = args;
    let mut tool = workspace::cargo(["test"], BUILD_LIMIT + TEST_LIMIT);
    if *all_mesos {
        tool = tool.env("CLEANUP_ALL_MESOS", "1");
    }
    if *release {
        tool = tool.arg("--release");
    }
    if suite.is_empty() {
        // A failing crate must not hide what the others say.
        tool = tool.arg("--no-fail-fast");
    } else {
        tool = tool.args(["--package", "cleanup-tests"]);
        for name in suite {
            tool = tool.args(["--test", name]);
        }
    }
    if rest.is_empty() {
        tool
    } else {
        tool.arg("--").args(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_suite_everything_runs_to_the_end() {
        assert_eq!(test(&Args::default()).line(), "cargo test --no-fail-fast");
        assert_eq!(build(&Args::default()).line(), "cargo build");
    }

    #[test]
    fn suites_and_arguments_are_passed_on() {
        let args = Args {
            suite: vec!["docker".into(), "mesos".into()],
            release: true,
            rest: vec!["restart".into(), "--nocapture".into()],
            ..Args::default()
        };
        assert_eq!(
            test(&args).line(),
            "cargo test --release --package cleanup-tests --test docker --test mesos \
             -- restart --nocapture"
        );
        assert_eq!(build(&args).line(), "cargo build --release");
    }
}
