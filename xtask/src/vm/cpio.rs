//! The archive format of an initial RAM file system: cpio, "newc".

use std::collections::BTreeSet;
use std::io;

/// An archive that grows file by file.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

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
        self.entry(path, DIRECTORY, (0, 0), &[])?;
        self.directories.insert(path.to_owned());
        Ok(())
    }

    /// A file that may be executed, and the directories above it.
    pub(crate) fn program(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above)?;
        }
        self.entry(path, PROGRAM, (0, 0), content)
    }

    /// A character device. The kernel opens `/dev/console` before anything is mounted.
    pub(crate) fn device(&mut self, path: &str, number: (u32, u32)) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above)?;
        }
        self.entry(path, CHARACTER_DEVICE, number, &[])
    }

    pub(crate) fn finish(mut self) -> io::Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, name.to_owned());
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        self.inode += 1;
        self.bytes.extend_from_slice(b"070701");
        // inode, mode, uid, gid, links, mtime, size, device of the file (2), device (2), name's
        // size, check sum
        let (major, minor) = device;
        for field in [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0,
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
