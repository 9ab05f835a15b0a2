//! What `cargo xtask vm` and the first process of its guest (`vm-init`) agree upon: the job that
//! goes in, and the lines and the status that come out.

use std::fmt;
use std::panic;
use std::process;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::system::{RebootCommand, reboot};

/// Where the job lies in the guest.
pub const JOB_FILE: &str = "/vm/job";
/// The I/O port of QEMU's `isa-debug-exit`.
pub const EXIT_PORT: u16 = 0x501;
/// Added to what is written to [`EXIT_PORT`]: without it, QEMU's status for a success would be 1,
/// which it also has when it cannot start.
pub const EXIT_OFFSET: u8 = 0x40;
/// The largest status that can be told apart.
pub const EXIT_MAX: u8 = 63;

/// How the guest mounts its cgroup hierarchies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupMode {
    /// A version 1 hierarchy for each controller.
    V1,
    /// The same, with version 2 at `unified`.
    Hybrid,
    /// Version 2 only.
    V2,
}

impl CgroupMode {
    pub const ALL: [Self; 3] = [Self::V1, Self::Hybrid, Self::V2];

    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
            Self::V2 => "v2",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// A program that the guest runs to its end, and whose failure is the guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub name: String,
    /// Its path in the guest and its arguments.
    pub command: Vec<String>,
}

/// All that a guest does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub cgroups: CgroupMode,
    /// Paths in the guest of kernel modules, in the order in which they can be loaded.
    pub modules: Vec<String>,
    pub programs: Vec<Program>,
}

impl Job {
    /// As it lies in [`JOB_FILE`]: a line for each item, its words separated by tabs.
    pub fn to_text(&self) -> Result<String> {
        let Self {
            cgroups,
            modules,
            programs,
        } = self;
        let mut text = format!("cgroups\t{}\n", cgroups.name());
        for module in modules {
            text += &line("module", [module])?;
        }
        for Program { name, command } in programs {
            text += &line("run", [name].into_iter().chain(command))?;
        }
        Ok(text)
    }

    pub fn parse(text: &str) -> Result<Self> {
        let mut cgroups = None;
        let mut modules = Vec::new();
        let mut programs = Vec::new();
        for line in text.lines() {
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["cgroups", name] => cgroups = CgroupMode::parse(name),
                ["module", path] => modules.push(path.to_owned()),
                ["run", name, ref command @ ..] if !command.is_empty() => programs.push(Program {
                    name: name.to_owned(),
                    command: command.iter().map(|&word| word.to_owned()).collect(),
                }),
                _ => bail!("a line of a job that makes no sense: {line:?}"),
            }
        }
        Ok(Self {
            cgroups: cgroups.context("a job without a known cgroup mode")?,
            modules,
            programs,
        })
    }
}

fn line<'a>(first: &str, words: impl IntoIterator<Item = &'a String>) -> Result<String> {
    let mut line = first.to_owned();
    for word in words {
        if word.contains(['\t', '\n']) {
            bail!("a job cannot hold {word:?}: tabs and line ends separate its words");
        }
        line += "\t";
        line += word;
    }
    Ok(line + "\n")
}

/// What `vm-init` says on the console, among all that others say there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The guest is set up: its kernel's release, and how long the kernel had been running when
    /// `vm-init` began.
    Booted { release: String, uptime: Duration },
    /// A controller that this kernel does not have in this mode.
    Lacks { controller: String },
    /// A program begins.
    Begins { program: String },
    /// A program ended: its exit status, or 128 and the signal's number.
    Ended {
        program: String,
        status: i32,
        took: Duration,
    },
    /// The guest itself went wrong.
    Broken { why: String },
    /// The last line: what the guest's status is going to be.
    Exit { status: u8 },
}

const PREFIX: &str = "LAB ";

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        match self {
            Self::Booted { release, uptime } => {
                write!(f, "booted {release} {}", uptime.as_millis())
            }
            Self::Lacks { controller } => write!(f, "lacks {controller}"),
            Self::Begins { program } => write!(f, "begins {program}"),
            Self::Ended {
                program,
                status,
                took,
            } => write!(f, "ended {program} {status} {}", took.as_millis()),
            Self::Broken { why } => write!(f, "broken {}", why.replace('\n', " ")),
            Self::Exit { status } => write!(f, "exit={status}"),
        }
    }
}

impl Line {
    /// `None` for what others say. The firmware ends its own output without a line end, so the
    /// first line may begin with that.
    pub fn parse(line: &str) -> Option<Self> {
        let (_, text) = line.split_once(PREFIX)?;
        if let Some(status) = text.strip_prefix("exit=") {
            let status = status.parse().ok()?;
            return Some(Self::Exit { status });
        }
        if let Some(why) = text.strip_prefix("broken ") {
            return Some(Self::Broken {
                why: why.to_owned(),
            });
        }
        let millis = |text: &str| text.parse().ok().map(Duration::from_millis);
        match text.split(' ').collect::<Vec<_>>()[..] {
            ["booted", release, uptime] => Some(Self::Booted {
                release: release.to_owned(),
                uptime: millis(uptime)?,
            }),
            ["lacks", controller] => Some(Self::Lacks {
                controller: controller.to_owned(),
            }),
            ["begins", program] => Some(Self::Begins {
                program: program.to_owned(),
            }),
            ["ended", program, status, took] => Some(Self::Ended {
                program: program.to_owned(),
                status: status.parse().ok()?,
                took: millis(took)?,
            }),
            _ => None,
        }
    }
}

/// The whole of a guest's program: does the job, says what came of it, and ends the virtual
/// machine with its status. A panic is told, too.
pub fn play(job: impl FnOnce() -> Result<u8>) -> ! {
    panic::set_hook(Box::new(|info| {
        say(&Line::Broken {
            why: info.to_string(),
        });
        end(EXIT_MAX);
    }));
    match job() {
        Ok(status) => end(status),
        Err(error) => {
            say(&Line::Broken {
                why: format!("{error:#}"),
            });
            end(EXIT_MAX);
        }
    }
}

pub fn say(line: &Line) {
    println!("{line}");
}

/// Ends the virtual machine.
fn end(status: u8) -> ! {
    say(&Line::Exit { status });
    // The machine ends in the middle of what the serial line still holds.
    let _ = rustix::termios::tcdrain(std::io::stdout());
    if let Err(error) = leave(EXIT_OFFSET + status.min(EXIT_MAX)) {
        say(&Line::Broken {
            why: format!("the exit device: {error:#}"),
        });
    }
    // Without the exit device this is a status that counts as a failure.
    let _ = reboot(RebootCommand::PowerOff);
    process::exit(1)
}

/// Writes to QEMU's exit device. Debian's kernels have no /dev/port.
#[cfg(target_arch = "x86_64")]
fn leave(value: u8) -> Result<()> {
    // SAFETY: takes no pointers; it only lets this process use one port.
    let allowed = unsafe { libc::ioperm(EXIT_PORT.into(), 1, 1) };
    ensure!(allowed == 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the port was granted above, and reading or writing it touches no memory.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") EXIT_PORT, in("al") value, options(nomem, nostack));
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn leave(_: u8) -> Result<()> {
    bail!("there is one on x86_64 only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_arrives_as_it_was_sent() {
        let job = Job {
            cgroups: CgroupMode::Hybrid,
            modules: vec!["/modules/a.ko".into(), "/modules/b.ko".into()],
            programs: vec![Program {
                name: "kernel".into(),
                command: vec!["/a path/kernel".into(), "--exact".into(), String::new()],
            }],
        };
        assert_eq!(Job::parse(&job.to_text().unwrap()).unwrap(), job);
    }

    #[test]
    fn jobs_that_make_no_sense_are_refused() {
        for text in ["", "cgroups\tv3\n", "cgroups\tv2\nrun\tname\n", "halt\n"] {
            assert!(Job::parse(text).is_err(), "{text:?}");
        }
        let job = Job {
            cgroups: CgroupMode::V2,
            modules: Vec::new(),
            programs: vec![Program {
                name: "a".into(),
                command: vec!["/a\tb".into()],
            }],
        };
        assert!(job.to_text().is_err());
    }

    #[test]
    fn every_line_is_read_back() {
        let second = Duration::from_secs(1);
        for line in [
            Line::Booted {
                release: "6.1.0-50-cloud-amd64".into(),
                uptime: second,
            },
            Line::Lacks {
                controller: "memory".into(),
            },
            Line::Begins {
                program: "doctor".into(),
            },
            Line::Ended {
                program: "doctor".into(),
                status: 139,
                took: second,
            },
            Line::Broken {
                why: "mounting /proc: no such device".into(),
            },
            Line::Exit { status: 0 },
        ] {
            assert_eq!(Line::parse(&line.to_string()), Some(line));
        }
    }

    #[test]
    fn others_lines_are_not_ours() {
        assert_eq!(
            Line::parse("Booting from ROM..LAB exit=0"),
            Some(Line::Exit { status: 0 })
        );
        for line in [
            "LAB exit=",
            "LAB exit=256",
            "exit=0",
            "LAB ended a 0",
            "LAB ",
        ] {
            assert_eq!(Line::parse(line), None, "{line:?}");
        }
    }
}
