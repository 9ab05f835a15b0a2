//! The processes of a **stand-in for a Mesos agent** (see
//! `cleanup_tests::mesos::standin`): the agent, which forks launcher helpers and
//! reaps them when it is told to, and the launcher helper, which starts an
//! executor and waits for it. Nothing here is Mesos.
//!
//! ```text
//! stand-in-agent --stand-in --port=PORT …    the agent
//! stand-in-agent launch                      the launcher helper, by the agent
//! ```

use std::collections::HashMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use cleanup_tests::mesos::standin::control::{DEADLINE, LONGEST};
use serde_json::{Value, json};

/// As in Mesos, flags of the helper are in its environment.
const RUNTIME_DIRECTORY: &str = "MESOS_CONTAINERIZER_RUNTIME_DIRECTORY";
const LAUNCH_INFO: &str = "MESOS_CONTAINERIZER_LAUNCH_INFO";

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let port = arguments
        .iter()
        .find_map(|argument| argument.strip_prefix("--port="));
    match (arguments.first().map(String::as_str), port) {
        (Some("launch"), _) => helper(),
        (Some("--stand-in"), Some(port)) => serve(port.parse().context("a port")?),
        _ => bail!("this is a part of the tests: see tests/src/mesos/standin"),
    }
}

/// One request after the other, until somebody kills it.
fn serve(port: u16) -> Result<ExitCode> {
    let listener = TcpListener::bind(("127.0.0.1", port)).context("binding the port")?;
    let mut helpers = HashMap::new();
    for stream in listener.incoming() {
        if let Err(error) = converse(stream?, &mut helpers) {
            eprintln!("stand-in-agent: {error:#}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn converse(mut stream: TcpStream, helpers: &mut HashMap<i64, Child>) -> Result<()> {
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let mut line = String::new();
    BufReader::new(stream.try_clone()?.take(LONGEST)).read_line(&mut line)?;
    let request: Value = serde_json::from_str(&line).context("a request")?;
    let answer = match answer(&request, helpers) {
        Ok(value) => json!({ "ok": value }),
        Err(error) => json!({ "error": format!("{error:#}") }),
    };
    stream.write_all(format!("{answer}\n").as_bytes())?;
    Ok(())
}

fn answer(request: &Value, helpers: &mut HashMap<i64, Child>) -> Result<Value> {
    match request["do"].as_str() {
        Some("nothing") => Ok(Value::Null),
        Some("launch") => {
            let helper = fork(request)?;
            let pid = i64::from(helper.id());
            helpers.insert(pid, helper);
            Ok(json!(pid))
        }
        Some("release") => {
            let mut pipe = named(request, helpers)?
                .stdin
                .take()
                .context("it was released already")?;
            // Nobody reads it: the helper has ended, which is told otherwise.
            let _ = pipe.write_all(b"\n");
            Ok(Value::Null)
        }
        Some("reap") => Ok(named(request, helpers)?
            .try_wait()?
            .map_or(Value::Null, |status| json!(status.into_raw()))),
        _ => bail!("an unknown request: {request}"),
    }
}

fn named<'a>(request: &Value, helpers: &'a mut HashMap<i64, Child>) -> Result<&'a mut Child> {
    let pid = &request["pid"];
    let helper = pid.as_i64().and_then(|pid| helpers.get_mut(&pid));
    helper.with_context(|| format!("no helper of this agent: {pid}"))
}

fn fork(request: &Value) -> Result<Child> {
    let cgroups: Vec<File> = texts(&request["cgroups"])
        .map(|path| {
            let file = OpenOptions::new().write(true).open(path);
            file.with_context(|| format!("opening {path}"))
        })
        .collect::<Result<_>>()?;
    let runtime_dir = request["runtime_dir"].as_str().context("runtime_dir")?;
    let mut command = Command::new(env::current_exe()?);
    command
        .arg0("mesos-containerizer")
        .arg("launch")
        .env(RUNTIME_DIRECTORY, runtime_dir)
        .env(LAUNCH_INFO, request["launch_info"].to_string())
        .stdin(Stdio::piped());
    let enter = move || {
        // As after the fork of a real agent: in the cgroup before anything runs.
        for cgroup in &cgroups {
            rustix::io::write(cgroup, b"0")?;
        }
        rustix::process::setsid()?;
        Ok(())
    };
    // SAFETY: the closure makes system calls and neither allocates nor takes a
    // lock, which is all that is allowed between fork and exec.
    unsafe { command.pre_exec(enter) };
    command.spawn().context("forking a helper")
}

/// The launcher helper: waits to be released, starts the executor, and ends after
/// it. It forwards no signals.
fn helper() -> Result<ExitCode> {
    let runtime_dir = env::var(RUNTIME_DIRECTORY).context(RUNTIME_DIRECTORY)?;
    let info: Value = serde_json::from_str(&env::var(LAUNCH_INFO).context(LAUNCH_INFO)?)?;
    let status_file = Path::new(&runtime_dir).join("status");
    // Empty while the executor runs.
    fs::write(&status_file, "").context("the status file")?;
    let mut byte = [0];
    if std::io::stdin().read(&mut byte)? == 0 {
        // The agent is gone before it could isolate the container.
        return Ok(ExitCode::FAILURE);
    }
    let arguments: Vec<&str> = texts(&info["arguments"]).collect();
    let (program, arguments) = arguments.split_first().context("arguments")?;
    let environment = info["environment"].as_object().context("environment")?;
    let environment = environment
        .iter()
        .filter_map(|(name, value)| Some((name, value.as_str()?)));
    let mut executor = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(environment)
        .current_dir(info["working_directory"].as_str().context("a sandbox")?)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("starting the executor {program}"))?;
    let status = executor.wait()?;
    fs::write(&status_file, status.into_raw().to_string()).context("the status file")?;
    Ok(ExitCode::SUCCESS)
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}
