//! Whether a stopped container may be removed: facts in, one answer out.

use std::time::Duration;

use crate::case::Proof;
use crate::docker::JoinKey;

/// What is known of the run that a container belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// It lives, or its case is open.
    InUse,
    /// Not positively dead.
    Unknown,
    Dead {
        proof: Proof,
        /// Whether the operator wants the run to be left alone; `None` while that
        /// is not known.
        excluded: Option<bool>,
    },
}

/// Everything that matters of a container that was listed as stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// It runs again, or may by itself.
    pub running: bool,
    /// Since its end, or since it was made if it never ran; `None` if Docker's
    /// time makes no sense.
    pub age: Option<Duration>,
    /// Its owner wants it to be kept.
    pub kept: bool,
    /// Made by a Mesos agent's own Docker containerizer.
    pub agents_own: bool,
    /// What makes it its owner's.
    pub key: Option<JoinKey>,
    pub owner: Owner,
}

/// What is allowed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How long a stopped container is kept; `None`: for ever.
    pub remove_after: Option<Duration>,
    /// What was only inferred is held back.
    pub held: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Remove,
    Stay(Stay),
}

/// Why a container stays, the first reason of this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    Runs,
    AgentsOwn,
    InUse,
    Unknown,
    /// No run-exact key: nobody's, or joined by label only.
    NoKey,
    Excluded,
    Held,
    Kept,
    TooYoung,
}

/// What becomes of a container.
pub fn fate(container: &Stopped, rules: &Rules) -> Fate {
    let Stopped {
        running,
        age,
        kept,
        agents_own,
        key,
        owner,
    } = *container;
    if running {
        return Fate::Stay(Stay::Runs);
    }
    if agents_own {
        return Fate::Stay(Stay::AgentsOwn);
    }
    let (proof, excluded) = match owner {
        Owner::InUse => return Fate::Stay(Stay::InUse),
        Owner::Unknown => return Fate::Stay(Stay::Unknown),
        Owner::Dead { proof, excluded } => (proof, excluded),
    };
    if key.is_none_or(|key| key == JoinKey::Label) {
        return Fate::Stay(Stay::NoKey);
    }
    if excluded != Some(false) {
        return Fate::Stay(Stay::Excluded);
    }
    if rules.held && proof != Proof::Kernel {
        return Fate::Stay(Stay::Held);
    }
    if kept {
        return Fate::Stay(Stay::Kept);
    }
    match (rules.remove_after, age) {
        (Some(limit), Some(age)) if age >= limit => Fate::Remove,
        _ => Fate::Stay(Stay::TooYoung),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEAD: Owner = Owner::Dead {
        proof: Proof::Inferred,
        excluded: Some(false),
    };
    const GOES: Stopped = Stopped {
        running: false,
        age: Some(Duration::from_secs(100)),
        kept: false,
        agents_own: false,
        key: Some(JoinKey::CgroupParent),
        owner: DEAD,
    };
    const RULES: Rules = Rules {
        remove_after: Some(Duration::from_secs(100)),
        held: false,
    };

    #[test]
    fn one_reason_is_enough_to_stay() {
        assert_eq!(fate(&GOES, &RULES), Fate::Remove);
        let dead = |proof, excluded| Owner::Dead { proof, excluded };
        for (stay, container) in [
            (
                Stay::Runs,
                Stopped {
                    running: true,
                    ..GOES
                },
            ),
            (
                Stay::AgentsOwn,
                Stopped {
                    agents_own: true,
                    ..GOES
                },
            ),
            (Stay::NoKey, Stopped { key: None, ..GOES }),
            (
                Stay::NoKey,
                Stopped {
                    key: Some(JoinKey::Label),
                    ..GOES
                },
            ),
            (
                Stay::InUse,
                Stopped {
                    owner: Owner::InUse,
                    ..GOES
                },
            ),
            (
                Stay::Unknown,
                Stopped {
                    owner: Owner::Unknown,
                    ..GOES
                },
            ),
            (Stay::Kept, Stopped { kept: true, ..GOES }),
            (
                Stay::Excluded,
                Stopped {
                    owner: dead(Proof::Kernel, Some(true)),
                    ..GOES
                },
            ),
            (
                Stay::Excluded,
                Stopped {
                    owner: dead(Proof::Kernel, None),
                    ..GOES
                },
            ),
            (
                Stay::TooYoung,
                Stopped {
                    age: Some(Duration::from_secs(99)),
                    ..GOES
                },
            ),
            (Stay::TooYoung, Stopped { age: None, ..GOES }),
        ] {
            assert_eq!(fate(&container, &RULES), Fate::Stay(stay), "{container:?}");
        }
        let never = Rules {
            remove_after: None,
            ..RULES
        };
        assert_eq!(fate(&GOES, &never), Fate::Stay(Stay::TooYoung));
    }

    #[test]
    fn a_hold_holds_what_was_inferred() {
        let held = Rules {
            held: true,
            ..RULES
        };
        assert_eq!(fate(&GOES, &held), Fate::Stay(Stay::Held));
        let proven = Stopped {
            owner: Owner::Dead {
                proof: Proof::Kernel,
                excluded: Some(false),
            },
            ..GOES
        };
        assert_eq!(fate(&proven, &held), Fate::Remove);
    }

    fn owners() -> impl Strategy<Value = Owner> {
        prop_oneof![
            Just(Owner::InUse),
            Just(Owner::Unknown),
            (any::<bool>(), any::<Option<bool>>()).prop_map(|(kernel, excluded)| Owner::Dead {
                proof: if kernel {
                    Proof::Kernel
                } else {
                    Proof::Inferred
                },
                excluded,
            }),
        ]
    }

    fn keys() -> impl Strategy<Value = Option<JoinKey>> {
        prop::option::of(prop_oneof![
            Just(JoinKey::Cgroup),
            Just(JoinKey::CgroupParent),
            Just(JoinKey::WorkingDir),
            Just(JoinKey::ConfigFiles),
            Just(JoinKey::Label),
        ])
    }

    prop_compose! {
        fn containers()(
            running: bool, age in prop::option::of(0_u64..300), kept: bool, agents_own: bool,
            key in keys(), owner in owners(),
        ) -> Stopped {
            Stopped { running, age: age.map(Duration::from_secs), kept, agents_own, key, owner }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Whatever else is so: what goes is stopped, old enough, exactly a dead
        /// run's, and nobody wants it.
        #[test]
        fn what_goes_is_nobodys(container in containers(), limit in prop::option::of(0_u64..300), held: bool) {
            let rules = Rules { remove_after: limit.map(Duration::from_secs), held };
            if fate(&container, &rules) == Fate::Remove {
                let Owner::Dead { proof, excluded } = container.owner else {
                    return Err(TestCaseError::fail("not dead"));
                };
                prop_assert!(!container.running && !container.kept && !container.agents_own);
                prop_assert!(container.key.is_some() && container.key != Some(JoinKey::Label));
                prop_assert_eq!(excluded, Some(false));
                prop_assert!(proof == Proof::Kernel || !held);
                prop_assert!(container.age.unwrap().as_secs() >= limit.unwrap());
            }
        }

        /// More time removes no less.
        #[test]
        fn age_only_helps(container in containers(), more in 0_u64..300) {
            let older = Stopped { age: container.age.map(|age| age + Duration::from_secs(more)), ..container };
            if fate(&container, &RULES) == Fate::Remove {
                prop_assert_eq!(fate(&older, &RULES), Fate::Remove);
            }
        }
    }
}
