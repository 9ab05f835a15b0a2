//! The daemon's unit in deploy/, as far as that can be tried without a systemd: one on
//! this host would take its cgroups for its own. What the unit takes from the daemon
//! is taken from it here by other means.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::command;
use cleanup_tests::docker::Dockerd;
use cleanup_tests::host::{ENFORCE, Host};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::process::{may_raise_priority_limit, real_time_threads};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;
use cleanup_tests::watcher::{AgentPlace, Watcher};

const UNIT: &str = include_str!("../../deploy/compose-cleanup.service");
const PAGE: &str = include_str!("../../docs/systemd.md");
const MESOS: &str = "1.11.0";
const LIMIT: Duration = Duration::from_secs(60);
const TOOL: Duration = Duration::from_secs(120);
/// The exposure that is promised, in tenths.
const EXPOSURE: &str = "--threshold=35";

/// What ProtectSystem=strict makes of the mounts: a namespace of its own, which
/// follows the host's, and in it everything read-only but the kernel's own file
/// systems and three directories.
const STRICT: &str = r#"
set -e
base=$1; shift
for dir in run-dir inbox journal; do
    mkdir -p -m 700 "$base/$dir"
    mount --bind "$base/$dir" "$base/$dir"
done
while read -r _ _ _ _ at _; do
    case $at in
        /dev|/dev/*|/proc|/proc/*|/sys|/sys/*) ;;
        "$base"/run-dir|"$base"/inbox|"$base"/journal) ;;
        "$base"/*) ;;
        *) mount -o remount,bind,ro "$at" 2>/dev/null || true ;;
    esac
done < /proc/self/mountinfo
if touch "$base/writable" 2>/dev/null; then echo "$base is writable" >&2; exit 1; fi
touch "$base/run-dir/writable"
rm "$base/run-dir/writable"
exec "$@"
"#;

fn setting(name: &str) -> Result<&'static str> {
    let start = format!("{name}=");
    let found = UNIT.lines().find_map(|line| line.strip_prefix(&start));
    found.with_context(|| format!("no {name} in the unit"))
}

fn bounding_set() -> Result<String> {
    let names = setting("CapabilityBoundingSet")?.split(' ');
    let names: Vec<String> = names
        .map(|name| name.replace("CAP_", "+").to_lowercase())
        .collect();
    Ok(format!("--bounding-set=-all,{}", names.join(",")))
}

/// Stops a pod and removes cgroups beside a living agent with no more capabilities
/// and no more to write to than the unit gives.
#[test]
fn its_rights_are_enough() -> Result<()> {
    let host = Host::start("unit", MESOS, AgentOptions::default())?;
    let pod = host.run_pod("pod", 2, "--ignore-term 1")?;
    let other = host.run_pod("other", 1, "")?;
    let base = host.scratch.path().to_str().context("UTF-8")?;
    let mut bounding = bounding_set()?;
    let limit = format!("--rtprio={}", setting("LimitRTPRIO")?);
    let mut wrapper = vec!["prlimit", &limit];
    if !may_raise_priority_limit()? {
        println!("no CAP_SYS_RESOURCE here: CAP_SYS_NICE stands in for LimitRTPRIO=");
        bounding.push_str(",+sys_nice");
        wrapper.clear();
    }
    wrapper.extend([
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        STRICT,
        "sh",
        base,
        "setpriv",
        "--no-new-privs",
        "--inh-caps=-all",
        &bounding,
    ]);
    let agent = AgentPlace::of(&host.agent, &host.scratch);
    let watcher = Watcher::start_through(&host.scratch, &host.docker, &[agent], ENFORCE, &wrapper)?;
    let status = fs::read_to_string(format!("/proc/{}/status", watcher.pid()))?;
    ensure!(status.contains("NoNewPrivs:\t1"), "{status}");
    ensure!(setting("RestrictRealtime").is_err());
    wait::try_until(LIMIT, "one thread with real-time priority", || {
        Ok((real_time_threads(watcher.pid())? == [watcher.pid()]).then_some(()))
    })?;
    // A run that began before it, and one that it saw begin.
    for pod in [pod, host.run_pod("later", 2, "")?] {
        pod.executor.sigkill_executor()?;
        let case = watcher.wait_case(pod.executor.container_id())?;
        ensure!(case["origin"] == "kernel", "{case}");
        host.ensure_clean(&pod, &case)?;
    }
    ensure!(other.executor.running_pod(&host.docker)?.len() == 1);
    ensure!(watcher.stop()?.success(), "it was not stopped cleanly");
    ensure!(Watcher::journal(&host.scratch).is_file(), "no journal");
    Ok(())
}

/// Not wanted, or refused, which is said: it goes on with normal priority.
#[test]
fn its_priority_is_normal_where_it_may_not_be_more() -> Result<()> {
    const REFUSED: &str = "no real-time priority for the thread that hears of deaths: on a busy host \
                           it does so some milliseconds later (docs/operations.md, \"Priority\")";
    let bounding = bounding_set()?;
    let may_not = ["prlimit", "--rtprio=0", "setpriv", &bounding];
    let cases: [(&str, &str, &[&str], usize); 2] = [
        ("refused", "priority = \"realtime\"", &may_not, 1),
        ("normal", "priority = \"normal\"", &[], 0),
    ];
    for (name, options, wrapper, refusals) in cases {
        let scratch = Scratch::new(name)?;
        let docker = Dockerd::start(&scratch)?;
        let agents = [AgentPlace::nowhere(&scratch)];
        let watcher = Watcher::start_through(&scratch, &docker, &agents, options, wrapper)?;
        if refusals > 0 {
            watcher.wait_message(REFUSED)?;
        }
        assert_eq!(real_time_threads(watcher.pid())?, [0; 0], "{name}");
        assert_eq!(watcher.said(REFUSED)?.len(), refusals, "{name}");
        ensure!(watcher.stop()?.success(), "{name}");
    }
    Ok(())
}

/// The score stays as good as is promised, and each point that is left is explained.
/// Asks nothing of a machine that has no systemd-analyze.
#[test]
fn its_exposure_is_explained() -> Result<()> {
    let program = command::system_program("systemd-analyze");
    if !program.is_file() {
        println!("no systemd-analyze on this machine");
        return Ok(());
    }
    let scratch = Scratch::new("exposure")?;
    let unit = scratch.path().join("compose-cleanup.service");
    fs::write(&unit, UNIT)?;
    let report = analyze(&program, &unit)?;
    let names: Vec<&str> = report
        .lines()
        .filter_map(|line| line.strip_prefix("✗ "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    ensure!(names.len() > 5, "no report: {report}");
    // A table's cells cannot have a bar in them.
    let page = PAGE.replace("\\|", "|");
    for name in names {
        ensure!(page.contains(name), "docs/systemd.md is silent on {name}");
    }
    Ok(())
}

/// Fails if it is worse than promised.
fn analyze(program: &Path, unit: &Path) -> Result<String> {
    let mut analyze = Command::new(program);
    analyze
        .args(["security", "--offline=true", "--no-pager", EXPOSURE])
        .arg(unit)
        .env("LC_ALL", "C.UTF-8");
    command::output(&mut analyze, TOOL)
}

/// What the daemon's own deadlines need of the unit.
#[test]
fn its_times_fit_the_daemons() -> Result<()> {
    ensure!(setting("Type")? == "notify" && setting("NotifyAccess")? == "main");
    ensure!(setting("Restart")? == "always");
    ensure!(setting("ExecReload")? == "/bin/kill -HUP $MAINPID");
    // The inbox and `hold` are in there.
    ensure!(setting("RuntimeDirectoryPreserve")? == "yes");
    for command in ["ExecStartPre", "ExecStart"] {
        let line = setting(command)?;
        ensure!(line.starts_with("/usr/sbin/compose-cleanup "), "{line}");
        ensure!(
            line.ends_with("--config /etc/compose-cleanup/config.toml"),
            "{line}"
        );
    }
    Ok(())
}
