//! The model run: the real state machine and the real reaper on a simulated
//! host, in simulated time. A hundred thousand deaths beside agents that hang,
//! restart and die, a Docker that comes and goes, creators that go on creating,
//! and a daemon that is killed at any moment. These are not real deaths, and are
//! counted apart from those of the other suites.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use cleanup_tests::random::Random;
use cleanup_userspace::case::{
    Answer, Ask, CaseMessage, CaseResult, Death, Directory, Ending, Found, Ground, Ledger, Look,
    Origin, Policy, Reaper,
};
use cleanup_userspace::config::{Mode, Teardown};
use cleanup_userspace::docker::{ContainerInfo, DockerError, JoinKey};
use cleanup_userspace::journal::CaseId;
use cleanup_userspace::mesos::{AgentState, ContainerId};
use cleanup_userspace::registry::{Launcher, Run};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

const DEATHS: usize = 100_000;
/// Deaths on one simulated host.
const ON_ONE_HOST: usize = 250;
/// Executors of each host that live through it all.
const LIVING: usize = 20;

#[test]
fn a_hundred_thousand_deaths() -> Result<()> {
    let first = std::env::var("MODEL_SEED").map_or(Ok(1), |seed| seed.parse::<u64>())?;
    let hosts = (DEATHS / ON_ONE_HOST) as u64;
    let mut total = Tally::default();
    // One runtime for each host: its time is its own.
    let lanes: Vec<_> = (0..2)
        .map(|lane| {
            std::thread::spawn(move || -> Result<Tally> {
                let mut tally = Tally::default();
                for seed in (first..first + hosts).filter(|seed| seed % 2 == lane) {
                    tally.add(&live_through(seed)?);
                }
                Ok(tally)
            })
        })
        .collect();
    for lane in lanes {
        total.add(&lane.join().expect("a lane does not panic")?);
    }
    // Past the capture of the test harness: CI shows the count.
    writeln!(
        std::io::stderr(),
        "model: seeds {first}..{}, deaths: {}, faults: {}, cases: {}, leaks: 0, false actions: 0",
        first + hosts,
        total.deaths,
        total.faults,
        total.cases,
    )?;
    ensure!(total.deaths == DEATHS && total.faults > DEATHS / 2);
    Ok(())
}

fn live_through(seed: u64) -> Result<Tally> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    runtime.block_on(async {
        let world = World::new(seed);
        world.run().await?;
        let tally = world.lock().tally;
        Ok(tally)
    })
}

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    deaths: usize,
    faults: usize,
    cases: usize,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.deaths += other.deaths;
        self.faults += other.faults;
        self.cases += other.cases;
    }
}

/// A simulated host; clones are the same one.
#[derive(Debug, Clone)]
struct World(Arc<Mutex<State>>, Instant);

#[derive(Debug)]
struct State {
    random: Random,
    agent: AgentState,
    docker_up: bool,
    runs: HashMap<ContainerId, SimRun>,
    containers: HashMap<String, SimContainer>,
    /// Of the cases that are open.
    cases: HashMap<ContainerId, UnboundedSender<CaseMessage>>,
    tally: Tally,
}

#[derive(Debug, Default)]
struct SimRun {
    dead: bool,
    own_processes: usize,
    /// In the agent's runtime directory.
    owned: bool,
    /// `<root>/<id>` in a hierarchy of the agent's.
    agents_dir: bool,
    /// `<root>/<id>` in a hierarchy that only Docker uses.
    dockers_dir: bool,
    /// Every container that it ever had.
    pod: Vec<String>,
    /// Of the pod's containers.
    container_dirs: HashSet<String>,
}

#[derive(Debug)]
struct SimContainer {
    run: ContainerId,
    running: bool,
    ignores_term: bool,
    restarts: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self(
            Arc::new(Mutex::new(State {
                random: Random::new(seed),
                agent: AgentState::Alive,
                docker_up: true,
                runs: HashMap::new(),
                containers: HashMap::new(),
                cases: HashMap::new(),
                tally: Tally::default(),
            })),
            Instant::now(),
        )
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self) -> Result<()> {
        let faults = [
            tokio::spawn(self.clone().trouble_docker()),
            tokio::spawn(self.clone().trouble_agent()),
        ];
        let living: Vec<ContainerId> = (0..LIVING).map(|n| self.start(n)).collect();
        let dying: Vec<_> = (LIVING..LIVING + ON_ONE_HOST)
            .map(|n| tokio::spawn(self.clone().die(n)))
            .collect();
        for death in dying {
            death.await??;
        }
        for fault in faults {
            fault.abort();
        }
        let state = self.lock();
        for id in living {
            let run = &state.runs[&id];
            ensure!(
                run.agents_dir && run.dockers_dir && run.own_processes == 1,
                "{run:?}"
            );
            ensure!(
                run.pod.iter().all(|id| state.containers[id].running),
                "{run:?}"
            );
        }
        Ok(())
    }

    /// An executor with a pod.
    fn start(&self, number: usize) -> ContainerId {
        let id: ContainerId = format!("00000000-0000-4000-8000-{number:012x}")
            .parse()
            .expect("a container id");
        let pod = 1 + self.lock().random.below(3);
        self.lock().runs.insert(
            id,
            SimRun {
                own_processes: 1,
                owned: true,
                agents_dir: true,
                dockers_dir: true,
                ..SimRun::default()
            },
        );
        for _ in 0..pod {
            self.create(id);
        }
        id
    }

    /// Starts one more container of the run.
    fn create(&self, run: ContainerId) {
        let mut state = self.lock();
        let state = &mut *state;
        if !state.docker_up {
            return;
        }
        let id = format!("{:064x}", state.containers.len() + 1);
        let container = SimContainer {
            run,
            running: true,
            ignores_term: state.random.percent(10),
            restarts: state.random.percent(30),
        };
        state.containers.insert(id.clone(), container);
        let owner = state.runs.get_mut(&run).expect("a run");
        owner.pod.push(id.clone());
        owner.begin(&id);
        state.tell_active(run, &id);
    }

    // ---- what goes wrong

    async fn trouble_docker(self) {
        loop {
            let pause = self.lock().random.millis(20_000);
            sleep(pause).await;
            {
                let mut state = self.lock();
                state.docker_up = false;
                state.tally.faults += 1;
            }
            let pause = self.lock().random.millis(10_000);
            sleep(pause).await;
            let mut state = self.lock();
            state.docker_up = true;
            for case in state.cases.values() {
                let _ = case.send(CaseMessage::Nudge);
            }
        }
    }

    async fn trouble_agent(self) {
        loop {
            let pause = self.lock().random.millis(30_000);
            sleep(pause).await;
            for next in [
                AgentState::Absent,
                AgentState::Recovering,
                AgentState::Alive,
            ] {
                let pause = {
                    let mut state = self.lock();
                    state.agent = next;
                    state.tally.faults += 1;
                    state.random.millis(15_000)
                };
                sleep(pause).await;
            }
        }
    }

    /// What a living agent does of a dead container, in its own time: now and
    /// then it hangs until it is restarted.
    async fn destroy(self, run: ContainerId) {
        let pause = self.lock().random.millis(1_000);
        sleep(pause).await;
        if self.lock().random.percent(5) {
            self.lock().tally.faults += 1;
            self.agent_is(AgentState::Recovering).await;
        }
        self.agent_is(AgentState::Alive).await;
        self.kill_all(run);
        let pause = self.lock().random.millis(300);
        sleep(pause).await;
        let restarting = {
            let mut state = self.lock();
            let State {
                runs, containers, ..
            } = &mut *state;
            let run = &runs[&run];
            let restarts = |id: &String| containers[id].restarts && !containers[id].running;
            run.pod
                .iter()
                .filter(|id| restarts(id))
                .cloned()
                .collect::<Vec<_>>()
        };
        // Docker brings back what it was not asked to stop.
        for id in restarting {
            let mut state = self.lock();
            if state.docker_up && state.random.percent(50) {
                let state = &mut *state;
                state.containers.get_mut(&id).expect("a container").running = true;
                state.runs.get_mut(&run).expect("a run").begin(&id);
                state.tell_active(run, &id);
            }
        }
        self.agent_is(AgentState::Alive).await;
        let mut state = self.lock();
        let run = state.runs.get_mut(&run).expect("a run");
        if run.container_dirs.is_empty() {
            run.agents_dir = false;
        }
        run.owned = false;
    }

    async fn agent_is(&self, wanted: AgentState) {
        while self.lock().agent != wanted {
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Everything in the run's cgroups gets SIGKILL, from the agent.
    fn kill_all(&self, run: ContainerId) {
        let mut state = self.lock();
        let State {
            runs, containers, ..
        } = &mut *state;
        let run = runs.get_mut(&run).expect("a run");
        run.own_processes = 0;
        for id in &run.pod {
            containers.get_mut(id).expect("a container").running = false;
            run.container_dirs.remove(id);
        }
    }

    /// One executor's life, death and cleanup.
    async fn die(self, number: usize) -> Result<()> {
        let id = self.start(number);
        let pause = self.lock().random.millis(60_000);
        sleep(pause).await;
        let creator = {
            let mut state = self.lock();
            state.tally.deaths += 1;
            let creator = state.random.percent(10);
            let run = state.runs.get_mut(&id).expect("a run");
            run.dead = true;
            // `docker-compose up` outlives its executor for a while.
            run.own_processes = usize::from(creator);
            creator
        };
        let died = self.now_ns();
        let others = [
            tokio::spawn(self.clone().destroy(id)),
            tokio::spawn(self.clone().go_on_creating(id, creator)),
        ];
        // The first case has the kernel's word; after a crash of the daemon the
        // survey finds the run, once nothing of its own lives.
        let mut origin = Origin::Kernel;
        loop {
            let run = Run {
                container: id,
                agent: 0,
                identity: None,
                launcher: Launcher::Linux,
                helper: None,
                executor: None,
                seat: None,
                owned: true,
                orphaned: false,
            };
            let death = Death {
                origin,
                at_ns: died,
                noticed_ns: self.now_ns(),
                at_unix: 0.0,
                wait_status: None,
                sat_in: None,
            };
            let (reaper, sender) = Reaper::open(self.clone(), CaseId::next(), run, death);
            self.lock().cases.insert(id, sender);
            let mut work = tokio::spawn(reaper.run());
            let crash = {
                let mut state = self.lock();
                let crash = state.random.percent(20);
                crash.then(|| state.random.millis(3_000))
            };
            let record = match crash {
                None => Some(work.await?),
                Some(pause) => match tokio::time::timeout(pause, &mut work).await {
                    Ok(record) => Some(record?),
                    Err(_) => {
                        work.abort();
                        None
                    }
                },
            };
            self.lock().cases.remove(&id);
            match record {
                None => {
                    self.lock().tally.faults += 1;
                    origin = Origin::Scan;
                    let pause = self.lock().random.millis(5_000);
                    sleep(pause).await;
                    while self.lock().runs[&id].own_processes > 0 {
                        sleep(Duration::from_secs(2)).await;
                    }
                }
                Some(record) if record.result == CaseResult::Dismissed => {
                    ensure!(origin == Origin::Scan, "{record:?}");
                    sleep(Duration::from_secs(2)).await;
                }
                Some(record) => {
                    ensure!(record.result == CaseResult::Clean, "{record:?}");
                    self.lock().tally.cases += 1;
                    break;
                }
            }
        }
        for other in others {
            other.abort();
        }
        let state = self.lock();
        let run = &state.runs[&id];
        let left = run.pod.iter().filter(|id| state.containers[*id].running);
        ensure!(left.count() == 0 && run.own_processes == 0, "leak: {run:?}");
        ensure!(run.directories().is_empty(), "leak: {run:?}");
        Ok(())
    }

    async fn go_on_creating(self, run: ContainerId, creator: bool) {
        while creator && self.lock().runs[&run].own_processes > 0 {
            let pause = self.lock().random.millis(1_500);
            sleep(pause).await;
            if self.lock().runs[&run].own_processes > 0 {
                self.create(run);
            }
        }
    }
}

impl State {
    /// Docker's event.
    fn tell_active(&self, run: ContainerId, id: &str) {
        if let Some(case) = self.cases.get(&run) {
            let info = ContainerInfo {
                id: id.to_owned(),
                ..ContainerInfo::default()
            };
            let _ = case.send(CaseMessage::Active(Arc::new(info)));
        }
    }
}

impl SimRun {
    /// Docker makes what a container needs.
    fn begin(&mut self, container: &str) {
        self.container_dirs.insert(container.to_owned());
        self.agents_dir = true;
        self.dockers_dir = true;
    }

    fn directories(&self) -> Vec<Directory> {
        let mut found = vec![Directory::Dockers; self.container_dirs.len()];
        found.extend(self.dockers_dir.then_some(Directory::Dockers));
        found.extend(self.agents_dir.then_some(Directory::Agents));
        found
    }
}

fn unreachable() -> DockerError {
    DockerError::Unreachable {
        what: "ask".to_owned(),
        socket: "simulated".to_owned(),
        error: "down".to_owned(),
    }
}

impl Ground for World {
    fn now_ns(&self) -> u64 {
        1_000_000_000 + u64::try_from(self.1.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn mode(&self) -> Mode {
        Mode::Enforce
    }

    fn policy(&self) -> Policy {
        Policy {
            teardown: Teardown::Cooperative,
            settle: Duration::from_secs(1),
            agent_deadline: Duration::from_secs(60),
            fallback_after: None,
        }
    }

    fn is_excluded(&self, _run: &Run) -> Option<bool> {
        Some(false)
    }

    fn is_verified(&self, _run: &Run) -> bool {
        false
    }

    fn may_stop(&self, _run: &Run, _death: &Death, _containers: usize) -> bool {
        true
    }

    fn ledger(&self, _case: CaseId) -> Ledger {
        Ledger::none()
    }

    fn opened(&self, _ledger: &Ledger, _run: &Run, _death: &Death) {}

    fn indexed(&self, run: &Run) -> Vec<Found> {
        let state = self.lock();
        let pod = state.runs[&run.container].pod.iter();
        pod.filter(|id| state.containers[*id].running)
            .map(|id| found(id))
            .collect()
    }

    async fn beneath_cgroup(&self, run: &Run) -> Vec<Found> {
        self.indexed(run)
    }

    fn joins(&self, run: &Run, info: &ContainerInfo) -> Option<Found> {
        let state = self.lock();
        let of = state.containers.get(&info.id)?.run;
        (of == run.container).then(|| found(&info.id))
    }

    async fn discover(&self, run: &Run, _death: &Death) -> Result<Vec<Found>, DockerError> {
        let pause = self.lock().random.millis(30);
        sleep(pause).await;
        if !self.lock().docker_up {
            return Err(unreachable());
        }
        Ok(self.indexed(run))
    }

    fn runs(&self, id: &str) -> bool {
        self.lock().containers[id].running
    }

    fn ended(&self, _id: &str) {}

    async fn ask_to_end(&self, ask: Ask) -> Answer {
        let id = ask.id;
        let (pause, hangs) = {
            let mut state = self.lock();
            let container = &state.containers[&id];
            let (run, stubborn) = (container.run, container.ignores_term);
            assert!(
                state.runs[&run].dead,
                "false action: stops a live run's {id}"
            );
            let pause = if stubborn { 2_000 } else { 20 } + state.random.below(100);
            (Duration::from_millis(pause), state.random.percent(2))
        };
        if hangs {
            self.lock().tally.faults += 1;
            sleep(Duration::from_secs(20)).await;
        }
        sleep(pause).await;
        let mut state = self.lock();
        let state = &mut *state;
        let outcome = if hangs || !state.docker_up {
            Err(unreachable())
        } else {
            let container = state.containers.get_mut(&id).expect("a container");
            container.running = false;
            container.restarts = false;
            let run = state.runs.get_mut(&container.run).expect("a run");
            run.container_dirs.remove(&id);
            Ok(Some(Ending::Term))
        };
        Answer {
            id,
            at_ns: self.now_ns(),
            outcome,
        }
    }

    async fn look(
        &self,
        run: &Run,
        _death: &Death,
        _search: bool,
        _keep: Vec<String>,
    ) -> Result<Look> {
        let mut state = self.lock();
        if state.random.percent(1) {
            state.tally.faults += 1;
            anyhow::bail!("out of descriptors, for once");
        }
        let sim = &state.runs[&run.container];
        Ok(Look {
            directories: sim.directories(),
            hierarchies: Vec::new(),
            own_processes: (0..sim.own_processes).map(|n| n as u32 + 2).collect(),
            shows_life: false,
            pod_processes: 0,
            agent: state.agent,
            owned: Some(sim.owned),
            identity: None,
        })
    }

    fn begin_removal(&self, run: &Run, _death: &Death, agents: bool) -> JoinHandle<Result<usize>> {
        let (world, id) = (self.clone(), run.container);
        tokio::spawn(async move {
            let pause = world.lock().random.millis(5);
            sleep(pause).await;
            let mut state = world.lock();
            let state = &mut *state;
            // As the real one looks again, when it is its turn.
            if state.agent == AgentState::Recovering {
                return Ok(0);
            }
            let run = state.runs.get_mut(&id).expect("a run");
            assert!(run.dead, "false action: removes a live run's cgroups");
            let free = agents && (state.agent == AgentState::Absent || !run.owned);
            let containers = &state.containers;
            let before = run.directories().len();
            run.container_dirs.retain(|id| containers[id].running);
            if run.container_dirs.is_empty() && run.own_processes == 0 {
                run.dockers_dir = false;
                run.agents_dir &= !free;
            }
            Ok(before - run.directories().len())
        })
    }

    async fn end_stragglers(&self, run: &Run, look: &Look) -> Result<usize> {
        let mut state = self.lock();
        let run = state.runs.get_mut(&run.container).expect("a run");
        assert!(run.dead, "false action: ends a live run's processes");
        assert!(
            look.agent == AgentState::Absent || look.owned == Some(false),
            "false action: ends what a living agent ends"
        );
        Ok(std::mem::take(&mut run.own_processes))
    }

    async fn kill_pod(&self, _run: &Run, _keep: Vec<String>) -> Result<usize> {
        panic!("false action: the fallback is not allowed here");
    }

    fn cgroup_path(&self, run: &Run) -> PathBuf {
        PathBuf::from(run.container.as_str())
    }
}

fn found(id: &str) -> Found {
    Found {
        id: id.to_owned(),
        key: JoinKey::Cgroup,
        keep: false,
    }
}
