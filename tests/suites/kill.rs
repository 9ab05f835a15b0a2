//! Ends what a dead run left in its cgroup, in real cgroups: who forks faster than it is
//! killed.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::{bins, random, wait};
use cleanup_userspace::cgroup::{CgroupsRoot, Hierarchies, Hierarchy, RunCgroup, kill_own_with};
use cleanup_userspace::mesos::ContainerId;

const LIMIT: Duration = Duration::from_secs(30);
/// More than can be signalled before one of them forks.
const HEADS: usize = 50;

#[test]
fn a_hydra_is_frozen_on_version_1() -> Result<()> {
    let v1 = |hierarchy: &Hierarchy| hierarchy.controllers.iter().any(|name| name == "freezer");
    Lab::new("kill-v1", v1, "")?.ends_a_hydra(false, "freezer.state", "THAWED")
}

/// As before Linux 5.14.
#[test]
fn a_hydra_is_frozen_on_version_2() -> Result<()> {
    Lab::new("kill-v2", |hierarchy| hierarchy.unified, "leaf")?.ends_a_hydra(
        false,
        "leaf/cgroup.freeze",
        "0",
    )
}

#[test]
fn a_hydra_is_killed_by_the_kernel_where_it_can() -> Result<()> {
    Lab::new("kill-file", |hierarchy| hierarchy.unified, "leaf")?.ends_a_hydra(
        true,
        "leaf/cgroup.freeze",
        "0",
    )
}

/// One run's cgroup in one hierarchy.
struct Lab {
    run: RunCgroup,
    dir: PathBuf,
    /// Where its processes are.
    seat: PathBuf,
    scratch: Scratch,
}

impl Lab {
    fn new(name: &str, is_it: impl Fn(&Hierarchy) -> bool, seat: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let hierarchies = Hierarchies::discover()?;
        let hierarchy = hierarchies.iter().find(|hierarchy| is_it(hierarchy));
        let hierarchy = hierarchy.context("this host lacks the hierarchy")?;
        let root = scratch
            .cgroup_dirs()
            .iter()
            .find(|dir| dir.parent() == Some(&hierarchy.mount))
            .context("no scratch cgroup there")?;
        let container = random::uuid()?;
        let dir = root.join(&container);
        let seat = dir.join(seat);
        fs::create_dir_all(&seat).with_context(|| seat.display().to_string())?;
        let root = CgroupsRoot::try_from(root.strip_prefix(&hierarchy.mount)?.to_path_buf())?;
        let container: ContainerId = container.parse()?;
        let run = RunCgroup::open(hierarchy, &root, container)?.context("it was just made")?;
        Ok(Self {
            run,
            dir,
            seat,
            scratch,
        })
    }

    fn ends_a_hydra(&self, by_file: bool, freezer: &str, thawed: &str) -> Result<()> {
        let mut command = self.scratch.command(bins::find("exit-case")?);
        command.arg("--in").arg(&self.seat).arg("hydra");
        let mut first = command.arg(&self.seat).stdin(Stdio::null()).spawn()?;
        wait::try_until(LIMIT, "the hydra's heads", || {
            Ok((self.run.own_procs()?.len() > HEADS).then_some(()))
        })?;
        kill_own_with(&self.run, true, by_file)?;
        first.wait()?;
        ensure!(self.run.own_procs()?.is_empty(), "a head is left");
        let state = fs::read_to_string(self.dir.join(freezer))?;
        ensure!(state.trim() == thawed, "left {state}");
        Ok(())
    }
}
