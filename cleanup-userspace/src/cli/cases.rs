//! `compose-cleanup cases`

use std::fmt::Write as _;

use clap::Args;
use serde_json::{Value, json};

use super::history::{Output, Source, id, print, shorten, span, status, text, time};
use crate::journal::{CaseSummary, Filter};

/// What a table may take: half a wide terminal.
const COLUMNS: usize = 100;

const EXAMPLES: &str = "\
Examples:
  The last 50 dead executors whose pods or cgroups had to be cleaned up:
      compose-cleanup cases

  What is not finished yet, oldest problems included:
      compose-cleanup cases --open --limit 1000

  All deaths of one executor, for a program:
      compose-cleanup cases --executor web --output json

  Which case stopped this Docker container?
      compose-cleanup cases --container 3f1c2a

Columns:
  ID      number of the case; `compose-cleanup case ID` tells all of it
  DIED    when the executor ended, UTC
  RUN     first digits of the Mesos container id
  HOW     how the executor ended
  RESULT  \"clean\": nothing of it is left on the host; \"observed\": mode is
          \"observe\"; \"open\": not finished
  CONT    Docker containers of its pod
  CLEAN   how long after the death the host was seen clean

Exit status:
  0  told, even if there is no case
  1  there is no journal, or it cannot be read (the message says why)
  2  wrong usage of the command line";

/// List the cases in the journal, newest first.
///
/// A case is one dead executor run whose containers or cgroups had to be cleaned
/// up. The journal is read directly: the daemon need not run, and is not disturbed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cases {
    #[command(flatten)]
    source: Source,

    /// Only cases that are not closed.
    #[arg(long)]
    open: bool,

    /// Only cases of this executor id, whole.
    #[arg(long, value_name = "ID")]
    executor: Option<String>,

    /// Only cases of this framework id, whole.
    #[arg(long, value_name = "ID")]
    framework: Option<String>,

    /// Only cases of this Mesos container or of this Docker container; the first
    /// digits are enough.
    #[arg(long, value_name = "ID")]
    container: Option<String>,

    /// At most so many, the newest.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,

    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl Cases {
    pub fn run(self) -> anyhow::Result<()> {
        let Self {
            source,
            open,
            executor,
            framework,
            container,
            limit,
            output,
        } = self;
        let history = source.open()?;
        let filter = Filter {
            open,
            executor: executor.map(String::into_bytes),
            framework: framework.map(String::into_bytes),
            container,
            // One more tells whether there are more.
            limit: Some(limit.saturating_add(1)),
        };
        let mut cases = history.cases(&filter)?;
        let shown = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = cases.len() > shown;
        cases.truncate(shown);
        match output {
            Output::Json => {
                let all: Vec<Value> = cases.iter().map(as_json).collect();
                print(&format!("{:#}\n", Value::from(all)))?;
            }
            Output::Table if cases.is_empty() => eprintln!("no such case in the journal"),
            Output::Table => print(&table(&cases, history.digits()?))?,
        }
        if has_more {
            eprintln!(
                "there are more: --limit {} and up shows them",
                limit.saturating_mul(2)
            );
        }
        Ok(())
    }
}

fn table(cases: &[CaseSummary], digits: usize) -> String {
    let names: Vec<String> = cases
        .iter()
        .map(|case| id(case.executor.as_deref()).unwrap_or_else(|| "?".to_owned()))
        .collect();
    // What the other columns and the blanks between them leave.
    let room = COLUMNS.saturating_sub(digits + 19 + 8 + 9 + 9 + 4 + 8 + 7 * 2);
    let longest = names.iter().map(|name| name.chars().count()).max();
    let width = longest.unwrap_or(0).clamp("EXECUTOR".len(), room.max(8));
    let mut out = format!(
        "{:<digits$}  {:<19}  {:<width$}  {:<8}  {:<9}  {:<9}  {:>4}  {:>8}\n",
        "ID", "DIED (UTC)", "EXECUTOR", "RUN", "HOW", "RESULT", "CONT", "CLEAN"
    );
    for (case, name) in cases.iter().zip(&names) {
        let died = time(case.death_unix_ns, false);
        let result = case
            .result
            .as_deref()
            .map_or_else(|| "open".to_owned(), text);
        let _ = writeln!(
            out,
            "{}  {:<19}  {:<width$}  {:<8}  {:<9}  {:<9}  {:>4}  {:>8}",
            &case.id.to_string()[..digits.min(16)],
            died.trim_end_matches('Z').replace('T', " "),
            shorten(name, width),
            shorten_run(&case.container),
            shorten(&status(case.wait_status), 9),
            shorten(&result, 9),
            case.containers,
            case.clean_after_ns.map_or_else(|| "-".to_owned(), span),
        );
    }
    out
}

fn shorten_run(container: &str) -> String {
    text(container).chars().take(8).collect()
}

pub(super) fn as_json(case: &CaseSummary) -> Value {
    let CaseSummary {
        id: number,
        container,
        framework,
        executor,
        origin,
        death_unix_ns,
        wait_status,
        resumed,
        closed_unix_ns,
        result,
        containers,
        directories_removed,
        processes_ended,
        first_stop_after_ns,
        stopped_after_ns,
        clean_after_ns,
    } = case;
    json!({
        "id": number.to_string(),
        "container": text(container),
        "framework": id(framework.as_deref()),
        "executor": id(executor.as_deref()),
        "origin": text(origin),
        "died": time(*death_unix_ns, true),
        "death_unix_ns": death_unix_ns,
        "status": status(*wait_status),
        "resumed": resumed,
        "closed": closed_unix_ns.map(|at| time(at, true)),
        "result": result.as_deref().map_or_else(|| "open".to_owned(), text),
        "pod_containers": containers,
        "cgroups_removed": directories_removed,
        "processes_ended": processes_ended,
        "first_stop_after_ns": first_stop_after_ns,
        "stopped_after_ns": stopped_after_ns,
        "clean_after_ns": clean_after_ns,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::CaseId;

    #[test]
    fn a_table_of_odd_cases_is_readable_at_100_columns() {
        let case = CaseSummary {
            id: CaseId::next(),
            container: "857fd7a0-df05-458b-bd72-f5c280790aa0".to_owned(),
            framework: None,
            executor: Some(b"an executor \x1b[2J with a name that is much too long\xff".to_vec()),
            origin: "kernel".to_owned(),
            death_unix_ns: 1_795_516_982_123_456_000,
            wait_status: Some(64),
            resumed: 0,
            closed_unix_ns: None,
            result: Some("a result of a later release".to_owned()),
            containers: 4000,
            directories_removed: 10,
            processes_ended: 0,
            first_stop_after_ns: None,
            stopped_after_ns: None,
            clean_after_ns: Some(i64::MAX / 1000),
        };
        for digits in [8, 16] {
            let table = table(&[case.clone(), case.clone()], digits);
            assert!(!table.contains('\x1b'), "{table}");
            for line in table.lines() {
                assert_eq!(line.chars().count(), COLUMNS, "{table}");
            }
        }
    }
}
