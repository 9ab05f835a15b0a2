//! What must be true of this process before it may act as a host's cleaner.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A namespace that has to be the host's.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: &'static str,
    /// What the doctor calls it.
    pub(crate) check: &'static str,
    /// Inode number of the initial one (include/linux/proc_ns.h, since 3.8; the
    /// cgroup namespace since 4.6).
    initial: &'static str,
    /// How to run in it.
    pub(crate) how: &'static str,
}

pub(crate) const NAMESPACES: [Namespace; 2] = [
    Namespace {
        name: "pid",
        check: "pid namespace",
        initial: "pid:[4026531836]",
        how: "with the host's PIDs (docker run --pid=host, hostPID: true)",
    },
    Namespace {
        name: "cgroup",
        check: "cgroup namespace",
        initial: "cgroup:[4026531835]",
        how: "in the host's cgroup namespace (docker run --cgroupns=host)",
    },
];

pub fn check() -> anyhow::Result<()> {
    root()?;
    NAMESPACES.iter().try_for_each(namespace)
}

pub(crate) fn root() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("must run as root: stopping containers and removing cgroups is root's; try sudo");
    }
    Ok(())
}

pub(crate) fn namespace(namespace: &Namespace) -> anyhow::Result<()> {
    let Namespace {
        name, initial, how, ..
    } = namespace;
    let path = Path::new("/proc/self/ns").join(name);
    let Ok(_) = fs::symlink_metadata(&path) else {
        // A kernel without this kind of namespace has only the host's.
        return Ok(());
    };
    let link = fs::read_link(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if link != Path::new(initial) {
        bail!(
            "runs in a {name} namespace that is not the host's ({}): PIDs and cgroups would be mistaken; run it {how}",
            link.display()
        );
    }
    Ok(())
}

/// Every stop request, pidfd and removal takes a descriptor: the soft limit is
/// often 1024, for the sake of programs that use select(2).
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
