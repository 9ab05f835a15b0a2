//! The file that tells the daemon of a dead executor. docs/hook.md is its
//! specification; whoever changes one changes both, and the daemon's reader.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::proto::Ids;

/// The first line; a reader refuses any other number.
const FORMAT: &str = "compose-cleanup-request 1";
/// Of one id. Executors have directories by that name, so real ones have at most
/// 255 bytes.
pub(crate) const LONGEST_ID: usize = 4096;
pub(crate) const SUFFIX: &str = ".request";

/// Everything in a request but the ids.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    /// Since 1970.
    pub(crate) nanoseconds: u128,
    pub(crate) pid: u32,
    /// Of this process' requests, starting at 0.
    pub(crate) number: u64,
    /// As Mesos itself puts it.
    pub(crate) mesos: &'a str,
}

impl<'a> Origin<'a> {
    pub(crate) fn now(number: u64, mesos: &'a str) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            nanoseconds: since.map_or(0, |since| since.as_nanos()),
            pid: std::process::id(),
            number,
            mesos,
        }
    }

    /// Unique on this host; in the order of time when sorted.
    pub(crate) fn file_name(&self) -> String {
        let Self {
            nanoseconds,
            pid,
            number,
            mesos: _,
        } = self;
        format!("{nanoseconds:020}-{pid}-{number}{SUFFIX}")
    }
}

/// The file's content; Err: why there can be none.
pub(crate) fn content(ids: &Ids, origin: &Origin<'_>) -> Result<String, &'static str> {
    let Ids {
        framework,
        executor,
    } = ids;
    for (id, unset, too_long) in [
        (
            framework,
            "without a framework id",
            "with a framework id of more than 4 KiB",
        ),
        (
            executor,
            "without an executor id",
            "with an executor id of more than 4 KiB",
        ),
    ] {
        if id.is_empty() {
            return Err(unset);
        }
        if id.len() > LONGEST_ID {
            return Err(too_long);
        }
    }
    Ok(format!(
        "{FORMAT}\nframework_id={}\nexecutor_id={}\ntime_ns={}\nagent_pid={}\nmesos={}\nend\n",
        hex(framework),
        hex(executor),
        origin.nanoseconds,
        origin.pid,
        origin.mesos,
    ))
}

/// Ids may hold any byte.
fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin<'static> = Origin {
        nanoseconds: 1_700_000_000_123_456_789,
        pid: 42,
        number: 7,
        mesos: "1.11.0",
    };

    fn of(framework: &[u8], executor: &[u8]) -> Result<String, &'static str> {
        let ids = Ids {
            framework: framework.into(),
            executor: executor.into(),
        };
        content(&ids, &ORIGIN)
    }

    #[test]
    fn format() {
        assert_eq!(
            of(b"fw-1", b"\x00\xff\n=/").expect("valid"),
            "compose-cleanup-request 1\nframework_id=66772d31\nexecutor_id=00ff0a3d2f\n\
             time_ns=1700000000123456789\nagent_pid=42\nmesos=1.11.0\nend\n"
        );
        assert_eq!(ORIGIN.file_name(), "01700000000123456789-42-7.request");
    }

    #[test]
    fn ids_have_limits() {
        let longest = vec![b'x'; LONGEST_ID];
        assert!(of(&longest, &longest).expect("valid").len() < 20_000);
        let longer = vec![b'x'; LONGEST_ID + 1];
        for (framework, executor) in [
            (&b""[..], &b"e"[..]),
            (b"f", b""),
            (&longer, b"e"),
            (b"f", &longer),
        ] {
            assert!(of(framework, executor).is_err());
        }
    }
}
