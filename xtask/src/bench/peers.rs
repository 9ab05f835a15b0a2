//! `cargo xtask bench peers`: what the daemon costs per exit, beside other programs that listen to
//! exits.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cleanup_tests::bpf::{Program, Statistics};
use cleanup_tests::docker::Dockerd;
use cleanup_tests::host::ENFORCE;
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent};
use cleanup_tests::random::Random;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::Watcher;
use cleanup_tests::{bins, command, wait};

use super::chart::Chart;
use super::listeners::{self, Kind, LeftOut, Listener, ensure_heard};
use super::part::{Goal, Part, Scale, show};
use super::scrape::{self, LISTEN};
use super::storm::processes_started;
use super::usage::Threads;
use crate::setup::Need;
use crate::stats::{Estimate, Summary, difference_of_medians, ratio_of_medians};
use crate::table::Table;

const OURS: &str = "compose-cleanup";
const LOAD: Duration = Duration::from_secs(300);
/// For a listener to deal with what came last.
const CALM: Duration = Duration::from_millis(300);
/// bpftrace takes its time to let go of the kernel.
const STOP: Duration = Duration::from_secs(60);
/// After its start the daemon looks at everything again, two seconds later.
const AT_REST: Duration = Duration::from_secs(5);
/// The cheapest other costs so many times as much.
const GOAL: f64 = 20.0;

/// Measure what the daemon costs per exit, beside other programs that listen to exits
///
/// The same load in turns, one listener at a time: short commands that are no
/// executors. Counted is the kernel's time for a listener's BPF programs (BPF
/// statistics, on for as long as this runs) and its own CPU time, per exit; and
/// whether the daemon was woken up at all.
///
/// The others come from Debian: bpftrace, forkstat and libbpf-tools are installed
/// where they are missing (apt-get install), and stay. What cannot be installed or
/// does not run here is named in the report. Needs root.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask bench peers
  cargo xtask bench peers --quick               A minute: does it work here?")]
pub(super) struct Args {
    /// Fewer rounds, with fewer exits
    #[arg(long)]
    quick: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    show(&[Need::BpfToolchain, Need::Docker], || {
        measure(Scale::of(args.quick))
    })
}

/// Nanoseconds per exit, of one turn.
#[derive(Debug, Clone, Copy)]
struct Cost {
    kernel: f64,
    user: f64,
}

impl Cost {
    fn total(self) -> f64 {
        self.kernel + self.user
    }
}

/// All turns of a listener.
#[derive(Debug)]
struct Series {
    name: &'static str,
    costs: Vec<Cost>,
}

impl Series {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            costs: Vec::new(),
        }
    }

    fn median(&self, of: fn(Cost) -> f64) -> Result<f64> {
        let costs = self.costs.iter().copied().map(of);
        Ok(Summary::of(costs).context(self.name)?.p50)
    }

    fn totals(&self) -> Vec<f64> {
        self.costs.iter().map(|cost| cost.total()).collect()
    }
}

/// What the daemon had to do with exits that are not its own.
#[derive(Debug, Default)]
struct Wakeups {
    /// Context switches of its threads in each turn, and in as long a time without the load.
    loaded: Vec<f64>,
    idle: Vec<f64>,
    exits: u64,
    /// What its program handed over of them.
    records: u64,
    runs: u64,
}

/// What a window of the load took.
struct Window {
    cost: Cost,
    exits: u64,
    runs: u64,
    took: Duration,
    switches: u64,
}

/// In the order in which they are removed.
struct Bed {
    agent: StandInAgent,
    docker: Dockerd,
    scratch: Scratch,
    exits: u32,
}

pub(super) fn measure(scale: Scale) -> Result<Part> {
    let (rounds, exits) = match scale {
        Scale::Quick => (2, 500),
        Scale::Full => (8, 3_000),
    };
    let (others, mut left_out) = listeners::find()?;
    let layout = CgroupLayout::of_this_host()?;
    let (scratch, docker, agent) = StandInAgent::with_docker("bench-peers", layout)?;
    let bed = Bed {
        agent,
        docker,
        scratch,
        exits,
    };
    // As on a host at work: from an executor's helper the daemon knows the agent's process, and need
    // not look for it among all there are.
    let _living = bed.agent.launch("bench-peers")?;
    let mut ours = Series::new(OURS);
    let mut theirs: Vec<Series> = others.iter().map(|one| Series::new(one.name)).collect();
    let mut wakeups = Wakeups::default();
    let mut random = Random::new(std::process::id().into());
    let _counted = Statistics::enable()?;
    for round in 1..=rounds {
        // `None`: ours.
        let mut order: Vec<_> = (0..others.len()).map(Some).chain([None]).collect();
        while !order.is_empty() {
            let at = usize::try_from(random.below(order.len() as u64))?;
            let Some(at) = order.swap_remove(at) else {
                println!("round {round} of {rounds}: {OURS}");
                ours.costs.push(bed.ours(&mut wakeups).context(OURS)?);
                continue;
            };
            let other = &others[at];
            if left_out.iter().any(|(name, _)| *name == other.name) {
                continue;
            }
            println!("round {round} of {rounds}: {}", other.name);
            match bed.other(other) {
                Ok(cost) => theirs[at].costs.push(cost),
                Err(error) if wait::interrupted() => return Err(error),
                // An old package on a new kernel may well not run.
                Err(error) => {
                    eprintln!("{} is left out: {error:#}", other.name);
                    left_out.push((other.name, format!("{error:#}")));
                }
            }
        }
    }
    theirs.retain(|series| left_out.iter().all(|(name, _)| *name != series.name));
    report(&ours, &theirs, &wakeups, &left_out, rounds, exits)
}

impl Bed {
    fn ours(&self, wakeups: &mut Wakeups) -> Result<Cost> {
        let options = format!("{ENFORCE}\n{LISTEN}");
        // As an operator has it: a log that is asked for every detail is not free.
        let daemon =
            Watcher::start_quietly(&self.scratch, &self.docker, &[self.agent.place()], &options)?;
        let metrics = scrape::address(&daemon)?;
        let records = || -> Result<u64> {
            let page = scrape::scrape(metrics)?;
            Ok(page.sum("compose_cleanup_events_received_total", &[])? as u64)
        };
        let before = records()?;
        wait::holds(AT_REST, "calm", || true)?;
        let window = self.window(daemon.pid())?;
        let idle = Threads::of(daemon.pid())?;
        wait::holds(window.took, "as long without the load", || true)?;
        let (_, switches) = Threads::of(daemon.pid())?.since(&idle);
        wakeups.loaded.push(window.switches as f64);
        wakeups.idle.push(switches as f64);
        wakeups.exits += window.exits;
        wakeups.runs += window.runs;
        wakeups.records += records()?.saturating_sub(before);
        ensure!(daemon.stop()?.success(), "the daemon failed");
        ensure_heard(OURS, window.runs, self.exits.into())?;
        Ok(window.cost)
    }

    fn other(&self, listener: &Listener) -> Result<Cost> {
        let mut service = listener.start(&self.scratch, || self.play(20))?;
        wait::holds(CALM, "calm", || true)?;
        let window = self.window(service.pid())?;
        ensure!(service.ended().is_none(), "it ended");
        service.stop(STOP)?;
        if listener.kind == Kind::Bpf {
            ensure_heard(listener.name, window.runs, self.exits.into())?;
        }
        Ok(window.cost)
    }

    /// The load, and what it costs a process that listens.
    fn window(&self, pid: i32) -> Result<Window> {
        let look = || -> Result<(u64, u64)> {
            let programs = Program::of(pid)?;
            let sum = |of: fn(&Program) -> u64| programs.iter().map(of).sum::<u64>();
            Ok((sum(|program| program.run_ns), sum(|program| program.runs)))
        };
        let begin = Instant::now();
        let (before, threads, started) = (look()?, Threads::of(pid)?, processes_started()?);
        self.play(self.exits)?;
        wait::holds(CALM, "calm", || true)?;
        let (cpu_ns, switches) = Threads::of(pid)?.since(&threads);
        let (after, exits) = (look()?, processes_started()?.saturating_sub(started));
        ensure!(exits >= u64::from(self.exits), "{exits} exits");
        let each = |ns: u64| ns as f64 / exits as f64;
        Ok(Window {
            cost: Cost {
                kernel: each(after.0.saturating_sub(before.0)),
                user: each(cpu_ns),
            },
            exits,
            runs: after.1.saturating_sub(before.1),
            took: begin.elapsed(),
            switches,
        })
    }

    fn play(&self, count: u32) -> Result<()> {
        let mut case = self.scratch.command(bins::find("exit-case")?);
        case.args(["monitor", &count.to_string()]);
        command::output(&mut case, LOAD).map(drop)
    }
}

fn report(
    ours: &Series,
    others: &[Series],
    wakeups: &Wakeups,
    left_out: &[LeftOut],
    rounds: u32,
    exits: u32,
) -> Result<Part> {
    let headings = [
        "listener",
        "BPF, ns",
        "its CPU time, ns",
        "both, ns",
        "times ours (95 % interval)",
    ];
    let mut table = Table::new(headings);
    let mut bars = Vec::new();
    let mut cheapest = None::<(&str, Estimate)>;
    for series in [ours].into_iter().chain(others) {
        let total = series.median(Cost::total)?;
        let ratio = ratio_of_medians(&series.totals(), &ours.totals());
        let ratio = ratio.context("ours costs nothing")?;
        let is_ours = series.name == OURS;
        table.row([
            series.name.to_owned(),
            format!("{:.0}", series.median(|cost| cost.kernel)?),
            format!("{:.0}", series.median(|cost| cost.user)?),
            format!("{total:.0}"),
            if is_ours {
                "1".to_owned()
            } else {
                format!("{ratio:.1}")
            },
        ]);
        bars.push((series.name.to_owned(), total));
        if !is_ours && cheapest.is_none_or(|(_, least)| ratio.value < least.value) {
            cheapest = Some((series.name, ratio));
        }
    }
    let Wakeups {
        loaded,
        idle,
        exits: heard,
        records,
        runs,
    } = wakeups;
    let more = difference_of_medians(loaded, idle).context("no wakeups")?;
    let mut goals = vec![Goal {
        what: "wakeups of the daemon for exits that are no executor's".to_owned(),
        goal: "0".to_owned(),
        measured: format!(
            "{records} records of {heard} exits reached it; {more:.0} more context switches in a \
             turn than in as long without them"
        ),
        // Its threads wake up by the clock, too: once more or less is chance.
        met: *records == 0 && more.low <= 1.0,
    }];
    let mut notes = Vec::new();
    if let Some((cheapest, ratio)) = cheapest {
        goals.insert(
            0,
            Goal {
                what: format!("cost per exit: the cheapest other ({cheapest}) / ours"),
                goal: format!("≥ {GOAL} ×"),
                measured: format!("{ratio:.1} ×"),
                met: ratio.value >= GOAL,
            },
        );
    } else {
        notes.push("No other listener ran here: nothing was compared.".to_owned());
    }
    notes.extend(left_out.iter().map(|(name, why)| {
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("**{name} is left out:** {why}")
    }));
    notes.extend([
        format!(
            "Exits are counted as the processes and threads that the kernel started meanwhile \
             (`processes` in /proc/stat), by whomever on the host. Our own program, which runs once \
             for each exit, ran {runs} times while {heard} were started."
        ),
        "In favour of the others: what the kernel does to bring an exit to a netlink socket or into \
         a buffer of theirs outside their BPF programs is in no figure. Against ours: what the \
         daemon does by the clock is in its figure."
            .to_owned(),
        "They do not do the same. The others tell of every exit, as they are made for; ours decides \
         in the kernel that an exit is no executor's, and tells nobody. This is what a host pays \
         whose exits are mostly not ours."
            .to_owned(),
        "bcc's exitsnoop compiles itself against the kernel's headers, which this benchmark does not \
         install: it is left out. `proc connector, the least` is a program of our own that asks for \
         exits only, and counts them."
            .to_owned(),
    ]);
    Ok(Part {
        title: "Beside other listeners",
        command: "cargo xtask bench peers".to_owned(),
        method: format!(
            "{exits} short commands one after the other, none of them an executor, {rounds} times \
             for each listener; one listener at a time, in a random order. One executor lives \
             meanwhile. Counted is, per exit, the time of the listener's BPF programs \
             (`kernel.bpf_stats_enabled`) and the CPU time of its threads. The others write to a \
             file, each as it does by default."
        ),
        goals,
        tables: vec![("Nanoseconds per exit, median".to_owned(), table)],
        charts: vec![Chart::Bars {
            name: "peers-ns",
            title: "Cost of an exit that is no executor's, by listener".to_owned(),
            y: "ns",
            bars,
            log: true,
        }],
        notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &'static str, total: f64) -> Series {
        let half = Cost {
            kernel: total / 2.0,
            user: total / 2.0,
        };
        Series {
            name,
            costs: vec![half; 4],
        }
    }

    fn part(others: &[(&'static str, f64)], loaded: f64, records: u64) -> Part {
        let wakeups = Wakeups {
            loaded: vec![loaded; 3],
            idle: vec![5.0; 3],
            exits: 900,
            records,
            runs: 901,
        };
        let others: Vec<Series> = others.iter().map(|&(name, ns)| series(name, ns)).collect();
        let gone = [("gone", "it\n  ended".to_owned())];
        report(&series(OURS, 100.0), &others, &wakeups, &gone, 4, 300).unwrap()
    }

    fn met(part: &Part) -> Vec<bool> {
        part.goals.iter().map(|goal| goal.met).collect()
    }

    #[test]
    fn the_goal_is_about_the_cheapest_other() {
        let both = part(&[("a", 9_000.0), ("b", 2_000.0)], 5.0, 0);
        assert_eq!(met(&both), [true, true]);
        assert!(both.goals[0].what.contains("(b)"), "{both}");
        assert_eq!(met(&part(&[("a", 1_999.0)], 5.0, 0)), [false, true]);
    }

    #[test]
    fn a_record_and_a_wakeup_are_both_too_much() {
        assert_eq!(met(&part(&[], 6.0, 0)), [true]);
        assert_eq!(met(&part(&[], 7.0, 0)), [false]);
        assert_eq!(met(&part(&[], 5.0, 1)), [false]);
    }

    #[test]
    fn who_is_missing_is_named() {
        let text = part(&[], 5.0, 0).to_string();
        assert!(text.contains("gone is left out:** it ended"), "{text}");
        assert!(text.contains("nothing was compared"), "{text}");
    }
}
