//! What the program has to know of the running kernel, read from its BTF.

use cleanup_common::{MAX_SUBSYSTEMS, Offsets, TRACEPOINT};

use super::{GroupDeadSource, ProbeError, btf::Btf};

const SUBSYSTEM_ENUM: &str = "cgroup_subsys_id";
const SUBSYSTEM_SUFFIX: &str = "_cgrp_id";
const SUBSYSTEM_COUNT: &str = "CGROUP_SUBSYS_COUNT";

/// The running kernel, as far as the program is concerned.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) offsets: Offsets,
    /// The best that it has.
    pub(super) group_dead: GroupDeadSource,
    /// Whether there is a freezer to look into.
    pub(super) freezer: bool,
    /// Controllers by their index, under the names that version 1 mounts have.
    pub(super) controllers: Vec<Option<&'static str>>,
}

impl Kernel {
    pub(super) fn read(btf: &Btf) -> Result<Self, ProbeError> {
        let controllers = Controllers::read(btf)?;
        let members = Members(btf);
        let task = |names: &[&str]| members.offset("task_struct", names);
        let css_set_subsys = members.offset("css_set", &["subsys"])?;
        let freezer = controllers.index("freezer");
        // Not read where there is no freezer.
        let freezer_word = freezer.unwrap_or(0) * size_of::<u64>() as u32;
        let css_parent = members.offset("cgroup_subsys_state", &["parent"])?;
        let cgroup_self = members.offset("cgroup", &["self"])?;
        let offsets = Offsets {
            task_cgroups: task(&["cgroups"])?,
            task_exit_code: task(&["exit_code"])?,
            task_flags: task(&["flags"])?,
            task_group_leader: task(&["group_leader"])?,
            task_pid: task(&["pid"])?,
            task_real_parent: task(&["real_parent"])?,
            task_signal: task(&["signal"])?,
            task_start_boottime: task(&["start_boottime", "real_start_time"])?,
            task_tgid: task(&["tgid"])?,
            signal_live: members.offset("signal_struct", &["live"])?,
            css_set_subsys,
            css_set_freezer: css_set_subsys + freezer_word,
            css_set_dfl_cgrp: members.offset("css_set", &["dfl_cgrp"])?,
            css_cgroup: members.offset("cgroup_subsys_state", &["cgroup"])?,
            css_parent,
            cgroup_self,
            cgroup_self_parent: cgroup_self + css_parent,
            cgroup_freezer: members.guess("cgroup", "subsys") + freezer_word,
            cgroup_kn: members.offset("cgroup", &["kn"])?,
            kn_id: members.offset("kernfs_node", &["id"])?,
            kn_name: members.offset("kernfs_node", &["name"])?,
            kn_parent: members.offset("kernfs_node", &["__parent", "parent"])?,
            kn_priv: members.guess("kernfs_node", "priv"),
            task_files: members.guess("task_struct", "files"),
            files_fdt: members.guess("files_struct", "fdt"),
            fdt_fd: members.guess("fdtable", "fd"),
            file_inode: members.guess("file", "f_inode"),
            inode_private: members.guess("inode", "i_private"),
        };
        Ok(Self {
            offsets,
            group_dead: group_dead(btf)?,
            freezer: freezer.is_some(),
            controllers: controllers.0,
        })
    }
}

/// The tracepoint passes itself, the task and, since Linux 6.16, whether the group is dead.
fn group_dead(btf: &Btf) -> Result<GroupDeadSource, ProbeError> {
    let typedef = format!("btf_trace_{TRACEPOINT}");
    match btf.function_arity(&typedef) {
        Some(2) => Ok(GroupDeadSource::LiveCounter),
        Some(3..) => Ok(GroupDeadSource::Argument),
        _ => Err(ProbeError::MissingMember {
            kind: "tracepoint",
            name: TRACEPOINT.into(),
        }),
    }
}

struct Members<'a>(&'a Btf);

impl Members<'_> {
    /// Offset of the first of the members that exists: they were renamed over time.
    fn offset(&self, structure: &str, members: &[&str]) -> Result<u32, ProbeError> {
        members
            .iter()
            .find_map(|member| self.0.member_offset(structure, member))
            .ok_or_else(|| ProbeError::MissingMember {
                kind: "member",
                name: format!("{structure}.{}", members.join("/")),
            })
    }

    /// Offset of a member that only the search for landmarks reads. It finds nothing by a wrong one,
    /// which is better than no probe.
    fn guess(&self, structure: &str, member: &str) -> u32 {
        self.0.member_offset(structure, member).unwrap_or(0)
    }
}

struct Controllers(Vec<Option<&'static str>>);

impl Controllers {
    fn read(btf: &Btf) -> Result<Self, ProbeError> {
        let missing = || ProbeError::MissingMember {
            kind: "enumerator",
            name: format!("{SUBSYSTEM_ENUM}.{SUBSYSTEM_COUNT}"),
        };
        let enumerators = btf.enumerators(SUBSYSTEM_ENUM).ok_or_else(missing)?;
        let count = enumerators
            .iter()
            .find_map(|(name, value)| (*name == SUBSYSTEM_COUNT).then_some(*value))
            .ok_or_else(missing)?;
        if count > MAX_SUBSYSTEMS {
            return Err(ProbeError::Unsupported {
                what: format!("this kernel has {count} cgroup controllers"),
                remedy: format!("this release knows at most {MAX_SUBSYSTEMS}: use a newer one"),
            });
        }
        let mut names = vec![None; count as usize];
        for (name, value) in enumerators {
            if let Some(controller) = name.strip_suffix(SUBSYSTEM_SUFFIX)
                && let Some(slot) = names.get_mut(value as usize)
            {
                *slot = v1_name(controller);
            }
        }
        Ok(Self(names))
    }

    fn index(&self, controller: &str) -> Option<u32> {
        let index = self.0.iter().position(|name| *name == Some(controller))?;
        u32::try_from(index).ok()
    }
}

/// The name under which version 1 mounts a controller, by its name in the kernel's source.
///
/// A controller that is not listed never had a version 1 hierarchy that mattered; its bit is left out.
fn v1_name(controller: &str) -> Option<&'static str> {
    Some(match controller {
        "blkio" | "io" => "blkio",
        "cpu" => "cpu",
        "cpuacct" => "cpuacct",
        "cpuset" => "cpuset",
        "debug" => "debug",
        "devices" => "devices",
        "dmem" => "dmem",
        "freezer" => "freezer",
        "hugetlb" => "hugetlb",
        "memory" => "memory",
        "misc" => "misc",
        "net_cls" => "net_cls",
        "net_prio" => "net_prio",
        "perf_event" => "perf_event",
        "pids" => "pids",
        "rdma" => "rdma",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_running_kernel() {
        let blob = std::fs::read("/sys/kernel/btf/vmlinux").expect("a kernel with BTF");
        let btf = Btf::parse(blob).expect("the kernel's own BTF");
        let kernel = Kernel::read(&btf).expect("a kernel that this release knows");
        let freezer = kernel
            .controllers
            .iter()
            .position(|name| *name == Some("freezer"));
        assert_eq!(kernel.freezer, freezer.is_some());
        if let Some(index) = freezer {
            let expected = kernel.offsets.css_set_subsys + 8 * index as u32;
            assert_eq!(kernel.offsets.css_set_freezer, expected);
        }
        assert!(kernel.controllers.contains(&Some("memory")));
        assert!(
            !kernel.controllers.contains(&Some("io")),
            "version 1 says blkio"
        );
    }
}
