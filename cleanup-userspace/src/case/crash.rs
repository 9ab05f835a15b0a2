//! Places between two steps at which a test may end the process, as a power cut
//! would. A release build has none, unless it was asked for by the feature
//! `crash-points`.

use super::decide::Step;

/// Which side of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

/// Names the point to die at: `before:sweep`, `after:stop`.
#[cfg(any(debug_assertions, feature = "crash-points"))]
pub const VARIABLE: &str = "COMPOSE_CLEANUP_CRASH_AT";

#[cfg(not(any(debug_assertions, feature = "crash-points")))]
pub fn point(_step: Step, _moment: Moment) {}

/// Dies here if it was told to: by SIGKILL, so that nothing is tidied up.
#[cfg(any(debug_assertions, feature = "crash-points"))]
pub fn point(step: Step, moment: Moment) {
    let name = match moment {
        Moment::Before => "before",
        Moment::After => "after",
    };
    let here = format!("{name}:{}", step.name());
    if std::env::var(VARIABLE).is_ok_and(|wanted| wanted == here) {
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
        // The signal is on its way.
        loop {
            std::thread::park();
        }
    }
}
