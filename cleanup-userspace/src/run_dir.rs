//! The run directory: what one boot of one host shares between the processes of
//! this program. It is on a tmpfs; nothing in it is worth keeping.

mod lock;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstat};

pub use lock::{Attempt, LockError, Occupant, RunLock, Who};

/// Opens a directory that only this process' user may write to, made if there is
/// none. An error if it is a symbolic link, or somebody else's.
pub fn open_private(path: &Path) -> io::Result<OwnedFd> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    let dir = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let stat = fstat(&dir)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
        return Err(io::Error::other(
            "it is not this program's own, or others may write to it (mode 0700 is right)",
        ));
    }
    Ok(dir)
}
