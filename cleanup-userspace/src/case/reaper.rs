//! Carries a case out: looks, decides, does one step, looks again.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::decide::{Facts, Ownership, Policy, Step, Swept, Waiting, decide};
use super::effects::{self, Look, WORK_DEADLINE};
use super::host::Host;
use super::pod::{Answer, ask_to_end, discover_pod, first_wave};
use super::record::{CaseResult, Contained, Progress, Record};
use super::{Death, Outcome};
use crate::config::Mode;
use crate::docker::{ContainerInfo, JoinKey, RunScope, exact_key};
use crate::inbox::Request;
use crate::mesos::{AgentState, ContainerId};
use crate::process::monotonic_ns;
use crate::registry::Run;

/// Polling begins at this pace and slows down while nothing changes.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The pace of a case whose agent is stuck: only its end or return helps.
const STUCK_PAUSE: Duration = Duration::from_secs(5);
/// How long a problem is not mentioned again.
const REMIND_AFTER: Duration = Duration::from_secs(600);
/// Repeating a refused request: doubling from the first to the longest.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// What a running case is told.
#[derive(Debug)]
pub enum CaseMessage {
    /// Docker's answer to a request of this case.
    Answered(Answer),
    /// A container that names this run was created or started after its death.
    Active(Arc<ContainerInfo>),
    /// The hook named an executor: maybe this one.
    Requested(Request),
    /// Something changed: look again now.
    Nudge,
    /// The daemon stops: finish what was asked of Docker, begin nothing.
    HandOver,
}

/// One case at work.
#[derive(Debug)]
pub struct Reaper {
    host: Arc<Host>,
    record: Record,
    sender: mpsc::UnboundedSender<CaseMessage>,
    inbox: mpsc::UnboundedReceiver<CaseMessage>,
    quiet_since: Option<u64>,
    /// When the last sweep that succeeded began.
    swept_at: Option<u64>,
    sweep_due: Option<u64>,
    sweep_failures: u32,
    seen_owned: bool,
    handing_over: bool,
    /// Removal work that outlived its deadline.
    removal: Option<JoinHandle<anyhow::Result<usize>>>,
    /// Until when nothing is removed, since something was busy.
    busy_until: Option<u64>,
    complaints: HashMap<&'static str, Instant>,
}

impl Reaper {
    /// Opens the case and sends the first wave of stop requests before it
    /// returns: no question to Docker, no disk, no lock that another case holds.
    pub fn open(
        host: Arc<Host>,
        run: Run,
        death: Death,
    ) -> (Self, mpsc::UnboundedSender<CaseMessage>) {
        let (sender, inbox) = mpsc::unbounded_channel();
        let found = first_wave(&host, &run);
        let mut reaper = Self {
            seen_owned: run.owned,
            record: Record::new(run, death),
            host,
            sender: sender.clone(),
            inbox,
            quiet_since: None,
            swept_at: None,
            sweep_due: None,
            sweep_failures: 0,
            handing_over: false,
            removal: None,
            busy_until: None,
            complaints: HashMap::new(),
        };
        reaper.join(found);
        if reaper.host.config.mode == Mode::Enforce {
            reaper.stop();
        }
        (reaper, sender)
    }

    /// Works until the host was seen clean, or there is no more to be done.
    pub async fn run(mut self) -> Record {
        if self.host.config.mode == Mode::Observe {
            return self.observe().await;
        }
        let policy = Policy {
            teardown: self.host.config.teardown,
            settle: self.host.config.settle,
            agent_deadline: self.host.config.agent_deadline,
        };
        let mut pause = FIRST_PAUSE;
        loop {
            self.take_messages();
            if self.handing_over {
                return self.hand_over().await;
            }
            let look = match self.look().await {
                Ok(look) => look,
                Err(error) => {
                    self.complain("look", &error);
                    self.wait(LONGEST_PAUSE).await;
                    continue;
                }
            };
            let facts = self.facts(&look);
            let step = decide(&facts, &policy);
            tracing::trace!(container = %self.record.run.container, ?facts, ?step, "step");
            match step {
                Step::Stop => self.stop(),
                Step::Sweep => self.sweep().await,
                Step::EndStragglers => {
                    self.end_stragglers(look.agent).await;
                    self.wait(FIRST_PAUSE).await;
                }
                Step::Remove { agents } => {
                    if self.remove(agents).await {
                        pause = FIRST_PAUSE;
                    } else {
                        pause = slower(pause);
                        self.busy_until = Some(monotonic_ns() + nanos(pause));
                    }
                }
                Step::Wait(waiting) => {
                    let wait = match waiting {
                        Waiting::Settle => {
                            let settled = policy
                                .settle
                                .saturating_sub(facts.quiet_for.unwrap_or_default());
                            // What is busy is tried again meanwhile.
                            if facts.busy {
                                settled.min(pause)
                            } else {
                                settled
                            }
                        }
                        // An answer comes as a message.
                        Waiting::Docker => facts.retry_in.unwrap_or(STUCK_PAUSE).min(STUCK_PAUSE),
                        Waiting::AgentStuck => {
                            self.complain_of_the_agent(&facts);
                            STUCK_PAUSE
                        }
                        Waiting::Busy => {
                            self.complain_of_busy_cgroups(&facts);
                            pause
                        }
                        Waiting::AgentKills | Waiting::AgentDestroys => {
                            pause = slower(pause);
                            pause
                        }
                    };
                    self.wait(wait.max(FIRST_PAUSE)).await;
                }
                Step::Close(Outcome::Clean) => {
                    self.record.result = CaseResult::Clean;
                    return self.record;
                }
            }
        }
    }

    /// Does everything but the effects.
    async fn observe(mut self) -> Record {
        self.sweep().await;
        let directories = match self.look().await {
            Ok(look) => look.hierarchies,
            Err(error) => {
                self.complain("look", &error);
                Vec::new()
            }
        };
        let containers: Vec<String> = self
            .record
            .containers
            .iter()
            .map(|(id, container)| {
                format!("{} ({})", &id[..id.len().min(12)], key_name(container.key))
            })
            .collect();
        tracing::info!(
            container = %self.record.run.container,
            action = ?self.host.config.action,
            containers = %containers.join(", "),
            cgroup = %self.host.run_path(&self.record.run).display(),
            hierarchies = %directories.join(" "),
            "plan: would end these containers and remove this cgroup in these hierarchies (mode is observe)"
        );
        self.record.result = CaseResult::Observed;
        self.record
    }

    /// Waits for the answers that are under way, at most for as long as the
    /// daemon lets it live.
    async fn hand_over(mut self) -> Record {
        while self
            .record
            .containers
            .values()
            .any(|container| container.progress == Progress::Asked)
        {
            match self.inbox.recv().await {
                Some(message) => self.take(message),
                None => break,
            }
        }
        self.record.result = CaseResult::HandedOver;
        self.record
    }

    fn facts(&mut self, look: &Look) -> Facts {
        let now = monotonic_ns();
        let (mut to_stop, mut in_flight, mut due) = (0, 0, self.sweep_due);
        for container in self.record.containers.values() {
            match container.progress {
                Progress::Found => to_stop += 1,
                Progress::Failed { due_ns } if due_ns <= now => to_stop += 1,
                Progress::Failed { due_ns } => {
                    due = Some(due.map_or(due_ns, |due| due.min(due_ns)));
                }
                Progress::Asked => in_flight += 1,
                Progress::Ended(_) => {}
            }
        }
        let running = self
            .record
            .containers
            .values()
            .any(|c| !matches!(c.progress, Progress::Ended(_)));
        if running || !look.own_processes.is_empty() {
            self.quiet_since = None;
        } else {
            self.quiet_since.get_or_insert(now);
            self.record.stopped_ns = self
                .record
                .containers
                .values()
                .filter_map(|c| c.ended_ns)
                .max();
            if look.directories.is_empty() {
                self.record.clean_ns.get_or_insert(now);
            } else {
                self.record.clean_ns = None;
            }
        }
        let settle = u64::try_from(self.host.config.settle.as_nanos()).unwrap_or(u64::MAX);
        let swept = match (self.swept_at, self.quiet_since) {
            (None, _) => Swept::Never,
            (Some(swept), Some(quiet)) if swept >= quiet.saturating_add(settle) => Swept::Settled,
            (Some(swept), Some(quiet)) if swept >= quiet => Swept::Quiet,
            (Some(_), _) => Swept::Early,
        };
        let nanos = |at: u64| Duration::from_nanos(now.saturating_sub(at));
        Facts {
            to_stop,
            in_flight,
            retry_in: due
                .filter(|due| *due > now)
                .map(|due| Duration::from_nanos(due - now)),
            quiet_for: self.quiet_since.map(nanos),
            swept,
            own_processes: look.own_processes.len(),
            agent: look.agent,
            ownership: match (look.owned, self.seen_owned) {
                (true, _) => Ownership::Owned,
                (false, true) => Ownership::Done,
                (false, false) => Ownership::Unknown,
            },
            directories: look.directories.clone(),
            busy: self.busy_until.is_some_and(|until| until > now),
            age: nanos(self.record.death.at_ns),
        }
    }

    async fn look(&mut self) -> anyhow::Result<Look> {
        let look = effects::look(&self.host, &self.record.run, &self.record.death).await?;
        self.seen_owned |= look.owned || self.host.agents[self.record.run.agent].is_verified();
        self.record.run.identity = self
            .record
            .run
            .identity
            .take()
            .or_else(|| look.identity.clone());
        Ok(look)
    }

    /// Sends a request for everything that is to be stopped, all at once.
    fn stop(&mut self) {
        let now = monotonic_ns();
        for (id, container) in &mut self.record.containers {
            let due = match container.progress {
                Progress::Found => true,
                Progress::Failed { due_ns } => due_ns <= now,
                Progress::Asked | Progress::Ended(_) => false,
            };
            if !due {
                continue;
            }
            container.progress = Progress::Asked;
            container.asked_ns.get_or_insert(monotonic_ns());
            let (host, id, sender) = (Arc::clone(&self.host), id.clone(), self.sender.clone());
            tokio::spawn(async move {
                let answer = ask_to_end(&host, id).await;
                // A closed inbox: the case was handed over.
                let _ = sender.send(CaseMessage::Answered(answer));
            });
        }
    }

    /// The second wave: everything that runs, joined by every key.
    async fn sweep(&mut self) {
        let began = monotonic_ns();
        match discover_pod(&self.host, &self.record.run, &self.record.death).await {
            Ok(found) => {
                self.swept_at = Some(began);
                self.sweep_due = None;
                self.sweep_failures = 0;
                self.join(found);
            }
            Err(error) => {
                self.complain("docker", &error.into());
                self.sweep_due = Some(monotonic_ns() + nanos(retry_after(self.sweep_failures)));
                self.sweep_failures += 1;
            }
        }
    }

    fn join(&mut self, found: Vec<(String, JoinKey)>) {
        for (id, key) in found {
            let container = self
                .record
                .containers
                .entry(id)
                .or_insert_with(|| Contained::found(key));
            // It runs, although it had ended: started again.
            if matches!(container.progress, Progress::Ended(_)) {
                container.progress = Progress::Found;
            }
        }
    }

    /// Removes what may be removed; returns whether anything went.
    async fn remove(&mut self, agents: bool) -> bool {
        let mut work = self.removal.take().unwrap_or_else(|| {
            effects::begin_removal(&self.host, &self.record.run, &self.record.death, agents)
        });
        let Ok(done) = tokio::time::timeout(WORK_DEADLINE, &mut work).await else {
            // Never a second one beside it: each could hang a thread.
            self.removal = Some(work);
            self.complain(
                "remove",
                &anyhow::anyhow!("a removal of its cgroups hangs in the kernel"),
            );
            return false;
        };
        match done.map_err(Into::into).and_then(|removed| removed) {
            Ok(removed) => {
                self.record.directories_removed += removed;
                removed > 0
            }
            Err(error) => {
                self.complain("remove", &error);
                false
            }
        }
    }

    async fn end_stragglers(&mut self, agent: AgentState) {
        match effects::end_stragglers(&self.host, &self.record.run, agent).await {
            Ok(ended) => self.record.processes_ended += ended,
            Err(error) => self.complain("kill", &error),
        }
    }

    fn take_messages(&mut self) {
        while let Ok(message) = self.inbox.try_recv() {
            self.take(message);
        }
    }

    fn take(&mut self, message: CaseMessage) {
        match message {
            CaseMessage::Answered(answer) => self.take_answer(answer),
            CaseMessage::Active(info) => {
                if let Some(key) = key_of(&self.host, &self.record.run, &info) {
                    self.join(vec![(info.id.clone(), key)]);
                }
            }
            CaseMessage::Requested(request) => {
                let identity = self.record.run.identity.as_ref();
                self.record.told_by_hook |=
                    identity.is_some_and(|identity| request.names(identity));
            }
            CaseMessage::Nudge => self.sweep_due = None,
            CaseMessage::HandOver => self.handing_over = true,
        }
    }

    fn take_answer(&mut self, answer: Answer) {
        let Some(container) = self.record.containers.get_mut(&answer.id) else {
            return;
        };
        match answer.outcome {
            Ok(Some(ending)) => {
                container.progress = Progress::Ended(ending);
                container.ended_ns = Some(answer.at_ns);
                self.host.index.ended(&answer.id);
            }
            // Again later: it was stopped and runs, or Docker did not do it.
            Ok(None) => container.fail(retry_after(container.failures)),
            Err(error) => {
                container.fail(retry_after(container.failures));
                self.complain("docker", &error.into());
            }
        }
    }

    /// Sleeps until something happens, at most for `limit`.
    async fn wait(&mut self, limit: Duration) {
        if let Ok(Some(message)) = tokio::time::timeout(limit, self.inbox.recv()).await {
            self.take(message);
        }
    }

    /// Says what is in the way: each kind of thing once, and again after a while.
    fn complain(&mut self, kind: &'static str, error: &anyhow::Error) {
        let container = self.record.run.container;
        let error = format!("{error:#}");
        if self.is_news(kind) {
            tracing::warn!(%container, error, "in the way of a cleanup; trying on");
        } else {
            tracing::debug!(%container, error, "still in the way of a cleanup");
        }
    }

    fn complain_of_the_agent(&mut self, facts: &Facts) {
        if self.is_news("agent") {
            tracing::warn!(
                container = %self.record.run.container,
                agent = ?facts.agent,
                ownership = ?facts.ownership,
                own_processes = facts.own_processes,
                cgroups = facts.directories.len(),
                "the agent has not finished its destroy of a dead container: its cgroups stay until it does, \
                 is restarted, or is gone"
            );
        }
    }

    fn complain_of_busy_cgroups(&mut self, facts: &Facts) {
        if facts.age >= self.host.config.agent_deadline && self.is_news("busy") {
            tracing::warn!(
                container = %self.record.run.container,
                cgroup = %self.host.run_path(&self.record.run).display(),
                cgroups = facts.directories.len(),
                "cgroups of a dead run are not empty, though Docker says that nothing runs there: \
                 look at cgroup.procs beneath them"
            );
        }
    }

    fn is_news(&mut self, kind: &'static str) -> bool {
        let news = self
            .complaints
            .get(kind)
            .is_none_or(|last| last.elapsed() >= REMIND_AFTER);
        if news {
            self.complaints.insert(kind, Instant::now());
        }
        news
    }
}

/// The run-exact key that makes a container part of a dead run.
///
/// Must not be called with the registry locked.
pub fn key_of(host: &Host, run: &Run, info: &ContainerInfo) -> Option<JoinKey> {
    let sandboxes = run
        .identity
        .as_ref()
        .map(|identity| [&identity.sandbox, &identity.resolved]);
    let is_run = |id: ContainerId| {
        host.registry().get(id).is_some()
            || host
                .agents
                .iter()
                .any(|agent| agent.runtime.owns(id).unwrap_or(true))
    };
    exact_key(
        info,
        &RunScope {
            container: run.container,
            cgroups_root: &host.dirs(run.agent).cgroups_root,
            all_roots: host.roots(),
            sandboxes: sandboxes
                .into_iter()
                .flatten()
                .map(PathBuf::as_path)
                .collect(),
        },
        is_run,
    )
}

fn key_name(key: JoinKey) -> &'static str {
    match key {
        JoinKey::Cgroup => "cgroup",
        JoinKey::CgroupParent => "cgroup_parent",
        JoinKey::WorkingDir => "working_dir",
        JoinKey::ConfigFiles => "config_files",
        JoinKey::Label => "label",
    }
}

fn slower(pause: Duration) -> Duration {
    (pause * 3 / 2).min(LONGEST_PAUSE)
}

fn retry_after(failures: u32) -> Duration {
    FIRST_RETRY
        .saturating_mul(1 << failures.min(8))
        .min(LONGEST_RETRY)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
