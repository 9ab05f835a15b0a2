//! The fallback where eBPF cannot run: which way of noticing deaths the daemon
//! takes, and what only the fallback meets. That the job is done as with eBPF is
//! shown by the tests `poll::…` of the suites `deaths` and `matrix`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::host::{ENFORCE, Host, Probe};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::mesos::executors::ExecutorView;
use cleanup_tests::watcher::Watcher;
use cleanup_tests::{bins, wait};
use cleanup_userspace::process::Proc;
use rustix::process::Signal;

const MESOS: &str = "1.11.0";
const SOON: Duration = Duration::from_secs(90);

/// Root without the rights that loading a BPF program takes.
const WITHOUT_BPF: [&str; 3] = [
    "setpriv",
    "--bounding-set=-bpf,-perfmon,-sys_admin",
    "--inh-caps=-bpf,-perfmon,-sys_admin",
];
const FELL_BACK: &str = "the exit probe cannot run on this host: executors are watched by their processes instead \
                         (probe = \"auto\"; what that loses: docs/operations.md, \"Without eBPF\")";

fn with_probe(probe: &str) -> String {
    format!("probe = {probe:?}\n{ENFORCE}")
}

/// What the daemon has in the kernel.
fn bpf_descriptors(watcher: &Watcher) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", watcher.pid()))? {
        // It opens and closes others meanwhile.
        let Ok(target) = fs::read_link(entry?.path()) else {
            continue;
        };
        if target.to_string_lossy().contains("bpf") {
            found.push(target);
        }
    }
    Ok(found)
}

/// `auto` takes eBPF where it can be had.
#[test]
fn auto_prefers_the_kernels_report() -> Result<()> {
    let host = Host::start("prefers", MESOS, AgentOptions::default())?;
    let watcher = host.watch_through(&["env"], &with_probe("auto"))?;
    assert_eq!(watcher.wait_message("ready")?["probe"], "ebpf");
    ensure!(!bpf_descriptors(&watcher)?.is_empty());
    assert_eq!(watcher.said(FELL_BACK)?.len(), 0);
    let pod = host.run_pod("pod", 1, "")?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    Probe::Ebpf.ensure_noticed(&case)?;
    host.ensure_clean(&pod, &case)
}

/// `auto` falls back where loading fails, says so once and why, and does the job.
#[test]
fn auto_falls_back_without_the_rights() -> Result<()> {
    let host = Host::start("fallsback", MESOS, AgentOptions::default())?;
    let watcher = host.watch_through(&WITHOUT_BPF, &with_probe("auto"))?;
    assert_eq!(watcher.wait_message("ready")?["probe"], "poll");
    let said = watcher.said(FELL_BACK)?;
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0]["level"], "WARN");
    let error = said[0]["error"].as_str().context("an error")?;
    ensure!(
        error.contains("CAP_BPF and CAP_PERFMON"),
        "no reason: {error}"
    );
    let victim = host.run_pod("victim", 2, "")?;
    let neighbour = host.run_pod("neighbour", 1, "")?;
    victim.executor.sigkill_executor()?;
    let case = watcher.wait_case(victim.executor.container_id())?;
    Probe::Poll.ensure_noticed(&case)?;
    host.ensure_clean(&victim, &case)?;
    ensure!(neighbour.executor.executor().alive());
    assert_eq!(
        neighbour.executor.running_pod(&host.docker)?,
        neighbour.containers
    );
    Ok(())
}

/// Nothing in the kernel, and the end of the executor alone is enough: its helper
/// cannot tell of it, and its agent does not know.
#[test]
fn the_executors_own_end_is_enough() -> Result<()> {
    let host = Host::start("ownend", MESOS, AgentOptions::default())?.under(Probe::Poll);
    let watcher = host.enforce()?;
    assert_eq!(watcher.wait_message("ready")?["probe"], "poll");
    assert_eq!(bpf_descriptors(&watcher)?, Vec::<PathBuf>::new());
    let pod = host.run_pod("pod", 2, "")?;
    let id = pod.executor.container_id();
    watcher.wait_executor_learnt(id)?;
    let helper = pod.executor.helper();
    helper.signal(Signal::STOP)?;
    pod.executor.sigkill_executor()?;
    wait::try_until(SOON, "the pod to be stopped", || {
        let running = pod.executor.running_pod(&host.docker)?;
        Ok(running.is_empty().then_some(()))
    })?;
    helper.signal(Signal::CONT)?;
    let case = watcher.wait_case(id)?;
    assert_eq!(case["origin"], "pidfd", "{case}");
    // Nobody else ended them.
    assert_eq!(case["endings"], "2 term", "{case}");
    host.ensure_clean(&pod, &case)
}

/// A process lives for as long as any of its threads: what `/proc` says of the first
/// one (a zombie) is not what it says of all.
#[test]
fn a_process_outlives_its_first_thread() -> Result<()> {
    let mut child = Command::new(bins::find("exit-case")?)
        .args(["leader-first", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("its output")?;
    // It speaks when its first thread has ended.
    BufReader::new(output).read_line(&mut String::new())?;
    let proc = Proc::of(child.id()).context("a process")?;
    let lived = proc.is_alive() && proc.pidfd()?.is_some();
    drop(child.stdin.take());
    wait::try_until(SOON, "the last thread to end", || {
        Ok((!proc.is_alive()).then_some(()))
    })?;
    // Not reaped yet.
    assert_eq!(Proc::of(proc.pid), Some(proc));
    assert!(proc.pidfd()?.is_none());
    child.wait()?;
    ensure!(lived, "taken for dead while a thread of it ran");
    Ok(())
}

/// Executors that begin and end while the daemon does not look: found by what
/// their agent left.
#[test]
fn lived_and_died_between_two_looks() -> Result<()> {
    // The posix launcher's agent leaves the pod.
    let host = Host::start("between", MESOS, AgentOptions::posix())?.under(Probe::Poll);
    let watcher = host.enforce()?;
    let living = host.run_pod("living", 1, "")?;
    signal(&watcher, Signal::STOP)?;
    let pod = host.run_pod("pod", 2, "")?;
    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    let id = pod.executor.container_id();
    let runtime = host.agent.runtime_dir().join("containers").join(id);
    wait::try_until(SOON, "the agent to be done with it", || {
        Ok((!runtime.exists()).then_some(()))
    })?;
    assert_eq!(pod.executor.running_pod(&host.docker)?.len(), 2);
    signal(&watcher, Signal::CONT)?;
    let case = watcher.wait_case(id)?;
    assert_eq!(case["origin"], "scan", "{case}");
    host.ensure_clean(&pod, &case)?;
    assert_eq!(
        living.executor.running_pod(&host.docker)?,
        living.containers
    );
    Ok(())
}

fn signal(watcher: &Watcher, signal: Signal) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(watcher.pid()).context("a PID")?;
    rustix::process::kill_process(pid, signal).context("signalling the daemon")
}

/// No pidfds, no `openat2`: the daemon looks at processes, notices deaths, and ends
/// what an executor left in its cgroup when no agent is there to do it.
#[test]
fn without_pidfds() -> Result<()> {
    let mut host = Host::start("nopidfds", MESOS, AgentOptions::default())?;
    let old = bins::find("as-on-linux-4-18")?;
    let old = old.to_str().context("UTF-8")?;
    let watcher = host.watch_through(&[old], &with_probe("poll"))?;
    assert_eq!(watcher.wait_message("ready")?["probe"], "poll");
    let lines = watcher.lines()?;
    let said = lines.iter().filter(|line| {
        line["message"]
            .as_str()
            .is_some_and(|message| message.starts_with("this kernel has no pidfds"))
    });
    assert_eq!(said.count(), 1);

    let pod = host.run_pod("pod", 2, "")?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    Probe::Poll.ensure_noticed(&case)?;
    host.ensure_clean(&pod, &case)?;

    let mut spec = host.pod_spec("daemonises", "--services 1")?;
    spec.command = format!("setsid sleep 86400 & {}", spec.command);
    let task = host.framework.launch(&spec)?;
    host.framework.wait_running(&task, SOON)?;
    let executor = ExecutorView::find(&host.agent, "daemonises")?;
    executor.wait_pod_running(&host.docker, 1)?;
    watcher.wait_executor_learnt(executor.container_id())?;
    host.agent.kill9()?;
    executor.sigkill_executor()?;
    let case = watcher.wait_case(executor.container_id())?;
    assert_eq!(case["result"], "clean", "{case}");
    assert_eq!(executor.running_pod(&host.docker)?, Vec::<String>::new());
    assert_eq!(host.scratch.leftovers(), Vec::<PathBuf>::new());
    Ok(())
}
