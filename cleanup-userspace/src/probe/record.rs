//! What the kernel says of one dead process.

use std::fmt;

/// One thread group that ended in the cgroup of a top-level container.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct ExitRecord {
    /// When the last thread ended, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// When user space took the record, on the same clock.
    pub received_ns: u64,
    /// The process, as the host's PID namespace numbers it.
    pub tgid: u32,
    /// The thread that ended last.
    pub tid: u32,
    /// Its parent at death: 1 or a subreaper if the real one died before.
    pub ppid: u32,
    /// Its parent's parent.
    pub gppid: u32,
    /// Start of the group's leader, in nanoseconds of `CLOCK_BOOTTIME`: with `tgid` a key that is
    /// never used twice.
    pub start_boottime_ns: u64,
    /// As `wait(2)` reports it: the exit code in bits 8 to 15, the signal in bits 0 to 6.
    ///
    /// It is the status of the last task to end, which is not the leader's when a lone thread
    /// outlives it.
    pub wait_status: i32,
    /// Index into [`super::ProbeOptions::roots`].
    pub root: usize,
    /// Name of the container's cgroup directory: the Mesos container id.
    pub container: String,
    /// Where the task itself sat in `<root>/<container>`.
    pub hierarchies: TaskHierarchies,
}

/// The cgroup hierarchies in which a task sat in `<root>/<container>` when it ended.
///
/// Version 1 hierarchies are known by their controllers, under their mount names (`blkio`, not
/// `io`). A hierarchy without a controller (`name=systemd`) cannot be seen from the kernel program.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TaskHierarchies {
    controllers: Vec<&'static str>,
    unified: bool,
}

impl TaskHierarchies {
    /// The version 1 hierarchies of these controllers, and the version 2 one if `unified`.
    #[must_use]
    pub fn new(controllers: impl IntoIterator<Item = &'static str>, unified: bool) -> Self {
        let mut controllers: Vec<_> = controllers.into_iter().collect();
        controllers.sort_unstable();
        Self {
            controllers,
            unified,
        }
    }

    /// Whether the task sat there in the version 1 hierarchy of this controller.
    #[must_use]
    pub fn contains_controller(&self, controller: &str) -> bool {
        self.controllers.contains(&controller)
    }

    /// Whether the task sat there (or in its `leaf`) in the version 2 hierarchy.
    #[must_use]
    pub fn unified(&self) -> bool {
        self.unified
    }

    /// The version 1 controllers, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.controllers.iter().copied()
    }
}

impl fmt::Display for TaskHierarchies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unified = self.unified.then_some("unified");
        for (index, name) in self.iter().chain(unified).enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}
