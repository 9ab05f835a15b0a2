//! What is fetched once and kept in the user's cache folder.

use std::env;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// Another process may be fetching.
const LOCK: Duration = Duration::from_secs(600);

/// `compose-cleanup/<name>` in the user's cache folder, existing or not.
pub fn dir(name: &str) -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .filter(|base| !base.is_empty())
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .context("neither XDG_CACHE_HOME nor a home directory is known")?;
    Ok(base.join("compose-cleanup").join(name))
}

/// One process at a time, for as long as the result lives. The folder exists.
pub fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    wait::try_until(LOCK, format_args!("{}", path.display()), || {
        match file.try_lock() {
            Ok(()) => Ok(Some(())),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    })?;
    Ok(file)
}
