//! Executors as the agent's files and the process table show them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::agent::Agent;
use super::pod;
use crate::docker::Dockerd;
use crate::process::Process;
use crate::{log, wait};

const FIND: Duration = Duration::from_secs(30);
const POD: Duration = Duration::from_secs(90);

/// One living run of an executor.
#[derive(Debug, Clone)]
pub struct ExecutorView {
    container_id: String,
    framework_id: String,
    sandbox: PathBuf,
    helper: Process,
    executor: Process,
    agent_log: PathBuf,
}

impl ExecutorView {
    /// Waits for a run of this executor to live, and looks at it.
    pub fn find(agent: &Agent, executor_id: &str) -> Result<Self> {
        wait::try_until(FIND, format_args!("executor {executor_id} to run"), || {
            Ok(sandboxes(&agent.work_dir(), executor_id)
                .into_iter()
                .find_map(|sandbox| Self::of_sandbox(agent, sandbox)))
        })
        .with_context(|| log::tail(&agent.log_path(), 20))
    }

    /// The runs of this executor id that live now, of every framework.
    pub fn all(agent: &Agent, executor_id: &str) -> Vec<Self> {
        sandboxes(&agent.work_dir(), executor_id)
            .into_iter()
            .filter_map(|sandbox| Self::of_sandbox(agent, sandbox))
            .collect()
    }

    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    pub fn framework_id(&self) -> &str {
        &self.framework_id
    }

    /// The run's directory, `MESOS_DIRECTORY`.
    pub fn sandbox(&self) -> &Path {
        &self.sandbox
    }

    /// `mesos-containerizer launch`, whose end is the container's end.
    pub fn helper(&self) -> Process {
        self.helper
    }

    /// The helper's child.
    pub fn executor(&self) -> Process {
        self.executor
    }

    /// Waits for exactly `count` running containers of the pod; their ids.
    pub fn wait_pod_running(&self, docker: &Dockerd, count: usize) -> Result<Vec<String>> {
        let what = format!("{count} running containers of {}", self.container_id);
        wait::try_until(POD, what, || {
            let running = self.running_pod(docker)?;
            Ok((running.len() == count).then_some(running))
        })
        .with_context(|| log::tail(&self.agent_log, 20))
    }

    /// Ids of the pod's running containers.
    pub fn running_pod(&self, docker: &Dockerd) -> Result<Vec<String>> {
        docker.running_with(&pod::filter(&self.sandbox))
    }

    /// Kills the executor, not the helper: the helper follows by itself.
    pub fn sigkill_executor(&self) -> Result<()> {
        self.executor.signal(rustix::process::Signal::KILL)
    }

    fn of_sandbox(agent: &Agent, sandbox: PathBuf) -> Option<Self> {
        let container_id = sandbox.file_name()?.to_str()?.to_owned();
        let pid = agent
            .runtime_dir()
            .join("containers")
            .join(&container_id)
            .join("pid");
        let helper = Process::of(fs::read_to_string(pid).ok()?.trim().parse().ok()?)?;
        let [executor] = helper.children()[..] else {
            return None;
        };
        // …/frameworks/<F>/executors/<E>/runs/<C>
        let framework_id = sandbox
            .ancestors()
            .nth(4)?
            .file_name()?
            .to_str()?
            .to_owned();
        (helper.alive() && executor.alive()).then(|| Self {
            container_id,
            framework_id,
            sandbox,
            helper,
            executor,
            agent_log: agent.log_path(),
        })
    }
}

/// Sandboxes of all runs of all executors of this id:
/// `<work_dir>/slaves/*/frameworks/*/executors/<id>/runs/*`.
fn sandboxes(work_dir: &Path, executor_id: &str) -> Vec<PathBuf> {
    let mut runs = Vec::new();
    for agent in children(&work_dir.join("slaves")) {
        for framework in children(&agent.join("frameworks")) {
            runs.extend(children(
                &framework.join("executors").join(executor_id).join("runs"),
            ));
        }
    }
    runs
}

/// Real directories only: `latest` is a link to one of them.
fn children(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
