//! `compose-cleanup plan`: what would be done and why, by a daemon and without one;
//! and nothing is.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cleanup_tests::host::{Host, RunningPod};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::{AgentPlace, configure};
use serde_json::{Value, json};

use super::{Lonely, SOON, http, say, wait_json};

/// A pod that takes its time to end, and is not beneath what the agent kills.
const SLOW_POD: &str = "--no-cgroup-parent --ignore-term 1";
const SLOW: &str = "mode = \"enforce\"\ngrace = \"30s\"\nsettle = \"200ms\"";

const STRANGER: &str = "857fd7a0-df05-458b-bd72-f5c280790aa0";

/// The plan of this run, and of no other.
fn plan_of(scratch: &Scratch, words: &[&str], container: &str) -> Result<Value> {
    let said = say(scratch, &[words, &["--output", "json"]].concat())?;
    let plans = said.expect(0).json()?;
    let plans = plans["plans"].as_array().context("plans")?;
    let plan = plans.iter().find(|plan| plan["container"] == container);
    plan.cloned()
        .with_context(|| format!("no plan in {plans:?}"))
}

#[track_caller]
fn assert_plan(plan: &Value, standing: &str, acts: &str, evidence: &str, why: &str) {
    assert_eq!(plan["standing"], standing, "{plan:#}");
    assert_eq!(plan["acts"], acts, "{plan:#}");
    for (field, words) in [("evidence", evidence), ("why", why)] {
        let text = plan[field].as_str().unwrap_or_default();
        assert!(text.contains(words), "no `{words}` in {field}: {plan:#}");
    }
}

/// The pod's containers, all to be stopped, by this key.
#[track_caller]
fn assert_containers(plan: &Value, pod: &RunningPod, key: &str) {
    let planned = plan["containers"].as_array().cloned().unwrap_or_default();
    let mut ids: Vec<&str> = planned
        .iter()
        .filter_map(|one| one["id"].as_str())
        .collect();
    let mut expected: Vec<&str> = pod.containers.iter().map(String::as_str).collect();
    ids.sort_unstable();
    expected.sort_unstable();
    assert_eq!(ids, expected, "{plan:#}");
    for container in planned {
        assert_eq!(container["joined_by"], key, "{container}");
        assert_eq!(container["action"], "stop", "{container}");
    }
}

/// How many cgroups are planned to go so; each of them exists.
fn cgroups(plan: &Value, owner: &str, removed: &str) -> Result<usize> {
    let planned = plan["cgroups"].as_array().context("cgroups")?;
    for cgroup in planned {
        let path = cgroup["path"].as_str().context("a path")?;
        ensure!(Path::new(path).is_dir(), "{path}");
    }
    let fits = |cgroup: &&Value| cgroup["owner"] == owner && cgroup["removed"] == removed;
    Ok(planned.iter().filter(fits).count())
}

/// Before, during and after a death, by the daemon.
#[test]
fn an_executor_dies() -> Result<()> {
    let host = Host::start("plan", "1.11.0", AgentOptions::default())?;
    let watcher = host.watch(SLOW)?;
    let (pod, beneath) = (
        host.run_pod("web", 2, SLOW_POD)?,
        host.run_pod("beneath", 1, "")?,
    );
    let scratch = &host.scratch;
    let id = pod.executor.container_id();
    for pod in [&pod, &beneath] {
        watcher.wait_executor_learnt(pod.executor.container_id())?;
    }

    let before = plan_of(scratch, &["plan", "web"], id)?;
    assert_plan(
        &before,
        "live",
        "on_death",
        "its launcher helper, process",
        "it lives",
    );
    assert_containers(&before, &pod, "working_dir");
    assert_eq!(before, plan_of(scratch, &["plan", &id[..13]], id)?);
    let agents = cgroups(&before, "agent", "when_agent_is_done")?;
    ensure!(agents > 0, "{before:#}");
    assert_eq!(before["cgroups"].as_array().map(Vec::len), Some(agents));
    let other = plan_of(
        scratch,
        &["plan", "beneath"],
        beneath.executor.container_id(),
    )?;
    assert_containers(&other, &beneath, "cgroup");
    // Docker made its containers' cgroups, and the run's where the agent has none.
    ensure!(cgroups(&other, "docker", "at_once")? > 0, "{other:#}");
    ensure!(
        cgroups(&other, "agent", "when_agent_is_done")? > 0,
        "{other:#}"
    );
    let nothing = say(scratch, &["plan", "--orphans"])?;
    nothing.expect_line(0, &["nothing on this host is dead or unknown"]);
    assert_eq!(pod.executor.running_pod(&host.docker)?.len(), 2);

    pod.executor.sigkill_executor()?;
    wait_json(scratch, &["status"], "its case to wait", |status| {
        let mut cases = status["cases"].as_array().into_iter().flatten();
        cases.any(|case| case["container"] == id && case["step"] == "wait_docker")
    })?;
    for words in [&["plan", "web"], &["plan", "--orphans"]] {
        let during = plan_of(scratch, words, id)?;
        assert_plan(
            &during,
            "dead",
            "now",
            "the kernel reported",
            "its case is open",
        );
        assert_eq!(during["case"]["step"], "wait_docker", "{during:#}");
        assert_eq!(during["executor"], "web");
    }
    let page = say(scratch, &["plan", "web"])?;
    let page = &page.expect(0).out;
    ensure!(
        page.contains("standing   dead: the kernel reported"),
        "{page}"
    );

    watcher.wait_case(id)?;
    let after = wait_json(
        scratch,
        &["plan", "web"],
        "its case to be closed",
        |answer| answer["plans"][0]["case"].is_null(),
    )?;
    let after = &after["plans"][0];
    assert_plan(
        after,
        "dead",
        "never",
        "its case is closed",
        "nothing of it is left",
    );
    assert_eq!(after["containers"], json!([]));
    assert_eq!(after["cgroups"], json!([]));
    Ok(())
}

/// Without a daemon the command finds out by itself.
#[test]
fn alone() -> Result<()> {
    // No executor will be left whose parent tells who the agent is.
    let options = AgentOptions {
        known_by_name: true,
        ..AgentOptions::default()
    };
    let host = Host::start("planalone", "1.11.0", options)?;
    let scratch = &host.scratch;
    let place = AgentPlace::of(&host.agent, scratch);
    configure(scratch, &host.docker.socket(), &[place], SLOW)?;
    let pod = host.run_pod("web", 2, SLOW_POD)?;
    let id = pod.executor.container_id();

    let live = say(scratch, &["plan", "web", "--output", "json"])?;
    assert_eq!(live.expect(0).json()?["by_daemon"], false);
    ensure!(live.errors.contains("no daemon runs"), "{}", live.errors);
    let live = plan_of(scratch, &["plan", "web"], id)?;
    assert_plan(
        &live,
        "live",
        "on_death",
        "its executor, process",
        "it lives",
    );
    assert_containers(&live, &pod, "working_dir");
    ensure!(
        cgroups(&live, "agent", "when_agent_is_done")? > 0,
        "{live:#}"
    );

    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    let dead = wait_json(scratch, &["plan", "--orphans"], "a dead run", |answer| {
        answer["plans"][0]["standing"] == "dead"
    })?;
    assert_eq!(dead["by_daemon"], false);
    assert_eq!(dead["docker_trouble"], Value::Null);
    let dead = plan_of(scratch, &["plan", "web"], id)?;
    assert_plan(&dead, "dead", "now", "one look", "no daemon runs");
    assert_containers(&dead, &pod, "working_dir");
    assert_eq!(pod.executor.running_pod(&host.docker)?.len(), 2);
    Ok(())
}

/// What nobody has a record of is unknown: said, with the reason, and left alone.
#[test]
fn a_stranger() -> Result<()> {
    let Lonely { scratch, .. } = &Lonely::start("stranger")?;
    let roots = scratch.cgroup_dirs();
    let freezer = roots
        .iter()
        .find(|root| root.iter().any(|part| part == "freezer"));
    let cgroup = freezer.unwrap_or(&roots[0]).join(STRANGER);
    fs::create_dir_all(&cgroup).with_context(|| format!("mkdir {}", cgroup.display()))?;
    for words in [&["plan", "--orphans"], &["plan", &STRANGER[..8]]] {
        let plan = plan_of(scratch, words, STRANGER)?;
        assert_plan(
            &plan,
            "unknown",
            "never",
            "no configured agent has a record of its process",
            "left alone",
        );
        assert_eq!(plan["agent"], Value::Null, "{plan:#}");
        assert_eq!(plan["cgroups"][0]["path"], json!(cgroup), "{plan:#}");
        assert_eq!(cgroups(&plan, "agent", "never")?, 1, "{plan:#}");
    }
    // Docker is away, and the command says so.
    let page = say(scratch, &["plan", "--orphans"])?;
    let page = &page.expect(0).out;
    ensure!(page.contains("Docker could not be asked"), "{page}");
    ensure!(page.contains("mode is observe"), "{page}");
    ensure!(cgroup.is_dir(), "it was touched");
    Ok(())
}

#[test]
fn bad_questions() -> Result<()> {
    let Lonely { scratch, .. } = &Lonely::start("questions")?;
    say(scratch, &["plan", "nobody"])?.expect_line(1, &["no run of nobody is known"]);
    let tricky = say(scratch, &["plan", "a&orphans=true \u{1b}[2J\u{202e}"])?;
    tricky.expect_line(1, &["no run of a&orphans=true"]);
    ensure!(
        !tricky.errors.contains(['\x1b', '\u{202e}']),
        "{}",
        tricky.errors
    );
    for words in [
        &["plan"][..],
        &["plan", "web", "--orphans"],
        &["plan", "a", "b"],
    ] {
        say(scratch, words)?.expect(2);
    }
    for query in [
        "",
        "?",
        "?of=a&orphans=true",
        "?orphans=maybe",
        "?who=a",
        "?orphans=false",
    ] {
        let answer = http::get(scratch, &format!("/v1/plan{query}"))?;
        ensure!(answer.starts_with("HTTP/1.1 400 "), "{query}: {answer}");
        ensure!(answer.contains("plan?of=ID"), "{query}: {answer}");
    }
    Ok(())
}
