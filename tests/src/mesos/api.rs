//! The v1 HTTP APIs of master and agent: calls, and streams of events.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const CALL: Duration = Duration::from_secs(10);
const STREAM_ID: &str = "Mesos-Stream-Id";

/// The API of schedulers, on the master.
pub const SCHEDULER: &str = "/master/api/v1/scheduler";
/// The API of executors, on the agent.
pub const EXECUTOR: &str = "/slave(1)/api/v1/executor";
/// The API of operators, on the agent.
pub const AGENT: &str = "/slave(1)/api/v1";

/// `GET http://ENDPOINT PATH`, an answer of JSON.
pub fn get(endpoint: &str, path: &str, limit: Duration) -> Result<Value> {
    let url = format!("http://{endpoint}{path}");
    let mut answer = client(limit)
        .get(&url)
        .call()
        .with_context(|| url.clone())?;
    let status = answer.status();
    let text = answer
        .body_mut()
        .read_to_string()
        .with_context(|| url.clone())?;
    ensure!(status.is_success(), "{url}: {status}: {text}");
    serde_json::from_str(&text).with_context(|| format!("{url}: {text}"))
}

/// Sends a call that is answered with no more than "accepted".
pub fn call(endpoint: &str, path: &str, stream: Option<&str>, body: &Value) -> Result<()> {
    // Mesos takes no `; charset=` in it.
    let mut request = client(CALL)
        .post(format!("http://{endpoint}{path}"))
        .header("Content-Type", "application/json");
    if let Some(stream) = stream {
        request = request.header(STREAM_ID, stream);
    }
    let what = || format!("call {} to {endpoint}", body["type"]);
    let mut answer = request.send(body.to_string()).with_context(what)?;
    let status = answer.status();
    let text = answer.body_mut().read_to_string().unwrap_or_default();
    ensure!(status.is_success(), "{}: {status}: {text}", what());
    Ok(())
}

/// Sends a call that is answered with JSON, or with nothing: then null.
pub fn ask(endpoint: &str, path: &str, body: &Value, limit: Duration) -> Result<Value> {
    let what = || format!("call {} to {endpoint}", body["type"]);
    let mut answer = client(limit)
        .post(format!("http://{endpoint}{path}"))
        .header("Content-Type", "application/json")
        .header("Accept", "application/json")
        .send(body.to_string())
        .with_context(what)?;
    let status = answer.status();
    let text = answer.body_mut().read_to_string().with_context(what)?;
    ensure!(status.is_success(), "{}: {status}: {text}", what());
    if text.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).with_context(|| format!("{}: {text}", what()))
}

fn client(limit: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(limit))
        // A message comes with it.
        .http_status_as_error(false)
        // Everything is on this host.
        .proxy(None)
        .build()
        .into()
}

/// The events that a SUBSCRIBE call is answered with; an iterator that ends with
/// the connection.
#[derive(Debug)]
pub struct Subscription {
    body: Chunked,
    connection: TcpStream,
    stream: Option<String>,
}

impl Subscription {
    /// Subscribes. `silence` is for how long no event may come; without it, the
    /// stream has to be ended by [`Self::closer`] or the other side.
    pub fn open(
        endpoint: &str,
        path: &str,
        body: &Value,
        silence: Option<Duration>,
    ) -> Result<Self> {
        let mut connection = TcpStream::connect(endpoint).with_context(|| endpoint.to_owned())?;
        connection.set_write_timeout(Some(CALL))?;
        connection.set_read_timeout(Some(CALL))?;
        let body = body.to_string();
        write!(
            connection,
            "POST {path} HTTP/1.1\r\nHost: {endpoint}\r\nContent-Type: application/json\r\n\
             Accept: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut reader = BufReader::new(connection.try_clone()?);
        let status = read_line(&mut reader)?;
        let headers = read_headers(&mut reader)?;
        if !status.contains(" 200 ") {
            let length = headers
                .get("content-length")
                .and_then(|length| length.parse().ok());
            let mut text = String::new();
            reader.take(length.unwrap_or(0)).read_to_string(&mut text)?;
            anyhow::bail!("SUBSCRIBE at {endpoint}{path}: {status}: {text}");
        }
        ensure!(
            headers
                .get("transfer-encoding")
                .is_some_and(|encoding| encoding == "chunked"),
            "a stream of events is chunked"
        );
        connection.set_read_timeout(silence)?;
        Ok(Self {
            body: Chunked { reader, left: 0 },
            connection,
            stream: headers.get(&STREAM_ID.to_ascii_lowercase()).cloned(),
        })
    }

    /// To be sent with further calls.
    pub fn stream_id(&self) -> Option<&str> {
        self.stream.as_deref()
    }

    pub fn closer(&self) -> Result<Closer> {
        Ok(Closer(self.connection.try_clone()?))
    }

    fn event(&mut self) -> io::Result<Value> {
        // RecordIO: the length as a line of text, then the record.
        let length = read_line(&mut self.body)?;
        let length = length.parse().map_err(io::Error::other)?;
        let mut record = vec![0; length];
        self.body.read_exact(&mut record)?;
        Ok(serde_json::from_slice(&record)?)
    }
}

impl Iterator for Subscription {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.event().ok()
    }
}

/// Ends a [`Subscription`] from another thread.
#[derive(Debug)]
pub struct Closer(TcpStream);

impl Closer {
    pub fn close(&self) {
        // Closed already is as good.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// The body of a chunked HTTP message.
#[derive(Debug)]
struct Chunked {
    reader: BufReader<TcpStream>,
    /// Of the current chunk.
    left: u64,
}

impl Chunked {
    /// Makes bytes available; none are left at the end of the body.
    fn advance(&mut self) -> io::Result<()> {
        if self.left == 0 {
            let size = read_line(&mut self.reader)?;
            // The end of the previous chunk's data.
            let size = if size.is_empty() {
                read_line(&mut self.reader)?
            } else {
                size
            };
            self.left = u64::from_str_radix(&size, 16).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl Read for Chunked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.advance()?;
        let count = (&mut self.reader).take(self.left).read(buffer)?;
        self.left -= count as u64;
        Ok(count)
    }
}

/// A line without its end; the end of the stream is an error.
fn read_line(reader: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        reader.read_exact(&mut byte)?;
        match byte {
            [b'\n'] => break,
            [b'\r'] => {}
            [byte] => line.push(byte),
        }
    }
    String::from_utf8(line).map_err(io::Error::other)
}

/// Names in lower case.
fn read_headers(reader: &mut impl BufRead) -> io::Result<BTreeMap<String, String>> {
    let mut headers = BTreeMap::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Ok(headers);
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
}
