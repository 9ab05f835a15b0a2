//! `/v1/clean`: the one order that the daemon takes, and what became of it.

use std::collections::HashSet;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;

use super::routes::{App, Refusal};
use super::snapshot::{CaseAtWork, Order, Ordered};
use super::status::open_case;
use super::{Wanted, api};
use crate::config::Mode;
use crate::journal::unix_ns;
use crate::mesos::ContainerId;
use crate::process::{monotonic_ns, unix_seconds};

/// Bytes of an order: more than a thousand container ids.
pub(super) const LARGEST: usize = 64 << 10;

/// Whether a run may be cleaned up after, by its plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    Clear,
    /// There is nothing to do.
    Nothing,
    /// What is in the way.
    Blocked(String),
}

/// Whether this plan can be carried out now. What lives is never touched, whoever says
/// what.
pub fn way_to_clean(plan: &api::Plan) -> Way {
    use api::{Acts, Standing};
    let nothing = plan.containers.is_empty() && plan.cgroups.is_empty() && plan.case.is_none();
    match (plan.standing, plan.acts) {
        (Standing::Live, _) => Way::Blocked(format!("it lives: {}", plan.evidence)),
        (Standing::Dead, _) if nothing => Way::Nothing,
        (Standing::Dead | Standing::Unknown, Acts::Now) => Way::Clear,
        (Standing::Unknown, Acts::Never) => {
            Way::Blocked(format!("it is unknown: {}", plan.evidence))
        }
        (Standing::Dead | Standing::Unknown, _) => Way::Blocked(plan.why.clone()),
    }
}

pub(super) async fn get_clean(State(app): State<App>) -> Result<Json<api::Cleanings>, Refusal> {
    let snapshot = app.ask(None, Vec::new()).await?;
    Ok(Json(cleanings(&snapshot.ordered, &snapshot.cases)))
}

/// A look at the host refuses what it can, in words; the loop looks again, twice,
/// before it opens a case.
pub(super) async fn post_clean(
    State(app): State<App>,
    body: Result<Json<api::CleanRequest>, JsonRejection>,
) -> Result<Json<api::Cleanings>, Refusal> {
    let Json(request) = body.map_err(|error| Refusal::BadOrder(error.body_text()))?;
    let runs = runs(&request).map_err(Refusal::BadOrder)?;
    if app.host.config().mode == Mode::Observe {
        return Err(Refusal::InTheWay(
            "its mode is \"observe\", which changes nothing: set mode = \"enforce\" in its configuration and reload it",
        ));
    }
    let forced = request.force_unknown;
    let plans = app.plans(Wanted::Runs(runs.clone()), forced).await?;
    let mut orders = Vec::new();
    let mut ordered: Vec<(ContainerId, Ordered)> = Vec::new();
    for container in runs {
        let plan = plans
            .plans
            .iter()
            .find(|plan| plan.container == container.as_str());
        match plan.map_or(Way::Nothing, way_to_clean) {
            Way::Clear => orders.push(Order { container, forced }),
            Way::Nothing => ordered.push((container, Ordered::NothingLeft)),
            Way::Blocked(why) => ordered.push((container, Ordered::Refused(why))),
        }
    }
    let taken: Vec<ContainerId> = orders.iter().map(|order| order.container).collect();
    let snapshot = app.ask(None, orders).await?;
    let words = snapshot.ordered.iter();
    ordered.extend(words.filter(|(run, _)| taken.contains(run)).cloned());
    Ok(Json(cleanings(&ordered, &snapshot.cases)))
}

fn runs(request: &api::CleanRequest) -> Result<HashSet<ContainerId>, String> {
    let ids = request.containers.iter();
    let runs: Result<HashSet<ContainerId>, String> = ids
        .map(|id| {
            id.parse()
                .map_err(|_| format!("{id} is no Mesos container id"))
        })
        .collect();
    let runs = runs?;
    if runs.is_empty() {
        return Err("`containers` names no run".to_owned());
    }
    if request.force_unknown && runs.len() > 1 {
        return Err("`force_unknown` takes one run at a time".to_owned());
    }
    Ok(runs)
}

/// What became of these, for whoever asks.
pub fn cleanings(ordered: &[(ContainerId, Ordered)], cases: &[CaseAtWork]) -> api::Cleanings {
    use api::CleaningState as State;
    let now = monotonic_ns();
    let cleaning = |(container, ordered): &(ContainerId, Ordered)| {
        let mut cleaning = api::Cleaning {
            container: container.to_string(),
            state: State::Looking,
            why: None,
            case: None,
            closed: None,
        };
        cleaning.state = match ordered {
            Ordered::Looking => State::Looking,
            Ordered::AtWork => {
                let case = cases.iter().find(|case| case.run.container == *container);
                cleaning.case = case.map(|case| open_case(case, now));
                State::AtWork
            }
            Ordered::Closed {
                case,
                result,
                containers,
                cgroups_removed,
            } => {
                cleaning.closed = Some(api::ClosedCase {
                    case: case.to_string(),
                    result: result.as_str().to_owned(),
                    containers: *containers,
                    cgroups_removed: *cgroups_removed,
                });
                State::Closed
            }
            Ordered::NothingLeft => State::NothingLeft,
            Ordered::Refused(why) => {
                cleaning.why = Some(why.clone());
                State::Refused
            }
        };
        cleaning
    };
    let mut cleanings: Vec<api::Cleaning> = ordered.iter().map(cleaning).collect();
    cleanings.sort_by(|a, b| a.container.cmp(&b.container));
    api::Cleanings {
        now_unix_ns: unix_ns(unix_seconds()),
        cleanings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn only_what_is_dead_is_in_nobodys_way() {
        let blocked = |plan: &api::Plan| match way_to_clean(plan) {
            Way::Blocked(why) => why,
            way => panic!("{way:?}: {plan:?}"),
        };
        let plan = |standing: &str, acts: &str, cgroups: usize| -> api::Plan {
            let cgroup = json!({"path": "/c", "hierarchy": "freezer", "owner": "agent", "removed": "at_once"});
            from_value(json!({
                "container": "857f", "standing": standing, "evidence": "evidence", "acts": acts,
                "why": "why", "containers": [], "cgroups": vec![cgroup; cgroups],
            }))
            .unwrap()
        };
        for acts in ["now", "on_death", "on_release", "never"] {
            for cgroups in [0, 1] {
                let live = plan("live", acts, cgroups);
                assert_eq!(blocked(&live), "it lives: evidence");
            }
        }
        assert_eq!(
            blocked(&plan("unknown", "never", 1)),
            "it is unknown: evidence"
        );
        assert_eq!(way_to_clean(&plan("unknown", "now", 1)), Way::Clear);
        assert_eq!(way_to_clean(&plan("dead", "now", 1)), Way::Clear);
        assert_eq!(way_to_clean(&plan("dead", "never", 0)), Way::Nothing);
        for acts in ["never", "on_release", "on_death"] {
            assert_eq!(blocked(&plan("dead", acts, 1)), "why");
        }
        assert_eq!(blocked(&plan("unknown", "on_release", 1)), "why");
    }

    #[test]
    fn an_order_names_whole_ids() {
        let id = "857fd7a0-df05-458b-bd72-f5c280790aa0";
        let request = |containers: &[&str], force_unknown| api::CleanRequest {
            containers: containers.iter().map(|id| (*id).to_owned()).collect(),
            force_unknown,
        };
        assert_eq!(runs(&request(&[id, id], true)).unwrap().len(), 1);
        let other = "957fd7a0-df05-458b-bd72-f5c280790aa0";
        assert_eq!(runs(&request(&[id, other], false)).unwrap().len(), 2);
        for bad in [
            request(&[], false),
            request(&["857fd7a0"], false),
            request(&["../857fd7a0-df05-458b-bd72-f5c280790aa0"], false),
            request(&[id, other], true),
        ] {
            runs(&bad).unwrap_err();
        }
    }
}
