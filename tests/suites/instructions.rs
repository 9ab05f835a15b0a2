//! What an executor's death costs the daemon in instructions, from the kernel's event to the first
//! wave of stop requests: the library's own code on a host of its own, without Docker and without a
//! kernel program. Instructions do not depend on how busy the machine is, so they have limits here;
//! times have none.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::instructions::{count, counted};
use cleanup_userspace::case::{Death, Host, Origin, Reaper};
use cleanup_userspace::cgroup::{CgroupsRoot, Hierarchies};
use cleanup_userspace::config::{Config, Mode};
use cleanup_userspace::docker::{ContainerInfo, Docker};
use cleanup_userspace::journal::{CaseId, Journal};
use cleanup_userspace::mesos::{AgentDirs, ContainerId, Identity};
use cleanup_userspace::process::Proc;
use cleanup_userspace::registry::{Ended, Launcher, Role, Run, Verdict, judge};

/// What the counted half is told.
const LIVING: &str = "CLEANUP_COUNTED_LIVING";
const EVENTS: &str = "CLEANUP_COUNTED_EVENTS";
/// … to walk through everything that lives at each event, as the daemon must not.
const WALKS: &str = "CLEANUP_COUNTED_WALKS";

/// Enough for hash tables to be lucky and unlucky; each takes a second or more to count.
const MANY: u32 = 4;
/// An event with 10,000 living executors, beside one with 100.
const FLAT: f64 = 1.5;
/// Instructions of an event. 97,000 were counted in a build without optimisations (Rust 1.95,
/// x86_64): three times as many are no other compiler's doing.
const MOST: u64 = 300_000;

#[test]
fn an_event_costs_the_same_however_many_executors_live() -> Result<()> {
    let [one, some, many] = [1, 100, 10_000].map(|living| instructions(living, MANY, false));
    let (one, some, many) = (one?, some?, many?);
    eprintln!("instructions of an event: {one} with 1 living, {some} with 100, {many} with 10,000");
    ensure_flat(some, many)?;
    ensure!(many <= MOST, "{many} instructions, and not {MOST} at most");
    Ok(())
}

/// That the test above can fail.
#[test]
fn a_walk_through_all_executors_is_noticed() -> Result<()> {
    let (some, many) = (instructions(100, 1, true)?, instructions(3_000, 1, true)?);
    let refused = ensure_flat(some, many);
    eprintln!("with a walk: {some} with 100 living, {many} with 3,000");
    ensure!(refused.is_err(), "{some} and {many} pass for the same");
    Ok(())
}

fn ensure_flat(some: u64, many: u64) -> Result<()> {
    let growth = many as f64 / some as f64;
    ensure!(
        growth <= FLAT,
        "an event takes {growth:.2} times as many instructions with more living executors as with \
         100 ({many} and {some})"
    );
    Ok(())
}

/// Of one event, on average.
fn instructions(living: u32, events: u32, walks: bool) -> Result<u64> {
    let mut half = Command::new(env::current_exe().context("path of this program")?);
    half.args(["--exact", "the_counted_half", "--ignored", "--nocapture"]);
    half.args(["--test-threads", "1"]);
    half.env(LIVING, living.to_string());
    half.env(EVENTS, events.to_string());
    if walks {
        half.env(WALKS, "1");
    }
    let counted = count(&mut half).with_context(|| format!("{living} living executors"))?;
    Ok(counted / u64::from(events))
}

#[test]
#[ignore = "what the other tests count, in a process of its own"]
fn the_counted_half() -> Result<()> {
    let Ok(living) = env::var(LIVING) else {
        return Ok(());
    };
    let living: u32 = living.parse()?;
    let events: u32 = env::var(EVENTS)?.parse()?;
    let walks = env::var_os(WALKS).is_some();

    // Never driven while it is counted: what is asked of Docker only waits for its turn.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let _entered = runtime.enter();
    let host = host()?;
    for number in 0..living + events {
        bear(&host, number)?;
    }
    let names: Vec<String> = (living..living + events).map(name).collect();
    let cases = counted(|| -> Result<Vec<_>> {
        let mut cases = Vec::with_capacity(names.len());
        for (name, number) in names.iter().zip(living..) {
            if walks {
                let lives = host.registry().iter().filter(|run| run.owned).count();
                ensure!(lives >= living as usize);
            }
            cases.push(on_exit(&host, name, number)?);
        }
        Ok(cases)
    })??;
    // A request for the one container of each.
    let asked = runtime.metrics().num_alive_tasks();
    ensure!(asked == cases.len() && asked == events as usize, "{asked}");
    Ok(())
}

/// As the daemon's loop has it.
fn on_exit(host: &Arc<Host>, name: &str, number: u32) -> Result<impl Sized> {
    let container: ContainerId = name.parse()?;
    let executor = executor(number);
    let ended = Ended::Group {
        tgid: executor.pid,
        ppid: executor.pid - 1,
        start_boottime_ns: executor.start_ticks * 10_000_000 + 1,
    };
    {
        let registry = host.registry();
        let run = registry.get(container).context("an executor that lives")?;
        host.metrics.exit(Role::of(run, ended));
        let verdict = judge(run, ended, Proc::is_alive);
        ensure!(verdict == Verdict::Dead, "{verdict:?}");
    }
    let death = Death::noticed(Origin::Kernel);
    let run = host.registry().remove(container).context("its run")?;
    let case = Reaper::open(Arc::clone(host), CaseId::next(), run.clone(), death);
    let identity = run.identity.context("its identity")?;
    host.registry().ended(container, identity.executor_id);
    Ok(case)
}

fn name(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// No process of this host: pids end at 4,194,304.
fn executor(number: u32) -> Proc {
    Proc {
        pid: 10_000_000 + 2 * number,
        start_ticks: 5_000 + u64::from(number),
    }
}

fn dirs() -> Result<AgentDirs> {
    Ok(AgentDirs {
        work_dir: "/nonexistent/work".into(),
        runtime_dir: "/nonexistent/run".into(),
        cgroups_root: CgroupsRoot::try_from(PathBuf::from("cct-counted"))?,
    })
}

/// This host's hierarchies; nothing of the agent's is there, nor is Docker.
fn host() -> Result<Arc<Host>> {
    let hierarchies = Hierarchies::discover()?;
    let launcher = hierarchies.freezer().or(hierarchies.unified());
    let launcher = launcher.context("no hierarchy")?.clone();
    let config = Config {
        mode: Mode::Enforce,
        run_dir: "/nonexistent/run-dir".into(),
        ..Config::default()
    };
    let docker = Docker::new(
        Path::new("/nonexistent/docker.sock"),
        Duration::from_secs(1),
    )?;
    let journal = Journal::disabled();
    let agents = vec![dirs()?];
    Ok(Arc::new(Host::new(
        config,
        hierarchies,
        launcher,
        docker,
        journal,
        agents,
    )))
}

/// An executor that lives, with a pod of one container.
fn bear(host: &Host, number: u32) -> Result<()> {
    let dirs = dirs()?;
    let name = name(number);
    let container: ContainerId = name.parse()?;
    let below = format!("slaves/S0/frameworks/F-0000/executors/web-{number}/runs/{name}");
    let sandbox = dirs.work_dir.join(below);
    let executor = executor(number);
    host.registry().insert(Run {
        container,
        agent: 0,
        identity: Identity::from_sandbox(&dirs.work_dir, &sandbox, container),
        launcher: Launcher::Linux,
        helper: Some(Proc {
            pid: executor.pid - 1,
            ..executor
        }),
        executor: Some(executor),
        seat: None,
        owned: true,
        orphaned: false,
    });
    let labels = [(
        "com.docker.compose.project.working_dir",
        sandbox.display().to_string(),
    )];
    let info = ContainerInfo {
        id: format!("{number:064x}"),
        name: format!("web-{number}-service0"),
        cgroup_parent: dirs.cgroups_root.absolute(&name),
        labels: labels.map(|(name, value)| (name.to_owned(), value)).into(),
        ..ContainerInfo::default()
    };
    host.index.insert(Arc::new(info), true);
    Ok(())
}
