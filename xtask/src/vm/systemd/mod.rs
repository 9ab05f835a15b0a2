//! `cargo xtask vm --suite systemd`: the package and its units in guests with a real systemd and
//! a real Docker.

mod root;

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cleanup_tests::guest::Line;
use cleanup_tests::{log, wait};
use rustix::process::geteuid;

use super::cpio::Archive;
use super::fetch::{Kernel, Qemu, SERIES};
use super::image::{self, Image};
use super::qemu::{Accel, Guest, Outcome};
use super::{Args, LAST_WORDS, file_stem};
use crate::dist;
use crate::table::Table;
use crate::workspace;

/// The root lies in memory twice while it is unpacked.
const MEMORY_MIB: u32 = 3000;
const TRIAL: &str = "/lab/systemd-trial";

/// A guest: a kernel, and the release whose systemd and Docker it runs.
#[derive(Debug)]
struct Cell {
    series: &'static str,
    suite: &'static str,
    /// Packages that it needs besides.
    packages: &'static [&'static str],
    cgroups: &'static str,
    /// What tells its systemd to mount them so.
    option: &'static str,
}

const CELLS: &[Cell] = &[
    Cell {
        series: "5.10",
        suite: "bookworm",
        packages: &[],
        cgroups: "hybrid",
        option: "systemd.unified_cgroup_hierarchy=0",
    },
    Cell {
        series: "6.12",
        suite: "trixie",
        // Debian 12 has it in docker.io.
        packages: &["docker-cli"],
        cgroups: "v2",
        option: "systemd.unified_cgroup_hierarchy=1",
    },
];

/// Files of the guest's own.
const FILES: &[(&str, &str)] = &[
    (
        // No network: neither bridges nor rules. vfs needs no module.
        "etc/docker/daemon.json",
        "{\"iptables\": false, \"ip6tables\": false, \"bridge\": \"none\", \"ip-forward\": false, \
         \"ip-masq\": false, \"storage-driver\": \"vfs\"}\n",
    ),
    (
        // The root is the kernel's first one, which `pivot_root` cannot leave.
        "etc/systemd/system/docker.service.d/lab.conf",
        "[Service]\nEnvironment=DOCKER_RAMDISK=1\n",
    ),
    (
        "etc/systemd/system/lab.service",
        "[Unit]\nDescription=The trial\nAfter=multi-user.target\nDefaultDependencies=no\n\
         [Service]\nType=exec\nExecStart=/lab/systemd-trial\nEnvironment=TMPDIR=/var/tmp\n\
         StandardOutput=tty\nStandardError=tty\nTTYPath=/dev/console\nOOMScoreAdjust=-900\n",
    ),
];

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        geteuid().is_root(),
        "the guests' roots are made by root only: run it as root"
    );
    let cells = chosen(&args.kernel)?;
    let debs = dist::debs()?;
    let programs = image::programs()?;
    let qemu = Qemu::fetch()?;
    let logs = workspace::target_dir().join("vm");
    fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    let mut report = Report::default();
    for cell in cells {
        let series = SERIES.iter().find(|series| series.name == cell.series);
        let kernel = Kernel::fetch(series.context("a kernel's name")?, args.update)?;
        let accel = match args.accel {
            super::AccelChoice::Auto => qemu.find_accel(&kernel, &Image::build()?)?,
            super::AccelChoice::Kvm => Accel::Kvm,
            super::AccelChoice::Tcg => Accel::Tcg,
        };
        let name = format!(
            "systemd of {}, {}, {}",
            cell.suite, kernel.version, cell.cgroups
        );
        println!("\n=== {name}");
        let file = format!("systemd-{}-{}.log", file_stem(&kernel.version), cell.suite);
        let log_file = logs.join(file);
        let initrd = initrd(cell, &debs, &programs, args.update)?;
        let outcome = qemu.run(&Guest {
            accel,
            kernel: &kernel,
            initrd: &initrd,
            memory_mib: MEMORY_MIB,
            options: &format!("rdinit=/sbin/init {} systemd.show_status=0", cell.option),
            limit: Duration::from_secs(args.limit),
            log: &log_file,
            live: (!args.quiet).then_some("  "),
        })?;
        ensure!(!wait::interrupted(), "interrupted while a guest ran");
        println!("{name}: {}", outcome.verdict);
        if !outcome.verdict.passed() {
            if args.quiet {
                println!("{}", log::tail(&log_file, LAST_WORDS));
            }
            println!("Its log: {}", log_file.display());
        }
        report.guests.push((name, outcome));
    }
    print!("\n{report}");
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn chosen(names: &[String]) -> Result<Vec<&'static Cell>> {
    if names.iter().any(|name| name == "all") {
        return Ok(CELLS.iter().collect());
    }
    let cell = |name: &String| {
        let found = CELLS.iter().find(|cell| cell.series == *name);
        let Some(cell) = found else {
            let known: Vec<&str> = CELLS.iter().map(|cell| cell.series).collect();
            bail!(
                "--kernel {name}: with --suite systemd it is one of {}, or all",
                known.join(", ")
            )
        };
        Ok(cell)
    };
    names.iter().map(cell).collect()
}

fn initrd(cell: &Cell, debs: &dist::Debs, programs: &Path, update: bool) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let root = root::fetch(cell.suite, cell.packages, update)?;
    archive
        .tree(&root.dir)
        .with_context(|| format!("packing {}", root.dir.display()))?;
    // Another run may renew it from here on.
    drop(root);
    for (path, content) in FILES {
        archive.file(path, content.as_bytes())?;
    }
    let wants = "etc/systemd/system/multi-user.target.wants/lab.service";
    archive.link(wants, "../lab.service")?;
    for (file, path) in [
        (programs.join("systemd-trial"), TRIAL),
        (programs.join("stand-in-agent"), "/lab/stand-in-agent"),
        (debs.first.clone(), "/lab/compose-cleanup.deb"),
        (debs.next.clone(), "/lab/next.deb"),
    ] {
        let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        archive.program(path, &content)?;
    }
    Ok(archive.finish()?)
}

#[derive(Debug, Default)]
struct Report {
    guests: Vec<(String, Outcome)>,
}

impl Report {
    fn passed(&self) -> bool {
        !self.guests.is_empty()
            && self
                .guests
                .iter()
                .all(|(_, outcome)| outcome.verdict.passed())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, outcome) in &self.guests {
            writeln!(
                f,
                "{name}: {} ({} s)",
                outcome.verdict,
                outcome.took.as_secs()
            )?;
            let mut table = Table::new(["step", "result", "seconds"]).left([1]);
            for line in outcome.log.lines().filter_map(Line::parse) {
                if let Line::Ended {
                    program,
                    status,
                    took,
                } = line
                {
                    let result = if status == 0 { "pass" } else { "FAIL" };
                    table.row([program, result.to_owned(), took.as_secs().to_string()]);
                }
            }
            writeln!(f, "{table}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_chosen_by_their_kernel() {
        let names = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            chosen(&names).map(|cells| cells.iter().map(|cell| cell.series).collect::<Vec<_>>())
        };
        assert_eq!(names(&["all"]).unwrap(), ["5.10", "6.12"]);
        assert_eq!(names(&["6.12"]).unwrap(), ["6.12"]);
        let error = names(&["6.1"]).unwrap_err().to_string();
        assert!(error.contains("5.10, 6.12"), "{error}");
    }

    #[test]
    fn every_guest_has_a_kernel_that_is_fetched() {
        for cell in CELLS {
            assert!(
                SERIES.iter().any(|series| series.name == cell.series),
                "{cell:?}"
            );
        }
    }
}
