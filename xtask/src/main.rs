//! `cargo xtask`: every task that a person or CI runs.
//!
//! A task is one file with `pub struct Args` (clap) and
//! `pub fn run(&Args) -> anyhow::Result<ExitCode>`, named in [`tasks!`] below.

mod bench;
mod ci;
mod demo;
mod dist;
mod exec;
mod lint;
mod mesos_runtime;
mod neighbour;
mod setup;
mod soak;
mod stage;
mod stats;
mod table;
mod test;
mod vm;
mod witness;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The tasks of this repository, for people and for CI.
#[derive(Debug, Parser)]
#[command(
    bin_name = "cargo xtask",
    after_long_help = "\
Examples:
  cargo xtask setup --check   What does this machine lack?
  cargo xtask demo            See a dead executor's pod being cleaned up
  cargo xtask test            Install what is missing, build, run every test
  cargo xtask ci              Exactly what CI runs"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

macro_rules! tasks {
    ($($variant:ident => $module:ident,)*) => {
        #[derive(Debug, Subcommand)]
        enum Task {
            $($variant($module::Args),)*
        }

        impl Task {
            fn run(self) -> anyhow::Result<ExitCode> {
                match self {
                    $(Self::$variant(args) => $module::run(&args),)*
                }
            }
        }
    };
}

tasks! {
    Setup => setup,
    Demo => demo,
    Bench => bench,
    Neighbour => neighbour,
    Soak => soak,
    Test => test,
    Lint => lint,
    Ci => ci,
    MesosRuntime => mesos_runtime,
    Vm => vm,
    Dist => dist,
}

fn main() -> ExitCode {
    match Cli::parse().task.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_task_says_what_it_does_and_shows_an_example() {
        for task in Cli::command().get_subcommands() {
            let name = task.get_name();
            assert!(task.get_about().is_some(), "{name} has no description");
            assert!(
                task.get_after_long_help().is_some(),
                "{name} has no example"
            );
        }
    }
}
