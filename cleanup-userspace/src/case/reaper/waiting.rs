//! What a case waits for, and what it is told meanwhile.

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::{CaseMessage, FIRST_PAUSE, LONGEST_PAUSE, Reaper, SLOW_PAUSE, slower};
use crate::case::decide::{Facts, Policy, Step, Waiting};
use crate::case::ground::Ground;
use crate::case::pod::{Answer, Found};

impl<G: Ground> Reaper<G> {
    pub(super) async fn wait_for(&mut self, waiting: Waiting, facts: &Facts, policy: &Policy) {
        let limit = self.pace(waiting, facts, policy).max(FIRST_PAUSE);
        if waiting == Waiting::Docker {
            self.wait_for_answers(limit).await;
        } else {
            self.wait(limit).await;
        }
    }

    /// How long to wait before the next look, if nothing happens meanwhile.
    fn pace(&mut self, waiting: Waiting, facts: &Facts, policy: &Policy) -> Duration {
        let now = self.ground.now_ns();
        // What is busy is tried again meanwhile.
        let meanwhile = if facts.busy {
            self.pause
        } else {
            Duration::MAX
        };
        match waiting {
            Waiting::Settle => {
                let quiet = facts.quiet_for.unwrap_or_default();
                policy.settle.saturating_sub(quiet).min(meanwhile)
            }
            // An answer comes as a message.
            Waiting::Docker => {
                let fallback = policy.fallback_after.zip(facts.docker_silent_for);
                let fallback = fallback.map_or(SLOW_PAUSE, |(limit, silent)| {
                    limit.saturating_sub(silent).max(LONGEST_PAUSE)
                });
                facts
                    .retry_in
                    .unwrap_or(SLOW_PAUSE)
                    .min(SLOW_PAUSE)
                    .min(fallback)
                    .min(meanwhile)
            }
            Waiting::AgentStuck => {
                self.complaints.of_the_agent(facts, now);
                SLOW_PAUSE
            }
            Waiting::Busy => {
                if facts.age >= policy.agent_deadline {
                    let cgroup = self.ground.cgroup_path(&self.state.record.run);
                    self.complaints.of_busy_cgroups(&cgroup, facts, now);
                }
                self.pause
            }
            Waiting::Release => {
                self.complaints.of_the_hold(facts, now);
                LONGEST_PAUSE
            }
            Waiting::Identity => {
                self.complaints.of_the_identity(now);
                LONGEST_PAUSE
            }
            Waiting::Kept => SLOW_PAUSE,
            Waiting::AgentKills | Waiting::AgentDestroys => {
                self.pause = slower(self.pause);
                self.pause
            }
        }
    }

    /// Sleeps until something happens, at most for `limit`.
    pub(super) async fn wait(&mut self, limit: Duration) {
        if let Ok(Some(message)) = timeout(limit, self.inbox.recv()).await {
            self.take(message);
        }
    }

    /// The same, but one answer is nothing to look again for while Docker owes others.
    async fn wait_for_answers(&mut self, limit: Duration) {
        let until = Instant::now() + limit;
        while let Ok(Some(message)) = timeout_at(until, self.inbox.recv()).await {
            let is_done = match &message {
                CaseMessage::Answered(answer) => matches!(answer.outcome, Ok(Some(_))),
                CaseMessage::Swept(found) => found.is_ok(),
                _ => false,
            };
            self.take(message);
            if !is_done || self.has_news() || !self.state.is_asked() {
                break;
            }
        }
    }

    /// Whether there is something to do that comes before whatever is waited for.
    pub(super) fn has_news(&self) -> bool {
        self.handing_over || !self.state.due(self.ground.now_ns()).is_empty()
    }

    pub(super) fn take_messages(&mut self) {
        while let Ok(message) = self.inbox.try_recv() {
            self.take(message);
        }
    }

    pub(super) fn take(&mut self, message: CaseMessage) {
        match message {
            CaseMessage::Answered(answer) => self.take_answer(answer),
            CaseMessage::Swept(found) => self.take_sweep(found),
            CaseMessage::Active(info) => {
                let found = self.ground.joins(&self.state.record.run, &info);
                self.join(found.into_iter().collect(), self.ground.now_ns());
            }
            CaseMessage::Requested(request) => {
                let record = &mut self.state.record;
                let identity = record.run.identity.as_ref();
                if identity.is_some_and(|identity| request.names(identity)) {
                    record.told_by_hook = true;
                    self.ledger.told_by_hook();
                }
            }
            CaseMessage::Nudge => self.state.retry_now(self.ground.now_ns()),
            CaseMessage::HandOver => self.handing_over = true,
        }
    }

    fn take_answer(&mut self, answer: Answer) {
        if let Some(ending) = self.state.answered(&answer) {
            self.ground.ended(&answer.id);
            if let Some(container) = self.state.record.containers.get(&answer.id) {
                let (asked, ended) = (container.asked_ns, container.ended_ns);
                self.ledger.ended(&answer.id, ending, asked, ended);
            }
        }
        if let Err(error) = answer.outcome {
            self.docker_failed("docker", &error.into());
        }
    }

    fn take_sweep(&mut self, found: anyhow::Result<Vec<Found>>) {
        let now = self.ground.now_ns();
        match found {
            Ok(found) => {
                let began = self.state.sweep_succeeded(now);
                self.join(found, began);
                self.glance.succeeded();
                self.ledger.listed(None);
            }
            Err(error) => {
                self.state.sweep_failed(now);
                self.ledger.listed(Some(&format!("{error:#}")));
                self.docker_failed(Step::Sweep.name(), &error);
            }
        }
    }

    fn docker_failed(&mut self, what: &'static str, error: &anyhow::Error) {
        self.glance.failed(error);
        let now = self.ground.now_ns();
        self.complaints.in_the_way(what, error, now);
    }
}
