//! The rows of dirty cases.

use rusqlite::{Connection, params};

use super::backlog::{Backlog, Case, Row};
use super::entry::{CaseId, Opening, unix_now_ns};
use crate::process::monotonic_ns;

const UPSERT_CASE: &str = "
INSERT INTO cases (id, container, framework, executor, agent, origin, proof, boot,
                   death_unix_ns, death_monotonic_ns, noticed_after_ns, wait_status)
VALUES (CASE WHEN EXISTS (SELECT 1 FROM cases WHERE id = ?1 AND container <> ?2)
             THEN (SELECT max(id) + 1 FROM cases) ELSE ?1 END,
        ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
ON CONFLICT (container) DO UPDATE SET
    resumed = resumed + 1, closed_unix_ns = NULL, result = NULL,
    framework = coalesce(framework, excluded.framework),
    executor = coalesce(executor, excluded.executor),
    agent = coalesce(agent, excluded.agent)
RETURNING id, resumed, boot, death_unix_ns, death_monotonic_ns";

const UPSERT_EVIDENCE: &str = "
INSERT INTO evidence (case_id, resumed, origin, first_after_ns, times, detail)
VALUES (?1, ?2, ?3, ?4, ?5, ?6)
ON CONFLICT DO UPDATE SET times = excluded.times, detail = excluded.detail";

const UPSERT_CONTAINER: &str = "
INSERT INTO containers (case_id, container, join_key, joined_after_ns, asked_after_ns,
                        ended_after_ns, ending)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
ON CONFLICT DO UPDATE SET
    join_key = coalesce(excluded.join_key, join_key),
    joined_after_ns = coalesce(joined_after_ns, excluded.joined_after_ns),
    asked_after_ns = coalesce(excluded.asked_after_ns, asked_after_ns),
    ended_after_ns = coalesce(excluded.ended_after_ns, ended_after_ns),
    ending = coalesce(excluded.ending, ending)";

const UPSERT_STEP: &str = "
INSERT INTO steps (case_id, resumed, seq, kind, detail, began_after_ns, ended_after_ns,
                   outcome, error)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
ON CONFLICT DO UPDATE SET
    kind = excluded.kind, detail = excluded.detail, began_after_ns = excluded.began_after_ns,
    ended_after_ns = excluded.ended_after_ns, outcome = excluded.outcome,
    error = excluded.error";

const END_STEP: &str = "
UPDATE steps SET ended_after_ns = ?4, outcome = ?5, error = ?6
WHERE case_id = ?1 AND resumed = ?2 AND seq = ?3";

const CLOSE_CASE: &str = "
UPDATE cases SET closed_unix_ns = ?2, result = ?3,
    framework = coalesce(framework, ?4), executor = coalesce(executor, ?5),
    directories_removed = directories_removed + ?6, processes_ended = processes_ended + ?7,
    first_stop_after_ns = coalesce(first_stop_after_ns, ?8),
    stopped_after_ns = coalesce(?9, stopped_after_ns),
    clean_after_ns = coalesce(?10, clean_after_ns)
WHERE id = ?1";

/// Writes every dirty case; `rows` gets those that were opened.
pub(super) fn write_all(
    connection: &Connection,
    boot: &str,
    backlog: &Backlog,
    rows: &mut Vec<(CaseId, Row)>,
) -> rusqlite::Result<u64> {
    let mut writes = 0;
    for (id, case) in &backlog.cases {
        if !case.dirty {
            continue;
        }
        let row = match (&case.row, &case.opening, case.reopened) {
            (Some(row), _, false) => row.clone(),
            (_, Some(opening), _) => {
                let row = open_case(connection, boot, *id, opening, case.row.as_ref())?;
                rows.push((*id, row.clone()));
                writes += 1;
                row
            }
            // Facts of a case that was never opened.
            _ => continue,
        };
        let clock = Clock::new(&row, boot);
        writes += write_facts(connection, &row, &clock, case)?;
    }
    Ok(writes)
}

/// A case of a container that is there already goes on under its old number.
fn open_case(
    connection: &Connection,
    boot: &str,
    id: CaseId,
    opening: &Opening,
    known: Option<&Row>,
) -> rusqlite::Result<Row> {
    let Opening {
        container,
        framework,
        executor,
        agent,
        origin,
        death_unix_ns,
        death_ns,
        noticed_ns,
        wait_status,
        proof,
    } = opening;
    let row = Row {
        id: known.map_or(id.row(), |row| row.id),
        resumed: 0,
        boot: boot.to_owned(),
        death_unix_ns: *death_unix_ns,
        death_ns: signed(*death_ns),
    };
    let noticed = Clock::new(&row, boot).after(*noticed_ns);
    connection.prepare_cached(UPSERT_CASE)?.query_row(
        params![
            row.id,
            container,
            framework,
            executor,
            agent,
            origin,
            proof,
            boot,
            death_unix_ns,
            row.death_ns,
            noticed,
            wait_status
        ],
        |row| {
            Ok(Row {
                id: row.get(0)?,
                resumed: row.get(1)?,
                boot: row.get(2)?,
                death_unix_ns: row.get(3)?,
                death_ns: row.get(4)?,
            })
        },
    )
}

fn write_facts(
    connection: &Connection,
    row: &Row,
    clock: &Clock,
    case: &Case,
) -> rusqlite::Result<u64> {
    let mut writes = 0;
    let after = |at: &Option<u64>| at.map(|at| clock.after(at));
    if let Some(plan) = &case.plan {
        connection
            .prepare_cached("UPDATE cases SET plan = ?2 WHERE id = ?1")?
            .execute(params![row.id, plan])?;
        writes += 1;
    }
    for (origin, evidence) in &case.evidence {
        if evidence.dirty {
            connection
                .prepare_cached(UPSERT_EVIDENCE)?
                .execute(params![
                    row.id,
                    row.resumed,
                    origin,
                    clock.after(evidence.first_ns),
                    evidence.times,
                    evidence.detail
                ])?;
            writes += 1;
        }
    }
    for (id, container) in &case.containers {
        if container.dirty {
            connection
                .prepare_cached(UPSERT_CONTAINER)?
                .execute(params![
                    row.id,
                    id,
                    container.key,
                    after(&container.joined_ns),
                    after(&container.asked_ns),
                    after(&container.ended_ns),
                    container.ending
                ])?;
            writes += 1;
        }
    }
    for (seq, step) in &case.steps {
        let (ended, outcome, error) = match &step.ended {
            Some((at, outcome, error)) => (Some(clock.after(*at)), Some(outcome), error.as_ref()),
            None => (None, None, None),
        };
        if let Some((began, kind, detail)) = &step.began {
            connection.prepare_cached(UPSERT_STEP)?.execute(params![
                row.id,
                row.resumed,
                seq,
                kind,
                detail,
                clock.after(*began),
                ended,
                outcome,
                error
            ])?;
        } else {
            connection.prepare_cached(END_STEP)?.execute(params![
                row.id,
                row.resumed,
                seq,
                ended,
                outcome,
                error
            ])?;
        }
        writes += 1;
    }
    if case.steps_dropped > 0 {
        connection
            .prepare_cached("UPDATE cases SET steps_dropped = steps_dropped + ?2 WHERE id = ?1")?
            .execute(params![row.id, case.steps_dropped])?;
    }
    if let Some((closing, at)) = &case.closing {
        connection.prepare_cached(CLOSE_CASE)?.execute(params![
            row.id,
            at,
            closing.result,
            closing.framework,
            closing.executor,
            count(closing.directories_removed),
            count(closing.processes_ended),
            after(&closing.first_stop_ns),
            after(&closing.stopped_ns),
            after(&closing.clean_ns)
        ])?;
        writes += 1;
    }
    if let Some(at) = case.dismissed {
        // It was a case in an earlier life: then that stays in the history.
        let gone = connection
            .prepare_cached("DELETE FROM cases WHERE id = ?1 AND resumed = 0")?
            .execute([row.id])?;
        if gone == 0 {
            connection
                .prepare_cached(
                    "UPDATE cases SET closed_unix_ns = ?2, result = 'clean' WHERE id = ?1",
                )?
                .execute(params![row.id, at])?;
        }
        writes += 1;
    }
    Ok(writes)
}

/// Turns CLOCK_MONOTONIC of this boot into nanoseconds after a death, which may
/// have been in an earlier boot.
#[derive(Debug)]
struct Clock {
    zero_ns: i64,
}

impl Clock {
    fn new(row: &Row, boot: &str) -> Self {
        let zero_ns = if row.boot == boot {
            row.death_ns
        } else {
            // When the death was, on this boot's clock: before its beginning.
            let booted_unix_ns = unix_now_ns().saturating_sub(signed(monotonic_ns()));
            row.death_unix_ns.saturating_sub(booted_unix_ns)
        };
        Self { zero_ns }
    }

    fn after(&self, at_ns: u64) -> i64 {
        signed(at_ns).saturating_sub(self.zero_ns)
    }
}

fn signed(at_ns: u64) -> i64 {
    i64::try_from(at_ns).unwrap_or(i64::MAX)
}

fn count(number: u64) -> i64 {
    signed(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_after_a_death_hold_across_a_reboot() {
        const HOUR: i64 = 3_600_000_000_000;
        let now = monotonic_ns();
        let row = Row {
            id: 1,
            resumed: 0,
            boot: "this".to_owned(),
            death_unix_ns: unix_now_ns() - HOUR,
            // Of no meaning in another boot.
            death_ns: signed(now) - 5,
        };
        assert_eq!(Clock::new(&row, "this").after(now), 5);
        let after = Clock::new(&row, "the next").after(now);
        assert!(
            (HOUR - HOUR / 10..HOUR + HOUR / 10).contains(&after),
            "{after}"
        );
    }
}
