//! The journal as its users see it: recorded through a handle, read from the file.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::store::Store;
use super::*;

const LONG: Duration = Duration::from_secs(60);

fn settings(path: &Path) -> Settings {
    Settings {
        path: path.to_owned(),
        max_age: Duration::from_hours(1),
        max_bytes: 8 << 20,
    }
}

fn open(path: &Path) -> (Journal, Vec<Unfinished>) {
    Journal::open(settings(path))
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.db");
    (dir, path)
}

fn container(n: u32) -> String {
    format!("857fd7a0-df05-458b-bd72-{n:012}")
}

fn opening(n: u32) -> Opening {
    let now = monotonic_ns();
    Opening {
        container: container(n),
        framework: Some(b"framework".to_vec()),
        executor: Some(b"web\xff\n".to_vec()),
        agent: Some(b"/var/lib/mesos".to_vec()),
        origin: "kernel".into(),
        death_unix_ns: unix_now_ns(),
        death_ns: now,
        noticed_ns: now + 1000,
        wait_status: Some(9),
        proof: Some("tgid 7 of the launcher helper".into()),
    }
}

fn closing(result: &'static str) -> Closing {
    Closing {
        result: result.into(),
        directories_removed: 10,
        clean_ns: Some(monotonic_ns()),
        ..Closing::default()
    }
}

async fn flush(journal: &Journal) {
    assert!(journal.flush(LONG).await, "{:?}", journal.stats());
}

fn cases(path: &Path) -> Vec<CaseSummary> {
    let history = History::open(path).unwrap();
    history.cases(&Filter::default()).unwrap()
}

#[tokio::test]
async fn a_case_is_told_from_its_death_to_its_end() {
    let (_dir, path) = place();
    let (journal, unfinished) = open(&path);
    assert_eq!(unfinished, []);
    let case = CaseId::next();
    journal.case_opened(case, opening(1));
    journal.planned(case, "stop 2 containers");
    journal.joined(case, "aaaa", "cgroup");
    journal.joined(case, "bbbb", "label");
    journal.step_began(case, 0, "stop", Some("2 containers"));
    flush(&journal).await;
    journal.step_ended(case, 0, "failed", Some("no such socket"));
    journal.step_began(case, 1, "sweep", None);
    journal.evidence(case, "hook", Some("request of agent 12"));
    journal.evidence(case, "hook", None);
    let asked = monotonic_ns();
    journal.container_ended(case, "aaaa", "term", Some(asked), Some(asked + 5));
    flush(&journal).await;
    assert!(cases(&path)[0].result.is_none());
    journal.closed(case, closing("clean"));
    flush(&journal).await;

    let history = History::open(&path).unwrap();
    let short = &case.to_string()[..8];
    let detail = history.case(history.find(short).unwrap()).unwrap();
    assert_eq!(history.find(&container(1)).unwrap(), case);
    assert_eq!(detail.summary.result.as_deref(), Some("clean"));
    assert_eq!(detail.summary.executor.as_deref(), Some(&b"web\xff\n"[..]));
    assert_eq!((detail.noticed_after_ns, detail.summary.resumed), (1000, 0));
    assert_eq!(detail.plan.as_deref(), Some("stop 2 containers"));
    let [hook] = &detail.evidence[..] else {
        panic!("{detail:?}")
    };
    assert_eq!(
        (hook.times, hook.detail.as_deref()),
        (2, Some("request of agent 12"))
    );
    let [a, b] = &detail.containers[..] else {
        panic!("{detail:?}")
    };
    assert_eq!(
        (a.key.as_deref(), a.ending.as_deref()),
        (Some("cgroup"), Some("term"))
    );
    assert_eq!(a.ended_after_ns, a.asked_after_ns.map(|asked| asked + 5));
    assert!(a.joined_after_ns < a.asked_after_ns);
    assert_eq!(
        (b.key.as_deref(), b.ending.as_deref()),
        (Some("label"), None)
    );
    let [stop, sweep] = &detail.steps[..] else {
        panic!("{detail:?}")
    };
    assert_eq!(
        (stop.kind.as_str(), stop.detail.as_deref()),
        ("stop", Some("2 containers"))
    );
    assert_eq!(
        (stop.outcome.as_deref(), stop.error.as_deref()),
        (Some("failed"), Some("no such socket"))
    );
    assert!(stop.ended_after_ns > Some(stop.began_after_ns));
    assert_eq!((sweep.kind.as_str(), sweep.ended_after_ns), ("sweep", None));
    assert!(matches!(
        history.find("0000"),
        Err(HistoryError::Unknown(_) | HistoryError::Ambiguous { .. })
    ));
    assert!(matches!(
        history.find("xyz"),
        Err(HistoryError::NotANumber(_))
    ));
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[tokio::test]
async fn a_dead_run_is_in_the_history_once() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let (first, second) = (CaseId::next(), CaseId::next());
    journal.case_opened(first, opening(1));
    journal.joined(first, "aaaa", "cgroup");
    journal.step_began(first, 0, "stop", None);
    journal.case_opened(second, opening(2));
    assert!(journal.close(LONG).await);

    // The next start goes on with the same number, or finds it clean.
    let (journal, unfinished) = open(&path);
    let ids: Vec<CaseId> = unfinished.iter().map(|case| case.case).collect();
    assert_eq!(ids, [second, first]);
    assert_eq!(unfinished[1].containers, ["aaaa"]);
    assert_eq!(unfinished[1].opening.container, container(1));
    journal.case_opened(
        first,
        Opening {
            origin: "scan".into(),
            ..opening(1)
        },
    );
    journal.step_began(first, 0, "sweep", None);
    journal.closed(second, closing("clean"));
    assert!(journal.close(LONG).await);

    // One that did not read what was unfinished has another number for it.
    let (journal, _) = open(&path);
    let other = CaseId::next();
    journal.case_opened(other, opening(1));
    journal.joined(other, "bbbb", "cgroup");
    journal.closed(other, closing("clean"));
    flush(&journal).await;

    let all = cases(&path);
    assert_eq!(all.len(), 2);
    let one = History::open(&path).unwrap().case(first).unwrap();
    assert_eq!(
        (one.summary.resumed, one.summary.origin.as_str()),
        (2, "kernel")
    );
    assert_eq!(one.summary.result.as_deref(), Some("clean"));
    assert_eq!(one.containers.len(), 2);
    let kinds: Vec<_> = one
        .steps
        .iter()
        .map(|step| (step.resumed, step.kind.as_str()))
        .collect();
    assert_eq!(kinds, [(0, "stop"), (1, "sweep")]);
    assert!(journal.close(LONG).await);
    assert!(!path.with_extension("db-wal").exists(), "it was closed");
    assert_eq!(open(&path).1, []);
}

#[tokio::test]
async fn what_was_no_case_leaves_the_history() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let (early, late) = (CaseId::next(), CaseId::next());
    journal.case_opened(early, opening(1));
    journal.dismissed(early);
    journal.case_opened(late, opening(2));
    flush(&journal).await;
    assert_eq!(cases(&path).len(), 1);
    journal.dismissed(late);
    flush(&journal).await;
    assert_eq!(cases(&path), []);
}

#[tokio::test]
async fn deleted_or_replaced_while_it_runs_it_begins_anew_with_the_open_cases() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let (over, open) = (CaseId::next(), CaseId::next());
    journal.case_opened(over, opening(1));
    journal.closed(over, closing("clean"));
    journal.case_opened(open, opening(2));
    journal.joined(open, "aaaa", "cgroup");
    flush(&journal).await;
    fs::remove_file(&path).unwrap();
    journal.joined(open, "bbbb", "cgroup");
    flush(&journal).await;
    let all = cases(&path);
    assert_eq!((all.len(), all[0].id, all[0].containers), (1, open, 2));

    // Replaced by garbage: that is set aside.
    let garbage = path.with_extension("new");
    fs::write(
        &garbage,
        "not a database, and long enough to be read as one".repeat(20),
    )
    .unwrap();
    fs::set_permissions(&garbage, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&garbage, &path).unwrap();
    journal.closed(open, closing("clean"));
    flush(&journal).await;
    let all = cases(&path);
    assert_eq!((all.len(), all[0].result.as_deref()), (1, Some("clean")));
    assert_eq!(journal.stats().set_aside, 1);
}

/// One damaged byte, and SQLite takes the file for one that it can only read.
#[tokio::test]
async fn a_format_of_the_future_is_set_aside() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    assert!(journal.close(LONG).await);
    let mut bytes = fs::read(&path).unwrap();
    // "File format write version", <https://sqlite.org/fileformat.html>.
    assert_eq!(bytes[18], 2);
    bytes[18] = 0xbf;
    fs::write(&path, bytes).unwrap();
    let (journal, _) = open(&path);
    journal.case_opened(CaseId::next(), opening(1));
    flush(&journal).await;
    assert_eq!((journal.stats().set_aside, cases(&path).len()), (1, 1));
}

#[tokio::test]
async fn another_schema_or_program_is_set_aside() {
    for (sql, word) in [
        ("PRAGMA user_version = 99", "version"),
        ("PRAGMA application_id = 5", "foreign"),
        ("CREATE TABLE more (x)", "damaged"),
        ("DROP TABLE steps", "damaged"),
    ] {
        let (dir, path) = place();
        let (journal, _) = open(&path);
        journal.case_opened(CaseId::next(), opening(1));
        assert!(journal.close(LONG).await);
        let other = rusqlite::Connection::open(&path).unwrap();
        other.execute_batch(sql).unwrap();
        drop(other);
        let (journal, unfinished) = open(&path);
        assert_eq!(
            (unfinished, journal.stats().set_aside),
            (vec![], 1),
            "{sql}"
        );
        let names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let prefix = format!("journal.db.{word}-");
        assert!(
            names.iter().any(|name| name.starts_with(&prefix)),
            "{sql}: {names:?}"
        );
        flush(&journal).await;
    }
}

#[tokio::test]
async fn damage_that_is_met_while_it_runs_is_survived() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let case = CaseId::next();
    journal.case_opened(case, opening(1));
    flush(&journal).await;
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(0)
        .unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(path.with_extension("db-wal"))
        .unwrap()
        .set_len(0)
        .unwrap();
    for n in 2..200 {
        journal.case_opened(CaseId::next(), opening(n));
        flush(&journal).await;
    }
    journal.closed(case, closing("clean"));
    flush(&journal).await;
    assert!(journal.close(LONG).await);
    let (_, unfinished) = open(&path);
    assert!(unfinished.iter().all(|found| found.case != case));
}

#[tokio::test]
async fn a_place_that_cannot_be_used_is_tried_again() {
    let (dir, path) = place();
    let target = dir.path().join("precious");
    fs::write(&target, "precious").unwrap();
    std::os::unix::fs::symlink(&target, &path).unwrap();
    let (journal, _) = open(&path);
    let case = CaseId::next();
    journal.case_opened(case, opening(1));
    assert!(!journal.flush(Duration::from_millis(300)).await);
    assert!(journal.stats().failing_since_unix_ns.is_some());
    assert!(journal.stats().errors >= 1);
    while journal.stats().unwritten_cases != 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
    flush(&journal).await;
    assert!(journal.stats().failing_since_unix_ns.is_none());
    assert_eq!(journal.stats().unwritten_cases, 0);
    assert_eq!(cases(&path)[0].id, case);
}

/// As a disk that hangs: the writer waits, those who record do not.
#[tokio::test]
async fn while_another_process_holds_it_recording_goes_on() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    flush(&journal).await;
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let ids: Vec<CaseId> = (0..500).map(|_| CaseId::next()).collect();
    for (n, case) in (0..).zip(&ids) {
        journal.case_opened(*case, opening(n));
    }
    assert!(!journal.flush(Duration::from_millis(200)).await);
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    flush(&journal).await;
    assert_eq!(cases(&path).len(), ids.len());
}

#[tokio::test]
async fn a_clock_that_went_back_costs_no_case() {
    let (_dir, path) = place();
    let (mut store, _) = Store::open(&path).unwrap();
    let case = CaseId::next();
    let mut backlog = backlog::Backlog::default();
    backlog.absorb([Entry::Opened(case, Box::new(opening(1)))]);
    store.write(&backlog).unwrap();
    let mut backlog = backlog::Backlog::default();
    backlog.absorb([
        Entry::Opened(case, Box::new(opening(2))),
        Entry::Closed(case, Box::new(closing("clean")), 1),
    ]);
    let (rows, _) = store.write(&backlog).unwrap();
    assert_ne!(rows[0].1.id, case.row());
    let all = cases(&path);
    assert_eq!(all.len(), 2);
    assert_eq!(all.iter().filter(|case| case.result.is_some()).count(), 1);
}

#[tokio::test]
async fn a_case_that_goes_round_in_circles_does_not_fill_the_journal() {
    let (_dir, path) = place();
    let (journal, _) = open(&path);
    let case = CaseId::next();
    journal.case_opened(case, opening(1));
    for seq in 0..3000 {
        journal.step_began(case, seq, "look", None);
        journal.step_ended(case, seq, "busy", None);
    }
    flush(&journal).await;
    let detail = History::open(&path).unwrap().case(case).unwrap();
    assert_eq!((detail.steps.len(), detail.steps_dropped), (1000, 2000));
}

#[tokio::test]
async fn disabled_it_records_nothing() {
    let journal = Journal::disabled();
    journal.case_opened(CaseId::next(), opening(1));
    assert!(!journal.is_enabled() && journal.flush(Duration::ZERO).await);
    assert_eq!(journal.stats(), Stats::default());
}

#[test]
fn old_cases_go_first_and_open_ones_never() {
    let (_dir, path) = place();
    let (mut store, _) = Store::open(&path).unwrap();
    let limits = Limits {
        max_age: Duration::from_hours(1),
        max_bytes: 4 << 20,
    };
    let now = unix_now_ns();
    let old = now - 2 * 3_600_000_000_000;
    let mut backlog = backlog::Backlog::default();
    for n in 0..3000 {
        let case = CaseId::next();
        backlog.absorb([Entry::Opened(
            case,
            Box::new(Opening {
                proof: Some("x".repeat(2000)),
                ..opening(n)
            }),
        )]);
        if n >= 100 {
            let at = if n % 10 == 0 { old } else { now + i64::from(n) };
            backlog.absorb([Entry::Closed(case, Box::new(closing("clean")), at)]);
        }
    }
    store.write(&backlog).unwrap();
    assert!(store.bytes() > limits.max_bytes);
    store.prune(limits).unwrap();
    assert!(store.bytes() <= limits.max_bytes, "{}", store.bytes());
    let left = cases(&path);
    assert_eq!(
        left.iter().filter(|case| case.result.is_none()).count(),
        100
    );
    assert!(left.iter().all(|case| case.closed_unix_ns != Some(old)));
    // The newest are there.
    let newest = now + 2999;
    assert!(left.iter().any(|case| case.closed_unix_ns == Some(newest)));
    assert_eq!(store.prune(limits).unwrap(), 0);
}

/// Limits that change while it is open count at once, and not at the next hour.
#[tokio::test]
async fn other_limits_count_at_once() {
    let (_dir, path) = place();
    let (journal, _) = Journal::open(settings(&path));
    let case = CaseId::next();
    journal.case_opened(case, opening(1));
    journal.closed(case, Closing::default());
    assert!(journal.flush(LONG).await);
    assert_eq!(cases(&path).len(), 1);
    journal.keep(Duration::ZERO, 8 << 20);
    assert!(journal.flush(LONG).await);
    assert_eq!(cases(&path).len(), 0);
}

/// Names and contents.
type Files = Vec<(&'static str, Vec<u8>)>;

/// A journal with some cases, closed cleanly, and the same with its log not yet
/// moved into the database.
fn specimen(with_log: bool) -> Files {
    let (dir, path) = place();
    let (mut store, _) = Store::open(&path).unwrap();
    for n in 0..30 {
        let case = CaseId::next();
        let mut backlog = backlog::Backlog::default();
        backlog.absorb([
            Entry::Opened(case, Box::new(opening(n))),
            Entry::Joined {
                case,
                container: "aaaa".into(),
                key: "cgroup".into(),
                at_ns: 0,
            },
            Entry::StepBegan {
                case,
                seq: 0,
                kind: "stop".into(),
                detail: None,
                at_ns: 0,
            },
        ]);
        store.write(&backlog).unwrap();
    }
    if !with_log {
        drop(store);
    }
    let read = |name: &'static str| Some((name, fs::read(dir.path().join(name)).ok()?));
    ["journal.db", "journal.db-wal"]
        .into_iter()
        .filter_map(read)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is in the file: it is read, or set aside, and recording goes on.
    #[test]
    fn a_damaged_journal_is_read_or_set_aside(
        with_log: bool,
        file in 0usize..2,
        cut in proptest::option::of(any::<proptest::sample::Index>()),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..20),
    ) {
        use std::sync::OnceLock;
        static SPECIMENS: OnceLock<[Files; 2]> = OnceLock::new();
        let specimens = SPECIMENS.get_or_init(|| [specimen(false), specimen(true)]);
        let mut files = specimens[usize::from(with_log)].clone();
        let at = file % files.len();
        let bytes = &mut files[at].1;
        for (place, value) in &flips {
            let place = place.index(bytes.len());
            bytes[place] = *value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let (dir, path) = place();
        for (name, bytes) in &files {
            let file = dir.path().join(name);
            fs::write(&file, bytes).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        // A reader may fail, and does not panic.
        if let Ok(history) = History::open(&path) && let Ok(cases) = history.cases(&Filter::default()) {
            for case in cases {
                let _ = history.case(case.id);
            }
        }
        let (journal, unfinished) = open(&path);
        prop_assert!(unfinished.len() <= 40);
        let case = CaseId::next();
        journal.case_opened(case, opening(99));
        journal.closed(case, closing("clean"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(flush(&journal));
        let found = cases(&path);
        prop_assert!(found.iter().any(|case| case.container == container(99)));
    }
}
