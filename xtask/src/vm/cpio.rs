//! The archive format of an initial RAM file system: cpio, "newc".

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// An archive that grows file by file.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// What is said of an entry beside its name and content.
#[derive(Debug, Clone, Copy)]
struct Kind {
    mode: u32,
    /// User and group.
    owner: (u32, u32),
    /// Of a device.
    device: (u32, u32),
}

impl Kind {
    /// Root's.
    fn of(mode: u32) -> Self {
        Self {
            mode,
            owner: (0, 0),
            device: (0, 0),
        }
    }
}

impl Archive {
    /// A directory and those above it.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above)?;
        }
        self.entry(path, Kind::of(DIRECTORY), &[])?;
        self.directories.insert(path.to_owned());
        Ok(())
    }

    /// A file that may be executed, and the directories above it.
    pub(crate) fn program(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.add(path, Kind::of(PROGRAM), content)
    }

    /// A file, and the directories above it.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.add(path, Kind::of(FILE), content)
    }

    /// A symbolic link, and the directories above it.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.add(path, Kind::of(LINK), target.as_bytes())
    }

    /// A character device. The kernel opens `/dev/console` before anything is mounted.
    pub(crate) fn device(&mut self, path: &str, number: (u32, u32)) -> io::Result<()> {
        let kind = Kind {
            device: number,
            ..Kind::of(CHARACTER_DEVICE)
        };
        self.add(path, kind, &[])
    }

    /// Everything beneath a directory of this host, with its owners and rights. What is neither
    /// a file nor a directory nor a link is made by the guest itself.
    pub(crate) fn tree(&mut self, root: &Path) -> io::Result<()> {
        let mut names: Vec<_> = fs::read_dir(root)?.collect::<io::Result<Vec<_>>>()?;
        names.sort_by_key(fs::DirEntry::file_name);
        for name in names {
            self.beneath(root, Path::new(&name.file_name()))?;
        }
        Ok(())
    }

    fn beneath(&mut self, root: &Path, path: &Path) -> io::Result<()> {
        let file = root.join(path);
        let metadata = fs::symlink_metadata(&file)?;
        let kind = Kind {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            device: (0, 0),
        };
        let name = path.to_str().ok_or_else(|| {
            let what = format!("{} is not UTF-8", file.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        })?;
        let sort = metadata.file_type();
        if sort.is_dir() {
            if self.directories.insert(name.to_owned()) {
                self.entry(name, kind, &[])?;
            }
            let mut below: Vec<_> = fs::read_dir(&file)?.collect::<io::Result<Vec<_>>>()?;
            below.sort_by_key(fs::DirEntry::file_name);
            for entry in below {
                self.beneath(root, &path.join(entry.file_name()))?;
            }
        } else if sort.is_symlink() {
            self.entry(name, kind, fs::read_link(&file)?.as_os_str().as_bytes())?;
        } else if sort.is_file() {
            self.entry(name, kind, &fs::read(&file)?)?;
        } else if sort.is_char_device() && name == "dev/console" {
            self.device(name, (5, 1))?;
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> io::Result<Vec<u8>> {
        self.entry("TRAILER!!!", Kind::of(0), &[])?;
        Ok(self.bytes)
    }

    fn add(&mut self, path: &str, kind: Kind, content: &[u8]) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above)?;
        }
        self.entry(path, kind, content)
    }

    fn entry(&mut self, name: &str, kind: Kind, content: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, name.to_owned());
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        self.inode += 1;
        self.bytes.extend_from_slice(b"070701");
        // inode, mode, uid, gid, links, mtime, size, device of the file (2), device (2), name's
        // size, check sum
        let Kind {
            mode,
            owner: (uid, gid),
            device: (major, minor),
        } = kind;
        for field in [
            self.inode, mode, uid, gid, 1, 0, size, 0, 0, major, minor, name_size, 0,
        ] {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    fn example() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.program("/init", b"12345").unwrap();
        archive.program("/a/b/one", b"1").unwrap();
        archive.program("/a/b/two", b"").unwrap();
        archive.device("/dev/console", (5, 1)).unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn an_entry_is_a_header_a_name_and_the_content_each_padded_to_four() {
        let bytes = example();
        assert_eq!(bytes.len() % 4, 0);
        let header = std::str::from_utf8(&bytes[..110]).unwrap();
        assert_eq!(&header[..14], "07070100000001", "magic and inode");
        assert_eq!(&header[14..22], "000081ed", "a file of mode 0755");
        assert_eq!(&header[54..62], "00000005", "its size");
        assert_eq!(&header[94..102], "00000005", "its name's, with the end");
        // 110 + 5, padded, is 116; 116 + 5, padded, is 124.
        assert_eq!(&bytes[110..124], b"init\0\x0012345\0\0\0");
    }

    #[test]
    fn directories_come_once_and_before_what_is_in_them() {
        let text = String::from_utf8_lossy(&example()).into_owned();
        let at = |name: &str| {
            let found: Vec<_> = text.match_indices(&format!("{name}\0")).collect();
            assert_eq!(found.len(), 1, "{name}");
            found[0].0
        };
        assert!(at("a/b") < at("a/b/one") && at("a/b/one") < at("a/b/two"));
        assert!(at("a/b/two") < at("TRAILER!!!"));
    }

    #[test]
    fn a_tree_is_packed_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/one"), "12345").unwrap();
        std::os::unix::fs::symlink("b/one", dir.path().join("a/link")).unwrap();
        let mut archive = Archive::default();
        archive.tree(dir.path()).unwrap();
        archive.file("a/b/two", b"2").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for name in ["a\0", "a/b\0", "a/b/one\0", "a/link\0", "a/b/two\0"] {
            assert_eq!(text.matches(name).count(), 1, "{name:?}");
        }
        assert!(
            text.contains("12345") && text.contains("a/link\0\0"),
            "{text}"
        );
        assert!(text.find("a/b\0") < text.find("a/b/one\0"));
    }

    /// Where there is another reader of the format, it agrees.
    #[test]
    fn busybox_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("archive");
        fs::write(&file, example()).unwrap();
        let Ok(output) = Command::new("busybox")
            .args(["cpio", "-t"])
            .stdin(fs::File::open(&file).unwrap())
            .output()
        else {
            eprintln!("no busybox here: not compared");
            return;
        };
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "init\na\na/b\na/b/one\na/b/two\ndev\ndev/console\n",
            "{output:?}"
        );
    }
}
