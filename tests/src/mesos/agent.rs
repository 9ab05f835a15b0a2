//! A Mesos agent, with its master in the same process.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::json;

use super::api;
use super::runtime::Runtime;
use crate::cgroups::CgroupRoot;
use crate::process;
use crate::scratch::Scratch;
use crate::service::Service;
use crate::{bins, log, wait};

/// Tells `mesos-containerizer` where libmesos is.
pub const LIB_DIR_VARIABLE: &str = "CLEANUP_TESTS_LIBMESOS";

/// Marks all processes that an agent starts, by its endpoint.
const MARK: &str = "CLEANUP_TESTS_AGENT";

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(10);
const PROBE: Duration = Duration::from_millis(500);
const METRICS: Duration = Duration::from_secs(10);

/// What the local mode makes of `$TMPDIR`.
const WORK_DIR: &str = "mesos/work/agents/0/work";
const RUNTIME_DIR: &str = "mesos/work/agents/0/run";

/// Errors that every agent in this mode logs.
const NOISE: &[&str] = &["Listening on OOM events failed"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// Executors in cgroups of their own, killed through the freezer.
    Linux,
    /// Executors in sessions of their own.
    Posix,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registry {
    /// Forgotten at the master's end: agents come back as new ones.
    InMemory,
    /// On disk, for tests that restart the master.
    Replicated,
}

/// A hook module for the agent to load.
#[derive(Debug, Clone)]
pub struct HookModule {
    pub library: PathBuf,
    /// Symbol of the module, which is its name in `--hooks` too.
    pub name: String,
    pub parameters: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
pub struct AgentOptions {
    pub launcher: Launcher,
    pub isolation: String,
    pub registry: Registry,
    pub hook: Option<HookModule>,
    /// Its process is called `mesos-agent` and shows the directories that it uses,
    /// as a released one that was told them. Ours is called otherwise: most of what
    /// is found out about an agent must not need its name.
    pub known_by_name: bool,
    /// More settings, `MESOS_…`, for master and agent; they win over ours.
    pub env: Vec<(String, String)>,
}

impl AgentOptions {
    /// The posix launcher, which knows no cgroups.
    pub fn posix() -> Self {
        Self {
            launcher: Launcher::Posix,
            isolation: "posix/cpu,posix/mem".to_owned(),
            ..Self::default()
        }
    }
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            launcher: Launcher::Linux,
            isolation: "cgroups/cpu,cgroups/mem,cgroups/pids".to_owned(),
            registry: Registry::InMemory,
            hook: None,
            known_by_name: false,
            env: Vec::new(),
        }
    }
}

/// A running agent, its directories beneath the scratch directory and its
/// cgroups root that of the scratch.
#[derive(Debug)]
pub struct Agent {
    dir: PathBuf,
    endpoint: String,
    program: PathBuf,
    arguments: Vec<PathBuf>,
    environment: BTreeMap<String, String>,
    known_by_name: bool,
    cgroups: CgroupRoot,
    service: Option<Service>,
}

impl Agent {
    /// Starts a master and an agent and returns when one has the other
    /// registered. One per scratch.
    pub fn start(scratch: &Scratch, runtime: &Runtime, options: AgentOptions) -> Result<Self> {
        let dir = scratch.path().join("mesos-agent");
        fs::create_dir(&dir).context("creating the agent's directory")?;
        let program = bins::find("mesos-cluster")?;
        let mut arguments = vec![runtime.lib_dir().to_owned()];
        if let Some(hook) = &options.hook {
            let modules = dir.join("modules");
            write_module(&modules, hook)?;
            arguments.extend([modules, PathBuf::from(&hook.name)]);
        }
        let port = free_port()?;
        let mut agent = Self {
            endpoint: format!("127.0.0.1:{port}"),
            known_by_name: options.known_by_name,
            environment: environment(scratch, runtime, options, &dir, port)?,
            cgroups: scratch.cgroups().clone(),
            dir,
            program,
            arguments,
            service: None,
        };
        agent.launch()?;
        Ok(agent)
    }

    pub fn work_dir(&self) -> PathBuf {
        self.dir.join(WORK_DIR)
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.join(RUNTIME_DIR)
    }

    /// `127.0.0.1:PORT`, of agent and master.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// `None` between [`Self::kill9`] and [`Self::restart`].
    pub fn pid(&self) -> Option<i32> {
        self.service.as_ref().map(Service::pid)
    }

    /// Output of master, agent and executors, of all starts.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Counters and gauges of agent and master, such as
    /// `containerizer/mesos/container_destroy_errors`.
    pub fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        metrics(&self.endpoint, METRICS)
    }

    /// Lines of the log with level ERROR or FATAL.
    pub fn errors_in_log(&self) -> Result<Vec<String>> {
        let content = fs::read(self.log_path()).context("the agent's log")?;
        let text = String::from_utf8_lossy(&content);
        Ok(text
            .lines()
            .filter(|line| is_error(line) && !NOISE.iter().any(|noise| line.contains(noise)))
            .map(str::to_owned)
            .collect())
    }

    /// Kills agent and master as a crash would; executors live on.
    pub fn kill9(&mut self) -> Result<()> {
        if let Some(mut service) = self.service.take() {
            service.kill()?;
        }
        Ok(())
    }

    /// Starts agent and master again on the same directories and port.
    pub fn restart(&mut self) -> Result<()> {
        self.kill9()?;
        self.launch()
    }

    /// Makes agent and master hang.
    pub fn pause(&self) -> Result<()> {
        self.service()?.signal(Signal::STOP)
    }

    pub fn resume(&self) -> Result<()> {
        self.service()?.signal(Signal::CONT)
    }

    fn service(&self) -> Result<&Service> {
        self.service.as_ref().context("the agent was killed")
    }

    fn launch(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(&self.environment);
        if self.known_by_name {
            command
                .arg0("mesos-agent")
                .env("MESOS_WORK_DIR", self.work_dir())
                .env("MESOS_RUNTIME_DIR", self.runtime_dir());
        }
        let log = self.log_path();
        let mut service = Service::spawn(command, &log)?;
        wait::try_until(START, "the agent to register", || {
            if let Some(status) = service.ended() {
                bail!("the agent ended: {status}");
            }
            // No answer is "not yet". A request that comes before the process
            // that would answer it is never answered. (`slave/registered` says only
            // that the agent knows a master.)
            let registered = metrics(&self.endpoint, PROBE)
                .is_ok_and(|metrics| metrics.get("master/slaves_active") == Some(&1.0));
            Ok(registered.then_some(()))
        })
        .with_context(|| log::tail(&log, 30))?;
        self.service = Some(service);
        Ok(())
    }

    /// In the environment of agent, helpers and executors.
    fn mark(&self) -> String {
        format!("{MARK}={}", self.endpoint)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let killed = wait::shielded(|| {
            self.kill9()?;
            process::kill_all(STOP, || {
                // It may have died while it had frozen a container.
                self.cgroups.thaw();
                process::with_environment(&self.mark())
            })
        });
        if let Err(error) = killed {
            eprintln!("stopping the agent: {error:#}");
        }
    }
}

fn metrics(endpoint: &str, limit: Duration) -> Result<BTreeMap<String, f64>> {
    let snapshot = api::get(endpoint, "/metrics/snapshot", limit)?;
    serde_json::from_value(snapshot).context("a map of numbers")
}

/// glog: level, month and day, time.
fn is_error(line: &str) -> bool {
    let mut bytes = line.bytes();
    matches!(bytes.next(), Some(b'E' | b'F'))
        && bytes.take(4).filter(u8::is_ascii_digit).count() == 4
}

fn environment(
    scratch: &Scratch,
    runtime: &Runtime,
    options: AgentOptions,
    dir: &Path,
    port: u16,
) -> Result<BTreeMap<String, String>> {
    let (scratch_mark, scratch_name) = scratch.mark();
    let endpoint = format!("127.0.0.1:{port}");
    let inherited = ["PATH", "HOME"].map(|name| (name, env::var(name).unwrap_or_default()));
    // What executors get besides MESOS_…; nothing of the agent's own.
    let marks = [(scratch_mark, scratch_name), (MARK, &endpoint)];
    let executors: BTreeMap<&str, &str> = marks
        .into_iter()
        .chain(
            inherited
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        )
        .collect();
    let launcher_dir = bins::find("mesos-containerizer")?;
    let launcher_dir = launcher_dir
        .parent()
        .context("a program lies in a directory")?;
    let launcher = match options.launcher {
        Launcher::Linux => "linux",
        Launcher::Posix => "posix",
    };
    let registry = match options.registry {
        Registry::InMemory => "in_memory",
        Registry::Replicated => "replicated_log",
    };
    let settings = [
        ("TMPDIR", dir.display().to_string()),
        (LIB_DIR_VARIABLE, runtime.lib_dir().display().to_string()),
        ("LIBPROCESS_IP", "127.0.0.1".to_owned()),
        ("LIBPROCESS_PORT", port.to_string()),
        ("MESOS_IP", "127.0.0.1".to_owned()),
        ("MESOS_HOSTNAME", "localhost".to_owned()),
        ("MESOS_LAUNCHER_DIR", launcher_dir.display().to_string()),
        ("MESOS_LAUNCHER", launcher.to_owned()),
        ("MESOS_ISOLATION", options.isolation),
        ("MESOS_CGROUPS_ROOT", scratch.name().to_owned()),
        ("MESOS_CONTAINERIZERS", "mesos".to_owned()),
        ("MESOS_SYSTEMD_ENABLE_SUPPORT", "false".to_owned()),
        ("MESOS_REGISTRY", registry.to_owned()),
        ("MESOS_RESOURCES", "cpus:64;mem:16384;disk:16384".to_owned()),
        (
            "MESOS_EXECUTOR_ENVIRONMENT_VARIABLES",
            json!(executors).to_string(),
        ),
        // Tests wait for these.
        ("MESOS_ALLOCATION_INTERVAL", "100ms".to_owned()),
        ("MESOS_REGISTRATION_BACKOFF_FACTOR", "10ms".to_owned()),
        // Allocated memory is zeroes. Releases before 1.11 recover custom executors
        // with a flag ("generated for a command task") that nothing has set: with a
        // random one, the master drops every re-registration of an agent that came
        // back ("Task has an invalid ExecutorID"). It was one restart in ten here, and
        // every one with allocated memory filled with ones.
        ("MALLOC_PERTURB_", "255".to_owned()),
    ];
    let mut environment: BTreeMap<String, String> = inherited
        .into_iter()
        .chain(settings)
        .chain(marks.map(|(name, value)| (name, value.to_owned())))
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    environment.extend(options.env);
    Ok(environment)
}

fn write_module(dir: &Path, hook: &HookModule) -> Result<()> {
    let parameters: Vec<_> = hook
        .parameters
        .iter()
        .map(|(key, value)| json!({ "key": key, "value": value }))
        .collect();
    let library = json!({
        "file": hook.library,
        "modules": [{ "name": hook.name, "parameters": parameters }],
    });
    fs::create_dir(dir).context("creating the directory of modules")?;
    fs::write(
        dir.join("hook.json"),
        json!({ "libraries": [library] }).to_string(),
    )
    .context("writing the module's description")
}

/// A port on which nobody listens, from a range that the kernel gives to nobody
/// else on its own: it must still be free for a restart.
pub(super) fn free_port() -> Result<u16> {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 18_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes start at different places, so that they seldom meet.
    let start = std::process::id().wrapping_mul(61) as u16;
    for _ in 0..COUNT {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = FIRST + offset;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port between {FIRST} and {} is free", FIRST + COUNT)
}
