//! The pod, by way of docker-compose.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use cleanup_tests::command::{self, system_program};
use cleanup_tests::mesos::pod::{self, Pod};

use crate::options::Options;
use crate::variable;

const UP: Duration = Duration::from_secs(300);
const STOP: Duration = Duration::from_secs(60);
const QUERY: Duration = Duration::from_secs(30);

pub struct RunningPod {
    file: PathBuf,
    containers: Vec<String>,
}

impl RunningPod {
    /// Writes the compose file and runs `docker-compose up -d`.
    pub fn up(options: &Options, sandbox: &Path, task_id: &str) -> Result<Self> {
        let container_id = sandbox.file_name().context("a sandbox has a name")?;
        let root = variable(pod::ROOT_VARIABLE)?;
        let pod = Pod {
            executor_id: variable("MESOS_EXECUTOR_ID")?,
            task_id: task_id.to_owned(),
            services: options.services,
            ignore_term: options.ignore_term,
            untagged: options.untagged,
            restart: options.restart.clone(),
            cgroup_parent: options
                .cgroup_parent
                .then(|| format!("/{root}/{}", container_id.to_string_lossy())),
        };
        let file = pod::file(sandbox);
        fs::create_dir(pod::directory(sandbox)).context("creating the pod's directory")?;
        fs::write(&file, pod.compose_file().to_string()).context("writing the compose file")?;
        let mut running = Self {
            file,
            containers: Vec::new(),
        };
        running.compose(&["up", "-d"], UP)?;
        let ids = running.compose(&["ps", "-q"], QUERY)?;
        running.containers = ids.lines().map(str::to_owned).collect();
        Ok(running)
    }

    /// One look at the pod, by a child that lives for a moment.
    pub fn watch(&self) {
        let mut inspect = Command::new(system_program("docker"));
        inspect
            .args(["inspect", "--format", "{{.State.Status}}"])
            .args(&self.containers);
        if let Err(error) = command::output(&mut inspect, QUERY) {
            eprintln!("pod-executor: {error:#}");
        }
    }

    pub fn stop(&self) -> Result<()> {
        self.compose(&["stop"], STOP).map(|_| ())
    }

    fn compose(&self, arguments: &[&str], limit: Duration) -> Result<String> {
        let mut compose = Command::new(system_program("docker-compose"));
        compose.arg("-f").arg(&self.file).args(arguments);
        command::output(&mut compose, limit)
    }
}
