//! The configuration: one TOML file, every key optional, unknown keys refused.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::case::Exclude;
use crate::cgroup::CgroupsRoot;
use crate::mesos::AgentDirs;

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
    /// Stop, then remove the container; its volumes stay.
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
    pub label_join: LabelJoin,
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
    /// How long running cases may go on after SIGTERM.
    #[serde(with = "humantime_serde")]
    pub shutdown_deadline: Duration,
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
    pub probe: ProbeConfig,
    pub journal: JournalConfig,
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
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CgroupConfig {
    pub layout: Layout,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeConfig {
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
            label_join: LabelJoin::default(),
            grace: Duration::from_secs(10),
            settle: Duration::from_secs(1),
            // Twice the agent's own destroy timeout for each of its two stages.
            agent_deadline: Duration::from_secs(240),
            docker_fallback: DockerFallback::default(),
            docker_deadline: Duration::from_secs(60),
            max_inferred_stops: 50,
            shutdown_deadline: Duration::from_secs(15),
            log_format: LogFormat::default(),
            run_dir: PathBuf::from("/run/compose-cleanup"),
            inbox: None,
            docker: DockerConfig::default(),
            cgroup: CgroupConfig::default(),
            probe: ProbeConfig::default(),
            journal: JournalConfig::default(),
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
        }
    }
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self {
            ring_bytes: 1 << 20,
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

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {error}")]
    Read {
        path: PathBuf,
        error: std::io::Error,
    },
    /// The text of the error has the line, the column and the key.
    #[error("configuration {path} is not valid: {error}")]
    Syntax {
        path: PathBuf,
        error: Box<toml::de::Error>,
    },
    #[error("configuration {path}: `{key}` {problem}")]
    Value {
        path: PathBuf,
        key: String,
        problem: String,
    },
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
            path: path.to_owned(),
            error,
        })?;
        Self::parse(&text, path)
    }

    /// `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            error: Box::new(error),
        })?;
        config
            .validate()
            .map_err(|(key, problem)| ConfigError::Value {
                path: path.to_owned(),
                key,
                problem,
            })?;
        Ok(config)
    }

    /// Where the hook's requests are.
    pub fn inbox_dir(&self) -> PathBuf {
        self.inbox
            .clone()
            .unwrap_or_else(|| self.run_dir.join("inbox"))
    }

    fn validate(&self) -> Result<(), (String, String)> {
        let refuse = |key: &str, problem: &str| Err((key.to_owned(), problem.to_owned()));
        if self.grace > Duration::from_secs(3600) {
            return refuse("grace", "must be at most 1h");
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
        if !self.probe.ring_bytes.is_power_of_two() || self.probe.ring_bytes < 4096 {
            return refuse("probe.ring_bytes", "must be a power of two, at least 4096");
        }
        if !self.journal.path.is_absolute() || self.journal.path.file_name().is_none() {
            return refuse("journal.path", "must be the absolute path of a file");
        }
        if self.journal.max_bytes < SMALLEST_JOURNAL {
            return refuse("journal.max_bytes", "must be at least 4194304 (4 MiB)");
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
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("test.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn empty_is_the_default_and_observes() {
        let config = parse("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.mode, Mode::Observe);
    }

    #[test]
    fn the_inbox_is_in_the_run_directory_unless_it_is_named() {
        assert_eq!(
            parse("").unwrap().inbox_dir(),
            Path::new("/run/compose-cleanup/inbox")
        );
        let moved = parse("run_dir = \"/r\"").unwrap();
        assert_eq!(moved.inbox_dir(), Path::new("/r/inbox"));
        let named = parse("run_dir = \"/r\"\ninbox = \"/i\"").unwrap();
        assert_eq!(named.inbox_dir(), Path::new("/i"));
    }

    #[test]
    fn a_whole_file() {
        let config = parse(
            r#"
            mode = "enforce"
            action = "remove"
            grace = "2s 500ms"
            [docker]
            socket = "/run/d.sock"
            [[agents]]
            work_dir = "/var/lib/mesos"
            cgroups_root = "a/b"
            "#,
        )
        .unwrap();
        assert_eq!(config.grace, Duration::from_millis(2500));
        assert_eq!(config.agents[0].runtime_dir, Path::new("/var/run/mesos"));
        assert_eq!(config.agents[0].cgroups_root.as_path(), Path::new("a/b"));
    }

    #[test]
    fn the_shipped_example_is_the_default() {
        let example = include_str!("../../deploy/config.toml");
        let path = Path::new("deploy/config.toml");
        assert_eq!(Config::parse(example, path).unwrap(), Config::default());
        // With every comment mark taken from its keys, it is valid, too.
        let all: String = example
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .fold(String::new(), |text, line| text + line + "\n");
        Config::parse(&all, path).unwrap();
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let error = parse("mode = \"enforce\"\ngrase = \"1s\"\n").unwrap_err();
        assert!(
            error.contains("line 2") && error.contains("column 1") && error.contains("grase"),
            "{error}"
        );
    }

    #[test]
    fn wrong_values_are_refused_with_their_key() {
        for (text, key) in [
            ("mode = \"yes\"", "mode"),
            ("run_dir = \"run\"", "`run_dir`"),
            ("inbox = \"inbox\"", "`inbox`"),
            ("grace = \"soon\"", "grace"),
            ("grace = \"2h\"", "`grace`"),
            ("[docker]\nsocket = \"docker.sock\"", "`docker.socket`"),
            ("[probe]\nring_bytes = 5000", "`probe.ring_bytes`"),
            ("[journal]\npath = \"journal.db\"", "`journal.path`"),
            ("[journal]\npath = \"/\"", "`journal.path`"),
            ("[journal]\nmax_bytes = 1000", "`journal.max_bytes`"),
            ("[journal]\nmax_age = \"long\"", "max_age"),
            ("[[agents]]\nwork_dir = \"work\"", "`agents[0].work_dir`"),
            ("[[exclude]]\nexecutor = \"a[\"", "`a[`"),
            ("[[exclude]]", "`exclude[0]`"),
            (
                "[[agents]]\nwork_dir = \"/w\"\ncgroups_root = \"../x\"",
                "cgroups root",
            ),
            ("[[agents]]\nruntime_dir = \"/w\"", "work_dir"),
            (
                "[[agents]]\nwork_dir = \"/w\"\n[[agents]]\nwork_dir = \"/w\"\nruntime_dir = \"/x\"",
                "`agents[1]`",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
