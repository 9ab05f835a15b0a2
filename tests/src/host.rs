//! The usual test bed: Docker, a Mesos agent and a framework.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::clean::Clean;
use crate::docker::Dockerd;
use crate::log;
use crate::mesos::agent::{Agent, AgentOptions};
use crate::mesos::executors::ExecutorView;
use crate::mesos::framework::Framework;
use crate::mesos::spec::ExecutorSpec;
use crate::mesos::{pod, runtime};
use crate::scratch::Scratch;
use crate::watcher::{AgentPlace, Watcher, configure};

const POD: Duration = Duration::from_secs(120);

/// Configuration of a daemon at work, with times that suit a test.
pub const ENFORCE: &str = "mode = \"enforce\"\ngrace = \"2s\"\nsettle = \"200ms\"";

/// How the daemon notices deaths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Probe {
    /// The kernel reports them.
    #[default]
    Ebpf,
    /// Without the kernel's help.
    Poll,
}

impl Probe {
    /// A line of the daemon's configuration.
    pub fn option(self) -> &'static str {
        match self {
            Self::Ebpf => "probe = \"ebpf\"\n",
            Self::Poll => "probe = \"poll\"\n",
        }
    }

    /// A death that the daemon saw was noticed in this way. Without a probe, whether
    /// the end of a process or what its agent does next is heard of first is a race
    /// on a slow machine.
    pub fn ensure_noticed(self, case: &Value) -> Result<()> {
        let origins = match self {
            Self::Ebpf => &["kernel"][..],
            Self::Poll => &["pidfd", "scan"],
        };
        let noticed = origins.iter().any(|origin| case["origin"] == *origin);
        ensure!(noticed, "not one of {origins:?}: {case}");
        Ok(())
    }

    /// How an executor ended, as far as can be known.
    pub fn status(self, status: &str) -> &str {
        match self {
            Self::Ebpf => status,
            Self::Poll => "unknown",
        }
    }
}

/// Makes two tests of each of these functions: `ebpf::name` and `poll::name`.
#[macro_export]
macro_rules! under_each_probe {
    ($($name:ident),+ $(,)?) => {
        mod ebpf {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                super::$name($crate::host::Probe::Ebpf)
            })+
        }
        mod poll {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                super::$name($crate::host::Probe::Poll)
            })+
        }
    };
}

/// All of one host that the daemon has to do with. Dropped from top to bottom.
#[derive(Debug)]
pub struct Host {
    pub framework: Framework,
    pub agent: Agent,
    pub docker: Dockerd,
    pub scratch: Scratch,
    /// Of the daemons that [`Self::watch`] starts.
    pub probe: Probe,
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
        Self::on(Scratch::new(name)?, mesos_version, options, docker_options)
    }

    /// [`Self::start_with`] on a scratch that the options had to know.
    pub fn on(
        scratch: Scratch,
        mesos_version: &str,
        options: AgentOptions,
        docker_options: &[&str],
    ) -> Result<Self> {
        let runtime = runtime::fetch(&[mesos_version])?
            .pop()
            .context("one version, one runtime")?;
        let docker = Dockerd::start_with(&scratch, docker_options)?;
        docker.import_busybox()?;
        let agent = Agent::start(&scratch, &runtime, options)?;
        let framework = Framework::connect(agent.endpoint(), true)?;
        Ok(Self {
            framework,
            agent,
            docker,
            scratch,
            probe: Probe::default(),
        })
    }

    /// This host, for daemons that notice deaths so.
    #[must_use]
    pub fn under(self, probe: Probe) -> Self {
        Self { probe, ..self }
    }

    /// The daemon, told of this host's agent and Docker, with more of its
    /// configuration.
    pub fn watch(&self, options: &str) -> Result<Watcher> {
        let agent = AgentPlace::of(&self.agent, &self.scratch);
        let options = format!("{}{options}", self.probe.option());
        Watcher::start(&self.scratch, &self.docker, &[agent], &options)
    }

    /// [`Self::watch`], run by another program; the options name the probe.
    pub fn watch_through(&self, wrapper: &[&str], options: &str) -> Result<Watcher> {
        let agent = AgentPlace::of(&self.agent, &self.scratch);
        Watcher::start_through(&self.scratch, &self.docker, &[agent], options, wrapper)
    }

    /// `compose-cleanup clean --from-inbox`, configured as [`Self::watch`] does.
    pub fn clean(&self, options: &str, arguments: &[&str]) -> Result<Clean> {
        Clean::spawn(&self.scratch, &self.configure(options)?, arguments)
    }

    /// [`Self::clean`], run by another program.
    pub fn clean_through(&self, wrapper: &[&str], options: &str) -> Result<Clean> {
        Clean::spawn_through(&self.scratch, wrapper, &self.configure(options)?)
    }

    fn configure(&self, options: &str) -> Result<PathBuf> {
        let agent = AgentPlace::of(&self.agent, &self.scratch);
        configure(&self.scratch, &self.docker.socket(), &[agent], options)
    }

    /// The daemon at its work, with times that suit a test.
    pub fn enforce(&self) -> Result<Watcher> {
        self.watch(ENFORCE)
    }

    /// Nothing of a dead run is left on the host, and its agent is content.
    pub fn ensure_clean(&self, pod: &RunningPod, case: &Value) -> Result<()> {
        self.ensure_clean_but(pod, case, &[])
    }

    /// [`Self::ensure_clean`], except for containers that only look like its pod.
    pub fn ensure_clean_but(
        &self,
        pod: &RunningPod,
        case: &Value,
        others: &[&String],
    ) -> Result<()> {
        let id = pod.executor.container_id();
        ensure!(case["result"] == "clean", "not clean: {case}");
        let mut running = pod.executor.running_pod(&self.docker)?;
        running.retain(|id| !others.contains(&id));
        ensure!(running.is_empty(), "{running:?} run after {case}");
        let mut left = self.scratch.leftovers();
        left.retain(|path| path.iter().any(|part| part == id));
        ensure!(left.is_empty(), "{left:?} are left after {case}");
        self.ensure_agent_is_well()
    }

    /// The agent has logged no error and failed no destroy.
    pub fn ensure_agent_is_well(&self) -> Result<()> {
        let mut errors = self.agent.errors_in_log()?;
        // After a restart an update may be sent, and acknowledged, twice.
        errors.retain(|error| !error.contains("status update acknowledgement"));
        // After a restart, too: of a container that ended meanwhile nothing is left, so
        // the agent is sometimes done with it before it asks how it ended.
        errors.retain(|error| {
            !(error.contains("Termination of executor")
                && error.ends_with("failed: unknown container"))
        });
        // Two containerizers: said of every executor that ended, with us or without.
        errors.retain(|error| {
            !(error.contains("on status update for terminal task")
                && error.ends_with("Container not found"))
        });
        let failed = self.agent.metrics()?["containerizer/mesos/container_destroy_errors"];
        ensure!(
            errors.is_empty() && failed == 0.0,
            "{failed} failed destroys, {errors:?}: {}",
            log::tail(&self.agent.log_path(), 40)
        );
        Ok(())
    }

    /// What [`Self::run_pod`] launches, to be altered.
    pub fn pod_spec(&self, executor_id: &str, options: &str) -> Result<ExecutorSpec> {
        pod::executor(&self.scratch, &self.docker, executor_id, options)
    }

    /// Launches a `pod-executor` of so many services, with more of its options,
    /// and waits until its task runs.
    pub fn run_pod(&self, executor_id: &str, services: usize, options: &str) -> Result<RunningPod> {
        let spec = self.pod_spec(executor_id, &format!("--services {services} {options}"))?;
        let agent_log = || log::tail(&self.agent.log_path(), 40);
        let task_id = self.framework.launch(&spec).with_context(agent_log)?;
        self.framework
            .wait_running(&task_id, POD)
            .with_context(agent_log)?;
        let executor = ExecutorView::find(&self.agent, executor_id)?;
        let containers = executor.wait_pod_running(&self.docker, services)?;
        Ok(RunningPod {
            task_id,
            executor,
            containers,
        })
    }
}
