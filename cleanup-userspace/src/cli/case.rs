//! `compose-cleanup case ID`

use std::fmt::Write as _;

use clap::Args;
use serde_json::{Value, json};

use super::cases;
use super::history::{Output, Source, id, print, shorten, span, status, text, time};
use crate::journal::{CaseDetail, ContainerRow, EvidenceRow, StepRow};

const EXAMPLES: &str = "\
Examples:
  compose-cleanup case 4f21ab0c
  compose-cleanup case 857fd7a0-df05-458b-bd72-f5c280790aa0 --output json

Exit status:
  0  told
  1  there is no such case or no journal, or more than one case begins so
  2  wrong usage of the command line";

/// Tell all that the journal has of one case.
///
/// Who died, how that was seen, which containers were joined by which key, every
/// step with its time, and how each container ended. The journal is read directly: the daemon need not run, and is not disturbed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Case {
    /// The number of the case, whole or its first digits, or a Mesos container id.
    #[arg(value_name = "ID")]
    case: String,

    #[command(flatten)]
    source: Source,

    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl Case {
    pub fn run(self) -> anyhow::Result<()> {
        let Self {
            case,
            source,
            output,
        } = self;
        let history = source.open()?;
        let detail = history.case(history.find(&case)?)?;
        match output {
            Output::Json => print(&format!("{:#}\n", as_json(&detail))),
            Output::Table => print(&page(&detail)),
        }
    }
}

fn page(detail: &CaseDetail) -> String {
    let case = &detail.summary;
    let unknown = || "unknown".to_owned();
    let mut out = String::new();
    let mut field = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<10} {value}");
    };
    field("case", &case.id.to_string());
    field("run", &text(&case.container));
    field(
        "executor",
        &id(case.executor.as_deref()).unwrap_or_else(unknown),
    );
    field(
        "framework",
        &id(case.framework.as_deref()).unwrap_or_else(unknown),
    );
    field(
        "agent",
        &id(detail.agent.as_deref()).unwrap_or_else(unknown),
    );
    let died = time(case.death_unix_ns, true);
    field("died", &format!("{died}, {}", status(case.wait_status)));
    let mut seen_by = text(&case.origin);
    for evidence in &detail.evidence {
        let _ = write!(seen_by, ", then {}", text(&evidence.origin));
    }
    field("seen by", &seen_by);
    if let Some(proof) = &detail.proof {
        field("proof", &text(proof));
    }
    if let Some(plan) = &detail.plan {
        field("plan", &text(plan));
    }
    let result = match (&case.result, case.clean_after_ns) {
        (None, _) => "open: not finished".to_owned(),
        (Some(result), None) => text(result),
        (Some(result), Some(after)) => format!("{}, {} after the death", text(result), span(after)),
    };
    field("result", &result);
    if let Some(closed) = case.closed_unix_ns {
        field("closed", &time(closed, true));
    }
    field("removed", &format!("{} cgroups", case.directories_removed));
    if case.processes_ended > 0 {
        field(
            "ended",
            &format!("{} processes of its own", case.processes_ended),
        );
    }
    if case.resumed > 0 {
        field(
            "resumed",
            &format!(
                "{} times: the daemon was restarted, or a container came late",
                case.resumed
            ),
        );
    }
    containers(&mut out, &detail.containers);
    timeline(&mut out, detail);
    out
}

fn containers(out: &mut String, rows: &[ContainerRow]) {
    if rows.is_empty() {
        out.push_str("\nno container was joined to it\n");
        return;
    }
    let _ = writeln!(
        out,
        "\n{:<12}  {:<13}  {:>10}  {:>10}  {:>10}  ENDING",
        "CONTAINER", "JOINED BY", "JOINED", "ASKED", "ENDED"
    );
    let ms = |at: Option<i64>| at.map_or_else(|| "-".to_owned(), ms);
    for row in rows {
        let _ = writeln!(
            out,
            "{:<12}  {:<13}  {:>10}  {:>10}  {:>10}  {}",
            text(&row.container).chars().take(12).collect::<String>(),
            shorten(&row.key.as_deref().map_or_else(|| "-".to_owned(), text), 13),
            ms(row.joined_after_ns),
            ms(row.asked_after_ns),
            ms(row.ended_after_ns),
            row.ending.as_deref().map_or_else(|| "-".to_owned(), text),
        );
    }
}

/// Everything that has a time, in order.
fn timeline(out: &mut String, detail: &CaseDetail) {
    let mut events: Vec<(i64, Option<i64>, String)> = vec![
        (
            0,
            None,
            format!("the executor ended: {}", status(detail.summary.wait_status)),
        ),
        (
            detail.noticed_after_ns,
            None,
            format!("noticed by {}", text(&detail.summary.origin)),
        ),
    ];
    for row in &detail.evidence {
        let times = if row.times > 1 {
            format!(" ({} times)", row.times)
        } else {
            String::new()
        };
        let detail = row
            .detail
            .as_deref()
            .map_or_else(String::new, |detail| format!(": {}", text(detail)));
        events.push((
            row.first_after_ns,
            None,
            format!("told by {}{times}{detail}", text(&row.origin)),
        ));
    }
    for step in &detail.steps {
        let took = step
            .ended_after_ns
            .map(|ended| ended.saturating_sub(step.began_after_ns));
        events.push((step.began_after_ns, took, describe(step)));
    }
    let marks = [
        (
            detail.summary.stopped_after_ns,
            "the last container had ended",
        ),
        (
            detail.summary.clean_after_ns,
            "nothing of it is left on the host",
        ),
    ];
    for (at, what) in marks {
        if let Some(at) = at {
            events.push((at, None, what.to_owned()));
        }
    }
    // Stable: what has the same time stays in the order above.
    events.sort_by_key(|(at, _, _)| *at);
    let _ = writeln!(
        out,
        "\n{:>10}  {:>10}  STEP (milliseconds after the death)",
        "AT", "TOOK"
    );
    for (at, took, what) in events {
        let took = took.map_or_else(String::new, ms);
        let _ = writeln!(out, "{:>10}  {took:>10}  {what}", ms(at));
    }
    if detail.steps_dropped > 0 {
        let _ = writeln!(out, "{} more steps were not kept", detail.steps_dropped);
    }
}

fn describe(step: &StepRow) -> String {
    let mut what = text(&step.kind);
    if step.resumed > 0 {
        let _ = write!(what, " [resumed {}]", step.resumed);
    }
    if let Some(detail) = &step.detail {
        let _ = write!(what, " {}", text(detail));
    }
    match &step.outcome {
        Some(outcome) => {
            let _ = write!(what, ": {}", text(outcome));
        }
        None => what.push_str(": no end was recorded"),
    }
    if let Some(error) = &step.error {
        let _ = write!(what, " ({})", text(error));
    }
    what
}

fn ms(ns: i64) -> String {
    format!("{:.2}", ns as f64 / 1e6)
}

fn as_json(detail: &CaseDetail) -> Value {
    let CaseDetail {
        summary,
        agent,
        proof,
        noticed_after_ns,
        plan,
        steps_dropped,
        evidence,
        containers,
        steps,
    } = detail;
    let mut case = cases::as_json(summary);
    case["agent_work_dir"] = json!(id(agent.as_deref()));
    case["proof"] = json!(proof.as_deref().map(text));
    case["noticed_after_ns"] = json!(noticed_after_ns);
    case["plan"] = json!(plan.as_deref().map(text));
    case["steps_dropped"] = json!(steps_dropped);
    case["evidence"] = evidence.iter().map(evidence_json).collect();
    case["containers"] = containers.iter().map(container_json).collect();
    case["steps"] = steps.iter().map(step_json).collect();
    case
}

fn evidence_json(row: &EvidenceRow) -> Value {
    json!({
        "resumed": row.resumed,
        "origin": text(&row.origin),
        "first_after_ns": row.first_after_ns,
        "times": row.times,
        "detail": row.detail.as_deref().map(text),
    })
}

fn container_json(row: &ContainerRow) -> Value {
    json!({
        "container": text(&row.container),
        "joined_by": row.key.as_deref().map(text),
        "joined_after_ns": row.joined_after_ns,
        "asked_after_ns": row.asked_after_ns,
        "ended_after_ns": row.ended_after_ns,
        "ending": row.ending.as_deref().map(text),
    })
}

fn step_json(row: &StepRow) -> Value {
    json!({
        "resumed": row.resumed,
        "seq": row.seq,
        "kind": text(&row.kind),
        "detail": row.detail.as_deref().map(text),
        "began_after_ns": row.began_after_ns,
        "ended_after_ns": row.ended_after_ns,
        "outcome": row.outcome.as_deref().map(text),
        "error": row.error.as_deref().map(text),
    })
}
