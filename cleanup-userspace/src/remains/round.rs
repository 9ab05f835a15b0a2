//! One round: lists what is stopped, finds out whose it is, and removes what may
//! go. Bounded, and every request has a deadline: what is left over waits for the
//! next round.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio::sync::{Mutex, mpsc};

use super::containers::{Fate, Owner, Rules, Stay, Stopped, fate};
use super::networks::run_of_project;
use super::standing::{Question, Standing, ask};
use crate::case::{Host, Proof, is_excluded, key_of, printable};
use crate::config::{Mode, Networks};
use crate::docker::{
    ComposeNetwork, ContainerInfo, ContainerState, DockerError, JoinKey, named_runs,
};
use crate::mesos::ContainerId;
use crate::process::unix_seconds;
use crate::reconcile::dead_among;
use crate::registry::Run;

/// Requests under way at once.
const REQUESTS: usize = 4;
/// Most in one round: containers looked at for the first time, runs judged,
/// containers removed.
const INSPECTS: usize = 256;
const JUDGED: usize = 256;
const REMOVALS: usize = 64;
/// Between the two looks that must agree, as for every inferred death.
const SECOND_LOOK: Duration = Duration::from_secs(2);
/// How long a run that could not be judged, or a container or network that Docker
/// did not remove, is left alone.
const AGAIN: Duration = Duration::from_secs(600);

/// Removes what dead runs left, round by round.
#[derive(Debug, Clone)]
pub struct Remains {
    pub(super) host: Arc<Host>,
    questions: mpsc::UnboundedSender<Question>,
    memory: Arc<Mutex<Memory>>,
}

/// What need not be found out twice. All of it may be forgotten at any time.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Containers that were seen stopped, with the time of that.
    stopped: HashMap<String, (Arc<ContainerInfo>, f64)>,
    /// Runs that were found dead by what they left: they stay dead.
    dead: HashMap<ContainerId, Run>,
    /// Not before this time again.
    later: HashMap<Object, Instant>,
    /// What was said already, where nothing is done.
    planned: HashSet<String>,
    complained: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Object {
    Run(ContainerId),
    Container(String),
    Network(String),
}

/// What is known of a run in this round.
#[derive(Debug)]
pub(super) enum Known {
    InUse,
    Dead(Box<Run>, Proof),
    Unknown,
}

/// A container that may go.
type Leaving = (Arc<ContainerInfo>, Run);

/// Why a round ended early.
#[derive(Debug)]
pub(super) enum Ended {
    /// The daemon stops.
    Stopped,
    Docker(DockerError),
}

impl From<DockerError> for Ended {
    fn from(error: DockerError) -> Self {
        Self::Docker(error)
    }
}

impl Memory {
    pub(super) fn is_later(&self, object: &Object) -> bool {
        self.later.contains_key(object)
    }

    /// Docker's answer about one thing. `None`: it has none, and is left alone for a
    /// while, so that it is in nobody's way. An error: Docker itself is away.
    pub(super) fn unless_away<T>(
        &mut self,
        object: Object,
        answer: Result<T, DockerError>,
    ) -> Result<Option<T>, Ended> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error @ DockerError::Unreachable { .. }) => Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "in the way of removing what dead runs left; tried again in ten minutes");
                self.later.insert(object, Instant::now() + AGAIN);
                Ok(None)
            }
        }
    }
}

impl Remains {
    pub fn new(host: Arc<Host>, questions: mpsc::UnboundedSender<Question>) -> Self {
        Self {
            host,
            questions,
            memory: Arc::default(),
        }
    }

    /// Begins a round, unless one is under way.
    pub fn begin(&self) {
        let Ok(mut memory) = Arc::clone(&self.memory).try_lock_owned() else {
            return;
        };
        let remains = self.clone();
        tokio::spawn(async move {
            match remains.round(&mut memory).await {
                Ok(()) => memory.complained = false,
                Err(Ended::Stopped) => {}
                Err(Ended::Docker(error)) => {
                    if std::mem::replace(&mut memory.complained, true) {
                        tracing::debug!(%error, "what dead runs left in Docker still cannot be looked at");
                    } else {
                        tracing::warn!(%error, "what dead runs left in Docker cannot be looked at; the next survey tries again");
                    }
                }
            }
        });
    }

    pub(super) fn rules(&self) -> Rules {
        Rules {
            remove_after: self.host.config().remove_after,
            held: self.host.is_holding(),
        }
    }

    async fn round(&self, memory: &mut Memory) -> Result<(), Ended> {
        let now = Instant::now();
        memory.later.retain(|_, until| *until > now);
        self.look_at_stopped(memory).await?;
        let networks = match self.host.config().networks {
            Networks::Keep => None,
            Networks::RemoveIfEmpty => Some(self.host.docker.compose_networks().await?),
        };
        let dead = self
            .owners(memory, networks.as_deref().unwrap_or_default())
            .await?;
        let leaving = self.sort_out(memory, &dead);
        if self.host.config().mode == Mode::Observe {
            plan(memory, &leaving);
            return Ok(());
        }
        for (_, leaving) in by_run(leaving) {
            self.remove_containers(memory, leaving).await?;
        }
        match networks {
            Some(networks) => self.remove_networks(memory, networks, &dead).await,
            None => Ok(()),
        }
    }

    /// Takes over what is stopped now, and looks at what is new.
    async fn look_at_stopped(&self, memory: &mut Memory) -> Result<(), Ended> {
        let docker = &self.host.docker;
        let listed: HashSet<String> = docker.list_stopped().await?.into_iter().collect();
        memory.stopped.retain(|id, _| listed.contains(id));
        memory.planned.retain(|id| listed.contains(id));
        let new: Vec<String> = listed
            .into_iter()
            .filter(|id| !memory.stopped.contains_key(id))
            .filter(|id| !memory.is_later(&Object::Container(id.clone())))
            .take(INSPECTS)
            .collect();
        let looks = new.into_iter().map(|id| async move {
            let look = docker.inspect(&id).await;
            (id, look)
        });
        let mut looks = futures_util::stream::iter(looks).buffer_unordered(REQUESTS);
        while let Some((id, look)) = looks.next().await {
            let look = memory.unless_away(Object::Container(id.clone()), look)?;
            let Some((info, state)) = look.flatten() else {
                continue;
            };
            if let Some(since) = stopped_since(&info, state) {
                memory.stopped.insert(id, (Arc::new(info), since));
            }
        }
        Ok(())
    }

    /// What is known of every run that something stopped, or a network's project,
    /// is named after.
    async fn owners(
        &self,
        memory: &mut Memory,
        networks: &[ComposeNetwork],
    ) -> Result<HashMap<ContainerId, Known>, Ended> {
        let roots = self.host.roots();
        let containers = memory.stopped.values();
        let named: HashSet<ContainerId> = containers
            .flat_map(|(info, _)| named_runs(info, roots))
            .chain(networks.iter().filter_map(|n| run_of_project(&n.project)))
            .collect();
        memory.dead.retain(|run, _| named.contains(run));
        let unheard: Vec<ContainerId> = self
            .ask(named.iter().copied())
            .await?
            .into_iter()
            .filter(|(run, standing)| {
                matches!(standing, Standing::Unheard)
                    && !memory.dead.contains_key(run)
                    && !memory.is_later(&Object::Run(*run))
            })
            .map(|(run, _)| run)
            .take(JUDGED)
            .collect();
        self.judge(memory, unheard).await;
        // Asked again: judging takes its time.
        let known = self.ask(named).await?.into_iter();
        Ok(known
            .map(|(id, standing)| {
                let known = match standing {
                    Standing::InUse => Known::InUse,
                    Standing::Closed(run, proof) => Known::Dead(run, proof),
                    Standing::Unheard => match memory.dead.get(&id) {
                        Some(run) => Known::Dead(Box::new(run.clone()), Proof::Inferred),
                        None => Known::Unknown,
                    },
                };
                (id, known)
            })
            .collect())
    }

    /// Finds out which of the runs are dead, in two looks that must agree.
    async fn judge(&self, memory: &mut Memory, runs: Vec<ContainerId>) {
        let look = |runs: Vec<ContainerId>| {
            let host = Arc::clone(&self.host);
            async move {
                let dead = tokio::task::spawn_blocking(move || dead_among(&host, &runs));
                dead.await.unwrap_or_default()
            }
        };
        let until = Instant::now() + AGAIN;
        if runs.is_empty() {
            return;
        }
        let mut dead = look(runs.clone()).await;
        if !dead.is_empty() {
            tokio::time::sleep(SECOND_LOOK).await;
            dead = look(dead.iter().map(|run| run.container).collect()).await;
        }
        let dead = dead.into_iter().map(|run| (run.container, run));
        memory.dead.extend(dead);
        let left = runs
            .into_iter()
            .filter(|run| !memory.dead.contains_key(run));
        memory
            .later
            .extend(left.map(|run| (Object::Run(run), until)));
    }

    /// Whose a stopped container is, and by which key.
    fn owner_of<'a>(
        &self,
        info: &ContainerInfo,
        known: &'a HashMap<ContainerId, Known>,
    ) -> (Owner, Option<(JoinKey, &'a Run)>) {
        let mut owner = (Owner::Unknown, None);
        for named in named_runs(info, self.host.roots()) {
            match known.get(&named) {
                Some(Known::InUse) => return (Owner::InUse, None),
                Some(Known::Dead(run, proof)) => {
                    if let Some(key) = key_of(&self.host, run, info) {
                        owner = (self.dead(run, *proof), Some((key, &**run)));
                    }
                }
                Some(Known::Unknown) | None => {}
            }
        }
        owner
    }

    pub(super) fn dead(&self, run: &Run, proof: Proof) -> Owner {
        Owner::Dead {
            proof,
            excluded: is_excluded(&self.host.config().exclude, run.identity.as_ref()),
        }
    }

    /// The containers that may go, the oldest first. The networks of those that are
    /// a dead run's are remembered.
    fn sort_out(&self, memory: &Memory, known: &HashMap<ContainerId, Known>) -> Vec<Leaving> {
        let (rules, now) = (self.rules(), unix_seconds());
        let mut leaving = Vec::new();
        for (id, (info, since)) in &memory.stopped {
            let (owner, by) = self.owner_of(info, known);
            let container = Stopped {
                running: false,
                age: Duration::try_from_secs_f64(now - since).ok(),
                kept: self.host.keeps(info),
                agents_own: info.agents_own,
                key: by.map(|(key, _)| key),
                owner,
            };
            let fate = fate(&container, &rules);
            tracing::trace!(container = %id, facts = ?container, ?fate, "stopped");
            let Some((_, run)) = by else { continue };
            if matches!(fate, Fate::Remove | Fate::Stay(Stay::TooYoung | Stay::Kept)) {
                self.host.note_networks(info);
            }
            if fate == Fate::Remove && !memory.is_later(&Object::Container(id.clone())) {
                leaving.push((*since, (Arc::clone(info), run.clone())));
            }
        }
        leaving.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        leaving.truncate(REMOVALS);
        leaving.into_iter().map(|(_, leaving)| leaving).collect()
    }

    /// Removes stopped containers of one run.
    async fn remove_containers(
        &self,
        memory: &mut Memory,
        leaving: Vec<Leaving>,
    ) -> Result<(), Ended> {
        let Some((_, run)) = leaving.first().cloned() else {
            return Ok(());
        };
        let standing = self.ask([run.container]).await?.remove(&run.container);
        if !matches!(standing, Some(Standing::Closed(..) | Standing::Unheard)) {
            return Ok(());
        }
        let removals = leaving.into_iter().map(|(info, _)| async move {
            let removed = self.remove_container(&info).await;
            (info, removed)
        });
        let done: Vec<_> = futures_util::stream::iter(removals)
            .buffer_unordered(REQUESTS)
            .collect()
            .await;
        let (mut names, mut outcome) = (Vec::new(), Ok(()));
        for (info, removed) in done {
            let object = Object::Container(info.id.clone());
            match memory.unless_away(object, removed) {
                Ok(Some(true)) => {
                    memory.stopped.remove(&info.id);
                    names.push(printable(info.name.as_ref()));
                }
                // It ran again meanwhile: looked at anew.
                Ok(Some(false)) => {
                    memory.stopped.remove(&info.id);
                }
                Ok(None) => {}
                Err(away) => outcome = Err(away),
            }
        }
        if !names.is_empty() {
            names.sort();
            tracing::info!(
                container = %run.container,
                executor = %executor_of(&run),
                removed = names.len(),
                names = %names.join(", "),
                volumes = if self.host.removes_volumes() { "anonymous" } else { "none" },
                "removed stopped containers of a dead run"
            );
        }
        outcome
    }

    /// `Ok(false)`: it is not as it was.
    async fn remove_container(&self, seen: &ContainerInfo) -> Result<bool, DockerError> {
        let docker = &self.host.docker;
        let Some((info, state)) = docker.inspect(&seen.id).await? else {
            return Ok(true);
        };
        if !self.host.may_act() {
            return Ok(false);
        }
        let age = stopped_since(&info, state)
            .and_then(|since| Duration::try_from_secs_f64(unix_seconds() - since).ok());
        if age.is_none_or(|age| {
            self.host
                .config()
                .remove_after
                .is_none_or(|limit| age < limit)
        }) {
            return Ok(false);
        }
        match docker.remove(&info.id, self.host.removes_volumes()).await {
            Ok(_) => Ok(true),
            // It runs, or somebody else removes it.
            Err(DockerError::Refused { status: 409, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn ask(
        &self,
        runs: impl IntoIterator<Item = ContainerId>,
    ) -> Result<HashMap<ContainerId, Standing>, Ended> {
        ask(&self.questions, runs).await.ok_or(Ended::Stopped)
    }
}

/// Seconds since the epoch; for one that never ran, when it was made. `None`: it
/// runs.
fn stopped_since(info: &ContainerInfo, state: ContainerState) -> Option<f64> {
    (!state.running).then(|| state.finished.max(info.created))
}

fn by_run(leaving: Vec<Leaving>) -> BTreeMap<ContainerId, Vec<Leaving>> {
    let mut runs: BTreeMap<ContainerId, Vec<Leaving>> = BTreeMap::new();
    for (info, run) in leaving {
        runs.entry(run.container).or_default().push((info, run));
    }
    runs
}

/// Says once what would be removed.
fn plan(memory: &mut Memory, leaving: &[Leaving]) {
    for (info, run) in leaving {
        if memory.planned.insert(info.id.clone()) {
            tracing::info!(
                container = %run.container,
                executor = %executor_of(run),
                name = %printable(info.name.as_ref()),
                "plan: would remove this stopped container of a dead run (mode is observe)"
            );
        }
    }
}

fn executor_of(run: &Run) -> String {
    let identity = run.identity.as_ref();
    identity.map_or_else(
        || "?".to_owned(),
        |identity| printable(&identity.executor_id),
    )
}
