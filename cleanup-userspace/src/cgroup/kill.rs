//! Ending what is left in a dead run's cgroup, by identity: a process is
//! signalled only while it is seen to sit in that very cgroup.
//!
//! For a run's *own* processes. Docker's are stopped through Docker: killed
//! through their cgroup they come back when their restart policy says so. Only
//! if Docker stays away and the operator allows it, [`kill_docker`] ends them.

use std::cell::Cell;
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Hierarchy, RunCgroup, membership};
use crate::process::Proc;

/// How often is listed and signalled, and for how long, before the cgroup is frozen to
/// outrun a process that forks faster than it is killed. Whoever does may leave us
/// little of the CPUs.
const ROUNDS_BEFORE_FREEZE: u32 = 20;
const TIME_BEFORE_FREEZE: Duration = Duration::from_millis(200);
const ROUNDS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(5);
/// How long the kernel may take to freeze a cgroup.
const FREEZE_DEADLINE: Duration = Duration::from_secs(2);

/// Why processes are still there.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    #[error("cannot end the processes in {cgroup}: {error}")]
    Io { cgroup: String, error: io::Error },
    #[error("{count} processes in {cgroup} outlive SIGKILL (uninterruptible sleep?)")]
    Remain { cgroup: String, count: usize },
}

/// Ends the run's own processes. `may_freeze` only when no agent lives: an agent
/// uses the same freezer. Returns how many processes were signalled. Blocks for
/// up to three seconds: not for the event path.
pub fn kill_own(run: &RunCgroup, may_freeze: bool) -> Result<usize, KillError> {
    kill_own_with(run, may_freeze, run.hierarchy().unified)
}

/// As [`kill_own`], with or without the help of `cgroup.kill`: kernels that have it can
/// do without it too, so that this can be tested there.
#[doc(hidden)]
pub fn kill_own_with(run: &RunCgroup, may_freeze: bool, by_file: bool) -> Result<usize, KillError> {
    // For all rounds together: a task in uninterruptible sleep does not freeze.
    let patience = Cell::new(FREEZE_DEADLINE);
    let start = Instant::now();
    rounds(run, &|| run.own_procs(), &|round, pids| {
        // Frozen before it is listed again: who forks faster than it is killed
        // cannot do so then. On version 1, SIGKILL reaches a frozen process once
        // it is thawed.
        let is_late = round >= ROUNDS_BEFORE_FREEZE || start.elapsed() >= TIME_BEFORE_FREEZE;
        let freeze = is_late && may_freeze;
        let frozen = if freeze {
            Some(Frozen::freeze(run, &patience)?)
        } else {
            None
        };
        let pids = if freeze { run.own_procs()? } else { pids };
        let signalled = if by_file && kill_file(run)? {
            pids
        } else {
            kill_each(run, pids)?
        };
        drop(frozen);
        Ok(signalled)
    })
}

/// Ends the processes of Docker's containers beneath the run's cgroup, except
/// those of the containers in `keep`. Blocks as [`kill_own`] does.
pub fn kill_docker(run: &RunCgroup, keep: &[String]) -> Result<usize, KillError> {
    rounds(run, &|| run.docker_procs(keep), &|_, pids| {
        kill_each(run, pids)
    })
}

/// Lists and signals until nothing is listed any more.
fn rounds(
    run: &RunCgroup,
    list: &dyn Fn() -> io::Result<Vec<u32>>,
    signal: &dyn Fn(u32, Vec<u32>) -> io::Result<Vec<u32>>,
) -> Result<usize, KillError> {
    let cgroup = || run.path().display().to_string();
    let io_error = |error| KillError::Io {
        cgroup: cgroup(),
        error,
    };
    let mut signalled = HashSet::new();
    for round in 0..ROUNDS {
        let pids = list().map_err(io_error)?;
        if pids.is_empty() {
            return Ok(signalled.len());
        }
        signalled.extend(signal(round, pids).map_err(io_error)?);
        std::thread::sleep(PAUSE);
    }
    match list().map_err(io_error)?.len() {
        0 => Ok(signalled.len()),
        count => Err(KillError::Remain {
            cgroup: cgroup(),
            count,
        }),
    }
}

/// Returns those that were signalled.
fn kill_each(run: &RunCgroup, pids: Vec<u32>) -> io::Result<Vec<u32>> {
    let mut signalled = Vec::new();
    for pid in pids {
        if kill_one(run, pid)? {
            signalled.push(pid);
        }
    }
    Ok(signalled)
}

/// v2: lets the kernel kill everything in each of the run's own cgroups. Never
/// on the run's cgroup itself, which holds Docker's. Returns false where the
/// kernel has no `cgroup.kill` (before 5.14).
fn kill_file(run: &RunCgroup) -> io::Result<bool> {
    let mut known = true;
    for below in run.own_tree()? {
        if below.as_os_str().is_empty() || run.procs(&below)?.is_empty() {
            continue;
        }
        match run.write(&below.join("cgroup.kill"), "1") {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => known = false,
            Err(error) => return Err(error),
        }
    }
    // Processes directly in `<root>/<uuid>` (no Mesos layout puts them there).
    Ok(known && run.procs(Path::new(""))?.is_empty())
}

/// Signals a process that was listed, if it still sits in this run's cgroup
/// after it was pinned by a descriptor.
fn kill_one(run: &RunCgroup, pid: u32) -> io::Result<bool> {
    let Some(proc) = Proc::of(pid) else {
        return Ok(false);
    };
    proc.kill_if(|| sits_in(pid, run.hierarchy(), &run.path()))
}

fn sits_in(pid: u32, hierarchy: &Hierarchy, run: &Path) -> bool {
    membership(pid).is_some_and(|m| m.path(hierarchy).is_some_and(|path| path.starts_with(run)))
}

/// How a freezer is told, and tells.
struct Freezer {
    file: &'static str,
    freeze: &'static str,
    thaw: &'static str,
    state: &'static str,
    /// What is read there while the kernel is still at it.
    pending: &'static str,
}

/// Of the whole run: it has a state of its own in this hierarchy only.
const V1: Freezer = Freezer {
    file: "freezer.state",
    freeze: "FROZEN",
    thaw: "THAWED",
    state: "freezer.state",
    pending: "FREEZING",
};
/// Of each cgroup (Linux 5.2 and later).
const V2: Freezer = Freezer {
    file: "cgroup.freeze",
    freeze: "1",
    thaw: "0",
    state: "cgroup.events",
    pending: "frozen 0",
};

/// Freezes what is the run's own, and always thaws it again.
struct Frozen<'a> {
    run: &'a RunCgroup,
    freezer: Freezer,
    cgroups: Vec<PathBuf>,
}

impl<'a> Frozen<'a> {
    /// Waits for that at most as long as there is `patience`, and takes from it.
    fn freeze(run: &'a RunCgroup, patience: &Cell<Duration>) -> io::Result<Self> {
        // On version 2 not the run's cgroup itself, beneath which Docker's are.
        let (freezer, cgroups) = if run.hierarchy().unified {
            let mut own = run.own_tree()?;
            own.retain(|below| !below.as_os_str().is_empty());
            (V2, own)
        } else {
            (V1, vec![PathBuf::new()])
        };
        let frozen = Self {
            run,
            freezer,
            cgroups,
        };
        let start = Instant::now();
        for below in &frozen.cgroups {
            while frozen.is_pending(below) && start.elapsed() < patience.get() {
                std::thread::sleep(PAUSE);
            }
        }
        patience.set(patience.get().saturating_sub(start.elapsed()));
        Ok(frozen)
    }

    /// Asks for it, and whether it has to be waited for. What cannot be frozen, or is
    /// gone, has not.
    fn is_pending(&self, below: &Path) -> bool {
        let Freezer {
            file,
            freeze,
            state,
            pending,
            ..
        } = self.freezer;
        self.run.write(&below.join(file), freeze).is_ok()
            && self
                .run
                .read(&below.join(state))
                .is_ok_and(|text| text.lines().any(|line| line == pending))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        for below in &self.cgroups {
            // Gone means there is nothing to thaw.
            let _ = self
                .run
                .write(&below.join(self.freezer.file), self.freezer.thaw);
        }
    }
}
