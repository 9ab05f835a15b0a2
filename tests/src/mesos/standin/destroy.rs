//! What an agent does with a container whose helper has ended.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::control;
use super::layout::CgroupLayout;
use super::run::StandInRun;
use crate::process::Process;
use crate::wait;

/// `--cgroups_destroy_timeout`.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What may be looked at between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// v1: the freezer stops everything, the pod's containers too.
    Freeze,
    /// SIGKILL to everything. What is frozen dies when it is thawed.
    Kill,
    /// v1.
    Thaw,
    /// Everything has ended, the helper is reaped.
    Reap,
    /// The launcher's cgroup and all beneath it, Docker's directories too.
    RemoveLaunchers,
    /// v1: one half of the isolators' hierarchies.
    RemoveSomeIsolators,
    /// v1: the other half.
    RemoveOtherIsolators,
    /// The runtime directory: the agent is done.
    Forget,
}

const V1: [Step; 8] = [
    Step::Freeze,
    Step::Kill,
    Step::Thaw,
    Step::Reap,
    Step::RemoveLaunchers,
    Step::RemoveSomeIsolators,
    Step::RemoveOtherIsolators,
    Step::Forget,
];
const V2: [Step; 4] = [Step::Kill, Step::Reap, Step::RemoveLaunchers, Step::Forget];

/// A destroy under way. To drop it leaves the container as it is: stuck, or
/// failed for good.
#[derive(Debug)]
#[must_use = "the agent does nothing until it is told to"]
pub struct Destroy<'a> {
    run: &'a StandInRun,
    left: VecDeque<Step>,
    /// The agent was restarted since it made the run.
    recovered: bool,
}

impl<'a> Destroy<'a> {
    pub(super) fn new(run: &'a StandInRun, start: u32) -> Self {
        Self {
            run,
            left: match run.layout.layout() {
                CgroupLayout::V1 => V1.into(),
                CgroupLayout::V2 => V2.into(),
            },
            recovered: start != run.made_by,
        }
    }

    /// What it will do next; `None`: it is done.
    pub fn next(&self) -> Option<Step> {
        self.left.front().copied()
    }

    /// Does that. Fails where a real agent's destroy would, for good: when a
    /// cgroup of the agent's is not there any more at its turn.
    pub fn step(&mut self) -> Result<()> {
        let step = self.next().context("the destroy is done")?;
        self.carry_out(step)
            .with_context(|| format!("{step:?} of {}", self.run.container_id()))?;
        self.left.pop_front();
        Ok(())
    }

    /// Goes on until `last` was done.
    pub fn through(&mut self, last: Step) -> Result<()> {
        while self.left.contains(&last) {
            self.step()?;
        }
        Ok(())
    }

    /// Does all that is left.
    pub fn finish(mut self) -> Result<()> {
        while self.next().is_some() {
            self.step()?;
        }
        Ok(())
    }

    /// Those of [`StandInRun::agents_cgroups`] that it has not removed yet.
    pub fn cgroups_left(&self) -> Vec<PathBuf> {
        let mut cgroups = Vec::new();
        let (some, others) = self.halves();
        if self.left.contains(&Step::RemoveLaunchers) {
            let mut launchers = self.run.agents_cgroups();
            launchers.retain(|cgroup| !self.run.isolator_cgroups().contains(cgroup));
            cgroups.extend(launchers);
        }
        if self.left.contains(&Step::RemoveSomeIsolators) {
            cgroups.extend(some);
        }
        if self.left.contains(&Step::RemoveOtherIsolators) {
            cgroups.extend(others);
        }
        cgroups
    }

    fn carry_out(&self, step: Step) -> Result<()> {
        let cgroup = self.run.launcher_cgroup();
        let (some, others) = self.halves();
        match step {
            Step::Freeze => set_freezer(&cgroup, "FROZEN"),
            Step::Kill if self.run.layout.layout() == CgroupLayout::V2 => self.kill_v2(&cgroup),
            Step::Kill => {
                processes(&cgroup).iter().for_each(Process::kill);
                Ok(())
            }
            Step::Thaw => set_freezer(&cgroup, "THAWED"),
            Step::Reap => self.reap(&cgroup),
            Step::RemoveLaunchers => self.remove([cgroup]),
            Step::RemoveSomeIsolators => self.remove(some),
            Step::RemoveOtherIsolators => self.remove(others),
            Step::Forget => {
                let runtime = self.run.runtime();
                fs::remove_dir_all(&runtime).with_context(|| runtime.display().to_string())?;
                // The executor is removed after its container.
                fs::write(self.run.meta().join("executor.sentinel"), "").context("the sentinel")
            }
        }
    }

    fn kill_v2(&self, cgroup: &Path) -> Result<()> {
        if self.recovered && !cgroup.exists() {
            return Ok(());
        }
        ensure!(cgroup.is_dir(), "{} does not exist", cgroup.display());
        let file = cgroup.join("cgroup.kill");
        if !file.exists() {
            // Before Linux 5.14.
            processes(cgroup).iter().for_each(Process::kill);
            return Ok(());
        }
        fs::write(&file, "1").with_context(|| format!("writing {}", file.display()))
    }

    fn reap(&self, cgroup: &Path) -> Result<()> {
        let helper = self.run.helper()?;
        wait::try_until(TIMEOUT, "the end of all its processes", || {
            if self.recovered {
                // Not its child: somebody else has reaped it.
                return Ok((!helper.alive() && processes(cgroup).is_empty()).then_some(()));
            }
            let status = control::ask(self.run.agent, &control::reap(helper.pid()))?;
            Ok((!status.is_null() && processes(cgroup).is_empty()).then_some(()))
        })
    }

    /// The isolators clean up in the reverse order of their preparation.
    fn halves(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let mut some = self.run.isolator_cgroups();
        some.reverse();
        let others = some.split_off(some.len() / 2);
        (some, others)
    }

    /// As Mesos 1.10 and later do it: list what lies beneath, whoever made it,
    /// and remove that bottom-up, again and again while it is busy. A cgroup that
    /// vanishes after the list was made is none the less removed.
    fn remove(&self, cgroups: impl IntoIterator<Item = PathBuf>) -> Result<()> {
        for cgroup in cgroups {
            if self.recovered && !cgroup.exists() {
                // A recovery takes note of what there is.
                continue;
            }
            ensure!(
                cgroup.is_dir(),
                "Failed to get nested cgroups: {} was removed by somebody else",
                cgroup.display()
            );
            for below in bottom_up(&cgroup) {
                wait::try_until(TIMEOUT, below.display(), || remove_empty(&below))?;
            }
        }
        Ok(())
    }
}

/// `None`: it is busy.
fn remove_empty(cgroup: &Path) -> Result<Option<()>> {
    match fs::remove_dir(cgroup) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
        Err(error) => bail!("removing {}: {error}", cgroup.display()),
    }
}

/// All at once: a cgroup is frozen for as long as its parent is.
fn set_freezer(cgroup: &Path, state: &str) -> Result<()> {
    let set = |below: &PathBuf| -> Result<bool> {
        let file = below.join("freezer.state");
        match fs::write(&file, state).and_then(|()| fs::read_to_string(&file)) {
            Ok(now) => Ok(now.trim_end() == state),
            // Docker has removed what is its own.
            Err(_) if !below.exists() && below != cgroup => Ok(true),
            Err(error) => bail!("{}: {error}", file.display()),
        }
    };
    let what = format!("{} to be {state}", cgroup.display());
    wait::try_until(TIMEOUT, what, || {
        let mut all = true;
        for below in bottom_up(cgroup) {
            all &= set(&below)?;
        }
        Ok(all.then_some(()))
    })
}

/// Everything in a cgroup and beneath it that has not ended.
fn processes(cgroup: &Path) -> Vec<Process> {
    bottom_up(cgroup)
        .iter()
        .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
        .flat_map(|procs| {
            let pids = procs.lines().filter_map(|pid| pid.parse().ok());
            pids.filter_map(Process::of).collect::<Vec<_>>()
        })
        .filter(Process::alive)
        .collect()
}

/// A cgroup and those beneath it, children before their parents.
fn bottom_up(cgroup: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(bottom_up(&entry.path()));
        }
    }
    found.push(cgroup.to_owned());
    found
}
