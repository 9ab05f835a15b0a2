//! `cargo xtask vm`: the daemon on other kernels, in virtual machines.

mod cpio;
mod engine;
mod fetch;
mod image;
mod modules;
mod qemu;
mod report;
mod suite;
mod systemd;
mod verdict;

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use cleanup_tests::guest::CgroupMode;
use cleanup_tests::wait;

use crate::setup::{self, Consent, Need};
use crate::{stage, workspace};
use fetch::{Kernel, Qemu, SERIES};
use image::Image;
use qemu::{Accel, Guest};
use report::{Cell, Report};
pub(crate) use suite::Suite;

/// How many lines of its log are shown of a guest that failed unseen.
const LAST_WORDS: usize = 60;

/// Run end-to-end tests on other kernels and cgroup modes, in virtual machines
///
/// Debian's cloud kernels and, where it is not installed, QEMU come as packages
/// through this machine's own apt (0.1 GB each at most) into the user's cache
/// folder; nothing is installed. In a guest are static programs of this workspace,
/// and this machine's own Docker and busybox, which `cargo xtask setup` brings; it has
/// no disk and no network.
///
/// A guest passes only when every program in it ended well, it said so, and QEMU's
/// status says the same: a panic, silence and a hang are failures.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
What runs, with --suite smoke:
  doctor   `compose-cleanup doctor`, with its output
  probe    loads and attaches the exit probe, and says what the verifier had to do
  death    an executor dies: its pod is stopped in a real Docker, its cgroups go
and with --suite full instead of the last:
  kernel   tests/suites/kernel.rs, where hierarchies of both versions are mounted
  standin  tests/suites/standin: Docker and the daemon at work, the agent a stand-in
With --suite systemd, two guests that are whole Debians, made by mmdebstrap in the cache
folder (as root; made anew when what they are made of changes, and by --update), with
systemd as their first process and Docker as its service: our .deb is installed,
observes, is reloaded, stops pods, is killed, stopped by SIGSTOP, does without Docker and
without an agent, is upgraded and purged. 5.10 with Debian 12 (hybrid, cgroupfs driver),
6.12 with Debian 13 (v2, systemd driver); --cgroup, --jobs and --shell do not count.
A test that a guest cannot run, or not in reasonable time, is named at the end with
the reason. No guest has a Mesos agent: its packages do not run on all of these.

Kernels: 5.10 (Debian 11), 6.1 (Debian 12), 6.12 (Debian 13), newest (backports of
Debian 13). `--cgroup all` is v1, hybrid and v2, from 6.12 on without v1: memory and
cpuset are left out of it there. What a kernel lacks is in the table.
Logs: target/vm/.

Examples:
  cargo xtask vm                                      Every kernel and mode, shortly
  cargo xtask vm --suite full --jobs 2 --quiet        All of it: half an hour without KVM
  cargo xtask vm --kernel 5.10,6.12 --cgroup v1,v2    Four guests
  cargo xtask vm --kernel 6.12 --cgroup v2 --shell
  cargo xtask vm --suite systemd                      The package under a real systemd
  cargo xtask vm --kernel /boot/vmlinuz-6.6.0         A kernel of your own: the serial
                                                      console, tmpfs and BTF built in

Exit status: 0 all passed, 1 not.")]
pub(crate) struct Args {
    /// 5.10, 6.1, 6.12, newest, all, or the path of a kernel image
    #[arg(
        long,
        default_value = "all",
        value_name = "KERNEL",
        value_delimiter = ','
    )]
    pub(crate) kernel: Vec<String>,

    /// v1, hybrid, v2, or all
    #[arg(
        long,
        default_value = "all",
        value_name = "MODE",
        value_delimiter = ','
    )]
    pub(crate) cgroup: Vec<String>,

    /// What runs in the guests, see below
    #[arg(long, value_enum, default_value_t = Suite::Smoke)]
    pub(crate) suite: Suite,

    /// How many guests at a time; each takes a processor, and memory up to 2.5 GB
    #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) jobs: u8,

    /// `auto` tries once whether KVM really works here
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    pub(crate) accel: AccelChoice,

    /// How long one guest may take, in seconds
    #[arg(long, default_value_t = 1800, value_name = "SECONDS")]
    pub(crate) limit: u64,

    /// Ask the mirror for a newer kernel of the same release, and for the guests' Debians anew
    #[arg(long)]
    pub(crate) update: bool,

    /// A prompt in a guest of that kernel and mode (of several the first), instead of a suite
    #[arg(long)]
    pub(crate) shell: bool,

    /// Do not show what the guests say
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum AccelChoice {
    Auto,
    Kvm,
    Tcg,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the guests are x86_64 machines with this machine's own programs: run it on one"
    );
    // Before anything is built: it is the user's mistake, if it is one.
    let modes = modes(&args.cgroup)?;
    if args.suite != Suite::Systemd {
        choose_kernels(&args.kernel)?;
    }
    setup::ensure(&[Need::BpfToolchain, Need::Docker], Consent::Given)?;
    if args.suite == Suite::Systemd {
        return stage::interruptible(|| systemd::run(args));
    }
    stage::interruptible(|| run_all(args, modes.as_deref()))
}

fn run_all(args: &Args, modes: Option<&[CgroupMode]>) -> Result<ExitCode> {
    let qemu = Qemu::fetch()?;
    let kernels = choose_kernels(&args.kernel)?
        .into_iter()
        .map(|choice| match choice {
            Choice::Series(series) => Kernel::fetch(series, args.update),
            Choice::File(path) => Kernel::of_file(path),
        })
        .collect::<Result<Vec<_>>>()?;
    let image = Image::build()?;
    let first = kernels.first().context("no kernel was chosen")?;
    let accel = match args.accel {
        AccelChoice::Auto => qemu.find_accel(first, &image)?,
        AccelChoice::Kvm => Accel::Kvm,
        AccelChoice::Tcg => Accel::Tcg,
    };
    println!("{}, accelerator {}", qemu.version()?, accel.name());

    let guests: VecDeque<(&Kernel, CgroupMode)> = kernels
        .iter()
        .flat_map(|kernel| {
            let modes = modes.unwrap_or(kernel.modes).iter();
            modes.map(move |&mode| (kernel, mode))
        })
        .collect();
    if args.shell {
        let &(kernel, mode) = guests.front().context("no cgroup mode was chosen")?;
        println!(
            "{}, {}. Leave it by `exit`, or by Ctrl-A X.",
            kernel.version,
            mode.name()
        );
        qemu.show(accel, kernel, &image.with(kernel, mode, suite::shell())?)?;
        return Ok(ExitCode::SUCCESS);
    }

    let logs = workspace::target_dir().join("vm");
    fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    let lab = Lab {
        args,
        qemu: &qemu,
        image: &image,
        accel,
        logs: &logs,
    };
    let report = Report {
        suite: args.suite,
        cells: lab.run(guests)?,
    };
    print!("\n{report}");
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What all guests of a run have in common.
struct Lab<'a> {
    args: &'a Args,
    qemu: &'a Qemu,
    image: &'a Image,
    accel: Accel,
    logs: &'a Path,
}

impl Lab<'_> {
    /// As many at a time as was asked for; what came of them, in their order.
    fn run(&self, guests: VecDeque<(&Kernel, CgroupMode)>) -> Result<Vec<Cell>> {
        let count = guests.len();
        let queue = Mutex::new(guests.into_iter().enumerate());
        let next = || {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.next()
        };
        let lane = || -> Result<Vec<(usize, Cell)>> {
            let mut cells = Vec::new();
            while let Some((place, (kernel, mode))) = next() {
                cells.push((place, self.run_one(kernel, mode)?));
            }
            Ok(cells)
        };
        let mut cells = thread::scope(|scope| {
            let lanes: Vec<_> = (0..count.min(self.args.jobs.into()))
                .map(|_| scope.spawn(lane))
                .collect();
            let mut cells = Vec::new();
            for lane in lanes {
                match lane.join() {
                    Ok(done) => cells.extend(done?),
                    Err(_) => bail!("a thread that runs guests panicked"),
                }
            }
            Ok(cells)
        })?;
        cells.sort_by_key(|&(place, _)| place);
        ensure!(
            cells.len() == count,
            "{} of {count} guests were run",
            cells.len()
        );
        Ok(cells.into_iter().map(|(_, cell)| cell).collect())
    }

    fn run_one(&self, kernel: &Kernel, mode: CgroupMode) -> Result<Cell> {
        let Kernel { version, .. } = kernel;
        let name = format!("{version}, {}", mode.name());
        println!("\n=== {name}");
        let log = self
            .logs
            .join(format!("{}-{}.log", file_stem(version), mode.name()));
        let programs = self.args.suite.programs(mode);
        let initrd = self.image.with(kernel, mode, programs)?;
        let mark = if self.args.jobs > 1 {
            format!("{name} ")
        } else {
            "  ".to_owned()
        };
        let outcome = self.qemu.run(&Guest {
            accel: self.accel,
            kernel,
            initrd: &initrd,
            memory_mib: qemu::MEMORY_MIB,
            options: "",
            limit: Duration::from_secs(self.args.limit),
            log: &log,
            live: (!self.args.quiet).then_some(&*mark),
        })?;
        // No verdict on the guest: it was not given its time.
        ensure!(!wait::interrupted(), "interrupted while a guest ran");
        println!("{name}: {}", outcome.verdict);
        if !outcome.verdict.passed() {
            if self.args.quiet {
                println!("{}", cleanup_tests::log::tail(&log, LAST_WORDS));
            }
            println!("Its log: {}", log.display());
        }
        Ok(Cell {
            kernel: version.clone(),
            mode,
            outcome,
        })
    }
}

/// A version as part of a file's name.
fn file_stem(version: &str) -> String {
    version.replace(
        |char: char| !char.is_ascii_alphanumeric() && char != '.',
        "-",
    )
}

/// `None`: what each kernel has.
fn modes(names: &[String]) -> Result<Option<Vec<CgroupMode>>> {
    if names.iter().any(|name| name == "all") {
        return Ok(None);
    }
    let mode = |name: &String| {
        CgroupMode::parse(name)
            .with_context(|| format!("--cgroup {name}: it is v1, hybrid, v2 or all"))
    };
    names.iter().map(mode).collect::<Result<_>>().map(Some)
}

#[derive(Debug)]
enum Choice<'a> {
    Series(&'static fetch::Series),
    File(&'a Path),
}

fn choose_kernels(names: &[String]) -> Result<Vec<Choice<'_>>> {
    if names.iter().any(|name| name == "all") {
        return Ok(SERIES.iter().map(Choice::Series).collect());
    }
    names.iter().map(|name| choose_kernel(name)).collect()
}

fn choose_kernel(name: &str) -> Result<Choice<'_>> {
    if let Some(series) = SERIES.iter().find(|series| series.name == name) {
        return Ok(Choice::Series(series));
    }
    if name.contains('/') {
        return Ok(Choice::File(Path::new(name)));
    }
    let known: Vec<&str> = SERIES.iter().map(|series| series.name).collect();
    bail!(
        "--kernel {name}: it is one of {}, all, or a path with a slash in it",
        known.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn kernels_are_chosen_by_name_or_path() {
        let all = names(&["all"]);
        assert_eq!(choose_kernels(&all).unwrap().len(), SERIES.len());
        assert!(matches!(
            choose_kernels(&names(&["6.1", "./vmlinuz"])).unwrap()[..],
            [Choice::Series(series), Choice::File(_)] if series.name == "6.1"
        ));
        let error = choose_kernels(&names(&["6.1", "6.2"])).unwrap_err();
        assert!(error.to_string().contains("6.12, newest, all"), "{error}");
    }

    #[test]
    fn modes_are_those_that_are_named_or_the_kernels() {
        assert_eq!(modes(&names(&["all"])).unwrap(), None);
        let some = modes(&names(&["v1", "v2"])).unwrap();
        assert_eq!(some, Some(vec![CgroupMode::V1, CgroupMode::V2]));
        assert!(modes(&names(&["v1", "v3"])).is_err());
    }

    #[test]
    fn a_version_names_a_file() {
        assert_eq!(file_stem("7.3.4-1~bpo13+1"), "7.3.4-1-bpo13-1");
        assert_eq!(file_stem("../x"), "..-x");
    }
}
