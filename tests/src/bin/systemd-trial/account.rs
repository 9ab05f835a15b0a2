//! What the daemon says of its work: while it runs, and in its history of cases. A host
//! that is clean proves nothing: the stand-in, Docker and systemd remove things, too.

use anyhow::{Context, Result, ensure};
use cleanup_tests::wait;
use serde_json::Value;

use crate::bed::Pod;
use crate::unit::{LONG, tool};

const PROGRAM: &str = "compose-cleanup";

/// What a case has to show before it counts as the daemon's own.
#[derive(Debug)]
pub(crate) struct Work {
    /// `clean`, `observed`.
    pub(crate) result: &'static str,
    pub(crate) pod: Stop,
    /// At least so many directories were removed.
    pub(crate) cgroups: u64,
    /// At least so many of the run's own processes were ended.
    pub(crate) processes: u64,
    /// It was taken up again by another life of the daemon.
    pub(crate) resumed: bool,
}

/// What the daemon did about the pod's one container.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    /// It was found, and not asked to end.
    Found,
    /// It was asked to, and how it ended is known.
    Ended(&'static str),
    /// It was asked to by a daemon that did not live to see its end: the next one finds that it
    /// has ended, and not how.
    Asked,
}

impl Work {
    /// A pod that obeys was stopped, and that was all there was to do.
    pub(crate) const STOPPED: Self = Self {
        result: "clean",
        pod: Stop::Ended("term"),
        cgroups: 0,
        processes: 0,
        resumed: false,
    };
}

/// `compose-cleanup status`, of a daemon that runs.
pub(crate) fn status() -> Result<Value> {
    let text = tool(PROGRAM, &["status", "--output", "json"])?;
    serde_json::from_str(&text).with_context(|| format!("a status: {text}"))
}

/// Waits until the daemon says so; what it said last is in the error.
pub(crate) fn wait_status(what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    wait::try_until(LONG, what, || {
        last = status()?;
        Ok(wanted(&last).then(|| last.clone()))
    })
    .with_context(|| format!("{last:#}"))
}

/// Waits until the pod's case is open, and at such a step.
pub(crate) fn wait_open(pod: &Pod, at: impl Fn(&str) -> bool) -> Result<()> {
    let id = pod.run.container_id();
    wait_status(&format!("the case of {id}"), |status| {
        let mut cases = status["cases"].as_array().into_iter().flatten();
        cases.any(|case| case["container"] == id && case["step"].as_str().is_some_and(&at))
    })
    .map(drop)
}

/// Waits until the pod's case is over in the history, and looks whether it was the daemon
/// that did the work.
pub(crate) fn wait_worked(pod: &Pod, work: &Work) -> Result<()> {
    let id = pod.run.container_id();
    let mut last = Value::Null;
    let case = wait::try_until(LONG, format_args!("the case of {id} to be over"), || {
        last = history(id)?;
        let over = last["result"].is_string() && last["result"] != "open";
        Ok(over.then(|| last.clone()))
    })
    .with_context(|| format!("{last:#}"))?;
    judge(&case, &pod.docker_id, work).with_context(|| format!("{case:#}"))
}

/// Null: there is none yet.
fn history(container_id: &str) -> Result<Value> {
    let arguments = ["cases", "--container", container_id, "--output", "json"];
    let cases = tool(PROGRAM, &arguments)?;
    let cases: Value = serde_json::from_str(&cases).with_context(|| format!("cases: {cases}"))?;
    let Some(id) = cases[0]["id"].as_str() else {
        return Ok(Value::Null);
    };
    let case = tool(PROGRAM, &["case", id, "--output", "json"])?;
    serde_json::from_str(&case).with_context(|| format!("a case: {case}"))
}

fn judge(case: &Value, docker_id: &str, work: &Work) -> Result<()> {
    let Work {
        result,
        pod,
        cgroups,
        processes,
        resumed,
    } = work;
    ensure!(case["result"] == *result, "the result is not {result:?}");
    let container = case["containers"].as_array().into_iter().flatten();
    let mut container = container.filter(|container| container["container"] == docker_id);
    let container = container.next().context("the pod was not found")?;
    let asked = !case["first_stop_after_ns"].is_null() && !container["asked_after_ns"].is_null();
    match pod {
        Stop::Found => ensure!(
            !asked && !asked_in_a_step(case),
            "the pod was asked to stop"
        ),
        Stop::Ended(ending) => {
            ensure!(asked, "the pod was stopped by somebody else");
            let found = &container["ending"];
            ensure!(*found == **ending, "it ended by {found}, not by {ending:?}");
        }
        Stop::Asked => ensure!(
            asked_in_a_step(case),
            "the pod was stopped by somebody else"
        ),
    }
    for (name, least) in [("cgroups_removed", cgroups), ("processes_ended", processes)] {
        let count = case[name].as_u64().unwrap_or_default();
        ensure!(count >= *least, "{name}: {count}, and not {least} or more");
    }
    let lives = case["resumed"].as_u64().unwrap_or_default();
    ensure!(
        !resumed || lives > 0,
        "it was not taken up by another life of the daemon"
    );
    Ok(())
}

fn asked_in_a_step(case: &Value) -> bool {
    let mut steps = case["steps"].as_array().into_iter().flatten();
    steps.any(|step| step["kind"] == "stop" && step["outcome"] == "asked")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn case() -> Value {
        json!({
            "result": "clean", "first_stop_after_ns": 5, "cgroups_removed": 2,
            "processes_ended": 1, "resumed": 1,
            "containers": [{"container": "pod", "asked_after_ns": 5, "ending": "term"}],
            "steps": [{"kind": "stop", "outcome": "asked"}],
        })
    }

    const ALL: Work = Work {
        cgroups: 2,
        processes: 1,
        resumed: true,
        ..Work::STOPPED
    };

    #[test]
    fn what_the_daemon_did_counts() {
        judge(&case(), "pod", &ALL).unwrap();
        let observed = json!({
            "result": "observed",
            "containers": [{"container": "pod", "ending": "would_stop"}],
        });
        let nothing = Work {
            result: "observed",
            pod: Stop::Found,
            ..Work::STOPPED
        };
        judge(&observed, "pod", &nothing).unwrap();
        let mut stopped = case();
        stopped["result"] = json!("observed");
        assert!(judge(&stopped, "pod", &nothing).is_err());
    }

    #[test]
    fn what_somebody_else_did_does_not() {
        for (pointer, value, why) in [
            ("/result", json!("dismissed"), "the result is not"),
            ("/containers", json!([]), "not found"),
            ("/containers/0/container", json!("other"), "not found"),
            ("/first_stop_after_ns", Value::Null, "somebody else"),
            ("/containers/0/asked_after_ns", Value::Null, "somebody else"),
            ("/containers/0/ending", json!("already"), "it ended by"),
            ("/containers/0/ending", Value::Null, "it ended by"),
            ("/cgroups_removed", json!(1), "cgroups_removed: 1"),
            ("/processes_ended", json!(0), "processes_ended: 0"),
            ("/resumed", json!(0), "another life"),
        ] {
            let mut case = case();
            *case.pointer_mut(pointer).unwrap() = value;
            let error = judge(&case, "pod", &ALL).unwrap_err().to_string();
            assert!(error.contains(why), "{pointer}: {error}");
        }
    }

    #[test]
    fn an_end_that_nobody_saw_counts_if_it_was_asked_for() {
        let crashed = Work {
            pod: Stop::Asked,
            ..Work::STOPPED
        };
        let mut case = case();
        case["first_stop_after_ns"] = Value::Null;
        case["containers"] = json!([{"container": "pod"}]);
        judge(&case, "pod", &crashed).unwrap();
        case["steps"][0]["outcome"] = json!("observed");
        assert!(judge(&case, "pod", &crashed).is_err());
    }
}
