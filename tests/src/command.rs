//! Short-lived programs: run with a deadline, output as a value.

use std::env;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait;

/// Time for the last of the output, once the program has ended.
const OUTPUT: Duration = Duration::from_secs(5);

/// Runs a program to its end and returns what it wrote to stdout.
///
/// Fails, with its stderr, if it exits with anything but 0, and kills it when
/// the time is up.
pub fn output(command: &mut Command, limit: Duration) -> Result<String> {
    let name = describe(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{name}`"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let ended = wait::try_until(limit, format_args!("the end of `{name}`"), || {
        Ok(child.try_wait()?)
    });
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    // A grandchild may hold the pipes open for longer.
    let stdout = stdout.recv_timeout(OUTPUT).unwrap_or_default();
    let stderr = stderr.recv_timeout(OUTPUT).unwrap_or_default();
    let status: ExitStatus = ended.with_context(|| stderr.trim_end().to_owned())?;
    ensure!(
        status.success(),
        "`{name}`: {status}: {}",
        stderr.trim_end()
    );
    Ok(stdout)
}

/// The system's own program if there is one (`/usr/bin`, `/usr/sbin`), else
/// whatever is first in `PATH`.
///
/// Machines may have a second, newer `docker` client; the suites mean the one
/// that the daemon came with.
pub fn system_program(name: &str) -> PathBuf {
    let own = ["/usr/bin", "/usr/sbin"].map(PathBuf::from);
    first(own.into_iter().chain(search_path()), name)
}

/// What is first in `PATH`: where `cargo xtask` puts what it had to unpack for
/// itself, such as a static busybox beside the system's dynamic one.
pub fn program_in_path(name: &str) -> PathBuf {
    first(search_path().into_iter(), name)
}

fn search_path() -> Vec<PathBuf> {
    env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect()
}

fn first(dirs: impl Iterator<Item = PathBuf>, name: &str) -> PathBuf {
    dirs.map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from(name))
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        // Nobody may be waiting for it any more.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
