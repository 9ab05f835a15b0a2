//! The table of a latency run, as plain text and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::latency::{Condition, Death, Series};
use super::storm::SHELLS_PER_CPU;
use crate::stage::Machine;
use crate::stats::Summary;
use crate::table::Table;

/// First stop request, idle, at the median.
const GOAL_MS: f64 = 2.0;
/// Idle share of a host that does nothing but look after the executors.
const QUIET: f64 = 0.7;

/// A column of samples.
type Stage = (&'static str, fn(&Death) -> Option<f64>);

const STAGES: [Stage; 5] = [
    ("exit -> event in the daemon", |death| death.event),
    ("exit -> first stop request", |death| death.first_stop),
    ("exit -> container ended", |death| Some(death.ended)),
    ("event -> container ended", |death| {
        death.event.map(|event| death.ended - event)
    }),
    ("exit -> stop confirmed", |death| death.confirmed),
];

/// A line on each series as a whole.
type Fact = (&'static str, fn(&Series) -> String);

const FACTS: [Fact; 9] = [
    ("events lost", |series| series.lost.to_string()),
    ("irregular cases", |series| {
        let irregular = series.deaths.iter().filter(|death| !death.regular);
        irregular.count().to_string()
    }),
    ("endings", endings),
    ("daemon's RSS", |series| mib(series.usage.rss_kib)),
    ("of it anonymous", |series| mib(series.usage.anonymous_kib)),
    ("its peak", |series| mib(series.usage.peak_rss_kib)),
    ("daemon's CPU time, a death", |series| {
        format!(
            "{:.1} ms",
            series.usage.cpu_s * 1e3 / series.deaths.len() as f64
        )
    }),
    ("host idle before the deaths", |series| {
        format!("{:.0} %", series.host_idle * 100.0)
    }),
    ("process starts", |series| {
        let rate = series.starts_per_s;
        rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}/s"))
    }),
];

const NOTES: [(&str, &str); 4] = [
    (
        "exit",
        "the kernel's time of the executor's exit (BPF, sched_process_exit)",
    ),
    (
        "first stop request",
        "just before it goes to the HTTP client of Docker's socket",
    ),
    (
        "container ended",
        "its first process is gone (pidfd); counted from our SIGKILL to the executor,\n\
         just before the exit; includes Docker's and the container's own time",
    ),
    (
        "stop confirmed",
        "Docker has answered the request and the inspection that follows it",
    ),
];

pub(super) fn render(agent: &str, machine: &Machine, all: &[Series]) -> String {
    let mut text = format!(
        "LATENCY   milliseconds after an executor's SIGKILL, pods of one container\n\
         agent: {agent}\n\
         machine: Linux {}, {} CPUs, Docker {} (API {})\n\n",
        machine.kernel, machine.cpus, machine.docker, machine.docker_api
    );
    let mut table = Table::new(["condition", "stage", "deaths", "p50", "p99", "max"]).left([1]);
    for series in all {
        for (name, value) in STAGES {
            let Some(summary) = Summary::of(series.deaths.iter().filter_map(value)) else {
                continue;
            };
            table.row([
                series.condition.name().to_owned(),
                name.to_owned(),
                summary.count.to_string(),
                ms(summary.p50),
                ms(summary.p99),
                ms(summary.max),
            ]);
        }
    }
    // Writing to a String does not fail.
    let _ = writeln!(text, "{table}");
    let mut table = Table::new(
        ["condition"]
            .into_iter()
            .chain(all.iter().map(|series| series.condition.name())),
    );
    for (name, value) in FACTS {
        let values = all.iter().map(value);
        table.row(
            [name.to_owned()]
                .into_iter()
                .chain(values)
                .collect::<Vec<_>>(),
        );
    }
    let _ = writeln!(text, "{table}");
    let storm = format!("{SHELLS_PER_CPU} shells on each CPU start /bin/true one after the other");
    let notes = all
        .iter()
        .any(|series| series.condition == Condition::Storm)
        .then_some(("fork storm", storm.as_str()));
    for (name, meaning) in NOTES.into_iter().chain(notes) {
        let meaning = meaning.replace('\n', &format!("\n{:24}", ""));
        let _ = writeln!(text, "  {name:<22}{meaning}");
    }
    text.push('\n');
    for series in all.iter().filter(|series| series.host_idle < QUIET) {
        let _ = writeln!(
            text,
            "Note: before the deaths of `{}` only {:.0} % of the host was idle: something else ran on it.",
            series.condition.name(),
            series.host_idle * 100.0
        );
    }
    if let Some(verdict) = goal(all) {
        let _ = writeln!(text, "{verdict}");
    }
    text
}

/// How the containers ended, summed over the series.
fn endings(series: &Series) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for death in &series.deaths {
        let one = death.ending.strip_prefix("1 ").unwrap_or(&death.ending);
        *counts.entry(one).or_default() += 1;
    }
    let words: Vec<String> = counts
        .iter()
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    words.join(", ")
}

fn goal(all: &[Series]) -> Option<String> {
    let idle = all
        .iter()
        .find(|series| series.condition == Condition::Idle)?;
    let median = Summary::of(idle.deaths.iter().filter_map(|death| death.first_stop))?.p50;
    let word = if median < GOAL_MS { "met" } else { "missed" };
    Some(format!(
        "Goal: first stop request under {GOAL_MS} ms at the median, idle: {word} ({} ms)",
        ms(median)
    ))
}

pub(super) fn json(agent: &str, machine: &Machine, all: &[Series]) -> Value {
    let series: Vec<Value> = all.iter().map(series_json).collect();
    json!({
        "agent": agent,
        "kernel": machine.kernel,
        "cpus": machine.cpus,
        "docker": machine.docker,
        "docker_api": machine.docker_api,
        "series": series,
    })
}

fn series_json(series: &Series) -> Value {
    let Series {
        condition,
        deaths,
        lost,
        usage,
        host_idle,
        starts_per_s,
    } = series;
    let stages: serde_json::Map<String, Value> = STAGES
        .iter()
        .filter_map(|(name, value)| {
            let Summary {
                count,
                p50,
                p99,
                max,
            } = Summary::of(deaths.iter().filter_map(value))?;
            let summary = json!({ "count": count, "p50_ms": p50, "p99_ms": p99, "max_ms": max });
            Some(((*name).to_owned(), summary))
        })
        .collect();
    json!({
        "condition": condition.name(),
        "stages": stages,
        "lost_events": lost,
        "rss_kib": usage.rss_kib,
        "peak_rss_kib": usage.peak_rss_kib,
        "anonymous_kib": usage.anonymous_kib,
        "cpu_s": usage.cpu_s,
        "host_idle": host_idle,
        "process_starts_per_s": starts_per_s,
        "deaths": deaths.iter().map(Death::json).collect::<Vec<_>>(),
    })
}

/// Three digits that matter.
fn ms(ms: f64) -> String {
    if ms < 10.0 {
        format!("{ms:.2}")
    } else {
        format!("{ms:.1}")
    }
}

fn mib(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::super::usage::Usage;
    use super::*;

    fn machine() -> Machine {
        Machine {
            kernel: "6.18.0".into(),
            cpus: 2,
            docker: "20.10.24".into(),
            docker_api: "1.41".into(),
        }
    }

    fn series(condition: Condition, first_stop: f64) -> Series {
        let death = |factor: f64, ending: &str| Death {
            event: Some(0.05 * factor),
            first_stop: Some(first_stop * factor),
            confirmed: Some(40.0 * factor),
            ended: 12.5 * factor,
            ending: ending.into(),
            regular: true,
        };
        Series {
            condition,
            deaths: vec![
                death(1.0, "1 term"),
                death(1.0, "1 term"),
                death(10.0, "1 agent_kill"),
            ],
            lost: 0,
            usage: Usage {
                rss_kib: 9216,
                peak_rss_kib: 10_240,
                anonymous_kib: 2048,
                cpu_s: 0.03,
            },
            host_idle: 0.951,
            starts_per_s: (condition == Condition::Storm).then_some(1234.4),
        }
    }

    #[test]
    fn each_condition_has_each_stage() {
        let all = [series(Condition::Idle, 0.2), series(Condition::Storm, 0.9)];
        let text = render("a test", &machine(), &all);
        for (condition, stage, figures) in [
            (
                "idle",
                "exit -> first stop request",
                ["3", "0.20", "2.00", "2.00"],
            ),
            (
                "idle",
                "exit -> container ended",
                ["3", "12.5", "125.0", "125.0"],
            ),
            (
                "fork storm",
                "exit -> event in the daemon",
                ["3", "0.05", "0.50", "0.50"],
            ),
        ] {
            let line = text
                .lines()
                .find(|line| line.trim_start().starts_with(condition) && line.contains(stage))
                .unwrap_or_else(|| panic!("{condition}, {stage}: {text}"));
            let found: Vec<&str> = line.split_whitespace().rev().take(4).collect();
            assert!(found.into_iter().rev().eq(figures), "{line}");
        }
        assert!(text.contains("1 agent_kill, 2 term"), "{text}");
        assert!(text.contains("9.0 MiB"), "{text}");
        assert!(text.contains("10.0 ms"), "{text}");
        assert!(text.contains("95 %"), "{text}");
        assert!(text.contains("1234/s"), "{text}");
    }

    #[test]
    fn a_busy_host_is_pointed_out() {
        let quiet = series(Condition::Idle, 0.2);
        let busy = Series {
            host_idle: 0.31,
            ..quiet.clone()
        };
        assert!(!render("a test", &machine(), &[quiet]).contains("something else ran"));
        assert!(render("a test", &machine(), &[busy]).contains("`idle` only 31 %"));
    }

    #[test]
    fn the_goal_is_about_the_idle_median() {
        let verdict = |idle| {
            goal(&[
                series(Condition::Idle, idle),
                series(Condition::Storm, 50.0),
            ])
        };
        assert!(verdict(1.9).unwrap().contains("met (1.90 ms)"));
        assert!(verdict(2.0).unwrap().contains("missed (2.00 ms)"));
        assert_eq!(goal(&[series(Condition::Storm, 0.1)]), None);
    }

    #[test]
    fn the_file_holds_every_death() {
        let value = json("a test", &machine(), &[series(Condition::Idle, 0.2)]);
        let idle = &value["series"][0];
        assert_eq!(idle["deaths"].as_array().map(Vec::len), Some(3));
        assert_eq!(idle["stages"]["exit -> first stop request"]["p50_ms"], 0.2);
        assert_eq!(idle["process_starts_per_s"], Value::Null);
    }
}
