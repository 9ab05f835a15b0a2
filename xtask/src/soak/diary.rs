//! What the daemons of a soak have said, over all their lives.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

const LOSSES: &str = "the kernel could not report every exit; looking at everything";
const LEFT_NOTHING: &str = "an executor ended and left nothing behind";

/// Reads each daemon's log to its end, and keeps it all.
#[derive(Debug)]
pub(super) struct Diary {
    kept: File,
    path: PathBuf,
    /// In the log of the daemon of now.
    offset: u64,
    rest: Vec<u8>,
    /// Runs whose case was closed with nothing left.
    pub(super) cases: HashSet<String>,
    /// … and how often one was closed.
    pub(super) closings: usize,
    /// Executors that needed no case.
    pub(super) left_nothing: usize,
    /// How often a case came from which kind of evidence.
    pub(super) origins: BTreeMap<String, usize>,
    /// How often the daemon noticed that the kernel had lost events.
    pub(super) losses: usize,
    /// Warnings and errors, and how often each.
    pub(super) warnings: BTreeMap<String, usize>,
    /// Lines that are no log lines: panics, above all.
    pub(super) odd_lines: Vec<String>,
}

impl Diary {
    pub(super) fn new(logs: &Path) -> Result<Self> {
        fs::create_dir_all(logs).with_context(|| format!("making {}", logs.display()))?;
        let path = logs.join("compose-cleanup.log");
        Ok(Self {
            kept: File::create(&path).with_context(|| format!("making {}", path.display()))?,
            path,
            offset: 0,
            rest: Vec::new(),
            cases: HashSet::new(),
            closings: 0,
            left_nothing: 0,
            origins: BTreeMap::new(),
            losses: 0,
            warnings: BTreeMap::new(),
            odd_lines: Vec::new(),
        })
    }

    /// Where everything is kept.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what is new.
    pub(super) fn read(&mut self, log: &Path) -> Result<()> {
        let mut file = File::open(log).context("the daemon's log")?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut new = Vec::new();
        self.offset += file.read_to_end(&mut new).context("the daemon's log")? as u64;
        self.kept.write_all(&new).context("keeping the log")?;
        self.rest.extend(new);
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.note(&String::from_utf8_lossy(&line));
        }
        Ok(())
    }

    /// The daemon is gone: reads the last of it. The next begins a new log.
    pub(super) fn end_of_life(&mut self, log: &Path) -> Result<()> {
        self.read(log)?;
        // A line that SIGKILL cut short.
        self.rest.clear();
        self.offset = 0;
        Ok(())
    }

    fn note(&mut self, line: &str) {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            self.odd_lines.push(line.trim_end().to_owned());
            return;
        };
        let message = line["message"].as_str().unwrap_or_default();
        if matches!(line["level"].as_str(), Some("WARN" | "ERROR")) {
            *self.warnings.entry(message.to_owned()).or_default() += 1;
        }
        match message {
            "case" if line["result"] == "clean" => {
                self.closings += 1;
                let origin = line["origin"].as_str().unwrap_or("?").to_owned();
                *self.origins.entry(origin).or_default() += 1;
                if let Some(run) = line["container"].as_str() {
                    self.cases.insert(run.to_owned());
                }
            }
            LEFT_NOTHING => self.left_nothing += 1,
            LOSSES => self.losses += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logs_of_two_lives_make_one_account() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let log = dir.path().join("log");
        let mut diary = Diary::new(dir.path())?;
        let case =
            "{\"message\":\"case\",\"container\":\"c\",\"result\":\"clean\",\"origin\":\"scan\"}\n";
        fs::write(&log, format!("{case}{{\"mess"))?;
        diary.read(&log)?;
        assert_eq!((diary.closings, diary.odd_lines.len()), (1, 0));
        diary.end_of_life(&log)?;
        fs::write(&log, format!("{case}thread panicked\n"))?;
        diary.end_of_life(&log)?;
        assert_eq!((diary.closings, diary.cases.len()), (2, 1));
        assert_eq!(diary.odd_lines, ["thread panicked"]);
        assert_eq!(diary.origins["scan"], 2);
        Ok(())
    }
}
