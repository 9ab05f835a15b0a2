//! The listener, and those who connect to it.

use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context, Result, ensure};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::AgentPlace;

use super::*;

const BUSY: &str = "metrics cannot be served; trying on (cleanups do not need them)";

/// A daemon without Docker, and whose agent does not run: both may come later.
/// Dropped from top to bottom.
struct Bed {
    watcher: Watcher,
    scratch: Scratch,
}

impl Bed {
    fn start(name: &str, options: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let agent = AgentPlace::nowhere(&scratch);
        let docker = scratch.path().join("docker.sock");
        let watcher = Watcher::spawn(&scratch, &docker, &[agent], options)?;
        watcher.wait_message_that("ready", |_| true)?;
        Ok(Self { watcher, scratch })
    }
}

/// Two paths, two methods; everything else gets an answer that says so.
#[test]
fn what_is_asked_is_answered() -> Result<()> {
    let bed = Bed::start("answers", LISTEN)?;
    let address = address(&bed.watcher)?;
    let metrics = ask(address, "GET", "/metrics?name=x")?;
    assert_eq!(metrics.status, 200);
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    ensure!(metrics.head.contains(kind), "{}", metrics.head);
    let found = Exposition::parse(&metrics.body)?;
    assert_eq!(found.sum("compose_cleanup_docker_up", &[])?, 0.0);
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(found.sum("compose_cleanup_build_info", &version)?, 1.0);
    let head = ask(address, "HEAD", "/metrics")?;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    wait_well(address)?;
    for path in ["/", "/metric", "/metrics/", "/../metrics", "//metrics"] {
        let answer = ask(address, "GET", path)?;
        assert_eq!(answer.status, 404, "{path}");
        ensure!(answer.body.contains("/healthz"), "{}", answer.body);
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "NONSENSE"] {
        let answer = ask(address, method, "/metrics")?;
        assert_eq!(answer.status, 405, "{method}");
        ensure!(answer.head.contains("allow: get, head"), "{}", answer.head);
    }
    Ok(())
}

/// Who talks nonsense, or nothing, or does not stop talking, gets no more than that;
/// the others are served.
#[test]
fn garbage_and_silence_harm_nobody() -> Result<()> {
    let bed = Bed::start("garbage", LISTEN)?;
    let address = address(&bed.watcher)?;
    for nonsense in [
        &b"\x16\x03\x01\x02\x00\x01"[..],
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
    ] {
        let answer = exchange(address, nonsense)?;
        ensure!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
            "{answer}"
        );
    }
    // As many as are served at once say nothing, and as many more wait behind them.
    let silent: Vec<TcpStream> = (0..32)
        .map(|_| TcpStream::connect(address))
        .collect::<Result<_, _>>()?;
    scrape(address).context("behind those who say nothing")?;
    drop(silent);
    // A request line without an end.
    let mut endless = TcpStream::connect(address)?;
    endless.set_write_timeout(Some(SOON))?;
    let mut sent = 0_usize;
    while sent < 64 << 20 && endless.write_all(&[b'a'; 4096]).is_ok() {
        sent += 4096;
    }
    ensure!(sent < 64 << 20, "all of it was taken");
    scrape(address)?;
    ensure!(
        bed.watcher
            .lines()?
            .iter()
            .all(|line| line["level"] != "ERROR")
    );
    Ok(())
}

/// Somebody else has the port: said once, and the daemon works; when the port is
/// free, it is taken.
#[test]
fn a_port_in_use_is_waited_for() -> Result<()> {
    let other = TcpListener::bind("127.0.0.1:0")?;
    let address = other.local_addr()?;
    let bed = Bed::start("inuse", &format!("metrics.listen = \"{address}\""))?;
    let said = bed.watcher.wait_message_that(BUSY, |_| true)?;
    assert_eq!(said["address"], address.to_string(), "{said}");
    let advice = said["advice"].as_str().unwrap_or_default();
    ensure!(advice.contains("ss -ltnp"), "{said}");
    drop(other);
    assert_eq!(super::address(&bed.watcher)?, address);
    scrape(address)?;
    assert_eq!(bed.watcher.said(BUSY)?.len(), 1);
    Ok(())
}

/// The loop that drains the ring really hangs, since a file that it reads every
/// second has become a pipe that nobody writes to: the listener says so, and the
/// end of it as well.
#[test]
fn a_hung_loop_is_ill() -> Result<()> {
    let bed = Bed::start("hung", LISTEN)?;
    let address = address(&bed.watcher)?;
    wait_well(address)?;
    let hold = bed.scratch.path().join("run-dir/hold.json");
    let path = std::ffi::CString::new(hold.as_os_str().as_bytes())?;
    // SAFETY: the path is a C string that lives until the call is over.
    let made = unsafe { libc::mkfifo(path.as_ptr(), 0o600) };
    ensure!(made == 0, "mkfifo: {}", std::io::Error::last_os_error());
    let ill = wait::try_until(SOON, "the daemon to be ill", || {
        let answer = ask(address, "GET", "/healthz")?;
        Ok((answer.status == 503).then_some(answer))
    })?;
    ensure!(ill.body.contains("has not turned for"), "{}", ill.body);
    let age = scrape(address)?.sum("compose_cleanup_loop_age_seconds", &[])?;
    ensure!(age >= 3.0, "{age}");
    // For reading and writing: such an open waits for nobody.
    let mut pipe = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&hold)
        .context("opening the pipe")?;
    std::fs::remove_file(&hold)?;
    pipe.write_all(b"{\"state\":\"released\",\"at\":0}")?;
    drop(pipe);
    wait_well(address)?;
    ensure!(bed.watcher.stop()?.success());
    Ok(())
}
