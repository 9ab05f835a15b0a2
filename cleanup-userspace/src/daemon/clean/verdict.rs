//! When a request is done with: facts in, a verdict out.

use std::time::Duration;

use tokio::time::Instant;

use crate::case::CaseResult;
use crate::inbox::Request;

/// How many looks, with Docker's answer, a request gets before nothing that was
/// found is believed to be all that there is.
pub(super) const LOOKS: u32 = 2;
/// How long a run that may live may take to turn out dead.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request that is not settled.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) request: Request,
    pub(super) since: Instant,
    /// With Docker's answer.
    pub(super) looks: u32,
    pub(super) found: Found,
}

/// What the last look found of the executor's runs, besides those with a case.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Found {
    /// Dead by one look.
    pub(super) suspect: bool,
    pub(super) live: bool,
    /// May live: why that is not known.
    pub(super) unknown: Option<&'static str>,
}

/// What is to be done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Wait,
    /// Everything of it was cleaned.
    Done,
    /// It may not be acted upon yet: kept for a run that may.
    Hold,
    /// There is nothing to do for it: why.
    Forget(&'static str),
}

/// What to do with a request, by what is known of its executor's runs. `cases`:
/// what the cases of its dead runs came to.
pub(super) fn verdict(
    pending: &Pending,
    cases: &[Option<CaseResult>],
    may_act: bool,
    age: Duration,
) -> Verdict {
    let unfinished = |result: &Option<CaseResult>| {
        matches!(
            result,
            None | Some(CaseResult::Open | CaseResult::HandedOver)
        )
    };
    if cases.iter().any(unfinished) || pending.looks < LOOKS || pending.found.suspect {
        return Verdict::Wait;
    }
    if cases.contains(&Some(CaseResult::Observed)) {
        return Verdict::Hold;
    }
    if !cases.is_empty() {
        return Verdict::Done;
    }
    match pending.found {
        Found {
            unknown: Some(why), ..
        } => {
            if age < PATIENCE {
                Verdict::Wait
            } else if may_act {
                Verdict::Forget(why)
            } else {
                Verdict::Hold
            }
        }
        Found { live: true, .. } => Verdict::Forget("the executor lives"),
        Found { .. } => Verdict::Forget("nothing of the executor is left on this host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(looks: u32, found: Found) -> Pending {
        Pending {
            request: Request {
                framework_id: "F".into(),
                executor_id: "E".into(),
            },
            since: Instant::now(),
            looks,
            found,
        }
    }

    #[test]
    fn a_request_goes_only_when_nothing_can_come_of_it_any_more() {
        const CLEAN: Option<CaseResult> = Some(CaseResult::Clean);
        const OBSERVED: Option<CaseResult> = Some(CaseResult::Observed);
        let nothing = Found::default();
        let live = Found {
            live: true,
            ..nothing
        };
        let suspect = Found {
            suspect: true,
            live: true,
            ..nothing
        };
        let unknown = Found {
            unknown: Some("why"),
            live: true,
            ..nothing
        };
        let forget = |why| Verdict::Forget(why);
        for (what, looks, found, cases, may_act, age, expected) in [
            ("one look", 1, nothing, &[][..], true, 60, Verdict::Wait),
            (
                "nothing twice",
                2,
                nothing,
                &[],
                true,
                2,
                forget("nothing of the executor is left on this host"),
            ),
            ("lives", 2, live, &[], true, 2, forget("the executor lives")),
            ("seen dead once", 2, suspect, &[], true, 60, Verdict::Wait),
            ("may live", 3, unknown, &[], true, 9, Verdict::Wait),
            (
                "may live for long",
                6,
                unknown,
                &[],
                true,
                10,
                forget("why"),
            ),
            (
                "and nothing may be done",
                6,
                unknown,
                &[],
                false,
                10,
                Verdict::Hold,
            ),
            ("at work", 2, live, &[CLEAN, None], true, 60, Verdict::Wait),
            (
                "handed over",
                2,
                nothing,
                &[Some(CaseResult::HandedOver)],
                true,
                60,
                Verdict::Wait,
            ),
            ("cleaned", 2, live, &[CLEAN, CLEAN], true, 2, Verdict::Done),
            (
                "one of two only said",
                2,
                nothing,
                &[CLEAN, OBSERVED],
                false,
                2,
                Verdict::Hold,
            ),
        ] {
            let pending = pending(looks, found);
            let age = Duration::from_secs(age);
            assert_eq!(verdict(&pending, cases, may_act, age), expected, "{what}");
        }
    }
}
