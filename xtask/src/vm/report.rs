//! The table at the end.

use std::fmt;
use std::time::Duration;

use cleanup_tests::guest::{CgroupMode, Line};

use super::qemu::Outcome;
use super::suite::{Suite, TOOLS};
use crate::exec::seconds;
use crate::table::Table;

/// One guest.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) kernel: String,
    pub(crate) mode: CgroupMode,
    pub(crate) outcome: Outcome,
}

/// What a log tells beside the verdict.
#[derive(Debug, Default, PartialEq, Eq)]
struct Facts {
    boot: Option<Duration>,
    lacks: Vec<String>,
    /// What ran, with the number of tests in it.
    programs: Vec<String>,
    load_ms: Option<String>,
    instructions: Option<String>,
}

impl Facts {
    fn of(log: &str) -> Self {
        let mut facts = Self::default();
        let mut running = String::new();
        for line in log.lines() {
            match Line::parse(line) {
                Some(Line::Booted { uptime, .. }) => facts.boot = Some(uptime),
                Some(Line::Lacks { controller }) => facts.lacks.push(controller),
                Some(Line::Begins { program }) => {
                    if program != TOOLS {
                        facts.programs.push(program.clone());
                    }
                    running = program;
                }
                Some(Line::Ended { .. } | Line::Broken { .. } | Line::Exit { .. }) | None => {}
            }
            if let Some(result) = line.strip_prefix("test result: ")
                && let Some(program) = facts.programs.last_mut()
                && *program == running
            {
                *program = format!("{running} {}", counts(result));
            }
            if let Some((_, figures)) = line.split_once("probe: load_ms=")
                && let Some((load, instructions)) = figures.split_once(" instructions=")
            {
                facts.load_ms = Some(load.to_owned());
                facts.instructions = Some(instructions.to_owned());
            }
        }
        facts
    }
}

/// How many passed, and how many failed, if any did.
fn counts(result: &str) -> String {
    let count = |what: &str| {
        let counts = result.split_once(". ").map_or(result, |(_, counts)| counts);
        let mut counts = counts.split("; ");
        counts.find_map(|count| count.strip_suffix(what)?.parse::<u32>().ok())
    };
    match (count(" passed"), count(" failed")) {
        (Some(passed), Some(0)) => passed.to_string(),
        (Some(passed), Some(failed)) => format!("{passed} ({failed} FAILED)"),
        _ => "?".to_owned(),
    }
}

/// All that ran.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) suite: Suite,
    pub(crate) cells: Vec<Cell>,
}

impl Report {
    pub(crate) fn passed(&self) -> bool {
        !self.cells.is_empty() && self.cells.iter().all(|cell| cell.outcome.verdict.passed())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            "kernel",
            "cgroups",
            "ran (tests)",
            "boot",
            "all",
            "BPF instructions",
            "load ms",
            "v1 lacks",
            "result",
        ])
        .left([1, 2, 7, 8]);
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        for Cell {
            kernel,
            mode,
            outcome,
        } in &self.cells
        {
            let facts = Facts::of(&outcome.log);
            let lacks = match (mode, &facts.lacks[..]) {
                (CgroupMode::V2, _) => "-".to_owned(),
                (_, []) => "nothing".to_owned(),
                (_, lacks) => lacks.join(" "),
            };
            table.row([
                kernel.clone(),
                mode.name().to_owned(),
                facts.programs.join(", "),
                or_none(facts.boot.map(seconds)),
                seconds(outcome.took),
                or_none(facts.instructions),
                or_none(facts.load_ms),
                lacks,
                outcome.verdict.to_string(),
            ]);
        }
        write!(f, "{table}")?;
        // Each of them once, with where that was.
        let mut named = Vec::new();
        for left in self
            .cells
            .iter()
            .flat_map(|cell| self.suite.left_out(cell.mode))
        {
            if named.contains(&left) {
                continue;
            }
            let is_there = |mode: &CgroupMode| {
                self.cells.iter().any(|cell| cell.mode == *mode)
                    && self.suite.left_out(*mode).contains(&left)
            };
            let modes = CgroupMode::ALL.into_iter().filter(is_there);
            let modes: Vec<&str> = modes.map(CgroupMode::name).collect();
            writeln!(f, "left out ({}): {left}", modes.join(", "))?;
            named.push(left);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::Verdict;
    use super::*;

    const LOG: &str = "LAB lacks memory\nLAB booted 6.12.117 2300\nLAB begins probe\n\
        test loading ... probe: load_ms=450 instructions=1234\n\
        test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 31 filtered out\n\
        LAB ended probe 0 500\nLAB begins tools\nLAB ended tools 0 1\nLAB begins kernel\n\
        test result: ok. 29 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out\n\
        LAB ended kernel 0 9000\nLAB exit=0\n";

    #[test]
    fn a_log_tells_what_ran() {
        assert_eq!(
            Facts::of(LOG),
            Facts {
                boot: Some(Duration::from_millis(2300)),
                lacks: vec!["memory".to_owned()],
                programs: vec!["probe 1".to_owned(), "kernel 29".to_owned()],
                load_ms: Some("450".to_owned()),
                instructions: Some("1234".to_owned()),
            }
        );
    }

    #[test]
    fn failures_are_counted() {
        assert_eq!(
            counts("FAILED. 28 passed; 1 failed; 0 ignored; 0 measured"),
            "28 (1 FAILED)"
        );
    }

    #[test]
    fn nothing_that_ran_is_no_success() {
        let mut report = Report {
            suite: Suite::Full,
            cells: Vec::new(),
        };
        assert!(!report.passed());
        for verdict in [Verdict::Passed, Verdict::Broken("x".to_owned())] {
            report.cells.push(Cell {
                kernel: "6.12.117-1".to_owned(),
                mode: CgroupMode::Hybrid,
                outcome: Outcome {
                    verdict: verdict.clone(),
                    log: LOG.to_owned(),
                    took: Duration::from_secs(20),
                },
            });
            assert_eq!(report.passed(), verdict.passed());
        }
        let text = report.to_string();
        assert!(text.contains("BROKEN: x"));
        // Two guests of one mode: named once.
        let why = "left out (hybrid): standin races::…: ";
        assert_eq!(text.matches(why).count(), 1, "{text}");
        assert!(!text.contains("no version 2 is mounted"), "{text}");
    }
}
