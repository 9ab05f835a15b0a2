//! The hook module in real Mesos releases, in stand-ins for those that nobody has
//! any more, and with everything about its inbox that can be wrong.
//!
//! `CLEANUP_ALL_MESOS=1` runs all releases that there are.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::hook::inbox::{self, Request, hex};
use cleanup_tests::hook::stand_in::{self, StandIn};
use cleanup_tests::hook::{self, Run, harness, unused};
use cleanup_tests::mesos::agent::{Agent, AgentOptions, HookModule, Launcher};
use cleanup_tests::mesos::framework::Framework;
use cleanup_tests::mesos::runtime::{self, Runtime};
use cleanup_tests::mesos::spec::ExecutorSpec;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::{command, log, wait};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, mount_remount};
use serde_json::{Value, json};

/// One of each kind of interface and compiler.
const SOME: &[&str] = &["1.4.3", "1.6.1", "1.7.3", "1.8.1", "1.11.0"];
/// What the package index has.
const ALL: &[&str] = &[
    "1.4.3", "1.5.2", "1.5.3", "1.6.1", "1.6.2", "1.7.0", "1.7.1", "1.7.2", "1.7.3", "1.8.0",
    "1.8.1", "1.9.0", "1.10.0", "1.11.0",
];
const MESOS: &str = "1.11.0";
/// Compiled by GCC 8, which exports none of the host's own functions.
const WITHOUT_DEFAULTS: &str = "1.6.1";

const TOOL: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(60);

fn runtime(version: &str) -> Result<Runtime> {
    runtime::fetch(&[version])?
        .pop()
        .context("one version, one runtime")
}

fn wants_all() -> bool {
    std::env::var_os("CLEANUP_ALL_MESOS").is_some_and(|value| value == "1")
}

/// The harness with the shipped module and this inbox.
fn shipped(version: &str, inbox: &Path) -> Result<Command> {
    let mut command = harness(&runtime(version)?, hook::shipped()?)?;
    command.arg(format!("parameter=inbox_dir={}", inbox.display()));
    Ok(command)
}

fn assert_served(run: &Run, version: &str) -> Result<()> {
    run.expect(0)?;
    let said = run.said();
    ensure!(
        said.len() == 1 && said[0].starts_with(&format!("serves Mesos {version} (")),
        "{said:#?}"
    );
    Ok(())
}

// ------------------------------------------------------------- what is built

/// It exports the descriptor and nothing else, runs with glibc 2.17, stays
/// mapped, is small, and knows no test switch.
#[test]
fn the_shipped_build() -> Result<()> {
    let module = hook::shipped()?;
    let mut readelf = Command::new("readelf");
    readelf
        .args(["--wide", "--dyn-syms", "--dynamic"])
        .arg(module);
    let elf = command::output(&mut readelf, TOOL)?;

    let symbols = elf.lines().filter_map(|line| {
        // Num: Value Size Type Bind Vis Ndx Name
        let mut words = line.split_ascii_whitespace().skip(4);
        matches!(words.next(), Some("GLOBAL" | "WEAK")).then_some(())?;
        let index = words.nth(1)?;
        Some((index, words.next()?))
    });
    let (undefined, exported): (Vec<_>, Vec<_>) = symbols.partition(|(index, _)| *index == "UND");
    let exported: Vec<_> = exported.iter().map(|(_, name)| *name).collect();
    assert_eq!(exported, [hook::NAME]);
    ensure!(undefined.len() > 10, "{elf}");
    for (_, name) in undefined {
        let Some((_, version)) = name.split_once("@GLIBC_") else {
            continue;
        };
        let numbers = version.split('.').map(str::parse::<u32>);
        let numbers = numbers
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| name.to_owned())?;
        ensure!(
            numbers <= vec![2, 17],
            "{name}: add it to cleanup-hook/src/glibc.rs"
        );
    }
    let needed: Vec<_> = elf
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .collect();
    ensure!(needed.len() <= 3, "{needed:#?}");
    ensure!(elf.contains("NODELETE"), "{elf}");

    let bytes = fs::read(module)?;
    ensure!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
    let text = String::from_utf8_lossy(&bytes);
    ensure!(!text.contains(hook::SWITCH) && !text.contains(hook::COMPARE));
    let other = fs::read(hook::with_switches()?)?;
    ensure!(
        String::from_utf8_lossy(&other).contains(hook::SWITCH),
        "this test sees nothing"
    );
    Ok(())
}

/// As installed, it names the file that the package installs, and its parameters
/// are the defaults.
#[test]
fn modules_json() -> Result<()> {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../modules.json"))?;
    let mut manifest: Value = serde_json::from_str(&text)?;
    let file = &mut manifest["libraries"][0]["file"];
    assert_eq!(
        *file,
        "/usr/lib/compose-cleanup/libcompose_pod_cleanup_hook.so"
    );
    *file = json!(hook::shipped()?);
    let scratch = Scratch::new("hook-json")?;
    let dir = unused(&scratch, "modules");
    fs::create_dir(&dir)?;
    fs::write(dir.join("modules.json"), manifest.to_string())?;
    let mut command = harness(&runtime(MESOS)?, hook::shipped()?)?;
    // Nobody has died yet: the real inbox stays out of this.
    command
        .arg(format!("modules_dir={}", dir.display()))
        .arg("rounds=0");
    let run = Run::plain(&scratch, command)?;
    assert_served(&run, MESOS)?;
    ensure!(
        run.said()[0].ends_with("requests go to /run/compose-cleanup/inbox"),
        "{:?}",
        run.said()
    );
    Ok(())
}

// ------------------------------------------------------------- real releases

/// Every method of each release, with messages of three sizes, the host's own
/// functions or ours, loaded in both ways.
#[test]
fn every_release() -> Result<()> {
    let versions = if wants_all() { ALL } else { SOME };
    // Built and fetched once, then two at a time.
    hook::shipped()?;
    hook::with_switches()?;
    runtime::fetch(versions)?;
    let queue = Mutex::new(versions.iter());
    let work = || -> Result<()> {
        loop {
            let next = queue
                .lock()
                .map_err(|_| anyhow::anyhow!("another one failed"))?
                .next();
            let Some(version) = next else {
                return Ok(());
            };
            println!(
                "{}",
                release(version).with_context(|| format!("Mesos {version}"))?
            );
        }
    };
    thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic"))
    })
}

fn release(version: &str) -> Result<String> {
    let rounds = if wants_all() { 10_000 } else { 3_000 };
    let scratch = Scratch::new("hook-release")?;
    let runtime = runtime(version)?;
    let tmpfs = || inbox::make_tmpfs(&scratch, c"size=256m,mode=700");

    // The shipped module, by a manifest.
    let dir = tmpfs()?;
    let mut typical = shipped(version, &dir)?;
    typical.arg(format!("rounds={rounds}"));
    let typical = Run::of(&scratch, typical)?;
    assert_served(&typical, version)?;
    let served = typical.said()[0].to_owned();
    check_requests(&dir, rounds, version)?;

    // By a directory of descriptions.
    let (dir, modules) = (tmpfs()?, unused(&scratch, "modules"));
    fs::create_dir(&modules)?;
    let parameters = json!([{ "key": "inbox_dir", "value": dir }]);
    let library = json!({ "file": hook::shipped()?, "modules": [{ "name": hook::NAME, "parameters": parameters }] });
    fs::write(
        modules.join("hook.json"),
        json!({ "libraries": [library] }).to_string(),
    )?;
    let mut by_dir = harness(&runtime, hook::shipped()?)?;
    by_dir
        .arg(format!("modules_dir={}", modules.display()))
        .arg("rounds=20");
    assert_served(&Run::of(&scratch, by_dir)?, version)?;
    check_requests(&dir, 20, version)?;

    // Messages of a megabyte, and with nothing in them.
    let dir = tmpfs()?;
    let mut large = shipped(version, &dir)?;
    large.args(["size=large", "rounds=20"]);
    assert_served(&Run::of(&scratch, large)?, version)?;
    check_requests(&dir, 20, version)?;
    let dir = tmpfs()?;
    let mut empty = shipped(version, &dir)?;
    empty.args(["size=empty", "rounds=200"]);
    let empty = Run::of(&scratch, empty)?;
    empty.expect(0)?;
    let said = empty.said();
    ensure!(
        said.len() == 2 && said[1].ends_with("without a framework id"),
        "{said:#?}"
    );
    check_requests(&dir, 0, version)?;

    // Our own functions only, after a comparison with the host's.
    let dir = tmpfs()?;
    let mut own = harness(&runtime, hook::with_switches()?)?;
    own.arg(format!("parameter=inbox_dir={}", dir.display()))
        .args([&format!("rounds={rounds}"), "compare=yes"])
        .env("CLEANUP_HOOK_TEST_OWN", "1");
    let own = Run::of(&scratch, own)?;
    own.expect(0)?;
    ensure!(own.output.contains("(0 of 1"), "{}", own.output);
    let compared = own.value("compared")?;
    let expected = match version {
        WITHOUT_DEFAULTS => "0",
        _ if served.contains("of 11") => "10",
        _ => "9",
    };
    ensure!(
        compared == expected,
        "compared {compared}, not {expected}:\n{}",
        own.output
    );
    check_requests(&dir, rounds, version)?;

    // The shipped module takes no orders from the environment.
    let dir = tmpfs()?;
    let mut deaf = shipped(version, &dir)?;
    for switch in ["OWN", "PANIC", "VERSION", "LATE_VERSION"] {
        deaf.env(format!("{}{switch}", hook::SWITCH), "1.0.0");
    }
    let deaf = Run::of(&scratch, deaf)?;
    assert_served(&deaf, version)?;
    ensure!(
        deaf.said() == [&served.replace(&dir_of(&served)?, &dir.display().to_string())],
        "{:?}",
        deaf.said()
    );
    check_requests(&dir, 1, version)?;

    Ok(format!(
        "Mesos {version}: {rounds} rounds with the host's functions, {rounds} with our own; \
         {compared} compared, equal; {}",
        served.split(':').next().unwrap_or_default()
    ))
}

/// The inbox in "…: requests go to DIR".
fn dir_of(served: &str) -> Result<String> {
    let (_, dir) = served.split_once("requests go to ").context("an inbox")?;
    Ok(dir.to_owned())
}

fn check_requests(inbox: &Path, count: usize, version: &str) -> Result<()> {
    let requests = inbox::read(inbox)?;
    ensure!(
        requests.len() == count,
        "{} requests, not {count}",
        requests.len()
    );
    for request in &requests {
        ensure!(
            request.framework == b"fw-1"
                && request.executor == "executor one/é".as_bytes()
                && request.mesos == version,
            "{request:?}"
        );
    }
    Ok(())
}

// ------------------------------------------------------------------ refusals

/// A version that Mesos does not have, or that we do not know.
#[test]
fn versions_that_are_refused() -> Result<()> {
    let scratch = Scratch::new("hook-versions")?;
    let dir = inbox::make(&scratch)?;
    let runtime = runtime(MESOS)?;
    let run = |variable: &str, value: &str| {
        let mut command = harness(&runtime, hook::with_switches()?)?;
        command
            .arg(format!("parameter=inbox_dir={}", dir.display()))
            .env(format!("{}{variable}", hook::SWITCH), value);
        Run::plain(&scratch, command)
    };
    for version in ["", "garbage", "1.10.9", "1.11.1", "1.12.0", "1.11.0-rc1"] {
        let run = run("VERSION", version)?;
        run.expect(hook::LOAD_REFUSED)?;
        ensure!(
            run.said().is_empty(),
            "Mesos itself refuses: {:?}",
            run.said()
        );
    }
    for version in [
        "1.12.0",
        "2.0.0",
        "1.7.3",
        "1.1.0",
        "0.28.3",
        "1.11.0-rc1",
        "x",
    ] {
        let run = run("LATE_VERSION", version)?;
        run.expect(hook::LOAD_REFUSED)?;
        let said = run.said();
        ensure!(
            said.len() == 1
                && said[0].starts_with(&format!("refused: Mesos {version}: "))
                && said[0].contains("take"),
            "{said:#?}"
        );
    }
    assert_eq!(inbox::read(&dir)?, []);
    // What follows a + is the packager's.
    run("VERSION", "1.11.0+build")?.expect(0)?;
    assert_eq!(inbox::read(&dir)?[0].mesos, "1.11.0+build");
    Ok(())
}

#[test]
fn parameters() -> Result<()> {
    let scratch = Scratch::new("hook-parameters")?;
    let dir = inbox::make(&scratch)?;
    let inbox = format!("inbox_dir={}", dir.display());
    let runtime = runtime(MESOS)?;
    let run = |parameters: &[&str]| {
        let mut command = harness(&runtime, hook::shipped()?)?;
        command.args(
            parameters
                .iter()
                .map(|parameter| format!("parameter={parameter}")),
        );
        Run::plain(&scratch, command)
    };
    for (parameters, reason) in [
        (
            &["inbox=/tmp"][..],
            "parameter inbox is unknown (known: inbox_dir, mode, untested_abi)",
        ),
        (
            &["inbox_dir=relative"],
            "parameter inbox_dir is \"relative\", not an absolute path",
        ),
        (&["mode=on"], "parameter mode is \"on\", not"),
        (&["untested_abi="], "parameter untested_abi is \"\", not"),
        (&[&inbox, &inbox], "parameter inbox_dir is given twice"),
    ] {
        let run = run(parameters)?;
        run.expect(hook::INSTALL_REFUSED)?;
        let said = run.said();
        ensure!(
            said.len() == 1 && said[0].starts_with(&format!("refused: {reason}")),
            "{said:#?}"
        );
    }
    let off = run(&[&inbox, "mode=off"])?;
    assert_served(&off, MESOS)?;
    ensure!(off.said()[0].contains("switched off"), "{:?}", off.said());
    assert_eq!(inbox::read(&dir)?, []);
    assert_served(
        &run(&[&inbox, "mode=handoff", "untested_abi=accept"])?,
        MESOS,
    )?;
    assert_eq!(inbox::read(&dir)?.len(), 1);
    Ok(())
}

/// Old strings and 1.0 to 1.3 are refused unless the operator says otherwise;
/// hosts that do not fit together are refused whatever the operator says.
#[test]
fn stand_ins() -> Result<()> {
    const OLD: &str = "-D_GLIBCXX_USE_CXX11_ABI=0";
    let module = hook::shipped()?;
    let groups: Vec<Vec<String>> = [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
        .into_iter()
        .flat_map(|minor| {
            [
                vec![format!("-DMINOR={minor}")],
                vec![format!("-DMINOR={minor}"), OLD.into()],
            ]
        })
        .collect();
    let half = groups.len() / 2;
    thread::scope(|scope| {
        let threads = [&groups[..half], &groups[half..]].map(|groups| {
            scope.spawn(move || groups.iter().try_for_each(|options| group(module, options)))
        });
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic"))
    })?;

    let scratch = Scratch::new("hook-unfit")?;
    for (options, version, status, reason) in [
        (
            "-DMINOR=11 -DNO_STRINGS",
            "1.11.0",
            stand_in::NO_VERSION,
            "cannot be told",
        ),
        (
            "-DMINOR=11 -DNO_STRINGS -D_GLIBCXX_USE_CXX11_ABI=0",
            "1.11.0",
            stand_in::NO_VERSION,
            "cannot be told",
        ),
        (
            "-DMINOR=4 -DTASK_STATUS=136",
            "1.4.0",
            stand_in::INCOMPATIBLE,
            "its TaskStatus has 136 bytes, not 128",
        ),
        (
            "-DMINOR=1 -DTASK_STATUS=128",
            "1.1.0",
            stand_in::INCOMPATIBLE,
            "its TaskStatus has 128 bytes, not 120",
        ),
        (
            "-DMINOR=7",
            "1.8.0",
            stand_in::INCOMPATIBLE,
            "its hooks are not those of its version",
        ),
        (
            "-DMINOR=8",
            "1.7.0",
            stand_in::INCOMPATIBLE,
            "its hooks are not those of its version",
        ),
        (
            "-DMINOR=1",
            "1.2.0",
            stand_in::INCOMPATIBLE,
            "its hooks are not those of its version",
        ),
        (
            "-DMINOR=2",
            "1.1.0",
            stand_in::INCOMPATIBLE,
            "its hooks are not those of its version",
        ),
        (
            "-DMINOR=11 -DNO_REMOVE",
            "1.11.0",
            stand_in::INCOMPATIBLE,
            "it exports no HookManager::slaveRemoveExecutorHook",
        ),
        (
            "-DMINOR=0",
            "0.28.3",
            stand_in::INCOMPATIBLE,
            "only Mesos 1.0 to 1.11 is known",
        ),
        (
            "-DMINOR=11",
            "1.12.0",
            stand_in::INCOMPATIBLE,
            "only Mesos 1.0 to 1.11 is known",
        ),
        (
            "-DMINOR=11",
            "1.11.0-rc1",
            stand_in::INCOMPATIBLE,
            "its version is none of a release",
        ),
    ] {
        let options: Vec<_> = options.split(' ').collect();
        let host = StandIn::compile(&scratch, &options)?;
        let run = host.run(&scratch, module, version, &["untested_abi", "accept"])?;
        run.expect(status)
            .with_context(|| format!("{options:?} {version}"))?;
        let said = run.said();
        ensure!(
            said.len() == 1 && said[0].starts_with("refused: ") && said[0].contains(reason),
            "{options:?} {version}: {said:#?}"
        );
    }
    Ok(())
}

fn group(module: &Path, options: &[String]) -> Result<()> {
    let scratch = Scratch::new("hook-stand-in")?;
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let minor: u32 = options[0].rsplit('=').next().unwrap_or_default().parse()?;
    let version = format!("1.{minor}.0");
    let host = StandIn::compile(&scratch, &options)?;
    let is_tested = minor >= 4 && options.len() == 1;
    for (untested, is_served) in [
        (None, is_tested),
        (Some("refuse"), is_tested),
        (Some("accept"), true),
    ] {
        let dir = inbox::make_tmpfs(&scratch, c"size=64m,mode=700")?;
        let inbox = dir.display().to_string();
        let mut parameters = vec!["inbox_dir", &inbox];
        parameters.extend(
            untested
                .map(|value| ["untested_abi", value])
                .into_iter()
                .flatten(),
        );
        let run = host.run(&scratch, module, &version, &parameters)?;
        let context = || format!("{options:?} {untested:?}");
        if is_served {
            assert_served(&run, &version).with_context(context)?;
        } else {
            run.expect(stand_in::NOT_CREATED).with_context(context)?;
            ensure!(
                run.said().len() == 1 && run.said()[0].contains("untested_abi=accept"),
                "{:?}",
                run.said()
            );
        }
        let requests = inbox::read(&dir)?;
        assert_eq!(
            requests.len(),
            if is_served { stand_in::ROUNDS } else { 0 },
            "{}",
            context()
        );
        ensure!(
            requests
                .iter()
                .all(|request| request.executor == b"pod-1" && request.framework == b"fw-1")
        );
    }
    Ok(())
}

// ------------------------------------------------------------------- the job

/// The agent goes on, whatever happens in here.
#[test]
fn a_panic_is_survived() -> Result<()> {
    let scratch = Scratch::new("hook-panic")?;
    let dir = inbox::make(&scratch)?;
    let mut command = harness(&runtime(MESOS)?, hook::with_switches()?)?;
    command
        .arg(format!("parameter=inbox_dir={}", dir.display()))
        .arg("rounds=3")
        .env("CLEANUP_HOOK_TEST_PANIC", "1");
    let run = Run::of(&scratch, command)?;
    run.expect(0)?;
    let panics = run
        .said()
        .iter()
        .filter(|said| said.starts_with("panicked at "))
        .count();
    assert_eq!(panics, 3, "{}", run.output);
    assert_eq!(inbox::read(&dir)?, []);
    Ok(())
}

#[test]
fn ids_of_any_bytes() -> Result<()> {
    let scratch = Scratch::new("hook-ids")?;
    let runtime = runtime(MESOS)?;
    let run = |framework: &[u8], executor: &[u8], rounds: usize| -> Result<(Vec<Request>, Run)> {
        let dir = inbox::make(&scratch)?;
        let mut command = harness(&runtime, hook::shipped()?)?;
        command
            .arg(format!("parameter=inbox_dir={}", dir.display()))
            .arg(format!("framework={}", hex(framework)))
            .arg(format!("executor={}", hex(executor)))
            .arg(format!("rounds={rounds}"))
            .arg("only=remove");
        let run = Run::of(&scratch, command)?;
        run.expect(0)?;
        Ok((inbox::read(&dir)?, run))
    };
    let all: Vec<u8> = (0..=255).collect();
    let longest = vec![b'/'; 4096];
    for id in [
        b"\n".as_slice(),
        b"../../etc",
        b"\0",
        b"=end\nend\n",
        "é\u{202e}".as_bytes(),
        &all,
        &longest,
    ] {
        let (requests, _) = run(id, id, 1)?;
        ensure!(
            requests.len() == 1 && requests[0].framework == id && requests[0].executor == id,
            "{requests:?}"
        );
    }
    let too_long = vec![b'x'; 4097];
    for (framework, executor, reason) in [
        (
            b"f".as_slice(),
            &too_long[..],
            "with an executor id of more than 4 KiB",
        ),
        (&too_long, b"e", "with a framework id of more than 4 KiB"),
        (b"f", b"", "without an executor id"),
    ] {
        let (requests, run) = run(framework, executor, 5)?;
        assert_eq!(requests, []);
        let said = run.said();
        ensure!(said.len() == 2 && said[1].ends_with(reason), "{said:#?}");
    }
    Ok(())
}

/// Nothing of that reaches the agent, and it is told once.
#[test]
fn inboxes_that_take_nothing() -> Result<()> {
    let scratch = Scratch::new("hook-inbox")?;
    let check = |what: &str, inbox: &Path, reason: &str| -> Result<()> {
        let mut command = shipped(MESOS, inbox)?;
        command.arg("rounds=20");
        let run = Run::of(&scratch, command)?;
        run.expect(0).with_context(|| what.to_owned())?;
        let said = run.said();
        ensure!(
            said.len() == 2 && said[1].starts_with("cannot tell") && said[1].ends_with(reason),
            "{what}: {said:#?}"
        );
        Ok(())
    };
    check(
        "missing",
        &unused(&scratch, "missing"),
        "open: No such file or directory (os error 2)",
    )?;

    let file = unused(&scratch, "file");
    fs::write(&file, "")?;
    check("a file", &file, "open: Not a directory (os error 20)")?;

    // Nobody reads it: opening it would wait for ever.
    let pipe = unused(&scratch, "pipe");
    rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)?;
    check("a pipe", &pipe, "open: Not a directory (os error 20)")?;

    let real = inbox::make(&scratch)?;
    let link = unused(&scratch, "link");
    symlink(&real, &link)?;
    check("a link", &link, "open: Not a directory (os error 20)")?;

    let writable = inbox::make(&scratch)?;
    fs::set_permissions(&writable, fs::Permissions::from_mode(0o777))?;
    check(
        "writable by others",
        &writable,
        "not owned by root, or writable by others",
    )?;
    let foreign = inbox::make(&scratch)?;
    chown(&foreign, Some(65_534), None)?;
    check(
        "of another user",
        &foreign,
        "not owned by root, or writable by others",
    )?;

    let read_only = inbox::make_tmpfs(&scratch, c"size=1m,mode=700")?;
    mount_remount(&read_only, MountFlags::RDONLY, c"")?;
    check(
        "read-only",
        &read_only,
        "create: Read-only file system (os error 30)",
    )?;

    let no_inode = inbox::make_tmpfs(&scratch, c"size=1m,nr_inodes=1,mode=700")?;
    check(
        "no inode",
        &no_inode,
        "create: No space left on device (os error 28)",
    )?;

    // Room for the name, none for the content.
    let full = inbox::make_tmpfs(&scratch, c"size=4k,mode=700")?;
    fs::write(full.join("occupied.request"), "x")?;
    check(
        "full",
        &full,
        "write: No space left on device (os error 28)",
    )?;
    fs::remove_file(full.join("occupied.request"))?;

    for inbox in [real, writable, foreign, read_only, no_inode, full] {
        let names: Vec<_> = fs::read_dir(&inbox)?.flatten().collect();
        ensure!(names.is_empty(), "{names:?}");
    }
    Ok(())
}

/// Without a daemon, requests do not fill the host's memory; once there is room,
/// they go through again, and it is said how many did not.
#[test]
fn an_inbox_that_nobody_empties() -> Result<()> {
    const MOST: usize = 16_384;
    let scratch = Scratch::new("hook-unattended")?;
    let dir = inbox::make_tmpfs(&scratch, c"size=256m,mode=700")?;
    let mut command = shipped(MESOS, &dir)?;
    command.args([&format!("rounds={}", MOST + 100), "only=remove"]);
    let run = Run::plain(&scratch, command)?;
    run.expect(0)?;
    let said = run.said();
    ensure!(
        said.len() == 2 && said[1].ends_with("16384 requests lie there: nobody takes them"),
        "{said:#?}"
    );
    assert_eq!(inbox::read(&dir)?.len(), MOST);
    Ok(())
}

/// How long the agent waits for the hook. Printed, not judged: the machine may be
/// busy.
#[test]
fn latency() -> Result<()> {
    let scratch = Scratch::new("hook-latency")?;
    let mut words = Vec::new();
    // The last one only answers: the cost of the call itself. No measure of what a
    // busy machine adds, since it is over before anybody interrupts it.
    for (what, size, mode, rounds) in [
        ("typical", "typical", "handoff", 10_000),
        ("1 MB", "large", "handoff", 500),
        ("switched off", "typical", "off", 10_000),
    ] {
        let dir = inbox::make_tmpfs(&scratch, c"size=256m,mode=700")?;
        let mut command = shipped(MESOS, &dir)?;
        command.args([
            &format!("size={size}"),
            &format!("rounds={rounds}"),
            &format!("parameter=mode={mode}"),
            "times=yes",
        ]);
        let run = Run::plain(&scratch, command)?;
        assert_served(&run, MESOS)?;
        let requests = if mode == "off" { 0 } else { rounds };
        assert_eq!(inbox::read(&dir)?.len(), requests);
        let (p50, p99, p999, max) = (
            run.value("p50")?,
            run.value("p99")?,
            run.value("p999")?,
            run.value("max")?,
        );
        words.push(format!(
            "{what} ({rounds} calls): p50 {p50} p99 {p99} p99.9 {p999} max {max} µs"
        ));
    }
    println!("slaveRemoveExecutorHook, {}", words.join("; "));
    Ok(())
}

// ------------------------------------------------------------ with the agent

#[test]
fn an_agent_hands_over_linux() -> Result<()> {
    let versions = if wants_all() { SOME } else { &[MESOS] };
    for version in versions {
        agent_hands_over("hook-linux", version, AgentOptions::default())
            .with_context(|| format!("Mesos {version}"))?;
    }
    Ok(())
}

#[test]
fn an_agent_hands_over_posix() -> Result<()> {
    let options = AgentOptions {
        launcher: Launcher::Posix,
        isolation: "posix/cpu,posix/mem".to_owned(),
        ..AgentOptions::default()
    };
    agent_hands_over("hook-posix", MESOS, options)
}

/// An executor dies, and the request with its ids is in the inbox; an inbox that
/// is gone does no harm.
fn agent_hands_over(name: &str, version: &str, options: AgentOptions) -> Result<()> {
    let scratch = Scratch::new(name)?;
    let dir = inbox::make(&scratch)?;
    let hook = HookModule {
        library: hook::shipped()?.to_owned(),
        name: hook::NAME.to_owned(),
        parameters: vec![("inbox_dir".to_owned(), dir.display().to_string())],
    };
    let options = AgentOptions {
        hook: Some(hook),
        ..options
    };
    let agent = Agent::start(&scratch, &runtime(version)?, options)?;
    let framework = Framework::connect(agent.endpoint(), true)?;
    let die = |executor_id: &str| -> Result<()> {
        let spec = ExecutorSpec {
            executor_id: executor_id.to_owned(),
            command: "exit 3".to_owned(),
            ..ExecutorSpec::default()
        };
        let task = framework.launch(&spec)?;
        let update = framework.wait_terminal(&task, SOON)?;
        assert_eq!(update.reason.as_deref(), Some("REASON_EXECUTOR_TERMINATED"));
        Ok(())
    };
    for (index, executor_id) in ["pod one é", "pod-2"].into_iter().enumerate() {
        die(executor_id)?;
        let request = wait::until(SOON, "a request", || {
            inbox::read(&dir).ok()?.get(index).cloned()
        })
        .with_context(|| log::tail(&agent.log_path(), 30))?;
        assert_eq!(request.executor, executor_id.as_bytes());
        assert_eq!(
            Some(request.framework),
            framework.id().map(String::into_bytes)
        );
        assert_eq!(Some(request.agent_pid), agent.pid());
        assert_eq!(request.mesos, version);
    }

    let said = |count: usize| {
        wait::until(SOON, "a line of the module", || {
            let log = fs::read_to_string(agent.log_path()).ok()?;
            let said = log.lines().filter_map(|line| line.strip_prefix(hook::SAYS));
            let said: Vec<_> = said.map(str::to_owned).collect();
            (said.len() >= count).then_some(said)
        })
    };
    fs::remove_dir_all(&dir)?;
    die("pod-3")?;
    let lines = said(2)?;
    ensure!(
        lines[1].starts_with("cannot tell the clean-up daemon"),
        "{lines:#?}"
    );
    fs::DirBuilder::new().mode(0o700).create(&dir)?;
    die("pod-4")?;
    let lines = said(3)?;
    ensure!(
        lines.len() == 3 && lines[2].ends_with("takes requests again; lost meanwhile: 1"),
        "{lines:#?}"
    );
    let requests = inbox::read(&dir)?;
    ensure!(
        requests.len() == 1 && requests[0].executor == b"pod-4",
        "{requests:?}"
    );
    assert_eq!(agent.errors_in_log()?, Vec::<String>::new());
    Ok(())
}
