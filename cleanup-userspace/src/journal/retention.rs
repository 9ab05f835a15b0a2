//! How much history is kept: by age, then by size. Open cases are always kept.

use std::time::Duration;

use rusqlite::params;

use super::entry::unix_now_ns;
use super::store::{PAGE, Store, StoreError};

/// Cases that one transaction removes: each may have a thousand steps, and the
/// write-ahead log must stay small.
const AT_ONCE: i64 = 50;
/// Pages that one round gives back to the file system.
const VACUUM_PAGES: u64 = 256;
/// The write-ahead log beside the database: what is moved at a time, twice.
const LOG_BYTES: u64 = 2 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub max_age: Duration,
    pub max_bytes: u64,
}

impl Limits {
    /// Above this the database itself is too large.
    pub fn database_bytes(self) -> u64 {
        self.max_bytes
            .saturating_sub(LOG_BYTES)
            .max(self.max_bytes / 2)
    }
}

impl Store {
    /// Removes the oldest closed cases that are over a limit, and gives their space
    /// back. Returns how many.
    pub fn prune(&mut self, limits: Limits) -> Result<usize, StoreError> {
        let mut removed = 0;
        let age = i64::try_from(limits.max_age.as_nanos()).unwrap_or(i64::MAX);
        let cutoff = unix_now_ns().saturating_sub(age);
        loop {
            let gone = self.connection.execute(
                "DELETE FROM cases WHERE id IN (SELECT id FROM cases WHERE closed_unix_ns < ?1
                 ORDER BY closed_unix_ns LIMIT ?2)",
                params![cutoff, AT_ONCE],
            )?;
            removed += gone;
            if gone == 0 {
                break;
            }
        }
        // Down to nine tenths, or each new case would begin this again.
        let allowed = limits.database_bytes();
        if self.used_bytes()? > allowed {
            while self.used_bytes()? > allowed / 10 * 9 {
                let gone = self.connection.execute(
                    "DELETE FROM cases WHERE id IN (SELECT id FROM cases
                     WHERE closed_unix_ns IS NOT NULL ORDER BY closed_unix_ns LIMIT ?1)",
                    [AT_ONCE],
                )?;
                removed += gone;
                if gone == 0 {
                    break;
                }
            }
        }
        if removed > 0 || self.pragma("freelist_count")? > VACUUM_PAGES {
            self.give_back()?;
        }
        Ok(removed)
    }

    /// Shrinks the file to what is used.
    fn give_back(&mut self) -> Result<(), StoreError> {
        let mut free = self.pragma("freelist_count")?;
        while free > 0 {
            self.connection
                .execute_batch(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
            let left = self.pragma("freelist_count")?;
            if left >= free {
                break;
            }
            free = left;
        }
        // Somebody who reads right now keeps this from happening: the next time.
        self.connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    fn used_bytes(&self) -> Result<u64, StoreError> {
        let pages = self.pragma("page_count")?;
        Ok(pages.saturating_sub(self.pragma("freelist_count")?) * PAGE)
    }

    fn pragma(&self, name: &str) -> Result<u64, StoreError> {
        let value: i64 = self
            .connection
            .query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))?;
        Ok(u64::try_from(value).unwrap_or(0))
    }
}
