//! `compose-cleanup clean` of what an operator named, by a daemon and without one: what
//! is dead goes, what lives stays, whatever is given.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::{Dockerd, IGNORING_TERM, OBEDIENT};
use cleanup_tests::host::{ENFORCE, Host};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::mesos::standin::{CgroupLayout, StandInAgent, StandInRun};
use cleanup_tests::process::Process;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::service::Service;
use cleanup_tests::watcher::{AgentPlace, Watcher, configure};
use cleanup_tests::{bins, random, wait};
use serde_json::{Value, json};

use super::{Lonely, SOON, Said, http, say, wait_json};

/// Looks by itself at the start only.
const ONCE: &str =
    "mode = \"enforce\"\ngrace = \"2s\"\nsettle = \"200ms\"\nreconcile_interval = \"1h\"";

const REFUSED: i32 = 5;
const UNFINISHED: i32 = 3;

/// Docker and an agent that does nothing by itself. Dropped from top to bottom.
struct Bed {
    agent: StandInAgent,
    docker: Dockerd,
    scratch: Scratch,
    /// A container id that no agent knows. Nor does another test: signs of life are
    /// looked for on the whole host.
    stranger: String,
}

impl Bed {
    fn start(name: &str) -> Result<Self> {
        let (scratch, docker, agent) = StandInAgent::with_docker(name, CgroupLayout::V1)?;
        Ok(Self {
            stranger: random::uuid()?,
            agent,
            docker,
            scratch,
        })
    }

    fn configure(&self, options: &str) -> Result<PathBuf> {
        let place = self.agent.place();
        configure(&self.scratch, &self.docker.socket(), &[place], options)
    }

    /// A daemon that has looked at everything, and will not look again.
    fn watch(&self, options: &str) -> Result<Watcher> {
        let watcher = Watcher::start(&self.scratch, &self.docker, &[self.agent.place()], options)?;
        wait::try_until(SOON, "the looks of a start", || {
            Ok((watcher.said("surveyed")?.len() >= 3).then_some(()))
        })?;
        Ok(watcher)
    }

    fn say(&self, words: &[&str]) -> Result<Said> {
        say(&self.scratch, words)
    }

    /// A container of the run with this container id.
    fn container(&self, run: &str, script: &str) -> Result<String> {
        let parent = format!("/{}/{run}", self.scratch.name());
        self.docker.run_beneath(&parent, &[], script)
    }

    fn runs(&self, id: &str) -> Result<bool> {
        Ok(self.docker.running()?.iter().any(|running| running == id))
    }

    /// What there is of a run beneath the cgroups roots, of whomever.
    fn cgroups(&self, run: &str) -> Vec<PathBuf> {
        let mut left = self.scratch.leftovers();
        left.retain(|path| path.iter().any(|part| part == run));
        left
    }

    #[track_caller]
    fn assert_clean(&self, run: &str, container: &str) -> Result<()> {
        ensure!(!self.runs(container)?, "{container} runs");
        assert_eq!(self.cgroups(run), Vec::<PathBuf>::new());
        Ok(())
    }

    /// A run that its agent is done with, of which no process is recorded: unknown.
    fn unrecorded(&self, executor: &str) -> Result<StandInRun> {
        let run = self.agent.prepare(executor)?;
        fs::remove_dir_all(run.runtime()).context("its runtime directory")?;
        Ok(run)
    }

    /// Its agent's checkpoint names a process that is gone: the run is proven dead.
    fn record_death(&self, run: &StandInRun) -> Result<()> {
        let work_dir = self.agent.layout().work_dir();
        let sandbox = run.sandbox().strip_prefix(&work_dir)?;
        let pids = work_dir.join("meta").join(sandbox).join("pids");
        fs::write(pids.join("forked.pid"), gone()?.to_string()).context("forked.pid")
    }

    /// A process with this variable, in the freezer's cgroup of the run if there is one.
    fn process(&self, run: &str, variable: (&str, &str), inside: bool) -> Result<Service> {
        let mut command = self.scratch.command("sleep");
        command.arg("86400").env(variable.0, variable.1);
        let log = self.scratch.path().join(format!("sleep-{inside}.log"));
        let service = Service::spawn(command, &log)?;
        if inside {
            let roots = self.scratch.cgroup_dirs();
            let freezer = roots
                .iter()
                .find(|root| root.iter().any(|part| part == "freezer"));
            let procs = freezer.context("a freezer")?.join(run).join("cgroup.procs");
            let pid = service.process().pid().to_string();
            fs::write(&procs, pid).with_context(|| procs.display().to_string())?;
        }
        Ok(service)
    }
}

/// The PID of a process that has ended and was reaped.
fn gone() -> Result<u32> {
    let mut child = std::process::Command::new("true").spawn()?;
    let pid = child.id();
    child.wait()?;
    ensure!(Process::of(i32::try_from(pid)?).is_none(), "{pid} is there");
    Ok(pid)
}

/// The only one of the cleanings in this document.
fn cleaning(said: &Said) -> Result<Value> {
    let document = said.json()?;
    let cleanings = document["cleanings"].as_array().context("cleanings")?;
    ensure!(cleanings.len() == 1, "{document:#}");
    Ok(cleanings[0].clone())
}

/// A case of this run in the history; how its death is known.
fn origin(scratch: &Scratch, run: &str) -> Result<String> {
    let cases = wait_json(scratch, &["cases"], "the case to be written", |cases| {
        let mut cases = cases.as_array().into_iter().flatten();
        cases.any(|case| case["container"] == run && case["result"] == "clean")
    })?;
    let mut cases = cases.as_array().into_iter().flatten();
    let case = cases
        .find(|case| case["container"] == run)
        .context("a case")?;
    Ok(case["origin"].as_str().unwrap_or_default().to_owned())
}

fn dead(name: &str, by_daemon: bool) -> Result<()> {
    let bed = Bed::start(name)?;
    let run = bed.unrecorded("web")?;
    let id = run.container_id();
    let container = bed.container(id, OBEDIENT)?;
    // As the configuration is shipped, a daemon would only observe.
    let (watcher, mode): (_, &[&str]) = if by_daemon {
        (Some(bed.watch(ONCE)?), &[])
    } else {
        bed.configure(&ENFORCE.replace("enforce", "observe"))?;
        (None, &["--mode", "enforce"])
    };
    bed.record_death(&run)?;

    let plan = bed.say(&["clean", "web", "--dry-run"])?;
    let plan = &plan.expect(0).out;
    ensure!(
        plan.contains("standing   dead: its recorded process"),
        "{plan}"
    );
    bed.say(&["clean", "web"])?
        .expect_line(REFUSED, &["no terminal", "--yes"]);
    bed.say(&["clean", "web", "--output", "json"])?
        .expect_line(REFUSED, &["--output json asks nobody", "--yes"]);
    ensure!(bed.runs(&container)?, "something was done");

    let said = bed.say(&[&["clean", "web", "--yes", "--output", "json"], mode].concat())?;
    let done = cleaning(said.expect(0))?;
    assert_eq!(done["container"], id, "{done:#}");
    assert_eq!(done["closed"]["result"], "clean", "{done:#}");
    assert_eq!(done["closed"]["containers"], 1, "{done:#}");
    bed.assert_clean(id, &container)?;
    assert_eq!(said.json()?["plans"]["by_daemon"], by_daemon);
    assert_eq!(origin(&bed.scratch, id)?, "operator");

    if let Some(watcher) = &watcher {
        let case = watcher.wait_case(id)?;
        assert_eq!(case["origin"], "operator", "{case}");
        let again = bed.say(&["clean", "web", "--yes"])?;
        again.expect_line(0, &["nothing to clean up after"]);
    }
    let all = bed.say(&[&["clean", "--orphans", "--yes"], mode].concat())?;
    all.expect_line(0, &["nothing to clean up after"]);
    Ok(())
}

#[test]
fn a_dead_run_by_the_daemon() -> Result<()> {
    dead("cleandead", true)
}

#[test]
fn a_dead_run_alone() -> Result<()> {
    dead("cleanalone", false)
}

/// Everything that is dead, and nothing else, of several.
#[test]
fn orphans() -> Result<()> {
    let bed = Bed::start("cleanorphans")?;
    let stranger = &*bed.stranger;
    let (one, other) = (bed.unrecorded("one")?, bed.unrecorded("other")?);
    let live = bed.agent.launch("live")?;
    let unknown = bed.container(stranger, OBEDIENT)?;
    let mut pod = Vec::new();
    for run in [&one, &other, &live] {
        pod.push(bed.container(run.container_id(), OBEDIENT)?);
    }
    bed.configure(ENFORCE)?;
    for run in [&one, &other] {
        bed.record_death(run)?;
    }
    let said = bed.say(&["clean", "--orphans", "--yes"])?;
    said.expect(0);
    ensure!(
        said.errors.contains("left alone: 1 unknown"),
        "{}",
        said.errors
    );
    for (run, container) in [(&one, &pod[0]), (&other, &pod[1])] {
        bed.assert_clean(run.container_id(), container)?;
        let line = said
            .out
            .lines()
            .find(|line| line.starts_with(run.container_id()) && line.contains("  clean "));
        ensure!(line.is_some(), "{}", said.out);
    }
    ensure!(
        bed.runs(&pod[2])? && bed.runs(&unknown)?,
        "too much was done"
    );
    ensure!(live.executor()?.alive(), "the executor was harmed");
    Ok(())
}

/// With every flag, by every name, by the daemon and without it.
#[test]
fn what_lives_is_refused() -> Result<()> {
    let bed = Bed::start("cleanlive")?;
    let run = bed.agent.launch("web")?;
    let id = run.container_id();
    let container = bed.container(id, OBEDIENT)?;
    bed.configure(ENFORCE)?;
    let executor = run.executor()?;
    let pid = executor.pid().to_string();
    let refused = |flags: &[&str]| -> Result<()> {
        for name in ["web", id, &id[..8]] {
            let said = bed.say(&[&["clean", name, "--yes"], flags].concat())?;
            said.expect_line(REFUSED, &["refuse: executor web", id, "lives", &pid]);
        }
        let orphans = bed.say(&[&["clean", "--orphans", "--yes"], &flags[..0]].concat())?;
        orphans.expect_line(0, &["nothing to clean up after"]);
        ensure!(executor.alive() && bed.runs(&container)?, "{flags:?}");
        Ok(())
    };
    refused(&[])?;
    refused(&[
        "--force-unknown",
        "--teardown",
        "immediate",
        "--action",
        "kill",
    ])?;

    let watcher = bed.watch(ONCE)?;
    watcher.wait_message_of(id, "learnt")?;
    refused(&[])?;
    refused(&["--force-unknown"])?;
    for force in [false, true] {
        let order = json!({"containers": [id], "force_unknown": force});
        let answer = http::post(&bed.scratch, "/v1/clean", &order)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        ensure!(
            answer.contains("refused") && answer.contains("it lives"),
            "{answer}"
        );
    }
    // A daemon does it in its own way.
    let own = bed.say(&["clean", "web", "--yes", "--grace", "1s", "--action", "kill"])?;
    own.expect_line(REFUSED, &["its own configuration", "--action, --grace"]);
    ensure!(executor.alive() && bed.runs(&container)?, "it was touched");
    ensure!(watcher.said("case")?.is_empty(), "a case was opened");
    Ok(())
}

/// A run that no agent has a record of.
fn stranger(name: &str, by_daemon: bool) -> Result<()> {
    let bed = Bed::start(name)?;
    let stranger = &*bed.stranger;
    let container = bed.container(stranger, OBEDIENT)?;
    let watcher = if by_daemon {
        Some(bed.watch(ONCE)?)
    } else {
        bed.configure(ENFORCE)?;
        None
    };
    let clean = |flags: &[&str]| bed.say(&[&["clean", &stranger[..8], "--yes"], flags].concat());
    let force = ["--force-unknown", "--output", "json"];
    clean(&[])?.expect_line(
        REFUSED,
        &[
            stranger,
            "no configured agent has a record",
            "--force-unknown",
        ],
    );
    bed.say(&["clean", "--orphans", "--force-unknown"])?
        .expect(2);

    // Whatever shows that it lives is believed.
    for (variable, inside, words) in [
        (("NOTHING", "x"), true, "a process of its own, pid"),
        (
            ("MESOS_SANDBOX", &*format!("/elsewhere/runs/{stranger}")),
            false,
            "a process that is not in its cgroup belongs to it",
        ),
    ] {
        let mut sign = bed.process(stranger, variable, inside)?;
        clean(&force)?.expect_line(REFUSED, &[words, "what may live is not touched"]);
        ensure!(sign.process().alive() && bed.runs(&container)?, "{words}");
        sign.kill()?;
    }
    ensure!(
        !bed.cgroups(stranger).is_empty(),
        "its cgroups were touched"
    );

    let said = clean(&force)?;
    let done = cleaning(said.expect(0))?;
    assert_eq!(done["closed"]["result"], "clean", "{done:#}");
    bed.assert_clean(stranger, &container)?;
    assert_eq!(origin(&bed.scratch, stranger)?, "forced");

    if let Some(watcher) = watcher {
        // The word was about what was there then.
        let late = bed.container(stranger, OBEDIENT)?;
        watcher.wait_message_of(stranger, "unknown run: left alone")?;
        clean(&[])?.expect_line(REFUSED, &["no configured agent has a record"]);
        ensure!(bed.runs(&late)?, "a late container was stopped");
    }
    Ok(())
}

#[test]
fn a_stranger_by_the_daemon() -> Result<()> {
    stranger("cleanstranger", true)
}

#[test]
fn a_stranger_alone() -> Result<()> {
    stranger("cleanstrange1", false)
}

/// It is looked for signs of life before each step, not only at the beginning.
#[test]
fn a_stranger_that_comes_to_life() -> Result<()> {
    let bed = Bed::start("cleanrevived")?;
    let stranger = &*bed.stranger;
    let container = bed.container(stranger, IGNORING_TERM)?;
    let watcher = bed.watch(&ONCE.replace("\"2s\"", "\"10m\""))?;
    let order = json!({"containers": [stranger], "force_unknown": true});
    let answer = http::post(&bed.scratch, "/v1/clean", &order)?;
    ensure!(answer.contains("looking"), "{answer}");
    wait_json(&bed.scratch, &["status"], "Docker to be asked", |status| {
        status["cases"][0]["step"] == "wait_docker"
    })?;
    let sandbox = format!("/elsewhere/runs/{stranger}");
    let mut sign = bed.process(stranger, ("MESOS_DIRECTORY", &sandbox), false)?;
    let case = watcher.wait_case(stranger)?;
    assert_eq!(case["result"], "dismissed", "{case}");
    ensure!(bed.runs(&container)?, "it was killed");
    ensure!(!bed.cgroups(stranger).is_empty(), "its cgroups are gone");
    sign.kill()?;
    Ok(())
}

/// Between the order and its case, too: no stop request is sent before a look.
#[test]
fn a_stranger_that_comes_to_life_at_once() -> Result<()> {
    let bed = Bed::start("cleanawake")?;
    let stranger = &*bed.stranger;
    let container = bed.container(stranger, OBEDIENT)?;
    let watcher = bed.watch(ONCE)?;
    let order = json!({"containers": [stranger], "force_unknown": true});
    let answer = http::post(&bed.scratch, "/v1/clean", &order)?;
    ensure!(answer.contains("looking"), "{answer}");
    let sandbox = format!("/elsewhere/runs/{stranger}");
    let mut sign = bed.process(stranger, ("MESOS_SANDBOX", &sandbox), false)?;
    let case = watcher.wait_case(stranger)?;
    assert_eq!(case["result"], "dismissed", "{case}");
    assert_eq!(case["endings"], "1 would_stop", "{case}");
    ensure!(bed.runs(&container)?, "it was stopped");
    let known = http::get(&bed.scratch, "/v1/clean")?;
    ensure!(known.contains("dismissed"), "{known}");
    sign.kill()?;
    Ok(())
}

/// Everything else that is in the way is said, and nothing is done.
#[test]
fn what_is_in_the_way() -> Result<()> {
    let bed = Bed::start("cleanway")?;
    let run = bed.unrecorded("web")?;
    let id = run.container_id();
    let container = bed.container(id, OBEDIENT)?;
    bed.record_death(&run)?;
    let clean = || bed.say(&["clean", "web", "--yes"]);

    bed.configure("mode = \"observe\"")?;
    clean()?.expect_line(REFUSED, &["mode is \"observe\"", "--mode enforce"]);
    bed.configure(&format!("{ENFORCE}\n[[exclude]]\nexecutor = \"w*\""))?;
    clean()?.expect_line(REFUSED, &["[[exclude]] names its executor"]);
    bed.configure(ENFORCE)?;
    bed.say(&["hold"])?.expect(0);
    clean()?.expect_line(REFUSED, &["compose-cleanup release"]);
    let all = bed.say(&["clean", "--orphans", "--yes"])?;
    all.expect_line(REFUSED, &["left alone", "compose-cleanup release"]);
    bed.say(&["release"])?.expect(0);

    let watcher = bed.watch("mode = \"observe\"")?;
    clean()?.expect_line(REFUSED, &["the daemon's mode is \"observe\"", "reload it"]);
    let order = json!({"containers": [id]});
    let answer = http::post(&bed.scratch, "/v1/clean", &order)?;
    ensure!(answer.starts_with("HTTP/1.1 409 "), "{answer}");
    ensure!(answer.contains("mode is"), "{answer}");
    drop(watcher);
    ensure!(bed.runs(&container)?, "something was done");
    Ok(())
}

/// More than the cap shows only at work: it waits for a person, and for as long as it
/// may if nobody else would go on.
#[test]
fn past_the_cap() -> Result<()> {
    let bed = Bed::start("cleancap")?;
    let run = bed.unrecorded("web")?;
    let container = bed.container(run.container_id(), OBEDIENT)?;
    let second = bed.container(run.container_id(), OBEDIENT)?;
    bed.configure(&format!("{ENFORCE}\nmax_inferred_stops = 1"))?;
    bed.record_death(&run)?;
    let said = bed.say(&["clean", "web", "--yes", "--timeout", "6s"])?;
    said.expect(UNFINISHED);
    ensure!(
        said.errors.contains("is not finished") && said.errors.contains("compose-cleanup release"),
        "{}",
        said.errors
    );
    ensure!(
        bed.runs(&container)? && bed.runs(&second)?,
        "it was stopped"
    );
    bed.say(&["release"])?.expect(0);
    std::thread::scope(|scope| {
        let clean = scope.spawn(|| bed.say(&["clean", "web", "--yes"]));
        let hold = bed.scratch.path().join("run-dir/hold.json");
        wait::try_until(SOON, "the cap to hold", || {
            Ok(fs::read_to_string(&hold)?.contains("cap").then_some(()))
        })?;
        bed.say(&["release"])?.expect(0);
        let said = clean.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        said.expect(0);
        anyhow::Ok(())
    })?;
    bed.assert_clean(run.container_id(), &container)?;
    ensure!(!bed.runs(&second)?, "the second one runs");
    Ok(())
}

/// On a terminal it asks, and takes nothing but a yes for one.
#[test]
fn the_question() -> Result<()> {
    let bed = Bed::start("cleanquestion")?;
    let run = bed.unrecorded("web")?;
    let container = bed.container(run.container_id(), OBEDIENT)?;
    let config = bed.configure(ENFORCE)?;
    bed.record_death(&run)?;
    let program = bins::find("compose-cleanup")?;
    let line = format!(
        "{} clean web --config {}",
        program.display(),
        config.display()
    );
    let answer = |word: &str| -> Result<(Option<i32>, String)> {
        let mut command = bed.scratch.command("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("script")?;
        let mut input = child.stdin.take().context("its input")?;
        writeln!(input, "{word}")?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok((output.status.code(), text))
    };
    for word in ["n", "", "what?"] {
        let (status, text) = answer(word)?;
        assert_eq!(status, Some(REFUSED), "{text}");
        ensure!(
            text.contains("[y/N]") && text.contains("nobody said yes"),
            "{text}"
        );
        ensure!(
            text.contains("standing   \u{1b}[31mdead"),
            "no plan: {text}"
        );
        ensure!(bed.runs(&container)?, "something was done");
    }
    let (status, text) = answer("y")?;
    assert_eq!(status, Some(0), "{text}");
    bed.assert_clean(run.container_id(), &container)
}

/// One name, two runs: which one is meant has to be said.
#[test]
fn a_name_of_several() -> Result<()> {
    let bed = Bed::start("cleannames")?;
    let (old, new) = (bed.unrecorded("web")?, bed.agent.launch("web")?);
    let pods = [
        bed.container(old.container_id(), OBEDIENT)?,
        bed.container(new.container_id(), OBEDIENT)?,
    ];
    bed.configure(ENFORCE)?;
    bed.record_death(&old)?;
    let ids = [old.container_id(), new.container_id()];
    let which = bed.say(&["clean", "web", "--yes"])?;
    which.expect_line(1, &["2 runs fit web", ids[0], ids[1], "live", "dead"]);
    ensure!(
        bed.runs(&pods[0])? && bed.runs(&pods[1])?,
        "something was done"
    );
    bed.say(&["clean", ids[0], "--yes"])?.expect(0);
    bed.assert_clean(ids[0], &pods[0])?;
    ensure!(
        bed.runs(&pods[1])? && new.executor()?.alive(),
        "the wrong one"
    );
    // What is over makes no name ambiguous.
    let lives = bed.say(&["clean", "web", "--yes"])?;
    lives.expect_line(REFUSED, &["lives", ids[1]]);
    Ok(())
}

/// With a real agent: its executor died while nobody watched.
#[test]
fn under_a_real_agent() -> Result<()> {
    let options = AgentOptions {
        known_by_name: true,
        ..AgentOptions::default()
    };
    let host = Host::start("cleanreal", "1.11.0", options)?;
    let place = AgentPlace::of(&host.agent, &host.scratch);
    configure(&host.scratch, &host.docker.socket(), &[place], ENFORCE)?;
    let pod = host.run_pod("web", 2, "--no-cgroup-parent")?;
    let other = host.run_pod("other", 1, "--no-cgroup-parent")?;
    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    assert_eq!(pod.executor.running_pod(&host.docker)?.len(), 2);
    let said = say(&host.scratch, &["clean", "web", "--yes"])?;
    let page = &said.expect(0).out;
    ensure!(page.contains("standing   dead"), "{page}");
    let case = json!({"result": "clean"});
    host.ensure_clean(&pod, &case)?;
    assert_eq!(
        origin(&host.scratch, pod.executor.container_id())?,
        "operator"
    );
    assert_eq!(other.executor.running_pod(&host.docker)?.len(), 1);
    Ok(())
}

#[test]
fn bad_orders() -> Result<()> {
    let Lonely { scratch, .. } = &Lonely::start("cleanbad")?;
    say(scratch, &["clean", "nobody", "--yes"])?.expect_line(1, &["no run of nobody is known"]);
    for words in [
        &["clean"][..],
        &["clean", "web", "--orphans"],
        &["clean", "web", "--from-inbox"],
        &["clean", "--from-inbox", "--yes"],
        &["clean", "web", "--wait"],
    ] {
        say(scratch, words)?.expect(2);
    }
    let many: Vec<String> = (0..2000)
        .map(|n| format!("{n:08x}-df05-458b-bd72-f5c280790aa0"))
        .collect();
    for (order, status) in [
        (json!({}), "4"),
        (json!({"containers": []}), "4"),
        (json!({"containers": ["web"]}), "4"),
        (json!({"containers": [&many[0]], "surely": true}), "4"),
        (json!({"containers": many}), "4"),
        (
            json!({"containers": [&many[0], &many[1]], "force_unknown": true}),
            "4",
        ),
        // It observes.
        (json!({"containers": [&many[0]]}), "409"),
    ] {
        let answer = http::post(scratch, "/v1/clean", &order)?;
        ensure!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    Ok(())
}
