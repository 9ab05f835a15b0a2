use std::collections::BTreeSet;

use super::*;
use crate::case::{Contained, Death, Ending};
use crate::docker::JoinKey;
use crate::journal::CaseId;
use crate::registry::Run;

fn record(origin: Origin) -> Record {
    let death = Death {
        origin,
        at_ns: 1_000_000_000,
        noticed_ns: 1_000_300_000,
        at_unix: 1.0,
        wait_status: None,
        sat_in: None,
    };
    Record::new(CaseId::next(), Run::specimen(), death)
}

fn contained(progress: Progress) -> Contained {
    Contained {
        key: JoinKey::Cgroup,
        progress,
        asked_ns: Some(1_001_000_000),
        ended_ns: Some(1_002_000_000),
        failures: 0,
        killed_by_cgroup: false,
    }
}

/// The lines of all samples.
fn samples(text: &str) -> BTreeSet<&str> {
    text.lines().filter(|line| !line.starts_with('#')).collect()
}

/// The names of all series, with their labels.
fn series(text: &str) -> BTreeSet<&str> {
    let name = |line| str::rsplit_once(line, ' ').map_or(line, |(series, _)| series);
    samples(text).into_iter().map(name).collect()
}

#[test]
fn a_case_is_counted_once_for_each_of_its_sides() {
    let metrics = Metrics::default();
    let before = metrics.encode().unwrap();
    let mut case = record(Origin::Kernel);
    case.result = CaseResult::Clean;
    case.stopped_ns = Some(1_002_000_000);
    case.clean_ns = Some(3_000_000_000);
    for (n, progress) in [
        Progress::Ended(Ending::Term),
        Progress::Ended(Ending::Term),
        Progress::Ended(Ending::AgentKill),
        Progress::Kept,
    ]
    .into_iter()
    .enumerate()
    {
        case.containers.insert(n.to_string(), contained(progress));
    }
    metrics.case_closed(&case);
    metrics.case_closed(&record(Origin::Scan));
    let text = metrics.encode().unwrap();
    for line in [
        "compose_cleanup_cases_total{origin=\"kernel\",result=\"clean\"} 1",
        "compose_cleanup_cases_total{origin=\"scan\",result=\"nothing_left\"} 1",
        "compose_cleanup_cases_total{origin=\"kernel\",result=\"nothing_left\"} 0",
        "compose_cleanup_containers_total{ending=\"term\"} 2",
        "compose_cleanup_containers_total{ending=\"agent_kill\"} 1",
        "compose_cleanup_containers_total{ending=\"kept\"} 1",
        "compose_cleanup_containers_total{ending=\"grace_kill\"} 0",
        // Of the survey's find nobody knows when it ended.
        "compose_cleanup_stage_duration_seconds_count{stage=\"event\"} 1",
        "compose_cleanup_stage_duration_seconds_sum{stage=\"event\"} 0.0003",
        "compose_cleanup_stage_duration_seconds_sum{stage=\"first_stop\"} 0.001",
        "compose_cleanup_stage_duration_seconds_sum{stage=\"stopped\"} 0.002",
        "compose_cleanup_stage_duration_seconds_sum{stage=\"clean\"} 2.0",
    ] {
        assert!(samples(&text).contains(line), "no {line} in {text}");
    }
    // No series that only comes with its first event.
    assert_eq!(series(&before), series(&text));
}

/// Every label value that the daemon can produce has its series from the start.
#[test]
fn every_series_is_there_from_the_start() {
    let metrics = Metrics::default();
    let before = metrics.encode().unwrap();
    for role in Role::ALL {
        metrics.exit(role);
    }
    for origin in Origin::ALL {
        for result in CaseResult::CLOSED {
            let mut case = record(origin);
            case.result = result;
            case.processes_ended = 1;
            metrics.case_closed(&case);
        }
    }
    for operation in Operation::ALL {
        metrics.docker_request(operation, &Ok(()));
        let refused = |status| -> Result<(), DockerError> {
            Err(DockerError::Refused {
                what: String::new(),
                status,
                message: String::new(),
            })
        };
        metrics.docker_request(operation, &refused(404));
        metrics.docker_request(operation, &refused(500));
    }
    for busy in Busy::ALL {
        metrics.rmdir_retry(Some(busy));
    }
    metrics.rmdir_retry(None);
    metrics.losses(&Losses::default());
    metrics.journal(&journal::Stats::default());
    for step in crate::case::Step::ALL {
        CaseMeter::new(metrics.clone()).step(step);
    }
    for ending in [
        Ending::Term,
        Ending::Unconfirmed,
        Ending::GraceKill,
        Ending::AgentKill,
        Ending::Kill,
        Ending::CgroupKill,
        Ending::Already,
        Ending::NoProcess,
    ] {
        let mut case = record(Origin::Kernel);
        let container = contained(Progress::Ended(ending));
        case.containers.insert("0".to_owned(), container);
        metrics.case_closed(&case);
    }
    let after = metrics.encode().unwrap();
    let new: Vec<_> = series(&after)
        .difference(&series(&before))
        .copied()
        .collect();
    // Only a case that is closed is counted with a result.
    let new: Vec<_> = new
        .iter()
        .filter(|name| !name.contains("result=\"open\""))
        .collect();
    assert!(new.is_empty(), "{new:?}");
    assert!(after.ends_with("# EOF\n"));
}

#[test]
fn what_others_count_never_goes_down() {
    let metrics = Metrics::default();
    let written = |written| journal::Stats {
        written,
        ..journal::Stats::default()
    };
    metrics.journal(&written(7));
    metrics.journal(&written(5));
    let text = metrics.encode().unwrap();
    let line = "compose_cleanup_journal_records_written_total 7";
    assert!(samples(&text).contains(line), "{text}");
}

#[test]
fn the_oldest_open_case_ages() {
    let metrics = Metrics::default();
    let age = |metrics: &Metrics| {
        metrics.encode().unwrap();
        metrics.inner.oldest_age.get()
    };
    assert_eq!(age(&metrics), 0.0);
    metrics.oldest_open_case(Some(monotonic_ns() - 5_000_000_000));
    assert!(age(&metrics) >= 5.0);
    metrics.oldest_open_case(None);
    assert_eq!(age(&metrics), 0.0);
}

#[test]
fn each_turn_of_the_loop_counts_and_the_longest_is_kept() {
    let metrics = Metrics::default();
    let second = 1_000_000_000;
    let now = monotonic_ns();
    metrics.handled(now.saturating_sub(3 * second));
    metrics.handled(now);
    let text = metrics.encode().unwrap();
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse().unwrap()
    };
    let turns = "compose_cleanup_loop_turn_duration_seconds";
    assert_eq!(value(&format!("{turns}_count ")), 2.0);
    let longest = value("compose_cleanup_loop_longest_turn_seconds ");
    assert!(longest >= 3.0, "{longest}");
    assert!(value(&format!("{turns}_sum ")) >= longest);
}
