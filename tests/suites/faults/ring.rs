//! More executors die than the ring has room for, while nobody reads it.

use anyhow::{Result, ensure};

use super::*;

/// A ring of one page holds some 40 records of 96 bytes; every run is two of them.
const RUNS: usize = 40;

const LOSSES: &str = "the kernel could not report every exit; looking at everything";

#[test]
fn a_ring_that_overflows() -> Result<()> {
    let bed = Bed::start("ring", &[], "ebpf.ring_bytes = 4096")?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let empty: Vec<StandInRun> = (0..RUNS)
        .map(|n| bed.agent.launch(&format!("empty-{n}")))
        .collect::<Result<_>>()?;
    for run in &empty {
        bed.watcher.wait_executor_learnt(run.container_id())?;
    }
    let pods = [bed.pod("a", &[OBEDIENT])?, bed.pod("b", &[OBEDIENT])?];
    let unlearnt = bed.while_stopped(|| {
        // Begins while the daemon is stopped, and dies when the ring is full.
        let run = bed.agent.launch("unlearnt")?;
        let containers = vec![bed.start_container(&run, &[], OBEDIENT)?];
        for run in &empty {
            let helper = run.helper()?;
            run.executor()?.kill();
            helper.wait_gone(SOON)?;
        }
        for run in pods.iter().map(|pod| &pod.run).chain([&run]) {
            let helper = run.helper()?;
            run.executor()?.kill();
            helper.wait_gone(SOON)?;
        }
        Ok(Pod { run, containers })
    })?;
    let lost = bed.watcher.wait_message(LOSSES)?;
    ensure!(
        lost["losses"]
            .as_str()
            .is_some_and(|losses| !losses.contains("ring_full: 0")),
        "{lost}"
    );
    for pod in pods.iter().chain([&unlearnt]) {
        let case = bed.ensure_cleaned(pod)?;
        // Its event was lost: something else has told of it.
        ensure!(case["origin"] != "kernel", "{case}");
    }
    for run in &empty {
        bed.agent.destroy(run).finish()?;
        bed.watcher.wait_closed(run.container_id())?;
        let left = bed.cgroups_of(run);
        ensure!(left.is_empty(), "{left:?}");
    }
    bed.ensure_untouched(&neighbour)
}
