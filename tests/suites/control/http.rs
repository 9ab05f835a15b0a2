//! A client that does as it likes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use cleanup_tests::scratch::Scratch;

use super::{SOON, socket};

/// Connects; what is sent and read has a limit.
pub fn connect(scratch: &Scratch) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket(scratch)).context("connecting")?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    Ok(stream)
}

/// Sends these bytes and returns all that comes back until the other end closes:
/// nothing, if it closed at once.
pub fn send(scratch: &Scratch, request: &[u8]) -> Result<String> {
    let mut stream = connect(scratch)?;
    // It may have heard enough before the end.
    match stream.write_all(request) {
        Err(error) if !is_closed(error.kind()) => return Err(error.into()),
        _ => {}
    }
    read(stream)
}

pub fn read(mut stream: UnixStream) -> Result<String> {
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(count) => answer.extend(&part[..count]),
            Err(error) if is_closed(error.kind()) => break,
            Err(error) => return Err(error).context("reading the answer"),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

pub fn get(scratch: &Scratch, path: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    send(scratch, request.as_bytes())
}

pub fn post(scratch: &Scratch, path: &str, body: &serde_json::Value) -> Result<String> {
    let body = body.to_string();
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    send(scratch, request.as_bytes())
}

fn is_closed(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}
