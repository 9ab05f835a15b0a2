//! How many instructions a piece of code takes in user space, counted one by one: the other way, by
//! the processor's own counters, is one that few virtual machines have.
//!
//! The code is in a process of its own, which hands itself over ([`counted`]) to the one that counts
//! ([`count`]). What the kernel does in a system call is in no count.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::ptr::null_mut;

use anyhow::{Context, Result, bail, ensure};
use libc::{SIGSTOP, SIGTRAP, c_long, pid_t};

/// What the process says before it stops for the first time.
const MARK: &str = "traced ";
/// After so many seconds it is ended: a step waits for as long as a system call takes.
const LIMIT_S: u32 = 300;

/// The counted half: runs `work` while the process that started this one, with [`count`], counts.
pub fn counted<T>(work: impl FnOnce() -> T) -> Result<T> {
    // SAFETY: it takes a number.
    unsafe { libc::alarm(LIMIT_S) };
    ptrace(libc::PTRACE_TRACEME, 0, 0).context("asking to be traced")?;
    // SAFETY: it has no preconditions.
    let thread = unsafe { libc::gettid() };
    eprintln!("{MARK}{thread}");
    stop()?;
    let done = work();
    stop()?;
    Ok(done)
}

/// Runs a program that calls [`counted`] once, to its end; returns how many instructions that took.
/// The call of a thread that starts no other processes meanwhile.
pub fn count(command: &mut Command) -> Result<u64> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting what is to be counted")?;
    let mut stderr = BufReader::new(child.stderr.take().context("its stderr")?);
    let mut thread = None;
    let counted = handed_over(&mut stderr).and_then(|id| {
        thread = Some(id);
        step_through(id)
    });
    if counted.is_err() {
        end(&mut child, thread);
    }
    let mut said = String::new();
    let _ = stderr.read_to_string(&mut said);
    let status = child.wait().context("the end of what was counted")?;
    let counted = counted.with_context(|| said.clone())?;
    ensure!(status.success(), "{status}: {said}");
    Ok(counted)
}

/// The thread that is to be counted.
fn handed_over(stderr: &mut impl std::io::BufRead) -> Result<pid_t> {
    for line in stderr.lines() {
        let line = line.context("its stderr")?;
        if let Some(thread) = line.strip_prefix(MARK) {
            return thread.parse().context(line);
        }
    }
    bail!("it ended before it was to be counted")
}

/// From its first stop to its second.
fn step_through(thread: pid_t) -> Result<u64> {
    let first = stopped_by(thread)?;
    ensure!(first == SIGSTOP, "stopped by signal {first}");
    // Should this process die, nothing is left behind.
    let options = c_long::from(libc::PTRACE_O_EXITKILL);
    ptrace(libc::PTRACE_SETOPTIONS, thread, options).context("setting up the trace")?;
    let mut steps = 0;
    loop {
        ptrace(libc::PTRACE_SINGLESTEP, thread, 0).context("a step")?;
        match stopped_by(thread)? {
            SIGTRAP => steps += 1,
            SIGSTOP => break,
            other => bail!("signal {other} after {steps} instructions"),
        }
    }
    ptrace(libc::PTRACE_DETACH, thread, 0).context("letting it go")?;
    Ok(steps)
}

/// Waits until it stops.
fn stopped_by(thread: pid_t) -> Result<i32> {
    let mut status = 0;
    // SAFETY: the status is written to a variable that outlives the call.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    ensure!(waited == thread, "{}", std::io::Error::last_os_error());
    ensure!(
        libc::WIFSTOPPED(status),
        "it ended while it was counted (wait status {status:#x})"
    );
    Ok(libc::WSTOPSIG(status))
}

fn end(child: &mut Child, thread: Option<pid_t>) {
    // It may have ended by itself.
    let _ = child.kill();
    if let Some(thread) = thread {
        // A traced thread's end is for its tracer to see, before that of its process.
        let _ = stopped_by(thread);
    }
}

fn ptrace(request: libc::c_uint, thread: pid_t, data: c_long) -> Result<()> {
    // SAFETY: none of the requests that are made here reads or writes memory of this process.
    let result = unsafe { libc::ptrace(request, thread, null_mut::<()>(), data) };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    Ok(())
}

/// Stops this thread, for its tracer to see.
fn stop() -> Result<()> {
    // SAFETY: it takes a number.
    let result = unsafe { libc::raise(SIGSTOP) };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    Ok(())
}
