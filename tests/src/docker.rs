//! A Docker daemon of one's own. The host's, if there is one, is never used.

pub mod api;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::command::{self, system_program};
use crate::process::Process;
use crate::scratch::Scratch;
use crate::service::Service;
use crate::{log, mounts, wait};

/// The image that [`Dockerd::import_busybox`] makes.
pub const IMAGE: &str = "pod:test";

/// The script of a container that exits at SIGTERM. The shell, not `sleep`, is its
/// first process, and has no default action for signals.
pub const OBEDIENT: &str = "trap 'exit 0' TERM; sleep 86400 & wait $!";
/// Of one that has to be killed.
pub const IGNORING_TERM: &str = "trap '' TERM; exec sleep 86400";

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(20);
const CLIENT: Duration = Duration::from_secs(60);
const PING: Duration = Duration::from_secs(1);
/// A path of a Unix socket, with the zero at its end.
const SOCKET_PATH_MAX: usize = 108;

/// A private dockerd (cgroupfs driver, no bridge, no iptables), with its data,
/// socket and log beneath the scratch directory.
#[derive(Debug)]
pub struct Dockerd {
    dir: PathBuf,
    cgroup_parent: String,
    mark: (&'static str, String),
    options: Vec<String>,
    service: Option<Service>,
}

impl Dockerd {
    /// Starts a daemon and returns when it answers. One per scratch.
    pub fn start(scratch: &Scratch) -> Result<Self> {
        Self::start_with(scratch, &[])
    }

    /// With more options for dockerd, such as `--live-restore`.
    pub fn start_with(scratch: &Scratch, options: &[&str]) -> Result<Self> {
        let (name, value) = scratch.mark();
        let mut daemon = Self {
            dir: scratch.path().join("docker"),
            cgroup_parent: scratch.docker_cgroup(),
            mark: (name, value.to_owned()),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            service: None,
        };
        fs::create_dir(&daemon.dir).context("creating the daemon's directory")?;
        ensure!(
            daemon.socket().as_os_str().len() < SOCKET_PATH_MAX,
            "{} is too long for a socket; set TMPDIR to something shorter",
            daemon.socket().display()
        );
        daemon.launch()?;
        Ok(daemon)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    /// Value of `DOCKER_HOST` for clients of this daemon.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Of dockerd; `None` between [`Self::kill9`] and [`Self::restart`].
    pub fn pid(&self) -> Option<i32> {
        self.service.as_ref().map(Service::pid)
    }

    /// A client of this daemon: `docker`, `docker-compose`.
    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new(system_program(program));
        command.env("DOCKER_HOST", self.host());
        command
    }

    /// Starts a container of [`IMAGE`] that runs a shell script, with more options of
    /// `docker run`. Returns its id.
    pub fn run(&self, options: &[&str], script: &str) -> Result<String> {
        let run = ["run", "--detach", "--network=none"];
        self.docker(&[&run[..], options, &[IMAGE, "sh", "-c", script]].concat())
    }

    /// [`Self::run`] beneath a cgroup.
    pub fn run_beneath(
        &self,
        cgroup_parent: &str,
        options: &[&str],
        script: &str,
    ) -> Result<String> {
        let parent = format!("--cgroup-parent={cgroup_parent}");
        self.run(&[&[&*parent], options].concat(), script)
    }

    /// Runs `docker …` and returns its output without the last line's end.
    pub fn docker(&self, arguments: &[&str]) -> Result<String> {
        self.docker_within(CLIENT, arguments)
    }

    /// Makes the image [`IMAGE`]: busybox and links for all that it can do.
    pub fn import_busybox(&self) -> Result<()> {
        let root = self.dir.join("rootfs");
        let bin = root.join("bin");
        fs::create_dir_all(&bin)?;
        let busybox = command::program_in_path("busybox");
        fs::copy(&busybox, bin.join("busybox"))
            .with_context(|| format!("{} (Debian: busybox-static)", busybox.display()))?;
        for applet in command::output(Command::new(&busybox).arg("--list"), CLIENT)?.lines() {
            if applet != "busybox" {
                symlink("busybox", bin.join(applet))?;
            }
        }
        let archive = self.dir.join("rootfs.tar");
        command::output(
            Command::new("tar")
                .arg("-cf")
                .arg(&archive)
                .arg("-C")
                .arg(&root)
                .arg("."),
            CLIENT,
        )?;
        self.docker(&["import", &archive.to_string_lossy(), IMAGE])?;
        fs::remove_file(archive)?;
        fs::remove_dir_all(root)?;
        Ok(())
    }

    /// What the daemon knows of a container.
    pub fn inspect(&self, id: &str) -> Result<Value> {
        let text = self.docker(&["container", "inspect", id])?;
        let mut found: Vec<Value> = serde_json::from_str(&text).context("answer of inspect")?;
        found.pop().with_context(|| format!("no container {id}"))
    }

    /// Full ids of the running containers.
    pub fn running(&self) -> Result<Vec<String>> {
        self.list(&[])
    }

    /// Full ids of the containers, running or not.
    pub fn containers(&self) -> Result<Vec<String>> {
        self.list(&["--all"])
    }

    /// Full ids of the running containers that fit a `docker ps --filter`.
    pub fn running_with(&self, filter: &str) -> Result<Vec<String>> {
        self.list(&["--filter", filter])
    }

    /// Kills the daemon as a crash would, and with it its containerd;
    /// containers live on.
    pub fn kill9(&mut self) -> Result<()> {
        let Some(mut service) = self.service.take() else {
            return Ok(());
        };
        let pid_file = self.dir.join("exec/containerd/containerd.pid");
        let containerd = fs::read_to_string(&pid_file).context("containerd's pid")?;
        let containerd = Process::of(containerd.trim().parse()?);
        service.kill()?;
        if let Some(containerd) = containerd {
            containerd.wait_gone(STOP)?;
        }
        // A zombie that init is slow to reap would pass for a running
        // containerd at the next start.
        fs::remove_file(pid_file).context("removing containerd's pid")
    }

    /// Starts the daemon again on its data, after a clean stop if it runs.
    pub fn restart(&mut self) -> Result<()> {
        if let Some(mut service) = self.service.take() {
            service.stop(STOP)?;
        }
        self.launch()
    }

    /// Makes the daemon hang: it accepts connections and never answers.
    pub fn pause(&self) -> Result<()> {
        self.service()?.signal(Signal::STOP)
    }

    pub fn resume(&self) -> Result<()> {
        self.service()?.signal(Signal::CONT)
    }

    fn service(&self) -> Result<&Service> {
        self.service.as_ref().context("dockerd was killed")
    }

    fn launch(&mut self) -> Result<()> {
        let (name, value) = &self.mark;
        let mut command = Command::new(system_program("dockerd"));
        command
            .env(name, value)
            // A containerd that is slow to answer is made to dump its stacks there.
            .env("TMPDIR", &self.dir)
            .args(["--iptables=false", "--ip-forward=false", "--bridge=none"])
            .arg(format!("--cgroup-parent=/{}", self.cgroup_parent))
            .arg("--data-root")
            .arg(self.dir.join("data"))
            .arg("--exec-root")
            .arg(self.dir.join("exec"))
            .arg("--pidfile")
            .arg(self.dir.join("pid"))
            .args(["--host", &self.host()])
            .args(&self.options);
        let log = self.log_path();
        let mut service = Service::spawn(command, &log)?;
        let socket = self.socket();
        wait::try_until(START, "dockerd to answer", || {
            if let Some(status) = service.ended() {
                bail!("dockerd ended: {status}");
            }
            Ok(answers(&socket).then_some(()))
        })
        .with_context(|| log::tail(&log, 20))?;
        self.service = Some(service);
        Ok(())
    }

    fn docker_within(&self, limit: Duration, arguments: &[&str]) -> Result<String> {
        let text = command::output(self.client("docker").args(arguments), limit)
            .with_context(|| log::tail(&self.log_path(), 10))?;
        Ok(text.trim_end().to_owned())
    }

    fn list(&self, options: &[&str]) -> Result<Vec<String>> {
        let arguments = [&["ps", "--quiet", "--no-trunc"], options].concat();
        Ok(self
            .docker(&arguments)?
            .lines()
            .map(str::to_owned)
            .collect())
    }

    fn remove_containers(&self) -> Result<()> {
        let ids = self.containers()?;
        if !ids.is_empty() {
            let mut arguments = vec!["rm", "--force", "--volumes"];
            arguments.extend(ids.iter().map(String::as_str));
            self.docker_within(STOP, &arguments)?;
        }
        Ok(())
    }

    /// A network's bridge is the host's, and would outlive the daemon.
    fn remove_networks(&self) -> Result<()> {
        self.docker_within(STOP, &["network", "prune", "--force"])
            .map(drop)
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if let Some(mut service) = self.service.take() {
            let stopped = wait::shielded(|| {
                service.signal(Signal::CONT)?;
                self.remove_containers()?;
                self.remove_networks()?;
                service.stop(STOP)
            });
            // What still runs is killed with the scratch.
            if let Err(error) = stopped {
                eprintln!("stopping dockerd: {error:#}");
            }
        }
        if let Err(error) = mounts::unmount_beneath(&self.dir) {
            eprintln!("{error:#}");
        }
    }
}

fn answers(socket: &Path) -> bool {
    let ping = || -> std::io::Result<bool> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PING))?;
        stream.set_write_timeout(Some(PING))?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status.ends_with(b" 200"))
    };
    ping().unwrap_or(false)
}
