//! Which glibc a program asks for: the newest symbol version that it names.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const STEM: &[u8] = b"GLIBC_";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Glibc(u32, u32);

impl fmt::Display for Glibc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor) = self;
        write!(f, "{major}.{minor}")
    }
}

pub(super) fn needed(file: &Path) -> Result<Glibc> {
    let elf = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    newest(&elf).with_context(|| format!("{} names no version of glibc", file.display()))
}

/// Symbol versions are whole words between zeros (`.dynstr`), which no text in a
/// program is.
fn newest(elf: &[u8]) -> Option<Glibc> {
    elf.split(|byte| *byte == 0)
        .filter_map(|word| word.strip_prefix(STEM))
        .filter_map(|version| {
            let (major, minor) = std::str::from_utf8(version).ok()?.split_once('.')?;
            // A third number (2.2.5) is of no version that matters.
            let minor = minor.split_once('.').map_or(minor, |(minor, _)| minor);
            Some(Glibc(major.parse().ok()?, minor.parse().ok()?))
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_counts() {
        let elf = b"\x7fELF\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.9\0a GLIBC_2.99\0GLIBC_PRIVATE\0";
        assert_eq!(newest(elf), Some(Glibc(2, 34)));
        assert_eq!(newest(b"\0static\0"), None);
        assert!(Glibc(2, 9) < Glibc(2, 17));
    }
}
