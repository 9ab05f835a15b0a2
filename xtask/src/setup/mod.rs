//! `cargo xtask setup`: makes this machine able to build and test everything.
//!
//! A machine lacks things one by one, so each thing is a [`Step`] that can look
//! for it and install it. The plan is made and told before anything is done.

mod apt;
mod bpf_linker;
mod compiler;
mod docker;
mod exit_listeners;
mod foreign_suite;
mod host;
mod machine;
mod mesos_deps;
mod mounts;
mod rust_src;
mod unpacked;

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::exec::seconds;
pub(crate) use apt::Apt;
pub(crate) use foreign_suite::{DebianMirror, ForeignSuite};
use machine::Machine;
pub(crate) use machine::search_path;
pub(crate) use unpacked::unpacked;

/// For a question that a program answers from what it has.
const PROBE_LIMIT: Duration = Duration::from_secs(60);
/// Setup may not go on: nobody said yes.
const EXIT_NO_CONSENT: u8 = 2;

/// Check what this machine needs to build and test, and install what it lacks
///
/// Asks before it installs; without a terminal it goes on only with --yes or
/// with CI=true. `cargo xtask test` and `cargo xtask demo` do the same steps
/// without asking: running them is the consent, and they name what they
/// install. A second run finds everything there and changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
What it may change:
  packages     apt-get install, simulated first; never when apt would remove a
               package. Services of a new Docker engine are not started.
  toolchain    rust-src, through rustup or from Debian's package of that version
  cargo        bpf-linker, by cargo install
  target/setup a static busybox, where the system's own has to stay
It mounts nothing, starts nothing and never removes a package.

Examples:
  cargo xtask setup --check   Only report; exit status 1 when something is missing
  cargo xtask setup           Report, ask, install
  cargo xtask setup --yes     The same without a question

Exit status: 0 all there, 1 something missing or failed, 2 nobody agreed.")]
pub(crate) struct Args {
    /// Only report what is missing
    #[arg(long, conflicts_with = "yes")]
    check: bool,

    /// Install without asking
    #[arg(long, short)]
    yes: bool,
}

/// What a task is about to do, and so what the machine must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Compile the BPF program.
    BpfToolchain,
    /// Run pods under a private daemon.
    Docker,
    /// Run real Mesos releases.
    MesosRuntime,
    /// Do what the C++ hook does, to be compared with.
    CgroupTools,
    /// Measure other programs that listen to exits beside ours.
    ExitListeners,
}

impl Need {
    pub(crate) const ALL: &[Self] = &[Self::BpfToolchain, Self::Docker, Self::MesosRuntime];

    fn steps(self) -> Vec<Box<dyn Step>> {
        match self {
            Self::BpfToolchain => vec![
                Box::new(compiler::cc()),
                Box::new(rust_src::RustSrc),
                Box::new(bpf_linker::BpfLinker),
            ],
            Self::Docker => vec![
                Box::new(docker::engine()),
                Box::new(docker::compose()),
                Box::new(docker::Busybox),
            ],
            Self::MesosRuntime => vec![
                Box::new(compiler::cc()),
                Box::new(mesos_deps::readelf()),
                Box::new(mesos_deps::python()),
                Box::new(mesos_deps::libevent()),
            ],
            Self::CgroupTools => vec![Box::new(mesos_deps::cgroup_tools())],
            Self::ExitListeners => vec![
                Box::new(exit_listeners::bpftrace()),
                Box::new(exit_listeners::forkstat()),
                Box::new(exit_listeners::exitsnoop()),
            ],
        }
    }
}

/// Whether the user agreed to changes of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consent {
    /// By running a task that says so in its help, or with `--yes`.
    Given,
    /// Not yet.
    Ask,
}

/// A thing that the machine must have.
trait Step: Send + Sync {
    fn name(&self) -> &'static str;

    /// Looks for it and changes nothing.
    fn inspect(&self, machine: &Machine) -> Finding;

    /// Does what [`Remedy::Install`] promised.
    fn install(&self, machine: &Machine, apt: &mut Apt) -> Result<()>;

    /// What else the user should know once it is installed.
    fn note(&self) -> &'static str {
        ""
    }
}

#[derive(Debug)]
enum Finding {
    Present(String),
    Missing {
        what: String,
        remedy: Remedy,
    },
    /// Worth knowing; in the way of nothing.
    Note(String),
}

#[derive(Debug)]
enum Remedy {
    /// What setup is going to do.
    Install(String),
    /// What only the user can do.
    ByHand(String),
}

/// A step that is nothing but packages.
struct Packages {
    name: &'static str,
    look: fn() -> Result<String, String>,
    packages: fn(&Machine) -> &'static [&'static str],
    note: &'static str,
}

impl Step for Packages {
    fn name(&self) -> &'static str {
        self.name
    }

    fn inspect(&self, machine: &Machine) -> Finding {
        match (self.look)() {
            Ok(found) => Finding::Present(found),
            Err(what) => Finding::Missing {
                what,
                remedy: apt_remedy(machine, (self.packages)(machine)),
            },
        }
    }

    fn install(&self, machine: &Machine, apt: &mut Apt) -> Result<()> {
        Ok(apt.install((self.packages)(machine))?)
    }

    fn note(&self) -> &'static str {
        self.note
    }
}

/// How packages come to this machine.
fn apt_remedy(machine: &Machine, packages: &[impl AsRef<str>]) -> Remedy {
    let names = packages
        .iter()
        .map(AsRef::as_ref)
        .collect::<Vec<_>>()
        .join(" ");
    if !machine.distro.has_apt() {
        Remedy::ByHand(format!("install what Debian packages as: {names}"))
    } else if !machine.is_root {
        Remedy::ByHand(format!(
            "as root: apt-get install --no-install-recommends {names}"
        ))
    } else {
        Remedy::Install(format!("apt-get install {names}"))
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let &Args { check, yes } = args;
    let machine = Machine::look()?;
    let steps = every_step();
    let plan = Plan::make(&machine, &steps);
    print!("{}", plan.report());
    if plan.is_complete() {
        return Ok(ExitCode::SUCCESS);
    }
    if check {
        println!("\n{}", plan.summary());
        return Ok(ExitCode::FAILURE);
    }
    if plan.installs().next().is_none() {
        println!("\n{}: nothing that setup could install", plan.summary());
        return Ok(ExitCode::FAILURE);
    }
    print!("\n{}", plan.announcement());
    let consent = if yes { Consent::Given } else { Consent::Ask };
    if !agreed(consent)? {
        return Ok(ExitCode::from(EXIT_NO_CONSENT));
    }
    let failed = plan.carry_out(&machine);
    if failed == 0 && plan.by_hand() == 0 {
        println!("Everything is there now.");
        Ok(ExitCode::SUCCESS)
    } else {
        println!("{} still missing.", failed + plan.by_hand());
        Ok(ExitCode::FAILURE)
    }
}

/// Another suite of Debian, from this machine's own mirror.
pub(crate) fn debian_suite(suite: &str) -> Result<ForeignSuite> {
    let codename = Machine::look()?.distro.codename;
    ForeignSuite::open(&codename, suite)?
        .with_context(|| format!("apt is not configured for a Debian mirror of {codename:?}"))
}

impl DebianMirror {
    /// An error if apt is not configured for one.
    pub(crate) fn of_machine() -> Result<Self> {
        let codename = Machine::look()?.distro.codename;
        Self::of_release(&codename)?
            .with_context(|| format!("apt is not configured for a Debian mirror of {codename:?}"))
    }
}

/// A program on [`search_path`].
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    Machine::find(name)
}

/// A busybox that needs nothing else.
pub(crate) fn static_busybox() -> Option<PathBuf> {
    Machine::find("busybox").filter(|file| docker::is_static(file))
}

/// Makes sure that a task finds what it needs; silent when it is there.
pub(crate) fn ensure(needs: &[Need], consent: Consent) -> Result<()> {
    let machine = Machine::look()?;
    let steps = steps_of(needs);
    let plan = Plan::make(&machine, &steps);
    if plan.is_complete() {
        return Ok(());
    }
    print!("{}", plan.announcement());
    if plan.by_hand() == 0 && agreed(consent)? && plan.carry_out(&machine) == 0 {
        return Ok(());
    }
    bail!("this machine is not set up; see `cargo xtask setup --check`")
}

fn every_step() -> Vec<Box<dyn Step>> {
    let facts: [Box<dyn Step>; 5] = [
        Box::new(host::Host::Root),
        Box::new(host::Host::Kernel),
        Box::new(host::Host::Btf),
        Box::new(mounts::Mounts::Cgroups),
        Box::new(mounts::Mounts::Tracefs),
    ];
    steps_of(Need::ALL).into_iter().chain(facts).collect()
}

/// The steps of several needs, each once.
fn steps_of(needs: &[Need]) -> Vec<Box<dyn Step>> {
    let mut seen = BTreeSet::new();
    needs
        .iter()
        .flat_map(|need| need.steps())
        .filter(|step| seen.insert(step.name()))
        .collect()
}

/// What was found, and so what there is to do.
struct Plan<'a> {
    findings: Vec<(&'a dyn Step, Finding)>,
}

impl<'a> Plan<'a> {
    fn make(machine: &Machine, steps: &'a [Box<dyn Step>]) -> Self {
        // Each look runs a program or two: together they take as long as one.
        let findings = thread::scope(|scope| {
            let looks: Vec<_> = steps
                .iter()
                .map(|step| {
                    let look = scope.spawn(|| step.inspect(machine));
                    (&**step, look)
                })
                .collect();
            looks
                .into_iter()
                .map(|(step, look)| match look.join() {
                    Ok(finding) => (step, finding),
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect()
        });
        Self { findings }
    }

    fn is_complete(&self) -> bool {
        self.missing() == 0
    }

    fn missing(&self) -> usize {
        self.findings
            .iter()
            .filter(|(_, finding)| matches!(finding, Finding::Missing { .. }))
            .count()
    }

    fn by_hand(&self) -> usize {
        self.missing() - self.installs().count()
    }

    fn installs(&self) -> impl Iterator<Item = (&'a dyn Step, &str)> {
        self.findings.iter().filter_map(|(step, finding)| {
            let Finding::Missing {
                remedy: Remedy::Install(how),
                ..
            } = finding
            else {
                return None;
            };
            Some((*step, how.as_str()))
        })
    }

    /// One line for each step.
    fn report(&self) -> String {
        let mut text = String::new();
        for (step, finding) in &self.findings {
            let name = step.name();
            let _ = match finding {
                Finding::Present(detail) => writeln!(text, "{name:<17} ok: {detail}"),
                Finding::Note(detail) => writeln!(text, "{name:<17} note: {detail}"),
                Finding::Missing {
                    what,
                    remedy: Remedy::Install(_),
                } => writeln!(text, "{name:<17} missing: {what}"),
                Finding::Missing {
                    what,
                    remedy: Remedy::ByHand(advice),
                } => writeln!(text, "{name:<17} missing: {what} ({advice})"),
            };
        }
        text
    }

    fn summary(&self) -> String {
        format!("{} of {} missing", self.missing(), self.findings.len())
    }

    /// What is going to be done, before it is.
    fn announcement(&self) -> String {
        let mut text = String::new();
        for (step, finding) in &self.findings {
            if let Finding::Missing {
                what,
                remedy: Remedy::ByHand(advice),
            } = finding
            {
                let _ = writeln!(text, "{:<17} missing: {what} ({advice})", step.name());
            }
        }
        if self.installs().next().is_some() {
            text.push_str("To be installed on this machine:\n");
        }
        for (step, how) in self.installs() {
            let _ = writeln!(text, "  {:<17} {how}", step.name());
        }
        text
    }

    /// Installs, step by step; returns how many failed.
    fn carry_out(&self, machine: &Machine) -> usize {
        let mut apt = Apt::default();
        let mut failed = 0;
        for (step, _) in self.installs() {
            print!("{:<17} ", step.name());
            // Nothing to do about a broken pipe here; the next line tells.
            let _ = io::stdout().flush();
            let start = Instant::now();
            let outcome = install(step, machine, &mut apt);
            let took = seconds(start.elapsed());
            match outcome {
                Ok(detail) if step.note().is_empty() => println!("installed ({took}): {detail}"),
                Ok(detail) => println!("installed ({took}): {detail}; {}", step.note()),
                Err(error) => {
                    failed += 1;
                    println!("failed ({took}): {error:#}");
                }
            }
        }
        failed
    }
}

/// Installs and looks again: an installer's success is not the thing itself.
fn install(step: &dyn Step, machine: &Machine, apt: &mut Apt) -> Result<String> {
    step.install(machine, apt)?;
    match step.inspect(machine) {
        Finding::Present(detail) | Finding::Note(detail) => Ok(detail),
        Finding::Missing { what, .. } => {
            bail!("the installation went well, but still: {what}")
        }
    }
}

fn agreed(consent: Consent) -> Result<bool> {
    let is_ci = env::var_os("CI").is_some_and(|value| value == "true");
    let stdin = io::stdin();
    let is_terminal = stdin.is_terminal() && io::stdout().is_terminal();
    match decide(consent, is_terminal, is_ci) {
        Decision::Proceed => Ok(true),
        Decision::Refuse => {
            println!("Not done: there is no terminal to ask on. Run it with --yes or CI=true.");
            Ok(false)
        }
        Decision::Ask => {
            print!("Go on? [y/N] ");
            io::stdout().flush()?;
            let mut answer = String::new();
            stdin.read_line(&mut answer)?;
            let yes = matches!(answer.trim(), "y" | "Y" | "yes");
            if !yes {
                println!("Nothing was done.");
            }
            Ok(yes)
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Proceed,
    Ask,
    Refuse,
}

fn decide(consent: Consent, is_terminal: bool, is_ci: bool) -> Decision {
    match consent {
        Consent::Given => Decision::Proceed,
        Consent::Ask if is_ci => Decision::Proceed,
        Consent::Ask if is_terminal => Decision::Ask,
        Consent::Ask => Decision::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::machine::{Distro, Rustc};
    use super::*;

    #[test]
    fn setup_asks_on_a_terminal_and_never_surprises_elsewhere() {
        let (terminal, ci) = (true, true);
        assert_eq!(decide(Consent::Given, !terminal, !ci), Decision::Proceed);
        assert_eq!(decide(Consent::Ask, terminal, !ci), Decision::Ask);
        assert_eq!(decide(Consent::Ask, !terminal, ci), Decision::Proceed);
        assert_eq!(decide(Consent::Ask, terminal, ci), Decision::Proceed);
        assert_eq!(decide(Consent::Ask, !terminal, !ci), Decision::Refuse);
    }

    fn machine(os_release: &str, is_root: bool) -> Machine {
        Machine {
            is_root,
            distro: Distro::parse(os_release),
            rustc: Rustc {
                release: "1.95.0".into(),
                llvm_major: 22,
            },
            sysroot: "/nowhere".into(),
            cargo_home: "/nowhere".into(),
            own_tools: "/nowhere".into(),
        }
    }

    #[test]
    fn a_step_that_two_needs_share_is_done_once() {
        let names: Vec<_> = every_step().iter().map(|step| step.name()).collect();
        assert_eq!(
            names.iter().filter(|name| **name == "C compiler").count(),
            1
        );
        assert_eq!(names[0], "C compiler", "cargo install links with it");
    }

    #[test]
    fn packages_come_by_apt_only_to_root_on_debian() {
        let remedy = |os: &str, root| apt_remedy(&machine(os, root), &["docker.io", "gcc"]);
        assert!(matches!(
            remedy("ID=debian", true),
            Remedy::Install(how) if how == "apt-get install docker.io gcc"
        ));
        assert!(matches!(
            remedy("ID=debian", false),
            Remedy::ByHand(advice) if advice.contains("docker.io gcc")
        ));
        assert!(matches!(
            remedy("ID=fedora", true),
            Remedy::ByHand(advice) if advice.contains("docker.io gcc")
        ));
    }

    /// A thing whose installation works, does nothing, or fails.
    struct Fake {
        name: &'static str,
        there: AtomicBool,
        install: fn(&AtomicBool) -> Result<()>,
    }

    impl Fake {
        fn boxed(
            name: &'static str,
            there: bool,
            install: fn(&AtomicBool) -> Result<()>,
        ) -> Box<dyn Step> {
            Box::new(Self {
                name,
                there: AtomicBool::new(there),
                install,
            })
        }
    }

    impl Step for Fake {
        fn name(&self) -> &'static str {
            self.name
        }

        fn inspect(&self, machine: &Machine) -> Finding {
            if self.there.load(Ordering::Relaxed) {
                Finding::Present("here".to_owned())
            } else {
                Finding::Missing {
                    what: format!("no {}", self.name),
                    remedy: apt_remedy(machine, &[self.name]),
                }
            }
        }

        fn install(&self, _: &Machine, _: &mut Apt) -> Result<()> {
            (self.install)(&self.there)
        }
    }

    fn works(there: &AtomicBool) -> Result<()> {
        there.store(true, Ordering::Relaxed);
        Ok(())
    }

    #[test]
    fn a_plan_names_what_is_missing_and_installs_that_only() {
        let machine = machine("ID=debian", true);
        let steps = [
            Fake::boxed("llvm", true, |_| bail!("it is there already")),
            Fake::boxed("docker", false, works),
        ];
        let plan = Plan::make(&machine, &steps);
        assert_eq!(
            plan.report(),
            "llvm              ok: here\ndocker            missing: no docker\n"
        );
        assert_eq!(
            plan.announcement(),
            "To be installed on this machine:\n  docker            apt-get install docker\n"
        );
        assert_eq!(plan.carry_out(&machine), 0);
        assert!(Plan::make(&machine, &steps).is_complete());
    }

    #[test]
    fn a_failed_step_stops_no_other_and_is_counted() {
        let machine = machine("ID=debian", true);
        let steps = [
            Fake::boxed("fails", false, |_| bail!("E: no network")),
            Fake::boxed("lies", false, |_| Ok(())),
            Fake::boxed("works", false, works),
        ];
        assert_eq!(Plan::make(&machine, &steps).carry_out(&machine), 2);
        assert_eq!(Plan::make(&machine, &steps).missing(), 2);
    }

    #[test]
    fn what_setup_cannot_install_is_left_to_the_user() {
        let machine = machine("ID=fedora", true);
        let steps = [Fake::boxed("docker", false, works)];
        let plan = Plan::make(&machine, &steps);
        assert_eq!((plan.missing(), plan.by_hand()), (1, 1));
        assert!(plan.announcement().contains("Debian packages as: docker"));
        assert!(!plan.announcement().contains("To be installed"));
    }
}
