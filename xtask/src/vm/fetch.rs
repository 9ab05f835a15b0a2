//! Kernels and QEMU, as packages through this machine's own apt: verified by it, unpacked into the
//! user's cache folder, never installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cleanup_tests::cache;
use cleanup_tests::guest::CgroupMode;
use tempfile::TempDir;

use super::modules;
use crate::setup::{self, ForeignSuite};

/// A kernel of a distribution, by its name on the command line.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) name: &'static str,
    suite: &'static str,
    /// Which cgroups `--cgroup all` means: where a controller of version 1 is missing, pure
    /// version 1 says nothing that an older kernel does not say better.
    pub(crate) modes: &'static [CgroupMode],
}

pub(crate) const SERIES: &[Series] = &[
    Series {
        name: "5.10",
        suite: "bullseye",
        modes: &CgroupMode::ALL,
    },
    Series {
        name: "6.1",
        suite: "bookworm",
        modes: &CgroupMode::ALL,
    },
    Series {
        name: "6.12",
        suite: "trixie",
        modes: &[CgroupMode::Hybrid, CgroupMode::V2],
    },
    Series {
        name: "newest",
        suite: "trixie-backports",
        modes: &[CgroupMode::Hybrid, CgroupMode::V2],
    },
];

/// Depends on the newest kernel of its suite.
const META: &str = "linux-image-cloud-amd64";
const QEMU: &str = "qemu-system-x86";
const QEMU_PROGRAM: &str = "qemu-system-x86_64";

/// A kernel to boot.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// As in the table: the package's version, or the file's name.
    pub(crate) version: String,
    pub(crate) image: PathBuf,
    /// For Docker, in the order in which they can be loaded.
    pub(crate) modules: Vec<PathBuf>,
    pub(crate) modes: &'static [CgroupMode],
}

/// What Docker cannot do without, where networks are not set up.
const MODULES: &[&str] = &["overlay"];

impl Kernel {
    /// A kernel that somebody else made.
    pub(crate) fn of_file(path: &Path) -> Result<Self> {
        ensure!(path.is_file(), "{} is no kernel image", path.display());
        let name = path.file_name().unwrap_or(path.as_os_str());
        Ok(Self {
            version: name.to_string_lossy().into_owned(),
            image: path.to_owned(),
            modules: Vec::new(),
            modes: &CgroupMode::ALL,
        })
    }

    /// From the cache, or from the mirror into it.
    pub(crate) fn fetch(series: &Series, again: bool) -> Result<Self> {
        let cache = cache::dir("vm/kernels")?;
        make_dir(&cache)?;
        let _lock = cache::lock(&cache)?;
        let dir = cache.join(series.name);
        // An earlier version of this task kept no modules.
        if again || !dir.join("version").is_file() || !dir.join("modules").is_dir() {
            download(series, &cache, &dir).with_context(|| {
                format!(
                    "kernel {} is neither in {} nor did it come from Debian's {}",
                    series.name,
                    cache.display(),
                    series.suite
                )
            })?;
        }
        let version = fs::read_to_string(dir.join("version"))
            .with_context(|| format!("reading {}", dir.join("version").display()))?;
        Ok(Self {
            version,
            image: dir.join("vmlinuz"),
            modules: modules::gathered(&dir.join("modules"))?,
            modes: series.modes,
        })
    }
}

fn download(series: &Series, cache: &Path, dir: &Path) -> Result<()> {
    println!("Fetching a kernel of Debian's {} ...", series.suite);
    let suite = setup::debian_suite(series.suite)?;
    let unpacked = TempDir::new_in(cache)?;
    let version = unpack_kernel(&suite, unpacked.path())?;
    let image = find_image(unpacked.path())?;
    let complete = TempDir::new_in(cache)?;
    fs::rename(&image, complete.path().join("vmlinuz"))
        .with_context(|| format!("moving {}", image.display()))?;
    let gathered = complete.path().join("modules");
    make_dir(&gathered)?;
    modules::gather(unpacked.path(), MODULES, &gathered)?;
    fs::write(complete.path().join("version"), &version)?;
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    fs::rename(complete.keep(), dir).with_context(|| format!("making {}", dir.display()))
}

/// Unpacks the kernel that the suite's [`META`] leads to, and returns its version.
fn unpack_kernel(suite: &ForeignSuite, into: &Path) -> Result<String> {
    let meta = suite.candidate(META)?;
    let image = pick(&meta.depends, "linux-image-").context("it depends on no kernel")?;
    let candidate = suite.candidate(image)?;
    // Since 7.0 that is only the name for two packages: the kernel and its modules.
    let Some(binary) = pick(&candidate.depends, "linux-binary-") else {
        suite.unpack(image, &candidate.version, into)?;
        return Ok(candidate.version);
    };
    let modules = pick(&candidate.depends, "linux-modules-").map(str::to_owned);
    let candidate = suite.candidate(binary)?;
    suite.unpack(binary, &candidate.version, into)?;
    let modules = modules.or_else(|| pick(&candidate.depends, "linux-modules-").map(str::to_owned));
    let modules = modules.context("it names no package with its modules")?;
    suite.unpack(&modules, &candidate.version, into)?;
    Ok(candidate.version)
}

fn pick<'a>(packages: &'a [String], prefix: &str) -> Option<&'a str> {
    packages
        .iter()
        .map(String::as_str)
        .find(|name| name.starts_with(prefix))
}

/// `boot/vmlinuz-<release>`, or `usr/lib/modules/<release>/vmlinuz`.
fn find_image(root: &Path) -> Result<PathBuf> {
    let in_boot = entries(&root.join("boot"))
        .into_iter()
        .find(|path| file_name(path).starts_with("vmlinuz-"));
    let with_modules = || {
        let mut releases = entries(&root.join("usr/lib/modules")).into_iter();
        releases.find_map(|path| Some(path.join("vmlinuz")).filter(|image| image.is_file()))
    };
    in_boot
        .or_else(with_modules)
        .context("the package holds no kernel image where one is expected")
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// QEMU, as it has to be called.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    pub(crate) program: PathBuf,
    /// Where it is not installed: the folder into which its packages were unpacked.
    pub(crate) unpacked: Option<PathBuf>,
}

impl Qemu {
    /// The machine's own, else from the cache, else from the mirror into that.
    pub(crate) fn fetch() -> Result<Self> {
        if let Some(program) = setup::find_program(QEMU_PROGRAM) {
            return Ok(Self {
                program,
                unpacked: None,
            });
        }
        let cache = cache::dir("vm")?;
        make_dir(&cache)?;
        let _lock = cache::lock(&cache)?;
        let dir = cache.join("qemu");
        let program = setup::unpacked(QEMU, QEMU_PROGRAM, &dir)?;
        Ok(Self {
            program,
            unpacked: Some(dir),
        })
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_in_both_places() {
        for place in ["boot/vmlinuz-6.1.0-50", "usr/lib/modules/7.3.4/vmlinuz"] {
            let root = TempDir::new().unwrap();
            assert!(find_image(root.path()).is_err(), "an empty package");
            let image = root.path().join(place);
            fs::create_dir_all(image.parent().unwrap()).unwrap();
            fs::write(&image, "").unwrap();
            assert_eq!(find_image(root.path()).unwrap(), image);
        }
    }

    #[test]
    fn the_first_package_of_a_kind_is_followed() {
        let depends =
            ["linux-base-cloud-amd64", "linux-image-7.3.4-cloud-amd64"].map(str::to_owned);
        assert_eq!(
            pick(&depends, "linux-image-"),
            Some("linux-image-7.3.4-cloud-amd64")
        );
        assert_eq!(pick(&depends, "linux-binary-"), None);
    }
}
