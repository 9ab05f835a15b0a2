//! The wall clock is set, forwards and backwards, over deaths.
//!
//! The clock that jumps is a **shim** (`clock.c`, preloaded into the daemon): the
//! host's own clock is everybody's, and there is no namespace for it. The journal's
//! time stamps do not go through it; what decides anything does.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use cleanup_tests::command;

use super::*;

const DAY: i64 = 86_400;

/// A shim that adds what its file holds.
struct Clock {
    library: PathBuf,
    offset: PathBuf,
}

impl Clock {
    fn make(scratch: &Scratch) -> Result<Self> {
        let source = scratch.path().join("clock.c");
        let library = scratch.path().join("clock.so");
        fs::write(&source, include_str!("clock.c"))?;
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(&source);
        command::output(&mut cc, SOON)?;
        let clock = Self {
            library,
            offset: scratch.path().join("clock.offset"),
        };
        clock.set(0)?;
        Ok(clock)
    }

    fn environment(&self) -> [(&'static str, String); 2] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAULTS_CLOCK_OFFSET", self.offset.display().to_string()),
        ]
    }

    fn set(&self, seconds: i64) -> Result<()> {
        // Never half a number.
        let new = self.offset.with_extension("new");
        fs::write(&new, seconds.to_string())?;
        Ok(fs::rename(&new, &self.offset)?)
    }
}

/// A jump in the middle of each case, between the death and Docker's answer, and
/// containers that come after the jump.
#[test]
fn a_jump_in_the_middle_of_a_case() -> Result<()> {
    let mut bed = Bed::start("jump", &[], "")?;
    let clock = Clock::make(&bed.scratch)?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    restart(&mut bed, &clock, "")?;
    for seconds in [DAY, -DAY, 30 * DAY, 0] {
        let what = format!("{seconds} s");
        let pod = bed.pod("victim", &[OBEDIENT, IGNORING_TERM])?;
        pod.run.executor()?.kill();
        bed.wait_stopped(&pod.containers[0])?;
        clock.set(seconds)?;
        let case = bed.ensure_cleaned(&pod).context(what.clone())?;
        assert_eq!(case["containers"], 2, "{what}: {case}");
        assert_eq!(case["origin"], "kernel", "{what}: {case}");
        bed.ensure_untouched(&neighbour).context(what)?;
    }
    Ok(())
}

/// A jump while the daemon is down, and one between the two surveys that must agree
/// before a death without a witness is believed.
#[test]
fn a_jump_between_two_looks() -> Result<()> {
    let mut bed = Bed::start("looks", &[], "")?;
    let clock = Clock::make(&bed.scratch)?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    restart(&mut bed, &clock, "")?;
    for (down, between) in [(DAY, -DAY), (-DAY, DAY), (0, 0)] {
        let what = format!("{down} s, {between} s");
        let pod = bed.pod("victim", &[OBEDIENT])?;
        let daemon = bed.daemon()?;
        daemon.kill();
        daemon.wait_gone(SOON)?;
        let helper = pod.run.helper()?;
        pod.run.executor()?.kill();
        helper.wait_gone(SOON)?;
        clock.set(down)?;
        restart(&mut bed, &clock, "")?;
        // The first look was before `ready`, the second is two seconds after.
        clock.set(between)?;
        bed.ensure_cleaned(&pod).context(what.clone())?;
        bed.ensure_untouched(&neighbour).context(what)?;
    }
    Ok(())
}

/// The clock was set back before an agent was restarted: what the agent's last life
/// has written is newer than its start, and must not be taken for the end of its
/// recovery. Nothing is removed until that has ended.
#[test]
fn a_jump_before_an_agent_recovers() -> Result<()> {
    let mut bed = Bed::start("recovers", &[], "")?;
    let clock = Clock::make(&bed.scratch)?;
    let pod = bed.pod("victim", &[OBEDIENT])?;
    let daemon = bed.daemon()?;
    daemon.kill();
    daemon.wait_gone(SOON)?;
    bed.agent.kill9()?;
    pod.run.executor()?.kill();
    bed.agent.begin_recovery()?;
    clock.set(-DAY)?;
    restart(&mut bed, &clock, "agent_deadline = \"1s\"")?;
    bed.wait_stopped(&pod.containers[0])?;
    let before = bed.cgroups_of(&pod.run);
    let stuck = bed.watcher.wait_message_of(pod.run.container_id(), STUCK)?;
    assert_eq!(stuck["agent"], "Recovering", "{stuck}");
    for cgroup in pod.run.agents_cgroups() {
        ensure!(cgroup.is_dir(), "{} is gone", cgroup.display());
    }
    assert_eq!(bed.cgroups_of(&pod.run), before, "removed in a recovery");

    clock.set(0)?;
    bed.agent.finish_recovery()?;
    bed.ensure_cleaned(&pod).map(drop)
}

/// Another daemon, in the shim's time.
fn restart(bed: &mut Bed, clock: &Clock, options: &str) -> Result<()> {
    let daemon = bed.daemon()?;
    daemon.kill();
    daemon.wait_gone(SOON)?;
    let environment = clock.environment();
    bed.watcher = Watcher::start_in(
        &bed.scratch,
        &bed.docker.socket(),
        &[bed.agent.place()],
        &format!("{ENFORCE}\n{options}\n"),
        &environment,
    )?;
    let loaded = fs::read_to_string(format!("/proc/{}/maps", bed.watcher.pid()))?;
    ensure!(loaded.contains("clock.so"), "the shim is not loaded");
    Ok(())
}
