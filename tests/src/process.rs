//! Processes by pid *and* start time, so that a reused pid is never taken for
//! the process that had it before.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Signal, getrlimit, pidfd_open, pidfd_send_signal,
};
use rustix::thread::{CapabilitySet, capabilities};

use crate::wait;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    pid: i32,
    /// Clock ticks since boot.
    start_time: u64,
}

/// What `/proc/PID/stat` says of a process.
struct Stat {
    state: char,
    threads: u32,
    start_time: u64,
}

impl Stat {
    /// The state is the first thread's: until the others have ended, too, files are
    /// open and locks held.
    fn ended(&self) -> bool {
        self.state == 'X' || self.state == 'Z' && self.threads <= 1
    }
}

impl Process {
    /// The process that has this pid now.
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|stat| Self {
            pid,
            start_time: stat.start_time,
        })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Still running; a zombie is not.
    pub fn alive(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.start_time == self.start_time && !stat.ended())
    }

    /// By thread, as the kernel lists them: who looks through all processes for each of
    /// ten thousand executors takes an hour.
    pub fn children(&self) -> Vec<Self> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid));
        let lists = tasks
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let mut found = Vec::new();
        for list in lists {
            let pids = list
                .split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok());
            found.extend(pids.filter_map(Self::of));
        }
        found
    }

    /// Sends a signal to this very process; fails if it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid).context("a pid is above 0")?;
        // The pidfd is taken before the look at the start time: whatever has
        // the pid in between, the signal goes to what was looked at.
        let process = pidfd_open(pid, PidfdFlags::empty());
        if process.is_err() || Self::of(self.pid) != Some(*self) {
            bail!("process {} is gone", self.pid);
        }
        pidfd_send_signal(process?, signal)
            .with_context(|| format!("signal {signal:?} to process {}", self.pid))
    }

    /// Sends SIGKILL; a process that is gone already is no error.
    pub fn kill(&self) {
        if let Err(error) = self.signal(Signal::KILL)
            && self.alive()
            && error.downcast_ref::<Errno>() != Some(&Errno::SRCH)
        {
            eprintln!("{error:#}");
        }
    }

    pub fn wait_gone(&self, limit: Duration) -> Result<()> {
        let what = format!("the end of process {} ({})", self.pid, self.command_line());
        wait::until(limit, what, || (!self.alive()).then_some(()))
    }

    /// For messages: its arguments, joined by blanks.
    pub fn command_line(&self) -> String {
        let arguments = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&arguments)
            .replace('\0', " ")
            .trim_end()
            .to_owned()
    }

    /// Does its environment hold exactly `NAME=value`?
    pub fn has_environment(&self, entry: &str) -> bool {
        fs::read(format!("/proc/{}/environ", self.pid)).is_ok_and(|environment| {
            environment
                .split(|&byte| byte == 0)
                .any(|one| one == entry.as_bytes())
        })
    }
}

/// Whether root may have real-time priority here without CAP_SYS_NICE: some machines
/// keep CAP_SYS_RESOURCE from it.
pub fn may_raise_priority_limit() -> Result<bool> {
    let limit = getrlimit(Resource::Rtprio).maximum;
    let ours = capabilities(None).context("this thread's capabilities")?;
    Ok(limit.is_none_or(|limit| limit > 0) || ours.effective.contains(CapabilitySet::SYS_RESOURCE))
}

/// Threads of a process with real-time priority (SCHED_FIFO; proc(5), `policy`).
pub fn real_time_threads(pid: i32) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    let tasks = format!("/proc/{pid}/task");
    for entry in fs::read_dir(&tasks).context(tasks)? {
        // A thread that has ended meanwhile.
        let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) else {
            continue;
        };
        let (thread, rest) = stat.split_once(' ').context("a thread's number")?;
        let (_, rest) = rest.rsplit_once(") ").context("a thread's name")?;
        if rest.split(' ').nth(38).context("a thread's policy")? == "1" {
            found.push(thread.parse()?);
        }
    }
    Ok(found)
}

/// Every process of the host at this moment.
pub fn all() -> impl Iterator<Item = Process> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Process::of)
}

/// Every living process, but this one, whose environment holds `NAME=value`.
pub fn with_environment(entry: &str) -> Vec<Process> {
    let own = std::process::id().cast_signed();
    all()
        .filter(|process| process.pid != own && process.has_environment(entry) && process.alive())
        .collect()
}

/// Kills whatever `find` finds, until it finds nothing any more.
pub fn kill_all(limit: Duration, mut find: impl FnMut() -> Vec<Process>) -> Result<()> {
    let mut left = Vec::new();
    wait::until(limit, "the end of the last process", || {
        left = find();
        for process in &left {
            process.kill();
        }
        left.is_empty().then_some(())
    })
    .with_context(|| {
        let left: Vec<_> = left.iter().map(Process::command_line).collect();
        format!("still there: {left:?}")
    })
}

fn stat(pid: i32) -> Option<Stat> {
    let line = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold any byte: start after the last.
    let end = line.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&line[end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        // Fields 20 and 22 of the line; the first three are taken.
        threads: fields.nth(16)?.parse().ok()?,
        start_time: fields.nth(1)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_child_is_found_killed_and_not_mistaken_for_another() -> Result<()> {
        let own = Process::of(std::process::id().cast_signed()).context("this process")?;
        let mut child = Command::new("sleep").arg("1000").spawn()?;
        let process = Process::of(child.id().cast_signed()).context("the child")?;
        assert!(own.children().contains(&process));

        let older = Process {
            start_time: process.start_time - 1,
            ..process
        };
        assert!(!older.alive());
        assert!(older.signal(Signal::KILL).is_err());
        assert!(process.alive());

        process.kill();
        process.wait_gone(Duration::from_secs(5))?;
        child.wait()?;
        Ok(())
    }
}
