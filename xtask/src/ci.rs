//! `cargo xtask ci`: what `.ci/run` runs.

use std::process::ExitCode;

use anyhow::Result;

use crate::{neighbour, soak, test};

/// Of the soak: the same faults in the same order each time.
const SEED: u64 = 1;
const MINUTES: u64 = 2;
const NEIGHBOUR_DEATHS: usize = 10;
const MESOS: &str = "1.11.0";

/// Run exactly what CI runs: every test, then a short soak and a short comparison
///
/// `cargo xtask test --lint`, `cargo xtask soak --minutes 2 --seed 1 --debug` and
/// `cargo xtask neighbour --deaths 10 --debug`, each of them whatever became of the
/// others.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example:
  cargo xtask ci && git push")]
pub(crate) struct Args {}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Args {} = args;
    let stages = [
        ("tests", tests as fn() -> Result<ExitCode>),
        ("soak", short_soak),
        ("neighbour", short_comparison),
    ];
    let mut failed = Vec::new();
    for (name, stage) in stages {
        println!("\n=== {name}");
        match stage() {
            Ok(ExitCode::SUCCESS) => {}
            Ok(_) => failed.push(name),
            Err(error) => {
                eprintln!("error: {name}: {error:#}");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        eprintln!("error: failed: {}", failed.join(", "));
        Ok(ExitCode::FAILURE)
    }
}

fn tests() -> Result<ExitCode> {
    test::run(&test::Args {
        lint: true,
        ..test::Args::default()
    })
}

fn short_soak() -> Result<ExitCode> {
    soak::run(&soak::Args {
        minutes: MINUTES,
        seed: SEED,
        version: MESOS.to_owned(),
        one_life: false,
        without: Vec::new(),
        debug: true,
        report: None,
    })
}

fn short_comparison() -> Result<ExitCode> {
    neighbour::run(&neighbour::Args {
        version: MESOS.to_owned(),
        deaths: NEIGHBOUR_DEATHS,
        restart: "no".to_owned(),
        debug: true,
        markdown: None,
    })
}
