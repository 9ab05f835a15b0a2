//! Waiting, always with a deadline. The only place that sleeps.

use std::cell::Cell;
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

static INTERRUPTION: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

thread_local! {
    static SHIELDED: Cell<bool> = const { Cell::new(false) };
}

/// Once set (a signal handler may do it), every wait of this process fails but
/// the [`shielded`] ones: whoever waits returns, and what it owns cleans up.
pub fn interruption() -> Arc<AtomicBool> {
    Arc::clone(&INTERRUPTION)
}

pub fn interrupted() -> bool {
    INTERRUPTION.load(Ordering::Relaxed)
}

/// Runs a clean-up, whose waits an interruption must not cut short.
pub fn shielded<T>(clean_up: impl FnOnce() -> T) -> T {
    let before = SHIELDED.replace(true);
    let done = clean_up();
    SHIELDED.set(before);
    done
}

fn check_interruption(what: &impl Display) -> Result<()> {
    if interrupted() && !SHIELDED.get() {
        bail!("interrupted while waiting for {what}");
    }
    Ok(())
}

/// Calls `probe` until it has something, for no longer than `limit`.
///
/// `what` completes the sentence "waited 5 s for …".
pub fn until<T>(
    limit: Duration,
    what: impl Display,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T> {
    try_until(limit, what, || Ok(probe()))
}

/// [`until`], ended early by an error of `probe`: what was waited for can no
/// longer happen.
pub fn try_until<T>(
    limit: Duration,
    what: impl Display,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = SHORTEST_PAUSE;
    loop {
        // Look at the clock first: a probe that takes long gets its result in.
        let elapsed = start.elapsed();
        if let Some(found) = probe()? {
            return Ok(found);
        }
        if elapsed >= limit {
            bail!("waited {:.1} s in vain for {what}", elapsed.as_secs_f64());
        }
        check_interruption(&what)?;
        thread::sleep(pause.min(limit.saturating_sub(elapsed)));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Makes sure that `probe` stays true for `period`.
pub fn holds(period: Duration, what: impl Display, mut probe: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < period {
        if !probe() {
            bail!(
                "after {:.1} s no longer: {what}",
                start.elapsed().as_secs_f64()
            );
        }
        check_interruption(&what)?;
        thread::sleep(LONGEST_PAUSE.min(period));
    }
    Ok(())
}
