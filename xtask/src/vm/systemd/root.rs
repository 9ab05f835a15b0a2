//! A Debian with systemd and Docker, for a guest: made by mmdebstrap of packages that come
//! through this machine's own apt settings, kept in the user's cache folder, never changed there.

use std::ffi::OsString;
use std::fs::{self, File};
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

/// A root in the cache, which nobody replaces as long as this lives.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) dir: PathBuf,
    _lock: File,
}

/// What a root is made of. It is in the name of the root, so that one made by another recipe
/// is not taken for it.
#[derive(Debug, Clone, Copy)]
struct Recipe<'a> {
    suite: &'a str,
    /// Packages that this release needs and others may not have.
    besides: &'a [&'a str],
}

impl Recipe<'_> {
    fn packages(&self) -> String {
        [&PACKAGES, self.besides].concat().join(",")
    }

    /// Of mmdebstrap, but for the mirror, which makes no difference.
    fn options(&self) -> Vec<String> {
        let fixed = ["--mode=root", "--variant=minbase", "--format=directory"];
        let mut options: Vec<String> = fixed.map(str::to_owned).into();
        options.push(format!("--include={}", self.packages()));
        for pattern in LEFT_OUT {
            options.push(format!("--dpkgopt=path-exclude={pattern}"));
        }
        options
    }

    /// `bookworm-` and a number for all that is said above.
    fn name(&self) -> String {
        format!("{}-{:016x}", self.suite, fnv1a(&self.options().join("\n")))
    }

    /// Whether that is the name of a root of this release, by whatever recipe.
    fn is_named_by_another(&self, name: &str) -> bool {
        let number = name.strip_prefix(self.suite);
        let number = number.and_then(|rest| rest.strip_prefix('-'));
        number.is_some_and(|number| {
            number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
        }) && name != self.name()
    }
}

/// FNV-1a: the standard library's own may change with a release of Rust.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The root of a release, from the cache, or from the mirror into it; `again`: from the mirror
/// in any case.
///
/// `besides`: packages that this release needs and others may not have.
pub(super) fn fetch(suite: &str, besides: &[&str], again: bool) -> Result<Root> {
    let recipe = Recipe { suite, besides };
    let cache = cache::dir("vm/roots")?;
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    let lock = cache::lock(&cache)?;
    let dir = cache.join(recipe.name());
    if again || !dir.is_dir() {
        println!(
            "Making a root of Debian's {suite} with systemd and Docker, in {} ...",
            dir.display()
        );
        let unfinished = TempDir::new_in(&cache)?;
        let root = unfinished.path().join("root");
        make(&recipe, &root).with_context(|| format!("a root of Debian's {suite}"))?;
        if dir.exists() {
            remove(&dir)?;
        }
        fs::rename(&root, &dir).with_context(|| format!("making {}", dir.display()))?;
    }
    remove_others(&recipe, &cache)?;
    Ok(Root { dir, _lock: lock })
}

/// Half a gigabyte each, and of no use any more.
fn remove_others(recipe: &Recipe<'_>, cache: &Path) -> Result<()> {
    let entries = fs::read_dir(cache).with_context(|| format!("reading {}", cache.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", cache.display()))?;
        if recipe.is_named_by_another(&entry.file_name().to_string_lossy()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))
}

fn make(recipe: &Recipe<'_>, root: &Path) -> Result<()> {
    let tools = TempDir::new()?;
    Apt::default().unpack(MMDEBSTRAP, tools.path())?;
    let programs = tools.path().join("usr/bin");
    let mut path = OsString::from(&programs);
    path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
    let mirror = setup::DebianMirror::of_machine()?;
    let mut tool = Tool::new("perl", MAKE_LIMIT)
        .arg(programs.join(MMDEBSTRAP))
        .args(recipe.options());
    for option in &mirror.options {
        tool = tool.arg(format!("--aptopt={option}"));
    }
    let suite = recipe.suite;
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
            remove(&left)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: Recipe<'_> = Recipe {
        suite: "bookworm",
        besides: &[],
    };

    #[test]
    fn the_number_is_that_of_fnv_1a() {
        // The test vectors of its authors.
        assert_eq!(fnv1a(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn another_list_of_packages_is_another_root() {
        let more = Recipe {
            besides: &["docker-cli"],
            ..BOOKWORM
        };
        assert_ne!(BOOKWORM.name(), more.name());
        assert!(
            more.options()
                .iter()
                .any(|option| option.ends_with(",docker-cli"))
        );
    }

    #[test]
    fn only_older_roots_of_the_same_release_are_removed() -> Result<()> {
        let cache = tempfile::tempdir()?;
        let stays = [
            BOOKWORM.name(),
            format!("trixie-{:016x}", 7),
            "bookworm-backports".to_owned(),
            "lock".to_owned(),
        ];
        let goes = format!("bookworm-{:016x}", 7);
        for name in stays.iter().chain([&goes]) {
            fs::create_dir_all(cache.path().join(name).join("etc"))?;
        }
        remove_others(&BOOKWORM, cache.path())?;
        assert!(!cache.path().join(&goes).exists());
        for name in &stays {
            assert!(cache.path().join(name).is_dir(), "{name}");
        }
        Ok(())
    }
}
