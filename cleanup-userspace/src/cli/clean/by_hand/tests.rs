use super::*;
use serde_json::{Value, from_value};

fn cleanings(of: &Value) -> Cleanings {
    from_value(json!({"now_unix_ns": 1, "cleanings": of})).unwrap()
}

fn case(step: &str, waits_for: Option<&str>) -> Value {
    json!({"case": "4f21ab0c", "container": "857f", "origin": "operator", "status": "unknown",
           "died_unix_ns": 1, "age_ns": 1, "step": step, "step_age_ns": 1, "waits_for": waits_for,
           "pod": {"containers": 1, "to_stop": 0, "stopping": 1, "ended": 0, "kept": 0}})
}

#[test]
fn waiting_ends_when_only_a_person_could_end_it() {
    let looking = json!({"container": "a", "state": "looking"});
    let closed = json!({"container": "b", "state": "closed",
        "closed": {"case": "1", "result": "clean", "containers": 2, "cgroups_removed": 3}});
    let docker = json!({"container": "c", "state": "at_work", "case": case("wait_docker", Some("Docker's answer"))});
    let kept =
        json!({"container": "d", "state": "at_work", "case": case("wait_kept", Some("its end"))});
    let held = json!({"container": "e", "state": "at_work", "case": case("wait_release", Some("release"))});
    for (reached, alone) in [(json!([held]), true), (json!([held, kept]), true)] {
        let reached = cleanings(&reached);
        assert_eq!(Progress::new(false).goes_on(&reached), alone);
        assert!(!Progress::new(true).goes_on(&reached));
    }
    for (reached, goes_on) in [
        (json!([]), false),
        (json!([closed]), false),
        (json!([closed, looking]), true),
        (json!([closed, docker]), true),
        (json!([docker, kept]), true),
        (json!([closed, kept]), false),
    ] {
        let what = reached.to_string();
        assert_eq!(
            Progress::new(true).goes_on(&cleanings(&reached)),
            goes_on,
            "{what}"
        );
    }
}

#[test]
fn what_became_of_each_is_a_line() {
    let reached = cleanings(&json!([
        {"container": "a", "state": "closed",
         "closed": {"case": "77", "result": "clean", "containers": 2, "cgroups_removed": 3}},
        {"container": "b", "state": "at_work", "case": case("wait_docker", Some("Docker's answer"))},
        {"container": "c", "state": "refused", "why": "it lives: process 7 runs"},
    ]));
    let table = table(&reached.cleanings, Paint::OFF);
    let lines: Vec<Vec<&str>> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[1..],
        [
            vec!["a", "clean", "2", "3", "77"],
            vec!["b", "at_work", "-", "-", "4f21ab0c"],
            vec!["c", "refused", "-", "-", "-"],
        ],
        "{table}"
    );
    let unfinished: Vec<bool> = reached.cleanings.iter().map(is_unfinished).collect();
    assert_eq!(unfinished, [false, true, false]);
    let refused: Vec<bool> = reached.cleanings.iter().map(is_refused).collect();
    assert_eq!(refused, [false, true, true]);
}
