//! What the tasks at the top of the cgroup hierarchies hold: most tasks of most hosts. The exit probe
//! dismisses them by one comparison, if it knows.

use aya::{
    Ebpf, EbpfLoader,
    maps::Array,
    programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _},
};
use cleanup_common::{Offsets, Tops};

use super::patch::patch;

/// Built by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tops"));

/// Names in the BPF object.
const PROGRAM: &str = "tops";
const FOUND: &str = ".data.tops";

/// Looks once. What it cannot find stays 0, which costs each exit some nanoseconds and nothing else:
/// the kernel runs such a program without an event since 5.10.
pub(super) fn find(loader: &mut EbpfLoader<'_>, offsets: &Offsets) -> Tops {
    try_find(loader, offsets).unwrap_or_else(|error| {
        tracing::debug!(%error, "the tops of the cgroup hierarchies stay unknown");
        Tops::default()
    })
}

fn try_find(loader: &mut EbpfLoader<'_>, offsets: &Offsets) -> anyhow::Result<Tops> {
    let object = patch(OBJECT, offsets, Tops::default())?;
    let mut ebpf = loader.load(&object)?;
    let missing = || anyhow::anyhow!("the object lacks its program or its map");
    let program: &mut RawTracePoint = ebpf.program_mut(PROGRAM).ok_or_else(missing)?.try_into()?;
    program.load()?;
    program.test_run(RawTracePointRunOptions::new())?;
    found(&ebpf).ok_or_else(missing)
}

fn found(ebpf: &Ebpf) -> Option<Tops> {
    let map: Array<_, Tops> = ebpf.map(FOUND)?.try_into().ok()?;
    map.get(&0, 0).ok()
}
