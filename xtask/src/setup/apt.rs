//! Debian's package manager: what would happen is asked before it is done.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::PROBE_LIMIT;
use crate::exec::{Failure, Tool};

pub(super) const UPDATE_LIMIT: Duration = Duration::from_mins(5);
const INSTALL_LIMIT: Duration = Duration::from_mins(20);

/// Why a package did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("apt would remove {} to install {packages}; nothing was done", .removed.join(" "))]
    WouldRemove {
        packages: String,
        removed: Vec<String>,
    },
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// The machine's own apt. One for a whole run: it updates its lists once.
#[derive(Debug, Default)]
pub(crate) struct Apt {
    updated: bool,
}

impl Apt {
    /// Installs packages that take nothing away from the machine. Services of
    /// a container engine among them are not started.
    pub(crate) fn install(&mut self, packages: &[&str]) -> Result<(), Error> {
        let simulation = match self.simulate(packages) {
            Err(failure) if !self.updated && is_unknown_package(&failure.output) => {
                self.update()?;
                self.simulate(packages)?
            }
            other => other?,
        };
        let removed = removals(&simulation);
        if !removed.is_empty() {
            return Err(Error::WouldRemove {
                packages: packages.join(" "),
                removed,
            });
        }
        let _no_services = NoServices::hold(Path::new("/usr/sbin"))
            .map_err(Error::io("cannot write /usr/sbin/policy-rc.d"))?;
        match install(packages).read() {
            // The lists are older than the mirror.
            Err(failure) if !self.updated && is_stale(&failure.output) => {
                self.update()?;
                install(packages).read()?;
            }
            other => {
                other?;
            }
        }
        Ok(())
    }

    /// Unpacks a package into a folder of ours, without installing it.
    pub(crate) fn unpack(&mut self, package: &str, into: &Path) -> Result<(), Error> {
        let dir = TempDir::new().map_err(Error::io("cannot make a temporary folder"))?;
        let download = || {
            apt_get(UPDATE_LIMIT)
                .args(["-o", "APT::Sandbox::User=root", "download", package])
                .current_dir(dir.path())
        };
        match download().read() {
            Err(failure) if !self.updated && is_unknown_package(&failure.output) => {
                self.update()?;
                download().read()?;
            }
            other => {
                other?;
            }
        }
        unpack_only_package(dir.path(), into)
    }

    /// The package and what it depends on, but for what the machine has: all that
    /// an installation would bring. What it would remove does not matter to those
    /// who only [`unpack`](Self::unpack).
    pub(crate) fn missing_for(&mut self, package: &str) -> Result<Vec<String>, Error> {
        let simulation = match self.simulate(&[package]) {
            Err(failure) if !self.updated && is_unknown_package(&failure.output) => {
                self.update()?;
                self.simulate(&[package])?
            }
            other => other?,
        };
        Ok(named(&simulation, &["Inst"]))
    }

    fn update(&mut self) -> Result<(), Failure> {
        // Once only, even when it fails: a second try would wait as long.
        self.updated = true;
        apt_get(UPDATE_LIMIT).arg("update").read().map(drop)
    }

    fn simulate(&self, packages: &[&str]) -> Result<String, Failure> {
        apt_get(PROBE_LIMIT)
            .args(["--simulate", "install", "--no-install-recommends"])
            .args(packages)
            .read()
    }
}

fn install(packages: &[&str]) -> Tool {
    apt_get(INSTALL_LIMIT)
        .args(["-y", "--no-install-recommends"])
        // Configuration left over from an earlier installation stays.
        .args(["-o", "Dpkg::Options::=--force-confdef"])
        .args(["-o", "Dpkg::Options::=--force-confold"])
        .args(["-o", "DPkg::Lock::Timeout=120"])
        .arg("install")
        .args(packages)
}

fn apt_get(limit: Duration) -> Tool {
    Tool::new("apt-get", limit)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .args(["-o", "Acquire::Retries=2"])
}

/// The packages that a simulated installation would take away.
fn removals(simulation: &str) -> Vec<String> {
    named(simulation, &["Remv", "Purg"])
}

/// The packages that a simulation names after these words.
fn named(simulation: &str, verbs: &[&str]) -> Vec<String> {
    simulation
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            verbs.contains(&words.next()?).then(|| words.next())?
        })
        .map(str::to_owned)
        .collect()
}

fn is_unknown_package(output: &str) -> bool {
    [
        "Unable to locate package",
        "has no installation candidate",
        "Can't find a source to download",
    ]
    .iter()
    .any(|sign| output.contains(sign))
}

fn is_stale(output: &str) -> bool {
    ["404  Not Found", "Unable to fetch some archives"]
        .iter()
        .any(|sign| output.contains(sign))
}

/// Keeps the services of a new container engine from being started, as long as
/// it lives: the tests run daemons of their own, and a machine that lent itself
/// to a test should not find a new root service on its network.
///
/// Packages ask `/usr/sbin/policy-rc.d` before they start anything. Ours
/// objects only to container engines, and only while this process lives: killed
/// half-way, we leave a file that changes nothing. One that was there before us
/// is the administrator's word and stays.
#[derive(Debug)]
struct NoServices {
    file: Option<PathBuf>,
}

impl NoServices {
    const MARK: &str = "written by `cargo xtask setup`";

    fn hold(dir: &Path) -> io::Result<Self> {
        let pid = std::process::id();
        Self::hold_as(dir, pid, &fs::read_to_string(format!("/proc/{pid}/comm"))?)
    }

    fn hold_as(dir: &Path, pid: u32, comm: &str) -> io::Result<Self> {
        let file = dir.join("policy-rc.d");
        match fs::read_to_string(&file) {
            Ok(text) if text.contains(Self::MARK) => fs::remove_file(&file)?,
            Ok(_) => return Ok(Self { file: None }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut policy = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(&file)?;
        let this = Self { file: Some(file) };
        let (mark, comm) = (Self::MARK, comm.trim_end());
        // The umask may have taken bits from the mode.
        policy.set_permissions(fs::Permissions::from_mode(0o755))?;
        write!(
            policy,
            "#!/bin/sh\n\
             # {mark} (process {pid}) while it installs a container engine.\n\
             # It objects only while that process lives, and may be removed at any time.\n\
             case \"$1\" in\n\
             docker*|containerd*) ;;\n\
             *) exit 0 ;;\n\
             esac\n\
             [ \"$(cat /proc/{pid}/comm 2>/dev/null)\" = '{comm}' ] && exit 101\n\
             exit 0\n"
        )?;
        Ok(this)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // What is left is harmless, as its text says.
            let _ = fs::remove_file(file);
        }
    }
}

/// Unpacks the package that lies in a folder.
pub(super) fn unpack_only_package(dir: &Path, into: &Path) -> Result<(), Error> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "no package came");
    let package = fs::read_dir(dir)
        .and_then(|mut entries| {
            entries
                .find_map(|entry| {
                    let path = entry.ok()?.path();
                    path.extension()
                        .is_some_and(|kind| kind == "deb")
                        .then_some(path)
                })
                .ok_or_else(missing)
        })
        .map_err(Error::io(dir.display().to_string()))?;
    Tool::new("dpkg-deb", INSTALL_LIMIT)
        .arg("-x")
        .args([&*package, into])
        .read()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_removal_is_seen() {
        let simulation = "\
            Reading package lists...\n\
            The following packages will be REMOVED:\n  busybox\n\
            Remv busybox [1:1.35.0-4+b3]\n\
            Inst busybox-static (1:1.35.0-4+b3 Debian:12/stable [amd64])\n\
            Conf busybox-static (1:1.35.0-4+b3 Debian:12/stable [amd64])\n\
            Purg old-thing [2.0]\n";
        assert_eq!(removals(simulation), ["busybox", "old-thing"]);
        assert_eq!(named(simulation, &["Inst"]), ["busybox-static"]);
    }

    #[test]
    fn an_installation_or_upgrade_removes_nothing() {
        let simulation = "Inst docker.io [20.10.1] (20.10.24 Debian:12 [amd64])\n\
                          Conf docker.io (20.10.24 Debian:12 [amd64])\n\
                          0 upgraded, 1 newly installed, 0 to remove\n";
        assert!(removals(simulation).is_empty());
        assert!(removals("").is_empty());
    }

    #[test]
    fn answers_that_an_update_may_cure() {
        assert!(is_unknown_package(
            "E: Unable to locate package llvm-22-dev"
        ));
        assert!(is_unknown_package(
            "E: Package 'llvm-22-dev' has no installation candidate"
        ));
        assert!(!is_unknown_package(
            "E: Could not get lock /var/lib/dpkg/lock"
        ));
        assert!(is_stale(
            "E: Failed to fetch pool/x.deb  404  Not Found [IP: ::1]"
        ));
        assert!(!is_stale("E: dpkg was interrupted"));
    }

    fn verdict(dir: &Path, service: &str) -> Option<i32> {
        let status = Command::new("sh")
            .arg(dir.join("policy-rc.d"))
            .args([service, "start"])
            .status();
        status.unwrap().code()
    }

    #[test]
    fn engines_stay_down_while_we_live_and_others_start() {
        let dir = TempDir::new().unwrap();
        let hold = NoServices::hold(dir.path()).unwrap();
        assert_eq!(verdict(dir.path(), "docker.service"), Some(101));
        assert_eq!(verdict(dir.path(), "containerd"), Some(101));
        assert_eq!(verdict(dir.path(), "ssh.service"), Some(0));
        drop(hold);
        assert!(!dir.path().join("policy-rc.d").exists());
    }

    #[test]
    fn what_a_killed_setup_left_behind_objects_to_nothing_and_is_replaced() {
        let dir = TempDir::new().unwrap();
        // No process has this number.
        let left = NoServices::hold_as(dir.path(), 4_194_304, "xtask").unwrap();
        std::mem::forget(left);
        assert_eq!(verdict(dir.path(), "docker.service"), Some(0));
        drop(NoServices::hold(dir.path()).unwrap());
        assert!(!dir.path().join("policy-rc.d").exists());
    }

    #[test]
    fn the_administrators_policy_stays() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("policy-rc.d");
        fs::write(&file, "#!/bin/sh\nexit 101\n").unwrap();
        drop(NoServices::hold(dir.path()).unwrap());
        assert_eq!(fs::read_to_string(file).unwrap(), "#!/bin/sh\nexit 101\n");
    }
}
