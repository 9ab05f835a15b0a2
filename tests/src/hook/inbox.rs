//! Inboxes, and the requests in them: a second rendering of docs/hook.md.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};

use super::unused;
use crate::scratch::Scratch;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub framework: Vec<u8>,
    pub executor: Vec<u8>,
    pub nanoseconds: u128,
    pub agent_pid: i32,
    pub mesos: String,
}

/// An inbox as the package makes it.
pub fn make(scratch: &Scratch) -> Result<PathBuf> {
    let dir = unused(scratch, "inbox");
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&dir)
        .context("an inbox")?;
    Ok(dir)
}

/// An inbox on a tmpfs of its own; the scratch unmounts it.
pub fn make_tmpfs(scratch: &Scratch, options: &CStr) -> Result<PathBuf> {
    let dir = make(scratch)?;
    mount("none", &dir, "tmpfs", MountFlags::empty(), options).context("a tmpfs")?;
    Ok(dir)
}

/// All requests, in the order of time. Anything else there is an error.
pub fn read(dir: &Path) -> Result<Vec<Request>> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    paths.iter().map(|path| request(path)).collect()
}

fn request(path: &Path) -> Result<Request> {
    let name = path.file_name().context("a name")?.to_string_lossy();
    ensure!(
        name.ends_with(".request") && !name.starts_with('.'),
        "{name}"
    );
    let mode = fs::metadata(path)?.permissions().mode();
    ensure!(mode & 0o7777 == 0o600, "{name}: {mode:o}");
    let content = fs::read_to_string(path)?;
    parse(&content).with_context(|| format!("{name}: {content}"))
}

fn parse(content: &str) -> Result<Request> {
    let mut lines = content.strip_suffix("end\n").context("an end")?.lines();
    ensure!(lines.next() == Some("compose-cleanup-request 1"));
    let mut value = |name: &str| {
        let line = lines.next().context("another line")?;
        let (key, value) = line.split_once('=').context("a key and a value")?;
        ensure!(key == name, "{key} instead of {name}");
        Ok(value)
    };
    let request = Request {
        framework: unhex(value("framework_id")?)?,
        executor: unhex(value("executor_id")?)?,
        nanoseconds: value("time_ns")?.parse()?,
        agent_pid: value("agent_pid")?.parse()?,
        mesos: value("mesos")?.to_owned(),
    };
    ensure!(lines.next().is_none());
    Ok(request)
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    ensure!(text.len().is_multiple_of(2) && text.is_ascii());
    let digits = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
    digits
        .map(|digits| Ok(u8::from_str_radix(digits, 16)?))
        .collect()
}

/// For arguments of the harness.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
