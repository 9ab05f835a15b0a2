//! What to do next for a dead run: facts in, one step out. No clock, no file, no
//! socket: everything that matters is in [`Facts`].

use std::time::Duration;

use super::death::Proof;
use crate::config::{Config, DockerFallback, Teardown};
use crate::mesos::AgentState;

/// How long Docker may say that nothing of a dead run's pod runs, while processes sit
/// in its cgroups there, before they are taken for nobody's. Longer than a container
/// is in its cgroup before its start, or after its end, is announced.
pub const DISOWNED_AFTER: Duration = Duration::from_secs(10);

/// What the configuration allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub teardown: Teardown,
    pub settle: Duration,
    pub agent_deadline: Duration,
    /// How long Docker may be silent before the pod is ended through its
    /// cgroups; `None`: never.
    pub fallback_after: Option<Duration>,
}

impl From<&Config> for Policy {
    fn from(config: &Config) -> Self {
        Self {
            teardown: config.teardown,
            settle: config.settle,
            agent_deadline: config.agent_deadline,
            // A stop may rightly take the grace period.
            fallback_after: match config.docker_fallback {
                DockerFallback::None => None,
                DockerFallback::CgroupKill => Some(config.grace + config.docker_deadline),
            },
        }
    }
}

/// Whether the agent still owns the dead run's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// The container is in its runtime directory.
    Owned,
    /// It was, and is no more: the agent finished its destroy.
    Done,
    /// It was never seen there, so its absence says nothing; or the runtime
    /// directory itself is not there.
    Unknown,
}

impl Ownership {
    /// `owned`: whether the runtime directory has the container now, if that can be
    /// told; `meant`: it had, or is known to be the agent's, so that absence from it
    /// means something.
    pub fn of(owned: Option<bool>, meant: bool) -> Self {
        match (owned, meant) {
            (Some(true), _) => Self::Owned,
            (Some(false), true) => Self::Done,
            (Some(false), false) | (None, _) => Self::Unknown,
        }
    }
}

/// A cgroup directory of the run that exists now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directory {
    /// Docker made it: it is named by a Docker id, or it is the run's own in a
    /// hierarchy where the dead task did not sit in it. The agent does not know it.
    Dockers,
    /// The agent's: where the dead task sat, and whatever else is beneath.
    Agents,
}

/// Everything known of a case now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub proof: Proof,
    /// Whether the operator wants this run to be left alone; `None` while its
    /// executor is not known.
    pub excluded: Option<bool>,
    /// Deaths without the kernel's proof are held back now.
    pub held: bool,
    /// Containers of the pod that run and were not asked to stop yet (or whose
    /// last request failed and is due again).
    pub to_stop: usize,
    /// Containers of the pod that run and are to be kept.
    pub kept: usize,
    /// Requests to Docker that are not answered yet.
    pub in_flight: usize,
    /// Docker was asked what runs, and has not answered.
    pub sweeping: bool,
    /// How long until a failed request is due again, if one is.
    pub retry_in: Option<Duration>,
    /// How long Docker has owed an answer; `None` if it owes none.
    pub docker_silent_for: Option<Duration>,
    /// Processes of the pod beneath the run's cgroup, without those that are kept.
    pub pod_processes: usize,
    /// Since when nothing of the run was seen to run, processes and containers;
    /// `None` while something does.
    pub quiet_for: Option<Duration>,
    /// Docker was asked for everything that runs, after the run became quiet,
    /// or later than that by the settle time.
    pub swept: Swept,
    /// Processes of the run itself that are left.
    pub own_processes: usize,
    /// Something shows that the run lives, wherever that may be. Only looked for where
    /// the operator's word is the only proof.
    pub shows_life: bool,
    pub agent: AgentState,
    pub ownership: Ownership,
    /// One entry for each cgroup directory of the run that exists.
    pub directories: Vec<Directory>,
    /// The last attempt to remove something found it busy, a moment ago.
    pub busy: bool,
    /// Since the death.
    pub age: Duration,
}

/// How current the answer to "what of the pod runs?" is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// Docker was not asked since the death.
    Never,
    /// Asked, but something of the run may have started containers since.
    Early,
    /// Asked when nothing of the run was left.
    Quiet,
    /// Asked again when it had been quiet for the settle time.
    Settled,
}

/// The next thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ask Docker to stop what is to be stopped.
    Stop,
    /// Ask Docker what runs, and join it to the run.
    Sweep,
    /// End the pod's processes through their cgroups, since Docker does not: it stays
    /// away, or does not know of them any more.
    KillPod,
    /// End the run's own processes.
    EndStragglers,
    /// Remove directories of these kinds.
    Remove {
        agents: bool,
    },
    Wait(Waiting),
    Close(Outcome),
}

/// What is waited for. Every wait ends by an event or by polling; the longest
/// may last until the agent comes back or goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Who the executor was is looked up, to know whether it is excluded.
    Identity,
    /// The operator's release.
    Release,
    /// Docker's answer to a request, or the time to repeat one.
    Docker,
    /// The agent ends the run's processes.
    AgentKills,
    /// The settle time.
    Settle,
    /// The agent finishes its destroy.
    AgentDestroys,
    /// The agent is past its deadline: its destroy failed or hangs.
    AgentStuck,
    /// A directory that may be removed is not empty.
    Busy,
    /// A container that is to be kept still runs.
    Kept,
}

impl Step {
    /// Every step there is. For [`name`](Self::name)s, for tests that walk all.
    pub const ALL: [Self; 18] = [
        Self::Stop,
        Self::Sweep,
        Self::KillPod,
        Self::EndStragglers,
        Self::Remove { agents: false },
        Self::Remove { agents: true },
        Self::Wait(Waiting::Identity),
        Self::Wait(Waiting::Release),
        Self::Wait(Waiting::Docker),
        Self::Wait(Waiting::AgentKills),
        Self::Wait(Waiting::Settle),
        Self::Wait(Waiting::AgentDestroys),
        Self::Wait(Waiting::AgentStuck),
        Self::Wait(Waiting::Busy),
        Self::Wait(Waiting::Kept),
        Self::Close(Outcome::Clean),
        Self::Close(Outcome::Excluded),
        Self::Close(Outcome::Dismissed),
    ];

    /// As the journal and people know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Sweep => "sweep",
            Self::KillPod => "kill_pod",
            Self::EndStragglers => "end_stragglers",
            Self::Remove { agents: false } => "remove_docker_cgroups",
            Self::Remove { agents: true } => "remove_cgroups",
            Self::Wait(waiting) => match waiting {
                Waiting::Identity => "wait_identity",
                Waiting::Release => "wait_release",
                Waiting::Docker => "wait_docker",
                Waiting::AgentKills => "wait_agent_kills",
                Waiting::Settle => "wait_settle",
                Waiting::AgentDestroys => "wait_agent_destroys",
                Waiting::AgentStuck => "wait_agent_stuck",
                Waiting::Busy => "wait_busy",
                Waiting::Kept => "wait_kept",
            },
            Self::Close(outcome) => match outcome {
                Outcome::Clean => "close_clean",
                Outcome::Excluded => "close_excluded",
                Outcome::Dismissed => "close_dismissed",
            },
        }
    }
}

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The host was seen clean.
    Clean,
    /// The operator's rules leave this run alone.
    Excluded,
    /// The death was only inferred, or the operator's word, and something of the run
    /// lives.
    Dismissed,
}

/// The next step. Never one that touches what a living agent owns, unless the
/// policy says `immediate`.
pub fn decide(facts: &Facts, policy: &Policy) -> Step {
    match facts.excluded {
        Some(true) => return Step::Close(Outcome::Excluded),
        None => return Step::Wait(Waiting::Identity),
        Some(false) => {}
    }
    let may_live = match facts.proof {
        Proof::Kernel => false,
        Proof::Inferred => facts.own_processes > 0,
        Proof::Word => facts.own_processes > 0 || facts.shows_life,
    };
    if may_live {
        return Step::Close(Outcome::Dismissed);
    }
    if facts.to_stop > 0 {
        return if facts.held {
            Step::Wait(Waiting::Release)
        } else {
            Step::Stop
        };
    }
    // One list at a time, and none before it is due again.
    let may_ask = !facts.sweeping && facts.retry_in.is_none();
    if let (Some(limit), Some(silent)) = (policy.fallback_after, facts.docker_silent_for) {
        if silent >= limit && facts.pod_processes > 0 {
            return Step::KillPod;
        }
        // One container may hang while Docker is well: ask it something else.
        if silent >= limit / 2 && facts.in_flight > 0 && may_ask {
            return Step::Sweep;
        }
    }
    // The second wave does not wait for the first one's answers, and nothing for its own.
    if facts.swept == Swept::Never && may_ask {
        return Step::Sweep;
    }
    let may_remove = |kind| may_remove(kind, facts.agent, facts.ownership, policy.teardown);
    let agents = may_remove(Directory::Agents);
    if facts.own_processes > 0 {
        return if agents {
            Step::EndStragglers
        } else {
            stuck_or(facts, policy, Waiting::AgentKills)
        };
    }
    let is_old = matches!(facts.swept, Swept::Never | Swept::Early);
    let removable = facts.directories.iter().any(|kind| may_remove(*kind));
    let nothing_runs = facts.quiet_for.is_some() && facts.in_flight == 0 && facts.kept == 0;
    // Where nothing of the pod runs, Docker need not have said so: it takes seconds when
    // it has much to do. Beneath what runs, empty cgroups are no less its own.
    let nobody_there = facts.pod_processes == 0 || !is_old;
    if removable && !facts.busy && nothing_runs && nobody_there {
        return Step::Remove { agents };
    }
    if facts.in_flight > 0 || facts.retry_in.is_some() {
        return Step::Wait(Waiting::Docker);
    }
    let Some(quiet_for) = facts.quiet_for else {
        // A container runs that is neither asked nor to be asked: look again.
        return sweep(facts);
    };
    if is_old {
        return sweep(facts);
    }
    if facts.kept > 0 {
        return Step::Wait(Waiting::Kept);
    }
    if quiet_for < policy.settle {
        return Step::Wait(Waiting::Settle);
    }
    if facts.swept != Swept::Settled {
        return sweep(facts);
    }
    if facts.directories.is_empty() {
        return Step::Close(Outcome::Clean);
    }
    if removable {
        // Docker answers, and owes nothing: no policy of its brings these back.
        let answers = facts.docker_silent_for.is_none();
        if facts.pod_processes > 0 && answers && !facts.held && quiet_for >= DISOWNED_AFTER {
            return Step::KillPod;
        }
        Step::Wait(Waiting::Busy)
    } else {
        stuck_or(facts, policy, Waiting::AgentDestroys)
    }
}

/// Whether an empty cgroup of this kind may be removed now: it is nobody else's (any
/// more), and nobody looks at it while it goes.
pub fn may_remove(
    kind: Directory,
    agent: AgentState,
    ownership: Ownership,
    teardown: Teardown,
) -> bool {
    let done = agent == AgentState::Absent || ownership == Ownership::Done;
    let agents = done || teardown == Teardown::Immediate;
    agent != AgentState::Recovering && (agents || kind == Directory::Dockers)
}

/// One list at a time.
fn sweep(facts: &Facts) -> Step {
    if facts.sweeping {
        Step::Wait(Waiting::Docker)
    } else {
        Step::Sweep
    }
}

fn stuck_or(facts: &Facts, policy: &Policy, waiting: Waiting) -> Step {
    Step::Wait(if facts.age >= policy.agent_deadline {
        Waiting::AgentStuck
    } else {
        waiting
    })
}

#[cfg(test)]
mod tests;
