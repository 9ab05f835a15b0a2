//! `cargo xtask bench filter`: what the end of a process costs that is no executor's.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::chart::Chart;
use super::part::{Goal, Part, Scale, show};
use crate::exec::Tool;
use crate::setup::Need;
use crate::stage;
use crate::stats::{Summary, ratio_of_medians};
use crate::table::Table;

const EXAMPLE: &str = "exit-filter";
/// For a round, on a busy machine of two cores.
const ROUND: Duration = Duration::from_secs(90);

/// The loads of `tests/examples/exit-filter.rs`, and how many times an empty program's cost ours
/// may have.
const LOADS: [(&str, &str, Option<f64>); 5] = [
    ("threads", "thread exit", Some(1.2)),
    ("forks", "fork that executes nothing", Some(1.5)),
    ("commands", "short command in the top cgroup", Some(1.5)),
    ("foreign", "short command in a foreign cgroup", Some(3.5)),
    ("executors", "executor", None),
];
const EMPTY: &str = "empty";
/// The layouts, in the order in which a host that has both prefers them.
const LAYOUTS: [(&str, &str); 2] = [("ours-v1", "v1"), ("ours-v2", "v2")];

/// Measure what an exit costs that is no executor's
///
/// Nanoseconds per run of the exit probe as the kernel counts them (BPF
/// statistics, on for as long as this runs), beside an empty program of the same
/// type. Both are loaded anew in each round and in a random order, since where the
/// code lies makes a difference. Needs root.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask bench filter
  cargo xtask bench filter --quick              Some seconds: does it work here?")]
pub(super) struct Args {
    /// Fewer rounds, with fewer exits
    #[arg(long)]
    quick: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    show(&[Need::BpfToolchain], || measure(Scale::of(args.quick)))
}

pub(super) fn measure(scale: Scale) -> Result<Part> {
    let (rounds, exits) = match scale {
        Scale::Quick => (4, 1_000),
        Scale::Full => (16, 4_000),
    };
    let program = stage::example(EXAMPLE)?;
    println!("{rounds} rounds of {exits} thread exits and the like");
    let output = Tool::new(program, ROUND * rounds)
        .args([rounds.to_string(), exits.to_string()])
        .read()?;
    report(&parse(&output)?, rounds)
}

/// Nanoseconds per run, by load and program.
type Samples = BTreeMap<(String, String), Vec<f64>>;

fn parse(output: &str) -> Result<Samples> {
    let mut samples = Samples::new();
    for line in output.lines() {
        let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let text = |name: &str| line[name].as_str().map(str::to_owned);
        let key = text("load").zip(text("program")).context("a load")?;
        let ns = line["ns"].as_f64().context("nanoseconds")?;
        samples.entry(key).or_default().push(ns);
    }
    Ok(samples)
}

fn report(samples: &Samples, rounds: u32) -> Result<Part> {
    let of = |load: &str, program: &str| {
        let key = (load.to_owned(), program.to_owned());
        samples.get(&key).map_or(&[][..], Vec::as_slice)
    };
    let headings = [
        "exit of a",
        "layout",
        "ours, ns",
        "empty, ns",
        "ratio (95 % interval)",
    ];
    let mut table = Table::new(headings).left([1]);
    let (mut goals, mut bars) = (Vec::new(), Vec::new());
    for (load, what, limit) in LOADS {
        let empty = of(load, EMPTY);
        let empty_ns = Summary::of(empty.iter().copied())
            .with_context(|| format!("no empty program at {load}"))?;
        let mut is_first = true;
        for (program, layout) in LAYOUTS {
            let ours = of(load, program);
            let Some(ours_ns) = Summary::of(ours.iter().copied()) else {
                continue;
            };
            let ratio = ratio_of_medians(ours, empty).context("an empty program takes no time")?;
            table.row([
                what.to_owned(),
                layout.to_owned(),
                format!("{:.0}", ours_ns.p50),
                format!("{:.0}", empty_ns.p50),
                format!("{ratio:.2}"),
            ]);
            if let Some(limit) = limit {
                goals.push(Goal {
                    what: format!("{what}, cgroup {layout}: ours / empty program"),
                    goal: format!("≤ {limit} ×"),
                    measured: format!("{ratio:.2} ×"),
                    met: ratio.value <= limit,
                });
            }
            // One pair of bars a load: the layout that this host prefers.
            if is_first {
                bars.push((format!("{load}: ours"), ours_ns.p50));
                bars.push((format!("{load}: empty"), empty_ns.p50));
                is_first = false;
            }
        }
    }
    ensure!(!goals.is_empty(), "nothing of ours was measured");
    Ok(Part {
        title: "What an exit costs",
        command: "cargo xtask bench filter".to_owned(),
        method: format!(
            "The exit probe runs at the end of every thread of the host. What a run takes is \
             counted by the kernel itself (`kernel.bpf_stats_enabled`) and compared with an empty \
             program of the same type (`tp_btf`), at the same load: threads, forks that execute \
             nothing, and short commands one after the other, in the top cgroup (where a host's \
             own services' children are, if nothing moved them), in a cgroup like a container's \
             of somebody else, and in an executor's. {rounds} rounds; in each, every program is \
             loaded anew and in a random order. Medians of the rounds. The counting itself is in \
             all figures: the empty program takes nearly nothing else."
        ),
        goals,
        tables: vec![("Nanoseconds per run, median".to_owned(), table)],
        charts: vec![Chart::Bars {
            name: "filter-ns",
            title: "A run of the exit probe, and of an empty program".to_owned(),
            y: "ns",
            bars,
            log: true,
        }],
        notes: vec![
            "An executor's end is the one that is reported: its figure includes the record, the \
             container's name, its cgroups and the wakeup of the daemon."
                .to_owned(),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(ours: f64) -> String {
        let mut text = String::new();
        for (load, ..) in LOADS {
            for (program, ns) in [("empty", 50.0), ("ours-v1", ours)] {
                for round in 0..3 {
                    let line = serde_json::json!({
                        "round": round, "program": program, "load": load, "runs": 9, "ns": ns,
                    });
                    text += &format!("{line}\n");
                }
            }
        }
        text
    }

    #[test]
    fn each_goal_is_judged_by_its_own_limit() {
        let part = report(&parse(&output(70.0)).unwrap(), 3).unwrap();
        let met: Vec<bool> = part.goals.iter().map(|goal| goal.met).collect();
        assert_eq!(met, [false, true, true, true], "1.4 times the empty one");
        assert!(part.goals[0].measured.starts_with("1.40"), "{part}");
        let text = part.to_string();
        assert!(text.contains("executor"), "a row without a goal: {text}");
        assert!(!text.contains("v2"), "a host without that layout: {text}");
    }

    #[test]
    fn nothing_is_made_up() {
        assert!(parse("no JSON").is_err());
        assert!(report(&Samples::new(), 3).is_err());
    }
}
