//! The command under test: `compose-cleanup clean --from-inbox`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::bins;
use crate::hook::unused;
use crate::log;
use crate::scratch::Scratch;
use crate::service::Service;
use crate::wait;
use crate::watcher::log_lines;

const END: Duration = Duration::from_secs(150);
const SAY: Duration = Duration::from_secs(60);

/// One run of it.
#[derive(Debug)]
pub struct Clean {
    service: Service,
    log: PathBuf,
}

impl Clean {
    pub fn spawn(scratch: &Scratch, config: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start(
            scratch,
            scratch.command(bins::find("compose-cleanup")?),
            config,
            arguments,
        )
    }

    /// [`Self::spawn`] by a program that takes a command line and runs it.
    pub fn spawn_through(scratch: &Scratch, wrapper: &[&str], config: &Path) -> Result<Self> {
        let (program, arguments) = wrapper.split_first().context("a program")?;
        let mut command = scratch.command(program);
        command.args(arguments).arg(bins::find("compose-cleanup")?);
        Self::start(scratch, command, config, &[])
    }

    fn start(
        scratch: &Scratch,
        mut command: Command,
        config: &Path,
        arguments: &[&str],
    ) -> Result<Self> {
        command
            .args(["clean", "--from-inbox", "--config"])
            .arg(config)
            .args(arguments)
            .env("RUST_LOG", "warn,cleanup_userspace=debug");
        let log = unused(scratch, "clean.log");
        Ok(Self {
            service: Service::spawn(command, &log)?,
            log,
        })
    }

    /// Waits for a line with this message.
    pub fn wait_message(&self, message: &str) -> Result<Value> {
        wait::try_until(SAY, format_args!("clean to say `{message}`"), || {
            Ok(self.said(message)?.pop())
        })
        .with_context(|| log::tail(&self.log, 30))
    }

    /// The lines with this message.
    pub fn said(&self, message: &str) -> Result<Vec<Value>> {
        let mut lines = log_lines(&self.log)?;
        lines.retain(|line| line["message"] == message);
        Ok(lines)
    }

    pub fn kill9(&mut self) -> Result<()> {
        self.service.kill().map(|_| ())
    }

    /// SIGTERM; its exit status.
    pub fn stop(self) -> Result<Ended> {
        self.service
            .signal(rustix::process::Signal::TERM)
            .context("SIGTERM to clean")?;
        self.end()
    }

    /// Waits for its end.
    pub fn end(mut self) -> Result<Ended> {
        let status = self.service.wait(END)?.code();
        Ok(Ended {
            status: status.context("it was killed")?,
            output: fs::read_to_string(&self.log).context("its output")?,
            log: self.log,
        })
    }
}

/// A run that is over.
#[derive(Debug)]
pub struct Ended {
    pub status: i32,
    /// Everything it wrote, which is more than its log if it refused.
    pub output: String,
    log: PathBuf,
}

impl Ended {
    #[track_caller]
    pub fn expect(&self, status: i32) -> &Self {
        assert_eq!(self.status, status, "{}", self.output);
        self
    }

    pub fn said(&self, message: &str) -> Result<Vec<Value>> {
        let mut lines = log_lines(&self.log)?;
        lines.retain(|line| line["message"] == message);
        Ok(lines)
    }

    /// The closing line of a run's only case.
    pub fn case(&self, container_id: &str) -> Result<Value> {
        let mut cases = self.said("case")?;
        cases.retain(|line| line["container"] == container_id);
        anyhow::ensure!(cases.len() == 1, "{} cases: {}", cases.len(), self.output);
        cases.pop().context("a case")
    }
}
