//! Containers that Docker says run, and of which nothing does.
//!
//! Docker 20.10, killed in the middle of a container's restart and started again,
//! may say that it restarts (`Restarting`, `Pid` 0), do nothing about it, and refuse
//! to stop it: "tried to kill container, but did not receive an exit event". Docker's
//! word alone would keep the case of such a pod open for good.

use std::time::Duration;

use tokio::time::Instant;

use super::decide::DISOWNED_AFTER;
use super::effects::off_path;
use super::host::Host;
use crate::docker::DockerError;
use crate::process;

/// How often it is looked at meanwhile.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether there is nothing of a container that Docker has refused to stop: for all
/// of [`DISOWNED_AFTER`] Docker had no process for it, and none of the host sat in a
/// cgroup that is named after it. Anything that cannot be told is a "no".
pub async fn is_hollow(host: &Host, id: &str) -> Result<bool, DockerError> {
    let begin = Instant::now();
    loop {
        let Some((_, state)) = host.docker.inspect(id).await? else {
            // Removed: the next request is told so.
            return Ok(false);
        };
        if !state.running || state.first_process.is_some() || is_inhabited(id).await {
            return Ok(false);
        }
        if begin.elapsed() >= DISOWNED_AFTER {
            tracing::warn!(
                docker_id = id,
                "Docker refuses to stop a container of which nothing runs: it counts as ended until it starts"
            );
            return Ok(true);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn is_inhabited(id: &str) -> bool {
    let name = id.to_owned();
    let found = off_path("look for processes of a container", move || {
        Ok(process::sits_in_cgroup_named(&name)?)
    });
    found.await.unwrap_or_else(|error| {
        tracing::warn!(
            docker_id = id,
            error = format!("{error:#}"),
            "taken for running"
        );
        true
    })
}
