//! A task and its family.

use aya_ebpf::{EbpfContext as _, programs::BtfTracePointContext};

use crate::{
    cgroup::CssSet,
    raw::{self, Object, offset},
};

/// Forked, but never executed a program (`include/linux/sched.h`).
const PF_FORKNOEXEC: u32 = 0x40;

/// `struct task_struct`
#[derive(Clone, Copy)]
pub struct Task(Object);

impl Task {
    /// The task that the tracepoint is about: its first argument.
    #[inline(always)]
    pub fn from_context(ctx: &BtfTracePointContext) -> Option<Self> {
        // SAFETY: every kernel passes this argument.
        let argument = unsafe { raw::read(ctx.as_ptr() as u64, 0) };
        Object::from_argument(argument).map(Self)
    }

    /// Leader of its thread group.
    #[inline(always)]
    pub fn leader(self) -> Option<Self> {
        self.0.follow(offset!(task_group_leader)).map(Self)
    }

    /// Whether its process is a fork that never became a program. Ask the leader: threads carry
    /// the flag for life.
    #[inline(always)]
    pub fn never_executed(self) -> bool {
        self.0.load_u32(offset!(task_flags)) & PF_FORKNOEXEC != 0
    }

    /// Threads of its group that have not begun to exit.
    #[inline(always)]
    pub fn live_threads(self) -> Option<u32> {
        let signal = self.0.follow(offset!(task_signal))?;
        Some(signal.load_u32(offset!(signal_live)))
    }

    #[inline(always)]
    pub fn tgid(self) -> u32 {
        self.0.load_u32(offset!(task_tgid))
    }

    #[inline(always)]
    pub fn tid(self) -> u32 {
        self.0.load_u32(offset!(task_pid))
    }

    /// The raw wait status.
    #[inline(always)]
    pub fn exit_code(self) -> i32 {
        self.0.load_u32(offset!(task_exit_code)).cast_signed()
    }

    #[inline(always)]
    pub fn start_boottime(self) -> u64 {
        self.0.load_u64(offset!(task_start_boottime))
    }

    /// The parent, or who adopted it; possibly one of its threads.
    #[inline(always)]
    pub fn parent(self) -> Option<Self> {
        self.0.follow(offset!(task_real_parent)).map(Self)
    }

    /// Its cgroups. They are in place until long after the tracepoint.
    #[inline(always)]
    pub fn css_set(self) -> Option<CssSet> {
        self.0.follow(offset!(task_cgroups)).map(CssSet::new)
    }
}
