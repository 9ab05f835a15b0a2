//! `cargo xtask bench hook`: how long the Mesos agent waits for the hook module.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use cleanup_tests::hook::{self, Run, inbox};
use cleanup_tests::mesos::runtime;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;

use super::part::{Goal, Part, Scale};
use crate::setup::Need;
use crate::stage;
use crate::table::Table;

/// What the package index has.
const RELEASES: &[&str] = &[
    "1.4.3", "1.5.2", "1.5.3", "1.6.1", "1.6.2", "1.7.0", "1.7.1", "1.7.2", "1.7.3", "1.8.0",
    "1.8.1", "1.9.0", "1.10.0", "1.11.0",
];
/// For a first look: the oldest and the newest.
const FEW: &[&str] = &["1.4.3", "1.11.0"];
const CALLS: u32 = 10_000;
const FEW_CALLS: u32 = 2_000;
/// The p99 of a call, in microseconds.
const GOAL_US: f64 = 200.0;
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
    #[arg(long, value_name = "N", default_value_t = CALLS, value_parser = clap::value_parser!(u32).range(1..=MOST_CALLS))]
    calls: u32,

    /// Mesos releases
    #[arg(value_name = "VERSION")]
    releases: Vec<String>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    stage::prepare_helpers(&[Need::MesosRuntime])?;
    let Args { calls, releases } = args;
    let releases: Vec<&str> = if releases.is_empty() {
        RELEASES.to_vec()
    } else {
        releases.iter().map(String::as_str).collect()
    };
    stage::interruptible(|| {
        println!("\n{}", part(*calls, &releases)?);
        Ok(ExitCode::SUCCESS)
    })
}

pub(super) fn measure(scale: Scale) -> Result<Part> {
    match scale {
        Scale::Quick => part(FEW_CALLS, FEW),
        Scale::Full => part(CALLS, RELEASES),
    }
}

fn part(calls: u32, releases: &[&str]) -> Result<Part> {
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
    for &release in releases {
        ensure!(!wait::interrupted(), "interrupted");
        stage::fetch_mesos(release, "There is nothing to measure without Mesos")?;
        let run = one(release, calls).with_context(|| format!("Mesos {release}"))?;
        let columns = ["p50", "p99", "p999", "max", "empty_p50", "empty_p99"];
        let values = columns.map(|name| run.value(name).map(str::to_owned));
        let values = values.into_iter().collect::<Result<Vec<_>>>()?;
        worst = worst.max(values[1].parse().context("a time")?);
        table.row([vec![release.to_owned()], values].concat());
    }
    Ok(Part {
        title: "The hook module's call",
        command: "cargo xtask bench hook".to_owned(),
        method: format!(
            "`slaveRemoveExecutorHook`, called {calls} times by each release's own HookManager in a \
             process of its own, with the inbox on a tmpfs. *empty*: in turns with it, a call for \
             which the hook does nothing. It is the agent that waits so long."
        ),
        goals: vec![Goal {
            what: "hook call in an agent's HookManager, p99 of the slowest release".to_owned(),
            goal: format!("< {:.1} ms", GOAL_US / 1e3),
            measured: format!("{:.3} ms", worst / 1e3),
            met: worst < GOAL_US,
        }],
        tables: vec![("Microseconds a call".to_owned(), table)],
        charts: Vec::new(),
        notes: Vec::new(),
    })
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
