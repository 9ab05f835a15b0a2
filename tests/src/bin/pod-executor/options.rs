//! The command line.

use std::time::Duration;

use anyhow::{Context, Result, bail};

pub const USAGE: &str = "\
usage: pod-executor [OPTION]...

A Mesos executor that runs a pod of containers with docker-compose, and watches it
until it is killed.

  --services N          number of containers (default 1)
  --ignore-term K       the first K of them ignore SIGTERM
  --untagged K          the last K of them carry no labels
  --restart POLICY      Docker's restart policy, such as always
  --no-cgroup-parent    leave the containers' cgroup to Docker
  --no-pod              no containers at all
  --exit-after MS       exit with 0, that long after the pod is up
  --oom                 once the pod is up, take memory until killed for it";

#[derive(Debug)]
pub struct Options {
    pub services: u32,
    pub ignore_term: u32,
    pub untagged: u32,
    pub restart: Option<String>,
    pub cgroup_parent: bool,
    pub pod: bool,
    pub exit_after: Option<Duration>,
    pub oom: bool,
}

impl Options {
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            services: 1,
            ignore_term: 0,
            untagged: 0,
            restart: None,
            cgroup_parent: true,
            pod: true,
            exit_after: None,
            oom: false,
        };
        while let Some(option) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .with_context(|| format!("{option} wants a value"))
            };
            match option.as_str() {
                "--services" => options.services = value()?.parse()?,
                "--ignore-term" => options.ignore_term = value()?.parse()?,
                "--untagged" => options.untagged = value()?.parse()?,
                "--restart" => options.restart = Some(value()?),
                "--no-cgroup-parent" => options.cgroup_parent = false,
                "--no-pod" => options.pod = false,
                "--exit-after" => {
                    options.exit_after = Some(Duration::from_millis(value()?.parse()?));
                }
                "--oom" => options.oom = true,
                _ => bail!("what is {option}?\n{USAGE}"),
            }
        }
        Ok(options)
    }
}
