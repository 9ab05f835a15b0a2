//! Processes in Docker's cgroups that Docker does not know of. Seen on real parts
//! (`cargo xtask soak`, kill -9 of dockerd and containerd): at its start dockerd
//! begins a container again, fails over "id already in use", and says that it has
//! ended, while its process runs.

use std::fs;

use anyhow::{Result, ensure};
use cleanup_tests::docker::OBEDIENT;
use cleanup_tests::mesos::standin::StandInRun;
use cleanup_tests::service::Service;

use crate::bed::{Bed, SOON};

const IN_THE_WAY: &str = "cgroups of a dead run are not empty, though Docker says that nothing runs there: \
                          look at cgroup.procs beneath them";
const DISOWNED: &str = "Docker does not know of processes in its cgroups beneath a dead run: they are ended through these";

/// A process in a cgroup that looks like a container's.
fn stranger(bed: &Bed, run: &StandInRun) -> Result<Service> {
    let cgroup = run.launcher_cgroup().join(format!("{:064x}", 1));
    fs::create_dir(&cgroup)?;
    let mut sleep = bed.scratch.command("sleep");
    sleep.arg("86400");
    let log = bed.scratch.path().join("stranger.log");
    let stranger = Service::spawn(sleep, &log)?;
    fs::write(cgroup.join("cgroup.procs"), stranger.pid().to_string())?;
    Ok(stranger)
}

/// They are given time to become known, and then are ended; those of an executor
/// that lives are not.
#[test]
fn what_docker_has_forgotten() -> Result<()> {
    let bed = Bed::start("disowned", "agent_deadline = \"1s\"")?;
    let run = bed.launch("victim")?;
    let containers = bed.start_pod(&run, &[OBEDIENT])?;
    let mut forgotten = stranger(&bed, &run)?;
    let neighbour = bed.launch("neighbour")?;
    let neighbours = bed.start_pod(&neighbour, &[OBEDIENT])?;
    let mut another = stranger(&bed, &neighbour)?;

    run.executor()?.kill();
    for id in &containers {
        bed.wait_stopped(id)?;
    }
    bed.watcher
        .wait_message_of(run.container_id(), IN_THE_WAY)?;
    ensure!(forgotten.ended().is_none(), "ended before it was known");
    forgotten.wait(SOON)?;
    bed.watcher.wait_message_of(run.container_id(), DISOWNED)?;
    bed.agent.destroy(&run).finish()?;
    bed.ensure_clean(&run)?;

    ensure!(neighbour.executor()?.alive());
    ensure!(another.ended().is_none(), "a living executor's");
    bed.ensure_running(&neighbours)
}
