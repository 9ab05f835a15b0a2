//! Reading the journal, whether or not the daemon runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Row, params};

use super::entry::CaseId;
use super::store::{StoreError, identify};

/// How long a reader waits for a writer.
const BUSY: Duration = Duration::from_secs(5);
/// The fewest digits of a case's number that are shown.
const SHORTEST: usize = 8;
/// The fewest digits that are looked for.
const FEWEST: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error(
        "there is no journal at {0}: either the daemon has not run yet, or it has another `journal.path` (name it with --journal or --config)"
    )]
    Missing(PathBuf),
    #[error("cannot read the journal {path}: {error}")]
    Io {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("{path} is not a journal that this release can read: {problem}")]
    Unusable { path: PathBuf, problem: String },
    #[error("cannot read the journal {path}: SQLite: {error}")]
    Sql {
        path: PathBuf,
        error: rusqlite::Error,
    },
    #[error("the journal has no case {0} (`compose-cleanup cases` lists what it has)")]
    Unknown(String),
    #[error("{text} is the beginning of {count} cases: give more digits")]
    Ambiguous { text: String, count: usize },
    #[error("{0} is not the number of a case: 4 to 16 hexadecimal digits, or a Mesos container id")]
    NotANumber(String),
}

/// Which cases are listed.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub open: bool,
    /// Ids as bytes, whole.
    pub executor: Option<Vec<u8>>,
    pub framework: Option<Vec<u8>>,
    /// The beginning of a Mesos container id or of a Docker container's.
    pub container: Option<String>,
    /// At most this many, the newest.
    pub limit: Option<u32>,
}

/// A case, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseSummary {
    pub id: CaseId,
    pub container: String,
    pub framework: Option<Vec<u8>>,
    pub executor: Option<Vec<u8>>,
    pub origin: String,
    pub death_unix_ns: i64,
    pub wait_status: Option<i32>,
    pub resumed: i64,
    pub closed_unix_ns: Option<i64>,
    /// `None` while the case is open.
    pub result: Option<String>,
    pub containers: i64,
    pub directories_removed: i64,
    pub processes_ended: i64,
    pub first_stop_after_ns: Option<i64>,
    pub stopped_after_ns: Option<i64>,
    pub clean_after_ns: Option<i64>,
}

/// All that is known of a case. Times are nanoseconds after the death.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseDetail {
    pub summary: CaseSummary,
    pub agent: Option<Vec<u8>>,
    pub proof: Option<String>,
    pub noticed_after_ns: i64,
    pub plan: Option<String>,
    pub steps_dropped: i64,
    pub evidence: Vec<EvidenceRow>,
    pub containers: Vec<ContainerRow>,
    pub steps: Vec<StepRow>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceRow {
    /// How often the case had been begun again by then.
    pub resumed: i64,
    pub origin: String,
    pub first_after_ns: i64,
    pub times: i64,
    pub detail: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRow {
    pub container: String,
    pub key: Option<String>,
    pub joined_after_ns: Option<i64>,
    pub asked_after_ns: Option<i64>,
    pub ended_after_ns: Option<i64>,
    pub ending: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRow {
    pub resumed: i64,
    pub seq: i64,
    pub kind: String,
    pub detail: Option<String>,
    pub began_after_ns: i64,
    pub ended_after_ns: Option<i64>,
    pub outcome: Option<String>,
    pub error: Option<String>,
}

/// A journal, open for reading.
#[derive(Debug)]
pub struct History {
    connection: Connection,
    path: PathBuf,
}

const SUMMARY: &str = "
SELECT id, container, framework, executor, origin, death_unix_ns, wait_status, resumed,
       closed_unix_ns, result, directories_removed, processes_ended, first_stop_after_ns,
       stopped_after_ns, clean_after_ns,
       (SELECT count(*) FROM containers WHERE case_id = cases.id)
FROM cases";

impl History {
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() == 0 => {
                return Err(HistoryError::Missing(path.to_owned()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(HistoryError::Missing(path.to_owned()));
            }
            Err(error) => {
                let path = path.to_owned();
                return Err(HistoryError::Io { path, error });
            }
        }
        // SQLite itself says "unable to open database file" to whoever may not.
        rustix::fs::access(path, rustix::fs::Access::READ_OK).map_err(|error| {
            HistoryError::Io {
                path: path.to_owned(),
                error: error.into(),
            }
        })?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(wrap(path))?;
        match Self::ready(connection, path) {
            // A file system that is read-only has no place for the shared memory
            // of a write-ahead log; nobody writes there, either.
            Err(HistoryError::Sql { error, .. })
                if matches!(
                    error.sqlite_error_code(),
                    Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly)
                ) =>
            {
                Self::ready(open_immutable(path).map_err(wrap(path))?, path)
            }
            other => other,
        }
    }

    fn ready(connection: Connection, path: &Path) -> Result<Self, HistoryError> {
        connection.busy_timeout(BUSY).map_err(wrap(path))?;
        match identify(&connection) {
            Ok(false) => {}
            Ok(true) => return Err(HistoryError::Missing(path.to_owned())),
            Err(StoreError::Sql(error)) => return Err(wrap(path)(error)),
            Err(error) => {
                return Err(HistoryError::Unusable {
                    path: path.to_owned(),
                    problem: error.to_string(),
                });
            }
        }
        Ok(Self {
            connection,
            path: path.to_owned(),
        })
    }

    /// Newest first.
    pub fn cases(&self, filter: &Filter) -> Result<Vec<CaseSummary>, HistoryError> {
        let Filter {
            open,
            executor,
            framework,
            container,
            limit,
        } = filter;
        let container = container.as_deref().map(|id| format!("{}*", literal(id)));
        let query = format!(
            "{SUMMARY} WHERE (NOT ?1 OR closed_unix_ns IS NULL)
                 AND (?2 IS NULL OR executor = ?2) AND (?3 IS NULL OR framework = ?3)
                 AND (?4 IS NULL OR container GLOB ?4 OR EXISTS (SELECT 1 FROM containers
                      WHERE case_id = cases.id AND containers.container GLOB ?4))
             ORDER BY id DESC LIMIT ?5"
        );
        let limit = limit.map_or(-1, i64::from);
        self.read(
            &query,
            params![open, executor, framework, container, limit],
            summary,
        )
    }

    /// The case with this number, a beginning of it, or this Mesos container.
    pub fn find(&self, text: &str) -> Result<CaseId, HistoryError> {
        if text.len() == 36 {
            let query = "SELECT id FROM cases WHERE container = ?1";
            let found = self.read(query, [text], |row| row.get(0))?;
            let unknown = || HistoryError::Unknown(text.to_owned());
            return found
                .first()
                .copied()
                .map(CaseId::of_row)
                .ok_or_else(unknown);
        }
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !digits || !(FEWEST..=16).contains(&text.len()) {
            return Err(HistoryError::NotANumber(text.to_owned()));
        }
        let lower = text.to_ascii_lowercase();
        let found: Vec<CaseId> = self
            .numbers()?
            .into_iter()
            .filter(|(number, _)| number.starts_with(&lower))
            .map(|(_, id)| id)
            .collect();
        match found[..] {
            [] => Err(HistoryError::Unknown(text.to_owned())),
            [id] => Ok(id),
            _ => Err(HistoryError::Ambiguous {
                text: text.to_owned(),
                count: found.len(),
            }),
        }
    }

    /// How many digits tell all cases apart.
    pub fn digits(&self) -> Result<usize, HistoryError> {
        let mut numbers = self.numbers()?;
        numbers.sort();
        let shared = numbers
            .windows(2)
            .map(|pair| {
                let both = pair[0].0.bytes().zip(pair[1].0.bytes());
                both.take_while(|(a, b)| a == b).count()
            })
            .max();
        Ok(shared.map_or(SHORTEST, |shared| SHORTEST.max(shared + 1)))
    }

    fn numbers(&self) -> Result<Vec<(String, CaseId)>, HistoryError> {
        self.read("SELECT id FROM cases", [], |row| {
            let id = CaseId::of_row(row.get(0)?);
            Ok((id.to_string(), id))
        })
    }

    pub fn case(&self, id: CaseId) -> Result<CaseDetail, HistoryError> {
        // One moment of the journal for all of it.
        let transaction = self
            .connection
            .unchecked_transaction()
            .map_err(wrap(&self.path))?;
        let row_id = id.row();
        let unknown = || HistoryError::Unknown(id.to_string());
        let summary = self
            .read(&format!("{SUMMARY} WHERE id = ?1"), [row_id], summary)?
            .pop()
            .ok_or_else(unknown)?;
        let own = self
            .read(
                "SELECT agent, proof, noticed_after_ns, plan, steps_dropped FROM cases WHERE id = ?1",
                [row_id],
                |row| {
                    Ok(CaseDetail {
                        summary: summary.clone(),
                        agent: row.get(0)?,
                        proof: row.get(1)?,
                        noticed_after_ns: row.get(2)?,
                        plan: row.get(3)?,
                        steps_dropped: row.get(4)?,
                        evidence: Vec::new(),
                        containers: Vec::new(),
                        steps: Vec::new(),
                    })
                },
            )?
            .pop()
            .ok_or_else(unknown)?;
        let detail = CaseDetail {
            evidence: self.evidence(row_id)?,
            containers: self.containers(row_id)?,
            steps: self.steps(row_id)?,
            ..own
        };
        drop(transaction);
        Ok(detail)
    }

    fn evidence(&self, id: i64) -> Result<Vec<EvidenceRow>, HistoryError> {
        self.read(
            "SELECT resumed, origin, first_after_ns, times, detail FROM evidence
             WHERE case_id = ?1 ORDER BY first_after_ns",
            [id],
            |row| {
                Ok(EvidenceRow {
                    resumed: row.get(0)?,
                    origin: row.get(1)?,
                    first_after_ns: row.get(2)?,
                    times: row.get(3)?,
                    detail: row.get(4)?,
                })
            },
        )
    }

    fn containers(&self, id: i64) -> Result<Vec<ContainerRow>, HistoryError> {
        self.read(
            "SELECT container, join_key, joined_after_ns, asked_after_ns, ended_after_ns, ending
             FROM containers WHERE case_id = ?1 ORDER BY joined_after_ns, container",
            [id],
            |row| {
                Ok(ContainerRow {
                    container: row.get(0)?,
                    key: row.get(1)?,
                    joined_after_ns: row.get(2)?,
                    asked_after_ns: row.get(3)?,
                    ended_after_ns: row.get(4)?,
                    ending: row.get(5)?,
                })
            },
        )
    }

    fn steps(&self, id: i64) -> Result<Vec<StepRow>, HistoryError> {
        self.read(
            "SELECT resumed, seq, kind, detail, began_after_ns, ended_after_ns, outcome, error
             FROM steps WHERE case_id = ?1 ORDER BY resumed, began_after_ns, seq",
            [id],
            |row| {
                Ok(StepRow {
                    resumed: row.get(0)?,
                    seq: row.get(1)?,
                    kind: row.get(2)?,
                    detail: row.get(3)?,
                    began_after_ns: row.get(4)?,
                    ended_after_ns: row.get(5)?,
                    outcome: row.get(6)?,
                    error: row.get(7)?,
                })
            },
        )
    }

    fn read<T>(
        &self,
        query: &str,
        values: impl rusqlite::Params,
        each: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, HistoryError> {
        let read = || {
            self.connection
                .prepare_cached(query)?
                .query_map(values, each)?
                .collect::<Result<_, _>>()
        };
        read().map_err(wrap(&self.path))
    }
}

fn summary(row: &Row<'_>) -> rusqlite::Result<CaseSummary> {
    Ok(CaseSummary {
        id: CaseId::of_row(row.get(0)?),
        container: row.get(1)?,
        framework: row.get(2)?,
        executor: row.get(3)?,
        origin: row.get(4)?,
        death_unix_ns: row.get(5)?,
        wait_status: row.get(6)?,
        resumed: row.get(7)?,
        closed_unix_ns: row.get(8)?,
        result: row.get(9)?,
        directories_removed: row.get(10)?,
        processes_ended: row.get(11)?,
        first_stop_after_ns: row.get(12)?,
        stopped_after_ns: row.get(13)?,
        clean_after_ns: row.get(14)?,
        containers: row.get(15)?,
    })
}

/// The characters that mean something to GLOB, as themselves.
fn literal(text: &str) -> String {
    text.chars().fold(String::new(), |mut all, c| {
        if matches!(c, '*' | '?' | '[') {
            all.extend(['[', c, ']']);
        } else {
            all.push(c);
        }
        all
    })
}

fn open_immutable(path: &Path) -> rusqlite::Result<Connection> {
    use std::os::unix::ffi::OsStrExt as _;
    let escaped: String = path
        .as_os_str()
        .as_bytes()
        .iter()
        .map(|byte| match byte {
            b'/' | b'.' | b'-' | b'_' => char::from(*byte).to_string(),
            byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
            byte => format!("%{byte:02x}"),
        })
        .collect();
    Connection::open_with_flags(
        format!("file:{escaped}?immutable=1"),
        OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_URI,
    )
}

fn wrap(path: &Path) -> impl FnOnce(rusqlite::Error) -> HistoryError {
    let path = path.to_owned();
    move |error| HistoryError::Sql { path, error }
}
