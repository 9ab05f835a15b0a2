//! Programs of Debian's packages that are unpacked into a folder, and not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::Apt;

/// What the packages were, in their folder.
const PACKAGES: &str = "packages";

/// A package's program in `dir`, into which the package goes with all that it needs and this
/// machine lacks, if the folder is not there yet: as a whole, or not at all.
pub(crate) fn unpacked(package: &str, program: &str, dir: &Path) -> Result<PathBuf> {
    if !dir.is_dir() {
        println!(
            "Fetching {package}: unpacked into {}, not installed ...",
            dir.display()
        );
        let beside = dir.parent().context("a folder within another")?;
        fs::create_dir_all(beside).with_context(|| format!("making {}", beside.display()))?;
        let mut apt = Apt::default();
        let unpacked = TempDir::new_in(beside)?;
        let packages = apt.missing_for(package)?;
        for package in &packages {
            apt.unpack(package, unpacked.path())
                .with_context(|| format!("package {package}"))?;
        }
        fs::write(unpacked.path().join(PACKAGES), packages.join("\n"))?;
        fs::rename(unpacked.keep(), dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let program = dir.join("usr/bin").join(program);
    ensure!(
        program.is_file(),
        "{} is not there: remove {} and run this again",
        program.display(),
        dir.display()
    );
    Ok(program)
}
