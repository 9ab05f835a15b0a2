//! bpf-linker: links what rustc compiled for the BPF target, with an LLVM of
//! the very major version that rustc was built with.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::apt::Apt;
use super::machine::Machine;
use super::{Finding, PROBE_LIMIT, Remedy, Step, apt_remedy};
use crate::exec::Tool;
use crate::workspace;

const VERSION: &str = "0.13.0";
/// It takes 46 s on two cores.
const LIMIT: Duration = Duration::from_mins(30);

#[derive(Debug)]
pub(crate) struct BpfLinker;

impl Step for BpfLinker {
    fn name(&self) -> &'static str {
        "bpf-linker"
    }

    fn inspect(&self, machine: &Machine) -> Finding {
        let what = match look(machine) {
            Ok(found) => return Finding::Present(found),
            Err(what) => what,
        };
        let compile = format!(
            "cargo install bpf-linker {VERSION} into {} (1 min)",
            machine.cargo_home.display()
        );
        let remedy = if own_llvm().is_some() {
            Remedy::Install(compile)
        } else {
            match apt_remedy(machine, &packages(machine)) {
                Remedy::Install(apt) => {
                    Remedy::Install(format!("{apt} (750 MB on disk); then {compile}"))
                }
                Remedy::ByHand(advice) => Remedy::ByHand(format!("{advice}; then {compile}")),
            }
        };
        Finding::Missing { what, remedy }
    }

    fn install(&self, machine: &Machine, apt: &mut Apt) -> Result<()> {
        let major = machine.rustc.llvm_major;
        let llvm = match own_llvm() {
            Some(prefix) => prefix,
            None => {
                let packages = packages(machine);
                apt.install(&packages.iter().map(String::as_str).collect::<Vec<_>>())?;
                format!("/usr/lib/llvm-{major}").into()
            }
        };
        workspace::cargo(["install", "bpf-linker"], LIMIT)
            .args(["--version", VERSION, "--locked"])
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{major}"))
            // Cargo takes its own record for the truth, but the binary may be
            // broken (its libLLVM removed) or of another LLVM.
            .arg("--force")
            .arg("--root")
            .arg(&machine.cargo_home)
            .env("LLVM_PREFIX", llvm)
            // Not into a target folder that the user shares among projects.
            .without_env("CARGO_TARGET_DIR")
            .read()?;
        Ok(())
    }
}

fn packages(machine: &Machine) -> Vec<String> {
    let major = machine.rustc.llvm_major;
    vec![
        format!("llvm-{major}-dev"),
        format!("libpolly-{major}-dev"),
        "zlib1g-dev".to_owned(),
        "libzstd-dev".to_owned(),
    ]
}

/// An LLVM that the user points us to, in bpf-linker's own words.
fn own_llvm() -> Option<PathBuf> {
    env::var_os("LLVM_PREFIX").map(PathBuf::from)
}

fn look(machine: &Machine) -> Result<String, String> {
    let Some(file) = Machine::find("bpf-linker") else {
        return Err("no bpf-linker on PATH or in cargo's bin folder".to_owned());
    };
    let wanted = machine.rustc.llvm_major;
    let version = Tool::new(&file, PROBE_LIMIT)
        .arg("--version")
        .read()
        .map_err(|failure| failure.to_string())?;
    match linked_llvm(&file) {
        Some(linked) if linked != wanted => Err(format!(
            "{} is of LLVM {linked}, rustc of LLVM {wanted}",
            file.display()
        )),
        _ => Ok(format!("{}, {}", version.trim_end(), file.display())),
    }
}

/// The LLVM that it loads; `None` when it has one built in.
fn linked_llvm(file: &Path) -> Option<u32> {
    llvm_major_of_soname(&fs::read(file).ok()?)
}

/// Finds `libLLVM.so.22.1` (`libLLVM-18.so.1` before LLVM 19) among the names
/// that a dynamic executable needs.
fn llvm_major_of_soname(elf: &[u8]) -> Option<u32> {
    const STEM: &[u8] = b"\0libLLVM";
    elf.windows(STEM.len())
        .enumerate()
        .filter(|(_, window)| *window == STEM)
        .find_map(|(at, _)| {
            let rest = &elf[at + STEM.len()..];
            let digits = rest
                .strip_prefix(b".so.")
                .or_else(|| rest.strip_prefix(b"-"))?;
            let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
            std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_that_a_binary_needs() {
        let major = llvm_major_of_soname;
        assert_eq!(major(b"\x7fELF\0libc.so.6\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(major(b"\0libLLVM-18.so.1\0libm.so.6\0"), Some(18));
        assert_eq!(major(b"\0no libLLVM here\0libLLVM\0libLLVM.so.x\0"), None);
        assert_eq!(major(b""), None);
        assert_eq!(major(b"\0libLLVM.so.22"), None, "cut off");
    }
}
