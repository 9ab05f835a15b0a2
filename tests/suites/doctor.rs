//! `compose-cleanup doctor` with real Mesos releases, and what it says of hosts.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::Dockerd;
use cleanup_tests::hook::{self, Run};
use cleanup_tests::mesos::runtime;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::{AgentPlace, Watcher, configure};
use cleanup_tests::{bins, command};
use serde_json::Value;

/// One of each kind of interface and compiler.
const RELEASES: &[&str] = &["1.4.3", "1.6.1", "1.8.1", "1.11.0"];
const MESOS: &str = "1.11.0";
const REFUSED: i32 = 3;
const TOOL: Duration = Duration::from_secs(30);

/// The report, after its exit status was compared with its verdicts.
fn doctor(scratch: &Scratch, arguments: &[&str], environment: &[(&str, &Path)]) -> Result<Value> {
    let mut command = Command::new(bins::find("compose-cleanup")?);
    command
        .args(["doctor", "--output", "json"])
        .args(arguments)
        .envs(environment.iter().copied());
    let run = Run::plain(scratch, command)?;
    let report: Value = serde_json::from_str(&run.output).with_context(|| run.output.clone())?;
    let checks = report["checks"].as_array().context("checks")?;
    let refused = checks.iter().any(|check| check["verdict"] == "refused");
    run.expect(if refused { REFUSED } else { 0 })?;
    for check in checks {
        ensure!(
            (check["verdict"] == "ok") == check["remedy"].is_null(),
            "{check}"
        );
    }
    Ok(report)
}

fn check<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    let checks = report["checks"].as_array().context("checks")?;
    let found = checks.iter().find(|check| check["name"] == name);
    found.with_context(|| format!("no {name} in {report:#}"))
}

#[track_caller]
fn assert_verdict(report: &Value, name: &str, verdict: &str, words: &str) -> Result<()> {
    let check = check(report, name)?;
    assert_eq!(check["verdict"], verdict, "{check}");
    assert!(
        check["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains(words)),
        "no `{words}` in {check}"
    );
    Ok(())
}

/// Reading a release and running its managers lead to one answer.
#[test]
fn releases_that_are_served() -> Result<()> {
    let scratch = Scratch::new("doctor-releases")?;
    let module = hook::shipped()?.to_str().context("UTF-8")?;
    for runtime in runtime::fetch(RELEASES)? {
        let libmesos = runtime.lib_dir().join("libmesos.so");
        let libmesos = libmesos.to_str().context("UTF-8")?;
        let arguments = [
            "--mesos-version",
            runtime.version(),
            "--libmesos",
            libmesos,
            "--module",
            module,
            "--load",
        ];
        let libraries = [("LD_LIBRARY_PATH", runtime.lib_dir())];
        let report = doctor(&scratch, &arguments, &libraries)?;
        for name in [
            "mesos release",
            "libmesos",
            "string ABI",
            "hook interface",
            "module file",
        ] {
            assert_verdict(&report, name, "ok", "")?;
        }
        let served = format!("serves Mesos {} (", runtime.version());
        assert_verdict(&report, "module load", "ok", &served)?;
        assert_verdict(&report, "C library", "ok", "2.17")?;
    }
    Ok(())
}

/// What the agent would refuse is refused here, with the same words.
#[test]
fn what_would_be_refused() -> Result<()> {
    let scratch = Scratch::new("doctor-refusals")?;
    let runtime = runtime::fetch(&[MESOS])?.pop().context("a runtime")?;
    let libmesos = runtime.lib_dir().join("libmesos.so");
    let libmesos = libmesos.to_str().context("UTF-8")?;
    let libraries = [("LD_LIBRARY_PATH", runtime.lib_dir())];
    let shipped = hook::shipped()?.to_str().context("UTF-8")?;
    let switches = hook::with_switches()?.to_str().context("UTF-8")?;

    // Not what its name says.
    let ask = |version| {
        doctor(
            &scratch,
            &[
                "--mesos-version",
                version,
                "--libmesos",
                libmesos,
                "--module",
                shipped,
                "--load",
            ],
            &libraries,
        )
    };
    let older = ask("1.7.3")?;
    assert_verdict(
        &older,
        "hook interface",
        "refused",
        "those of 1.8 to 1.11, not of 1.7.3",
    )?;
    assert_verdict(&older, "module load", "warning", "not 1.7.3")?;
    assert_verdict(&ask("1.12.0")?, "mesos release", "refused", "1.12.0")?;

    // A module that refuses when it is asked.
    let late = ("CLEANUP_HOOK_TEST_LATE_VERSION", Path::new("1.3.0"));
    let report = doctor(
        &scratch,
        &["--libmesos", libmesos, "--module", switches, "--load"],
        &[libraries[0], late],
    )?;
    assert_verdict(&report, "module load", "refused", "refused: Mesos 1.3.0: ")?;
    assert_verdict(&report, "module file", "refused", "test switches")?;
    // Its name does not tell.
    assert_verdict(&report, "libmesos", "warning", libmesos)?;

    // One that is none, and one that ends its process.
    let report = doctor(
        &scratch,
        &["--libmesos", libmesos, "--module", libmesos, "--load"],
        &libraries,
    )?;
    assert_verdict(&report, "module file", "refused", "does not export")?;
    assert_verdict(&report, "module load", "refused", "")?;
    let crash = scratch.path().join("crash.so");
    let source = scratch.path().join("crash.c");
    fs::write(
        &source,
        "__attribute__((constructor)) void f(void) { __builtin_trap(); }",
    )?;
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .arg(&crash)
        .arg(&source);
    command::output(&mut compiler, TOOL)?;
    let report = doctor(
        &scratch,
        &[
            "--libmesos",
            libmesos,
            "--module",
            crash.to_str().context("UTF-8")?,
            "--load",
        ],
        &libraries,
    )?;
    assert_verdict(&report, "module load", "refused", "ended by signal")?;

    // Without what libmesos needs, only that cannot be told.
    let report = doctor(
        &scratch,
        &["--libmesos", libmesos, "--module", shipped, "--load"],
        &[("LD_LIBRARY_PATH", Path::new("/nonexistent"))],
    )?;
    assert_verdict(&report, "module load", "warning", "cannot load libmesos")?;
    Ok(())
}

/// A host with a Docker and a daemon at work, and one without.
#[test]
fn hosts() -> Result<()> {
    let scratch = Scratch::new("doctor-host")?;
    let docker = Dockerd::start(&scratch)?;
    let place = AgentPlace {
        work_dir: scratch.path().to_owned(),
        runtime_dir: scratch.path().join("run"),
        cgroups_root: scratch.name().to_owned(),
    };
    let places = [place];
    let config = configure(&scratch, &docker.socket(), &places, "")?;
    let config = ["--config", config.to_str().context("UTF-8")?];
    let report = doctor(&scratch, &config, &[])?;
    for name in [
        "root",
        "pid namespace",
        "cgroup namespace",
        "kernel",
        "kernel types",
        "cgroups",
        "docker",
    ] {
        assert_verdict(&report, name, "ok", "")?;
    }
    assert_verdict(&report, "probe", "ok", "ebpf")?;
    assert_verdict(&report, "docker cgroups", "ok", "cgroupfs")?;
    assert_verdict(&report, "mesos agent", "warning", "/run")?;
    assert_verdict(&report, "at work", "warning", "nobody")?;
    let watcher = Watcher::start(&scratch, &docker, &places, "")?;
    let report = doctor(&scratch, &config, &[])?;
    let process = format!("`compose-cleanup watch`, process {}", watcher.pid());
    assert_verdict(&report, "at work", "ok", &process)?;
    watcher.kill9()?;
    let report = doctor(&scratch, &config, &[])?;
    assert_verdict(&report, "at work", "warning", "nobody")?;

    let mut elsewhere = Command::new("unshare");
    elsewhere
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(bins::find("compose-cleanup")?)
        .args(["doctor"]);
    let run = Run::plain(&scratch, elsewhere)?;
    run.expect(REFUSED)?;
    ensure!(
        run.output.contains("refused  pid namespace") && run.output.contains("--pid=host"),
        "{}",
        run.output
    );
    Ok(())
}

/// Root without the rights that eBPF takes: which way of noticing deaths the daemon
/// would get, and why.
#[test]
fn hosts_without_ebpf() -> Result<()> {
    let scratch = Scratch::new("doctor-probe")?;
    let config = scratch.path().join("config.toml");
    for (probe, verdict, words, status) in [
        ("ebpf", "refused", "ebpf, which cannot run here", REFUSED),
        ("auto", "warning", "poll, by probe = \"auto\"", 0),
        ("poll", "warning", "poll, as configured", 0),
    ] {
        let run_dir = scratch.path().join("run");
        fs::write(
            &config,
            format!("probe = {probe:?}\nrun_dir = {:?}\n", run_dir.display()),
        )?;
        let mut command = Command::new("setpriv");
        command
            .args(["--bounding-set=-bpf,-perfmon,-sys_admin", "--inh-caps=-all"])
            .arg(bins::find("compose-cleanup")?)
            .args(["doctor", "--output", "json", "--config"])
            .arg(&config);
        let run = Run::plain(&scratch, command)?;
        let report: Value =
            serde_json::from_str(&run.output).with_context(|| run.output.clone())?;
        run.expect(status)?;
        assert_verdict(&report, "probe", verdict, words)?;
        assert_verdict(&report, "probe", verdict, "CAP_BPF and CAP_PERFMON")?;
        assert_verdict(&report, "kernel", verdict, "CAP_BPF and CAP_PERFMON")?;
        let remedy = &check(&report, "probe")?["remedy"];
        ensure!(
            remedy
                .as_str()
                .is_some_and(|remedy| remedy.contains("found seconds later")),
            "what it loses is not said: {remedy}"
        );
    }
    Ok(())
}

/// The units that start `clean` are such as systemd takes.
#[test]
fn systemd_units() -> Result<()> {
    let scratch = Scratch::new("units")?;
    let deploy = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy"));
    let mut verify = Command::new("systemd-analyze");
    verify.arg("verify");
    let program = bins::find("compose-cleanup")?;
    for unit in [
        "compose-cleanup-inbox.path",
        "compose-cleanup-inbox.service",
    ] {
        let text = fs::read_to_string(deploy.join(unit))?;
        // As if it were installed.
        let installed = "/usr/sbin/compose-cleanup";
        ensure!(
            unit.ends_with(".path") || text.contains(installed),
            "{unit}"
        );
        let text = text.replace(installed, &program.to_string_lossy());
        let path = scratch.path().join(unit);
        fs::write(&path, text)?;
        verify.arg(path);
    }
    if let Err(error) = Command::new("systemd-analyze").arg("--version").output() {
        println!("skipped: systemd-analyze: {error}");
        return Ok(());
    }
    command::output(&mut verify, TOOL)?;

    let mut tmpfiles = Command::new("systemd-tmpfiles");
    tmpfiles
        .arg("--create")
        .arg(format!("--root={}", scratch.path().display()))
        .arg(deploy.join("tmpfiles.d/compose-cleanup.conf"));
    command::output(&mut tmpfiles, TOOL)?;
    for dir in ["run/compose-cleanup", "run/compose-cleanup/inbox"] {
        let mode = fs::metadata(scratch.path().join(dir))?.permissions();
        let mode = std::os::unix::fs::PermissionsExt::mode(&mode);
        assert_eq!(mode & 0o7777, 0o700, "{dir}");
    }
    Ok(())
}
