//! The configuration: one TOML file, every key optional, unknown keys refused.

mod check;
mod error;
mod file;
mod live;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::case::Exclude;
use crate::cgroup::CgroupsRoot;
use crate::mesos::AgentDirs;

pub use check::{Problem, problems};
pub use error::ConfigError;
pub use file::read as read_file;
pub use live::{Change, LiveConfig};

/// The default configuration with every key and what it is for: what packages
/// install.
pub const EXAMPLE: &str = include_str!("../../deploy/config.toml");

/// Whether effects are carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Everything but the effects: says what it would have done.
    #[default]
    Observe,
    Enforce,
}

/// What is done with a dead executor's containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// SIGTERM (or the image's stop signal), then SIGKILL after the grace period.
    #[default]
    Stop,
    /// SIGKILL at once, through Docker.
    Kill,
    /// Stop, then remove the container; its named volumes stay.
    Remove,
}

/// What becomes of the compose networks of dead executors' pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Networks {
    #[default]
    Keep,
    /// Removed when no container uses them any more, running or stopped, and no
    /// executor that lives could be about to.
    RemoveIfEmpty,
}

/// What becomes of the anonymous volumes of containers that are removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnonymousVolumes {
    #[default]
    Keep,
    /// Removed with their container.
    Remove,
}

/// When the run's own cgroups are removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Teardown {
    /// Once the agent is done with the container, or gone.
    #[default]
    Cooperative,
    /// At once. A living agent's own destroy of the container then fails, and an
    /// early removal of the memory cgroup can be reported as an OOM kill.
    Immediate,
}

/// Whether containers without a run-exact key may be joined by label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelJoin {
    /// The label `executorId`, with every corroboration that docs/design.md lists.
    #[default]
    Corroborated,
    Off,
}

/// What is done when Docker stays away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DockerFallback {
    /// The case waits for it.
    #[default]
    None,
    /// The pod's processes are ended through their cgroups. When Docker is back
    /// it is asked all the same: a restart policy may bring containers back.
    CgroupKill,
}

/// How deaths are noticed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ProbeChoice {
    /// By a program in the kernel; where that cannot run, the daemon does not start.
    #[default]
    Ebpf,
    /// By watching the processes that were seen alive: nothing is loaded into the
    /// kernel.
    Poll,
    /// The first where it can be had, else the second, with a warning.
    Auto,
}

impl<'de> Deserialize<'de> for ProbeChoice {
    /// By hand for the sake of the message: a table of this name is an easy mistake.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = ProbeChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "`probe` to be \"ebpf\", \"poll\" or \"auto\" (ring_bytes and kernel_log are in [ebpf])",
                )
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<ProbeChoice, E> {
                match name {
                    "ebpf" => Ok(ProbeChoice::Ebpf),
                    "poll" => Ok(ProbeChoice::Poll),
                    "auto" => Ok(ProbeChoice::Auto),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(Name)
    }
}

/// In which layout the launcher puts containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `v1` where a freezer hierarchy is mounted, else `v2`.
    #[default]
    Auto,
    V1,
    V2,
}

/// How the kernel schedules the thread that hears of deaths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before everything of normal priority, as long as it is short of work; where
    /// that is refused, as the rest, with a warning.
    #[default]
    Realtime,
    /// As the rest.
    Normal,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub mode: Mode,
    pub action: Action,
    pub teardown: Teardown,
    /// How deaths are noticed.
    pub probe: ProbeChoice,
    pub label_join: LabelJoin,
    /// Whether the label `compose-cleanup.keep=true` keeps a container.
    pub keep_label: bool,
    /// How long the stopped containers of a dead run's pod are kept for whoever
    /// looks for a cause; not set: for ever.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub remove_after: Option<Duration>,
    pub networks: Networks,
    /// Named volumes always stay.
    pub anonymous_volumes: AnonymousVolumes,
    /// How long a container may take to end after its stop signal.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// How long a dead run must be seen quiet (no process, no container of it)
    /// before its case is closed.
    #[serde(with = "humantime_serde")]
    pub settle: Duration,
    /// How long an agent may take to destroy a dead container before the case
    /// says that it is stuck.
    #[serde(with = "humantime_serde")]
    pub agent_deadline: Duration,
    /// What is done when Docker stays away.
    pub docker_fallback: DockerFallback,
    /// How long Docker may owe an answer, beyond the grace period, before that.
    #[serde(with = "humantime_serde")]
    pub docker_deadline: Duration,
    /// How many running containers may be stopped in a minute for deaths that the
    /// kernel did not report; more wait for an operator. 0: any number.
    pub max_inferred_stops: usize,
    /// How often everything that exists is compared with what is known.
    #[serde(with = "humantime_serde")]
    pub reconcile_interval: Duration,
    /// How long running cases may go on after SIGTERM.
    #[serde(with = "humantime_serde")]
    pub shutdown_deadline: Duration,
    pub priority: Priority,
    pub log_format: LogFormat,
    /// Shared by the processes of this program: the lock, and by default the
    /// inbox. On a tmpfs, for root alone; made if it is not there.
    pub run_dir: PathBuf,
    /// Where the Mesos hook module leaves its requests; made if it is not there.
    /// Not set: `inbox` in the run directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbox: Option<PathBuf>,
    pub docker: DockerConfig,
    pub cgroup: CgroupConfig,
    pub ebpf: EbpfConfig,
    pub journal: JournalConfig,
    pub metrics: MetricsConfig,
    /// Executors that are left alone.
    pub exclude: Vec<Exclude>,
    /// The Mesos agents of this host. Empty: found by looking at what runs.
    pub agents: Vec<AgentConfig>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DockerConfig {
    pub socket: PathBuf,
    /// Deadline of a request that does not wait for a container.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Stops that Docker does at once. A further container gets its stop signal from the
    /// daemon, if that is all that a stop of it is. 0: Docker does them all.
    pub max_stops: u16,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgroupConfig {
    pub layout: Layout,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EbpfConfig {
    /// Size of the ring buffer in bytes: a power of two, at least one page.
    pub ring_bytes: u32,
    /// Let the kernel program write diagnostics to the log.
    pub kernel_log: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalConfig {
    pub enabled: bool,
    pub path: PathBuf,
    /// Closed cases older than this are forgotten.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// Bytes on disk; the oldest closed cases go first.
    pub max_bytes: u64,
}

/// Metrics and health over HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// IP address and port; not set: nothing is served. Port 0: one that is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Whether that address may be one that others than this host reach. Everybody
    /// who does may read.
    pub allow_remote: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    pub work_dir: PathBuf,
    #[serde(default = "default_runtime_dir")]
    pub runtime_dir: PathBuf,
    #[serde(default, serialize_with = "as_text")]
    pub cgroups_root: CgroupsRoot,
}

/// Below that the write-ahead log alone would not fit.
const SMALLEST_JOURNAL: u64 = 4 << 20;

fn default_runtime_dir() -> PathBuf {
    PathBuf::from("/var/run/mesos")
}

fn as_text<S: serde::Serializer>(root: &CgroupsRoot, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(root)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            action: Action::default(),
            teardown: Teardown::default(),
            probe: ProbeChoice::default(),
            label_join: LabelJoin::default(),
            keep_label: true,
            remove_after: None,
            networks: Networks::default(),
            anonymous_volumes: AnonymousVolumes::default(),
            grace: Duration::from_secs(10),
            settle: Duration::from_secs(1),
            // Twice the agent's own destroy timeout for each of its two stages.
            agent_deadline: Duration::from_secs(240),
            docker_fallback: DockerFallback::default(),
            docker_deadline: Duration::from_secs(60),
            max_inferred_stops: 50,
            reconcile_interval: Duration::from_secs(60),
            shutdown_deadline: Duration::from_secs(15),
            priority: Priority::default(),
            log_format: LogFormat::default(),
            run_dir: PathBuf::from("/run/compose-cleanup"),
            inbox: None,
            docker: DockerConfig::default(),
            cgroup: CgroupConfig::default(),
            ebpf: EbpfConfig::default(),
            journal: JournalConfig::default(),
            metrics: MetricsConfig::default(),
            exclude: Vec::new(),
            agents: Vec::new(),
        }
    }
}

impl Default for DockerConfig {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/var/run/docker.sock"),
            timeout: Duration::from_secs(20),
            max_stops: 8,
        }
    }
}

impl Default for EbpfConfig {
    fn default() -> Self {
        Self {
            ring_bytes: 1 << 19,
            kernel_log: false,
        }
    }
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            path: PathBuf::from("/var/lib/compose-cleanup/journal.db"),
            max_age: Duration::from_hours(30 * 24),
            // Some 75,000 cases of two containers and eight steps (859 bytes each).
            max_bytes: 64 << 20,
        }
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_file(path)?, path)
    }

    /// Of this file, or the defaults without one.
    pub fn of(path: Option<&Path>) -> Result<Self, ConfigError> {
        path.map_or_else(|| Ok(Self::default()), Self::load)
    }

    /// `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let refused = |otherwise: &dyn Fn() -> Problem| {
            let mut problems = problems(text).into_iter();
            let first = problems.next();
            ConfigError::Refused {
                path: path.to_owned(),
                problem: Box::new(first.unwrap_or_else(otherwise)),
                more: problems.len(),
            }
        };
        let config: Self =
            toml::from_str(text).map_err(|error| refused(&|| Problem::of(text, &error)))?;
        match config.validate() {
            Ok(()) => Ok(config),
            Err((key, problem)) => Err(refused(&|| Problem::nowhere(&key, &problem))),
        }
    }

    /// Looks again after options of the command line have taken the place of what was read.
    pub fn check_overridden(&self) -> Result<(), ConfigError> {
        self.validate()
            .map_err(|(key, problem)| ConfigError::Overridden { key, problem })
    }

    /// Where the hook's requests are.
    pub fn inbox_dir(&self) -> PathBuf {
        self.inbox
            .clone()
            .unwrap_or_else(|| self.run_dir.join("inbox"))
    }

    /// Whether what stopped pods leave in Docker is looked for.
    pub fn removes_remains(&self) -> bool {
        self.remove_after.is_some() || self.networks == Networks::RemoveIfEmpty
    }

    fn validate(&self) -> Result<(), (String, String)> {
        let refuse = |key: &str, problem: &str| Err((key.to_owned(), problem.to_owned()));
        let removes_containers = self.action == Action::Remove || self.remove_after.is_some();
        if self.anonymous_volumes == AnonymousVolumes::Remove && !removes_containers {
            return refuse(
                "anonymous_volumes",
                "can only be \"remove\" where containers are removed: set action = \"remove\" or remove_after, too",
            );
        }
        if self.grace > Duration::from_secs(3600) {
            return refuse("grace", "must be at most 1h");
        }
        if self.reconcile_interval < Duration::from_secs(5) {
            return refuse("reconcile_interval", "must be at least 5s");
        }
        if self.docker.timeout.is_zero() {
            return refuse("docker.timeout", "must not be zero");
        }
        if !self.run_dir.is_absolute() {
            return refuse("run_dir", "must be an absolute path");
        }
        if self
            .inbox
            .as_ref()
            .is_some_and(|inbox| !inbox.is_absolute())
        {
            return refuse("inbox", "must be an absolute path");
        }
        if !self.docker.socket.is_absolute() {
            return refuse("docker.socket", "must be an absolute path");
        }
        if !self.ebpf.ring_bytes.is_power_of_two() || self.ebpf.ring_bytes < 4096 {
            return refuse("ebpf.ring_bytes", "must be a power of two, at least 4096");
        }
        if !self.journal.path.is_absolute() || self.journal.path.file_name().is_none() {
            return refuse("journal.path", "must be the absolute path of a file");
        }
        if self.journal.max_bytes < SMALLEST_JOURNAL {
            return refuse("journal.max_bytes", "must be at least 4194304 (4 MiB)");
        }
        let reaches_out = |listen: SocketAddr| !listen.ip().to_canonical().is_loopback();
        if self.metrics.listen.is_some_and(reaches_out) && !self.metrics.allow_remote {
            return refuse(
                "metrics.listen",
                "is an address that others than this host may reach: choose one of the loopback (127.0.0.1, [::1]), or set allow_remote = true as well",
            );
        }
        if let Some(at) = self.exclude.iter().position(Exclude::is_empty) {
            return refuse(
                &format!("exclude[{at}]"),
                "needs a pattern: framework, executor or both",
            );
        }
        for (at, agent) in self.agents.iter().enumerate() {
            for (key, dir) in [
                ("work_dir", &agent.work_dir),
                ("runtime_dir", &agent.runtime_dir),
            ] {
                if !dir.is_absolute() {
                    return refuse(&format!("agents[{at}].{key}"), "must be an absolute path");
                }
            }
            let twin = self.agents[..at].iter().find(|other| {
                other.work_dir == agent.work_dir || other.runtime_dir == agent.runtime_dir
            });
            if twin.is_some() {
                return refuse(
                    &format!("agents[{at}]"),
                    "names the directories of another entry: each agent has a work_dir and a runtime_dir of its own",
                );
            }
        }
        Ok(())
    }
}

impl From<&JournalConfig> for crate::journal::Settings {
    fn from(config: &JournalConfig) -> Self {
        Self {
            path: config.path.clone(),
            max_age: config.max_age,
            max_bytes: config.max_bytes,
        }
    }
}

impl From<&AgentConfig> for AgentDirs {
    fn from(config: &AgentConfig) -> Self {
        Self {
            work_dir: config.work_dir.clone(),
            runtime_dir: config.runtime_dir.clone(),
            cgroups_root: config.cgroups_root.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
