//! The packers: programs of cargo's own, in one version each.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::exec::Tool;
use crate::workspace;

const TOOLS: [(&str, &str); 3] = [
    ("cargo-deb", "3.8.0"),
    ("cargo-generate-rpm", "0.21.1"),
    ("cargo-cyclonedx", "0.5.9"),
];
/// A packer takes some minutes on two cores.
const LIMIT: Duration = Duration::from_mins(60);

/// Where they are. Not cargo's home: that is the user's.
#[derive(Debug)]
pub(super) struct Tools(PathBuf);

impl Tools {
    pub(super) fn run(&self, name: &str, limit: Duration) -> Tool {
        Tool::new(self.0.join("bin").join(name), limit)
    }
}

/// Installs those that are missing.
pub(super) fn ensure() -> Result<Tools> {
    let root = workspace::target_dir().join("tools");
    for (name, version) in TOOLS {
        if is_installed(&root, name, version) {
            continue;
        }
        workspace::cargo(["install", name], LIMIT)
            .args(["--version", version, "--locked", "--root"])
            .arg(&root)
            // Not into a target folder that the user shares among projects.
            .without_env("CARGO_TARGET_DIR")
            .show()?;
    }
    Ok(Tools(root))
}

/// By cargo's own record: asking cargo would ask its registry.
fn is_installed(root: &Path, name: &str, version: &str) -> bool {
    let record = fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    record.contains(&format!("\"{name} {version} (")) && root.join("bin").join(name).is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_version_counts() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let root = dir.path();
        assert!(!is_installed(root, "cargo-deb", "3.8.0"));
        fs::write(
            root.join(".crates.toml"),
            "[v1]\n\"cargo-deb 3.8.0 (registry)\" = [\"cargo-deb\"]\n",
        )?;
        assert!(
            !is_installed(root, "cargo-deb", "3.8.0"),
            "its program is gone"
        );
        fs::create_dir(root.join("bin"))?;
        fs::write(root.join("bin/cargo-deb"), "")?;
        assert!(is_installed(root, "cargo-deb", "3.8.0"));
        assert!(!is_installed(root, "cargo-deb", "3.8"));
        Ok(())
    }
}
