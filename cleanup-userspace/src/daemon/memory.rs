//! Giving memory back to the host.
//!
//! Loading the probe parses the kernel's BTF, which takes some 30 MB for a moment.
//! glibc keeps most of it: freeing large blocks raises the threshold at which it
//! returns memory. Measured at the end of a start on 6.18: 24.7 MB resident as it
//! is, 6.5 MB with both calls (`VmRSS` in `/proc/PID/status`).
//!
//! At work, file system calls are spread over a dozen threads, and glibc gives each an
//! arena of its own, which keeps what it once had: 9 of 12 MB of anonymous memory
//! after 700 deaths (`/proc/PID/smaps`). Nothing here allocates so much that two
//! arenas would be in anybody's way.
//!
//! Nor is most of the program's file needed any more when the daemon is at work: code
//! and constants for BTF, the configuration, the command line, and the relocations.
//! (Figures: `docs/performance.md`, "Weight".)

use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};
use rustix::mm::{Advice, madvise};

/// glibc's own initial threshold.
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD: libc::c_int = 128 * 1024;
/// For all threads together.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Before the probe is loaded: fixes the threshold and the number of arenas.
pub fn keep_small() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD),
        (libc::M_ARENA_MAX, ARENAS),
    ] {
        // SAFETY: mallopt(3) takes two integers and may be called at any time.
        unsafe {
            libc::mallopt(parameter, value);
        }
    }
}

/// After the probe was loaded.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) only releases memory that nobody holds.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// At the end of the start: takes what this program and its libraries only read of their
/// files out of the process. It stays in the page cache, and what is used comes back,
/// some pages at a time, without a read.
pub fn unmap_files() {
    let maps = match Process::myself().and_then(|myself| myself.smaps()) {
        Ok(maps) => maps,
        Err(error) => {
            tracing::debug!(%error, "what the start needed of files stays in memory");
            return;
        }
    };
    for map in maps.iter().filter(|map| is_as_in_file(map)) {
        let (start, end) = map.address;
        // SAFETY: all that is there is the file's, so that the kernel has the same for its
        // pages when they are read again; a moment ago it was there, nothing may
        // write to it, and this program unmaps no library.
        let done = unsafe {
            madvise(
                std::ptr::with_exposed_provenance_mut(start as usize),
                (end - start) as usize,
                Advice::LinuxDontNeed,
            )
        };
        if let Err(error) = done {
            tracing::debug!(%error, ?map.pathname, "what the start needed of files stays in memory");
        }
    }
}

/// Mapped from a file, not to be written, and no page of it was ever changed: the
/// linker's relocations make it one that was.
fn is_as_in_file(map: &MemoryMap) -> bool {
    let readable = MMPermissions::READ | MMPermissions::PRIVATE;
    let bytes = |what| map.extension.map.get(what).copied();
    // What was swapped out is not resident, and none the less a changed page. A kernel
    // without swap has no line for it.
    let unchanged = bytes("Anonymous") == Some(0) && bytes("Swap").unwrap_or(0) == 0;
    map.perms - MMPermissions::EXECUTE == readable
        && matches!(map.pathname, MMapPath::Path(_))
        && unchanged
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// What of this program's own file is to go.
    fn own() -> Vec<MemoryMap> {
        let own = MMapPath::Path(std::env::current_exe().unwrap());
        let maps = Process::myself().unwrap().smaps().unwrap();
        maps.into_iter()
            .filter(|map| is_as_in_file(map) && map.pathname == own)
            .collect()
    }

    fn resident(maps: &[MemoryMap]) -> u64 {
        maps.iter().map(|map| map.extension.map["Rss"]).sum()
    }

    #[test]
    fn what_goes_comes_back_as_it_was() {
        // Reading it brings in all of it.
        let memory = File::open("/proc/self/mem").unwrap();
        let mut before = Vec::new();
        for map in own() {
            let (start, end) = map.address;
            let mut bytes = vec![0; (end - start) as usize];
            memory.read_exact_at(&mut bytes, start).unwrap();
            before.push((start, bytes));
        }
        let all = resident(&own());
        unmap_files();
        let left = resident(&own());
        assert!(0 < left && left < all, "{left} of {all} bytes");
        for (start, expected) in before {
            let mut after = vec![0; expected.len()];
            memory.read_exact_at(&mut after, start).unwrap();
            assert!(expected == after, "what is at {start:#x} has changed");
        }
    }
}
