//! One virtual machine: started, listened to, and ended in any case.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cleanup_tests::guest::{CgroupMode, EXIT_PORT};
use cleanup_tests::service::spawn_bound;
use cleanup_tests::{cache, wait};

use super::fetch::{Kernel, Qemu};
use super::image::Image;
use super::verdict::{End, Verdict};
use crate::exec::Tool;

const VERSION_LIMIT: Duration = Duration::from_secs(20);
/// A guest with nothing to do takes 4 s without KVM; with a KVM that does not work it hangs.
const KVM_LIMIT: Duration = Duration::from_secs(15);
/// Of a person at the prompt.
const SESSION_LIMIT: Duration = Duration::from_hours(12);
/// Docker's programs lie in it, and what it makes.
pub(crate) const MEMORY_MIB: u32 = 2048;

/// A panic ends the machine at once. Docker would want to load its profile for AppArmor.
const KERNEL_OPTIONS: &str = "console=ttyS0 quiet panic=-1 apparmor=0";

/// How the guest's instructions are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accel {
    Kvm,
    /// By QEMU itself: works everywhere, some ten times slower.
    Tcg,
}

impl Accel {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            // With cmpxchg16b, guests of 6.12 die of double faults under QEMU 7.2.
            Self::Tcg => "max,cx16=off",
        }
    }
}

/// A guest to be.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) accel: Accel,
    pub(crate) kernel: &'a Kernel,
    pub(crate) initrd: &'a [u8],
    pub(crate) memory_mib: u32,
    /// For its kernel and first process, beside those that all have.
    pub(crate) options: &'a str,
    pub(crate) limit: Duration,
    /// Where its console is written to.
    pub(crate) log: &'a Path,
    /// Where its console is to be seen at once, what stands before each line.
    pub(crate) live: Option<&'a str>,
}

/// What came of a guest.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    /// The console, readable.
    pub(crate) log: String,
    pub(crate) took: Duration,
}

impl Qemu {
    pub(crate) fn version(&self) -> Result<String> {
        let mut tool = Tool::new(&self.program, VERSION_LIMIT).arg("--version");
        if let Some(path) = self.library_path() {
            tool = tool.env("LD_LIBRARY_PATH", path);
        }
        let text = tool.read()?;
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    /// Boots a guest and waits for its end.
    pub(crate) fn run(&self, guest: &Guest<'_>) -> Result<Outcome> {
        let Guest {
            accel,
            kernel,
            initrd,
            memory_mib,
            options,
            limit,
            log,
            live,
        } = guest;
        let dir = tempfile::tempdir()?;
        let initrd_file = dir.path().join("initrd");
        fs::write(&initrd_file, initrd)
            .with_context(|| format!("writing {}", initrd_file.display()))?;
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let start = Instant::now();
        let mut command = self.command(*accel, kernel, &initrd_file, "stdio");
        command.args(["-m", &memory_mib.to_string()]);
        command.args(["-append", &format!("{KERNEL_OPTIONS} {options}")]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file.try_clone()?)
            // Ctrl-C is for us, who then end it.
            .process_group(0);
        let child =
            spawn_bound(command).with_context(|| format!("starting {}", self.program.display()))?;
        let mut machine = Machine { child };
        let stdout = machine.child.stdout.take().context("a pipe to QEMU")?;
        let reader = Reader::start(stdout, file, live.map(str::to_owned));
        let end = machine.wait(*limit)?;
        drop(machine);
        Ok(Outcome {
            verdict: Verdict::of(end, &reader.finish()?),
            log: fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?,
            took: start.elapsed(),
        })
    }

    /// Boots a kernel with the terminal as its console, until the guest ends or somebody ends it.
    pub(crate) fn show(&self, accel: Accel, kernel: &Kernel, initrd: &[u8]) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let initrd_file = dir.path().join("initrd");
        fs::write(&initrd_file, initrd)
            .with_context(|| format!("writing {}", initrd_file.display()))?;
        // It shares the terminal, and so the group of processes that may read from it.
        let mut command = self.command(accel, kernel, &initrd_file, "mon:stdio");
        command.args(["-m", &MEMORY_MIB.to_string(), "-append", KERNEL_OPTIONS]);
        let child =
            spawn_bound(command).with_context(|| format!("starting {}", self.program.display()))?;
        match (Machine { child }).wait(SESSION_LIMIT)? {
            // It was switched off, or left by Ctrl-A X; or the shell ended in whatever way.
            End::Status(0 | 129..) => Ok(()),
            end => bail!("QEMU did not end as it should: {end:?}"),
        }
    }

    fn command(&self, accel: Accel, kernel: &Kernel, initrd: &Path, serial: &str) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(path) = self.library_path() {
            command.env("LD_LIBRARY_PATH", path);
        }
        if let Some(dir) = &self.unpacked {
            for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
                command.arg("-L").arg(dir.join(data));
            }
        }
        command
            .args(["-M", "q35", "-smp", "1"])
            .args(["-accel", accel.name(), "-cpu", accel.cpu()])
            .args(["-nodefaults", "-nographic", "-no-reboot", "-serial", serial])
            .arg("-device")
            .arg(format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"))
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(initrd);
        command
    }

    fn library_path(&self) -> Option<String> {
        let dir = self.unpacked.as_ref()?.display();
        Some(format!(
            "{dir}/usr/lib/x86_64-linux-gnu:{dir}/lib/x86_64-linux-gnu"
        ))
    }

    /// Whether KVM works here, which that its device exists does not say: under some hypervisors
    /// guests hang. Tried once for each boot of the host and version of QEMU.
    pub(crate) fn find_accel(&self, kernel: &Kernel, image: &Image) -> Result<Accel> {
        if !has_hardware_kvm(Path::new("/")) {
            return Ok(Accel::Tcg);
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("boot id")?;
        let key = format!("{} {}", boot.trim_end(), self.version()?);
        let file = cache::dir("vm")?.join("kvm");
        let known = fs::read_to_string(&file).unwrap_or_default();
        let works = match known.strip_prefix(&key).map(str::trim) {
            Some("works") => true,
            Some("fails") => false,
            _ => {
                let works = self.try_kvm(kernel, image)?;
                let verdict = if works { "works" } else { "fails" };
                fs::write(&file, format!("{key} {verdict}\n"))
                    .with_context(|| format!("writing {}", file.display()))?;
                works
            }
        };
        Ok(if works { Accel::Kvm } else { Accel::Tcg })
    }

    fn try_kvm(&self, kernel: &Kernel, image: &Image) -> Result<bool> {
        println!("Trying whether KVM works here ...");
        let log = tempfile::NamedTempFile::new()?;
        let outcome = self.run(&Guest {
            accel: Accel::Kvm,
            kernel,
            initrd: &image.with(kernel, CgroupMode::V2, Vec::new())?,
            memory_mib: MEMORY_MIB,
            options: "",
            limit: KVM_LIMIT,
            log: log.path(),
            live: None,
        })?;
        Ok(outcome.verdict.passed())
    }
}

/// KVM of a processor that has it, and not one of a guest without.
fn has_hardware_kvm(root: &Path) -> bool {
    let vendor = ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|module| root.join("sys/module").join(module).is_dir());
    let device = File::options()
        .read(true)
        .write(true)
        .open(root.join("dev/kvm"));
    vendor && device.is_ok()
}

/// A running QEMU, which never outlives this.
struct Machine {
    child: Child,
}

impl Machine {
    fn wait(&mut self, limit: Duration) -> Result<End> {
        let child = &mut self.child;
        let end: Result<ExitStatus> = wait::try_until(limit, "the guest's end", || {
            child.try_wait().context("waiting for QEMU")
        });
        match end {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Ok(End::Status(code)),
                (None, Some(signal)) => Ok(End::Signal(signal)),
                (None, None) => bail!("QEMU: {status}"),
            },
            Err(error) if wait::interrupted() => Err(error),
            Err(_) => Ok(End::Limit(limit)),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It fails when QEMU has ended and was waited for, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the console, line by line, into a file and perhaps to the terminal.
struct Reader(JoinHandle<Result<String>>);

impl Reader {
    fn start(console: ChildStdout, mut file: File, live: Option<String>) -> Self {
        Self(thread::spawn(move || {
            let mut log = String::new();
            for_each_line(console, |line| {
                if let Some(mark) = &live {
                    println!("{mark}| {line}");
                }
                log.push_str(line);
                log.push('\n');
                writeln!(file, "{line}")
            })
            .context("reading the console")?;
            Ok(log)
        }))
    }

    fn finish(self) -> Result<String> {
        match self.0.join() {
            Ok(log) => log,
            Err(_) => bail!("the thread that reads the console panicked"),
        }
    }
}

fn for_each_line(
    console: impl Read,
    mut line: impl FnMut(&str) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut console = BufReader::new(console);
    let mut bytes = Vec::new();
    while console.read_until(b'\n', &mut bytes)? > 0 {
        line(&readable(&String::from_utf8_lossy(&bytes)))?;
        bytes.clear();
    }
    Ok(())
}

/// Without the terminal's control sequences, of which the firmware and tests make use.
fn readable(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        if char == '\u{1b}' {
            // A single letter follows, or a sequence up to its final letter.
            if chars.next() == Some('[') {
                chars.by_ref().find(|&char| ('@'..='~').contains(&char));
            }
        } else if char == '\t' || !char.is_control() {
            text.push(char);
        }
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_becomes_readable() {
        assert_eq!(
            readable("\u{1b}c\u{1b}[?7l\u{1b}[2J\u{1b}[0mSeaBIOS (version 1)\r\n"),
            "SeaBIOS (version 1)"
        );
        assert_eq!(readable("a\tb \u{1b}"), "a\tb");
    }

    #[test]
    fn what_is_no_text_does_not_end_the_log() {
        let mut lines = Vec::new();
        for_each_line(&b"one\r\n\xff\xfe\nlast"[..], |line| {
            lines.push(line.to_owned());
            Ok(())
        })
        .unwrap();
        assert_eq!(lines, ["one", "\u{fffd}\u{fffd}", "last"]);
    }

    #[test]
    fn a_kvm_device_without_the_processors_module_is_not_trusted() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/kvm"), "").unwrap();
        fs::create_dir_all(root.path().join("sys/module/kvm_pvm")).unwrap();
        assert!(!has_hardware_kvm(root.path()));
        fs::create_dir_all(root.path().join("sys/module/kvm_amd")).unwrap();
        assert!(has_hardware_kvm(root.path()));
        fs::remove_file(root.path().join("dev/kvm")).unwrap();
        assert!(!has_hardware_kvm(root.path()));
    }

    fn machine(script: &str) -> Machine {
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        Machine { child }
    }

    #[test]
    fn how_a_machine_ended_is_told_and_the_limit_ends_it() {
        let long = Duration::from_secs(30);
        assert_eq!(machine("exit 129").wait(long).unwrap(), End::Status(129));
        assert_eq!(machine("kill -9 $$").wait(long).unwrap(), End::Signal(9));
        let limit = Duration::from_millis(50);
        let mut hung = machine("exec sleep 600");
        let pid = hung.child.id();
        assert_eq!(hung.wait(limit).unwrap(), End::Limit(limit));
        drop(hung);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
