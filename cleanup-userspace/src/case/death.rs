//! How a run is known to be dead.

use crate::probe::TaskHierarchies;
use crate::process::{monotonic_ns, unix_seconds};
use crate::registry::Run;

/// Who noticed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The kernel's group-dead event for exactly this process.
    Kernel,
    /// The pidfd of the launcher helper or of the executor; without pidfds a look at
    /// exactly that process.
    Pidfd,
    /// The Mesos hook module, by a request that named the executor.
    Hook,
    /// Comparing what should be with what is.
    Scan,
    /// The operator, who asked to clean up after a run that a survey finds dead.
    Operator,
    /// The operator, who says of a run that nobody can judge that it is dead.
    Forced,
}

/// How sure a death is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The kernel said so of exactly this process.
    Kernel,
    /// Concluded from what is there and what is not (architecture rule 3).
    Inferred,
    /// The operator's word alone: nothing shows that the run lives, and that has to
    /// be so again before each effect.
    Word,
}

impl Origin {
    pub const ALL: [Self; 6] = [
        Self::Kernel,
        Self::Pidfd,
        Self::Hook,
        Self::Scan,
        Self::Operator,
        Self::Forced,
    ];

    pub fn proof(self) -> Proof {
        match self {
            Self::Kernel | Self::Pidfd => Proof::Kernel,
            Self::Hook | Self::Scan | Self::Operator => Proof::Inferred,
            Self::Forced => Proof::Word,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Pidfd => "pidfd",
            Self::Hook => "hook",
            Self::Scan => "scan",
            Self::Operator => "operator",
            Self::Forced => "forced",
        }
    }
}

/// The proof, and when it came.
#[derive(Debug, Clone)]
pub struct Death {
    pub origin: Origin,
    /// CLOCK_MONOTONIC: the kernel's own time of the exit, or for other origins
    /// the time it was noticed.
    pub at_ns: u64,
    /// When user space had it.
    pub noticed_ns: u64,
    /// Wall-clock time of the death, in seconds since the epoch.
    pub at_unix: f64,
    /// As wait(2) reports it, where known.
    pub wait_status: Option<i32>,
    /// Where the dead task itself sat, where the kernel told.
    pub sat_in: Option<TaskHierarchies>,
}

impl Death {
    /// A death that was noticed now, by something else than the kernel's event.
    pub fn noticed(origin: Origin) -> Self {
        let now = monotonic_ns();
        Self {
            origin,
            at_ns: now,
            noticed_ns: now,
            at_unix: unix_seconds(),
            wait_status: None,
            sat_in: None,
        }
    }

    /// How it is known that this run is dead, for people.
    pub fn proof_text(&self, run: &Run) -> String {
        let recorded = recorded_end(run);
        match self.origin {
            Origin::Kernel => "the kernel reported the end of its process".to_owned(),
            Origin::Pidfd => "its process, watched since it was alive, has ended".to_owned(),
            Origin::Hook | Origin::Scan | Origin::Operator => {
                format!("{recorded}, nothing of its own lives in its cgroups, in two looks")
            }
            Origin::Forced => "the operator says so; nothing showed that it lives".to_owned(),
        }
    }

    /// `signal 9`, `exit 7`, `unknown`.
    pub fn status(&self) -> String {
        match self.wait_status {
            None => "unknown".to_owned(),
            Some(status) if status & 0x7f != 0 => format!("signal {}", status & 0x7f),
            Some(status) => format!("exit {}", (status >> 8) & 0xff),
        }
    }
}

/// What became of the process that an agent recorded of a dead run, for people.
pub fn recorded_end(run: &Run) -> String {
    run.helper.map_or_else(
        || "no process of it is recorded".to_owned(),
        |helper| format!("its recorded process {} is gone", helper.pid),
    )
}
