//! How commands ask the daemon, and what becomes of them if it does not answer.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::settings::block_on;
use crate::config::Config;
use crate::serve::{ClientError, client};

/// Exit status: no daemon runs.
pub(super) const NO_DAEMON: u8 = 3;
/// Exit status: a daemon runs, and does not answer.
pub(super) const NO_ANSWER: u8 = 4;

#[derive(Debug, Args)]
pub(super) struct Place {
    /// Configuration file (TOML) of the daemon.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Place {
    pub(super) fn configuration(&self) -> anyhow::Result<Config> {
        Ok(Config::of(self.config.as_deref())?)
    }
}

/// Asks the daemon of this configuration.
pub(super) fn ask<T: DeserializeOwned>(config: &Config, path: &str) -> anyhow::Result<T> {
    Ok(block_on(client::get(&config.run_dir, path))??)
}

/// Tells the daemon of this configuration to do something.
pub(super) fn tell<T: DeserializeOwned>(
    config: &Config,
    path: &str,
    order: &impl Serialize,
) -> anyhow::Result<T> {
    Ok(block_on(client::post(&config.run_dir, path, order))??)
}

/// Whether nobody is there to be asked.
pub(super) fn no_daemon(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClientError::NoDaemon { .. }))
}

/// A value for a query: percent-encoded but for letters, digits and `-_.`.
pub(super) fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The exit status of a command that cannot do without the daemon's answer, after
/// its one line; any other error is returned.
pub(super) fn without_answer(error: anyhow::Error) -> anyhow::Result<ExitCode> {
    let status = match error.downcast_ref::<ClientError>() {
        Some(ClientError::NoDaemon { .. }) => NO_DAEMON,
        Some(ClientError::NoSocket { .. } | ClientError::Silent { .. }) => NO_ANSWER,
        _ => return Err(error),
    };
    eprintln!("compose-cleanup: {error:#}");
    Ok(ExitCode::from(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_fits_into_a_query() {
        assert_eq!(encode("web-1_a.b"), "web-1_a.b");
        assert_eq!(
            encode("a b&of=c%é/?#+"),
            "a%20b%26of%3Dc%25%C3%A9%2F%3F%23%2B"
        );
    }
}
