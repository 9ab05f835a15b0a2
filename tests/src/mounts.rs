//! The mount table of this process.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone)]
pub struct Mount {
    /// `major:minor` of the file system: one cgroup hierarchy has one.
    pub device: String,
    pub point: PathBuf,
    pub fs_type: String,
}

/// Everything that is mounted, in the order of mounting.
pub fn all() -> Result<Vec<Mount>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    Ok(table.lines().filter_map(parse).collect())
}

/// Unmounts whatever lies beneath `dir`, busy or not.
pub fn unmount_beneath(dir: &Path) -> Result<()> {
    for mount in all()?.iter().rev() {
        if mount.point.starts_with(dir) {
            // One mount may have taken another with it.
            let _ = unmount(&mount.point, UnmountFlags::DETACH);
        }
    }
    Ok(())
}

/// `36 35 98:0 /root /mount\040point rw,noatime master:1 - ext4 /dev/x rw`
fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(2);
    Some(Mount {
        device: fields.next()?.to_owned(),
        point: unescape(fields.nth(1)?),
        fs_type: right.split(' ').next()?.to_owned(),
    })
}

/// The kernel writes blanks and backslashes as `\ooo`.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail
            .get(..3)
            .and_then(|octal| std::str::from_utf8(octal).ok())
            .and_then(|octal| u8::from_str_radix(octal, 8).ok());
        match escaped {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_parsed() {
        let mount = parse(r"37 31 0:34 / /sys/fs/c\040g rw shared:9 - cgroup cgroup rw,freezer");
        let mount = mount.expect("a mount");
        assert_eq!(mount.device, "0:34");
        assert_eq!(mount.point, Path::new("/sys/fs/c g"));
        assert_eq!(mount.fs_type, "cgroup");
    }
}
