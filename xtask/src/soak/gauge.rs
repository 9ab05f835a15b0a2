//! What the daemon takes of the host, once a second, in each of its lives.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(100);
/// Below that many samples nothing is said about a trend.
const ENOUGH: usize = 120;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) rss_kib: u64,
    pub(super) descriptors: u64,
    pub(super) threads: u64,
}

/// One daemon, from its start to its end.
#[derive(Debug, Clone, Default)]
pub(super) struct Life {
    pid: i32,
    pub(super) samples: Vec<Sample>,
}

/// How one figure went over a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trend {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) max: u64,
    /// `None`: too few samples.
    pub(super) is_flat: Option<bool>,
}

/// A thread that samples whichever daemon runs.
#[derive(Debug)]
pub(super) struct Gauge {
    /// 0: none.
    pid: Arc<AtomicI32>,
    finish: Arc<AtomicBool>,
    lives: Arc<Mutex<Vec<Life>>>,
    thread: Option<JoinHandle<()>>,
}

impl Gauge {
    pub(super) fn start() -> Self {
        let pid = Arc::<AtomicI32>::default();
        let finish = Arc::<AtomicBool>::default();
        let lives = Arc::<Mutex<Vec<Life>>>::default();
        let thread = thread::spawn({
            let (pid, finish, lives) = (Arc::clone(&pid), Arc::clone(&finish), Arc::clone(&lives));
            move || sample(&pid, &finish, &lives)
        });
        Self {
            pid,
            finish,
            lives,
            thread: Some(thread),
        }
    }

    pub(super) fn watch(&self, pid: Option<i32>) {
        self.pid.store(pid.unwrap_or(0), Ordering::Relaxed);
    }

    /// The last sample.
    pub(super) fn latest(&self) -> Option<Sample> {
        let lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        lives.last()?.samples.last().copied()
    }

    pub(super) fn longest_life(&self) -> Option<Life> {
        let lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        lives.iter().max_by_key(|life| life.samples.len()).cloned()
    }

    pub(super) fn lives(&self) -> usize {
        let lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        lives.len()
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.finish.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the gauge panicked");
        }
    }
}

impl Life {
    /// Flat: the median of the last quarter is no more than `margin` above that of
    /// the second. The first quarter is warming up, and a single peak is none.
    pub(super) fn trend(&self, figure: fn(&Sample) -> u64, margin: u64) -> Option<Trend> {
        let values: Vec<u64> = self.samples.iter().map(figure).collect();
        let quarter = values.len() / 4;
        let is_flat = (values.len() >= ENOUGH).then(|| {
            let early = median(&values[quarter..2 * quarter]);
            let late = median(&values[values.len() - quarter..]);
            late <= early + margin
        });
        Some(Trend {
            first: *values.first()?,
            last: *values.last()?,
            max: *values.iter().max()?,
            is_flat,
        })
    }
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn sample(pid: &AtomicI32, finish: &AtomicBool, lives: &Mutex<Vec<Life>>) {
    let mut due = Instant::now();
    while !finish.load(Ordering::Relaxed) {
        thread::sleep(LOOK);
        if Instant::now() < due {
            continue;
        }
        due += PERIOD;
        let pid = pid.load(Ordering::Relaxed);
        let Some(sample) = (pid > 0).then(|| take(pid)).flatten() else {
            continue;
        };
        let mut lives = lives.lock().unwrap_or_else(PoisonError::into_inner);
        if lives.last().is_none_or(|life| life.pid != pid) {
            lives.push(Life {
                pid,
                samples: Vec::new(),
            });
        }
        if let Some(life) = lives.last_mut() {
            life.samples.push(sample);
        }
    }
}

fn take(pid: i32) -> Option<Sample> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(Sample {
        rss_kib: field(&status, "VmRSS:")?,
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64,
        threads: field(&status, "Threads:")?,
    })
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(values: impl Iterator<Item = u64>) -> Life {
        let samples = values.map(|rss_kib| Sample {
            rss_kib,
            descriptors: 0,
            threads: 0,
        });
        Life {
            pid: 1,
            samples: samples.collect(),
        }
    }

    fn is_flat(values: impl Iterator<Item = u64>) -> Option<bool> {
        life(values).trend(|sample| sample.rss_kib, 100)?.is_flat
    }

    #[test]
    fn growth_is_told_from_warming_up_and_from_peaks() {
        assert_eq!(is_flat((0..600).map(|at| 10_000 + at)), Some(false));
        assert_eq!(
            is_flat((0..600).map(|at| 10_000 + at.min(100) * 50)),
            Some(true)
        );
        assert_eq!(
            is_flat((0..600).map(|at| 10_000 + at % 60 * 50)),
            Some(true)
        );
        assert_eq!(is_flat(0..20), None);
        assert_eq!(life(0..0).trend(|sample| sample.rss_kib, 0), None);
    }

    #[test]
    fn this_process_can_be_measured() {
        let sample = take(std::process::id().cast_signed()).expect("a sample");
        assert!(sample.rss_kib > 100 && sample.descriptors > 2 && sample.threads > 0);
    }
}
