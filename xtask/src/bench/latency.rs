//! `cargo xtask bench latency`: from an executor's exit to the end of its pod.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cleanup_tests::watcher::Watcher;
use cleanup_tests::{log, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::agents::{Agents, Target};
use super::report;
use super::storm::Storm;
use super::usage::{Usage, idle_share};
use crate::exec::seconds;
use crate::setup::Need;
use crate::stage::{self, Machine};
use crate::witness::Witness;

/// Executors that live at the same time. Each looks at its pod every 2 s, so
/// more of them would make the idle host busy.
const BATCH: usize = 10;
/// After the launches, and after the storm began.
const CALM: Duration = Duration::from_secs(1);
const POD_END: Duration = Duration::from_secs(120);
const CASE_END: Duration = Duration::from_secs(120);
/// Between two looks into the daemon's log.
const LOOK: Duration = Duration::from_millis(25);
const GRACE: &str = "10s";

/// Measure from an executor's exit to the first stop request and the pod's end
///
/// Kills executors with SIGKILL, one by one, each with a pod of one container,
/// first on an idle host, then while shells on every CPU start programs as fast
/// as they can. The daemon's own figures are relative to the kernel's time of
/// the exit. The end of a container is when its first process has ended (pidfd),
/// counted from our SIGKILL to the executor; it includes Docker's own time.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Probe {
    Ebpf,
    Poll,
}

impl Probe {
    fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Poll => "poll",
        }
    }

    /// Who notices a death, as the daemon says it.
    fn origin(self) -> &'static str {
        match self {
            Self::Ebpf => "kernel",
            Self::Poll => "pidfd",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    Idle,
    Storm,
}

impl Condition {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Storm => "fork storm",
        }
    }
}

/// One executor's death; times in milliseconds after it, where the daemon knows
/// when that was. A case that did not ask Docker for anything, since its container
/// had ended before, has no times for that.
#[derive(Debug, Clone)]
pub(super) struct Death {
    pub(super) event: Option<f64>,
    pub(super) first_stop: Option<f64>,
    /// Docker's answer to the request.
    pub(super) confirmed: Option<f64>,
    /// The container's first process was gone.
    pub(super) ended: f64,
    pub(super) ending: String,
    /// Noticed as it should be; its one container was asked to stop, and the
    /// host seen clean.
    pub(super) regular: bool,
}

/// All deaths in one condition, and what they did to the daemon.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) condition: Condition,
    pub(super) deaths: Vec<Death>,
    /// Exits that the kernel program could not report.
    pub(super) lost: u64,
    /// What the daemon took, from its start until after the last death.
    pub(super) usage: Usage,
    /// The host's idle share, 0 to 1, right before the deaths and any storm.
    pub(super) host_idle: f64,
    /// Processes that were started per second under the storm.
    pub(super) starts_per_s: Option<f64>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let needs = if args.stand_in {
        &[Need::BpfToolchain, Need::Docker]
    } else {
        Need::ALL
    };
    stage::prepare(needs)?;
    stage::interruptible(|| measure(args))
}

fn measure(args: &Args) -> Result<ExitCode> {
    let Args {
        deaths,
        idle_only,
        storm_only,
        stand_in,
        version,
        probe,
        json,
    } = args;
    let agents = if *stand_in {
        Agents::stand_in()?
    } else {
        stage::fetch_mesos(version, "Without Mesos, measure with --stand-in")?;
        Agents::real(version)?
    };
    let machine = Machine::look(agents.docker())?;
    let conditions = [
        (Condition::Idle, *storm_only),
        (Condition::Storm, *idle_only),
    ];
    let mut all = Vec::new();
    for (condition, _) in conditions.into_iter().filter(|(_, left_out)| !left_out) {
        all.push(series(
            &agents,
            *probe,
            condition,
            usize::try_from(*deaths)?,
        )?);
    }
    let title = format!("{}; probe: {}", agents.describe(), probe.name());
    println!("\n{}", report::render(&title, &machine, &all));
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&report::json(&title, &machine, &all))?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn series(agents: &Agents, probe: Probe, condition: Condition, count: usize) -> Result<Series> {
    let probe_name = probe.name();
    let options = format!(
        "probe = {probe_name:?}\nmode = \"enforce\"\ngrace = \"{GRACE}\"\nsettle = \"100ms\""
    );
    let watcher = Watcher::start(
        agents.scratch(),
        agents.docker(),
        &[agents.place()],
        &options,
    )?;
    let mut cases = Cases::of(&watcher)?;
    let mut deaths = Vec::with_capacity(count);
    let at_start = Usage::of(watcher.pid())?;
    let mut idle = Vec::new();
    let (mut starts, mut storm_s) = (0, 0.0);
    while deaths.len() < count {
        let start = Instant::now();
        let targets = agents.launch(BATCH.min(count - deaths.len()))?;
        let launched = start.elapsed();
        idle.push(idle_share(CALM)?);
        let storm = match condition {
            Condition::Idle => None,
            Condition::Storm => {
                let storm = Storm::begin(agents.scratch())?;
                wait::holds(CALM, "the storm to rage", || true)?;
                Some(storm)
            }
        };
        for target in &targets {
            deaths.push(kill(agents, probe, &watcher, &mut cases, target)?);
        }
        if let Some(storm) = storm {
            let (started, seconds) = storm.so_far()?;
            starts += started;
            storm_s += seconds;
        }
        // Hundreds of dead containers would make Docker slower and slower.
        let used = targets.iter().map(|target| target.docker_id.as_str());
        let remove: Vec<&str> = ["rm", "--force"].into_iter().chain(used).collect();
        agents.docker().docker(&remove)?;
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
        lost: stop(watcher)?,
        usage,
        host_idle: idle.iter().sum::<f64>() / idle.len() as f64,
        starts_per_s: (storm_s > 0.0).then(|| starts as f64 / storm_s),
    })
}

fn kill(
    agents: &Agents,
    probe: Probe,
    watcher: &Watcher,
    cases: &mut Cases,
    target: &Target,
) -> Result<Death> {
    let witness = Witness::watch(&[target.first_process], Vec::new())?;
    let killed = Instant::now();
    target.executor.signal(Signal::KILL)?;
    witness
        .wait_all(POD_END)
        .with_context(|| log::tail(watcher.log_path(), 30))?;
    let ended = witness.finish()?.processes[0].context("the container's end was seen")?;
    agents.after_death(target)?;
    let case = cases
        .wait(&target.container_id)
        .with_context(|| log::tail(watcher.log_path(), 30))?;
    Death::read(&case, ended.saturating_duration_since(killed), probe)
        .with_context(|| format!("not a whole case: {case}"))
}

/// The daemon's log, of which only the new part is read: looking must cost next
/// to nothing.
struct Cases {
    log: File,
    /// A line that is still on its way.
    rest: String,
}

impl Cases {
    fn of(watcher: &Watcher) -> Result<Self> {
        Ok(Self {
            log: File::open(watcher.log_path()).context("the daemon's log")?,
            rest: String::new(),
        })
    }

    /// Waits for the closing line of a run's case.
    fn wait(&mut self, container_id: &str) -> Result<Value> {
        let what = format!("the case of {container_id}");
        let deadline = Instant::now() + CASE_END;
        while Instant::now() < deadline {
            self.log.read_to_string(&mut self.rest)?;
            while let Some(end) = self.rest.find('\n') {
                let line: String = self.rest.drain(..=end).collect();
                let line: Value = serde_json::from_str(&line).context("a line of JSON")?;
                if line["message"] == "case" && line["container"] == container_id {
                    return Ok(line);
                }
            }
            wait::holds(LOOK, &what, || true)?;
        }
        bail!("waited in vain for {what}")
    }
}

impl Death {
    fn read(case: &Value, ended: Duration, probe: Probe) -> Option<Self> {
        let of_the_exit = |ms: Option<f64>| ms.filter(|_| probe == Probe::Ebpf);
        Some(Self {
            event: of_the_exit(Some(case["event_ms"].as_f64()?)),
            first_stop: of_the_exit(case["first_stop_ms"].as_f64()),
            confirmed: of_the_exit(case["stopped_ms"].as_f64()),
            ended: ended.as_secs_f64() * 1e3,
            ending: case["endings"].as_str()?.to_owned(),
            regular: case["origin"] == probe.origin()
                && case["result"] == "clean"
                && case["containers"] == 1
                && case["first_stop_ms"].is_f64(),
        })
    }

    pub(super) fn json(&self) -> Value {
        let Self {
            event,
            first_stop,
            confirmed,
            ended,
            ending,
            regular,
        } = self;
        json!({
            "event_ms": event,
            "first_stop_ms": first_stop,
            "confirmed_ms": confirmed,
            "ended_ms": ended,
            "ending": ending,
            "regular": regular,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_that_is_not_as_expected_is_no_regular_death() {
        let line = |origin: &str, result: &str| {
            json!({
                "event_ms": 0.06, "first_stop_ms": 0.2, "stopped_ms": 40.0, "endings": "1 term",
                "origin": origin, "result": result, "containers": 1,
            })
        };
        let read = |case: &Value| Death::read(case, Duration::from_micros(12_500), Probe::Ebpf);
        let death = read(&line("kernel", "clean")).expect("a whole line");
        assert!(death.regular);
        assert_eq!((death.first_stop, death.ended), (Some(0.2), 12.5));
        assert!(!read(&line("scan", "clean")).unwrap().regular);
        assert!(!read(&line("kernel", "observed")).unwrap().regular);
        let polled = Death::read(&line("pidfd", "clean"), Duration::ZERO, Probe::Poll);
        let polled = polled.expect("a whole line");
        assert!(polled.regular && polled.event.is_none() && polled.first_stop.is_none());
        let mut never_asked = line("kernel", "clean");
        never_asked["first_stop_ms"] = Value::Null;
        assert!(!read(&never_asked).unwrap().regular);
        assert!(read(&json!({ "message": "case" })).is_none());
    }
}
