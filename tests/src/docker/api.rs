//! Docker's API without its client: a hundredth of the work, for those who start
//! containers by the thousand.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Dockerd, IMAGE};
use crate::process::Process;

const CALL: Duration = Duration::from_secs(60);
/// What every dockerd since 17.05 speaks.
const VERSION: &str = "/v1.29";

/// A container to be made of [`IMAGE`].
#[derive(Debug, Clone, Default)]
pub struct NewContainer {
    /// For `sh -c`.
    pub script: String,
    /// Docker's own choice if unset.
    pub cgroup_parent: Option<String>,
    pub labels: Vec<(String, String)>,
    /// Docker's restart policy; none if unset.
    pub restart: Option<String>,
}

impl Dockerd {
    /// Makes and starts a container; its full id.
    pub fn start_container(&self, new: &NewContainer) -> Result<String> {
        let NewContainer {
            script,
            cgroup_parent,
            labels,
            restart,
        } = new;
        let labels: serde_json::Map<String, Value> = labels
            .iter()
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect();
        let body = json!({
            "Image": IMAGE,
            "Cmd": ["sh", "-c", script],
            "Labels": labels,
            "NetworkDisabled": true,
            "HostConfig": {
                "NetworkMode": "none",
                "CgroupParent": cgroup_parent.as_deref().unwrap_or_default(),
                "RestartPolicy": { "Name": restart.as_deref().unwrap_or_default() },
            },
        });
        let made = self.call("POST", "/containers/create", Some(&body))?;
        let id = made["Id"].as_str().context("a container has an id")?;
        self.call("POST", &format!("/containers/{id}/start"), None)?;
        Ok(id.to_owned())
    }

    /// The first process of a running container.
    pub fn container_process(&self, id: &str) -> Result<Process> {
        let about = self.call("GET", &format!("/containers/{id}/json"), None)?;
        let pid = about["State"]["Pid"].as_i64().unwrap_or_default();
        let pid = i32::try_from(pid).context("a pid")?;
        ensure!(pid > 0, "container {id} does not run: {}", about["State"]);
        Process::of(pid).with_context(|| format!("process {pid} of container {id} is gone"))
    }

    /// Removes a container, running or not; that it is not there is no error.
    pub fn remove_container(&self, id: &str) -> Result<()> {
        let path = format!("/containers/{id}?force=1&v=1");
        match self.request("DELETE", &path, None)? {
            (200..300 | 404, _) => Ok(()),
            (status, answer) => bail!("DELETE {path}: {status}: {answer}"),
        }
    }

    /// Full ids of the running containers, as [`Dockerd::running`].
    pub fn running_now(&self) -> Result<Vec<String>> {
        let list = self.call("GET", "/containers/json", None)?;
        let ids = list.as_array().context("a list")?.iter();
        Ok(ids
            .filter_map(|one| one["Id"].as_str().map(str::to_owned))
            .collect())
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let (status, answer) = self.request(method, path, body)?;
        ensure!(
            (200..400).contains(&status),
            "{method} {path}: {status}: {answer}"
        );
        Ok(answer)
    }

    /// Status and answer; null for an answer that is none.
    fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let what = || format!("{method} {path}");
        let mut stream = UnixStream::connect(self.socket()).with_context(what)?;
        stream.set_read_timeout(Some(CALL))?;
        stream.set_write_timeout(Some(CALL))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        // HTTP/1.0: the answer comes in one piece and ends with the connection.
        let request = format!(
            "{method} {VERSION}{path} HTTP/1.0\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).with_context(what)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).with_context(what)?;
        parse(&String::from_utf8_lossy(&answer)).with_context(what)
    }
}

fn parse(answer: &str) -> Result<(u16, Value)> {
    let (head, body) = answer.split_once("\r\n\r\n").context("no whole answer")?;
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    Ok((status, serde_json::from_str(body).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_status_and_perhaps_a_value() -> Result<()> {
        let made = "HTTP/1.0 201 Created\r\nDate: now\r\n\r\n{\"Id\":\"f00\"}\n";
        assert_eq!(parse(made)?, (201, json!({ "Id": "f00" })));
        assert_eq!(
            parse("HTTP/1.0 204 No Content\r\n\r\n")?,
            (204, Value::Null)
        );
        assert!(parse("HTTP/1.0 200 OK\r\n").is_err());
        Ok(())
    }
}
