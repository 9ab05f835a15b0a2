//! The command line: one file for each command.

mod case;
mod cases;
mod history;
mod watch;

use clap::{Parser, Subcommand};

/// Cleans up after dead Mesos executors: stops their Docker Compose pods and
/// removes the cgroups they left behind.
#[derive(Debug, Parser)]
#[command(name = "compose-cleanup", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Watch(watch::Watch),
    Cases(cases::Cases),
    Case(case::Case),
}

impl Cli {
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Watch(watch) => watch.run(),
            Command::Cases(cases) => cases.run(),
            Command::Case(case) => case.run(),
        }
    }
}
