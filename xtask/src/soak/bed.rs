//! The host of a soak: what is killed, stopped and started again.

use std::ffi::CStr;
use std::fs::{self, DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::host::Host;
use cleanup_tests::mesos::agent::{AgentOptions, Registry};
use cleanup_tests::process::Process;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::{AgentPlace, Watcher};
use cleanup_tests::{bins, command};
use rustix::mount::{MountFlags, mount};
use rustix::process::Signal;
use serde_json::Value;

use super::diary::Diary;
use super::gauge::Gauge;

/// A ring of one page, so that a burst can fill it; and no brake on deaths that
/// are found after the fact: a daemon that was killed finds a whole batch of them.
const CONFIG: &str = "mode = \"enforce\"\ngrace = \"2s\"\nsettle = \"200ms\"\nmax_inferred_stops = 0\n\
                      ebpf.ring_bytes = 4096";
/// Of the journal's file system.
const JOURNAL: &CStr = c"size=24m,mode=0700";
const FILLER: &str = "filler";
const QUERY: Duration = Duration::from_secs(20);

/// Everything of one soak. Dropped from top to bottom.
#[derive(Debug)]
pub(super) struct Bed {
    pub(super) gauge: Gauge,
    daemon: Option<Watcher>,
    pub(super) host: Host,
    pub(super) diary: Diary,
    /// Failed destroys that agents counted before they were killed.
    destroy_errors: f64,
    /// What the daemon did that it never may.
    pub(super) complaints: Vec<String>,
}

impl Bed {
    pub(super) fn start(version: &str, logs: &Path) -> Result<Self> {
        let options = AgentOptions {
            registry: Registry::Replicated,
            known_by_name: true,
            // Its 2 s are short for a machine that is made busy on purpose: an executor
            // that misses them is killed by the agent.
            env: vec![(
                "MESOS_EXECUTOR_REREGISTRATION_TIMEOUT".to_owned(),
                "5secs".to_owned(),
            )],
            ..AgentOptions::default()
        };
        let scratch = Scratch::new("soak")?;
        let journal = journal_dir(&scratch)?;
        DirBuilder::new()
            .mode(0o700)
            .create(&journal)
            .context("the journal's directory")?;
        mount("none", &journal, "tmpfs", MountFlags::empty(), JOURNAL).context("a tmpfs")?;
        // Containers live on while dockerd is away.
        let host = Host::on(scratch, version, options, &["--live-restore"])?;
        let mut bed = Self {
            gauge: Gauge::start(),
            daemon: None,
            host,
            diary: Diary::new(logs)?,
            destroy_errors: 0.0,
            complaints: Vec::new(),
        };
        bed.start_daemon()?;
        Ok(bed)
    }

    // ---- the daemon

    /// Starts the daemon, if it does not run.
    pub(super) fn start_daemon(&mut self) -> Result<()> {
        if self.daemon.is_some() {
            return Ok(());
        }
        let Host {
            agent,
            docker,
            scratch,
            ..
        } = &self.host;
        let place = AgentPlace::of(agent, scratch);
        let daemon = Watcher::spawn(scratch, &docker.socket(), &[place], CONFIG)?;
        daemon.wait_message("ready")?;
        self.gauge.watch(Some(daemon.pid()));
        self.daemon = Some(daemon);
        Ok(())
    }

    pub(super) fn kill_daemon(&mut self) -> Result<()> {
        self.gauge.watch(None);
        let Some(daemon) = self.daemon.take() else {
            return Ok(());
        };
        let log = daemon.log_path().to_owned();
        daemon.kill9()?;
        self.diary.end_of_life(&log)
    }

    pub(super) fn stop_daemon(&mut self) -> Result<()> {
        self.gauge.watch(None);
        let Some(daemon) = self.daemon.take() else {
            return Ok(());
        };
        let log = daemon.log_path().to_owned();
        match daemon.stop() {
            Ok(status) if status.success() => {}
            Ok(status) => self
                .complaints
                .push(format!("SIGTERM ended the daemon with {status}")),
            Err(error) => self
                .complaints
                .push(format!("SIGTERM did not end the daemon: {error:#}")),
        }
        self.diary.end_of_life(&log)
    }

    pub(super) fn signal_daemon(&self, signal: Signal) -> Result<()> {
        let daemon = self.daemon.as_ref().context("the daemon does not run")?;
        let process = Process::of(daemon.pid()).context("the daemon is gone")?;
        process.signal(signal)
    }

    /// Reads on in the daemon's log. A daemon that ended by itself is a complaint,
    /// and is started again, as a service manager does.
    pub(super) fn look_at_daemon(&mut self) -> Result<()> {
        let Some(daemon) = &self.daemon else {
            return Ok(());
        };
        self.diary.read(daemon.log_path())?;
        if Process::of(daemon.pid()).is_some_and(|process| process.alive()) {
            return Ok(());
        }
        let last = cleanup_tests::log::tail(daemon.log_path(), 5);
        self.complaints
            .push(format!("the daemon ended by itself: {last}"));
        self.kill_daemon()?;
        self.start_daemon()
    }

    /// Cases that the journal has open; `None`: it cannot be read now.
    pub(super) fn open_cases(&self) -> Option<Vec<String>> {
        let mut cases = Command::new(bins::find("compose-cleanup").ok()?);
        cases
            .args(["cases", "--open", "--limit", "1000", "--output", "json"])
            .arg("--journal")
            .arg(Watcher::journal(&self.host.scratch));
        let answer = command::output(&mut cases, QUERY).ok()?;
        let cases: Vec<Value> = serde_json::from_str(&answer).ok()?;
        Some(cases.iter().map(Value::to_string).collect())
    }

    // ---- the agent

    pub(super) fn kill_agent(&mut self) -> Result<()> {
        self.note_destroy_errors();
        self.host.agent.kill9()
    }

    pub(super) fn restart_agent(&mut self) -> Result<()> {
        self.note_destroy_errors();
        self.host.agent.restart()
    }

    /// The counter is gone with its agent.
    fn note_destroy_errors(&mut self) {
        self.destroy_errors += self.destroy_errors_now();
    }

    /// Destroys that failed for good, of all agents of this host so far.
    pub(super) fn destroy_errors(&self) -> f64 {
        self.destroy_errors + self.destroy_errors_now()
    }

    fn destroy_errors_now(&self) -> f64 {
        if self.host.agent.pid().is_none() {
            return 0.0;
        }
        let key = "containerizer/mesos/container_destroy_errors";
        let metrics = self.host.agent.metrics().unwrap_or_default();
        metrics.get(key).copied().unwrap_or_default()
    }

    // ---- the disk of the journal

    pub(super) fn fill_disk(&self) -> Result<()> {
        static CHUNK: [u8; 1 << 16] = [0; 1 << 16];
        let path = journal_dir(&self.host.scratch)?.join(FILLER);
        let mut filler = File::create(&path).context("filling the journal's disk")?;
        // Until nothing more fits, to the last byte.
        while filler.write_all(&CHUNK).is_ok() {}
        while filler.write_all(&[0]).is_ok() {}
        Ok(())
    }

    pub(super) fn empty_disk(&self) -> Result<()> {
        let path = journal_dir(&self.host.scratch)?.join(FILLER);
        fs::remove_file(path).context("emptying the journal's disk")
    }

    // ---- the kernel's events

    /// Short-lived processes in the cgroup of a run, that look to the probe like
    /// something that the agent started.
    pub(super) fn flood(&self, container_id: &str, count: usize) -> Result<()> {
        let root = self.host.scratch.cgroup_dirs().iter();
        let procs = root
            .map(|root| root.join(container_id).join("cgroup.procs"))
            .find(|procs| procs.iter().any(|part| part == "freezer") && procs.exists())
            .context("the freezer cgroup of a living executor")?;
        for _ in 0..count {
            let mut child = Command::new("sh");
            child.args(["-c", "echo $$ > \"$1\"", "sh"]).arg(&procs);
            command::output(&mut child, QUERY)?;
        }
        Ok(())
    }

    // ---- the inbox

    /// Puts a file there as the hook module does, complete or not at all.
    pub(super) fn hand_in(&self, name: &str, content: &[u8]) -> Result<()> {
        let inbox = Watcher::inbox(&self.host.scratch);
        ensure!(inbox.is_dir(), "the daemon makes its inbox at start");
        let unfinished = inbox.join(format!(".tmp-{name}"));
        fs::write(&unfinished, content).context("a file in the inbox")?;
        let request = inbox.join(format!("{name}.request"));
        fs::rename(unfinished, request).context("a request in the inbox")
    }
}

fn journal_dir(scratch: &Scratch) -> Result<PathBuf> {
    let journal = Watcher::journal(scratch);
    Ok(journal.parent().context("a file's directory")?.to_owned())
}
