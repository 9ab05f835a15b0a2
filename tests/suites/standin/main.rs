//! What a real agent cannot be brought to on demand: the cgroup v2 layout, its
//! failure modes, and precise races. Docker, the kernel's events and the cgroups
//! are real; the agent is a stand-in (`cleanup_tests::mesos::standin`).

mod bed;
mod crowd;
mod disowned;
mod everywhere;
mod races;

use std::fs;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::{IGNORING_TERM, IMAGE, OBEDIENT};
use cleanup_tests::host::Probe;
use cleanup_tests::mesos::standin::{CgroupLayout, Step};
use cleanup_tests::wait;

use bed::{Bed, COUNTING, PATIENT, SOON, STUCK};

cleanup_tests::under_each_probe! {
    v2_leaf_layout,
}

/// The layout of cgroup v2, `<root>/<container id>/leaf`, which no Mesos release
/// has, on the real unified hierarchy.
fn v2_leaf_layout(probe: Probe) -> Result<()> {
    let bed = Bed::with_layout("leaf", CgroupLayout::V2, probe.option())?;
    let run = bed.launch("E")?;
    let leaf = run.launcher_cgroup().join("leaf");
    let containers = bed.start_pod(&run, &[OBEDIENT, OBEDIENT])?;
    for id in &containers {
        let cgroup = run.launcher_cgroup().join(id);
        ensure!(cgroup.is_dir(), "no cgroup of {id} beneath the run's");
    }
    run.executor()?.kill();
    for id in &containers {
        bed.wait_stopped(id)?;
    }
    let destroy = bed.agent.destroy(&run);
    bed.wait_looks(&run)?;
    bed.ensure_open(&run, &destroy)?;
    ensure!(leaf.is_dir());
    destroy.finish()?;
    bed.ensure_clean(&run)?;
    let case = bed.watcher.wait_case(run.container_id())?;
    probe.ensure_noticed(&case)?;
    assert_eq!(case["endings"], "2 term", "{case}");
    assert_eq!(case["executor"], "E", "{case}");
    Ok(())
}

/// The agent never goes on with its destroy, and then is gone.
#[test]
fn destroy_that_is_stuck_until_the_agent_goes() -> Result<()> {
    let mut bed = Bed::start("stuck", "agent_deadline = \"1s\"")?;
    let run = bed.launch("victim")?;
    let containers = bed.start_pod(&run, &[OBEDIENT, IGNORING_TERM])?;
    let neighbour = bed.launch("neighbour")?;
    let neighbours = bed.start_pod(&neighbour, &[OBEDIENT])?;
    ensure!(!bed.dockers_cgroups_of(&run).is_empty());

    run.executor()?.kill();
    let destroy = bed.agent.destroy(&run);
    for id in &containers {
        bed.wait_stopped(id)?;
    }
    bed.watcher.wait_message_of(run.container_id(), STUCK)?;
    bed.ensure_open(&run, &destroy)?;
    // What Docker made went at once, and nothing else.
    let dockers = bed.dockers_cgroups_of(&run);
    ensure!(dockers.is_empty(), "{dockers:?} are left");
    bed.wait_looks(&run)?;
    bed.ensure_open(&run, &destroy)?;
    assert_eq!(bed.complaints(&run)?, 1);

    bed.agent.kill9()?;
    bed.ensure_clean(&run)?;
    let case = bed.watcher.wait_case(run.container_id())?;
    assert_eq!(case["endings"], "1 grace_kill, 1 term", "{case}");
    assert_eq!(bed.complaints(&run)?, 1);

    // An agent that is gone is no reason to touch what lives.
    ensure!(neighbour.executor()?.alive());
    bed.ensure_running(&neighbours)?;
    for cgroup in neighbour.agents_cgroups() {
        ensure!(cgroup.is_dir(), "{} is gone", cgroup.display());
    }
    neighbour.executor()?.kill();
    bed.ensure_clean(&neighbour)
}

/// A case that is open for longer than Docker may be silent, since its agent is: Docker was
/// not asked meanwhile, and a container that comes late gets its stop signal as any other.
#[test]
fn waiting_for_the_agent_is_no_silence_of_docker() -> Result<()> {
    let bed = Bed::start(
        "late",
        "agent_deadline = \"5s\"\ndocker_fallback = \"cgroup-kill\"\ndocker_deadline = \"1s\"",
    )?;
    let run = bed.launch("E")?;
    let first = bed.start_container(&run, OBEDIENT)?;
    // Created while the executor lives, and started long after its death.
    let parent = format!("--cgroup-parent={}", run.cgroup_parent());
    let create = [
        "create",
        "--network=none",
        &parent,
        IMAGE,
        "sh",
        "-c",
        COUNTING,
    ];
    let late = bed.docker.docker(&create)?;
    run.executor()?.kill();
    bed.wait_stopped(&first)?;
    bed.watcher.wait_message_of(run.container_id(), STUCK)?;
    bed.docker.docker(&["start", &late])?;
    bed.wait_stopped(&late)?;
    bed.agent.destroy(&run).finish()?;
    bed.ensure_clean(&run)?;
    let case = bed.watcher.wait_case(run.container_id())?;
    // Its shell may have been stopped before it had set its trap.
    let endings = ["2 term", "1 grace_kill, 1 term"];
    ensure!(
        case["endings"]
            .as_str()
            .is_some_and(|ended| endings.contains(&ended)),
        "{case}"
    );
    Ok(())
}

/// The agent's destroy fails half-way, for good. It is restarted, and recovers.
#[test]
fn destroy_that_failed_until_the_agent_recovers() -> Result<()> {
    // With version 2 there is no half: an agent has one cgroup for each container.
    let options = "agent_deadline = \"1s\"";
    let mut bed = Bed::with_layout("failed", CgroupLayout::V1, options)?;
    let run = bed.launch("victim")?;
    let containers = bed.start_pod(&run, &[OBEDIENT])?;
    run.executor()?.kill();
    for id in &containers {
        bed.wait_stopped(id)?;
    }
    let mut destroy = bed.agent.destroy(&run);
    destroy.through(Step::RemoveSomeIsolators)?;
    bed.watcher.wait_message_of(run.container_id(), STUCK)?;
    bed.ensure_open(&run, &destroy)?;

    bed.agent.begin_recovery()?;
    // A container that comes now is stopped. What Docker made for it stays.
    let late = bed.start_container(&run, OBEDIENT)?;
    bed.wait_stopped(&late)?;
    bed.wait_looks(&run)?;
    bed.ensure_open(&run, &destroy)?;
    let dockers = bed.dockers_cgroups_of(&run);
    ensure!(!dockers.is_empty(), "removed while the agent recovers");

    bed.agent.finish_recovery()?;
    wait::until(SOON, "what Docker made to go", || {
        bed.dockers_cgroups_of(&run).is_empty().then_some(())
    })?;
    bed.wait_looks(&run)?;
    bed.ensure_open(&run, &destroy)?;
    // What is found dead in a recovery is destroyed.
    bed.agent.destroy(&run).finish()?;
    bed.ensure_clean(&run)?;
    let case = bed.watcher.wait_case(run.container_id())?;
    assert_eq!(case["endings"], "2 term", "{case}");
    assert_eq!(bed.watcher.cases(run.container_id())?.len(), 1);
    Ok(())
}

/// Between all steps of the agent's destroy nothing that is the agent's is
/// touched; the stand-in's own steps fail if it was.
#[test]
fn destroy_step_by_step() -> Result<()> {
    for layout in CgroupLayout::all_of_this_host()? {
        // Until the agent kills it, one container ignores what it is told.
        let bed = Bed::configured("slow", layout, PATIENT)?;
        let run = bed.launch("victim")?;
        let containers = bed.start_pod(&run, &[OBEDIENT, IGNORING_TERM])?;
        run.executor()?.kill();
        bed.wait_stopped(&containers[0])?;
        let mut destroy = bed.agent.destroy(&run);
        let state = run.launcher_cgroup().join("freezer.state");
        let mut frozen = "THAWED";
        while let Some(step) = destroy.next() {
            if step == Step::Forget {
                // Nothing is left for anybody: no reason to wait for the agent.
                bed.ensure_clean(&run)?;
            } else {
                bed.wait_looks(&run)?;
                bed.ensure_open(&run, &destroy)
                    .with_context(|| format!("{layout:?}, before {step:?}"))?;
            }
            if let Ok(now) = fs::read_to_string(&state) {
                assert_eq!(now.trim_end(), frozen, "before {step:?}");
            }
            destroy.step()?;
            match step {
                Step::Freeze => frozen = "FROZEN",
                Step::Thaw => frozen = "THAWED",
                // Docker has told of the pod's end by then.
                Step::Reap => {
                    bed.watcher.wait_for_the_agents_turn(run.container_id())?;
                }
                _ => {}
            }
        }
        bed.ensure_clean(&run)?;
        let case = bed.watcher.wait_case(run.container_id())?;
        assert_eq!(case["endings"], "1 agent_kill, 1 term", "{case}");
    }
    Ok(())
}
