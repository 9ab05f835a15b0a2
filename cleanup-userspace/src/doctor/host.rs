//! What the daemon needs of its host: the same that it checks when it starts.

use std::path::Path;
use std::time::Duration;

use super::{Check, probe};
use crate::cgroup::{Hierarchies, Hierarchy};
use crate::config::Config;
use crate::daemon::preflight::{self, NAMESPACES};
use crate::docker::Docker;
use crate::mesos::discover;
use crate::run_dir::RunLock;

/// Docker answers in milliseconds or not at all.
const DOCKER_ANSWERS: Duration = Duration::from_secs(5);

/// All of them.
pub async fn checks(config: &Config) -> Vec<Check> {
    let mut checks = vec![root()];
    checks.extend(NAMESPACES.iter().map(namespace));
    checks.extend(probe::checks(config.probe));
    checks.push(cgroups());
    checks.extend(docker(config).await);
    checks.extend(agents(config));
    checks.push(run_dir(config));
    checks
}

fn root() -> Check {
    const WHAT: &str = "root";
    match preflight::root() {
        Ok(()) => Check::ok(WHAT, "runs as root"),
        Err(error) => Check::refused(WHAT, error.to_string(), "run it as root"),
    }
}

fn namespace(namespace: &preflight::Namespace) -> Check {
    match preflight::namespace(namespace) {
        Ok(()) => Check::ok(namespace.check, "the host's"),
        Err(error) => Check::refused(
            namespace.check,
            format!("{error:#}"),
            format!("run it {}", namespace.how),
        ),
    }
}

fn cgroups() -> Check {
    const WHAT: &str = "cgroups";
    match Hierarchies::discover() {
        Ok(hierarchies) => {
            let names: Vec<String> = hierarchies.iter().map(Hierarchy::name).collect();
            let found = format!("{}: {}", hierarchies.mode(), names.join(" "));
            if hierarchies.freezer().is_none() && hierarchies.unified().is_none() {
                Check::refused(
                    WHAT,
                    found,
                    "mount the freezer hierarchy or cgroup2, whichever the agent's launcher uses",
                )
            } else {
                Check::ok(WHAT, found)
            }
        }
        Err(error) => Check::refused(WHAT, format!("{error:#}"), "mount cgroup v1 or v2"),
    }
}

async fn docker(config: &Config) -> Vec<Check> {
    const WHAT: &str = "docker";
    const DRIVER: &str = "docker cgroups";
    let socket = config.docker.socket.display();
    let asked = async {
        Docker::new(
            &config.docker.socket,
            config.docker.timeout.min(DOCKER_ANSWERS),
        )?
        .facts()
        .await
    };
    let facts = match asked.await {
        Ok(facts) => facts,
        Err(error) => {
            return vec![Check::warning(
                WHAT,
                error.to_string(),
                "start Docker, or name its socket ([docker] socket); the daemon waits for it",
            )];
        }
    };
    let found = Check::ok(WHAT, format!("{} at {socket}", facts.version));
    let driver = match facts.cgroup_driver.as_str() {
        "cgroupfs" => Check::ok(DRIVER, "driver cgroupfs"),
        other => Check::warning(
            DRIVER,
            format!(
                "driver {other}: containers lie in slices, not beneath their executor's cgroup"
            ),
            "pods are joined by their compose labels; for the stronger key use \
             \"exec-opts\": [\"native.cgroupdriver=cgroupfs\"]",
        ),
    };
    vec![found, driver]
}

fn agents(config: &Config) -> Vec<Check> {
    const WHAT: &str = "mesos agent";
    if config.agents.is_empty() {
        let found = discover();
        if found.is_empty() {
            return vec![Check::warning(
                WHAT,
                "none is configured, and none runs",
                "name its directories in [[agents]], or start the agent first",
            )];
        }
        return found
            .iter()
            .map(|agent| {
                Check::ok(
                    WHAT,
                    format!(
                        "found: work_dir {}, runtime_dir {}, cgroups_root {}",
                        agent.work_dir.display(),
                        agent.runtime_dir.display(),
                        agent.cgroups_root
                    ),
                )
            })
            .collect();
    }
    let missing = |dir: &Path| !dir.is_dir();
    config
        .agents
        .iter()
        .map(|agent| {
            let absent: Vec<String> = [&agent.work_dir, &agent.runtime_dir]
                .into_iter()
                .filter(|dir| missing(dir))
                .map(|dir| dir.display().to_string())
                .collect();
            if absent.is_empty() {
                Check::ok(
                    WHAT,
                    format!("configured: work_dir {}", agent.work_dir.display()),
                )
            } else {
                Check::warning(
                    WHAT,
                    format!("configured, but not there: {}", absent.join(", ")),
                    "compare with the agent's --work_dir and --runtime_dir; a new agent makes them",
                )
            }
        })
        .collect()
}

fn run_dir(config: &Config) -> Check {
    const WHAT: &str = "at work";
    match RunLock::occupant(&config.run_dir) {
        Some(occupant) => Check::ok(WHAT, occupant.to_string()),
        None => Check::warning(
            WHAT,
            format!("nobody (by the lock in {})", config.run_dir.display()),
            "start `compose-cleanup watch`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[tokio::test]
    async fn every_check_gives_one_verdict_and_refusals_have_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            run_dir: dir.path().join("run"),
            docker: crate::config::DockerConfig {
                socket: dir.path().join("none.sock"),
                ..Config::default().docker
            },
            agents: vec![crate::config::AgentConfig {
                work_dir: dir.path().join("work"),
                runtime_dir: dir.path().to_owned(),
                cgroups_root: crate::cgroup::CgroupsRoot::default(),
            }],
            ..Config::default()
        };
        let checks = checks(&config).await;
        let of = |name: &str| checks.iter().find(|check| check.name == name).unwrap();
        for check in &checks {
            assert_eq!(
                check.remedy.is_none(),
                check.verdict == Verdict::Ok,
                "{check:?}"
            );
        }
        assert_eq!(of("docker").verdict, Verdict::Warning);
        assert!(of("docker").detail.contains("none.sock"));
        assert_eq!(of("mesos agent").verdict, Verdict::Warning);
        assert!(of("mesos agent").detail.ends_with("/work"));
        assert_eq!(of("cgroups").verdict, Verdict::Ok);
        assert_eq!(of("at work").verdict, Verdict::Warning);
        // It made nothing.
        assert!(!config.run_dir.exists());
    }
}
