//! What one test may touch: a directory, a cgroups root, and processes that
//! carry its name.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cgroups::CgroupRoot;
use crate::process::{self, Process};
use crate::{mounts, wait};

/// Start of all names: `cct-<pid>-<n>-<name>`.
const PREFIX: &str = "cct-";
/// Environment variable that marks all processes of a scratch: those started by
/// [`Scratch::command`], and what these start in turn.
const MARK: &str = "CLEANUP_TESTS_SCRATCH";

const LOCK: Duration = Duration::from_secs(60);
const KILL: Duration = Duration::from_secs(15);
const REMOVE: Duration = Duration::from_secs(10);

/// A temporary directory and a cgroups root of one unique name.
///
/// Dropping it kills what is left of its processes and removes everything. If
/// the test was killed itself, the next `Scratch::new` on the host does that.
#[derive(Debug)]
pub struct Scratch {
    place: Place,
    /// Locked for as long as the owner lives.
    _owner: File,
}

impl Scratch {
    pub fn new(name: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure!(
            name.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
            "`{name}` becomes a cgroup, a directory and a part of container names"
        );
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let place = Place::new(format!("{PREFIX}{}-{count}-{name}", std::process::id()))?;

        // Between its creation and its lock a directory looks abandoned: one
        // process at a time.
        let _turn = wait_for_lock(&env::temp_dir())?;
        sweep_abandoned();
        fs::create_dir(&place.dir).with_context(|| format!("creating {}", place.dir.display()))?;
        let owner = wait_for_lock(&place.dir)?;
        Ok(Self {
            place,
            _owner: owner,
        })
    }

    /// The unique name: of the directory, of the cgroups root, and a good prefix
    /// for anything else that must not clash.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    pub fn path(&self) -> &Path {
        &self.place.dir
    }

    /// The cgroups root for the Mesos agent.
    pub fn cgroups(&self) -> &CgroupRoot {
        &self.place.cgroups
    }

    /// Cgroup parent for containers that do not name one. It lies *beside* the
    /// agent's root and begins with the same letters.
    pub fn docker_cgroup(&self) -> String {
        docker_cgroup(self.name())
    }

    /// `<mount>/<name>` in all mounted hierarchies, existing or not.
    pub fn cgroup_dirs(&self) -> &[PathBuf] {
        self.place.cgroups.dirs()
    }

    /// What there is beneath the roots right now; the roots, which the agent
    /// makes and never removes, do not count.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let mut tree = self.place.cgroups.tree();
        tree.retain(|dir| !self.cgroup_dirs().contains(dir));
        tree
    }

    /// A command whose process, and all that it starts, belong to this scratch.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let (name, value) = self.mark();
        let mut command = Command::new(program);
        command.env(name, value);
        command
    }

    /// The environment variable that makes a process belong to this scratch.
    pub fn mark(&self) -> (&'static str, &str) {
        (MARK, self.name())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = wait::shielded(|| self.place.sweep()) {
            eprintln!("{}: {error:#}", self.name());
        }
    }
}

/// All that a scratch of some name leaves on the host.
#[derive(Debug)]
struct Place {
    name: String,
    dir: PathBuf,
    cgroups: CgroupRoot,
    docker_cgroups: CgroupRoot,
}

impl Place {
    fn new(name: String) -> Result<Self> {
        Ok(Self {
            dir: env::temp_dir().join(&name),
            cgroups: CgroupRoot::new(&name)?,
            docker_cgroups: CgroupRoot::new(&docker_cgroup(&name))?,
            name,
        })
    }

    fn sweep(&self) -> Result<()> {
        process::kill_all(KILL, || {
            // A frozen process takes note of a signal once it is thawed.
            self.cgroups.thaw();
            self.docker_cgroups.thaw();
            self.processes()
        })?;
        self.cgroups.remove(REMOVE)?;
        self.docker_cgroups.remove(REMOVE)?;
        mounts::unmount_beneath(&self.dir)?;
        fs::remove_dir_all(&self.dir).with_context(|| format!("removing {}", self.dir.display()))
    }

    fn processes(&self) -> Vec<Process> {
        let mut found = self.cgroups.processes();
        found.extend(self.docker_cgroups.processes());
        found.retain(Process::alive);
        found.extend(process::with_environment(&format!("{MARK}={}", self.name)));
        found
    }
}

fn docker_cgroup(name: &str) -> String {
    format!("{name}-docker")
}

/// Directories of scratches of this process that are still there: the last thing
/// of a scratch that goes, so everything else of the others is gone.
pub fn left_behind() -> Vec<PathBuf> {
    let own = format!("{PREFIX}{}-", std::process::id());
    fs::read_dir(env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&own))
        .map(|entry| entry.path())
        .collect()
}

/// Removes what was left by tests that were killed: nobody holds their lock.
fn sweep_abandoned() {
    let entries = fs::read_dir(env::temp_dir())
        .into_iter()
        .flatten()
        .flatten();
    for entry in entries {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !name.starts_with(PREFIX) {
            continue;
        }
        let Ok(Some(_lock)) = try_lock(&entry.path()) else {
            continue;
        };
        if let Err(error) = Place::new(name.clone()).and_then(|place| place.sweep()) {
            eprintln!("{name}, abandoned: {error:#}");
        }
    }
}

fn wait_for_lock(dir: &Path) -> Result<File> {
    let what = format!("the lock of {}", dir.display());
    wait::try_until(LOCK, what, || try_lock(dir))
}

/// Locks a directory (also for systemd-tmpfiles, which then leaves it alone).
fn try_lock(dir: &Path) -> Result<Option<File>> {
    let file = File::open(dir).with_context(|| format!("opening {}", dir.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("locking {}", dir.display()))
        }
    }
}
