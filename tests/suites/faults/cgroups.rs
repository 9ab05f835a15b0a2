//! Cgroups that do not go, and directories that are not there.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Result, ensure};
use cleanup_tests::command;
use cleanup_tests::mesos::standin::Step;

use super::*;

const DISOWNED: &str = "Docker does not know of processes in its cgroups beneath a dead run: they are ended through these";
const BUSY: &str = "cgroups of a dead run are not empty, though Docker says that nothing runs there: look at cgroup.procs beneath them";

/// A process of somebody, which is ended with this.
struct Foreign(Child);

impl Foreign {
    fn start(scratch: &Scratch) -> Result<Self> {
        let mut command = scratch.command("sleep");
        Ok(Self(command.arg("86400").spawn()?))
    }

    fn process(&self) -> Result<Process> {
        Process::of(self.0.id().cast_signed()).context("it has ended")
    }

    fn enter(&self, cgroup: &Path) -> Result<()> {
        fs::write(cgroup.join("cgroup.procs"), self.0.id().to_string())
            .with_context(|| format!("entering {}", cgroup.display()))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Somebody sits in the cgroup of a container of a dead run: the case waits, says
/// so once, holds up nobody else, and ends in the end what Docker does not know, as
/// the agent would have.
#[test]
fn a_cgroup_that_is_kept_populated() -> Result<()> {
    let mut bed = Bed::start("populated", &[], "agent_deadline = \"1s\"")?;
    let pod = bed.pod("victim", &[OBEDIENT])?;
    let other = bed.pod("other", &[OBEDIENT])?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let foreign = Foreign::start(&bed.scratch)?;
    let inside = |path: &&PathBuf| path.ends_with(&pod.containers[0]);
    let cgroups = bed.cgroups_of(&pod.run);
    let mut entered = 0;
    for cgroup in cgroups.iter().filter(inside) {
        // A cpuset without CPUs takes nobody.
        entered += usize::from(foreign.enter(cgroup).is_ok());
    }
    ensure!(entered > 1, "{cgroups:?}");
    bed.agent.kill9()?;
    pod.run.executor()?.kill();
    bed.wait_stopped(&pod.containers[0])?;
    let said = bed.watcher.wait_message_of(pod.run.container_id(), BUSY)?;
    ensure!(
        said["cgroup"]
            .as_str()
            .is_some_and(|path| path.ends_with(pod.run.container_id())),
        "{said}"
    );
    // It holds up nobody else.
    other.run.executor()?.kill();
    let case = bed.watcher.wait_case(other.run.container_id())?;
    bed.ensure_clean(&other, &case)?;
    let case = bed.watcher.wait_case(pod.run.container_id())?;
    bed.ensure_clean(&pod, &case)?;
    ensure!(!foreign.process()?.alive());
    assert_eq!(bed.watcher.said(DISOWNED)?.len(), 1);
    assert_eq!(bed.watcher.said(BUSY)?.len(), 1);
    bed.ensure_untouched(&neighbour)
}

/// A block device on which every write sleeps, uninterruptibly and beyond the reach
/// of any freezer: it lies on a file system that is frozen.
struct FrozenDisk {
    point: PathBuf,
    device: PathBuf,
    writers: Vec<Child>,
}

impl FrozenDisk {
    fn mount(scratch: &Scratch) -> Result<Self> {
        let point = scratch.path().join("frozen");
        let image = scratch.path().join("frozen.img");
        fs::create_dir(&point)?;
        fs::File::create(&image)?.set_len(8 << 20)?;
        tool("mkfs.ext4", &["-qF".as_ref(), &image])?;
        tool("mount", &["-oloop".as_ref(), &image, &point])?;
        let mut disk = Self {
            device: point.join("device.img"),
            point,
            writers: Vec::new(),
        };
        fs::write(&disk.device, vec![0; 1 << 20])?;
        let device = tool("losetup", &["-f".as_ref(), "--show".as_ref(), &disk.device])?;
        disk.device = PathBuf::from(device.trim_end());
        tool("fsfreeze", &["-f".as_ref(), &disk.point])?;
        Ok(disk)
    }

    /// Somebody of a run who writes there, and is asleep when this returns.
    fn write(&mut self, scratch: &Scratch, run: &StandInRun) -> Result<Process> {
        let mut command = scratch.command("dd");
        command.arg(format!("of={}", self.device.display())).args([
            "if=/dev/zero",
            "bs=4096",
            "count=1",
            "oflag=direct",
        ]);
        let child = command.stderr(Stdio::null()).spawn()?;
        let pid = child.id();
        self.writers.push(child);
        fs::write(run.launcher_cgroup().join("cgroup.procs"), pid.to_string())?;
        wait::until(SOON, "a task in state D", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit(')')
                .next()?
                .trim()
                .starts_with('D')
                .then_some(())
        })?;
        Process::of(pid.cast_signed()).context("the writer")
    }

    fn thaw(&mut self) -> Result<()> {
        let thawed = tool("fsfreeze", &["-u".as_ref(), &self.point]);
        for mut writer in self.writers.drain(..) {
            writer.wait()?;
        }
        thawed.map(drop)
    }
}

impl Drop for FrozenDisk {
    fn drop(&mut self) {
        if !self.writers.is_empty() {
            let _ = self.thaw();
        }
        let detached = tool("losetup", &["-d".as_ref(), &self.device]);
        let unmounted = tool("umount", &[&self.point]);
        for error in [detached.err(), unmounted.err()].into_iter().flatten() {
            eprintln!("{error:#}");
        }
    }
}

fn tool(program: &str, arguments: &[&Path]) -> Result<String> {
    let program = command::system_program(program);
    command::output(Command::new(program).args(arguments), SOON)
}

/// A task of a dead run outlives SIGKILL, and there is no agent to wait for: the
/// case says what is wrong, holds up nobody, and ends when the task does.
#[test]
fn a_task_in_uninterruptible_sleep() -> Result<()> {
    let mut bed = Bed::start("asleep", &[], "")?;
    let pod = bed.pod("victim", &[OBEDIENT])?;
    let other = bed.pod("other", &[OBEDIENT])?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let mut disk = FrozenDisk::mount(&bed.scratch)?;
    let asleep = disk.write(&bed.scratch, &pod.run)?;
    bed.agent.kill9()?;
    pod.run.executor()?.kill();
    bed.wait_stopped(&pod.containers[0])?;
    bed.watcher
        .wait_message_of(pod.run.container_id(), IN_THE_WAY)?;
    let complaints = bed.complaints(&pod.run)?;
    let error = complaints[0]["error"].as_str().unwrap_or_default();
    ensure!(error.contains("outlive SIGKILL"), "{error}");

    other.run.executor()?.kill();
    let case = bed.watcher.wait_case(other.run.container_id())?;
    bed.ensure_clean(&other, &case)?;
    ensure!(asleep.alive());
    ensure!(bed.watcher.cases(pod.run.container_id())?.is_empty());
    disk.thaw()?;
    let case = bed.watcher.wait_case(pod.run.container_id())?;
    bed.ensure_clean(&pod, &case)?;
    assert_eq!(bed.complaints(&pod.run)?.len(), 1);
    bed.ensure_untouched(&neighbour)
}

/// Somebody removes half of what the agent has made.
#[test]
fn cgroups_that_are_gone_already() -> Result<()> {
    let mut bed = Bed::start("halfgone", &[], "")?;
    let pod = bed.pod("victim", &[OBEDIENT])?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    pod.run.executor()?.kill();
    bed.wait_stopped(&pod.containers[0])?;
    bed.agent.kill9()?;
    for (at, cgroup) in pod.run.agents_cgroups().iter().enumerate() {
        if at % 2 == 0 {
            wait::until(SOON, "Docker's to be gone", || fs::remove_dir(cgroup).ok())?;
        }
    }
    let case = bed.watcher.wait_case(pod.run.container_id())?;
    bed.ensure_clean(&pod, &case)?;
    bed.ensure_untouched(&neighbour)
}

/// The whole runtime directory is not there for a while: that is nobody's word that
/// anything is done, least of all a living agent's.
#[test]
fn a_runtime_directory_that_is_not_there() -> Result<()> {
    let bed = Bed::start("noruntime", &[], "agent_deadline = \"1s\"")?;
    let pod = bed.pod("victim", &[OBEDIENT])?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let runtime = bed.agent.layout().runtime_dir();
    let away = runtime.with_extension("away");
    fs::rename(&runtime, &away)?;
    pod.run.executor()?.kill();
    bed.wait_stopped(&pod.containers[0])?;
    bed.watcher.wait_message_of(pod.run.container_id(), STUCK)?;
    ensure!(bed.watcher.cases(pod.run.container_id())?.is_empty());
    for cgroup in pod.run.agents_cgroups() {
        ensure!(cgroup.is_dir(), "{} is gone", cgroup.display());
    }
    bed.ensure_untouched(&neighbour)?;
    fs::rename(&away, runtime)?;
    bed.ensure_cleaned(&pod)?;
    // What happens from then on is noticed.
    let later = bed.pod("later", &[OBEDIENT])?;
    later.run.executor()?.kill();
    bed.ensure_cleaned(&later)?;
    bed.ensure_untouched(&neighbour)
}

/// The work directory is moved away, with all sandboxes and checkpoints, and back.
#[test]
fn a_work_directory_that_is_not_there() -> Result<()> {
    let bed = Bed::start("nowork", &[], "")?;
    let pod = bed.pod("victim", &[OBEDIENT])?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let work = bed.agent.layout().work_dir();
    let away = work.with_extension("away");
    fs::rename(&work, &away)?;
    pod.run.executor()?.kill();
    bed.wait_stopped(&pod.containers[0])?;
    // Everything but the last step, which is a checkpoint.
    let mut destroy = bed.agent.destroy(&pod.run);
    destroy.through(Step::RemoveOtherIsolators)?;
    let case = bed.watcher.wait_case(pod.run.container_id());
    fs::rename(&away, work)?;
    destroy.finish()?;
    bed.ensure_clean(&pod, &case?)?;
    bed.ensure_untouched(&neighbour)?;
    neighbour.run.executor()?.kill();
    bed.ensure_cleaned(&neighbour).map(drop)
}
