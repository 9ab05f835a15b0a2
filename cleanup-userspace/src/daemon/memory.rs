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
//! Nor is most of the program's text needed any more when the daemon is at work:
//! reading BTF, the configuration, the command line. 12.8 MB are resident at the end of
//! a start, 9.1 MB a while after it was unmapped and what is used had come back.

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

/// At the end of the start: takes the text of this program and its libraries out of the
/// process. It stays in the page cache, and what is used comes back, some pages at a
/// time, without a read.
pub fn unmap_text() {
    let maps = match Process::myself().and_then(|myself| myself.maps()) {
        Ok(maps) => maps,
        Err(error) => {
            tracing::debug!(%error, "the text of the start stays in memory");
            return;
        }
    };
    for map in maps.iter().filter(|map| is_text(map)) {
        let (start, end) = map.address;
        // SAFETY: it is a private mapping of a file that nobody may write to, so that the
        // kernel has the same for its pages when they are read again; a moment ago
        // it was there, and this program unmaps no library.
        let done = unsafe {
            madvise(
                std::ptr::with_exposed_provenance_mut(start as usize),
                (end - start) as usize,
                Advice::LinuxDontNeed,
            )
        };
        if let Err(error) = done {
            tracing::debug!(%error, ?map.pathname, "the text of the start stays in memory");
        }
    }
}

/// Mapped from a file, to be executed and not to be written: relocations are elsewhere.
fn is_text(map: &MemoryMap) -> bool {
    let text = MMPermissions::READ | MMPermissions::EXECUTE | MMPermissions::PRIVATE;
    map.perms == text && matches!(map.pathname, MMapPath::Path(_))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// The text of this program.
    fn own_text() -> Vec<MemoryMap> {
        let own = MMapPath::Path(std::env::current_exe().unwrap());
        let maps = Process::myself().unwrap().smaps().unwrap();
        maps.into_iter()
            .filter(|map| is_text(map) && map.pathname == own)
            .collect()
    }

    fn resident(maps: &[MemoryMap]) -> u64 {
        maps.iter().map(|map| map.extension.map["Rss"]).sum()
    }

    #[test]
    fn text_goes_and_what_is_used_comes_back() {
        // Reading it brings in all of it.
        let memory = File::open("/proc/self/mem").unwrap();
        let mut before = Vec::new();
        for map in own_text() {
            let (start, end) = map.address;
            let mut text = vec![0; (end - start) as usize];
            memory.read_exact_at(&mut text, start).unwrap();
            before.push((start, text));
        }
        let all = resident(&own_text());
        unmap_text();
        let left = resident(&own_text());
        assert!(0 < left && left < all, "{left} of {all} bytes");
        for (start, text) in before {
            let mut after = vec![0; text.len()];
            memory.read_exact_at(&mut after, start).unwrap();
            assert!(text == after, "the text at {start:#x} has changed");
        }
    }
}
