//! What is recorded of a case.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest text or id that is kept; the rest is cut off. An executor id that Mesos
/// lets through has at most 4,096 bytes, an error of Docker's may have more.
const LONGEST_TEXT: usize = 4096;

/// The number of a case: its opening in microseconds since 1970, made unique.
///
/// Known at once, without a question to the journal; ordered by time. It is written
/// (`Display`) as 16 hexadecimal digits in an order of their own, so that the first
/// few tell cases of one second apart, as a person wants to type them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CaseId(u64);

/// 2^64 divided by the golden ratio: consecutive numbers come out far apart.
const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;
/// Its inverse modulo 2^64.
const GATHER: u64 = inverse(SCATTER);

const fn inverse(odd: u64) -> u64 {
    // Newton: each round doubles the number of right bits, of which 3 are there.
    let mut guess = odd;
    let mut round = 0;
    while round < 5 {
        guess = guess.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(guess)));
        round += 1;
    }
    guess
}

static LAST: AtomicU64 = AtomicU64::new(0);

impl CaseId {
    /// A number that this process has not given out, nor found in its journal.
    /// Never waits.
    pub fn next() -> Self {
        let now = u64::try_from(unix_now_ns() / 1000).unwrap_or(0);
        let next = |last: u64| now.max(last + 1);
        let last = LAST
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(next(last))
            })
            .unwrap_or_else(|last| last);
        Self(next(last))
    }

    /// Numbers up to this one are taken.
    pub(super) fn taken(up_to: Self) {
        LAST.fetch_max(up_to.0, Ordering::Relaxed);
    }

    pub(super) fn of_row(row: i64) -> Self {
        Self(row.cast_unsigned())
    }

    pub(super) fn row(self) -> i64 {
        self.0.cast_signed()
    }

    /// Reads what `Display` wrote, whole.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let scattered = digits
            .then(|| u64::from_str_radix(text, 16).ok())
            .flatten()?;
        Some(Self(scattered.wrapping_mul(GATHER)))
    }
}

impl fmt::Display for CaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0.wrapping_mul(SCATTER))
    }
}

impl fmt::Debug for CaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A short word of the caller's vocabulary ("kernel", "term", "clean").
pub type Word = Cow<'static, str>;

/// Who died, and how that is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opening {
    /// The Mesos container id. It names one run for ever, so it is the key: a case
    /// of a container that is in the journal continues that one.
    pub container: String,
    /// Ids are bytes; `None` where the run's sandbox was not found (yet).
    pub framework: Option<Vec<u8>>,
    pub executor: Option<Vec<u8>>,
    /// The agent's `work_dir`.
    pub agent: Option<Vec<u8>>,
    /// Who noticed.
    pub origin: Word,
    /// The death: nanoseconds since 1970.
    pub death_unix_ns: i64,
    /// The same moment, CLOCK_MONOTONIC.
    pub death_ns: u64,
    /// When user space had it, CLOCK_MONOTONIC.
    pub noticed_ns: u64,
    /// As wait(2) reports it.
    pub wait_status: Option<i32>,
    /// What proves the death, for people.
    pub proof: Option<String>,
}

/// What a case came to. Times are CLOCK_MONOTONIC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Closing {
    pub result: Word,
    /// Filled in where the opening did not know them.
    pub framework: Option<Vec<u8>>,
    pub executor: Option<Vec<u8>>,
    pub directories_removed: u64,
    pub processes_ended: u64,
    pub first_stop_ns: Option<u64>,
    pub stopped_ns: Option<u64>,
    pub clean_ns: Option<u64>,
}

/// A case that was open when the journal was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    pub case: CaseId,
    pub opening: Opening,
    /// The containers that were joined to it.
    pub containers: Vec<String>,
}

/// One thing to record.
#[derive(Debug)]
pub(super) enum Entry {
    Opened(CaseId, Box<Opening>),
    Evidence {
        case: CaseId,
        origin: Word,
        at_ns: u64,
        detail: Option<String>,
    },
    Planned(CaseId, String),
    Joined {
        case: CaseId,
        container: String,
        key: Word,
        at_ns: u64,
    },
    ContainerEnded {
        case: CaseId,
        container: String,
        ending: Word,
        asked_ns: Option<u64>,
        ended_ns: Option<u64>,
    },
    StepBegan {
        case: CaseId,
        seq: u32,
        kind: Word,
        detail: Option<String>,
        at_ns: u64,
    },
    StepEnded {
        case: CaseId,
        seq: u32,
        outcome: Word,
        error: Option<String>,
        at_ns: u64,
    },
    Closed(CaseId, Box<Closing>, i64),
    Dismissed(CaseId, i64),
}

impl Entry {
    /// Steps are the first to be dropped when there is no place.
    pub fn is_step(&self) -> bool {
        matches!(self, Self::StepBegan { .. } | Self::StepEnded { .. })
    }
}

/// A copy, cut to what is kept.
pub(super) fn clip(text: &str) -> String {
    text[..text.floor_char_boundary(LONGEST_TEXT)].to_owned()
}

pub(super) fn clip_bytes(bytes: &mut Option<Vec<u8>>) {
    if let Some(bytes) = bytes {
        bytes.truncate(LONGEST_TEXT);
    }
}

/// Seconds since 1970 as nanoseconds.
pub fn unix_ns(seconds: f64) -> i64 {
    // A cast of a float saturates.
    (seconds * 1e9) as i64
}

pub(super) fn unix_now_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_rise_and_are_unique() {
        let ids: Vec<CaseId> = (0..10_000).map(|_| CaseId::next()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        CaseId::taken(CaseId(u64::MAX >> 2));
        assert!(CaseId::next() > CaseId(u64::MAX >> 2));
    }

    #[test]
    fn the_first_digits_tell_neighbours_apart() {
        let now = CaseId::next().0;
        let mut short: Vec<String> = (now..now + 1000)
            .map(|id| CaseId(id).to_string()[..4].to_owned())
            .collect();
        short.sort();
        short.dedup();
        assert_eq!(short.len(), 1000);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(id in any::<u64>()) {
            prop_assert_eq!(CaseId::parse(&CaseId(id).to_string()), Some(CaseId(id)));
            prop_assert_eq!(CaseId::of_row(CaseId(id).row()), CaseId(id));
        }

        #[test]
        fn garbage_is_no_number(text in "\\PC{0,20}") {
            if let Some(id) = CaseId::parse(&text) {
                prop_assert_eq!(id.to_string(), text.to_ascii_lowercase());
            }
        }

        #[test]
        fn long_texts_are_cut(text in "\\PC{0,3}é{2040,2060}") {
            let short = clip(&text);
            prop_assert!(short.len() <= LONGEST_TEXT && text.starts_with(&short));
        }
    }
}
