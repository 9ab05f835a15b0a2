//! The daemon's one loop: every signal comes in here, becomes a verdict about a
//! run, and opens, wakes or closes a case. It never waits for anything but the
//! next signal.

use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at};

use super::agents::follow_agent;
use super::casebook::Casebook;
use super::orders::Orders;
use super::priority::ThreadPriority;
use super::reload::{self, Reread};
use super::supervisor::Supervisor;
use super::surveyor::{SECOND_LOOK, Surveyor};
use crate::case::{CaseMessage, Death, Host, Origin, Record, printable};
use crate::cgroup::Membership;
use crate::docker::{DockerChange, follow_docker};
use crate::inbox::{Request, follow_inbox};
use crate::journal::Unfinished;
use crate::mesos::{AgentState, ContainerId, Identity, RuntimeChange, watch_runtime_dir};
use crate::metrics::{Panicked, RequestOutcome};
use crate::probe::{ExitSource, Losses, ProbeKind};
use crate::process::{Proc, monotonic_ns, unix_seconds};
use crate::reconcile::Survey;
use crate::registry::{AgentIndex, Ended, Run};
use crate::remains::{Question, Remains};
use crate::serve::Inquiries;

/// How often it looks at what no event tells of, losses before all. While nothing
/// happens, not even what the pidfds tell, a survey or a scrape is soon enough: a full
/// ring is one that is being read, and each look is a wakeup.
const TICK: Duration = Duration::from_secs(1);
/// How long the end waits for the journal to be written.
pub(super) const JOURNAL_DEADLINE: Duration = Duration::from_secs(2);

/// What the loop is told by its own tasks.
#[derive(Debug)]
pub enum Message {
    Learnt(Box<Run>),
    /// A run's directory appeared and vanished before it could be learnt.
    Missed(ContainerId),
    ExecutorLearnt {
        container: ContainerId,
        executor: Proc,
        seat: Option<Membership>,
    },
    /// The sandbox of a run that was learnt without it.
    Identified(Box<Identity>),
    Ended(ContainerId, Ended),
    /// Nothing of an orphaned run is left.
    Alone(ContainerId),
    Runtime(AgentIndex, RuntimeChange),
    /// An agent that was gone, or recovered, is at work.
    AgentBack(AgentIndex),
    /// What an agent is doing now, if that is news.
    AgentState(AgentIndex, AgentState),
    Surveyed(Survey),
    Closed(Box<Record>),
    /// A closed case that was left alone may have something to do now.
    Due(ContainerId),
    /// A case's task died: a defect, which must not cost the pod.
    Panicked(ContainerId),
}

/// The first one in one period from now.
fn surveys_every(period: Duration) -> Interval {
    let mut surveys = interval_at(Instant::now() + period, period);
    surveys.set_missed_tick_behavior(MissedTickBehavior::Delay);
    surveys
}

/// Counters for the closing line.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) exits: u64,
    /// Of runs that are no configured agent's.
    pub(super) foreign: u64,
    pub(super) deaths: u64,
    /// Of the hook.
    pub(super) requests: u64,
}

#[derive(Debug)]
pub struct Core {
    pub(super) host: Arc<Host>,
    pub(super) exits: ExitSource,
    pub(super) sender: UnboundedSender<Message>,
    messages: UnboundedReceiver<Message>,
    pub(super) casebook: Casebook,
    pub(super) surveyor: Surveyor,
    pub(super) orders: Orders,
    pub(super) remains: Remains,
    questions: UnboundedReceiver<Question>,
    reloads: UnboundedReceiver<Reread>,
    pub(super) losses: Losses,
    pub(super) docker_up: Option<bool>,
    /// Of those that were looked at.
    pub(super) agents: BTreeMap<AgentIndex, AgentState>,
    supervisor: Arc<Supervisor>,
    /// Where the tasks run that it starts.
    workers: Handle,
    /// Since when, in seconds since the epoch.
    pub(super) docker_since: f64,
    pub(super) ring_works: bool,
    /// How often something was.
    handled: u64,
    pub(super) counters: Counters,
}

/// What the loop is told by tasks that have their own word for it.
#[derive(Debug)]
pub struct Feeds {
    docker: UnboundedReceiver<DockerChange>,
    requests: UnboundedReceiver<Request>,
    inquiries: Inquiries,
}

impl Core {
    /// Within the runtime in which its tasks shall run.
    pub fn new(
        host: Arc<Host>,
        exits: ExitSource,
        unfinished: &[Unfinished],
        reloads: UnboundedReceiver<Reread>,
        supervisor: Arc<Supervisor>,
    ) -> Self {
        let (sender, messages) = mpsc::unbounded_channel();
        let mut casebook = Casebook::new(Arc::clone(&host), sender.clone());
        casebook.expect(unfinished);
        let (questions_sender, questions) = mpsc::unbounded_channel();
        Self {
            remains: Remains::new(Arc::clone(&host), questions_sender),
            questions,
            reloads,
            casebook,
            surveyor: Surveyor::new(Arc::clone(&host), sender.clone()),
            orders: Orders::default(),
            host,
            exits,
            sender,
            messages,
            losses: Losses::default(),
            docker_up: None,
            agents: BTreeMap::new(),
            supervisor,
            workers: Handle::current(),
            docker_since: 0.0,
            ring_works: true,
            handled: 0,
            counters: Counters::default(),
        }
    }

    /// How deaths are noticed.
    pub(super) fn probe_kind(&self) -> ProbeKind {
        self.exits.kind()
    }

    /// Takes up everything that feeds the loop, and looks at what exists. A probe is
    /// attached already: what ends meanwhile waits in the ring.
    pub async fn start(&mut self, inquiries: Inquiries) -> Feeds {
        let (docker_sender, docker) = mpsc::unbounded_channel();
        tokio::spawn(follow_docker(
            self.host.docker.clone(),
            self.host.index.clone(),
            docker_sender,
        ));
        let (request_sender, requests) = mpsc::unbounded_channel();
        tokio::spawn(follow_inbox(
            self.host.config().inbox_dir(),
            request_sender,
            self.host.metrics.clone(),
        ));
        let supervisor = Arc::clone(&self.supervisor);
        supervisor.feeding(self.first_survey()).await;
        for agent in 0..self.host.agents.len() {
            self.follow_runtime_dir(agent);
            tokio::spawn(follow_agent(
                Arc::clone(&self.host),
                agent,
                self.sender.clone(),
            ));
        }
        let live = self.host.registry().iter().count();
        tracing::info!(
            mode = ?self.host.config().mode,
            probe = %self.probe_kind(),
            cgroups = %self.host.hierarchies.mode(),
            live_executors = live,
            "ready"
        );
        self.supervisor.ready(&self.standing());
        Feeds {
            docker,
            requests,
            inquiries,
        }
    }

    /// Watches until `stop` completes, in whatever runtime: what it starts runs where it
    /// was made. Inquiries come last: whoever asks much waits for the rest.
    pub async fn run(
        mut self,
        mut feeds: Feeds,
        priority: &ThreadPriority,
        stop: impl Future<Output = ()>,
    ) {
        let pause = self.supervisor.longest_pause();
        let mut signs_of_life = interval(pause.unwrap_or(TICK));
        signs_of_life.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut handled_before = self.handled;
        let mut quiet = false;
        let mut surveys = surveys_every(self.host.config().reconcile_interval);
        surveys.reset_after(SECOND_LOOK);
        tokio::pin!(stop);
        let metrics = self.host.metrics.clone();
        loop {
            // Each turn of this loop is the sign of life: ticks alone may have to
            // wait behind a flood of exits.
            self.supervisor.alive();
            metrics.turned();
            priority.at_work();
            if quiet && self.handled != handled_before {
                quiet = false;
                tick.reset();
            }
            tokio::select! {
                biased;
                // Before the exits: a flood of those must not keep it from ending.
                () = &mut stop => break,
                // So that a flood does not go on being cleaned up by the old word.
                Some(read) = self.reloads.recv() => {
                    self.guarded(|core| core.on_reload(read));
                    let every = self.host.config().reconcile_interval;
                    if surveys.period() != every {
                        surveys = surveys_every(every);
                    }
                    self.supervisor.reloaded();
                }
                record = self.exits.next(), if self.ring_works => match record {
                    Ok(record) => self.guarded(|core| core.on_exit(&record)),
                    Err(error) => {
                        tracing::error!(%error, "the ring buffer cannot be read; the pidfds go on");
                        self.ring_works = false;
                        self.host.metrics.ring_is_broken(true);
                        self.guarded(|core| core.begin_survey(Duration::ZERO));
                    }
                },
                Some(message) = self.messages.recv() => self.after_exits(|core| core.on_message(message)),
                Some(request) = feeds.requests.recv() => self.after_exits(|core| core.on_request(request)),
                Some(question) = self.questions.recv() => self.guarded(|core| core.on_question(question)),
                Some(change) = feeds.docker.recv() => self.guarded(|core| core.on_docker(change)),
                _ = tick.tick(), if !quiet => {
                    // Broken until it can be read for a whole tick.
                    self.host.metrics.ring_is_broken(!self.ring_works);
                    self.ring_works = true;
                    self.look();
                    quiet = self.handled == handled_before;
                    handled_before = self.handled;
                }
                _ = surveys.tick() => {
                    self.look();
                    self.guarded(|core| core.begin_survey(Duration::ZERO));
                }
                () = metrics.asked() => self.look(),
                _ = signs_of_life.tick(), if pause.is_some() => {}
                inquiry = feeds.inquiries.next() => self.guarded(|core| core.on_inquiry(inquiry)),
            }
        }
        self.supervisor.stopping();
        let supervisor = Arc::clone(&self.supervisor);
        supervisor.feeding(self.shut_down()).await;
    }

    /// What ended was written to the ring before a pidfd, a scan or an agent could tell of
    /// it, but the ring is polled with the loop's other descriptors, and a message is
    /// there at once. The kernel's word is the one that knows when and how.
    fn after_exits(&mut self, handle: impl FnOnce(&mut Self)) {
        for record in self.exits.drain() {
            self.guarded(|core| core.on_exit(&record));
        }
        self.guarded(handle);
    }

    /// A defect in one handler must not end the daemon: the survey finds what
    /// the handler left undone.
    fn guarded(&mut self, handle: impl FnOnce(&mut Self)) {
        let began = monotonic_ns();
        let workers = self.workers.clone();
        let _among_workers = workers.enter();
        if catch_unwind(AssertUnwindSafe(|| handle(self))).is_err() {
            self.host.metrics.panicked(Panicked::Handler);
            tracing::error!("a handler panicked; the next survey looks at everything again");
            self.begin_survey(SECOND_LOOK);
        }
        self.host.metrics.handled(began);
        self.handled += 1;
    }

    // ---- signals

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Learnt(run) => self.on_learnt(*run),
            Message::Missed(container) => self.on_missed(container),
            Message::ExecutorLearnt {
                container,
                executor,
                seat,
            } => {
                if let Some(run) = self.host.registry().get_mut(container) {
                    tracing::debug!(%container, ?executor, "executor learnt");
                    run.executor = Some(executor);
                    run.seat = seat.or(run.seat.take());
                    self.follow_executor(container, executor);
                }
            }
            Message::Identified(identity) => {
                if let Some(run) = self.host.registry().get_mut(identity.container) {
                    run.identity = Some(*identity);
                }
            }
            Message::Ended(container, ended) => {
                self.on_ended(container, ended, &Death::noticed(Origin::Pidfd));
            }
            Message::Alone(container) => self.open_case(container, Death::noticed(Origin::Pidfd)),
            Message::Runtime(agent, RuntimeChange::Appeared(container)) => {
                self.on_appeared(agent, container);
            }
            Message::Runtime(_, RuntimeChange::Vanished(container)) => self.on_vanished(container),
            Message::AgentState(agent, state) => {
                self.agents.insert(agent, state);
            }
            Message::AgentBack(agent) => {
                tracing::info!(
                    work_dir = %self.host.dirs(agent).work_dir.display(),
                    "the agent is back; looking at everything"
                );
                self.casebook.tell_all(|| CaseMessage::Nudge);
                self.begin_survey(Duration::ZERO);
            }
            Message::Surveyed(survey) => self.on_survey(&survey),
            Message::Closed(record) => self.orders.on_closed(*record, &mut self.casebook),
            Message::Due(container) => self.casebook.reopen_if_due(container),
            Message::Panicked(container) => {
                self.orders.on_panicked(container, &mut self.casebook);
            }
        }
    }

    // ---- Docker

    fn on_docker(&mut self, change: DockerChange) {
        match change {
            DockerChange::Connected => {
                if self.docker_up != Some(true) {
                    tracing::info!(socket = %self.host.config().docker.socket.display(), "Docker is there");
                }
                self.note_docker(true);
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
                self.note_docker(false);
            }
            DockerChange::Active(info) => self.casebook.on_active(&info),
        }
    }

    fn note_docker(&mut self, there: bool) {
        self.host.metrics.docker_up(there);
        if self.docker_up.replace(there) != Some(there) {
            self.docker_since = unix_seconds();
        }
    }

    /// Mesos removed an executor: a reason to look, no proof of anything.
    fn on_request(&mut self, request: Request) {
        self.counters.requests += 1;
        tracing::debug!(executor = %printable(&request.executor_id), "the hook told of an executor");
        let known = self.casebook.requested(&request);
        self.host.metrics.requested(if known {
            RequestOutcome::Known
        } else {
            RequestOutcome::Surveyed
        });
        if !known {
            self.surveyor.remember(request);
            self.begin_survey(Duration::ZERO);
        }
    }

    /// The configuration was read again.
    fn on_reload(&mut self, read: Reread) {
        let running = self.host.config();
        let next = reload::judge(&running, read);
        *self.host.refused() = next.as_ref().err().cloned();
        let Ok(next) = next else { return };
        if next == *running {
            return;
        }
        self.host.reconfigure(next);
        self.casebook.reconfigured();
        self.supervisor.status(&self.standing());
    }

    // ---- what no event tells of

    /// Is no event itself.
    fn look(&mut self) {
        let handled = self.handled;
        self.guarded(Self::check_losses);
        self.supervisor.status(&self.standing());
        self.guarded(|core| core.sample());
        self.host.metrics.looked();
        self.handled = handled;
    }

    /// Notes what is nobody's event.
    fn sample(&self) {
        let metrics = &self.host.metrics;
        metrics.held(self.host.is_holding());
        metrics.journal(&self.host.journal.stats());
        metrics.live_executors(self.host.registry().iter().count());
    }

    fn check_losses(&mut self) {
        let losses = self.exits.losses();
        if let Ok(losses) = &losses {
            self.host.metrics.losses(losses);
        }
        match losses {
            Ok(losses) if losses.missed() > self.losses.missed() => {
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

    pub(super) fn known(&self) -> HashSet<ContainerId> {
        let registry = self.host.registry();
        registry
            .iter()
            .map(|run| run.container)
            .chain(self.casebook.known())
            .collect()
    }

    pub(super) fn is_known(&self, container: ContainerId) -> bool {
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
        if let Err(error) = self.exits.detach() {
            tracing::warn!(%error, "the exit probe cannot be detached; its end comes with this process");
        }
        let last = self.exits.drain();
        for record in &last {
            self.guarded(|core| core.on_exit(record));
        }
        self.casebook.hand_over(&mut self.messages).await;
        if !self.host.journal.close(JOURNAL_DEADLINE).await {
            tracing::warn!("the last records did not get into the journal");
        }
        let Counters {
            exits,
            foreign,
            deaths,
            requests,
        } = self.counters;
        tracing::info!(
            exits,
            foreign,
            deaths,
            requests,
            cases = self.casebook.cases,
            containers = self.casebook.containers,
            lost = self.losses.missed(),
            unfinished = self.casebook.open_cases(),
            "stopped"
        );
    }
}
