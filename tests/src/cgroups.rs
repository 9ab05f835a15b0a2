//! A name at the top of every cgroup hierarchy, and all that lies beneath it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::Process;
use crate::{mounts, wait};

/// The same directory in each mounted hierarchy, version 1 and 2.
///
/// Nothing outside of these directories is ever read or written.
#[derive(Debug, Clone)]
pub struct CgroupRoot {
    dirs: Vec<PathBuf>,
}

impl CgroupRoot {
    pub fn new(name: &str) -> Result<Self> {
        let dirs = hierarchies()?
            .iter()
            .map(|mount| mount.join(name))
            .collect();
        Ok(Self { dirs })
    }

    /// The directory of this name in each hierarchy, existing or not.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The existing directories, children before their parents.
    pub fn tree(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for dir in &self.dirs {
            if dir.is_dir() {
                walk(dir, &mut found);
            }
        }
        found
    }

    /// Every process in any of the directories, but never this one.
    pub fn processes(&self) -> Vec<Process> {
        let own = std::process::id().cast_signed();
        let pids: HashSet<i32> = self
            .tree()
            .iter()
            .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
            .flat_map(|procs| {
                procs
                    .lines()
                    .filter_map(|pid| pid.parse().ok())
                    .collect::<Vec<_>>()
            })
            .filter(|&pid| pid != own)
            .collect();
        pids.into_iter().filter_map(Process::of).collect()
    }

    /// Lets frozen processes run (and die) again.
    pub fn thaw(&self) {
        for dir in self.tree() {
            for (file, value) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
                let path = dir.join(file);
                if path.exists() {
                    // Gone in the meantime, or no such thing in this hierarchy.
                    let _ = fs::write(path, value);
                }
            }
        }
    }

    /// Removes the directories; those in use are tried again until the limit.
    pub fn remove(&self, limit: Duration) -> Result<()> {
        wait::until(limit, "the cgroups to become removable", || {
            for dir in self.tree() {
                let _ = fs::remove_dir(dir);
            }
            self.tree().is_empty().then_some(())
        })
        .with_context(|| format!("left: {:?}", self.tree()))
    }
}

/// Mount point of each hierarchy, the first if it is mounted more than once.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mut seen = HashSet::new();
    Ok(mounts::all()?
        .into_iter()
        .filter(|mount| matches!(mount.fs_type.as_str(), "cgroup" | "cgroup2"))
        .filter(|mount| seen.insert(mount.device.clone()))
        .map(|mount| mount.point)
        .collect())
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), found);
        }
    }
    found.push(dir.to_owned());
}
