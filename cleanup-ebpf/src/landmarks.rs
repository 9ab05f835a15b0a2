//! Finds structures of the cgroup hierarchies, for the exit probe to compare pointers with: what the
//! tasks at the top hold, and those of a directory. Never attached: user space runs the programs when
//! it wants to know (`BPF_PROG_TEST_RUN`).

#![no_std]
#![no_main]

mod object;

use core::{cell::UnsafeCell, ptr};

use aya_ebpf::{
    helpers::{bpf_get_current_task, bpf_probe_read_kernel},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use cleanup_common::{Directory, Tops, offset};

/// Id of the directory at the top of every hierarchy.
const TOP_ID: u64 = 1;
/// From whoever loads us up to the kernel's first task. A longer line is no harm: then the tops stay
/// unknown.
const MOST_ANCESTORS: usize = 64;

#[repr(transparent)]
struct Found<T>(UnsafeCell<T>);

// SAFETY: written by one run, and read by user space afterwards.
unsafe impl<T> Sync for Found<T> {}

/// In a section of its own, which is a map of that name to the loader.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.tops")]
static TOPS: Found<Tops> = Found(UnsafeCell::new(Tops {
    freezer_css: 0,
    unified_cgroup: 0,
}));

/// As above. The first two members are the question, which user space writes before a run.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.directory")]
static DIRECTORY: Found<Directory> = Found(UnsafeCell::new(Directory {
    fd: 0,
    id: 0,
    freezer_css: 0,
    unified_css: 0,
}));

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn directory(_ctx: RawTracePointContext) -> i32 {
    // A failed read is an unknown structure.
    let _ = find_directory();
    0
}

#[inline(always)]
fn find_directory() -> Option<()> {
    let wanted = DIRECTORY.0.get();
    // SAFETY: valid for reads, and nobody else's until the run is over.
    let Directory { fd, id, .. } = unsafe { ptr::read_volatile(wanted) };
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let table = load(load(task, offset!(task_files))?, offset!(files_fdt))?;
    let files = load(table, offset!(fdt_fd))?;
    let file = load(files + fd * size_of::<u64>() as u64, 0)?;
    let node = load(load(file, offset!(file_inode))?, offset!(inode_private))?;
    // What user space took for a cgroup's directory may be anything.
    if read(node, offset!(kn_id))? != id {
        return None;
    }
    let cgroup = load(node, offset!(kn_priv))?;
    if load(cgroup, offset!(cgroup_kn))? != node {
        return None;
    }
    let found = Directory {
        fd,
        id,
        // Not there in another hierarchy than the freezer's.
        freezer_css: load(cgroup, offset!(cgroup_freezer))
            .filter(|css| load(*css, offset!(css_cgroup)) == Some(cgroup))
            .unwrap_or(0),
        unified_css: cgroup + u64::from(offset!(cgroup_self)),
    };
    // SAFETY: valid for writes, and nobody else's until the run is over.
    unsafe { ptr::write_volatile(wanted, found) };
    Some(())
}

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
