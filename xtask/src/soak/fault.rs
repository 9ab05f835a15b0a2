//! What goes wrong while executors die.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use cleanup_tests::random::Random;
use rustix::process::Signal;

use super::bed::Bed;
use super::pod::Pod;

/// More than a ring of one page has room for: some 40 records.
const FLOOD: usize = 60;
/// Requests handed in at once.
const REQUESTS: u64 = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Fault {
    KillDaemon,
    StopDaemon,
    OverflowRing,
    KillDocker,
    RestartDocker,
    HangDocker,
    KillAgent,
    HangAgent,
    FillDisk,
    HandInRequests,
}

/// What a fault befalls: two at a time befall different parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Daemon,
    Docker,
    Agent,
    Disk,
    Inbox,
}

impl Fault {
    pub(super) const ALL: &[Self] = &[
        Self::KillDaemon,
        Self::StopDaemon,
        Self::OverflowRing,
        Self::KillDocker,
        Self::RestartDocker,
        Self::HangDocker,
        Self::KillAgent,
        Self::HangAgent,
        Self::FillDisk,
        Self::HandInRequests,
    ];

    /// Whether it costs the daemon its life.
    pub(super) fn ends_daemon(self) -> bool {
        matches!(self, Self::KillDaemon | Self::StopDaemon)
    }

    /// None, one or two of these.
    pub(super) fn draw(random: &mut Random, of: &[Self]) -> Vec<Self> {
        let count = match random.below(100) {
            0..30 => 0,
            30..80 => 1,
            _ => 2,
        };
        let mut faults: Vec<Self> = Vec::new();
        for _ in 0..count {
            let free: Vec<Self> = of
                .iter()
                .copied()
                .filter(|fault| faults.iter().all(|other| other.part() != fault.part()))
                .collect();
            faults.extend(random.pick(&free));
        }
        faults
    }

    pub(super) fn part(self) -> Part {
        match self {
            Self::KillDaemon | Self::StopDaemon | Self::OverflowRing => Part::Daemon,
            Self::KillDocker | Self::RestartDocker | Self::HangDocker => Part::Docker,
            Self::KillAgent | Self::HangAgent => Part::Agent,
            Self::FillDisk => Part::Disk,
            Self::HandInRequests => Part::Inbox,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::KillDaemon => "kill -9 daemon",
            Self::StopDaemon => "stop daemon",
            Self::OverflowRing => "overflow ring",
            Self::KillDocker => "kill -9 dockerd",
            Self::RestartDocker => "restart dockerd",
            Self::HangDocker => "hang dockerd",
            Self::KillAgent => "kill -9 agent",
            Self::HangAgent => "hang agent",
            Self::FillDisk => "fill disk",
            Self::HandInRequests => "hand in requests",
        }
    }

    /// For how long it lasts.
    pub(super) fn hold(self, random: &mut Random) -> Duration {
        match self {
            Self::HandInRequests | Self::RestartDocker => Duration::ZERO,
            Self::OverflowRing => random.millis(1000),
            Self::KillDaemon | Self::StopDaemon | Self::KillDocker => random.millis(3000),
            Self::HangDocker => Duration::from_secs(1) + random.millis(9000),
            // Up to beyond the 5 s after which an agent is taken for absent.
            Self::KillAgent => random.millis(8000),
            Self::HangAgent => Duration::from_secs(1) + random.millis(4000),
            Self::FillDisk => random.millis(4000),
        }
    }

    pub(super) fn begin(
        self,
        bed: &mut Bed,
        random: &mut Random,
        living: &[Pod],
        dying: &[Pod],
    ) -> Result<()> {
        match self {
            Self::KillDaemon => bed.kill_daemon(),
            Self::StopDaemon => bed.stop_daemon(),
            Self::OverflowRing => {
                let bystander = random.pick(living).context("a living executor")?;
                bed.signal_daemon(Signal::STOP)?;
                bed.flood(bystander.executor.container_id(), FLOOD)
            }
            Self::KillDocker => bed.host.docker.kill9(),
            Self::RestartDocker => bed.host.docker.restart(),
            Self::HangDocker => bed.host.docker.pause(),
            Self::KillAgent => bed.kill_agent(),
            Self::HangAgent => bed.host.agent.pause(),
            Self::FillDisk => bed.fill_disk(),
            Self::HandInRequests => hand_in(bed, random, living, dying),
        }
        .with_context(|| self.name())
    }

    pub(super) fn end(self, bed: &mut Bed) -> Result<()> {
        match self {
            Self::KillDaemon | Self::StopDaemon => bed.start_daemon(),
            Self::OverflowRing => bed.signal_daemon(Signal::CONT),
            Self::KillDocker => bed.host.docker.restart(),
            Self::HangDocker => bed.host.docker.resume(),
            Self::KillAgent => bed.restart_agent(),
            Self::HangAgent => bed.host.agent.resume(),
            Self::FillDisk => bed.empty_disk(),
            Self::RestartDocker | Self::HandInRequests => Ok(()),
        }
        .with_context(|| format!("the end of: {}", self.name()))
    }
}

/// Requests about executors that live (which must change nothing), about some that
/// die, and what no hook would write.
fn hand_in(bed: &Bed, random: &mut Random, living: &[Pod], dying: &[Pod]) -> Result<()> {
    for number in 0..REQUESTS {
        let about = match random.below(3) {
            0 => random.pick(living),
            1 => random.pick(dying),
            _ => None,
        };
        let mut content = match about {
            Some(pod) => request(pod)?,
            None => (0..random.below(400))
                .map(|_| random.below(256) as u8)
                .collect(),
        };
        if random.percent(20) {
            let length = random.below(content.len() as u64 + 1);
            content.truncate(usize::try_from(length)?);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        bed.hand_in(&format!("{now:020}-1-{number}"), &content)?;
    }
    Ok(())
}

/// docs/hook.md specifies it.
fn request(pod: &Pod) -> Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let mut text = "compose-cleanup-request 1\n".to_owned();
    for (key, value) in [
        ("framework_id", pod.executor.framework_id()),
        ("executor_id", &pod.name),
    ] {
        let hex = cleanup_tests::hook::inbox::hex(value.as_bytes());
        writeln!(text, "{key}={hex}")?;
    }
    write!(text, "time_ns={now}\nagent_pid=1\nmesos=1.11.0\nend\n")?;
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_and_all_of_them_come() {
        let draw = |seed| -> Vec<Vec<Fault>> {
            let mut random = Random::new(seed);
            (0..300)
                .map(|_| Fault::draw(&mut random, Fault::ALL))
                .collect()
        };
        assert_eq!(draw(7), draw(7));
        let all: Vec<Fault> = draw(7).into_iter().flatten().collect();
        assert!(Fault::ALL.iter().all(|fault| all.contains(fault)));
        assert!(draw(7).iter().any(|two| two.len() == 2));
    }

    #[test]
    fn nothing_else_than_what_is_asked_for() {
        let mut random = Random::new(1);
        let of = [Fault::KillDaemon, Fault::OverflowRing];
        for _ in 0..300 {
            let faults = Fault::draw(&mut random, &of);
            // Both befall the daemon.
            assert!(faults.len() <= 1 && faults.iter().all(|fault| of.contains(fault)));
            assert_eq!(Fault::draw(&mut random, &[]), []);
        }
    }
}
