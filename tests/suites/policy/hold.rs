//! The brake: what was only inferred is held back, by its number or the operator's
//! word; what the kernel proves, never.

use std::path::Path;

use anyhow::{Result, ensure};
use cleanup_tests::mesos::standin::StandInRun;
use cleanup_tests::wait;
use serde_json::Value;

use super::{Bed, SOON, wait_clean, wait_waiting};

const HELD: &str = "held: this death was only inferred; `compose-cleanup release` lets it go on";

impl Bed {
    /// The executor dies and nobody sees it: no daemon runs, and no agent leaves its
    /// helper as a zombie, which would be a proof.
    fn end_unseen(&mut self, run: &StandInRun) -> Result<()> {
        let (executor, helper) = (run.executor()?, run.helper()?);
        self.agent.kill9()?;
        executor.kill();
        let place = Path::new("/proc").join(helper.pid().to_string());
        wait::until(SOON, "the helper to be reaped", || {
            (!place.exists()).then_some(())
        })?;
        self.agent.restart()
    }
}

/// The line of the cap.
fn is_the_cap(line: &Value) -> bool {
    let text = line["message"].as_str();
    text.is_some_and(|text| text.starts_with("HELD: "))
}

/// An executor dies while the daemon is down, and its pod is larger than the cap:
/// nothing is stopped, over a restart too, until somebody releases it.
#[test]
fn more_than_the_cap_waits_for_a_person() -> Result<()> {
    const CAP: &str = "max_inferred_stops = 2";
    let mut bed = Bed::new("cap")?;
    let run = bed.agent.launch("victim")?;
    let containers = [
        bed.start_container(&run, &[])?,
        bed.start_container(&run, &[])?,
        bed.start_container(&run, &[])?,
    ];
    bed.end_unseen(&run)?;

    let watcher = bed.watch(CAP)?;
    let held = watcher.wait_message_of(run.container_id(), HELD)?;
    assert_eq!(held["containers"], 3, "{held}");
    let cap: Vec<Value> = watcher.lines()?.into_iter().filter(is_the_cap).collect();
    ensure!(cap.len() == 1, "{cap:?}");
    assert_eq!(cap[0]["level"], "ERROR", "{cap:?}");
    assert_eq!(cap[0]["cap"], 2, "{cap:?}");
    assert_eq!(cap[0]["wanted"], 3, "{cap:?}");
    wait_waiting(&watcher, &run, "Release")?;
    ensure!(watcher.stop()?.success());

    let watcher = bed.watch(CAP)?;
    watcher.wait_message_of(run.container_id(), HELD)?;
    ensure!(!watcher.lines()?.iter().any(is_the_cap), "counted anew");
    for id in &containers {
        bed.ensure_running(id)?;
    }

    let said = bed.say(&["release"])?;
    assert_eq!(said, "released: what waited goes on\n");
    for id in &containers {
        bed.wait_stopped(id)?;
    }
    bed.agent.destroy(&run).finish()?;
    let case = wait_clean(&watcher, &run)?;
    assert_eq!(case["origin"], "scan", "{case}");
    assert_eq!(case["endings"], "3 term", "{case}");
    assert_eq!(bed.say(&["release"])?, "nothing was held\n");
    Ok(())
}

/// As many as the cap are stopped without a word.
#[test]
fn as_many_as_the_cap_are_stopped() -> Result<()> {
    let mut bed = Bed::new("undercap")?;
    let run = bed.agent.launch("victim")?;
    let containers = [
        bed.start_container(&run, &[])?,
        bed.start_container(&run, &[])?,
    ];
    bed.end_unseen(&run)?;
    let watcher = bed.watch("max_inferred_stops = 2")?;
    for id in &containers {
        bed.wait_stopped(id)?;
    }
    bed.agent.destroy(&run).finish()?;
    let case = wait_clean(&watcher, &run)?;
    assert_eq!(case["origin"], "scan", "{case}");
    ensure!(!watcher.lines()?.iter().any(is_the_cap));
    Ok(())
}

/// The operator's hold is there before the daemon, does not hold what the kernel
/// reports, and ends by itself if it was told to.
#[test]
fn a_hold_holds_what_was_inferred_only() -> Result<()> {
    let mut bed = Bed::new("hold")?;
    let missed = bed.agent.launch("missed")?;
    let waits = bed.start_container(&missed, &[])?;
    bed.end_unseen(&missed)?;
    bed.configure("")?;
    let said = bed.say(&["hold", "--for", "1h"])?;
    assert_eq!(said, "held for 1h: inferred deaths stop nothing\n");

    let watcher = bed.watch("")?;
    let seen = bed.launch(&watcher, "seen")?;
    let stops = bed.start_container(&seen, &[])?;
    watcher.wait_message_of(missed.container_id(), HELD)?;
    wait_waiting(&watcher, &missed, "Release")?;

    seen.executor()?.kill();
    bed.wait_stopped(&stops)?;
    bed.agent.destroy(&seen).finish()?;
    let case = wait_clean(&watcher, &seen)?;
    assert_eq!(case["origin"], "kernel", "{case}");
    bed.ensure_running(&waits)?;
    ensure!(watcher.cases(missed.container_id())?.is_empty());

    bed.say(&["hold", "--for", "1s"])?;
    bed.wait_stopped(&waits)?;
    watcher.wait_message("inferred deaths are not held any more")?;
    bed.agent.destroy(&missed).finish()?;
    wait_clean(&watcher, &missed)?;
    Ok(())
}
