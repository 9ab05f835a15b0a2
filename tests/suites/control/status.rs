//! `compose-cleanup status`, with a daemon and without.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cleanup_tests::bins;
use cleanup_tests::host::Host;
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::configure;
use serde_json::{Value, json};

use super::{Lonely, config, say, wait_json};

/// A pod that takes its time to end, and is not beneath what the agent kills.
const SLOW_POD: &str = "--no-cgroup-parent --ignore-term 1";
const SLOW: &str = "mode = \"enforce\"\ngrace = \"30s\"\nsettle = \"200ms\"";

fn case_of<'a>(status: &'a Value, container: &str) -> Option<&'a Value> {
    let mut cases = status["cases"].as_array()?.iter();
    cases.find(|case| case["container"] == container)
}

/// Before, during and after a death.
#[test]
fn an_executor_dies() -> Result<()> {
    let host = Host::start("status", "1.11.0", AgentOptions::default())?;
    let watcher = host.watch(SLOW)?;
    let pod = host.run_pod("web", 2, SLOW_POD)?;
    let id = pod.executor.container_id();
    watcher.wait_executor_learnt(id)?;

    let before = wait_json(&host.scratch, &["status"], "its executor", |status| {
        status["agents"][0]["live_executors"] == 1
    })?;
    assert_eq!(before["pid"], watcher.pid());
    assert_eq!(before["mode"], "enforce");
    assert_eq!(before["probe"]["kind"], "ebpf");
    assert_eq!(before["probe"]["works"], true);
    assert_eq!(before["hold"], json!({"held": false}));
    assert_eq!(before["agents"][0]["state"], "alive");
    assert_eq!(before["docker"]["state"], "there");
    assert_eq!(before["docker"]["running_containers"], 2);
    assert_eq!(before["cases"], json!([]));
    assert_eq!(before["journal"]["enabled"], true);
    let page = say(&host.scratch, &["status"])?;
    let page = &page.expect(0).out;
    ensure!(page.contains("no open cases"), "{page}");
    ensure!(!page.contains('\x1b'), "colour, and no terminal: {page}");

    pod.executor.sigkill_executor()?;
    let during = wait_json(&host.scratch, &["status"], "its case to wait", |status| {
        case_of(status, id).is_some_and(|case| case["step"] == "wait_docker")
    })?;
    let case = case_of(&during, id).context("its case")?;
    assert_eq!(case["executor"], "web");
    assert_eq!(case["framework"], pod.executor.framework_id());
    assert_eq!(case["origin"], "kernel");
    assert_eq!(case["status"], "signal 9");
    assert_eq!(case["waits_for"], "Docker's answer");
    assert_eq!(case["pod"]["containers"], 2);
    let page = say(&host.scratch, &["status"])?;
    let page = &page.expect(0).out;
    ensure!(page.contains("web"), "{page}");

    watcher.wait_case(id)?;
    let after = wait_json(
        &host.scratch,
        &["status"],
        "its case to be closed",
        |status| case_of(status, id).is_none(),
    )?;
    assert_eq!(after["counters"]["cases"], json!({"clean": 1}));
    assert_eq!(after["counters"]["deaths"], 1);
    assert_eq!(after["counters"]["containers"], 2);
    assert_eq!(after["agents"][0]["live_executors"], 0);
    Ok(())
}

#[test]
fn held_and_without_docker() -> Result<()> {
    let Lonely { scratch, .. } = &Lonely::start("held")?;
    say(scratch, &["hold", "--for", "1h"])?.expect(0);
    let held = wait_json(scratch, &["status"], "Docker to be missed", |status| {
        status["docker"]["state"] == "away"
    })?;
    assert_eq!(held["hold"]["held"], true);
    assert_eq!(held["hold"]["by"], "operator");
    ensure!(held["hold"]["until_unix_ns"].is_i64(), "{held}");
    assert_eq!(held["mode"], "observe");
    Ok(())
}

/// One JSON document a line, for as long as somebody reads.
#[test]
fn following() -> Result<()> {
    let Lonely { scratch, watcher } = &Lonely::start("follow")?;
    let mut command = scratch.command(bins::find("compose-cleanup")?);
    command.args(["status", "--follow", "--output", "json", "--config"]);
    let mut following = command
        .arg(config(scratch))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(following.stdout.take().context("its output")?).lines();
    let mut times = Vec::new();
    for line in lines.take(3) {
        let status: Value = serde_json::from_str(&line?)?;
        assert_eq!(status["pid"], watcher.pid());
        times.push(status["now_unix_ns"].as_i64().context("a time")?);
    }
    // The reader has left, and so it ends.
    let status = following.wait()?;
    ensure!(status.success(), "{status}");
    ensure!(times.len() == 3 && times.is_sorted(), "{times:?}");
    Ok(())
}

#[test]
fn without_a_daemon() -> Result<()> {
    let scratch = Scratch::new("nodaemon")?;
    configure(&scratch, &scratch.path().join("no-docker.sock"), &[], "")?;
    say(&scratch, &["status"])?
        .expect_line(3, &["no daemon runs", "compose-cleanup watch", "--config"]);
    say(&scratch, &["status", "--follow"])?.expect_line(3, &["no daemon runs"]);
    Ok(())
}

#[test]
fn bad_flags() -> Result<()> {
    for (words, said) in [
        (&["status", "--output", "yaml"][..], "yaml"),
        (&["status", "--config", "/nowhere.toml"], "/nowhere.toml"),
        (&["status", "now"], "now"),
    ] {
        let mut command = Command::new(bins::find("compose-cleanup")?);
        command.args(words);
        let refused = super::run(command)?;
        ensure!(
            refused
                .status
                .is_some_and(|status| status == 1 || status == 2)
        );
        ensure!(refused.errors.contains(said), "{}", refused.errors);
        ensure!(!refused.errors.contains("panicked"), "{}", refused.errors);
    }
    Ok(())
}
