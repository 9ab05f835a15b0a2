//! Layouts shared by the BPF program and user space.
//!
//! Both sides are built from this crate, but the BPF object is a file of its own: the assertions
//! at the end make a change of layout a change somebody meant.

#![no_std]

use core::mem::{align_of, offset_of, size_of};

/// Name of the tracepoint that the program is made for.
pub const TRACEPOINT: &str = "sched_process_exit";

/// How many roots the program can watch.
pub const MAX_ROOTS: usize = 8;

/// Room for a cgroup's name: a container id has 36 bytes, the rest is the terminating NUL and
/// enough to tell a longer name from one that fits.
pub const NAME_BYTES: usize = 40;

/// How many controllers a kernel may have. Linux 7.0 has 14 at most.
pub const MAX_SUBSYSTEMS: u32 = 16;

/// Bit of [`ExitEvent::hierarchies`] that stands for the default (version 2) hierarchy.
pub const UNIFIED_BIT: u32 = 31;

/// The name that the agent gives to the cgroup of a container's own processes on version 2.
pub const LEAF: u64 = u64::from_ne_bytes(*b"leaf\0\0\0\0");

/// One dead thread group, as the program writes it into the ring buffer.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ExitEvent {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub at_ns: u64,
    /// Start of the group's leader, `CLOCK_BOOTTIME` in nanoseconds.
    pub start_boottime_ns: u64,
    /// The group.
    pub tgid: u32,
    /// The task that ended last.
    pub tid: u32,
    /// Group of the leader's parent, 0 if it has none.
    pub ppid: u32,
    /// Group of the parent's parent, 0 if it has none.
    pub gppid: u32,
    /// `task_struct.exit_code` of the last task: the raw wait status.
    pub wait_status: i32,
    /// Slot of the root in [`RootTable`].
    pub root: u32,
    /// Where the task sat in `<root>/<container>`: a bit per `enum cgroup_subsys_id`, and
    /// [`UNIFIED_BIT`].
    pub hierarchies: u32,
    /// Keeps the name aligned; zero.
    pub reserved: u32,
    /// Name of the container's cgroup, padded with NUL. Words, not bytes: the program clears it
    /// with plain stores, and compares it with plain loads.
    pub container: Name,
}

/// A cgroup's name, padded with NUL.
pub type Name = [u64; NAME_BYTES / size_of::<u64>()];

/// The roots' directories. User space rewrites it at run time.
///
/// A slot whose root has no directory there now holds [`NO_ROOT`]; behind the last one in use comes
/// [`END_OF_ROOTS`], so that an exit of no interest is not compared with roots that nobody has.
///
/// A slot is used in one of the two layouts only: ids are unique within a hierarchy, not across.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct RootTable {
    /// Roots in the freezer hierarchy.
    pub v1: Roots,
    /// Roots in the default hierarchy.
    pub v2: Roots,
}

/// The roots in one hierarchy, by slot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Roots {
    /// Addresses of their `struct cgroup_subsys_state`, or [`ANY_CSS`]. An exit elsewhere is
    /// dismissed by these; that one is in a root is decided by its id.
    pub css: [u64; MAX_ROOTS],
    /// Ids of their directories.
    pub ids: [u64; MAX_ROOTS],
}

/// See [`RootTable`]. No directory has it, and no structure.
pub const NO_ROOT: u64 = u64::MAX;
/// See [`RootTable`]. No directory has it, and a failed load gives it.
pub const END_OF_ROOTS: u64 = 0;
/// A structure that is not known: every one may be it.
pub const ANY_CSS: u64 = 1;

impl Roots {
    /// Without directories, of so many slots.
    #[must_use]
    pub fn of(slots: usize) -> Self {
        let mut roots = Self::default();
        for id in roots.ids.iter_mut().take(slots) {
            *id = NO_ROOT;
        }
        roots.css = roots.ids;
        roots
    }
}

impl RootTable {
    /// A table without directories, of so many slots.
    #[must_use]
    pub fn of(slots: usize) -> Self {
        Self {
            v1: Roots::of(slots),
            v2: Roots::of(slots),
        }
    }
}

/// What most tasks of a host hold: the top of a hierarchy. The kernel never frees either, not even
/// when the hierarchy is mounted elsewhere. 0 where it is not known.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Tops {
    /// `struct cgroup_subsys_state` of the freezer.
    pub freezer_css: u64,
    /// `struct cgroup` of the default hierarchy.
    pub unified_cgroup: u64,
}

/// Which directory's structures are wanted, and what they are: 0 where they were not found.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Directory {
    /// Descriptor of whoever asks.
    pub fd: u64,
    /// The id that it must have.
    pub id: u64,
    /// `struct cgroup_subsys_state` of the freezer.
    pub freezer_css: u64,
    /// `struct cgroup_subsys_state` that is part of `struct cgroup`.
    pub unified_css: u64,
}

/// What stands in the program's instructions for [`Tops::freezer_css`] until the loader writes it.
pub const FREEZER_TOP_MARK: u64 = 0x7fde_adc0_de00_0001;
/// As above, for [`Tops::unified_cgroup`].
pub const UNIFIED_TOP_MARK: u64 = 0x7fde_adc0_de00_0002;

/// The first of the numbers that stand for offsets, see [`offset!`].
pub const OFFSET_MARK: u32 = 0x5a00;
/// From one to the next. What lies between is added to the offset: the compiler may fold an index.
pub const OFFSET_STEP: u32 = 0x100;

/// What stands in the program's instructions for an offset until the loader writes it there. As an
/// operand it costs nothing; read from memory, each offset would cost a load, and all of them two
/// cache lines that nobody else uses.
///
/// `word`: byte position in [`Offsets`].
#[must_use]
pub const fn offset_mark(word: usize) -> u32 {
    OFFSET_MARK + (word / size_of::<u32>()) as u32 * OFFSET_STEP
}

/// The mark of a member of [`Offsets`].
#[macro_export]
macro_rules! offset {
    ($member:ident) => {
        const { $crate::offset_mark(::core::mem::offset_of!($crate::Offsets, $member)) }
    };
}

/// Names each member once: the structure and the list of its words have one order.
macro_rules! offsets {
    ($($(#[$doc:meta])* $member:ident)*) => {
        /// Byte offsets of the kernel's members, resolved from its BTF at start.
        #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
        #[repr(C)]
        pub struct Offsets {
            $($(#[$doc])* pub $member: u32,)*
        }

        impl Offsets {
            /// How many there are.
            pub const COUNT: usize = size_of::<Self>() / size_of::<u32>();

            /// All of them, in the order of their marks.
            #[must_use]
            pub const fn words(&self) -> [u32; Self::COUNT] {
                [$(self.$member),*]
            }
        }
    };
}

offsets! {
    /// `task_struct.cgroups`
    task_cgroups
    /// `task_struct.exit_code`
    task_exit_code
    /// `task_struct.flags`
    task_flags
    /// `task_struct.group_leader`
    task_group_leader
    /// `task_struct.pid`
    task_pid
    /// `task_struct.real_parent`
    task_real_parent
    /// `task_struct.signal`
    task_signal
    /// `task_struct.start_boottime`
    task_start_boottime
    /// `task_struct.tgid`
    task_tgid
    /// `signal_struct.live`
    signal_live
    /// `css_set.subsys`
    css_set_subsys
    /// `css_set.subsys[freezer_cgrp_id]`
    css_set_freezer
    /// `css_set.dfl_cgrp`
    css_set_dfl_cgrp
    /// `cgroup_subsys_state.cgroup`
    css_cgroup
    /// `cgroup_subsys_state.parent`
    css_parent
    /// `cgroup.self`
    cgroup_self
    /// `cgroup.self.parent`
    cgroup_self_parent
    /// `cgroup.subsys[freezer_cgrp_id]`
    cgroup_freezer
    /// `cgroup.kn`
    cgroup_kn
    /// `kernfs_node.id`
    kn_id
    /// `kernfs_node.name`
    kn_name
    /// `kernfs_node.__parent`, before 6.15 `parent`
    kn_parent
    /// `kernfs_node.priv`
    kn_priv
    /// `task_struct.files`
    task_files
    /// `files_struct.fdt`
    files_fdt
    /// `fdtable.fd`
    fdt_fd
    /// `file.f_inode`
    file_inode
    /// `inode.i_private`
    inode_private
}

/// Why the program lost a record, or sent one with a reservation: index into its counters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Loss {
    /// No room in the ring buffer.
    RingFull = 0,
    /// The name of the cgroup could not be read.
    NameUnreadable = 1,
    /// The name of the cgroup does not fit, so it is no container id.
    NameTooLong = 2,
    /// The claim failed for another reason than being taken. The record was sent all the same.
    Unclaimed = 3,
}

impl Loss {
    /// How many reasons there are.
    pub const COUNT: u32 = 4;
}

#[cfg(feature = "user")]
mod pod {
    use super::{Directory, ExitEvent, RootTable, Tops};

    // SAFETY: `repr(C)`, made of integers only, and without padding (asserted below).
    unsafe impl aya::Pod for ExitEvent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RootTable {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Tops {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Directory {}
}

// The kernel reserves ring buffer records at 8 byte boundaries.
const _: () = assert!(size_of::<ExitEvent>() == 88 && align_of::<ExitEvent>() == 8);
const _: () = assert!(offset_of!(ExitEvent, start_boottime_ns) == 8);
const _: () = assert!(offset_of!(ExitEvent, tgid) == 16);
const _: () = assert!(offset_of!(ExitEvent, tid) == 20);
const _: () = assert!(offset_of!(ExitEvent, ppid) == 24);
const _: () = assert!(offset_of!(ExitEvent, gppid) == 28);
const _: () = assert!(offset_of!(ExitEvent, wait_status) == 32);
const _: () = assert!(offset_of!(ExitEvent, root) == 36);
const _: () = assert!(offset_of!(ExitEvent, hierarchies) == 40);
const _: () = assert!(offset_of!(ExitEvent, reserved) == 44);
const _: () = assert!(offset_of!(ExitEvent, container) == 48);
const _: () = assert!(size_of::<Name>() == NAME_BYTES);
const _: () = assert!(size_of::<RootTable>() == 256 && offset_of!(RootTable, v2) == 128);
const _: () = assert!(size_of::<Roots>() == 128 && offset_of!(Roots, ids) == 64);
const _: () = assert!(size_of::<Directory>() == 32 && offset_of!(Directory, unified_css) == 24);
const _: () = assert!(size_of::<Tops>() == 16 && offset_of!(Tops, unified_cgroup) == 8);
// A load's offset has 15 bits for what is not negative, and an index adds less than a step.
const _: () = assert!(offset_mark(size_of::<Offsets>()) < 0x8000);
const _: () = assert!(MAX_SUBSYSTEMS as usize * size_of::<u64>() <= OFFSET_STEP as usize);
const _: () = assert!(MAX_SUBSYSTEMS <= UNIFIED_BIT);
