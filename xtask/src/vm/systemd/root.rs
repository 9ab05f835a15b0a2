//! A Debian with systemd and Docker, for a guest: made by mmdebstrap of packages that come
//! through this machine's own apt settings, kept in the user's cache folder, never changed there.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use cleanup_tests::cache;
use tempfile::TempDir;

use crate::exec::Tool;
use crate::setup::{self, Apt};

const MMDEBSTRAP: &str = "mmdebstrap";
/// Half a gigabyte of packages to fetch and set up.
const MAKE_LIMIT: Duration = Duration::from_mins(30);
/// libbpf and libkmod are loaded by systemd when it needs them: without the first, no
/// `IPAddressDeny=`.
const PACKAGES: [&str; 9] = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "docker.io",
    "busybox-static",
    "procps",
    "kmod",
    "libbpf1",
    "libgcc-s1",
];
/// What nobody reads in a guest.
const LEFT_OUT: [&str; 3] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
];

/// The root of a release, from the cache, or from the mirror into it.
///
/// `besides`: packages that this release needs and others may not have.
pub(super) fn fetch(suite: &str, besides: &[&str]) -> Result<PathBuf> {
    let cache = cache::dir("vm/roots")?;
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    let _lock = cache::lock(&cache)?;
    let dir = cache.join(suite);
    if !dir.is_dir() {
        println!(
            "Making a root of Debian's {suite} with systemd and Docker, in {} ...",
            dir.display()
        );
        let unfinished = TempDir::new_in(&cache)?;
        let root = unfinished.path().join("root");
        make(suite, besides, &root).with_context(|| format!("a root of Debian's {suite}"))?;
        fs::rename(&root, &dir).with_context(|| format!("making {}", dir.display()))?;
    }
    Ok(dir)
}

fn make(suite: &str, besides: &[&str], root: &Path) -> Result<()> {
    let tools = TempDir::new()?;
    Apt::default().unpack(MMDEBSTRAP, tools.path())?;
    let programs = tools.path().join("usr/bin");
    let mut path = OsString::from(&programs);
    path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
    let mirror = setup::DebianMirror::of_machine()?;
    let mut tool = Tool::new("perl", MAKE_LIMIT)
        .arg(programs.join(MMDEBSTRAP))
        .args(["--mode=root", "--variant=minbase", "--format=directory"])
        .arg(format!(
            "--include={}",
            [&PACKAGES, besides].concat().join(",")
        ));
    for pattern in LEFT_OUT {
        tool = tool.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    for option in &mirror.options {
        tool = tool.arg(format!("--aptopt={option}"));
    }
    tool.arg(suite)
        .arg(root)
        .arg(format!("deb {} {suite} main", mirror.site))
        .env("PATH", path)
        .env("LC_ALL", "C")
        .read()?;
    // What was needed to make it, and is not needed in it.
    for left in ["var/lib/apt/lists", "var/cache/apt"] {
        let left = root.join(left);
        if left.exists() {
            fs::remove_dir_all(&left).with_context(|| format!("removing {}", left.display()))?;
        }
    }
    Ok(())
}
