//! `cargo xtask bench hook`: how long the Mesos agent waits for the hook module.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use cleanup_tests::hook::{self, Run, inbox};
use cleanup_tests::mesos::runtime;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;

use crate::setup::Need;
use crate::stage;
use crate::table::Table;

/// What the package index has.
const RELEASES: &[&str] = &[
    "1.4.3", "1.5.2", "1.5.3", "1.6.1", "1.6.2", "1.7.0", "1.7.1", "1.7.2", "1.7.3", "1.8.0",
    "1.8.1", "1.9.0", "1.10.0", "1.11.0",
];
/// The module writes no more than 16384 requests that nobody takes.
const MOST_CALLS: i64 = 16_000;

/// Measure how long Mesos waits for the hook module
///
/// For each release its own HookManager, in a process of its own, calls the hook as
/// it ships, which writes each request into an inbox on a tmpfs. In turns with it
/// the same HookManager calls a method for which the hook does nothing: that is the
/// cost of the call, and of this machine. The goal is a p99 of less than 200 µs.
/// Needs root, and no BPF.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask bench hook                               All 14 releases
  cargo xtask bench hook --calls 16000 1.4.3 1.11.0    Two of them")]
pub(super) struct Args {
    /// How often the hook is called in each release
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=MOST_CALLS))]
    calls: u32,

    /// Mesos releases
    #[arg(value_name = "VERSION")]
    releases: Vec<String>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    stage::prepare_helpers(&[Need::MesosRuntime])?;
    stage::interruptible(|| measure(args))
}

fn measure(args: &Args) -> Result<ExitCode> {
    let Args { calls, releases } = args;
    let releases: Vec<&str> = if releases.is_empty() {
        RELEASES.to_vec()
    } else {
        releases.iter().map(String::as_str).collect()
    };
    let mut table = Table::new([
        "Mesos",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "max µs",
        "empty p50",
        "empty p99",
    ]);
    let mut worst: f64 = 0.0;
    for release in releases {
        ensure!(!wait::interrupted(), "interrupted");
        stage::fetch_mesos(release, "There is nothing to measure without Mesos")?;
        let run = one(release, *calls).with_context(|| format!("Mesos {release}"))?;
        let columns = ["p50", "p99", "p999", "max", "empty_p50", "empty_p99"];
        let values = columns.map(|name| run.value(name).map(str::to_owned));
        let values = values.into_iter().collect::<Result<Vec<_>>>()?;
        worst = worst.max(values[1].parse().context("a time")?);
        table.row([vec![release.to_owned()], values].concat());
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("kernel release")?;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "\nslaveRemoveExecutorHook, called {calls} times by each release's HookManager\n\n{table}\n  \
         empty: a call for which the hook does nothing, in turns with the other\n  \
         Linux {}, {cpus} CPUs; the goal of 200 µs at p99 is {}: {worst:.1} µs at most",
        kernel.trim_end(),
        if worst < 200.0 { "met" } else { "missed" }
    );
    Ok(ExitCode::SUCCESS)
}

fn one(release: &str, calls: u32) -> Result<Run> {
    let scratch = Scratch::new("bench-hook")?;
    let runtime = runtime::fetch(&[release])?
        .pop()
        .context("one version, one runtime")?;
    let dir = inbox::make_tmpfs(&scratch, c"size=256m,mode=700")?;
    let mut command = hook::harness(&runtime, hook::shipped()?)?;
    command
        .arg(format!("parameter=inbox_dir={}", dir.display()))
        .arg(format!("rounds={calls}"))
        .arg("times=yes");
    let run = Run::plain(&scratch, command)?;
    run.expect(0)?;
    // It did its work each time.
    let written = inbox::read(&dir)?.len();
    ensure!(
        written == calls as usize,
        "{written} requests after {calls} calls: {}",
        run.output
    );
    Ok(run)
}
