//! Whether a compose network is left over: facts in, one answer out; and the
//! memory of whose it was.
//!
//! A network carries no key of a run. Its project does if it is named after one
//! (`poddata_<container id>`, dce-go's usual name); else it takes a container of
//! a dead run that was attached to it, which is remembered for as long as the
//! daemon runs. A project without such a name is shared by the pods of one app.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::containers::{Owner, Rules};
use crate::case::Proof;
use crate::docker::ContainerInfo;
use crate::mesos::ContainerId;

/// Networks that are remembered; new ones beyond that are not.
const NOMINATED: usize = 10_000;

/// Why a network may be a dead run's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    Nothing,
    /// Its project is named after a run.
    Project(Owner),
    /// A dead run's container was attached to it.
    Nominated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkFacts {
    pub claim: Claim,
    /// Containers that are attached to it, or would be if they ran.
    pub users: usize,
    /// A run that lives, or may, could be about to attach containers.
    pub awaited: bool,
}

/// Whether a network may be removed.
pub fn is_left(network: &NetworkFacts, rules: &Rules) -> bool {
    let NetworkFacts {
        claim,
        users,
        awaited,
    } = *network;
    let dead = match claim {
        Claim::Nothing => false,
        // No other run has a project of this name.
        Claim::Project(Owner::Dead { proof, excluded }) => {
            excluded == Some(false) && !(rules.held && proof != Proof::Kernel)
        }
        Claim::Project(Owner::InUse | Owner::Unknown) => false,
        Claim::Nominated => !awaited,
    };
    dead && users == 0
}

/// The run that a project is named after: compose keeps the dashes of a
/// directory's name, or (before 1.21) strips them.
pub fn run_of_project(project: &str) -> Option<ContainerId> {
    let tail = |length: usize| project.get(project.len().checked_sub(length)?..);
    let dashed = tail(36).and_then(|tail| tail.parse().ok());
    dashed.or_else(|| {
        let hex = tail(32)?;
        let part = |from, to| hex.get(from..to);
        let parts = [
            part(0, 8)?,
            part(8, 12)?,
            part(12, 16)?,
            part(16, 20)?,
            part(20, 32)?,
        ];
        parts.join("-").parse().ok()
    })
}

/// The networks that containers of dead runs were attached to, by id, with their
/// project. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Nominated(Arc<Mutex<HashMap<String, String>>>);

impl Nominated {
    /// Remembers the networks of a dead run's container, which is about to go.
    pub fn note(&self, container: &ContainerInfo) {
        let Some(project) = container.project() else {
            return;
        };
        let mut inner = self.lock();
        for network in &container.networks {
            if inner.len() < NOMINATED || inner.contains_key(network) {
                inner.insert(network.clone(), project.to_owned());
            }
        }
    }

    /// Whether a dead run's container of this project was attached to it.
    pub fn has(&self, network: &str, project: &str) -> bool {
        self.lock()
            .get(network)
            .is_some_and(|known| known == project)
    }

    /// Forgets networks that do not exist any more.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.lock().retain(|network, _| exists(network));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        // Every change is one step: a panic in between leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::PROJECT_LABEL;
    use proptest::prelude::*;

    const RUN: &str = "857fd7a0-df05-458b-bd72-f5c280790aa0";

    #[test]
    fn a_projects_name_may_name_its_run() {
        let run: ContainerId = RUN.parse().unwrap();
        for named in [
            format!("poddata_{RUN}"),
            "poddata857fd7a0df05458bbd72f5c280790aa0".to_owned(),
            RUN.to_owned(),
        ] {
            assert_eq!(run_of_project(&named), Some(run), "{named}");
        }
        for other in [
            "",
            "sampleapp",
            "poddata_857fd7a0",
            &format!("{RUN}-x"),
            &"é".repeat(40),
            &format!("é{}", "0".repeat(31)),
            "857FD7A0DF05458BBD72F5C280790AA0",
        ] {
            assert_eq!(run_of_project(other), None, "{other}");
        }
    }

    const RULES: Rules = Rules {
        remove_after: None,
        held: false,
    };

    #[test]
    fn only_what_was_a_dead_runs_and_nobody_waits_for() {
        let dead = |proof, excluded| Claim::Project(Owner::Dead { proof, excluded });
        let proven = dead(Proof::Kernel, Some(false));
        for (claim, users, awaited, left) in [
            (Claim::Nominated, 0, false, true),
            (Claim::Nominated, 0, true, false),
            (Claim::Nominated, 1, false, false),
            (Claim::Nothing, 0, false, false),
            (proven, 0, false, true),
            // No other run's pod has its name.
            (proven, 0, true, true),
            (proven, 1, false, false),
            (dead(Proof::Kernel, Some(true)), 0, false, false),
            (dead(Proof::Kernel, None), 0, false, false),
            (Claim::Project(Owner::InUse), 0, false, false),
            (Claim::Project(Owner::Unknown), 0, false, false),
        ] {
            let network = NetworkFacts {
                claim,
                users,
                awaited,
            };
            assert_eq!(is_left(&network, &RULES), left, "{network:?}");
        }
        let inferred = NetworkFacts {
            claim: dead(Proof::Inferred, Some(false)),
            users: 0,
            awaited: false,
        };
        assert!(is_left(&inferred, &RULES));
        assert!(!is_left(
            &inferred,
            &Rules {
                held: true,
                ..RULES
            }
        ));
    }

    #[test]
    fn a_network_is_nominated_with_its_project() {
        let nominated = Nominated::default();
        let mut container = ContainerInfo {
            networks: vec!["n1".to_owned(), "n2".to_owned()],
            ..ContainerInfo::default()
        };
        nominated.note(&container);
        assert!(!nominated.has("n1", ""));
        container
            .labels
            .insert(PROJECT_LABEL.to_owned(), "app".to_owned());
        nominated.note(&container);
        assert!(nominated.has("n1", "app") && nominated.has("n2", "app"));
        assert!(!nominated.has("n1", "other") && !nominated.has("n3", "app"));
        nominated.retain(|network| network == "n2");
        assert!(!nominated.has("n1", "app") && nominated.has("n2", "app"));
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(project in ".{0,60}") {
            if let Some(run) = run_of_project(&project) {
                let hex: String = run.as_str().chars().filter(|c| *c != '-').collect();
                let plain: String = project.chars().filter(|c| *c != '-').collect();
                prop_assert!(plain.ends_with(&hex));
            }
        }

        #[test]
        fn what_is_used_stays(users in 1_usize.., awaited: bool, nominated: bool) {
            let claim = if nominated {
                Claim::Nominated
            } else {
                Claim::Project(Owner::Dead { proof: Proof::Kernel, excluded: Some(false) })
            };
            let network = NetworkFacts { claim, users, awaited };
            prop_assert!(!is_left(&network, &RULES));
        }
    }
}
