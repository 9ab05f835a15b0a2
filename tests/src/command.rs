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
    let Finished {
        status,
        stdout,
        stderr,
    } = finish(command, limit)?;
    let status = status.with_context(|| stderr.trim_end().to_owned())?;
    ensure!(
        status.success(),
        "`{name}`: {status}: {}",
        stderr.trim_end()
    );
    Ok(stdout)
}

/// Runs a program for what it says, whatever its status: standard output, then the
/// rest. That it could not be run, or was killed when the time was up, is said there.
pub fn words(command: &mut Command, limit: Duration) -> String {
    match finish(command, limit) {
        Ok(Finished {
            status,
            stdout,
            stderr,
        }) => {
            let trouble = status.err().map(|error| format!("{error:#}\n"));
            stdout + &stderr + &trouble.unwrap_or_default()
        }
        Err(error) => format!("{error:#}\n"),
    }
}

/// A program that runs no longer.
struct Finished {
    /// An error: it was killed, since the time was up.
    status: Result<ExitStatus>,
    stdout: String,
    stderr: String,
}

fn finish(command: &mut Command, limit: Duration) -> Result<Finished> {
    let name = describe(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{name}`"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait::try_until(limit, format_args!("the end of `{name}`"), || {
        Ok(child.try_wait()?)
    });
    if status.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    Ok(Finished {
        status,
        // A grandchild may hold the pipes open for longer.
        stdout: stdout.recv_timeout(OUTPUT).unwrap_or_default(),
        stderr: stderr.recv_timeout(OUTPUT).unwrap_or_default(),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn words_are_told_whatever_the_status() {
        let script = "echo one; echo two >&2; exit 3";
        assert_eq!(words(&mut sh(script), LONG), "one\ntwo\n");
        let missing = words(&mut Command::new("/nowhere/tool"), LONG);
        assert!(missing.contains("starting `/nowhere/tool`"), "{missing}");
    }

    #[test]
    fn what_does_not_end_is_killed() {
        let limit = Duration::from_millis(100);
        let told = words(&mut sh("echo begun; exec sleep 86400"), limit);
        assert!(told.starts_with("begun\n"), "{told}");
        assert!(told.contains("in vain for the end of `sh -c"), "{told}");
        let error = output(&mut sh("exec sleep 86400"), limit).unwrap_err();
        assert!(format!("{error:#}").contains("in vain"), "{error:#}");
    }
}
