//! `compose-cleanup clean` of what an operator named, where no daemon runs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::learn_living;
use crate::case::{CaseMessage, Death, Host, Origin};
use crate::config::Config;
use crate::daemon::casebook::Casebook;
use crate::daemon::core::{JOURNAL_DEADLINE, Message};
use crate::daemon::orders::Orders;
use crate::daemon::place::Place;
use crate::daemon::surveyor::{SECOND_LOOK, Surveyor};
use crate::daemon::turn::{CleanTurn, turn_of_clean};
use crate::daemon::{Stop, agents_now, open_journal, preflight};
use crate::docker::{DockerChange, follow_docker};
use crate::run_dir::Occupant;
use crate::serve::{Order, api, cleanings};

/// How often whoever waits is told how far it is.
const PROGRESS: Duration = Duration::from_millis(250);

/// How it ended.
#[derive(Debug)]
pub enum HandOutcome {
    /// What became of each run; some may not be finished.
    Done(api::Cleanings),
    /// A daemon has begun to work meanwhile.
    Watched(Occupant),
    /// Another `clean` has been at work all the time.
    Busy(Occupant),
}

/// Cleans up after these runs, by the rules of the daemon. `progress` is told every
/// moment how far it is, and says whether to go on.
pub async fn clean_by_hand(
    config: Config,
    orders: Vec<Order>,
    timeout: Duration,
    progress: impl FnMut(&api::Cleanings) -> bool,
) -> anyhow::Result<HandOutcome> {
    preflight::check()?;
    preflight::raise_descriptor_limit();
    let mut stop = Stop::new()?;
    let deadline = Instant::now() + timeout;
    let _turn = match turn_of_clean(&config.run_dir, deadline).await? {
        CleanTurn::Taken(lock) => lock,
        CleanTurn::Watched(occupant) => return Ok(HandOutcome::Watched(occupant)),
        CleanTurn::Busy(occupant) => return Ok(HandOutcome::Busy(occupant)),
    };
    let place = Place::of(&config)?;
    let agents = agents_now(&config).await?;
    let (journal, _) = open_journal(&config).await?;
    let host = place.host(config, journal.clone(), agents);
    let hand = Hand::new(host, orders);
    let done = hand.run(deadline, stop.wait(), progress).await;
    journal.close(JOURNAL_DEADLINE).await;
    Ok(HandOutcome::Done(done))
}

struct Hand {
    host: Arc<Host>,
    messages: UnboundedReceiver<Message>,
    casebook: Casebook,
    surveyor: Surveyor,
    orders: Orders,
    wanted: Vec<Order>,
    docker_up: bool,
    looking: bool,
    /// Docker was there when the look under way began.
    complete: bool,
}

impl Hand {
    fn new(host: Arc<Host>, wanted: Vec<Order>) -> Self {
        let (sender, messages) = mpsc::unbounded_channel();
        Self {
            casebook: Casebook::new(Arc::clone(&host), sender.clone()),
            surveyor: Surveyor::new(Arc::clone(&host), sender),
            host,
            messages,
            orders: Orders::default(),
            wanted,
            docker_up: false,
            looking: false,
            complete: false,
        }
    }

    async fn run(
        mut self,
        deadline: Instant,
        stop: impl Future<Output = ()>,
        mut progress: impl FnMut(&api::Cleanings) -> bool,
    ) -> api::Cleanings {
        let (docker_sender, mut docker_changes) = mpsc::unbounded_channel();
        tokio::spawn(follow_docker(
            self.host.docker.clone(),
            self.host.index.clone(),
            docker_sender,
        ));
        for order in std::mem::take(&mut self.wanted) {
            self.orders.take(order, &self.host, &mut self.casebook);
        }
        let mut next_look = Instant::now();
        let mut told = interval(PROGRESS);
        told.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(stop);
        loop {
            if self.is_over() {
                break;
            }
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = sleep_until(deadline) => break,
                Some(message) = self.messages.recv() => {
                    if matches!(message, Message::Surveyed(_)) {
                        next_look = Instant::now() + SECOND_LOOK;
                    }
                    self.on_message(message);
                }
                Some(change) = docker_changes.recv() => self.on_docker(change),
                () = sleep_until(next_look), if !self.looking && self.orders.are_looking() => {
                    self.look();
                }
                _ = told.tick() => if !progress(&self.cleanings()) {
                    break;
                }
            }
        }
        // What was not finished is told as it was.
        let reached = self.cleanings();
        self.casebook.hand_over(&mut self.messages).await;
        reached
    }

    fn is_over(&self) -> bool {
        let states = self.orders.states();
        states.iter().all(|(_, state)| state.is_over()) && self.casebook.open_cases() == 0
    }

    fn cleanings(&self) -> api::Cleanings {
        cleanings(&self.orders.states(), &self.casebook.at_work())
    }

    fn look(&mut self) {
        self.looking = true;
        self.complete = self.docker_up;
        let known: HashSet<_> = self.casebook.known().collect();
        self.surveyor.begin(Duration::ZERO, known);
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Surveyed(survey) => {
                self.looking = false;
                self.surveyor.finished();
                self.surveyor.report_unknown(&survey.unknown);
                learn_living(&self.host, &survey.live);
                let dead = survey.dead.iter();
                let dead = dead
                    .filter(|run| self.orders.wants(run.container))
                    .filter(|run| !self.casebook.knows(run.container));
                for run in self.surveyor.confirm(dead.cloned().collect()) {
                    self.casebook.open(run, Death::noticed(Origin::Operator));
                }
                self.orders
                    .on_survey(&survey, self.complete, &self.host, &mut self.casebook);
            }
            Message::Closed(record) => self.orders.on_closed(*record, &mut self.casebook),
            Message::Panicked(container) => {
                self.orders.on_panicked(container, &mut self.casebook);
            }
            // Of watching, which is not done here.
            _ => {}
        }
    }

    fn on_docker(&mut self, change: DockerChange) {
        match change {
            DockerChange::Connected => {
                self.docker_up = true;
                for info in self.host.index.running() {
                    self.casebook.on_active(&info);
                }
                self.casebook.tell_all(|| CaseMessage::Nudge);
            }
            DockerChange::Disconnected(error) => {
                if self.docker_up {
                    tracing::warn!(%error, "Docker is not there; trying on");
                }
                self.docker_up = false;
            }
            DockerChange::Active(info) => self.casebook.on_active(&info),
        }
    }
}
