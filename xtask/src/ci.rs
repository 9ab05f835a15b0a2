//! `cargo xtask ci`: what `.ci/run` runs.

use std::process::ExitCode;

use anyhow::Result;

use crate::{neighbour, soak, test, vm};

/// Of the soak: the same faults in the same order each time.
const SEED: u64 = 1;
const MINUTES: u64 = 2;
const NEIGHBOUR_DEATHS: usize = 10;
const MESOS: &str = "1.11.0";
/// The oldest kernel (no `cgroup.kill`, maps charged to the locked memory), and the first
/// of Debian's without the memory controller of version 1.
const KERNELS: [&str; 2] = ["5.10", "6.12"];
/// CI's own machines are hybrid.
const CGROUPS: [&str; 2] = ["v1", "v2"];
/// Of one guest, in seconds: it takes one to two minutes without KVM.
const GUEST_LIMIT: u64 = 300;

/// Run exactly what CI runs: every test, then a short soak, a short comparison, and
/// other kernels
///
/// `cargo xtask test --lint`, `cargo xtask soak --minutes 2 --seed 1 --debug`,
/// `cargo xtask neighbour --deaths 10 --debug` and `cargo xtask vm --kernel 5.10,6.12
/// --cgroup v1,v2 --jobs 2 --quiet --limit 300`, each of them whatever became of the
/// others. Kernels that do not come from the mirror are a failure.
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
        ("vm", other_kernels),
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

/// Fails, too, where a kernel or QEMU cannot be had: a guest that did not run shows nothing.
fn other_kernels() -> Result<ExitCode> {
    vm::run(&vm::Args {
        kernel: KERNELS.map(str::to_owned).into(),
        cgroup: CGROUPS.map(str::to_owned).into(),
        suite: vm::Suite::Smoke,
        jobs: 2,
        accel: vm::AccelChoice::Auto,
        limit: GUEST_LIMIT,
        update: false,
        shell: false,
        quiet: true,
    })
}
