//! The way of the few that matter: is it news, is it the first report, and the report itself.

use core::ptr;

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_ns,
    macros::map,
    maps::{LruHashMap, PerCpuArray, RingBuf},
};
use aya_log_ebpf::debug;
use cleanup_common::{ExitEvent, Loss, UNIFIED_BIT};

use crate::{
    cgroup::{self, Container, Layout, Node, Room},
    task::Task,
};

/// `include/uapi/linux/bpf.h`
const BPF_NOEXIST: u64 = 1;
/// `include/uapi/asm-generic/errno-base.h`
const EEXIST: i32 = 17;

/// Resized by the loader.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Which groups were reported. Before `group_dead` (6.16), two threads that end together both find
/// themselves the last; the kernel's own lock on the entry picks one.
#[map]
static CLAIMS: LruHashMap<Claim, u8> = LruHashMap::with_max_entries(4096, 0);

/// Indexed by [`Loss`].
#[map]
static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(Loss::COUNT, 0);

/// A process, told apart from every other that had or will have its number.
#[derive(Clone, Copy)]
#[repr(C)]
struct Claim {
    tgid: u64,
    start_boottime_ns: u64,
}

/// Reports the end of a process of a container, if it is news. A function of its own, so that the
/// filter needs no stack; its arguments are plain registers.
#[inline(never)]
pub fn emit(task: Task, node: Node, layout: Layout, root: u32) {
    let container = Container { node, layout, root };
    if let Err(loss) = try_emit(task, container) {
        debug!((), "tgid {}: lost, reason {}", task.tgid(), loss as u32);
        count(loss);
    }
}

#[inline(always)]
fn try_emit(task: Task, container: Container) -> Result<(), Loss> {
    let Some(leader) = task.leader() else {
        return Ok(());
    };
    let parent = leader.parent();
    let grandparent = parent.and_then(Task::parent);

    // What a process of the container starts and reaps is its own affair. A launcher helper's
    // parent is the agent, and an executor's grandparent, or whoever adopted it.
    let place = container.layout.place_of(task);
    if container.layout.is_place_of(parent, place)
        && container.layout.is_place_of(grandparent, place)
    {
        debug!(
            (),
            "tgid {}: child of a process of the container",
            task.tgid()
        );
        return Ok(());
    }

    let claim = Claim {
        tgid: task.tgid().into(),
        start_boottime_ns: leader.start_boottime(),
    };
    match CLAIMS.insert(claim, 1, BPF_NOEXIST) {
        Ok(()) => {}
        Err(error) if error == -EEXIST => {
            debug!((), "tgid {}: reported before", task.tgid());
            return Ok(());
        }
        // Twice is better than never.
        Err(_) => count(Loss::Unclaimed),
    }

    let Some(mut record) = EVENTS.reserve::<ExitEvent>(0) else {
        return Err(Loss::RingFull);
    };
    // SAFETY: integers only, so every content is a valid one; the kernel initialised the ring, and
    // what is reserved is nobody else's.
    let event = unsafe { record.assume_init_mut() };
    event.at_ns = now();
    event.start_boottime_ns = claim.start_boottime_ns;
    event.tgid = task.tgid();
    event.tid = task.tid();
    event.ppid = parent.map_or(0, Task::tgid);
    event.gppid = grandparent.map_or(0, Task::tgid);
    event.wait_status = task.exit_code();
    event.root = container.root;
    event.reserved = 0;
    match describe(task, container, event) {
        Ok(()) => {
            debug!((), "tgid {}: reported", task.tgid());
            record.submit(0);
            Ok(())
        }
        Err(loss) => {
            record.discard(0);
            Err(loss)
        }
    }
}

/// Writes the container's name and the task's hierarchies.
#[inline(always)]
fn describe(task: Task, container: Container, event: &mut ExitEvent) -> Result<(), Loss> {
    // SAFETY: only names are written there, so it stays initialised.
    let room = unsafe { &mut *ptr::from_mut(&mut event.container).cast::<Room>() };
    container.node.read_name(room)?;

    let mut root = Room::uninit();
    let parent = container.node.parent().ok_or(Loss::NameUnreadable)?;
    let root = parent.read_name(&mut root)?;

    event.hierarchies = 0;
    cgroup::add_hierarchies(task, &event.container, root, &mut event.hierarchies);
    if container.layout == Layout::V2 {
        // It sits in the leaf, one below.
        cgroup::add_bit(&mut event.hierarchies, UNIFIED_BIT);
    }
    Ok(())
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn count(loss: Loss) {
    if let Some(counter) = LOSSES.get_ptr_mut(loss as u32) {
        // SAFETY: this CPU's own slot, and nothing on this CPU runs between load and store.
        unsafe { *counter += 1 };
    }
}
