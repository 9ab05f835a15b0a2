//! What the daemon counts, for Prometheus: one registry, as OpenMetrics text.
//!
//! docs/metrics.md says what each series means and what to do about it. No label
//! holds an id of an executor or a container, and each set of label values is
//! closed, so the number of series never changes.
//!
//! Data comes in only: nothing in the daemon decides by what was counted.

mod case;
mod health;
mod listener;
mod series;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use self::case::CaseMeter;
use self::health::Pulse;
pub use self::health::{Illness, LOOP_DEADLINE};
pub use self::listener::serve;
use self::series::{Each, Registrar, Seconds};
use crate::case::{CaseResult, Origin, Progress, Record};
use crate::cgroup::Busy;
use crate::docker::{DockerError, Operation};
use crate::journal;
use crate::probe::Losses;
use crate::process::{monotonic_ns, unix_seconds};
use crate::registry::Role;

/// How long a scrape waits for the loop, which answers at once unless it hangs.
const REFRESH: Duration = Duration::from_millis(200);

/// Before the name of every metric.
pub const PREFIX: &str = "compose_cleanup";

/// What became of a request in the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestOutcome {
    /// A case of the executor is open, or was closed.
    Known,
    /// Nobody knew of it: a reason for a survey.
    Surveyed,
    /// It was no request, and was put aside.
    Refused,
}

/// Where a defect was caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Panicked {
    /// In the handler of a signal.
    Handler,
    /// In the task of a case.
    Case,
}

/// The handle for counting. Clones count the same.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    pulse: Pulse,
    /// When the oldest open case was opened, CLOCK_MONOTONIC; 0 without one.
    oldest_ns: AtomicU64,
    longest_turn_ns: AtomicU64,

    events_received: Counter,
    events_lost: Each<&'static str, Counter>,
    exits: Each<Role, Counter>,
    cases: Each<(Origin, &'static str), Counter>,
    open_cases: Each<&'static str, Gauge>,
    oldest_age: Seconds,
    containers: Each<&'static str, Counter>,
    stages: Each<&'static str, Histogram>,
    docker_requests: Each<(Operation, &'static str), Counter>,
    docker_up: Gauge,
    cgroups_removed: Counter,
    rmdir_retries: Each<Option<Busy>, Counter>,
    reconciles: Histogram,
    reconcile_failures: Counter,
    orphans: Counter,
    unknown_runs: Gauge,
    live_executors: Gauge,
    held: Gauge,
    journal_errors: Counter,
    journal_dropped: Each<&'static str, Counter>,
    journal_written: Counter,
    journal_queued: Gauge,
    journal_unwritten: Gauge,
    journal_failing: Gauge,
    journal_size: Gauge,
    journal_set_aside: Counter,
    agent_yields: Counter,
    agent_takeovers: Counter,
    requests: Each<RequestOutcome, Counter>,
    panics: Each<Panicked, Counter>,
    loop_age: Seconds,
    loop_turns: Histogram,
    longest_turn: Seconds,
    enforcing: Gauge,
}

/// A dead executor that left nothing behind is no case.
const NOTHING_LEFT: &str = "nothing_left";
const DOCKER_OUTCOMES: [&str; 5] = ["ok", "refused", "error", "timeout", "unreachable"];
const STAGES: [&str; 4] = ["event", "first_stop", "stopped", "clean"];

/// From a tenth of a millisecond, what an event takes on an idle host, to what an
/// agent may take for its destroy.
fn stage_buckets() -> Histogram {
    Histogram::new([
        0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
        2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    ])
}

fn reconcile_buckets() -> Histogram {
    Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0])
}

/// A turn takes some microseconds; one of 100 ms would cost a graceful stop.
fn turn_buckets() -> Histogram {
    Histogram::new([
        0.000_01, 0.000_05, 0.000_25, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0,
    ])
}

impl Default for Inner {
    fn default() -> Self {
        let mut new = Registrar::new();
        new.0.register(
            "build",
            "This program",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        new.seconds(
            "process_start_time",
            "When this process began to count, in seconds since 1970",
        )
        .set(unix_seconds());
        let results = || CaseResult::CLOSED.map(CaseResult::as_str);
        let origins = Origin::ALL.into_iter();
        let case_keys = origins.flat_map(|origin| {
            let results = results().into_iter().chain([NOTHING_LEFT]);
            results.map(move |result| (origin, result))
        });
        let docker_keys = Operation::ALL
            .into_iter()
            .flat_map(|operation| DOCKER_OUTCOMES.map(|outcome| (operation, outcome)));
        Self {
            events_received: new.counter(
                "events_received",
                "Records that the kernel program sent and the daemon took",
            ),
            events_lost: new.each(
                "events_lost",
                "Exits that the kernel program or the reader had to give up, by reason",
                Losses::default().iter().map(|(reason, _)| reason),
                |reason| vec![("reason", reason)],
            ),
            exits: new.each(
                "exits",
                "Exits that the kernel reported, by whose they were",
                Role::ALL,
                |role| vec![("kind", role.as_str())],
            ),
            cases: new.each(
                "cases",
                "Dead executors that are done with, by who noticed first and what it came to",
                case_keys,
                |(origin, result)| vec![("origin", origin.as_str()), ("result", result)],
            ),
            open_cases: new.each(
                "open_cases",
                "Cases that are open now, by the step that they are at",
                case::steps(),
                |step| vec![("step", step)],
            ),
            oldest_age: new.seconds(
                "oldest_open_case_age",
                "Since this daemon opened its oldest open case; 0 without one",
            ),
            containers: new.each(
                "containers",
                "Containers of the pods of closed cases, by how they ended",
                Progress::NAMES,
                |ending| vec![("ending", ending)],
            ),
            stages: new.each_duration(
                "stage_duration",
                "From the executor's exit until each stage of its case was reached",
                stage_buckets,
                STAGES,
                |stage| vec![("stage", stage)],
            ),
            docker_requests: new.each(
                "docker_requests",
                "Requests to Docker that were answered or given up",
                docker_keys,
                |(operation, outcome)| {
                    vec![("operation", operation.as_str()), ("outcome", outcome)]
                },
            ),
            docker_up: new.gauge("docker_up", "1 while Docker's events are followed"),
            cgroups_removed: new.counter("cgroups_removed", "Cgroup directories removed"),
            rmdir_retries: new.each(
                "cgroup_rmdir_retries",
                "Removals of a cgroup that failed and are tried again, by errno",
                Busy::ALL.map(Some).into_iter().chain([None]),
                |busy| vec![("errno", busy.map_or("other", Busy::as_str))],
            ),
            reconciles: new.durations(
                "reconcile_duration",
                "How long each survey of the host took",
                reconcile_buckets,
            ),
            reconcile_failures: new.counter(
                "reconcile_failures",
                "Surveys that a defect ended",
            ),
            orphans: new.counter(
                "reconcile_orphans",
                "Dead executors that a survey found and no event had told of",
            ),
            unknown_runs: new.gauge(
                "unknown_runs",
                "What looks like an executor and is neither known to live nor to be dead: left alone",
            ),
            live_executors: new.gauge("live_executors", "Executors that are watched now"),
            held: new.gauge(
                "held",
                "1 while inferred deaths stop nothing (compose-cleanup release ends that)",
            ),
            journal_errors: new.counter(
                "journal_errors",
                "Attempts to open or write the journal that failed",
            ),
            journal_dropped: new.each(
                "journal_dropped",
                "Records that there was no room for while the journal could not be written",
                ["step", "case"],
                |kind| vec![("kind", kind)],
            ),
            journal_written: new.counter(
                "journal_records_written",
                "Records that are in the journal",
            ),
            journal_queued: new.gauge(
                "journal_queued_records",
                "Records that the journal's thread has not taken yet",
            ),
            journal_unwritten: new.gauge(
                "journal_unwritten_cases",
                "Cases with something that is in memory only",
            ),
            journal_failing: new.gauge(
                "journal_failing",
                "1 while the journal cannot be opened or written",
            ),
            journal_size: new.bytes("journal_size", "The journal on disk; 0 while it is not open"),
            journal_set_aside: new.counter(
                "journal_set_aside",
                "Journals that could not be used and were begun anew",
            ),
            agent_yields: new.counter(
                "agent_yields",
                "Cases that waited for a living agent to take its part of the run down",
            ),
            agent_takeovers: new.counter(
                "agent_takeovers",
                "Cases whose agent's part was taken down without it: it was gone, or teardown is immediate",
            ),
            requests: new.each(
                "inbox_requests",
                "Requests of the Mesos hook, by what became of them",
                [
                    RequestOutcome::Known,
                    RequestOutcome::Surveyed,
                    RequestOutcome::Refused,
                ],
                |outcome| {
                    vec![(
                        "outcome",
                        match outcome {
                            RequestOutcome::Known => "known",
                            RequestOutcome::Surveyed => "surveyed",
                            RequestOutcome::Refused => "refused",
                        },
                    )]
                },
            ),
            panics: new.each(
                "panics",
                "Defects that were caught, by where; each is tried again",
                [Panicked::Handler, Panicked::Case],
                |place| {
                    vec![(
                        "place",
                        match place {
                            Panicked::Handler => "handler",
                            Panicked::Case => "case",
                        },
                    )]
                },
            ),
            loop_age: new.seconds(
                "loop_age",
                "How long the loop that takes the kernel's events has not turned although it was asked to",
            ),
            loop_turns: new.durations(
                "loop_turn_duration",
                "How long each event kept the loop from taking the next one",
                turn_buckets,
            ),
            longest_turn: new.seconds(
                "loop_longest_turn",
                "The longest of these turns since the start",
            ),
            enforcing: new.gauge("enforcing", "1 with mode = \"enforce\", 0 with \"observe\""),
            registry: new.0,
            pulse: Pulse::default(),
            oldest_ns: AtomicU64::new(0),
            longest_turn_ns: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    /// The text that Prometheus asks for (OpenMetrics 1.0).
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let now = monotonic_ns();
        let inner = &self.inner;
        let oldest = match inner.oldest_ns.load(Ordering::Relaxed) {
            0 => 0,
            opened => now.saturating_sub(opened),
        };
        inner.oldest_age.set(seconds(oldest));
        inner.loop_age.set(inner.pulse.age(now).as_secs_f64());
        let longest = inner.longest_turn_ns.load(Ordering::Relaxed);
        inner.longest_turn.set(seconds(longest));
        let mut text = String::new();
        text::encode(&mut text, &inner.registry)?;
        Ok(text)
    }

    /// `None`: the daemon is well. Asks the loop, and waits for its answer.
    pub async fn illness(&self) -> Option<Illness> {
        let pulse = &self.inner.pulse;
        pulse.ask(LOOP_DEADLINE).await;
        pulse.illness(monotonic_ns())
    }

    /// Has the loop look at what no event tells of, for as long as a scrape may wait.
    pub async fn refresh(&self) {
        self.inner.pulse.ask_to_look(REFRESH).await;
    }

    // ---- the loop

    /// The loop that drains the ring has turned.
    pub fn turned(&self) {
        self.inner.pulse.beat();
    }

    /// For the loop: it has looked at what no event tells of.
    pub fn looked(&self) {
        self.inner.pulse.looked();
    }

    /// For the loop: completes when somebody waits for a turn of it.
    pub async fn asked(&self) {
        self.inner.pulse.asked().await;
    }

    /// An event was handled, which began then (CLOCK_MONOTONIC).
    pub fn handled(&self, began_ns: u64) {
        let took = monotonic_ns().saturating_sub(began_ns);
        self.inner.loop_turns.observe(seconds(took));
        let longest = &self.inner.longest_turn_ns;
        longest.fetch_max(took, Ordering::Relaxed);
    }

    /// Whether the ring cannot be read now.
    pub fn ring_is_broken(&self, broken: bool) {
        self.inner.pulse.ring_is_broken(broken);
    }

    pub fn panicked(&self, place: Panicked) {
        self.inner.panics.of(place).inc();
    }

    pub fn enforcing(&self, enforcing: bool) {
        self.inner.enforcing.set(i64::from(enforcing));
    }

    // ---- exits

    /// A record of the kernel program.
    pub fn exit(&self, role: Role) {
        self.inner.events_received.inc();
        self.inner.exits.of(role).inc();
    }

    /// All that was lost since the start.
    pub fn losses(&self, losses: &Losses) {
        for (reason, count) in losses.iter() {
            set(&self.inner.events_lost.of(reason), count);
        }
    }

    pub fn live_executors(&self, count: usize) {
        self.inner.live_executors.set(gauge(count));
    }

    /// A request of the hook.
    pub fn requested(&self, outcome: RequestOutcome) {
        self.inner.requests.of(outcome).inc();
    }

    // ---- cases

    /// When the oldest open case was opened (CLOCK_MONOTONIC), if one is.
    pub fn oldest_open_case(&self, opened_ns: Option<u64>) {
        let opened = opened_ns.unwrap_or(0);
        self.inner.oldest_ns.store(opened, Ordering::Relaxed);
    }

    /// A case is over, or an executor left nothing behind.
    pub fn case_closed(&self, record: &Record) {
        let inner = &self.inner;
        let origin = record.death.origin;
        let after = |at: u64| seconds(at.saturating_sub(record.death.at_ns));
        if origin == Origin::Kernel {
            // Nobody else tells when it was.
            let noticed = after(record.death.noticed_ns);
            inner.stages.of("event").observe(noticed);
        }
        if !record.is_case() {
            inner.cases.of((origin, NOTHING_LEFT)).inc();
            return;
        }
        inner.cases.of((origin, record.result.as_str())).inc();
        for container in record.containers.values() {
            inner.containers.of(container.progress.as_str()).inc();
        }
        for (stage, at) in [
            ("first_stop", record.first_stop_ns()),
            ("stopped", record.stopped_ns),
            ("clean", record.clean_ns),
        ] {
            if let Some(at) = at {
                inner.stages.of(stage).observe(after(at));
            }
        }
    }

    /// Whether inferred deaths are held back now.
    pub fn held(&self, held: bool) {
        self.inner.held.set(i64::from(held));
    }

    // ---- effects

    pub fn docker_request<T>(&self, operation: Operation, answer: &Result<T, DockerError>) {
        let outcome = match answer {
            Ok(_) => "ok",
            Err(DockerError::Refused { status, .. }) if *status < 500 => "refused",
            Err(DockerError::Refused { .. }) => "error",
            Err(DockerError::Timeout { .. }) => "timeout",
            Err(DockerError::Unreachable { .. }) => "unreachable",
        };
        self.inner.docker_requests.of((operation, outcome)).inc();
    }

    pub fn docker_up(&self, up: bool) {
        self.inner.docker_up.set(i64::from(up));
    }

    pub fn cgroup_removed(&self) {
        self.inner.cgroups_removed.inc();
    }

    /// A removal failed and will be tried again; `None`: it was not that something is
    /// in it.
    pub fn rmdir_retry(&self, busy: Option<Busy>) {
        self.inner.rmdir_retries.of(busy).inc();
    }

    // ---- surveys

    pub fn reconciled(&self, took: Duration) {
        self.inner.reconciles.observe(took.as_secs_f64());
    }

    pub fn reconcile_failed(&self) {
        self.inner.reconcile_failures.inc();
    }

    /// A dead run that no event told of.
    pub fn orphan(&self) {
        self.inner.orphans.inc();
    }

    pub fn unknown_runs(&self, count: usize) {
        self.inner.unknown_runs.set(gauge(count));
    }

    // ---- the journal

    pub fn journal(&self, stats: &journal::Stats) {
        let inner = &self.inner;
        set(&inner.journal_errors, stats.errors);
        set(&inner.journal_dropped.of("step"), stats.dropped_steps);
        set(&inner.journal_dropped.of("case"), stats.dropped_cases);
        set(&inner.journal_written, stats.written);
        set(&inner.journal_set_aside, stats.set_aside);
        inner.journal_queued.set(gauge(stats.waiting));
        inner.journal_unwritten.set(gauge(stats.unwritten_cases));
        inner
            .journal_failing
            .set(i64::from(stats.failing_since_unix_ns.is_some()));
        inner
            .journal_size
            .set(i64::try_from(stats.bytes).unwrap_or(i64::MAX));
    }
}

/// For what somebody else counts. Never lower than before: they only count up.
fn set(counter: &Counter, total: u64) {
    counter.inner().fetch_max(total, Ordering::Relaxed);
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
}

#[cfg(test)]
mod tests;
