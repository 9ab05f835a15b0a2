//! Kernel modules out of a distribution's package, which holds no list of what they depend on:
//! each module says so itself.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::exec::Tool;

const UNPACK_LIMIT: Duration = Duration::from_mins(1);

/// Copies modules, and all that they need, from beneath `from` into `into`, unpacked and named so
/// that the order of names is one in which they can be loaded. What the kernel has built in is no
/// module, and so left out.
pub(super) fn gather(from: &Path, wanted: &[&str], into: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    find(from, &mut files).with_context(|| format!("looking for modules in {}", from.display()))?;
    let mut order = Vec::new();
    for name in wanted {
        visit(name, &files, into, &mut order)?;
    }
    for (place, name) in order.iter().enumerate() {
        let unpacked = into.join(format!("{name}.ko"));
        fs::rename(&unpacked, into.join(format!("{place:02}-{name}.ko")))
            .with_context(|| format!("naming {}", unpacked.display()))?;
    }
    Ok(())
}

/// What [`gather`] gathered there, in its order.
pub(super) fn gathered(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = fs::read_dir(dir)
        .and_then(|entries| {
            let paths = entries.map(|entry| Ok(entry?.path()));
            paths.collect::<io::Result<Vec<_>>>()
        })
        .with_context(|| format!("reading {}", dir.display()))?;
    files.sort();
    Ok(files)
}

/// Puts a module behind those that it needs.
fn visit(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    into: &Path,
    order: &mut Vec<String>,
) -> Result<()> {
    let Some(file) = files
        .get(name)
        .filter(|_| !order.iter().any(|done| done == name))
    else {
        return Ok(());
    };
    let unpacked = into.join(format!("{name}.ko"));
    // Kernels that need each other do not exist; a package gone wrong may say anything.
    ensure!(!unpacked.exists(), "module {name} needs itself");
    unpack(file, &unpacked)?;
    let content = fs::read(&unpacked).with_context(|| format!("reading {}", unpacked.display()))?;
    for needed in depends(&content) {
        visit(&needed, files, into, order)?;
    }
    order.push(name.to_owned());
    Ok(())
}

fn unpack(file: &Path, into: &Path) -> Result<()> {
    let context = || format!("unpacking {}", file.display());
    if file.extension().is_some_and(|kind| kind == "ko") {
        fs::copy(file, into).with_context(context)?;
        return Ok(());
    }
    let packed = into.with_extension("ko.xz");
    fs::copy(file, &packed).with_context(context)?;
    // Takes the packed file away.
    Tool::new("xz", UNPACK_LIMIT)
        .args(["--decompress", "--force"])
        .arg(&packed)
        .read()
        .map(drop)
        .with_context(context)
}

/// Modules by name, in which the kernel takes `-` for `_`.
fn find(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let path = entry.path();
        if kind.is_dir() {
            find(&path, files)?;
        } else if kind.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let stem = name
                .strip_suffix(".xz")
                .unwrap_or(&name)
                .strip_suffix(".ko");
            if let Some(stem) = stem {
                files.insert(stem.replace('-', "_"), path);
            }
        }
    }
    Ok(())
}

/// The names after `depends=`, which stands between two zeros in the section `.modinfo`.
fn depends(module: &[u8]) -> Vec<String> {
    module
        .split(|&byte| byte == 0)
        .find_map(|text| std::str::from_utf8(text).ok()?.strip_prefix("depends="))
        .unwrap_or_default()
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        [
            b"\x7fELF\0license=GPL\0depends=",
            depends.as_bytes(),
            b"\0retpoline=Y\0\xff",
        ]
        .concat()
    }

    fn names(dir: &Path) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        gathered(dir).unwrap().iter().map(name).collect()
    }

    #[test]
    fn a_module_comes_after_what_it_needs() {
        let (from, into) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let deep = from.path().join("kernel/fs");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("overlay.ko"), module("b-helper,built_in")).unwrap();
        fs::write(deep.join("b-helper.ko"), module("a")).unwrap();
        fs::write(from.path().join("a.ko"), module("")).unwrap();
        fs::write(from.path().join("unwanted.ko"), module("a")).unwrap();
        gather(from.path(), &["overlay", "a", "none"], into.path()).unwrap();
        assert_eq!(
            names(into.path()),
            ["00-a.ko", "01-b_helper.ko", "02-overlay.ko"]
        );
    }

    #[test]
    fn a_circle_is_refused() {
        let (from, into) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        fs::write(from.path().join("a.ko"), module("b")).unwrap();
        fs::write(from.path().join("b.ko"), module("a")).unwrap();
        let error = gather(from.path(), &["a"], into.path()).unwrap_err();
        assert!(error.to_string().contains("needs itself"), "{error:#}");
    }

    #[test]
    fn what_a_module_needs_is_between_zeros() {
        assert_eq!(depends(&module("x,y-z")), ["x", "y_z"]);
        assert!(depends(&module("")).is_empty());
        assert!(depends(b"softdepends=x").is_empty());
    }
}
