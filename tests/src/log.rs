//! Ends of log files, for failure messages.

use std::fs;
use std::path::Path;

/// The last `lines` lines of a log, with a heading; for `with_context`.
pub fn tail(path: &Path, lines: usize) -> String {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) => return format!("{}: {error}", path.display()),
    };
    let text = String::from_utf8_lossy(&content);
    let all: Vec<&str> = text.lines().collect();
    let end = &all[all.len().saturating_sub(lines)..];
    format!("end of {}:\n    {}", path.display(), end.join("\n    "))
}
