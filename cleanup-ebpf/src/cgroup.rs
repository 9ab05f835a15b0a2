//! Where a task sits, and whether that is the cgroup of a top-level container.

use core::{ffi::c_void, mem::MaybeUninit, ptr};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use cleanup_common::{
    ANY_CSS, END_OF_ROOTS, FREEZER_TOP_MARK, LEAF, Loss, MAX_ROOTS, MAX_SUBSYSTEMS, NAME_BYTES,
    Name, UNIFIED_BIT, UNIFIED_TOP_MARK,
};

use crate::{
    raw::{Object, SharedWord, frozen, offset},
    task::Task,
};

/// [`cleanup_common::RootTable`], which user space rewrites whenever a root comes or goes. In a
/// section of its own, so that nothing else is rewritten with it.
#[repr(C)]
struct RootTable {
    v1: Roots,
    v2: Roots,
}

/// [`cleanup_common::Roots`]
#[repr(C)]
struct Roots {
    css: [SharedWord; MAX_ROOTS],
    ids: [SharedWord; MAX_ROOTS],
}

impl Roots {
    const NONE: Self = Self {
        css: [const { SharedWord::new(END_OF_ROOTS) }; MAX_ROOTS],
        ids: [const { SharedWord::new(END_OF_ROOTS) }; MAX_ROOTS],
    };
}

#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.roots")]
static ROOTS: RootTable = RootTable {
    v1: Roots::NONE,
    v2: Roots::NONE,
};

/// How many controllers this kernel has: written by the loader, and frozen before the program is
/// loaded, so the verifier sees a constant and removes what that rules out.
#[unsafe(no_mangle)]
static SUBSYSTEMS: u32 = 0;

/// 0, 1, 2, …: the number of each slot, as something that the verifier does not know. A number that
/// it knows makes a path of its own through all that follows, for each slot: before 6.4, all numbers
/// of a program that calls functions tell its states apart.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.slots")]
static SLOTS: [SharedWord; MAX_ROOTS] = {
    let mut slots = [const { SharedWord::new(0) }; MAX_ROOTS];
    let mut number = 0;
    while number < MAX_ROOTS {
        slots[number] = SharedWord::new(number as u64);
        number += 1;
    }
    slots
};

/// The cgroup of a top-level container.
#[derive(Clone, Copy)]
pub struct Container {
    /// Its directory, `<root>/<container>`.
    pub node: Node,
    /// How it is laid out.
    pub layout: Layout,
    /// Slot of the root.
    pub root: u32,
}

/// Where a container's own processes sit.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Layout {
    /// `<freezer>/<root>/<container>`
    V1,
    /// `<unified>/<root>/<container>/leaf`
    V2,
}

impl Layout {
    /// Address of what all tasks of one cgroup hold, and no other task; 0 if there is none.
    #[inline(always)]
    pub fn place_of(self, task: Task) -> u64 {
        let Some(css_set) = task.css_set() else {
            return 0;
        };
        let held = match self {
            Self::V1 => css_set.freezer_css(),
            Self::V2 => css_set.unified().map(|cgroup| cgroup.0),
        };
        held.map_or(0, Object::address)
    }

    /// Whether a task is there and sits in this place. In doubt, not.
    #[inline(always)]
    pub fn is_place_of(self, task: Option<Task>, place: u64) -> bool {
        place != 0 && task.is_some_and(|task| self.place_of(task) == place)
    }
}

/// Which layouts the roots have.
#[derive(Clone, Copy)]
pub enum Watch {
    V1,
    V2,
    Both,
}

/// The container that a task is directly in, if its parent is one of the roots.
#[inline(always)]
pub fn container_of(task: Task, watch: Watch) -> Option<Container> {
    let css_set = task.css_set()?;
    match watch {
        Watch::V1 => css_set.v1_container(),
        Watch::V2 => css_set.v2_container(),
        Watch::Both => css_set.v1_container().or_else(|| css_set.v2_container()),
    }
}

/// `struct css_set`: a task's place in every hierarchy.
#[derive(Clone, Copy)]
pub struct CssSet(Object);

impl CssSet {
    #[inline(always)]
    pub fn new(object: Object) -> Self {
        Self(object)
    }

    #[inline(always)]
    fn freezer_css(self) -> Option<Object> {
        self.0.follow(offset!(css_set_freezer))
    }

    /// Its cgroup in the default hierarchy.
    #[inline(always)]
    fn unified(self) -> Option<Cgroup> {
        self.0.follow(offset!(css_set_dfl_cgrp)).map(Cgroup)
    }

    /// Its cgroup in the hierarchy of a controller. `index` must be a constant to the verifier.
    #[inline(always)]
    fn controller(self, index: u32) -> Option<Cgroup> {
        self.0
            .follow(offset!(css_set_subsys) + index * size_of::<u64>() as u32)?
            .follow(offset!(css_cgroup))
            .map(Cgroup)
    }

    #[inline(always)]
    fn v1_container(self) -> Option<Container> {
        let css = self.freezer_css()?;
        if css.address() == FREEZER_TOP_MARK {
            return None;
        }
        if !may_be_root(&ROOTS.v1.css, css.load_u64(offset!(css_parent))) {
            return None;
        }
        let node = css.follow(offset!(css_cgroup)).map(Cgroup)?.node()?;
        Some(Container {
            node,
            layout: Layout::V1,
            root: slot(&ROOTS.v1.ids, node.parent()?.id())?,
        })
    }

    #[inline(always)]
    fn v2_container(self) -> Option<Container> {
        let cgroup = self.unified()?;
        if cgroup.0.address() == UNIFIED_TOP_MARK {
            return None;
        }
        let container = cgroup.0.follow(offset!(cgroup_self_parent))?;
        if !may_be_root(&ROOTS.v2.css, container.load_u64(offset!(css_parent))) {
            return None;
        }
        let leaf = cgroup.node()?;
        let node = leaf.parent()?;
        let root = slot(&ROOTS.v2.ids, node.parent()?.id())?;
        leaf.is_leaf().then_some(Container {
            node,
            layout: Layout::V2,
            root,
        })
    }
}

/// Whether the parent of a cgroup is one of the roots, as far as these are known. It lies where the
/// cgroup's own structure does; its id is three pointers, and as many cache lines, away.
#[inline(always)]
fn may_be_root(table: &[SharedWord; MAX_ROOTS], parent: u64) -> bool {
    for css in table {
        let css = css.load();
        // Also what a failed load gives.
        if css == END_OF_ROOTS {
            return false;
        }
        if css == parent || css == ANY_CSS {
            return true;
        }
    }
    false
}

/// The slot of the root with this id.
#[inline(always)]
fn slot(table: &[SharedWord; MAX_ROOTS], id: u64) -> Option<u32> {
    // No directory has it: a failed load.
    if id == END_OF_ROOTS {
        return None;
    }
    for (number, root) in SLOTS.iter().zip(table) {
        let root = root.load();
        if root == id {
            return Some(number.load() as u32);
        }
        if root == END_OF_ROOTS {
            break;
        }
    }
    None
}

/// Room for a name. Not zeros, which would be one more `memset`: see [`Node::read_name`].
pub type Room = MaybeUninit<Name>;

/// `struct cgroup`
#[derive(Clone, Copy)]
pub struct Cgroup(Object);

impl Cgroup {
    #[inline(always)]
    fn node(self) -> Option<Node> {
        self.0.follow(offset!(cgroup_kn)).map(Node)
    }
}

/// `struct kernfs_node`: the directory of a cgroup. Its id is the directory's inode number.
#[derive(Clone, Copy)]
pub struct Node(Object);

impl Node {
    #[inline(always)]
    pub fn parent(self) -> Option<Self> {
        self.0.follow(offset!(kn_parent)).map(Self)
    }

    #[inline(always)]
    fn id(self) -> u64 {
        self.0.load_u64(offset!(kn_id))
    }

    /// Whether it is the cgroup that the agent makes for a container's own processes.
    #[inline(always)]
    fn is_leaf(self) -> bool {
        let mut name = [0];
        self.copy_name(&mut name) > 0 && name[0] == LEAF
    }

    /// Whether it has this name. `scratch` is overwritten.
    #[inline(always)]
    fn is_named(self, name: &Name, scratch: &mut Room) -> bool {
        self.read_name(scratch).is_ok_and(|own| {
            (own[0] ^ name[0])
                | (own[1] ^ name[1])
                | (own[2] ^ name[2])
                | (own[3] ^ name[3])
                | (own[4] ^ name[4])
                == 0
        })
    }

    /// Reads its name, padded with NUL.
    ///
    /// The room is cleared by plain stores. An assignment of zeros may become a call of `memset`,
    /// whose loop in another function costs the verifiers before 6.4 a million steps.
    #[inline(always)]
    pub fn read_name(self, room: &mut Room) -> Result<&Name, Loss> {
        let first = room.as_mut_ptr().cast::<u64>();
        for index in 0..size_of::<Name>() / size_of::<u64>() {
            // SAFETY: within the room, and valid for writes.
            unsafe { ptr::write_volatile(first.add(index), 0) };
        }
        // SAFETY: every word was written.
        let name = unsafe { room.assume_init_mut() };
        match self.copy_name(name) {
            ..1 => Err(Loss::NameUnreadable),
            length if length < NAME_BYTES as i64 => Ok(name),
            _ => Err(Loss::NameTooLong),
        }
    }

    /// Copies as much of its name as fits, the last byte always a NUL. Returns how many bytes that
    /// were, or a negative error number.
    #[inline(always)]
    fn copy_name(self, to: &mut [u64]) -> i64 {
        // A pointer to characters is a plain number to the verifier, hence the helper.
        let name = self.0.load_u64(offset!(kn_name)) as *const c_void;
        // SAFETY: the destination is a slice, and the helper checks the source.
        unsafe { bpf_probe_read_kernel_str(to.as_mut_ptr().cast(), size_of_val(to) as u32, name) }
    }
}

/// Adds to `mask` the hierarchies in which a task sits in `<root>/<container>`, by these names.
///
/// Written out for each controller, since the verifier remembers states by instruction: those of a
/// loop's rounds crowd each other out, and what it forgets it walks through again (up to a million
/// instructions on 6.1, half a million on 6.18).
#[inline(always)]
pub fn add_hierarchies(task: Task, container: &Name, root: &Name, mask: &mut u32) {
    let Some(css_set) = task.css_set() else {
        return;
    };
    let count = frozen(&SUBSYSTEMS);
    macro_rules! each {
        ($($index:literal)*) => {
            const { assert!([$($index),*].len() == MAX_SUBSYSTEMS as usize) };
            $( if $index < count
                && let Some(cgroup) = css_set.controller($index)
                && is_at(cgroup, container, root)
            {
                add_bit(mask, $index);
            } )*
        };
    }
    each!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    if let Some(cgroup) = css_set.unified()
        && is_at(cgroup, container, root)
    {
        add_bit(mask, UNIFIED_BIT);
    }
}

/// Whether a cgroup's path ends in `<root>/<container>`. A function of its own: however it comes to
/// its answer, the verifier goes on from there once.
#[inline(never)]
fn is_at(cgroup: Cgroup, container: &Name, root: &Name) -> bool {
    let Some(node) = cgroup.node() else {
        return false;
    };
    let mut scratch = Room::uninit();
    if !node.is_named(container, &mut scratch) {
        return false;
    }
    match node.parent() {
        Some(parent) => parent.is_named(root, &mut scratch),
        None => false,
    }
}

/// Sets a bit in memory. In a register, a mask of unknown bits costs the verifiers before 6.4 two
/// paths for each of them.
#[inline(always)]
pub fn add_bit(mask: &mut u32, bit: u32) {
    let mask = ptr::from_mut(mask);
    // SAFETY: it comes from a reference.
    let old = unsafe { ptr::read_volatile(mask) };
    // SAFETY: as above.
    unsafe { ptr::write_volatile(mask, old | 1 << bit) };
}
