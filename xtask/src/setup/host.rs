//! Facts of the kernel and of our rights: nothing here can be installed.

use std::fs;
use std::path::Path;

use super::apt::Apt;
use super::machine::Machine;
use super::{Finding, Remedy, Step};

/// Ring buffers came with 5.8.
const OLDEST_KERNEL: (u32, u32) = (5, 8);

#[derive(Debug)]
pub(crate) enum Host {
    Root,
    Kernel,
    Btf,
}

impl Step for Host {
    fn name(&self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Kernel => "kernel",
            Self::Btf => "kernel BTF",
        }
    }

    fn inspect(&self, machine: &Machine) -> Finding {
        match self {
            Self::Root => root(machine.is_root),
            Self::Kernel => {
                let release = fs::read_to_string("/proc/sys/kernel/osrelease");
                kernel(release.unwrap_or_default().trim_end())
            }
            Self::Btf => btf(Path::new("/sys/kernel/btf/vmlinux")),
        }
    }

    fn install(&self, _: &Machine, _: &mut Apt) -> anyhow::Result<()> {
        anyhow::bail!("cannot be installed")
    }
}

fn root(is_root: bool) -> Finding {
    if is_root {
        Finding::Present("yes".to_owned())
    } else {
        missing(
            "not root: it loads BPF programs, makes cgroups and starts a Docker daemon",
            "run the end-to-end suites as root",
        )
    }
}

fn kernel(release: &str) -> Finding {
    match version(release) {
        Some(version) if version >= OLDEST_KERNEL => Finding::Present(release.to_owned()),
        _ => {
            let (major, minor) = OLDEST_KERNEL;
            missing(
                &format!("{release} is older than {major}.{minor}"),
                "the probe needs ring buffers; `probe = \"poll\"` works here",
            )
        }
    }
}

fn btf(file: &Path) -> Finding {
    if fs::metadata(file).is_ok() {
        Finding::Present(file.display().to_string())
    } else {
        missing(
            &format!("no {}", file.display()),
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y; `probe = \"poll\"` works here",
        )
    }
}

fn missing(what: &str, advice: &str) -> Finding {
    Finding::Missing {
        what: what.to_owned(),
        remedy: Remedy::ByHand(advice.to_owned()),
    }
}

/// `6.1` of `6.1.0-38-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_compare_as_numbers() {
        for good in ["5.8.0", "5.10.0-30-amd64", "6.1.0", "6.18.44-fc", "7.0-rc1"] {
            assert!(matches!(kernel(good), Finding::Present(_)), "{good}");
        }
        for bad in ["5.4.0-150-generic", "4.19.0", "3.10.0-1160.el7", "odd", ""] {
            assert!(matches!(kernel(bad), Finding::Missing { .. }), "{bad}");
        }
    }
}
