//! Reading a configuration file, whatever is in its place.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::ConfigError;

/// Many times what a file with every key and a thousand `[[exclude]]` rules has.
const LONGEST: u64 = 1 << 20;

/// The text of a configuration file. Only a regular file is read: a pipe would be
/// waited for without an end, and one that nobody writes to would look like an empty
/// file, which is valid. Blocks for as long as the file system does.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    read_regular(path).map_err(|error| ConfigError::Read {
        path: path.to_owned(),
        error,
    })
}

fn read_regular(path: &Path) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file: OwnedFd = rustix::fs::open(path, flags, Mode::empty())?;
    let file = File::from(file);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    // Not by its length alone: it may grow.
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::other("it has more than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let whole = error.as_bytes().get(..error.utf8_error().valid_up_to());
        let line = whole
            .unwrap_or_default()
            .split(|byte| *byte == b'\n')
            .count();
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("line {line} is no UTF-8 text"),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn refused(path: &Path) -> String {
        let told = read(path).unwrap_err().to_string();
        assert!(told.contains(path.to_str().unwrap()), "{told}");
        told
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        assert!(refused(&path).contains("No such file"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        assert!(refused(&path).contains("no regular file"));
        fs::remove_file(&path).unwrap();
        let _listener = UnixListener::bind(&path).unwrap();
        refused(&path);
        for other in [dir.path(), Path::new("/dev/zero"), Path::new("/dev/null")] {
            assert!(refused(other).contains("no regular file"));
        }
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, b"mode = \"enforce\"\n# \xff\n").unwrap();
        assert!(refused(&path).contains("line 2 is no UTF-8"));
        let huge = File::create(&path).unwrap();
        huge.set_len(1 << 40).unwrap();
        assert!(refused(&path).contains("more than 1 MiB"));
        fs::write(&path, "mode = \"enforce\"\n").unwrap();
        assert_eq!(read(&path).unwrap(), "mode = \"enforce\"\n");
    }
}
