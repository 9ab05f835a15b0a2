//! `cargo xtask bench weight`: what the daemon takes when nothing happens, and how
//! that, and the cost of a death, grow with the number of living executors.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use cleanup_tests::docker::Dockerd;
use cleanup_tests::host::ENFORCE;
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent, StandInRun};
use cleanup_tests::openmetrics::Exposition;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::Watcher;
use cleanup_tests::{bins, log, wait};
use rustix::process::Signal;

use super::chart::Chart;
use super::part::{Goal, Part, Scale, show};
use super::scrape::{self, LISTEN};
use super::usage::{Threads, Usage, forget_peak};
use crate::setup::Need;
use crate::table::Table;

/// Where memory and rest are measured.
const USUAL: usize = 100;
const DEATHS: usize = 50;
/// Launches at the same time.
const LAUNCHERS: usize = 4;
const LEARN: Duration = Duration::from_secs(600);
const CLOSE: Duration = Duration::from_secs(120);
/// At the smallest sizes each death is a round of its own.
const FEW_DEATHS: usize = 10;
/// After launches and deaths, until all that follows of them is done. The daemon is not
/// asked meanwhile: that would cost it more than they do.
const AFTER: Duration = Duration::from_millis(2_500);
/// After the launches, until the daemon is at rest.
const CALM: Duration = Duration::from_secs(15);

const GOAL_RSS_KIB: u64 = 12_000_000 / 1024;
const GOAL_PEAK_KIB: u64 = 32_000_000 / 1024;
const GOAL_SWITCHES: f64 = 0.5;
/// What counts as flat: the cost of a death at the largest size, beside that at the usual.
const GOAL_GROWTH: f64 = 2.0;

/// Measure what the daemon takes at rest, and how its costs grow
///
/// Executors of a stand-in agent, without pods: first 1, then 10 times as many, and
/// so on. At each size some of them are killed, one after the other; the daemon's
/// CPU time for each, and from its exit to the event, are the cost of a death. At
/// 100 the daemon is left alone for minutes: memory and context switches at rest.
/// Needs root.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask bench weight
  cargo xtask bench weight --most 100 --rest 60    Memory and rest only")]
pub(super) struct Args {
    /// Living executors at the most: 1, 10, 100, … up to this many
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=10_000))]
    most: u32,

    /// How long the daemon is left alone, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    rest: u64,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    show(&[Need::BpfToolchain, Need::Docker], || part(args))
}

pub(super) fn measure(scale: Scale) -> Result<Part> {
    part(&match scale {
        Scale::Quick => Args {
            most: 1_000,
            rest: 30,
        },
        Scale::Full => Args {
            most: 10_000,
            rest: 300,
        },
    })
}

fn part(args: &Args) -> Result<Part> {
    let (scratch, docker, agent) = StandInAgent::with_docker("bench-weight", CgroupLayout::V1)?;
    let most = usize::try_from(args.most)?;
    let bench = Bench::start(&scratch, &docker, &agent)?;
    let mut runs = Vec::new();
    let mut sizes = Vec::new();
    let mut rest = None;
    let mut size = 1;
    while size <= most {
        bench.grow(&agent, &mut runs, size)?;
        if size == USUAL {
            rest = Some(bench.rest(Duration::from_secs(args.rest))?);
        }
        let sized = bench.deaths(&agent, &mut runs, size)?;
        println!(
            "{size:>6} living executors: {:.0} µs of CPU a death",
            sized.cpu_us
        );
        sizes.push(sized);
        size *= 10;
    }
    let rest = rest.context("the usual size was measured")?;
    report(args, &rest, &sizes, binary_bytes()?)
}

fn binary_bytes() -> Result<u64> {
    let path = bins::find("compose-cleanup")?;
    let about = fs::metadata(&path).with_context(|| path.display().to_string())?;
    Ok(about.len())
}

struct Bench {
    watcher: Watcher,
    metrics: std::net::SocketAddr,
    start_peak_kib: u64,
}

/// At rest, with [`USUAL`] executors.
#[derive(Debug, Clone)]
struct Rest {
    usage: Usage,
    start_peak_kib: u64,
    /// A second, over so long.
    switches: f64,
    seconds: f64,
    cpu_us: f64,
}

/// With so many executors.
#[derive(Debug, Clone, PartialEq)]
struct Sized {
    living: usize,
    rss_kib: u64,
    peak_kib: u64,
    /// Of the daemon, for each death.
    cpu_us: f64,
    /// From the exit to the event, on average.
    event_us: f64,
    /// The longest that anything kept the loop, since the start.
    longest_turn_us: f64,
}

impl Bench {
    fn start(scratch: &Scratch, docker: &Dockerd, agent: &StandInAgent) -> Result<Self> {
        let options = format!("{ENFORCE}\n{LISTEN}");
        // As an operator has it: a log that is asked for every detail is not free.
        let watcher = Watcher::start_quietly(scratch, docker, &[agent.place()], &options)?;
        let pid = watcher.pid();
        let start_peak_kib = Usage::of(pid)?.peak_rss_kib;
        forget_peak(pid)?;
        Ok(Self {
            metrics: scrape::address(&watcher)?,
            watcher,
            start_peak_kib,
        })
    }

    /// Until so many live and the daemon knows all of them.
    fn grow(&self, agent: &StandInAgent, runs: &mut Vec<StandInRun>, size: usize) -> Result<()> {
        let first = runs.len();
        let turns = Mutex::new(first..size);
        let worker = || {
            let mut launched = Vec::new();
            loop {
                let turn = turns
                    .lock()
                    .map_err(|_| anyhow!("a launch panicked"))?
                    .next();
                let Some(n) = turn else { return Ok(launched) };
                ensure!(!wait::interrupted(), "interrupted");
                launched.push(agent.launch(&format!("weight-{size}-{n}"))?);
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..LAUNCHERS).map(|_| scope.spawn(worker)).collect();
            for worker in workers {
                runs.extend(worker.join().map_err(|_| anyhow!("a launch panicked"))??);
            }
            anyhow::Ok(())
        })?;
        let what = format!("{size} executors to be learnt");
        self.wait(LEARN, &what, |page| {
            Ok(page.sum("compose_cleanup_live_executors", &[])? >= size as f64)
        })?;
        // What was learnt is looked at more than once.
        wait::holds(AFTER, "calm", || true)
    }

    fn rest(&self, period: Duration) -> Result<Rest> {
        let pid = self.watcher.pid();
        wait::holds(CALM, "calm", || true)?;
        let before = Threads::of(pid)?;
        println!("{USUAL} living executors: left alone for {period:?}");
        wait::holds(period, "rest", || true)?;
        let (cpu_ns, switches) = Threads::of(pid)?.since(&before);
        let seconds = period.as_secs_f64();
        Ok(Rest {
            usage: Usage::of(pid)?,
            start_peak_kib: self.start_peak_kib,
            switches: switches as f64 / seconds,
            seconds,
            cpu_us: cpu_ns as f64 / 1e3 / seconds,
        })
    }

    /// Kills some, one after the other, each with what its agent does then.
    fn deaths(
        &self,
        agent: &StandInAgent,
        runs: &mut Vec<StandInRun>,
        size: usize,
    ) -> Result<Sized> {
        let pid = self.watcher.pid();
        let rss_kib = Usage::of(pid)?.rss_kib;
        // Few lives: each death is followed by a new life, so that it stays at that size.
        let together = size.min(DEATHS);
        let count = DEATHS.min(FEW_DEATHS * size);
        let (mut cpu_ns, mut done) = (0, 0);
        let event = |page: &Exposition, what: &str| {
            let name = format!("compose_cleanup_stage_duration_seconds_{what}");
            page.sum(&name, &[("stage", "event")])
        };
        let first = scrape::scrape(self.metrics)?;
        while done < count {
            let threads = Threads::of(pid)?;
            let dead: Vec<StandInRun> = runs.drain(runs.len() - together..).collect();
            for run in &dead {
                run.executor()?.signal(Signal::KILL)?;
                agent.destroy(run).finish()?;
            }
            wait::holds(AFTER, "calm", || true)?;
            cpu_ns += Threads::of(pid)?.since(&threads).0;
            done += together;
            let target = event(&first, "count")? + done as f64;
            let what = format!("the end of {together} cases");
            self.wait(CLOSE, &what, |page| Ok(event(page, "count")? >= target))?;
            self.grow(agent, runs, size)?;
        }
        let last = scrape::scrape(self.metrics)?;
        let grown = |what: &str| anyhow::Ok(event(&last, what)? - event(&first, what)?);
        Ok(Sized {
            living: size,
            rss_kib,
            peak_kib: Usage::of(pid)?.peak_rss_kib,
            cpu_us: cpu_ns as f64 / 1e3 / done as f64,
            event_us: grown("sum")? * 1e6 / grown("count")?,
            longest_turn_us: last.sum("compose_cleanup_loop_longest_turn_seconds", &[])? * 1e6,
        })
    }

    fn wait(
        &self,
        limit: Duration,
        what: &str,
        fits: impl Fn(&Exposition) -> Result<bool>,
    ) -> Result<()> {
        let log: &Path = self.watcher.log_path();
        wait::try_until(limit, what, || {
            Ok(fits(&scrape::scrape(self.metrics)?)?.then_some(()))
        })
        .with_context(|| log::tail(log, 30))
    }
}

fn report(args: &Args, rest: &Rest, sizes: &[Sized], binary: u64) -> Result<Part> {
    let usual = sizes.iter().find(|sized| sized.living == USUAL);
    let (usual, most) = usual.zip(sizes.last()).context("no sizes")?;
    let growth = most.cpu_us / usual.cpu_us;
    let mut at_rest = Table::new(["", "measured"]);
    for (what, value) in [
        ("resident memory", mib(rest.usage.rss_kib)),
        ("of it anonymous", mib(rest.usage.anonymous_kib)),
        ("peak, at the start", mib(rest.start_peak_kib)),
        ("peak since, at rest", mib(rest.usage.peak_rss_kib)),
        (
            "context switches, all threads",
            format!("{:.2}/s", rest.switches),
        ),
        ("CPU time", format!("{:.0} µs/s", rest.cpu_us)),
        ("the program's file", mib(binary / 1024)),
    ] {
        at_rest.row([what.to_owned(), value]);
    }
    let mut growing = Table::new([
        "living executors",
        "CPU a death, µs",
        "exit to event, µs",
        "memory before",
        "peak so far",
        "longest turn, µs",
    ]);
    for sized in sizes {
        growing.row([
            sized.living.to_string(),
            format!("{:.0}", sized.cpu_us),
            format!("{:.0}", sized.event_us),
            mib(sized.rss_kib),
            mib(sized.peak_kib),
            format!("{:.0}", sized.longest_turn_us),
        ]);
    }
    let line = |value: fn(&Sized) -> f64| -> Vec<(f64, f64)> {
        sizes
            .iter()
            .map(|sized| (sized.living as f64, value(sized)))
            .collect()
    };
    let peak = rest.start_peak_kib.max(usual.peak_kib);
    Ok(Part {
        title: "Weight",
        command: "cargo xtask bench weight".to_owned(),
        method: format!(
            "Executors of a stand-in agent, without pods. *At rest*: {USUAL} of them live, and nothing \
             happens for {:.0} s; the daemon's log is at `info`, its journal is on. *Growth*: \
             {DEATHS} of 1 to {} are killed, one after the other ({FEW_DEATHS} of one); the CPU time is \
             that of all the daemon's threads, from the exit to the closed case, two looks at its \
             losses included.",
            rest.seconds, args.most
        ),
        goals: vec![
            Goal {
                what: format!("resident memory, {USUAL} living executors at rest"),
                goal: format!("≤ {}", mib(GOAL_RSS_KIB)),
                measured: mib(rest.usage.rss_kib),
                met: rest.usage.rss_kib <= GOAL_RSS_KIB,
            },
            Goal {
                what: format!("peak of it, start and {DEATHS} deaths included"),
                goal: format!("≤ {}", mib(GOAL_PEAK_KIB)),
                measured: mib(peak),
                met: peak <= GOAL_PEAK_KIB,
            },
            Goal {
                what: "context switches at rest".to_owned(),
                goal: format!("< {GOAL_SWITCHES}/s"),
                measured: format!("{:.2}/s", rest.switches),
                met: rest.switches < GOAL_SWITCHES,
            },
            Goal {
                what: format!("CPU of a death, {} living beside {USUAL}", most.living),
                goal: format!("≤ {GOAL_GROWTH} ×"),
                measured: format!("{growth:.2} ×"),
                met: growth <= GOAL_GROWTH,
            },
        ],
        tables: vec![
            (format!("At rest, {USUAL} living executors"), at_rest),
            ("Growth".to_owned(), growing),
        ],
        charts: vec![Chart::Lines {
            name: "growth",
            title: "Cost of a death by the number of living executors".to_owned(),
            x: "living executors",
            y: "µs",
            series: vec![
                (
                    "CPU time of the daemon".to_owned(),
                    line(|sized| sized.cpu_us),
                ),
                ("exit to event".to_owned(), line(|sized| sized.event_us)),
            ],
        }],
        notes: vec![
            "Megabytes of the goals are 10⁶ bytes: 12 MB are 11.4 MiB, 32 MB are 30.5 MiB."
                .to_owned(),
        ],
    })
}

fn mib(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sized(living: usize, cpu_us: f64) -> Sized {
        Sized {
            living,
            rss_kib: 9_000,
            peak_kib: 10_000,
            cpu_us,
            event_us: 80.0,
            longest_turn_us: 300.0,
        }
    }

    fn goals(rss_kib: u64, peak_kib: u64, switches: f64, most_us: f64) -> Vec<bool> {
        let rest = Rest {
            usage: Usage {
                rss_kib,
                peak_rss_kib: 9_500,
                anonymous_kib: 2_000,
                cpu_s: 0.0,
            },
            start_peak_kib: peak_kib,
            switches,
            seconds: 300.0,
            cpu_us: 12.0,
        };
        let args = Args {
            most: 1_000,
            rest: 300,
        };
        let sizes = [sized(1, 500.0), sized(100, 400.0), sized(1_000, most_us)];
        let part = report(&args, &rest, &sizes, 8 << 20).unwrap();
        assert!(part.to_string().contains("8.0 MiB"), "{part}");
        part.goals.iter().map(|goal| goal.met).collect()
    }

    #[test]
    fn each_goal_has_its_own_figure() {
        assert_eq!(goals(11_000, 31_000, 0.4, 790.0), [true; 4]);
        assert_eq!(goals(12_000, 31_000, 0.4, 790.0), [false, true, true, true]);
        assert_eq!(goals(11_000, 32_000, 0.4, 790.0), [true, false, true, true]);
        assert_eq!(goals(11_000, 31_000, 0.5, 790.0), [true, true, false, true]);
        assert_eq!(goals(11_000, 31_000, 0.4, 810.0), [true, true, true, false]);
    }
}
