//! What a pod looks like, for the executor that runs it and the tests that look
//! at it: file, project and labels as dce-go has them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::spec::ExecutorSpec;
use crate::bins;
use crate::docker::{Dockerd, IGNORING_TERM, IMAGE, OBEDIENT};
use crate::scratch::Scratch;

/// Tells `pod-executor` the first part of its containers' cgroup parent. dce-go
/// has `mesos` built in; tests have roots of their own.
pub const ROOT_VARIABLE: &str = "POD_CGROUPS_ROOT";

/// The services of one pod.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    pub executor_id: String,
    pub task_id: String,
    pub services: u32,
    /// That many of the services, from the first on, ignore SIGTERM.
    pub ignore_term: u32,
    /// That many of the services, from the last on, carry no labels.
    pub untagged: u32,
    /// Docker's restart policy; none if unset.
    pub restart: Option<String>,
    /// Docker's own choice if unset.
    pub cgroup_parent: Option<String>,
}

impl Pod {
    /// The compose file. JSON is YAML.
    pub fn compose_file(&self) -> Value {
        let services: Map<String, Value> = (0..self.services)
            .map(|index| (format!("service{index}"), self.service(index)))
            .collect();
        json!({ "version": "2.4", "services": services })
    }

    fn service(&self, index: u32) -> Value {
        let script = if index < self.ignore_term {
            IGNORING_TERM
        } else {
            OBEDIENT
        };
        let mut service = json!({
            "image": IMAGE,
            "command": ["sh", "-c", literal(script)],
            "network_mode": "none",
        });
        if index < self.services.saturating_sub(self.untagged) {
            service["labels"] = json!({
                "executorId": literal(&self.executor_id),
                "taskId": literal(&self.task_id),
            });
        }
        if let Some(policy) = &self.restart {
            service["restart"] = json!(policy);
        }
        if let Some(parent) = &self.cgroup_parent {
            service["cgroup_parent"] = json!(parent);
        }
        service
    }
}

/// Compose expands variables, unless the `$` is doubled.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// An executor that runs a pod: the program `pod-executor` with these options.
pub fn executor(
    scratch: &Scratch,
    docker: &Dockerd,
    executor_id: &str,
    options: &str,
) -> Result<ExecutorSpec> {
    let program = bins::find("pod-executor")?;
    Ok(ExecutorSpec {
        executor_id: executor_id.to_owned(),
        // `exec`, or some shells stay between helper and executor.
        command: format!("exec {} {options}", program.display()),
        env: vec![
            ("DOCKER_HOST".to_owned(), docker.host()),
            (ROOT_VARIABLE.to_owned(), scratch.name().to_owned()),
        ],
        ..ExecutorSpec::default()
    })
}

/// The directory of a pod's compose file: `poddata_<container id>`, from which
/// compose takes the project's name too.
pub fn directory(sandbox: &Path) -> PathBuf {
    let container_id = sandbox.file_name().unwrap_or_default().to_string_lossy();
    sandbox.join(format!("poddata_{container_id}"))
}

/// The compose file of a pod.
pub fn file(sandbox: &Path) -> PathBuf {
    directory(sandbox).join("docker-compose-generated.yml")
}

/// A `docker ps --filter` for the containers of a pod, tagged or not.
pub fn filter(sandbox: &Path) -> String {
    format!(
        "label=com.docker.compose.project.working_dir={}",
        directory(sandbox).display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compose_file_follows_the_options() {
        let pod = Pod {
            services: 3,
            ignore_term: 1,
            untagged: 1,
            cgroup_parent: Some("/root/id".to_owned()),
            ..Pod::default()
        };
        let services = &pod.compose_file()["services"];
        assert_eq!(
            services["service0"]["command"][2],
            "trap '' TERM; exec sleep 86400"
        );
        assert_eq!(
            services["service1"]["command"][2],
            "trap 'exit 0' TERM; sleep 86400 & wait $$!"
        );
        assert_eq!(services["service1"]["cgroup_parent"], "/root/id");
        assert!(services["service1"]["labels"].is_object());
        assert!(services["service2"].get("labels").is_none());
        assert!(services["service2"].get("restart").is_none());
    }
}
