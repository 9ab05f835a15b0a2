//! Every state and fact of a case, by table and by property.

use super::*;

fn policy(teardown: Teardown) -> Policy {
    Policy {
        teardown,
        settle: Duration::from_secs(1),
        agent_deadline: Duration::from_secs(60),
        fallback_after: None,
    }
}

/// A pod that is stopped, under a living agent that is at work.
fn quiet() -> Facts {
    Facts {
        proof: Proof::Kernel,
        excluded: Some(false),
        held: false,
        to_stop: 0,
        kept: 0,
        docker_silent_for: None,
        pod_processes: 0,
        in_flight: 0,
        sweeping: false,
        retry_in: None,
        quiet_for: Some(Duration::from_millis(10)),
        swept: Swept::Quiet,
        own_processes: 0,
        shows_life: false,
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
            "one list at a time",
            Facts {
                in_flight: 3,
                sweeping: true,
                quiet_for: None,
                swept: Swept::Never,
                ..quiet()
            },
            Step::Wait(Waiting::Docker),
        ),
        (
            "the creators' end does not wait for a list",
            Facts {
                own_processes: 2,
                sweeping: true,
                swept: Swept::Never,
                ownership: Ownership::Done,
                ..quiet()
            },
            Step::EndStragglers,
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
            "and they do not wait for a list",
            Facts {
                directories: vec![Directory::Dockers],
                sweeping: true,
                swept: Swept::Never,
                ..quiet()
            },
            Step::Remove { agents: false },
        ),
        (
            "nor for a Docker that is away",
            Facts {
                directories: vec![Directory::Dockers],
                retry_in: Some(Duration::from_secs(1)),
                swept: Swept::Never,
                ..quiet()
            },
            Step::Remove { agents: false },
        ),
        (
            "but where something runs, Docker has to say that it is not its own",
            Facts {
                directories: vec![Directory::Dockers],
                pod_processes: 1,
                swept: Swept::Early,
                ..quiet()
            },
            Step::Sweep,
        ),
        (
            "nor does the list wait for them",
            Facts {
                directories: vec![Directory::Dockers],
                busy: true,
                swept: Swept::Early,
                ..quiet()
            },
            Step::Sweep,
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
            "settled, and Docker was asked",
            Facts {
                quiet_for: long,
                sweeping: true,
                ..quiet()
            },
            Step::Wait(Waiting::Docker),
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
        (
            "held",
            Facts {
                proof: Proof::Inferred,
                held: true,
                to_stop: 2,
                ..quiet()
            },
            Step::Wait(Waiting::Release),
        ),
        (
            "excluded",
            Facts {
                excluded: Some(true),
                to_stop: 2,
                ..quiet()
            },
            Step::Close(Outcome::Excluded),
        ),
        (
            "nobody knows yet whether it is excluded",
            Facts {
                excluded: None,
                to_stop: 2,
                ..quiet()
            },
            Step::Wait(Waiting::Identity),
        ),
        (
            "inferred to be dead, and lives",
            Facts {
                proof: Proof::Inferred,
                own_processes: 1,
                to_stop: 2,
                ..quiet()
            },
            Step::Close(Outcome::Dismissed),
        ),
        (
            "the operator says that it is dead, and nothing speaks against it",
            Facts {
                proof: Proof::Word,
                to_stop: 2,
                ..quiet()
            },
            Step::Stop,
        ),
        (
            "the operator says that it is dead, and a process of its own runs",
            Facts {
                proof: Proof::Word,
                own_processes: 1,
                to_stop: 2,
                ..quiet()
            },
            Step::Close(Outcome::Dismissed),
        ),
        (
            "the operator says that it is dead, and a process elsewhere is its",
            Facts {
                proof: Proof::Word,
                shows_life: true,
                to_stop: 2,
                ..quiet()
            },
            Step::Close(Outcome::Dismissed),
        ),
        (
            "the operator's word does not lift a hold",
            Facts {
                proof: Proof::Word,
                held: true,
                to_stop: 2,
                ..quiet()
            },
            Step::Wait(Waiting::Release),
        ),
        (
            "the operator's word does not lift an exclusion",
            Facts {
                proof: Proof::Word,
                excluded: Some(true),
                to_stop: 2,
                ..quiet()
            },
            Step::Close(Outcome::Excluded),
        ),
        (
            "the operator's word does not take what is a living agent's",
            Facts {
                proof: Proof::Word,
                ownership: Ownership::Unknown,
                quiet_for: long,
                swept: Swept::Settled,
                ..quiet()
            },
            Step::Wait(Waiting::AgentDestroys),
        ),
        (
            "proven by the kernel: who else names its sandbox was started by it",
            Facts {
                shows_life: true,
                to_stop: 2,
                ..quiet()
            },
            Step::Stop,
        ),
        (
            "Docker says what runs beside what is kept",
            Facts {
                kept: 1,
                swept: Swept::Early,
                ..quiet()
            },
            Step::Sweep,
        ),
        (
            "a kept container keeps its cgroups",
            Facts {
                kept: 1,
                directories: vec![Directory::Dockers],
                quiet_for: long,
                swept: Swept::Settled,
                ..quiet()
            },
            Step::Wait(Waiting::Kept),
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

#[test]
fn a_docker_that_stays_away() {
    let policy = Policy {
        fallback_after: Some(Duration::from_secs(60)),
        ..policy(Teardown::Cooperative)
    };
    let hanging = |silent: u64, in_flight, retry_in: Option<u64>| Facts {
        in_flight,
        retry_in: retry_in.map(Duration::from_secs),
        docker_silent_for: Some(Duration::from_secs(silent)),
        pod_processes: 2,
        quiet_for: None,
        swept: Swept::Early,
        ..quiet()
    };
    for (facts, step) in [
        (hanging(10, 1, None), Step::Wait(Waiting::Docker)),
        // Is it Docker that hangs, or this container?
        (hanging(30, 1, None), Step::Sweep),
        (hanging(59, 1, Some(3)), Step::Wait(Waiting::Docker)),
        (hanging(60, 1, Some(3)), Step::KillPod),
        (hanging(60, 0, Some(3)), Step::KillPod),
    ] {
        assert_eq!(decide(&facts, &policy), step, "{facts:?}");
    }
    let asked = Facts {
        sweeping: true,
        ..hanging(30, 1, None)
    };
    assert_eq!(decide(&asked, &policy), Step::Wait(Waiting::Docker));
    let silent_list = Facts {
        sweeping: true,
        swept: Swept::Never,
        ..hanging(60, 0, None)
    };
    assert_eq!(decide(&silent_list, &policy), Step::KillPod);
    let over = Facts {
        pod_processes: 0,
        ..hanging(60, 1, Some(3))
    };
    assert_eq!(decide(&over, &policy), Step::Wait(Waiting::Docker));
    assert_eq!(
        decide(
            &hanging(600, 1, Some(3)),
            &self::policy(Teardown::Cooperative)
        ),
        Step::Wait(Waiting::Docker),
        "without the operator's leave"
    );
}

/// Processes in Docker's cgroups that Docker says nothing of.
#[test]
fn a_docker_that_has_forgotten_what_it_started() {
    let disowned = Facts {
        pod_processes: 1,
        directories: vec![Directory::Dockers],
        busy: true,
        quiet_for: Some(DISOWNED_AFTER),
        swept: Swept::Settled,
        ..quiet()
    };
    let policy = policy(Teardown::Cooperative);
    assert_eq!(decide(&disowned, &policy), Step::KillPod);
    let silent = Some(Duration::from_secs(1));
    for not_yet in [
        Facts {
            quiet_for: Some(DISOWNED_AFTER - Duration::from_millis(1)),
            ..disowned.clone()
        },
        Facts {
            held: true,
            ..disowned.clone()
        },
        Facts {
            docker_silent_for: silent,
            ..disowned.clone()
        },
        Facts {
            pod_processes: 0,
            ..disowned.clone()
        },
    ] {
        assert_eq!(
            decide(&not_yet, &policy),
            Step::Wait(Waiting::Busy),
            "{not_yet:?}"
        );
    }
    let recovering = Facts {
        agent: AgentState::Recovering,
        ..disowned
    };
    assert_eq!(
        decide(&recovering, &policy),
        Step::Wait(Waiting::AgentDestroys)
    );
}

/// Calls `check` with every combination of facts that [`decide`] can tell apart.
fn every_state(mut check: impl FnMut(&Facts, &Policy, Step)) {
    const AGENTS: [AgentState; 3] = [
        AgentState::Alive,
        AgentState::Recovering,
        AgentState::Absent,
    ];
    let secs = Duration::from_secs;
    let mut facts = quiet();
    let mut policies = Vec::new();
    for teardown in [Teardown::Cooperative, Teardown::Immediate] {
        for fallback_after in [None, Some(secs(60))] {
            policies.push(Policy {
                fallback_after,
                ..policy(teardown)
            });
        }
    }
    let directories = [
        vec![],
        vec![Directory::Dockers],
        vec![Directory::Agents],
        vec![Directory::Dockers, Directory::Agents],
    ];
    let mut states = 0u64;
    // The digits of a number in mixed radix: one for each fact.
    let radix = [4, 3, 2, 2, 2, 2, 2, 2, 4, 2, 4, 4, 2, 3, 3, 4, 2, 2];
    let mut digits = [0usize; 18];
    loop {
        let [
            proof,
            excluded,
            held,
            to_stop,
            kept,
            in_flight,
            sweeping,
            retry,
            silent,
            pod,
            quiet_for,
            swept,
            own,
            agent,
            owner,
            dirs,
            busy,
            age,
        ] = digits;
        // Whose life shows elsewhere matters where only the operator's word counts.
        facts.proof = [Proof::Kernel, Proof::Inferred, Proof::Word, Proof::Word][proof];
        facts.shows_life = proof == 3;
        facts.excluded = [Some(false), Some(true), None][excluded];
        facts.held = held == 1;
        facts.to_stop = to_stop;
        facts.kept = kept;
        facts.in_flight = in_flight;
        facts.sweeping = sweeping == 1;
        facts.retry_in = [None, Some(secs(1))][retry];
        facts.docker_silent_for = [None, Some(secs(1)), Some(secs(40)), Some(secs(60))][silent];
        facts.pod_processes = pod;
        facts.quiet_for = [
            None,
            Some(Duration::ZERO),
            Some(secs(1)),
            Some(DISOWNED_AFTER),
        ][quiet_for];
        facts.swept = [Swept::Never, Swept::Early, Swept::Quiet, Swept::Settled][swept];
        facts.own_processes = own;
        facts.agent = AGENTS[agent];
        facts.ownership = [Ownership::Owned, Ownership::Done, Ownership::Unknown][owner];
        if facts.directories != directories[dirs] {
            facts.directories.clone_from(&directories[dirs]);
        }
        facts.busy = busy == 1;
        facts.age = [secs(1), secs(61)][age];
        for policy in &policies {
            states += 1;
            check(&facts, policy, decide(&facts, policy));
        }
        let Some(at) = (0..digits.len()).find(|at| digits[*at] + 1 < radix[*at]) else {
            break;
        };
        digits[at] += 1;
        digits[..at].fill(0);
    }
    assert!(states > 10_000_000, "{states}");
}

/// One walk over all states and facts checks everything that must hold in each.
#[test]
fn every_state_and_fact() {
    let mut seen = std::collections::HashSet::new();
    every_state(|facts, policy, step| {
        seen.insert(step.name());
        let acts = !matches!(step, Step::Wait(_) | Step::Close(_) | Step::Sweep);
        let shows_life = facts.own_processes > 0 || facts.shows_life;
        if facts.excluded != Some(false) || facts.proof != Proof::Kernel && shows_life {
            assert!(!acts, "acts on what is excluded or may live: {facts:?}");
        }
        if facts.held && facts.to_stop > 0 {
            assert!(!acts, "acts although it is held: {facts:?}");
        }
        let removes = matches!(step, Step::Remove { .. });
        if policy.teardown == Teardown::Cooperative
            && facts.agent != AgentState::Absent
            && facts.ownership != Ownership::Done
        {
            let touches = matches!(step, Step::Remove { agents: true } | Step::EndStragglers);
            assert!(!touches, "takes what is a living agent's: {facts:?}");
        }
        if facts.agent == AgentState::Recovering {
            assert!(
                !removes && step != Step::EndStragglers,
                "removes under the eyes of a recovering agent: {facts:?}"
            );
        }
        if removes {
            let runs = facts.to_stop + facts.in_flight + facts.own_processes + facts.kept;
            assert_eq!(runs, 0, "removes while something runs: {facts:?}");
            assert!(!facts.busy && facts.quiet_for.is_some(), "{facts:?}");
            let is_told = matches!(facts.swept, Swept::Quiet | Swept::Settled);
            assert!(is_told || facts.pod_processes == 0, "{facts:?}");
        }
        if step == Step::KillPod {
            let stays_away =
                policy.fallback_after.is_some() && facts.docker_silent_for >= policy.fallback_after;
            let disowns = facts.docker_silent_for.is_none()
                && facts.swept == Swept::Settled
                && facts.quiet_for >= Some(DISOWNED_AFTER)
                && facts.kept == 0
                && !facts.held;
            assert!(
                stays_away || disowns,
                "kills what Docker may stop: {facts:?}"
            );
        }
        if step == Step::Close(Outcome::Clean) {
            let left = facts.to_stop + facts.in_flight + facts.own_processes + facts.kept;
            assert_eq!(left, 0, "{facts:?}");
            assert!(facts.directories.is_empty() && facts.quiet_for.is_some());
            assert!(
                facts.swept == Swept::Settled && facts.retry_in.is_none(),
                "{facts:?}"
            );
        }
        if step == Step::Stop {
            assert!(facts.to_stop > 0);
        }
        if step == Step::Sweep {
            assert!(!facts.sweeping, "two lists at a time: {facts:?}");
        }
    });
    let all: std::collections::HashSet<_> = Step::ALL.iter().map(|step| step.name()).collect();
    assert_eq!(seen, all, "steps that no state leads to, or that ALL lacks");
}

/// What a step that succeeds does to the facts.
fn after(facts: &Facts, step: Step) -> Facts {
    let mut next = facts.clone();
    match step {
        Step::Stop => {
            next.in_flight += next.to_stop;
            next.to_stop = 0;
        }
        Step::Sweep => {
            next.docker_silent_for = None;
            next.swept = match next.quiet_for {
                None => Swept::Early,
                Some(quiet) if quiet >= Duration::from_secs(1) => Swept::Settled,
                Some(_) => Swept::Quiet,
            };
            // It runs no more, or is asked to end.
            if next.quiet_for.is_none() && next.own_processes == 0 && next.in_flight == 0 {
                next.quiet_for = Some(Duration::ZERO);
            }
        }
        Step::KillPod => next.pod_processes = 0,
        Step::EndStragglers => next.own_processes = 0,
        Step::Remove { agents } => next
            .directories
            .retain(|directory| !agents && *directory == Directory::Agents),
        Step::Wait(_) | Step::Close(_) => {}
    }
    next
}

/// Steps lead to a wait or to the end, never in a circle; what is waited for and
/// comes leads on, until the case is closed.
#[test]
fn every_path_ends() {
    every_state(|facts, policy, first| {
        let (mut facts, mut step) = (facts.clone(), first);
        for _ in 0..24 {
            match step {
                Step::Close(_) => return,
                Step::Wait(waiting) => match waiting {
                    Waiting::Identity => facts.excluded = Some(false),
                    Waiting::Release => facts.held = false,
                    Waiting::Docker => {
                        if std::mem::take(&mut facts.sweeping) {
                            facts = after(&facts, Step::Sweep);
                        }
                        facts.in_flight = 0;
                        facts.retry_in = None;
                        facts.docker_silent_for = None;
                    }
                    Waiting::AgentKills => facts.own_processes = 0,
                    Waiting::Settle => facts.quiet_for = Some(policy.settle),
                    Waiting::AgentDestroys | Waiting::AgentStuck => {
                        facts.agent = AgentState::Alive;
                        facts.ownership = Ownership::Done;
                    }
                    Waiting::Busy => facts.busy = false,
                    Waiting::Kept => facts.kept = 0,
                },
                _ => facts = after(&facts, step),
            }
            step = decide(&facts, policy);
        }
        panic!("no end from {facts:?}");
    });
}
