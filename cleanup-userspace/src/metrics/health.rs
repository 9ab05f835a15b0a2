//! Whether the daemon does its work, as far as it can tell itself.
//!
//! A loop to which nothing happens does not turn. So that it needs no clock to prove
//! that it could, whoever wants to know asks it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::process::monotonic_ns;

/// A loop that does not turn for so long although it was asked to hangs.
pub const LOOP_DEADLINE: Duration = Duration::from_secs(3);

/// What the loop tells of itself, and whoever is asked about it.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    turned: AtomicBool,
    /// Since when a question waits for a turn: CLOCK_MONOTONIC in nanoseconds; 0: none
    /// does.
    asked_ns: AtomicU64,
    asked: Notify,
    answered: Notify,
    looked: Notify,
    ring_broken: AtomicBool,
}

/// Why the daemon is not healthy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Illness {
    /// Its loop has not begun to turn.
    Starting,
    /// The loop that drains the ring was asked, and has not turned for so long.
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
                "the loop that takes the kernel's events was asked, and has not turned for {:.1} s",
                age.as_secs_f64()
            ),
            Self::Ring => f.write_str("the kernel's events cannot be read; see the log"),
        }
    }
}

impl Pulse {
    /// The loop turns. Whatever it is asked is answered by that.
    pub(super) fn beat(&self) {
        self.turned.store(true, Ordering::Relaxed);
        if self.asked_ns.load(Ordering::Acquire) != 0 {
            self.asked_ns.store(0, Ordering::Release);
            self.answered.notify_waiters();
        }
    }

    /// For the loop: completes when it is asked to turn.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// The loop has done what it does when it is asked.
    pub(super) fn looked(&self) {
        self.looked.notify_waiters();
    }

    /// Asks the loop to turn, and waits until it does, or for so long. One that has not
    /// begun to turn is not asked.
    pub(super) async fn ask(&self, patience: Duration) {
        self.ask_and_await(&self.answered, patience).await;
    }

    /// As [`ask`](Self::ask), until it has looked at what it looks at then.
    pub(super) async fn ask_to_look(&self, patience: Duration) {
        self.ask_and_await(&self.looked, patience).await;
    }

    async fn ask_and_await(&self, answer: &Notify, patience: Duration) {
        if !self.turned.load(Ordering::Relaxed) {
            return;
        }
        let answered = answer.notified();
        tokio::pin!(answered);
        // Before the question, or the answer may come too early.
        answered.as_mut().enable();
        let _ =
            self.asked_ns
                .compare_exchange(0, monotonic_ns(), Ordering::AcqRel, Ordering::Relaxed);
        self.asked.notify_one();
        let _ = timeout(patience, answered).await;
    }

    pub(super) fn ring_is_broken(&self, broken: bool) {
        self.ring_broken.store(broken, Ordering::Relaxed);
    }

    /// How long a question has been waiting for the loop to turn; zero if none does.
    pub(super) fn age(&self, now_ns: u64) -> Duration {
        match self.asked_ns.load(Ordering::Acquire) {
            0 => Duration::ZERO,
            asked => Duration::from_nanos(now_ns.saturating_sub(asked)),
        }
    }

    pub(super) fn illness(&self, now_ns: u64) -> Option<Illness> {
        let age = self.age(now_ns);
        if !self.turned.load(Ordering::Relaxed) {
            Some(Illness::Starting)
        } else if age >= LOOP_DEADLINE {
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
    use std::sync::Arc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// The loop of a test: turns when asked.
    async fn turn(pulse: &Pulse) {
        loop {
            pulse.beat();
            pulse.asked().await;
        }
    }

    #[tokio::test]
    async fn a_loop_that_turns_when_asked_is_well_and_one_that_does_not_is_ill() {
        let pulse = Arc::new(Pulse::default());
        assert_eq!(pulse.illness(monotonic_ns()), Some(Illness::Starting));
        pulse.ask(LONG).await;
        assert_eq!(pulse.age(monotonic_ns()), Duration::ZERO, "nobody to ask");
        pulse.beat();
        let turning = Arc::clone(&pulse);
        let turning = tokio::spawn(async move { turn(&turning).await });
        pulse.ask(LONG).await;
        let now = monotonic_ns();
        // Nobody asked since, so that it rests means nothing.
        assert_eq!(pulse.illness(now + 1_000_000_000_000), None);
        assert_eq!(pulse.age(now + 1_000_000_000_000), Duration::ZERO);

        turning.abort();
        let _ = turning.await;
        let before = monotonic_ns();
        pulse.ask(Duration::from_millis(1)).await;
        let deadline = LOOP_DEADLINE.as_nanos() as u64;
        assert_eq!(pulse.illness(before + deadline / 2), None);
        // Whoever asks again does not begin anew.
        pulse.ask(Duration::from_millis(1)).await;
        let late = monotonic_ns() + deadline;
        let Some(Illness::Hung(age)) = pulse.illness(late) else {
            panic!("{:?}", pulse.illness(late));
        };
        assert!(age > LOOP_DEADLINE, "{age:?}");

        pulse.beat();
        assert_eq!(pulse.illness(late), None);
        pulse.ring_is_broken(true);
        assert_eq!(pulse.illness(late), Some(Illness::Ring));
        pulse.ring_is_broken(false);
        assert_eq!(pulse.illness(late), None);
    }

    #[tokio::test]
    async fn all_who_ask_at_once_are_answered() {
        let pulse = Arc::new(Pulse::default());
        pulse.beat();
        let asking: Vec<_> = (0..20)
            .map(|_| {
                let pulse = Arc::clone(&pulse);
                tokio::spawn(async move { pulse.ask(LONG).await })
            })
            .collect();
        let turning = Arc::clone(&pulse);
        let turning = tokio::spawn(async move { turn(&turning).await });
        for asking in asking {
            asking.await.expect("no panic");
        }
        assert_eq!(pulse.age(monotonic_ns()), Duration::ZERO);
        turning.abort();
    }
}
