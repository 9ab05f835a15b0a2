//! What a latency run found, as a part of the report and as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::chart::Chart;
use super::death::{Condition, Death, Series};
use super::part::{Goal, Part};
use super::storm::SHELLS_PER_CPU;
use crate::stage::Machine;
use crate::stats::{Summary, difference_of_medians};
use crate::table::Table;

/// From the event to the first stop request, in milliseconds.
const OUR_P50: f64 = 0.06;
const OUR_P99: f64 = 0.3;
/// From the exit to the first stop request, idle.
const IDLE_P50: f64 = 0.2;
const IDLE_P99: f64 = 1.0;
/// Until SIGTERM, beside a direct request.
const BEYOND_DIRECT: f64 = 0.3;
/// Idle share of a host that does nothing but look after the executors.
const QUIET: f64 = 0.7;

/// A column of samples.
type Stage = (&'static str, fn(&Death) -> Option<f64>);

const STAGES: [Stage; 9] = [
    ("exit -> event in the daemon", |death| death.event),
    ("exit -> first stop request", |death| death.first_stop),
    ("event -> first stop request", ours),
    ("exit -> SIGTERM seen", |death| death.sigterm),
    ("first stop request -> SIGTERM seen", requested),
    ("exit -> container ended", |death| Some(death.ended)),
    ("event -> container ended", |death| {
        death.event.map(|event| death.ended - event)
    }),
    ("exit -> stop confirmed", |death| death.confirmed),
    ("exit -> host clean", |death| death.clean),
];

/// Our own part of it.
fn ours(death: &Death) -> Option<f64> {
    let (event, request) = death.event.zip(death.first_stop)?;
    Some(request - event)
}

fn requested(death: &Death) -> Option<f64> {
    let (request, sigterm) = death.first_stop.zip(death.sigterm)?;
    Some(sigterm - request)
}

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

/// Where there is such a series.
const NORMAL: (&str, &str) = (
    "normal priority",
    "priority = \"normal\"; otherwise the daemon's thread that reads the kernel's ring has \
     real-time priority, as it is by default. Its others, which talk to Docker, never have",
);

const NOTES: [(&str, &str); 8] = [
    (
        "exit",
        "the kernel's time of the executor's exit (BPF, sched_process_exit)",
    ),
    (
        "first stop request",
        "just before it goes to the HTTP client of Docker's socket",
    ),
    (
        "SIGTERM seen",
        "the kernel hands it to the container's first process (trace event signal_deliver)",
    ),
    (
        "container ended",
        "its first process is gone (pidfd); counted from our SIGKILL to the executor, \
         just before the exit; includes Docker's and the container's own time",
    ),
    (
        "stop confirmed",
        "Docker has answered the request and the inspection that follows it",
    ),
    (
        "host clean",
        "nothing of the run is left; what the agent takes for its part is in it",
    ),
    (
        "direct request",
        "the same API call, made by the benchmark on a connection that is warm already, for a \
         container like those of the pods; by turns with the deaths",
    ),
    (
        "bare loader",
        "a minimal program at the same tracepoint, a ring buffer and a blocking reader; its own \
         processes are killed, ten after ten deaths",
    ),
];

pub(super) fn part(agent: &str, machine: &Machine, all: &[Series]) -> Part {
    let mut stages = Table::new(["condition", "stage", "samples", "p50", "p99", "max"]).left([1]);
    let mut row = |series: &Series, name: &str, summary: Option<Summary>| {
        if let Some(summary) = summary {
            stages.row([
                series.condition.name().to_owned(),
                name.to_owned(),
                summary.count.to_string(),
                ms(summary.p50),
                ms(summary.p99),
                ms(summary.max),
            ]);
        }
    };
    for series in all {
        for (name, value) in STAGES {
            let summary = Summary::of(series.deaths.iter().filter_map(value));
            row(series, name, summary);
        }
        let direct = Summary::of(series.direct.iter().copied());
        row(series, "direct request -> SIGTERM seen", direct);
        let bare = Summary::of(series.bare.iter().copied());
        row(series, "bare loader: exit -> event", bare);
    }
    let mut facts = Table::new(
        ["condition"]
            .into_iter()
            .chain(all.iter().map(|series| series.condition.name())),
    );
    for (name, value) in FACTS {
        let values = all.iter().map(value);
        facts.row(
            [name.to_owned()]
                .into_iter()
                .chain(values)
                .collect::<Vec<_>>(),
        );
    }
    let storm = format!("{SHELLS_PER_CPU} shells on each CPU start /bin/true one after the other");
    let storm = all
        .iter()
        .any(|series| series.condition.is_storm())
        .then_some(("fork storm", storm.as_str()));
    let normal = all
        .iter()
        .any(|series| series.condition == Condition::StormNormalPriority)
        .then_some(NORMAL);
    let mut notes: Vec<String> = NOTES
        .into_iter()
        .chain(storm)
        .chain(normal)
        .map(|(name, meaning)| format!("*{name}*: {meaning}."))
        .collect();
    let busy = all.iter().filter(|series| series.host_idle < QUIET);
    notes.extend(busy.map(|series| {
        format!(
            "Before the deaths of `{}` only {:.0} % of the host was idle: something else ran on it.",
            series.condition.name(),
            series.host_idle * 100.0
        )
    }));
    Part {
        title: "From death to clean",
        command: "cargo xtask bench latency".to_owned(),
        method: format!(
            "Executors with pods of one container, killed one by one with SIGKILL. Agent: {agent}. \
             Linux {}, {} CPUs, Docker {} (API {}).",
            machine.kernel, machine.cpus, machine.docker, machine.docker_api
        ),
        goals: all.iter().flat_map(goals).collect(),
        tables: vec![
            ("Milliseconds".to_owned(), stages),
            ("Each condition as a whole".to_owned(), facts),
        ],
        charts: charts(all),
        notes,
    }
}

/// None for what is not the default.
fn goals(series: &Series) -> Vec<Goal> {
    if series.condition == Condition::StormNormalPriority {
        return Vec::new();
    }
    let condition = series.condition.name();
    let of = |value: fn(&Death) -> Option<f64>| -> Vec<f64> {
        series.deaths.iter().filter_map(value).collect()
    };
    let both = |what: &str, samples: Vec<f64>, p50: f64, p99: f64| {
        let summary = Summary::of(samples)?;
        Some(Goal {
            what: format!("{what}, {condition}"),
            goal: format!("p50 ≤ {p50} ms, p99 ≤ {p99} ms"),
            measured: format!("{:.3} ms, {:.3} ms", summary.p50, summary.p99),
            met: summary.p50 <= p50 && summary.p99 <= p99,
        })
    };
    let mut goals = Vec::new();
    if series.condition == Condition::Idle {
        let samples = of(|death| death.first_stop);
        let what = "exit to first stop request";
        goals.extend(both(what, samples, IDLE_P50, IDLE_P99));
    }
    let what = "event to first stop request (our part)";
    goals.extend(both(what, of(ours), OUR_P50, OUR_P99));
    if series.condition == Condition::Idle
        && let Some(beyond) = difference_of_medians(&of(requested), &series.direct)
    {
        goals.push(Goal {
            what: format!("request to SIGTERM, beyond a direct request's, median, {condition}"),
            goal: format!("≤ {BEYOND_DIRECT} ms"),
            measured: format!("{beyond:.3} ms"),
            met: beyond.value <= BEYOND_DIRECT,
        });
    }
    if series.condition == Condition::Storm {
        goals.push(Goal {
            what: format!("deaths lost, {condition}"),
            goal: "0".to_owned(),
            measured: format!("{} of {}", series.lost, series.deaths.len()),
            met: series.lost == 0,
        });
    }
    goals
}

fn charts(all: &[Series]) -> Vec<Chart> {
    let lines = all.iter().flat_map(|series| {
        let condition = series.condition.name();
        let requests = series.deaths.iter().filter_map(|death| death.first_stop);
        [
            (format!("exit to request, {condition}"), requests.collect()),
            (format!("bare loader, {condition}"), series.bare.clone()),
        ]
    });
    let lines: Vec<(String, Vec<f64>)> = lines.filter(|(_, samples)| !samples.is_empty()).collect();
    if lines.is_empty() {
        return Vec::new();
    }
    vec![Chart::Cdf {
        name: "latency",
        title: "From an executor's exit to the first stop request".to_owned(),
        x: "ms",
        series: lines,
    }]
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
        direct,
        bare,
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
        "direct_ms": direct,
        "bare_loader_ms": bare,
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
            sigterm: Some((first_stop + 0.7) * factor),
            confirmed: Some(40.0 * factor),
            clean: Some(90.0 * factor),
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
            direct: vec![0.5],
            bare: vec![0.02, 0.03],
            lost: 0,
            usage: Usage {
                rss_kib: 9216,
                peak_rss_kib: 10_240,
                anonymous_kib: 2048,
                cpu_s: 0.03,
            },
            host_idle: 0.951,
            starts_per_s: condition.is_storm().then_some(1234.4),
        }
    }

    #[test]
    fn each_condition_has_each_stage() {
        let all = [series(Condition::Idle, 0.2), series(Condition::Storm, 0.9)];
        let text = part("a test", &machine(), &all).to_string();
        for (condition, stage, figures) in [
            (
                "idle",
                "exit -> first stop request",
                ["3", "0.20", "2.00", "2.00"],
            ),
            (
                "idle",
                "first stop request -> SIGTERM seen",
                ["3", "0.70", "7.00", "7.00"],
            ),
            (
                "fork storm",
                "bare loader: exit -> event",
                ["2", "0.02", "0.03", "0.03"],
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
        let text = |series| part("a test", &machine(), &[series]).to_string();
        assert!(!text(quiet).contains("something else ran"));
        assert!(text(busy).contains("`idle` only 31 %"));
    }

    #[test]
    fn each_goal_has_its_own_figure() {
        let met =
            |series: &Series| -> Vec<bool> { goals(series).iter().map(|goal| goal.met).collect() };
        let mut idle = series(Condition::Idle, 0.1);
        // Exit to request, our part of it, and beyond a direct request: 0.7 - 0.5.
        assert_eq!(met(&idle), [true, false, true], "ours: 0.05, at p99 0.5");
        idle.deaths.truncate(2);
        assert_eq!(met(&idle), [true, true, true]);
        idle.direct = vec![0.3];
        assert_eq!(met(&idle), [true, true, false]);
        assert_eq!(
            met(&series(Condition::Idle, 0.3)),
            [false, false, true],
            "0.25 is ours"
        );
        let storm = series(Condition::Storm, 0.1);
        assert_eq!(met(&storm), [false, true]);
        let lossy = Series { lost: 1, ..storm };
        assert_eq!(met(&lossy), [false, false]);
        assert!(met(&series(Condition::StormNormalPriority, 0.1)).is_empty());
    }

    #[test]
    fn every_line_of_the_chart_has_samples() {
        let mut polled = series(Condition::Idle, 0.2);
        assert_eq!(charts(&[polled.clone()])[0].name(), "latency");
        assert!(
            part("a test", &machine(), &[polled.clone()]).charts[0]
                .svg()
                .is_ok()
        );
        for death in &mut polled.deaths {
            death.first_stop = None;
        }
        polled.bare.clear();
        assert!(charts(&[polled]).is_empty());
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
