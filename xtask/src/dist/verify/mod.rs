//! The packages, tried: installed, upgraded and removed, each in a directory of its own. The
//! host's packages are not touched.

mod deb;
mod rpm;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::process::geteuid;

pub(super) use deb::next_version;

use super::{Made, Release};
use crate::setup;

const CONFIG: &str = "etc/compose-cleanup/config.toml";
const MODULES: &str = "etc/compose-cleanup/modules.json";
const PROGRAM: &str = "usr/sbin/compose-cleanup";
/// What the daemon would have left.
const HISTORY: &str = "var/lib/compose-cleanup/journal.db";
const INBOX: &str = "run/compose-cleanup/inbox";
/// What a later version has at the end of its configuration.
const NEXT: &str = "# next\n";
/// Programs of the packages' scripts.
const APPLETS: [&str; 3] = ["sh", "rm", "rmdir"];
/// Nobody answers it, as in a container that sees the host's /run: scripts must do without.
const DEAF_SYSTEMCTL: &str = "#!/bin/sh\necho \"$*\" >> /calls\nexit 1\n";

/// A line for each package about what was done.
pub(super) fn all(release: &Release, made: &Made) -> Result<Vec<String>> {
    let not_tried = |why| Ok(vec![format!("the packages were not tried: {why}")]);
    if !geteuid().is_root() {
        return not_tried("that takes root");
    }
    let Some(busybox) = setup::static_busybox() else {
        return not_tried("there is no static busybox for their scripts (cargo xtask setup)");
    };
    let deb = deb::tried(release, &made.deb, &busybox).context("the .deb, tried")?;
    let rpm = rpm::tried(release, made, &busybox).context("the .rpm, tried")?;
    Ok(vec![deb, rpm])
}

/// A system that has a shell, a systemd that does not answer, and nothing else.
struct Trial {
    root: PathBuf,
}

impl Trial {
    fn new(root: PathBuf, busybox: &Path) -> Result<Self> {
        for dir in ["bin", "dev", "run/systemd/system"] {
            let dir = root.join(dir);
            fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let trial = Self { root };
        fs::copy(busybox, trial.root.join("bin/busybox")).context("a shell for the scripts")?;
        for applet in APPLETS {
            symlink("busybox", trial.root.join("bin").join(applet)).context("an applet")?;
        }
        // Scripts write to it, and a file does for that.
        trial.write("dev/null", "")?;
        let systemctl = "bin/systemctl";
        trial.write(systemctl, DEAF_SYSTEMCTL)?;
        let rights = fs::Permissions::from_mode(0o755);
        fs::set_permissions(trial.root.join(systemctl), rights).context(systemctl)?;
        Ok(trial)
    }

    /// What systemctl was asked for since the last look, a line for each call.
    fn calls(&self) -> Result<String> {
        let calls = self.read("calls")?;
        self.write("calls", "")?;
        Ok(calls)
    }

    /// Installed as the first version: it is made known, and nothing runs because of it.
    fn check_first_calls(&self) -> Result<()> {
        let calls = self.calls()?;
        ensure!(calls == "--system daemon-reload\n", "systemctl:\n{calls}");
        Ok(())
    }

    /// What ran, and only that, is started again with the new files.
    fn check_upgrade_calls(&self) -> Result<()> {
        let calls = self.calls()?;
        let restart = "try-restart compose-cleanup-inbox.path compose-cleanup.service";
        let others = calls.lines().filter(|call| *call != restart);
        ensure!(
            calls.lines().filter(|call| *call == restart).count() == 1
                && others.clone().count() > 0
                && others.clone().all(|call| call == "--system daemon-reload"),
            "systemctl:\n{calls}"
        );
        Ok(())
    }

    fn check_last_calls(&self) -> Result<()> {
        let calls = self.calls()?;
        let expected = "disable compose-cleanup-inbox.path compose-cleanup.service\n\
                        stop compose-cleanup-inbox.path\n\
                        stop compose-cleanup-inbox.service compose-cleanup.service\n\
                        --system daemon-reload\n";
        ensure!(calls == expected, "systemctl:\n{calls}");
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
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        fs::write(file, text).with_context(|| format!("writing {path}"))
    }
}
