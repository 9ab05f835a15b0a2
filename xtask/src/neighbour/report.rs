//! Both arms side by side, and the verdict.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::arm::Account;
use crate::stats::Summary;
use crate::table::Table;

#[derive(Debug)]
pub(super) struct Report {
    title: String,
    with: Account,
    without: Account,
}

impl Report {
    pub(super) fn new(version: &str, restart: &str, with: Account, without: Account) -> Self {
        let title = format!(
            "Mesos {version}, restart policy `{restart}`, {} deaths in each arm",
            with.deaths
        );
        Self {
            title,
            with,
            without,
        }
    }

    /// Name, with, without.
    fn rows(&self) -> Vec<[String; 3]> {
        let pair = |name: &str, value: &dyn Fn(&Account) -> String| {
            [name.to_owned(), value(&self.with), value(&self.without)]
        };
        let ms = |account: &Account, pick: fn(&Summary) -> f64| {
            Summary::of(account.terminal_ms.iter().copied())
                .map_or_else(|| "-".to_owned(), |s| format!("{:.0}", pick(&s)))
        };
        let mut rows = vec![
            pair("failed destroys (container_destroy_errors)", &|a| {
                a.destroy_errors.to_string()
            }),
            pair("ERROR lines in the agent's log", &|a| {
                a.error_lines.to_string()
            }),
            pair("cgroups left behind", &|a| a.cgroups_left.to_string()),
            pair("containers left running", &|a| {
                a.containers_left.to_string()
            }),
            pair("memory held for ended executors, MB", &|a| {
                a.mem_held.to_string()
            }),
            pair("death to terminal update, ms, median", &|a| {
                ms(a, |s| s.p50)
            }),
            pair("death to terminal update, ms, p99", &|a| ms(a, |s| s.p99)),
        ];
        let mut kinds: Vec<_> = self
            .with
            .updates
            .keys()
            .chain(self.without.updates.keys())
            .collect();
        kinds.sort();
        kinds.dedup();
        for kind in kinds {
            let count =
                |account: &Account| account.updates.get(kind).copied().unwrap_or(0).to_string();
            rows.push(pair(&format!("{} {}", kind.0, kind.1), &count));
        }
        rows
    }

    /// In which ways the agent is worse off with us. Empty is what is promised.
    pub(super) fn faults(&self) -> Vec<String> {
        let Self { with, without, .. } = self;
        let mut faults = Vec::new();
        let mut not_more = |what: &str, ours: f64, theirs: f64| {
            if ours > theirs {
                faults.push(format!("{what}: {ours} with, {theirs} without"));
            }
        };
        not_more(
            "failed destroys",
            with.destroy_errors,
            without.destroy_errors,
        );
        // Agents log some by themselves now and then: a few deaths say nothing of a
        // line or two.
        let by_chance = if with.deaths < 100 { 2.0 } else { 0.0 };
        not_more(
            "ERROR lines",
            with.error_lines as f64,
            without.error_lines as f64 + by_chance,
        );
        not_more("cgroups left behind", with.cgroups_left as f64, 0.0);
        not_more("containers left running", with.containers_left as f64, 0.0);
        not_more("memory held", with.mem_held, without.mem_held);
        // A failed destroy changes what the framework is told; without any, both
        // must have been told the same.
        if without.destroy_errors == 0.0 && with.updates != without.updates {
            faults.push(format!(
                "task updates: {:?} with, {:?} without",
                with.updates, without.updates
            ));
        }
        faults
    }

    pub(super) fn append_markdown(&self, path: &Path) -> Result<()> {
        let mut text = format!(
            "\n### {}\n\n| | with | without |\n|---|---:|---:|\n",
            self.title
        );
        for [name, with, without] in self.rows() {
            text += &format!("| {name} | {with} | {without} |\n");
        }
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        file.write_all(text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        let mut table = Table::new(["", "with", "without"]);
        for row in self.rows() {
            table.row(row);
        }
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(destroy_errors: f64, failed: usize, cgroups_left: usize) -> Account {
        Account {
            deaths: failed,
            updates: [(("TASK_FAILED".to_owned(), "R".to_owned()), failed)].into(),
            terminal_ms: vec![100.0; failed],
            destroy_errors,
            cgroups_left,
            ..Account::default()
        }
    }

    #[test]
    fn what_counts_as_worse() {
        let faults = |with, without| Report::new("V", "no", with, without).faults().len();
        assert_eq!(faults(account(0.0, 5, 0), account(0.0, 5, 25)), 0);
        assert_eq!(faults(account(0.0, 5, 0), account(2.0, 3, 25)), 0);
        assert_eq!(faults(account(1.0, 5, 0), account(0.0, 5, 0)), 1);
        assert_eq!(faults(account(0.0, 5, 1), account(0.0, 5, 9)), 1);
        assert_eq!(faults(account(0.0, 4, 0), account(0.0, 5, 0)), 1);
    }

    #[test]
    fn both_arms_stand_side_by_side() {
        let text = Report::new("V", "always", account(0.0, 5, 0), account(2.0, 5, 25)).to_string();
        assert!(
            text.contains("V, restart policy `always`, 5 deaths"),
            "{text}"
        );
        assert!(
            text.lines()
                .any(|line| line.split_whitespace().rev().take(2).eq(["25", "0"])),
            "{text}"
        );
    }
}
