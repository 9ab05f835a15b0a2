//! What an exit means for its run.

use super::Run;
use crate::probe::ExitRecord;
use crate::process::Proc;

/// What ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A thread group in the container's cgroup, by a kernel event.
    Group {
        tgid: u32,
        ppid: u32,
        start_boottime_ns: u64,
    },
    /// The launcher helper, by its pidfd.
    Helper(Proc),
    /// The executor, by its pidfd.
    Executor(Proc),
}

impl From<&ExitRecord> for Ended {
    fn from(record: &ExitRecord) -> Self {
        Self::Group {
            tgid: record.tgid,
            ppid: record.ppid,
            start_boottime_ns: record.start_boottime_ns,
        }
    }
}

impl Ended {
    /// Whether it was this process that ended.
    fn is(self, proc: Option<Proc>) -> bool {
        proc.is_some_and(|proc| match self {
            Self::Group {
                tgid,
                start_boottime_ns,
                ..
            } => proc.matches(tgid, start_boottime_ns),
            Self::Helper(ended) | Self::Executor(ended) => proc == ended,
        })
    }
}

/// What an exit means for its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The executor is dead: proven.
    Dead,
    /// The helper is dead and the executor was never learnt: dead if the helper
    /// recorded its end, or no process of the run is left; else wait for those.
    DeadIfAlone,
    /// The helper is dead, the executor lives: nothing is stopped.
    Orphaned,
    /// A child of the helper ended that was not known to be the executor: a
    /// command that prepares the container, or an executor too short-lived to
    /// be learnt. The helper's own end, which follows, decides.
    HelperDecides,
    /// A child of a monitor, somebody who was adopted by init, …
    Nobody,
}

/// Whose exit the kernel reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The executor's.
    Executor,
    /// The launcher helper's, of an executor that is not known to have ended.
    Helper,
    /// A child's of the helper, of a run whose executor is not known.
    HelperChild,
    /// Another process' in the container's cgroup.
    Nobody,
    /// In a run whose case is open, or was closed: the helper's after its executor's.
    Over,
    /// In a cgroup beneath the root that is no configured agent's run.
    Foreign,
}

impl Role {
    pub const ALL: [Self; 6] = [
        Self::Executor,
        Self::Helper,
        Self::HelperChild,
        Self::Nobody,
        Self::Over,
        Self::Foreign,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Executor => "executor",
            Self::Helper => "helper",
            Self::HelperChild => "helper_child",
            Self::Nobody => "nobody",
            Self::Over => "over",
            Self::Foreign => "foreign",
        }
    }

    /// Whose it was in a run that lives, as far as is known of that.
    pub fn of(run: &Run, ended: Ended) -> Self {
        if ended.is(run.executor) {
            Self::Executor
        } else if ended.is(run.helper) {
            Self::Helper
        } else if judge(run, ended, |_| true) == Verdict::HelperDecides {
            Self::HelperChild
        } else {
            Self::Nobody
        }
    }
}

/// Judges an exit by what is known of the run. `alive` is asked of the executor
/// only.
pub fn judge(run: &Run, ended: Ended, alive: impl Fn(Proc) -> bool) -> Verdict {
    if ended.is(run.executor) {
        return Verdict::Dead;
    }
    if ended.is(run.helper) {
        return match run.executor {
            Some(executor) if alive(executor) => Verdict::Orphaned,
            Some(_) => Verdict::Dead,
            None => Verdict::DeadIfAlone,
        };
    }
    match (ended, run.helper) {
        (Ended::Group { ppid, .. }, Some(helper))
            if ppid == helper.pid && run.executor.is_none() =>
        {
            Verdict::HelperDecides
        }
        // Whoever is left of an orphaned run that was never learnt whole.
        (Ended::Group { .. }, _) if run.orphaned && run.executor.is_none() => Verdict::DeadIfAlone,
        _ => Verdict::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Launcher;

    const HELPER: Proc = Proc {
        pid: 100,
        start_ticks: 5,
    };
    const EXECUTOR: Proc = Proc {
        pid: 101,
        start_ticks: 6,
    };

    fn run(executor: Option<Proc>) -> Run {
        Run {
            container: "857fd7a0-df05-458b-bd72-f5c280790aa0".parse().unwrap(),
            agent: 0,
            identity: None,
            launcher: Launcher::Linux,
            helper: Some(HELPER),
            executor,
            seat: None,
            owned: true,
            orphaned: false,
        }
    }

    fn group(tgid: u32, ppid: u32, ticks: u64) -> Ended {
        Ended::Group {
            tgid,
            ppid,
            start_boottime_ns: ticks * 10_000_000 + 1,
        }
    }

    #[test]
    fn every_exit_is_somebodys() {
        let (known, unlearnt) = (run(Some(EXECUTOR)), run(None));
        for (run, ended, role) in [
            (&known, group(101, 100, 6), Role::Executor),
            (&known, group(101, 100, 7), Role::Nobody),
            (&known, group(100, 50, 5), Role::Helper),
            (&known, group(300, 100, 9), Role::Nobody),
            (&unlearnt, group(300, 100, 9), Role::HelperChild),
            (&unlearnt, group(300, 1, 9), Role::Nobody),
        ] {
            assert_eq!(Role::of(run, ended), role, "{ended:?}");
        }
    }

    #[test]
    fn every_exit_has_one_meaning() {
        let known = run(Some(EXECUTOR));
        let unlearnt = run(None);
        let orphan = Run {
            orphaned: true,
            ..run(None)
        };
        for (what, run, ended, alive, verdict) in [
            (
                "executor, helper lives",
                &known,
                group(101, 100, 6),
                false,
                Verdict::Dead,
            ),
            (
                "executor after its helper",
                &known,
                group(101, 1, 6),
                false,
                Verdict::Dead,
            ),
            (
                "executor's PID reused",
                &known,
                group(101, 100, 7),
                true,
                Verdict::Nobody,
            ),
            (
                "helper, executor lives",
                &known,
                group(100, 50, 5),
                true,
                Verdict::Orphaned,
            ),
            (
                "helper after its executor",
                &known,
                group(100, 50, 5),
                false,
                Verdict::Dead,
            ),
            (
                "helper's PID reused",
                &known,
                group(100, 50, 6),
                true,
                Verdict::Nobody,
            ),
            (
                "monitor's child",
                &known,
                group(300, 101, 9),
                true,
                Verdict::Nobody,
            ),
            (
                "adopted by init",
                &known,
                group(300, 1, 9),
                true,
                Verdict::Nobody,
            ),
            (
                "another child of the helper",
                &known,
                group(99, 100, 5),
                true,
                Verdict::Nobody,
            ),
            (
                "child of a helper whose executor is unlearnt",
                &unlearnt,
                group(99, 100, 5),
                true,
                Verdict::HelperDecides,
            ),
            (
                "helper, executor unlearnt",
                &unlearnt,
                group(100, 50, 5),
                true,
                Verdict::DeadIfAlone,
            ),
            (
                "last of an orphaned run",
                &orphan,
                group(555, 1, 9),
                false,
                Verdict::DeadIfAlone,
            ),
            (
                "pidfd of the executor",
                &known,
                Ended::Executor(EXECUTOR),
                false,
                Verdict::Dead,
            ),
            (
                "pidfd of the helper",
                &known,
                Ended::Helper(HELPER),
                true,
                Verdict::Orphaned,
            ),
            (
                "pidfd of another helper",
                &known,
                Ended::Helper(Proc {
                    pid: 100,
                    start_ticks: 4,
                }),
                false,
                Verdict::Nobody,
            ),
        ] {
            assert_eq!(judge(run, ended, |_| alive), verdict, "{what}");
        }
    }
}
