//! What the end-to-end suites run pods with: an engine, of which they start a
//! private daemon, docker-compose, and a static busybox as the only image.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};

use super::apt::{Apt, Error};
use super::machine::Machine;
use super::{Finding, Packages, Remedy, Step, apt_remedy};

pub(crate) fn engine() -> Packages {
    Packages {
        name: "Docker engine",
        look: || {
            let found = |name| {
                Machine::find(name)
                    .map(|file| file.display().to_string())
                    .ok_or_else(|| format!("no {name} on PATH"))
            };
            Ok(format!("{}, {}", found("dockerd")?, found("docker")?))
        },
        packages: |machine| {
            if machine.distro.splits_docker_cli() {
                &["docker.io", "docker-cli"]
            } else {
                &["docker.io"]
            }
        },
        note: "its service is not started now, but is at the next boot unless disabled",
    }
}

pub(crate) fn compose() -> Packages {
    Packages {
        name: "docker-compose",
        look: || {
            Machine::find("docker-compose")
                .map(|file| file.display().to_string())
                .ok_or_else(|| "no docker-compose on PATH".to_owned())
        },
        packages: |_| &["docker-compose"],
        note: "",
    }
}

/// Debian's busybox-static replaces busybox, which a machine's initramfs may
/// be made of: then it is only unpacked, for us (see `machine::search_path`).
#[derive(Debug)]
pub(crate) struct Busybox;

const BUSYBOX: &str = "busybox-static";

impl Step for Busybox {
    fn name(&self) -> &'static str {
        BUSYBOX
    }

    fn inspect(&self, machine: &Machine) -> Finding {
        let what = match Machine::find("busybox") {
            Some(file) if is_static(&file) => {
                return Finding::Present(file.display().to_string());
            }
            Some(file) => format!("{} needs shared libraries", file.display()),
            None => "no busybox on PATH".to_owned(),
        };
        let remedy = match apt_remedy(machine, &[BUSYBOX]) {
            Remedy::Install(apt) => Remedy::Install(format!(
                "{apt}, or where that would remove busybox: unpacked into {}",
                machine.own_tools.display()
            )),
            by_hand @ Remedy::ByHand(_) => by_hand,
        };
        Finding::Missing { what, remedy }
    }

    fn install(&self, machine: &Machine, apt: &mut Apt) -> Result<()> {
        match apt.install(&[BUSYBOX]) {
            Err(Error::WouldRemove { .. }) => {
                let dir = &machine.own_tools;
                fs::create_dir_all(dir)
                    .with_context(|| format!("cannot make {}", dir.display()))?;
                apt.unpack(BUSYBOX, dir)?;
                // Packages of merged-/usr releases bring it in usr/bin.
                let file = dir.join("bin/busybox");
                let merged = dir.join("usr/bin/busybox");
                if !file.exists() && merged.exists() {
                    fs::create_dir_all(dir.join("bin"))?;
                    fs::rename(&merged, &file)
                        .with_context(|| format!("cannot move {}", merged.display()))?;
                }
                Ok(())
            }
            other => other.map_err(|error| anyhow!(error)),
        }
    }
}

/// An executable of this machine's word size that asks for no interpreter.
pub(super) fn is_static(file: &Path) -> bool {
    fs::read(file).is_ok_and(|bytes| has_interpreter(&bytes) == Some(false))
}

/// Whether an ELF64 little-endian file has a `PT_INTERP`; `None` for any other.
fn has_interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| {
        elf.get(at..at + 2)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u16::from_le_bytes)
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?);
    let (size, count) = (half(54)?, half(56)?);
    let mut found = false;
    for index in 0..count {
        let at = usize::try_from(table)
            .ok()?
            .checked_add(usize::from(size) * usize::from(index))?;
        let kind = elf.get(at..at.checked_add(4)?)?;
        found |= u32::from_le_bytes(kind.try_into().ok()?) == PT_INTERP;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF64 header and a program header table of these types.
    fn elf(types: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 64 + types.len() * 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32] = 64;
        file[54] = 56;
        file[56] = u8::try_from(types.len()).unwrap();
        for (index, kind) in types.iter().enumerate() {
            file[64 + index * 56..][..4].copy_from_slice(&kind.to_le_bytes());
        }
        file
    }

    #[test]
    fn an_interpreter_makes_an_executable_dynamic() {
        assert_eq!(has_interpreter(&elf(&[6, 3, 1])), Some(true));
        assert_eq!(has_interpreter(&elf(&[1, 1, 4])), Some(false));
        assert_eq!(has_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(has_interpreter(&elf(&[1, 1])[..100]), None, "cut off");
        assert_eq!(has_interpreter(b""), None);
    }

    #[test]
    fn this_very_test_is_dynamic() {
        let file = std::env::current_exe().unwrap();
        assert_eq!(has_interpreter(&fs::read(file).unwrap()), Some(true));
    }
}
