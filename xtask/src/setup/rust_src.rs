//! The standard library's source, of exactly the compiler's version: cargo
//! builds `core` for the BPF target from it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use tempfile::TempDir;

use super::apt::Apt;
use super::foreign_suite::ForeignSuite;
use super::machine::Machine;
use super::{Finding, Remedy, Step};
use crate::exec::Tool;
use crate::workspace;

const LIMIT: Duration = Duration::from_mins(5);

/// Debian suites that keep `rust-src` of the recent upstream releases, side by
/// side; the package is the same for all architectures and releases.
const SUITES: &[&str] = &["trixie-backports", "sid"];

#[derive(Debug)]
pub(crate) struct RustSrc;

impl Step for RustSrc {
    fn name(&self) -> &'static str {
        "rust-src"
    }

    fn inspect(&self, machine: &Machine) -> Finding {
        let release = &machine.rustc.release;
        let tree = Tree::of(&machine.sysroot);
        let install = |what: String| {
            let how = "rustup component add rust-src, or else Debian's package of that \
                       version, unpacked into the toolchain";
            Finding::Missing {
                what,
                remedy: Remedy::Install(how.to_owned()),
            }
        };
        match (tree.owner(), tree.is_complete()) {
            (Owner::Rustup, true) => Finding::Present(format!("{release}, from rustup")),
            (Owner::Us { release: ours }, true) if ours == *release => {
                Finding::Present(format!("{release}, unpacked by setup"))
            }
            (Owner::Unknown, true) => Finding::Present(format!(
                "{}, put there by hand (version not known)",
                tree.library().display()
            )),
            (Owner::Us { release: ours }, true) => install(format!(
                "the source unpacked by setup is of {ours}, rustc is {release}"
            )),
            (Owner::Us { .. } | Owner::Nobody, _) => {
                install(format!("no source of rustc {release}"))
            }
            (Owner::Rustup, false) => Finding::Missing {
                what: format!("rustup's copy in {} is damaged", tree.dir.display()),
                remedy: Remedy::ByHand(
                    "rustup component remove rust-src && rustup component add rust-src".to_owned(),
                ),
            },
            (Owner::Unknown, false) => Finding::Missing {
                what: format!("{} holds something else", tree.dir.display()),
                remedy: Remedy::ByHand("look at it, remove it, and run this again".to_owned()),
            },
        }
    }

    fn install(&self, machine: &Machine, _: &mut Apt) -> Result<()> {
        let tree = Tree::of(&machine.sysroot);
        // rustup refuses over files that it did not put there.
        tree.remove_ours()?;
        let Err(refusal) = from_rustup() else {
            return Ok(());
        };
        from_debian(machine, &tree)
            .map_err(|error| anyhow!("{refusal}\n    and of Debian's rust-src package: {error:#}"))
    }
}

fn from_rustup() -> Result<(), String> {
    if Machine::find("rustup").is_none() {
        return Err("there is no rustup".to_owned());
    }
    Tool::new("rustup", LIMIT)
        .args(["component", "add", "rust-src"])
        .current_dir(workspace::root())
        .read()
        .map(drop)
        .map_err(|failure| failure.to_string())
}

fn from_debian(machine: &Machine, tree: &Tree) -> Result<()> {
    let release = &machine.rustc.release;
    if !machine.distro.is_debian() {
        bail!("this is not Debian; install the source of rustc {release} by hand");
    }
    let mut seen = Vec::new();
    for suite in SUITES {
        // A suite that cannot be read is one more answer; the next may do.
        match from_suite(machine, suite, tree) {
            Ok(Attempt::Filled) => return Ok(()),
            Ok(Attempt::NoSuchVersion(versions)) => {
                seen.push(format!("{suite} has {}", versions.join(", ")));
            }
            Err(error) => seen.push(format!("{suite}: {error:#}")),
        }
    }
    bail!(
        "no rustc {release}; {}\n    \
         Use a toolchain of one of these versions, or put the source into {} by hand",
        seen.join("; "),
        tree.library().display()
    )
}

#[derive(Debug)]
enum Attempt {
    Filled,
    NoSuchVersion(Vec<String>),
}

fn from_suite(machine: &Machine, suite: &str, tree: &Tree) -> Result<Attempt> {
    let release = &machine.rustc.release;
    let codename = &machine.distro.codename;
    let suite = ForeignSuite::open(codename, suite)?
        .with_context(|| format!("apt is not configured for a mirror of {codename}"))?;
    let versions = suite.versions("rust-src")?;
    let Some(version) = choose(&versions, release) else {
        return Ok(Attempt::NoSuchVersion(versions));
    };
    let unpacked = TempDir::new()?;
    suite.unpack("rust-src", version, unpacked.path())?;
    let source = unpacked
        .path()
        .join(format!("usr/src/rustc-{release}/library"));
    tree.fill(&source, release, version)?;
    Ok(Attempt::Filled)
}

/// The package of exactly that upstream release, the newest if there are several.
fn choose<'a>(versions: &'a [String], release: &str) -> Option<&'a str> {
    versions.iter().map(String::as_str).find(|version| {
        let upstream = version
            .split_once(':')
            .map_or(*version, |(_epoch, rest)| rest);
        // 1.95.0+dfsg1-2~bpo13+1
        upstream.split(['+', '-', '~']).next() == Some(release)
    })
}

/// `lib/rustlib/src/rust` of a toolchain.
#[derive(Debug)]
struct Tree {
    dir: PathBuf,
    /// Rustup's list of what it put into the toolchain.
    components: PathBuf,
}

#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    Rustup,
    Us {
        release: String,
    },
    /// Neither rustup nor this program: not ours to remove.
    Unknown,
}

impl Tree {
    /// Says that the tree is ours, and of which rustc.
    const MARK: &str = ".unpacked-by-compose-cleanup";

    fn of(sysroot: &Path) -> Self {
        let rustlib = sysroot.join("lib/rustlib");
        Self {
            dir: rustlib.join("src/rust"),
            components: rustlib.join("components"),
        }
    }

    fn library(&self) -> PathBuf {
        self.dir.join("library")
    }

    fn is_complete(&self) -> bool {
        // The lock file: `-Z build-std` resolves the library as a workspace.
        ["core/src/lib.rs", "Cargo.lock"]
            .iter()
            .all(|file| self.library().join(file).is_file())
    }

    fn owner(&self) -> Owner {
        let components = fs::read_to_string(&self.components).unwrap_or_default();
        if components.lines().any(|line| line.trim() == "rust-src") {
            return Owner::Rustup;
        }
        if let Ok(mark) = fs::read_to_string(self.dir.join(Self::MARK)) {
            let release = mark.lines().next().unwrap_or_default().trim();
            return Owner::Us {
                release: release.to_owned(),
            };
        }
        if self.dir.exists() {
            Owner::Unknown
        } else {
            Owner::Nobody
        }
    }

    /// Removes what an earlier run unpacked; anything else stays.
    fn remove_ours(&self) -> Result<()> {
        if matches!(self.owner(), Owner::Us { .. }) {
            fs::remove_dir_all(&self.dir)
                .with_context(|| format!("cannot remove {}", self.dir.display()))?;
        }
        Ok(())
    }

    /// Puts a library in place, whole or not at all.
    fn fill(&self, source: &Path, release: &str, version: &str) -> Result<()> {
        let mark = self.dir.join(Self::MARK);
        // Under a name of its own until it is whole; `-T` never nests it.
        let partial = self.dir.join("library.partial");
        fs::create_dir_all(&self.dir)
            .and_then(|()| fs::write(&mark, format!("{release}\nDebian rust-src {version}\n")))
            .with_context(|| format!("cannot write {}", mark.display()))?;
        Tool::new("cp", LIMIT)
            .args(["-a", "--no-target-directory"])
            .args([source, &partial])
            .read()?;
        fs::rename(&partial, self.library())
            .with_context(|| format!("cannot rename {}", partial.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(list: &[&str]) -> Vec<String> {
        list.iter().copied().map(str::to_owned).collect()
    }

    #[test]
    fn the_version_of_the_compiler_and_no_other_is_chosen() {
        let seen = versions(&[
            "1.96.1+dfsg1-2~bpo13+1",
            "1.95.0+dfsg1-2~bpo13+1",
            "1.95.0+dfsg1-1~bpo13+1",
            "1.93.1+dfsg1-2~bpo13+1",
        ]);
        assert_eq!(choose(&seen, "1.95.0"), Some("1.95.0+dfsg1-2~bpo13+1"));
        assert_eq!(choose(&seen, "1.96.0"), None);
        assert_eq!(choose(&seen, "1.9"), None);
        assert_eq!(
            choose(&versions(&["1:1.95.0-1"]), "1.95.0"),
            Some("1:1.95.0-1")
        );
        assert_eq!(
            choose(&versions(&["1.96.0~beta.3-1"]), "1.97.0-nightly"),
            None
        );
        assert_eq!(choose(&[], "1.95.0"), None);
    }

    /// A library as a package brings it.
    fn library(dir: &Path) -> PathBuf {
        let source = dir.join("usr/src/rustc-1.95.0/library");
        fs::create_dir_all(source.join("core/src")).unwrap();
        fs::write(source.join("core/src/lib.rs"), "").unwrap();
        fs::write(source.join("Cargo.lock"), "").unwrap();
        source
    }

    fn us(release: &str) -> Owner {
        Owner::Us {
            release: release.to_owned(),
        }
    }

    #[test]
    fn a_filled_tree_is_ours_complete_and_can_be_replaced() {
        let dir = TempDir::new().unwrap();
        let source = library(dir.path());
        let tree = Tree::of(&dir.path().join("sysroot"));
        assert_eq!(tree.owner(), Owner::Nobody);
        for release in ["1.94.0", "1.95.0"] {
            tree.remove_ours().unwrap();
            tree.fill(&source, release, "1").unwrap();
            assert_eq!(tree.owner(), us(release));
            assert!(tree.is_complete());
            assert!(!tree.library().join("library").exists(), "nested");
        }
    }

    #[test]
    fn a_copy_that_broke_off_is_ours_and_not_complete() {
        let dir = TempDir::new().unwrap();
        let tree = Tree::of(dir.path());
        tree.fill(&dir.path().join("nowhere"), "1.95.0", "1")
            .unwrap_err();
        assert_eq!(tree.owner(), us("1.95.0"));
        assert!(!tree.is_complete());
        tree.remove_ours().unwrap();
        assert_eq!(tree.owner(), Owner::Nobody);
    }

    #[test]
    fn the_trees_of_rustup_and_of_others_stay() {
        let dir = TempDir::new().unwrap();
        let tree = Tree::of(dir.path());
        fs::create_dir_all(tree.library()).unwrap();
        assert_eq!(tree.owner(), Owner::Unknown);
        tree.remove_ours().unwrap();
        assert!(tree.library().exists());

        fs::write(&tree.components, "rustc-x86_64\nrust-src\n").unwrap();
        fs::write(tree.dir.join(Tree::MARK), "1.95.0\n").unwrap();
        assert_eq!(tree.owner(), Owner::Rustup);
        tree.remove_ours().unwrap();
        assert!(tree.library().exists());
    }
}
