//! SIGHUP: what of the configuration changes while the daemon runs, what does not,
//! and what a file with a mistake does (nothing). Docker and the kernel's events are
//! real; so is the agent where a mode is changed for whole pods, else it is a
//! stand-in (`cleanup_tests::mesos::standin`).

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::Dockerd;
use cleanup_tests::host::{ENFORCE, Host};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent, StandInRun};
use cleanup_tests::reload::{Reload, config_path, reload, reload_with};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::{AgentPlace, Watcher};
use cleanup_tests::{bins, command, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const OBSERVE: &str = "mode = \"observe\"\ngrace = \"2s\"\nsettle = \"200ms\"";
const BEGINS_AGAIN: &str = "a dead run was left alone, and is not to be any more (the configuration has changed): its case begins again";

fn reload_host(host: &Host, watcher: &Watcher, options: &str) -> Result<Reload> {
    let agents = [AgentPlace::of(&host.agent, &host.scratch)];
    let options = format!("{}{options}", host.probe.option());
    let socket = host.docker.socket();
    reload_with(watcher, &host.scratch, &socket, &agents, &options)
}

/// Observing, cleaning up, observing: each death is treated by the mode of its time,
/// and what was only observed is cleaned up once that is wanted.
#[test]
fn the_mode_changes_while_it_runs() -> Result<()> {
    // This agent leaves the pods of dead executors alone.
    let host = Host::start("reload-mode", "1.11.0", AgentOptions::posix())?;
    let watcher = host.watch(OBSERVE)?;
    let first = host.run_pod("first", 2, "")?;
    let second = host.run_pod("second", 2, "")?;
    let third = host.run_pod("third", 2, "")?;

    first.executor.sigkill_executor()?;
    let case = watcher.wait_case(first.executor.container_id())?;
    assert_eq!(case["result"], "observed", "{case}");
    assert_eq!(first.executor.running_pod(&host.docker)?.len(), 2);

    let told = reload_host(&host, &watcher, ENFORCE)?;
    assert_eq!(told.changed(), ["mode: observe → enforce"]);
    assert_eq!(told.need_restart(), [""; 0]);
    watcher.wait_message_of(first.executor.container_id(), BEGINS_AGAIN)?;
    let again = wait::try_until(SOON, "the first case to be closed again", || {
        let cases = watcher.cases(first.executor.container_id())?;
        Ok(cases.into_iter().nth(1))
    })?;
    host.ensure_clean(&first, &again)?;
    second.executor.sigkill_executor()?;
    let case = watcher.wait_case(second.executor.container_id())?;
    assert_eq!(case["endings"], "2 term", "{case}");
    host.ensure_clean(&second, &case)?;

    let told = reload_host(&host, &watcher, OBSERVE)?;
    assert_eq!(told.changed(), ["mode: enforce → observe"]);
    third.executor.sigkill_executor()?;
    let case = watcher.wait_case(third.executor.container_id())?;
    assert_eq!(case["result"], "observed", "{case}");
    assert_eq!(case["endings"], "2 would_stop", "{case}");
    assert_eq!(third.executor.running_pod(&host.docker)?.len(), 2);
    ensure!(watcher.stop()?.success(), "it was not stopped cleanly");
    Ok(())
}

/// A host without a real agent. Dropped from top to bottom.
struct Bed {
    agent: StandInAgent,
    docker: Dockerd,
    scratch: Scratch,
}

impl Bed {
    fn new(name: &str) -> Result<Self> {
        let (scratch, docker, agent) = StandInAgent::with_docker(name, CgroupLayout::V1)?;
        Ok(Self {
            agent,
            docker,
            scratch,
        })
    }

    fn watch(&self, options: &str) -> Result<Watcher> {
        let agents = [self.agent.place()];
        Watcher::start_telling_steps(&self.scratch, &self.docker, &agents, options)
    }

    fn reload(&self, watcher: &Watcher, options: &str) -> Result<Reload> {
        let agents = [self.agent.place()];
        let socket = self.docker.socket();
        reload_with(watcher, &self.scratch, &socket, &agents, options)
    }

    fn start_container(&self, run: &StandInRun, script: &str) -> Result<String> {
        self.docker.run_beneath(&run.cgroup_parent(), &[], script)
    }

    fn runs(&self, id: &str) -> Result<bool> {
        Ok(self.docker.running()?.iter().any(|running| running == id))
    }

    fn status(&self) -> Result<Value> {
        let mut status = Command::new(bins::find("compose-cleanup")?);
        // Not the file that a test has put something else into the place of.
        let config = self.scratch.path().join("status.toml");
        let run_dir = self.scratch.path().join("run-dir");
        fs::write(&config, format!("run_dir = {:?}\n", run_dir.display()))?;
        status.args(["status", "--output", "json", "--config"]);
        let said = command::output(status.arg(config), SOON)?;
        serde_json::from_str(&said).context("the answer of `status`")
    }
}

/// From enforce to observe in the middle of a case: what was asked of Docker ends,
/// nothing more is done; back again, the case goes on, and nobody is asked twice.
#[test]
fn a_case_in_flight_stops_at_observe() -> Result<()> {
    let mut bed = Bed::new("reload-flight")?;
    let slow = "mode = \"enforce\"\ngrace = \"2m\"\nsettle = \"200ms\"";
    let watcher = bed.watch(slow)?;
    let run = bed.agent.launch("victim")?;
    watcher.wait_executor_learnt(run.container_id())?;
    // Tells how often it was asked, and goes on.
    let deaf = bed.start_container(&run, "trap 'echo asked' TERM; while :; do sleep 0.1; done")?;
    // Nobody else ends anything, and all cgroups would go.
    bed.agent.kill9()?;
    run.executor()?.kill();
    let asked = || {
        let logs = bed.docker.docker(&["logs", &deaf])?;
        anyhow::Ok(logs.matches("asked").count())
    };
    wait::try_until(SOON, "the container to be asked", || {
        Ok((asked()? > 0).then_some(()))
    })?;

    let told = bed.reload(&watcher, &slow.replace("enforce", "observe"))?;
    assert_eq!(told.changed(), ["mode: enforce → observe"]);
    let late = bed.start_container(&run, "sleep 86400")?;
    // It ends, but not by the daemon's hand.
    bed.docker.docker(&["kill", &deaf])?;
    let case = watcher.wait_case(run.container_id())?;
    assert_eq!(case["result"], "observed", "{case}");
    ensure!(bed.runs(&late)?, "stopped while observing");
    ensure!(run.launcher_cgroup().is_dir(), "removed while observing");

    bed.reload(&watcher, ENFORCE)?;
    let again = wait::try_until(SOON, "the case to be closed again", || {
        Ok(watcher.cases(run.container_id())?.into_iter().nth(1))
    })?;
    assert_eq!(again["result"], "clean", "{again}");
    assert_eq!(again["containers"], 1, "{again}");
    ensure!(!bed.runs(&late)?, "it runs on");
    ensure!(asked()? == 1, "asked {} times", asked()?);
    assert_eq!(bed.scratch.leftovers(), Vec::<std::path::PathBuf>::new());
    Ok(())
}

/// Whoever was excluded is cleaned up when no rule names him any more, and an open
/// case goes by the times of the configuration that holds.
#[test]
fn rules_and_times_change() -> Result<()> {
    let mut bed = Bed::new("reload-rules")?;
    let rule = "[[exclude]]\nexecutor = \"db-*\"\n";
    let watcher = bed.watch(&format!("{ENFORCE}\n{rule}"))?;
    let run = bed.agent.launch("db-1")?;
    watcher.wait_executor_learnt(run.container_id())?;
    let container = bed.start_container(&run, "sleep 86400")?;
    bed.agent.kill9()?;
    run.executor()?.kill();
    let case = watcher.wait_case(run.container_id())?;
    assert_eq!(case["result"], "excluded", "{case}");
    ensure!(bed.runs(&container)?, "stopped though excluded");

    let hours = ENFORCE.replace("200ms", "5h");
    let told = bed.reload(&watcher, &hours)?;
    assert_eq!(
        told.changed(),
        [
            "exclude: [{\"executor\":\"db-*\"}] → []",
            "settle: 200ms → 5h"
        ]
    );
    watcher.wait_message_of(run.container_id(), BEGINS_AGAIN)?;
    wait::try_until(SOON, "the case to wait until it has settled", || {
        let steps = watcher.said("step")?;
        let waits = |step: &Value| {
            step["container"] == run.container_id() && step["step"] == "Wait(Settle)"
        };
        Ok(steps.iter().any(waits).then_some(()))
    })?;
    let told = bed.reload(&watcher, ENFORCE)?;
    assert_eq!(told.changed(), ["settle: 5h → 200ms"]);
    let case = wait::try_until(SOON, "the case to be closed again", || {
        Ok(watcher.cases(run.container_id())?.into_iter().nth(1))
    })?;
    assert_eq!(case["result"], "clean", "{case}");
    Ok(())
}

/// Whatever is in the place of the file: one line says what and where, nothing
/// changes, and the daemon does its work.
#[test]
fn what_is_wrong_is_refused_and_the_old_one_stays() -> Result<()> {
    let mut bed = Bed::new("reload-wrong")?;
    let watcher = bed.watch(ENFORCE)?;
    let path = config_path(&bed.scratch);
    let file = path.to_str().context("UTF-8")?;
    let refused = |part: &str| -> Result<()> {
        let told = reload(&watcher)?;
        let error = told.refused().context("it was not refused")?;
        ensure!(error.contains(file) && error.contains(part), "{error}");
        ensure!(!error.contains('\n'), "{error}");
        ensure!(told.changed().is_empty() && told.need_restart().is_empty());
        let status = bed.status()?;
        ensure!(status["mode"] == "enforce", "{status}");
        ensure!(status["configuration_refused"] == error, "{status}");
        Ok(())
    };

    fs::write(&path, "mode = \"observe\"\ngrase = \"1s\"\n")?;
    refused(":2:1: `grase` is no key of the configuration; did you mean `grace`?")?;
    fs::write(&path, "mode = \"observe\"\n\ngrace = \"2h\"\n")?;
    refused(":3:1: `grace` must be at most 1h")?;
    fs::write(&path, b"mode = \"observe\"\n\x00\x1b[2J\xff")?;
    refused("line 2 is no UTF-8")?;
    fs::write(&path, "mode = observe\n")?;
    refused(":1:8: ")?;
    fs::remove_file(&path)?;
    refused("No such file")?;
    fs::create_dir(&path)?;
    refused("no regular file")?;
    fs::remove_dir(&path)?;
    let mut fifo = Command::new("mkfifo");
    command::output(fifo.arg(&path), SOON)?;
    refused("no regular file")?;
    fs::remove_file(&path)?;
    File::create(&path)?.set_len(1 << 40)?;
    refused("more than 1 MiB")?;
    std::os::unix::fs::symlink("compose-cleanup.toml", path.with_extension("new"))?;
    fs::rename(path.with_extension("new"), &path)?;
    refused("symbolic links")?;

    let run = bed.agent.launch("victim")?;
    watcher.wait_executor_learnt(run.container_id())?;
    let container = bed.start_container(&run, "sleep 86400")?;
    bed.agent.kill9()?;
    run.executor()?.kill();
    let case = watcher.wait_case(run.container_id())?;
    assert_eq!(case["result"], "clean", "{case}");
    ensure!(!bed.runs(&container)?, "it runs on");

    // A file that is well again counts.
    let told = bed.reload(&watcher, OBSERVE)?;
    assert_eq!(told.changed(), ["mode: enforce → observe"]);
    let status = bed.status()?;
    ensure!(status["mode"] == "observe", "{status}");
    ensure!(status.get("configuration_refused").is_none(), "{status}");
    watcher.ensure_printable_log()
}

/// What the daemon was made with stays; each such key is named, and the rest counts.
#[test]
fn what_needs_a_restart_is_named() -> Result<()> {
    let bed = Bed::new("reload-restart")?;
    let watcher = bed.watch(ENFORCE)?;
    let told = reload(&watcher)?;
    assert_eq!((told.changed(), told.need_restart()), (vec![], vec![]));

    let dir = bed.scratch.path().display().to_string();
    let text = fs::read_to_string(config_path(&bed.scratch))?
        .replace("log_format = \"json\"", "log_format = \"human\"")
        .replace("/run-dir\"", "/elsewhere\"")
        .replace(
            "journal.path = ",
            "journal.max_age = \"1h\"\njournal.enabled = false\njournal.path = ",
        )
        .replace(
            "docker.socket = ",
            "docker.timeout = \"7s\"\ndocker.socket = ",
        )
        .replace(
            "grace = \"2s\"",
            "grace = \"3s\"\nprobe = \"poll\"\nmetrics.listen = \"127.0.0.1:1\"",
        )
        + "[[agents]]\nwork_dir = \"/other\"\nruntime_dir = \"/another\"\n";
    fs::write(config_path(&bed.scratch), text)?;
    let told = reload(&watcher)?;
    let changed = ["grace: 2s → 3s", "journal.max_age: 30days → 1h"];
    assert_eq!(told.changed(), changed);
    let mut later = told.need_restart();
    ensure!(
        later
            .first()
            .is_some_and(|agents| agents.starts_with("agents: [{")),
        "{later:?}"
    );
    later.remove(0);
    let expected = [
        "docker.timeout: 20s → 7s".to_owned(),
        "journal.enabled: true → false".to_owned(),
        "log_format: json → human".to_owned(),
        "metrics.listen: not set → 127.0.0.1:1".to_owned(),
        "probe: ebpf → poll".to_owned(),
        format!("run_dir: {dir}/run-dir → {dir}/elsewhere"),
    ];
    assert_eq!(later, expected);
    // Named again for as long as it is so.
    let told = reload(&watcher)?;
    assert_eq!(told.changed(), [""; 0]);
    assert_eq!(told.need_restart().len(), 7);
    let status = bed.status()?;
    ensure!(status["probe"]["kind"] == "ebpf", "{status}");
    ensure!(status["journal"]["enabled"] == true, "{status}");
    ensure!(watcher.stop()?.success(), "it was not stopped cleanly");
    Ok(())
}
