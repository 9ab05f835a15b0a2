//! Stops that do not wait for Docker.
//!
//! Docker takes its time for each stop, and works off many at a few dozen a second. A
//! living agent kills what lies beneath a dead executor's cgroup within a second: of a
//! hundred pods that end at once, most would never see their stop signal. So when Docker
//! has enough to do ([`DockerConfig::max_stops`](crate::config::DockerConfig::max_stops)),
//! the first process of a container gets it from here, and that a container has ended is
//! seen in its cgroup.
//!
//! Only where a stop is nothing but that signal: no policy brings the container back, and
//! it has no stop signal of its own. And only beneath the dead run's cgroup, in the cgroup
//! that is named after the container, seen there after the process was pinned.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use super::effects::off_path;
use super::host::Host;
use super::pod::Ask;
use crate::cgroup::RunCgroup;
use crate::config::Action;
use crate::process::{Proc, pidfds_work};

/// How often is looked whether a container has ended while Docker does not say so. Two
/// looks have to agree, and Docker answers within half of this when it is idle.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The first one: when Docker has the request, and has not sent the signal yet.
const FIRST_LOOK: Duration = Duration::from_millis(3);

/// The stops that Docker has to do now. Ends that it has yet to notice are as much work to
/// it, and have to be added by who asks.
#[derive(Debug)]
pub struct Crowd {
    under_way: AtomicUsize,
    /// 0: it does them all.
    most: usize,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Place {
    crowd: Arc<Crowd>,
    before: usize,
}

impl Crowd {
    pub fn new(most: u16) -> Arc<Self> {
        Arc::new(Self {
            under_way: AtomicUsize::new(0),
            most: usize::from(most),
        })
    }

    pub fn enter(self: &Arc<Self>) -> Place {
        Place {
            before: self.under_way.fetch_add(1, Ordering::Relaxed),
            crowd: Arc::clone(self),
        }
    }

    /// Whether there is anything that Docker need not do.
    fn is_limited(&self) -> bool {
        self.most != 0
    }

    fn is_enough(&self, stops: usize) -> bool {
        self.is_limited() && stops >= self.most
    }

    /// Whether Docker has enough to do beside the stop of who asks.
    fn is_enough_beside_one(&self, ends: usize) -> bool {
        let others = self.under_way.load(Ordering::Relaxed).saturating_sub(1);
        self.is_enough(others + ends)
    }
}

impl Place {
    /// Whether Docker had enough to do before this one.
    pub fn is_one_too_many(&self, ends: usize) -> bool {
        self.crowd.is_enough(self.before + ends)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    /// The container's first process got the signal and ended, and all of the container
    /// with it.
    Ended,
    /// It got the signal, and lives on. Or nobody can tell.
    Outlived,
    /// Nothing was done: it is Docker's to stop.
    Not,
}

/// Sends the stop signal, and waits for the end of the container's first process.
pub async fn stop(host: &Arc<Host>, ask: &Ask) -> Direct {
    let grace = host.config().grace;
    let (own_host, own_ask) = (Arc::clone(host), ask.clone());
    let signalled = off_path("signal a container", move || {
        Ok(signal(&own_host, &own_ask)?)
    });
    let process = match signalled.await {
        Ok(Some(process)) => process,
        Ok(None) => return Direct::Not,
        Err(error) => {
            tracing::debug!(docker_id = ask.id, %error, "no signal but Docker's");
            return Direct::Not;
        }
    };
    tracing::debug!(
        docker_id = ask.id,
        pid = process.pid,
        "signalled without Docker"
    );
    match timeout(grace, process.end()).await {
        Ok(Ok(())) => Direct::Ended,
        _ => Direct::Outlived,
    }
}

/// Completes when a container that Docker was asked to stop has no process any more, and
/// Docker has too much to do to say so.
pub async fn ended_unnoticed(host: &Arc<Host>, ask: &Ask) {
    if !host.crowd.is_limited() || !is_ours_to_stop(host, ask) {
        return std::future::pending().await;
    }
    // What never had a cgroup where it is looked for is not known by what is in it; nor is
    // what is only about to be started, as far as Docker has told.
    let was_there = match host.index.first_process(&ask.id) {
        Some(_) => RunCgroup::has_container,
        None => has_processes,
    };
    sleep(FIRST_LOOK).await;
    while look(host, ask, was_there).await != Some(true) {
        sleep(LOOK_EVERY).await;
    }
    let mut empty = 0;
    while empty < 2 {
        sleep(LOOK_EVERY).await;
        let is_crowded = host.crowd.is_enough_beside_one(host.index.untold());
        // In that order: while Docker is in time, nobody has to look.
        let is_empty = is_crowded && look(host, ask, has_processes).await == Some(false);
        empty = if is_empty { empty + 1 } else { 0 };
    }
}

/// Whether something is so of the container; `None`: that cannot be told.
async fn look(
    host: &Arc<Host>,
    ask: &Ask,
    is_so: fn(&RunCgroup, &str) -> io::Result<bool>,
) -> Option<bool> {
    let (host, ask) = (Arc::clone(host), ask.clone());
    let look = off_path("look for processes of a container", move || {
        let cgroup = host.launcher_cgroup(ask.agent, ask.run)?;
        Ok(cgroup.map_or(Ok(false), |cgroup| is_so(&cgroup, &ask.id))?)
    });
    look.await.ok()
}

fn has_processes(cgroup: &RunCgroup, id: &str) -> io::Result<bool> {
    Ok(!cgroup.container_procs(id)?.is_empty())
}

fn is_ours_to_stop(host: &Host, ask: &Ask) -> bool {
    let info = host.index.get(&ask.id);
    host.config().action == Action::Stop
        && info.is_some_and(|info| info.stops_by_term && !info.agents_own)
}

/// The process that got the signal.
fn signal(host: &Host, ask: &Ask) -> io::Result<Option<Proc>> {
    if !is_ours_to_stop(host, ask) {
        return Ok(None);
    }
    // Its end could not be waited for.
    pidfds_work()?;
    let Some(cgroup) = host.launcher_cgroup(ask.agent, ask.run)? else {
        return Ok(None);
    };
    let Some(process) = host.index.first_process(&ask.id).and_then(Proc::of) else {
        return Ok(None);
    };
    let sits_there = || {
        let sits = |pids: Vec<u32>| pids.contains(&process.pid);
        // Paused, it would have none of its grace period; Docker knows how to stop it.
        host.may_act()
            && cgroup.container_procs(&ask.id).is_ok_and(sits)
            && cgroup
                .is_container_frozen(&ask.id)
                .is_ok_and(|frozen| !frozen)
    };
    let signalled = process.signal_if(Signal::TERM, sits_there)?;
    Ok(signalled.then_some(process))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_counts_until_it_is_left() {
        let crowd = Crowd::new(2);
        let first = crowd.enter();
        let second = crowd.enter();
        assert!(!first.is_one_too_many(0) && !second.is_one_too_many(0));
        assert!(second.is_one_too_many(1), "an end is as much work");
        assert!(!crowd.is_enough_beside_one(0), "one of them asks");
        assert!(crowd.is_enough_beside_one(1));
        let third = crowd.enter();
        assert!(third.is_one_too_many(0) && crowd.is_enough_beside_one(0));
        drop((first, third));
        assert!(!crowd.is_enough_beside_one(0));
        assert!(!crowd.enter().is_one_too_many(0));
    }

    #[test]
    fn docker_may_be_left_all_of_them() {
        let crowd = Crowd::new(0);
        let places: Vec<Place> = (0..2_000).map(|_| crowd.enter()).collect();
        assert!(places.iter().all(|place| !place.is_one_too_many(2_000)));
        assert!(!crowd.is_enough_beside_one(2_000));
    }
}
