//! One run: from the first look to the last request that can be settled.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::verdict::{Found, LOOKS, Pending, Verdict, verdict};
use super::{CleanOutcome, learn_living};
use crate::case::{CaseMessage, CaseResult, Death, Host, Origin, Record, printable};
use crate::config::Mode;
use crate::daemon::casebook::Casebook;
use crate::daemon::core::Message;
use crate::daemon::surveyor::{SECOND_LOOK, Surveyor};
use crate::docker::{DockerChange, follow_docker};
use crate::inbox::{Inbox, Letter};
use crate::mesos::{ContainerId, Identity};
use crate::reconcile::Survey;
use crate::registry::Run;

/// Without Docker's answer the first look waits no longer than this.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// Requests that are kept for a run that may act; the oldest go first.
const MOST_HELD: usize = 1000;

/// What a run's case came to; `None`: it is at work.
#[derive(Debug)]
struct Case {
    identity: Identity,
    result: Option<CaseResult>,
}

#[derive(Debug)]
pub(super) struct Cleaner {
    host: Arc<Host>,
    inbox: Inbox,
    messages: UnboundedReceiver<Message>,
    casebook: Casebook,
    surveyor: Surveyor,
    docker_up: Option<bool>,
    /// By the names of their files.
    pending: BTreeMap<String, Pending>,
    cases: HashMap<ContainerId, Case>,
    /// Dead runs that no request names, each mentioned once.
    unnamed: HashSet<ContainerId>,
    looking: bool,
    /// Docker was there when the look under way began.
    complete: bool,
    settled: usize,
}

impl Cleaner {
    pub(super) fn new(host: Arc<Host>, inbox: Inbox) -> Self {
        let (sender, messages) = mpsc::unbounded_channel();
        Self {
            casebook: Casebook::new(Arc::clone(&host), sender.clone()),
            surveyor: Surveyor::new(Arc::clone(&host), sender),
            host,
            inbox,
            messages,
            docker_up: None,
            pending: BTreeMap::new(),
            cases: HashMap::new(),
            unnamed: HashSet::new(),
            looking: false,
            complete: false,
            settled: 0,
        }
    }

    pub(super) async fn run(
        mut self,
        deadline: Instant,
        stop: impl Future<Output = ()>,
    ) -> CleanOutcome {
        if self.host.config().mode == Mode::Observe {
            tracing::info!(
                "mode is observe: nothing will be stopped or removed, and requests are kept"
            );
        }
        let (docker_sender, mut docker_changes) = mpsc::unbounded_channel();
        tokio::spawn(follow_docker(
            self.host.docker.clone(),
            self.host.index.clone(),
            docker_sender,
        ));
        let mut next_look = Instant::now() + FIRST_LOOK;
        self.read_inbox();
        tokio::pin!(stop);
        let finished = loop {
            if !self.looking && self.is_idle() {
                // Whoever wrote meanwhile need not wait for another start.
                self.read_inbox();
                if self.is_idle() {
                    break true;
                }
                next_look = Instant::now();
            }
            tokio::select! {
                biased;
                () = &mut stop => break false,
                () = sleep_until(deadline) => break false,
                Some(message) = self.messages.recv() => {
                    if matches!(message, Message::Surveyed(_)) {
                        next_look = Instant::now() + SECOND_LOOK;
                    }
                    self.on_message(message);
                }
                Some(change) = docker_changes.recv() => {
                    if self.on_docker(change) {
                        next_look = Instant::now();
                    }
                }
                () = sleep_until(next_look), if !self.looking => {
                    self.read_inbox();
                    if self.needs_a_look() {
                        self.look();
                    } else {
                        next_look = Instant::now() + SECOND_LOOK;
                    }
                }
            }
        };
        if !finished {
            self.hand_over().await;
        }
        self.report(finished);
        if finished {
            CleanOutcome::Done
        } else {
            CleanOutcome::Unfinished
        }
    }

    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.casebook.open_cases() == 0
    }

    /// Cases that are at work go on if it cannot be read any more.
    fn read_inbox(&mut self) {
        let may_act = self.host.config().mode == Mode::Enforce;
        let letters = self.inbox.read_all().unwrap_or_else(|error| {
            tracing::warn!(%error, "the inbox cannot be read; going on with what was read before");
            Vec::new()
        });
        for letter in letters {
            // An earlier run without effects said already what it would do.
            if letter.is_held() && !may_act {
                continue;
            }
            self.pending.entry(letter.name).or_insert_with(|| Pending {
                request: letter.request,
                since: Instant::now(),
                looks: 0,
                found: Found::default(),
            });
        }
    }

    /// Whether looking again can settle a request: an open case looks by itself.
    fn needs_a_look(&self) -> bool {
        self.pending.values().any(|pending| {
            pending.looks < LOOKS || pending.found.suspect || pending.found.unknown.is_some()
        })
    }

    fn look(&mut self) {
        self.looking = true;
        self.complete = self.docker_up == Some(true);
        self.surveyor
            .begin(Duration::ZERO, self.casebook.known().collect());
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Surveyed(survey) => self.on_survey(survey),
            Message::Closed(record) => self.on_closed(*record),
            Message::Panicked(container) => self.casebook.panicked(container),
            // Of watching, which is not done here.
            _ => {}
        }
    }

    fn on_closed(&mut self, record: Record) {
        let (container, result) = (record.run.container, record.result);
        self.casebook.close(record);
        if let Some(case) = self.cases.get_mut(&container) {
            // A late container opens it again.
            case.result = (!self.casebook.is_open(container)).then_some(result);
        }
        self.settle();
    }

    /// Returns whether now is the time for a first look.
    fn on_docker(&mut self, change: DockerChange) -> bool {
        match change {
            DockerChange::Connected => {
                self.docker_up = Some(true);
                for info in self.host.index.running() {
                    self.casebook.on_active(&info);
                }
                self.casebook.tell_all(|| CaseMessage::Nudge);
                return self.pending.values().all(|pending| pending.looks == 0);
            }
            DockerChange::Disconnected(error) => {
                if self.docker_up != Some(false) {
                    tracing::warn!(%error, "Docker is not there; trying on");
                }
                self.docker_up = Some(false);
            }
            DockerChange::Active(info) => self.casebook.on_active(&info),
        }
        false
    }

    fn on_survey(&mut self, survey: Survey) {
        self.looking = false;
        self.surveyor.finished();
        self.surveyor.report_unknown(&survey.unknown);
        learn_living(&self.host, &survey.live);
        let names = |pending: &Pending, run: &Run| {
            let identity = run.identity.as_ref();
            identity.is_some_and(|identity| pending.request.names(identity))
        };
        let (dead, others): (Vec<Run>, Vec<Run>) = survey
            .dead
            .into_iter()
            .filter(|run| !self.casebook.knows(run.container))
            .partition(|run| self.pending.values().any(|pending| names(pending, run)));
        for run in others {
            if self.unnamed.insert(run.container) {
                tracing::info!(container = %run.container, "a dead run that no request names: left to the daemon");
            }
        }
        for pending in self.pending.values_mut() {
            pending.looks += u32::from(self.complete);
            pending.found = Found {
                suspect: dead.iter().any(|run| names(pending, run)),
                live: survey.live.iter().any(|run| names(pending, run)),
                unknown: survey
                    .unknown
                    .values()
                    .find(|unknown| {
                        unknown.executor_id.as_ref() == Some(&pending.request.executor_id)
                    })
                    .map(|unknown| unknown.why),
            };
        }
        for run in self.surveyor.confirm(dead) {
            self.open(run);
        }
        self.settle();
    }

    fn open(&mut self, run: Run) {
        let Some(identity) = run.identity.clone() else {
            return;
        };
        tracing::info!(container = %run.container, "a dead run that the hook told of");
        for pending in self.pending.values_mut() {
            if pending.request.names(&identity) {
                pending.found.suspect = false;
            }
        }
        let case = Case {
            identity,
            result: None,
        };
        self.cases.insert(run.container, case);
        self.casebook.open(run, Death::noticed(Origin::Hook));
    }

    /// Puts away the requests that nothing more is to be done for.
    fn settle(&mut self) {
        let may_act = self.host.config().mode == Mode::Enforce;
        let verdicts: Vec<(String, Verdict)> = self
            .pending
            .iter()
            .map(|(name, pending)| (name.clone(), self.judge(pending, may_act)))
            .filter(|(_, verdict)| *verdict != Verdict::Wait)
            .collect();
        for (name, verdict) in verdicts {
            let Some(Pending { request, .. }) = self.pending.remove(&name) else {
                continue;
            };
            self.settled += 1;
            let executor = printable(&request.executor_id);
            let framework = printable(&request.framework_id);
            match verdict {
                Verdict::Wait => {}
                Verdict::Done => {
                    tracing::debug!(%executor, %framework, "a request is done");
                    self.inbox.remove(&name);
                }
                Verdict::Hold => {
                    tracing::info!(%executor, %framework, "a request is kept for a run with mode \"enforce\"");
                    self.inbox.hold(&name);
                    self.drop_oldest_held();
                }
                Verdict::Forget(why) => {
                    tracing::info!(%executor, %framework, why, "nothing to do for a request: forgotten");
                    self.inbox.remove(&name);
                }
            }
        }
    }

    fn judge(&self, pending: &Pending, may_act: bool) -> Verdict {
        let results: Vec<Option<CaseResult>> = self
            .cases
            .values()
            .filter(|case| pending.request.names(&case.identity))
            .map(|case| case.result)
            .collect();
        verdict(pending, &results, may_act, pending.since.elapsed())
    }

    fn drop_oldest_held(&self) {
        let Ok(letters) = self.inbox.read_all() else {
            return;
        };
        let held: Vec<_> = letters.into_iter().filter(Letter::is_held).collect();
        for letter in held.iter().take(held.len().saturating_sub(MOST_HELD)) {
            self.inbox.remove(&letter.name);
        }
    }

    /// Ends the cases that are open without beginning anything new.
    async fn hand_over(&mut self) {
        self.casebook.tell_all(|| CaseMessage::HandOver);
        let deadline = Instant::now() + self.host.config().shutdown_deadline;
        while self.casebook.open_cases() > 0 {
            match timeout_at(deadline, self.messages.recv()).await {
                Ok(Some(Message::Closed(record))) => self.on_closed(*record),
                Ok(Some(Message::Panicked(container))) => self.casebook.forget(container),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }

    fn report(&self, finished: bool) {
        let (settled, left) = (self.settled, self.pending.len());
        let (cases, containers) = (self.casebook.cases, self.casebook.containers);
        if finished {
            tracing::info!(requests = settled, cases, containers, "done");
        } else {
            let waiting: Vec<String> = self
                .pending
                .values()
                .take(10)
                .map(|pending| printable(&pending.request.executor_id))
                .collect();
            tracing::warn!(
                requests = settled,
                cases,
                containers,
                left,
                executors = %waiting.join(", "),
                docker = ?self.docker_up,
                "not finished: these requests are kept for the next run"
            );
        }
    }
}
