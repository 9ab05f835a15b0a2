//! `cargo xtask bench loss`: whether an executor's end can get lost in a storm of others.

use std::fs;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cleanup_tests::host::ENFORCE;
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent, StandInRun};
use cleanup_tests::openmetrics::Exposition;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::Watcher;
use cleanup_tests::{bins, command, random, wait};
use rustix::process::Signal;

use super::part::{Goal, Part, Scale, show};
use super::scrape::{self, LISTEN};
use super::storm::{SHELLS_PER_CPU, Storm};
use crate::setup::Need;
use crate::table::Table;

/// Containers in which processes end side by side.
const CONTAINERS: u32 = 4;
/// A process that starts the others, and one of those, in each.
const FEWEST: i64 = 2 * CONTAINERS as i64;
/// As many ends as the goal is about.
const ENOUGH: u64 = 10_000;
const PLAY: Duration = Duration::from_mins(15);
const LEARN: Duration = Duration::from_mins(5);
/// For the daemon to take what the kernel has handed over.
const TAKE: Duration = Duration::from_secs(30);
const CLOSE: Duration = Duration::from_mins(5);
/// What was learnt is looked at more than once; and losses are read every five seconds at rest.
const CALM: Duration = Duration::from_secs(6);

/// Measure whether executors' ends get lost in a storm of other exits
///
/// While shells on every CPU start programs as fast as they can, processes end in
/// containers' cgroups beneath the agent's root, each of which the kernel has to
/// report and the daemon to take; and executors that the daemon knows are killed one
/// right after the other, each of which it has to find dead. Every one is counted on
/// both sides, and so is what the kernel says that it lost. Cgroups, daemon and
/// Docker are real, the agent is a stand-in, and the executors have no containers.
/// Needs root.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask bench loss
  cargo xtask bench loss --ends 100000 --executors 500
  cargo xtask bench loss --ends 1000 --executors 20       Some seconds: does it work here?")]
pub(super) struct Args {
    /// Processes that end in containers' cgroups
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(FEWEST..=10_000_000))]
    ends: u32,

    /// Executors that the daemon knows, killed one right after the other
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    executors: u32,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    show(&[Need::BpfToolchain, Need::Docker], || count(args))
}

pub(super) fn measure(scale: Scale) -> Result<Part> {
    let (ends, executors) = match scale {
        Scale::Quick => (1_000, 20),
        Scale::Full => (10_000, 200),
    };
    count(&Args { ends, executors })
}

/// What was made, and what the daemon says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counts {
    /// Ends in cgroups of nobody's.
    ends: u64,
    /// Killed. Each has a helper, which ends after it.
    executors: u64,
    /// Reports of the kernel that the daemon took.
    taken: u64,
    /// Executors found dead, by who noticed first.
    dead: Vec<(&'static str, u64)>,
    /// Exits that the kernel, or the reader, had to give up.
    lost: u64,
}

impl Counts {
    /// What the kernel has to report.
    fn reportable(&self) -> u64 {
        self.ends + 2 * self.executors
    }

    fn found(&self) -> u64 {
        self.dead.iter().map(|(_, count)| count).sum()
    }
}

/// How fast it was.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Ends in the cgroups, a second.
    ends: f64,
    /// Processes that anybody started, a second.
    started: f64,
}

/// Who may notice, as the metrics have it.
const ORIGINS: [&str; 3] = ["kernel", "pidfd", "scan"];

fn taken(page: &Exposition) -> Result<u64> {
    Ok(page.sum("compose_cleanup_events_received_total", &[])? as u64)
}

fn dead(page: &Exposition) -> Result<Vec<(&'static str, u64)>> {
    let of = |origin| {
        let count = page.sum("compose_cleanup_cases_total", &[("origin", origin)])?;
        Ok((origin, count as u64))
    };
    ORIGINS.into_iter().map(of).collect()
}

fn count(args: &Args) -> Result<Part> {
    let &Args { ends, executors } = args;
    let layout = CgroupLayout::of_this_host()?;
    let (scratch, docker, agent) = StandInAgent::with_docker("bench-loss", layout)?;
    let options = format!("{ENFORCE}\n{LISTEN}");
    // As an operator has it: a log that is asked for every detail is not free.
    let watcher = Watcher::start_quietly(&scratch, &docker, &[agent.place()], &options)?;
    let metrics = scrape::address(&watcher)?;
    println!("{executors} executors");
    let runs = (0..executors)
        .map(|n| {
            ensure!(!wait::interrupted(), "interrupted");
            agent.launch(&format!("bench-{n}"))
        })
        .collect::<Result<Vec<_>>>()?;
    until(LEARN, "the executors to be learnt", metrics, |page| {
        let live = page.sum("compose_cleanup_live_executors", &[])?;
        Ok(live >= f64::from(executors))
    })?;
    wait::holds(CALM, "calm", || true)?;
    let before = scrape::scrape(metrics)?;

    println!("{ends} ends in a storm");
    let storm = Storm::begin(&scratch)?;
    let begin = Instant::now();
    thread::scope(|scope| {
        let players: Vec<_> = shares(ends)
            .map(|share| {
                let (scratch, agent) = (&scratch, &agent);
                scope.spawn(move || play(scratch, agent, share))
            })
            .collect();
        let killed = kill(&runs);
        for player in players {
            player.join().map_err(|_| anyhow!("a player panicked"))??;
        }
        killed
    })?;
    let took = begin.elapsed().as_secs_f64();
    let (started, seconds) = storm.so_far()?;
    let pace = Pace {
        ends: f64::from(ends) / took,
        started: started as f64 / seconds,
    };
    drop(storm);

    let mut counts = Counts {
        ends: ends.into(),
        executors: executors.into(),
        taken: 0,
        dead: Vec::new(),
        lost: 0,
    };
    let reported = taken(&before)? + counts.reportable();
    // In vain if something was lost: what came is then counted all the same.
    let _ = until(TAKE, "all reports", metrics, |page| {
        Ok(taken(page)? >= reported)
    });
    for run in &runs {
        agent.destroy(run).finish()?;
    }
    let known = counts.executors;
    let _ = until(CLOSE, "all cases", metrics, |page| {
        Ok(dead(page)?.iter().map(|(_, count)| count).sum::<u64>() >= known)
    });
    wait::holds(CALM, "calm", || true)?;
    let after = scrape::scrape(metrics)?;
    counts.taken = taken(&after)?.saturating_sub(taken(&before)?);
    counts.dead = dead(&after)?;
    counts.lost = after.sum("compose_cleanup_events_lost_total", &[])? as u64;
    ensure!(watcher.stop()?.success(), "the daemon failed");
    Ok(report(&counts, pace))
}

/// How many ends in each container.
fn shares(ends: u32) -> impl Iterator<Item = u32> {
    (0..CONTAINERS).map(move |n| ends / CONTAINERS + u32::from(n < ends % CONTAINERS))
}

/// So many processes that end in a container of their own: one starts the others, one after the
/// other, and ends last.
fn play(scratch: &Scratch, agent: &StandInAgent, share: u32) -> Result<()> {
    let cgroup = agent.layout().seat(&random::uuid()?);
    fs::create_dir_all(&cgroup).with_context(|| cgroup.display().to_string())?;
    let mut case = scratch.command(bins::find("exit-case")?);
    case.arg("--in").arg(&cgroup);
    case.args(["monitor", &(share - 1).to_string()]);
    // The scratch removes the cgroup.
    command::output(&mut case, PLAY).map(drop)
}

fn kill(runs: &[StandInRun]) -> Result<()> {
    for run in runs {
        ensure!(!wait::interrupted(), "interrupted");
        run.executor()?.signal(Signal::KILL)?;
    }
    Ok(())
}

fn until(
    limit: Duration,
    what: &str,
    metrics: SocketAddr,
    fits: impl Fn(&Exposition) -> Result<bool>,
) -> Result<()> {
    wait::try_until(limit, what, || {
        Ok(fits(&scrape::scrape(metrics)?)?.then_some(()))
    })
}

fn report(counts: &Counts, pace: Pace) -> Part {
    let Counts {
        ends,
        executors,
        taken,
        dead,
        lost,
    } = counts;
    let (made, found) = (counts.reportable(), counts.found());
    let mut table = Table::new(["", "made", "counted by the daemon"]);
    for (what, made, told) in [
        ("ends that the kernel has to report", made, *taken),
        ("executors killed, and found dead", *executors, found),
    ] {
        table.row([what.to_owned(), made.to_string(), told.to_string()]);
    }
    let by_origin: Vec<String> = dead
        .iter()
        .map(|(origin, count)| format!("{count} by `{origin}`"))
        .collect();
    // Once too often is no loss, and could hide one.
    let differ = |made: u64, told: u64| match made.cmp(&told) {
        std::cmp::Ordering::Less => format!("{} too many of {made}", told - made),
        _ => format!("{} of {made}", made - told),
    };
    Part {
        title: "Loss in a storm",
        command: "cargo xtask bench loss".to_owned(),
        method: format!(
            "{SHELLS_PER_CPU} shells on each CPU start `/bin/true` as fast as they can. Meanwhile \
             {ends} processes end in {CONTAINERS} containers' cgroups beneath the agent's root, and \
             {executors} executors that the daemon knows are killed one right after the other; the \
             helper of each ends after it, and is to be reported, too. The cgroups, the daemon and \
             Docker are real; the agent is a stand-in, and the executors have no containers."
        ),
        goals: vec![
            Goal {
                what:
                    "ends beneath the root that did not reach the daemon, in a storm on all cores"
                        .to_owned(),
                goal: "0 of ≥ 10,000".to_owned(),
                measured: differ(made, *taken) + if made < ENOUGH { ": too few" } else { "" },
                met: made == *taken && made >= ENOUGH,
            },
            Goal {
                what: "executors that were killed in it and not found dead".to_owned(),
                goal: "0".to_owned(),
                measured: differ(*executors, found),
                met: *executors == found,
            },
            Goal {
                what: "exits that the kernel's program or the ring's reader gave up".to_owned(),
                goal: "0".to_owned(),
                measured: lost.to_string(),
                met: *lost == 0,
            },
        ],
        tables: vec![("Ends".to_owned(), table)],
        charts: Vec::new(),
        notes: vec![
            format!(
                "{:.0} ends a second beneath the root, and {:.0} processes a second that anybody on \
                 the host started.",
                pace.ends, pace.started
            ),
            format!(
                "Who noticed an executor's death first: {}. `pidfd` is the daemon's second signal, \
                 that of the helper's end; it may be faster than the ring. `scan` is neither: the \
                 survey that finds what was missed.",
                by_origin.join(", ")
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Counts {
        Counts {
            ends: 10_000,
            executors: 200,
            taken: 10_400,
            dead: vec![("kernel", 190), ("pidfd", 9), ("scan", 1)],
            lost: 0,
        }
    }

    fn verdicts(counts: &Counts) -> Vec<(String, bool)> {
        let pace = Pace {
            ends: 900.0,
            started: 2_000.0,
        };
        let goals = report(counts, pace).goals.into_iter();
        goals.map(|goal| (goal.measured, goal.met)).collect()
    }

    #[test]
    fn whatever_is_missing_is_a_loss_of_its_own() {
        let verdict = |measured: &str, met| (measured.to_owned(), met);
        let well = [
            verdict("0 of 10400", true),
            verdict("0 of 200", true),
            verdict("0", true),
        ];
        assert_eq!(verdicts(&all()), well);
        for (at, counts, measured) in [
            (
                0,
                Counts {
                    taken: 10_399,
                    ..all()
                },
                "1 of 10400",
            ),
            (
                0,
                Counts {
                    taken: 10_401,
                    ..all()
                },
                "1 too many of 10400",
            ),
            (
                1,
                Counts {
                    dead: vec![("kernel", 198)],
                    ..all()
                },
                "2 of 200",
            ),
            (2, Counts { lost: 3, ..all() }, "3"),
        ] {
            let mut expected = well.clone();
            expected[at] = verdict(measured, false);
            assert_eq!(verdicts(&counts), expected);
        }
    }

    #[test]
    fn too_few_do_not_meet_the_goal() {
        let few = Counts {
            ends: 900,
            taken: 1_300,
            ..all()
        };
        assert_eq!(verdicts(&few)[0], ("0 of 1300: too few".to_owned(), false));
    }

    #[test]
    fn every_end_is_in_one_share_and_none_is_empty() {
        for ends in [8, 9, 11, 10_000] {
            assert_eq!(shares(ends).sum::<u32>(), ends);
            assert!(shares(ends).all(|share| share >= 2), "{ends}");
        }
    }
}
