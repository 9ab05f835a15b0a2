//! The .deb, tried: installed, upgraded and purged by dpkg in a directory of its own,
//! which has a shell and nothing else. The host's packages are not touched.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cleanup_tests::command::program_in_path;
use rustix::process::geteuid;

use super::{Release, TOOL_LIMIT};
use crate::exec::Tool;

const CONFIG: &str = "etc/compose-cleanup/config.toml";
const MODULES: &str = "etc/compose-cleanup/modules.json";
const PROGRAM: &str = "usr/sbin/compose-cleanup";
/// What the daemon would have left.
const HISTORY: &str = "var/lib/compose-cleanup/journal.db";
const INBOX: &str = "run/compose-cleanup/inbox";
/// Programs of the maintainer scripts.
const APPLETS: [&str; 2] = ["sh", "rm"];
const DPKG: &str = "/usr/bin/dpkg";

/// A line about what was done.
pub(super) fn deb(release: &Release, deb: &Path) -> Result<String> {
    if !geteuid().is_root() || !Path::new(DPKG).is_file() {
        return Ok("the .deb was not tried: that takes root and dpkg".to_owned());
    }
    let busybox = program_in_path("busybox");
    if !busybox.is_file() {
        return Ok(
            "the .deb was not tried: there is no static busybox for its scripts \
                   (cargo xtask setup)"
                .to_owned(),
        );
    }
    let trial = Trial::new(release, &busybox)?;
    trial.contents(deb)?;
    let next = next_version(release, deb)?;

    // What an operator has changed stays, beside what the package has now; what was
    // left alone is replaced.
    trial.dpkg(&["--install"], &[deb])?;
    ensure!(trial.has(PROGRAM) && trial.has(MODULES), "not installed");
    let mine = trial.read(CONFIG)? + "grace = \"3s\"\n";
    trial.write(CONFIG, &mine)?;
    trial.write(HISTORY, "")?;
    trial.write(&format!("{INBOX}/1.request"), "")?;
    trial.dpkg(
        &["--force-confdef", "--force-confold", "--install"],
        &[&next],
    )?;
    ensure!(trial.read(CONFIG)? == mine, "{CONFIG} was overwritten");
    ensure!(
        trial
            .read(&format!("{CONFIG}.dpkg-dist"))?
            .ends_with("# next\n"),
        "the new {CONFIG} is nowhere"
    );
    ensure!(
        trial.read(MODULES)?.ends_with("\n\n"),
        "{MODULES} is the old one"
    );
    ensure!(trial.has(HISTORY), "an upgrade removed the history");

    // Removed: what is the operator's stays. Purged: nothing.
    let name = OsStr::new("compose-cleanup");
    trial.dpkg(&["--remove"], &[Path::new(name)])?;
    ensure!(!trial.has(PROGRAM), "{PROGRAM} is left");
    ensure!(trial.has(CONFIG) && trial.has(HISTORY), "removed too much");
    trial.dpkg(&["--purge"], &[Path::new(name)])?;
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
        in a directory of its own"
            .to_owned(),
    )
}

/// The same with a later version and other conffiles.
pub(super) fn next_version(release: &Release, deb: &Path) -> Result<PathBuf> {
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
    for (path, more) in [(CONFIG, "# next\n"), (MODULES, "\n")] {
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

struct Trial {
    root: PathBuf,
    work: PathBuf,
}

impl Trial {
    fn new(release: &Release, busybox: &Path) -> Result<Self> {
        let work = release.work.join("trial");
        let root = work.join("root");
        for dir in ["bin", "var/lib/dpkg/info", "var/lib/dpkg/updates"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::write(root.join("var/lib/dpkg/status"), "")?;
        fs::copy(busybox, root.join("bin/busybox")).context("a shell for the scripts")?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        Ok(Self { root, work })
    }

    fn dpkg(&self, options: &[&str], what: &[&Path]) -> Result<()> {
        Tool::new(DPKG, TOOL_LIMIT)
            // Not what this machine's dpkg is told to leave out, nor its log.
            .arg(format!("--root={}", self.root.display()))
            .arg(format!("--log={}", self.work.join("dpkg.log").display()))
            .args(["--force-depends", "--no-triggers"])
            .args(options)
            .args(what)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .read()?;
        Ok(())
    }

    /// What has to be in it, whoever's, and with which rights.
    fn contents(&self, deb: &Path) -> Result<()> {
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

    fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    fn read(&self, path: &str) -> Result<String> {
        fs::read_to_string(self.root.join(path)).with_context(|| format!("reading {path}"))
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let file = self.root.join(path);
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(file, text).with_context(|| format!("writing {path}"))
    }
}
