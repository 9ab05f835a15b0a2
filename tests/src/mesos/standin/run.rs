//! One run of an executor, from its set-up to its first process.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::layout::{
    AGENT_ID, CgroupLayout, FRAMEWORK_ID, Layout, create_new, executor_info, framework_info, record,
};
use super::{StandInAgent, control};
use crate::process::Process;
use crate::{random, wait};

const EXECUTOR: Duration = Duration::from_secs(30);

/// One run. It ends with its scratch at the latest.
#[derive(Debug)]
pub struct StandInRun {
    container_id: String,
    executor_id: String,
    sandbox: PathBuf,
    pub(super) layout: Layout,
    pub(super) agent: SocketAddr,
    mark: (&'static str, String),
    /// The start of the agent that made it.
    pub(super) made_by: u32,
    helper: Option<Process>,
}

impl StandInRun {
    pub(super) fn prepare(agent: &StandInAgent, executor_id: &str) -> Result<Self> {
        let container_id = random::uuid()?;
        let layout = agent.layout.clone();
        let below = |top: PathBuf| {
            top.join(format!(
                "slaves/{AGENT_ID}/frameworks/{FRAMEWORK_ID}/executors"
            ))
            .join(executor_id)
        };
        let runs = below(layout.work_dir()).join("runs");
        let run = Self {
            sandbox: runs.join(&container_id),
            container_id,
            executor_id: executor_id.to_owned(),
            layout,
            agent: agent.address,
            mark: agent.mark.clone(),
            made_by: agent.start,
            helper: None,
        };
        // The agent's own: checkpoints, then the sandbox.
        let meta = below(run.layout.meta());
        create_new(&run.meta().join("pids"))?;
        for (file, message) in [
            (meta.join("../../framework.info"), framework_info()),
            (meta.join("executor.info"), executor_info(executor_id)),
        ] {
            fs::write(&file, record(&message)).with_context(|| file.display().to_string())?;
        }
        create_new(&run.sandbox)?;
        for runs in [&runs, &meta.join("runs")] {
            let latest = runs.join("latest");
            let _ = fs::remove_file(&latest);
            symlink(runs.join(&run.container_id), &latest).context("the newest run")?;
        }
        // The containerizer's: isolators, then what the launcher will need.
        for cgroup in run.isolator_cgroups() {
            create_new(&cgroup)?;
        }
        create_new(&run.runtime())?;
        fs::write(run.runtime().join("launch_info"), record(&[]))?;
        create_new(&run.seat())?;
        Ok(run)
    }

    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    pub fn executor_id(&self) -> &str {
        &self.executor_id
    }

    pub fn framework_id(&self) -> &str {
        FRAMEWORK_ID
    }

    pub fn sandbox(&self) -> &Path {
        &self.sandbox
    }

    /// `<runtime_dir>/containers/<container id>`.
    pub fn runtime(&self) -> PathBuf {
        self.layout.containers().join(&self.container_id)
    }

    /// For containers of its pod, in Docker's words.
    pub fn cgroup_parent(&self) -> String {
        format!("/{}/{}", self.layout.cgroups_root(), self.container_id)
    }

    /// Its cgroup in the launcher's hierarchy.
    pub fn launcher_cgroup(&self) -> PathBuf {
        self.layout.launcher_cgroup(&self.container_id)
    }

    /// Its cgroups in the isolators' hierarchies.
    pub fn isolator_cgroups(&self) -> Vec<PathBuf> {
        self.layout.isolator_cgroups(&self.container_id)
    }

    /// Everything of it that is the agent's to remove, children last.
    pub fn agents_cgroups(&self) -> Vec<PathBuf> {
        let mut cgroups = self.isolator_cgroups();
        cgroups.push(self.launcher_cgroup());
        if self.layout.layout() == CgroupLayout::V2 {
            cgroups.push(self.seat());
        }
        cgroups
    }

    /// Forks the launcher helper into the launcher's cgroup. It waits there.
    pub fn fork(&mut self, executor: &[&str]) -> Result<Process> {
        let info = json!({
            "arguments": executor,
            "environment": self.environment(),
            "working_directory": self.sandbox,
        });
        let procs = self.seat().join("cgroup.procs").display().to_string();
        let runtime_dir = self.runtime().display().to_string();
        let request = control::launch(&[procs], &runtime_dir, &info);
        let pid = control::ask(self.agent, &request)?
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
            .context("a pid")?;
        let helper = Process::of(pid).context("a helper that nobody has reaped")?;
        self.helper = Some(helper);
        Ok(helper)
    }

    /// Writes the helper's pid down: as a checkpoint, and in the runtime directory.
    pub fn record_pid(&self) -> Result<()> {
        let pid = self.helper()?.pid().to_string();
        for file in [
            self.meta().join("pids/forked.pid"),
            self.runtime().join("pid"),
        ] {
            // Never half a file.
            let new = file.with_extension("new");
            fs::write(&new, &pid).with_context(|| new.display().to_string())?;
            fs::rename(&new, &file).with_context(|| file.display().to_string())?;
        }
        Ok(())
    }

    /// Puts the helper into the isolators' cgroups. That it has died is no error:
    /// the agent learns of that otherwise.
    pub fn isolate(&self) -> Result<()> {
        let helper = self.helper()?;
        for cgroup in self.isolator_cgroups() {
            let entered = fs::write(cgroup.join("cgroup.procs"), helper.pid().to_string());
            if helper.alive() {
                entered.with_context(|| format!("entering {}", cgroup.display()))?;
            }
        }
        Ok(())
    }

    /// Lets the helper start the executor.
    pub fn release(&self) -> Result<()> {
        control::ask(self.agent, &control::release(self.helper()?.pid())).map(drop)
    }

    /// All of that, in the agent's order.
    pub fn launch(&mut self, executor: &[&str]) -> Result<()> {
        self.fork(executor)?;
        self.record_pid()?;
        self.isolate()?;
        self.release()
    }

    /// The launcher helper, once it was forked.
    pub fn helper(&self) -> Result<Process> {
        self.helper.context("the run has no helper yet")
    }

    /// Waits for the helper's child to be the executor.
    pub fn executor(&self) -> Result<Process> {
        let helper = self.helper()?;
        let told = format!("MESOS_DIRECTORY={}", self.sandbox.display());
        wait::until(EXECUTOR, "the stand-in's executor", || {
            // Between fork and exec it is the helper's copy.
            let mut children = helper.children().into_iter();
            children.find(|child| child.has_environment(&told))
        })
    }

    pub(super) fn meta(&self) -> PathBuf {
        self.layout
            .meta()
            .join(format!(
                "slaves/{AGENT_ID}/frameworks/{FRAMEWORK_ID}/executors"
            ))
            .join(&self.executor_id)
            .join("runs")
            .join(&self.container_id)
    }

    /// Where its processes sit in the launcher's hierarchy.
    pub fn seat(&self) -> PathBuf {
        self.layout.seat(&self.container_id)
    }

    /// What an agent tells its executors (src/slave/slave.cpp,
    /// `executorEnvironment`), and the scratch's mark.
    fn environment(&self) -> serde_json::Value {
        let sandbox = self.sandbox.display().to_string();
        json!({
            "LIBPROCESS_PORT": "0",
            "MESOS_AGENT_ENDPOINT": self.agent.to_string(),
            "MESOS_CHECKPOINT": "1",
            "MESOS_DIRECTORY": sandbox,
            "MESOS_EXECUTOR_ID": self.executor_id,
            "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD": "5secs",
            "MESOS_FRAMEWORK_ID": FRAMEWORK_ID,
            "MESOS_RECOVERY_TIMEOUT": "15mins",
            "MESOS_SANDBOX": sandbox,
            "MESOS_SLAVE_ID": AGENT_ID,
            "MESOS_SLAVE_PID": format!("slave(1)@{}", self.agent),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            self.mark.0: self.mark.1,
        })
    }
}
