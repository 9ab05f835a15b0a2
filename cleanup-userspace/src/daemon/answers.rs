//! What the loop tells those who ask it: copies, between two signals.

use std::time::Duration;

use super::core::{Core, Counters};
use super::supervisor::standing;
use crate::remains::{Question, Standing};
use crate::serve::{Counts, DockerWord, Inquiry, ProbeState, Snapshot};

impl Core {
    /// One line for the service manager: what is at hand, and what is missing.
    pub(super) fn standing(&self) -> String {
        let agents = self.agents.iter().map(|(agent, state)| {
            let work_dir = self.host.dirs(*agent).work_dir.as_path();
            (work_dir, *state)
        });
        let live = self.host.registry().iter().count();
        let open = self.casebook.open_cases();
        standing(self.host.config().mode, live, open, self.docker_up, agents)
    }

    /// Somebody wants to know how things are: a copy of what only this loop has.
    pub(super) fn on_inquiry(&mut self, inquiry: Inquiry) {
        let Inquiry {
            closed,
            orders,
            answer,
        } = inquiry;
        let ordered = !orders.is_empty();
        for order in orders {
            self.orders.take(order, &self.host, &mut self.casebook);
        }
        if ordered && self.orders.are_looking() {
            self.begin_survey(Duration::ZERO);
        }
        let Counters {
            exits,
            foreign,
            deaths,
            requests,
        } = self.counters;
        let snapshot = Snapshot {
            probe: ProbeState {
                kind: self.probe_kind().as_str(),
                works: self.ring_works,
                losses: self.exits.losses().unwrap_or(self.losses),
            },
            docker: self.docker_up.map(|there| DockerWord {
                there,
                since: self.docker_since,
            }),
            cases: self.casebook.at_work(),
            closed: closed.map_or_else(Vec::new, |wanted| {
                self.casebook.closed_runs(|run| wanted.is(run))
            }),
            known: self.known(),
            unknown: self.surveyor.unknown_runs(),
            counts: Counts {
                exits,
                foreign,
                deaths,
                requests,
                results: self.casebook.results.clone(),
                containers: self.casebook.containers,
            },
            ordered: self.orders.states(),
        };
        // Nobody waits any more.
        let _ = answer.send(snapshot);
    }

    /// What is known of runs that left something in Docker.
    pub(super) fn on_question(&self, question: Question) {
        let Question { runs, answer } = question;
        let standing = |container| {
            let lives = self.host.registry().get(container).is_some();
            if lives || self.casebook.is_open(container) {
                return Standing::InUse;
            }
            match self.casebook.closed(container) {
                Some((run, proof)) => Standing::Closed(Box::new(run.clone()), proof),
                None => Standing::Unheard,
            }
        };
        let known = runs.into_iter().map(|run| (run, standing(run)));
        // Nobody waits any more: the round was dropped.
        let _ = answer.send(known.collect());
    }
}
