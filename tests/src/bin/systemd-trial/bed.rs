//! The guest as the steps use it: its Docker, a stand-in for an agent, the unit.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::{IMAGE, OBEDIENT};
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent, StandInRun};
use cleanup_tests::process::Process;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::{random, wait};
use rustix::process::Signal;
use serde_json::Value;

use crate::account::{Work, wait_worked};
use crate::unit::{LONG, tool};

pub(crate) const CONFIG: &str = "/etc/compose-cleanup/config.toml";
pub(crate) const METRICS: &str = "127.0.0.1:9464";
const DOCKER_CONFIG: &str = "/etc/docker/daemon.json";
const WORKING_DIR: &str = "com.docker.compose.project.working_dir";
/// Has no rights of root's.
const NOBODY: u32 = 65_534;

#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) agent: StandInAgent,
    pub(crate) scratch: Scratch,
    /// Docker makes its cgroups through systemd: then a pod's lie in a slice, and not
    /// beneath its executor's.
    by_systemd: bool,
}

/// An executor and its pod of one container.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) run: StandInRun,
    pub(crate) docker_id: String,
}

impl Bed {
    pub(crate) fn make() -> Result<Self> {
        tool("systemctl", &["start", "docker.service"])?;
        import_image()?;
        let driver = tool("docker", &["info", "--format", "{{.CgroupDriver}}"])?;
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let layout = if unified {
            CgroupLayout::V2
        } else {
            CgroupLayout::V1
        };
        let scratch = Scratch::new("systemd")?;
        Ok(Self {
            agent: StandInAgent::start(&scratch, layout)?,
            scratch,
            by_systemd: driver.trim() == "systemd",
        })
    }

    /// For the log.
    pub(crate) fn describe(&self) -> Result<String> {
        let version = tool("systemctl", &["--version"])?;
        let format = "Docker {{.ServerVersion}}, cgroup driver {{.CgroupDriver}}, cgroup v{{.CgroupVersion}}";
        let docker = tool("docker", &["info", "--format", format])?;
        let systemd = version.lines().next().unwrap_or_default();
        Ok(format!("{systemd}; {}", docker.trim()))
    }

    /// Writes the daemon's configuration.
    pub(crate) fn configure(&self, mode: &str) -> Result<()> {
        let place = self.agent.place();
        let agent = format!(
            "[[agents]]\nwork_dir = {:?}\nruntime_dir = {:?}\ncgroups_root = {:?}\n",
            place.work_dir.display(),
            place.runtime_dir.display(),
            place.cgroups_root
        );
        fs::write(CONFIG, settings(mode) + &agent).context(CONFIG)
    }

    /// The same, and no word of an agent.
    pub(crate) fn configure_without_agent(&self, mode: &str) -> Result<()> {
        fs::write(CONFIG, settings(mode)).context(CONFIG)
    }

    /// An executor with a pod as users of such a Docker have it.
    pub(crate) fn pod(&self, executor_id: &str, script: &str) -> Result<Pod> {
        let run = self.agent.launch(executor_id)?;
        let place = if self.by_systemd {
            format!("--label={WORKING_DIR}={}", run.sandbox().display())
        } else {
            format!("--cgroup-parent={}", run.cgroup_parent())
        };
        let options = ["run", "--detach", "--network=none", &place, IMAGE];
        let arguments = [&options[..], &["sh", "-c", script]].concat();
        let docker_id = tool("docker", &arguments)?.trim().to_owned();
        Ok(Pod { run, docker_id })
    }

    pub(crate) fn obedient_pod(&self, executor_id: &str) -> Result<Pod> {
        self.pod(executor_id, OBEDIENT)
    }

    /// The run's directories that are left, in every hierarchy.
    pub(crate) fn cgroups_of(&self, run: &StandInRun) -> Vec<String> {
        let roots = self.scratch.cgroup_dirs().iter();
        roots
            .map(|root| root.join(run.container_id()))
            .filter(|dir| dir.exists())
            .map(|dir| dir.display().to_string())
            .collect()
    }

    /// Waits until the case is over, by the daemon's own work, and nothing is left of the run.
    pub(crate) fn wait_clean(&self, pod: &Pod, work: &Work) -> Result<()> {
        wait_worked(pod, work)?;
        ensure!(!runs(&pod.docker_id)?, "its container runs");
        let left = self.cgroups_of(&pod.run);
        ensure!(left.is_empty(), "the case is over, and left: {left:?}");
        Ok(())
    }

    /// How many directories of a run the daemon finds when a living agent is done: with a
    /// driver of its own, Docker makes some in hierarchies that are not the agent's.
    pub(crate) fn dockers_cgroups(&self) -> u64 {
        u64::from(!self.by_systemd)
    }
}

impl Pod {
    pub(crate) fn kill_executor(&self) -> Result<()> {
        self.run.executor()?.signal(Signal::KILL)
    }

    /// A process of another user in the executor's own cgroup.
    pub(crate) fn leftover(&self) -> Result<Process> {
        let child = Command::new("sleep")
            .arg("86400")
            .uid(NOBODY)
            .spawn()
            .context("sleep")?;
        let seat = self.run.seat().join("cgroup.procs");
        fs::write(&seat, child.id().to_string()).with_context(|| seat.display().to_string())?;
        Process::of(child.id().cast_signed()).context("the leftover process")
    }
}

/// A grace that no emulated processor is too slow for: a pod that obeys ends within it.
fn settings(mode: &str) -> String {
    format!(
        "mode = {mode:?}\nprobe = \"ebpf\"\ngrace = \"10s\"\nsettle = \"300ms\"\n\
         metrics.listen = {METRICS:?}\n"
    )
}

/// From now on containers run on while Docker does not.
pub(crate) fn let_containers_outlive_docker() -> Result<()> {
    let text = fs::read_to_string(DOCKER_CONFIG).context(DOCKER_CONFIG)?;
    let mut config: Value = serde_json::from_str(&text).context(DOCKER_CONFIG)?;
    config["live-restore"] = Value::Bool(true);
    fs::write(DOCKER_CONFIG, config.to_string()).context(DOCKER_CONFIG)?;
    tool("systemctl", &["reload", "docker.service"])?;
    wait::try_until(LONG, "Docker to take its configuration over", || {
        let told = tool("docker", &["info", "--format", "{{.LiveRestoreEnabled}}"])?;
        Ok((told.trim() == "true").then_some(()))
    })
}

/// The container's first process.
pub(crate) fn process_of(docker_id: &str) -> Result<Process> {
    let pid = tool(
        "docker",
        &["inspect", "--format", "{{.State.Pid}}", docker_id],
    )?;
    let pid = pid
        .trim()
        .parse()
        .with_context(|| format!("a pid: {pid}"))?;
    Process::of(pid).context("the container's process")
}

pub(crate) fn runs(docker_id: &str) -> Result<bool> {
    let format = ["inspect", "--format", "{{.State.Running}}", docker_id];
    Ok(tool("docker", &format)?.trim() == "true")
}

pub(crate) fn wait_stopped(docker_id: &str) -> Result<()> {
    wait::try_until(LONG, "the container to be stopped", || {
        Ok((!runs(docker_id)?).then_some(()))
    })
}

/// [`IMAGE`], made of the guest's busybox.
fn import_image() -> Result<()> {
    let root = Path::new("/tmp/image");
    let bin = root.join("bin");
    fs::create_dir_all(&bin).context("an image's directory")?;
    fs::copy("/bin/busybox", bin.join("busybox")).context("busybox")?;
    for applet in ["sh", "sleep"] {
        symlink("busybox", bin.join(applet)).context("an applet")?;
    }
    tool("tar", &["-C", "/tmp/image", "-cf", "/tmp/image.tar", "."])?;
    tool("docker", &["import", "/tmp/image.tar", IMAGE])?;
    Ok(())
}

/// A request as the hook module writes it.
pub(crate) fn ask_through_the_inbox(run: &StandInRun) -> Result<()> {
    let hex = |text: &str| -> String { text.bytes().map(|byte| format!("{byte:02x}")).collect() };
    let text = format!(
        "compose-cleanup-request 1\nframework_id={}\nexecutor_id={}\ntime_ns=1\nagent_pid=1\n\
         mesos=1.11.0\nend\n",
        hex(run.framework_id()),
        hex(run.executor_id())
    );
    let inbox = Path::new("/run/compose-cleanup/inbox");
    let written = inbox.join(format!(".tmp-{}", random::uuid()?));
    fs::write(&written, text).with_context(|| written.display().to_string())?;
    fs::rename(&written, inbox.join("1-1-1.request")).context("a request")
}
