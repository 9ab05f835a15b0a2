//! What cases work on: this host's hierarchies, agents and Docker.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::brake::{Brake, Word};
use super::direct::Crowd;
use crate::cgroup::{CgroupsRoot, Hierarchies, Hierarchy, RunCgroup};
use crate::config::{AnonymousVolumes, Config, LiveConfig, Mode, Networks};
use crate::docker::{ContainerInfo, Docker, Index, Lists};
use crate::journal::Journal;
use crate::mesos::{
    AgentDirs, AgentSign, AgentState, AgentWatch, ContainerId, RuntimeDir, running_agent,
};
use crate::metrics::Metrics;
use crate::process::Proc;
use crate::reconcile::Nowhere;
use crate::registry::{AgentIndex, Registry};
use crate::remains::Nominated;

/// How many removals of cgroups may run at once: from Linux 7.0 on one rmdir may
/// wait for dying tasks.
const REMOVALS: usize = 4;
/// How many stop requests may be under way at once: an idle connection each.
const STOPS: usize = 1024;
/// How long an answer about an agent's state is good for.
pub const STATE_AGE: Duration = Duration::from_millis(200);

/// Shared by the daemon and all cases.
#[derive(Debug)]
pub struct Host {
    config: LiveConfig,
    refused: Mutex<Option<String>>,
    pub hierarchies: Hierarchies,
    /// Where the launcher puts containers.
    pub launcher: Hierarchy,
    pub docker: Docker,
    pub index: Index,
    pub journal: Journal,
    pub metrics: Metrics,
    pub lists: Lists,
    pub agents: Vec<Agent>,
    roots: Vec<CgroupsRoot>,
    pub registry: Mutex<Registry>,
    pub nowhere: Nowhere,
    /// Networks of containers that were removed.
    pub networks: Nominated,
    pub(super) brake: Brake,
    pub(super) removals: Arc<Semaphore>,
    pub(super) stops: Arc<Semaphore>,
    pub(super) crowd: Arc<Crowd>,
}

/// One agent of the host.
#[derive(Debug)]
pub struct Agent {
    pub dirs: AgentDirs,
    pub runtime: RuntimeDir,
    watch: Mutex<(AgentWatch, Option<(Instant, AgentState)>)>,
    /// Parents of living helpers, for the watch: kept apart, since the watch is
    /// locked while it reads `/proc`.
    learnt: Mutex<Vec<Proc>>,
    /// The parent of a living helper that the runtime directory named, or an agent
    /// whose own flags name that directory.
    verified_by: Mutex<Option<Proc>>,
}

impl Agent {
    pub fn new(dirs: AgentDirs) -> Self {
        Self {
            runtime: RuntimeDir::new(&dirs.runtime_dir),
            watch: Mutex::new((AgentWatch::new(dirs.clone()), None)),
            dirs,
            learnt: Mutex::default(),
            verified_by: Mutex::default(),
        }
    }

    /// Whether the runtime directory is known to be that of the agent that runs
    /// now, so that a container's absence from it means something.
    pub fn is_verified(&self) -> bool {
        lock(&self.verified_by).is_some_and(Proc::is_alive)
    }

    /// Looks for the agent's process and the flags that it was started with, if
    /// nothing else verified it. Reads `/proc`: not for the event path.
    pub fn verify(&self) {
        if !self.is_verified()
            && let Some(agent) = running_agent(&self.dirs)
        {
            *lock(&self.verified_by) = Some(agent);
        }
    }

    /// A living helper has this parent; `listed`: the runtime directory named it.
    pub fn learn(&self, parent: Proc, listed: bool) {
        lock(&self.learnt).push(parent);
        if listed {
            *lock(&self.verified_by) = Some(parent);
        }
    }

    /// By what it was last taken to be what it is.
    pub fn sign(&self) -> AgentSign {
        lock(&self.watch).0.sign()
    }

    /// Reads `/proc`: not for the event path.
    pub fn state(&self) -> AgentState {
        let mut guard = lock(&self.watch);
        let (watch, last) = &mut *guard;
        for parent in lock(&self.learnt).drain(..) {
            watch.learn(parent);
        }
        let now = Instant::now();
        match last {
            Some((at, state)) if now.duration_since(*at) < STATE_AGE => *state,
            _ => {
                let state = watch.state(now);
                *last = Some((now, state));
                state
            }
        }
    }
}

impl Host {
    pub fn new(
        config: Config,
        hierarchies: Hierarchies,
        launcher: Hierarchy,
        docker: Docker,
        journal: Journal,
        agents: Vec<AgentDirs>,
    ) -> Self {
        let metrics = docker.metrics().clone();
        metrics.enforcing(config.mode == Mode::Enforce);
        let crowd = Crowd::new(config.docker.max_stops);
        Self {
            metrics,
            brake: Brake::new(config.max_inferred_stops, &config.run_dir),
            config: LiveConfig::new(config),
            refused: Mutex::default(),
            hierarchies,
            launcher,
            docker,
            journal,
            index: Index::default(),
            lists: Lists::default(),
            roots: agents
                .iter()
                .map(|agent| agent.cgroups_root.clone())
                .collect(),
            agents: agents.into_iter().map(Agent::new).collect(),
            registry: Mutex::new(Registry::default()),
            nowhere: Nowhere::default(),
            networks: Nominated::default(),
            removals: Arc::new(Semaphore::new(REMOVALS)),
            stops: Arc::new(Semaphore::new(STOPS)),
            crowd,
        }
    }

    /// A run's cgroup in the launcher's hierarchy, if there is one.
    pub(super) fn launcher_cgroup(
        &self,
        agent: AgentIndex,
        run: ContainerId,
    ) -> io::Result<Option<RunCgroup>> {
        RunCgroup::open(&self.launcher, &self.dirs(agent).cgroups_root, run)
    }

    /// The configuration that holds now. It may be another one the next time: whoever
    /// has to do with one decision asks once.
    pub fn config(&self) -> Arc<Config> {
        self.config.get()
    }

    /// From now on every decision is made by this configuration. Of what the host was
    /// made with (agents, Docker's socket, the run directory) it must say the same.
    pub fn reconfigure(&self, config: Config) {
        self.metrics.enforcing(config.mode == Mode::Enforce);
        self.brake.set_cap(config.max_inferred_stops);
        self.journal
            .keep(config.journal.max_age, config.journal.max_bytes);
        self.config.set(config);
    }

    /// Why the configuration was not taken over when it was last read again; `None`:
    /// it was, or it was not read again.
    pub fn refused(&self) -> MutexGuard<'_, Option<String>> {
        lock(&self.refused)
    }

    /// Whether effects are carried out at this moment. To be asked right before each:
    /// the mode may have changed since it was decided upon.
    pub fn may_act(&self) -> bool {
        self.config().mode == Mode::Enforce
    }

    /// Whether a container is to be kept, by its owner's word, if that counts here.
    pub fn keeps(&self, info: &ContainerInfo) -> bool {
        self.config().keep_label && info.is_kept()
    }

    /// Whether a container's anonymous volumes go with it.
    pub fn removes_volumes(&self) -> bool {
        self.config().anonymous_volumes == AnonymousVolumes::Remove
    }

    /// Remembers the networks of a dead run's container, if they are to go.
    pub fn note_networks(&self, info: &ContainerInfo) {
        if self.config().networks == Networks::RemoveIfEmpty {
            self.networks.note(info);
        }
    }

    /// Whether what is done for inferred deaths is held back now.
    pub fn is_holding(&self) -> bool {
        self.brake.is_holding()
    }

    /// The hold file's word, whoever wrote it.
    pub fn hold_word(&self) -> io::Result<Option<Word>> {
        self.brake.word()
    }

    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        lock(&self.registry)
    }

    pub fn roots(&self) -> &[CgroupsRoot] {
        &self.roots
    }

    pub fn dirs(&self, agent: AgentIndex) -> &AgentDirs {
        &self.agents[agent].dirs
    }

    /// The run's cgroup as a path, the same in every hierarchy.
    pub fn run_path(&self, run: &crate::registry::Run) -> std::path::PathBuf {
        Path::new(
            &self
                .dirs(run.agent)
                .cgroups_root
                .absolute(run.container.as_str()),
        )
        .to_owned()
    }
}

/// Every change under these locks is one step: a panic leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
