//! `/v1/plan`: what would be done about a run now, by which evidence. It looks, with
//! the daemon's own rules and readers, and touches nothing.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::timeout;

use super::executors::{container, indexed};
use super::snapshot::CaseAtWork;
use super::status::{mode, name, open_case, path_text};
use super::{Target, api};
use crate::case::{
    Death, Directory, Host, Origin, Ownership, Place, Proof, is_excluded, joined, may_remove,
    places, recorded_end,
};
use crate::config::{Action, Mode};
use crate::docker::Listed;
use crate::journal::unix_ns;
use crate::mesos::{AgentState, ContainerId};
use crate::process::{Proc, monotonic_ns, unix_seconds};
use crate::reconcile::{Survey, Unknown, shows_life, stranger, survey};
use crate::registry::Run;

/// For Docker's list; without it, what was known before counts.
const DOCKER: Duration = Duration::from_secs(5);

/// Whose plans are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Everything that is dead or unknown.
    Orphans,
    Of(Target),
    /// Exactly these.
    Runs(HashSet<ContainerId>),
}

impl Wanted {
    pub fn is(&self, run: &Run) -> bool {
        match self {
            Self::Orphans => true,
            Self::Of(target) => target.is(run),
            Self::Runs(runs) => runs.contains(&run.container),
        }
    }

    /// Closed runs that are wanted, too: none, of everything that is dead.
    pub(super) fn of_closed(&self) -> Option<Self> {
        match self {
            Self::Orphans => None,
            Self::Of(_) | Self::Runs(_) => Some(self.clone()),
        }
    }
}

/// What is known beside what one look can find.
#[derive(Debug, Default)]
pub struct Known {
    pub cases: Vec<CaseAtWork>,
    /// Runs whose cases were closed.
    pub closed: Vec<(Run, Death)>,
    /// Every run that a survey need not judge.
    pub runs: HashSet<ContainerId>,
    pub by_daemon: bool,
    /// The operator says of unknown runs that they are dead.
    pub forced: bool,
}

/// What runs now; an error in words if Docker does not say.
pub async fn list(host: &Host) -> Result<Vec<Listed>, String> {
    match timeout(DOCKER, host.lists.list(&host.docker, &host.index)).await {
        Ok(Ok(listed)) => Ok(listed.to_vec()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("Docker has not answered within {DOCKER:?}")),
    }
}

/// Reads `/proc`, cgroups and work directories: not for the daemon's loop.
pub fn plans(
    host: &Host,
    known: &Known,
    wanted: &Wanted,
    listed: Result<Vec<Listed>, String>,
) -> api::Plans {
    let (running, docker_trouble) = match listed {
        Ok(running) => (running, None),
        Err(trouble) => (indexed(host), Some(trouble)),
    };
    let found = survey(host, &known.runs);
    let look = Look {
        host,
        known,
        running: &running,
        held: host.is_holding(),
    };
    let mut plans = look.of_known(wanted);
    plans.extend(look.of_survey(&found, wanted));
    plans.sort_by(|a, b| a.container.cmp(&b.container));
    api::Plans {
        now_unix_ns: unix_ns(unix_seconds()),
        mode: mode(host),
        held: look.held,
        by_daemon: known.by_daemon,
        docker_trouble,
        plans,
    }
}

struct Look<'a> {
    host: &'a Host,
    known: &'a Known,
    running: &'a [Listed],
    held: bool,
}

/// A run and what is known of its life.
struct Judged<'a> {
    run: &'a Run,
    standing: api::Standing,
    evidence: String,
    /// How it died; of one that lives, as if it died now.
    death: Death,
    case: Option<&'a CaseAtWork>,
}

impl Look<'_> {
    fn of_known(&self, wanted: &Wanted) -> Vec<api::Plan> {
        let mut plans = Vec::new();
        for case in self.known.cases.iter().filter(|case| wanted.is(&case.run)) {
            plans.push(self.plan(&Judged {
                run: &case.run,
                standing: api::Standing::Dead,
                evidence: case.death.proof_text(&case.run),
                death: case.death.clone(),
                case: Some(case),
            }));
        }
        if matches!(wanted, Wanted::Orphans) {
            return plans;
        }
        let live: Vec<Run> = self.host.registry().iter().cloned().collect();
        plans.extend(self.of_living(&live, wanted));
        for (run, death) in self.known.closed.iter().filter(|(run, _)| wanted.is(run)) {
            let proof = death.proof_text(run);
            plans.push(self.plan(&Judged {
                run,
                standing: api::Standing::Dead,
                evidence: format!("{proof}; its case is closed"),
                death: death.clone(),
                case: None,
            }));
        }
        plans
    }

    /// What would be done if they died now.
    fn of_living(&self, runs: &[Run], wanted: &Wanted) -> impl Iterator<Item = api::Plan> {
        runs.iter().filter(|run| wanted.is(run)).map(|run| {
            let (standing, evidence) = life_of(run);
            self.plan(&Judged {
                run,
                standing,
                evidence,
                death: Death::noticed(Origin::Scan),
                case: None,
            })
        })
    }

    fn of_survey(&self, found: &Survey, wanted: &Wanted) -> Vec<api::Plan> {
        let mut plans = match wanted {
            Wanted::Orphans => Vec::new(),
            Wanted::Of(_) | Wanted::Runs(_) => self.of_living(&found.live, wanted).collect(),
        };
        for run in found.dead.iter().filter(|run| wanted.is(run)) {
            let recorded = recorded_end(run);
            plans.push(self.plan(&Judged {
                run,
                standing: api::Standing::Dead,
                evidence: format!(
                    "{recorded}, nothing of its own lives in its cgroups, nobody names its sandbox (one look; before anything is done a second one, 2 s later, has to agree)"
                ),
                death: Death::noticed(Origin::Scan),
                case: None,
            }));
        }
        for (container, unknown) in &found.unknown {
            let is_wanted = match wanted {
                Wanted::Orphans => true,
                Wanted::Of(target) => target.names(*container, unknown.executor_id.as_deref()),
                Wanted::Runs(runs) => runs.contains(container),
            };
            if is_wanted {
                plans.push(self.unknown(*container, unknown));
            }
        }
        plans
    }

    /// What may live: all that is there of it, and nothing is done; unless the operator
    /// says that it is dead, and nothing shows that it lives.
    fn unknown(&self, container: ContainerId, unknown: &Unknown) -> api::Plan {
        let stand_in;
        let run = match unknown.run.as_deref() {
            Some(run) => run,
            None => {
                let infos = self.running.iter();
                let infos: Vec<_> = infos.filter_map(|listed| listed.info.clone()).collect();
                stand_in = stranger(self.host, container, &infos);
                &stand_in
            }
        };
        let (evidence, origin) = if self.known.forced {
            match shows_life(self.host, run) {
                Ok(None) => (
                    format!("{}; nothing shows that it lives", unknown.why),
                    Origin::Forced,
                ),
                Ok(Some(sign)) => (format!("{}; {sign}", unknown.why), Origin::Scan),
                Err(error) => (
                    format!(
                        "{}; whether it lives cannot be looked at: {error}",
                        unknown.why
                    ),
                    Origin::Scan,
                ),
            }
        } else {
            (unknown.why.to_owned(), Origin::Scan)
        };
        let mut plan = self.plan(&Judged {
            run,
            standing: api::Standing::Unknown,
            evidence,
            death: Death::noticed(origin),
            case: None,
        });
        if unknown.run.is_none() {
            plan.agent = None;
        }
        plan
    }

    fn plan(&self, judged: &Judged<'_>) -> api::Plan {
        let Judged {
            run,
            standing,
            evidence,
            death,
            case,
        } = judged;
        let host = self.host;
        let seen = case.and_then(|case| case.seen.identity.as_ref());
        let identity = run.identity.as_ref().or(seen);
        let excluded = is_excluded(&host.config().exclude, identity);
        let forced = death.origin == Origin::Forced;
        let is_unknown = *standing == api::Standing::Unknown && !forced;
        let is_left = is_unknown || excluded != Some(false);
        let containers = self.containers(run, death, is_left);
        let is_dead = forced || *standing == api::Standing::Dead;
        let (cgroups, trouble) = self.cgroups(run, death, is_dead, is_left);
        let stops = containers.iter().any(|planned| {
            !matches!(
                planned.action,
                api::ContainerAction::Keep | api::ContainerAction::Leave
            )
        });
        let nothing = containers.is_empty() && cgroups.is_empty();
        let (acts, mut why) = self.when(judged, excluded, stops, nothing);
        if let Some(trouble) = trouble {
            why = format!("{why} (its cgroups cannot be read: {trouble})");
        }
        api::Plan {
            container: run.container.to_string(),
            framework: name(identity, |identity| &identity.framework_id),
            executor: name(identity, |identity| &identity.executor_id),
            agent: host
                .agents
                .get(run.agent)
                .map(|agent| path_text(&agent.dirs.work_dir)),
            standing: *standing,
            evidence: evidence.clone(),
            acts,
            why,
            case: case.map(|case| open_case(case, monotonic_ns())),
            containers,
            cgroups,
        }
    }

    fn when(
        &self,
        judged: &Judged<'_>,
        excluded: Option<bool>,
        stops: bool,
        nothing: bool,
    ) -> (api::Acts, String) {
        use api::{Acts, Standing};
        let forced = judged.death.origin == Origin::Forced;
        let (acts, why) = match (judged.standing, excluded) {
            (Standing::Unknown, _) if !forced => (
                Acts::Never,
                "what is neither proven live nor dead is left alone",
            ),
            (_, Some(true)) => (Acts::Never, "[[exclude]] names its executor"),
            (_, None) => (
                Acts::Never,
                "who its executor is is not known, and [[exclude]] may name it",
            ),
            (Standing::Live, _) if self.host.config().mode == Mode::Observe => {
                (Acts::Never, "it lives, and mode is \"observe\"")
            }
            _ if self.host.config().mode == Mode::Observe => (Acts::Never, "mode is \"observe\""),
            (Standing::Live, _) => (Acts::OnDeath, "it lives"),
            (_, _) if nothing => (Acts::Never, "nothing of it is left"),
            (_, _) if self.held && stops && judged.death.origin.proof() != Proof::Kernel => (
                Acts::OnRelease,
                "the kernel did not report its death, and such are held: `compose-cleanup release`",
            ),
            (Standing::Unknown, _) => (
                Acts::Now,
                "the operator says that it is dead (--force-unknown)",
            ),
            (Standing::Dead, _) if judged.case.is_some() => (Acts::Now, "its case is open"),
            (Standing::Dead, _) if self.known.by_daemon => {
                (Acts::Now, "the daemon's next survey takes it up")
            }
            (Standing::Dead, _) => (
                Acts::Now,
                "but no daemon runs that would: `compose-cleanup watch`",
            ),
        };
        (acts, why.to_owned())
    }

    fn containers(&self, run: &Run, death: &Death, is_left: bool) -> Vec<api::PlannedContainer> {
        let action = match self.host.config().action {
            Action::Stop => api::ContainerAction::Stop,
            Action::Kill => api::ContainerAction::Kill,
            Action::Remove => api::ContainerAction::StopAndRemove,
        };
        let pod = joined(self.host, run, death, self.running);
        let mut planned: Vec<api::PlannedContainer> = pod
            .iter()
            .map(|(listed, key)| {
                let container = container(self.host, listed, *key);
                api::PlannedContainer {
                    action: if is_left {
                        api::ContainerAction::Leave
                    } else if container.kept {
                        api::ContainerAction::Keep
                    } else {
                        action
                    },
                    container,
                }
            })
            .collect();
        planned.sort_by(|a, b| {
            (&a.container.name, &a.container.id).cmp(&(&b.container.name, &b.container.id))
        });
        planned
    }

    fn cgroups(
        &self,
        run: &Run,
        death: &Death,
        is_dead: bool,
        is_left: bool,
    ) -> (Vec<api::PlannedCgroup>, Option<String>) {
        let host = self.host;
        let Some(agent) = host.agents.get(run.agent) else {
            return (Vec::new(), None);
        };
        let found = match places(host, run, death) {
            Ok(found) => found,
            Err(error) => return (Vec::new(), Some(error.to_string())),
        };
        let state = agent.state();
        let ownership = if is_dead {
            Ownership::of(
                agent.runtime.owns(run.container).ok(),
                run.owned || agent.is_verified(),
            )
        } else {
            // When it dies, its agent owns it.
            Ownership::Owned
        };
        let teardown = host.config().teardown;
        let planned = found.into_iter().map(|place| {
            let Place {
                hierarchy,
                path,
                kind,
            } = place;
            api::PlannedCgroup {
                path: path_text(&path),
                hierarchy,
                owner: match kind {
                    Directory::Dockers => api::CgroupOwner::Docker,
                    Directory::Agents => api::CgroupOwner::Agent,
                },
                removed: if is_left {
                    api::CgroupRemoval::Never
                } else if may_remove(kind, state, ownership, teardown) {
                    api::CgroupRemoval::AtOnce
                } else if state == AgentState::Recovering {
                    api::CgroupRemoval::AfterRecovery
                } else {
                    api::CgroupRemoval::WhenAgentIsDone
                },
            }
        });
        (planned.collect(), None)
    }
}

/// Of a run that was alive when it was last looked at.
fn life_of(run: &Run) -> (api::Standing, String) {
    let alive = |proc: Option<Proc>| proc.filter(|proc| proc.is_alive());
    match (alive(run.helper), alive(run.executor)) {
        (Some(helper), Some(executor)) => (
            api::Standing::Live,
            format!(
                "its launcher helper, process {}, and its executor, process {}, run",
                helper.pid, executor.pid
            ),
        ),
        (Some(helper), None) => (
            api::Standing::Live,
            format!(
                "its launcher helper, process {}, runs; no executor is known beneath it",
                helper.pid
            ),
        ),
        (None, Some(executor)) => (
            api::Standing::Live,
            format!(
                "its executor, process {}, runs; its launcher helper is gone",
                executor.pid
            ),
        ),
        (None, None) => (
            api::Standing::Unknown,
            "its known processes are gone; what that means is being found out".to_owned(),
        ),
    }
}
