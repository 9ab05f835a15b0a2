//! Docker for guests: this machine's own programs, with the libraries that they load.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::command::system_program;

use super::cpio::Archive;
use crate::exec::Tool;

/// Networks are not set up in guests, so nothing else is asked for.
const PROGRAMS: &[&str] = &[
    "dockerd",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
    "docker",
];
const LDD_LIMIT: Duration = Duration::from_secs(20);

/// Adds the engine and its client to what is in a guest, at `/usr/bin`.
pub(super) fn add(archive: &mut Archive) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for name in PROGRAMS {
        let file = system_program(name);
        ensure!(
            file.is_file(),
            "{name} is not here: `cargo xtask setup` brings Docker"
        );
        archive.program(&format!("/usr/bin/{name}"), &read(&file)?)?;
        libraries.extend(libraries_of(&file)?);
    }
    for library in libraries {
        let path = library.to_str().context("a library's path is not UTF-8")?;
        archive.program(path, &read(&library)?)?;
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("reading {}", file.display()))
}

fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    match Tool::new("ldd", LDD_LIMIT).arg(program).read() {
        Ok(answer) => libraries(&answer),
        Err(failure) if failure.output.contains("not a dynamic executable") => Ok(Vec::new()),
        Err(failure) => Err(failure.into()),
    }
}

/// `name => path (address)`, or the loader's `path (address)`; the kernel's own has no path.
fn libraries(answer: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in answer.lines() {
        let (name, target) = line.split_once("=>").unwrap_or(("", line));
        ensure!(
            !target.contains("not found"),
            "a library of Docker's is not here: {}",
            name.trim()
        );
        let path = target.trim().split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_has_a_path() {
        let answer = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries(answer).unwrap(),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
            .map(PathBuf::from)
        );
        assert!(libraries("\tstatically linked\n").unwrap().is_empty());
        let error = libraries("\tlibx.so.1 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libx.so.1"), "{error}");
    }
}
