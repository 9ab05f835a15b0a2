//! Asking the daemon: its control socket, and the commands that use it. The agent,
//! Docker and the executors are real; where only the socket matters there are none.

mod clean;
mod executors;
mod hostile;
mod http;
mod plan;
mod status;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::{AgentPlace, Watcher};
use cleanup_tests::{bins, wait};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(90);

/// What a command came to.
struct Said {
    status: Option<i32>,
    out: String,
    errors: String,
}

impl Said {
    #[track_caller]
    fn expect(&self, status: i32) -> &Self {
        let Self { out, errors, .. } = self;
        assert_eq!(self.status, Some(status), "{out}{errors}");
        assert!(!errors.contains("panicked"), "{errors}");
        self
    }

    /// Refused in one line with these words.
    #[track_caller]
    fn expect_line(&self, status: i32, words: &[&str]) {
        self.expect(status);
        let errors = &self.errors;
        assert_eq!(errors.trim_end().lines().count(), 1, "{errors}");
        assert_eq!(self.out, "", "{errors}");
        for word in words {
            assert!(errors.contains(word), "no `{word}` in: {errors}");
        }
    }

    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("not JSON: {}", self.out))
    }
}

fn run(mut command: Command) -> Result<Said> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .output()
        .context("running compose-cleanup")?;
    Ok(Said {
        status: status.code(),
        out: String::from_utf8(stdout)?,
        errors: String::from_utf8(stderr)?,
    })
}

/// `compose-cleanup …` with the configuration of this scratch's daemon.
fn say(scratch: &Scratch, words: &[&str]) -> Result<Said> {
    let mut command = scratch.command(bins::find("compose-cleanup")?);
    command.args(words).arg("--config").arg(config(scratch));
    run(command)
}

fn config(scratch: &Scratch) -> PathBuf {
    scratch.path().join("compose-cleanup.toml")
}

fn socket(scratch: &Scratch) -> PathBuf {
    scratch.path().join("run-dir/control.sock")
}

/// Asks until `fits`; the answer.
fn wait_json(
    scratch: &Scratch,
    words: &[&str],
    what: &str,
    fits: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let mut last = Value::Null;
    let found = wait::try_until(SOON, what, || {
        let said = say(scratch, &[words, &["--output", "json"]].concat())?;
        last = said.expect(0).json()?;
        Ok(fits(&last).then(|| last.clone()))
    });
    found.with_context(|| format!("{last:#}"))
}

/// A daemon without an agent and without Docker, which answers.
struct Lonely {
    watcher: Watcher,
    scratch: Scratch,
}

impl Lonely {
    fn start(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let watcher = Self::watch(&scratch)?;
        Ok(Self { watcher, scratch })
    }

    fn watch(scratch: &Scratch) -> Result<Watcher> {
        let place = AgentPlace::nowhere(scratch);
        let no_docker = scratch.path().join("no-docker.sock");
        let watcher = Watcher::spawn(scratch, &no_docker, &[place], "")?;
        watcher.wait_message("ready")?;
        Ok(watcher)
    }
}
