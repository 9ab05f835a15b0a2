//! `compose-cleanup clean --from-inbox`: the hook's requests, without a daemon.
//!
//! The way is the daemon's own: a survey finds dead runs, two looks that agree
//! make one a case, the reaper carries it out. Only what a request names is
//! opened, and a request's file goes when nothing more is to be done for it: a
//! run that is killed leaves its requests to the next one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::casebook::Casebook;
use super::core::{JOURNAL_DEADLINE, Message};
use super::deaths::noticed;
use super::learn::learn_agent;
use super::surveyor::{SECOND_LOOK, Surveyor};
use super::turn::{CleanTurn, turn_of_clean};
use super::{Stop, find_agents, launcher_hierarchy, open_journal, preflight};
use crate::case::{CaseMessage, CaseResult, Host, Origin, Record, printable};
use crate::cgroup::Hierarchies;
use crate::config::{Config, Mode};
use crate::docker::{Docker, DockerChange, follow_docker};
use crate::inbox::{Inbox, Letter, Request, wait_for_request};
use crate::mesos::{ContainerId, Identity};
use crate::reconcile::Survey;
use crate::registry::Run;
use crate::run_dir::Occupant;

/// Without Docker's answer the first look waits no longer than this.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// How many looks, with Docker's answer, a request gets before nothing that was
/// found is believed to be all that there is.
const LOOKS: u32 = 2;
/// How long a run that may live may take to turn out dead.
const PATIENCE: Duration = Duration::from_secs(10);
/// A daemon at work takes a request within milliseconds, one that starts within
/// seconds.
const DAEMON_TAKES: Duration = Duration::from_secs(20);
const DAEMON_PAUSE: Duration = Duration::from_millis(250);
/// Requests that are kept for a run that may act; the oldest go first.
const MOST_HELD: usize = 1000;

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct CleanOptions {
    /// When to give up what is not finished.
    pub timeout: Duration,
    /// Wait for a request first.
    pub wait: bool,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CleanOutcome {
    /// Everything that was asked for is done; or nothing was.
    Done,
    /// The daemon runs, and takes the requests itself.
    Watched,
    /// The time is over, or a signal came: the rest is left to the next run.
    Unfinished,
    /// Another `clean` has been at work all the time.
    Busy,
}

/// Takes the inbox' requests. An error says why that cannot be done here.
pub async fn clean_from_inbox(
    config: Config,
    options: CleanOptions,
) -> anyhow::Result<CleanOutcome> {
    preflight::check()?;
    preflight::raise_descriptor_limit();
    let mut stop = Stop::new()?;
    let path = config.inbox_dir();
    if options.wait {
        tracing::info!(inbox = %path.display(), "waiting for a request");
        tokio::select! {
            waited = wait_for_request(&path) => waited.with_context(|| inbox_trouble(&path))?,
            () = stop.wait() => return Ok(CleanOutcome::Done),
        }
    }
    let deadline = Instant::now() + options.timeout;
    let turn = tokio::select! {
        turn = turn_of_clean(&config.run_dir, deadline) => turn?,
        () = stop.wait() => return Ok(CleanOutcome::Unfinished),
    };
    let _turn = match turn {
        CleanTurn::Taken(lock) => lock,
        CleanTurn::Watched(occupant) => {
            return tokio::select! {
                outcome = watched(occupant, &path) => outcome,
                () = stop.wait() => Ok(CleanOutcome::Unfinished),
            };
        }
        CleanTurn::Busy(occupant) => {
            tracing::warn!("{occupant} is still at work: nothing was done");
            return Ok(CleanOutcome::Busy);
        }
    };
    let inbox = Inbox::open(&path).with_context(|| inbox_trouble(&path))?;
    let letters = inbox.read_all().with_context(|| inbox_trouble(&path))?;
    if letters.is_empty() {
        tracing::info!(inbox = %path.display(), "no requests: nothing to do");
        return Ok(CleanOutcome::Done);
    }
    let hierarchies = Hierarchies::discover()?;
    let (launcher, _) = launcher_hierarchy(&hierarchies, config.cgroup.layout)?;
    let docker = Docker::new(&config.docker.socket, config.docker.timeout)?;
    let agents = tokio::select! {
        agents = find_agents(&config) => agents,
        () = sleep_until(deadline) => {
            tracing::warn!("no agent was found in time: the requests are kept for the next run");
            return Ok(CleanOutcome::Unfinished);
        }
        () = stop.wait() => return Ok(CleanOutcome::Unfinished),
    };
    let (journal, _) = open_journal(&config).await?;
    let host = Arc::new(Host::new(
        config,
        hierarchies,
        launcher,
        docker,
        journal.clone(),
        agents,
    ));
    let outcome = Cleaner::new(host, inbox)
        .run(deadline, stop.wait())
        .await
        .with_context(|| inbox_trouble(&path));
    journal.flush(JOURNAL_DEADLINE).await;
    outcome
}

/// The daemon takes the requests: looks that it does. Whoever starts this for each
/// request does not start it again meanwhile.
async fn watched(occupant: Occupant, path: &Path) -> anyhow::Result<CleanOutcome> {
    let deadline = Instant::now() + DAEMON_TAKES;
    loop {
        let letters = Inbox::open(path)
            .and_then(|inbox| inbox.read_all())
            .with_context(|| inbox_trouble(path))?;
        if letters.iter().all(Letter::is_held) {
            tracing::info!("{occupant}, runs and takes the requests itself: nothing to do here");
            return Ok(CleanOutcome::Watched);
        }
        if Instant::now() >= deadline {
            tracing::warn!(
                inbox = %path.display(),
                "{occupant}, runs, but takes no requests from this inbox: is `inbox` another one in its configuration?"
            );
            return Ok(CleanOutcome::Unfinished);
        }
        tokio::time::sleep(DAEMON_PAUSE).await;
    }
}

fn inbox_trouble(path: &Path) -> String {
    format!("cannot read the inbox {}", path.display())
}

/// A request that is not settled.
#[derive(Debug)]
struct Pending {
    request: Request,
    since: Instant,
    /// With Docker's answer.
    looks: u32,
    found: Found,
}

/// What the last look found of the executor's runs, besides those with a case.
#[derive(Debug, Default, Clone, Copy)]
struct Found {
    /// Dead by one look.
    suspect: bool,
    live: bool,
    /// May live: why that is not known.
    unknown: Option<&'static str>,
}

/// What is to be done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Wait,
    /// Everything of it was cleaned.
    Done,
    /// It may not be acted upon yet: kept for a run that may.
    Hold,
    /// There is nothing to do for it: why.
    Forget(&'static str),
}

/// What a run's case came to; `None`: it is at work.
#[derive(Debug)]
struct Case {
    identity: Identity,
    result: Option<CaseResult>,
}

#[derive(Debug)]
struct Cleaner {
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
    fn new(host: Arc<Host>, inbox: Inbox) -> Self {
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

    async fn run(
        mut self,
        deadline: Instant,
        stop: impl Future<Output = ()>,
    ) -> std::io::Result<CleanOutcome> {
        if self.host.config.mode == Mode::Observe {
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
        self.read_inbox()?;
        tokio::pin!(stop);
        let finished = loop {
            if !self.looking && self.is_idle() {
                // Whoever wrote meanwhile need not wait for another start.
                self.read_inbox()?;
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
                    self.read_inbox()?;
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
        Ok(if finished {
            CleanOutcome::Done
        } else {
            CleanOutcome::Unfinished
        })
    }

    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.casebook.open_cases() == 0
    }

    fn read_inbox(&mut self) -> std::io::Result<()> {
        let may_act = self.host.config.mode == Mode::Enforce;
        for letter in self.inbox.read_all()? {
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
        Ok(())
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
        self.learn(&survey.live);
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
        self.casebook.open(run, noticed(Origin::Hook));
    }

    /// The runs that live now: their executor ids are nobody else's, and their
    /// parents are agents.
    fn learn(&self, live: &[Run]) {
        {
            let mut registry = self.host.registry();
            let ended: Vec<ContainerId> = registry.iter().map(|run| run.container).collect();
            for container in ended {
                registry.remove(container);
            }
            for run in live {
                registry.insert(run.clone());
            }
        }
        for run in live {
            learn_agent(&self.host, run);
        }
    }

    /// Puts away the requests that nothing more is to be done for.
    fn settle(&mut self) {
        let may_act = self.host.config.mode == Mode::Enforce;
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
        let mut cases = self
            .cases
            .iter()
            .filter(|(_, case)| pending.request.names(&case.identity));
        let results: Vec<Option<CaseResult>> =
            cases.by_ref().map(|(_, case)| case.result).collect();
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
        let deadline = Instant::now() + self.host.config.shutdown_deadline;
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
            let waiting: Vec<OsString> = self
                .pending
                .values()
                .map(|pending| pending.request.executor_id.clone())
                .take(10)
                .collect();
            let waiting: Vec<String> = waiting.iter().map(|id| printable(id)).collect();
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

/// What to do with a request, by what is known of its executor's runs. `cases`:
/// what the cases of its dead runs came to.
fn verdict(
    pending: &Pending,
    cases: &[Option<CaseResult>],
    may_act: bool,
    age: Duration,
) -> Verdict {
    let unfinished = |result: &Option<CaseResult>| {
        matches!(
            result,
            None | Some(CaseResult::Open | CaseResult::HandedOver)
        )
    };
    if cases.iter().any(unfinished) || pending.looks < LOOKS || pending.found.suspect {
        return Verdict::Wait;
    }
    if cases.contains(&Some(CaseResult::Observed)) {
        return Verdict::Hold;
    }
    if !cases.is_empty() {
        return Verdict::Done;
    }
    match pending.found {
        Found {
            unknown: Some(why), ..
        } => {
            if age < PATIENCE {
                Verdict::Wait
            } else if may_act {
                Verdict::Forget(why)
            } else {
                Verdict::Hold
            }
        }
        Found { live: true, .. } => Verdict::Forget("the executor lives"),
        Found { .. } => Verdict::Forget("nothing of the executor is left on this host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(looks: u32, found: Found) -> Pending {
        Pending {
            request: Request {
                framework_id: "F".into(),
                executor_id: "E".into(),
            },
            since: Instant::now(),
            looks,
            found,
        }
    }

    #[test]
    fn a_request_goes_only_when_nothing_can_come_of_it_any_more() {
        const CLEAN: Option<CaseResult> = Some(CaseResult::Clean);
        const OBSERVED: Option<CaseResult> = Some(CaseResult::Observed);
        let nothing = Found::default();
        let live = Found {
            live: true,
            ..nothing
        };
        let suspect = Found {
            suspect: true,
            live: true,
            ..nothing
        };
        let unknown = Found {
            unknown: Some("why"),
            live: true,
            ..nothing
        };
        let forget = |why| Verdict::Forget(why);
        for (what, looks, found, cases, may_act, age, expected) in [
            ("one look", 1, nothing, &[][..], true, 60, Verdict::Wait),
            (
                "nothing twice",
                2,
                nothing,
                &[],
                true,
                2,
                forget("nothing of the executor is left on this host"),
            ),
            ("lives", 2, live, &[], true, 2, forget("the executor lives")),
            ("seen dead once", 2, suspect, &[], true, 60, Verdict::Wait),
            ("may live", 3, unknown, &[], true, 9, Verdict::Wait),
            (
                "may live for long",
                6,
                unknown,
                &[],
                true,
                10,
                forget("why"),
            ),
            (
                "and nothing may be done",
                6,
                unknown,
                &[],
                false,
                10,
                Verdict::Hold,
            ),
            ("at work", 2, live, &[CLEAN, None], true, 60, Verdict::Wait),
            (
                "handed over",
                2,
                nothing,
                &[Some(CaseResult::HandedOver)],
                true,
                60,
                Verdict::Wait,
            ),
            ("cleaned", 2, live, &[CLEAN, CLEAN], true, 2, Verdict::Done),
            (
                "one of two only said",
                2,
                nothing,
                &[CLEAN, OBSERVED],
                false,
                2,
                Verdict::Hold,
            ),
        ] {
            let pending = pending(looks, found);
            let age = Duration::from_secs(age);
            assert_eq!(verdict(&pending, cases, may_act, age), expected, "{what}");
        }
    }
}
