//! Clients that nobody wants: strangers, garbage, crowds, sleepers.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cleanup_tests::watcher::Watcher;
use cleanup_tests::{bins, wait};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Lonely, SOON, config, http, run, say, socket};

const NOBODY: &str = "65534";

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("chmod {mode:o} {}", path.display()))
}

/// The mode of the socket keeps strangers out; if somebody changes that, the
/// kernel's word about who they are does.
#[test]
fn strangers_are_refused() -> Result<()> {
    let Lonely { scratch, watcher } = &Lonely::start("strangers")?;
    let run_dir = scratch.path().join("run-dir");
    let socket = socket(scratch);
    let mode = |path: &Path| fs::metadata(path).map(|meta| meta.permissions().mode() & 0o7777);
    assert_eq!(mode(&socket)?, 0o600);
    assert_eq!(mode(&run_dir)?, 0o700);

    // A program that anybody may run, in a place that anybody may enter.
    let program = scratch.path().join("compose-cleanup");
    fs::copy(bins::find("compose-cleanup")?, &program)?;
    set_mode(&program, 0o755)?;
    set_mode(scratch.path(), 0o755)?;
    set_mode(&config(scratch), 0o644)?;
    let as_nobody = || {
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={NOBODY}"));
        command.args(["--clear-groups"]).arg(&program);
        command.arg("status").arg("--config").arg(config(scratch));
        run(command)
    };
    as_nobody()?.expect_line(1, &["control.sock", "only root may"]);
    set_mode(&run_dir, 0o755)?;
    as_nobody()?.expect_line(1, &["control.sock", "only root may"]);
    set_mode(&socket, 0o666)?;
    as_nobody()?.expect_line(1, &["refuses", "only root and the daemon's own user"]);
    say(scratch, &["status"])?.expect(0);
    ensure!(Path::new("/proc").join(watcher.pid().to_string()).exists());
    Ok(())
}

/// Whatever is sent is answered in kind or not at all, and the next one is served.
#[test]
fn garbage() -> Result<()> {
    let Lonely { scratch, watcher } = &Lonely::start("garbage")?;
    let long_head = format!(
        "GET /v1/status HTTP/1.1\r\nX: {}\r\n\r\n",
        "x".repeat(200_000)
    );
    let many = "X: y\r\n".repeat(1000);
    let many_heads = format!("GET /v1/status HTTP/1.1\r\n{many}\r\n");
    let long_path = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(10_000));
    for (request, status) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\xff\xfe\r\n\r\n"[..], "400"),
        (b"GET /v1/status\r\n\r\n", "400"),
        (long_head.as_bytes(), "431"),
        (many_heads.as_bytes(), "431"),
        (long_path.as_bytes(), "404"),
        (b"GET /v2/status HTTP/1.1\r\n\r\n", "404"),
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (
            b"POST /v1/status HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
            "405",
        ),
        (b"DELETE /v1/status HTTP/1.1\r\n\r\n", "405"),
    ] {
        let answer = http::send(scratch, request)?;
        let what = String::from_utf8_lossy(&request[..request.len().min(60)]);
        ensure!(
            answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{what}: {answer}"
        );
        ensure!(
            !answer.is_empty() || request.len() > 10_000,
            "{what}: nothing"
        );
    }
    let lost = http::get(scratch, "/v1/%1b%5b2J\u{202e}")?;
    ensure!(!lost.contains(['\x1b', '\u{202e}']), "{lost}");
    // A connection answers once, however much is asked.
    let twice = "GET /v1/status HTTP/1.1\r\n\r\n".repeat(2);
    let answer = http::send(scratch, twice.as_bytes())?;
    assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 1, "{answer}");
    say(scratch, &["status"])?.expect(0);
    watcher.ensure_printable_log()
}

/// A thousand connections that say nothing, say half of something, or do not read
/// what they asked for: few of them are kept, the daemon does its work, and when
/// they are gone, or their time is over, the next one is served.
#[test]
fn a_crowd_of_sleepers() -> Result<()> {
    const CROWD: usize = 1000;
    let Lonely { scratch, watcher } = &Lonely::start("crowd")?;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )?;
    let descriptors =
        || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{}/fd", watcher.pid()))?.count()) };
    let before = descriptors()?;
    let mut crowd = Vec::new();
    for number in 0..CROWD {
        let mut stream = http::connect(scratch)?;
        let words: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET /v1/sta",
            _ => b"GET /v1/status HTTP/1.1\r\n\r\n",
        };
        // It may have been closed at once.
        let _ = stream.write_all(words);
        crowd.push(stream);
    }
    let during = descriptors()?;
    ensure!(
        during < before + 100,
        "{before} descriptors became {during}"
    );
    // The loop hears of everything else meanwhile.
    let inbox = Watcher::inbox(scratch);
    fs::write(
        inbox.join("1.request"),
        "compose-cleanup-request 1\nframework_id=66\nexecutor_id=6e6f626f6479\n\
         time_ns=1\nagent_pid=1\nmesos=1.11.0\nend\n",
    )?;
    watcher.wait_message("the hook told of an executor")?;
    // The crowd stays; its time is over by itself.
    wait::try_until(SOON, "an answer beside a crowd", || {
        let answer = http::get(scratch, "/v1/status")?;
        Ok(answer.starts_with("HTTP/1.1 200 ").then_some(()))
    })?;
    drop(crowd);
    say(scratch, &["status"])?.expect(0);
    wait::try_until(SOON, "the connections to be closed", || {
        Ok((descriptors()? <= before + 2).then_some(()))
    })
}

/// One who asks and does not read has its time, and no more.
#[test]
fn a_client_that_never_reads() -> Result<()> {
    let Lonely { scratch, .. } = &Lonely::start("reader")?;
    let mut sleepers = Vec::new();
    for _ in 0..8 {
        let mut stream = http::connect(scratch)?;
        let many = "GET /v1/status HTTP/1.1\r\n\r\n".repeat(100);
        let _ = stream.write_all(many.as_bytes());
        sleepers.push(stream);
    }
    say(scratch, &["status"])?.expect(0);
    for stream in sleepers {
        let answer = http::read(stream)?;
        ensure!(answer.matches("HTTP/1.1 ").count() <= 1, "{answer}");
    }
    Ok(())
}

/// What a killed daemon left is replaced, what is something else is not, and the
/// daemon works without.
#[test]
fn what_is_in_the_sockets_place() -> Result<()> {
    let Lonely { scratch, watcher } = Lonely::start("place")?;
    let socket = socket(&scratch);
    watcher.kill9()?;
    ensure!(socket.exists(), "the file of a killed daemon stays");
    say(&scratch, &["status"])?.expect_line(3, &["no daemon runs", "compose-cleanup watch"]);

    let watcher = Lonely::watch(&scratch)?;
    say(&scratch, &["status"])?.expect(0);
    ensure!(watcher.stop()?.success());
    ensure!(!socket.exists(), "it goes with its daemon");

    fs::write(&socket, "mine")?;
    let watcher = Lonely::watch(&scratch)?;
    let warned = watcher.lines()?;
    let warned = warned.iter().find(|line| {
        let text = line["message"].as_str();
        text.is_some_and(|text| text.starts_with("no control socket"))
    });
    let error = warned.context("a warning")?["error"].to_string();
    ensure!(error.contains("not a socket"), "{error}");
    say(&scratch, &["status"])?.expect_line(4, &["control.sock", "its log"]);
    ensure!(watcher.stop()?.success());
    assert_eq!(fs::read_to_string(&socket)?, "mine");
    Ok(())
}
