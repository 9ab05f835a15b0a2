//! Builds the exit probe for the BPF target. The library embeds the result.
//!
//! The BPF target has no prebuilt `core`, so cargo builds it, which needs the standard library's
//! source and, on a stable toolchain, `RUSTC_BOOTSTRAP`. Both are settled here for the inner cargo
//! alone: the workspace itself stays on plain stable Rust.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya_build::{Package, Toolchain, build_ebpf};

const LINKER: &str = "bpf-linker";
const REMEDY: &str = "run `cargo xtask setup`";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, without cargo's dump of the script's output around it.
            println!("cargo::error={error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("no manifest dir")?);
    let workspace = manifest_dir
        .parent()
        .context("package outside of its workspace")?;

    // aya-build adds the probe's own directory. What else decides its bytes is this:
    for input in [
        "cleanup-userspace/build.rs",
        "cleanup-common",
        "Cargo.toml",
        "Cargo.lock",
        "rust-toolchain.toml",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }

    let sysroot = sysroot()?;
    check_rust_src(&sysroot)?;
    let search_path = find_linker()?;

    for (name, value) in [
        ("PATH", search_path),
        ("RUSTC_BOOTSTRAP", "1".into()),
        // aya-build turns every line of the inner cargo into a warning: progress is none.
        ("CARGO_TERM_QUIET", "true".into()),
    ] {
        // SAFETY: no other thread runs in this process yet.
        unsafe { env::set_var(name, value) };
    }
    let root_dir = workspace.join("cleanup-ebpf");
    let package = Package {
        name: "cleanup-ebpf",
        root_dir: utf8(&root_dir)?,
        ..Package::default()
    };
    // The toolchain that runs this build, by its path: its name may be overridden or unset.
    build_ebpf([package], Toolchain::Custom(utf8(&sysroot)?))
}

fn sysroot() -> Result<PathBuf> {
    let rustc = env::var_os("RUSTC").context("cargo sets RUSTC")?;
    let output = Command::new(&rustc)
        .args(["--print", "sysroot"])
        .output()
        .with_context(|| format!("cannot run {}", rustc.display()))?;
    ensure!(
        output.status.success(),
        "rustc --print sysroot: {}",
        output.status
    );
    let path = String::from_utf8(output.stdout).context("sysroot is not UTF-8")?;
    Ok(path.trim_end().into())
}

fn check_rust_src(sysroot: &Path) -> Result<()> {
    let core = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    println!("cargo::rerun-if-changed={}", core.display());
    ensure!(
        core.is_file(),
        "rust-src is missing from {}, and the exit probe cannot be built without it: {REMEDY}",
        sysroot.display()
    );
    Ok(())
}

/// The search path of the inner cargo, on which the linker is.
fn find_linker() -> Result<OsString> {
    let mut directories: Vec<PathBuf> =
        env::var_os("PATH").map_or_else(Vec::new, |path| env::split_paths(&path).collect());
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")));
    directories.extend(cargo_home.map(|home| home.join("bin")));

    let Some(linker) = directories
        .iter()
        .map(|directory| directory.join(LINKER))
        .find(|candidate| candidate.is_file())
    else {
        bail!(
            "{LINKER} is neither in PATH nor in cargo's bin directory, and the exit probe cannot \
             be built without it: {REMEDY}"
        );
    };
    println!("cargo::rerun-if-changed={}", linker.display());
    env::join_paths(directories).context("PATH cannot be extended")
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
