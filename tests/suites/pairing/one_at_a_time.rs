//! The daemon killed in between, and never two cleaners at once.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;

use anyhow::{Context as _, Result, ensure};
use cleanup_tests::clean::Clean;
use cleanup_tests::docker::Dockerd;
use cleanup_tests::host::{ENFORCE, Host, RunningPod};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;
use cleanup_tests::watcher::{AgentPlace, Watcher};

use crate::{SOON, ask, hooked, request_text, requests, wait_request};

/// A container that ignores SIGTERM keeps its case open.
const SLOW: &str = "mode = \"enforce\"\ngrace = \"60s\"\nsettle = \"200ms\"";
const STUBBORN: &str = "--no-cgroup-parent --ignore-term 1";

/// The case is at work: the container that obeys has ended, the other has not.
fn wait_half(host: &Host, pod: &RunningPod) -> Result<()> {
    wait::try_until(SOON, "the container that obeys to end", || {
        let running = pod.executor.running_pod(&host.docker)?;
        Ok((running.len() == 1).then_some(()))
    })
}

/// Killed between the kernel's event and the end of the case, before the agent
/// calls the hook: whoever takes the request goes on.
#[test]
fn the_daemon_is_killed_and_clean_goes_on() -> Result<()> {
    let host = hooked("killed", AgentOptions::default())?;
    let watcher = host.watch(SLOW)?;
    let pod = host.run_pod("pod", 2, STUBBORN)?;
    let twin = host.run_pod("twin", 1, "")?;
    // So that the hook comes after that.
    host.agent.pause()?;
    pod.executor.sigkill_executor()?;
    wait_half(&host, &pod)?;
    watcher.kill9()?;
    host.agent.resume()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    wait_request(&host)?;
    let clean = host.clean(ENFORCE, &[])?.end()?;
    let case = clean.expect(0).case(pod.executor.container_id())?;
    assert_eq!(case["origin"], "hook", "{case}");
    ensure!(
        case["endings"]
            .as_str()
            .is_some_and(|endings| endings.contains("1 grace_kill")),
        "{case}"
    );
    host.ensure_clean(&pod, &case)?;
    assert_eq!(twin.executor.running_pod(&host.docker)?.len(), 1);
    Ok(())
}

/// … after it took the request, too: its next start looks at everything.
#[test]
fn the_daemon_is_killed_and_its_next_start_goes_on() -> Result<()> {
    let host = hooked("again", AgentOptions::default())?;
    let watcher = host.watch(SLOW)?;
    let pod = host.run_pod("pod", 2, STUBBORN)?;
    let twin = host.run_pod("twin", 1, "")?;
    pod.executor.sigkill_executor()?;
    wait_half(&host, &pod)?;
    watcher.wait_message("the hook told of an executor")?;
    assert_eq!(requests(&host)?, Vec::<String>::new());
    watcher.kill9()?;
    let watcher = host.enforce()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    ensure!(
        case["endings"]
            .as_str()
            .is_some_and(|endings| endings.contains("1 grace_kill")),
        "{case}"
    );
    host.ensure_clean(&pod, &case)?;
    assert_eq!(twin.executor.running_pod(&host.docker)?.len(), 1);
    Ok(())
}

/// A daemon that starts while `clean` is at work acts when that has ended; exits
/// meanwhile are not lost.
#[test]
fn the_daemon_waits_for_clean() -> Result<()> {
    let host = hooked("waits-for", AgentOptions::default())?;
    let pod = host.run_pod("pod", 2, STUBBORN)?;
    let other = host.run_pod("other", 1, "--no-cgroup-parent")?;
    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    wait_request(&host)?;
    let clean = host.clean(
        "mode = \"enforce\"\ngrace = \"6s\"\nsettle = \"200ms\"",
        &[],
    )?;
    wait_half(&host, &pod)?;
    let place = AgentPlace::of(&host.agent, &host.scratch);
    let watcher = Watcher::spawn(&host.scratch, &host.docker.socket(), &[place], ENFORCE)?;
    watcher.wait_message("agent")?;
    // So that no request tells `clean` of it.
    host.agent.pause()?;
    other.executor.sigkill_executor()?;
    assert_eq!(watcher.said("ready")?.len(), 0);
    let clean = clean.end()?;
    let case = clean.expect(0).case(pod.executor.container_id())?;
    assert_eq!(case["endings"], "1 grace_kill, 1 term", "{case}");
    assert_eq!(clean.said("case")?.len(), 1);
    watcher.wait_message("ready")?;
    // An agent that is at work again takes away what the run is learnt by.
    wait::try_until(SOON, "the other pod to end", || {
        let running = other.executor.running_pod(&host.docker)?;
        Ok(running.is_empty().then_some(()))
    })?;
    host.agent.resume()?;
    let case = watcher.wait_case(other.executor.container_id())?;
    assert_eq!(case["origin"], "kernel", "{case}");
    host.ensure_clean(&other, &case)?;
    let waited = watcher.lines()?.into_iter().any(|line| {
        let said = line["message"].as_str().unwrap_or_default();
        said.contains("`compose-cleanup clean`") && said.contains("nothing is done before it ends")
    });
    ensure!(waited);
    assert_eq!(watcher.cases(pod.executor.container_id())?.len(), 0);
    Ok(())
}

/// One daemon a host.
#[test]
fn a_second_daemon_is_refused() -> Result<()> {
    let scratch = Scratch::new("second")?;
    let docker = Dockerd::start(&scratch)?;
    let place = AgentPlace::nowhere(&scratch);
    let places = [place];
    let first = Watcher::start(&scratch, &docker, &places, ENFORCE)?;
    // The log of the first one stays open under another name.
    let kept = scratch.path().join("first.log");
    fs::rename(first.log_path(), &kept)?;
    let mut second = Watcher::spawn(&scratch, &docker.socket(), &places, ENFORCE)?;
    let status = second.wait_end()?;
    assert_eq!(status.code(), Some(1));
    let said = fs::read_to_string(second.log_path())?;
    ensure!(
        said.contains(&format!("process {}", first.pid())) && said.contains("one is enough"),
        "{said}"
    );
    // However it ends, its successor can start.
    first.kill9()?;
    let third = Watcher::start(&scratch, &docker, &places, ENFORCE)?;
    assert!(third.stop()?.success());
    Ok(())
}

/// A daemon that reads another inbox would leave the requests for ever.
#[test]
fn a_daemon_that_takes_no_requests_is_told_of() -> Result<()> {
    let host = hooked("other-inbox", AgentOptions::default())?;
    let watcher = host.enforce()?;
    let other = host.scratch.path().join("other-inbox");
    fs::DirBuilder::new().mode(0o700).create(&other)?;
    fs::write(other.join("1-1-1.request"), request_text("F", "E"))?;
    let config = fs::read_to_string(host.scratch.path().join("compose-cleanup.toml"))?;
    let inbox = Watcher::inbox(&host.scratch).display().to_string();
    let path = host.scratch.path().join("other.toml");
    fs::write(&path, config.replace(&inbox, &other.display().to_string()))?;
    let clean = Clean::spawn(&host.scratch, &path, &[])?.end()?;
    ensure!(
        clean
            .expect(3)
            .output
            .contains("takes no requests from this inbox"),
        "{}",
        clean.output
    );
    ensure!(other.join("1-1-1.request").exists());
    assert!(watcher.stop()?.success());
    Ok(())
}

/// With no more rights than the unit in deploy/ gives it.
#[test]
fn the_rights_of_the_unit_are_enough() -> Result<()> {
    let unit = include_str!("../../../deploy/compose-cleanup-inbox.service");
    let capabilities: Vec<String> = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .context("the unit's capabilities")?
        .split(' ')
        .map(|name| name.replace("CAP_", "+").to_lowercase())
        .collect();
    let options = AgentOptions {
        known_by_name: true,
        ..AgentOptions::default()
    };
    let host = hooked("rights", options)?;
    let pod = host.run_pod("pod", 2, "--ignore-term 1")?;
    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    wait_request(&host)?;
    let bounding = format!("--bounding-set=-all,{}", capabilities.join(","));
    let wrapper = ["setpriv", "--no-new-privs", "--inh-caps=-all", &bounding];
    let clean = host.clean_through(&wrapper, ENFORCE)?.end()?;
    let case = clean.expect(0).case(pod.executor.container_id())?;
    host.ensure_clean(&pod, &case)?;
    Ok(())
}

/// Two at once: the second one waits for the first, and finds nothing left.
#[test]
fn two_cleans_are_one_after_the_other() -> Result<()> {
    let host = hooked("two", AgentOptions::default())?;
    let pod = host.run_pod("pod", 2, STUBBORN)?;
    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    wait_request(&host)?;
    let first = host.clean("mode = \"enforce\"\ngrace = \"5s\"", &[])?;
    first.wait_message("a dead run that the hook told of")?;
    let busy = host.clean(ENFORCE, &["--timeout", "0s"])?.end()?;
    busy.expect(4);
    let second = host.clean(ENFORCE, &[])?;
    // What comes while the first one is at work is done by one of them.
    ask(&host, "9-1-1.request", &request_text("nobody", "nothing"))?;
    let first = first.end()?;
    first.expect(0).case(pod.executor.container_id())?;
    let second = second.end()?;
    assert_eq!(second.expect(0).said("case")?.len(), 0);
    assert_eq!(requests(&host)?, Vec::<String>::new());
    Ok(())
}
