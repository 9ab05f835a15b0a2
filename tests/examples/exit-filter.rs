//! What a run of the exit probe costs, beside an empty program of the same kind: the measuring half
//! of `cargo xtask bench filter`, which may not depend on the probe.
//!
//! ```text
//! exit-filter ROUNDS EXITS      a line of JSON for each program, load and round
//! ```

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cleanup_tests::bpf::{EmptyProgram, Program, Statistics};
use cleanup_tests::random::Random;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::{bins, command};
use cleanup_userspace::cgroup::Hierarchies;
use cleanup_userspace::probe::btf::Btf;
use cleanup_userspace::probe::{Layout, Losses, Probe, ProbeOptions, RootSpec};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

const BTF: &str = "/sys/kernel/btf/vmlinux";
const TRACEPOINT: &str = "btf_trace_sched_process_exit";
/// Any id as Mesos has them.
const RUN: &str = "5f0c1b9e-7a3d-4c5e-9b1a-0123456789ab";
/// For one load.
const LIMIT: Duration = Duration::from_secs(120);

/// Who ends, and where.
#[derive(Debug, Clone, Copy)]
struct Load {
    name: &'static str,
    /// What `exit-case` plays, without the count.
    case: &'static str,
    /// How many, of a hundred.
    percent: u32,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// The top of the hierarchy, where most tasks of a host are.
    Top,
    /// A cgroup as Docker makes them.
    Foreign,
    /// A container of the agent's.
    Container,
}

const LOADS: [Load; 5] = [
    load("threads", "threads", 100, Place::Top),
    load("forks", "fork-without-exec", 50, Place::Top),
    load("commands", "monitor", 15, Place::Top),
    load("foreign", "monitor", 15, Place::Foreign),
    load("executors", "monitor", 10, Place::Container),
];

const fn load(name: &'static str, case: &'static str, percent: u32, place: Place) -> Load {
    Load {
        name,
        case,
        percent,
        place,
    }
}

/// What is attached meanwhile.
#[derive(Debug, Clone, Copy)]
enum Candidate {
    Empty,
    /// As it ships, for a host of this layout.
    Ours(Layout),
}

impl Candidate {
    fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Ours(Layout::V1) => "ours-v1",
            Self::Ours(Layout::V2) => "ours-v2",
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [rounds, exits] = &arguments[..] else {
        bail!("this is a part of `cargo xtask bench filter`: exit-filter ROUNDS EXITS");
    };
    // Programs lie beside the folder of the examples.
    let own = env::current_exe().context("path of the running program")?;
    bins::look_in(own.ancestors().nth(2).context("target/<profile>")?);

    let mut terminate = signal(SignalKind::terminate())?;
    // Whoever wins, what the measuring owns is dropped, which removes everything.
    tokio::select! {
        done = measure(rounds.parse()?, exits.parse()?) => done,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("interrupted"),
    }
}

async fn measure(rounds: u32, exits: u32) -> Result<()> {
    let bench = Bench::new(exits)?;
    let mut candidates = vec![Candidate::Empty];
    candidates.extend(bench.layouts().map(Candidate::Ours));
    let mut random = Random::new(std::process::id().into());
    let _counted = Statistics::enable()?;
    for round in 0..rounds {
        shuffle(&mut candidates, &mut random);
        for candidate in &candidates {
            bench
                .measure(*candidate, round, &mut random)
                .await
                .with_context(|| format!("{}, round {round}", candidate.name()))?;
        }
    }
    Ok(())
}

struct Bench {
    scratch: Scratch,
    /// Mount points, each with the layout that has its executors there.
    hierarchies: Vec<(PathBuf, Layout)>,
    tracepoint: u32,
    exits: u32,
}

impl Bench {
    fn new(exits: u32) -> Result<Self> {
        let found = Hierarchies::discover()?;
        let hierarchies: Vec<_> = [(found.freezer(), Layout::V1), (found.unified(), Layout::V2)]
            .into_iter()
            .filter_map(|(hierarchy, layout)| Some((hierarchy?.mount.clone(), layout)))
            .collect();
        ensure!(
            !hierarchies.is_empty(),
            "no hierarchy for executors is mounted"
        );
        let btf = Btf::parse(fs::read(BTF).context(BTF)?).context(BTF)?;
        let bench = Self {
            scratch: Scratch::new("exit-filter")?,
            hierarchies,
            tracepoint: btf.typedef_id(TRACEPOINT).context(TRACEPOINT)?,
            exits,
        };
        for place in [Place::Foreign, Place::Container] {
            for cgroup in bench.cgroups(place) {
                fs::create_dir_all(&cgroup).with_context(|| cgroup.display().to_string())?;
            }
        }
        Ok(bench)
    }

    fn layouts(&self) -> impl Iterator<Item = Layout> {
        self.hierarchies.iter().map(|(_, layout)| *layout)
    }

    fn root(&self, mount: &Path) -> PathBuf {
        mount.join(self.scratch.name())
    }

    /// Where a process sits, in both hierarchies.
    fn cgroups(&self, place: Place) -> Vec<PathBuf> {
        let of = |(mount, layout): &(PathBuf, Layout)| match (place, layout) {
            (Place::Top, _) => mount.clone(),
            (Place::Foreign, _) => mount.join(self.scratch.docker_cgroup()).join("container"),
            (Place::Container, Layout::V1) => self.root(mount).join(RUN),
            (Place::Container, Layout::V2) => self.root(mount).join(RUN).join("leaf"),
        };
        self.hierarchies.iter().map(of).collect()
    }

    /// Attaches it anew, since where its code lies makes a difference, and lets everybody die.
    async fn measure(&self, candidate: Candidate, round: u32, random: &mut Random) -> Result<()> {
        let mut attached = match candidate {
            Candidate::Empty => Attached::Empty(EmptyProgram::attach(self.tracepoint)?),
            Candidate::Ours(layout) => {
                let roots = self.hierarchies.iter().filter(|(_, of)| *of == layout).map(
                    |(mount, layout)| RootSpec {
                        path: self.root(mount),
                        layout: *layout,
                    },
                );
                let options = ProbeOptions {
                    roots: roots.collect(),
                    ..ProbeOptions::default()
                };
                Attached::Ours(Box::new(Probe::start(options).await?))
            }
        };
        let mut loads = LOADS;
        shuffle(&mut loads, random);
        for load in loads {
            let count = (self.exits * load.percent / 100).max(1);
            let before = attached.look()?;
            let reported = attached.during(self.play(load, count)).await?;
            let after = attached.look()?;
            let runs = after.runs - before.runs;
            ensure!(
                runs >= u64::from(count),
                "{}: {runs} runs for {count} exits",
                load.name
            );
            if let (Candidate::Ours(_), Place::Container) = (candidate, load.place) {
                ensure!(
                    reported >= count,
                    "{reported} of {count} executors reported"
                );
            }
            println!(
                "{}",
                json!({
                    "round": round,
                    "program": candidate.name(),
                    "load": load.name,
                    "runs": runs,
                    "ns": (after.run_ns - before.run_ns) as f64 / runs as f64,
                })
            );
        }
        Ok(())
    }

    async fn play(&self, load: Load, count: u32) -> Result<()> {
        let mut case = self.scratch.command(bins::find("exit-case")?);
        for cgroup in self.cgroups(load.place) {
            case.arg("--in").arg(cgroup);
        }
        case.args([load.case, &count.to_string()]);
        tokio::task::spawn_blocking(move || command::output(&mut case, LIMIT).map(drop))
            .await
            .context(load.name)?
    }
}

enum Attached {
    Empty(EmptyProgram),
    Ours(Box<Probe>),
}

impl Attached {
    fn look(&self) -> Result<Program> {
        match self {
            Self::Empty(program) => program.look(),
            Self::Ours(_) => {
                let own = Program::of(std::process::id().cast_signed())?;
                let mut tracing = own.into_iter().filter(Program::is_tracing);
                match (tracing.next(), tracing.next()) {
                    (Some(ours), None) => Ok(ours),
                    other => bail!("one program of ours was expected: {other:?}"),
                }
            }
        }
    }

    /// Takes what is reported, as the daemon does. Returns how much that was.
    async fn during(&mut self, work: impl Future<Output = Result<()>>) -> Result<u32> {
        let Self::Ours(probe) = self else {
            return work.await.map(|()| 0);
        };
        let mut work = std::pin::pin!(work);
        let mut reported = 0;
        loop {
            tokio::select! {
                done = &mut work => {
                    done?;
                    break;
                }
                record = probe.next() => {
                    record.context("the ring")?;
                    reported += 1;
                }
            }
        }
        reported += probe.drain().len() as u32;
        let lost = probe.losses()?;
        ensure!(lost == Losses::default(), "lost: {lost:?}");
        Ok(reported)
    }
}

fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for last in (1..items.len()).rev() {
        items.swap(last, random.below(last as u64 + 1) as usize);
    }
}
