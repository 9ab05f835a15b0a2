//! The cgroup hierarchies of this host, and in which cgroup a process sits.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use cgroups_rs::hierarchies::is_cgroup2_unified_mode;
use rustix::fs::{self, OFlags};

use super::CgroupsRoot;

/// How cgroups are mounted on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every controller in a v1 hierarchy, no cgroup2 mount.
    V1,
    /// v1 hierarchies and a cgroup2 mount beside them.
    Hybrid,
    /// cgroup2 at `/sys/fs/cgroup`.
    V2,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
            Self::V2 => "v2",
        })
    }
}

/// One mounted hierarchy.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    /// v1: its controllers, or `name=…` for a hierarchy without any. Empty on v2.
    pub controllers: Vec<String>,
    pub mount: PathBuf,
    pub unified: bool,
    /// See [`mount_dir`](Self::mount_dir).
    dir: Arc<OnceLock<OwnedFd>>,
}

impl PartialEq for Hierarchy {
    fn eq(&self, other: &Self) -> bool {
        self.mount == other.mount
            && self.controllers == other.controllers
            && self.unified == other.unified
    }
}

impl Eq for Hierarchy {}

impl Hierarchy {
    pub fn new(controllers: Vec<String>, mount: PathBuf, unified: bool) -> Self {
        Self {
            controllers,
            mount,
            unified,
            dir: Arc::default(),
        }
    }

    /// The directory that it is mounted on. It is opened once: its path leads through
    /// sysfs, where every lookup waits for whoever takes something out of it. When
    /// hundreds of containers end, and with each the devices of its network, those are
    /// seconds (`cargo xtask bench mass`, Linux 6.18).
    pub(super) fn mount_dir(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(dir) = self.dir.get() {
            return Ok(dir.as_fd());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = fs::open(&self.mount, flags, fs::Mode::empty())?;
        Ok(self.dir.get_or_init(|| dir).as_fd())
    }

    /// For people: `cpu,cpuacct`, `name=systemd`, `unified`.
    pub fn name(&self) -> String {
        if self.unified {
            "unified".to_owned()
        } else {
            self.controllers.join(",")
        }
    }

    /// Where an agent's containers are in this hierarchy.
    pub fn root(&self, root: &CgroupsRoot) -> PathBuf {
        self.mount.join(root.as_path())
    }
}

/// All hierarchies of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    all: Vec<Hierarchy>,
    unified_mode: bool,
}

/// Mount options of a v1 hierarchy that are no controllers.
const OPTIONS: [&str; 9] = [
    "rw",
    "ro",
    "xattr",
    "noprefix",
    "clone_children",
    "cpuset_v2_mode",
    "none",
    "all",
    "seclabel",
];

impl Hierarchies {
    /// Reads the mount table of this process.
    pub fn discover() -> anyhow::Result<Self> {
        let mounts = procfs::process::Process::myself()
            .and_then(|me| me.mountinfo())
            .context("cannot read /proc/self/mountinfo")?;
        let mut all = Vec::new();
        let mut seen = Vec::new();
        for mount in mounts {
            let unified = match mount.fs_type.as_str() {
                "cgroup" => false,
                "cgroup2" => true,
                _ => continue,
            };
            // A bind mount of a part of a hierarchy, or a second mount of one.
            if mount.root != "/" || seen.contains(&mount.majmin) {
                continue;
            }
            seen.push(mount.majmin);
            let mut controllers: Vec<String> = mount
                .super_options
                .into_iter()
                .filter_map(|(key, value)| match (key.as_str(), value) {
                    ("name", Some(value)) => Some(format!("name={value}")),
                    (_, None) if !OPTIONS.contains(&key.as_str()) => Some(key),
                    _ => None,
                })
                .collect();
            controllers.sort();
            all.push(Hierarchy::new(
                if unified { Vec::new() } else { controllers },
                mount.mount_point,
                unified,
            ));
        }
        all.sort_by(|a, b| a.mount.cmp(&b.mount));
        anyhow::ensure!(
            !all.is_empty(),
            "no cgroup hierarchy is mounted: mount cgroup v1 or v2 (see docs/limitations.md)"
        );
        Ok(Self {
            all,
            unified_mode: is_cgroup2_unified_mode(),
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Hierarchy> {
        self.all.iter()
    }

    pub fn mode(&self) -> Mode {
        match (self.unified_mode, self.unified(), self.freezer()) {
            (true, ..) | (false, Some(_), None) => Mode::V2,
            (false, Some(_), Some(_)) => Mode::Hybrid,
            (false, None, _) => Mode::V1,
        }
    }

    /// The v1 hierarchy that the linux launcher of Mesos 1.x puts every container in.
    pub fn freezer(&self) -> Option<&Hierarchy> {
        self.all
            .iter()
            .find(|h| h.controllers.iter().any(|c| c == "freezer"))
    }

    pub fn unified(&self) -> Option<&Hierarchy> {
        self.all.iter().find(|h| h.unified)
    }
}

/// The cgroups of a living process: one path for each hierarchy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership(HashMap<String, String>);

/// In which cgroups a process sits. `None` when it is gone. Not to be asked of
/// an exiting process: on v1 the kernel then answers `/` everywhere.
pub fn membership(pid: u32) -> Option<Membership> {
    cgroups_rs::cgroup::get_cgroups_relative_paths_by_pid(pid)
        .ok()
        .map(Membership)
}

impl Membership {
    /// The process's cgroup in this hierarchy, as an absolute path below its mount.
    pub fn path(&self, hierarchy: &Hierarchy) -> Option<&Path> {
        let key = hierarchy.controllers.first().map_or("", String::as_str);
        self.0.get(key).map(Path::new)
    }

    /// Its cgroup in every hierarchy.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.values().map(Path::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_hierarchies_and_this_process_sits_in_them() {
        let hierarchies = Hierarchies::discover().expect("cgroups");
        let mine = membership(std::process::id()).expect("own membership");
        for hierarchy in hierarchies.iter() {
            assert!(hierarchy.mount.is_dir(), "{hierarchy:?}");
            assert!(mine.path(hierarchy).is_some(), "{hierarchy:?}");
        }
        match hierarchies.mode() {
            Mode::V1 => assert!(hierarchies.unified().is_none()),
            Mode::Hybrid => {
                assert!(hierarchies.unified().is_some() && hierarchies.freezer().is_some());
            }
            Mode::V2 => assert!(hierarchies.unified().is_some()),
        }
    }
}
