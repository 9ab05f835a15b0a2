//! Where things are in this checkout, and cargo as its tasks call it.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::exec::Tool;
use crate::setup;

/// Set by the outer `cargo run` for xtask itself. Passed on, they would look to
/// build scripts like a changed environment and cost a rebuild.
const OF_THE_OUTER_CARGO: &[&str] = &[
    "CARGO_BIN_NAME",
    "CARGO_CRATE_NAME",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_PKG_AUTHORS",
    "CARGO_PKG_DESCRIPTION",
    "CARGO_PKG_HOMEPAGE",
    "CARGO_PKG_LICENSE",
    "CARGO_PKG_LICENSE_FILE",
    "CARGO_PKG_NAME",
    "CARGO_PKG_README",
    "CARGO_PKG_REPOSITORY",
    "CARGO_PKG_RUST_VERSION",
    "CARGO_PKG_VERSION",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
    "CARGO_PRIMARY_PACKAGE",
];

/// The folder of the workspace's `Cargo.toml`.
pub(crate) fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map_or(xtask.clone(), Path::to_path_buf)
}

/// Cargo's output folder.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// `cargo <args>` in the workspace's folder.
pub(crate) fn cargo<const N: usize>(args: [&str; N], limit: Duration) -> Tool {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    OF_THE_OUTER_CARGO
        .iter()
        .fold(Tool::new(cargo, limit), |tool, name| tool.without_env(name))
        .args(args)
        .env("PATH", setup::search_path())
        .current_dir(root())
}
