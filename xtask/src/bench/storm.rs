//! A fork storm: processes that start programs as fast as they can.

use std::fs;
use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::{Context, Result};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::service::Service;

/// With two, every CPU has somebody waiting for it even while a shell waits for
/// its child.
pub(super) const SHELLS_PER_CPU: usize = 2;
/// They are killed long before; this bounds them should nobody be left to do it.
const STARTS: u32 = 1_000_000;

/// Rages until it is dropped.
#[derive(Debug)]
pub(super) struct Storm {
    /// Killed by their drop.
    _shells: Vec<Service>,
    began: Instant,
    starts_before: u64,
}

impl Storm {
    pub(super) fn begin(scratch: &Scratch) -> Result<Self> {
        let script = format!("i=0; while [ $i -lt {STARTS} ]; do /bin/true; i=$((i+1)); done");
        let log = scratch.path().join("storm.log");
        let cpus = available_parallelism().map_or(1, usize::from);
        let shells = (0..SHELLS_PER_CPU * cpus)
            .map(|_| {
                let mut shell = scratch.command("sh");
                shell.args(["-c", &script]);
                Service::spawn(shell, &log)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            _shells: shells,
            began: Instant::now(),
            starts_before: processes_started()?,
        })
    }

    /// Processes started so far, by anybody on the host, and the seconds.
    pub(super) fn so_far(&self) -> Result<(u64, f64)> {
        let started = processes_started()?.saturating_sub(self.starts_before);
        Ok((started, self.began.elapsed().as_secs_f64()))
    }
}

/// Processes and threads since boot.
pub(super) fn processes_started() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    parse_processes(&stat).context("no `processes` in /proc/stat")
}

fn parse_processes(stat: &str) -> Option<u64> {
    let line = stat
        .lines()
        .find_map(|line| line.strip_prefix("processes "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn started_processes_are_read() {
        let stat = "cpu  1 2 3\nctxt 5\nprocesses 4711\nprocs_running 1\n";
        assert_eq!(parse_processes(stat), Some(4711));
        assert_eq!(parse_processes("cpu 1"), None);
    }
}
