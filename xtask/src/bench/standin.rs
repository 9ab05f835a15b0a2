//! A stand-in for a Mesos agent, as light as the daemon lets it be: the files,
//! cgroups and processes that an agent with the linux launcher would have, and
//! nothing that decides anything. It kills no pod, unlike an agent.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::{Dockerd, IMAGE};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::service::Service;
use cleanup_tests::wait;
use cleanup_tests::watcher::AgentPlace;

use super::agents::{Target, first_process};

const FRAMEWORK: &str = "slaves/stand-in-S0/frameworks/stand-in-0000";
/// Where the agent's isolators for CPU, memory and pids put an executor, and
/// where its launcher does.
const ISOLATED: [&str; 5] = ["freezer", "cpu", "cpuacct", "memory", "pids"];
const START: Duration = Duration::from_secs(10);
const DESTROY: Duration = Duration::from_secs(30);

/// Dropped from top to bottom.
#[derive(Debug)]
pub(super) struct StandIn {
    helpers: Mutex<HashMap<String, Service>>,
    pub(super) docker: Dockerd,
    work_dir: PathBuf,
    runtime_dir: PathBuf,
    /// The cgroups root in each hierarchy where executors sit.
    roots: Vec<PathBuf>,
    pub(super) scratch: Scratch,
}

impl StandIn {
    pub(super) fn start() -> Result<Self> {
        let scratch = Scratch::new("bench")?;
        let docker = Dockerd::start(&scratch)?;
        docker.import_busybox()?;
        let roots: Vec<PathBuf> = scratch
            .cgroup_dirs()
            .iter()
            .filter(|dir| is_isolated(dir))
            .cloned()
            .collect();
        ensure!(
            roots
                .iter()
                .any(|root| controllers(root).contains("freezer")),
            "the stand-in wants cgroup v1 with a freezer hierarchy"
        );
        for root in &roots {
            fs::create_dir_all(root).with_context(|| format!("creating {}", root.display()))?;
        }
        let work_dir = scratch.path().join("stand-in/work");
        let runtime_dir = scratch.path().join("stand-in/run");
        fs::create_dir_all(runtime_dir.join("containers"))?;
        fs::create_dir_all(work_dir.join("meta"))?;
        // An agent writes it last of all in its recovery.
        fs::write(work_dir.join("meta/boot_id"), random_uuid()?)?;
        Ok(Self {
            helpers: Mutex::default(),
            docker,
            work_dir,
            runtime_dir,
            roots,
            scratch,
        })
    }

    pub(super) fn place(&self) -> AgentPlace {
        AgentPlace {
            work_dir: self.work_dir.clone(),
            runtime_dir: self.runtime_dir.clone(),
            cgroups_root: self.scratch.name().to_owned(),
        }
    }

    pub(super) fn launch(&self) -> Result<Target> {
        let id = random_uuid()?;
        let sandbox = self
            .work_dir
            .join(FRAMEWORK)
            .join(format!("executors/{id}/runs/{id}"));
        fs::create_dir_all(&sandbox)?;
        let cgroups: Vec<PathBuf> = self.roots.iter().map(|root| root.join(&id)).collect();
        for cgroup in &cgroups {
            fs::create_dir(cgroup).with_context(|| format!("creating {}", cgroup.display()))?;
        }
        let helper = self.spawn_helper(&id, &sandbox, &cgroups)?;
        let executor = wait::until(START, "the stand-in's executor", || {
            let children = helper.process().children();
            // The shell's copy becomes `env`, then `sleep`.
            children
                .into_iter()
                .find(|child| child.command_line().starts_with("sleep "))
        })?;
        let container = self.runtime_dir.join("containers").join(&id);
        fs::create_dir(&container)?;
        fs::write(container.join("pid"), helper.pid().to_string())?;
        let docker_id = self.docker.docker(&[
            "run",
            "--detach",
            "--network=none",
            &format!("--cgroup-parent=/{}/{id}", self.scratch.name()),
            IMAGE,
            "sh",
            "-c",
            "trap 'exit 0' TERM; sleep 86400 & wait $!",
        ])?;
        self.helpers().insert(id.clone(), helper);
        Ok(Target {
            container_id: id,
            executor,
            first_process: first_process(&self.docker, &docker_id)?,
            docker_id,
        })
    }

    fn helpers(&self) -> MutexGuard<'_, HashMap<String, Service>> {
        self.helpers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shell in the run's cgroups, and `sleep` as its child with nothing but
    /// the variables that an agent gives to executors.
    fn spawn_helper(&self, id: &str, sandbox: &Path, cgroups: &[PathBuf]) -> Result<Service> {
        let enter: String = cgroups
            .iter()
            .map(|cgroup| format!("echo $$ > {}/cgroup.procs; ", cgroup.display()))
            .collect();
        let (name, value) = self.scratch.mark();
        let script = format!(
            "{enter}env -i {name}={value} MESOS_EXECUTOR_ID={id} MESOS_DIRECTORY={} sleep 86400 & wait",
            sandbox.display()
        );
        let mut helper = self.scratch.command("sh");
        helper.args(["-c", &script]);
        Service::spawn(helper, &self.scratch.path().join("stand-in.log"))
    }

    /// The agent's part after an executor's end, when the pod is gone: reaps the
    /// helper, removes what it had made, forgets the container.
    pub(super) fn destroy(&self, id: &str) -> Result<()> {
        let helper = self.helpers().remove(id);
        // Its drop kills and reaps it, unless it has followed its child.
        drop(helper);
        for root in &self.roots {
            let cgroup = root.join(id);
            let what = format!("{} to be empty", cgroup.display());
            // The daemon may be faster where it may.
            wait::until(DESTROY, what, || {
                (fs::remove_dir(&cgroup).is_ok() || !cgroup.exists()).then_some(())
            })?;
        }
        let container = self.runtime_dir.join("containers").join(id);
        fs::remove_dir_all(&container).with_context(|| format!("removing {}", container.display()))
    }
}

/// The mount's name: that of the controllers, in the layout every system has.
fn controllers(root: &Path) -> String {
    let mount = root.parent().and_then(Path::file_name).unwrap_or_default();
    mount.to_string_lossy().into_owned()
}

fn is_isolated(root: &Path) -> bool {
    controllers(root)
        .split(',')
        .any(|name| ISOLATED.contains(&name))
}

fn random_uuid() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid").context("a new UUID")?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executors_sit_where_an_agent_puts_them() {
        for (root, expected) in [
            ("/sys/fs/cgroup/freezer/name", true),
            ("/sys/fs/cgroup/cpu,cpuacct/name", true),
            ("/sys/fs/cgroup/cpuset/name", false),
            ("/sys/fs/cgroup/unified/name", false),
        ] {
            assert_eq!(is_isolated(Path::new(root)), expected, "{root}");
        }
    }
}
