//! Runs a program as on Linux 4.18, as far as missing system calls make one:
//! everything that came later (io_uring, pidfds, clone3, openat2, …) is refused as
//! that kernel refuses it. What this does not make is an old kernel: its release,
//! its `/proc` and its BPF are this one's.
//!
//! ```text
//! as-on-linux-4-18 PROGRAM [ARGUMENT]...
//! ```

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

/// Since Linux 5.1 a system call has one number on all architectures, and this is
/// the first of them (`pidfd_send_signal`).
const FIRST_OF_5_1: u32 = 424;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("as-on-linux-4-18: no program");
        return ExitCode::FAILURE;
    };
    let error = match refuse_what_came_later() {
        Ok(()) => Command::new(&program)
            .args(arguments.collect::<Vec<OsString>>())
            .exec(),
        Err(error) => error,
    };
    eprintln!("as-on-linux-4-18: {}: {error}", program.display());
    ExitCode::FAILURE
}

/// Installs a filter for this process and those that it starts. Root's right.
fn refuse_what_came_later() -> io::Result<()> {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let refusal = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    let mut filter = [
        // The number is the first field of `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(
            libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K,
            0,
            1,
            FIRST_OF_5_1,
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, refusal),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program points to as many instructions as it says; the kernel
    // copies them before the call returns.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
