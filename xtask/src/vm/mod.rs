//! `cargo xtask vm`: the exit probe on other kernels, in virtual machines.

mod cpio;
mod fetch;
mod image;
mod qemu;
mod report;
mod verdict;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use cleanup_tests::guest::{CgroupMode, Job};

use crate::setup::{self, Consent, Need};
use crate::{stage, workspace};
use fetch::{Kernel, Qemu, SERIES};
use image::Image;
use qemu::Accel;
use report::{Cell, Report};

/// Run the exit probe's tests on other kernels, in virtual machines
///
/// Debian's cloud kernels and, where it is not installed, QEMU come as packages
/// through this machine's own apt (0.1 GB each at most) into the user's cache
/// folder; nothing is installed. A guest has no disk and no network: static
/// programs of this workspace are all that is in it. One guest runs at a time,
/// with one processor.
///
/// A guest passes only when every program in it ended well, it said so, and QEMU's
/// status says the same: a panic, silence and a hang are failures.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
What runs (the suite `smoke`):
  doctor   `compose-cleanup doctor`, with its output
  probe    loads and attaches the exit probe, and says what the verifier had to do
  kernel   tests/suites/kernel.rs but for threads_that_end_together*, in hybrid mode
           only: it compares hierarchies of both versions
There is no Docker and no agent in the guests.

Kernels: 5.10 (Debian 11), 6.1 (Debian 12), 6.12 (Debian 13), newest (backports of
Debian 13). What a kernel lacks is in the table. Logs: target/vm/.

Examples:
  cargo xtask vm                                  Every kernel, hybrid and v2
  cargo xtask vm --kernel 5.10 --cgroup hybrid    One guest
  cargo xtask vm --kernel 6.12 --cgroup v2 --shell
  cargo xtask vm --kernel /boot/vmlinuz-6.6.0     A kernel of your own: the serial
                                                  console, tmpfs and BTF built in

Exit status: 0 all passed, 1 not.")]
pub(crate) struct Args {
    /// 5.10, 6.1, 6.12, newest, all, or the path of a kernel image
    #[arg(long, default_value = "all", value_name = "KERNEL")]
    kernel: String,

    /// v1, hybrid, v2, or all (hybrid and v2)
    #[arg(long, default_value = "all", value_name = "MODE")]
    cgroup: String,

    /// What runs in the guests, see below
    #[arg(long, value_enum, default_value_t = Suite::Smoke)]
    suite: Suite,

    /// `auto` tries once whether KVM really works here
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,

    /// How long one guest may take, in seconds
    #[arg(long, default_value_t = 1200, value_name = "SECONDS")]
    limit: u64,

    /// Ask the mirror for a newer kernel of the same release
    #[arg(long)]
    update: bool,

    /// A prompt in a guest of that kernel and mode (of several the first), instead of a suite
    #[arg(long)]
    shell: bool,

    /// Do not show what the guests say
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Suite {
    Smoke,
}

impl Suite {
    fn job(self, mode: CgroupMode) -> Job {
        match self {
            Self::Smoke => image::smoke(mode),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AccelChoice {
    Auto,
    Kvm,
    Tcg,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the guests are x86_64 machines with this machine's own programs: run it on one"
    );
    let modes = modes(&args.cgroup)?;
    // Before anything is built: it is the user's mistake, if it is one.
    choose_kernels(&args.kernel)?;
    setup::ensure(&[Need::BpfToolchain], Consent::Given)?;
    stage::interruptible(|| run_all(args, &modes))
}

fn run_all(args: &Args, modes: &[CgroupMode]) -> Result<ExitCode> {
    let qemu = Qemu::fetch()?;
    let kernels = choose_kernels(&args.kernel)?
        .into_iter()
        .map(|choice| match choice {
            Choice::Series(series) => Kernel::fetch(series, args.update),
            Choice::File(path) => Kernel::of_file(path),
        })
        .collect::<Result<Vec<_>>>()?;
    let busybox = args.shell.then(setup::static_busybox).flatten();
    ensure!(
        busybox.is_some() || !args.shell,
        "there is no static busybox here for a prompt in the guest: `cargo xtask setup` brings one"
    );
    let image = Image::build(busybox.as_deref())?;
    let first = kernels.first().context("no kernel was chosen")?;
    let accel = match args.accel {
        AccelChoice::Auto => qemu.find_accel(first, &image)?,
        AccelChoice::Kvm => Accel::Kvm,
        AccelChoice::Tcg => Accel::Tcg,
    };
    println!("{}, accelerator {}", qemu.version()?, accel.name());

    if args.shell {
        let mode = *modes.first().context("no cgroup mode was chosen")?;
        println!(
            "{}, {}. Leave it by `exit`, or by Ctrl-A X.",
            first.version,
            mode.name()
        );
        qemu.show(accel, first, &image.with(&image::shell(mode))?)?;
        return Ok(ExitCode::SUCCESS);
    }

    let logs = workspace::target_dir().join("vm");
    fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    let mut report = Report::default();
    for kernel in &kernels {
        for &mode in modes {
            let Kernel { version, .. } = kernel;
            println!("\n=== {version}, {}", mode.name());
            let log = logs.join(format!("{}-{}.log", file_stem(version), mode.name()));
            let initrd = image.with(&args.suite.job(mode))?;
            let limit = Duration::from_secs(args.limit);
            let outcome = qemu.run(accel, kernel, &initrd, limit, &log, !args.quiet)?;
            println!("{}", outcome.verdict);
            if !outcome.verdict.passed() {
                println!("Its log: {}", log.display());
            }
            report.cells.push(Cell {
                kernel: version.clone(),
                mode,
                outcome,
            });
        }
    }
    print!("\n{report}");
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A version as part of a file's name.
fn file_stem(version: &str) -> String {
    version.replace(
        |char: char| !char.is_ascii_alphanumeric() && char != '.',
        "-",
    )
}

fn modes(name: &str) -> Result<Vec<CgroupMode>> {
    if name == "all" {
        return Ok(vec![CgroupMode::Hybrid, CgroupMode::V2]);
    }
    let mode = CgroupMode::parse(name)
        .with_context(|| format!("--cgroup {name}: it is v1, hybrid, v2 or all"))?;
    Ok(vec![mode])
}

#[derive(Debug)]
enum Choice<'a> {
    Series(&'static fetch::Series),
    File(&'a Path),
}

fn choose_kernels(name: &str) -> Result<Vec<Choice<'_>>> {
    if name == "all" {
        return Ok(SERIES.iter().map(Choice::Series).collect());
    }
    if let Some(series) = SERIES.iter().find(|series| series.name == name) {
        return Ok(vec![Choice::Series(series)]);
    }
    if name.contains('/') {
        return Ok(vec![Choice::File(Path::new(name))]);
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

    #[test]
    fn kernels_are_chosen_by_name_or_path() {
        assert_eq!(choose_kernels("all").unwrap().len(), SERIES.len());
        assert!(matches!(
            choose_kernels("6.1").unwrap()[..],
            [Choice::Series(series)] if series.name == "6.1"
        ));
        assert!(matches!(
            choose_kernels("./vmlinuz").unwrap()[..],
            [Choice::File(_)]
        ));
        let error = choose_kernels("6.2").unwrap_err().to_string();
        assert!(error.contains("6.12, newest, all"), "{error}");
    }

    #[test]
    fn all_modes_are_those_with_something_to_compare() {
        assert_eq!(modes("all").unwrap(), [CgroupMode::Hybrid, CgroupMode::V2]);
        assert_eq!(modes("v1").unwrap(), [CgroupMode::V1]);
        assert!(modes("v3").is_err());
    }

    #[test]
    fn a_version_names_a_file() {
        assert_eq!(file_stem("7.3.4-1~bpo13+1"), "7.3.4-1-bpo13-1");
        assert_eq!(file_stem("../x"), "..-x");
    }
}
