//! Executors to be killed, each with a pod of one container: of a real Mesos
//! agent, or of a stand-in.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow};
use cleanup_tests::docker::{Dockerd, OBEDIENT};
use cleanup_tests::host::Host;
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent, StandInRun};
use cleanup_tests::process::Process;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::AgentPlace;

/// Launches that run at the same time: `docker-compose` is bound by the CPU.
const AT_ONCE: usize = 3;

/// An executor whose pod is up.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) container_id: String,
    pub(super) executor: Process,
    /// Docker's id of the pod's container, and its first process.
    pub(super) docker_id: String,
    pub(super) first_process: i32,
}

/// Who launches the executors.
#[derive(Debug)]
pub(super) enum Agents {
    Real {
        host: Box<Host>,
        version: String,
        launched: AtomicUsize,
    },
    StandIn {
        stand_in: Box<StandIn>,
        launched: AtomicUsize,
    },
}

impl Agents {
    pub(super) fn real(version: &str) -> Result<Self> {
        Ok(Self::Real {
            host: Box::new(Host::start("bench", version, AgentOptions::default())?),
            version: version.to_owned(),
            launched: AtomicUsize::new(0),
        })
    }

    pub(super) fn stand_in() -> Result<Self> {
        Ok(Self::StandIn {
            stand_in: Box::new(StandIn::start()?),
            launched: AtomicUsize::new(0),
        })
    }

    /// For the report.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Real { version, .. } => {
                format!("Mesos {version} (real agent; pods by docker-compose)")
            }
            Self::StandIn { .. } => {
                "STAND-IN (no Mesos: `sleep` as executor, destroyed after its pod; pods by docker run)"
                    .to_owned()
            }
        }
    }

    pub(super) fn docker(&self) -> &Dockerd {
        match self {
            Self::Real { host, .. } => &host.docker,
            Self::StandIn { stand_in, .. } => &stand_in.docker,
        }
    }

    pub(super) fn scratch(&self) -> &Scratch {
        match self {
            Self::Real { host, .. } => &host.scratch,
            Self::StandIn { stand_in, .. } => &stand_in.scratch,
        }
    }

    pub(super) fn place(&self) -> AgentPlace {
        match self {
            Self::Real { host, .. } => AgentPlace::of(&host.agent, &host.scratch),
            Self::StandIn { stand_in, .. } => stand_in.agent.place(),
        }
    }

    /// Launches so many executors and waits for their pods.
    pub(super) fn launch(&self, count: usize) -> Result<Vec<Target>> {
        let turns = AtomicUsize::new(0);
        let worker = || {
            let mut launched = Vec::new();
            while turns.fetch_add(1, Ordering::Relaxed) < count {
                launched.push(self.launch_one()?);
            }
            anyhow::Ok(launched)
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
            let mut all = Vec::with_capacity(count);
            for worker in workers {
                all.extend(worker.join().map_err(|_| anyhow!("a launch panicked"))??);
            }
            Ok(all)
        })
    }

    fn launch_one(&self) -> Result<Target> {
        match self {
            Self::Real { host, launched, .. } => {
                let id = format!("bench-{}", launched.fetch_add(1, Ordering::Relaxed));
                let pod = host.run_pod(&id, 1, "")?;
                let [docker_id] = <[String; 1]>::try_from(pod.containers)
                    .ok()
                    .context("a pod of one container")?;
                Ok(Target {
                    container_id: pod.executor.container_id().to_owned(),
                    executor: pod.executor.executor(),
                    first_process: first_process(&host.docker, &docker_id)?,
                    docker_id,
                })
            }
            Self::StandIn { stand_in, launched } => stand_in.launch(&format!(
                "bench-{}",
                launched.fetch_add(1, Ordering::Relaxed)
            )),
        }
    }

    /// What an agent does after its executor's end, if it is not a real one.
    pub(super) fn after_death(&self, target: &Target) -> Result<()> {
        match self {
            Self::Real { .. } => Ok(()),
            Self::StandIn { stand_in, .. } => stand_in.destroy(&target.container_id),
        }
    }
}

/// A stand-in agent and the Docker that its pods run on. Dropped from top to
/// bottom.
#[derive(Debug)]
pub(super) struct StandIn {
    runs: Mutex<HashMap<String, StandInRun>>,
    agent: StandInAgent,
    docker: Dockerd,
    scratch: Scratch,
}

impl StandIn {
    fn start() -> Result<Self> {
        let scratch = Scratch::new("bench")?;
        let docker = Dockerd::start(&scratch)?;
        docker.import_busybox()?;
        Ok(Self {
            runs: Mutex::default(),
            agent: StandInAgent::start(&scratch, CgroupLayout::V1)?,
            docker,
            scratch,
        })
    }

    fn launch(&self, executor_id: &str) -> Result<Target> {
        let run = self.agent.launch(executor_id)?;
        let docker_id = self
            .docker
            .run_beneath(&run.cgroup_parent(), &[], OBEDIENT)?;
        let target = Target {
            container_id: run.container_id().to_owned(),
            executor: run.executor()?,
            first_process: first_process(&self.docker, &docker_id)?,
            docker_id,
        };
        self.runs().insert(target.container_id.clone(), run);
        Ok(target)
    }

    /// The agent's part after an executor's end, when the pod is gone.
    fn destroy(&self, container_id: &str) -> Result<()> {
        let run = self.runs().remove(container_id);
        let run = run.with_context(|| format!("no run {container_id}"))?;
        self.agent.destroy(&run).finish()
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<String, StandInRun>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first_process(docker: &Dockerd, id: &str) -> Result<i32> {
    let pid = docker.inspect(id)?["State"]["Pid"].as_i64();
    pid.and_then(|pid| pid.try_into().ok())
        .context("a container's first process")
}
