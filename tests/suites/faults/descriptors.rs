//! The daemon has no file descriptor left in the middle of deaths.

use std::fs;

use anyhow::{Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::*;

/// What cannot be looked at is not taken for dead, and what is dead is not lost.
#[test]
fn no_descriptor_is_left() -> Result<()> {
    let bed = Bed::start("descriptors", &[], "")?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let victims = [
        bed.pod("victim-0", &[OBEDIENT, OBEDIENT])?,
        bed.pod("victim-1", &[OBEDIENT])?,
    ];
    let orphan = bed.pod("orphan", &[OBEDIENT])?;
    let before = limit(&bed, 0)?;
    for victim in &victims {
        victim.run.executor()?.kill();
    }
    // Its executor lives: the end of the helper alone must not be taken for its end.
    orphan.run.helper()?.kill();
    // Neither has been learnt when it is all over with it.
    let newborn = bed.agent.launch("newborn")?;
    let containers = vec![bed.start_container(&newborn, &[], OBEDIENT)?];
    let newborn = Pod {
        run: newborn,
        containers,
    };
    let stillborn = bed.agent.launch("stillborn")?;
    let containers = vec![bed.start_container(&stillborn, &[], OBEDIENT)?];
    let stillborn = Pod {
        run: stillborn,
        containers,
    };
    stillborn.run.executor()?.kill();
    for victim in &victims {
        bed.watcher
            .wait_message_of(victim.run.container_id(), IN_THE_WAY)?;
        let error = bed.complaints(&victim.run)?[0]["error"].to_string();
        ensure!(error.contains("Too many open files"), "{error}");
    }
    // Longer than it takes a survey and its second look.
    wait::holds(
        Duration::from_secs(5),
        "nobody who lives is touched",
        || {
            [&neighbour, &newborn, &orphan].iter().all(|pod| {
                pod.containers
                    .iter()
                    .all(|id| bed.is_running(id).unwrap_or(false))
            })
        },
    )?;
    assert_eq!(bed.watcher.said("case")?.len(), 0);

    limit(&bed, before)?;
    for victim in &victims {
        bed.ensure_cleaned(victim)?;
    }
    bed.ensure_cleaned(&stillborn)?;
    bed.ensure_untouched(&neighbour)?;
    bed.ensure_untouched(&newborn)?;
    ensure!(bed.is_running(&orphan.containers[0])?, "it was no death");
    // From then on all is as ever.
    for pod in [&newborn, &orphan] {
        match pod.run.executor() {
            Ok(executor) => executor.kill(),
            // Adopted by init: no child of its helper any more.
            Err(_) => own_processes(&pod.run)?.iter().for_each(Process::kill),
        }
        bed.ensure_cleaned(pod)?;
    }
    Ok(())
}

/// What sits in the run's own cgroup.
fn own_processes(run: &StandInRun) -> Result<Vec<Process>> {
    let procs = fs::read_to_string(run.launcher_cgroup().join("cgroup.procs"))?;
    let pids = procs.lines().filter_map(|pid| pid.parse().ok());
    Ok(pids.filter_map(Process::of).collect())
}

/// Sets the daemon's limit of open files, 0: to what it has open. Returns what it
/// was. Its hard limit stays: nobody but root may raise that again, and the daemon
/// does not try.
fn limit(bed: &Bed, count: u64) -> Result<u64> {
    let pid = bed.watcher.pid();
    let count = match count {
        // Numbers below the limit count, not how many are open.
        0 => open_descriptors(pid)?.len() as u64,
        count => count,
    };
    let process = Pid::from_raw(pid);
    let hard = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let hard = hard
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .and_then(|line| line.split_whitespace().nth(4)?.parse().ok());
    let before = prlimit(
        process,
        Resource::Nofile,
        Rlimit {
            current: Some(count),
            maximum: hard,
        },
    )?;
    before.current.context("a limit")
}

fn open_descriptors(pid: i32) -> Result<Vec<u64>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?;
    let number = |entry: std::io::Result<fs::DirEntry>| {
        Ok(entry?.file_name().to_string_lossy().parse::<u64>()?)
    };
    entries.map(number).collect()
}
