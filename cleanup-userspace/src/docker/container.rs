//! What Docker says of one container: the part that never changes, and its state.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use bollard::models::{
    ContainerConfig, ContainerInspectResponse, HostConfig, RestartPolicyNameEnum,
};

use crate::mesos::ContainerId;

/// The immutable part of a container: safe to keep for as long as it exists.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerInfo {
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    /// As it was asked for; empty if Docker does not say.
    pub image: String,
    pub labels: HashMap<String, String>,
    /// `HostConfig.CgroupParent`; empty for Docker's default.
    pub cgroup_parent: String,
    /// Creation, in seconds since the epoch.
    pub created: f64,
    /// Made by a Mesos agent's own Docker containerizer.
    pub agents_own: bool,
    /// A stop of it is SIGTERM for its first process, and no more: no restart policy
    /// brings it back, it has no stop signal of its own, and no process that would outlive
    /// its first. (`docker update` can change the policy: a container that comes back is
    /// stopped through Docker.)
    pub stops_by_term: bool,
    /// Ids of the networks that it was attached to when it was looked at; those
    /// of one that has ended stay until it is removed.
    pub networks: Vec<String>,
}

/// Compose's name for a set of containers, networks and volumes. The pods of one
/// app may share it.
pub const PROJECT_LABEL: &str = "com.docker.compose.project";

/// A container with this label, set to `true`, is never stopped or removed.
pub const KEEP_LABEL: &str = "compose-cleanup.keep";

/// The changing part.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ContainerState {
    pub running: bool,
    /// Its first process, by the host's number. One that waits for its restart has none.
    pub first_process: Option<u32>,
    pub exit_code: i64,
    pub oom_killed: bool,
    /// End, in seconds since the epoch; 0 if it never ended.
    pub finished: f64,
}

impl ContainerInfo {
    /// Whether its owner wants it to outlive its executor.
    pub fn is_kept(&self) -> bool {
        self.labels
            .get(KEEP_LABEL)
            .is_some_and(|value| value == "true")
    }

    /// The compose project that it belongs to.
    pub fn project(&self) -> Option<&str> {
        self.labels.get(PROJECT_LABEL).map(String::as_str)
    }

    pub fn from_inspect(answer: &ContainerInspectResponse) -> Self {
        let networks = answer.network_settings.as_ref();
        let networks = networks.and_then(|settings| settings.networks.as_ref());
        let name = answer
            .name
            .as_deref()
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned();
        let config = answer.config.as_ref();
        let env = config
            .and_then(|config| config.env.as_deref())
            .unwrap_or_default();
        Self {
            id: answer.id.clone().unwrap_or_default(),
            agents_own: is_agents_own(&name)
                || env
                    .iter()
                    .any(|var| var.starts_with("MESOS_CONTAINER_NAME=")),
            stops_by_term: answer
                .host_config
                .as_ref()
                .is_some_and(|host| never_restarts(host) && ends_with_its_first_process(host))
                && config.is_some_and(has_usual_stop_signal),
            image: config
                .and_then(|config| config.image.clone())
                .unwrap_or_default(),
            labels: config
                .and_then(|config| config.labels.clone())
                .unwrap_or_default(),
            cgroup_parent: answer
                .host_config
                .as_ref()
                .and_then(|host| host.cgroup_parent.clone())
                .unwrap_or_default(),
            created: answer
                .created
                .as_ref()
                .map_or(0.0, |text| unix_seconds(&text.to_string())),
            networks: networks
                .into_iter()
                .flat_map(|networks| networks.values())
                .filter_map(|endpoint| endpoint.network_id.clone())
                .filter(|id| !id.is_empty())
                .collect(),
            name,
        }
    }
}

/// With a PID namespace of its own, nothing of a container outlives its first process.
fn ends_with_its_first_process(host: &HostConfig) -> bool {
    let mode = host.pid_mode.as_deref().unwrap_or_default();
    ["", "private"].contains(&mode)
}

fn never_restarts(host: &HostConfig) -> bool {
    let policy = host.restart_policy.as_ref().and_then(|policy| policy.name);
    // Docker gives every container one.
    matches!(
        policy,
        Some(RestartPolicyNameEnum::EMPTY | RestartPolicyNameEnum::NO)
    )
}

fn has_usual_stop_signal(config: &ContainerConfig) -> bool {
    let signal = config.stop_signal.as_deref().unwrap_or_default();
    ["", "SIGTERM", "TERM", "15"].contains(&signal)
}

impl ContainerState {
    pub fn from_inspect(answer: &ContainerInspectResponse) -> Self {
        let Some(state) = answer.state.as_ref() else {
            return Self::default();
        };
        Self {
            // A restarting container counts as running: only a stop ends it.
            running: state.running.unwrap_or(false) || state.restarting.unwrap_or(false),
            first_process: state
                .pid
                .and_then(|pid| u32::try_from(pid).ok())
                .filter(|pid| *pid > 0),
            exit_code: state.exit_code.unwrap_or(0),
            oom_killed: state.oom_killed.unwrap_or(false),
            finished: state
                .finished_at
                .as_ref()
                .map_or(0.0, |text| unix_seconds(&text.to_string())),
        }
    }
}

/// Whether a container of this name is managed by a Mesos agent: `mesos-<uuid>`
/// since 1.4, `mesos-<agent id>.<uuid>` before, `….executor` for an executor in
/// a container (src/slave/containerizer/docker.cpp). Such are never touched.
pub fn is_agents_own(name: &str) -> bool {
    let Some(rest) = name.trim_start_matches('/').strip_prefix("mesos-") else {
        return false;
    };
    let rest = rest.strip_suffix(".executor").unwrap_or(rest);
    let id = rest.rsplit_once('.').map_or(rest, |(_agent, id)| id);
    id.parse::<ContainerId>().is_ok()
}

/// Docker's zero time (year 1) and garbage are 0.
fn unix_seconds(rfc3339: &str) -> f64 {
    humantime::parse_rfc3339_weak(rfc3339)
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_agents_own_containers() {
        let id = "857fd7a0-df05-458b-bd72-f5c280790aa0";
        for own in [
            format!("mesos-{id}"),
            format!("/mesos-{id}"),
            format!("mesos-{id}.executor"),
            format!("mesos-8d6c-S1.{id}"),
            format!("mesos-8d6c-S1.{id}.executor"),
        ] {
            assert!(is_agents_own(&own), "{own}");
        }
        for other in [
            "mesos-foo".to_owned(),
            "mesos-".to_owned(),
            id.to_owned(),
            format!("mesos-{id}_web_1"),
            format!("x-mesos-{id}"),
        ] {
            assert!(!is_agents_own(&other), "{other}");
        }
    }

    #[test]
    fn docker_times() {
        assert_eq!(unix_seconds("1970-01-01T00:00:01.5Z"), 1.5);
        assert!((unix_seconds("2026-11-24T07:00:00.123456789Z") - 1_795_503_600.123).abs() < 0.01);
        assert_eq!(unix_seconds("0001-01-01T00:00:00Z"), 0.0);
        assert_eq!(unix_seconds("soon"), 0.0);
    }
}
