//! The socket's file: made for root alone, and replaced only if nobody listens.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::run_dir::open_private;

/// In the run directory.
const NAME: &str = "control.sock";

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{path} is not a socket, and not ours to remove: move it away")]
    Occupied { path: PathBuf },
    #[error("another process listens on {path}: stop it, or set another `run_dir`")]
    Listening { path: PathBuf },
    #[error("cannot make the socket {path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

/// Where the daemon with this run directory listens.
pub fn path_in(run_dir: &Path) -> PathBuf {
    run_dir.join(NAME)
}

/// The file of a listening socket, which goes with this.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// Listens. Must be called by the holder of the run directory's lock, in a
    /// runtime.
    pub fn bind(run_dir: &Path) -> Result<(UnixListener, Self), SocketError> {
        let path = path_in(run_dir);
        let io = |error| SocketError::Io {
            path: path.clone(),
            error,
        };
        open_private(run_dir).map_err(io)?;
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::Occupied { path });
            }
            // The lock says that no daemon lives; a listener says that one does.
            Ok(_) if UnixStream::connect(&path).is_ok() => {
                return Err(SocketError::Listening { path });
            }
            Ok(_) => {}
        }
        // Nobody can connect before the mode is right, and the name never vanishes.
        let new = path.with_extension("sock.new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&new).map_err(io)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).map_err(io)?;
        let identity = identity(&new).map_err(io)?;
        fs::rename(&new, &path).map_err(io)?;
        Ok((listener, Self { path, identity }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another daemon's, if somebody removed ours meanwhile.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn for_root_alone_and_gone_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let (_listener, file) = SocketFile::bind(&run_dir).unwrap();
        assert_eq!(mode(&run_dir), 0o700);
        assert_eq!(mode(file.path()), 0o600);
        assert!(UnixStream::connect(file.path()).is_ok());
        drop(file);
        assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_dead_ones_is_replaced_and_a_live_ones_never() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let (listener, live) = SocketFile::bind(&run_dir).unwrap();
        let error = SocketFile::bind(&run_dir).unwrap_err();
        assert!(matches!(error, SocketError::Listening { .. }), "{error}");
        // As after SIGKILL: the file stays, and nobody listens.
        let path = live.path().to_owned();
        let file = identity(&path).unwrap();
        let kept = run_dir.join("kept");
        fs::hard_link(&path, &kept).unwrap();
        drop((listener, live));
        fs::rename(&kept, &path).unwrap();
        assert_eq!(identity(&path).unwrap(), file);
        let (_listener, next) = SocketFile::bind(&run_dir).unwrap();
        assert_ne!(identity(&path).unwrap(), file);
        assert!(UnixStream::connect(next.path()).is_ok());
    }

    #[tokio::test]
    async fn anything_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        drop(SocketFile::bind(&run_dir).unwrap());
        fs::write(path_in(&run_dir), "mine").unwrap();
        let error = SocketFile::bind(&run_dir).unwrap_err();
        assert!(matches!(error, SocketError::Occupied { .. }), "{error}");
        assert_eq!(fs::read_to_string(path_in(&run_dir)).unwrap(), "mine");
        // A link to somewhere is not followed.
        fs::remove_file(path_in(&run_dir)).unwrap();
        std::os::unix::fs::symlink(dir.path().join("x"), path_in(&run_dir)).unwrap();
        assert!(SocketFile::bind(&run_dir).is_err());
        // Somebody else's successor keeps its file.
        fs::remove_file(path_in(&run_dir)).unwrap();
        let (_listener, file) = SocketFile::bind(&run_dir).unwrap();
        fs::remove_file(file.path()).unwrap();
        fs::write(file.path(), "another's").unwrap();
        drop(file);
        assert!(path_in(&run_dir).exists());
    }
}
