//! What the daemon counts of itself, over HTTP.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::openmetrics::Exposition;
use cleanup_tests::watcher::Watcher;

/// For the daemon's configuration: any free port. A table, so it comes last.
pub(super) const LISTEN: &str = "[metrics]\nlisten = \"127.0.0.1:0\"";
/// A busy host has a busy daemon.
const LIMIT: Duration = Duration::from_secs(30);

/// Where a daemon with [`LISTEN`] tells.
pub(super) fn address(watcher: &Watcher) -> Result<SocketAddr> {
    let line = watcher.wait_message("metrics are served")?;
    let address = line["address"].as_str().context("no address")?;
    address.parse().context("the address of the metrics")
}

pub(super) fn scrape(address: SocketAddr) -> Result<Exposition> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).context("the metrics")?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .context("asking for the metrics")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("the answer with the metrics")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no whole answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "the metrics: {head}");
    Exposition::parse(body)
}
