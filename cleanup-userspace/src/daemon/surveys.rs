//! What a look at everything means: for runs, for orders, for when to look again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::surveyor::{SECOND_LOOK, look};
use crate::case::{Death, Origin};
use crate::mesos::ContainerId;
use crate::process::{Proc, unix_seconds};
use crate::reconcile::Survey;
use crate::registry::Ended;

impl Core {
    pub(super) async fn first_survey(&mut self) {
        let (host, known) = (Arc::clone(&self.host), HashSet::new());
        match look(host, known).await {
            Ok(found) => self.on_survey(&found),
            Err(error) => tracing::error!(%error, "the first survey failed"),
        }
    }

    pub(super) fn begin_survey(&mut self, after: Duration) {
        let known = self.known();
        self.surveyor.begin(after, known);
    }

    pub(super) fn on_survey(&mut self, survey: &Survey) {
        for run in &survey.live {
            self.on_learnt(run.clone());
        }
        let dead = survey.dead.iter();
        let dead = dead
            .filter(|run| !self.is_known(run.container))
            .cloned()
            .collect();
        for run in self.surveyor.confirm(dead) {
            tracing::info!(container = %run.container, "a dead run that no event told of");
            self.counters.deaths += 1;
            self.host.metrics.orphan();
            let origin = if self.orders.wants(run.container) {
                Origin::Operator
            } else {
                self.surveyor.origin_of(&run)
            };
            self.casebook.open(run, Death::noticed(origin));
        }
        if let Some(began) = survey.began {
            self.casebook
                .have_cgroups(&survey.known_with_cgroups, began);
        }
        self.surveyor.report_unknown(&survey.unknown);
        self.check_registered(&survey.gone_helpers);
        let complete = self.docker_was_up(survey);
        self.orders
            .on_survey(survey, complete, &self.host, &mut self.casebook);
        match self.surveyor.finished() {
            Some(after) => self.begin_survey(after),
            None if self.orders.are_looking() => self.begin_survey(SECOND_LOOK),
            // Everything that is there was judged, and Docker's part is known.
            None if self.docker_up == Some(true) => {
                self.casebook
                    .settle_unfinished(|container| survey.unknown.contains_key(&container));
                if self.host.config().removes_remains() {
                    self.remains.begin();
                }
            }
            None => {}
        }
    }

    /// Registered runs whose helper went without a word.
    fn check_registered(&mut self, gone: &[(ContainerId, Proc)]) {
        for (container, helper) in gone {
            let waits = self.host.registry().get(*container).map(|run| run.orphaned);
            if waits == Some(false) {
                let death = Death::noticed(Origin::Scan);
                self.on_ended(*container, Ended::Helper(*helper), &death);
            }
        }
    }

    /// Whether what runs in Docker was known when the look began.
    fn docker_was_up(&self, survey: &Survey) -> bool {
        let up_for = unix_seconds() - self.docker_since;
        let began = survey.began.map(|began| began.elapsed().as_secs_f64());
        self.docker_up == Some(true) && began.is_some_and(|ago| up_for > ago)
    }
}
