//! The exit probe: reports the end of a process of a top-level container, and nothing else.
//!
//! It runs on every exit of every thread of the host, so the order is everything: each test is
//! cheaper or more telling than the next, and only what passes them all costs more than a few
//! loads. There is no state but the claims that make a report once-only.
//!
//! The kernel's members are read with typed loads, which the verifier checks against the kernel's
//! BTF and which need no helper call. Their offsets come from the same BTF, through frozen globals.
//!
//! Written for the verifiers of Linux 5.10 to 7.x. What they cannot do shapes the code in places;
//! those places say so.

#![no_std]
#![no_main]

mod cgroup;
mod emit;
mod raw;
mod task;

use aya_ebpf::{EbpfContext as _, macros::btf_tracepoint, programs::BtfTracePointContext};
use cleanup_common::Settings;

use crate::{cgroup::Container, raw::setting, task::Task};

/// Written by the loader, and frozen before the program is loaded.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings {
    group_dead_argument: 0,
    watch_v1: 0,
    watch_v2: 0,
    slots: 0,
    subsystems: 0,
};

#[btf_tracepoint(function = "sched_process_exit")]
#[expect(clippy::needless_pass_by_value, reason = "called by the macro's code")]
fn exit_probe(ctx: BtfTracePointContext) -> i32 {
    if let Some((task, Container { node, layout, root })) = matching(&ctx) {
        emit::emit(task, node, layout, root);
    }
    0
}

/// The task that exits, and its container, if this is the end of a process that may matter.
#[inline(always)]
fn matching(ctx: &BtfTracePointContext) -> Option<(Task, Container)> {
    let task = Task::from_context(ctx)?;
    if !is_group_dead(ctx, task)? || task.leader()?.never_executed() {
        return None;
    }
    let container = cgroup::container_of(task)?;
    Some((task, container))
}

/// Whether no thread of the group is left.
///
/// Two threads that end together may both find the counter at zero: see [`emit`] for the cure.
#[inline(always)]
fn is_group_dead(ctx: &BtfTracePointContext, task: Task) -> Option<bool> {
    if setting!(group_dead_argument) != 0 {
        // SAFETY: the loader found this argument in the kernel's BTF. Where there is none, the
        // verifier knows the condition to be false and never looks at the load.
        let group_dead = unsafe { raw::read::<u64>(ctx.as_ptr() as u64, 8) };
        Some(group_dead & 0xff != 0)
    } else {
        Some(task.live_threads()? == 0)
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Reading kernel memory is reserved to GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
