//! How soon the plainest loader there can be learns of an exit: a part of `cargo xtask bench
//! latency`, to compare the daemon with.
//!
//! ```text
//! bare-loader COUNT      a line for each exit: microseconds from the tracepoint to the reader
//! ```

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Map, MapData, RingBuf};
use cleanup_tests::bpf::BareProgram;
use cleanup_tests::command;
use cleanup_tests::scratch::Scratch;
use cleanup_userspace::probe::btf::Btf;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

const BTF: &str = "/sys/kernel/btf/vmlinux";
const TRACEPOINT: &str = "btf_trace_sched_process_exit";
const LIMIT: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};
/// So that the reader blocks again, as that of a host at rest.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 30_000_000,
};

fn main() -> Result<()> {
    let count: usize = match std::env::args().nth(1) {
        Some(count) => count.parse().context("a count")?,
        None => bail!("this is a part of `cargo xtask bench latency`: bare-loader COUNT"),
    };
    let btf = Btf::parse(fs::read(BTF).context(BTF)?).context(BTF)?;
    let tracepoint = btf.typedef_id(TRACEPOINT).context(TRACEPOINT)?;
    drop(btf);
    let (_program, ring) = BareProgram::attach(tracepoint)?;
    let map = MapData::from_fd(ring).context("the ring")?;
    let mut ring = RingBuf::try_from(Map::RingBuf(map)).context("the ring")?;

    let scratch = Scratch::new("bare-loader")?;
    let program = scratch.path().join(BareProgram::NAME);
    symlink(command::system_program("sleep"), &program).context("the program that exits")?;
    for _ in 0..count {
        let mut sleeper = scratch.command(&program);
        let mut sleeper = sleeper.arg("60").stdin(Stdio::null()).spawn()?;
        poll(&mut [], Some(&PAUSE))?;
        sleeper.kill()?;
        let ready = poll(&mut [PollFd::new(&ring, PollFlags::IN)], Some(&LIMIT))?;
        let now = clock_gettime(ClockId::Monotonic);
        ensure!(ready > 0, "no record of an exit");
        let record = ring.next().context("no record of an exit")?;
        let at = record.get(8..16).context("a record of 16 bytes")?;
        let at = u64::from_ne_bytes(at.try_into()?);
        let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        println!("{:.3}", now.saturating_sub(at) as f64 / 1e3);
        drop(record);
        sleeper.wait()?;
    }
    Ok(())
}
