//! Other releases' packages, from the mirror that this machine's apt is configured for.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::PROBE_LIMIT;
use super::apt::{Error, UPDATE_LIMIT, unpack_only_package};
use crate::exec::Tool;

/// A suite of the machine's own Debian mirror, seen through an apt of our own:
/// nothing of the machine's package state is read or changed.
#[derive(Debug)]
pub(crate) struct ForeignSuite {
    dir: TempDir,
}

impl ForeignSuite {
    /// Reads the suite's package lists. `None` when this machine's apt is not
    /// configured for a mirror of its release.
    pub(crate) fn open(codename: &str, suite: &str) -> Result<Option<Self>, Error> {
        let Some(DebianMirror { site, options }) = DebianMirror::of_release(codename)? else {
            return Ok(None);
        };
        let dir = TempDir::new().map_err(Error::io("cannot make a temporary folder"))?;
        lay(dir.path(), &site, suite, &options).map_err(Error::io(format!(
            "cannot write in {}",
            dir.path().display()
        )))?;
        let this = Self { dir };
        this.apt("apt-get", UPDATE_LIMIT).arg("update").read()?;
        Ok(Some(this))
    }

    /// The versions of a package, newest first.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>, Error> {
        let answer = self
            .apt("apt-cache", PROBE_LIMIT)
            .args(["madison", package])
            .read()?;
        Ok(madison_versions(&answer))
    }

    /// The version that would be installed, and what it depends on.
    pub(crate) fn candidate(&self, package: &str) -> Result<Candidate, Error> {
        let answer = self
            .apt("apt-cache", PROBE_LIMIT)
            .args(["show", "--no-all-versions", package])
            .read()?;
        Candidate::parse(&answer).ok_or_else(|| {
            Error::io(format!("apt's answer about {package}"))(io::Error::new(
                io::ErrorKind::InvalidData,
                "it names no version",
            ))
        })
    }

    pub(crate) fn unpack(&self, package: &str, version: &str, into: &Path) -> Result<(), Error> {
        let archive = TempDir::new_in(self.dir.path())
            .map_err(Error::io("cannot make a temporary folder"))?;
        self.apt("apt-get", UPDATE_LIMIT)
            .args(["download", &format!("{package}={version}")])
            .current_dir(archive.path())
            .read()?;
        unpack_only_package(archive.path(), into)
    }

    fn apt(&self, program: &str, limit: Duration) -> Tool {
        Tool::new(program, limit)
            .env("APT_CONFIG", self.dir.path().join("apt.conf"))
            .env("LC_ALL", "C")
    }
}

/// The Debian mirror that this machine's apt is configured for, and how it is reached.
#[derive(Debug)]
pub(crate) struct DebianMirror {
    pub(crate) site: String,
    /// Lines of an apt.conf.
    pub(crate) options: Vec<String>,
}

impl DebianMirror {
    /// `None` when apt is not configured for a mirror of that release.
    pub(super) fn of_release(codename: &str) -> Result<Option<Self>, Error> {
        let rows = Tool::new("apt-get", PROBE_LIMIT)
            .args(["indextargets", "--format", MIRROR_ROW])
            .read()?;
        let Some(site) = mirror(&rows, codename) else {
            return Ok(None);
        };
        let settings = Tool::new("apt-config", PROBE_LIMIT).arg("dump").read()?;
        Ok(Some(Self {
            site: site.to_owned(),
            options: way_to_the_mirror(&settings),
        }))
    }
}

/// What `apt-cache show` tells of a package.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) version: String,
    /// Names only; of alternatives the first.
    pub(crate) depends: Vec<String>,
}

impl Candidate {
    fn parse(answer: &str) -> Option<Self> {
        let stanza = answer.split("\n\n").next()?;
        let field = |name: &str| {
            stanza
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let depends = field("Depends").unwrap_or_default();
        Some(Self {
            version: field("Version")?.to_owned(),
            depends: depends
                .split(", ")
                .filter_map(|item| item.split_ascii_whitespace().next())
                .map(str::to_owned)
                .collect(),
        })
    }
}

const MIRROR_ROW: &str = "$(SITE) $(RELEASE) $(CREATED_BY)";
/// Comes with Debian; its keys sign every suite.
const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The mirror that has this system's own release.
fn mirror<'a>(rows: &'a str, codename: &str) -> Option<&'a str> {
    rows.lines().find_map(
        |row| match row.split_ascii_whitespace().collect::<Vec<_>>()[..] {
            [site, release, "Packages"] if release == codename => Some(site),
            _ => None,
        },
    )
}

fn madison_versions(answer: &str) -> Vec<String> {
    answer
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(|version| version.trim().to_owned())
        .collect()
}

/// Lays out apt's state beneath `dir`.
fn lay(dir: &Path, site: &str, suite: &str, options: &[String]) -> io::Result<()> {
    for sub in ["lists/partial", "cache/archives/partial", "none"] {
        fs::create_dir_all(dir.join(sub))?;
    }
    fs::write(dir.join("status"), "")?;
    let signed_by = if Path::new(DEBIAN_KEYRING).exists() {
        format!("[signed-by={DEBIAN_KEYRING}] ")
    } else {
        String::new()
    };
    fs::write(
        dir.join("sources.list"),
        format!("deb {signed_by}{site} {suite} main\n"),
    )?;
    fs::write(dir.join("apt.conf"), settings(dir, options))
}

/// An apt.conf that takes nothing from the machine (its hooks would run, and
/// clean the machine's own archives) but how it reaches its mirror.
fn settings(dir: &Path, options: &[String]) -> String {
    let dir = dir.display();
    let mut text = format!(
        "Dir::Etc::main \"/dev/null\";\n\
         Dir::Etc::parts \"{dir}/none\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"{dir}/none\";\n\
         Dir::Etc::sourcelist \"{dir}/sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\n\
         Dir::State::lists \"{dir}/lists\";\n\
         Dir::State::status \"{dir}/status\";\n\
         Dir::Cache \"{dir}/cache\";\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"2\";\n"
    );
    for line in options {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Of the machine's settings, those that say how a mirror is reached.
fn way_to_the_mirror(machine_settings: &str) -> Vec<String> {
    let kept = [
        "Acquire::http",
        "Acquire::https",
        "Acquire::ForceIPv",
        // A mirror may be a snapshot, whose signatures have expired.
        "Acquire::Check-Valid-Until",
    ];
    let lines = machine_settings.lines();
    lines
        .filter(|line| kept.iter().any(|prefix| line.starts_with(prefix)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_of_this_release() {
        let rows = "http://security.example/debian-security bookworm-security Packages\n\
                    http://mirror.example/debian bookworm DEP-11\n\
                    http://mirror.example/debian bookworm Packages\n\
                    http://other.example/debian bookworm Packages\n";
        assert_eq!(
            mirror(rows, "bookworm"),
            Some("http://mirror.example/debian")
        );
        assert_eq!(mirror(rows, "trixie"), None);
        assert_eq!(
            mirror("http://mirror.example/debian  Packages\n", ""),
            None,
            "a system without a code name has no row of its own"
        );
    }

    #[test]
    fn a_candidate_has_a_version_and_dependencies() {
        let answer = "Package: linux-image-7.3.4-cloud-amd64\nVersion: 7.3.4-1\n\
                      Depends: dracut | initramfs-tools (>= 0.120), linux-binary-7.3.4-cloud-amd64 (= 7.3.4-1)\n\
                      Description: Linux\n Version: not this\n\n\
                      Package: linux-image-7.2\nVersion: 7.2\n";
        assert_eq!(
            Candidate::parse(answer),
            Some(Candidate {
                version: "7.3.4-1".to_owned(),
                depends: vec!["dracut".into(), "linux-binary-7.3.4-cloud-amd64".into()],
            })
        );
        let alone = Candidate::parse("Package: a\nVersion: 1\n").unwrap();
        assert!(alone.depends.is_empty());
        assert_eq!(Candidate::parse("N: Unable to locate package a\n"), None);
    }

    #[test]
    fn madison_lists_versions_in_its_order() {
        let answer = "  rust-src | 1.96.1+dfsg1-2~bpo13+1 | http://m.example/debian s/main amd64 Packages\n  \
                        rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://m.example/debian s/main amd64 Packages\n";
        assert_eq!(
            madison_versions(answer),
            ["1.96.1+dfsg1-2~bpo13+1", "1.95.0+dfsg1-2~bpo13+1"]
        );
        assert!(madison_versions("").is_empty());
    }

    #[test]
    fn a_foreign_suite_takes_only_the_way_to_the_mirror() {
        let machine = "DPkg::Post-Invoke:: \"rm -f /var/cache/apt/archives/*.deb || true\";\n\
                       Acquire::http::Proxy \"http://proxy.example:3128\";\n\
                       Acquire::IndexTargets::deb::DEP-11::MetaKey \"x\";\n";
        let text = settings(Path::new("/d"), &way_to_the_mirror(machine));
        assert!(text.contains("Acquire::http::Proxy \"http://proxy.example:3128\";\n"));
        assert!(!text.contains("Post-Invoke"));
        assert!(!text.contains("DEP-11"));
        assert!(text.contains("Dir::State::status \"/d/status\";"));
    }
}
