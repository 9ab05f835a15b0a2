//! Containers within an executor's container, by the agent's operator API: what
//! the default executor makes of the tasks of a group, and debug sessions.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::agent::Agent;
use super::api::{self, AGENT};
use super::executors::ExecutorView;
use crate::process::Process;
use crate::{log, wait};

const LAUNCH: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(60);

/// A nested container of a living executor. The agent destroys it with the
/// executor's container; dropping this does nothing.
#[derive(Debug)]
pub struct Nested {
    endpoint: String,
    parent: String,
    id: String,
    /// In the agent's runtime directory, until the parent is destroyed.
    record: PathBuf,
    sandbox: PathBuf,
}

impl Nested {
    /// Launches `command` (for `sh -c`) in a container of this id within the
    /// executor's, with more of its environment, and waits until it runs.
    pub fn launch(
        agent: &Agent,
        parent: &ExecutorView,
        id: &str,
        command: &str,
        env: &[(String, String)],
    ) -> Result<Self> {
        let nested = Self::new(agent, parent, id);
        let body = nested.body("LAUNCH_NESTED_CONTAINER", command, env);
        api::ask(&nested.endpoint, AGENT, &body, LAUNCH)
            .with_context(|| log::tail(&agent.log_path(), 20))?;
        wait::until(LAUNCH, format_args!("nested container {id}"), || {
            nested.process()
        })
        .with_context(|| log::tail(&agent.log_path(), 20))?;
        Ok(nested)
    }

    /// A debug container, as health checks and `mesos task exec` have it. The
    /// answer is what the agent says of it: agents of `mesos-cluster` start the
    /// container, then refuse to attach anyone to it, and destroy it.
    pub fn debug(
        agent: &Agent,
        parent: &ExecutorView,
        id: &str,
        command: &str,
    ) -> (Self, Result<Value>) {
        let nested = Self::new(agent, parent, id);
        let body = nested.body("LAUNCH_NESTED_CONTAINER_SESSION", command, &[]);
        let answer = api::ask(&nested.endpoint, AGENT, &body, LAUNCH);
        (nested, answer)
    }

    fn new(agent: &Agent, parent: &ExecutorView, id: &str) -> Self {
        Self {
            endpoint: agent.endpoint().to_owned(),
            parent: parent.container_id().to_owned(),
            id: id.to_owned(),
            record: agent
                .runtime_dir()
                .join("containers")
                .join(parent.container_id())
                .join("containers")
                .join(id),
            sandbox: parent.sandbox().join("containers").join(id),
        }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its directory within the executor's.
    pub fn sandbox(&self) -> &PathBuf {
        &self.sandbox
    }

    /// What the agent's runtime directory has of it.
    pub fn record(&self) -> &PathBuf {
        &self.record
    }

    /// The launcher helper of the nested container.
    pub fn helper(&self) -> Option<Process> {
        let pid = fs::read_to_string(self.record.join("pid")).ok()?;
        Process::of(pid.trim().parse().ok()?).filter(Process::alive)
    }

    /// What the helper started.
    pub fn process(&self) -> Option<Process> {
        self.helper()?.children().pop().filter(Process::alive)
    }

    /// Waits for its end, as the agent sees it: the exit status of `wait(2)`.
    pub fn wait(&self) -> Result<i64> {
        let body = json!({
            "type": "WAIT_NESTED_CONTAINER",
            "wait_nested_container": { "container_id": self.container_id() },
        });
        let answer = api::ask(&self.endpoint, AGENT, &body, END)?;
        answer["wait_nested_container"]["exit_status"]
            .as_i64()
            .with_context(|| format!("no exit status: {answer}"))
    }

    /// Has the agent kill it.
    pub fn kill(&self) -> Result<()> {
        let body = json!({
            "type": "KILL_NESTED_CONTAINER",
            "kill_nested_container": { "container_id": self.container_id() },
        });
        api::ask(&self.endpoint, AGENT, &body, LAUNCH).map(|_| ())
    }

    fn container_id(&self) -> Value {
        json!({ "value": self.id, "parent": { "value": self.parent } })
    }

    fn body(&self, kind: &str, command: &str, env: &[(String, String)]) -> Value {
        let variables: Vec<_> = env
            .iter()
            .map(|(name, value)| json!({ "name": name, "value": value }))
            .collect();
        json!({
            "type": kind,
            kind.to_ascii_lowercase(): {
                "container_id": self.container_id(),
                "command": { "value": command, "environment": { "variables": variables } },
            },
        })
    }
}
