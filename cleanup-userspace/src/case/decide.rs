//! What to do next for a dead run: facts in, one step out. No clock, no file, no
//! socket: everything that matters is in [`Facts`].

use std::time::Duration;

use crate::config::Teardown;
use crate::mesos::AgentState;

/// What the configuration allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub teardown: Teardown,
    pub settle: Duration,
    pub agent_deadline: Duration,
}

/// Whether the agent still owns the dead run's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// The container is in its runtime directory.
    Owned,
    /// It was, and is no more: the agent finished its destroy.
    Done,
    /// It was never seen there, so its absence says nothing.
    Unknown,
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
    /// Containers of the pod that run and were not asked to stop yet (or whose
    /// last request failed and is due again).
    pub to_stop: usize,
    /// Requests to Docker that are not answered yet.
    pub in_flight: usize,
    /// How long until a failed request is due again, if one is.
    pub retry_in: Option<Duration>,
    /// Since when nothing of the run was seen to run, processes and containers;
    /// `None` while something does.
    pub quiet_for: Option<Duration>,
    /// Docker was asked for everything that runs, after the run became quiet,
    /// or later than that by the settle time.
    pub swept: Swept,
    /// Processes of the run itself that are left.
    pub own_processes: usize,
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
}

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The host was seen clean.
    Clean,
}

/// The next step. Never one that touches what a living agent owns, unless the
/// policy says `immediate`.
pub fn decide(facts: &Facts, policy: &Policy) -> Step {
    if facts.to_stop > 0 {
        return Step::Stop;
    }
    // The second wave does not wait for the first one's answers.
    if facts.swept == Swept::Never && facts.retry_in.is_none() {
        return Step::Sweep;
    }
    let recovering = facts.agent == AgentState::Recovering;
    let done = facts.agent == AgentState::Absent || facts.ownership == Ownership::Done;
    let immediate = policy.teardown == Teardown::Immediate;
    // Nobody else's (any more), and nobody looks at them while they go.
    let agents = !recovering && (done || immediate);
    if facts.own_processes > 0 {
        return if agents {
            Step::EndStragglers
        } else {
            stuck_or(facts, policy, Waiting::AgentKills)
        };
    }
    if facts.in_flight > 0 || facts.retry_in.is_some() {
        return Step::Wait(Waiting::Docker);
    }
    let Some(quiet_for) = facts.quiet_for else {
        // A container runs that is neither asked nor to be asked: look again.
        return Step::Sweep;
    };
    if facts.swept == Swept::Early {
        return Step::Sweep;
    }

    let removable =
        |directory: &Directory| !recovering && (agents || *directory == Directory::Dockers);
    let removable = facts.directories.iter().any(removable);
    if removable && !facts.busy {
        return Step::Remove { agents };
    }
    if quiet_for < policy.settle {
        return Step::Wait(Waiting::Settle);
    }
    if facts.swept != Swept::Settled {
        return Step::Sweep;
    }
    if facts.directories.is_empty() {
        return Step::Close(Outcome::Clean);
    }
    if removable {
        Step::Wait(Waiting::Busy)
    } else {
        stuck_or(facts, policy, Waiting::AgentDestroys)
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(teardown: Teardown) -> Policy {
        Policy {
            teardown,
            settle: Duration::from_secs(1),
            agent_deadline: Duration::from_secs(60),
        }
    }

    /// A pod that is stopped, under a living agent that is at work.
    fn quiet() -> Facts {
        Facts {
            to_stop: 0,
            in_flight: 0,
            retry_in: None,
            quiet_for: Some(Duration::from_millis(10)),
            swept: Swept::Quiet,
            own_processes: 0,
            agent: AgentState::Alive,
            ownership: Ownership::Owned,
            directories: vec![Directory::Agents],
            busy: false,
            age: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_usual_way() {
        let policy = policy(Teardown::Cooperative);
        let long = Some(Duration::from_secs(2));
        for (what, facts, step) in [
            (
                "first wave",
                Facts {
                    to_stop: 3,
                    swept: Swept::Never,
                    ..quiet()
                },
                Step::Stop,
            ),
            (
                "second wave meanwhile",
                Facts {
                    in_flight: 3,
                    quiet_for: None,
                    swept: Swept::Never,
                    ..quiet()
                },
                Step::Sweep,
            ),
            (
                "creators live",
                Facts {
                    own_processes: 2,
                    swept: Swept::Early,
                    ..quiet()
                },
                Step::Wait(Waiting::AgentKills),
            ),
            (
                "creators of a dead agent",
                Facts {
                    own_processes: 2,
                    agent: AgentState::Absent,
                    ..quiet()
                },
                Step::EndStragglers,
            ),
            (
                "stops run",
                Facts {
                    in_flight: 1,
                    quiet_for: None,
                    swept: Swept::Early,
                    ..quiet()
                },
                Step::Wait(Waiting::Docker),
            ),
            (
                "look again when the creators are gone",
                Facts {
                    swept: Swept::Early,
                    ..quiet()
                },
                Step::Sweep,
            ),
            (
                "Docker's own directories at once",
                Facts {
                    directories: vec![Directory::Dockers, Directory::Agents],
                    ..quiet()
                },
                Step::Remove { agents: false },
            ),
            (
                "the agent's are the agent's",
                quiet(),
                Step::Wait(Waiting::Settle),
            ),
            (
                "settled, look once more",
                Facts {
                    quiet_for: long,
                    ..quiet()
                },
                Step::Sweep,
            ),
            (
                "agent at work",
                Facts {
                    quiet_for: long,
                    swept: Swept::Settled,
                    ..quiet()
                },
                Step::Wait(Waiting::AgentDestroys),
            ),
            (
                "agent stuck",
                Facts {
                    quiet_for: long,
                    swept: Swept::Settled,
                    age: Duration::from_secs(61),
                    ..quiet()
                },
                Step::Wait(Waiting::AgentStuck),
            ),
            (
                "agent done",
                Facts {
                    ownership: Ownership::Done,
                    ..quiet()
                },
                Step::Remove { agents: true },
            ),
            (
                "agent dead",
                Facts {
                    agent: AgentState::Absent,
                    ..quiet()
                },
                Step::Remove { agents: true },
            ),
            (
                "never owned",
                Facts {
                    ownership: Ownership::Unknown,
                    quiet_for: long,
                    swept: Swept::Settled,
                    ..quiet()
                },
                Step::Wait(Waiting::AgentDestroys),
            ),
            (
                "busy, settle meanwhile",
                Facts {
                    directories: vec![Directory::Dockers],
                    busy: true,
                    ..quiet()
                },
                Step::Wait(Waiting::Settle),
            ),
            (
                "busy, settled",
                Facts {
                    directories: vec![Directory::Dockers],
                    busy: true,
                    quiet_for: long,
                    swept: Swept::Settled,
                    ..quiet()
                },
                Step::Wait(Waiting::Busy),
            ),
            (
                "done, but processes are left",
                Facts {
                    own_processes: 1,
                    ownership: Ownership::Done,
                    ..quiet()
                },
                Step::EndStragglers,
            ),
            (
                "recovering",
                Facts {
                    agent: AgentState::Recovering,
                    ownership: Ownership::Done,
                    directories: vec![Directory::Dockers],
                    ..quiet()
                },
                Step::Wait(Waiting::Settle),
            ),
            (
                "clean",
                Facts {
                    directories: vec![],
                    quiet_for: long,
                    swept: Swept::Settled,
                    ..quiet()
                },
                Step::Close(Outcome::Clean),
            ),
            (
                "clean, not settled",
                Facts {
                    directories: vec![],
                    ..quiet()
                },
                Step::Wait(Waiting::Settle),
            ),
            (
                "Docker away",
                Facts {
                    retry_in: Some(Duration::from_secs(1)),
                    quiet_for: None,
                    swept: Swept::Never,
                    ..quiet()
                },
                Step::Wait(Waiting::Docker),
            ),
        ] {
            assert_eq!(decide(&facts, &policy), step, "{what}");
        }
    }

    #[test]
    fn immediate_does_not_wait_for_the_agent() {
        let policy = policy(Teardown::Immediate);
        assert_eq!(decide(&quiet(), &policy), Step::Remove { agents: true });
        assert_eq!(
            decide(
                &Facts {
                    own_processes: 1,
                    ..quiet()
                },
                &policy
            ),
            Step::EndStragglers
        );
    }

    fn any_facts() -> impl Strategy<Value = Facts> {
        let requests = (
            0..3usize,
            0..3usize,
            proptest::option::of((0..5u64).prop_map(Duration::from_secs)),
            proptest::option::of((0..5000u64).prop_map(Duration::from_millis)),
            prop::sample::select(vec![
                Swept::Never,
                Swept::Early,
                Swept::Quiet,
                Swept::Settled,
            ]),
        );
        let host = (
            0..3usize,
            prop::sample::select(vec![
                AgentState::Alive,
                AgentState::Recovering,
                AgentState::Absent,
            ]),
            prop::sample::select(vec![Ownership::Owned, Ownership::Done, Ownership::Unknown]),
            proptest::collection::vec(
                prop::sample::select(vec![Directory::Dockers, Directory::Agents]),
                0..4,
            ),
            any::<bool>(),
            (0..120u64).prop_map(Duration::from_secs),
        );
        (requests, host).prop_map(
            |(
                (to_stop, in_flight, retry_in, quiet_for, swept),
                (own_processes, agent, ownership, directories, busy, age),
            )| Facts {
                to_stop,
                in_flight,
                retry_in,
                quiet_for,
                swept,
                own_processes,
                agent,
                ownership,
                directories,
                busy,
                age,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn a_living_agents_things_are_left_alone(facts in any_facts()) {
            let step = decide(&facts, &policy(Teardown::Cooperative));
            if facts.agent != AgentState::Absent && facts.ownership != Ownership::Done {
                let touches = matches!(step, Step::Remove { agents: true } | Step::EndStragglers);
                prop_assert!(!touches, "{:?}", facts);
            }
            if facts.agent == AgentState::Recovering {
                let removes = matches!(step, Step::Remove { .. } | Step::EndStragglers);
                prop_assert!(!removes, "{:?}", facts);
            }
        }

        #[test]
        fn a_case_closes_only_when_clean(facts in any_facts()) {
            if let Step::Close(_) = decide(&facts, &policy(Teardown::Cooperative)) {
                prop_assert_eq!(facts.to_stop + facts.in_flight + facts.own_processes, 0);
                prop_assert!(facts.directories.is_empty() && facts.swept == Swept::Settled);
                prop_assert!(facts.quiet_for.is_some());
            }
        }

        /// What is busy does not keep Docker from being asked once more.
        #[test]
        fn a_busy_directory_does_not_stop_the_rest(facts in any_facts()) {
            let removes = matches!(decide(&facts, &policy(Teardown::Immediate)), Step::Remove { .. });
            prop_assert!(!(facts.busy && removes));
        }

        #[test]
        fn nothing_is_removed_while_something_runs(facts in any_facts()) {
            if let Step::Remove { .. } = decide(&facts, &policy(Teardown::Immediate)) {
                prop_assert_eq!(facts.to_stop + facts.in_flight + facts.own_processes, 0);
            }
        }
    }
}
