//! What an operator named: the plan, the question, and how it went.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::json;

use super::{BUSY, REFUSED, UNFINISHED};
use crate::cli::control::{ask, encode, no_daemon, tell, without_answer};
use crate::cli::history::{Output, print};
use crate::cli::paint::{Paint, Tone};
use crate::cli::plan::pages;
use crate::cli::settings::{Settings, run_to_end, start_log};
use crate::config::Config;
use crate::daemon::{self, HandOutcome};
use crate::serve::api::{
    Acts, CleanRequest, Cleaning, CleaningState, Cleanings, Mode, Plan, Plans, Standing,
};
use crate::serve::{Order, Target, Wanted, Way, way_to_clean};

/// How often the daemon is asked how far it is.
const PAUSE: Duration = Duration::from_millis(300);
/// What takes longer is told of meanwhile.
const SILENCE: Duration = Duration::from_secs(1);
/// Steps that only a person can lead out of.
const FOR_A_PERSON: [&str; 3] = ["wait_kept", "wait_identity", "wait_agent_stuck"];
/// The same, if the case stays open without this command: without a daemon, what is
/// noticed anew is held anew.
const HELD: &str = "wait_release";

#[derive(Debug)]
pub(super) struct ByHand {
    /// `None`: everything that is dead.
    pub of: Option<String>,
    pub yes: bool,
    pub force_unknown: bool,
    pub output: Output,
    pub timeout: Duration,
}

impl ByHand {
    pub(super) fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let (overridden, dry_run) = (settings.overridden(), settings.is_dry_run());
        let config = settings.configuration()?;
        if !dry_run
            && !self.yes
            && let Some(why) = self.nobody_to_ask()
        {
            return refuse(&why);
        }
        let plans = match ask::<Plans>(&config, &self.query()) {
            Ok(plans) => plans,
            Err(error) if no_daemon(&error) => {
                let wanted = self.of.as_deref().map(Target::new);
                let wanted = wanted.map_or(Wanted::Orphans, Wanted::Of);
                let forced = self.force_unknown;
                run_to_end(daemon::plan_alone(config.clone(), wanted, forced))?
            }
            Err(error) => return without_answer(error),
        };
        if plans.by_daemon && !dry_run && !overridden.is_empty() {
            return refuse(&format!(
                "a daemon runs, and does it with its own configuration: leave out {}",
                overridden.join(", ")
            ));
        }
        let found = self.chosen(&plans)?;
        if dry_run {
            return self.tell_plans(&plans, &found);
        }
        let Some(clear) = self.may_be_cleaned(&plans, &found)? else {
            return Ok(ExitCode::from(REFUSED));
        };
        if clear.is_empty() {
            return self.report(&plans, &[]);
        }
        if self.output == Output::Table {
            print(&pages(&of(&plans, &clear), Paint::of_stdout()))?;
        }
        if !self.yes && !confirmed(clear.len())? {
            return refuse("nobody said yes");
        }
        let done = if plans.by_daemon {
            self.by_daemon(&config, &clear)
        } else {
            eprintln!("no daemon runs: this command does it by itself");
            self.alone(config, &clear)
        };
        match done {
            Ok(Some(cleanings)) => self.report(&of(&plans, &clear), &cleanings.cleanings),
            Ok(None) => Ok(ExitCode::from(BUSY)),
            Err(error) => without_answer(error),
        }
    }

    fn nobody_to_ask(&self) -> Option<String> {
        if self.output == Output::Json {
            return Some("--output json asks nobody: give --yes, or --dry-run".to_owned());
        }
        let nobody = !io::stdin().is_terminal() || !io::stderr().is_terminal();
        nobody.then(|| {
            "this is no terminal, nobody can be asked: give --yes, or --dry-run".to_owned()
        })
    }

    fn query(&self) -> String {
        match &self.of {
            Some(of) if self.force_unknown => {
                format!("plan?of={}&force_unknown=true", encode(of))
            }
            Some(of) => format!("plan?of={}", encode(of)),
            None => "plan?orphans=true".to_owned(),
        }
    }

    /// The one run that was named, or all orphans. Runs of the past, of which nothing
    /// is left, make no name ambiguous.
    fn chosen<'a>(&self, plans: &'a Plans) -> anyhow::Result<Vec<&'a Plan>> {
        let all: Vec<&Plan> = plans.plans.iter().collect();
        let Some(of) = &self.of else { return Ok(all) };
        let name = of.escape_debug();
        let something = all.iter().copied();
        let mut something: Vec<&Plan> = something
            .filter(|plan| way_to_clean(plan) != Way::Nothing)
            .collect();
        match (something.len(), all.first()) {
            (1, _) => Ok(something),
            (0, Some(one)) => Ok(vec![one]),
            (0, None) => bail!(
                "no run of {name} is known here: neither an executor id nor the first 4 digits or more of a container id; \
                 `compose-cleanup plan --orphans` lists what is dead or unknown"
            ),
            _ => {
                something.sort_by(|a, b| a.container.cmp(&b.container));
                let runs = something.iter().map(|plan| {
                    let standing = standing(plan.standing);
                    format!("{} ({standing}, {})", plan.container, name_of(plan))
                });
                bail!(
                    "{} runs fit {name}, name one by its container id: {}",
                    something.len(),
                    runs.collect::<Vec<_>>().join(", ")
                )
            }
        }
    }

    /// Those that nothing stands in the way of; `None`, after a line, if it is refused.
    fn may_be_cleaned<'a>(
        &self,
        plans: &Plans,
        found: &[&'a Plan],
    ) -> anyhow::Result<Option<Vec<&'a Plan>>> {
        let in_the_way = |plan: &Plan| match way_to_clean(plan) {
            Way::Blocked(why) => Some((plan.standing, why)),
            Way::Clear | Way::Nothing => None,
        };
        let blocked: Vec<(&Plan, Standing, String)> = found
            .iter()
            .filter_map(|plan| in_the_way(plan).map(|(standing, why)| (*plan, standing, why)))
            .collect();
        let refusal = match blocked.first() {
            Some((plan, Standing::Live, _)) if self.of.is_some() => {
                Some(format!("{} lives: {}", full_name(plan), plan.evidence))
            }
            Some((plan, Standing::Unknown, why)) if self.of.is_some() => Some(format!(
                "{}: {why}; {}",
                full_name(plan),
                if self.force_unknown {
                    "what may live is not touched"
                } else {
                    "if it is surely dead: --force-unknown"
                }
            )),
            _ if plans.mode == Mode::Observe => Some(if plans.by_daemon {
                "the daemon's mode is \"observe\", which changes nothing: set mode = \"enforce\" in its configuration and reload it; \
                 or stop it, and give this command --mode enforce"
                    .to_owned()
            } else {
                "the configuration's mode is \"observe\", which changes nothing: give --mode enforce, or set it there"
                    .to_owned()
            }),
            Some((plan, _, why)) if self.of.is_some() => {
                Some(format!("{}: {why}", full_name(plan)))
            }
            _ => None,
        };
        if let Some(why) = refusal {
            eprintln!("compose-cleanup: refuse: {why}");
            return Ok(None);
        }
        let clear: Vec<&Plan> = found
            .iter()
            .copied()
            .filter(|plan| way_to_clean(plan) == Way::Clear)
            .collect();
        // Of all orphans: what is left alone, and whether that was meant.
        let unknown = blocked
            .iter()
            .filter(|(_, standing, _)| *standing == Standing::Unknown);
        let unknown = unknown.count();
        if unknown > 0 {
            eprintln!("left alone: {unknown} unknown; `compose-cleanup plan --orphans` says why");
        }
        let mut refused = false;
        for (plan, _, why) in blocked
            .iter()
            .filter(|(_, standing, _)| *standing == Standing::Dead)
        {
            eprintln!("left alone: {}: {why}", full_name(plan));
            refused = true;
        }
        Ok((!clear.is_empty() || !refused).then_some(clear))
    }

    fn by_daemon(&self, config: &Config, clear: &[&Plan]) -> anyhow::Result<Option<Cleanings>> {
        let containers: Vec<String> = clear.iter().map(|plan| plan.container.clone()).collect();
        let order = CleanRequest {
            containers: containers.clone(),
            force_unknown: self.force_unknown,
        };
        let mut progress = Progress::new(true);
        let mut reached = tell::<Cleanings>(config, "clean", &order)?;
        while progress.goes_on(&reached) && progress.began.elapsed() < self.timeout {
            std::thread::sleep(PAUSE);
            // One that was refused at once is not remembered.
            for cleaning in ask::<Cleanings>(config, "clean")?.cleanings {
                let mut known = reached.cleanings.iter_mut();
                let known = known.find(|known| known.container == cleaning.container);
                if let Some(known) = known.filter(|known| !is_over(known)) {
                    *known = cleaning;
                }
            }
        }
        Ok(Some(reached))
    }

    fn alone(&self, config: Config, clear: &[&Plan]) -> anyhow::Result<Option<Cleanings>> {
        start_log(config.log_format, "warn");
        let orders = clear.iter().map(|plan| {
            let container = plan.container.parse();
            let container = container.with_context(|| format!("{} is no id", plan.container))?;
            Ok(Order {
                container,
                forced: self.force_unknown,
            })
        });
        let orders: Vec<Order> = orders.collect::<anyhow::Result<_>>()?;
        let mut progress = Progress::new(false);
        let work = daemon::clean_by_hand(config, orders, self.timeout, move |reached| {
            progress.goes_on(reached)
        });
        Ok(match run_to_end(work)? {
            HandOutcome::Done(cleanings) => Some(cleanings),
            HandOutcome::Watched(occupant) => {
                eprintln!("compose-cleanup: {occupant}, runs now: give the command again");
                None
            }
            HandOutcome::Busy(occupant) => {
                eprintln!("compose-cleanup: {occupant} is still at work: nothing was done");
                None
            }
        })
    }

    fn tell_plans(&self, plans: &Plans, found: &[&Plan]) -> anyhow::Result<ExitCode> {
        let plans = of(plans, found);
        match self.output {
            Output::Json => print(&format!("{:#}\n", json!({"plans": plans, "cleanings": []})))?,
            Output::Table if found.is_empty() => {
                eprintln!("nothing on this host is dead or unknown");
            }
            Output::Table => print(&pages(&plans, Paint::of_stdout()))?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn report(&self, plans: &Plans, cleanings: &[Cleaning]) -> anyhow::Result<ExitCode> {
        match self.output {
            Output::Json => {
                let document = json!({"plans": plans, "cleanings": cleanings});
                print(&format!("{document:#}\n"))?;
            }
            Output::Table if cleanings.is_empty() => eprintln!("nothing to clean up after"),
            Output::Table => print(&table(cleanings, Paint::of_stdout()))?,
        }
        for cleaning in cleanings {
            let run = &cleaning.container;
            if let Some(why) = &cleaning.why {
                eprintln!("compose-cleanup: refuse: {run}: {why}");
            }
            if let Some(what) = waits(cleaning) {
                eprintln!("compose-cleanup: {run} is not finished: {what}");
            }
        }
        let status = if cleanings.iter().any(is_unfinished) {
            UNFINISHED
        } else if cleanings.iter().any(is_refused) {
            REFUSED
        } else {
            0
        };
        Ok(ExitCode::from(status))
    }
}

/// Tells whoever waits what for.
struct Progress {
    /// A daemon does it, and goes on when this command has ended.
    by_daemon: bool,
    began: Instant,
    last: String,
}

impl Progress {
    fn new(by_daemon: bool) -> Self {
        Self {
            by_daemon,
            began: Instant::now(),
            last: String::new(),
        }
    }

    /// Whether something may still come of waiting.
    fn goes_on(&mut self, reached: &Cleanings) -> bool {
        let open: Vec<&Cleaning> = reached
            .cleanings
            .iter()
            .filter(|cleaning| !is_over(cleaning))
            .collect();
        let Some(first) = open.first() else {
            return false;
        };
        let line = format!(
            "{} of {} to go; {}: {}",
            open.len(),
            reached.cleanings.len(),
            first.container,
            waits(first).unwrap_or_default()
        );
        if self.began.elapsed() >= SILENCE && line != self.last {
            eprintln!("{line}");
            self.last = line;
        }
        let is_for_a_person = |cleaning: &&Cleaning| {
            let step = cleaning.case.as_ref().map(|case| case.step.as_str());
            step.is_some_and(|step| FOR_A_PERSON.contains(&step) || step == HELD && self.by_daemon)
        };
        !open.iter().all(is_for_a_person)
    }
}

/// What one that is not over waits for.
fn waits(cleaning: &Cleaning) -> Option<String> {
    match (cleaning.state, &cleaning.case) {
        (CleaningState::Looking, _) => {
            Some("a second look at the host, 2s after the first".to_owned())
        }
        (CleaningState::AtWork, Some(case)) => {
            let trouble = case.trouble.as_ref();
            let trouble = trouble.map_or_else(String::new, |trouble| format!(" ({trouble})"));
            Some(match &case.waits_for {
                Some(what) => format!("it waits for {what}{trouble}"),
                None => format!("its case is at {}{trouble}", case.step),
            })
        }
        (CleaningState::AtWork, None) => Some("its case is open".to_owned()),
        _ => None,
    }
}

fn is_over(cleaning: &Cleaning) -> bool {
    !matches!(
        cleaning.state,
        CleaningState::Looking | CleaningState::AtWork
    )
}

fn result(cleaning: &Cleaning) -> &str {
    match (&cleaning.closed, cleaning.state) {
        (Some(closed), _) => &closed.result,
        (None, CleaningState::Looking) => "looking",
        (None, CleaningState::AtWork) => "at_work",
        (None, CleaningState::Closed) => "closed",
        (None, CleaningState::NothingLeft) => "nothing_left",
        (None, CleaningState::Refused) => "refused",
    }
}

fn is_unfinished(cleaning: &Cleaning) -> bool {
    !is_over(cleaning) || result(cleaning) == "handed_over"
}

fn is_refused(cleaning: &Cleaning) -> bool {
    !matches!(result(cleaning), "clean" | "nothing_left")
}

fn table(cleanings: &[Cleaning], paint: Paint) -> String {
    let head = format!(
        "{:<36}  {:<12}  {:>10}  {:>15}  CASE",
        "RUN", "RESULT", "CONTAINERS", "CGROUPS_REMOVED"
    );
    let mut out = format!("\n{}\n", paint.tone(Tone::Heading, &head));
    for cleaning in cleanings {
        let closed = cleaning.closed.as_ref();
        let number =
            |count: Option<usize>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let open = cleaning.case.as_ref().map(|case| case.case.as_str());
        let case = closed.map(|closed| closed.case.as_str()).or(open);
        let _ = writeln!(
            out,
            "{:<36}  {:<12}  {:>10}  {:>15}  {}",
            cleaning.container,
            result(cleaning),
            number(closed.map(|closed| closed.containers)),
            number(closed.map(|closed| closed.cgroups_removed)),
            case.unwrap_or("-"),
        );
    }
    out
}

fn refuse(why: &str) -> anyhow::Result<ExitCode> {
    eprintln!("compose-cleanup: refuse: {why}");
    Ok(ExitCode::from(REFUSED))
}

fn confirmed(runs: usize) -> anyhow::Result<bool> {
    let these = if runs == 1 { "this run" } else { "these runs" };
    eprint!("\nclean up after {these} now? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("no answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The same, of these runs only.
fn of(plans: &Plans, chosen: &[&Plan]) -> Plans {
    let by_this = |plan: &&Plan| {
        let mut plan = (*plan).clone();
        if plan.acts == Acts::Now && !plans.by_daemon {
            "by this command".clone_into(&mut plan.why);
        }
        plan
    };
    Plans {
        plans: chosen.iter().map(by_this).collect(),
        ..plans.clone()
    }
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Live => "live",
        Standing::Dead => "dead",
        Standing::Unknown => "unknown",
    }
}

fn name_of(plan: &Plan) -> String {
    plan.executor.as_ref().map_or_else(
        || "executor not known".to_owned(),
        |id| format!("executor {id}"),
    )
}

fn full_name(plan: &Plan) -> String {
    format!("{} (run {})", name_of(plan), plan.container)
}

#[cfg(test)]
mod tests;
