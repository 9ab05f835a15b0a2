//! The helper programs of this crate, beside the program that runs.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// Makes [`find`] look in another directory from now on; the first call counts.
pub fn look_in(dir: &Path) {
    DIRECTORY.get_or_init(|| dir.to_owned());
}

/// The path of a program that cargo built into the same profile's directory.
///
/// Cargo builds this crate's programs along with its integration tests; other
/// callers (xtask) have to build them first.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = match DIRECTORY.get() {
        Some(dir) => dir.join(name),
        None => own_directory()?.join(name),
    };
    ensure!(
        path.is_file(),
        "{} is not there: run `cargo build -p cleanup-tests --bins` in this profile",
        path.display()
    );
    Ok(path)
}

fn own_directory() -> Result<PathBuf> {
    let own = env::current_exe().context("path of the running program")?;
    let mut dir = own.parent().context("a program lies in a directory")?;
    // Tests are in target/<profile>/deps, programs in target/<profile>.
    if dir.ends_with("deps") {
        dir = dir.parent().context("`deps` lies in a directory")?;
    }
    Ok(dir.to_owned())
}
