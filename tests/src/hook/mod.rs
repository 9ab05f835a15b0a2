//! The hook module: built as it ships and with its test switches, run by a real
//! libmesos in a child process, and what it puts into the inbox.

pub mod inbox;
pub mod stand_in;

use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::mesos::runtime::Runtime;
use crate::scratch::Scratch;
use crate::service::Service;
use crate::{bins, command};

/// Of the module, and of the symbol that Mesos looks for.
pub const NAME: &str = "org_apache_mesos_ComposePodCleanupHook";
/// Starts each line that the module writes.
pub const SAYS: &str = "compose-cleanup hook: ";
/// In every name that only a build with test switches knows.
pub const SWITCH: &str = "CLEANUP_HOOK_TEST_";
/// The export of such a build.
pub const COMPARE: &str = "cleanup_hook_test_compare";

/// The harness' exit status if ModuleManager refuses to load the module.
pub const LOAD_REFUSED: i32 = 3;
/// … and if HookManager refuses to install the hook.
pub const INSTALL_REFUSED: i32 = 4;

const FILE: &str = "libcompose_pod_cleanup_hook.so";
const BUILD: Duration = Duration::from_secs(900);
const RUN: Duration = Duration::from_secs(300);

/// The module as it is shipped.
pub fn shipped() -> Result<&'static Path> {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    built(&PATH, "", &[])
}

/// The module with switches for tests, in a folder of its own: the two must not
/// be mistaken for each other.
pub fn with_switches() -> Result<&'static Path> {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    built(&PATH, "hook-switches", &["--features", "test-switches"])
}

fn built(path: &'static OnceLock<PathBuf>, dir: &str, options: &[&str]) -> Result<&'static Path> {
    if let Some(path) = path.get() {
        return Ok(path);
    }
    // target/<profile>/<program of ours>
    let own = bins::find("hook-harness")?;
    let target = own.ancestors().nth(2).context("a target directory")?;
    let target = target.join(dir);
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--quiet", "--release", "--package", "cleanup-hook"])
        .args(options)
        .arg("--target-dir")
        .arg(&target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    // Of the cargo that runs this test; build scripts would see a change.
    for (name, _) in env::vars_os() {
        let is_cargos = name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_"));
        if is_cargos || name == "CARGO_MANIFEST_DIR" || name == "CARGO_MANIFEST_PATH" {
            build.env_remove(name);
        }
    }
    command::output(&mut build, BUILD)?;
    Ok(path.get_or_init(|| target.join("release").join(FILE)))
}

/// How a program that had the module loaded ended.
#[derive(Debug)]
pub struct Run {
    /// 128 and the signal, if there was one.
    pub status: i32,
    pub output: String,
}

impl Run {
    /// Runs a program to its end, as strict about its heap as glibc can be.
    pub fn of(scratch: &Scratch, mut command: Command) -> Result<Self> {
        command
            .env("MALLOC_PERTURB_", "165")
            .env("MALLOC_CHECK_", "3")
            .env("LD_PRELOAD", "libc_malloc_debug.so.0");
        Self::plain(scratch, command)
    }

    /// Runs a program to its end.
    pub fn plain(scratch: &Scratch, mut command: Command) -> Result<Self> {
        command
            .env("LIBPROCESS_IP", "127.0.0.1")
            .env("RUST_BACKTRACE", "0");
        let log = unused(scratch, "run.log");
        let status = Service::spawn(command, &log)?.wait(RUN)?;
        let output = fs::read(&log).context("the output")?;
        Ok(Self {
            status: status
                .code()
                .or_else(|| status.signal().map(|signal| 128 + signal))
                .context("an exit status or a signal")?,
            output: String::from_utf8_lossy(&output).into_owned(),
        })
    }

    /// What the module said.
    pub fn said(&self) -> Vec<&str> {
        self.output
            .lines()
            .filter_map(|line| line.strip_prefix(SAYS))
            .collect()
    }

    pub fn expect(&self, status: i32) -> Result<&Self> {
        ensure!(
            self.status == status,
            "status {}, not {status}:\n{}",
            self.status,
            self.output
        );
        Ok(self)
    }

    /// The value in `name=value` of the harness' output.
    pub fn value(&self, name: &str) -> Result<&str> {
        let words = self.output.split_ascii_whitespace();
        words
            .filter_map(|word| word.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
            .with_context(|| format!("no {name} in:\n{}", self.output))
    }
}

/// The command `hook-harness`, to be given more arguments.
pub fn harness(runtime: &Runtime, module: &Path) -> Result<Command> {
    let mut command = Command::new(bins::find("hook-harness")?);
    command
        .arg(format!("lib={}", runtime.lib_dir().display()))
        .arg(format!("module={}", module.display()));
    Ok(command)
}

/// A path in the scratch directory that nobody uses.
pub fn unused(scratch: &Scratch, suffix: &str) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    scratch.path().join(format!("{count}-{suffix}"))
}
