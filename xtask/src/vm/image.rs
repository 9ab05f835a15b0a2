//! What is in a guest: static programs of this workspace, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use cleanup_tests::guest::{CgroupMode, JOB_FILE, Job, Program};
use serde_json::Value;

use super::cpio::Archive;
use crate::exec::Tool;
use crate::workspace;

/// Of the guest. Build scripts and macros are the host's own, so it is always named.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const BUILD_LIMIT: Duration = Duration::from_mins(45);
const STRIP_LIMIT: Duration = Duration::from_mins(2);

const DAEMON: &str = "/bin/compose-cleanup";
const BUSYBOX: &str = "/bin/busybox";
const SUITE: &str = "/bin/kernel";
/// What needs no cgroups at all.
const LOAD_TEST: &str = "loading_costs_the_verifier_little";
/// Ten thousand pairs of processes: more than ten minutes without KVM.
const TOO_LONG: &str = "threads_that_end_together";

/// The programs, as an archive to which a job is appended.
#[derive(Debug)]
pub(crate) struct Image {
    base: Vec<u8>,
}

impl Image {
    /// Builds the programs and packs them, with a busybox for people if there is one to give.
    pub(crate) fn build(busybox: Option<&Path>) -> Result<Self> {
        let built = build_programs()?;
        let stripped = tempfile::tempdir()?;
        let mut archive = Archive::default();
        archive.device("/dev/console", (5, 1))?;
        // The suite knows its helper by the path that it had on the host.
        let helper = built.directory.join("exit-case");
        let helper_path = helper.to_str().context("the target folder is not UTF-8")?;
        for (file, path) in [
            (built.directory.join("vm-init"), "/init"),
            (built.directory.join("compose-cleanup"), DAEMON),
            (built.suite, SUITE),
            (helper.clone(), helper_path),
        ] {
            let content = strip(&file, stripped.path())?;
            archive.program(path, &content)?;
        }
        if let Some(file) = busybox {
            let content = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            archive.program(BUSYBOX, &content)?;
        }
        Ok(Self {
            base: archive.finish()?,
        })
    }

    /// The initial RAM file system of a guest with this job.
    pub(crate) fn with(&self, job: &Job) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        archive.program(JOB_FILE, job.to_text()?.as_bytes())?;
        Ok([&*self.base, &*archive.finish()?].concat())
    }
}

/// The suite `smoke`: what can be asked of a kernel with cgroups mounted so.
pub(crate) fn smoke(mode: CgroupMode) -> Job {
    let program = |name: &str, command: &[&str]| Program {
        name: name.to_owned(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
    };
    let mut programs = vec![
        program("doctor", &[DAEMON, "doctor"]),
        program("probe", &[SUITE, "--exact", LOAD_TEST, "--nocapture"]),
    ];
    // Its tests compare hierarchies of both versions.
    if mode == CgroupMode::Hybrid {
        let rest = ["--skip", TOO_LONG, "--skip", LOAD_TEST];
        let command = [&[SUITE, "--test-threads", "2"][..], &rest].concat();
        programs.push(program("kernel", &command));
    }
    Job {
        cgroups: mode,
        programs,
    }
}

/// A prompt, with busybox's tools on the path.
pub(crate) fn shell(mode: CgroupMode) -> Job {
    let script = format!("{BUSYBOX} --install -s /bin; exec setsid cttyhack sh");
    Job {
        cgroups: mode,
        programs: vec![Program {
            name: "shell".to_owned(),
            command: [BUSYBOX, "sh", "-c", &script].map(str::to_owned).to_vec(),
        }],
    }
}

struct Built {
    directory: PathBuf,
    suite: PathBuf,
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
            .args(["--bins", "--test", "kernel", "--target", TARGET])
            // It would win over RUSTFLAGS.
            .without_env("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
    };
    build().show()?;
    // Again, for the name of the test program: it is built by now.
    let messages = build().args(["--message-format", "json"]).read()?;
    Ok(Built {
        directory: workspace::target_dir().join(TARGET).join("debug"),
        suite: test_program(&messages, "kernel").context("cargo named no test program")?,
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

    #[test]
    fn only_a_hybrid_host_has_what_the_suite_compares() {
        let names = |mode| {
            let programs = smoke(mode).programs.into_iter();
            programs.map(|program| program.name).collect::<Vec<_>>()
        };
        assert_eq!(names(CgroupMode::Hybrid), ["doctor", "probe", "kernel"]);
        assert_eq!(names(CgroupMode::V2), ["doctor", "probe"]);
    }
}
