//! What a soak came to.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use cleanup_tests::command;

use super::fault::Fault;
use super::gauge::{Life, Trend};
use crate::stage::Machine;

const DATE: Duration = Duration::from_secs(5);
/// Of each list, so that the last lines stay in sight.
const SHOWN: usize = 20;

#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) machine: Machine,
    pub(super) period: Duration,
    pub(super) deaths: usize,
    pub(super) faults: BTreeMap<&'static str, usize>,
    /// Runs.
    pub(super) cases: usize,
    pub(super) closings: usize,
    pub(super) left_nothing: usize,
    pub(super) origins: BTreeMap<String, usize>,
    pub(super) losses: usize,
    pub(super) warnings: BTreeMap<String, usize>,
    pub(super) leaks: Vec<String>,
    pub(super) false_actions: Vec<String>,
    pub(super) complaints: Vec<String>,
    pub(super) destroy_errors: f64,
    pub(super) resolved_by_agent: usize,
    pub(super) lives: usize,
    pub(super) longest_life: Option<Life>,
    pub(super) log: PathBuf,
}

/// What a figure is called, and its way over the longest life.
type Figure = (&'static str, Option<Trend>);

impl Outcome {
    /// Nothing left, nobody harmed, nothing that grows, no daemon that fell.
    pub(super) fn is_good(&self) -> bool {
        self.leaks.is_empty()
            && self.false_actions.is_empty()
            && self.complaints.is_empty()
            && self
                .figures()
                .iter()
                .all(|(_, trend)| trend.is_none_or(|trend| trend.is_flat != Some(false)))
    }

    fn figures(&self) -> [Figure; 3] {
        // What an allocator keeps varies by a few MiB; a descriptor for each of the
        // cases that happen to be open is none too many.
        let of = |figure, margin| self.longest_life.as_ref()?.trend(figure, margin);
        [
            ("memory, KiB", of(|sample| sample.rss_kib, 4096)),
            ("descriptors", of(|sample| sample.descriptors, 16)),
            ("threads", of(|sample| sample.threads, 4)),
        ]
    }

    fn faults(&self) -> usize {
        self.faults.values().sum()
    }

    /// Appends a row for the table of docs/reliability.md.
    pub(super) fn append_row(&self, path: &Path, arguments: &Arguments<'_>) -> Result<()> {
        let date = command::output(Command::new("date").args(["-u", "+%F"]), DATE)?;
        let by_kind: Vec<String> = self
            .faults
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let figures: Vec<String> = self
            .figures()
            .iter()
            .map(|(_, trend)| {
                trend.map_or_else(
                    || "-".to_owned(),
                    |trend| format!("{} → {}", trend.first, trend.last),
                )
            })
            .collect();
        let row = format!(
            "| {} | {} | {} | {} | {:.0} | {} | {} ({}) | {} | {} | {} | {} | {} |\n",
            date.trim(),
            self.machine.kernel,
            arguments.version,
            arguments.options(),
            self.period.as_secs_f64() / 60.0,
            self.deaths,
            self.faults(),
            by_kind.join(", "),
            self.cases,
            self.leaks.len(),
            self.false_actions.len(),
            self.destroy_errors,
            figures.join("; "),
        );
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        file.write_all(row.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// What the soak was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arguments<'a> {
    pub(super) version: &'a str,
    pub(super) seed: u64,
    pub(super) one_life: bool,
    pub(super) debug: bool,
    pub(super) without: &'a [Fault],
}

impl Arguments<'_> {
    fn options(&self) -> String {
        let mut options = format!("--seed {}", self.seed);
        if self.one_life {
            options += " --one-life";
        }
        for fault in self.without {
            options += &format!(" without {}", fault.name());
        }
        if self.debug {
            options += " --debug";
        }
        options
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "FAULTS")?;
        for (name, count) in &self.faults {
            writeln!(f, "  {count:>5}  {name}")?;
        }
        writeln!(f, "CASES  by the evidence of the death")?;
        for (origin, count) in &self.origins {
            writeln!(f, "  {count:>5}  {origin}")?;
        }
        writeln!(
            f,
            "  {:>5}  closings in all (containers that came back open a case again)",
            self.closings
        )?;
        writeln!(
            f,
            "  {:>5}  executors that had left nothing",
            self.left_nothing
        )?;
        writeln!(f, "  {:>5}  times the kernel's ring was full", self.losses)?;
        writeln!(
            f,
            "AGENT  {} failed destroys; cgroups that only its restart resolved: {}",
            self.destroy_errors, self.resolved_by_agent
        )?;
        writeln!(f, "WARNINGS of the daemon")?;
        for (message, count) in &self.warnings {
            writeln!(f, "  {count:>5}  {message}")?;
        }
        let seconds = self
            .longest_life
            .as_ref()
            .map_or(0, |life| life.samples.len());
        writeln!(f, "DAEMON  {} lives, the longest {seconds} s", self.lives)?;
        for (name, trend) in self.figures() {
            let Some(trend) = trend else { continue };
            let verdict = match trend.is_flat {
                Some(true) => "flat",
                Some(false) => "IT GROWS",
                None => "too short a life to tell",
            };
            writeln!(
                f,
                "  {name:<12} first {:<7} last {:<7} max {:<7} {verdict}",
                trend.first, trend.last, trend.max
            )?;
        }
        for (title, list) in [
            ("COMPLAINT", &self.complaints),
            ("LEAK", &self.leaks),
            ("FALSE ACTION", &self.false_actions),
        ] {
            for line in list.iter().take(SHOWN) {
                writeln!(f, "{title}: {line}")?;
            }
        }
        writeln!(f, "log of all lives: {}", self.log.display())?;
        writeln!(f, "deaths: {}", self.deaths)?;
        writeln!(f, "faults: {}", self.faults())?;
        writeln!(f, "cases: {}", self.cases)?;
        writeln!(f, "leaks: {}", self.leaks.len())?;
        write!(f, "false actions: {}", self.false_actions.len())
    }
}
