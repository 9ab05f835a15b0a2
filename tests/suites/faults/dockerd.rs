//! A dockerd that hangs, is restarted, or is killed, over a death.

use anyhow::{Result, ensure};

use super::*;

const LOST: &str = "Docker is not there; trying on, cases are kept";
const FALLBACK: &str = "Docker has not answered for too long: the pod's processes are ended through their cgroups (docker_fallback)";

/// dockerd accepts connections and does nothing more: what it is to stop runs on,
/// and is stopped when it goes on.
#[test]
fn dockerd_that_hangs_over_a_death() -> Result<()> {
    let bed = Bed::start("paused", &[], "")?;
    let pod = bed.pod("victim", &[OBEDIENT, OBEDIENT])?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let processes: Vec<Process> = firsts(&bed, &pod)?;
    bed.docker.pause()?;
    pod.run.executor()?.kill();
    bed.watcher
        .wait_message_of(pod.run.container_id(), IN_THE_WAY)?;
    // Nothing else ends a container unless the operator allows it.
    ensure!(processes.iter().all(Process::alive), "ended without Docker");
    bed.docker.resume()?;
    let case = bed.ensure_cleaned(&pod)?;
    assert_eq!(case["endings"], "2 term", "{case}");
    assert!(bed.watcher.said(FALLBACK)?.is_empty());
    bed.ensure_untouched(&neighbour)
}

/// The same, and the operator allows to do without Docker. What its restart policy
/// brings back, when Docker goes on, is stopped again.
#[test]
fn a_pod_is_ended_without_docker() -> Result<()> {
    let options = "docker_fallback = \"cgroup-kill\"\ndocker_deadline = \"1s\"";
    let bed = Bed::start("fallback", &[], options)?;
    let always = &["--restart=always"];
    let pod = bed.pod_with("victim", always, &[OBEDIENT, IGNORING_TERM])?;
    let neighbour = bed.pod_with("neighbour", always, &[OBEDIENT])?;
    let processes = firsts(&bed, &pod)?;
    let neighbours = firsts(&bed, &neighbour)?;
    bed.docker.pause()?;
    pod.run.executor()?.kill();
    for process in &processes {
        process.wait_gone(SOON)?;
    }
    ensure!(neighbours.iter().all(Process::alive), "a neighbour's ended");
    bed.watcher
        .wait_message_of(pod.run.container_id(), FALLBACK)?;
    bed.docker.resume()?;
    let case = bed.ensure_cleaned(&pod)?;
    assert_eq!(case["endings"], "2 cgroup_kill", "{case}");
    // Longer than Docker takes to restart something.
    wait::holds(Duration::from_secs(2), "the pod stays stopped", || {
        pod.containers
            .iter()
            .all(|id| bed.is_running(id).is_ok_and(|running| !running))
    })?;
    ensure!(neighbours.iter().all(Process::alive), "a neighbour's ended");
    bed.ensure_untouched(&neighbour)
}

/// dockerd is restarted while it waits for a container to end. Containers outlive
/// that here.
#[test]
fn dockerd_restarted_in_the_middle_of_a_case() -> Result<()> {
    let mut bed = Bed::start("restarted", &["--live-restore"], "")?;
    let pod = bed.pod("victim", &[OBEDIENT, IGNORING_TERM])?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    pod.run.executor()?.kill();
    bed.wait_stopped(&pod.containers[0])?;
    bed.docker.restart()?;
    bed.watcher.wait_message(LOST)?;
    let case = bed.ensure_cleaned(&pod)?;
    assert_eq!(case["containers"], 2, "{case}");
    bed.ensure_untouched(&neighbour)
}

/// SIGKILL of dockerd and its containerd in the middle of a case, and a start after
/// that, which keeps what runs (`--live-restore`) or ends it, and starts what its
/// restart policy says.
#[test]
fn dockerd_killed_in_the_middle_of_a_case() -> Result<()> {
    for options in [&["--live-restore"][..], &[]] {
        let what = format!("dockerd {options:?}");
        let mut bed = Bed::start("killed", options, "")?;
        let always = &["--restart=always"];
        let pod = bed.pod_with("victim", always, &[OBEDIENT, IGNORING_TERM, OBEDIENT])?;
        let late = bed.pod_with("late", always, &[OBEDIENT])?;
        let neighbour = bed.pod_with("neighbour", always, &[OBEDIENT])?;
        pod.run.executor()?.kill();
        bed.wait_stopped(&pod.containers[0])?;
        bed.docker.kill9()?;
        bed.watcher.wait_message(LOST)?;
        // This one dies while there is no Docker at all.
        late.run.executor()?.kill();
        bed.watcher
            .wait_message_of(late.run.container_id(), IN_THE_WAY)?;
        bed.docker.restart()?;
        for pod in [&pod, &late] {
            let case = bed.ensure_cleaned(pod).context(what.clone())?;
            assert_eq!(case["containers"], pod.containers.len(), "{what}: {case}");
        }
        wait::holds(Duration::from_secs(2), "the pods stay stopped", || {
            let mut containers = pod.containers.iter().chain(&late.containers);
            containers.all(|id| bed.is_running(id).is_ok_and(|running| !running))
        })?;
        if options.is_empty() {
            // Docker has ended it, and started it again.
            wait::try_until(SOON, "the neighbour to be back", || {
                Ok(bed.is_running(&neighbour.containers[0])?.then_some(()))
            })?;
        } else {
            bed.ensure_untouched(&neighbour)?;
        }
        ensure!(neighbour.run.executor()?.alive());
    }
    Ok(())
}

fn firsts(bed: &Bed, pod: &Pod) -> Result<Vec<Process>> {
    pod.containers
        .iter()
        .map(|id| bed.first_process(id))
        .collect()
}
