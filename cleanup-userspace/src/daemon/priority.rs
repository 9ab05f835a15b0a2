//! The priority of the thread that hears of deaths.
//!
//! On a busy host an exit waits for a CPU longer than for anything else: with normal
//! priority 3 ms at p99 in a storm of forks on every CPU, with real-time priority 0.2 ms
//! (`cargo xtask bench latency`). The thread sleeps between exits, and a handler takes
//! microseconds; yet whoever can make it work without end, a container that forks for
//! instance, must not take a CPU from everybody by it. So it steps down to normal
//! priority when it has been at work for [`LONGEST_RUN`] on end, until it has nothing
//! to do.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Priority;
use crate::process::monotonic_ns;

/// Of `SCHED_FIFO`: the lowest, which is enough to come before everything normal.
const LOWEST: libc::c_int = 1;
const LONGEST_RUN: Duration = Duration::from_millis(20);

/// Lets a thread take real-time priority later, without a capability; whether that
/// worked.
pub fn raise_limit() -> bool {
    let limit = getrlimit(Resource::Rtprio);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= LOWEST as u64);
    if enough(limit.current) {
        return true;
    }
    let lowest = Some(LOWEST as u64);
    let maximum = if enough(limit.maximum) {
        limit.maximum
    } else {
        lowest
    };
    let raised = Rlimit {
        current: lowest,
        maximum,
    };
    setrlimit(Resource::Rtprio, raised).is_ok()
}

/// How the kernel schedules a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    RealTime,
    Normal,
}

/// The priority of one thread, which does all the calls.
#[derive(Debug)]
pub struct ThreadPriority {
    /// Whether it has real-time priority when it is not at work for long.
    real_time: bool,
    stepped_down: AtomicBool,
    /// Since when it has been at work, by CLOCK_MONOTONIC.
    awake_ns: AtomicU64,
    set: fn(Policy) -> io::Result<()>,
}

impl ThreadPriority {
    /// Of the calling thread. A refusal is said once, and the priority stays normal.
    pub fn of_this_thread(priority: Priority) -> Arc<Self> {
        Arc::new(Self::new(priority, set_policy))
    }

    fn new(priority: Priority, set: fn(Policy) -> io::Result<()>) -> Self {
        let real_time = match priority {
            Priority::Normal => false,
            Priority::Realtime => match set(Policy::RealTime) {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "no real-time priority for the thread that hears of deaths: on a busy host it does so some \
                         milliseconds later (docs/operations.md, \"Priority\")"
                    );
                    false
                }
            },
        };
        Self {
            real_time,
            stepped_down: AtomicBool::new(false),
            awake_ns: AtomicU64::new(monotonic_ns()),
            set,
        }
    }

    /// It was asleep.
    pub fn awake(&self) {
        self.awake_ns.store(monotonic_ns(), Ordering::Relaxed);
    }

    /// It is at work.
    pub fn at_work(&self) {
        if self.real_time && !self.stepped_down.load(Ordering::Relaxed) {
            self.at_work_at(monotonic_ns());
        }
    }

    fn at_work_at(&self, now_ns: u64) {
        let run = now_ns.saturating_sub(self.awake_ns.load(Ordering::Relaxed));
        if u128::from(run) >= LONGEST_RUN.as_nanos() && (self.set)(Policy::Normal).is_ok() {
            self.stepped_down.store(true, Ordering::Relaxed);
        }
    }

    /// It has nothing to do.
    pub fn falls_asleep(&self) {
        if self.stepped_down.load(Ordering::Relaxed) && (self.set)(Policy::RealTime).is_ok() {
            self.stepped_down.store(false, Ordering::Relaxed);
        }
    }
}

/// Of the calling thread. Those that it makes have normal priority all the same.
fn set_policy(policy: Policy) -> io::Result<()> {
    let (policy, priority) = match policy {
        Policy::RealTime => (libc::SCHED_FIFO, LOWEST),
        Policy::Normal => (libc::SCHED_OTHER, 0),
    };
    let parameters = [priority];
    // By number: musl's function of this name only fails.
    // SAFETY: sched_setscheduler(2) reads a `struct sched_param`, which is one integer to
    // the kernel, and changes nothing but the scheduling of this thread.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            policy | libc::SCHED_RESET_ON_FORK,
            parameters.as_ptr(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN_NS: u64 = LONGEST_RUN.as_nanos() as u64;

    /// Of this thread, as the kernel has it.
    fn policy() -> libc::c_int {
        // SAFETY: asks for a number.
        let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
        policy as libc::c_int & !libc::SCHED_RESET_ON_FORK
    }

    #[test]
    fn steps_down_when_it_never_sleeps_and_up_when_it_does() {
        std::thread::spawn(|| {
            let priority = ThreadPriority::of_this_thread(Priority::Realtime);
            if !priority.real_time {
                println!("no right to real-time priority");
                return;
            }
            assert_eq!(policy(), libc::SCHED_FIFO);
            let inherited = std::thread::spawn(policy).join().unwrap();
            assert_eq!(inherited, libc::SCHED_OTHER);
            let since = priority.awake_ns.load(Ordering::Relaxed);
            priority.at_work_at(since + RUN_NS - 1);
            assert_eq!(policy(), libc::SCHED_FIFO);
            priority.at_work_at(since + RUN_NS);
            assert_eq!(policy(), libc::SCHED_OTHER);
            priority.falls_asleep();
            assert_eq!(policy(), libc::SCHED_FIFO);
            priority.awake();
            priority.at_work_at(since + RUN_NS);
            assert_eq!(policy(), libc::SCHED_FIFO);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn what_is_not_wanted_or_refused_is_left_as_it_is() {
        let refused = |_| Err(io::Error::from(io::ErrorKind::PermissionDenied));
        let never = |policy| panic!("{policy:?} was asked for");
        for priority in [
            ThreadPriority::new(Priority::Realtime, refused),
            ThreadPriority::new(Priority::Normal, never),
        ] {
            assert!(!priority.real_time);
            priority.awake_ns.store(0, Ordering::Relaxed);
            priority.at_work();
            priority.falls_asleep();
            priority.awake();
        }
    }
}
