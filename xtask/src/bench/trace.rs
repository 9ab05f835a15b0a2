//! When the kernel let a process exit and another one see SIGTERM: its own trace events,
//! which need nothing of the processes.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use cleanup_tests::scratch::Scratch;
use rustix::mount::{MountFlags, mount};

const EXIT: &str = "sched_process_exit";
const SIGNAL: &str = "signal_deliver";
const FILES: [(&str, &str); 2] = [("sched", EXIT), ("signal", SIGNAL)];

/// A trace buffer of one's own. The kernel frees it with the last of its directory.
#[derive(Debug)]
pub(super) struct Trace {
    instance: PathBuf,
}

/// CLOCK_MONOTONIC in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) exit_s: Option<f64>,
    pub(super) sigterm_s: Option<f64>,
}

impl Trace {
    pub(super) fn start(scratch: &Scratch) -> Result<Self> {
        let tracefs = scratch.path().join("tracing");
        fs::create_dir_all(&tracefs).with_context(|| tracefs.display().to_string())?;
        // The scratch unmounts it.
        mount("none", &tracefs, "tracefs", MountFlags::empty(), None).context("a tracefs")?;
        let instance = tracefs.join("instances").join(scratch.name());
        fs::create_dir(&instance).with_context(|| instance.display().to_string())?;
        let trace = Self { instance };
        trace.write("trace_clock", "mono")?;
        Ok(trace)
    }

    /// Forgets the past, and looks for the exit of one process and for SIGTERM at another.
    pub(super) fn arm(&self, exits: i32, terminated: i32) -> Result<()> {
        let filters = [
            format!("pid == {exits}"),
            format!("sig == 15 && common_pid == {terminated}"),
        ];
        for ((group, event), filter) in FILES.iter().zip(filters) {
            self.write(&format!("events/{group}/{event}/filter"), &filter)?;
            self.write(&format!("events/{group}/{event}/enable"), "1")?;
        }
        self.write("trace", "")
    }

    pub(super) fn seen(&self) -> Result<Seen> {
        let path = self.instance.join("trace");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(parse(&text))
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.instance.join(file);
        fs::write(&path, text).with_context(|| format!("writing {text:?} to {}", path.display()))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.instance) {
            eprintln!("{}: {error}", self.instance.display());
        }
    }
}

/// The first of each event.
fn parse(text: &str) -> Seen {
    let first = |event: &str| {
        let mark = format!(": {event}: ");
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.find_map(|line| {
            let (before, _) = line.split_once(&mark)?;
            before.split_ascii_whitespace().next_back()?.parse().ok()
        })
    };
    Seen {
        exit_s: first(EXIT),
        sigterm_s: first(SIGNAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_event_is_read() {
        let text = "# tracer: nop\n#\n\
            \x20          sleep-812     [001] d....  5123.123456: sched_process_exit: comm=sleep pid=812 prio=120 group_dead=true\n\
            \x20             sh-900     [000] .....  5123.123999: signal_deliver: sig=15 errno=0 code=0 sa_handler=55d sa_flags=14000000\n\
            \x20             sh-900     [000] .....  5124.000000: signal_deliver: sig=15 errno=0 code=0 sa_handler=55d sa_flags=14000000\n";
        let seen = Seen {
            exit_s: Some(5_123.123_456),
            sigterm_s: Some(5_123.123_999),
        };
        assert_eq!(parse(text), seen);
        assert_eq!(parse("# tracer: nop\n"), Seen::default());
    }
}
