//! The usual test bed: Docker, a Mesos agent and a framework.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::docker::Dockerd;
use crate::log;
use crate::mesos::agent::{Agent, AgentOptions};
use crate::mesos::executors::ExecutorView;
use crate::mesos::framework::Framework;
use crate::mesos::spec::ExecutorSpec;
use crate::mesos::{pod, runtime};
use crate::scratch::Scratch;

const POD: Duration = Duration::from_secs(120);

/// All of one host that the daemon has to do with. Dropped from top to bottom.
#[derive(Debug)]
pub struct Host {
    pub framework: Framework,
    pub agent: Agent,
    pub docker: Dockerd,
    pub scratch: Scratch,
}

/// An executor whose pod is up.
#[derive(Debug)]
pub struct RunningPod {
    pub task_id: String,
    pub executor: ExecutorView,
    /// Full ids.
    pub containers: Vec<String>,
}

impl Host {
    /// Starts everything, with a framework that checkpoints.
    pub fn start(name: &str, mesos_version: &str, options: AgentOptions) -> Result<Self> {
        Self::start_with(name, mesos_version, options, &[])
    }

    /// [`Self::start`] with more options for dockerd.
    pub fn start_with(
        name: &str,
        mesos_version: &str,
        options: AgentOptions,
        docker_options: &[&str],
    ) -> Result<Self> {
        let runtime = runtime::fetch(&[mesos_version])?
            .pop()
            .context("one version, one runtime")?;
        let scratch = Scratch::new(name)?;
        let docker = Dockerd::start_with(&scratch, docker_options)?;
        docker.import_busybox()?;
        let agent = Agent::start(&scratch, &runtime, options)?;
        let framework = Framework::connect(agent.endpoint(), true)?;
        Ok(Self {
            framework,
            agent,
            docker,
            scratch,
        })
    }

    /// What [`Self::run_pod`] launches, to be altered.
    pub fn pod_spec(&self, executor_id: &str, options: &str) -> Result<ExecutorSpec> {
        pod::executor(&self.scratch, &self.docker, executor_id, options)
    }

    /// Launches a `pod-executor` of so many services, with more of its options,
    /// and waits until its task runs.
    pub fn run_pod(&self, executor_id: &str, services: usize, options: &str) -> Result<RunningPod> {
        let spec = self.pod_spec(executor_id, &format!("--services {services} {options}"))?;
        let task_id = self.framework.launch(&spec)?;
        self.framework
            .wait_running(&task_id, POD)
            .with_context(|| log::tail(&self.agent.log_path(), 20))?;
        let executor = ExecutorView::find(&self.agent, executor_id)?;
        let containers = executor.wait_pod_running(&self.docker, services)?;
        Ok(RunningPod {
            task_id,
            executor,
            containers,
        })
    }
}
