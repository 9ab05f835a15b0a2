//! What a running daemon may do: its threads have given up every capability that it
//! does not need, and its work goes on. Everything is real.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cleanup_tests::docker::Dockerd;
use cleanup_tests::host::{ENFORCE, Host, Probe};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::mesos::executors::ExecutorView;
use cleanup_tests::process::{Process, may_raise_priority_limit};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;
use cleanup_tests::watcher::{AgentPlace, Watcher};
use rustix::thread::CapabilitySet;

cleanup_tests::under_each_probe! {
    a_daemon_at_work_has_what_it_needs,
}

const SOON: Duration = Duration::from_secs(60);
const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// `limited`: real-time priority takes a capability.
fn needed(probe: Probe, limited: bool) -> CapabilitySet {
    let mut always = CapabilitySet::DAC_OVERRIDE | CapabilitySet::KILL | CapabilitySet::SYS_PTRACE;
    always.set(CapabilitySet::SYS_NICE, limited);
    match probe {
        Probe::Ebpf => always | CapabilitySet::BPF | CapabilitySet::PERFMON,
        Probe::Poll => always,
    }
}

/// What one thread has of each set, and whether it can gain privileges.
fn rights(status: &str) -> Result<([u64; 5], bool)> {
    let field = |name: &str| {
        let start = format!("{name}:");
        let value = status.lines().find_map(|line| line.strip_prefix(&start));
        value.map(str::trim).with_context(|| format!("no {name}"))
    };
    let mut sets = [0; 5];
    for (set, name) in sets.iter_mut().zip(SETS) {
        *set = u64::from_str_radix(field(name)?, 16).context(name)?;
    }
    Ok((sets, field("NoNewPrivs")? == "0"))
}

/// Every thread that there is: by name, since some come and go.
fn ensure_threads(watcher: &Watcher, kept: CapabilitySet) -> Result<usize> {
    let expected = [0, kept.bits(), kept.bits(), kept.bits(), 0];
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{}/task", watcher.pid()))? {
        let status = match fs::read_to_string(task?.path().join("status")) {
            Ok(status) => status,
            // It has ended since.
            Err(_) => continue,
        };
        let (sets, may_gain) = rights(&status)?;
        if sets != expected || may_gain {
            bail!("{sets:x?} and not {expected:x?}, or it may gain privileges: {status}");
        }
        threads += 1;
    }
    Ok(threads)
}

/// The process beneath a run's cgroup that is not root's.
fn stranger(host: &Host, container_id: &str) -> Result<Process> {
    wait::try_until(SOON, "a process of somebody else's", || {
        for root in host.scratch.cgroup_dirs() {
            let procs = root.join(container_id).join("cgroup.procs");
            for pid in fs::read_to_string(procs).unwrap_or_default().lines() {
                let status = fs::read_to_string(format!("/proc/{pid}/status"));
                if status.is_ok_and(|status| status.contains("\nUid:\t65534\t")) {
                    return Ok(Process::of(pid.parse()?));
                }
            }
        }
        Ok(None)
    })
}

/// … and no more, in each of its threads, before and after a pod's death: the pod is
/// stopped, every cgroup of the run goes in every hierarchy, with a living agent and
/// without one, whoever the processes belong to, and history is written.
fn a_daemon_at_work_has_what_it_needs(probe: Probe) -> Result<()> {
    let mut host = Host::start("rights", "1.11.0", AgentOptions::default())?.under(probe);
    let watcher = host.watch(ENFORCE)?;
    let kept = needed(probe, !may_raise_priority_limit()?);
    // The main one, the runtime's, and the journal's.
    ensure!(ensure_threads(&watcher, kept)? >= 4);
    let said = watcher.wait_message("capabilities")?;
    let names: Vec<&str> = said["capabilities"]
        .as_str()
        .context("names")?
        .split(' ')
        .collect();
    ensure!(names.len() == kept.iter().count(), "{said}");

    let pod = host.run_pod("pod", 2, "--ignore-term 1")?;
    let id = pod.executor.container_id();
    watcher.wait_executor_learnt(id)?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(id)?;
    probe.ensure_noticed(&case)?;
    host.ensure_clean(&pod, &case)?;

    // It leaves a process of somebody else's, which nobody but the daemon ends.
    let mut spec = host.pod_spec("alone", "--services 1")?;
    spec.command = format!(
        "setpriv --reuid=65534 --regid=65534 --clear-groups setsid sleep 86400 & {}",
        spec.command
    );
    let task = host.framework.launch(&spec)?;
    host.framework.wait_running(&task, SOON)?;
    let alone = ExecutorView::find(&host.agent, "alone")?;
    alone.wait_pod_running(&host.docker, 1)?;
    watcher.wait_executor_learnt(alone.container_id())?;
    let stranger = stranger(&host, alone.container_id())?;
    host.agent.kill9()?;
    alone.sigkill_executor()?;
    let case = watcher.wait_case(alone.container_id())?;
    ensure!(!stranger.alive(), "it outlives {case}");
    ensure!(case["result"] == "clean", "{case}");
    ensure!(
        host.scratch.leftovers().is_empty(),
        "{:?}",
        host.scratch.leftovers()
    );
    ensure_threads(&watcher, kept)?;
    ensure!(watcher.stop()?.success(), "it was not stopped cleanly");
    ensure!(Watcher::journal(&host.scratch).is_file(), "no journal");
    Ok(())
}

/// With a bounding set that somebody else made (a service manager), and no right to
/// change it, there is nothing to warn of.
#[test]
fn a_given_bounding_set_is_no_trouble() -> Result<()> {
    let scratch = Scratch::new("rights-given")?;
    let docker = Dockerd::start(&scratch)?;
    let agents = [AgentPlace::nowhere(&scratch)];
    let given = "--bounding-set=-all,+dac_override,+kill,+sys_ptrace,+perfmon,+bpf";
    let wrapper = ["setpriv", "--inh-caps=-all", given];
    let options = "probe = \"poll\"\npriority = \"normal\"";
    let watcher = Watcher::start_through(&scratch, &docker, &agents, options, &wrapper)?;
    watcher.wait_message("capabilities")?;
    let lines = watcher.lines()?;
    let warned = lines.iter().find(|line| line["level"] == "WARN");
    ensure!(warned.is_none(), "{warned:?}");
    let status = fs::read_to_string(format!("/proc/{}/status", watcher.pid()))?;
    let kept = needed(Probe::Poll, false).bits();
    let (sets, may_gain) = rights(&status)?;
    let bounding = needed(Probe::Ebpf, false).bits();
    ensure!(
        sets == [0, kept, kept, bounding, 0] && !may_gain,
        "{status}"
    );
    Ok(())
}
