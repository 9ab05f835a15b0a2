//! Requests without a daemon: `compose-cleanup clean --from-inbox`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

use anyhow::{Result, ensure};
use cleanup_tests::clean::Clean;
use cleanup_tests::docker::Dockerd;
use cleanup_tests::host::ENFORCE;
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;
use cleanup_tests::watcher::{AgentPlace, Watcher, configure};
use rustix::mount::{MountFlags, mount};

use crate::{SOON, ask, hooked, request_text, requests, wait_request};

const NOTHING: Vec<String> = Vec::new();
const NOTHING_TO_DO: &str = "nothing to do for a request: forgotten";

/// With no executor alive, only its own flags tell that the agent is done with a
/// run that its runtime directory does not have (any more).
fn released() -> AgentOptions {
    AgentOptions {
        known_by_name: true,
        ..AgentOptions::default()
    }
}

/// The agent's only executor died, and nobody watched.
#[test]
fn the_only_executor() -> Result<()> {
    let host = hooked("only", released())?;
    let pod = host.run_pod("we b\"pod", 2, "--restart always")?;
    pod.executor.sigkill_executor()?;
    // Docker starts again what the agent kills: its destroy may fail by that, and the
    // framework is told a minute later.
    host.framework.wait_terminal(&pod.task_id, 3 * SOON)?;
    wait_request(&host)?;
    let clean = host.clean(ENFORCE, &[])?.end()?;
    let case = clean.expect(0).case(pod.executor.container_id())?;
    assert_eq!(case["origin"], "hook", "{case}");
    host.ensure_clean(&pod, &case)?;
    assert_eq!(requests(&host)?, NOTHING);
    Ok(())
}

/// Of several executors with one name only the dead run is touched, and of several
/// dead ones only whom a request names.
#[test]
fn only_the_dead_run() -> Result<()> {
    let host = hooked("dead-run", AgentOptions::posix())?;
    let pod = host.run_pod("pod", 2, "")?;
    let twin = host.run_pod("twin", 1, "")?;
    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    wait_request(&host)?;
    // The next run of the same executor lives when the request is read.
    let next = host.run_pod("pod", 1, "")?;
    let unnamed = host.run_pod("unnamed", 1, "")?;
    let named = requests(&host)?;
    unnamed.executor.sigkill_executor()?;
    let later = wait::try_until(SOON, "the other one's request", || {
        let later = requests(&host)?
            .into_iter()
            .find(|name| !named.contains(name));
        Ok(later)
    })?;
    fs::remove_file(Watcher::inbox(&host.scratch).join(later))?;
    let clean = host.clean(ENFORCE, &[])?.end()?;
    let case = clean.expect(0).case(pod.executor.container_id())?;
    ensure!(case["result"] == "clean", "{case}");
    assert_eq!(pod.executor.running_pod(&host.docker)?, NOTHING);
    assert_eq!(next.executor.running_pod(&host.docker)?.len(), 1);
    assert_eq!(twin.executor.running_pod(&host.docker)?.len(), 1);
    assert_eq!(unnamed.executor.running_pod(&host.docker)?.len(), 1);
    let left = clean.said("a dead run that no request names: left to the daemon")?;
    ensure!(
        left.len() == 1 && left[0]["container"] == unnamed.executor.container_id(),
        "{}",
        clean.output
    );
    assert_eq!(clean.said("case")?.len(), 1);
    assert_eq!(requests(&host)?, NOTHING);
    Ok(())
}

/// Says what it would do, once; what it was asked for is kept for one that may.
#[test]
fn observing_keeps_the_requests() -> Result<()> {
    let host = hooked("observing", AgentOptions::default())?;
    let pod = host.run_pod("pod", 2, "--no-cgroup-parent")?;
    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    wait_request(&host)?;
    let observed = host.clean(ENFORCE, &["--dry-run"])?.end()?;
    let case = observed.expect(0).case(pod.executor.container_id())?;
    assert_eq!(case["result"], "observed", "{case}");
    assert_eq!(pod.executor.running_pod(&host.docker)?.len(), 2);
    // Under a name that starts nothing.
    let kept = requests(&host)?;
    ensure!(kept.len() == 1 && kept[0].starts_with(".held-"), "{kept:?}");
    let again = host.clean(ENFORCE, &["--dry-run"])?.end()?;
    assert_eq!(again.expect(0).said("case")?.len(), 0);
    assert_eq!(requests(&host)?, kept);
    let clean = host.clean(ENFORCE, &[])?.end()?;
    let case = clean.expect(0).case(pod.executor.container_id())?;
    host.ensure_clean(&pod, &case)?;
    assert_eq!(requests(&host)?, NOTHING);
    Ok(())
}

/// It may be killed at any moment, and be told to stop: the next one goes on.
#[test]
fn an_unfinished_run_leaves_its_requests() -> Result<()> {
    let host = hooked("unfinished", AgentOptions::default())?;
    let pod = host.run_pod("pod", 2, "--no-cgroup-parent --ignore-term 1")?;
    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    wait_request(&host)?;
    const SLOW: &str = "mode = \"enforce\"\ngrace = \"60s\"\nshutdown_deadline = \"1s\"";
    let mut killed = host.clean(SLOW, &[])?;
    wait::try_until(SOON, "the container that obeys to end", || {
        let running = pod.executor.running_pod(&host.docker)?;
        Ok((running.len() == 1).then_some(()))
    })?;
    killed.kill9()?;
    assert_eq!(requests(&host)?.len(), 1);
    let stopped = host.clean(SLOW, &[])?;
    stopped.wait_message("a dead run that the hook told of")?;
    stopped.stop()?.expect(3);
    host.clean(SLOW, &["--timeout", "3s"])?.end()?.expect(3);
    assert_eq!(requests(&host)?.len(), 1);
    let clean = host.clean(ENFORCE, &[])?.end()?;
    let case = clean.expect(0).case(pod.executor.container_id())?;
    assert_eq!(case["endings"], "1 grace_kill", "{case}");
    host.ensure_clean(&pod, &case)?;
    assert_eq!(requests(&host)?, NOTHING);
    Ok(())
}

/// Docker is away: nothing is concluded from that.
#[test]
fn without_docker_requests_wait() -> Result<()> {
    let mut host = hooked("away", AgentOptions::default())?;
    // It has died by the time that Docker is back.
    let pod = host.run_pod("pod", 1, "--no-cgroup-parent")?;
    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    wait_request(&host)?;
    ask(&host, "2-1-1.request", &request_text("nobody", "nothing"))?;
    host.docker.kill9()?;
    host.clean(ENFORCE, &["--timeout", "6s"])?.end()?.expect(3);
    assert_eq!(requests(&host)?.len(), 2);
    host.docker.restart()?;
    host.clean(ENFORCE, &[])?.end()?.expect(0);
    assert_eq!(requests(&host)?, NOTHING);
    assert_eq!(host.scratch.leftovers(), Vec::<std::path::PathBuf>::new());
    Ok(())
}

/// Requests for who lives, for nobody, and files that are none: nothing is
/// touched, nothing is left for the next start to trip over.
#[test]
fn bad_requests() -> Result<()> {
    let host = hooked("bad", AgentOptions::default())?;
    let pod = host.run_pod("pod", 2, "")?;
    let inbox = Watcher::inbox(&host.scratch);
    ask(
        &host,
        "1-1-1.request",
        &request_text(pod.executor.framework_id(), "pod"),
    )?;
    ask(
        &host,
        "2-1-1.request",
        &request_text("nobody", "x\n\u{1b}[2J"),
    )?;
    ask(&host, "3-1-1.request", "garbage")?;
    ask(&host, "4-1-1.request", &request_text("F", "foreign"))?;
    chown(inbox.join("4-1-1.request"), Some(65534), None)?;
    symlink("/etc/passwd", inbox.join("5-1-1.request"))?;
    fs::create_dir(inbox.join("6-1-1.request"))?;
    ask(
        &host,
        "7-1-1.request",
        &request_text("F", &"x".repeat(9000)),
    )?;
    fs::write(inbox.join("note"), "mine")?;
    let clean = host.clean(ENFORCE, &[])?.end()?;
    let mut why: Vec<String> = clean
        .expect(0)
        .said(NOTHING_TO_DO)?
        .iter()
        .map(|line| line["why"].to_string())
        .collect();
    why.sort();
    assert_eq!(
        why,
        [
            "\"nothing of the executor is left on this host\"",
            "\"the executor lives\""
        ],
        "{}",
        clean.output
    );
    assert_eq!(clean.said("case")?.len(), 0);
    ensure!(!clean.output.contains('\u{1b}'));
    assert_eq!(requests(&host)?, NOTHING);
    assert_eq!(fs::read_dir(inbox.join("refused"))?.count(), 5);
    assert_eq!(pod.executor.running_pod(&host.docker)?.len(), 2);
    ensure!(pod.executor.executor().alive());
    // Nothing but what it is not to touch is left: nothing to do.
    let again = host.clean(ENFORCE, &[])?.end()?;
    ensure!(
        again.expect(0).output.contains("no requests"),
        "{}",
        again.output
    );
    Ok(())
}

/// An inbox that is not root's own is no inbox; a full one is emptied.
#[test]
fn bad_inboxes() -> Result<()> {
    let scratch = Scratch::new("bad-inboxes")?;
    let docker = Dockerd::start(&scratch)?;
    let inbox = Watcher::inbox(&scratch);
    let elsewhere = scratch.path().join("elsewhere");
    fs::create_dir(&elsewhere)?;
    fs::write(elsewhere.join("1-1-1.request"), request_text("F", "E"))?;
    let place = AgentPlace::nowhere(&scratch);
    let config = configure(&scratch, &docker.socket(), &[place], ENFORCE)?;
    let clean = || Clean::spawn(&scratch, &config, &[])?.end();

    symlink(&elsewhere, &inbox)?;
    let refused = clean()?;
    refused.expect(1);
    ensure!(
        refused.output.contains(&*inbox.to_string_lossy()),
        "{}",
        refused.output
    );
    fs::remove_file(&inbox)?;
    fs::write(&inbox, "a file")?;
    clean()?.expect(1);
    fs::remove_file(&inbox)?;
    fs::create_dir(&inbox)?;
    fs::set_permissions(&inbox, fs::Permissions::from_mode(0o777))?;
    let refused = clean()?;
    refused.expect(1);
    ensure!(refused.output.contains("0700"), "{}", refused.output);
    ensure!(elsewhere.join("1-1-1.request").exists());

    // No room for anything: neither for a file nor for a directory.
    mount(
        "none",
        &inbox,
        "tmpfs",
        MountFlags::empty(),
        c"size=64k,nr_inodes=12,mode=700",
    )?;
    for name in 1..=9 {
        let text = if name % 2 == 0 {
            "garbage".to_owned()
        } else {
            request_text("F", &name.to_string())
        };
        fs::write(inbox.join(format!("{name}-1-1.request")), text)?;
    }
    while fs::write(inbox.join("fill-inodes"), "").is_ok()
        && fs::rename(
            inbox.join("fill-inodes"),
            inbox.join(format!("fill-{}", fs::read_dir(&inbox)?.count())),
        )
        .is_ok()
    {}
    let full = clean()?;
    full.expect(0);
    assert_eq!(full.said(NOTHING_TO_DO)?.len(), 5, "{}", full.output);
    let left: Vec<_> = fs::read_dir(&inbox)?.flatten().collect();
    ensure!(
        left.iter()
            .all(|entry| !entry.file_name().to_string_lossy().ends_with(".request")),
        "{left:?}"
    );
    Ok(())
}

/// For supervisors without path units.
#[test]
fn waits_for_a_request() -> Result<()> {
    let host = hooked("waits", released())?;
    let waits = host.clean(ENFORCE, &["--wait", "--timeout", "60s"])?;
    let pod = host.run_pod("pod", 1, "")?;
    pod.executor.sigkill_executor()?;
    let clean = waits.end()?;
    let case = clean.expect(0).case(pod.executor.container_id())?;
    host.ensure_clean(&pod, &case)?;
    let waits = host.clean(ENFORCE, &["--wait"])?;
    waits.wait_message("waiting for a request")?;
    waits.stop()?.expect(0);
    Ok(())
}

/// Found neither dead nor alive: looked at for a while, then forgotten.
#[test]
fn an_executor_that_may_live() -> Result<()> {
    let host = hooked("may-live", AgentOptions::default())?;
    let pod = host.run_pod("pod", 1, "")?;
    // The agent would end the executor in its turn.
    host.agent.pause()?;
    pod.executor.helper().kill();
    ask(
        &host,
        "1-1-1.request",
        &request_text(pod.executor.framework_id(), "pod"),
    )?;
    let clean = host.clean(ENFORCE, &[])?.end()?;
    let forgotten = clean.expect(0).said(NOTHING_TO_DO)?;
    ensure!(
        forgotten.len() == 1
            && forgotten[0]["why"] == "its helper is gone, processes of it are left",
        "{}",
        clean.output
    );
    ensure!(pod.executor.executor().alive());
    assert_eq!(pod.executor.running_pod(&host.docker)?.len(), 1);
    assert_eq!(requests(&host)?, NOTHING);
    host.agent.resume()
}
