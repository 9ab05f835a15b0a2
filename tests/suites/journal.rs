//! The journal on real disks that are full, read-only or gone, under SIGKILL, and
//! as an operator reads it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::{bins, wait};
use cleanup_userspace::journal::{
    CaseId, CaseSummary, Closing, Filter, History, Journal, Opening, Settings, Unfinished,
};
use cleanup_userspace::process::{monotonic_ns, unix_seconds};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

const LONG: Duration = Duration::from_secs(60);
/// What the kernel gives a file at least.
const PAGE: usize = 4096;

fn open(path: &Path) -> (Journal, Vec<Unfinished>) {
    Journal::open(Settings {
        path: path.to_owned(),
        max_age: Duration::from_hours(24),
        max_bytes: 4 << 20,
    })
}

/// The n-th run that ever was.
fn container(n: u64) -> String {
    format!("857fd7a0-df05-458b-bd72-{n:012x}")
}

fn opening(n: u64) -> Opening {
    Opening {
        container: container(n),
        framework: Some(b"framework".to_vec()),
        executor: Some(format!("executor-{}", n % 7).into_bytes()),
        agent: Some(b"/var/lib/mesos".to_vec()),
        origin: "kernel".into(),
        death_unix_ns: cleanup_userspace::journal::unix_ns(unix_seconds()),
        death_ns: monotonic_ns(),
        noticed_ns: monotonic_ns(),
        wait_status: Some(9),
        proof: None,
    }
}

/// A case as they usually are: 22 records.
fn record(journal: &Journal, n: u64) -> CaseId {
    let case = CaseId::next();
    journal.case_opened(case, opening(n));
    for container in ["3f1c2a", "77e0b1"] {
        journal.joined(case, container, "cgroup");
    }
    for seq in 0..8 {
        journal.step_began(case, seq, "stop", Some("2 containers"));
        journal.step_ended(case, seq, "done", None);
    }
    for container in ["3f1c2a", "77e0b1"] {
        journal.container_ended(
            case,
            container,
            "term",
            Some(monotonic_ns()),
            Some(monotonic_ns()),
        );
    }
    let result = "clean".into();
    let clean_ns = Some(monotonic_ns());
    journal.closed(
        case,
        Closing {
            result,
            clean_ns,
            ..Closing::default()
        },
    );
    case
}

fn flush(journal: &Journal, limit: Duration) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    Ok(runtime.block_on(journal.flush(limit)))
}

fn close(journal: &Journal) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    Ok(runtime.block_on(journal.close(LONG)))
}

fn cases(path: &Path) -> Result<Vec<CaseSummary>> {
    Ok(History::open(path)?.cases(&Filter::default())?)
}

/// A file system of its own for the journal.
fn disk(scratch: &Scratch, options: &str) -> Result<PathBuf> {
    let point = scratch.path().join("disk");
    fs::create_dir(&point)?;
    let options = std::ffi::CString::new(format!("mode=0755,{options}"))?;
    mount(
        "tmpfs",
        &point,
        "tmpfs",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .with_context(|| format!("mounting a tmpfs on {}", point.display()))?;
    Ok(point)
}

/// Takes all the space that is left.
fn fill(disk: &Path) -> Result<PathBuf> {
    let path = disk.join("filler");
    let mut file = fs::File::create(&path)?;
    while file.write(&[0; PAGE]).is_ok_and(|written| written > 0) {}
    Ok(path)
}

fn wait_until_failing(journal: &Journal) -> Result<()> {
    wait::until(LONG, "the journal to notice", || {
        journal.stats().failing_since_unix_ns.map(|_| ())
    })
}

/// All that was recorded meanwhile is there, and none of it twice.
fn assert_caught_up(journal: &Journal, path: &Path, count: usize) -> Result<()> {
    ensure!(
        flush(journal, LONG)?,
        "not caught up: {:?}",
        journal.stats()
    );
    let stats = journal.stats();
    assert_eq!(stats.failing_since_unix_ns, None);
    assert_eq!((stats.dropped_cases, stats.set_aside), (0, 0), "{stats:?}");
    let cases = cases(path)?;
    assert_eq!(cases.len(), count);
    for case in cases {
        assert_eq!(case.result.as_deref(), Some("clean"), "{case:?}");
        assert_eq!((case.containers, case.resumed), (2, 0), "{case:?}");
    }
    Ok(())
}

#[test]
fn a_disk_that_is_full_from_the_start() -> Result<()> {
    let scratch = Scratch::new("full")?;
    let disk = disk(&scratch, "size=4m")?;
    let filler = fill(&disk)?;
    let path = disk.join("journal.db");
    let (journal, _) = open(&path);
    for n in 0..50 {
        record(&journal, n);
    }
    wait_until_failing(&journal)?;
    assert!(!flush(&journal, Duration::from_millis(200))?);
    fs::remove_file(filler)?;
    assert_caught_up(&journal, &path, 50)
}

#[test]
fn a_disk_that_becomes_full() -> Result<()> {
    let scratch = Scratch::new("fills")?;
    let disk = disk(&scratch, "size=4m")?;
    let path = disk.join("journal.db");
    let (journal, _) = open(&path);
    for n in 0..50 {
        record(&journal, n);
    }
    ensure!(flush(&journal, LONG)?);
    let filler = fill(&disk)?;
    let mut recorded = 50;
    // What the file has already is written again before it has to grow.
    wait::until(LONG, "the disk to refuse", || {
        for n in recorded..recorded + 50 {
            record(&journal, n);
        }
        recorded += 50;
        journal.stats().failing_since_unix_ns.map(|_| ())
    })?;
    // What is there can be read all the same.
    assert!(!cases(&path)?.is_empty());
    for n in recorded..recorded + 50 {
        record(&journal, n);
    }
    fs::remove_file(filler)?;
    assert_caught_up(&journal, &path, usize::try_from(recorded + 50)?)
}

#[test]
fn a_read_only_disk() -> Result<()> {
    let scratch = Scratch::new("readonly")?;
    let disk = disk(&scratch, "size=8m")?;
    let path = disk.join("journal.db");
    let (journal, _) = open(&path);
    record(&journal, 0);
    ensure!(close(&journal)?);
    mount_remount(&disk, MountFlags::RDONLY, "")?;

    let (journal, unfinished) = open(&path);
    assert_eq!(unfinished, []);
    record(&journal, 1);
    wait_until_failing(&journal)?;
    assert_eq!(cases(&path)?.len(), 1, "it can be read meanwhile");
    mount_remount(&disk, MountFlags::empty(), "")?;
    assert_caught_up(&journal, &path, 2)
}

/// Something is mounted over the directory, read-only, and goes again.
#[test]
fn a_disk_that_goes_and_comes_back() -> Result<()> {
    let scratch = Scratch::new("gone")?;
    let point = disk(&scratch, "size=8m")?;
    let path = point.join("journal.db");
    let (journal, _) = open(&path);
    record(&journal, 0);
    ensure!(flush(&journal, LONG)?);
    mount("tmpfs", &point, "tmpfs", MountFlags::RDONLY, c"mode=0755")?;
    record(&journal, 1);
    wait_until_failing(&journal)?;
    unmount(&point, UnmountFlags::empty())?;
    assert_caught_up(&journal, &path, 2)
}

#[test]
fn the_directory_is_removed_while_it_runs() -> Result<()> {
    let scratch = Scratch::new("rmdir")?;
    let path = scratch.path().join("state/journal.db");
    let (journal, _) = open(&path);
    record(&journal, 0);
    ensure!(flush(&journal, LONG)?);
    fs::remove_dir_all(scratch.path().join("state"))?;
    record(&journal, 1);
    assert_caught_up(&journal, &path, 1)
}

/// Started by `killed_at_any_moment` as a process of its own.
#[test]
#[ignore = "writes until it is killed"]
fn writer_process() -> Result<()> {
    let Some(path) = std::env::var_os("JOURNAL") else {
        return Ok(());
    };
    let first: u64 = std::env::var("FIRST")?.parse()?;
    let (journal, unfinished) = open(Path::new(&path));
    for case in unfinished {
        journal.case_opened(case.case, case.opening);
        let result = "clean".into();
        journal.closed(
            case.case,
            Closing {
                result,
                ..Closing::default()
            },
        );
    }
    ensure!(flush(&journal, LONG)?);
    let mut out = std::io::stdout();
    for n in first.. {
        // Left open, so that the next one goes on with it.
        journal.case_opened(CaseId::next(), opening(n + 1_000_000));
        record(&journal, n);
        ensure!(flush(&journal, LONG)?);
        writeln!(out, "written {n}")?;
    }
    Ok(())
}

#[test]
fn killed_at_any_moment() -> Result<()> {
    const LIVES: u64 = 20;
    let scratch = Scratch::new("kill")?;
    let dir = scratch.path().join("state");
    let path = dir.join("journal.db");
    let mut written = Vec::new();
    for life in 0..LIVES {
        let mut child = scratch
            .command(std::env::current_exe()?)
            .args(["--exact", "writer_process", "--ignored", "--nocapture"])
            .env("JOURNAL", &path)
            .env("FIRST", (life * 10_000).to_string())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().context("its output")?;
        let enough = 1 + (life * 7) % 40;
        let mut lines = BufReader::new(out).lines();
        let mut own = 0;
        while own < enough {
            let line = lines.next().context("it ended by itself")??;
            if let Some(n) = line.strip_prefix("written ") {
                written.push(n.parse::<u64>()?);
                own += 1;
            }
        }
        child.kill()?;
        for line in lines {
            if let Some(n) = line?.strip_prefix("written ").and_then(|n| n.parse().ok()) {
                written.push(n);
            }
        }
        child.wait()?;
    }
    let (journal, _) = open(&path);
    ensure!(flush(&journal, LONG)?);
    assert_eq!(journal.stats().set_aside, 0);
    let cases = cases(&path)?;
    let names: Vec<_> = fs::read_dir(&dir)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    assert!(names.len() <= 3, "{names:?}");
    let clean: std::collections::HashSet<&str> = cases
        .iter()
        .filter(|case| case.result.is_some())
        .map(|case| case.container.as_str())
        .collect();
    for n in &written {
        assert!(clean.contains(container(*n).as_str()), "{n} is lost");
    }
    // Those of earlier lives were gone on with, under their numbers.
    let left: Vec<&CaseSummary> = cases.iter().filter(|case| case.result.is_none()).collect();
    let last = (LIVES - 1) * 10_000 + 1_000_000;
    assert!(
        left.iter().all(|case| case.container >= container(last)),
        "{left:?}"
    );
    assert!(left.len() <= 42, "{}", left.len());
    Ok(())
}

#[test]
fn a_million_records_are_kept_small() -> Result<()> {
    const CASES: u64 = 1_000_000 / 22 + 1;
    let scratch = Scratch::new("million")?;
    let path = scratch.path().join("state/journal.db");
    let (journal, _) = open(&path);
    let old = CaseId::next();
    journal.case_opened(old, opening(u64::from(u32::MAX)));
    let mut largest = 0;
    for n in 0..CASES {
        record(&journal, n);
        // 4,400 records: what the queue holds without dropping any.
        if n % 200 == 0 {
            ensure!(flush(&journal, LONG)?);
            largest = largest.max(bytes_beneath(&scratch.path().join("state"))?);
        }
    }
    ensure!(flush(&journal, LONG)?);
    let stats = journal.stats();
    assert!(stats.written > CASES, "{stats:?}");
    assert_eq!((stats.dropped_steps, stats.dropped_cases), (0, 0));
    assert!(stats.bytes <= 4 << 20, "{stats:?}");
    // A burst may go past it until the writer has put it right.
    assert!(largest <= 6 << 20, "{largest}");
    let cases = cases(&path)?;
    println!(
        "{} cases of 22 records in {} bytes",
        cases.len(),
        stats.bytes
    );
    assert!(cases.len() > 200 && cases.len() < 20_000, "{}", cases.len());
    assert!(
        cases
            .iter()
            .any(|case| case.container == container(CASES - 1))
    );
    assert!(!cases.iter().any(|case| case.container == container(0)));
    assert!(
        cases
            .iter()
            .any(|case| case.id == old && case.result.is_none())
    );
    Ok(())
}

/// The figures of docs/operations.md:
/// `cargo test -p cleanup-tests --test journal -- --ignored --nocapture figures`
#[test]
#[ignore = "measures, and tests nothing"]
fn figures() -> Result<()> {
    const ROUNDS: u32 = 2_000;
    let scratch = Scratch::new("figures")?;
    let path = scratch.path().join("state/journal.db");
    let before = resident_kib()?;
    let (journal, _) = open(&path);
    ensure!(flush(&journal, LONG)?);
    let opened = resident_kib()?;
    let mut calls: Vec<u64> = Vec::new();
    let began = std::time::Instant::now();
    for n in 0..ROUNDS {
        let case = CaseId::next();
        journal.case_opened(case, opening(n.into()));
        for seq in 0..100 {
            let at = std::time::Instant::now();
            journal.step_began(case, seq, "stop", Some("2 containers"));
            calls.push(u64::try_from(at.elapsed().as_nanos())?);
            journal.step_ended(case, seq, "done", None);
        }
        let result = "clean".into();
        journal.closed(
            case,
            Closing {
                result,
                ..Closing::default()
            },
        );
        if n % 20 == 0 {
            ensure!(flush(&journal, LONG)?);
        }
    }
    ensure!(flush(&journal, LONG)?);
    let took = began.elapsed();
    calls.sort_unstable();
    let per_mille = |n: usize| calls[(calls.len() - 1) * n / 1000];
    let written = journal.stats().written;
    println!(
        "a recording call: median {} ns, p99 {} ns, max {} ns; {written} records in {:.2} s, \
         {:.1} µs each; resident {before} KiB, {opened} KiB with an open journal, {} KiB after",
        per_mille(500),
        per_mille(990),
        per_mille(1000),
        took.as_secs_f64(),
        took.as_secs_f64() * 1e6 / written as f64,
        resident_kib()?,
    );
    Ok(())
}

fn resident_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn bytes_beneath(dir: &Path) -> Result<u64> {
    fs::read_dir(dir)?.try_fold(0, |sum, entry| Ok(sum + entry?.metadata()?.len()))
}

struct Told {
    status: Option<i32>,
    out: String,
    error: String,
}

fn told(arguments: &[&str]) -> Result<Told> {
    told_by(Command::new(bins::find("compose-cleanup")?).args(arguments))
}

fn told_by(command: &mut Command) -> Result<Told> {
    let output = command.output().context("running compose-cleanup")?;
    let told = Told {
        status: output.status.code(),
        out: String::from_utf8(output.stdout)?,
        error: String::from_utf8(output.stderr)?,
    };
    assert!(!told.error.contains("panicked"), "{}", told.error);
    Ok(told)
}

#[test]
fn an_operator_reads_it_while_it_is_written() -> Result<()> {
    let scratch = Scratch::new("cli")?;
    let path = scratch.path().join("journal.db");
    let file = path.to_str().context("UTF-8")?;
    let (journal, _) = open(&path);
    let odd = CaseId::next();
    let executor = Some(b"web\x1b[2J\n\xff".to_vec());
    journal.case_opened(
        odd,
        Opening {
            executor,
            ..opening(1000)
        },
    );
    journal.step_began(odd, 0, "stop", None);
    journal.step_ended(odd, 0, "failed", Some("\x1b]0;tricked\x07"));
    let usual: Vec<CaseId> = (0..60).map(|n| record(&journal, n)).collect();
    ensure!(flush(&journal, LONG)?);

    let all = told(&["cases", "--journal", file])?;
    assert_eq!(all.status, Some(0), "{}", all.error);
    assert_eq!(all.out.lines().count(), 1 + 50);
    assert!(all.error.contains("--limit 100"), "{}", all.error);
    assert!(
        all.out.lines().all(|line| line.chars().count() <= 100),
        "{}",
        all.out
    );
    let open = told(&["cases", "--journal", file, "--open"])?;
    assert!(
        open.out.contains("web\\u{1b}[2J\\u{a}\\xff") && open.out.contains("open"),
        "{}",
        open.out
    );
    let some = told(&[
        "cases",
        "--journal",
        file,
        "--executor",
        "executor-3",
        "--output",
        "json",
    ])?;
    let some: serde_json::Value = serde_json::from_str(&some.out)?;
    assert_eq!(some.as_array().context("an array")?.len(), 9);
    assert_eq!(some[0]["result"], "clean");
    let none = told(&["cases", "--journal", file, "--container", "85*"])?;
    assert_eq!((none.status, none.out.as_str()), (Some(0), ""));
    let by_pod = told(&[
        "cases",
        "--journal",
        file,
        "--container",
        "3f1c",
        "--limit",
        "3",
    ])?;
    assert_eq!(by_pod.out.lines().count(), 1 + 3);

    let short = &usual[7].to_string()[..8];
    let one = told(&["case", "--journal", file, short])?;
    assert_eq!(one.status, Some(0), "{}", one.error);
    for word in [
        &container(7),
        "executor-0",
        "signal 9",
        "clean",
        "3f1c2a",
        "cgroup",
        "term",
        "stop 2 containers: done",
    ] {
        assert!(one.out.contains(word), "no `{word}` in {}", one.out);
    }
    let odd = told(&["case", "--journal", file, &container(1000)])?;
    assert!(
        odd.out.contains("tricked") && !odd.out.contains(['\x1b', '\x07']),
        "{}",
        odd.out
    );
    let json = told(&[
        "case",
        "--journal",
        file,
        &usual[7].to_string(),
        "--output",
        "json",
    ])?;
    let json: serde_json::Value = serde_json::from_str(&json.out)?;
    assert_eq!(json["steps"].as_array().context("steps")?.len(), 8);
    assert_eq!(json["containers"][0]["ending"], "term");
    // Whoever reads may leave early.
    let script = format!("\"$0\" cases --limit 1000 --journal {file} | head -1");
    let program = bins::find("compose-cleanup")?;
    let early = told_by(Command::new("sh").args(["-c", &script]).arg(program))?;
    assert_eq!((early.status, early.error.as_str()), (Some(0), ""));
    Ok(())
}

#[test]
fn an_operator_is_told_what_is_wrong() -> Result<()> {
    let scratch = Scratch::new("wrong")?;
    let path = scratch.path().join("journal.db");
    let file = path.to_str().context("UTF-8")?;
    let refused = |arguments: &[&str], words: &[&str]| -> Result<()> {
        let told = told(arguments)?;
        assert_eq!(
            (told.status, told.out.as_str()),
            (Some(1), ""),
            "{}",
            told.error
        );
        for word in words {
            assert!(told.error.contains(word), "no `{word}` in {}", told.error);
        }
        Ok(())
    };
    refused(
        &["cases", "--journal", file],
        &["no journal", file, "--config"],
    )?;
    let config = scratch.path().join("config.toml");
    fs::write(&config, format!("[journal]\npath = \"{file}\"\n"))?;
    let config = config.to_str().context("UTF-8")?;
    refused(&["case", "abcd", "--config", config], &["no journal", file])?;
    fs::write(&path, "garbage".repeat(1000))?;
    refused(&["cases", "--journal", file], &["not a journal", file])?;
    fs::remove_file(&path)?;

    let (journal, _) = open(&path);
    record(&journal, 1);
    ensure!(flush(&journal, LONG)?);
    refused(&["case", "--journal", file, "zz"], &["zz", "hexadecimal"])?;
    refused(
        &["case", "--journal", file, &container(2)],
        &["no case", "compose-cleanup cases"],
    )?;
    assert_eq!(told(&["cases", "--limit", "0"])?.status, Some(2));

    // A user without rights.
    let program = scratch.path().join("compose-cleanup");
    fs::copy(bins::find("compose-cleanup")?, &program)?;
    fs::set_permissions(
        scratch.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let mut command = Command::new(program);
    command
        .args(["cases", "--journal", file])
        .uid(65534)
        .gid(65534);
    let told = told_by(&mut command)?;
    assert_eq!(told.status, Some(1));
    assert!(told.error.contains("Permission denied"), "{}", told.error);
    Ok(())
}
