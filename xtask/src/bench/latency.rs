//! `cargo xtask bench latency`: from an executor's exit to the end of its pod.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::OBEDIENT;
use cleanup_tests::docker::api::NewContainer;
use cleanup_tests::watcher::Watcher;
use cleanup_tests::{log, wait};
use rustix::process::Signal;
use serde_json::Value;

use super::agents::{Agents, Target};
use super::death::{Cases, Condition, Death, Probe, Series};
use super::direct::Direct;
use super::part::{Part, Scale};
use super::report;
use super::storm::Storm;
use super::trace::Trace;
use super::usage::{Usage, idle_share};
use crate::exec::{Tool, seconds};
use crate::setup::Need;
use crate::stage::{self, Machine};
use crate::witness::Witness;

/// Executors that live at the same time. Each looks at its pod every 2 s, so
/// more of them would make the idle host busy.
const BATCH: usize = 10;
/// After the launches, and after the storm began.
const CALM: Duration = Duration::from_secs(1);
const POD_END: Duration = Duration::from_secs(120);
const BARE: &str = "bare-loader";
const BARE_LIMIT: Duration = Duration::from_secs(300);
/// The trace event follows what it tells of.
const SIGTERM: Duration = Duration::from_secs(30);
const GRACE: &str = "10s";
/// Of so many deaths under the storm there is one with normal priority.
const NORMAL_SHARE: usize = 5;

/// Measure from an executor's exit to the stop request, the pod's end and a clean host
///
/// Kills executors with SIGKILL, one by one, each with a pod of one container,
/// first on an idle host, then while shells on every CPU start programs as fast
/// as they can; then a fifth as many once more with `priority = "normal"`. The
/// daemon's own figures are relative to the kernel's time of the exit. The end of a
/// container is when its first process has ended (pidfd), counted from our SIGKILL
/// to the executor; it includes Docker's own time. When SIGTERM reached that process
/// is the kernel's trace to say.
///
/// By turns with the deaths, to compare with: the same stop request made directly,
/// on a connection that is warm already, and what a bare loader takes to learn of an
/// exit: a program with a ring buffer that does nothing else.
///
/// With a real agent one death takes about 2 s, most of it for docker-compose.
/// --stand-in is faster and needs no Mesos: what it measures is the same, but
/// nobody else ends the containers or works on their cgroups.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask bench latency
  cargo xtask bench latency --deaths 50 --storm-only
  cargo xtask bench latency --probe poll --idle-only
  cargo xtask bench latency --stand-in --json latency.json")]
pub(super) struct Args {
    /// Executors to kill in each condition
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    deaths: u32,

    /// Only on the idle host
    #[arg(long, conflicts_with = "storm_only")]
    idle_only: bool,

    /// Only under the fork storm
    #[arg(long)]
    storm_only: bool,

    /// Without Mesos: a light stand-in for the agent and its executors
    #[arg(long, conflicts_with = "version")]
    stand_in: bool,

    /// Mesos release of the agent
    #[arg(long, value_name = "V", default_value = "1.11.0")]
    version: String,

    /// How the daemon notices deaths
    ///
    /// Without eBPF it does not know when an executor ended, and its own figures
    /// count from when it noticed: only the container's end is reported then.
    #[arg(long, value_enum, default_value = "ebpf")]
    probe: Probe,

    /// Write everything, each death included, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let needs = if args.stand_in {
        &[Need::BpfToolchain, Need::Docker]
    } else {
        Need::ALL
    };
    stage::prepare(needs)?;
    stage::interruptible(|| {
        println!("\n{}", part(args)?);
        Ok(ExitCode::SUCCESS)
    })
}

/// With the stand-in: a real agent takes four times as long, and what counts is the same.
pub(super) fn measure(scale: Scale) -> Result<Part> {
    part(&Args {
        deaths: match scale {
            Scale::Quick => 20,
            Scale::Full => 500,
        },
        idle_only: false,
        storm_only: false,
        stand_in: true,
        version: String::new(),
        probe: Probe::Ebpf,
        json: None,
    })
}

fn part(args: &Args) -> Result<Part> {
    let Args {
        deaths,
        idle_only,
        storm_only,
        stand_in,
        version,
        probe,
        json,
    } = args;
    let bare = stage::example(BARE)?;
    let agents = if *stand_in {
        Agents::stand_in()?
    } else {
        stage::fetch_mesos(version, "Without Mesos, measure with --stand-in")?;
        Agents::real(version)?
    };
    let machine = Machine::look(agents.docker())?;
    let bench = Bench {
        trace: Trace::start(agents.scratch())?,
        agents,
        probe: *probe,
        bare,
    };
    let deaths = usize::try_from(*deaths)?;
    let conditions = [
        (Condition::Idle, deaths, *storm_only),
        (Condition::Storm, deaths, *idle_only),
        (
            Condition::StormNormalPriority,
            deaths.div_ceil(NORMAL_SHARE),
            *idle_only,
        ),
    ];
    let mut all = Vec::new();
    for (condition, deaths, left_out) in conditions {
        if !left_out {
            all.push(bench.series(condition, deaths)?);
        }
    }
    let title = format!("{}; probe: {}", bench.agents.describe(), probe.name());
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&report::json(&title, &machine, &all))?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(report::part(&title, &machine, &all))
}

/// Dropped from top to bottom.
struct Bench {
    trace: Trace,
    agents: Agents,
    probe: Probe,
    /// The bare loader's program.
    bare: PathBuf,
}

impl Bench {
    fn series(&self, condition: Condition, count: usize) -> Result<Series> {
        let Self { agents, probe, .. } = self;
        let probe_name = probe.name();
        let priority = match condition {
            Condition::Idle | Condition::Storm => "realtime",
            Condition::StormNormalPriority => "normal",
        };
        let options = format!(
            "probe = {probe_name:?}\npriority = {priority:?}\nmode = \"enforce\"\ngrace = \"{GRACE}\"\nsettle = \"100ms\""
        );
        let watcher = Watcher::start(
            agents.scratch(),
            agents.docker(),
            &[agents.place()],
            &options,
        )?;
        let mut cases = Cases::of(&watcher)?;
        let mut deaths = Vec::with_capacity(count);
        let (mut direct, mut bare) = (Vec::new(), Vec::new());
        let at_start = Usage::of(watcher.pid())?;
        let mut idle = Vec::new();
        let (mut starts, mut storm_s) = (0, 0.0);
        while deaths.len() < count {
            let start = Instant::now();
            let batch = BATCH.min(count - deaths.len());
            let targets = agents.launch(batch)?;
            let others = (0..batch)
                .map(|_| self.other_container())
                .collect::<Result<Vec<_>>>()?;
            let launched = start.elapsed();
            idle.push(idle_share(CALM)?);
            let storm = match condition {
                Condition::Idle => None,
                Condition::Storm | Condition::StormNormalPriority => {
                    let storm = Storm::begin(agents.scratch())?;
                    wait::holds(CALM, "the storm to rage", || true)?;
                    Some(storm)
                }
            };
            for (target, (id, process)) in targets.iter().zip(&others) {
                deaths.push(self.kill(&watcher, &mut cases, target)?);
                direct.push(self.stop_directly(id, *process)?);
            }
            bare.extend(self.bare(batch)?);
            if let Some(storm) = storm {
                let (started, seconds) = storm.so_far()?;
                starts += started;
                storm_s += seconds;
            }
            // Hundreds of dead containers would make Docker slower and slower.
            let used = targets.iter().map(|target| target.docker_id.as_str());
            let others = others.iter().map(|(id, _)| id.as_str());
            let remove = ["rm", "--force"].into_iter().chain(used).chain(others);
            agents.docker().docker(&remove.collect::<Vec<_>>())?;
            println!(
                "{:<11} {:>4} of {count} deaths (the last {}: {} to launch, {} in all)",
                condition.name(),
                deaths.len(),
                targets.len(),
                seconds(launched),
                seconds(start.elapsed()),
            );
        }
        let usage = Usage::of(watcher.pid())?.since(&at_start);
        Ok(Series {
            condition,
            deaths,
            direct,
            bare,
            lost: stop(watcher)?,
            usage,
            host_idle: idle.iter().sum::<f64>() / idle.len() as f64,
            starts_per_s: (storm_s > 0.0).then(|| starts as f64 / storm_s),
        })
    }

    fn kill(&self, watcher: &Watcher, cases: &mut Cases, target: &Target) -> Result<Death> {
        self.trace
            .arm(target.executor.pid(), target.first_process)?;
        let witness = Witness::watch(&[target.first_process], Vec::new())?;
        let killed = Instant::now();
        target.executor.signal(Signal::KILL)?;
        witness
            .wait_all(POD_END)
            .with_context(|| log::tail(watcher.log_path(), 30))?;
        let ended = witness.finish()?.processes[0].context("the container's end was seen")?;
        self.agents.after_death(target)?;
        let case = cases
            .wait(&target.container_id)
            .with_context(|| log::tail(watcher.log_path(), 30))?;
        // Not every container lives to see it: a real agent kills what lies beneath.
        let seen = self.trace.seen()?;
        let sigterm = seen.exit_s.zip(seen.sigterm_s);
        let sigterm = sigterm.map(|(exit, sigterm)| (sigterm - exit) * 1e3);
        let ended = ended.saturating_duration_since(killed);
        Death::read(&case, ended, sigterm, self.probe)
            .with_context(|| format!("not a whole case: {case}"))
    }

    /// One like those of the pods, and nobody's.
    fn other_container(&self) -> Result<(String, i32)> {
        let docker = self.agents.docker();
        let id = docker.start_container(&NewContainer {
            script: OBEDIENT.to_owned(),
            ..NewContainer::default()
        })?;
        let process = docker.container_process(&id)?.pid();
        Ok((id, process))
    }

    /// Milliseconds from the request to SIGTERM.
    fn stop_directly(&self, id: &str, process: i32) -> Result<f64> {
        self.trace.arm(process, process)?;
        let began = Direct::connect(self.agents.docker())?.stop(id)?;
        let seen = wait::try_until(SIGTERM, "SIGTERM in the kernel's trace", || {
            Ok(self.trace.seen()?.sigterm_s)
        })?;
        Ok((seen - began) * 1e3)
    }

    /// Milliseconds from each of so many exits to the bare loader's reader.
    fn bare(&self, count: usize) -> Result<Vec<f64>> {
        let output = Tool::new(&self.bare, BARE_LIMIT)
            .arg(count.to_string())
            .read()?;
        let times = output.lines().map(|line| {
            let us: f64 = line.parse().with_context(|| line.to_owned())?;
            Ok(us / 1e3)
        });
        times.collect()
    }
}

/// Stops the daemon; its count of exits that were lost.
fn stop(watcher: Watcher) -> Result<u64> {
    let path = watcher.log_path().to_owned();
    let status = watcher.stop()?;
    ensure!(
        status.success(),
        "the daemon ended with {status}: {}",
        log::tail(&path, 30)
    );
    let text = fs::read_to_string(&path).context("the daemon's log")?;
    let last: Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
    last["lost"]
        .as_u64()
        .with_context(|| format!("not the daemon's closing line: {last}"))
}
