//! `cargo xtask bench mass`: many executors die at once, and what that takes the
//! daemon, beside the C++ hook's steps.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cleanup_tests::docker::api::NewContainer;
use cleanup_tests::docker::{Dockerd, OBEDIENT};
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent, StandInRun};
use cleanup_tests::openmetrics::Exposition;
use cleanup_tests::process::Process;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::Watcher;
use cleanup_tests::{command, log, wait};
use rustix::process::Signal;

use super::chart::Chart;
use super::direct::Direct;
use super::part::{Goal, Part, Scale, show};
use super::scrape::{self, LISTEN};
use super::usage::{Usage, forget_peak};
use crate::setup::Need;
use crate::stats::{Summary, ratio_of_medians};
use crate::table::Table;
use crate::witness::Witness;

/// The whole pod of one executor.
const CONTAINERS: usize = 3;
/// Launches at the same time.
const LAUNCHERS: usize = 4;
/// For everything, by either way.
const LIMIT: Duration = Duration::from_secs(1800);
/// How closely the cgroups are looked at. They are a thousand.
const LOOK: Duration = Duration::from_millis(10);
/// After the launches.
const CALM: Duration = Duration::from_secs(5);

/// Both take down everything that is the dead run's, and the agent has no part in it.
const OPTIONS: &str =
    "mode = \"enforce\"\ngrace = \"10s\"\nsettle = \"100ms\"\nteardown = \"immediate\"";

/// What the C++ hook runs for one executor, in its order: list, stop, inspect until one
/// tells its parent, list the cgroups, delete those beneath it.
const HOOK: &str = r#"
ids=$(docker ps -a --filter="label=executorId=$1" -q 2>&1)
[ -n "$ids" ] || exit 0
docker stop $ids
for id in $ids; do
    parent=$(docker inspect --format '{{.HostConfig.CgroupParent}}' "$id")
    [ -n "$parent" ] && break
done
groups=$(lscgroup | grep "$parent")
[ -z "$groups" ] || cgdelete $groups
"#;

const GOAL_RATIO: f64 = 10.0;
const GOAL_TURN_MS: f64 = 10.0;
const GOAL_RSS_KIB: u64 = 12_000_000 / 1024;
const GOAL_PEAK_KIB: u64 = 32_000_000 / 1024;

/// Measure the death of many executors at once
///
/// All executors of a stand-in agent are killed in one moment. Measured is how long
/// it takes until their containers have ended and their cgroups are gone: by the
/// daemon, and by the steps of the C++ hook, which an agent runs for one executor
/// after the other. They take turns, and a third is Docker's alone: the containers are
/// asked to stop, and nothing else is done. The hook's steps begin at the deaths, though a
/// real agent calls the hook much later. Installs cgroup-tools. Needs root.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask bench mass
  cargo xtask bench mass --executors 10 --rounds 1")]
pub(super) struct Args {
    /// Executors that die at once, with 3 containers each
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    executors: u32,

    /// How often, by each way
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    show(
        &[Need::BpfToolchain, Need::Docker, Need::CgroupTools],
        || part(args),
    )
}

pub(super) fn measure(scale: Scale) -> Result<Part> {
    part(&match scale {
        Scale::Quick => Args {
            executors: 10,
            rounds: 1,
        },
        Scale::Full => Args {
            executors: 100,
            rounds: 3,
        },
    })
}

fn part(args: &Args) -> Result<Part> {
    let (scratch, docker, agent) = StandInAgent::with_docker("bench-mass", CgroupLayout::V1)?;
    let bench = Bench {
        scratch,
        docker,
        agent,
        executors: usize::try_from(args.executors)?,
    };
    let (mut ours, mut hook, mut docker) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let one = bench.by_daemon(round).context("the daemon's turn")?;
        println!("round {round}: the daemon took {:.2} s", one.end.clean_s);
        ours.push(one);
        let one = bench.by_hook(round).context("the hook's turn")?;
        println!("round {round}: the hook's steps took {:.2} s", one.clean_s);
        hook.push(one);
        let one = bench.by_docker(round).context("Docker's turn")?;
        println!("round {round}: Docker alone took {:.2} s", one.clean_s);
        docker.push(one);
    }
    report(args, &ours, &hook, &docker)
}

struct Bench {
    agent: StandInAgent,
    docker: Dockerd,
    scratch: Scratch,
    executors: usize,
}

/// Seconds after the deaths.
#[derive(Debug, Clone, PartialEq)]
struct End {
    /// The last container's first process was gone.
    stopped_s: f64,
    /// So was the last cgroup, or whoever removes them was done.
    clean_s: f64,
    /// Cgroups that were left then.
    left: usize,
}

#[derive(Debug, Clone)]
struct Ours {
    end: End,
    /// With all executors and containers alive.
    rss_kib: u64,
    /// Through the deaths.
    peak_kib: u64,
    longest_turn_ms: f64,
    turns: f64,
    /// Requests to Docker for all that runs.
    lists: f64,
    cpu_s: f64,
}

/// An executor with its pod.
struct Living {
    run: StandInRun,
    executor: Process,
    ids: Vec<String>,
    first_processes: Vec<i32>,
}

impl Bench {
    fn by_daemon(&self, round: u32) -> Result<Ours> {
        let options = format!("{OPTIONS}\n{LISTEN}");
        let places = [self.agent.place()];
        let watcher = Watcher::start_quietly(&self.scratch, &self.docker, &places, &options)?;
        let metrics = scrape::address(&watcher)?;
        let living = self.launch(&format!("ours-{round}"))?;
        wait::try_until(LIMIT, "all executors to be learnt", || {
            let live = scrape::scrape(metrics)?.sum("compose_cleanup_live_executors", &[])?;
            Ok((live >= self.executors as f64).then_some(()))
        })?;
        wait::holds(CALM, "calm", || true)?;
        let pid = watcher.pid();
        forget_peak(pid)?;
        let lists_before = lists(&scrape::scrape(metrics)?)?;
        let before = Usage::of(pid)?;
        let end = self.die(&living, || Ok(false));
        let end = end.with_context(|| log::tail(watcher.log_path(), 30))?;
        ensure!(end.left == 0, "the daemon left {} cgroups", end.left);
        watcher.wait_cases(self.executors, LIMIT)?;
        let page = scrape::scrape(metrics)?;
        let rss_kib = before.rss_kib;
        let after = Usage::of(pid)?.since(&before);
        let turn = |what: &str| page.sum(&format!("compose_cleanup_loop_{what}"), &[]);
        let ours = Ours {
            end,
            rss_kib,
            peak_kib: after.peak_rss_kib,
            longest_turn_ms: turn("longest_turn_seconds")? * 1e3,
            turns: turn("turn_duration_seconds_count")?,
            lists: lists(&page)? - lists_before,
            cpu_s: after.cpu_s,
        };
        watcher.stop()?;
        self.forget(&living)?;
        Ok(ours)
    }

    fn by_hook(&self, round: u32) -> Result<End> {
        let living = self.launch(&format!("hook-{round}"))?;
        wait::holds(CALM, "calm", || true)?;
        let ids: Vec<String> = living
            .iter()
            .map(|one| one.run.executor_id().to_owned())
            .collect();
        thread::scope(|scope| {
            let (start, starts) = std::sync::mpsc::channel();
            // One executor after the other, as on the agent's one thread.
            let hook = scope.spawn(move || -> Result<()> {
                if starts.recv().is_err() {
                    return Ok(());
                }
                for id in ids {
                    ensure!(!wait::interrupted(), "interrupted");
                    let mut shell = self.docker.client("sh");
                    shell.args(["-c", HOOK, "hook", &id]);
                    // What cgdelete says of a cgroup is not its caller's concern either.
                    let _ = command::output(&mut shell, LIMIT);
                }
                Ok(())
            });
            let mut start = Some(start);
            let end = self.die(&living, || {
                if let Some(start) = start.take() {
                    let _ = start.send(());
                }
                Ok(hook.is_finished())
            });
            drop(start);
            hook.join().map_err(|_| anyhow!("the hook panicked"))??;
            end
        })
        .and_then(|end| self.forget(&living).map(|()| end))
    }

    /// One direct request for each container, all at once, and nothing else: what Docker
    /// itself takes.
    fn by_docker(&self, round: u32) -> Result<End> {
        let living = self.launch(&format!("docker-{round}"))?;
        let ids: Vec<&String> = living.iter().flat_map(|one| &one.ids).collect();
        wait::holds(CALM, "calm", || true)?;
        let warm = ids
            .iter()
            .map(|_| {
                let mut direct = Direct::connect(&self.docker)?;
                direct.warm().map(|()| direct)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut warm = Some(warm);
        let end = thread::scope(|scope| {
            let mut requests = Vec::new();
            let end = self.die(&living, || {
                for (mut direct, id) in warm.take().into_iter().flatten().zip(&ids) {
                    requests.push(scope.spawn(move || direct.stop_warm(id)));
                }
                Ok(requests.iter().all(thread::ScopedJoinHandle::is_finished))
            });
            for request in requests {
                request
                    .join()
                    .map_err(|_| anyhow!("a request panicked"))??;
            }
            end
        })?;
        self.forget(&living).map(|()| end)
    }

    /// Kills every executor and waits until everything of them is gone, or `is_done`
    /// and the containers have ended. That is called soon after the deaths, and again
    /// and again.
    fn die(&self, living: &[Living], mut is_done: impl FnMut() -> Result<bool>) -> Result<End> {
        let first: Vec<i32> = living
            .iter()
            .flat_map(|one| one.first_processes.iter().copied())
            .collect();
        let mut cgroups: Vec<PathBuf> = living
            .iter()
            .flat_map(|one| self.cgroups(&one.run))
            .filter(|cgroup| cgroup.exists())
            .collect();
        ensure!(!cgroups.is_empty(), "the executors have no cgroups");
        let witness = Witness::watch(&first, Vec::new())?;
        let killed = Instant::now();
        for one in living {
            one.executor.signal(Signal::KILL)?;
        }
        let mut done = is_done()?;
        let mut clean = None;
        while clean.is_none() {
            ensure!(killed.elapsed() < LIMIT, "not clean after {LIMIT:?}");
            // Looked at before the cgroups: what it did last counts.
            done = done || is_done()?;
            while cgroups.last().is_some_and(|cgroup| !cgroup.exists()) {
                cgroups.pop();
            }
            if cgroups.is_empty() || done {
                clean = Some(Instant::now());
            } else {
                wait::holds(LOOK, "the end", || true)?;
            }
        }
        cgroups.retain(|cgroup| cgroup.exists());
        witness.wait_all(LIMIT)?;
        let ended = witness.finish()?.processes;
        let last = ended.into_iter().max().flatten();
        let last = last.context("a container has not ended")?;
        let clean = clean.context("it came to an end")?.max(last);
        Ok(End {
            stopped_s: last.saturating_duration_since(killed).as_secs_f64(),
            clean_s: clean.saturating_duration_since(killed).as_secs_f64(),
            left: cgroups.len(),
        })
    }

    /// A run's directory in every hierarchy.
    fn cgroups(&self, run: &StandInRun) -> Vec<PathBuf> {
        let roots = self.scratch.cgroup_dirs().iter();
        roots.map(|root| root.join(run.container_id())).collect()
    }

    fn launch(&self, name: &str) -> Result<Vec<Living>> {
        println!(
            "launching {} executors with {CONTAINERS} containers each",
            self.executors
        );
        let turns = Mutex::new(0..self.executors);
        let worker = || {
            let mut launched = Vec::new();
            loop {
                let turn = turns
                    .lock()
                    .map_err(|_| anyhow!("a launch panicked"))?
                    .next();
                let Some(n) = turn else { return Ok(launched) };
                ensure!(!wait::interrupted(), "interrupted");
                launched.push(self.launch_one(&format!("{name}-{n}"))?);
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..LAUNCHERS).map(|_| scope.spawn(worker)).collect();
            let mut all = Vec::with_capacity(self.executors);
            for worker in workers {
                all.extend(worker.join().map_err(|_| anyhow!("a launch panicked"))??);
            }
            Ok(all)
        })
    }

    fn launch_one(&self, executor_id: &str) -> Result<Living> {
        let run = self.agent.launch(executor_id)?;
        let new = NewContainer {
            script: OBEDIENT.to_owned(),
            cgroup_parent: Some(run.cgroup_parent()),
            labels: vec![("executorId".to_owned(), executor_id.to_owned())],
            restart: None,
        };
        let ids = (0..CONTAINERS)
            .map(|_| self.docker.start_container(&new))
            .collect::<Result<Vec<_>>>()?;
        let first = ids.iter().map(|id| self.docker.container_process(id));
        let first = first.collect::<Result<Vec<_>>>()?;
        Ok(Living {
            executor: run.executor()?,
            first_processes: first.iter().map(Process::pid).collect(),
            run,
            ids,
        })
    }

    /// Hundreds of dead containers would make Docker slower and slower, and what is left
    /// of one turn is not the next one's to find.
    fn forget(&self, living: &[Living]) -> Result<()> {
        for one in living {
            for id in &one.ids {
                self.docker.remove_container(id)?;
            }
            let runtime = one.run.runtime();
            fs::remove_dir_all(&runtime).with_context(|| runtime.display().to_string())?;
            for cgroup in self.cgroups(&one.run) {
                // Most are gone.
                let _ = fs::remove_dir(cgroup);
            }
        }
        Ok(())
    }
}

/// Requests to Docker for all that runs, so far.
fn lists(page: &Exposition) -> Result<f64> {
    page.sum(
        "compose_cleanup_docker_requests_total",
        &[("operation", "list")],
    )
}

fn report(args: &Args, ours: &[Ours], hook: &[End], docker: &[End]) -> Result<Part> {
    let Args { executors, rounds } = args;
    let clean = |ends: &mut dyn Iterator<Item = &End>| -> Vec<f64> {
        ends.map(|end| end.clean_s).collect()
    };
    let our_ends: Vec<&End> = ours.iter().map(|one| &one.end).collect();
    let our_clean = clean(&mut our_ends.iter().copied());
    let hook_clean = clean(&mut hook.iter());
    let ratio = ratio_of_medians(&hook_clean, &our_clean).context("no rounds")?;
    let docker_clean = clean(&mut docker.iter());
    let bound = ratio_of_medians(&hook_clean, &docker_clean).context("no rounds")?;
    let mut ends = Table::new(["by", "round", "all stopped, s", "clean, s", "cgroups left"]);
    for (by, all) in [
        ("compose-cleanup", our_ends),
        ("the hook's steps", hook.iter().collect()),
        ("Docker alone", docker.iter().collect()),
    ] {
        for (round, end) in all.into_iter().enumerate() {
            ends.row([
                by.to_owned(),
                (round + 1).to_string(),
                format!("{:.2}", end.stopped_s),
                format!("{:.2}", end.clean_s),
                end.left.to_string(),
            ]);
        }
    }
    let worst = |value: fn(&Ours) -> f64| ours.iter().map(value).fold(0.0, f64::max);
    let most_kib = |value: fn(&Ours) -> u64| ours.iter().map(value).max().unwrap_or_default();
    let (rss, peak) = (most_kib(|one| one.rss_kib), most_kib(|one| one.peak_kib));
    let turn = worst(|one| one.longest_turn_ms);
    let mut daemon = Table::new(["", "worst round"]);
    for (what, value) in [
        ("longest turn of its loop", format!("{turn:.2} ms")),
        (
            "turns of its loop",
            format!("{:.0}", worst(|one| one.turns)),
        ),
        (
            "CPU time, from the deaths on",
            format!("{:.2} s", worst(|one| one.cpu_s)),
        ),
        (
            "lists asked of Docker",
            format!("{:.0}", worst(|one| one.lists)),
        ),
        ("resident memory before", mib(rss)),
        ("peak of it, from the deaths on", mib(peak)),
    ] {
        daemon.row([what.to_owned(), value]);
    }
    let median = |samples: &[f64]| Summary::of(samples.iter().copied()).map(|all| all.p50);
    let (our_s, hook_s) = median(&our_clean)
        .zip(median(&hook_clean))
        .context("no rounds")?;
    Ok(Part {
        title: "Many deaths at once",
        command: "cargo xtask bench mass".to_owned(),
        method: format!(
            "{executors} executors of a stand-in agent, {CONTAINERS} containers each that end at \
             SIGTERM, killed in one moment; {rounds} rounds, by turns. *All stopped*: the last \
             container's first process is gone. *Clean*: so is the last cgroup of the runs, or the \
             hook's steps are through. *The hook's steps* are those of dce-go's C++ hook, in a shell, \
             for one executor after the other, as on an agent's one thread: `docker ps`, `docker stop`, \
             `docker inspect`, `lscgroup | grep`, `cgdelete`. The agent has no part in either: with \
             `teardown = \"immediate\"` the daemon does the same work."
        ),
        goals: vec![
            Goal {
                what: format!("{executors} executors at once, time to clean, hook's beside ours"),
                goal: format!("≥ {GOAL_RATIO} ×"),
                measured: format!("{ratio:.1} ×"),
                met: ratio.value >= GOAL_RATIO,
            },
            Goal {
                what: "longest that anything kept the event loop meanwhile".to_owned(),
                goal: format!("< {GOAL_TURN_MS} ms"),
                measured: format!("{turn:.2} ms"),
                met: turn < GOAL_TURN_MS,
            },
            Goal {
                what: format!("resident memory, {executors} executors with their pods"),
                goal: format!("≤ {}", mib(GOAL_RSS_KIB)),
                measured: mib(rss),
                met: rss <= GOAL_RSS_KIB,
            },
            Goal {
                what: "peak of it while they die".to_owned(),
                goal: format!("≤ {}", mib(GOAL_PEAK_KIB)),
                measured: mib(peak),
                met: peak <= GOAL_PEAK_KIB,
            },
        ],
        tables: vec![
            ("Seconds after the deaths".to_owned(), ends),
            ("The daemon meanwhile".to_owned(), daemon),
        ],
        charts: vec![Chart::Bars {
            name: "mass-death",
            title: format!("{executors} executors dead at once: until the host is clean"),
            y: "s",
            bars: vec![
                ("compose-cleanup".to_owned(), our_s),
                ("the hook's steps".to_owned(), hook_s),
            ],
            log: true,
        }],
        notes: vec![
            "*Cgroups left* by the hook's steps: `cgdelete`, given every cgroup of a run at once as \
             the hook gives them, can leave most of them and exit with 0 (so does cgroup-tools 2.0 on a \
             hybrid host). They are clean then only in the hook's own eyes."
                .to_owned(),
            format!(
                "*Docker alone*: one stop request for each container, all at once on connections that \
                 are warm, and nothing else; *clean* is its last answer. Whoever waits for that cannot be \
                 faster: beside the hook's steps that is {bound:.1} ×."
            ),
            "The daemon asks Docker for 8 stops at once (`docker.max_stops`), and signals the other \
             containers itself; what has ended it sees in their cgroups. Docker goes on with its \
             records for as long as in the turn that is its own: the last to end is mostly one of \
             those that were its to stop."
                .to_owned(),
            "The hook is timed from the deaths. A real agent calls it last, when the framework has \
             acknowledged every status update."
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

    fn end(clean_s: f64) -> End {
        End {
            stopped_s: clean_s / 2.0,
            clean_s,
            left: 0,
        }
    }

    fn met(ours_s: f64, hook_s: f64, turn_ms: f64, kib: u64) -> Vec<bool> {
        let ours = Ours {
            end: end(ours_s),
            rss_kib: kib,
            peak_kib: kib * 3,
            longest_turn_ms: turn_ms,
            turns: 900.0,
            lists: 12.0,
            cpu_s: 0.5,
        };
        let args = Args {
            executors: 100,
            rounds: 2,
        };
        let ends = [end(hook_s), end(hook_s)];
        let part = report(&args, &[ours.clone(), ours], &ends, &[end(1.0)]).unwrap();
        part.goals.iter().map(|goal| goal.met).collect()
    }

    #[test]
    fn the_hooks_time_is_held_against_ours() {
        assert_eq!(met(2.0, 20.0, 1.0, 10_000), [true; 4]);
        assert_eq!(met(2.0, 19.0, 1.0, 10_000), [false, true, true, true]);
        assert_eq!(met(2.0, 20.0, 10.0, 10_000), [true, false, true, true]);
        assert_eq!(met(2.0, 20.0, 1.0, 11_900), [true, true, false, false]);
    }

    #[test]
    fn nothing_is_compared_with_nothing() {
        let args = Args {
            executors: 1,
            rounds: 1,
        };
        assert!(report(&args, &[], &[], &[]).is_err());
    }
}
