//! The daemon under test: `compose-cleanup watch`, and what it says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::docker::Dockerd;
use crate::mesos::agent::Agent;
use crate::scratch::Scratch;
use crate::service::Service;
use crate::{bins, log, wait};

/// In a busy guest without KVM, loading the probe alone took 26 s.
const READY: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(30);
const CASE: Duration = Duration::from_secs(90);

/// What of its log the suites read.
const FILTER: &str = "warn,cleanup_userspace=debug";
/// As an operator has it.
const QUIET_FILTER: &str = "warn,cleanup_userspace=info";
/// A line for each step of each case, too, and for each thing that a dead run may
/// have left in Docker.
const STEPS_FILTER: &str =
    "warn,cleanup_userspace=debug,cleanup_userspace::case=trace,cleanup_userspace::remains=trace";

/// How many lines of its log are shown of a failed test.
const LAST_WORDS: usize = 60;

/// Said of an executor that needed no case.
const LEFT_NOTHING: &str = "an executor ended and left nothing behind";

/// Where an agent keeps its things, for the daemon's configuration.
#[derive(Debug, Clone)]
pub struct AgentPlace {
    pub work_dir: PathBuf,
    pub runtime_dir: PathBuf,
    pub cgroups_root: String,
}

impl AgentPlace {
    pub fn of(agent: &Agent, scratch: &Scratch) -> Self {
        Self {
            work_dir: agent.work_dir(),
            runtime_dir: agent.runtime_dir(),
            cgroups_root: scratch.name().to_owned(),
        }
    }

    /// Of an agent that never was: nothing is there.
    pub fn nowhere(scratch: &Scratch) -> Self {
        Self {
            work_dir: scratch.path().join("work"),
            runtime_dir: scratch.path().join("run"),
            cgroups_root: scratch.name().to_owned(),
        }
    }
}

/// Writes a configuration with `options` (TOML, top-level keys first) for a
/// daemon of this scratch, which shares nothing with those of others.
pub fn configure(
    scratch: &Scratch,
    socket: &Path,
    agents: &[AgentPlace],
    options: &str,
) -> Result<PathBuf> {
    configure_as(
        scratch,
        socket,
        agents,
        options,
        Manner::default().log_format,
    )
}

fn configure_as(
    scratch: &Scratch,
    socket: &Path,
    agents: &[AgentPlace],
    options: &str,
    log_format: &str,
) -> Result<PathBuf> {
    let mut config = format!(
        "log_format = {log_format:?}\nrun_dir = {:?}\ninbox = {:?}\n\
         journal.path = {:?}\ndocker.socket = {:?}\n{options}\n",
        scratch.path().join("run-dir").display(),
        Watcher::inbox(scratch).display(),
        Watcher::journal(scratch).display(),
        socket.display()
    );
    for agent in agents {
        config += &format!(
            "[[agents]]\nwork_dir = {:?}\nruntime_dir = {:?}\ncgroups_root = {:?}\n",
            agent.work_dir.display(),
            agent.runtime_dir.display(),
            agent.cgroups_root
        );
    }
    let path = scratch.path().join("compose-cleanup.toml");
    fs::write(&path, config).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// What a program has logged, one JSON object a line.
pub fn log_lines(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    // The last line may still be on its way.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| {
            serde_json::from_str(line).with_context(|| format!("not a line of JSON: {line}"))
        })
        .collect()
}

/// How a daemon is started, beside its configuration.
#[derive(Debug)]
struct Manner<'a> {
    /// `RUST_LOG`.
    filter: &'a str,
    log_format: &'a str,
    /// Where it is to end itself.
    crash_at: Option<&'a str>,
    environment: &'a [(&'a str, String)],
    /// A program, with its arguments, that takes a command line and runs it.
    wrapper: &'a [&'a str],
}

impl Default for Manner<'_> {
    fn default() -> Self {
        Self {
            filter: FILTER,
            log_format: "json",
            crash_at: None,
            environment: &[],
            wrapper: &[],
        }
    }
}

/// A running `compose-cleanup watch`.
#[derive(Debug)]
pub struct Watcher {
    service: Service,
}

impl Watcher {
    /// Starts the daemon with `options` (TOML, top-level keys first) and returns
    /// when it watches and has found Docker.
    pub fn start(
        scratch: &Scratch,
        docker: &Dockerd,
        agents: &[AgentPlace],
        options: &str,
    ) -> Result<Self> {
        Self::start_filtered(scratch, &docker.socket(), agents, options, FILTER)
    }

    /// [`start`](Self::start), with no more in its log than by default: for those who
    /// measure.
    pub fn start_quietly(
        scratch: &Scratch,
        docker: &Dockerd,
        agents: &[AgentPlace],
        options: &str,
    ) -> Result<Self> {
        Self::start_filtered(scratch, &docker.socket(), agents, options, QUIET_FILTER)
    }

    /// [`start`](Self::start), with every step of its cases in its log, for
    /// [`wait_steps`](Self::wait_steps).
    pub fn start_telling_steps(
        scratch: &Scratch,
        docker: &Dockerd,
        agents: &[AgentPlace],
        options: &str,
    ) -> Result<Self> {
        Self::start_filtered(scratch, &docker.socket(), agents, options, STEPS_FILTER)
    }

    /// [`start_telling_steps`](Self::start_telling_steps), with Docker behind
    /// another socket than its own.
    pub fn start_at(
        scratch: &Scratch,
        socket: &Path,
        agents: &[AgentPlace],
        options: &str,
    ) -> Result<Self> {
        Self::start_filtered(scratch, socket, agents, options, STEPS_FILTER)
    }

    /// [`start_at`](Self::start_at), with more in its environment.
    pub fn start_in(
        scratch: &Scratch,
        socket: &Path,
        agents: &[AgentPlace],
        options: &str,
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let manner = Manner {
            filter: STEPS_FILTER,
            environment,
            ..Manner::default()
        };
        Self::start_as(scratch, socket, agents, options, &manner)
    }

    /// [`start`](Self::start) by a program that takes a command line and runs it.
    pub fn start_through(
        scratch: &Scratch,
        docker: &Dockerd,
        agents: &[AgentPlace],
        options: &str,
        wrapper: &[&str],
    ) -> Result<Self> {
        let manner = Manner {
            wrapper,
            ..Manner::default()
        };
        Self::start_as(scratch, &docker.socket(), agents, options, &manner)
    }

    fn start_filtered(
        scratch: &Scratch,
        socket: &Path,
        agents: &[AgentPlace],
        options: &str,
        filter: &str,
    ) -> Result<Self> {
        let manner = Manner {
            filter,
            ..Manner::default()
        };
        Self::start_as(scratch, socket, agents, options, &manner)
    }

    fn start_as(
        scratch: &Scratch,
        socket: &Path,
        agents: &[AgentPlace],
        options: &str,
        manner: &Manner<'_>,
    ) -> Result<Self> {
        let watcher = Self::spawn_as(scratch, socket, agents, options, manner)?;
        watcher.wait_message("ready")?;
        watcher.wait_message("Docker is there")?;
        Ok(watcher)
    }

    /// [`start`](Self::start) without waiting for anything.
    pub fn spawn(
        scratch: &Scratch,
        socket: &Path,
        agents: &[AgentPlace],
        options: &str,
    ) -> Result<Self> {
        Self::spawn_as(scratch, socket, agents, options, &Manner::default())
    }

    /// [`spawn`](Self::spawn), with more in its environment.
    pub fn spawn_in(
        scratch: &Scratch,
        socket: &Path,
        agents: &[AgentPlace],
        options: &str,
        environment: &[(&str, String)],
    ) -> Result<Self> {
        let manner = Manner {
            environment,
            ..Manner::default()
        };
        Self::spawn_as(scratch, socket, agents, options, &manner)
    }

    /// [`start`](Self::start), with a log for people: [`wait_text`](Self::wait_text)
    /// reads it, and nothing else here does.
    pub fn start_with_human_log(
        scratch: &Scratch,
        docker: &Dockerd,
        agents: &[AgentPlace],
        options: &str,
    ) -> Result<Self> {
        let manner = Manner {
            log_format: "human",
            ..Manner::default()
        };
        let watcher = Self::spawn_as(scratch, &docker.socket(), agents, options, &manner)?;
        watcher.wait_text("ready")?;
        watcher.wait_text("Docker is there")?;
        Ok(watcher)
    }

    /// [`spawn`](Self::spawn), to die at a crash point, such as `before:stop`.
    pub fn spawn_to_crash(
        scratch: &Scratch,
        docker: &Dockerd,
        agents: &[AgentPlace],
        options: &str,
        point: &str,
    ) -> Result<Self> {
        let manner = Manner {
            crash_at: Some(point),
            ..Manner::default()
        };
        Self::spawn_as(scratch, &docker.socket(), agents, options, &manner)
    }

    fn spawn_as(
        scratch: &Scratch,
        socket: &Path,
        agents: &[AgentPlace],
        options: &str,
        manner: &Manner<'_>,
    ) -> Result<Self> {
        let Manner {
            filter,
            log_format,
            crash_at,
            environment,
            wrapper,
        } = manner;
        let path = configure_as(scratch, socket, agents, options, log_format)?;
        let program = bins::find("compose-cleanup")?;
        let mut command = match wrapper {
            [] => scratch.command(program),
            [wrapper, arguments @ ..] => {
                let mut command = scratch.command(wrapper);
                command.args(arguments).arg(program);
                command
            }
        };
        command.arg("watch").arg("--config").arg(&path);
        command.env("RUST_LOG", filter);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        if let Some(point) = crash_at {
            command.env("COMPOSE_CLEANUP_CRASH_AT", point);
        }
        let log = scratch.path().join("compose-cleanup.log");
        // What an earlier one said must not be taken for this one's words.
        let _ = fs::remove_file(&log);
        Ok(Self {
            service: Service::spawn(command, &log)?,
        })
    }

    /// Where the hook module leaves its requests for the daemon of this scratch.
    pub fn inbox(scratch: &Scratch) -> PathBuf {
        scratch.path().join("inbox")
    }

    /// The journal of the daemons of this scratch.
    pub fn journal(scratch: &Scratch) -> PathBuf {
        scratch.path().join("journal/journal.db")
    }

    pub fn pid(&self) -> i32 {
        self.service.pid()
    }

    pub fn log_path(&self) -> &Path {
        self.service.log_path()
    }

    /// Everything it has logged, one JSON object a line.
    pub fn lines(&self) -> Result<Vec<Value>> {
        log_lines(self.log_path())
    }

    /// The lines with this message.
    pub fn said(&self, message: &str) -> Result<Vec<Value>> {
        let mut lines = self.lines()?;
        lines.retain(|line| line["message"] == message);
        Ok(lines)
    }

    /// Waits for a line with this message.
    pub fn wait_message(&self, message: &str) -> Result<Value> {
        self.wait_line(READY, &format!("the daemon to say `{message}`"), |line| {
            line["message"] == message
        })
    }

    /// Waits for a whole line of the log, whatever its format, with this text in
    /// it.
    pub fn wait_text(&self, text: &str) -> Result<String> {
        let what = format!("the daemon to write `{text}`");
        wait::try_until(CASE, what, || {
            let log = fs::read(self.log_path()).context("reading the daemon's log")?;
            let mut lines = log.split_inclusive(|&byte| byte == b'\n');
            let found = lines.find(|line| {
                line.ends_with(b"\n")
                    && line.windows(text.len()).any(|part| part == text.as_bytes())
            });
            Ok(found.map(|line| String::from_utf8_lossy(line).into_owned()))
        })
        .with_context(|| log::tail(self.log_path(), 30))
    }

    /// Fails if anything that it has written could trick a terminal, or make one
    /// line look like two.
    pub fn ensure_printable_log(&self) -> Result<()> {
        let log = fs::read(self.log_path()).context("reading the daemon's log")?;
        let log = String::from_utf8(log).context("the log")?;
        let odd = log.lines().find(|line| line.contains(char::is_control));
        ensure!(odd.is_none(), "control characters in {odd:?}");
        Ok(())
    }

    /// Waits for the closing line of a run's case.
    pub fn wait_case(&self, container_id: &str) -> Result<Value> {
        self.wait_line(CASE, &format!("the case of {container_id}"), |line| {
            line["message"] == "case" && line["container"] == container_id
        })
    }

    /// Waits for the closing lines of so many cases.
    pub fn wait_cases(&self, count: usize, limit: Duration) -> Result<Vec<Value>> {
        wait::try_until(limit, format_args!("{count} cases"), || {
            let cases = self.said("case")?;
            if cases.len() < count && !self.service.process().alive() {
                bail!("the daemon has ended after {} cases", cases.len());
            }
            Ok((cases.len() >= count).then_some(cases))
        })
        .with_context(|| log::tail(self.log_path(), 30))
    }

    /// The closing lines of a run's cases.
    pub fn cases(&self, container_id: &str) -> Result<Vec<Value>> {
        let mut cases = self.said("case")?;
        cases.retain(|line| line["container"] == container_id);
        Ok(cases)
    }

    /// Waits for the end of a run's case, if it became one: an executor that left
    /// nothing behind has another line.
    pub fn wait_closed(&self, container_id: &str) -> Result<Value> {
        self.wait_line(CASE, &format!("the end of {container_id}"), |line| {
            let message = &line["message"];
            line["container"] == container_id && (message == "case" || message == LEFT_NOTHING)
        })
    }

    /// Waits for a line with this message about a run.
    pub fn wait_message_of(&self, container_id: &str, message: &str) -> Result<Value> {
        let what = format!("the daemon to say `{message}` of {container_id}");
        self.wait_line(CASE, &what, |line| {
            line["message"] == message && line["container"] == container_id
        })
    }

    /// Waits for a line with this message for which `fits` is true.
    pub fn wait_message_that(&self, message: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        let what = format!("the daemon to say a certain `{message}`");
        self.wait_line(CASE, &what, |line| line["message"] == message && fits(line))
    }

    /// Waits until the daemon knows which process a run's executor is.
    pub fn wait_executor_learnt(&self, container_id: &str) -> Result<Value> {
        let what = format!("the executor of {container_id} to be learnt");
        self.wait_line(CASE, &what, |line| {
            let message = &line["message"];
            let at_once = message == "learnt" && line["executor"] != "None";
            line["container"] == container_id && (at_once || message == "executor learnt")
        })
    }

    /// How many steps a run's case has taken. Needs
    /// [`start_telling_steps`](Self::start_telling_steps).
    pub fn steps(&self, container_id: &str) -> Result<usize> {
        let mut steps = self.said("step")?;
        steps.retain(|step| step["container"] == container_id);
        Ok(steps.len())
    }

    /// Waits until a run's case has taken so many steps, each after a new look at
    /// the host.
    pub fn wait_steps(&self, container_id: &str, count: usize) -> Result<()> {
        wait::try_until(CASE, format!("{count} steps for {container_id}"), || {
            Ok((self.steps(container_id)? >= count).then_some(()))
        })
        .with_context(|| log::tail(self.log_path(), 30))
    }

    /// Waits until a run's case has nothing to do but to wait for its agent.
    pub fn wait_for_the_agents_turn(&self, container_id: &str) -> Result<Value> {
        let what = format!("the case of {container_id} to wait for the agent");
        self.wait_line(CASE, &what, |line| {
            line["step"] == "Wait(AgentDestroys)" && line["container"] == container_id
        })
    }

    fn wait_line(
        &self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait::try_until(limit, what, || {
            let found = self.lines()?.into_iter().find(&wanted);
            if found.is_none() && !self.service.process().alive() {
                bail!("the daemon has ended");
            }
            Ok(found)
        })
        .with_context(|| log::tail(self.log_path(), 30))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.service.signal(signal)
    }

    /// SIGTERM; how it ended.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.service.stop(STOP)
    }

    /// SIGKILL.
    pub fn kill9(mut self) -> Result<()> {
        self.service.kill().map(|_| ())
    }

    /// Waits for it to end by itself.
    pub fn wait_end(&mut self) -> Result<ExitStatus> {
        self.service.wait(STOP)
    }
}

impl Drop for Watcher {
    /// Why a test failed is mostly in here. The harness keeps what a test's thread
    /// prints until it fails; a program's main thread has nobody to keep it.
    fn drop(&mut self) {
        if std::thread::current().name() != Some("main") {
            println!("{}", log::tail(self.log_path(), LAST_WORDS));
        }
    }
}
