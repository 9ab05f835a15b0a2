//! How a test speaks to the process of its stand-in agent: one JSON value a
//! line, there and back, over the port that the agent claims to listen on.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// For a question and its answer.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// No request is longer, in bytes.
pub const LONGEST: u64 = 1 << 20;

/// Forks a launcher helper, which enters `cgroups` (files called `cgroup.procs`)
/// before it runs, and then waits to be released. The answer is its pid.
pub fn launch(cgroups: &[String], runtime_dir: &str, launch_info: &Value) -> Value {
    json!({
        "do": "launch",
        "cgroups": cgroups,
        "runtime_dir": runtime_dir,
        "launch_info": launch_info,
    })
}

/// Lets a helper start its executor.
pub fn release(pid: i32) -> Value {
    json!({ "do": "release", "pid": pid })
}

/// Reaps a helper. The answer is its raw wait status, null while it lives.
pub fn reap(pid: i32) -> Value {
    json!({ "do": "reap", "pid": pid })
}

/// Asks and returns the answer's `ok`.
pub fn ask(agent: SocketAddr, request: &Value) -> Result<Value> {
    let mut stream = TcpStream::connect_timeout(&agent, DEADLINE)
        .with_context(|| format!("the stand-in agent at {agent}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .with_context(|| format!("the stand-in agent's answer to {request}"))?;
    let mut answer: Value =
        serde_json::from_str(&line).with_context(|| format!("an answer: {line:?}"))?;
    match answer["error"].as_str() {
        Some(error) => bail!("the stand-in agent, asked {request}: {error}"),
        None => Ok(answer["ok"].take()),
    }
}

/// Whether somebody listens.
pub fn answers(agent: SocketAddr) -> bool {
    ask(agent, &json!({ "do": "nothing" })).is_ok()
}
