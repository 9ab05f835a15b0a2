//! What is known of an executor's death, and where the daemon says it.

use std::fs::File;
use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cleanup_tests::wait;
use cleanup_tests::watcher::Watcher;
use serde_json::{Value, json};

use super::usage::Usage;

const CASE_END: Duration = Duration::from_secs(120);
/// Between two looks into the daemon's log.
const LOOK: Duration = Duration::from_millis(25);

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Probe {
    Ebpf,
    Poll,
}

impl Probe {
    pub(super) fn name(self) -> &'static str {
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
    /// The storm, and `priority = "normal"`.
    StormNormalPriority,
}

impl Condition {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Storm => "fork storm",
            Self::StormNormalPriority => "fork storm, normal priority",
        }
    }

    pub(super) fn is_storm(self) -> bool {
        self != Self::Idle
    }
}

/// One executor's death; times in milliseconds after it, where the daemon knows
/// when that was. A case that did not ask Docker for anything, since its container
/// had ended before, has no times for that.
#[derive(Debug, Clone)]
pub(super) struct Death {
    pub(super) event: Option<f64>,
    pub(super) first_stop: Option<f64>,
    /// The container's first process was given SIGTERM, as the kernel says. Only if it was.
    pub(super) sigterm: Option<f64>,
    /// Docker's answer to the request.
    pub(super) confirmed: Option<f64>,
    /// The container's first process was gone.
    pub(super) ended: f64,
    /// Nothing of the run was left on the host.
    pub(super) clean: Option<f64>,
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
    /// From a request of our own, on a warm connection, to SIGTERM.
    pub(super) direct: Vec<f64>,
    /// From an exit to the reader of a bare loader.
    pub(super) bare: Vec<f64>,
    /// Exits that the kernel program could not report.
    pub(super) lost: u64,
    /// What the daemon took, from its start until after the last death.
    pub(super) usage: Usage,
    /// The host's idle share, 0 to 1, right before the deaths and any storm.
    pub(super) host_idle: f64,
    /// Processes that were started per second under the storm.
    pub(super) starts_per_s: Option<f64>,
}

/// The daemon's log, of which only the new part is read: looking must cost next
/// to nothing.
pub(super) struct Cases {
    log: File,
    /// A line that is still on its way.
    rest: String,
}

impl Cases {
    pub(super) fn of(watcher: &Watcher) -> Result<Self> {
        Ok(Self {
            log: File::open(watcher.log_path()).context("the daemon's log")?,
            rest: String::new(),
        })
    }

    /// Waits for the closing line of a run's case.
    pub(super) fn wait(&mut self, container_id: &str) -> Result<Value> {
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
    /// `sigterm`: after the exit.
    pub(super) fn read(
        case: &Value,
        ended: Duration,
        sigterm: Option<f64>,
        probe: Probe,
    ) -> Option<Self> {
        let of_the_exit = |ms: Option<f64>| ms.filter(|_| probe == Probe::Ebpf);
        Some(Self {
            event: of_the_exit(Some(case["event_ms"].as_f64()?)),
            first_stop: of_the_exit(case["first_stop_ms"].as_f64()),
            sigterm,
            confirmed: of_the_exit(case["stopped_ms"].as_f64()),
            clean: of_the_exit(case["clean_ms"].as_f64()),
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
            sigterm,
            confirmed,
            clean,
            ended,
            ending,
            regular,
        } = self;
        json!({
            "event_ms": event,
            "first_stop_ms": first_stop,
            "sigterm_ms": sigterm,
            "confirmed_ms": confirmed,
            "clean_ms": clean,
            "ended_ms": ended,
            "ending": ending,
            "regular": regular,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_that_is_not_as_expected_is_no_regular_death() {
        let line = |origin: &str, result: &str| {
            json!({
                "event_ms": 0.06, "first_stop_ms": 0.2, "stopped_ms": 40.0, "clean_ms": 90.0, "endings": "1 term",
                "origin": origin, "result": result, "containers": 1,
            })
        };
        let read =
            |case: &Value| Death::read(case, Duration::from_micros(12_500), Some(0.9), Probe::Ebpf);
        let death = read(&line("kernel", "clean")).expect("a whole line");
        assert!(death.regular);
        assert_eq!((death.first_stop, death.ended), (Some(0.2), 12.5));
        assert_eq!((death.sigterm, death.clean), (Some(0.9), Some(90.0)));
        assert!(!read(&line("scan", "clean")).unwrap().regular);
        assert!(!read(&line("kernel", "observed")).unwrap().regular);
        let polled = Death::read(&line("pidfd", "clean"), Duration::ZERO, None, Probe::Poll);
        let polled = polled.expect("a whole line");
        assert!(polled.regular && polled.event.is_none() && polled.first_stop.is_none());
        let mut never_asked = line("kernel", "clean");
        never_asked["first_stop_ms"] = Value::Null;
        assert!(!read(&never_asked).unwrap().regular);
        assert!(read(&json!({ "message": "case" })).is_none());
    }
}
