//! The .deb, by dpkg.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{CONFIG, HISTORY, INBOX, MODULES, NEXT, PROGRAM, Trial};
use crate::dist::{Release, TOOL_LIMIT};
use crate::exec::Tool;

const DPKG: &str = "/usr/bin/dpkg";

pub(super) fn tried(release: &Release, deb: &Path, busybox: &Path) -> Result<String> {
    if !Path::new(DPKG).is_file() {
        return Ok("the .deb was not tried: there is no dpkg".to_owned());
    }
    contents(deb)?;
    let next = next_version(release, deb)?;
    let work = release.work.join("trial-deb");
    let trial = Trial::new(work.join("root"), busybox)?;
    for dir in ["var/lib/dpkg/info", "var/lib/dpkg/updates"] {
        fs::create_dir_all(trial.root.join(dir)).context(dir)?;
    }
    trial.write("var/lib/dpkg/status", "")?;
    let dpkg = |options: &[&str], what: &Path| -> Result<()> {
        Tool::new(DPKG, TOOL_LIMIT)
            // Not what this machine's dpkg is told to leave out, nor its log.
            .arg(format!("--root={}", trial.root.display()))
            .arg(format!("--log={}", work.join("dpkg.log").display()))
            .args(["--force-depends", "--no-triggers"])
            .args(options)
            .arg(what)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .read()?;
        Ok(())
    };

    // What an operator has changed stays, beside what the package has now; what was
    // left alone is replaced.
    dpkg(&["--install"], deb)?;
    ensure!(trial.has(PROGRAM) && trial.has(MODULES), "not installed");
    trial.check_first_calls()?;
    let mine = trial.read(CONFIG)? + "grace = \"3s\"\n";
    trial.write(CONFIG, &mine)?;
    trial.write(HISTORY, "")?;
    trial.write(&format!("{INBOX}/1.request"), "")?;
    dpkg(&["--force-confdef", "--force-confold", "--install"], &next)?;
    trial.check_upgrade_calls()?;
    ensure!(trial.read(CONFIG)? == mine, "{CONFIG} was overwritten");
    ensure!(
        trial.read(&format!("{CONFIG}.dpkg-dist"))?.ends_with(NEXT),
        "the new {CONFIG} is nowhere"
    );
    ensure!(
        trial.read(MODULES)?.ends_with("\n\n"),
        "{MODULES} is the old one"
    );
    ensure!(trial.has(HISTORY), "an upgrade removed the history");

    // Removed: what is the operator's stays. Purged: nothing.
    let name = Path::new("compose-cleanup");
    dpkg(&["--remove"], name)?;
    trial.check_last_calls()?;
    ensure!(!trial.has(PROGRAM), "{PROGRAM} is left");
    ensure!(trial.has(CONFIG) && trial.has(HISTORY), "removed too much");
    dpkg(&["--purge"], name)?;
    for path in [
        CONFIG,
        MODULES,
        HISTORY,
        INBOX,
        "etc/compose-cleanup",
        "var/lib/compose-cleanup",
    ] {
        ensure!(!trial.has(path), "{path} is left after a purge");
    }
    Ok(
        "the .deb was installed, upgraded with a changed configuration, removed and purged \
        in a directory of its own, where no systemd answers"
            .to_owned(),
    )
}

/// The same with a later version and other conffiles.
pub(in crate::dist) fn next_version(release: &Release, deb: &Path) -> Result<PathBuf> {
    let tree = release.work.join("next");
    let tool = || Tool::new("dpkg-deb", TOOL_LIMIT);
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("emptying {}", tree.display()))?;
    }
    tool().arg("--raw-extract").arg(deb).arg(&tree).read()?;
    let control = tree.join("DEBIAN/control");
    let text: String = fs::read_to_string(&control)?
        .lines()
        .map(|line| match line.strip_prefix("Version: ") {
            Some(version) => format!("Version: {version}.1\n"),
            None => format!("{line}\n"),
        })
        .collect();
    fs::write(&control, text)?;
    for (path, more) in [(CONFIG, NEXT), (MODULES, "\n")] {
        let text = fs::read_to_string(tree.join(path))?;
        fs::write(tree.join(path), text + more)?;
    }
    let next = release.work.join("next.deb");
    tool()
        .args(["--build", "--root-owner-group", "-Znone"])
        .arg(&tree)
        .arg(&next)
        .read()?;
    Ok(next)
}

/// What has to be in it, whoever's, and with which rights.
fn contents(deb: &Path) -> Result<()> {
    let list = Tool::new("dpkg-deb", TOOL_LIMIT)
        .arg("--contents")
        .arg(deb)
        .read()?;
    for (mode, path) in [
        ("-rwxr-xr-x", PROGRAM),
        ("-rw-r--r--", CONFIG),
        ("-rw-r--r--", MODULES),
        (
            "-rw-r--r--",
            "usr/lib/compose-cleanup/libcompose_pod_cleanup_hook.so",
        ),
        (
            "-rw-r--r--",
            "usr/lib/systemd/system/compose-cleanup.service",
        ),
        (
            "-rw-r--r--",
            "usr/lib/systemd/system/compose-cleanup-inbox.path",
        ),
        (
            "-rw-r--r--",
            "usr/lib/systemd/system/compose-cleanup-inbox.service",
        ),
        ("-rw-r--r--", "usr/lib/tmpfiles.d/compose-cleanup.conf"),
        ("-rw-r--r--", "usr/share/man/man1/compose-cleanup-watch.1"),
        (
            "-rw-r--r--",
            "usr/share/bash-completion/completions/compose-cleanup",
        ),
    ] {
        let found = list.lines().any(|line| {
            // Manual pages may be compressed.
            let name = line.rsplit(' ').next().unwrap_or_default();
            let name = name.strip_suffix(".gz").unwrap_or(name);
            line.starts_with(mode)
                && line.contains(" 0/0 ")
                && name.trim_start_matches("./") == path
        });
        ensure!(found, "no {mode} 0/0 {path} in {}:\n{list}", deb.display());
    }
    Ok(())
}
