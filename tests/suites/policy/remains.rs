//! What dead runs leave in Docker: stopped containers, networks, volumes.

use std::fs;

use anyhow::{Result, ensure};
use cleanup_tests::docker::IMAGE;
use cleanup_tests::host::{ENFORCE, Host};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;
use cleanup_tests::watcher::Watcher;
use serde_json::{Value, json};

use super::{Bed, SOON, wait_clean};

const AT_ONCE: &str = "remove_after = \"0s\"";
const REMOVED: &str = "removed stopped containers of a dead run";

impl Bed {
    /// Ends a run: its executor is killed, its containers stop, its case closes.
    fn end(
        &self,
        watcher: &Watcher,
        run: &super::StandInRun,
        containers: &[&String],
    ) -> Result<()> {
        run.executor()?.kill();
        for id in containers {
            self.wait_stopped(id)?;
        }
        self.agent.destroy(run).finish()?;
        wait_clean(watcher, run).map(drop)
    }

    fn networks(&self) -> Result<Vec<String>> {
        self.names("network")
    }

    fn volumes(&self) -> Result<Vec<String>> {
        self.names("volume")
    }

    fn names(&self, of: &str) -> Result<Vec<String>> {
        let listed = self.docker.docker(&[of, "ls", "--format={{.Name}}"])?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    fn survey_until_network_gone(&self, name: &str) -> Result<()> {
        self.survey_until(&format!("the network {name} to go"), || {
            let left = self.networks()?;
            Ok((!left.iter().any(|left| left == name)).then_some(()))
        })
    }
}

/// What a dead run's pod left is removed; everything else that has stopped stays:
/// what lives, what is nobody's, what is kept, and what only claims to be.
#[test]
fn only_a_dead_runs_containers_are_removed() -> Result<()> {
    let bed = Bed::new("after")?;
    let watcher = bed.watch(&format!("{AT_ONCE}\n[[exclude]]\nexecutor = \"db\""))?;
    let dead = bed.launch(&watcher, "dead")?;
    let live = bed.launch(&watcher, "live")?;
    let excluded = bed.launch(&watcher, "db")?;

    let ended = bed.start_service(&dead, &[])?;
    let kept = bed.start_service(&dead, &["--label=compose-cleanup.keep=true"])?;
    let agents = format!("--name=mesos-{}", dead.container_id());
    let agents = bed.start_service(&dead, &[&agents])?;
    let lives = bed.start_service(&live, &[])?;
    let left = bed.start_service(&excluded, &[])?;
    let stranger = bed.docker.docker(&[
        "run",
        "--detach",
        "--network=none",
        "--label=com.docker.compose.project=app",
        "--label=executorId=dead",
        IMAGE,
        "true",
    ])?;
    // Of an executor that nobody can judge.
    let unknown = bed.agent.prepare("unknown")?;
    let unknowns = bed.start_service(&unknown, &[])?;

    for id in [&agents, &lives, &left, &unknowns, &kept] {
        bed.docker.docker(&["stop", id])?;
    }
    excluded.executor()?.kill();
    watcher.wait_closed(excluded.container_id())?;
    bed.end(&watcher, &dead, &[&ended])?;
    bed.survey_until_removed(&ended)?;

    for (id, fate) in [
        (&kept, "Stay(Kept)"),
        (&agents, "Stay(AgentsOwn)"),
        (&lives, "Stay(InUse)"),
        (&left, "Stay(Excluded)"),
        (&unknowns, "Stay(Unknown)"),
        (&stranger, "Stay(Unknown)"),
    ] {
        bed.survey_until_fate(&watcher, id, fate)?;
        ensure!(bed.exists(id)?, "{id} was removed, and not {fate}");
    }
    let removed = watcher.said(REMOVED)?;
    ensure!(removed.len() == 1, "{removed:?}");
    assert_eq!(removed[0]["container"], dead.container_id());
    assert_eq!(removed[0]["executor"], "dead");
    assert_eq!(removed[0]["removed"], 1);

    // What lived is removed in its turn.
    bed.end(&watcher, &live, &[])?;
    bed.survey_until_removed(&lives)?;
    ensure!(bed.exists(&kept)? && bed.exists(&stranger)?);
    Ok(())
}

/// Nobody remembers anything: neither this life of the daemon nor a journal. The
/// run is found dead by what the agent wrote down of it.
#[test]
fn without_a_memory_it_is_removed_all_the_same() -> Result<()> {
    let bed = Bed::new("forgot")?;
    let watcher = bed.watch("")?;
    let run = bed.launch(&watcher, "victim")?;
    let container = bed.start_service(&run, &[])?;
    let live = bed.launch(&watcher, "live")?;
    let lives = bed.start_service(&live, &[])?;
    bed.docker.docker(&["stop", &lives])?;
    bed.end(&watcher, &run, &[&container])?;
    ensure!(watcher.stop()?.success());
    ensure!(bed.exists(&container)?);
    fs::remove_file(Watcher::journal(&bed.scratch))?;

    // Not yet.
    let watcher = bed.watch("remove_after = \"1h\"")?;
    bed.survey_until_fate(&watcher, &container, "Stay(TooYoung)")?;
    ensure!(watcher.stop()?.success());
    let watcher = bed.watch(AT_ONCE)?;
    bed.survey_until_removed(&container)?;
    bed.survey_until_fate(&watcher, &lives, "Stay(InUse)")?;
    ensure!(bed.exists(&lives)? && live.executor()?.alive());
    Ok(())
}

/// A hold holds the removal of what was only inferred, too.
#[test]
fn a_hold_holds_removals() -> Result<()> {
    let bed = Bed::new("holdrm")?;
    let watcher = bed.watch("")?;
    let run = bed.launch(&watcher, "victim")?;
    let container = bed.start_service(&run, &[])?;
    bed.end(&watcher, &run, &[&container])?;
    ensure!(watcher.stop()?.success());
    bed.say(&["hold"])?;
    let watcher = bed.watch(AT_ONCE)?;
    bed.survey_until_fate(&watcher, &container, "Stay(Held)")?;
    // Its start, a moment ago, is told again with its end: it does not run.
    let cases = watcher.said("a dead run that no event told of")?;
    ensure!(cases.is_empty(), "{cases:?}");
    ensure!(bed.exists(&container)?);
    bed.say(&["release"])?;
    bed.survey_until_removed(&container)
}

/// In `mode = "observe"` the plan is said, once, and nothing is removed.
#[test]
fn an_observer_removes_nothing() -> Result<()> {
    let bed = Bed::new("observe")?;
    let watcher = bed.watch("")?;
    let run = bed.launch(&watcher, "victim")?;
    let container = bed.start_service(&run, &["--name=web"])?;
    bed.end(&watcher, &run, &[&container])?;
    ensure!(watcher.stop()?.success());
    let watcher = Watcher::start_telling_steps(
        &bed.scratch,
        &bed.docker,
        &[bed.agent.place()],
        &format!("mode = \"observe\"\n{AT_ONCE}"),
    )?;
    const PLAN: &str = "plan: would remove this stopped container of a dead run (mode is observe)";
    let plan = bed.survey_until_said(&watcher, PLAN, |_| true)?;
    assert_eq!(plan["name"], "web", "{plan}");
    for _ in 0..2 {
        bed.survey_until_fate(&watcher, &container, "Remove")?;
    }
    ensure!(bed.exists(&container)?);
    assert_eq!(watcher.said(PLAN)?.len(), 1);
    Ok(())
}

/// A real agent, and a pod made by docker-compose.
#[test]
fn a_real_pod_is_removed_after_a_while() -> Result<()> {
    let host = Host::start("afterpod", "1.11.0", AgentOptions::default())?;
    let watcher = host.watch(&format!("{ENFORCE}\nremove_after = \"1s\""))?;
    let pod = host.run_pod("victim", 3, "")?;
    let neighbour = host.run_pod("neighbour", 2, "")?;
    host.docker.docker(&["stop", &neighbour.containers[0]])?;
    pod.executor.sigkill_executor()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    host.ensure_clean(&pod, &case)?;
    // The survey comes by itself.
    let removed = wait::try_until(SOON * 3, "the pod to be removed", || {
        let removed = watcher.said(REMOVED)?;
        let all = host.docker.containers()?;
        let left = pod.containers.iter().any(|id| all.contains(id));
        Ok((!left).then_some(removed))
    })?;
    ensure!(
        removed.iter().all(|line| line["executor"] == "victim"),
        "{removed:?}"
    );
    let all = host.docker.containers()?;
    ensure!(neighbour.containers.iter().all(|id| all.contains(id)));
    host.ensure_agent_is_well()
}

/// Networks of two kinds of projects: named after the run, and shared by the pods
/// of one app. External ones stay.
#[test]
fn networks_that_nobody_uses() -> Result<()> {
    let bed = Bed::new("networks")?;
    bed.docker.docker(&["network", "create", "outside"])?;
    let watcher = bed.watch("action = \"remove\"\nnetworks = \"remove-if-empty\"")?;
    let external = json!({ "networks": { "out": { "external": true, "name": "outside" } } });
    let attached = json!({ "networks": ["default", "out"] });

    let first = bed.launch(&watcher, "first")?;
    let firsts = bed.up(&first, "shop", &["a"], &attached, &external)?;
    let own = format!("poddata_{}", first.container_id());
    let owns = bed.up(&first, &own, &["x"], &json!({}), &json!({}))?;
    let second = bed.launch(&watcher, "second")?;
    let seconds = bed.up(&second, "shop", &["b"], &attached, &external)?;
    // A run whose pod is not up yet.
    let coming = bed.launch(&watcher, "coming")?;

    let is_about = |line: &Value, project: &str, facts: &str| {
        let says = |key: &str, text: &str| line[key].as_str().is_some_and(|v| v.contains(text));
        says("network", &format!("project: {project:?}")) && says("facts", facts)
    };
    bed.end(&watcher, &first, &[&firsts[0], &owns[0]])?;
    ensure!(!bed.exists(&firsts[0])? && !bed.exists(&owns[0])?);
    bed.survey_until_network_gone(&format!("{own}_default"))?;
    bed.survey_until_said(&watcher, "network", |line| {
        is_about(line, "shop", "users: 1")
    })?;
    // It may be about to attach to what another pod has left.
    bed.end(&watcher, &second, &[&seconds[0]])?;
    bed.survey_until_said(&watcher, "network", |line| {
        is_about(line, "shop", "users: 0") && is_about(line, "shop", "awaited: true")
    })?;
    ensure!(bed.networks()?.contains(&"shop_default".to_owned()));

    let comings = bed.up(&coming, "other", &["c"], &json!({}), &json!({}))?;
    bed.survey_until_network_gone("shop_default")?;
    let mut left = bed.networks()?;
    left.sort();
    assert_eq!(left, ["host", "none", "other_default", "outside"]);
    bed.ensure_running(&comings[0])?;

    let removed = watcher.said("removed a network that dead runs left")?;
    let mut names: Vec<_> = removed.iter().map(|line| line["network"].clone()).collect();
    names.sort_by_key(ToString::to_string);
    assert_eq!(
        names,
        [json!(format!("{own}_default")), json!("shop_default")]
    );
    bed.ensure_no_warnings(&watcher)
}

/// A network is used by whatever is attached, though it has stopped; and it stays
/// where nobody has asked for its removal.
#[test]
fn stopped_containers_use_their_networks() -> Result<()> {
    let bed = Bed::new("netstop")?;
    let watcher = bed.watch("networks = \"remove-if-empty\"")?;
    let run = bed.launch(&watcher, "victim")?;
    let pod = bed.up(&run, "shop", &["a", "b"], &json!({}), &json!({}))?;
    bed.end(&watcher, &run, &[&pod[0], &pod[1]])?;
    bed.survey_until_said(&watcher, "network", |line| {
        line["facts"]
            .as_str()
            .is_some_and(|facts| facts.contains("users: 2"))
    })?;
    ensure!(bed.networks()?.contains(&"shop_default".to_owned()));
    // By hand.
    bed.docker.docker(&["rm", &pod[0], &pod[1]])?;
    bed.survey_until_network_gone("shop_default")?;
    bed.ensure_no_warnings(&watcher)
}

/// Anonymous volumes go with their container if asked for. Named ones and images
/// never.
#[test]
fn anonymous_volumes() -> Result<()> {
    let service = json!({ "network_mode": "none", "volumes": ["/anonymous", "data:/named"] });
    let top = json!({ "volumes": { "data": {} } });
    for (name, options, left) in [
        (
            "volumes",
            "action = \"remove\"\nanonymous_volumes = \"remove\"",
            1,
        ),
        (
            "volumes",
            "remove_after = \"0s\"\nanonymous_volumes = \"remove\"",
            1,
        ),
        ("novolumes", "action = \"remove\"", 2),
        ("novolumes", "remove_after = \"0s\"", 2),
    ] {
        let bed = Bed::new(name)?;
        let images = bed.docker.docker(&["images", "--quiet", "--no-trunc"])?;
        let watcher = bed.watch(options)?;
        let run = bed.launch(&watcher, "victim")?;
        let pod = bed.up(&run, "shop", &["a"], &service, &top)?;
        assert_eq!(bed.volumes()?.len(), 2);
        bed.end(&watcher, &run, &[&pod[0]])?;
        bed.survey_until_removed(&pod[0])?;
        let volumes = bed.volumes()?;
        assert_eq!(volumes.len(), left, "{options}: {volumes:?}");
        ensure!(volumes.contains(&"shop_data".to_owned()), "{volumes:?}");
        assert_eq!(
            bed.docker.docker(&["images", "--quiet", "--no-trunc"])?,
            images
        );
    }
    Ok(())
}

/// One that is asked for without anything that removes containers.
#[test]
fn volumes_of_containers_that_stay() -> Result<()> {
    let scratch = Scratch::new("badvolumes")?;
    let mut watcher = Watcher::spawn(
        &scratch,
        &scratch.path().join("docker.sock"),
        &[],
        "anonymous_volumes = \"remove\"",
    )?;
    ensure!(!watcher.wait_end()?.success());
    watcher
        .wait_text("set action = \"remove\" or remove_after, too")
        .map(drop)
}
