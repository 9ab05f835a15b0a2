//! A stop request without the daemon, over a connection that is warm already.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::Dockerd;
use cleanup_tests::wait;
use rustix::time::{ClockId, clock_gettime};

/// The container may take its grace period.
const LIMIT: Duration = Duration::from_secs(60);
const REST: Duration = Duration::from_millis(100);
/// No answer to what is asked here is longer.
const LONGEST: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Direct {
    stream: UnixStream,
}

impl Direct {
    pub(super) fn connect(docker: &Dockerd) -> Result<Self> {
        let stream = UnixStream::connect(docker.socket()).context("Docker's socket")?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self { stream })
    }

    /// Stops a container; when the request began, CLOCK_MONOTONIC in seconds.
    pub(super) fn stop(&mut self, id: &str) -> Result<f64> {
        self.warm()?;
        wait::holds(REST, "Docker at rest", || true)?;
        let began = clock_gettime(ClockId::Monotonic);
        self.stop_warm(id)?;
        Ok(began.tv_sec as f64 + began.tv_nsec as f64 / 1e9)
    }

    /// Docker is ready for a request of this connection.
    pub(super) fn warm(&mut self) -> Result<()> {
        // Docker has nothing to read of a new connection, either, and is at rest then as it
        // is when an executor dies.
        self.exchange("GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n", "\r\n\r\nOK")
            .map(drop)
    }

    /// Stops a container.
    pub(super) fn stop_warm(&mut self, id: &str) -> Result<()> {
        let request = format!(
            "POST /containers/{id}/stop?t=10 HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n"
        );
        let answer = self.exchange(&request, "\r\n\r\n")?;
        ensure!(answer.starts_with("HTTP/1.1 204 "), "a stop: {answer}");
        Ok(())
    }

    /// `end`: of the whole answer.
    fn exchange(&mut self, request: &str, end: &str) -> Result<String> {
        self.stream
            .write_all(request.as_bytes())
            .context("asking Docker")?;
        let mut answer = Vec::new();
        while !answer.ends_with(end.as_bytes()) {
            let mut piece = [0; 4096];
            let read = self.stream.read(&mut piece).context("Docker's answer")?;
            answer.extend_from_slice(&piece[..read]);
            ensure!(
                read > 0 && answer.len() < LONGEST,
                "no whole answer: {:?}",
                String::from_utf8_lossy(&answer)
            );
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}
