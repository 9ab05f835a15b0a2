//! What the daemon exports, from a real daemon: that it counts what happened, that
//! it tells when the daemon hangs, and that nobody who connects can do more than
//! read. And that page, rules and dashboard name what it exports.

mod counts;
mod http;
mod named;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::openmetrics::Exposition;
use cleanup_tests::wait;
use cleanup_tests::watcher::Watcher;

const SOON: Duration = Duration::from_secs(90);

/// At any free port.
const LISTEN: &str = "metrics.listen = \"127.0.0.1:0\"";
const SERVED: &str = "metrics are served";

/// An answer: its status, its headers as they came, its body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// Where the daemon says that it listens.
fn address(watcher: &Watcher) -> Result<SocketAddr> {
    let line = watcher.wait_message_that(SERVED, |_| true)?;
    let address = line["address"].as_str().context("no address")?;
    address.parse().context("the address")
}

/// Sends these very bytes and reads until the other side closes.
fn exchange(address: SocketAddr, request: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(address).context("connecting")?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    stream.write_all(request).context("sending")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("receiving")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn ask(address: SocketAddr, method: &str, path: &str) -> Result<Answer> {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answer = exchange(address, request.as_bytes())?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("no end of the head")?;
    let status = head.strip_prefix("HTTP/1.1 ").context("not HTTP/1.1")?;
    let status = status.get(..3).context("no status")?.parse()?;
    Ok(Answer {
        status,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

fn scrape(address: SocketAddr) -> Result<Exposition> {
    let answer = ask(address, "GET", "/metrics")?;
    ensure!(answer.status == 200, "{}: {}", answer.head, answer.body);
    Exposition::parse(&answer.body).with_context(|| answer.body.clone())
}

/// Until the daemon says that it is well: it is not before its loop turns.
fn wait_well(address: SocketAddr) -> Result<()> {
    wait::try_until(SOON, "the daemon to be well", || {
        let answer = ask(address, "GET", "/healthz")?;
        let is_well = answer.status == 200;
        ensure!(is_well == (answer.body == "ok\n"), "{}", answer.body);
        Ok(is_well.then_some(()))
    })
}

/// Scrapes until a series has this value.
fn wait_value(
    address: SocketAddr,
    name: &str,
    labels: &[(&str, &str)],
    fits: impl Fn(f64) -> bool,
) -> Result<Exposition> {
    wait::try_until(SOON, format_args!("{name} {labels:?} to fit"), || {
        let found = scrape(address)?;
        Ok(fits(found.sum(name, labels)?).then_some(found))
    })
}
