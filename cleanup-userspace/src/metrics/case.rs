//! What is counted of one case while it is open.

use super::Metrics;
use crate::case::{Ownership, Step, Waiting};

/// The step of a case that has not begun one.
pub(super) const NO_STEP: &str = "opened";

/// The names of all steps that a case can be at.
pub(super) fn steps() -> impl Iterator<Item = &'static str> {
    let open = Step::ALL
        .into_iter()
        .filter(|step| !matches!(step, Step::Close(_)));
    std::iter::once(NO_STEP).chain(open.map(Step::name))
}

/// Counts a case as open, at the step that it is at, until it is dropped.
#[derive(Debug)]
pub struct CaseMeter {
    metrics: Metrics,
    at: &'static str,
    yielded: bool,
    took_over: bool,
}

impl CaseMeter {
    pub fn new(metrics: Metrics) -> Self {
        metrics.inner.open_cases.of(NO_STEP).inc();
        Self {
            metrics,
            at: NO_STEP,
            yielded: false,
            took_over: false,
        }
    }

    /// A step begins.
    pub fn step(&mut self, step: Step) {
        // It is over in a moment, and no step to be at.
        if matches!(step, Step::Close(_)) || self.at == step.name() {
            return;
        }
        let open_cases = &self.metrics.inner.open_cases;
        open_cases.of(step.name()).inc();
        open_cases.of(self.at).dec();
        self.at = step.name();
    }

    /// Whose work the next step is, the agent's or ours: each counts once a case.
    pub fn teardown(&mut self, step: Step, ownership: Ownership) {
        let yields = matches!(
            step,
            Step::Wait(Waiting::AgentDestroys | Waiting::AgentKills | Waiting::AgentStuck)
        );
        if yields && !std::mem::replace(&mut self.yielded, true) {
            self.metrics.inner.agent_yields.inc();
        }
        // What an agent leaves that is done is nobody's.
        let takes_over = matches!(step, Step::Remove { agents: true } | Step::EndStragglers)
            && ownership != Ownership::Done;
        if takes_over && !std::mem::replace(&mut self.took_over, true) {
            self.metrics.inner.agent_takeovers.inc();
        }
    }
}

impl Drop for CaseMeter {
    fn drop(&mut self) {
        self.metrics.inner.open_cases.of(self.at).dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Outcome;

    fn at(metrics: &Metrics, step: &'static str) -> i64 {
        metrics.inner.open_cases.of(step).get()
    }

    #[test]
    fn an_open_case_is_at_one_step() {
        let metrics = Metrics::default();
        let mut meter = CaseMeter::new(metrics.clone());
        assert_eq!(at(&metrics, NO_STEP), 1);
        for step in [Step::Stop, Step::Sweep, Step::Sweep] {
            meter.step(step);
            assert_eq!(at(&metrics, step.name()), 1);
            assert_eq!(steps().map(|step| at(&metrics, step)).sum::<i64>(), 1);
        }
        meter.step(Step::Close(Outcome::Clean));
        assert_eq!(at(&metrics, "sweep"), 1);
        drop(meter);
        assert!(steps().all(|step| at(&metrics, step) == 0));
    }

    #[test]
    fn whose_work_it_was_counts_once() {
        let metrics = Metrics::default();
        let counts = || {
            (
                metrics.inner.agent_yields.get(),
                metrics.inner.agent_takeovers.get(),
            )
        };
        let mut meter = CaseMeter::new(metrics.clone());
        meter.teardown(Step::Sweep, Ownership::Owned);
        meter.teardown(Step::Remove { agents: false }, Ownership::Owned);
        meter.teardown(Step::Remove { agents: true }, Ownership::Done);
        assert_eq!(counts(), (0, 0));
        for _ in 0..2 {
            meter.teardown(Step::Wait(Waiting::AgentDestroys), Ownership::Owned);
            assert_eq!(counts(), (1, 0));
        }
        for _ in 0..2 {
            meter.teardown(Step::Remove { agents: true }, Ownership::Owned);
            assert_eq!(counts(), (1, 1));
        }
    }
}
