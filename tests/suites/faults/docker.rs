//! A Docker that answers, but not as it should: through a proxy in front of a real
//! dockerd.

use anyhow::{Result, ensure};
use cleanup_tests::docker_proxy::{Fault, Kind, Rule, Seen};

use super::*;

/// Kinds of requests that every death takes.
const OF_A_DEATH: [Kind; 3] = [Kind::List, Kind::Inspect, Kind::Stop];

/// Docker refuses to stop anything for a while: the case tries on, says so once,
/// and nobody else is the worse for it.
#[test]
fn stops_that_are_refused_for_a_while() -> Result<()> {
    let bed = Bed::behind_proxy("refused", "")?;
    let pod = bed.pod("victim", &[OBEDIENT, OBEDIENT])?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let proxy = bed.proxy()?;
    proxy.add(Rule::next(3, Kind::Stop, Fault::Refuse(500)));
    proxy.add(Rule::next(3, Kind::Stop, Fault::Refuse(503)));
    pod.run.executor()?.kill();
    let case = bed.ensure_cleaned(&pod)?;
    assert_eq!(case["endings"], "2 term", "{case}");
    assert_eq!(proxy.faults(), 6);
    let complaints = bed.complaints(&pod.run)?;
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    let error = complaints[0]["error"].as_str().unwrap_or_default();
    ensure!(
        error.contains("refused to stop container") && error.contains("status 500"),
        "{error}"
    );
    bed.ensure_untouched(&neighbour)
}

/// Every kind of request loses its connection, at every moment, once and again.
#[test]
fn connections_that_are_cut() -> Result<()> {
    let bed = Bed::behind_proxy("cut", "")?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let proxy = bed.proxy()?;
    for fault in [Fault::CutBefore, Fault::CutAfter, Fault::CutWithin] {
        for times in [1, 3] {
            for kind in OF_A_DEATH {
                let what = format!("{times} times {fault:?} of {kind:?}");
                let pod = bed.pod("victim", &[OBEDIENT])?;
                let before = proxy.faults();
                proxy.add(Rule::next(times, kind, fault));
                pod.run.executor()?.kill();
                let case = bed.ensure_cleaned(&pod).context(what.clone())?;
                // Whoever answered last, the daemon's own stop has ended it.
                assert_eq!(case["endings"], "1 term", "{what}: {case}");
                assert_eq!(proxy.faults(), before + times, "{what}: {:?}", proxy.seen());
                proxy.heal();
            }
        }
    }
    bed.ensure_untouched(&neighbour)
}

/// The stream of events breaks, and cannot be had again at once: a container that
/// comes meanwhile is found all the same.
#[test]
fn events_that_break_off() -> Result<()> {
    let bed = Bed::behind_proxy("events", "")?;
    let proxy = bed.proxy()?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    for fault in [
        Fault::CutBefore,
        Fault::CutAfter,
        Fault::CutWithin,
        Fault::Refuse(500),
    ] {
        let run = bed.agent.launch("victim")?;
        bed.watcher.wait_executor_learnt(run.container_id())?;
        for kind in [Kind::Events, Kind::Ping] {
            let before = proxy.faults();
            proxy.add(Rule::next(2, kind, fault));
            proxy.cut(Kind::Events);
            proxy.wait(SOON, "both faults", |seen| faults(seen) == before + 2)?;
        }
        // No event may tell of it.
        let containers = vec![bed.start_container(&run, &[], OBEDIENT)?];
        let pod = Pod { run, containers };
        pod.run.executor()?.kill();
        bed.ensure_cleaned(&pod)
            .with_context(|| format!("{fault:?}"))?;
        proxy.heal();
    }
    let lost = "Docker is not there; trying on, cases are kept";
    ensure!(!bed.watcher.said(lost)?.is_empty());
    bed.ensure_untouched(&neighbour)
}

fn faults(seen: &[Seen]) -> usize {
    seen.iter().filter(|seen| seen.fault.is_some()).count()
}

/// Every request takes a second: no stop waits for the answer of another.
#[test]
fn answers_that_are_slow() -> Result<()> {
    let bed = Bed::behind_proxy("slow", "")?;
    let pod = bed.pod("victim", &[OBEDIENT, OBEDIENT, OBEDIENT])?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let proxy = bed.proxy()?;
    for kind in OF_A_DEATH {
        proxy.add(Rule::every(kind, Fault::Delay(Duration::from_secs(1))));
    }
    let before = proxy.seen().len();
    pod.run.executor()?.kill();
    let case = bed.ensure_cleaned(&pod)?;
    assert_eq!(case["endings"], "3 term", "{case}");
    let seen = proxy.seen().split_off(before);
    let stops: Vec<usize> = (0..seen.len())
        .filter(|&at| seen[at].kind == Kind::Stop)
        .collect();
    assert_eq!(stops.len(), 3, "{seen:?}");
    // The last one came before any was answered.
    for &at in &stops {
        let answered = seen[at].came_before_the_answer;
        ensure!(before + stops[2] < answered, "{seen:?}");
    }
    let complaints = bed.complaints(&pod.run)?;
    ensure!(complaints.is_empty(), "{complaints:?}");
    bed.ensure_untouched(&neighbour)
}

/// The stop of one container is never answered, nor is an inspect of it: the others
/// of its pod, and another pod, are stopped and done with meanwhile.
#[test]
fn one_container_that_hangs() -> Result<()> {
    let bed = Bed::behind_proxy("hang", "")?;
    let pod = bed.pod("victim", &[OBEDIENT, OBEDIENT, OBEDIENT])?;
    let other = bed.pod("other", &[OBEDIENT, OBEDIENT])?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let proxy = bed.proxy()?;
    let hung = &pod.containers[0];
    for kind in [Kind::Stop, Kind::Inspect] {
        proxy.add(Rule::every(kind, Fault::Hang).about(hung));
    }
    pod.run.executor()?.kill();
    for id in &pod.containers[1..] {
        bed.wait_stopped(id)?;
    }
    other.run.executor()?.kill();
    bed.ensure_cleaned(&other)?;
    // Past its deadline it is asked again.
    proxy.wait(SOON, "the second request", |seen| {
        let again = seen
            .iter()
            .filter(|seen| seen.kind == Kind::Stop && seen.container.as_ref() == Some(hung));
        again.count() >= 2
    })?;
    ensure!(bed.is_running(hung)?, "who stopped it?");
    assert_eq!(bed.complaints(&pod.run)?.len(), 1);
    ensure!(bed.watcher.cases(pod.run.container_id())?.is_empty());
    proxy.heal();
    let case = bed.ensure_cleaned(&pod)?;
    assert_eq!(case["endings"], "3 term", "{case}");
    bed.ensure_untouched(&neighbour)
}

/// dockerd says that a container restarts, has no process for it, and refuses to stop
/// it. Real ones do after a kill -9 at the wrong moment (seen with 20.10), but not on
/// demand: the proxy says it, of a container that has really ended. Nothing of it
/// is left, so the case is done with; when it starts after all, it is found.
#[test]
fn one_that_dockerd_is_stuck_with() -> Result<()> {
    let bed = Bed::behind_proxy("stuck", "")?;
    let pod = bed.pod("victim", &[OBEDIENT, OBEDIENT])?;
    let neighbour = bed.pod("neighbour", &[OBEDIENT])?;
    let proxy = bed.proxy()?;
    let stuck = &pod.containers[0];
    proxy.stick(stuck);
    pod.run.executor()?.kill();
    let case = bed.ensure_cleaned(&pod)?;
    assert_eq!(case["endings"], "1 no_process, 1 term", "{case}");
    // Asked once: its word is not taken any more.
    let about = |seen: &Seen| seen.kind == Kind::Stop && seen.container.as_ref() == Some(stuck);
    assert_eq!(proxy.seen().iter().filter(|seen| about(seen)).count(), 1);

    // A process in a cgroup of its name, and Docker's word counts again.
    bed.docker.docker(&["start", stuck])?;
    proxy.wait(SOON, "a stop of what started again", |seen| {
        seen.iter().filter(|seen| about(seen)).count() >= 2
    })?;
    bed.wait_stopped(stuck)?;
    proxy.heal();
    bed.ensure_untouched(&neighbour)
}
