//! Numbered lines, each printed while its step is done.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Instant;

use anyhow::Result;

use crate::exec::seconds;

const WIDTH: usize = 66;

#[derive(Debug, Default)]
pub(super) struct Steps {
    count: u32,
}

impl Steps {
    pub(super) fn run<T>(&mut self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.count += 1;
        let number = self.count;
        let start = Instant::now();
        let is_terminal = io::stdout().is_terminal();
        if is_terminal {
            print!("{number:>3}  {what} ");
            // Without it the line comes whole, later.
            let _ = io::stdout().flush();
        }
        let done = work();
        if is_terminal {
            print!("\r");
        }
        match &done {
            Ok(_) => println!("{}", line(number, what, &seconds(start.elapsed()))),
            Err(_) => println!("{}", line(number, what, "failed")),
        }
        done
    }
}

fn line(number: u32, what: &str, took: &str) -> String {
    let dots = WIDTH.saturating_sub(what.chars().count()).max(3);
    format!("{number:>3}  {what} {} {took:>6}", ".".repeat(dots))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stand_below_each_other() {
        let lines = ["short", "something longer"].map(|what| line(9, what, "0.3 s"));
        assert_eq!(lines[0].len(), lines[1].len());
        assert!(lines[0].starts_with("  9  short ..."), "{}", lines[0]);
        assert!(lines[0].ends_with("...  0.3 s"), "{}", lines[0]);
    }
}
