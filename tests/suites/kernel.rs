//! The exit probe against the running kernel: which ends it reports, and what it says of them.
//!
//! Needs root, BTF, two CPUs, and the version 1 hierarchies freezer, devices, blkio, cpu and pids
//! beside the unified one (not memory: many kernels since 6.11 have it in version 2 only). Every
//! test has a root of its own, so they run side by side.
//!
//! That something is *not* reported is shown by what is reported next: the ring buffer keeps the
//! order, so a test runs a marker process afterwards and looks at what came before it.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{ffi::OsStrExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use cleanup_tests::{process::Process, scratch::Scratch, wait};
use cleanup_userspace::probe::{
    ExitRecord, GroupDeadSource, Layout, Losses, MAX_ROOTS, Probe, ProbeError, ProbeOptions,
    ProgramSize, RootSpec, RootState,
};

const MOUNT: &str = "/sys/fs/cgroup";
const RUN: &str = "5f0c1b9e-7a3d-4c5e-9b1a-0123456789ab";
const OTHER_RUN: &str = "9d8e7f60-1b2c-4d3e-8f90-a1b2c3d4e5f6";
const MARKER: &str = "ffffffff-ffff-4fff-bfff-ffffffffffff";

/// What the verifier walks through. It may be 1,000,000; of the largest program Linux 6.18 walks
/// through 12,600, and 6.1, which forgives least, through less than this.
const MOST_VERIFIED: u32 = 100_000;
/// Bytes of a program, with all that it calls; half as much again as Linux 6.18 has of the largest.
const MOST_TRANSLATED: u32 = 8_900;
const MOST_MACHINE: u32 = 7_300;

/// Only a hang takes this long.
const HANG: Duration = Duration::from_secs(60);

/// A root, and the processes beneath it. Removes both when dropped.
struct Lab {
    scratch: Scratch,
    layout: Layout,
    /// The root's path in every hierarchy.
    root: String,
}

impl Lab {
    fn v1(name: &str) -> Self {
        Self::new(name, Layout::V1)
    }

    fn v2(name: &str) -> Self {
        Self::new(name, Layout::V2)
    }

    fn new(name: &str, layout: Layout) -> Self {
        let scratch = Scratch::new(name).expect("a scratch");
        let root = scratch.name().to_owned();
        Self {
            scratch,
            layout,
            root,
        }
    }

    /// With the root further down.
    fn beneath(mut self, below: &str) -> Self {
        self.root = format!("{}/{below}", self.root);
        self
    }

    fn hierarchy(&self) -> &'static str {
        match self.layout {
            Layout::V1 => "freezer",
            Layout::V2 => "unified",
        }
    }

    fn root_dir(&self) -> PathBuf {
        Path::new(MOUNT).join(self.hierarchy()).join(&self.root)
    }

    fn spec(&self) -> RootSpec {
        RootSpec {
            path: self.root_dir(),
            layout: self.layout,
        }
    }

    fn options(&self) -> ProbeOptions {
        ProbeOptions {
            roots: vec![self.spec()],
            ..ProbeOptions::default()
        }
    }

    /// A probe of the root, which exists from now on.
    async fn probe(&self) -> Probe {
        fs::create_dir_all(self.root_dir()).expect("the root");
        start(self.options()).await
    }

    /// A cgroup beneath the root, made if need be.
    fn cgroup_in(&self, hierarchy: &str, below: impl AsRef<Path>) -> PathBuf {
        let path = Path::new(MOUNT)
            .join(hierarchy)
            .join(&self.root)
            .join(below);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Where a container's own processes sit in the launcher's hierarchy.
    fn container(&self, id: &str) -> PathBuf {
        match self.layout {
            Layout::V1 => self.cgroup_in("freezer", id),
            Layout::V2 => self.cgroup_in("unified", Path::new(id).join("leaf")),
        }
    }

    /// Plays a case in some cgroups.
    fn play_in(&self, cgroups: &[PathBuf], case: &[&str]) -> Play {
        let mut command = self.scratch.command(env!("CARGO_BIN_EXE_exit-case"));
        for cgroup in cgroups {
            command.arg("--in").arg(cgroup);
        }
        Play::start(command.args(case))
    }

    /// Plays a case in a container.
    fn play(&self, case: &[&str]) -> Play {
        self.play_in(&[self.container(RUN)], case)
    }

    /// Everything that was reported until now.
    async fn reported(&self, probe: &mut Probe) -> Vec<ExitRecord> {
        self.play_in(&[self.container(MARKER)], &["exit", "0"])
            .succeed();
        let mut records = Vec::new();
        loop {
            let record = next(probe).await;
            if record.container == MARKER {
                return records;
            }
            records.push(record);
        }
    }

    /// Asserts that nothing was reported until now.
    async fn nothing_reported(&self, probe: &mut Probe) {
        assert_eq!(self.reported(probe).await, []);
    }
}

/// A running `exit-case`.
struct Play {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Play {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("exit-case");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, output }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it says.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line of UTF-8");
        assert!(
            line.ends_with('\n'),
            "exit-case ended early, last said {line:?}"
        );
        line.trim_end().to_owned()
    }

    fn pid_line(&mut self) -> u32 {
        let line = self.line();
        line.parse()
            .unwrap_or_else(|_| panic!("{line:?} is no pid"))
    }

    /// Ends its input, on which a held process ends too.
    fn release(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Kills it and waits for its end. Its input stays open for others that share it.
    fn kill(&mut self) -> ExitStatus {
        let input = self.child.stdin.take();
        self.child.kill().expect("a process of ours");
        let status = self.child.wait().expect("a child of ours");
        self.child.stdin = input;
        status
    }

    /// Ends its input and waits for its end.
    fn wait(&mut self) -> ExitStatus {
        self.release();
        self.child.wait().expect("a child of ours")
    }

    /// Waits for its end, and returns the pid that it had.
    fn succeed(mut self) -> u32 {
        let status = self.wait();
        assert!(status.success(), "exit-case: {status}");
        self.pid()
    }
}

async fn start(options: ProbeOptions) -> Probe {
    Probe::start(options)
        .await
        .expect("a kernel that runs the probe, and root")
}

async fn next(probe: &mut Probe) -> ExitRecord {
    tokio::time::timeout(HANG, probe.next())
        .await
        .expect("a record")
        .expect("a readable ring")
}

fn tgids(records: &[ExitRecord]) -> Vec<u32> {
    records.iter().map(|record| record.tgid).collect()
}

/// Asserts that there is one record, and returns it.
fn only(records: Vec<ExitRecord>) -> ExitRecord {
    let [record] = <[_; 1]>::try_from(records).expect("one record");
    record
}

fn losses(probe: &Probe) -> Losses {
    probe.losses().expect("readable counters")
}

/// Waits until the kernel's table knows what became of the first root.
fn until_root(probe: &Probe, what: &str, expected: impl Fn(RootState) -> bool) {
    wait::until(HANG, what, || {
        expected(probe.describe().roots[0].state).then_some(())
    })
    .expect("a table that is kept true");
}

fn is_watched(state: RootState) -> bool {
    matches!(state, RootState::Watched { .. })
}

fn is_absent(state: RootState) -> bool {
    state == RootState::Absent
}

// ---- What is an executor's end

#[tokio::test]
async fn reports_who_ended_where_and_when() {
    let lab = Lab::v1("fields");
    let mut probe = lab.probe().await;
    let mut helper = lab.play(&["launcher", "hold"]);
    let executor = helper.pid_line();
    let started = Process::of(executor.cast_signed())
        .expect("a living executor")
        .start_time();
    helper.wait();

    let records = lab.reported(&mut probe).await;
    assert_eq!(tgids(&records), [executor, helper.pid()]);
    let record = &records[0];
    assert_eq!(record.tid, executor);
    assert_eq!(record.ppid, helper.pid());
    assert_eq!(record.gppid, std::process::id());
    assert_eq!(record.wait_status, 0);
    assert_eq!(record.root, 0);
    assert_eq!(record.container, RUN);
    // Clock ticks of 10 ms, rounded down.
    assert_eq!(record.start_boottime_ns / 10_000_000, started);
    assert!(record.at_ns <= record.received_ns);
    assert!(record.at_ns <= records[1].at_ns, "in the order of the ends");
    assert_eq!(losses(&probe), Losses::default());
}

#[tokio::test]
async fn leader_that_ends_first_is_not_the_end() {
    let lab = Lab::v1("leader");
    let mut probe = lab.probe().await;
    let mut play = lab.play(&["leader-first", "5"]);
    let last = play.pid_line();
    assert_ne!(last, play.pid());
    lab.nothing_reported(&mut probe).await;

    play.wait();
    let record = only(lab.reported(&mut probe).await);
    assert_eq!((record.tgid, record.tid), (play.pid(), last));
    assert_eq!(record.wait_status, 5 << 8, "the status of the last task");
}

#[tokio::test]
async fn threads_are_not_processes() {
    let lab = Lab::v1("threads");
    let mut probe = lab.probe().await;
    let pid = lab.play(&["threads", "100"]).succeed();
    assert_eq!(tgids(&lab.reported(&mut probe).await), [pid]);
}

#[tokio::test]
async fn threads_that_end_together_are_one_end() {
    let lab = Lab::v1("pairs");
    let mut probe = lab.probe().await;
    one_end_of_each_pair(&lab, &mut probe).await;
}

/// Where the tracepoint does not say that a group is dead, both threads find themselves the last.
#[tokio::test]
async fn threads_that_end_together_are_one_end_by_their_counter() {
    let lab = Lab::v1("pairs-counter");
    fs::create_dir_all(lab.root_dir()).expect("the root");
    let mut probe = Probe::start_with(lab.options(), Some(GroupDeadSource::LiveCounter))
        .await
        .expect("a kernel that runs the probe, and root");
    assert_eq!(probe.describe().group_dead, GroupDeadSource::LiveCounter);
    one_end_of_each_pair(&lab, &mut probe).await;
}

async fn one_end_of_each_pair(lab: &Lab, probe: &mut Probe) {
    const PAIRS: usize = 10_000;
    let mut play = lab.play(&["pairs", &PAIRS.to_string()]);
    let mut ends: HashMap<(u32, u64), usize> = HashMap::new();
    loop {
        let record = next(probe).await;
        if record.tgid == play.pid() {
            break;
        }
        *ends
            .entry((record.tgid, record.start_boottime_ns))
            .or_default() += 1;
    }
    assert!(play.wait().success());
    assert_eq!(ends.len(), PAIRS);
    let twice = ends.values().filter(|count| **count > 1).count();
    assert_eq!(twice, 0, "groups that ended more than once");
    assert_eq!(losses(probe), Losses::default());
}

#[tokio::test]
async fn exec_by_a_thread_is_not_an_end() {
    let lab = Lab::v1("exec");
    let mut probe = lab.probe().await;
    let mut play = lab.play(&["exec-from-thread"]);
    assert_eq!(play.wait().code(), Some(3));
    let record = only(lab.reported(&mut probe).await);
    assert_eq!((record.tgid, record.wait_status), (play.pid(), 3 << 8));
}

#[tokio::test]
async fn fork_that_never_executes_is_silent() {
    let lab = Lab::v1("fork");
    let mut probe = lab.probe().await;
    let pid = lab.play(&["fork-without-exec", "20"]).succeed();
    assert_eq!(tgids(&lab.reported(&mut probe).await), [pid]);
}

#[tokio::test]
async fn executor_that_lives_a_millisecond_is_reported() {
    let lab = Lab::v1("short");
    let mut probe = lab.probe().await;
    // Children of a launcher helper, which is outside of nothing but by its own parent.
    let pid = lab.play(&["monitor", "200"]).succeed();
    let records = lab.reported(&mut probe).await;
    assert_eq!(records.len(), 201);
    assert!(records[..200].iter().all(|record| record.ppid == pid));
}

#[tokio::test]
async fn helper_killed_while_the_executor_lives() {
    let lab = Lab::v1("helper");
    let mut probe = lab.probe().await;
    let mut helper = lab.play(&["launcher", "hold"]);
    let executor = helper.pid_line();

    helper.kill();
    let record = only(lab.reported(&mut probe).await);
    assert_eq!(
        (record.tgid, record.wait_status),
        (helper.pid(), libc::SIGKILL)
    );
    assert_eq!(record.ppid, std::process::id());

    helper.release();
    let record = next(&mut probe).await;
    assert_eq!((record.tgid, record.wait_status), (executor, 0));
    assert_ne!(record.ppid, helper.pid(), "somebody adopted it");
}

#[tokio::test]
async fn same_pid_twice_is_two_processes() {
    let lab = Lab::v1("reuse");
    let mut probe = lab.probe().await;
    let mut play = lab.play(&["same-pid-twice"]);
    let pid = play.pid_line();
    assert!(play.wait().success());
    let mut records = lab.reported(&mut probe).await;
    // A first of an attempt that somebody else got in between of may precede.
    records.retain(|record| record.tgid == pid);
    let [first, second] = &records[..] else {
        panic!("{records:?}");
    };
    assert!(first.start_boottime_ns < second.start_boottime_ns);
}

#[tokio::test]
async fn executor_in_a_pid_namespace_has_its_host_pid() {
    let lab = Lab::v1("pidns");
    let mut probe = lab.probe().await;
    let mut play = lab.play(&["pid-namespace"]);
    let child = play.pid_line();
    assert!(play.wait().success());
    let records = lab.reported(&mut probe).await;
    assert_eq!(tgids(&records), [child, play.pid()]);
    assert_eq!(records[0].ppid, play.pid());
}

#[tokio::test]
async fn children_of_an_executor_are_silent() {
    let lab = Lab::v1("monitor");
    let mut probe = lab.probe().await;
    let mut helper = lab.play(&["launcher", "monitor", "500"]);
    let executor = helper.pid_line();
    assert!(helper.wait().success());
    let records = lab.reported(&mut probe).await;
    assert_eq!(tgids(&records), [executor, helper.pid()]);
    assert_eq!(losses(&probe), Losses::default());
}

/// Sealed builds execute the launcher from a descriptor, so a number is its name.
#[tokio::test]
async fn sealed_launcher_is_reported() {
    let lab = Lab::v1("sealed");
    let mut probe = lab.probe().await;
    let mut play = lab.play(&["sealed", "say-comm"]);
    let comm = play.line();
    assert!(comm.bytes().all(|byte| byte.is_ascii_digit()), "{comm}");
    let pid = play.succeed();
    assert_eq!(tgids(&lab.reported(&mut probe).await), [pid]);
}

#[tokio::test]
async fn exit_code_and_signal_are_the_wait_status() {
    let lab = Lab::v1("status");
    let mut probe = lab.probe().await;

    let mut play = lab.play(&["exit", "7"]);
    let waited = play.wait();
    let record = only(lab.reported(&mut probe).await);
    assert_eq!(record.wait_status, 7 << 8);
    assert_eq!(record.wait_status, waited.into_raw());

    let mut play = lab.play(&["hold"]);
    assert_eq!(play.pid_line(), play.pid());
    let waited = play.kill();
    let record = only(lab.reported(&mut probe).await);
    assert_eq!(record.wait_status, libc::SIGKILL);
    assert_eq!(record.wait_status, waited.into_raw());
}

// ---- Where it has to sit

#[tokio::test]
async fn nested_containers_are_silent() {
    let lab = Lab::v1("nested");
    let mut probe = lab.probe().await;
    for below in ["mesos", "mesos/5b1d0c55-3b7a-4d43-9c0b-2f7f7a4f3c11"] {
        let nested = lab.cgroup_in("freezer", Path::new(RUN).join(below));
        lab.play_in(&[nested], &["exit", "0"]).succeed();
    }
    lab.play_in(&[lab.root_dir()], &["exit", "0"]).succeed();
    lab.nothing_reported(&mut probe).await;
}

#[tokio::test]
async fn another_root_is_silent() {
    let ours = Lab::v1("ours");
    let theirs = Lab::v1("theirs");
    let mut probe = ours.probe().await;
    theirs.play(&["exit", "0"]).succeed();
    ours.nothing_reported(&mut probe).await;
}

#[tokio::test]
async fn no_roots_match_nothing() {
    let lab = Lab::v1("none");
    let mut blind = start(ProbeOptions::default()).await;
    let mut probe = lab.probe().await;
    let pid = lab.play(&["exit", "0"]).succeed();
    assert_eq!(tgids(&lab.reported(&mut probe).await), [pid]);
    assert_eq!(blind.drain(), []);
}

#[tokio::test]
async fn version_2_containers_are_reported_from_their_leaf() {
    let lab = Lab::v2("leaf");
    let mut probe = lab.probe().await;
    for below in [
        "",
        "other",
        "leafs",
        "mesos/5b1d0c55-3b7a-4d43-9c0b-2f7f7a4f3c11/leaf",
    ] {
        let elsewhere = lab.cgroup_in("unified", Path::new(RUN).join(below));
        lab.play_in(&[elsewhere], &["exit", "0"]).succeed();
    }
    lab.nothing_reported(&mut probe).await;

    let mut helper = lab.play(&["launcher", "monitor", "50"]);
    let executor = helper.pid_line();
    assert!(helper.wait().success());
    let records = lab.reported(&mut probe).await;
    assert_eq!(tgids(&records), [executor, helper.pid()]);
    for record in records {
        assert_eq!(record.container, RUN, "the container, not its leaf");
        assert!(record.hierarchies.unified());
        assert_eq!(record.hierarchies.iter().count(), 0);
    }
}

#[tokio::test]
async fn hierarchies_are_those_of_the_task_itself() {
    let lab = Lab::v1("mask");
    let mut probe = lab.probe().await;
    let enter = |hierarchies: &[&str]| -> Vec<PathBuf> {
        let run = hierarchies
            .iter()
            .map(|hierarchy| lab.cgroup_in(hierarchy, RUN));
        run.collect()
    };
    // Docker makes the same directory in the others, without the task in it.
    for hierarchy in ["cpu", "pids"] {
        lab.cgroup_in(hierarchy, RUN);
    }

    lab.play_in(&enter(&["freezer", "devices"]), &["exit", "0"])
        .succeed();
    let record = only(lab.reported(&mut probe).await);
    assert_eq!(
        record.hierarchies.iter().collect::<Vec<_>>(),
        ["devices", "freezer"]
    );
    assert!(!record.hierarchies.contains_controller("cpu"));
    assert!(!record.hierarchies.unified());

    lab.play_in(&enter(&["freezer", "unified", "blkio"]), &["exit", "0"])
        .succeed();
    let record = only(lab.reported(&mut probe).await);
    assert_eq!(
        record.hierarchies.iter().collect::<Vec<_>>(),
        ["blkio", "freezer"]
    );
    assert!(record.hierarchies.unified());
    assert_eq!(record.hierarchies.to_string(), "blkio,freezer,unified");

    // Of another run, further down, or beneath something else than the root: not there.
    let mut cgroups = enter(&["freezer"]);
    cgroups.push(lab.cgroup_in("devices", OTHER_RUN));
    cgroups.push(lab.cgroup_in("blkio", Path::new("below").join(RUN)));
    cgroups.push(lab.cgroup_in("cpu", Path::new(RUN).join("below")));
    lab.play_in(&cgroups, &["exit", "0"]).succeed();
    let record = only(lab.reported(&mut probe).await);
    assert_eq!(record.hierarchies.iter().collect::<Vec<_>>(), ["freezer"]);
}

#[tokio::test]
async fn each_of_many_roots_has_its_index() {
    let labs: Vec<Lab> = (0..MAX_ROOTS)
        .map(|index| match index % 2 {
            0 => Lab::v1(&format!("many-{index}")),
            _ => Lab::v2(&format!("many-{index}")),
        })
        .collect();
    let mut roots: Vec<RootSpec> = labs.iter().map(Lab::spec).collect();
    for lab in &labs {
        lab.container(RUN);
    }
    let options = ProbeOptions {
        roots: roots.clone(),
        ..ProbeOptions::default()
    };
    let mut probe = start(options).await;
    for (index, lab) in labs.iter().enumerate() {
        let pid = lab.play(&["exit", "0"]).succeed();
        let record = next(&mut probe).await;
        assert_eq!((record.tgid, record.root), (pid, index));
    }

    roots.push(labs[0].spec());
    let options = ProbeOptions {
        roots,
        ..ProbeOptions::default()
    };
    let error = Probe::start(options).await.expect_err("one root too many");
    assert!(matches!(error, ProbeError::InvalidOption { .. }), "{error}");
}

// ---- Roots that come and go

#[tokio::test]
async fn executor_older_than_the_probe_is_reported() {
    let lab = Lab::v1("older");
    let mut play = lab.play(&["hold"]);
    assert_eq!(play.pid_line(), play.pid());
    let mut probe = lab.probe().await;
    play.wait();
    assert_eq!(tgids(&lab.reported(&mut probe).await), [play.pid()]);
}

#[tokio::test]
async fn root_made_after_the_start_is_watched() {
    let lab = Lab::v1("later");
    let mut probe = start(lab.options()).await;
    assert_eq!(probe.describe().roots[0].state, RootState::Absent);
    fs::create_dir(lab.root_dir()).expect("the root");
    until_root(&probe, "the new root", is_watched);
    let pid = lab.play(&["exit", "0"]).succeed();
    assert_eq!(tgids(&lab.reported(&mut probe).await), [pid]);
}

#[tokio::test]
async fn root_made_again_is_watched_again() {
    for lab in [Lab::v1("again"), Lab::v2("again-v2")] {
        let mut probe = lab.probe().await;
        for _ in 0..3 {
            let before = probe.describe().roots[0].state;
            fs::remove_dir(lab.root_dir()).expect("an empty root");
            until_root(&probe, "the end of the root", is_absent);
            fs::create_dir(lab.root_dir()).expect("the root");
            until_root(&probe, "the new root", is_watched);
            assert_ne!(probe.describe().roots[0].state, before, "another inode");

            let pid = lab.play(&["exit", "0"]).succeed();
            assert_eq!(tgids(&lab.reported(&mut probe).await), [pid]);
            remove_beneath(&lab.root_dir());
        }
    }
}

#[tokio::test]
async fn root_with_several_components_is_watched_from_the_first() {
    let lab = Lab::v1("deep").beneath("fleet/mesos");
    let mut probe = start(lab.options()).await;
    let fleet = lab.root_dir().parent().expect("a parent").to_path_buf();
    for _ in 0..2 {
        assert_eq!(probe.describe().roots[0].state, RootState::Absent);
        fs::create_dir_all(lab.root_dir()).expect("the root");
        until_root(&probe, "the new root", is_watched);
        let pid = lab.play(&["exit", "0"]).succeed();
        let record = only(lab.reported(&mut probe).await);
        assert_eq!(record.tgid, pid);
        assert!(record.hierarchies.contains_controller("freezer"));

        remove_beneath(&fleet);
        fs::remove_dir(&fleet).expect("empty now");
        until_root(&probe, "the end of the root", is_absent);
    }
}

#[tokio::test]
async fn root_in_a_hierarchy_mounted_after_the_start_is_watched() {
    let lab = Lab::v1("mounted");
    fs::create_dir(lab.root_dir()).expect("the root");
    let mount = lab.scratch.path().join("freezer");
    fs::create_dir(&mount).expect("a mount point");
    let options = ProbeOptions {
        roots: vec![RootSpec {
            path: mount.join(&lab.root),
            layout: Layout::V1,
        }],
        ..ProbeOptions::default()
    };
    let mut probe = start(options).await;
    assert_eq!(probe.describe().roots[0].state, RootState::Absent);

    let freezer = Path::new(MOUNT).join("freezer");
    rustix::mount::mount_bind(freezer, &mount).expect("a bind mount");
    until_root(&probe, "the new mount", is_watched);
    let pid = lab.play(&["exit", "0"]).succeed();
    assert_eq!(tgids(&lab.reported(&mut probe).await), [pid]);
}

#[tokio::test]
async fn root_in_another_hierarchy_is_refused() {
    let lab = Lab::v1("wrong");
    let path = lab.cgroup_in("devices", "");
    let options = ProbeOptions {
        roots: vec![RootSpec {
            path,
            layout: Layout::V1,
        }],
        ..ProbeOptions::default()
    };
    let probe = start(options).await;
    assert_eq!(probe.describe().roots[0].state, RootState::WrongHierarchy);
}

/// Removes every cgroup beneath a directory; its processes have ended.
fn remove_beneath(dir: &Path) {
    for entry in fs::read_dir(dir).expect("a readable cgroup") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("its type").is_dir() {
            remove_beneath(&entry.path());
            fs::remove_dir(entry.path()).expect("an empty cgroup");
        }
    }
}

// ---- What is lost, and how the probe ends

#[tokio::test]
async fn full_ring_counts_what_it_loses() {
    const ENDS: usize = 200;
    let lab = Lab::v1("full");
    fs::create_dir_all(lab.root_dir()).expect("the root");
    let mut probe = start(ProbeOptions {
        ring_bytes: 4096,
        ..lab.options()
    })
    .await;
    let mut play = lab.play(&["monitor", &(ENDS - 1).to_string()]);
    assert!(play.wait().success());

    let received = probe.drain().len();
    assert!((1..ENDS).contains(&received), "{received}");
    let lost = losses(&probe);
    assert_eq!(lost.ring_full, (ENDS - received) as u64);
    assert_eq!(lost.total(), lost.ring_full);

    // There is room again.
    let pid = lab.play(&["exit", "0"]).succeed();
    assert_eq!(tgids(&lab.reported(&mut probe).await), [pid]);
}

#[tokio::test]
async fn names_that_are_no_container_ids_are_counted() {
    let lab = Lab::v1("names");
    let mut probe = lab.probe().await;
    let not_utf8 = lab.cgroup_in("freezer", OsStr::from_bytes(b"run-\xff"));
    lab.play_in(&[not_utf8], &["exit", "0"]).succeed();
    let too_long = lab.cgroup_in("freezer", "x".repeat(39));
    lab.play_in(&[too_long], &["exit", "0"]).succeed();
    let longest = "y".repeat(38);
    let pid = lab
        .play_in(&[lab.cgroup_in("freezer", &longest)], &["exit", "0"])
        .succeed();

    let record = only(lab.reported(&mut probe).await);
    assert_eq!((record.tgid, record.container), (pid, longest));
    let lost = losses(&probe);
    assert_eq!(
        (lost.name_not_utf8, lost.name_too_long, lost.total()),
        (1, 1, 2)
    );
}

#[tokio::test]
async fn detached_probe_keeps_what_it_has() {
    let lab = Lab::v1("detach");
    let mut probe = lab.probe().await;
    let mut witness = lab.probe().await;
    let before = lab.play(&["exit", "0"]).succeed();
    probe.detach().expect("an attached probe");
    probe.detach().expect("twice is once");
    let after = lab.play(&["exit", "0"]).succeed();
    assert_eq!(tgids(&lab.reported(&mut witness).await), [before, after]);
    assert_eq!(tgids(&probe.drain()), [before]);
    assert_eq!(probe.drain(), []);
}

#[tokio::test]
async fn dropping_a_wait_loses_nothing() {
    let lab = Lab::v1("cancel");
    let mut probe = lab.probe().await;
    let pid = lab.play(&["exit", "0"]).succeed();
    let mut records = Vec::new();
    while records.is_empty() {
        // Polled once, then dropped.
        if let Ok(record) = tokio::time::timeout(Duration::ZERO, probe.next()).await {
            records.push(record.expect("a readable ring"));
        }
    }
    assert_eq!(tgids(&records), [pid]);
    lab.nothing_reported(&mut probe).await;
}

/// Runs on hosts with hierarchies of one version, too. `cargo xtask vm` shows what the line that
/// begins with `probe:` says.
#[tokio::test]
async fn loading_costs_the_verifier_little() {
    let roots = roots_that_nobody_makes();
    let begin = Instant::now();
    let size = size_of_probe(&roots[..1], None).await;
    let took = begin.elapsed().as_millis();
    let instructions = match size.verified_instructions {
        Some(count) => count.to_string(),
        None => "?".to_owned(),
    };
    println!("probe: load_ms={took} instructions={instructions}");
}

#[tokio::test]
async fn every_program_is_small() {
    let roots = roots_that_nobody_makes();
    for roots in [&roots[..1], &roots[roots.len() - 1..], &roots[..]] {
        for by in [None, Some(GroupDeadSource::LiveCounter)] {
            size_of_probe(roots, by).await;
        }
    }
}

/// In each hierarchy that this host has. With no root at all, the program has nothing to do.
fn roots_that_nobody_makes() -> Vec<RootSpec> {
    let mount = Path::new(MOUNT);
    let freezer = mount.join("freezer");
    let unified = [mount.join("unified"), mount.to_owned()]
        .into_iter()
        .find(|top| top.join("cgroup.controllers").is_file());
    let mut tops = Vec::new();
    if freezer.is_dir() {
        tops.push((freezer, Layout::V1));
    }
    tops.extend(unified.map(|top| (top, Layout::V2)));
    tops.into_iter()
        .map(|(top, layout)| RootSpec {
            path: top.join("cct-no-such-root"),
            layout,
        })
        .collect()
}

/// What decides the cost of an exit cannot grow unseen. No clock.
async fn size_of_probe(roots: &[RootSpec], by: Option<GroupDeadSource>) -> ProgramSize {
    let options = ProbeOptions {
        roots: roots.to_vec(),
        ..ProbeOptions::default()
    };
    let probe = Probe::start_with(options, by)
        .await
        .expect("a kernel that runs the probe, and root");
    let size = probe.describe().size;
    for (what, found, most) in [
        ("instructions", size.verified_instructions, MOST_VERIFIED),
        ("bytes", size.translated_bytes, MOST_TRANSLATED),
        ("bytes of machine code", size.machine_bytes, MOST_MACHINE),
    ] {
        if let Some(found) = found {
            assert!(
                (100..=most).contains(&found),
                "{found} {what} of at most {most}, for {roots:?}, by {by:?}"
            );
        }
    }
    size
}

/// Without it every short command costs three loads more.
#[tokio::test]
async fn top_of_the_hierarchies_is_known() {
    for lab in [Lab::v1("top"), Lab::v2("top-v2")] {
        let mut probe = lab.probe().await;
        assert!(probe.describe().top_known);
        let state = probe.describe().roots[0].state;
        assert!(
            matches!(state, RootState::Watched { known: true, .. }),
            "{state:?}"
        );
        // It is dismissed, and nothing else is.
        let top = Path::new(MOUNT).join(lab.hierarchy());
        lab.play_in(&[top], &["exit", "0"]).succeed();
        lab.nothing_reported(&mut probe).await;
    }
}

/// The verifier has more to do with the log turned on.
#[tokio::test]
async fn kernel_log_does_not_change_the_records() {
    let lab = Lab::v1("log");
    fs::create_dir_all(lab.root_dir()).expect("the root");
    let mut probe = start(ProbeOptions {
        kernel_log: true,
        ..lab.options()
    })
    .await;
    assert!(probe.describe().kernel_log);
    let mut helper = lab.play(&["launcher", "monitor", "5"]);
    let executor = helper.pid_line();
    helper.wait();
    assert_eq!(
        tgids(&lab.reported(&mut probe).await),
        [executor, helper.pid()]
    );
}

#[tokio::test]
async fn impossible_options_are_refused() {
    for ring_bytes in [0, 1000, 12288] {
        let options = ProbeOptions {
            ring_bytes,
            ..ProbeOptions::default()
        };
        let error = Probe::start(options).await.expect_err("an impossible ring");
        assert!(error.to_string().contains("ring_bytes"), "{error}");
    }
}
