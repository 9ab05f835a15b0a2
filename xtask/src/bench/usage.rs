//! What a process takes, and what is left of the host.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use cleanup_tests::wait;
use rustix::param::clock_ticks_per_second;

/// What a process has taken so far; memory is resident, in KiB.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Usage {
    pub(super) rss_kib: u64,
    pub(super) peak_rss_kib: u64,
    /// The part of it that no file backs.
    pub(super) anonymous_kib: u64,
    pub(super) cpu_s: f64,
}

impl Usage {
    pub(super) fn of(pid: i32) -> Result<Self> {
        let (status, stat) = (
            read(&format!("/proc/{pid}/status"))?,
            read(&format!("/proc/{pid}/stat"))?,
        );
        let ticks = cpu_ticks(&stat).context("CPU time")?;
        Ok(Self {
            rss_kib: field(&status, "VmRSS:").context("VmRSS")?,
            peak_rss_kib: field(&status, "VmHWM:").context("VmHWM")?,
            anonymous_kib: field(&status, "RssAnon:").context("RssAnon")?,
            cpu_s: ticks as f64 / clock_ticks_per_second() as f64,
        })
    }

    /// The memory of now, and the CPU time since then.
    pub(super) fn since(self, then: &Self) -> Self {
        Self {
            cpu_s: self.cpu_s - then.cpu_s,
            ..self
        }
    }
}

/// What the scheduler says of each thread of a process.
#[derive(Debug, Clone, Default)]
pub(super) struct Threads(BTreeMap<i32, (u64, u64)>);

impl Threads {
    pub(super) fn of(pid: i32) -> Result<Self> {
        let dir = format!("/proc/{pid}/task");
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&dir).context(dir)?.flatten() {
            let Some(tid) = entry.file_name().to_str().and_then(|tid| tid.parse().ok()) else {
                continue;
            };
            // A thread may end meanwhile.
            let look = |file: &str| fs::read_to_string(entry.path().join(file)).ok();
            let thread = look("schedstat").zip(look("status"));
            if let Some(seen) = thread.and_then(|(stat, status)| scheduled(&stat, &status)) {
                found.insert(tid, seen);
            }
        }
        Ok(Self(found))
    }

    /// Nanoseconds on a CPU, and how often a thread was switched to, since then. What a
    /// thread did that has ended meanwhile is not in it.
    pub(super) fn since(&self, then: &Self) -> (u64, u64) {
        let grown = self.0.iter().map(|(tid, now)| {
            let before = then.0.get(tid).copied().unwrap_or_default();
            (
                now.0.saturating_sub(before.0),
                now.1.saturating_sub(before.1),
            )
        });
        grown.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
    }
}

/// Nanoseconds on a CPU and context switches, of `schedstat` and `status` of a thread.
fn scheduled(schedstat: &str, status: &str) -> Option<(u64, u64)> {
    let ns = schedstat.split_ascii_whitespace().next()?.parse().ok()?;
    let switches =
        field(status, "voluntary_ctxt_switches:")? + field(status, "nonvoluntary_ctxt_switches:")?;
    Some((ns, switches))
}

/// Has the kernel begin anew with a process' peak of resident memory.
pub(super) fn forget_peak(pid: i32) -> Result<()> {
    let file = format!("/proc/{pid}/clear_refs");
    fs::write(&file, "5").context(file)
}

/// Waits, and returns which share of all CPUs was idle meanwhile, 0 to 1.
pub(super) fn idle_share(period: Duration) -> Result<f64> {
    let look = || idle_and_all(&read("/proc/stat")?).context("`cpu` in /proc/stat");
    let before = look()?;
    wait::holds(period, "calm", || true)?;
    let after = look()?;
    let all = after.1.saturating_sub(before.1).max(1);
    Ok(after.0.saturating_sub(before.0) as f64 / all as f64)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.to_owned())
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// utime and stime of `/proc/PID/stat`.
fn cpu_ticks(stat: &str) -> Option<u64> {
    // The name before it may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Ticks of all CPUs: idle, waiting for a disk included, and in all.
fn idle_and_all(stat: &str) -> Option<(u64, u64)> {
    let ticks: Vec<u64> = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))?
        .split_ascii_whitespace()
        .map_while(|ticks| ticks.parse().ok())
        .collect();
    // Guests' time, from the ninth on, is part of user time.
    let [_, _, _, idle, waiting, ..] = ticks[..] else {
        return None;
    };
    Some((idle + waiting, ticks.iter().take(8).sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_what_the_kernel_writes() {
        let status = "Name:\tx\nVmHWM:\t   10240 kB\nVmRSS:\t    9216 kB\n";
        assert_eq!(field(status, "VmRSS:"), Some(9216));
        assert_eq!(field(status, "VmSwap:"), None);
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 0 0 0 123 45 0 0 20 0 3 0 99 1 2";
        assert_eq!(cpu_ticks(stat), Some(168));
        let usage = Usage::of(std::process::id().cast_signed()).expect("of this process");
        assert!(usage.anonymous_kib <= usage.rss_kib && usage.rss_kib <= usage.peak_rss_kib);
    }

    #[test]
    fn a_thread_that_is_new_counts_in_whole_and_one_that_has_ended_not_at_all() {
        let status = "voluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t2\n";
        assert_eq!(scheduled("5000 12 9\n", status), Some((5000, 9)));
        let before = Threads([(1, (100, 10)), (2, (50, 5))].into());
        let after = Threads([(1, (160, 11)), (3, (7, 1))].into());
        assert_eq!(after.since(&before), (67, 2));
        let own = Threads::of(std::process::id().cast_signed()).expect("of this process");
        assert!(own.since(&Threads::default()).0 > 0);
    }

    #[test]
    fn idle_time_includes_waiting_and_no_guest_is_counted_twice() {
        let stat = "cpu  10 1 5 80 4 0 0 0 10 0\ncpu0 1 1 1 1\n";
        assert_eq!(idle_and_all(stat), Some((84, 100)));
        assert_eq!(idle_and_all("cpu  1 2\n"), None);
    }
}
