//! Whether the daemon does its work, as far as it can tell itself.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The loop turns at least every 5 s, whatever happens or does not.
pub const LOOP_DEADLINE: Duration = Duration::from_secs(10);

/// What the loop tells of itself, and whoever is asked about it.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// CLOCK_MONOTONIC in nanoseconds; 0 before the first turn.
    beat_ns: AtomicU64,
    ring_broken: AtomicBool,
}

/// Why the daemon is not healthy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Illness {
    /// Its loop has not begun to turn.
    Starting,
    /// The loop that drains the ring has not turned for so long.
    Hung(Duration),
    /// The ring of the kernel's events cannot be read.
    Ring,
}

impl fmt::Display for Illness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str(
                "starting: it waits for an agent or for its turn, or looks at the host for the first time",
            ),
            Self::Hung(age) => write!(
                f,
                "the loop that takes the kernel's events has not turned for {:.1} s",
                age.as_secs_f64()
            ),
            Self::Ring => f.write_str("the kernel's events cannot be read; see the log"),
        }
    }
}

impl Pulse {
    pub(super) fn beat(&self, now_ns: u64) {
        self.beat_ns.store(now_ns, Ordering::Relaxed);
    }

    pub(super) fn ring_is_broken(&self, broken: bool) {
        self.ring_broken.store(broken, Ordering::Relaxed);
    }

    /// Since the loop's last turn; zero before the first.
    pub(super) fn age(&self, now_ns: u64) -> Duration {
        match self.beat_ns.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            beat => Duration::from_nanos(now_ns.saturating_sub(beat)),
        }
    }

    pub(super) fn illness(&self, now_ns: u64) -> Option<Illness> {
        let age = self.age(now_ns);
        if self.beat_ns.load(Ordering::Relaxed) == 0 {
            Some(Illness::Starting)
        } else if age > LOOP_DEADLINE {
            Some(Illness::Hung(age))
        } else if self.ring_broken.load(Ordering::Relaxed) {
            Some(Illness::Ring)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_turns_is_well_and_one_that_does_not_is_ill() {
        const SECOND: u64 = 1_000_000_000;
        let pulse = Pulse::default();
        assert_eq!(pulse.illness(100 * SECOND), Some(Illness::Starting));
        assert_eq!(pulse.age(100 * SECOND), Duration::ZERO);
        pulse.beat(100 * SECOND);
        assert_eq!(pulse.illness(110 * SECOND), None);
        let hung = Illness::Hung(Duration::from_secs(11));
        assert_eq!(pulse.illness(111 * SECOND), Some(hung));
        pulse.beat(111 * SECOND);
        assert_eq!(pulse.illness(111 * SECOND), None);
        // A turn that was noted after the question was asked.
        assert_eq!(pulse.age(SECOND), Duration::ZERO);
        pulse.ring_is_broken(true);
        assert_eq!(pulse.illness(112 * SECOND), Some(Illness::Ring));
        pulse.ring_is_broken(false);
        assert_eq!(pulse.illness(112 * SECOND), None);
    }
}
