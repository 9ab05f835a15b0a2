//! `cargo xtask dist`: packages, from one tree of files.

mod glibc;
mod packages;
mod tools;
mod tree;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use self::tools::Tools;
use crate::exec::Tool;
use crate::setup::{self, Consent, Need};
use crate::workspace;

const BUILD_LIMIT: Duration = Duration::from_mins(60);
/// Of a program that packs or lists some megabytes.
const TOOL_LIMIT: Duration = Duration::from_mins(10);

/// Build what is published: .deb, .rpm, tarball, checksums, and lists of components
///
/// A release build of the daemon and the hook module, installed into one tree of
/// files (target/dist-work/root), of which all packages are made. Into target/dist,
/// which is emptied first. Then the .deb and the .rpm are installed, upgraded and
/// removed, each in a directory of its own (as root, where there is a dpkg; rpm comes
/// as Debian's packages into target/tools where it is not installed).
///
/// Packers are installed by cargo into target/tools when they are missing: cargo-deb,
/// cargo-generate-rpm and cargo-cyclonedx, in the versions that are written here.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask dist             Everything; the release build takes some minutes
  cargo xtask dist --no-build  Pack what target/release has

Exit status: 0 all made and verified, 1 something failed.")]
pub(crate) struct Args {
    /// Take the programs that are in target/release
    #[arg(long)]
    no_build: bool,
}

/// What is packed, and what it is called.
#[derive(Debug)]
struct Release {
    version: String,
    /// `x86_64`
    machine: String,
    /// For all files in archives: of the last commit, so that two builds of it agree.
    epoch: String,
    /// Where programs are.
    built: PathBuf,
    work: PathBuf,
    /// Results.
    dist: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Args { no_build } = args;
    if !no_build {
        setup::ensure(&[Need::BpfToolchain], Consent::Given)?;
        workspace::cargo(["build", "--release", "--locked"], BUILD_LIMIT)
            .args([
                "--package",
                "cleanup-userspace",
                "--package",
                "cleanup-hook",
            ])
            .show()?;
    }
    let release = Release::new()?;
    for dir in [&release.work, &release.dist] {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("emptying {}", dir.display()))?;
        }
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let tools = tools::ensure()?;
    let files = tree::build(&release)?;
    let glibc = glibc::needed(&release.built.join("compose-cleanup"))?;
    let hook = glibc::needed(&release.built.join("libcompose_pod_cleanup_hook.so"))?;

    let (deb, rpm) = packages::deb_and_rpm(&release, &tools, &files, glibc)?;
    packages::tarball(&release)?;
    packages::components(&release, &tools)?;
    packages::checksums(&release)?;
    let verified = verify::all(&release, &Made { tools, deb, rpm })?;

    println!("\n{}", release.dist.display());
    for (name, bytes) in listing(&release.dist)? {
        println!("  {bytes:>10}  {name}");
    }
    println!("needs glibc {glibc} (program), {hook} (hook module)");
    for line in verified {
        println!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What was made, and by what.
#[derive(Debug)]
struct Made {
    tools: Tools,
    deb: PathBuf,
    rpm: PathBuf,
}

/// Packages to be tried.
#[derive(Debug)]
pub(crate) struct Debs {
    pub(crate) first: PathBuf,
    /// The same as a later version, with other conffiles.
    pub(crate) next: PathBuf,
}

/// Makes all packages, and one more for an upgrade.
pub(crate) fn debs() -> Result<Debs> {
    run(&Args { no_build: false })?;
    let release = Release::new()?;
    let first = listing(&release.dist)?
        .into_iter()
        .map(|(name, _)| release.dist.join(name))
        .find(|file| file.extension().is_some_and(|kind| kind == "deb"))
        .context("no .deb was made")?;
    let next = verify::next_version(&release, &first)?;
    Ok(Debs { first, next })
}

impl Release {
    fn new() -> Result<Self> {
        let metadata =
            workspace::cargo(["metadata", "--format-version=1", "--no-deps"], TOOL_LIMIT).read()?;
        let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
        let packages = metadata["packages"].as_array();
        let version = packages
            .into_iter()
            .flatten()
            .find(|package| package["name"] == "cleanup-userspace")
            .and_then(|package| package["version"].as_str())
            .context("the daemon's version in cargo's metadata")?;
        let epoch = Tool::new("git", TOOL_LIMIT)
            .args(["log", "-1", "--format=%ct"])
            .current_dir(workspace::root())
            .read()?;
        // cargo-deb and cargo-generate-rpm find files by paths from here.
        let target = workspace::root().join("target");
        Ok(Self {
            version: version.to_owned(),
            machine: std::env::consts::ARCH.to_owned(),
            epoch: epoch.trim().to_owned(),
            built: workspace::target_dir().join("release"),
            work: target.join("dist-work"),
            dist: target.join("dist"),
        })
    }

    /// The tree of files, as it is on a host.
    fn root(&self) -> PathBuf {
        self.work.join("root")
    }
}

/// Names and sizes, sorted.
fn listing(dir: &Path) -> Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        files.push((name, entry.metadata()?.len()));
    }
    files.sort();
    Ok(files)
}
