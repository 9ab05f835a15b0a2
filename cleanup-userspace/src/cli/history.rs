//! Where the journal is, and how its values are written for people and programs.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, ValueEnum};

use crate::case::printable;
use crate::config::Config;
use crate::journal::History;

#[derive(Debug, Args)]
pub struct Source {
    /// The journal; without it, `journal.path` of the configuration.
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    journal: Option<PathBuf>,

    /// Configuration file (TOML) that says where the journal is.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Source {
    pub fn open(&self) -> anyhow::Result<History> {
        let path = match (&self.journal, &self.config) {
            (Some(path), _) => path.clone(),
            (None, Some(config)) => Config::load(config)?.journal.path,
            (None, None) => Config::default().journal.path,
        };
        Ok(History::open(&path)?)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON document. Times are nanoseconds.
    Json,
}

/// Writes to standard output; whoever reads it may leave early (`| head`).
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// An id of somebody else's making.
pub fn id(bytes: Option<&[u8]>) -> Option<String> {
    bytes.map(|bytes| printable(OsStr::from_bytes(bytes)))
}

pub fn text(text: &str) -> String {
    printable(OsStr::new(text))
}

/// At most `width` characters.
pub fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let short: String = text.chars().take(width.saturating_sub(1)).collect();
    short + "…"
}

/// `signal 9`, `exit 7`, `unknown`.
pub fn status(wait_status: Option<i32>) -> String {
    match wait_status {
        None => "unknown".to_owned(),
        Some(status) if status & 0x7f != 0 => format!("signal {}", status & 0x7f),
        Some(status) => format!("exit {}", (status >> 8) & 0xff),
    }
}

/// `2026-11-24T10:43:02.123456Z`; whole seconds if not `exact`.
pub fn time(unix_ns: i64, exact: bool) -> String {
    // What a damaged journal may hold is not a time that can be written.
    const YEAR_9999: Duration = Duration::from_secs(253_402_300_799);
    let since = Duration::from_nanos(u64::try_from(unix_ns).unwrap_or(0)).min(YEAR_9999);
    if exact {
        humantime::format_rfc3339_micros(UNIX_EPOCH + since).to_string()
    } else {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
    }
}

/// `0.27 ms`, `281 ms`, `3.18 s`, `17 min`.
pub fn span(ns: i64) -> String {
    let ms = ns as f64 / 1e6;
    match ms.abs() {
        ..10.0 => format!("{ms:.2} ms"),
        ..1e3 => format!("{ms:.0} ms"),
        ..1e5 => format!("{:.2} s", ms / 1e3),
        ..7.2e6 => format!("{:.0} min", ms / 6e4),
        _ => format!("{:.0} h", ms / 3.6e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_for_people() {
        assert_eq!(span(270_000), "0.27 ms");
        assert_eq!(span(281_410_000), "281 ms");
        assert_eq!(span(3_184_000_000), "3.18 s");
        assert_eq!(span(1_020_000_000_000), "17 min");
        assert_eq!(span(i64::MAX), "2562048 h");
        assert_eq!(status(Some(9)), "signal 9");
        assert_eq!(status(Some(7 << 8)), "exit 7");
        assert_eq!(shorten("abcdef", 4), "abc…");
        assert_eq!(
            time(1_795_516_982_123_456_000, true),
            "2026-11-24T10:43:02.123456Z"
        );
        assert_eq!(time(i64::MIN, false), "1970-01-01T00:00:00Z");
        assert_eq!(time(i64::MAX, false), "2262-04-11T23:47:16Z");
        assert_eq!(id(Some(b"web\x1b[2J\xff")).unwrap(), "web\\u{1b}[2J\\xff");
    }
}
