//! What befalls the journal is of no consequence for the host: end to end.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use cleanup_tests::{bins, command};
use cleanup_userspace::journal::{Journal, Settings};
use rustix::mount::{MountFlags, mount, mount_remount};

use super::*;

const REPLACED: &str = "the journal was deleted or replaced while it was in use: it goes on with the open cases in what is there now";
const SET_ASIDE: &str =
    "the journal cannot be used and was set aside: a fresh one is begun (no effect on cleanups)";
const FAILS: &str =
    "the journal cannot be written: cases go on from memory, and it catches up when it can";
const WORKS: &str = "the journal can be written again and has caught up";
const NOTHING_LEFT: &str = "a case of an earlier start: nothing is left to do";

/// What somebody, or a disk, may do to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// The file is deleted.
    Delete,
    /// Its directory is deleted, with all that is in it.
    DeleteDirectory,
    /// Cut short where it lies.
    Truncate,
    /// Written over where it lies.
    Garbage,
    /// Another file is put in its place, from a release to come.
    Newer,
}

const HARMS: [Harm; 5] = [
    Harm::Delete,
    Harm::DeleteDirectory,
    Harm::Truncate,
    Harm::Garbage,
    Harm::Newer,
];

/// Where SQLite keeps `user_version`, which is the version of the schema here.
const USER_VERSION: u64 = 60;

impl Harm {
    fn befall(self, path: &Path) -> Result<()> {
        let companion = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
        match self {
            Self::Delete => {
                fs::remove_file(path)?;
                let _ = fs::remove_file(companion("-wal"));
                let _ = fs::remove_file(companion("-shm"));
            }
            Self::DeleteDirectory => fs::remove_dir_all(path.parent().context("a directory")?)?,
            Self::Truncate => OpenOptions::new().write(true).open(path)?.set_len(100)?,
            Self::Garbage => {
                let length = usize::try_from(fs::metadata(path)?.len())?;
                let mut file = OpenOptions::new().write(true).open(path)?;
                file.write_all(&vec![0x5a; length.max(4096)])?;
                // What is in the log alone would be as good as new.
                let _ = fs::remove_file(companion("-wal"));
            }
            Self::Newer => {
                let new = newer(path)?;
                fs::rename(&new, path)?;
                let _ = fs::remove_file(companion("-wal"));
                let _ = fs::remove_file(companion("-shm"));
            }
        }
        Ok(())
    }
}

/// A journal of a release to come, beside one of this release.
fn newer(path: &Path) -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let new = PathBuf::from(format!("{}.new-{count}", path.display()));
    let (journal, _) = Journal::open(Settings {
        path: new.clone(),
        max_age: Duration::from_hours(24),
        max_bytes: 4 << 20,
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    ensure!(runtime.block_on(journal.close(SOON)), "it is not closed");
    let mut file = OpenOptions::new().write(true).open(&new)?;
    file.seek(SeekFrom::Start(USER_VERSION))?;
    file.write_all(&99_u32.to_be_bytes())?;
    Ok(new)
}

/// All cases in the journal, as an operator sees them.
fn cases(scratch: &Scratch) -> Result<Vec<Value>> {
    let path = Watcher::journal(scratch);
    let mut command = Command::new(bins::find("compose-cleanup")?);
    command.arg("cases").arg("--journal").arg(&path);
    let told = command::output(command.args(["--output", "json"]), SOON)?;
    serde_json::from_str(&told).context("the cases")
}

/// Waits until the journal says that a run's case is over, and how.
fn wait_recorded(scratch: &Scratch, run: &StandInRun, result: &str) -> Result<()> {
    let id = run.container_id();
    wait::until(SOON, format_args!("{id} to be `{result}`"), || {
        let cases = cases(scratch).ok()?;
        let mut of_run = cases.iter().filter(|case| case["container"] == id);
        let recorded = of_run.next()?["result"] == result;
        (recorded && of_run.next().is_none()).then_some(())
    })
    .with_context(|| format!("{:?}", cases(scratch)))
}

/// The journal has something in it, so that there is something to harm.
fn begin_journal(bed: &Bed) -> Result<()> {
    let pod = bed.pod("first", &[OBEDIENT])?;
    pod.run.executor()?.kill();
    bed.ensure_cleaned(&pod)?;
    wait_recorded(&bed.scratch, &pod.run, "clean")
}

/// In the middle of a case, with the daemon at work.
#[test]
fn harmed_in_the_middle_of_a_case() -> Result<()> {
    let bed = Bed::start("harmed", &[], "")?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    begin_journal(&bed)?;
    let path = Watcher::journal(&bed.scratch);
    for harm in HARMS {
        let what = format!("{harm:?}");
        let pod = bed.pod("victim", &[OBEDIENT, IGNORING_TERM])?;
        pod.run.executor()?.kill();
        bed.wait_stopped(&pod.containers[0])?;
        let replaced = bed.watcher.said(REPLACED)?.len();
        harm.befall(&path).context(what.clone())?;
        let case = bed.ensure_cleaned(&pod).context(what.clone())?;
        // As without.
        assert_eq!(case["endings"], "1 grace_kill, 1 term", "{what}: {case}");
        if matches!(harm, Harm::Delete | Harm::DeleteDirectory | Harm::Newer) {
            wait_recorded(&bed.scratch, &pod.run, "clean").context(what.clone())?;
            ensure!(bed.watcher.said(REPLACED)?.len() > replaced, "{what}");
        }
        if harm == Harm::Newer {
            wait::try_until(SOON, "the newer one to be set aside", || {
                let newer = |line: &Value| {
                    line["problem"]
                        .as_str()
                        .is_some_and(|problem| problem.contains("version 99"))
                };
                Ok(bed.watcher.said(SET_ASIDE)?.iter().any(newer).then_some(()))
            })?;
        }
        bed.ensure_untouched(&neighbour)?;
    }
    Ok(())
}

/// Again and again, at moments that nobody chose, during a series of deaths.
#[test]
fn harmed_at_any_moment() -> Result<()> {
    const DEATHS: usize = 8;
    let mut bed = Bed::start("anytime", &[], "")?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    begin_journal(&bed)?;
    let path = Watcher::journal(&bed.scratch);
    let over = AtomicBool::new(false);
    let harms = thread::scope(|scope| -> Result<usize> {
        let harming = scope.spawn(|| {
            let mut count = 0;
            for (turn, harm) in HARMS.iter().cycle().enumerate() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                // Some are in vain: it is not there again yet.
                count += usize::from(harm.befall(&path).is_ok());
                let pause = Duration::from_millis((turn as u64 * 67) % 400);
                let _ = wait::holds(pause, "a pause", || !over.load(Ordering::Relaxed));
            }
            count
        });
        let series = || {
            for n in 0..DEATHS {
                let pod = bed.pod(&format!("victim-{n}"), &[OBEDIENT])?;
                pod.run.executor()?.kill();
                let case = bed.ensure_cleaned(&pod)?;
                ensure!(case["endings"] == "1 term", "{case}");
                ensure!(case["origin"] == "kernel", "{case}");
            }
            Ok(())
        };
        let done = series();
        over.store(true, Ordering::Relaxed);
        let count = harming.join().unwrap_or_default();
        done.map(|()| count)
    })?;
    ensure!(harms > DEATHS, "only {harms} times");
    bed.ensure_untouched(&neighbour)?;
    // What was overwritten in place goes on in SQLite's log, and is noticed by the next
    // start at the latest: from then on it is written again.
    let daemon = bed.daemon()?;
    daemon.kill();
    daemon.wait_gone(SOON)?;
    bed.watch_again("")?;
    let last = bed.pod("last", &[OBEDIENT])?;
    last.run.executor()?.kill();
    bed.ensure_cleaned(&last)?;
    wait_recorded(&bed.scratch, &last.run, "clean")
}

/// While the daemon is down, killed in the middle of a case.
#[test]
fn harmed_while_the_daemon_is_down() -> Result<()> {
    let mut bed = Bed::start("down", &[], "")?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    begin_journal(&bed)?;
    let path = Watcher::journal(&bed.scratch);
    for harm in HARMS {
        let what = format!("{harm:?}");
        let interrupted = bed.pod("interrupted", &[OBEDIENT, IGNORING_TERM])?;
        let later = bed.pod("later", &[OBEDIENT])?;
        interrupted.run.executor()?.kill();
        bed.wait_stopped(&interrupted.containers[0])?;
        let daemon = bed.daemon()?;
        daemon.kill();
        daemon.wait_gone(SOON)?;
        later.run.executor()?.kill();
        harm.befall(&path).context(what.clone())?;

        bed.watch_again("")?;
        for pod in [&interrupted, &later] {
            let case = bed.ensure_cleaned(pod).context(what.clone())?;
            ensure!(case["origin"] != "kernel", "{what}: {case}");
            wait_recorded(&bed.scratch, &pod.run, "clean").context(what.clone())?;
        }
        if matches!(harm, Harm::Garbage | Harm::Newer) {
            bed.watcher.wait_message(SET_ASIDE).context(what)?;
        }
        bed.ensure_untouched(&neighbour)?;
    }
    Ok(())
}

/// A small disk for the journal, mounted before the daemon starts.
fn mount_disk(scratch: &Scratch, flags: MountFlags) -> Result<PathBuf> {
    let path = Watcher::journal(scratch);
    let point = path.parent().context("a directory")?.to_owned();
    fs::create_dir(&point)?;
    mount("tmpfs", &point, "tmpfs", flags, c"mode=0700,size=1m")
        .with_context(|| format!("mounting a tmpfs on {}", point.display()))?;
    Ok(point)
}

/// Takes all the space that is left.
fn fill(disk: &Path) -> Result<PathBuf> {
    let path = disk.join("filler");
    let mut file = File::create(&path)?;
    while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    Ok(path)
}

/// Deaths on a host whose journal cannot be written, and what it says of them when
/// it can be again.
fn deaths_without_a_journal(bed: &Bed, make_room: impl FnOnce() -> Result<()>) -> Result<()> {
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let pods: Vec<Pod> = (0..4)
        .map(|n| bed.pod(&format!("victim-{n}"), &[OBEDIENT]))
        .collect::<Result<_>>()?;
    for pod in &pods {
        pod.run.executor()?.kill();
    }
    for pod in &pods {
        let case = bed.ensure_cleaned(pod)?;
        assert_eq!(case["endings"], "1 term", "{case}");
    }
    let fails = bed.watcher.wait_message(FAILS)?;
    ensure!(fails["advice"].is_string(), "{fails}");
    assert_eq!(bed.watcher.said(FAILS)?.len(), 1);
    assert!(bed.watcher.said(WORKS)?.is_empty());
    make_room()?;
    bed.watcher.wait_message(WORKS)?;
    for pod in &pods {
        wait_recorded(&bed.scratch, &pod.run, "clean")?;
    }
    bed.ensure_untouched(&neighbour)
}

#[test]
fn a_full_disk() -> Result<()> {
    let bed = Bed::prepared("full", |scratch| {
        mount_disk(scratch, MountFlags::empty())
            .and_then(|disk| fill(&disk))
            .map(drop)
    })?;
    let disk = Watcher::journal(&bed.scratch);
    let filler = disk.with_file_name("filler");
    deaths_without_a_journal(&bed, || Ok(fs::remove_file(filler)?))
}

#[test]
fn a_read_only_disk() -> Result<()> {
    let bed = Bed::prepared("readonly", |scratch| {
        mount_disk(scratch, MountFlags::RDONLY).map(drop)
    })?;
    let journal = Watcher::journal(&bed.scratch);
    let disk = journal.parent().context("a directory")?;
    deaths_without_a_journal(&bed, || Ok(mount_remount(disk, MountFlags::empty(), "")?))
}

/// The journal has a case open of a run of which nothing is left at all, and the
/// runtime directory is full of what no agent has made.
#[test]
fn a_case_of_a_vanished_executor() -> Result<()> {
    let mut bed = Bed::start("vanished", &[], "")?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let pod = bed.pod("victim", &[OBEDIENT, IGNORING_TERM])?;
    pod.run.executor()?.kill();
    bed.wait_stopped(&pod.containers[0])?;
    wait::until(SOON, "the case to be in the journal", || {
        let open = cases(&bed.scratch).ok()?;
        let of_run = |case: &Value| case["container"] == pod.run.container_id();
        open.iter().any(of_run).then_some(())
    })?;
    let daemon = bed.daemon()?;
    daemon.kill();
    daemon.wait_gone(SOON)?;

    for id in &pod.containers {
        bed.docker.docker(&["rm", "--force", id])?;
    }
    bed.agent.destroy(&pod.run).finish()?;
    // As a reboot would: what Docker made, the agent leaves behind.
    for cgroup in bed.cgroups_of(&pod.run) {
        fs::remove_dir(&cgroup).with_context(|| cgroup.display().to_string())?;
    }
    fs::remove_dir_all(pod.run.sandbox())?;
    let containers = bed.agent.layout().runtime_dir().join("containers");
    let garbage = litter(&containers)?;
    bed.watch_again("")?;
    let said = bed
        .watcher
        .wait_message_of(pod.run.container_id(), NOTHING_LEFT)?;
    ensure!(said["result"] == "clean", "{said}");
    wait_recorded(&bed.scratch, &pod.run, "clean")?;
    for path in garbage {
        fs::symlink_metadata(&path).with_context(|| format!("{}", path.display()))?;
    }
    ensure!(bed.watcher.said("case")?.is_empty());
    bed.ensure_untouched(&neighbour)?;
    // It works as ever.
    neighbour.run.executor()?.kill();
    bed.ensure_cleaned(&neighbour).map(drop)
}

/// Names and contents that no agent leaves there.
fn litter(containers: &Path) -> Result<Vec<PathBuf>> {
    let mut left = Vec::new();
    let mut random = File::open("/dev/urandom")?;
    let mut noise = [0; 512];
    random.read_exact(&mut noise)?;
    for (id, pid) in [
        ("00000000-0000-4000-8000-000000000001", &b"not a pid"[..]),
        ("00000000-0000-4000-8000-000000000002", b"1"),
        ("00000000-0000-4000-8000-000000000003", b"-1"),
        ("00000000-0000-4000-8000-000000000004", b"4294967297"),
        ("00000000-0000-4000-8000-000000000005", &noise),
        ("00000000-0000-4000-8000-000000000006", b""),
    ] {
        let dir = containers.join(id);
        fs::create_dir(&dir)?;
        fs::write(dir.join("pid"), pid)?;
        left.push(dir);
    }
    let file = containers.join("00000000-0000-4000-8000-000000000007");
    fs::write(&file, "a file")?;
    let dangling = containers.join("00000000-0000-4000-8000-000000000008");
    symlink("/nonexistent", &dangling)?;
    let root = containers.join("00000000-0000-4000-8000-000000000009");
    symlink("/", &root)?;
    let odd = containers.join("..odd\n\u{1b}[2J");
    fs::create_dir(&odd)?;
    left.extend([file, dangling, root, odd]);
    Ok(left)
}
