//! What cases work on: this host's hierarchies, agents and Docker.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::cgroup::{CgroupsRoot, Hierarchies, Hierarchy};
use crate::config::Config;
use crate::docker::{Docker, Index};
use crate::mesos::{AgentDirs, AgentState, AgentWatch, RuntimeDir};
use crate::process::Proc;
use crate::registry::{AgentIndex, Registry};

/// How many removals of cgroups may run at once: from Linux 7.0 on one rmdir may
/// wait for dying tasks.
const REMOVALS: usize = 4;
/// How long an answer about an agent's state is good for.
const STATE_AGE: Duration = Duration::from_millis(200);

/// Shared by the daemon and all cases.
#[derive(Debug)]
pub struct Host {
    pub config: Config,
    pub hierarchies: Hierarchies,
    /// Where the launcher puts containers.
    pub launcher: Hierarchy,
    pub docker: Docker,
    pub index: Index,
    pub agents: Vec<Agent>,
    pub registry: Mutex<Registry>,
    pub(super) removals: Semaphore,
}

/// One agent of the host.
#[derive(Debug)]
pub struct Agent {
    pub dirs: AgentDirs,
    pub runtime: RuntimeDir,
    watch: Mutex<(AgentWatch, Option<(Instant, AgentState)>)>,
    /// A live run was learnt from the runtime directory: it is the right one, so
    /// that a container's absence from it means something.
    verified: AtomicBool,
}

impl Agent {
    pub fn new(dirs: AgentDirs) -> Self {
        Self {
            runtime: RuntimeDir::new(&dirs.runtime_dir),
            watch: Mutex::new((AgentWatch::new(dirs.clone()), None)),
            dirs,
            verified: AtomicBool::new(false),
        }
    }

    /// Whether the runtime directory is known to be this agent's.
    pub fn is_verified(&self) -> bool {
        self.verified.load(Ordering::Relaxed)
    }

    /// The parent of a living helper that the runtime directory named.
    pub fn learn(&self, parent: Proc) {
        self.verified.store(true, Ordering::Relaxed);
        self.watch
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .learn(parent);
    }

    /// Reads `/proc`: not for the event path.
    pub fn state(&self) -> AgentState {
        let mut guard = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let (watch, last) = &mut *guard;
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
        agents: Vec<AgentDirs>,
    ) -> Self {
        Self {
            config,
            hierarchies,
            launcher,
            docker,
            index: Index::default(),
            agents: agents.into_iter().map(Agent::new).collect(),
            registry: Mutex::new(Registry::default()),
            removals: Semaphore::new(REMOVALS),
        }
    }

    pub fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn roots(&self) -> Vec<CgroupsRoot> {
        self.agents
            .iter()
            .map(|agent| agent.dirs.cgroups_root.clone())
            .collect()
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
