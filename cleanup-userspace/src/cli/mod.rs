//! The command line: one file for each command.

mod case;
mod cases;
mod clean;
mod completions;
mod config;
mod control;
mod doctor;
mod executors;
mod history;
mod hold;
mod paint;
mod plan;
mod settings;
mod status;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The program's name.
const NAME: &str = "compose-cleanup";

/// Cleans up after dead Mesos executors: stops their Docker Compose pods and
/// removes the cgroups they left behind.
#[derive(Debug, Parser)]
#[command(name = NAME, version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Watch(watch::Watch),
    Status(status::Status),
    Executors(executors::Executors),
    Plan(plan::Plan),
    Cases(cases::Cases),
    Case(case::Case),
    Clean(clean::Clean),
    Hold(hold::Hold),
    Release(hold::Release),
    Doctor(doctor::Doctor),
    Config(config::Configuration),
    Completions(completions::Completions),
    #[command(hide = true)]
    Man(completions::Man),
}

impl Cli {
    /// An error is the exit status 1; what other statuses mean is in each
    /// command's help.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Watch(watch) => watch.run(),
            Command::Status(status) => status.run(),
            Command::Executors(executors) => executors.run(),
            Command::Plan(plan) => plan.run(),
            Command::Cases(cases) => cases.run().map(|()| ExitCode::SUCCESS),
            Command::Case(case) => case.run().map(|()| ExitCode::SUCCESS),
            Command::Clean(clean) => clean.run(),
            Command::Hold(hold) => hold.run().map(|()| ExitCode::SUCCESS),
            Command::Release(release) => release.run().map(|()| ExitCode::SUCCESS),
            Command::Doctor(doctor) => doctor.run(),
            Command::Config(config) => config.run(),
            Command::Completions(completions) => completions.run().map(|()| ExitCode::SUCCESS),
            Command::Man(man) => man.run().map(|()| ExitCode::SUCCESS),
        }
    }
}
