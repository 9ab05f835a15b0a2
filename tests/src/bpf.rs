//! What the kernel says of BPF programs, and two plain ones to compare others with: one that does
//! nothing, and one that does no more than to tell.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};

/// Commands, kinds and classes of `include/uapi/linux/bpf.h`.
const MAP_CREATE: libc::c_long = 0;
const PROG_LOAD: libc::c_long = 5;
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const ENABLE_STATS: libc::c_long = 32;
const TYPE_TRACING: u32 = 26;
const ATTACH_RAW_TP: u32 = 23;

/// `r0 = 0; exit`
const EMPTY: [u64; 2] = [0xb7, 0x95];
const RING: u32 = 27;
const RING_BYTES: u32 = 64 << 10;
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
        let (program, link) = attach(&EMPTY, tracepoint).context("an empty program")?;
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

/// A program that tells through a ring buffer when a process of one name exits, and does nothing
/// else: the least that a loader can do.
#[derive(Debug)]
pub struct BareProgram {
    _link: OwnedFd,
    _program: OwnedFd,
}

impl BareProgram {
    /// The name (`comm`) of the processes that it tells of.
    pub const NAME: &str = "bare-tgt";

    /// The program, and its ring: a record of 16 bytes an exit, pid and tgid, then the time by
    /// CLOCK_MONOTONIC.
    pub fn attach(tracepoint: u32) -> Result<(Self, OwnedFd)> {
        let mut create = [0_u8; 16];
        put(&mut create, 0, &RING.to_ne_bytes());
        put(&mut create, 12, &RING_BYTES.to_ne_bytes());
        let ring = bpf(MAP_CREATE, &create).context("a ring buffer")?;
        let program = Self::instructions(ring.as_raw_fd());
        let (program, link) = attach(&program, tracepoint).context("a bare program")?;
        let this = Self {
            _link: link,
            _program: program,
        };
        Ok((this, ring))
    }

    fn instructions(ring: i32) -> Vec<u64> {
        let name = Self::NAME.as_bytes();
        let [low, high] = [0, 4].map(|at| {
            let bytes = [name[at], name[at + 1], name[at + 2], name[at + 3]];
            i32::from_le_bytes(bytes)
        });
        vec![
            // bpf_get_current_comm(r10 - 16, 16)
            instruction(0xbf, 1, 10, 0, 0),
            instruction(0x07, 1, 0, 0, -16),
            instruction(0xb7, 2, 0, 0, 16),
            instruction(0x85, 0, 0, 0, 16),
            // Its first eight bytes are the name, or it is over.
            instruction(0x79, 1, 10, -16, 0),
            instruction(0x18, 2, 0, 0, low),
            instruction(0x00, 0, 0, 0, high),
            instruction(0x5d, 1, 2, 11, 0),
            // bpf_ktime_get_ns(), bpf_get_current_pid_tgid()
            instruction(0x85, 0, 0, 0, 5),
            instruction(0x7b, 10, 0, -8, 0),
            instruction(0x85, 0, 0, 0, 14),
            instruction(0x7b, 10, 0, -16, 0),
            // bpf_ringbuf_output(ring, r10 - 16, 16, 0)
            instruction(0x18, 1, 1, 0, ring),
            instruction(0x00, 0, 0, 0, 0),
            instruction(0xbf, 2, 10, 0, 0),
            instruction(0x07, 2, 0, 0, -16),
            instruction(0xb7, 3, 0, 0, 16),
            instruction(0xb7, 4, 0, 0, 0),
            instruction(0x85, 0, 0, 0, 130),
            EMPTY[0],
            EMPTY[1],
        ]
    }
}

/// `struct bpf_insn`
fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | u64::from(destination | source << 4) << 8
        | u64::from(offset as u16) << 16
        | u64::from(immediate as u32) << 32
}

/// A program and the link that keeps it attached. `tracepoint`: as [`EmptyProgram::attach`] has it.
fn attach(program: &[u64], tracepoint: u32) -> Result<(OwnedFd, OwnedFd)> {
    // `struct { … } prog_load`, up to `attach_btf_id`; 0 is the default of all others.
    let mut load = [0_u8; 112];
    put(&mut load, 0, &TYPE_TRACING.to_ne_bytes());
    put(&mut load, 4, &(program.len() as u32).to_ne_bytes());
    put(&mut load, 8, &address(program.as_ptr()));
    put(&mut load, 16, &address(LICENSE.as_ptr()));
    put(&mut load, 68, &ATTACH_RAW_TP.to_ne_bytes());
    put(&mut load, 108, &tracepoint.to_ne_bytes());
    let program = bpf(PROG_LOAD, &load).context("loading")?;

    // `raw_tracepoint.name` is left out: the program knows.
    let mut open = [0_u8; 16];
    put(&mut open, 8, &program.as_raw_fd().to_ne_bytes());
    let link = bpf(RAW_TRACEPOINT_OPEN, &open).context("attaching")?;
    Ok((program, link))
}

fn put(attribute: &mut [u8], at: usize, bytes: &[u8]) {
    attribute[at..at + bytes.len()].copy_from_slice(bytes);
}

fn address<T>(of: *const T) -> [u8; 8] {
    (of as u64).to_ne_bytes()
}

/// A command whose answer is a descriptor.
fn bpf(command: libc::c_long, attribute: &[u8]) -> Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as it is told, and what they point to outlives the call.
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

    #[test]
    fn an_instruction_is_laid_out_as_the_kernel_has_it() {
        // r2 = r10; *(u64 *)(r10 - 8) = r0; exit
        for (instruction, bytes) in [
            (
                instruction(0xbf, 2, 10, 0, 0),
                [0xbf, 0xa2, 0, 0, 0, 0, 0, 0],
            ),
            (
                instruction(0x7b, 10, 0, -8, 0),
                [0x7b, 0x0a, 0xf8, 0xff, 0, 0, 0, 0],
            ),
            (
                instruction(0x07, 2, 0, 0, -16),
                [0x07, 2, 0, 0, 0xf0, 0xff, 0xff, 0xff],
            ),
            (EMPTY[1], [0x95, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(instruction.to_le_bytes(), bytes);
        }
    }
}
