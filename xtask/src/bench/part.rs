//! What a benchmark says: goals, tables, charts.

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;

use super::chart::Chart;
use crate::setup::Need;
use crate::stage;
use crate::table::Table;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// Enough to see that the benchmark works: the whole of it in some minutes.
    Quick,
    /// What the documentation gives.
    Full,
}

impl Scale {
    pub(super) fn of(is_quick: bool) -> Self {
        if is_quick { Self::Quick } else { Self::Full }
    }
}

/// What one benchmark adds to the report.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) title: &'static str,
    /// What measures just this.
    pub(super) command: String,
    /// What is measured, on what, and how; Markdown.
    pub(super) method: String,
    pub(super) goals: Vec<Goal>,
    /// With captions.
    pub(super) tables: Vec<(String, Table)>,
    pub(super) charts: Vec<Chart>,
    /// Markdown, each an item of a list.
    pub(super) notes: Vec<String>,
}

/// One benchmark alone: sets the machine up, measures, and shows what came of it.
pub(super) fn show(needs: &[Need], measure: impl FnOnce() -> Result<Part>) -> Result<ExitCode> {
    stage::prepare(needs)?;
    stage::interruptible(|| {
        println!("\n{}", measure()?);
        Ok(ExitCode::SUCCESS)
    })
}

/// What was promised, and what came of it.
#[derive(Debug, Clone)]
pub(super) struct Goal {
    pub(super) what: String,
    pub(super) goal: String,
    pub(super) measured: String,
    pub(super) met: bool,
}

impl Goal {
    pub(super) fn verdict(&self) -> &'static str {
        if self.met { "met" } else { "missed" }
    }

    /// The goals of several parts, side by side.
    pub(super) fn table<'a>(goals: impl IntoIterator<Item = &'a Self>) -> Table {
        let mut table = Table::new(["", "goal", "measured", "verdict"]).left([1, 2, 3]);
        for goal in goals {
            let Self {
                what,
                goal: promised,
                measured,
                met: _,
            } = goal;
            table.row([
                what.clone(),
                promised.clone(),
                measured.clone(),
                goal.verdict().to_owned(),
            ]);
        }
        table
    }
}

/// As a terminal shows it: without the charts.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n\n{}\n", self.title.to_uppercase(), self.method)?;
        for (caption, table) in &self.tables {
            writeln!(f, "{caption}\n{table}")?;
        }
        for note in &self.notes {
            writeln!(f, "- {note}")?;
        }
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        if !self.goals.is_empty() {
            write!(f, "{}", Goal::table(&self.goals))?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn example() -> Part {
        let mut table = Table::new(["", "ns"]);
        table.row(["ours".to_owned(), "55".to_owned()]);
        Part {
            title: "Cost of an exit",
            command: "cargo xtask bench filter".into(),
            method: "As the kernel counts it.".into(),
            goals: vec![Goal {
                what: "thread".into(),
                goal: "≤ 1.2 ×".into(),
                measured: "1.30 ×".into(),
                met: false,
            }],
            tables: vec![("Nanoseconds a run".into(), table)],
            charts: vec![Chart::Bars {
                name: "filter-cost",
                title: "Cost of an exit".into(),
                y: "ns",
                bars: vec![("ours".into(), 55.0), ("empty".into(), 50.0)],
                log: false,
            }],
            notes: vec!["JIT placement alone moves identical code by 20 ns.".into()],
        }
    }

    #[test]
    fn a_terminal_gets_everything_but_the_charts() {
        let text = example().to_string();
        for piece in [
            "COST OF AN EXIT",
            "As the kernel counts it.",
            "Nanoseconds a run",
            "  ours   55",
            "- JIT placement",
            "missed",
        ] {
            assert!(text.contains(piece), "{piece}: {text}");
        }
    }
}
