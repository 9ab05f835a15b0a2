//! `cargo xtask bench`: the figures that the documentation gives, and the
//! commands that measure them.

mod agents;
mod chart;
mod death;
mod direct;
mod document;
mod filter;
mod hook;
mod latency;
mod listeners;
mod loss;
mod mass;
mod part;
mod peers;
mod reconcile;
mod report;
mod scrape;
mod storm;
mod trace;
mod usage;
mod weight;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use cleanup_tests::wait;

use crate::setup::Need;
use crate::stage;
use document::Facts;
use part::{Goal, Part, Scale};

/// Measure the daemon and the hook module on this machine, and others beside them
///
/// Without a name of one benchmark, all of them, with a report at the end. Figures
/// are measured, not judged: a goal is reported as met or missed, and the exit
/// status is 0 either way; it is 1 if something could not be measured. Like the
/// demo it works beside the host's own Docker and Mesos, removes everything at the
/// end, and needs root. Let nothing else run meanwhile.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_long_help = "\
Examples:
  cargo xtask bench --report report.md         Everything, with charts beside the report
  cargo xtask bench --quick                    Less of everything: does it work here?
  cargo xtask bench --only filter,latency --report report.md
  cargo xtask bench latency                    200 deaths idle, 200 under load
  cargo xtask bench latency --deaths 50 --idle-only
  cargo xtask bench latency --json out.json    Every single death, too
  cargo xtask bench hook                       The hook module in every Mesos release
  cargo xtask bench filter                     What an exit costs that is nobody's
  cargo xtask bench peers                      … beside other programs that listen to exits
  cargo xtask bench loss                       Is an executor's end lost in a storm of others?
  cargo xtask bench mass                       100 executors at once, and the C++ hook's steps
  cargo xtask bench weight                     Memory, context switches, growth
  cargo xtask bench reconcile                  A survey of a host with a long past")]
pub(crate) struct Args {
    /// Less of everything, in some minutes
    #[arg(long)]
    quick: bool,

    /// Only these, of those that have a command of their own (see above)
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = names())]
    only: Vec<String>,

    /// Write a report to this file (Markdown), and charts into a folder beside it
    ///
    /// After each benchmark, so that one that was interrupted has what was measured.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    #[command(subcommand)]
    bench: Option<Bench>,
}

#[derive(Debug, clap::Subcommand)]
enum Bench {
    Latency(latency::Args),
    Filter(filter::Args),
    Peers(peers::Args),
    Loss(loss::Args),
    Hook(hook::Args),
    Mass(mass::Args),
    Weight(weight::Args),
    Reconcile(reconcile::Args),
}

type Measure = fn(Scale) -> Result<Part>;

/// Each benchmark, in the order of the report.
const ALL: &[(&str, Measure)] = &[
    ("filter", filter::measure),
    ("peers", peers::measure),
    ("loss", loss::measure),
    ("latency", latency::measure),
    ("reconcile", reconcile::measure),
    ("hook", hook::measure),
    ("mass", mass::measure),
    ("weight", weight::measure),
];

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(ALL.iter().map(|(name, _)| *name))
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.bench {
        None => all(args),
        Some(Bench::Latency(args)) => latency::run(args),
        Some(Bench::Filter(args)) => filter::run(args),
        Some(Bench::Peers(args)) => peers::run(args),
        Some(Bench::Loss(args)) => loss::run(args),
        Some(Bench::Hook(args)) => hook::run(args),
        Some(Bench::Mass(args)) => mass::run(args),
        Some(Bench::Weight(args)) => weight::run(args),
        Some(Bench::Reconcile(args)) => reconcile::run(args),
    }
}

fn all(args: &Args) -> Result<ExitCode> {
    stage::prepare(&[Need::ALL, &[Need::CgroupTools]].concat())?;
    stage::interruptible(|| measure_all(args))
}

fn measure_all(args: &Args) -> Result<ExitCode> {
    let Args {
        quick,
        only,
        report,
        bench: _,
    } = args;
    let scale = Scale::of(*quick);
    let facts = Facts::look()?;
    let command = command(*quick, only);
    let mut parts = Vec::new();
    let mut failed = Vec::new();
    let is_wanted = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    for (name, measure) in ALL.iter().filter(|(name, _)| is_wanted(name)) {
        println!("\n=== {name}");
        match measure(scale) {
            Ok(part) => {
                println!("\n{part}");
                parts.push(part);
            }
            Err(error) if wait::interrupted() => return Err(error),
            Err(error) => {
                eprintln!("error: {name}: {error:#}");
                failed.push(format!("{name}: {error:#}"));
            }
        }
        if let Some(path) = report {
            document::write(path, &facts, &command, &parts, &failed)?;
        }
    }
    println!(
        "\nGOALS\n{}",
        Goal::table(parts.iter().flat_map(|part| &part.goals))
    );
    if let Some(path) = report {
        println!("The report: {}", path.display());
    }
    Ok(if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// As the report names it.
fn command(quick: bool, only: &[String]) -> String {
    let mut command = "cargo xtask bench".to_owned();
    if quick {
        command += " --quick";
    }
    if !only.is_empty() {
        command += &format!(" --only {}", only.join(","));
    }
    command + " --report FILE"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_its_command() {
        assert_eq!(command(false, &[]), "cargo xtask bench --report FILE");
        assert_eq!(
            command(true, &["mass".into(), "hook".into()]),
            "cargo xtask bench --quick --only mass,hook --report FILE"
        );
    }
}
