//! `cargo xtask neighbour`: is a Mesos agent worse off with us on its host?

mod arm;
mod report;

use std::process::ExitCode;

use anyhow::Result;

use crate::setup::Need;
use crate::stage::{self, Profile};
use arm::Arm;
use report::Report;

/// Executors that are up at the same time in each arm.
const BATCH: usize = 4;

/// Compare a real Mesos agent with and without compose-cleanup on its host
///
/// Two hosts of their own, each with a private Docker daemon and a real agent, one
/// of them with `compose-cleanup watch`. Executors with pods die by SIGKILL, in
/// turns: one with, one without. Afterwards both agents' own counters, logs and
/// task updates are printed side by side, and what was left on either host. What
/// the arm without leaves is removed after it was counted, so that it does not
/// disturb the next death.
///
/// Installs what the machine lacks without asking (see `cargo xtask setup`):
/// running this command is the consent. Needs root.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask neighbour                                   10 deaths in each arm
  cargo xtask neighbour --deaths 200 --restart always
  cargo xtask neighbour --deaths 200 --version 1.8.1

Exit status: 0 the agent is no worse off with compose-cleanup, 1 it is (the last
lines say how), 130 interrupted.")]
pub(crate) struct Args {
    /// Mesos release of both agents
    #[arg(long, value_name = "V", default_value = "1.11.0")]
    pub(crate) version: String,

    /// Executor deaths in each arm
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) deaths: usize,

    /// Docker's restart policy for the pods' containers
    #[arg(long, value_name = "POLICY", default_value = "no", value_parser = ["no", "always"])]
    pub(crate) restart: String,

    /// Use a build without optimisation, which is there sooner
    #[arg(long)]
    pub(crate) debug: bool,

    /// Write the table as Markdown to this file, too (appended)
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<std::path::PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    stage::prepare_as(Need::ALL, Profile::of(args.debug))?;
    stage::interruptible(|| compare(args))
}

fn compare(args: &Args) -> Result<ExitCode> {
    let Args {
        version,
        deaths,
        restart,
        debug: _,
        markdown,
    } = args;
    stage::fetch_mesos(version, "The comparison needs real agents")?;
    let mut with = Arm::start("with", version, restart, true)?;
    let mut without = Arm::start("without", version, restart, false)?;
    let mut done = 0;
    while done < *deaths {
        let count = BATCH.min(deaths - done);
        let batches = (with.launch(count)?, without.launch(count)?);
        // In turns, so that both arms see the same host.
        for (ours, theirs) in batches.0.iter().zip(&batches.1) {
            with.kill(ours)?;
            without.kill(theirs)?;
        }
        with.account(&batches.0)?;
        without.account(&batches.1)?;
        done += count;
        println!("{done} of {deaths} deaths in each arm");
    }
    let report = Report::new(version, restart, with.finish()?, without.finish()?);
    println!("\n{report}");
    if let Some(path) = markdown {
        report.append_markdown(path)?;
    }
    let faults = report.faults();
    for fault in &faults {
        println!("WORSE: {fault}");
    }
    if faults.is_empty() {
        println!("The agent is no worse off with compose-cleanup on its host.");
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::FAILURE)
    }
}
