//! Other programs: each runs with a time limit, and each failure carries what
//! the program answered.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, mem};

use rustix::process::{Pid, Signal, kill_process};

/// How much of a failed program's output is shown.
const TAIL_LINES: usize = 15;
/// Between SIGTERM and SIGKILL, once the limit has passed.
const GRACE: Duration = Duration::from_secs(5);
/// A daemon that an installer left running may hold our pipe open for good.
const PIPE_GRACE: Duration = Duration::from_secs(1);

/// A program about to be run.
#[derive(Debug)]
pub(crate) struct Tool {
    command: Command,
    limit: Duration,
}

/// A program that did not do its job. Its text ends with the last lines of the
/// program's answer.
#[derive(Debug, thiserror::Error)]
#[error("`{command}` {}{}", .kind.text(), indented_tail(.output))]
pub(crate) struct Failure {
    pub(crate) command: String,
    pub(crate) kind: FailureKind,
    /// Everything it printed, standard output first.
    pub(crate) output: String,
}

#[derive(Debug)]
pub(crate) enum FailureKind {
    /// It could not be started, or not be waited for.
    Io(io::Error),
    /// It ended by itself.
    Status(ExitStatus),
    /// It took too long and was ended.
    Limit(Duration),
}

impl FailureKind {
    fn text(&self) -> String {
        match self {
            Self::Io(error) => format!("could not be run: {error}"),
            Self::Status(status) => format!("failed ({status})"),
            Self::Limit(limit) => format!("was ended after {}", seconds(*limit)),
        }
    }
}

impl Tool {
    pub(crate) fn new(program: impl AsRef<OsStr>, limit: Duration) -> Self {
        Self {
            command: Command::new(program),
            limit,
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub(crate) fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// The command line, for people.
    pub(crate) fn line(&self) -> String {
        let program = Path::new(self.command.get_program());
        let name = program.file_name().unwrap_or(program.as_os_str());
        std::iter::once(name)
            .chain(self.command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Runs to the end with nothing on standard input, and returns what came on
    /// standard output.
    pub(crate) fn read(mut self) -> Result<String, Failure> {
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = match self.command.spawn() {
            Ok(child) => child,
            Err(error) => return Err(self.failure(FailureKind::Io(error), String::new())),
        };
        let stdout = child.stdout.take().map(Reader::start);
        let stderr = child.stderr.take().map(Reader::start);
        let end = wait(&mut child, self.limit);
        let stdout = stdout.map(Reader::finish).unwrap_or_default();
        let stderr = stderr.map(Reader::finish).unwrap_or_default();
        match self.judge(end) {
            Ok(()) => Ok(stdout),
            Err(kind) => Err(self.failure(kind, stdout + &stderr)),
        }
    }

    /// Announces the command line and runs it with our own terminal.
    pub(crate) fn show(mut self) -> Result<(), Failure> {
        println!("+ {}", self.line());
        let end = self
            .command
            .spawn()
            .and_then(|mut child| wait(&mut child, self.limit));
        self.judge(end)
            .map_err(|kind| self.failure(kind, String::new()))
    }

    fn judge(&self, end: io::Result<Option<ExitStatus>>) -> Result<(), FailureKind> {
        match end {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(FailureKind::Status(status)),
            Ok(None) => Err(FailureKind::Limit(self.limit)),
            Err(error) => Err(FailureKind::Io(error)),
        }
    }

    fn failure(&self, kind: FailureKind, output: String) -> Failure {
        Failure {
            command: self.line(),
            kind,
            output,
        }
    }
}

/// Waits for the child; `None` when it had to be ended.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    if let Some(status) = wait_until(child, Instant::now() + limit)? {
        return Ok(Some(status));
    }
    // The child keeps our process group, so that Ctrl-C reaches it: what it
    // started has to be ended one by one.
    let family = family(child.id());
    for signal in [Signal::TERM, Signal::KILL] {
        for pid in &family {
            // A process that has gone meanwhile is what we want.
            let _ = kill_process(*pid, signal);
        }
        if wait_until(child, Instant::now() + GRACE)?.is_some() {
            return Ok(None);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "it survived SIGKILL",
    ))
}

fn wait_until(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// A process and its descendants.
fn family(root: u32) -> Vec<Pid> {
    let mut pids = vec![root];
    let mut next = 0;
    while let Some(pid) = pids.get(next) {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        let children: Vec<u32> = tasks
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .flat_map(|list| {
                list.split_ascii_whitespace()
                    .filter_map(|pid| pid.parse().ok())
                    .collect::<Vec<u32>>()
            })
            .collect();
        pids.extend(children);
        next += 1;
    }
    pids.into_iter()
        .filter_map(|pid| Pid::from_raw(pid.cast_signed()))
        .collect()
}

/// Drains a pipe while we wait.
#[derive(Debug)]
struct Reader {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: thread::JoinHandle<()>,
}

impl Reader {
    fn start(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let mut chunk = [0; 8192];
            while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                sink.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&chunk[..count]);
            }
        });
        Self { bytes, thread }
    }

    fn finish(self) -> String {
        let Self { bytes, thread } = self;
        let deadline = Instant::now() + PIPE_GRACE;
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let bytes = mem::take(&mut *bytes.lock().unwrap_or_else(PoisonError::into_inner));
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The last lines that say something.
fn indented_tail(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(|line| format!("\n    | {line}"))
        .collect()
}

/// A duration as people read it: `0.3 s`, `12 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 10.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{seconds:.0} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Tool {
        Tool::new("sh", limit).args(["-c", script])
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn both_streams_are_read_to_the_end() {
        let script = "seq 100000; seq 100000 >&2";
        assert_eq!(sh(script, LONG).read().unwrap().lines().count(), 100_000);
        let failure = sh(&format!("{script}; false"), LONG).read().unwrap_err();
        assert_eq!(failure.output.lines().count(), 200_000);
    }

    #[test]
    fn a_failure_shows_the_command_and_the_last_lines() {
        let failure = sh("seq 20; echo 'E: broken' >&2; exit 7", LONG)
            .read()
            .unwrap_err();
        let report = failure.to_string();
        assert!(report.starts_with("`sh -c seq 20"), "{report}");
        assert!(report.contains("exit status: 7"), "{report}");
        assert!(report.ends_with("| E: broken"), "{report}");
        assert!(!report.contains("| 6\n"), "only the tail: {report}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let failure = Tool::new("/nowhere/missing-tool", LONG).read().unwrap_err();
        assert!(failure.to_string().contains("missing-tool"));
        assert!(matches!(failure.kind, FailureKind::Io(_)));
    }

    #[test]
    fn the_limit_ends_the_program_and_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
        let start = Instant::now();
        let failure = sh(&script, Duration::from_millis(300)).read().unwrap_err();
        assert!(matches!(failure.kind, FailureKind::Limit(_)));
        assert!(start.elapsed() < Duration::from_secs(10));
        let grandchild = fs::read_to_string(pid_file).unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", grandchild.trim()));
        let gone = stat.map_or(true, |stat| stat.contains(") Z "));
        assert!(gone, "the grandchild is still running");
    }

    #[test]
    fn a_pipe_held_open_by_a_daemon_does_not_hold_us() {
        let start = Instant::now();
        let answer = sh("sleep 20 & echo started", LONG).read().unwrap();
        assert_eq!(answer, "started\n");
        assert!(start.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(seconds(Duration::from_millis(340)), "0.3 s");
        assert_eq!(seconds(Duration::from_millis(46_400)), "46 s");
    }
}
