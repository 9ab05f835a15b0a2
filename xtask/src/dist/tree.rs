//! The tree of files that every package installs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Release, TOOL_LIMIT};
use crate::exec::Tool;
use crate::workspace;

/// A file of the packages.
#[derive(Debug)]
pub(super) struct File {
    /// From the root, without a slash.
    pub(super) path: String,
    pub(super) mode: u32,
}

impl File {
    /// Changed by the operator, kept by an upgrade.
    pub(super) fn is_configuration(&self) -> bool {
        self.path.starts_with("etc/")
    }
}

const PROGRAM: &str = "usr/sbin/compose-cleanup";
const DOC: &str = "usr/share/doc/compose-cleanup";
/// From the workspace, and where to.
const PLAIN: [(&str, &str); 11] = [
    ("deploy/config.toml", "etc/compose-cleanup/config.toml"),
    ("modules.json", "etc/compose-cleanup/modules.json"),
    (
        "deploy/compose-cleanup.service",
        "usr/lib/systemd/system/compose-cleanup.service",
    ),
    (
        "deploy/compose-cleanup-inbox.service",
        "usr/lib/systemd/system/compose-cleanup-inbox.service",
    ),
    (
        "deploy/compose-cleanup-inbox.path",
        "usr/lib/systemd/system/compose-cleanup-inbox.path",
    ),
    (
        "deploy/tmpfiles.d/compose-cleanup.conf",
        "usr/lib/tmpfiles.d/compose-cleanup.conf",
    ),
    (
        "deploy/prometheus/rules.yml",
        "usr/share/doc/compose-cleanup/prometheus/rules.yml",
    ),
    (
        "deploy/grafana/dashboard.json",
        "usr/share/doc/compose-cleanup/grafana/dashboard.json",
    ),
    ("README.md", "usr/share/doc/compose-cleanup/README.md"),
    ("CHANGELOG.md", "usr/share/doc/compose-cleanup/CHANGELOG.md"),
    ("LICENSE", "usr/share/doc/compose-cleanup/LICENSE"),
];
/// Shell, and where its scripts are looked for.
const COMPLETIONS: [(&str, &str); 4] = [
    (
        "bash",
        "usr/share/bash-completion/completions/compose-cleanup",
    ),
    ("zsh", "usr/share/zsh/site-functions/_compose-cleanup"),
    // Debian's zsh looks there.
    ("zsh", "usr/share/zsh/vendor-completions/_compose-cleanup"),
    (
        "fish",
        "usr/share/fish/vendor_completions.d/compose-cleanup.fish",
    ),
];

pub(super) fn build(release: &Release) -> Result<Vec<File>> {
    let mut tree = Tree {
        release,
        files: Vec::new(),
    };
    let program = release.built.join("compose-cleanup");
    tree.copy(&program, PROGRAM, 0o755)?;
    tree.copy(
        &release.built.join("libcompose_pod_cleanup_hook.so"),
        "usr/lib/compose-cleanup/libcompose_pod_cleanup_hook.so",
        0o644,
    )?;
    for (source, path) in PLAIN {
        tree.copy(&workspace::root().join(source), path, 0o644)?;
    }
    for page in files_beneath(&workspace::root().join("docs"))? {
        let source = workspace::root().join("docs").join(&page);
        tree.copy(&source, &format!("{DOC}/{page}"), 0o644)?;
    }
    for (shell, path) in COMPLETIONS {
        let script = Tool::new(&program, TOOL_LIMIT)
            .args(["completions", shell])
            .read()?;
        tree.write(path, &script)?;
    }
    let pages = release.work.join("man");
    fs::create_dir_all(&pages)?;
    Tool::new(&program, TOOL_LIMIT)
        .arg("man")
        .arg(&pages)
        .read()?;
    for page in names(&pages)? {
        tree.copy(
            &pages.join(&page),
            &format!("usr/share/man/man1/{page}"),
            0o644,
        )?;
    }
    tree.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(tree.files)
}

struct Tree<'r> {
    release: &'r Release,
    files: Vec<File>,
}

impl Tree<'_> {
    fn copy(&mut self, source: &Path, path: &str, mode: u32) -> Result<()> {
        let bytes = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        self.put(path, &bytes, mode)
    }

    fn write(&mut self, path: &str, text: &str) -> Result<()> {
        self.put(path, text.as_bytes(), 0o644)
    }

    fn put(&mut self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let file = self.release.root().join(path);
        let dir = file.parent().context("a file lies in a directory")?;
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        fs::write(&file, bytes).with_context(|| format!("writing {}", file.display()))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        self.files.push(File {
            path: path.to_owned(),
            mode,
        });
        Ok(())
    }
}

/// Paths of the files beneath a directory, relative to it: a page has its charts in a folder.
fn files_beneath(dir: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for name in names(dir)? {
        let path = dir.join(&name);
        if path.is_dir() {
            let beneath = files_beneath(&path)?;
            files.extend(beneath.into_iter().map(|file| format!("{name}/{file}")));
        } else {
            files.push(name);
        }
    }
    Ok(files)
}

/// Of the files in a directory, sorted.
fn names(dir: &Path) -> Result<Vec<String>> {
    Ok(super::listing(dir)?
        .into_iter()
        .map(|(name, _)| name)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNITS: &str = "usr/lib/systemd/system";

    #[test]
    fn pages_are_packed_with_their_charts() -> Result<()> {
        let docs = files_beneath(&workspace::root().join("docs"))?;
        for file in ["performance.md", "performance/latency.svg"] {
            assert!(docs.iter().any(|packed| packed == file), "{file}: {docs:?}");
        }
        Ok(())
    }

    #[test]
    fn what_is_packed_is_there_and_the_units_find_it() -> Result<()> {
        for (source, _) in PLAIN {
            assert!(workspace::root().join(source).is_file(), "{source}");
        }
        for (source, path) in PLAIN.iter().filter(|(_, path)| path.starts_with(UNITS)) {
            let unit = fs::read_to_string(workspace::root().join(source))?;
            let commands = unit
                .lines()
                .filter_map(|line| line.strip_prefix("ExecStart="));
            for command in commands {
                assert!(
                    command.starts_with(&format!("/{PROGRAM} ")),
                    "{path}: {command}"
                );
                assert!(
                    command.contains("/etc/compose-cleanup/config.toml"),
                    "{path}"
                );
            }
        }
        let modules = fs::read_to_string(workspace::root().join("modules.json"))?;
        assert!(modules.contains("\"/usr/lib/compose-cleanup/libcompose_pod_cleanup_hook.so\""));
        Ok(())
    }
}
