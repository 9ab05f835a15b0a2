//! Where an agent keeps what: directories and cgroups.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cgroups::CgroupRoot;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::watcher::AgentPlace;

pub(super) const AGENT_ID: &str = "stand-in-S0";
pub(super) const FRAMEWORK_ID: &str = "stand-in-0000";

/// What the isolators `cgroups/cpu,cgroups/mem,cgroups/pids` use, in the order
/// of their preparation.
const ISOLATED: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];

/// In which layout the launcher puts containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupLayout {
    /// `<root>/<container id>` in the freezer's hierarchy, and in those of the
    /// isolators for CPU, memory and pids.
    V1,
    /// `<root>/<container id>/leaf` in the unified hierarchy.
    V2,
}

impl CgroupLayout {
    /// Those for which the hierarchies are mounted here; the first is what agents use.
    pub fn all_of_this_host() -> Result<Vec<Self>> {
        // Only their mounts are of interest.
        let roots = CgroupRoot::new("any")?;
        let mut layouts = Vec::new();
        if roots
            .dirs()
            .iter()
            .any(|root| has_controller(root, "freezer"))
        {
            layouts.push(Self::V1);
        }
        if roots.dirs().iter().any(|root| is_unified(root)) {
            layouts.push(Self::V2);
        }
        ensure!(
            !layouts.is_empty(),
            "neither a freezer nor a unified hierarchy is mounted"
        );
        Ok(layouts)
    }

    /// What agents use here.
    pub fn of_this_host() -> Result<Self> {
        let layouts = Self::all_of_this_host()?;
        layouts.first().copied().context("no layout")
    }
}

/// The places of one agent.
#[derive(Debug, Clone)]
pub struct Layout {
    cgroups: CgroupLayout,
    dir: PathBuf,
    cgroups_root: String,
    /// `<mount>/<cgroups root>` of the hierarchy of the launcher.
    launcher: PathBuf,
    /// … of each hierarchy of an isolator.
    isolators: Vec<PathBuf>,
}

impl Layout {
    pub(super) fn new(scratch: &Scratch, cgroups: CgroupLayout) -> Result<Self> {
        let roots = scratch.cgroup_dirs();
        let with = |name: &str| roots.iter().find(|root| has_controller(root, name));
        let (launcher, isolators) = match cgroups {
            CgroupLayout::V1 => {
                let mut isolators: Vec<PathBuf> = ISOLATED
                    .iter()
                    .filter_map(|name| with(name).cloned())
                    .collect();
                // One hierarchy may have several controllers.
                isolators.dedup();
                (with("freezer").context("no freezer hierarchy")?, isolators)
            }
            CgroupLayout::V2 => {
                let unified = roots.iter().find(|root| is_unified(root));
                (unified.context("no unified hierarchy")?, Vec::new())
            }
        };
        Ok(Self {
            cgroups,
            dir: scratch.path().join("stand-in"),
            cgroups_root: scratch.name().to_owned(),
            launcher: launcher.clone(),
            isolators,
        })
    }

    /// What there is from an agent's first start on.
    pub(super) fn make(&self, port: u16) -> Result<()> {
        for root in self.isolators.iter().chain([&self.launcher]) {
            fs::create_dir(root).with_context(|| format!("creating {}", root.display()))?;
        }
        let slave = self.meta().join("slaves").join(AGENT_ID);
        for dir in [&slave, &self.containers(), &self.work_dir().join("slaves")] {
            fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        }
        fs::write(slave.join("slave.info"), record(&slave_info(port)))?;
        symlink(&slave, self.meta().join("slaves/latest"))?;
        Ok(())
    }

    /// v2 only: the agent sits in a cgroup of its own beneath the root.
    pub(super) fn seat_agent(&self, agent: Process) -> Result<()> {
        if self.cgroups == CgroupLayout::V2 {
            let leaf = self.launcher.join("agent/leaf");
            fs::create_dir_all(&leaf)?;
            fs::write(leaf.join("cgroup.procs"), agent.pid().to_string())
                .with_context(|| leaf.display().to_string())?;
        }
        Ok(())
    }

    pub fn work_dir(&self) -> PathBuf {
        self.dir.join("work")
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn cgroups_root(&self) -> &str {
        &self.cgroups_root
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(super) fn meta(&self) -> PathBuf {
        self.work_dir().join("meta")
    }

    pub(super) fn containers(&self) -> PathBuf {
        self.runtime_dir().join("containers")
    }

    pub(super) fn layout(&self) -> CgroupLayout {
        self.cgroups
    }

    /// The container's cgroup in the launcher's hierarchy.
    pub(super) fn launcher_cgroup(&self, container_id: &str) -> PathBuf {
        self.launcher.join(container_id)
    }

    /// Where the container's processes sit in the launcher's hierarchy.
    pub fn seat(&self, container_id: &str) -> PathBuf {
        let cgroup = self.launcher_cgroup(container_id);
        match self.cgroups {
            CgroupLayout::V1 => cgroup,
            CgroupLayout::V2 => cgroup.join("leaf"),
        }
    }

    /// The container's cgroups in the isolators' hierarchies.
    pub(super) fn isolator_cgroups(&self, container_id: &str) -> Vec<PathBuf> {
        let of = |root: &PathBuf| root.join(container_id);
        self.isolators.iter().map(of).collect()
    }

    pub(super) fn place(&self) -> AgentPlace {
        AgentPlace {
            work_dir: self.work_dir(),
            runtime_dir: self.runtime_dir(),
            cgroups_root: self.cgroups_root.clone(),
        }
    }
}

/// Makes a directory and its missing parents, and fails if it was there.
pub(super) fn create_new(dir: &Path) -> Result<()> {
    ensure!(!dir.exists(), "{} is there already", dir.display());
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))
}

/// A checkpoint of one message: its length in four bytes of this machine's
/// order, and the message.
pub(super) fn record(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&length.to_ne_bytes(), message].concat()
}

/// `SlaveInfo` with its hostname (1), id (6) and port (8).
fn slave_info(port: u16) -> Vec<u8> {
    let mut message = text(1, "localhost");
    message.extend(nested(6, &text(1, AGENT_ID)));
    message.push(8 << 3);
    message.extend(varint(usize::from(port)));
    message
}

/// `ExecutorInfo` with its id (1), command (7) and framework (8).
pub(super) fn executor_info(executor_id: &str) -> Vec<u8> {
    let mut message = nested(1, &text(1, executor_id));
    message.extend(nested(7, &text(3, "stand-in")));
    message.extend(nested(8, &text(1, FRAMEWORK_ID)));
    message
}

/// `FrameworkInfo` with its user (1), name (2) and id (3).
pub(super) fn framework_info() -> Vec<u8> {
    let mut message = text(1, "root");
    message.extend(text(2, "stand-in"));
    message.extend(nested(3, &text(1, FRAMEWORK_ID)));
    message
}

fn text(field: u8, value: &str) -> Vec<u8> {
    nested(field, value.as_bytes())
}

fn nested(field: u8, value: &[u8]) -> Vec<u8> {
    let mut encoded = vec![field << 3 | 2];
    encoded.extend(varint(value.len()));
    encoded.extend(value);
    encoded
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut encoded = Vec::new();
    while value >= 0x80 {
        encoded.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    encoded.push(value as u8);
    encoded
}

/// By the mount's name: that of the controllers, in the layout every system has.
fn has_controller(root: &Path, name: &str) -> bool {
    let mount = root.parent().and_then(Path::file_name).unwrap_or_default();
    mount
        .to_string_lossy()
        .split(',')
        .any(|controller| controller == name)
}

fn is_unified(root: &Path) -> bool {
    root.parent()
        .is_some_and(|mount| mount.join("cgroup.controllers").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_known_by_their_mounts() {
        for (root, name, expected) in [
            ("/sys/fs/cgroup/freezer/name", "freezer", true),
            ("/sys/fs/cgroup/cpu,cpuacct/name", "cpuacct", true),
            ("/sys/fs/cgroup/cpuset/name", "cpu", false),
            ("/sys/fs/cgroup/unified/freezer", "freezer", false),
        ] {
            assert_eq!(has_controller(Path::new(root), name), expected, "{root}");
        }
    }

    #[test]
    fn checkpoints_are_length_and_message() {
        assert_eq!(record(b"ab"), [&2u32.to_ne_bytes()[..], b"ab"].concat());
        assert_eq!(varint(5051), [0xbb, 0x27]);
        assert_eq!(
            slave_info(5051),
            b"\x0a\x09localhost\x32\x0d\x0a\x0bstand-in-S0\x40\xbb\x27"
        );
    }
}
