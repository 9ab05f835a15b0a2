//! From a signal to a verdict: which run it is about, whether that is dead, and
//! if not yet, what to wait for.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::learn::{await_alone, identify, learn_agent, learn_executor, learn_run, watch_process};
use super::surveyor::SECOND_LOOK;
use crate::case::{Death, Origin};
use crate::mesos::ContainerId;
use crate::probe::{ExitRecord, ProbeKind};
use crate::process::{Proc, unix_seconds};
use crate::registry::{self, AgentIndex, Ended, Launcher, Role, Run, Verdict, cgroups_of, judge};

impl Core {
    pub(super) fn on_exit(&mut self, record: &ExitRecord) {
        self.counters.exits += 1;
        let container = record.container.parse::<ContainerId>().ok();
        let Some((container, known)) = container.and_then(|container| {
            let known = self.host.registry().get(container).is_some();
            (known || self.learn_late(container, record)).then_some((container, known))
        }) else {
            let role = match container {
                Some(container) if self.casebook.knows(container) => Role::Over,
                _ => Role::Foreign,
            };
            self.counters.foreign += u64::from(role == Role::Foreign);
            self.host.metrics.exit(role);
            tracing::debug!(
                container = record.container,
                pid = record.tgid,
                role = role.as_str(),
                "an exit in the cgroup of no living run"
            );
            return;
        };
        let ended = Ended::from(record);
        let role = self
            .host
            .registry()
            .get(container)
            .map_or(Role::Over, |run| Role::of(run, ended));
        self.host.metrics.exit(role);
        self.on_ended(
            container,
            ended,
            &Death {
                origin: Origin::Kernel,
                at_ns: record.at_ns,
                noticed_ns: record.received_ns,
                at_unix: unix_seconds(),
                wait_status: Some(record.wait_status),
                sat_in: Some(record.hierarchies.clone()),
            },
        );
        if !known {
            self.follow(container);
        }
    }

    /// Makes sure that a registered run's end will be noticed.
    fn follow(&mut self, container: ContainerId) {
        let Some(run) = self.host.registry().get(container).cloned() else {
            return;
        };
        match run.helper.filter(|helper| helper.is_alive()) {
            Some(helper) => {
                learn_agent(&self.host, &run);
                tokio::spawn(watch_process(
                    container,
                    helper,
                    Ended::Helper(helper),
                    self.sender.clone(),
                ));
                if run.identity.is_none() {
                    tokio::spawn(identify(
                        Arc::clone(&self.host),
                        run.clone(),
                        self.sender.clone(),
                    ));
                }
                match run.executor {
                    Some(executor) => self.follow_executor(container, executor),
                    None => {
                        tokio::spawn(learn_executor(
                            Arc::clone(&self.host),
                            run,
                            self.sender.clone(),
                        ));
                    }
                }
            }
            None => self.wait_for_the_rest(container),
        }
    }

    /// Without a probe only its own pidfd tells of an executor that ends before its
    /// helper does: milliseconds that its pod needs for a graceful stop.
    pub(super) fn follow_executor(&self, container: ContainerId, executor: Proc) {
        if self.probe_kind() == ProbeKind::Poll {
            tokio::spawn(watch_process(
                container,
                executor,
                Ended::Executor(executor),
                self.sender.clone(),
            ));
        }
    }

    /// A run that ended before it was learnt: what its agent recorded is still
    /// there, since the agent learns of the end after us.
    fn learn_late(&mut self, container: ContainerId, record: &ExitRecord) -> bool {
        if self.casebook.knows(container) {
            return false;
        }
        for agent in 0..self.host.agents.len() {
            let dirs = self.host.dirs(agent);
            let Some(pid) = self.host.agents[agent].runtime.helper_pid(container) else {
                continue;
            };
            let Some(mut run) = registry::learn(agent, dirs, container, &self.host.launcher) else {
                continue;
            };
            // The event itself says when the process of that PID started.
            if pid == record.tgid {
                run.helper = Some(Proc::of_event(record.tgid, record.start_boottime_ns));
            } else if run.helper.is_none() {
                run.helper = Some(Proc {
                    pid,
                    start_ticks: 0,
                });
            }
            self.host.registry().insert(run);
            return true;
        }
        false
    }

    pub(super) fn on_appeared(&mut self, agent: AgentIndex, container: ContainerId) {
        if !self.is_known(container) {
            tokio::spawn(learn_run(
                Arc::clone(&self.host),
                agent,
                container,
                self.sender.clone(),
            ));
        }
    }

    /// Began and ended while nobody looked, and its agent is done with it: an event
    /// of its death named nobody that was known.
    pub(super) fn on_missed(&mut self, container: ContainerId) {
        if !self.is_known(container) {
            tracing::debug!(%container, "a run was over before it was learnt; looking at everything");
            self.begin_survey(Duration::ZERO);
        }
    }

    pub(super) fn on_learnt(&mut self, run: Run) {
        let container = run.container;
        if self.is_known(container) {
            return;
        }
        if !run.owned {
            tracing::warn!(
                %container,
                runtime_dir = %self.host.dirs(run.agent).runtime_dir.display(),
                "an executor runs that is not in the agent's runtime_dir: is that the right one?"
            );
        }
        tracing::debug!(%container, helper = ?run.helper, executor = ?run.executor, launcher = ?run.launcher, "learnt");
        match run.helper {
            Some(helper) if helper.is_alive() => {
                self.host.registry().insert(run);
                self.follow(container);
            }
            // It ended before it was learnt, and no kernel event told of it.
            Some(helper) if run.identity.is_some() => {
                self.host.registry().insert(run);
                self.on_ended(
                    container,
                    Ended::Helper(helper),
                    &Death::noticed(Origin::Pidfd),
                );
            }
            // Its recorded process is gone, or only somebody who inherited the
            // number: what that means is the survey's to say.
            _ => self.begin_survey(SECOND_LOOK),
        }
    }

    pub(super) fn on_ended(&mut self, container: ContainerId, ended: Ended, death: &Death) {
        let verdict = match self.host.registry().get(container) {
            Some(run) => judge(run, ended, Proc::is_alive),
            // Its case is open, or closed: the other signal was faster.
            None => return,
        };
        tracing::trace!(%container, ?ended, ?verdict, "ended");
        match verdict {
            Verdict::Dead => self.open_case(container, death.clone()),
            Verdict::DeadIfAlone => {
                if self.is_recorded_as_ended(container) || self.is_alone(container, ended) {
                    self.open_case(container, death.clone());
                } else {
                    self.wait_for_the_rest(container);
                }
            }
            Verdict::Orphaned => self.wait_for_the_rest(container),
            Verdict::HelperDecides | Verdict::Nobody => {}
        }
    }

    /// Whether the helper reaped its executor before it ended: then what is left was
    /// started by the executor, and is not it.
    fn is_recorded_as_ended(&self, container: ContainerId) -> bool {
        self.host.registry().get(container).is_some_and(|run| {
            self.host.agents[run.agent]
                .runtime
                .has_status(run.container)
        })
    }

    /// Whether no process of the run is left but the one that just ended. On the
    /// posix launcher that takes a look at every process: not here.
    fn is_alone(&self, container: ContainerId, ended: Ended) -> bool {
        let Some(run) = self.host.registry().get(container).cloned() else {
            return false;
        };
        let ending = match ended {
            Ended::Group { tgid, .. } => tgid,
            Ended::Helper(proc) | Ended::Executor(proc) => proc.pid,
        };
        run.launcher == Launcher::Linux
            && cgroups_of(&self.host.hierarchies, self.host.dirs(run.agent), container)
                .and_then(|cgroups| run.own_processes(&cgroups))
                .is_ok_and(|left| left.iter().all(|pid| *pid == ending))
    }

    /// The helper is dead and the executor, or something that may be it, lives:
    /// nothing is stopped until that is gone, too.
    fn wait_for_the_rest(&mut self, container: ContainerId) {
        let run = {
            let mut registry = self.host.registry();
            let Some(run) = registry.get_mut(container) else {
                return;
            };
            if std::mem::replace(&mut run.orphaned, true) {
                return;
            }
            run.clone()
        };
        let sender = self.sender.clone();
        match run.executor {
            Some(executor) => {
                tracing::warn!(
                    %container,
                    ?executor,
                    "the launcher helper is dead, the executor is not: its pod is left alone until the executor is gone"
                );
                tokio::spawn(watch_process(
                    container,
                    executor,
                    Ended::Executor(executor),
                    sender,
                ))
            }
            None => tokio::spawn(await_alone(Arc::clone(&self.host), run, sender)),
        };
    }

    pub(super) fn on_vanished(&mut self, container: ContainerId) {
        if self.casebook.nudge(container) {
            return;
        }
        // The agent is done with a run whose end nobody told us of.
        let helper = {
            let registry = self.host.registry();
            let gone = |proc: Option<Proc>| !proc.is_some_and(Proc::is_alive);
            registry
                .get(container)
                .filter(|run| gone(run.helper) && gone(run.executor))
                .and_then(|run| run.helper)
        };
        if let Some(helper) = helper {
            self.on_ended(
                container,
                Ended::Helper(helper),
                &Death::noticed(Origin::Scan),
            );
        }
    }

    pub(super) fn open_case(&mut self, container: ContainerId, death: Death) {
        let run = self.host.registry().remove(container);
        if let Some(run) = run {
            self.counters.deaths += 1;
            // An agent makes its isolators' cgroups first and puts the helper into
            // them last, right before the executor starts: that a helper which died
            // alone did not sit in one does not make it Docker's.
            let sat_in = death.sat_in.filter(|_| run.executor.is_some());
            self.casebook.open(run, Death { sat_in, ..death });
        }
    }
}
