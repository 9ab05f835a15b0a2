//! What became of a guest. Only a status and the line that announces it are a success: a kernel
//! that panics ends QEMU with status 0, and QEMU that cannot start has status 1.

use std::fmt;
use std::time::Duration;

use cleanup_tests::guest::{EXIT_OFFSET, Line};

/// How QEMU ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Status(i32),
    /// By somebody else's signal.
    Signal(i32),
    /// By us: the time was over.
    Limit(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    /// A program of the job failed.
    Failed {
        program: String,
        status: i32,
    },
    /// The guest went wrong before or beside the job.
    Broken(String),
    /// The kernel panicked, or the machine was switched off without a word.
    Silent(String),
    TimedOut(Duration),
    /// QEMU itself.
    Qemu(String),
}

impl Verdict {
    pub(crate) fn of(end: End, log: &str) -> Self {
        let lines: Vec<Line> = log.lines().filter_map(Line::parse).collect();
        let broken = lines.iter().find_map(|line| match line {
            Line::Broken { why } => Some(why.clone()),
            _ => None,
        });
        let announced = lines.iter().rev().find_map(|line| match line {
            Line::Exit { status } => Some(*status),
            _ => None,
        });
        let failed = lines.iter().find_map(|line| match line {
            Line::Ended {
                program, status, ..
            } if *status != 0 => Some((program.clone(), *status)),
            _ => None,
        });
        match (end, announced) {
            (End::Limit(limit), _) => Self::TimedOut(limit),
            (End::Signal(signal), _) => Self::Qemu(format!("ended by signal {signal}")),
            (End::Status(status), Some(guest)) if status == qemu_status(guest) => {
                match (broken, failed, guest) {
                    (Some(why), _, _) => Self::Broken(why),
                    (None, Some((program, status)), _) => Self::Failed { program, status },
                    (None, None, 0) => Self::Passed,
                    (None, None, status) => {
                        Self::Broken(format!("status {status}, and no program failed"))
                    }
                }
            }
            (End::Status(0), _) => Self::Silent(
                panic_line(log).unwrap_or_else(|| "switched off without a verdict".to_owned()),
            ),
            (End::Status(1), _) => Self::Qemu("it could not start: see the log".to_owned()),
            (End::Status(status), Some(guest)) => Self::Broken(format!(
                "the guest announced {guest}, and QEMU ended with {status}"
            )),
            (End::Status(status), None) => {
                Self::Silent(format!("QEMU's status {status} without a last line"))
            }
        }
    }

    pub(crate) fn passed(&self) -> bool {
        *self == Self::Passed
    }
}

/// QEMU's status for what a guest writes to the exit device.
fn qemu_status(guest: u8) -> i32 {
    ((i32::from(EXIT_OFFSET) + i32::from(guest)) << 1) | 1
}

fn panic_line(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains("Kernel panic"))?;
    Some(line.trim().to_owned())
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("pass"),
            Self::Failed { program, status } => write!(f, "FAIL: {program}, status {status}"),
            Self::Broken(why) => write!(f, "BROKEN: {why}"),
            Self::Silent(what) => write!(f, "DIED: {what}"),
            Self::TimedOut(limit) => write!(f, "TIME: ended after {} s", limit.as_secs()),
            Self::Qemu(why) => write!(f, "QEMU: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "SeaBIOS..LAB booted 6.1.0 1900\nLAB begins kernel\n\
                        LAB ended kernel 0 9000\nLAB exit=0\n";

    #[test]
    fn a_status_and_its_announcement_are_a_success() {
        assert_eq!(Verdict::of(End::Status(129), GOOD), Verdict::Passed);
    }

    #[test]
    fn one_of_them_alone_is_none() {
        let silent = GOOD.replace("LAB exit=0\n", "");
        for (end, log) in [
            (End::Status(129), &*silent),
            (End::Status(129), ""),
            (End::Status(0), GOOD),
            (End::Status(1), GOOD),
            (End::Status(131), GOOD),
            (End::Signal(9), GOOD),
            (End::Limit(Duration::from_secs(60)), GOOD),
        ] {
            assert!(!Verdict::of(end, log).passed(), "{end:?} {log:?}");
        }
    }

    #[test]
    fn a_failed_program_is_named() {
        let log = "LAB ended doctor 0 100\nLAB ended kernel 101 9000\nLAB exit=63\n";
        assert_eq!(
            Verdict::of(End::Status(255), log),
            Verdict::Failed {
                program: "kernel".to_owned(),
                status: 101
            }
        );
        let hidden = log.replace("exit=63", "exit=0");
        assert!(!Verdict::of(End::Status(129), &hidden).passed());
    }

    #[test]
    fn a_broken_guest_is_no_success_whatever_its_status() {
        let log = format!("LAB broken mounting /proc\n{GOOD}");
        assert_eq!(
            Verdict::of(End::Status(129), &log),
            Verdict::Broken("mounting /proc".to_owned())
        );
    }

    #[test]
    fn a_panic_is_told_in_the_kernels_words() {
        let log = "[    1.5] Kernel panic - not syncing: double fault\n";
        assert_eq!(
            Verdict::of(End::Status(0), log).to_string(),
            "DIED: [    1.5] Kernel panic - not syncing: double fault"
        );
    }
}
