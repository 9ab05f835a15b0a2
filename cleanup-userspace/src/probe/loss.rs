//! What was lost between an exit and the daemon, by reason.

use aya::maps::{MapData, PerCpuArray};
use cleanup_common::Loss;

use super::{ProbeError, loader, stream::Rejected};

/// Counters since the start of the probe. Any increase is a reason to reconcile.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Losses {
    /// The ring buffer had no room: the reader is too slow, or the ring too small.
    pub ring_full: u64,
    /// The cgroup's name could not be read.
    pub name_unreadable: u64,
    /// The cgroup's name is longer than any container id.
    pub name_too_long: u64,
    /// The cgroup's name is not UTF-8.
    pub name_not_utf8: u64,
    /// A record of another size than this release writes.
    pub malformed: u64,
    /// The once-only claim failed for want of memory; the record was sent, and may come twice.
    pub unclaimed: u64,
}

impl Losses {
    /// Sums the kernel program's counters, and adds those of the reader.
    pub(super) fn read(
        counters: &PerCpuArray<MapData, u64>,
        rejected: Rejected,
    ) -> Result<Self, ProbeError> {
        let sum = |reason: Loss| -> Result<u64, ProbeError> {
            let values = counters
                .get(&(reason as u32), 0)
                .map_err(|error| ProbeError::map(loader::LOSSES, error))?;
            Ok(values.iter().sum())
        };
        let Rejected {
            name_not_utf8,
            malformed,
        } = rejected;
        Ok(Self {
            ring_full: sum(Loss::RingFull)?,
            name_unreadable: sum(Loss::NameUnreadable)?,
            name_too_long: sum(Loss::NameTooLong)?,
            name_not_utf8,
            malformed,
            unclaimed: sum(Loss::Unclaimed)?,
        })
    }

    /// Counters with their names, as they appear in metrics.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self {
            ring_full,
            name_unreadable,
            name_too_long,
            name_not_utf8,
            malformed,
            unclaimed,
        } = *self;
        [
            ("ring_full", ring_full),
            ("name_unreadable", name_unreadable),
            ("name_too_long", name_too_long),
            ("name_not_utf8", name_not_utf8),
            ("malformed", malformed),
            ("unclaimed", unclaimed),
        ]
        .into_iter()
    }

    /// Exits of executors that may have gone unreported. (A name that is too long
    /// or not UTF-8 is no container id; an unclaimed exit was reported.)
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.ring_full + self.name_unreadable + self.malformed
    }

    /// The sum of all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.iter().map(|(_, count)| count).sum()
    }
}
