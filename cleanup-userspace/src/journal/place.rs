//! The file: whose it is, where it lies, and what is set aside.
//!
//! Root writes there, so nothing is trusted that others could have put there: no
//! link is followed, and a file of somebody else is never written to.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Files set aside that are kept.
const KEPT_ASIDE: usize = 5;
/// SQLite's companions of a database file. The last is of another journal mode,
/// and would be played back into the database.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Why a journal was set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Not a database, or not whole.
    Damaged,
    /// Written by another release.
    Version,
    /// Of another program.
    Foreign,
}

impl Reason {
    fn word(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Version => "version",
            Self::Foreign => "foreign",
        }
    }
}

/// The place cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("{operation} {path}: {error}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    /// `problem` completes "<path> …" and says what to do.
    #[error("{path} {problem}")]
    Unsafe {
        path: PathBuf,
        problem: &'static str,
    },
}

/// A file that is ours alone, in a directory that is.
#[derive(Debug)]
pub(super) struct Place {
    /// Without any link.
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    /// The file was made just now.
    pub fresh: bool,
}

impl Place {
    /// Makes the directory (0700) and the file (0600) where they are missing.
    pub fn prepare(path: &Path) -> Result<Self, PlaceError> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(refuse(path, "does not name a file"));
        };
        refuse_links_of_others(dir)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(wrap("cannot make the directory", dir))?;
        let dir = fs::canonicalize(dir).map_err(wrap("cannot find", dir))?;
        let metadata = fs::metadata(&dir).map_err(wrap("cannot look at", &dir))?;
        if metadata.uid() != own_uid() {
            return Err(refuse(
                &dir,
                "does not belong to this daemon's user: chown it, or set `journal.path`",
            ));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(refuse(
                &dir,
                "may be written to by others: chmod go-w, or set `journal.path`",
            ));
        }
        let path = dir.join(name);
        let mut fresh = false;
        if !check(&path)? {
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(wrap("cannot make", &path))?;
            fresh = true;
        }
        for companion in COMPANIONS {
            let companion = with_suffix(&path, companion);
            // Without its database it is of no use, and SQLite may believe it.
            if check(&companion)? && fresh {
                fs::remove_file(&companion).map_err(wrap("cannot remove", &companion))?;
            }
        }
        let metadata = fs::symlink_metadata(&path).map_err(wrap("cannot look at", &path))?;
        Ok(Self {
            path,
            identity: (metadata.dev(), metadata.ino()),
            fresh,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's size, if the path still leads to the very file. One stat(2),
    /// which reads nothing from a disk. For as long as somebody has the file open
    /// no other one gets its inode number.
    pub fn still_there(&self) -> Option<u64> {
        let metadata = fs::symlink_metadata(&self.path).ok()?;
        ((metadata.dev(), metadata.ino()) == self.identity).then_some(metadata.len())
    }

    /// Removes the companions that are left of a database which was deleted or
    /// replaced: SQLite would play them back into the next one of that name.
    pub fn forget_companions(&self) {
        for companion in COMPANIONS {
            let _ = fs::remove_file(with_suffix(&self.path, companion));
        }
    }

    /// Renames the file and its companions; returns the new name. The database
    /// must not be open in this process.
    pub fn set_aside(self, reason: Reason) -> Result<PathBuf, PlaceError> {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let now: String = now.chars().filter(|c| !matches!(c, '-' | ':')).collect();
        let word = reason.word();
        let aside = (1..)
            .map(|n| match n {
                1 => with_suffix(&self.path, &format!(".{word}-{now}")),
                n => with_suffix(&self.path, &format!(".{word}-{now}.{n}")),
            })
            .find(|aside| fs::symlink_metadata(aside).is_err());
        let Some(aside) = aside else {
            return Err(refuse(&self.path, "cannot be set aside: no name is free"));
        };
        // The companions first: a database whose name is gone for a moment is
        // begun anew, and must not find them.
        for companion in COMPANIONS {
            let from = with_suffix(&self.path, companion);
            match fs::rename(&from, with_suffix(&aside, companion)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(wrap("cannot rename", &from)(error));
                }
                _ => {}
            }
        }
        fs::rename(&self.path, &aside).map_err(wrap("cannot rename", &self.path))?;
        if let Err(error) = forget_old(&self.path) {
            tracing::debug!(journal = %self.path.display(), %error, "old files set aside stay");
        }
        Ok(aside)
    }
}

/// Whether it exists; an error if it is not a file of ours alone.
fn check(path: &Path) -> Result<bool, PlaceError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(wrap("cannot look at", path)(error)),
    };
    let problem = if metadata.is_symlink() {
        "is a symbolic link, which is not followed: remove it, or let `journal.path` name the file itself"
    } else if !metadata.is_file() {
        "is not a regular file: remove it, or set `journal.path`"
    } else if metadata.uid() != own_uid() {
        "does not belong to this daemon's user: remove it, or set `journal.path`"
    } else if metadata.nlink() != 1 {
        "has more than one name (hard links): remove it, or set `journal.path`"
    } else if metadata.mode() & 0o022 != 0 {
        "may be written to by others: chmod 600 if it is to be trusted, else remove it"
    } else {
        return Ok(true);
    };
    Err(refuse(path, problem))
}

/// A link on the way is fine if it is root's (`/var/lib` may lie elsewhere).
fn refuse_links_of_others(dir: &Path) -> Result<(), PlaceError> {
    for step in dir.ancestors() {
        match fs::symlink_metadata(step) {
            Ok(metadata) if metadata.is_symlink() && metadata.uid() != own_uid() => {
                return Err(refuse(
                    step,
                    "is a symbolic link of another user, which is not followed: set `journal.path`",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the oldest of what was set aside. What is another program's stays.
fn forget_old(path: &Path) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let mut aside: Vec<(String, OsString)> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let file = entry?.file_name();
        let time = [Reason::Damaged, Reason::Version]
            .into_iter()
            .find_map(|reason| {
                let prefix = format!("{}.{}-", name.to_str()?, reason.word());
                file.to_str()?.strip_prefix(&prefix)
            });
        if let Some(time) = time
            && !COMPANIONS.iter().any(|companion| time.ends_with(companion))
        {
            aside.push((time.to_owned(), file));
        }
    }
    aside.sort();
    let surplus = aside.len().saturating_sub(KEPT_ASIDE);
    for (_, file) in aside.into_iter().take(surplus) {
        let file = dir.join(file);
        for companion in COMPANIONS {
            let _ = fs::remove_file(with_suffix(&file, companion));
        }
        fs::remove_file(&file)?;
    }
    Ok(())
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn wrap(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
    let path = path.to_owned();
    move |error| PlaceError::Io {
        operation,
        path,
        error,
    }
}

fn refuse(path: &Path, problem: &'static str) -> PlaceError {
    PlaceError::Unsafe {
        path: path.to_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn refused(path: &Path, word: &str) {
        let error = Place::prepare(path).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }

    #[test]
    fn made_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/journal.db");
        let place = Place::prepare(&path).unwrap();
        assert!(place.fresh && place.still_there() == Some(0));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert!(!Place::prepare(&path).unwrap().fresh);
        // As SQLite does: its inode is not given to another file meanwhile.
        let _held = fs::File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(place.still_there(), None);
        fs::write(&path, "another").unwrap();
        assert_eq!(place.still_there(), None);
    }

    #[test]
    fn no_link_and_nothing_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        let target = dir.path().join("target");
        fs::write(&target, "precious").unwrap();
        symlink(&target, &path).unwrap();
        refused(&path, "symbolic link");
        fs::remove_file(&path).unwrap();
        symlink(&target, with_suffix(&path, "-wal")).unwrap();
        refused(&path, "symbolic link");
        fs::remove_file(with_suffix(&path, "-wal")).unwrap();
        fs::remove_file(&path).unwrap();
        fs::hard_link(&target, &path).unwrap();
        refused(&path, "hard links");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused(&path, "not a regular file");
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        refused(&path, "chmod 600");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        refused(&path, "go-w");
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn another_users_file_or_link_is_not_used() {
        if own_uid() != 0 {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        fs::write(&path, "").unwrap();
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        refused(&path, "does not belong");
        let real = dir.path().join("real");
        fs::create_dir(&real).unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o755)).unwrap();
        let link = dir.path().join("link");
        symlink(&real, &link).unwrap();
        assert!(Place::prepare(&link.join("journal.db")).is_ok());
        std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
        refused(&link.join("journal.db"), "link of another user");
    }

    #[test]
    fn set_aside_under_names_that_are_not_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.db");
        let mut names = Vec::new();
        for n in 0..KEPT_ASIDE + 3 {
            fs::write(&path, n.to_string()).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let place = Place::prepare(&path).unwrap();
            fs::write(with_suffix(&path, "-wal"), "wal").unwrap();
            names.push(place.set_aside(Reason::Damaged).unwrap());
        }
        assert!(!path.exists() && !with_suffix(&path, "-wal").exists());
        names.retain(|name| name.exists());
        assert_eq!(names.len(), KEPT_ASIDE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2 * KEPT_ASIDE);
        let name = names[0].file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("journal.db.damaged-20"), "{name}");
    }
}
