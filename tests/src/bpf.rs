//! What the kernel says of BPF programs, and a program that does nothing, to compare others with.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};

/// Commands, kinds and classes of `include/uapi/linux/bpf.h`.
const PROG_LOAD: libc::c_long = 5;
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const ENABLE_STATS: libc::c_long = 32;
const TYPE_TRACING: u32 = 26;
const ATTACH_RAW_TP: u32 = 23;

/// `r0 = 0; exit`
const EMPTY: [u64; 2] = [0xb7, 0x95];
const LICENSE: &[u8] = b"GPL\0";

/// While it lives, the kernel counts the runs of every program of the host, and their time. That is
/// off by default, since it costs each run two looks at the clock.
#[derive(Debug)]
pub struct Statistics {
    _fd: OwnedFd,
}

impl Statistics {
    /// The kernel forgets it with the descriptor, however this process ends.
    pub fn enable() -> Result<Self> {
        // `enable_stats.type`: BPF_STATS_RUN_TIME.
        let fd = bpf(ENABLE_STATS, &[0_u8; 4]).context("turning BPF statistics on")?;
        Ok(Self { _fd: fd })
    }
}

/// A program that some process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    pub id: u32,
    /// `enum bpf_prog_type`
    pub kind: u32,
    pub run_ns: u64,
    pub runs: u64,
}

impl Program {
    /// Those of a process, each once, in the order of their ids.
    pub fn of(pid: i32) -> Result<Vec<Self>> {
        let dir = format!("/proc/{pid}/fdinfo");
        let mut found: Vec<Self> = fs::read_dir(&dir)
            .context(dir)?
            .flatten()
            // A descriptor may be closed meanwhile.
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .filter_map(|info| Self::parse(&info))
            .collect();
        found.sort_by_key(|program| program.id);
        found.dedup_by_key(|program| program.id);
        Ok(found)
    }

    /// `None`: not a program's descriptor.
    fn parse(info: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = info.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")?.parse().ok())
        };
        Some(Self {
            // A link has the id of its program, too, and no type.
            kind: u32::try_from(field("prog_type")?).ok()?,
            id: u32::try_from(field("prog_id")?).ok()?,
            run_ns: field("run_time_ns")?,
            runs: field("run_cnt")?,
        })
    }

    /// Whether it is attached by the kernel's types, as ours is.
    pub fn is_tracing(&self) -> bool {
        self.kind == TYPE_TRACING
    }
}

/// A program that returns at once, attached to a tracepoint as ours is.
#[derive(Debug)]
pub struct EmptyProgram {
    _link: OwnedFd,
    program: OwnedFd,
}

impl EmptyProgram {
    /// `tracepoint`: id of the typedef `btf_trace_<name>` in the kernel's BTF.
    pub fn attach(tracepoint: u32) -> Result<Self> {
        // `struct { … } prog_load`, up to `attach_btf_id`; 0 is the default of all others.
        let mut load = [0_u8; 112];
        put(&mut load, 0, &TYPE_TRACING.to_ne_bytes());
        put(&mut load, 4, &(EMPTY.len() as u32).to_ne_bytes());
        put(&mut load, 8, &address(EMPTY.as_ptr()));
        put(&mut load, 16, &address(LICENSE.as_ptr()));
        put(&mut load, 68, &ATTACH_RAW_TP.to_ne_bytes());
        put(&mut load, 108, &tracepoint.to_ne_bytes());
        let program = bpf(PROG_LOAD, &load).context("loading an empty program")?;

        // `raw_tracepoint.name` is left out: the program knows.
        let mut open = [0_u8; 16];
        put(&mut open, 8, &program.as_raw_fd().to_ne_bytes());
        let link = bpf(RAW_TRACEPOINT_OPEN, &open).context("attaching an empty program")?;
        Ok(Self {
            _link: link,
            program,
        })
    }

    /// What the kernel has counted so far.
    pub fn look(&self) -> Result<Program> {
        let path = format!("/proc/self/fdinfo/{}", self.program.as_raw_fd());
        let info = fs::read_to_string(&path).with_context(|| path.clone())?;
        Program::parse(&info).context(path)
    }
}

fn put(attribute: &mut [u8], at: usize, bytes: &[u8]) {
    attribute[at..at + bytes.len()].copy_from_slice(bytes);
}

fn address<T>(of: *const T) -> [u8; 8] {
    (of as u64).to_ne_bytes()
}

/// A command whose answer is a descriptor.
fn bpf(command: libc::c_long, attribute: &[u8]) -> Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as it is told, and what they point to are constants.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), attribute.len()) };
    ensure!(fd >= 0, io::Error::last_os_error());
    // SAFETY: just opened, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_descriptor_is_told_from_others() {
        let program = "pos:\t0\nflags:\t02000002\nprog_type:\t26\nprog_jited:\t1\nprog_tag:\tabc\n\
                       memlock:\t8192\nprog_id:\t75\nrun_time_ns:\t1234\nrun_cnt:\t56\n";
        assert_eq!(
            Program::parse(program),
            Some(Program {
                id: 75,
                kind: 26,
                run_ns: 1234,
                runs: 56
            })
        );
        let link = "link_type:\traw_tracepoint\nlink_id:\t11\nprog_tag:\tabc\nprog_id:\t75\n";
        assert_eq!(Program::parse(link), None);
        assert_eq!(Program::parse("pos:\t0\n"), None);
    }
}
