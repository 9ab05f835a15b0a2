//! The packages, made of the tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};

use super::glibc::Glibc;
use super::tools::Tools;
use super::tree::File;
use super::{Release, TOOL_LIMIT, listing};
use crate::exec::Tool;
use crate::workspace;

/// Crates whose components are listed: what is shipped.
const SHIPPED: [&str; 2] = ["cleanup-userspace", "cleanup-hook"];
/// The name of its file, without `.json`.
const COMPONENTS: &str = "components";
const DEB_SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
const RPM_SCRIPTS: [&str; 3] = ["post", "preun", "postun"];

/// Where they are: the .deb, the .rpm.
pub(super) fn deb_and_rpm(
    release: &Release,
    tools: &Tools,
    files: &[File],
    glibc: Glibc,
) -> Result<(PathBuf, PathBuf)> {
    write_package(release, files, glibc)?;
    tools
        .run("cargo-deb", TOOL_LIMIT)
        .args(["--no-build", "--no-strip", "--manifest-path"])
        .arg(release.work.join("package/Cargo.toml"))
        .arg("--output")
        .arg(&release.dist)
        .env("SOURCE_DATE_EPOCH", &release.epoch)
        .read()?;
    let (name, _) = listing(&release.dist)?
        .into_iter()
        .find(|(name, _)| name.ends_with(".deb"))
        .context("cargo-deb left no .deb")?;
    let (version, machine) = (&release.version, &release.machine);
    let rpm_name = format!("compose-cleanup-{version}-1.{machine}.rpm");
    let file = release.dist.join(rpm_name);
    rpm(release, tools, &file)?;
    Ok((release.dist.join(name), file))
}

/// Of the package as it was written for the packers.
pub(super) fn rpm(release: &Release, tools: &Tools, to: &Path) -> Result<()> {
    tools
        .run("cargo-generate-rpm", TOOL_LIMIT)
        .arg("generate-rpm")
        .arg("--package")
        .arg(release.work.join("package"))
        .arg("--output")
        .arg(to)
        .args(["--source-date", &release.epoch])
        .read()?;
    Ok(())
}

/// The package that the packers take for a crate.
fn write_package(release: &Release, files: &[File], glibc: Glibc) -> Result<()> {
    let package = release.work.join("package");
    let source = workspace::root().join("deploy/package");
    fs::create_dir_all(package.join("deb"))?;
    for name in DEB_SCRIPTS {
        fs::copy(
            source.join("deb").join(name),
            package.join("deb").join(name),
        )
        .with_context(|| format!("copying {name}"))?;
    }
    for name in RPM_SCRIPTS {
        fs::copy(source.join("rpm").join(name), package.join(name))
            .with_context(|| format!("copying {name}"))?;
    }
    fs::write(package.join("empty.rs"), "")?;
    let template = source.join("manifest.toml.in");
    let manifest = fs::read_to_string(&template)
        .with_context(|| format!("reading {}", template.display()))?
        .replace("@VERSION@", &release.version)
        .replace("@GLIBC@", &glibc.to_string())
        .replace("@DEB_ASSETS@", &deb_assets(release, files))
        .replace("@RPM_ASSETS@", &rpm_assets(release, files));
    fs::write(package.join("Cargo.toml"), manifest)?;
    Ok(())
}

/// What lies in /etc is a conffile by itself.
fn deb_assets(release: &Release, files: &[File]) -> String {
    let root = release.root();
    list(files, |File { path, mode }| {
        let source = root.join(path);
        format!(
            "[{:?}, {path:?}, \"{mode:o}\"]",
            source.display().to_string()
        )
    })
}

fn rpm_assets(release: &Release, files: &[File]) -> String {
    let root = release.root();
    list(files, |file| {
        let File { path, mode } = file;
        let source = root.join(path).display().to_string();
        let kind = if file.is_configuration() {
            ", config = \"noreplace\""
        } else if path.starts_with("usr/share/doc/") {
            ", doc = true"
        } else {
            ""
        };
        format!("{{ source = {source:?}, dest = \"/{path}\", mode = \"{mode:o}\"{kind} }}")
    })
}

fn list(files: &[File], line: impl Fn(&File) -> String) -> String {
    let lines: String = files
        .iter()
        .map(|file| format!("    {},\n", line(file)))
        .collect();
    format!("[\n{lines}]")
}

pub(super) fn tarball(release: &Release) -> Result<()> {
    let Release {
        version, machine, ..
    } = release;
    let name = format!("compose-cleanup-{version}-{machine}");
    Tool::new("tar", TOOL_LIMIT)
        .args(["--create", "--sort=name", "--owner=0", "--group=0"])
        .args(["--numeric-owner", "--use-compress-program=gzip -n9"])
        .arg(format!("--mtime=@{}", release.epoch))
        .arg(format!("--transform=s,^[.],{name},"))
        .arg("--file")
        .arg(release.dist.join(format!("{name}.tar.gz")))
        .arg("--directory")
        .arg(release.root())
        .arg(".")
        .read()?;
    Ok(())
}

/// CycloneDX: every crate that is in what is shipped.
pub(super) fn components(release: &Release, tools: &Tools) -> Result<()> {
    for name in SHIPPED {
        let _left = LeftBehind::watch(&workspace::root())?;
        let crate_dir = workspace::root().join(name);
        tools
            .run("cargo-cyclonedx", TOOL_LIMIT)
            .args([
                "cyclonedx",
                "--format=json",
                "--spec-version=1.5",
                "--no-build-deps",
            ])
            .args(["--override-filename", COMPONENTS, "--manifest-path"])
            .arg(crate_dir.join("Cargo.toml"))
            .env("SOURCE_DATE_EPOCH", &release.epoch)
            .current_dir(workspace::root())
            .read()?;
        let version = &release.version;
        let to = release.dist.join(format!("{name}-{version}.cdx.json"));
        fs::copy(crate_dir.join(format!("{COMPONENTS}.json")), &to)
            .with_context(|| format!("the components of {name}"))?;
    }
    Ok(())
}

/// cargo-cyclonedx knows no other place for its results than beside the manifests, of all
/// members. They go when this does, and the members' folders get their times back: a build
/// script that looks at one would have the daemon compiled again after each `dist`.
struct LeftBehind(Vec<(PathBuf, SystemTime)>);

impl LeftBehind {
    fn watch(workspace: &Path) -> Result<Self> {
        let mut folders = Vec::new();
        for (name, _) in listing(workspace)? {
            let folder = workspace.join(name);
            if folder.join("Cargo.toml").is_file() {
                let time = folder.metadata().and_then(|metadata| metadata.modified());
                let time = time.with_context(|| format!("reading {}", folder.display()))?;
                folders.push((folder, time));
            }
        }
        Ok(Self(folders))
    }
}

impl Drop for LeftBehind {
    fn drop(&mut self) {
        for (folder, time) in &self.0 {
            let file = folder.join(format!("{COMPONENTS}.json"));
            // Otherwise it is a folder that did not change.
            if fs::remove_file(file).is_ok() {
                // Costs a compilation, and nothing else.
                let _ = fs::File::open(folder).and_then(|folder| folder.set_modified(*time));
            }
        }
    }
}

pub(super) fn checksums(release: &Release) -> Result<()> {
    let names = listing(&release.dist)?.into_iter().map(|(name, _)| name);
    let sums = Tool::new("sha256sum", TOOL_LIMIT)
        .arg("--")
        .args(names)
        .current_dir(&release.dist)
        .read()?;
    fs::write(release.dist.join("SHA256SUMS"), sums).context("writing SHA256SUMS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_lister_leaves_behind_goes_without_a_trace() -> Result<()> {
        let workspace = tempfile::tempdir()?;
        let member = workspace.path().join("member");
        fs::create_dir(&member)?;
        fs::write(member.join("Cargo.toml"), "")?;
        let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        fs::File::open(&member)?.set_modified(long_ago)?;

        let left = LeftBehind::watch(workspace.path())?;
        fs::write(member.join("components.json"), "{}")?;
        assert_ne!(member.metadata()?.modified()?, long_ago);
        drop(left);
        assert!(!member.join("components.json").exists());
        assert_eq!(member.metadata()?.modified()?, long_ago);
        Ok(())
    }
}
