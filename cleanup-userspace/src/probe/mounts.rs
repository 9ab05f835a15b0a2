//! Which cgroup hierarchies this host has mounted.

use std::{fs, io};

use rustix::fs::makedev;

/// Changes are announced on it: poll for an error condition.
pub(super) const MOUNTINFO: &str = "/proc/self/mountinfo";

/// What the probe asks of the mount table.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Hierarchies {
    /// Device number of the version 1 freezer hierarchy.
    pub(super) freezer: Option<u64>,
    /// Device number of the version 2 hierarchy.
    pub(super) unified: Option<u64>,
    /// Controllers with a version 1 hierarchy, a bit per index. The kernel program sees where a
    /// controller is, but not whether that is a hierarchy of version 1.
    pub(super) v1_controllers: u32,
}

impl Hierarchies {
    pub(super) fn read(controllers: &[Option<&'static str>]) -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string(MOUNTINFO)?, controllers))
    }

    /// Reads the format of `proc_pid_mountinfo(5)`; a line that makes no sense is not a cgroup mount.
    fn parse(mountinfo: &str, controllers: &[Option<&'static str>]) -> Self {
        let mut found = Self::default();
        for mount in mountinfo.lines().filter_map(Mount::parse) {
            match mount.fs_type {
                "cgroup2" => found.unified = Some(mount.device),
                "cgroup" => {
                    for option in mount.super_options.split(',') {
                        if option == "freezer" {
                            found.freezer = Some(mount.device);
                        }
                        let index = controllers.iter().position(|name| *name == Some(option));
                        found.v1_controllers |= index.map_or(0, |index| 1 << index);
                    }
                }
                _ => {}
            }
        }
        found
    }
}

struct Mount<'a> {
    device: u64,
    fs_type: &'a str,
    super_options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let (major, minor) = mount.split(' ').nth(2)?.split_once(':')?;
        let mut file_system = file_system.split(' ');
        Some(Self {
            device: makedev(major.parse().ok()?, minor.parse().ok()?),
            fs_type: file_system.next()?,
            super_options: file_system.nth(1)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROLLERS: &[Option<&str>] = &[
        Some("cpu"),
        Some("cpuacct"),
        Some("blkio"),
        Some("memory"),
        None,
        Some("freezer"),
    ];

    #[test]
    fn reads_a_hybrid_host() {
        let found = Hierarchies::parse(
            "24 1 0:22 / /sys rw,nosuid shared:2 - sysfs sysfs rw\n\
             30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
             31 24 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
             33 24 0:29 /docker/1 /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n",
            CONTROLLERS,
        );
        assert_eq!(
            found,
            Hierarchies {
                freezer: Some(makedev(0, 29)),
                unified: Some(makedev(0, 26)),
                v1_controllers: 0b10_0011,
            }
        );
    }

    #[test]
    fn a_version_2_host_has_no_version_1_controllers() {
        let found = Hierarchies::parse(
            "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,memory_recursiveprot\n",
            CONTROLLERS,
        );
        assert_eq!(found.v1_controllers, 0);
        assert_eq!((found.freezer, found.unified), (None, Some(makedev(0, 26))));
    }

    #[test]
    fn nonsense_is_no_mount() {
        for line in [
            "",
            " - ",
            "1 2 x:y / / rw - cgroup c rw,cpu",
            "1 2 0:1 / / rw - cgroup",
        ] {
            assert_eq!(
                Hierarchies::parse(line, CONTROLLERS),
                Hierarchies::default(),
                "{line}"
            );
        }
    }

    #[test]
    fn reads_this_host() {
        let found = Hierarchies::read(CONTROLLERS).expect("a mounted /proc");
        assert!(
            found.freezer.is_some() || found.unified.is_some(),
            "no cgroups at all"
        );
    }
}
