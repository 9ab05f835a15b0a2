//! Finds what the tasks at the top of the cgroup hierarchies hold, for the exit probe to compare
//! with. Never attached: the loader runs it once (`BPF_PROG_TEST_RUN`).

#![no_std]
#![no_main]

mod object;

use core::{cell::UnsafeCell, ptr};

use aya_ebpf::{
    helpers::{bpf_get_current_task, bpf_probe_read_kernel},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use cleanup_common::{Tops, offset};

/// Id of the directory at the top of every hierarchy.
const TOP_ID: u64 = 1;
/// From whoever loads us up to the kernel's first task. A longer line is no harm: then the tops stay
/// unknown.
const MOST_ANCESTORS: usize = 64;

#[repr(transparent)]
struct Found(UnsafeCell<Tops>);

// SAFETY: written by one run, and read by user space afterwards.
unsafe impl Sync for Found {}

/// In a section of its own, which is a map of that name to the loader.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.tops")]
static TOPS: Found = Found(UnsafeCell::new(Tops {
    freezer_css: 0,
    unified_cgroup: 0,
}));

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn tops(_ctx: RawTracePointContext) -> i32 {
    // A failed read is an unknown top.
    let _ = find();
    0
}

#[inline(always)]
fn find() -> Option<()> {
    let css_set = load(first_task()?, offset!(task_cgroups))?;
    let css = load(css_set, offset!(css_set_freezer))?;
    let is_css_top = is_top(load(css, offset!(css_cgroup))?);
    let unified = load(css_set, offset!(css_set_dfl_cgrp))?;
    let tops = Tops {
        freezer_css: if is_css_top { css } else { 0 },
        unified_cgroup: if is_top(unified) { unified } else { 0 },
    };
    // SAFETY: valid for writes, and nobody else's until the run is over.
    unsafe { ptr::write_volatile(TOPS.0.get(), tops) };
    Some(())
}

/// The one that every other descends from, and that is never moved: its own parent.
#[inline(always)]
fn first_task() -> Option<u64> {
    // SAFETY: a helper without arguments.
    let mut task = unsafe { bpf_get_current_task() };
    for _ in 0..MOST_ANCESTORS {
        let parent = load(task, offset!(task_real_parent))?;
        if parent == task {
            return Some(task);
        }
        task = parent;
    }
    None
}

/// Of two facts, since a mistake would silence a cgroup for good: it has no parent, and it has the
/// top's id.
#[inline(always)]
fn is_top(cgroup: u64) -> bool {
    load(cgroup, offset!(cgroup_kn)).is_some_and(|node| {
        let parent = read(node, offset!(kn_parent));
        let id = read(node, offset!(kn_id));
        parent == Some(0) && id == Some(TOP_ID)
    })
}

/// A pointer that is not NULL.
#[inline(always)]
fn load(base: u64, offset: u32) -> Option<u64> {
    read(base, offset).filter(|pointer| *pointer != 0)
}

#[inline(always)]
fn read(base: u64, offset: u32) -> Option<u64> {
    // SAFETY: the helper checks the source.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const u64) }.ok()
}
