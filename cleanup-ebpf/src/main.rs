//! The exit probe: reports the end of a process of a top-level container, and nothing else.
//!
//! It runs on every exit of every thread of the host, so the order is everything: each test is
//! cheaper or more telling than the next, and only what passes them all costs more than a few
//! loads. There is no state but the claims that make a report once-only.
//!
//! The kernel's members are read with typed loads, which the verifier checks against the kernel's
//! BTF and which need no helper call. Their offsets come from the same BTF: the loader writes them
//! into the instructions. What depends on the host is settled by which of the programs is loaded.
//! Of maps an exit of no interest needs the ids of the roots at most.
//!
//! Written for the verifiers of Linux 5.10 to 7.x. What they cannot do shapes the code in places;
//! those places say so.

#![no_std]
#![no_main]

mod cgroup;
mod emit;
mod object;
mod raw;
mod task;

use aya_ebpf::{EbpfContext as _, macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    cgroup::{Container, Watch},
    task::Task,
};

/// How a group's end is recognised.
#[derive(Clone, Copy)]
enum GroupDead {
    /// By the tracepoint's argument.
    Argument,
    /// By the group's counter of threads.
    LiveCounter,
}

/// One program for each kind of host. The loader picks one by its name.
macro_rules! programs {
    ($($name:ident: $watch:ident, $group_dead:ident;)*) => { $(
        #[btf_tracepoint(function = "sched_process_exit")]
        #[expect(clippy::needless_pass_by_value, reason = "called by the macro's code")]
        fn $name(ctx: BtfTracePointContext) -> i32 {
            probe(&ctx, Watch::$watch, GroupDead::$group_dead)
        }
    )* };
}

programs! {
    exit_v1_arg: V1, Argument;
    exit_v1_live: V1, LiveCounter;
    exit_v2_arg: V2, Argument;
    exit_v2_live: V2, LiveCounter;
    exit_both_arg: Both, Argument;
    exit_both_live: Both, LiveCounter;
}

#[inline(always)]
fn probe(ctx: &BtfTracePointContext, watch: Watch, group_dead: GroupDead) -> i32 {
    if let Some((task, Container { node, layout, root })) = matching(ctx, watch, group_dead) {
        emit::emit(task, node, layout, root);
    }
    0
}

/// The task that exits, and its container, if this is the end of a process that may matter.
#[inline(always)]
fn matching(
    ctx: &BtfTracePointContext,
    watch: Watch,
    group_dead: GroupDead,
) -> Option<(Task, Container)> {
    let task = Task::from_context(ctx)?;
    if !is_group_dead(ctx, task, group_dead)? || task.leader()?.never_executed() {
        return None;
    }
    let container = cgroup::container_of(task, watch)?;
    Some((task, container))
}

/// Whether no thread of the group is left.
///
/// Two threads that end together may both find the counter at zero: see [`emit`] for the cure.
#[inline(always)]
fn is_group_dead(ctx: &BtfTracePointContext, task: Task, by: GroupDead) -> Option<bool> {
    match by {
        GroupDead::Argument => {
            // SAFETY: the loader found this argument in the kernel's BTF; where there is none, it
            // picks another program.
            let group_dead = unsafe { raw::read::<u64>(ctx.as_ptr() as u64, 8) };
            Some(group_dead & 0xff != 0)
        }
        GroupDead::LiveCounter => Some(task.live_threads()? == 0),
    }
}
