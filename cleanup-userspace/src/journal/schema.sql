-- The journal of compose-cleanup. A change here is a new SCHEMA_VERSION in store.rs.
-- Columns ending in _after_ns are nanoseconds after the death.

CREATE TABLE cases (
    id                  INTEGER PRIMARY KEY,
    container           TEXT NOT NULL UNIQUE,
    framework           BLOB,
    executor            BLOB,
    agent               BLOB,
    origin              TEXT NOT NULL,
    proof               TEXT,
    boot                TEXT NOT NULL,
    death_unix_ns       INTEGER NOT NULL,
    death_monotonic_ns  INTEGER NOT NULL,
    noticed_after_ns    INTEGER NOT NULL,
    wait_status         INTEGER,
    plan                TEXT,
    resumed             INTEGER NOT NULL DEFAULT 0,
    steps_dropped       INTEGER NOT NULL DEFAULT 0,
    closed_unix_ns      INTEGER,
    result              TEXT,
    directories_removed INTEGER NOT NULL DEFAULT 0,
    processes_ended     INTEGER NOT NULL DEFAULT 0,
    first_stop_after_ns INTEGER,
    stopped_after_ns    INTEGER,
    clean_after_ns      INTEGER
) STRICT;

CREATE INDEX cases_closed ON cases (closed_unix_ns);

CREATE TABLE evidence (
    case_id        INTEGER NOT NULL REFERENCES cases ON DELETE CASCADE,
    resumed        INTEGER NOT NULL,
    origin         TEXT NOT NULL,
    first_after_ns INTEGER NOT NULL,
    times          INTEGER NOT NULL,
    detail         TEXT,
    PRIMARY KEY (case_id, resumed, origin)
) STRICT, WITHOUT ROWID;

CREATE TABLE containers (
    case_id         INTEGER NOT NULL REFERENCES cases ON DELETE CASCADE,
    container       TEXT NOT NULL,
    join_key        TEXT,
    joined_after_ns INTEGER,
    asked_after_ns  INTEGER,
    ended_after_ns  INTEGER,
    ending          TEXT,
    PRIMARY KEY (case_id, container)
) STRICT, WITHOUT ROWID;

CREATE TABLE steps (
    case_id        INTEGER NOT NULL REFERENCES cases ON DELETE CASCADE,
    resumed        INTEGER NOT NULL,
    seq            INTEGER NOT NULL,
    kind           TEXT NOT NULL,
    detail         TEXT,
    began_after_ns INTEGER NOT NULL,
    ended_after_ns INTEGER,
    outcome        TEXT,
    error          TEXT,
    PRIMARY KEY (case_id, resumed, seq)
) STRICT, WITHOUT ROWID;
