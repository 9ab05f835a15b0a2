//! Page, alerts and dashboard name what the binary exports, and the page names all
//! of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cleanup_userspace::metrics::{Metrics, PREFIX};
use serde_json::Value;

use super::*;

const OPERATIONS: &str = "docs/operations.md";

fn file(path: &str) -> Result<String> {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::read_to_string(root.join(path)).with_context(|| path.to_owned())
}

/// What the binary exports, by its one registry.
fn exported() -> Result<Exposition> {
    Exposition::parse(&Metrics::default().encode()?)
}

/// What is in backticks.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_page_lists_each_with_its_type_and_labels() -> Result<()> {
    let page = file("docs/metrics.md")?;
    let mut rows = BTreeMap::new();
    for line in page.lines() {
        let Some(rest) = line.strip_prefix(&format!("| `{PREFIX}")) else {
            continue;
        };
        let cells: Vec<&str> = rest.split(" | ").collect();
        let name = cells[0]
            .strip_suffix('`')
            .with_context(|| line.to_owned())?;
        ensure!(cells.len() == 5, "{} cells: {line}", cells.len());
        ensure!(
            rows.insert(format!("{PREFIX}{name}"), cells).is_none(),
            "twice: {line}"
        );
    }
    for (name, family) in exported()?.families {
        let name = family.queried_as(&name);
        let cells = rows
            .remove(&name)
            .with_context(|| format!("{name} has no row"))?;
        assert_eq!(cells[1], family.kind, "{name}");
        let labels = family.labels();
        let mut named: BTreeSet<&str> = labels.keys().copied().collect();
        if family.kind != "info" {
            named.extend(labels.values().flatten());
        }
        assert_eq!(quoted(cells[2]), named, "{name}");
    }
    ensure!(rows.is_empty(), "not exported: {:?}", rows.keys());
    Ok(())
}

/// Whether everything that an expression selects is exported.
fn check_expression(expression: &str, exported: &Exposition) -> Result<usize> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = 0;
    for (at, _) in expression.match_indices(PREFIX) {
        let rest = &expression[at..];
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let (_, family) = exported
            .family(name)
            .with_context(|| format!("{name} is not exported"))?;
        found += 1;
        let Some(matchers) = rest
            .strip_prefix('{')
            .and_then(|rest| rest.split('}').next())
        else {
            continue;
        };
        let labels = family.labels();
        for matcher in matchers.split(',') {
            let (label, value) = matcher.split_once('=').context("a matcher")?;
            let label = label.trim().trim_end_matches('!');
            if ["job", "instance", "le"].contains(&label) {
                continue;
            }
            let known = labels
                .get(label)
                .with_context(|| format!("{name} has no label {label}"))?;
            let value = value.trim_start_matches('~').trim_matches('"');
            for value in value.split('|') {
                ensure!(known.contains(value), "{name} has no {label}={value}");
            }
        }
    }
    Ok(found)
}

/// As GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        let kept = text
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn the_alerts_select_what_is_exported() -> Result<()> {
    let rules = file("deploy/prometheus/rules.yml")?;
    let exported = exported()?;
    let anchors = anchors(&file(OPERATIONS)?);
    let (mut alerts, mut expressions, mut runbooks) = (0, 0, 0);
    for line in rules.lines().map(str::trim) {
        if line.starts_with("- alert:") {
            alerts += 1;
        } else if line.starts_with("expr:") {
            check_expression(line, &exported).with_context(|| line.to_owned())?;
            expressions += 1;
        } else if let Some(runbook) = line.strip_prefix("runbook:") {
            let (page, anchor) = runbook.trim().split_once('#').context("no anchor")?;
            ensure!(page == OPERATIONS && anchors.contains(anchor), "{runbook}");
            runbooks += 1;
        } else if line.contains(PREFIX) && !line.starts_with('#') {
            // In a text, say.
            check_expression(line, &exported).with_context(|| line.to_owned())?;
        }
    }
    ensure!(alerts >= 8, "{alerts} alerts");
    // `promtool test rules` reads this one; that is not here on every machine.
    for line in file("deploy/prometheus/rules_test.yml")?.lines() {
        check_expression(line, &exported).with_context(|| line.to_owned())?;
    }
    assert_eq!((expressions, runbooks), (alerts, alerts));
    Ok(())
}

#[test]
fn the_dashboard_selects_what_is_exported() -> Result<()> {
    let dashboard: Value = serde_json::from_str(&file("deploy/grafana/dashboard.json")?)?;
    let exported = exported()?;
    let mut found = 0;
    let mut places = vec![&dashboard];
    while let Some(place) = places.pop() {
        match place {
            Value::Array(values) => places.extend(values),
            Value::Object(values) => places.extend(values.values()),
            Value::String(text) => {
                found += check_expression(text, &exported).with_context(|| text.clone())?;
            }
            _ => {}
        }
    }
    ensure!(found >= 15, "{found} selectors");
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels with one id");
    Ok(())
}

#[test]
fn a_wrong_name_is_found() -> Result<()> {
    let exported = exported()?;
    let good = "sum by (stage) (rate(compose_cleanup_stage_duration_seconds_bucket{stage=~\"event|clean\",le=\"0.1\"}[5m]))";
    assert_eq!(check_expression(good, &exported)?, 1);
    for bad in [
        "compose_cleanup_cases",
        "compose_cleanup_heId",
        "compose_cleanup_open_cases{step=\"stuck\"}",
        "compose_cleanup_open_cases{state=\"wait_busy\"}",
        "up == 0 or compose_cleanup_stage_duration_seconds_bucket{stage=~\"event|clear\"}",
    ] {
        if check_expression(bad, &exported).is_ok() {
            bail!("{bad} was found right");
        }
    }
    Ok(())
}
