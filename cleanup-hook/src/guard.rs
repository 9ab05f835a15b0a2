//! What keeps a mistake in here from ending the agent, and how it is told.

use std::fmt;
use std::io::stderr;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{self, AssertUnwindSafe};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Starts every line, so that it can be found in the agent's log.
const PREFIX: &str = "compose-cleanup hook: ";
/// Less than what a pipe takes at once when it says that it takes anything.
const LONGEST: usize = 2048;

/// Runs the body of a function that Mesos calls. A panic ends here, not in C++.
pub(crate) fn caught<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    match panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(payload) => {
            // Dropping it might panic again.
            std::mem::forget(payload);
            otherwise
        }
    }
}

/// One line for a panic, and no backtrace: that would read files, on the agent's
/// most important thread. The standard library is this module's own copy, and so
/// is the hook.
pub(crate) fn report_panics() {
    panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("no message");
        match info.location() {
            Some(place) => say(format_args!("panicked at {place}: {message}")),
            None => say(format_args!("panicked: {message}")),
        }
    }));
}

/// One line on stderr, where glog writes too; dropped rather than waited for.
pub(crate) fn say(message: fmt::Arguments<'_>) {
    let stderr = stderr();
    write_if_ready(stderr.as_fd(), line(message).as_bytes());
}

/// Neither waits for a full pipe nor touches one that nobody reads any more: the
/// signal for that would be the agent's.
fn write_if_ready(file: BorrowedFd<'_>, line: &[u8]) {
    let mut ready = [PollFd::new(&file, PollFlags::OUT)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if poll(&mut ready, Some(&now)).is_ok() && ready[0].revents() == PollFlags::OUT {
        // There is nobody to tell of a failure.
        let _ = rustix::io::write(file, line);
    }
}

/// Paths and parameters may hold anything; the log gets one line.
fn line(message: fmt::Arguments<'_>) -> String {
    let mut line: String = format!("{PREFIX}{message}")
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    line.truncate(line.floor_char_boundary(LONGEST));
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Read};

    #[test]
    fn a_message_is_one_bounded_line() {
        assert_eq!(line(format_args!("a\nb\x1b")), format!("{PREFIX}a?b?\n"));
        let long = line(format_args!("{}", "é".repeat(9000)));
        assert!(long.len() <= LONGEST + 1 && long.ends_with('\n'));
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        // Far more than a pipe holds: with nobody reading, this ends or hangs.
        for _ in 0..100 {
            write_if_ready(writer.as_fd(), &[b'x'; LONGEST]);
        }
        let mut first = [0; LONGEST];
        reader.read_exact(&mut first).expect("what fitted in");
        drop(reader);
        write_if_ready(writer.as_fd(), b"x");
    }

    #[test]
    fn a_panic_is_caught() {
        assert_eq!(caught(1, || 2), 2);
        assert_eq!(caught(1, || panic!("a test")), 1);
    }
}
