//! Ends in every way that the exit probe has to get right. Driven by `suites/kernel.rs`.
//!
//! ```text
//! exit-case [--in CGROUP]... CASE [ARGUMENT]...
//! ```
//!
//! It enters the cgroups (directories), then plays the case. What a test has to know it prints, a
//! line each; what it waits for is the end of its standard input.
//!
//! The cases are about single threads and their ends, about clones with a chosen pid and about
//! programs without a name. The standard library has words for none of these, hence `libc`. The
//! process stays single-threaded until a case starts threads of its own.

use std::{
    env,
    ffi::{CString, OsString},
    fs,
    io::{self, Read as _, Write as _},
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

type Result<T> = io::Result<T>;

fn main() -> ExitCode {
    match play(env::args_os().skip(1).collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("exit-case: {error}");
            ExitCode::from(99)
        }
    }
}

fn play(mut arguments: Vec<OsString>) -> Result<ExitCode> {
    while arguments.first().is_some_and(|first| first == "--in") {
        let cgroup = arguments.drain(..2).nth(1).expect("a directory after --in");
        enter(Path::new(&cgroup))?;
    }
    let words: Vec<&str> = arguments
        .iter()
        .map(|argument| argument.to_str().expect("case and arguments in UTF-8"))
        .collect();
    match *words {
        ["exit", code] => return Ok(ExitCode::from(number(code) as u8)),
        ["hold"] => {
            say(&std::process::id());
            wait_for_end_of_input();
        }
        ["launcher", ref case @ ..] => launcher(case)?,
        ["monitor", count] => monitor(number(count))?,
        ["threads", count] => threads(number(count)),
        ["leader-first", code] => leader_first(number(code)),
        ["pairs", count] => pairs(number(count))?,
        ["pair"] => pair(),
        ["exec-from-thread"] => exec_from_thread()?,
        ["hydra", cgroup] => hydra(Path::new(cgroup))?,
        ["fork-without-exec", count] => fork_without_exec(number(count))?,
        ["same-pid-twice"] => same_pid_twice()?,
        ["pid-namespace"] => pid_namespace()?,
        ["sealed", ref case @ ..] => sealed(case)?,
        ["say-comm"] => say(&fs::read_to_string("/proc/self/comm")?.trim()),
        _ => panic!("no such case: {words:?}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Moves this process into a cgroup.
fn enter(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", cgroup.display())))
}

/// As the launcher helper: starts an executor and waits for it.
fn launcher(case: &[&str]) -> Result<()> {
    myself(case).spawn()?.wait()?;
    Ok(())
}

/// Children that execute a program and are reaped, one after the other.
fn monitor(count: u32) -> Result<()> {
    say(&std::process::id());
    for _ in 0..count {
        reap(myself(&["exit", "0"]).spawn()?)?;
    }
    Ok(())
}

/// Threads that all end before the leader.
fn threads(count: u32) {
    let threads: Vec<_> = (0..count).map(|_| thread::spawn(|| ())).collect();
    for thread in threads {
        thread.join().expect("a thread that does nothing");
    }
}

/// The leader ends; a thread lives on until it is told to end, as the last task of the group.
fn leader_first(code: u32) -> ! {
    let leader = std::process::id();
    thread::spawn(move || {
        // The state of a leader that has ended, and stays for the sake of its threads.
        let stat = format!("/proc/self/task/{leader}/stat");
        let is_zombie = || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") Z "));
        while !is_zombie() {
            thread::yield_now();
        }
        say(&gettid());
        wait_for_end_of_input();
        end_thread(code)
    });
    end_thread(0)
}

/// Forks for as long as there are fewer than a hundred processes in the cgroup, and so do they all:
/// whoever is signalled has successors that were not listed yet. They end after a minute.
fn hydra(cgroup: &Path) -> Result<()> {
    let processes = cgroup.join("cgroup.procs");
    let end = Instant::now() + Duration::from_mins(1);
    while Instant::now() < end {
        if fs::read_to_string(&processes)?.lines().count() < 100 {
            // SAFETY: single-threaded, see above.
            let forked = unsafe { libc::fork() };
            if forked < 0 {
                return Err(io::Error::last_os_error());
            }
        } else {
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Processes whose two threads end at the same instant.
fn pairs(count: u32) -> Result<()> {
    for _ in 0..count {
        reap(myself(&["pair"]).spawn()?)?;
    }
    Ok(())
}

fn pair() -> ! {
    thread::spawn(|| end_with_the_other(1));
    end_with_the_other(0)
}

fn end_with_the_other(cpu: usize) -> ! {
    static READY: AtomicU32 = AtomicU32::new(0);
    pin(cpu);
    READY.fetch_add(1, Ordering::SeqCst);
    while READY.load(Ordering::SeqCst) < 2 {
        std::hint::spin_loop();
    }
    end_thread(0)
}

/// Another thread than the leader executes a program, which takes over the leader's pid.
fn exec_from_thread() -> Result<()> {
    let thread = thread::spawn(|| Err(myself(&["exit", "3"]).exec()));
    thread.join().expect("a thread that does not return")
}

/// Children that end without ever executing a program.
fn fork_without_exec(count: u32) -> Result<()> {
    for _ in 0..count {
        let child = clone(0, None)?;
        if child == 0 {
            end_process(0);
        }
        wait(child)?;
    }
    Ok(())
}

/// Two programs, one after the other, with the same pid. Says the pid.
fn same_pid_twice() -> Result<()> {
    loop {
        let spare = clone(0, None)?;
        if spare == 0 {
            end_process(0);
        }
        wait(spare)?;
        if clone_and_exit(0, Some(spare))? && clone_and_exit(0, Some(spare))? {
            say(&spare);
            return Ok(());
        }
        // Somebody else took it meanwhile: try with another.
    }
}

/// A program that is pid 1 to itself. Says the pid that it has here.
fn pid_namespace() -> Result<()> {
    let child = clone(libc::CLONE_NEWPID as u64, None)?;
    if child == 0 {
        exec_or_end(&["exit", "0"]);
    }
    say(&child);
    wait(child)
}

/// Executes itself from a sealed copy in memory, by its descriptor: the program's name is a number.
fn sealed(case: &[&str]) -> Result<()> {
    let name = CString::new("sealed").expect("no NUL");
    // SAFETY: the name is a C string that outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_ALLOW_SEALING) };
    let fd = check(fd)?;
    // SAFETY: just opened, and nobody else's.
    let mut copy = fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    copy.write_all(&fs::read("/proc/self/exe")?)?;
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: the command takes an integer.
    check(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) })?;
    // Not `/proc/self/fd`, since that is another process while the program is being started.
    let path = format!("/proc/{}/fd/{fd}", std::process::id());
    Err(Command::new(path).args(case).exec())
}

/// This program again, in the same cgroups.
fn myself(case: &[&str]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(case);
    command
}

fn reap(mut child: Child) -> Result<()> {
    let status = child.wait()?;
    assert!(status.success(), "{status}");
    Ok(())
}

/// A child with this pid executes a program that exits. False if the pid is taken.
fn clone_and_exit(flags: u64, pid: Option<libc::pid_t>) -> Result<bool> {
    match clone(flags, pid) {
        Ok(0) => exec_or_end(&["exit", "0"]),
        Ok(child) => wait(child).map(|()| true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// `fork(2)` with flags and a chosen pid. Returns 0 in the child.
fn clone(flags: u64, pid: Option<libc::pid_t>) -> Result<libc::pid_t> {
    // SAFETY: the structure is made of integers only.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(pid) = &pid {
        arguments.set_tid = std::ptr::from_ref(pid) as u64;
        arguments.set_tid_size = 1;
    }
    let size = size_of_val(&arguments);
    // SAFETY: without CLONE_VM the child has its own copy of everything, and this process has one
    // thread, so no lock is held by a thread that the child lacks.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) };
    check(child as libc::pid_t)
}

fn exec_or_end(case: &[&str]) -> ! {
    let error = myself(case).stdin(Stdio::null()).exec();
    eprintln!("exit-case: {error}");
    end_process(98)
}

fn wait(child: libc::pid_t) -> Result<()> {
    let mut status = 0;
    // SAFETY: the status is written to a variable that outlives the call.
    check(unsafe { libc::waitpid(child, &raw mut status, 0) })?;
    assert_eq!(status, 0, "wait status of {child}");
    Ok(())
}

/// Ends this thread, and only this one.
fn end_thread(code: u32) -> ! {
    // SAFETY: nothing of this thread is used afterwards; what is on its stack is leaked.
    unsafe { libc::syscall(libc::SYS_exit, code) };
    unreachable!()
}

/// Ends the process without running what a parent registered.
fn end_process(code: i32) -> ! {
    // SAFETY: it has no preconditions.
    unsafe { libc::_exit(code) }
}

fn gettid() -> libc::pid_t {
    // SAFETY: it has no preconditions.
    unsafe { libc::gettid() }
}

/// Keeps this thread on one CPU.
fn pin(cpu: usize) {
    // SAFETY: a set of bits; none is a valid set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU numbers are bounds-checked in there.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set outlives the call.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    check(result).expect("two CPUs");
}

fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn say(what: &dyn std::fmt::Display) {
    println!("{what}");
}

fn wait_for_end_of_input() {
    let mut rest = Vec::new();
    io::stdin()
        .read_to_end(&mut rest)
        .expect("readable standard input");
}

fn number(text: &str) -> u32 {
    text.parse().expect("a number")
}
