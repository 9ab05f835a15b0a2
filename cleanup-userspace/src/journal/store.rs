//! The database: opened with care, written in whole transactions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _};

use super::backlog::{Backlog, Row};
use super::entry::{CaseId, Opening, Unfinished};
use super::place::{Place, PlaceError, Reason, with_suffix};

/// "cclj", in the header of each journal: file(1) and we tell it from others' databases.
const APPLICATION_ID: i64 = 0x6363_6c6a;
const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = include_str!("schema.sql");
pub(super) const PAGE: u64 = 4096;
/// Pages of write-ahead log after which they are moved into the database (1 MiB).
const CHECKPOINT_PAGES: u64 = 256;
/// Another process may be reading: nobody waits for it longer.
const BUSY: Duration = Duration::from_secs(1);
/// Up to this size a journal is read through when it is opened. A larger one
/// would hold up the start; a damage is then found when it is met.
const CHECKED_UP_TO: u64 = 16 << 20;
/// Cases that a start takes up again.
const UNFINISHED: i64 = 10_000;

#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It cannot be used, and never will be: it is set aside.
    #[error("{problem}")]
    Unusable { reason: Reason, problem: String },
    /// The place refuses now; it may not later.
    #[error("SQLite: {0}")]
    Sql(rusqlite::Error),
    /// A case's row is gone: somebody else wrote to the journal.
    #[error("SQLite: {0}")]
    RowsGone(rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let damaged = match &error {
            rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
                ErrorCode::ConstraintViolation => return Self::RowsGone(error),
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => true,
                // SQL that this very program prepared for this very schema.
                ErrorCode::Unknown => failure.extended_code == rusqlite::ffi::SQLITE_ERROR,
                _ => false,
            },
            // A value of a type that was never written.
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::SqlInputError { .. } => true,
            _ => false,
        };
        if damaged {
            Self::Unusable {
                reason: Reason::Damaged,
                problem: error.to_string(),
            }
        } else {
            Self::Sql(error)
        }
    }
}

impl StoreError {
    /// What an operator can do about it.
    pub fn advice(&self) -> &'static str {
        let Self::Sql(rusqlite::Error::SqliteFailure(failure, _)) = self else {
            return "the message says what to change";
        };
        match failure.code {
            ErrorCode::DiskFull => "make room on its file system",
            ErrorCode::ReadOnly | ErrorCode::CannotOpen => {
                "make its file system writable, or set `journal.path`"
            }
            ErrorCode::SystemIoFailure => "look at the kernel's log for errors of the disk",
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
                "another process holds it: end that, or set `journal.path`"
            }
            _ => "report this",
        }
    }
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Store {
    // First: closed before anything about its file changes.
    pub(super) connection: Connection,
    place: Place,
    boot: String,
}

/// What was found when it was opened.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Under which name the old one was put, and why.
    pub set_aside: Option<(PathBuf, String)>,
    pub fresh: bool,
    pub unfinished: Vec<(Unfinished, Row)>,
}

impl Store {
    /// What cannot be used is set aside, and a fresh one is begun.
    pub fn open(path: &Path) -> Result<(Self, Found), StoreError> {
        let place = Place::prepare(path)?;
        let (reason, problem) = match Self::open_at(&place) {
            Ok((connection, unfinished)) => {
                let found = Found {
                    set_aside: None,
                    fresh: place.fresh,
                    unfinished,
                };
                return Ok((Self::new(connection, place), found));
            }
            Err(StoreError::Unusable { reason, problem }) => (reason, problem),
            Err(error) => return Err(error),
        };
        let aside = place.set_aside(reason)?;
        let place = Place::prepare(path)?;
        let (connection, unfinished) = Self::open_at(&place)?;
        let found = Found {
            set_aside: Some((aside, problem)),
            fresh: true,
            unfinished,
        };
        Ok((Self::new(connection, place), found))
    }

    fn new(connection: Connection, place: Place) -> Self {
        Self {
            connection,
            place,
            boot: boot_id(),
        }
    }

    fn open_at(place: &Place) -> Result<(Connection, Vec<(Unfinished, Row)>), StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(place.path(), flags)?;
        connection.busy_timeout(BUSY)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        // 256 KiB: rows are written once, and hardly read.
        connection.execute_batch(
            "PRAGMA cache_size = -256; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY;
             PRAGMA cell_size_check = ON; PRAGMA foreign_keys = ON;",
        )?;
        let is_new = identify(&connection)?;
        // SQLite itself would only read it from now on.
        if connection.is_readonly(rusqlite::MAIN_DB)? && may_write(place.path()) {
            return Err(damaged(
                "its header names a format of the future".to_owned(),
            ));
        }
        if is_new {
            connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL;")?;
        }
        let mode: String =
            connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(PlaceError::Unsafe {
                path: place.path().to_owned(),
                problem: "lies on a file system without shared memory files: set `journal.path`",
            }
            .into());
        }
        connection.execute_batch(&format!(
            "PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};
             PRAGMA journal_size_limit = {};",
            CHECKPOINT_PAGES * PAGE
        ))?;
        if is_new {
            connection.execute_batch(&format!(
                "BEGIN IMMEDIATE;\n{SCHEMA}\nPRAGMA application_id = {APPLICATION_ID};
                 PRAGMA user_version = {SCHEMA_VERSION};\nCOMMIT;"
            ))?;
        } else {
            verify(&connection, place)?;
        }
        let unfinished = unfinished(&connection)?;
        let newest: Option<i64> =
            connection.query_row("SELECT max(id) FROM cases", [], |row| row.get(0))?;
        if let Some(newest) = newest {
            CaseId::taken(CaseId::of_row(newest));
        }
        Ok((connection, unfinished))
    }

    /// Whether the path still leads to the open database. SQLite itself goes on
    /// writing into a file that was deleted.
    pub fn still_there(&self) -> bool {
        self.place.still_there().is_some()
    }

    /// Bytes on disk, the write-ahead log included.
    pub fn bytes(&self) -> u64 {
        let log = std::fs::metadata(with_suffix(self.place.path(), "-wal"));
        self.place.still_there().unwrap_or(0) + log.map_or(0, |log| log.len())
    }

    /// Closes a database whose name does not lead to it any more.
    pub fn abandon(self) {
        let Self {
            connection, place, ..
        } = self;
        drop(connection);
        place.forget_companions();
    }

    /// Puts a database that turned out to be damaged out of the way.
    pub fn set_aside(self, reason: Reason) -> Result<PathBuf, PlaceError> {
        let Self {
            connection, place, ..
        } = self;
        // An error here changes nothing: the connection is closed all the same.
        drop(connection);
        place.set_aside(reason)
    }

    /// Writes all that is dirty in one transaction; returns the rows that cases got
    /// and how many records were written.
    pub fn write(&mut self, backlog: &Backlog) -> Result<(Vec<(CaseId, Row)>, u64), StoreError> {
        let Self {
            connection, boot, ..
        } = self;
        let transaction =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut rows = Vec::new();
        let writes = super::write::write_all(&transaction, boot, backlog, &mut rows)?;
        transaction.commit()?;
        Ok((rows, writes))
    }
}

/// Whether it is empty; an error if it is not a journal of this version.
pub(super) fn identify(connection: &Connection) -> Result<bool, StoreError> {
    let pragma = |name: &str| -> Result<i64, StoreError> {
        Ok(connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))?)
    };
    let application = pragma("application_id")?;
    let version = pragma("user_version")?;
    let objects: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let unusable = |reason, problem| Err(StoreError::Unusable { reason, problem });
    match (application, version, objects) {
        (0, 0, 0) => Ok(true),
        (APPLICATION_ID, SCHEMA_VERSION, _) => Ok(false),
        (APPLICATION_ID, version, _) => unusable(
            Reason::Version,
            format!("its schema has version {version}, this release writes {SCHEMA_VERSION}"),
        ),
        _ => unusable(
            Reason::Foreign,
            "it is a database of another program".to_owned(),
        ),
    }
}

/// Whether the file itself and its file system let us write.
fn may_write(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// The right tables and, unless it is large, no damage.
fn verify(connection: &Connection, place: &Place) -> Result<(), StoreError> {
    let pristine = Connection::open_in_memory()?;
    pristine.execute_batch(SCHEMA)?;
    if tables(connection)? != tables(&pristine)? {
        return Err(damaged("its tables are not those of a journal".to_owned()));
    }
    if place
        .still_there()
        .is_some_and(|size| size <= CHECKED_UP_TO)
    {
        let verdict: Option<String> = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .optional()?;
        if let Some(problem) = verdict.filter(|verdict| verdict != "ok") {
            return Err(damaged(problem));
        }
    }
    Ok(())
}

fn tables(connection: &Connection) -> rusqlite::Result<Vec<Option<String>>> {
    connection
        .prepare("SELECT sql FROM sqlite_schema ORDER BY type, name")?
        .query_map([], |row| row.get(0))?
        .collect()
}

fn damaged(problem: String) -> StoreError {
    StoreError::Unusable {
        reason: Reason::Damaged,
        problem,
    }
}

fn unfinished(connection: &Connection) -> Result<Vec<(Unfinished, Row)>, StoreError> {
    let mut containers = connection
        .prepare("SELECT container FROM containers WHERE case_id = ?1 ORDER BY container")?;
    let mut query = connection.prepare(
        "SELECT id, container, framework, executor, agent, origin, death_unix_ns,
                death_monotonic_ns, noticed_after_ns, wait_status, proof, resumed, boot
         FROM cases WHERE closed_unix_ns IS NULL ORDER BY id DESC LIMIT ?1",
    )?;
    let found = query.query_map([UNFINISHED], |row| {
        let death: i64 = row.get(7)?;
        let noticed: i64 = row.get(8)?;
        let opening = Opening {
            container: row.get(1)?,
            framework: row.get(2)?,
            executor: row.get(3)?,
            agent: row.get(4)?,
            origin: row.get::<_, String>(5)?.into(),
            death_unix_ns: row.get(6)?,
            death_ns: u64::try_from(death).unwrap_or(0),
            noticed_ns: u64::try_from(death.saturating_add(noticed)).unwrap_or(0),
            wait_status: row.get(9)?,
            proof: row.get(10)?,
        };
        let row = Row {
            id: row.get(0)?,
            resumed: row.get(11)?,
            boot: row.get(12)?,
            death_unix_ns: opening.death_unix_ns,
            death_ns: death,
        };
        Ok((opening, row))
    })?;
    let mut cases = Vec::new();
    for case in found {
        let (opening, row) = case?;
        let unfinished = Unfinished {
            case: CaseId::of_row(row.id),
            opening,
            containers: containers
                .query_map([row.id], |row| row.get(0))?
                .collect::<Result<_, _>>()?,
        };
        cases.push((unfinished, row));
    }
    Ok(cases)
}

/// Times of CLOCK_MONOTONIC compare within one boot only.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}
