//! The first process of the guests of `cargo xtask vm`: mounts what a host has, runs the job's
//! programs one after the other, and ends the virtual machine with their status. Built static:
//! there is nothing else in the guest.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{self, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cleanup_tests::guest::{CgroupMode, EXIT_MAX, JOB_FILE, Job, Line, Program, play, say};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{WaitOptions, chdir, chroot, wait};
use rustix::system::{finit_module, uname};

/// As distributions mount them.
const V1: &[&str] = &[
    "cpuset",
    "cpu,cpuacct",
    "blkio",
    "memory",
    "devices",
    "freezer",
    "net_cls,net_prio",
    "perf_event",
    "hugetlb",
    "pids",
    "misc",
];
const CGROUPS: &str = "/sys/fs/cgroup";

fn main() {
    if process::id() != 1 {
        eprintln!("vm-init is the first process of a virtual machine (`cargo xtask vm`)");
        process::exit(2);
    }
    play(run)
}

/// Does the job; the first failure's status is the guest's.
fn run() -> Result<u8> {
    leave_first_root()?;
    mount_at("proc", "/proc", "")?;
    let uptime = uptime()?;
    mount_at("sysfs", "/sys", "")?;
    mount_at("devtmpfs", "/dev", "")?;
    // Without it runc fails on 5.10.
    symlink("/proc/self/fd", "/dev/fd").context("linking /dev/fd")?;
    mount_at("tracefs", "/sys/kernel/tracing", "")?;
    mount_at("securityfs", "/sys/kernel/security", "")?;
    mount_at("tmpfs", "/run", "mode=755")?;
    mount_at("tmpfs", "/tmp", "mode=1777")?;

    let text = fs::read_to_string(JOB_FILE).with_context(|| format!("reading {JOB_FILE}"))?;
    let job = Job::parse(&text)?;
    for module in &job.modules {
        load_module(module)?;
    }
    mount_cgroups(job.cgroups)?;
    let release = uname().release().to_string_lossy().into_owned();
    say(&Line::Booted { release, uptime });

    let mut first_failure = 0;
    for program in &job.programs {
        let status = run_program(program)?;
        if first_failure == 0 && status != 0 {
            first_failure = u8::try_from(status).unwrap_or(EXIT_MAX).min(EXIT_MAX);
        }
    }
    Ok(first_failure)
}

/// The kernel's first root cannot be left by `pivot_root`, which container engines use: what
/// lies on it becomes a mount of its own, over the first.
fn leave_first_root() -> Result<()> {
    const BESIDE: &str = "/root-of-all";
    fs::create_dir(BESIDE).context("making the place of the second root")?;
    mount_bind("/", BESIDE).context("binding the first root")?;
    chdir(BESIDE).context("entering the second root")?;
    mount_move(".", "/").context("moving the second root over the first")?;
    chroot(".").context("making it the root")?;
    chdir("/").context("entering it")
}

/// Compressed modules are unpacked before they come here: not every kernel can do that.
fn load_module(path: &str) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {path}"))?;
    match finit_module(&file, c"", 0) {
        // The kernel was built with it, or loaded it by itself.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("loading {path}")),
    }
}

fn mount_at(kind: &str, at: &str, options: &str) -> Result<()> {
    try_mount(kind, Path::new(at), options).with_context(|| format!("mounting {kind} at {at}"))
}

fn try_mount(kind: &str, at: &Path, options: &str) -> Result<()> {
    fs::create_dir_all(at)?;
    let options = std::ffi::CString::new(options)?;
    mount(kind, at, kind, MountFlags::empty(), &*options)?;
    Ok(())
}

fn uptime() -> Result<Duration> {
    let text = fs::read_to_string("/proc/uptime").context("reading /proc/uptime")?;
    let seconds = text.split(' ').next().and_then(|word| word.parse().ok());
    Ok(Duration::from_secs_f64(
        seconds.context("/proc/uptime holds no number")?,
    ))
}

fn mount_cgroups(mode: CgroupMode) -> Result<()> {
    match mode {
        CgroupMode::V1 => mount_v1(),
        CgroupMode::Hybrid => {
            mount_v1()?;
            mount_at("cgroup2", &format!("{CGROUPS}/unified"), "")
        }
        CgroupMode::V2 => mount_v2(),
    }
}

fn mount_v1() -> Result<()> {
    mount_at("tmpfs", CGROUPS, "mode=755")?;
    for controllers in V1 {
        let at = format!("{CGROUPS}/{controllers}");
        match try_mount("cgroup", Path::new(&at), controllers) {
            Ok(()) => {}
            // The kernel was built without it.
            Err(error) if error.downcast_ref() == Some(&Errno::INVAL) => {
                fs::remove_dir(&at).with_context(|| format!("removing {at}"))?;
                say(&Line::Lacks {
                    controller: (*controllers).to_owned(),
                });
                continue;
            }
            Err(error) => return Err(error.context(format!("mounting {controllers}"))),
        }
        if controllers.contains(',') {
            for controller in controllers.split(',') {
                symlink(controllers, format!("{CGROUPS}/{controller}"))
                    .with_context(|| format!("linking {controller}"))?;
            }
        }
    }
    mount_at("cgroup", &format!("{CGROUPS}/systemd"), "none,name=systemd")
}

fn mount_v2() -> Result<()> {
    mount_at("cgroup2", CGROUPS, "")?;
    // Controllers go to children of a cgroup without processes of its own.
    let own = Path::new(CGROUPS).join("init");
    fs::create_dir(&own).context("making a cgroup for ourselves")?;
    fs::write(own.join("cgroup.procs"), "1").context("moving ourselves")?;
    let controllers = fs::read_to_string(Path::new(CGROUPS).join("cgroup.controllers"))
        .context("reading cgroup.controllers")?;
    for controller in controllers.split_ascii_whitespace() {
        fs::write(
            Path::new(CGROUPS).join("cgroup.subtree_control"),
            format!("+{controller}"),
        )
        .with_context(|| format!("enabling {controller}"))?;
    }
    Ok(())
}

/// Runs a program to its end, and returns its exit status, or 128 and the signal's number.
fn run_program(program: &Program) -> Result<i32> {
    let Program { name, command } = program;
    say(&Line::Begins {
        program: name.clone(),
    });
    let start = Instant::now();
    let (file, arguments) = command.split_first().context("a program without a path")?;
    let child = Command::new(file)
        .args(arguments)
        .env("PATH", "/bin:/usr/sbin:/usr/bin")
        .env("HOME", "/")
        .spawn()
        .with_context(|| format!("starting {file}"))?;
    let status = reap_until(child.id())?;
    let status = status
        .code()
        .or_else(|| Some(128 + status.signal()?))
        .with_context(|| format!("{name}: {status}"))?;
    say(&Line::Ended {
        program: name.clone(),
        status,
        took: start.elapsed(),
    });
    Ok(status)
}

/// Waits for a child, and for every orphan that becomes ours meanwhile.
fn reap_until(child: u32) -> Result<ExitStatus> {
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty()).context("waiting for children")?
        else {
            continue;
        };
        if pid.as_raw_nonzero().get().cast_unsigned() == child {
            return Ok(ExitStatus::from_raw(status.as_raw()));
        }
    }
}
