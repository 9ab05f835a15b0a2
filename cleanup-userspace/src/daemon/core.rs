//! The daemon's one loop: every signal comes in here, becomes a verdict about a
//! run, and opens, wakes or closes a case. It never waits for anything but the
//! next signal.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::casebook::Casebook;
use super::learn::{await_alone, learn_agent, learn_run, watch_process};
use super::surveyor::{SECOND_LOOK, Surveyor};
use crate::case::{CaseMessage, Death, Host, Origin, Record};
use crate::cgroup::Membership;
use crate::docker::{DockerChange, follow_docker};
use crate::mesos::{ContainerId, RuntimeChange, watch_runtime_dir};
use crate::probe::{ExitRecord, Losses, Probe};
use crate::process::{Proc, monotonic_ns, unix_seconds};
use crate::reconcile::{Survey, survey};
use crate::registry::{self, AgentIndex, Ended, Run, Verdict, cgroups_of, judge};

/// How often losses are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often everything that exists is compared with what is known.
const SURVEY_EVERY: Duration = Duration::from_secs(60);
/// What the loop is told by its own tasks.
#[derive(Debug)]
pub enum Message {
    Learnt(Box<Run>),
    ExecutorLearnt {
        container: ContainerId,
        executor: Proc,
        seat: Option<Membership>,
    },
    Ended(ContainerId, Ended),
    /// Nothing of an orphaned run is left.
    Alone(ContainerId),
    Runtime(AgentIndex, RuntimeChange),
    Surveyed(Survey),
    Closed(Box<Record>),
    /// A case's task died: a defect, which must not cost the pod.
    Panicked(ContainerId),
}

/// Counters for the closing line.
#[derive(Debug, Default)]
struct Counters {
    exits: u64,
    foreign: u64,
    deaths: u64,
}

#[derive(Debug)]
pub struct Core {
    host: Arc<Host>,
    probe: Probe,
    sender: UnboundedSender<Message>,
    messages: UnboundedReceiver<Message>,
    casebook: Casebook,
    surveyor: Surveyor,
    losses: Losses,
    docker_up: Option<bool>,
    counters: Counters,
}

impl Core {
    pub fn new(host: Arc<Host>, probe: Probe) -> Self {
        let (sender, messages) = mpsc::unbounded_channel();
        Self {
            casebook: Casebook::new(Arc::clone(&host), sender.clone()),
            surveyor: Surveyor::new(Arc::clone(&host), sender.clone()),
            host,
            probe,
            sender,
            messages,
            losses: Losses::default(),
            docker_up: None,
            counters: Counters::default(),
        }
    }

    /// Watches until `stop` completes. The probe is attached already: what ends
    /// while the first survey runs waits in the ring.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let (docker_sender, mut docker_changes) = mpsc::unbounded_channel();
        tokio::spawn(follow_docker(
            self.host.docker.clone(),
            self.host.index.clone(),
            docker_sender,
        ));
        self.first_survey().await;
        for agent in 0..self.host.agents.len() {
            self.follow_runtime_dir(agent);
        }
        let live = self.host.registry().iter().count();
        tracing::info!(
            mode = ?self.host.config.mode,
            cgroups = %self.host.hierarchies.mode(),
            live_executors = live,
            "ready"
        );

        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut surveys = interval(SURVEY_EVERY);
        surveys.set_missed_tick_behavior(MissedTickBehavior::Delay);
        surveys.reset_after(SECOND_LOOK);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                biased;
                record = self.probe.next() => match record {
                    Ok(record) => self.guarded(|core| core.on_exit(&record)),
                    Err(error) => {
                        tracing::error!(%error, "the ring buffer cannot be read; the pidfds go on");
                        tokio::time::sleep(TICK).await;
                    }
                },
                Some(message) = self.messages.recv() => self.guarded(|core| core.on_message(message)),
                Some(change) = docker_changes.recv() => self.guarded(|core| core.on_docker(change)),
                () = &mut stop => break,
                _ = tick.tick() => self.guarded(Self::check_losses),
                _ = surveys.tick() => self.begin_survey(Duration::ZERO),
            }
        }
        self.shut_down().await;
    }

    /// A defect in one handler must not end the daemon: the survey finds what
    /// the handler left undone.
    fn guarded(&mut self, handle: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| handle(self))).is_err() {
            tracing::error!("a handler panicked; the next survey looks at everything again");
            self.begin_survey(SECOND_LOOK);
        }
    }

    // ---- signals

    fn on_exit(&mut self, record: &ExitRecord) {
        self.counters.exits += 1;
        let Ok(container) = record.container.parse::<ContainerId>() else {
            self.counters.foreign += 1;
            return;
        };
        let learnt = self.host.registry().get(container).is_some();
        if !learnt && !self.learn_late(container, record) {
            self.counters.foreign += 1;
            tracing::debug!(%container, pid = record.tgid, "an exit in the cgroup of an unknown run");
            return;
        }
        self.on_ended(
            container,
            Ended::from(record),
            &Death {
                origin: Origin::Kernel,
                at_ns: record.at_ns,
                noticed_ns: record.received_ns,
                at_unix: unix_seconds(),
                wait_status: Some(record.wait_status),
                sat_in: Some(record.hierarchies.clone()),
            },
        );
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

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Learnt(run) => self.on_learnt(*run),
            Message::ExecutorLearnt {
                container,
                executor,
                seat,
            } => {
                if let Some(run) = self.host.registry().get_mut(container) {
                    run.executor = Some(executor);
                    run.seat = seat.or(run.seat.take());
                }
            }
            Message::Ended(container, ended) => {
                self.on_ended(container, ended, &noticed(Origin::Pidfd));
            }
            Message::Alone(container) => self.open_case(container, noticed(Origin::Pidfd)),
            Message::Runtime(agent, RuntimeChange::Appeared(container)) => {
                self.on_appeared(agent, container);
            }
            Message::Runtime(_, RuntimeChange::Vanished(container)) => self.on_vanished(container),
            Message::Surveyed(survey) => self.on_survey(survey),
            Message::Closed(record) => self.casebook.close(*record),
            Message::Panicked(container) => {
                tracing::error!(%container, "a case's task panicked; it will be found again");
                self.casebook.forget(container);
                self.begin_survey(SECOND_LOOK);
            }
        }
    }

    fn on_appeared(&mut self, agent: AgentIndex, container: ContainerId) {
        if !self.is_known(container) {
            tokio::spawn(learn_run(
                Arc::clone(&self.host),
                agent,
                container,
                self.sender.clone(),
            ));
        }
    }

    fn on_learnt(&mut self, run: Run) {
        let container = run.container;
        if self.is_known(container) {
            return;
        }
        // Its recorded process is gone, or only somebody who inherited the number:
        // what that means is the survey's to say.
        let Some(helper) = run.helper.filter(|helper| helper.is_alive()) else {
            self.begin_survey(SECOND_LOOK);
            return;
        };
        learn_agent(&self.host, &run);
        tracing::debug!(%container, helper = ?run.helper, executor = ?run.executor, launcher = ?run.launcher, "learnt");
        self.host.registry().insert(run);
        tokio::spawn(watch_process(
            container,
            helper,
            Ended::Helper(helper),
            self.sender.clone(),
        ));
    }

    fn on_ended(&mut self, container: ContainerId, ended: Ended, death: &Death) {
        let verdict = match self.host.registry().get(container) {
            Some(run) => judge(run, ended, Proc::is_alive),
            // Its case is open, or closed: the other signal was faster.
            None => return,
        };
        tracing::trace!(%container, ?ended, ?verdict, "ended");
        match verdict {
            Verdict::Dead => self.open_case(container, death.clone()),
            Verdict::DeadIfAlone => {
                if self.is_alone(container, ended) {
                    self.open_case(container, death.clone());
                } else {
                    self.wait_for_the_rest(container);
                }
            }
            Verdict::Orphaned => self.wait_for_the_rest(container),
            Verdict::HelperDecides | Verdict::Nobody => {}
        }
    }

    /// Whether no process of the run is left but the one that just ended.
    fn is_alone(&self, container: ContainerId, ended: Ended) -> bool {
        let Some(run) = self.host.registry().get(container).cloned() else {
            return false;
        };
        let ending = match ended {
            Ended::Group { tgid, .. } => tgid,
            Ended::Helper(proc) | Ended::Executor(proc) => proc.pid,
        };
        cgroups_of(&self.host.hierarchies, self.host.dirs(run.agent), container)
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
        tracing::warn!(
            %container,
            executor = ?run.executor,
            "the launcher helper is dead, the executor is not: its pod is left alone until the executor is gone"
        );
        let sender = self.sender.clone();
        match run.executor {
            Some(executor) => tokio::spawn(watch_process(
                container,
                executor,
                Ended::Executor(executor),
                sender,
            )),
            None => tokio::spawn(await_alone(Arc::clone(&self.host), run, sender)),
        };
    }

    fn on_vanished(&mut self, container: ContainerId) {
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
            self.on_ended(container, Ended::Helper(helper), &noticed(Origin::Scan));
        }
    }

    fn open_case(&mut self, container: ContainerId, death: Death) {
        let run = self.host.registry().remove(container);
        if let Some(run) = run {
            self.counters.deaths += 1;
            self.casebook.open(run, death);
        }
    }

    // ---- Docker

    fn on_docker(&mut self, change: DockerChange) {
        match change {
            DockerChange::Connected => {
                if self.docker_up != Some(true) {
                    tracing::info!(socket = %self.host.config.docker.socket.display(), "Docker is there");
                }
                self.docker_up = Some(true);
                for info in self.host.index.running() {
                    self.casebook.on_active(&info);
                }
                self.casebook.tell_all(|| CaseMessage::Nudge);
                self.begin_survey(Duration::ZERO);
            }
            DockerChange::Disconnected(error) => {
                if self.docker_up != Some(false) {
                    tracing::warn!(%error, "Docker is not there; trying on, cases are kept");
                }
                self.docker_up = Some(false);
            }
            DockerChange::Active(info) => self.casebook.on_active(&info),
        }
    }

    // ---- surveys and losses

    async fn first_survey(&mut self) {
        let (host, known) = (Arc::clone(&self.host), HashSet::new());
        match tokio::task::spawn_blocking(move || survey(&host, &known)).await {
            Ok(found) => self.on_survey(found),
            Err(error) => tracing::error!(%error, "the first survey failed"),
        }
    }

    fn begin_survey(&mut self, after: Duration) {
        let known = self.known();
        self.surveyor.begin(after, known);
    }

    fn on_survey(&mut self, survey: Survey) {
        for run in survey.live {
            let (agent, container, whole) = (run.agent, run.container, run.executor.is_some());
            self.on_learnt(run);
            if !whole {
                tokio::spawn(learn_run(
                    Arc::clone(&self.host),
                    agent,
                    container,
                    self.sender.clone(),
                ));
            }
        }
        let dead = survey
            .dead
            .into_iter()
            .filter(|run| !self.is_known(run.container))
            .collect();
        for run in self.surveyor.confirm(dead) {
            tracing::info!(container = %run.container, "a dead run that no event told of");
            self.counters.deaths += 1;
            self.casebook.open(run, noticed(Origin::Scan));
        }
        self.surveyor.report_unknown(&survey.unknown);
        if let Some(after) = self.surveyor.finished() {
            self.begin_survey(after);
        }
    }

    fn check_losses(&mut self) {
        match self.probe.losses() {
            Ok(losses) if losses.total() > self.losses.total() => {
                tracing::warn!(
                    ?losses,
                    "the kernel could not report every exit; looking at everything"
                );
                self.losses = losses;
                self.begin_survey(Duration::ZERO);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "losses cannot be read"),
        }
    }

    fn known(&self) -> HashSet<ContainerId> {
        let registry = self.host.registry();
        registry
            .iter()
            .map(|run| run.container)
            .chain(self.casebook.known())
            .collect()
    }

    fn is_known(&self, container: ContainerId) -> bool {
        self.casebook.knows(container) || self.host.registry().get(container).is_some()
    }

    fn follow_runtime_dir(&self, agent: AgentIndex) {
        let (changes_sender, mut changes) = mpsc::unbounded_channel();
        tokio::spawn(watch_runtime_dir(
            self.host.agents[agent].runtime.clone(),
            changes_sender,
        ));
        let sender = self.sender.clone();
        tokio::spawn(async move {
            while let Some(change) = changes.recv().await {
                if sender.send(Message::Runtime(agent, change)).is_err() {
                    return;
                }
            }
        });
    }

    // ---- the end

    async fn shut_down(mut self) {
        if let Err(error) = self.probe.detach() {
            tracing::warn!(%error, "the exit probe cannot be detached; its end comes with this process");
        }
        let last = self.probe.drain();
        for record in &last {
            self.guarded(|core| core.on_exit(record));
        }
        self.casebook.tell_all(|| CaseMessage::HandOver);
        let deadline = Instant::now() + self.host.config.shutdown_deadline;
        while self.casebook.open_cases() > 0 {
            match timeout_at(deadline, self.messages.recv()).await {
                Ok(Some(Message::Closed(record))) => self.casebook.close(*record),
                Ok(Some(Message::Panicked(container))) => self.casebook.forget(container),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        let Counters {
            exits,
            foreign,
            deaths,
        } = self.counters;
        tracing::info!(
            exits,
            foreign,
            deaths,
            cases = self.casebook.cases,
            containers = self.casebook.containers,
            lost = self.losses.total(),
            unfinished = self.casebook.open_cases(),
            "stopped"
        );
    }
}

/// The evidence of a death that was noticed now, by something else than the
/// kernel's event.
fn noticed(origin: Origin) -> Death {
    let now = monotonic_ns();
    Death {
        origin,
        at_ns: now,
        noticed_ns: now,
        at_unix: unix_seconds(),
        wait_status: None,
        sat_in: None,
    }
}
