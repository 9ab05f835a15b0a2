//! Round after round: executors with pods come up, something goes wrong, they die.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cleanup_tests::mesos::executors::ExecutorView;
use cleanup_tests::random::Random;
use cleanup_tests::wait;

use super::bed::Bed;
use super::fault::{Fault, Part};
use super::guard::Guard;
use super::pod::{Manner, Plan, Pod};
use super::report::Outcome;

/// Executors that live through it all.
const LIVING: usize = 3;
const PAUSE: u64 = 60;
/// More dead ones than that at the same time are waited for.
const UNFINISHED: usize = 40;
const CATCH_UP: Duration = Duration::from_secs(90);
/// An executor that was told to end, by an agent that died before it passed that
/// on, is killed.
const WORD_LOST: Duration = Duration::from_secs(20);
/// Ended containers that are left to Docker: it brings some of them back when it
/// restarts, as their restart policy has it.
const KEPT: usize = 24;
/// Rounds in a row that may be left out.
const REFUSALS: u32 = 4;
const PROGRESS: Duration = Duration::from_secs(10);
/// After the last fault, for everything that still goes on.
const SETTLE: Duration = Duration::from_secs(180);
const AFTER_AGENT: Duration = Duration::from_secs(120);

/// A victim, and when it was made to die.
#[derive(Debug)]
struct Dead {
    pod: Pod,
    since: Instant,
}

/// One soak at work. Dropped from top to bottom.
#[derive(Debug)]
pub(super) struct Campaign {
    guard: Guard,
    bed: Bed,
    random: Random,
    /// What may go wrong.
    possible: Vec<Fault>,
    compose_percent: u64,
    living: Vec<Pod>,
    /// Not seen clean yet.
    dead: Vec<Dead>,
    /// Names of executors of which it is not known whether they came up.
    strays: Vec<String>,
    /// Rounds in a row that could not be launched.
    refusals: u32,
    /// Of clean ones, oldest first.
    kept: Vec<String>,
    launched: usize,
    deaths: usize,
    faults: BTreeMap<&'static str, usize>,
    untouchable: BTreeSet<String>,
    began: Instant,
    progress: Instant,
}

/// What is left at the end, of runs that are dead.
#[derive(Debug, Default)]
struct Left {
    containers: Vec<String>,
    /// By the run.
    cgroups: BTreeMap<String, Vec<PathBuf>>,
    open_cases: Vec<String>,
}

impl Left {
    /// One for each container, each run with cgroups, and each case.
    fn into_lines(self) -> Vec<String> {
        let Self {
            containers,
            cgroups,
            open_cases,
        } = self;
        let containers = containers.iter().map(|id| format!("container {id} runs"));
        let cgroups = cgroups
            .iter()
            .map(|(run, paths)| format!("{} cgroups of {run} are left: {paths:?}", paths.len()));
        let cases = open_cases.iter().map(|case| format!("open: {case}"));
        containers.chain(cgroups).chain(cases).collect()
    }

    fn is_nothing(&self) -> bool {
        self.containers.is_empty() && self.cgroups.is_empty() && self.open_cases.is_empty()
    }
}

impl Campaign {
    pub(super) fn start(
        version: &str,
        seed: u64,
        possible: Vec<Fault>,
        logs: &Path,
    ) -> Result<Self> {
        let bed = Bed::start(version, logs)?;
        let mut random = Random::new(seed);
        let plans: Vec<Plan> = (0..LIVING)
            .map(|at| Plan::draw(format!("living-{at}"), &mut random, 100))
            .collect();
        let (living, _) = Pod::launch(&bed.host, &plans)?;
        ensure!(living.len() == LIVING, "not every living executor is up");
        let now = Instant::now();
        Ok(Self {
            guard: Guard::over(living.clone()),
            bed,
            random,
            possible,
            compose_percent: 8,
            living,
            dead: Vec::new(),
            strays: Vec::new(),
            refusals: 0,
            kept: Vec::new(),
            launched: 0,
            deaths: 0,
            faults: BTreeMap::new(),
            untouchable: BTreeSet::new(),
            began: now,
            progress: now,
        })
    }

    pub(super) fn run(&mut self, period: Duration) -> Result<()> {
        while self.began.elapsed() < period {
            self.round()?;
            self.look_around()?;
            if self.dead.len() > UNFINISHED {
                self.catch_up()?;
            }
        }
        Ok(())
    }

    fn round(&mut self) -> Result<()> {
        let count = 4 + usize::try_from(self.random.below(13))?;
        let plans: Vec<Plan> = (0..count)
            .map(|at| {
                let name = format!("victim-{}", self.launched + at);
                Plan::draw(name, &mut self.random, self.compose_percent)
            })
            .collect();
        self.launched += count;
        let victims = self.launch(&plans)?;
        let faults = Fault::draw(&mut self.random, &self.possible);
        // Each begins before so many have died.
        let mut due: Vec<(usize, Fault)> = faults
            .iter()
            .map(|&fault| Ok((self.position(victims.len())?, fault)))
            .collect::<Result<_>>()?;
        let at_once = self.random.percent(50);
        for (at, victim) in victims.iter().enumerate() {
            for (_, fault) in due.extract_if(.., |(position, _)| *position <= at) {
                self.begin(fault, &victims)?;
            }
            self.kill(victim, &faults)?;
            if !at_once {
                let pause = self.random.millis(PAUSE);
                rest(pause)?;
            }
        }
        for (_, fault) in due {
            self.begin(fault, &victims)?;
        }
        for fault in faults {
            rest(fault.hold(&mut self.random))?;
            fault.end(&mut self.bed)?;
        }
        Ok(())
    }

    /// What cannot be launched now is given up: an agent that was killed or made to
    /// hang a moment ago may have nothing to offer for a while.
    fn launch(&mut self, plans: &[Plan]) -> Result<Vec<Pod>> {
        match Pod::launch(&self.bed.host, plans) {
            Ok((up, failed)) => {
                self.strays.extend(failed);
                self.refusals = 0;
                Ok(up)
            }
            Err(error) => {
                self.refusals += 1;
                if self.refusals >= REFUSALS {
                    return Err(error.context("nothing can be launched any more"));
                }
                eprintln!("a round is left out: {error:#}");
                self.strays
                    .extend(plans.iter().map(|plan| plan.name.clone()));
                Ok(Vec::new())
            }
        }
    }

    /// Executors that came up after all die, too.
    fn kill_strays(&self) {
        for name in &self.strays {
            for stray in ExecutorView::all(&self.bed.host.agent, name) {
                stray.executor().kill();
            }
        }
    }

    fn position(&mut self, count: usize) -> Result<usize> {
        Ok(usize::try_from(self.random.below(count as u64 + 1))?)
    }

    fn begin(&mut self, fault: Fault, victims: &[Pod]) -> Result<()> {
        *self.faults.entry(fault.name()).or_default() += 1;
        fault.begin(&mut self.bed, &mut self.random, &self.living, victims)
    }

    fn kill(&mut self, victim: &Pod, faults: &[Fault]) -> Result<()> {
        let missing = victim.missing();
        self.untouchable.extend(missing);
        let manner = Manner::draw(&mut self.random);
        let has_agent = faults.iter().all(|fault| fault.part() != Part::Agent);
        let told = victim.die(manner, &self.bed.host, has_agent);
        if told.is_err() {
            // The framework may not be subscribed again yet.
            victim.die(Manner::KillExecutor, &self.bed.host, has_agent)?;
        }
        self.dead.push(Dead {
            pod: victim.clone(),
            since: Instant::now(),
        });
        Ok(())
    }

    /// What has become of the dead, and is the daemon well?
    fn look_around(&mut self) -> Result<()> {
        self.bed.look_at_daemon()?;
        self.kill_strays();
        let running: HashSet<String> = self.bed.host.docker.running_now()?.into_iter().collect();
        let roots = self.bed.host.scratch.cgroup_dirs().to_vec();
        let clean = self.dead.extract_if(.., |dead| {
            if !dead.pod.is_dead() {
                if dead.since.elapsed() > WORD_LOST {
                    dead.pod.executor.executor().kill();
                }
                return false;
            }
            dead.pod.is_gone()
                && !dead
                    .pod
                    .containers
                    .iter()
                    .any(|(id, _)| running.contains(id))
                && !roots
                    .iter()
                    .any(|root| root.join(dead.pod.executor.container_id()).exists())
        });
        for dead in clean {
            self.deaths += 1;
            self.kept
                .extend(dead.pod.containers.into_iter().map(|(id, _)| id));
        }
        let surplus = self.kept.len().saturating_sub(KEPT);
        for id in self.kept.drain(..surplus) {
            self.bed.host.docker.remove_container(&id)?;
        }
        self.tell();
        Ok(())
    }

    fn tell(&mut self) {
        if self.progress.elapsed() < PROGRESS {
            return;
        }
        self.progress = Instant::now();
        let rss = self.bed.gauge.latest().map_or(0, |sample| sample.rss_kib);
        println!(
            "{:>5} s  deaths {:<5} faults {:<4} cases {:<5} not clean yet {:<3} false actions {}  daemon {:.1} MiB",
            self.began.elapsed().as_secs(),
            self.deaths + self.dead.len(),
            self.faults.values().sum::<usize>(),
            self.bed.diary.cases.len(),
            self.dead.len(),
            self.untouchable.len() + self.guard.missing().len(),
            rss as f64 / 1024.0,
        );
    }

    /// Lets the daemon finish. That it does not is no verdict yet: an agent whose
    /// destroy failed keeps its container until it is restarted.
    fn catch_up(&mut self) -> Result<()> {
        let began = Instant::now();
        while self.dead.len() > UNFINISHED / 2 && began.elapsed() < CATCH_UP {
            rest(Duration::from_millis(500))?;
            self.look_around()?;
        }
        Ok(())
    }

    /// Waits until nothing of the dead is left, and counts what is.
    pub(super) fn settle(mut self) -> Result<Outcome> {
        let period = self.began.elapsed();
        let mut left = self.settle_within(SETTLE)?;
        let destroy_errors = self.bed.destroy_errors();
        let mut resolved_by_agent = 0;
        if !left.is_nothing() {
            // What an agent keeps whose own destroy failed for good is not the daemon's:
            // a restart of the agent resolves that. Containers are never the agent's.
            let before = left.cgroups.len();
            println!("left after {} s: {left:#?}", SETTLE.as_secs());
            if destroy_errors > 0.0 {
                println!("restarting the agent: {destroy_errors} of its destroys had failed");
                self.bed.restart_agent()?;
                left = self.settle_within(AFTER_AGENT)?;
                resolved_by_agent = before.saturating_sub(left.cgroups.len());
            }
        }
        // Those that were never seen clean, too.
        self.deaths += self.dead.iter().filter(|dead| dead.pod.is_dead()).count();
        let mut false_actions = self.untouchable.clone();
        false_actions.extend(self.guard.missing());
        for pod in &self.living {
            for (id, _) in &pod.containers {
                let restarts = &self.bed.host.docker.inspect(id)?["RestartCount"];
                if *restarts != 0 {
                    false_actions.insert(format!("container {id} was restarted {restarts} times"));
                }
            }
        }
        let samples = self.bed.gauge.longest_life();
        let lives = self.bed.gauge.lives();
        let machine = crate::stage::Machine::look(&self.bed.host.docker)?;
        self.bed.stop_daemon()?;
        let Bed {
            diary, complaints, ..
        } = &self.bed;
        let mut complaints = complaints.clone();
        complaints.extend(
            diary
                .odd_lines
                .iter()
                .map(|line| format!("it wrote: {line}")),
        );
        Ok(Outcome {
            machine,
            period,
            deaths: self.deaths,
            faults: self.faults.clone(),
            cases: diary.cases.len(),
            closings: diary.closings,
            left_nothing: diary.left_nothing,
            origins: diary.origins.clone(),
            losses: diary.losses,
            warnings: diary.warnings.clone(),
            leaks: left.into_lines(),
            false_actions: false_actions.into_iter().collect(),
            complaints,
            destroy_errors,
            resolved_by_agent,
            lives,
            longest_life: samples,
            log: diary.path().to_owned(),
        })
    }

    fn settle_within(&mut self, limit: Duration) -> Result<Left> {
        let began = Instant::now();
        loop {
            self.look_around()?;
            let left = self.left()?;
            if left.is_nothing() || began.elapsed() >= limit {
                return Ok(left);
            }
            rest(Duration::from_millis(500))?;
        }
    }

    fn left(&self) -> Result<Left> {
        let ours: HashSet<&String> = self
            .living
            .iter()
            .flat_map(|pod| pod.containers.iter().map(|(id, _)| id))
            .collect();
        let runs: HashSet<&str> = self
            .living
            .iter()
            .map(|pod| pod.executor.container_id())
            .collect();
        let mut containers = self.bed.host.docker.running_now()?;
        containers.retain(|id| !ours.contains(id));
        let mut cgroups = BTreeMap::<String, Vec<PathBuf>>::new();
        let roots = self.bed.host.scratch.cgroup_dirs();
        for path in self.bed.host.scratch.leftovers() {
            let below = roots.iter().find_map(|root| path.strip_prefix(root).ok());
            let run = below.and_then(|below| below.iter().next());
            let run = run.unwrap_or(path.as_os_str()).to_string_lossy();
            if !runs.contains(&*run) {
                cgroups.entry(run.into_owned()).or_default().push(path);
            }
        }
        Ok(Left {
            containers,
            cgroups,
            open_cases: self.bed.open_cases().context("the journal")?,
        })
    }
}

fn rest(period: Duration) -> Result<()> {
    wait::holds(period, "the soak goes on", || true)
}
