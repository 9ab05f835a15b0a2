//! Executors with pods: how they are made, what they consist of, how they die.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use cleanup_tests::cgroups::CgroupRoot;
use cleanup_tests::docker::api::NewContainer;
use cleanup_tests::docker::{IGNORING_TERM, OBEDIENT};
use cleanup_tests::host::Host;
use cleanup_tests::mesos::executors::ExecutorView;
use cleanup_tests::mesos::pod;
use cleanup_tests::mesos::spec::ExecutorSpec;
use cleanup_tests::process::Process;
use cleanup_tests::random::Random;
use rustix::process::Signal;

const UP: Duration = Duration::from_secs(120);
/// Pods that are started at the same time.
const STARTERS: usize = 4;
/// Of an executor and its containers, which are all shells; docker-compose takes
/// more.
const MEM_MB: u32 = 64;

const RESTART: &[&str] = &["", "", "always", "unless-stopped", "on-failure"];

/// A pod to be.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) name: String,
    how: How,
}

#[derive(Debug, Clone)]
enum How {
    /// The executor runs docker-compose, as dce-go does, with these options.
    Compose { services: usize, options: String },
    /// The same containers, made through Docker's API: for a tenth of the work.
    Api(Vec<Wanted>),
}

#[derive(Debug, Clone)]
struct Wanted {
    is_beneath: bool,
    is_labelled: bool,
    restart: &'static str,
    script: &'static str,
}

impl Plan {
    pub(super) fn draw(name: String, random: &mut Random, compose_percent: u64) -> Self {
        // Most pods are small: a container costs a machine more than an executor.
        let services = *random.pick(&[1, 1, 1, 1, 2, 2, 3]).unwrap_or(&1);
        let how = if random.percent(compose_percent) {
            let mut options = String::new();
            match random.pick(RESTART) {
                Some(&"") | None => {}
                Some(policy) => options += &format!(" --restart {policy}"),
            }
            if random.percent(20) {
                options += " --ignore-term 1";
            }
            if random.percent(20) {
                options += " --no-cgroup-parent";
            } else if random.percent(20) {
                options += " --untagged 1";
            }
            How::Compose { services, options }
        } else {
            How::Api((0..services).map(|_| Wanted::draw(random)).collect())
        };
        Self { name, how }
    }

    fn spec(&self, host: &Host) -> Result<ExecutorSpec> {
        Ok(match &self.how {
            How::Compose { services, options } => {
                host.pod_spec(&self.name, &format!("--services {services}{options}"))?
            }
            How::Api(_) => ExecutorSpec {
                mem_mb: MEM_MB,
                ..host.pod_spec(&self.name, "--no-pod")?
            },
        })
    }

    /// Its containers, once its executor runs.
    fn containers(&self, host: &Host, executor: &ExecutorView) -> Result<Vec<String>> {
        match &self.how {
            How::Compose { services, .. } => executor.wait_pod_running(&host.docker, *services),
            How::Api(wanted) => wanted
                .iter()
                .map(|one| host.docker.start_container(&one.container(host, executor)))
                .collect(),
        }
    }
}

impl Wanted {
    fn draw(random: &mut Random) -> Self {
        // One of both ties it to the run, or both do.
        let (is_beneath, is_labelled) = *random
            .pick(&[(true, true), (true, false), (false, true)])
            .unwrap_or(&(true, true));
        Self {
            is_beneath,
            is_labelled,
            restart: random.pick(RESTART).unwrap_or(&""),
            script: if random.percent(20) {
                IGNORING_TERM
            } else {
                OBEDIENT
            },
        }
    }

    fn container(&self, host: &Host, executor: &ExecutorView) -> NewContainer {
        let Self {
            is_beneath,
            is_labelled,
            restart,
            script,
        } = self;
        let parent = || format!("/{}/{}", host.scratch.name(), executor.container_id());
        let label = || {
            (
                "com.docker.compose.project.working_dir".to_owned(),
                pod::directory(executor.sandbox()).display().to_string(),
            )
        };
        NewContainer {
            script: (*script).to_owned(),
            cgroup_parent: is_beneath.then(parent),
            labels: is_labelled.then(label).into_iter().collect(),
            restart: Some((*restart).to_owned()),
        }
    }
}

/// An executor whose pod is up, and everything of it that must not vanish before
/// it dies.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) task_id: String,
    pub(super) executor: ExecutorView,
    /// Each with its first process: as long as that lives, nobody stopped or
    /// restarted the container.
    pub(super) containers: Vec<(String, Process)>,
    cgroups: Vec<PathBuf>,
}

/// How an executor is made to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    KillExecutor,
    KillHelper,
    KillBoth,
    TermExecutor,
    /// It is told to by Mesos, and exits with 0.
    KillTask,
}

impl Manner {
    pub(super) fn draw(random: &mut Random) -> Self {
        *random
            .pick(&[
                Self::KillExecutor,
                Self::KillExecutor,
                Self::KillExecutor,
                Self::KillHelper,
                Self::KillBoth,
                Self::TermExecutor,
                Self::KillTask,
            ])
            .unwrap_or(&Self::KillExecutor)
    }
}

impl Pod {
    /// Launches all at once. The names of those that could not be brought up come
    /// second: whatever was made of them is not known.
    pub(super) fn launch(host: &Host, plans: &[Plan]) -> Result<(Vec<Self>, Vec<String>)> {
        let specs = plans
            .iter()
            .map(|plan| plan.spec(host))
            .collect::<Result<Vec<_>>>()?;
        let tasks = host.framework.launch_all(&specs)?;
        let all: Vec<_> = plans.iter().zip(&tasks).collect();
        let share = all.len().div_ceil(STARTERS).max(1);
        let pods = thread::scope(|scope| {
            let starters: Vec<_> = all
                .chunks(share)
                .map(|share| {
                    scope.spawn(move || {
                        share
                            .iter()
                            .map(|(plan, task)| (*plan, Self::look(host, plan, task)))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            starters
                .into_iter()
                .map(|starter| starter.join().ok().context("a starter panicked"))
                .collect::<Result<Vec<_>>>()
        })?;
        let (mut up, mut failed) = (Vec::new(), Vec::new());
        for (plan, pod) in pods.into_iter().flatten() {
            match pod {
                Ok(pod) => up.push(pod),
                Err(error) => {
                    eprintln!("{} was not brought up: {error:#}", plan.name);
                    failed.push(plan.name.clone());
                }
            }
        }
        Ok((up, failed))
    }

    fn look(host: &Host, plan: &Plan, task_id: &str) -> Result<Self> {
        host.framework.wait_running(task_id, UP)?;
        let executor = ExecutorView::find(&host.agent, &plan.name)?;
        let containers = plan
            .containers(host, &executor)?
            .into_iter()
            .map(|id| Ok((id.clone(), host.docker.container_process(&id)?)))
            .collect::<Result<Vec<_>>>()?;
        let run = format!("{}/{}", host.scratch.name(), executor.container_id());
        Ok(Self {
            name: plan.name.clone(),
            task_id: task_id.to_owned(),
            cgroups: CgroupRoot::new(&run)?.tree(),
            executor,
            containers,
        })
    }

    /// What of it is no longer there.
    pub(super) fn missing(&self) -> Vec<String> {
        let name = &self.name;
        let mut missing = Vec::new();
        for (what, process) in [
            ("executor", self.executor.executor()),
            ("helper", self.executor.helper()),
        ] {
            if !process.alive() {
                missing.push(format!("{what} of {name} ended"));
            }
        }
        for (id, process) in &self.containers {
            if !process.alive() {
                missing.push(format!("container {id:.12} of {name} ended"));
            }
        }
        for cgroup in &self.cgroups {
            if !cgroup.exists() {
                missing.push(format!("cgroup {} of {name} vanished", cgroup.display()));
            }
        }
        missing
    }

    /// Neither a process nor a cgroup of it is left; Docker was not asked.
    pub(super) fn is_gone(&self) -> bool {
        !self.executor.executor().alive()
            && !self.executor.helper().alive()
            && self.containers.iter().all(|(_, process)| !process.alive())
    }

    pub(super) fn is_dead(&self) -> bool {
        !self.executor.executor().alive()
    }

    /// Makes it die. An agent that hangs or is away cannot be told to do it.
    pub(super) fn die(&self, manner: Manner, host: &Host, has_agent: bool) -> Result<()> {
        let view = &self.executor;
        match manner {
            Manner::KillExecutor => view.executor().kill(),
            Manner::KillHelper => view.helper().kill(),
            Manner::KillBoth => {
                view.helper().kill();
                view.executor().kill();
            }
            Manner::KillTask if has_agent => host.framework.kill(&self.task_id)?,
            Manner::TermExecutor | Manner::KillTask => {
                view.executor().signal(Signal::TERM)?;
            }
        }
        Ok(())
    }
}
