//! Kernel file systems: looked at, never mounted.

use std::fs;

use anyhow::{Result, bail};

use super::apt::Apt;
use super::machine::Machine;
use super::{Finding, Step};

#[derive(Debug)]
pub(crate) enum Mounts {
    Tracefs,
    Cgroups,
}

impl Step for Mounts {
    fn name(&self) -> &'static str {
        match self {
            Self::Tracefs => "tracefs",
            Self::Cgroups => "cgroups",
        }
    }

    fn inspect(&self, _: &Machine) -> Finding {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        match self {
            Self::Tracefs => Finding::Note(tracefs(&mounts)),
            Self::Cgroups => Finding::Note(cgroups(&mounts)),
        }
    }

    fn install(&self, _: &Machine, _: &mut Apt) -> Result<()> {
        bail!("nothing is mounted by setup")
    }
}

fn tracefs(mountinfo: &str) -> String {
    match mounts(mountinfo).find(|mount| mount.kind == "tracefs") {
        Some(mount) => format!("mounted on {}", mount.point),
        None => "not mounted, and not needed: the probe attaches by BTF or by a raw \
                 tracepoint's name"
            .to_owned(),
    }
}

fn cgroups(mountinfo: &str) -> String {
    let v1 = mounts(mountinfo)
        .filter(|mount| mount.kind == "cgroup")
        .count();
    let v2 = mounts(mountinfo).find(|mount| mount.kind == "cgroup2");
    match (v1, v2) {
        (0, None) => "none mounted: the end-to-end suites cannot run here".to_owned(),
        (0, Some(v2)) => format!("v2 on {}", v2.point),
        (v1, None) => format!("v1, {v1} hierarchies"),
        (v1, Some(v2)) => format!("hybrid: v1 with {v1} hierarchies, v2 on {}", v2.point),
    }
}

#[derive(Debug)]
struct Mount<'a> {
    point: &'a str,
    kind: &'a str,
}

/// See proc_pid_mountinfo(5): the type stands after a lone hyphen.
fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        Some(Mount {
            point: fields.split(' ').nth(4)?,
            kind: rest.split(' ').next()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str =
        "30 25 0:26 / /sys/fs/cgroup/freezer rw,nosuid shared:9 - cgroup c rw,freezer\n";
    const V2: &str = "31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_cgroup_mode_is_told_from_what_is_mounted() {
        assert_eq!(cgroups(V1), "v1, 1 hierarchies");
        assert_eq!(cgroups(V2), "v2 on /sys/fs/cgroup/unified");
        assert!(cgroups(&format!("{V1}{V2}")).starts_with("hybrid"));
        assert!(cgroups("").starts_with("none mounted"));
    }

    #[test]
    fn tracefs_is_looked_for_and_not_asked_for() {
        let there = "40 25 0:12 / /sys/kernel/tracing rw - tracefs tracefs rw\n";
        assert_eq!(tracefs(there), "mounted on /sys/kernel/tracing");
        assert!(tracefs(V1).contains("not needed"));
    }
}
