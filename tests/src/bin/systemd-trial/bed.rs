//! The guest as the steps use it: its Docker, a stand-in for an agent, the unit.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::command;
use cleanup_tests::docker::{IMAGE, OBEDIENT};
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent, StandInRun};
use cleanup_tests::process::Process;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::{random, wait};
use rustix::process::Signal;

pub(crate) const UNIT: &str = "compose-cleanup.service";
pub(crate) const CONFIG: &str = "/etc/compose-cleanup/config.toml";
pub(crate) const METRICS: &str = "127.0.0.1:9464";
/// Of a tool that may have to start half the machine; nothing here is fast.
const TOOL: Duration = Duration::from_secs(240);
const LONG: Duration = Duration::from_secs(120);
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
        let text = format!(
            "mode = {mode:?}\nprobe = \"ebpf\"\ngrace = \"3s\"\nsettle = \"300ms\"\n\
             metrics.listen = {METRICS:?}\n\
             [[agents]]\nwork_dir = {:?}\nruntime_dir = {:?}\ncgroups_root = {:?}\n",
            place.work_dir.display(),
            place.runtime_dir.display(),
            place.cgroups_root
        );
        fs::write(CONFIG, text).context(CONFIG)
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

    /// Waits until the pod is stopped and, the agent being done with it, nothing is left of it.
    pub(crate) fn wait_clean(&self, pod: &Pod) -> Result<()> {
        wait_stopped(&pod.docker_id)?;
        wait::try_until(LONG, "the run's cgroups to go", || {
            Ok(self.cgroups_of(&pod.run).is_empty().then_some(()))
        })
        .with_context(|| format!("left: {:?}", self.cgroups_of(&pod.run)))
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

/// Runs a program that must succeed.
pub(crate) fn tool(program: &str, arguments: &[&str]) -> Result<String> {
    command::output(Command::new(program).args(arguments), TOOL)
}

/// Runs a program for what it says, whatever that is.
pub(crate) fn tell(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) => {
            let [out, err] = [output.stdout, output.stderr];
            format!(
                "{}{}",
                String::from_utf8_lossy(&out),
                String::from_utf8_lossy(&err)
            )
        }
        Err(error) => format!("{program}: {error}"),
    }
}

/// A property of a unit, as `systemctl show` has it.
pub(crate) fn property(unit: &str, name: &str) -> Result<String> {
    let value = tool("systemctl", &["show", "--value", "-p", name, unit])?;
    Ok(value.trim().to_owned())
}

pub(crate) fn expect(unit: &str, name: &str, value: &str) -> Result<()> {
    let found = property(unit, name)?;
    ensure!(
        found == value,
        "{name} of {unit} is {found:?}, not {value:?}"
    );
    Ok(())
}

pub(crate) fn wait_for(unit: &str, name: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
    wait::try_until(LONG, format_args!("{name} of {unit}"), || {
        let found = property(unit, name)?;
        Ok(wanted(&found).then_some(found))
    })
}

/// What the unit has logged in this boot.
pub(crate) fn log() -> Result<String> {
    tool("journalctl", &["--no-pager", "-b", "-o", "cat", "-u", UNIT])
}

pub(crate) fn wait_logged(words: &[&str]) -> Result<()> {
    wait::try_until(LONG, format_args!("a line with {words:?}"), || {
        let log = log()?;
        let found = log
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)));
        Ok(found.then_some(()))
    })
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
