//! Who else listens to exits on a host, and how each of them is started.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::service::Service;
use cleanup_tests::{bins, wait};

use crate::setup::{self, Consent, Need, find_program};

/// To load, and to say something.
const READY: Duration = Duration::from_secs(60);
/// More than any heading that comes before the first exit.
const HEADING: u64 = 200;
/// What `exit-listener` says of its first exit; the others print every exit.
const FIRST: &str = "listening";
/// Who attaches to a tracepoint by its name wants the kernel's trace files, which not every host has
/// mounted: in a mount namespace of its own that is nobody else's business. A refusal shows as the
/// listener's failure.
const WITH_TRACEFS: &str = "mount -t tracefs none /sys/kernel/tracing
mount -t debugfs none /sys/kernel/debug
exec \"$@\"";

/// Another program that listens to exits.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) name: &'static str,
    program: PathBuf,
    arguments: &'static [&'static str],
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The kernel's proc connector, over a netlink socket.
    Connector,
    /// A BPF program, at a tracepoint by its name.
    Bpf,
}

/// Name, program, arguments, kind.
const PACKAGED: [(&str, &str, &[&str], Kind); 3] = [
    ("exitsnoop (libbpf-tools)", "exitsnoop", &[], Kind::Bpf),
    (
        "bpftrace",
        "bpftrace",
        &[
            "-e",
            "tracepoint:sched:sched_process_exit { printf(\"%d %s\\n\", pid, comm); }",
        ],
        Kind::Bpf,
    ),
    ("forkstat", "forkstat", &["-e", "exit"], Kind::Connector),
];

/// A listener's name, and why it is not measured.
pub(super) type LeftOut = (&'static str, String);

/// Those that can be had here, and the others.
pub(super) fn find() -> Result<(Vec<Listener>, Vec<LeftOut>)> {
    let installed = setup::ensure(&[Need::ExitListeners], Consent::Given);
    let reason = |program: &str| match &installed {
        Err(error) => format!("{program} is not there: {error:#}"),
        Ok(()) => format!("{program} is not there"),
    };
    let mut found = vec![Listener {
        name: "proc connector, the least",
        program: bins::find("exit-listener")?,
        arguments: &[],
        kind: Kind::Connector,
    }];
    let mut missing = Vec::new();
    for (name, program, arguments, kind) in PACKAGED {
        match find_program(program) {
            Some(program) => found.push(Listener {
                name,
                program,
                arguments,
                kind,
            }),
            None => missing.push((name, reason(program))),
        }
    }
    Ok((found, missing))
}

impl Listener {
    /// Starts it and has `exits` happen until it has heard of one.
    pub(super) fn start(
        &self,
        scratch: &Scratch,
        exits: impl Fn() -> Result<()>,
    ) -> Result<Service> {
        let log = scratch.path().join("listener.log");
        if log.exists() {
            // What an earlier one said must not be taken for this one's words.
            fs::remove_file(&log).with_context(|| log.display().to_string())?;
        }
        let mut service = Service::spawn(self.command(scratch), &log)?;
        wait::try_until(READY, format!("{} to hear of an exit", self.name), || {
            let said = || fs::read_to_string(&log).unwrap_or_default();
            if let Some(status) = service.ended() {
                bail!("it ended ({status}): {}", said().trim_end());
            }
            exits()?;
            let said = said();
            Ok((said.len() as u64 > HEADING || said.contains(FIRST)).then_some(()))
        })?;
        Ok(service)
    }

    fn command(&self, scratch: &Scratch) -> Command {
        let Self {
            program, arguments, ..
        } = self;
        let mut command = match self.kind {
            Kind::Connector => scratch.command(program),
            Kind::Bpf => {
                let mut command = scratch.command("unshare");
                command.args(["--mount", "sh", "-c", WITH_TRACEFS, "sh"]);
                command.arg(program);
                command
            }
        };
        command.args(*arguments);
        command
    }
}

/// Fails if a BPF listener's programs did not run for each exit of the load.
pub(super) fn ensure_heard(name: &str, runs: u64, exits: u64) -> Result<()> {
    ensure!(
        runs >= exits,
        "{name}: its BPF programs ran {runs} times for {exits} exits"
    );
    Ok(())
}
