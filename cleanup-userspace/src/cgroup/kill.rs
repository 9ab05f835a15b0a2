//! Ending what is left in a dead run's cgroup, by identity: a process is
//! signalled only while it is seen to sit in that very cgroup.
//!
//! For a run's *own* processes. Docker's are stopped through Docker: killed
//! through their cgroup they come back when their restart policy says so. Only
//! if Docker stays away and the operator allows it, [`kill_docker`] ends them.

use std::cell::Cell;
use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Hierarchy, RunCgroup, membership};
use crate::process::Proc;

/// Rounds of "list and signal" before the cgroup is frozen to outrun a process
/// that forks faster than it is killed.
const ROUNDS_BEFORE_FREEZE: u32 = 20;
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
    // For all rounds together: a task in uninterruptible sleep does not freeze.
    let patience = Cell::new(FREEZE_DEADLINE);
    rounds(run, &|| run.own_procs(), &|round, pids| {
        // Frozen before it is listed again: who forks faster than it is killed
        // cannot do so then. SIGKILL reaches a frozen process once it is thawed.
        let freeze = round >= ROUNDS_BEFORE_FREEZE && may_freeze && !run.hierarchy().unified;
        let frozen = freeze.then(|| Frozen::freeze(run, &patience));
        let pids = if freeze { run.own_procs()? } else { pids };
        let signalled = if run.hierarchy().unified && kill_file(run)? {
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

/// Freezes the run's v1 freezer cgroup, and always thaws it again.
struct Frozen<'a>(&'a RunCgroup);

impl<'a> Frozen<'a> {
    /// Waits for that at most as long as there is `patience`, and takes from it.
    fn freeze(run: &'a RunCgroup, patience: &Cell<Duration>) -> Self {
        let guard = Self(run);
        let state = Path::new("freezer.state");
        let start = Instant::now();
        while run.write(state, "FROZEN").is_ok() && start.elapsed() < patience.get() {
            match run.read(state) {
                Ok(text) if text.trim() == "FREEZING" => std::thread::sleep(PAUSE),
                _ => break,
            }
        }
        patience.set(patience.get().saturating_sub(start.elapsed()));
        guard
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // Gone means there is nothing to thaw.
        let _ = self.0.write(Path::new("freezer.state"), "THAWED");
    }
}
