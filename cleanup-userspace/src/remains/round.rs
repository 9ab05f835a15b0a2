//! One round: lists what is stopped, finds out whose it is, and removes what may
//! go. Bounded, and every request has a deadline: what is left over waits for the
//! next round.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::{Mutex, mpsc};

use super::containers::{Fate, Owner, Rules, Stay, Stopped, fate};
use super::networks::{Claim, NetworkFacts, is_left, run_of_project};
use super::standing::{Question, Standing, ask};
use crate::case::{Host, Proof, is_excluded, key_of, printable};
use crate::config::{Mode, Networks};
use crate::docker::{
    ComposeNetwork, ContainerInfo, ContainerState, DockerError, JoinKey, Stopped as Gone,
    named_runs,
};
use crate::mesos::ContainerId;
use crate::process::unix_seconds;
use crate::reconcile::dead_among;
use crate::registry::Run;

/// Requests under way at once.
const REQUESTS: usize = 4;
/// Most in one round: containers looked at for the first time, runs judged,
/// containers removed, networks asked for.
const INSPECTS: usize = 256;
const JUDGED: usize = 256;
const REMOVALS: usize = 64;
const NETWORKS: usize = 64;
/// Between the two looks that must agree, as for every inferred death.
const SECOND_LOOK: Duration = Duration::from_secs(2);
/// How long a run that could not be judged, or a container or network that Docker
/// did not remove, is left alone.
const AGAIN: Duration = Duration::from_secs(600);

/// Removes what dead runs left, round by round.
#[derive(Debug, Clone)]
pub struct Remains {
    host: Arc<Host>,
    questions: mpsc::UnboundedSender<Question>,
    memory: Arc<Mutex<Memory>>,
}

/// What need not be found out twice. All of it may be forgotten at any time.
#[derive(Debug, Default)]
struct Memory {
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
enum Object {
    Run(ContainerId),
    Container(String),
    Network(String),
}

/// What is known of a run in this round.
#[derive(Debug)]
enum Known {
    InUse,
    Dead(Box<Run>, Proof),
    Unknown,
}

/// A container that may go.
type Leaving = (Arc<ContainerInfo>, Run);

/// Why a round ended early.
#[derive(Debug)]
enum Ended {
    /// The daemon stops.
    Stopped,
    Docker(DockerError),
}

impl From<DockerError> for Ended {
    fn from(error: DockerError) -> Self {
        Self::Docker(error)
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

    fn rules(&self) -> Rules {
        Rules {
            remove_after: self.host.config.remove_after,
            held: self.host.is_holding(),
        }
    }

    async fn round(&self, memory: &mut Memory) -> Result<(), Ended> {
        let now = Instant::now();
        memory.later.retain(|_, until| *until > now);
        self.look_at_stopped(memory).await?;
        let networks = match self.host.config.networks {
            Networks::Keep => Vec::new(),
            Networks::RemoveIfEmpty => self.host.docker.compose_networks().await?,
        };
        let dead = self.owners(memory, &networks).await?;
        let leaving = self.sort_out(memory, &dead);
        if self.host.config.mode == Mode::Observe {
            plan(memory, &leaving);
            return Ok(());
        }
        for (_, leaving) in by_run(leaving) {
            self.remove_containers(memory, leaving).await?;
        }
        self.remove_networks(memory, networks, &dead).await
    }

    /// Takes over what is stopped now, and looks at what is new.
    async fn look_at_stopped(&self, memory: &mut Memory) -> Result<(), DockerError> {
        let docker = &self.host.docker;
        let listed: HashSet<String> = docker.list_stopped().await?.into_iter().collect();
        memory.stopped.retain(|id, _| listed.contains(id));
        memory.planned.retain(|id| listed.contains(id));
        let new: Vec<String> = listed
            .into_iter()
            .filter(|id| !memory.stopped.contains_key(id))
            .take(INSPECTS)
            .collect();
        let looks = new
            .into_iter()
            .map(|id| async move { docker.inspect(&id).await });
        let mut looks = futures_util::stream::iter(looks).buffer_unordered(REQUESTS);
        while let Some(look) = looks.try_next().await? {
            let Some((info, state)) = look else { continue };
            if let Some(since) = stopped_since(&info, state) {
                let id = info.id.clone();
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
                    && !memory.later.contains_key(&Object::Run(*run))
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

    fn dead(&self, run: &Run, proof: Proof) -> Owner {
        Owner::Dead {
            proof,
            excluded: is_excluded(&self.host.config.exclude, run.identity.as_ref()),
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
            if fate == Fate::Remove && !memory.later.contains_key(&Object::Container(id.clone())) {
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
        let (mut names, mut failed) = (Vec::new(), None);
        for (info, removed) in done {
            match removed {
                Ok(true) => {
                    memory.stopped.remove(&info.id);
                    names.push(printable(info.name.as_ref()));
                }
                // It ran again meanwhile: looked at anew.
                Ok(false) => {
                    memory.stopped.remove(&info.id);
                }
                Err(error) => {
                    let id = Object::Container(info.id.clone());
                    memory.later.insert(id, Instant::now() + AGAIN);
                    if error.is_transient() {
                        failed = Some(error);
                    } else {
                        tracing::warn!(container = %run.container, %error, "a stopped container of a dead run stays; tried again in ten minutes");
                    }
                }
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
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// `Ok(false)`: it is not as it was.
    async fn remove_container(&self, seen: &ContainerInfo) -> Result<bool, DockerError> {
        let docker = &self.host.docker;
        let Some((info, state)) = docker.inspect(&seen.id).await? else {
            return Ok(true);
        };
        let age = stopped_since(&info, state)
            .and_then(|since| Duration::try_from_secs_f64(unix_seconds() - since).ok());
        if age.is_none_or(|age| {
            self.host
                .config
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

    async fn remove_networks(
        &self,
        memory: &mut Memory,
        networks: Vec<ComposeNetwork>,
        known: &HashMap<ContainerId, Known>,
    ) -> Result<(), Ended> {
        if self.host.config.networks == Networks::Keep {
            return Ok(());
        }
        self.host
            .networks
            .retain(|id| networks.iter().any(|network| network.id == id));
        let mut asked = 0;
        for network in networks {
            let object = Object::Network(network.id.clone());
            let mut facts = NetworkFacts {
                claim: self.claim(&network, known),
                users: 0,
                awaited: false,
            };
            let later = memory.later.contains_key(&object);
            if later || asked >= NETWORKS || !is_left(&facts, &self.rules()) {
                continue;
            }
            asked += 1;
            facts.users = self.host.docker.users_of_network(&network.id).await?.len();
            if facts.claim == Claim::Nominated && facts.users == 0 {
                facts.awaited = self.is_awaited(&network.project).await?;
            }
            tracing::trace!(?network, ?facts, "network");
            if !is_left(&facts, &self.rules()) {
                continue;
            }
            match self.host.docker.remove_network(&network.id).await {
                Ok(Gone::Done) => tracing::info!(
                    network = %printable(network.name.as_ref()),
                    project = %printable(network.project.as_ref()),
                    "removed a network that dead runs left"
                ),
                Ok(Gone::NothingToDo) => {}
                Err(error) if error.is_transient() => return Err(error.into()),
                Err(error) => {
                    memory.later.insert(object, Instant::now() + AGAIN);
                    tracing::warn!(%error, "a network that dead runs left stays; tried again in ten minutes");
                }
            }
        }
        Ok(())
    }

    fn claim(&self, network: &ComposeNetwork, known: &HashMap<ContainerId, Known>) -> Claim {
        match run_of_project(&network.project) {
            Some(run) => Claim::Project(match known.get(&run) {
                Some(Known::Dead(run, proof)) => self.dead(run, *proof),
                Some(Known::InUse) => Owner::InUse,
                Some(Known::Unknown) | None => Owner::Unknown,
            }),
            None if self.host.networks.has(&network.id, &network.project) => Claim::Nominated,
            None => Claim::Nothing,
        }
    }

    /// Whether a run that lives, or may, could be about to attach containers to a
    /// network of this project.
    async fn is_awaited(&self, project: &str) -> Result<bool, Ended> {
        let (host, project) = (Arc::clone(&self.host), project.to_owned());
        let looked = tokio::task::spawn_blocking(move || {
            let mut listed = Vec::new();
            for agent in &host.agents {
                listed.extend(agent.runtime.list().ok()?);
            }
            (!may_attach(&host, &project)).then_some(listed)
        });
        let Ok(Some(listed)) = looked.await else {
            return Ok(true);
        };
        // A run that is being set up is not known yet.
        let standings = self.ask(listed).await?;
        Ok(standings
            .values()
            .any(|standing| matches!(standing, Standing::Unheard)))
    }

    async fn ask(
        &self,
        runs: impl IntoIterator<Item = ContainerId>,
    ) -> Result<HashMap<ContainerId, Standing>, Ended> {
        ask(&self.questions, runs).await.ok_or(Ended::Stopped)
    }
}

/// Whether a known run that lives or may live has no pod yet, or one of this
/// project.
fn may_attach(host: &Host, project: &str) -> bool {
    let live: Vec<Run> = {
        let registry = host.registry();
        if registry.has_unknown() {
            return true;
        }
        registry.iter().cloned().collect()
    };
    let running = host.index.running();
    if running.iter().any(|info| info.project() == Some(project)) {
        return true;
    }
    let has_pod = |run: &Run| running.iter().any(|info| key_of(host, run, info).is_some());
    !live.iter().all(has_pod)
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
