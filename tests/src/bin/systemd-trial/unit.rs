//! The unit as systemd has it, and the programs of the guest that tell of it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::process::Process;
use cleanup_tests::{command, wait};

pub(crate) const UNIT: &str = "compose-cleanup.service";
/// Of a tool that may have to start half the machine; nothing here is fast.
const TOOL: Duration = Duration::from_secs(240);
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Runs a program that must succeed.
pub(crate) fn tool(program: &str, arguments: &[&str]) -> Result<String> {
    command::output(Command::new(program).args(arguments), TOOL)
}

/// Runs a program for what it says, whatever that is.
pub(crate) fn tell(program: &str, arguments: &[&str]) -> String {
    command::words(Command::new(program).args(arguments), TOOL)
}

/// A property of a unit, as `systemctl show` has it.
pub(crate) fn property(unit: &str, name: &str) -> Result<String> {
    let value = tool("systemctl", &["show", "--value", "-p", name, unit])?;
    Ok(value.trim().to_owned())
}

pub(crate) fn expect(unit: &str, name: &str, value: &str) -> Result<()> {
    let found = property(unit, name)?;
    ensure!(
        found == value,
        "{name} of {unit} is {found:?}, not {value:?}"
    );
    Ok(())
}

pub(crate) fn wait_for(unit: &str, name: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
    wait::try_until(LONG, format_args!("{name} of {unit}"), || {
        let found = property(unit, name)?;
        Ok(wanted(&found).then_some(found))
    })
}

/// What the unit has logged in this boot.
pub(crate) fn log() -> Result<String> {
    tool("journalctl", &["--no-pager", "-b", "-o", "cat", "-u", UNIT])
}

pub(crate) fn wait_logged(words: &[&str]) -> Result<()> {
    wait::try_until(LONG, format_args!("a line with {words:?}"), || {
        let log = log()?;
        let found = log
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)));
        Ok(found.then_some(()))
    })
}

/// A whole word of a line: `already` is not `ready`.
pub(crate) fn wait_word(word: &str) -> Result<()> {
    wait::try_until(LONG, format_args!("the word {word:?} in the log"), || {
        Ok(has_word(&log()?, word).then_some(()))
    })
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_whitespace().any(|found| found == word)
}

/// The unit's first process.
pub(crate) fn main_process() -> Result<Process> {
    let pid: i32 = property(UNIT, "MainPID")?.parse().context("MainPID")?;
    Process::of(pid).context("the daemon's process")
}

/// How much the running unit is exposed, by `systemd-analyze security`: 0 is best, 10 worst.
pub(crate) fn exposure(report: &str) -> Result<f64> {
    let after = "Overall exposure level for ";
    let line = report.lines().find(|line| line.contains(after));
    let words = line.and_then(|line| line.split_once(after)?.1.split_once(": "));
    let score = words.and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    score.with_context(|| format!("no score in:\n{report}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_word_is_not_that_word() {
        let log = "INFO it runs already\n";
        assert!(!has_word(log, "ready"));
        assert!(has_word(
            &format!("{log}INFO ready mode=Observe\n"),
            "ready"
        ));
    }

    #[test]
    fn a_score_is_read_in_either_alphabet() {
        for (arrow, face) in [("→", " 🙂"), ("->", "")] {
            let report = format!(
                "✗ PrivateNetwork=   Service has access to the host's network   0.5\n\n\
                 {arrow} Overall exposure level for compose-cleanup.service: 2.8 OK{face}\n"
            );
            assert_eq!(exposure(&report).unwrap(), 2.8);
        }
        for report in ["", "Overall exposure level for a.service: OK"] {
            assert!(exposure(report).is_err(), "{report:?}");
        }
    }
}
