//! A stand-in for dce-go: a Mesos executor whose task is a pod of Docker
//! containers, started by docker-compose and then owned by dockerd.
//!
//! Like dce-go it watches the pod through short-lived children in its own cgroup,
//! stops the pod when its task is to be killed, and leaves it behind in every
//! other case. Docker is where `DOCKER_HOST` says.

mod driver;
mod options;
mod pods;

use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use driver::Driver;
use options::Options;
use pods::RunningPod;

const MONITOR: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let driver = Driver::start()?;
    let mut executor = Executor {
        sandbox: variable("MESOS_DIRECTORY")?,
        options,
        driver,
        task: None,
        pod: None,
        exit_at: None,
    };
    executor.run()
}

pub fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("the environment variable {name}"))
}

struct Executor {
    sandbox: String,
    options: Options,
    driver: Driver,
    task: Option<String>,
    pod: Option<RunningPod>,
    exit_at: Option<Instant>,
}

impl Executor {
    fn run(&mut self) -> Result<()> {
        loop {
            let now = Instant::now();
            let pause = match self.exit_at {
                Some(exit_at) if exit_at <= now => return Ok(()),
                Some(exit_at) => MONITOR.min(exit_at - now),
                None => MONITOR,
            };
            match self.driver.events().recv_timeout(pause) {
                Ok(event) => {
                    if !self.handle(&event)? {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(pod) = &self.pod {
                        pod.watch();
                    }
                }
                // The agent is gone for good.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// False when it is time to go.
    fn handle(&mut self, event: &Value) -> Result<bool> {
        match event["type"].as_str() {
            Some("LAUNCH") => self.launch(&event["launch"]["task"])?,
            Some("KILL") => {
                self.kill()?;
                return Ok(false);
            }
            // No word to the pod: that is how dce-go takes it.
            Some("SHUTDOWN") => return Ok(false),
            _ => {}
        }
        Ok(true)
    }

    fn launch(&mut self, task: &Value) -> Result<()> {
        let id = task["task_id"]["value"]
            .as_str()
            .context("a task has an id")?
            .to_owned();
        self.driver.task(task);
        self.driver.update(&id, "TASK_STARTING")?;
        if self.options.pod {
            self.pod = Some(RunningPod::up(
                &self.options,
                Path::new(&self.sandbox),
                &id,
            )?);
        }
        self.driver.update(&id, "TASK_RUNNING")?;
        self.task = Some(id);
        self.exit_at = self.options.exit_after.map(|after| Instant::now() + after);
        if self.options.oom {
            take_all_memory();
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        if let Some(pod) = self.pod.take() {
            pod.stop()?;
        }
        if let Some(task) = self.task.take() {
            self.driver.update(&task, "TASK_KILLED")?;
            self.driver.wait_acknowledged()?;
        }
        Ok(())
    }
}

/// Ends with SIGKILL from the kernel, if there is a limit.
fn take_all_memory() {
    const STEP: usize = 1 << 20;
    let mut taken = Vec::new();
    loop {
        // Other than 0, so that each page is written to.
        taken.push(vec![1_u8; STEP]);
        std::hint::black_box(&taken);
    }
}
