//! The helper programs of this crate, beside the program that runs.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// The path of a program that cargo built into the same profile's directory.
///
/// Cargo builds this crate's programs along with its integration tests; other
/// callers (xtask) have to build them first.
pub fn find(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("path of the running program")?;
    let mut dir = own.parent().context("a program lies in a directory")?;
    // Tests are in target/<profile>/deps, programs in target/<profile>.
    if dir.ends_with("deps") {
        dir = dir.parent().context("`deps` lies in a directory")?;
    }
    let path = dir.join(name);
    ensure!(
        path.is_file(),
        "{} is not there: run `cargo build -p cleanup-tests --bins` in this profile",
        path.display()
    );
    Ok(path)
}
