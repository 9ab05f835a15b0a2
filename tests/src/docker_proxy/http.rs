//! As much of HTTP/1.1 as it takes to tell one request of a connection from the
//! next, and one answer from the next.

use std::io::{self, BufRead, Read, Write};

use serde_json::{Value, json};

use super::Kind;

/// Longer heads are no Docker client's.
const HEAD_MAX: usize = 64 << 10;

/// One whole request.
#[derive(Debug)]
pub struct Request {
    method: String,
    path: String,
    bytes: Vec<u8>,
}

impl Request {
    /// `None`: the client has ended the connection.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let Some(head) = read_head(from)? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut words = text.split([' ', '\r']);
        let (Some(method), Some(path)) = (words.next(), words.next()) else {
            return Err(invalid("a request line"));
        };
        let mut request = Self {
            method: method.to_owned(),
            path: path.to_owned(),
            bytes: head,
        };
        Body::of(&text, Body::None).pass(from, &mut request.bytes)?;
        Ok(Some(request))
    }

    /// As they came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What is asked for, and of which container.
    pub fn target(&self) -> (Kind, Option<String>) {
        let path = self.path.split('?').next().unwrap_or_default();
        let mut parts: Vec<&str> = path.split('/').skip(1).collect();
        // `/v1.41/…`, or without a version.
        if parts.first().is_some_and(|part| is_version(part)) {
            parts.remove(0);
        }
        let method = self.method.as_str();
        match (method, parts.as_slice()) {
            ("GET" | "HEAD", ["_ping"]) => (Kind::Ping, None),
            ("GET", ["events"]) => (Kind::Events, None),
            ("GET", ["containers", "json"]) => (Kind::List, None),
            ("GET", ["containers", id, "json"]) => (Kind::Inspect, Some((*id).to_owned())),
            ("POST", ["containers", id, "stop"]) => (Kind::Stop, Some((*id).to_owned())),
            ("POST", ["containers", id, "kill"]) => (Kind::Kill, Some((*id).to_owned())),
            ("DELETE", ["containers", id]) => (Kind::Remove, Some((*id).to_owned())),
            _ => (Kind::Other, None),
        }
    }
}

impl Request {
    /// Whether it is the question for what runs, or may run again by itself.
    pub fn asks_for_running(&self) -> bool {
        self.target().0 == Kind::List && self.path.contains("restarting")
    }
}

fn is_version(part: &str) -> bool {
    part.strip_prefix('v')
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The head of an answer; its body follows on the same connection.
#[derive(Debug)]
pub struct Answer {
    head: Vec<u8>,
    status: u16,
    body: Body,
}

impl Answer {
    pub fn read(from: &mut impl BufRead) -> io::Result<Self> {
        let head = read_head(from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let text = String::from_utf8_lossy(&head).into_owned();
        let status: u16 = text
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| invalid("a status line"))?;
        let body = match status {
            204 | 304 => Body::None,
            _ => Body::of(&text, Body::ToTheEnd),
        };
        Ok(Self { head, status, body })
    }

    pub fn head(&self) -> &[u8] {
        &self.head
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// The whole answer, with `change` made to its body, which is JSON.
    pub fn changed(
        &self,
        from: &mut impl BufRead,
        change: impl FnOnce(&mut Value),
    ) -> io::Result<Vec<u8>> {
        let mut passed = Vec::new();
        self.body.pass(from, &mut passed)?;
        let body = match self.body {
            Body::Chunked => unchunked(&passed)?,
            Body::None | Body::Length(_) | Body::ToTheEnd => passed,
        };
        let mut value = serde_json::from_slice(&body)?;
        change(&mut value);
        Ok(json_answer(self.status, &value.to_string()).into_bytes())
    }

    /// Passes the body on as it comes.
    pub fn pass_body(&self, from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
        self.body.pass(from, to)
    }
}

#[derive(Debug, Clone, Copy)]
enum Body {
    None,
    Length(u64),
    Chunked,
    /// As long as the connection.
    ToTheEnd,
}

impl Body {
    fn of(head: &str, otherwise: Self) -> Self {
        let mut found = otherwise;
        for line in head.lines().skip(1) {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                found = value.parse().map_or(found, Self::Length);
            }
            if name.eq_ignore_ascii_case("transfer-encoding")
                && value.eq_ignore_ascii_case("chunked")
            {
                return Self::Chunked;
            }
        }
        found
    }

    fn pass(self, from: &mut impl BufRead, to: &mut impl Write) -> io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Length(length) => pass_exactly(from, to, length),
            Self::ToTheEnd => io::copy(from, to).map(drop),
            Self::Chunked => loop {
                let mut line = Vec::new();
                from.read_until(b'\n', &mut line)?;
                let text = String::from_utf8_lossy(&line);
                let size = text.split([';', '\r']).next().unwrap_or_default();
                let size = u64::from_str_radix(size.trim(), 16)
                    .map_err(|_| invalid("the size of a chunk"))?;
                to.write_all(&line)?;
                // The line's end after it, or after the whole body.
                pass_exactly(from, to, size + 2)?;
                if size == 0 {
                    return Ok(());
                }
            },
        }
    }
}

fn pass_exactly(from: &mut impl BufRead, to: &mut impl Write, length: u64) -> io::Result<()> {
    if io::copy(&mut from.take(length), to)? < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// The data of a chunked body.
fn unchunked(mut body: &[u8]) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let mut line = String::new();
        body.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).map_err(|_| invalid("a chunk"))?;
        if size == 0 {
            return Ok(data);
        }
        let (chunk, rest) = body
            .split_at_checked(size)
            .ok_or_else(|| invalid("a chunk"))?;
        data.extend_from_slice(chunk);
        body = rest.get(2..).unwrap_or_default();
    }
}

/// An answer as dockerd refuses something.
pub fn refusal(status: u16, message: &str) -> String {
    json_answer(status, &json!({ "message": message }).to_string())
}

fn json_answer(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} Proxied\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Everything up to the empty line, with it.
fn read_head(from: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = from.take(HEAD_MAX as u64).read_until(b'\n', &mut head)?;
        if read == 0 && head.is_empty() {
            return Ok(None);
        }
        if read == 0 || head.len() > HEAD_MAX {
            return Err(invalid("a head"));
        }
    }
    Ok(Some(head))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Request {
        let mut bytes = text.as_bytes();
        Request::read(&mut bytes)
            .expect("no error")
            .expect("a request")
    }

    #[test]
    fn requests_are_told_apart() {
        for (line, kind, container) in [
            ("GET /containers/json?all=true", Kind::List, None),
            ("GET /v1.41/containers/abc/json", Kind::Inspect, Some("abc")),
            ("POST /containers/abc/stop?t=2", Kind::Stop, Some("abc")),
            ("GET /events?since=1", Kind::Events, None),
            ("GET /_ping", Kind::Ping, None),
            ("POST /volumes/create", Kind::Other, None),
        ] {
            let request = request(&format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n"));
            assert_eq!(
                request.target(),
                (kind, container.map(str::to_owned)),
                "{line}"
            );
        }
    }

    #[test]
    fn two_answers_of_one_connection_are_told_apart() -> io::Result<()> {
        let first = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let second = "HTTP/1.1 204 No Content\r\n\r\n";
        let third = "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno";
        let all = [first, second, third].concat();
        let mut from = all.as_bytes();
        for (whole, status) in [(first, 200), (second, 204), (third, 404)] {
            let answer = Answer::read(&mut from)?;
            let mut passed = answer.head().to_vec();
            answer.pass_body(&mut from, &mut passed)?;
            assert_eq!(answer.status(), status);
            assert_eq!(String::from_utf8_lossy(&passed), whole);
        }
        assert!(from.is_empty());
        Ok(())
    }

    #[test]
    fn a_changed_answer_is_whole() -> io::Result<()> {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunked = format!("{head}4\r\n{{\"a\"\r\n3\r\n:1}}\r\n0\r\n\r\n");
        let plain = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}";
        for whole in [chunked.as_str(), plain] {
            let mut from = whole.as_bytes();
            let answer = Answer::read(&mut from)?;
            let changed = answer.changed(&mut from, |body| body["a"] = json!(22))?;
            let changed = String::from_utf8_lossy(&changed).into_owned();
            assert!(changed.contains("Content-Length: 8\r\n"), "{changed}");
            assert!(changed.ends_with("\r\n\r\n{\"a\":22}"), "{changed}");
            assert!(from.is_empty());
        }
        Ok(())
    }
}
