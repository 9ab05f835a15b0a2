//! A daemon whose configuration changes while it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;

use crate::scratch::Scratch;
use crate::wait;
use crate::watcher::{AgentPlace, Watcher, configure};

const SOON: Duration = Duration::from_secs(60);

/// The configuration that the daemons of this scratch are started with.
pub fn config_path(scratch: &Scratch) -> PathBuf {
    scratch.path().join("compose-cleanup.toml")
}

/// What the daemon said of one reload.
#[derive(Debug)]
pub struct Reload {
    /// All lines from SIGHUP to its end.
    pub lines: Vec<Value>,
}

impl Reload {
    /// `key: old → new` of each line with this message.
    fn told(&self, message: &str) -> Vec<String> {
        let lines = self.lines.iter().filter(|line| line["message"] == message);
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        lines
            .map(|line| {
                let (key, old, new) = (&line["key"], &line["old"], &line["new"]);
                format!("{}: {} → {}", text(key), text(old), text(new))
            })
            .collect()
    }

    /// The settings that hold from now on.
    pub fn changed(&self) -> Vec<String> {
        self.told("a setting has changed")
    }

    /// Those that need a restart.
    pub fn need_restart(&self) -> Vec<String> {
        self.told("needs a restart: this setting keeps its old value until then")
    }

    /// Why nothing was taken over.
    pub fn refused(&self) -> Option<&str> {
        let refused = |line: &&Value| {
            let message = line["message"].as_str();
            line["level"] == "WARN"
                && message.is_some_and(|message| {
                    message.starts_with("the configuration was not taken over")
                })
        };
        self.lines.iter().find(refused)?["error"].as_str()
    }
}

/// Sends SIGHUP, and waits for what the daemon makes of its configuration as it is.
pub fn reload(watcher: &Watcher) -> Result<Reload> {
    let before = watcher.lines()?.len();
    watcher.signal(Signal::HUP)?;
    wait::try_until(SOON, "the end of a reload", || {
        let mut lines = watcher.lines()?.split_off(before);
        let end = lines.iter().position(|line| {
            let message = line["message"].as_str().unwrap_or_default();
            message == "the configuration was read again"
                || message.starts_with("the configuration was not taken over")
        });
        Ok(end.map(|end| {
            lines.truncate(end + 1);
            Reload { lines }
        }))
    })
    .with_context(|| crate::log::tail(watcher.log_path(), 30))
}

/// [`reload`], with a configuration as [`Watcher::start`] writes it.
pub fn reload_with(
    watcher: &Watcher,
    scratch: &Scratch,
    socket: &Path,
    agents: &[AgentPlace],
    options: &str,
) -> Result<Reload> {
    // What a test has put in its place.
    let path = config_path(scratch);
    if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
        fs::remove_dir(&path)?;
    } else {
        let _ = fs::remove_file(&path);
    }
    configure(scratch, socket, agents, options)?;
    reload(watcher)
}
