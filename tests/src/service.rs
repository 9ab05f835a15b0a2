//! Long-running children: a daemon under test, dockerd, the Mesos agent.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

use crate::process::Process;
use crate::wait;

const KILLED: Duration = Duration::from_secs(10);

/// A child process that writes to a log and dies with this process at the
/// latest, however this process dies.
#[derive(Debug)]
pub struct Service {
    child: Child,
    process: Process,
    log: PathBuf,
}

impl Service {
    /// Starts `command`; its stdout and stderr are appended to `log`.
    pub fn spawn(mut command: Command, log: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("a second descriptor of the log")?)
            .stderr(file)
            // Ctrl-C on a terminal is for this process, which then ends its services in
            // the right order.
            .process_group(0);
        let child = spawn_bound(command).with_context(|| format!("starting {name}"))?;
        let process = Process::of(child.id().cast_signed()).context("the child just started")?;
        Ok(Self {
            child,
            process,
            log: log.to_owned(),
        })
    }

    pub fn process(&self) -> Process {
        self.process
    }

    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!(
            "the end of process {} ({})",
            self.pid(),
            self.process.command_line()
        );
        wait::until(limit, what, || self.ended()).with_context(|| crate::log::tail(&self.log, 20))
    }

    /// SIGTERM, and SIGKILL if it does not end in time.
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        // It may have ended by itself; what counts is that it has. A stopped
        // process would keep the first signal for later.
        let _ = self
            .signal(Signal::TERM)
            .and_then(|()| self.signal(Signal::CONT));
        let ended = self.wait(limit);
        if ended.is_err() {
            self.kill()?;
        }
        ended
    }

    /// SIGKILL, and reaps it.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.process.kill();
        self.wait(KILLED)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.ended().is_none()
            && let Err(error) = wait::shielded(|| self.kill())
        {
            eprintln!("{error:#}");
        }
    }
}

type Job = (Command, Sender<io::Result<Child>>);

/// The parent *thread's* end triggers PR_SET_PDEATHSIG, and every test has a
/// thread of its own: one that never ends starts all children.
static SPAWNER: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (jobs, queue) = mpsc::channel::<Job>();
    thread::spawn(move || {
        for (mut command, reply) in queue {
            // The one who asked waits for the reply.
            let _ = reply.send(command.spawn());
        }
    });
    Mutex::new(jobs)
});

/// Starts a child that is killed when this process ends, however it ends.
pub fn spawn_bound(mut command: Command) -> io::Result<Child> {
    let parent = getpid();
    // SAFETY: the closure makes two system calls and neither allocates nor
    // takes a lock, which is all that is allowed between fork and exec.
    unsafe { command.pre_exec(move || die_with(parent)) };
    let (reply, child) = mpsc::channel();
    SPAWNER
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, reply))
        .map_err(io::Error::other)?;
    child.recv().map_err(io::Error::other)?
}

fn die_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == Some(parent) {
        Ok(())
    } else {
        // It died before the call above.
        Err(io::ErrorKind::NotFound.into())
    }
}
