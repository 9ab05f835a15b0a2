//! What is in a guest: static programs of this workspace, Docker, and busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use cleanup_tests::guest::{CgroupMode, JOB_FILE, Job, Program};
use serde_json::Value;

use super::cpio::Archive;
use super::engine;
use super::fetch::Kernel;
use crate::exec::Tool;
use crate::{setup, workspace};

/// Of the guest. Build scripts and macros are the host's own, so it is always named.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const BUILD_LIMIT: Duration = Duration::from_mins(45);
const STRIP_LIMIT: Duration = Duration::from_mins(2);

pub(super) const DAEMON: &str = "/bin/compose-cleanup";
pub(super) const BUSYBOX: &str = "/bin/busybox";
pub(super) const KERNEL_SUITE: &str = "/bin/kernel";
pub(super) const STANDIN_SUITE: &str = "/bin/standin";

/// The programs, as an archive to which a job is appended.
#[derive(Debug)]
pub(crate) struct Image {
    base: Vec<u8>,
}

impl Image {
    /// Builds the programs and packs them.
    pub(crate) fn build() -> Result<Self> {
        let built = build_programs()?;
        let busybox = setup::static_busybox()
            .context("there is no static busybox here: `cargo xtask setup` brings one")?;
        let stripped = tempfile::tempdir()?;
        let mut archive = Archive::default();
        archive.device("/dev/console", (5, 1))?;
        // A suite looks for helpers beside itself, or by the path that they had on the host.
        let helper = built.directory.join("exit-case");
        let helper_path = helper.to_str().context("the target folder is not UTF-8")?;
        for (file, path) in [
            (built.directory.join("vm-init"), "/init"),
            (built.directory.join("compose-cleanup"), DAEMON),
            (
                built.directory.join("stand-in-agent"),
                "/bin/stand-in-agent",
            ),
            (built.kernel_suite, KERNEL_SUITE),
            (built.standin_suite, STANDIN_SUITE),
            (helper.clone(), helper_path),
        ] {
            let content = strip(&file, stripped.path())?;
            archive.program(path, &content)?;
        }
        let content =
            fs::read(&busybox).with_context(|| format!("reading {}", busybox.display()))?;
        archive.program(BUSYBOX, &content)?;
        engine::add(&mut archive)?;
        Ok(Self {
            base: archive.finish()?,
        })
    }

    /// The initial RAM file system of a guest of that kernel with these programs to run.
    pub(crate) fn with(
        &self,
        kernel: &Kernel,
        cgroups: CgroupMode,
        programs: Vec<Program>,
    ) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        let mut modules = Vec::new();
        for file in &kernel.modules {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let path = format!("/vm/modules/{name}");
            let content = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            archive.program(&path, &content)?;
            modules.push(path);
        }
        let job = Job {
            cgroups,
            modules,
            programs,
        };
        archive.program(JOB_FILE, job.to_text()?.as_bytes())?;
        Ok([&*self.base, &*archive.finish()?].concat())
    }
}

struct Built {
    directory: PathBuf,
    kernel_suite: PathBuf,
    standin_suite: PathBuf,
}

/// Builds the programs, and returns where they are.
pub(super) fn programs() -> Result<PathBuf> {
    Ok(build_programs()?.directory)
}

fn build_programs() -> Result<Built> {
    let build = || {
        workspace::cargo(["build"], BUILD_LIMIT)
            .args([
                "--package",
                "cleanup-userspace",
                "--package",
                "cleanup-tests",
            ])
            .args(["--bins", "--test", "kernel", "--test", "standin"])
            .args(["--target", TARGET])
            // It would win over RUSTFLAGS.
            .without_env("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
    };
    build().show()?;
    // Again, for the names of the test programs: they are built by now.
    let messages = build().args(["--message-format", "json"]).read()?;
    let suite = |name: &str| {
        test_program(&messages, name).with_context(|| format!("cargo named no test {name}"))
    };
    Ok(Built {
        directory: workspace::target_dir().join(TARGET).join("debug"),
        kernel_suite: suite("kernel")?,
        standin_suite: suite("standin")?,
    })
}

/// The executable of a test in cargo's messages.
fn test_program(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|message| {
            let target = &message["target"];
            target["name"] == name
                && target["kind"][0] == "test"
                && message["executable"].is_string()
        })
        .and_then(|message| message["executable"].as_str().map(PathBuf::from))
}

/// A program without its debugging information, which is most of it: a guest keeps all of it in memory.
fn strip(file: &Path, dir: &Path) -> Result<Vec<u8>> {
    let stripped = dir.join("stripped");
    Tool::new("strip", STRIP_LIMIT)
        .args(["--strip-debug", "-o"])
        .args([&*stripped, file])
        .read()?;
    fs::read(&stripped).with_context(|| format!("reading {}", stripped.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_program_is_the_one_of_that_test() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"kernel","kind":["lib"]},"executable":null}"#,
            "\nnot JSON\n",
            r#"{"reason":"compiler-artifact","target":{"name":"other","kind":["test"]},"executable":"/t/other-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"kernel","kind":["test"]},"executable":"/t/kernel-2"}"#,
        );
        assert_eq!(
            test_program(messages, "kernel"),
            Some(PathBuf::from("/t/kernel-2"))
        );
        assert_eq!(test_program(messages, "none"), None);
    }
}
