//! What the steps need to know of this machine. Reads only.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::PROBE_LIMIT;
use crate::exec::Tool;
use crate::workspace;

/// The machine, as the steps see it.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) is_root: bool,
    pub(crate) distro: Distro,
    pub(crate) rustc: Rustc,
    /// Where the toolchain in use keeps its libraries and sources.
    pub(crate) sysroot: PathBuf,
    /// Where `cargo install` puts things: `bin` beneath it.
    pub(crate) cargo_home: PathBuf,
    /// Tools that could not be installed without removing something else.
    pub(crate) own_tools: PathBuf,
}

impl Machine {
    pub(crate) fn look() -> Result<Self> {
        let rustc = |args: &[&str]| {
            Tool::new("rustc", PROBE_LIMIT)
                .args(args)
                .current_dir(workspace::root())
                .read()
        };
        let version = rustc(&["-vV"])?;
        Ok(Self {
            is_root: rustix::process::geteuid().is_root(),
            distro: Distro::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            rustc: Rustc::parse(&version)
                .with_context(|| format!("unexpected answer of `rustc -vV`:\n{version}"))?,
            sysroot: rustc(&["--print", "sysroot"])?.trim_end().into(),
            cargo_home: cargo_home(),
            own_tools: own_tools(),
        })
    }

    /// The program of that name: on PATH, or where a task would find it.
    pub(crate) fn find(name: &str) -> Option<PathBuf> {
        // A user's PATH often lacks the folders of the daemons.
        let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        env::split_paths(&search_path())
            .chain(system)
            .map(|dir| dir.join(name))
            .find(|file| is_executable(file))
    }
}

/// PATH for everything that a task starts. Our own tools come first: they are
/// there only because the system's were not the right ones.
pub(crate) fn search_path() -> OsString {
    let user = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<_> = std::iter::once(own_tools().join("bin"))
        .chain(env::split_paths(&user))
        .chain([cargo_home().join("bin")])
        .collect();
    env::join_paths(dirs).unwrap_or(user)
}

fn cargo_home() -> PathBuf {
    env::var_os("CARGO_HOME").map_or_else(
        || env::home_dir().unwrap_or_default().join(".cargo"),
        PathBuf::from,
    )
}

fn own_tools() -> PathBuf {
    workspace::target_dir().join("setup")
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The compiler in use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rustc {
    /// `1.95.0`; `1.97.0-nightly` for one.
    pub(crate) release: String,
    pub(crate) llvm_major: u32,
}

impl Rustc {
    fn parse(answer: &str) -> Option<Self> {
        let field = |name: &str| {
            answer
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        Some(Self {
            release: field("release")?.to_owned(),
            llvm_major: field("LLVM version")?.split('.').next()?.parse().ok()?,
        })
    }
}

/// What `/etc/os-release` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Distro {
    /// `debian`, `ubuntu`, `fedora`; empty when unknown.
    pub(crate) id: String,
    /// Distributions that this one is made from.
    like: Vec<String>,
    /// `bookworm`; empty for some.
    pub(crate) codename: String,
    /// 12 for Debian 12; `None` for unstable.
    major: Option<u32>,
}

impl Distro {
    pub(crate) fn parse(os_release: &str) -> Self {
        let fields: BTreeMap<&str, &str> = os_release
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.trim(), value.trim().trim_matches(['"', '\''])))
            .collect();
        let field = |name: &str| fields.get(name).copied().unwrap_or_default();
        Self {
            id: field("ID").to_owned(),
            like: field("ID_LIKE")
                .split_ascii_whitespace()
                .map(str::to_owned)
                .collect(),
            codename: field("VERSION_CODENAME").to_owned(),
            major: field("VERSION_ID")
                .split('.')
                .next()
                .and_then(|major| major.parse().ok()),
        }
    }

    /// Debian itself, not something made from it.
    pub(crate) fn is_debian(&self) -> bool {
        self.id == "debian"
    }

    /// Installs packages of Debian's names with apt.
    pub(crate) fn has_apt(&self) -> bool {
        self.is_debian() || self.like.iter().any(|id| id == "debian")
    }

    /// Debian 13 moved the client from docker.io to a package of its own.
    pub(crate) fn splits_docker_cli(&self) -> bool {
        self.is_debian() && self.major.is_none_or(|major| major >= 13)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustc_says_its_release_and_llvm() {
        let answer = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\n\
                      host: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        let expected = Rustc {
            release: "1.95.0".into(),
            llvm_major: 22,
        };
        assert_eq!(Rustc::parse(answer), Some(expected));
    }

    #[test]
    fn a_rustc_without_llvm_is_no_guess() {
        assert_eq!(Rustc::parse("rustc 1.95.0\nrelease: 1.95.0\n"), None);
    }

    #[test]
    fn debian_and_what_is_made_from_it_have_apt() {
        let bookworm = Distro::parse("ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n");
        assert!(bookworm.is_debian() && bookworm.has_apt());
        assert_eq!(bookworm.codename, "bookworm");
        assert!(!bookworm.splits_docker_cli());
        assert!(Distro::parse("ID=debian\nVERSION_ID=\"13\"\n").splits_docker_cli());
        assert!(Distro::parse("ID=debian\n").splits_docker_cli(), "sid");

        let ubuntu = Distro::parse("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\n");
        assert!(!ubuntu.is_debian() && ubuntu.has_apt() && !ubuntu.splits_docker_cli());
        let fedora = Distro::parse("ID=fedora\nVERSION_ID=43\n");
        assert!(!fedora.has_apt());
        assert!(!Distro::parse("").has_apt());
    }
}
