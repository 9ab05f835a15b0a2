//! Carries a case out: looks, decides, does one step, looks again.

mod waiting;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::complaints::Complaints;
use super::decide::{Facts, Outcome, Policy, Step, decide};
use super::effects::{Look, WORK_DEADLINE};
use super::glance::Glance;
use super::ground::Ground;
use super::ledger::Ledger;
use super::pod::{Answer, Ask, Found};
use super::record::{CaseResult, Progress, Record, key_name};
use super::state::{CaseState, Given, nanos};
use super::{Death, Proof, crash};
use crate::config::Mode;
use crate::docker::ContainerInfo;
use crate::inbox::Request;
use crate::journal::CaseId;
use crate::registry::Run;

/// Polling begins at this pace and slows down while nothing changes.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The pace of what only somebody else can end: an agent, an operator, a
/// container that is to be kept.
const SLOW_PAUSE: Duration = Duration::from_secs(5);

/// How long everything else stays out of the first wave's way: Docker takes about half of
/// that until a request has become a signal, and what looks or asks meanwhile takes its
/// time from it.
const HEAD_START: Duration = Duration::from_millis(25);

/// How often an executor that is not known is looked for.
const SEARCH_PAUSE: Duration = Duration::from_secs(5);

/// What a running case is told.
#[derive(Debug)]
pub enum CaseMessage {
    /// Docker's answer to a request of this case.
    Answered(Answer),
    /// Docker's answer to what runs, joined to this run.
    Swept(anyhow::Result<Vec<Found>>),
    /// A container that names this run was created or started after its death.
    Active(Arc<ContainerInfo>),
    /// The hook named an executor: maybe this one.
    Requested(Request),
    /// Docker, the agent or an operator may have changed something: look again
    /// now, and repeat what failed.
    Nudge,
    /// The daemon stops: finish what was asked of Docker, begin nothing.
    HandOver,
}

/// One case at work.
#[derive(Debug)]
pub struct Reaper<G> {
    ground: G,
    state: CaseState,
    ledger: Ledger,
    sender: mpsc::UnboundedSender<CaseMessage>,
    inbox: mpsc::UnboundedReceiver<CaseMessage>,
    handing_over: bool,
    /// Removal work that outlived its deadline.
    removal: Option<JoinHandle<anyhow::Result<usize>>>,
    complaints: Complaints,
    glance: Glance,
    pause: Duration,
    /// When an executor that is not known is looked for again.
    search_due: u64,
}

impl<G: Ground> Reaper<G> {
    /// Opens the case and sends the first wave of stop requests before it
    /// returns: no question to Docker, no disk, no lock that another case holds.
    /// What memory knows of the pod: a look into the run's cgroup may have to wait for
    /// whoever removes one, and has no place on the event path.
    pub fn open(
        ground: G,
        case: CaseId,
        run: Run,
        death: Death,
    ) -> (Self, mpsc::UnboundedSender<CaseMessage>) {
        let (sender, inbox) = mpsc::unbounded_channel();
        let indexed = ground.indexed(&run);
        let now = ground.now_ns();
        let ledger = ground.ledger(case);
        let container = run.container;
        let state = CaseState::new(ledger.case(), run, death, now);
        let mut reaper = Self {
            complaints: Complaints::new(container),
            glance: Glance::new(&state.record, now),
            state,
            ledger,
            ground,
            sender: sender.clone(),
            inbox,
            handing_over: false,
            removal: None,
            pause: FIRST_PAUSE,
            search_due: 0,
        };
        reaper.first_wave(indexed);
        (reaper, sender)
    }

    /// What the names beneath the run's cgroup add to the first wave, and the record of
    /// it. Only now: nothing is written down on the way of the first request.
    async fn finish_first_wave(&mut self) {
        let beneath = self.ground.beneath_cgroup(&self.state.record.run).await;
        self.state.trust(&beneath);
        self.first_wave(beneath);
        let record = &self.state.record;
        self.ground.opened(&self.ledger, &record.run, &record.death);
        for (id, container) in &record.containers {
            self.ledger.joined(id, container.key);
        }
        if self.state.is_asked() {
            self.ledger.step(Step::Stop);
            self.ledger.outcome("asked", None);
        }
    }

    /// Joins what was found, and asks for its end if the case may begin.
    fn first_wave(&mut self, found: Vec<Found>) {
        // With nothing but the operator's word, a look has to come first.
        let may_begin = self.state.record.death.origin.proof() != Proof::Word
            && self.ground.mode() == Mode::Enforce
            && self.ground.is_excluded(&self.state.record.run) == Some(false);
        let new = self.state.join(found, self.ground.now_ns());
        let asks = may_begin && !new.is_empty() && !self.is_held();
        if asks {
            crash::point(Step::Stop, crash::Moment::Before);
            self.stop();
            crash::point(Step::Stop, crash::Moment::After);
        }
    }

    /// For those who want to see what the case is at.
    pub fn glance(&self) -> Glance {
        self.glance.clone()
    }

    /// Works until the host was seen clean, or there is no more to be done.
    pub async fn run(mut self) -> Record {
        self.finish_first_wave().await;
        if self.state.is_asked() {
            self.wait(HEAD_START).await;
        }
        loop {
            self.take_messages();
            if self.handing_over {
                return self.hand_over().await;
            }
            // Both may change while the case is at work.
            if self.ground.mode() == Mode::Observe {
                if self.observe().await {
                    return self.state.record;
                }
                continue;
            }
            let policy = self.ground.policy();
            let look = match self.look().await {
                Ok(look) => look,
                Err(error) => {
                    self.glance.failed(&error);
                    self.complaints
                        .in_the_way("look", &error, self.ground.now_ns());
                    self.wait(LONGEST_PAUSE).await;
                    continue;
                }
            };
            let facts = self.facts(&look, &policy);
            let step = decide(&facts, &policy);
            tracing::trace!(container = %self.state.record.run.container, ?facts, ?step, "step");
            crash::point(step, crash::Moment::Before);
            self.ledger.step(step);
            self.ledger.teardown(step, facts.ownership);
            self.glance
                .step(step, &self.state.record, self.ground.now_ns());
            let done = match step {
                Step::Stop => {
                    self.stop();
                    Ok("asked")
                }
                Step::Sweep => {
                    self.sweep();
                    self.ledger.listing();
                    Ok("asked")
                }
                Step::KillPod => self.kill_pod(&facts).await,
                Step::EndStragglers => self.end_stragglers(&look).await,
                Step::Remove { agents } => self.remove(agents).await,
                Step::Wait(waiting) => {
                    self.wait_for(waiting, &facts, &policy).await;
                    Ok("waited")
                }
                Step::Close(outcome) => {
                    self.ledger.outcome("closed", None);
                    self.state.record.result = outcome.into();
                    crash::point(step, crash::Moment::After);
                    return self.state.record;
                }
            };
            match done {
                Ok(outcome) => {
                    // That it waits or asks says nothing of what comes of that.
                    if !matches!(step, Step::Wait(_) | Step::Sweep) {
                        self.glance.succeeded();
                    }
                    self.ledger.outcome(outcome, None);
                }
                Err(error) => {
                    self.glance.failed(&error);
                    self.ledger.outcome("failed", Some(&format!("{error:#}")));
                    let now = self.ground.now_ns();
                    self.complaints.in_the_way(step.name(), &error, now);
                }
            }
            crash::point(step, crash::Moment::After);
        }
    }

    /// Does everything but the effects. Returns whether the case is over: not if it
    /// waits for what was asked of Docker before, or the mode is another one by now.
    async fn observe(&mut self) -> bool {
        if self.state.is_asked() {
            self.wait(SLOW_PAUSE).await;
            return false;
        }
        self.sweep();
        while self.state.is_sweeping() {
            self.wait(SLOW_PAUSE).await;
            if self.handing_over {
                return false;
            }
        }
        let directories = match self.look().await {
            Ok(look) => look.hierarchies,
            Err(error) => {
                self.complaints
                    .in_the_way("look", &error, self.ground.now_ns());
                Vec::new()
            }
        };
        if self.ground.mode() != Mode::Observe {
            return false;
        }
        let record = &mut self.state.record;
        if self.ground.is_excluded(&record.run) == Some(true) {
            record.result = CaseResult::Excluded;
            return true;
        }
        let containers: Vec<String> = record
            .containers
            .iter()
            .filter(|(_, container)| {
                !matches!(container.progress, Progress::Ended(_) | Progress::Kept)
            })
            .map(|(id, container)| {
                format!("{} ({})", &id[..id.len().min(12)], key_name(container.key))
            })
            .collect();
        let containers = containers.join(", ");
        let cgroup = self.ground.cgroup_path(&record.run);
        self.ledger.planned(&format!(
            "end the containers {containers}; remove {} in {}",
            cgroup.display(),
            directories.join(" ")
        ));
        tracing::info!(
            container = %record.run.container,
            %containers,
            cgroup = %cgroup.display(),
            hierarchies = %directories.join(" "),
            "plan: would end these containers and remove this cgroup in these hierarchies (mode is observe)"
        );
        record.result = CaseResult::Observed;
        true
    }

    /// Waits for the answers that are under way, at most for as long as the
    /// daemon lets it live.
    async fn hand_over(mut self) -> Record {
        while self.state.is_asked() {
            match self.inbox.recv().await {
                Some(message) => self.take(message),
                None => break,
            }
        }
        self.state.record.result = CaseResult::HandedOver;
        self.state.record
    }

    async fn look(&mut self) -> anyhow::Result<Look> {
        self.count_removed().await;
        let record = &self.state.record;
        let now = self.ground.now_ns();
        let search = record.run.identity.is_none() && self.search_due <= now;
        if search {
            self.search_due = now + nanos(SEARCH_PAUSE);
        }
        let kept = self.state.kept();
        let look = self.ground.look(&record.run, &record.death, search, kept);
        let look = look.await?;
        let verified = self.ground.is_verified(&record.run);
        self.state.looked(&look, verified);
        Ok(look)
    }

    fn facts(&mut self, look: &Look, policy: &Policy) -> Facts {
        let now = self.ground.now_ns();
        let ground = &self.ground;
        self.state.kept_ended(|id| ground.runs(id), now);
        let given = Given {
            now,
            settle: policy.settle,
            excluded: self.ground.is_excluded(&self.state.record.run),
            held: self.is_held(),
        };
        self.state.facts(look, given)
    }

    /// Whether what is to be stopped now is held back.
    fn is_held(&self) -> bool {
        let record = &self.state.record;
        !self.state.due(self.ground.now_ns()).is_empty()
            && !self
                .ground
                .may_stop(&record.run, &record.death, record.containers.len())
    }

    // ---- steps

    /// Sends a request for everything that is to be stopped, all at once.
    fn stop(&mut self) {
        for id in self.state.due(self.ground.now_ns()) {
            let asked_ns = self.state.asked(&id, self.ground.now_ns());
            let run = &self.state.record.run;
            let ask = Ask {
                agent: run.agent,
                run: run.container,
                id,
                asked_ns,
            };
            let (ground, sender) = (self.ground.clone(), self.sender.clone());
            tokio::spawn(async move {
                let answer = ground.ask_to_end(ask).await;
                // A closed inbox: the case was handed over.
                let _ = sender.send(CaseMessage::Answered(answer));
            });
        }
    }

    /// The second wave: Docker is asked for everything that runs, and that is joined by
    /// every key.
    fn sweep(&mut self) {
        if self.state.is_sweeping() {
            return;
        }
        self.state.sweep_began(self.ground.now_ns());
        let (ground, sender) = (self.ground.clone(), self.sender.clone());
        let record = &self.state.record;
        let (run, death) = (record.run.clone(), record.death.clone());
        let list = tokio::spawn(async move { ground.discover(&run, &death).await });
        tokio::spawn(async move {
            // A case that got no answer at all would wait for it for ever.
            let found = list.await.map_err(Into::into);
            let found = found.and_then(|found| found.map_err(Into::into));
            // A closed inbox: the case was handed over.
            let _ = sender.send(CaseMessage::Swept(found));
        });
    }

    fn join(&mut self, found: Vec<Found>, as_of: u64) {
        for found in self.state.join(found, as_of) {
            self.ledger.joined(&found.id, found.key);
        }
    }

    /// Removes what may be removed.
    async fn remove(&mut self, agents: bool) -> anyhow::Result<&'static str> {
        let mut work = self.removal.take().unwrap_or_else(|| {
            let record = &self.state.record;
            self.ground
                .begin_removal(&record.run, &record.death, agents)
        });
        let until = tokio::time::Instant::now() + WORK_DEADLINE;
        let removed = loop {
            tokio::select! {
                done = &mut work => break done.map_err(Into::into).and_then(|removed| removed),
                Some(message) = self.inbox.recv() => {
                    self.take(message);
                    if self.has_news() {
                        self.removal = Some(work);
                        return Ok("interrupted");
                    }
                }
                () = tokio::time::sleep_until(until) => {
                    // Never a second one beside it: each could hang a thread.
                    self.removal = Some(work);
                    break Err(anyhow::anyhow!(
                        "a removal of its cgroups waits for many others, or hangs in the kernel"
                    ));
                }
            }
        };
        if let Ok(removed @ 1..) = removed {
            self.state.record.directories_removed += removed;
            self.pause = FIRST_PAUSE;
            return Ok("removed");
        }
        self.pause = slower(self.pause);
        self.state.busy_until = Some(self.ground.now_ns() + nanos(self.pause));
        removed.map(|_| "busy")
    }

    /// What a removal came to that was left to itself, once it is over.
    async fn count_removed(&mut self) {
        if let Some(work) = self.removal.take_if(|work| work.is_finished())
            && let Ok(Ok(removed)) = work.await
        {
            self.state.record.directories_removed += removed;
        }
    }

    async fn end_stragglers(&mut self, look: &Look) -> anyhow::Result<&'static str> {
        let run = &self.state.record.run;
        let ended = self.ground.end_stragglers(run, look).await;
        self.count_killed(ended).await
    }

    async fn kill_pod(&mut self, facts: &Facts) -> anyhow::Result<&'static str> {
        let now = self.ground.now_ns();
        if facts.docker_silent_for.is_some() {
            self.complaints.of_docker(now);
        } else {
            self.complaints.of_the_disowned(facts, now);
        }
        let run = &self.state.record.run;
        let ended = self.ground.kill_pod(run, self.state.kept()).await;
        if ended.is_ok() {
            self.state.pod_killed();
        }
        self.count_killed(ended).await
    }

    async fn count_killed(&mut self, ended: anyhow::Result<usize>) -> anyhow::Result<&'static str> {
        self.wait(if ended.is_ok() {
            FIRST_PAUSE
        } else {
            LONGEST_PAUSE
        })
        .await;
        self.state.record.processes_ended += ended?;
        Ok("killed")
    }
}

impl From<Outcome> for CaseResult {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Clean => Self::Clean,
            Outcome::Excluded => Self::Excluded,
            Outcome::Dismissed => Self::Dismissed,
        }
    }
}

fn slower(pause: Duration) -> Duration {
    (pause * 3 / 2).min(LONGEST_PAUSE)
}
