//! `compose-cleanup executors`, with a daemon and without.

use anyhow::{Context, Result, ensure};
use cleanup_tests::docker::IMAGE;
use cleanup_tests::host::{ENFORCE, Host};
use cleanup_tests::mesos::agent::AgentOptions;
use cleanup_tests::scratch::Scratch;
use cleanup_tests::watcher::configure;
use serde_json::json;

use super::{say, wait_json};

/// Two live executors, and each container with its own; one that dies is gone from
/// the list, and so is its pod.
#[test]
fn who_lives_and_with_which_containers() -> Result<()> {
    let host = Host::start("executors", "1.11.0", AgentOptions::default())?;
    let watcher = host.watch(ENFORCE)?;
    let none = say(&host.scratch, &["executors"])?;
    none.expect_line(0, &["no executor lives"]);
    let web = host.run_pod("web", 2, "")?;
    let db = host.run_pod("db \"x\"", 1, "--no-cgroup-parent")?;
    for pod in [&web, &db] {
        watcher.wait_executor_learnt(pod.executor.container_id())?;
    }
    let answer = wait_json(&host.scratch, &["executors"], "both pods", |answer| {
        let pods = answer["executors"].as_array().into_iter().flatten();
        pods.filter_map(|executor| executor["pod"].as_array())
            .map(Vec::len)
            .sum::<usize>()
            == 3
    })?;
    let executors = answer["executors"].as_array().context("a list")?;
    for (seen, pod, name, key) in [
        (&executors[1], &web, "web", "cgroup"),
        (&executors[0], &db, "db \"x\"", "working_dir"),
    ] {
        assert_eq!(seen["executor"], name);
        assert_eq!(seen["container"], pod.executor.container_id());
        assert_eq!(seen["framework"], pod.executor.framework_id());
        assert_eq!(seen["helper_pid"], pod.executor.helper().pid());
        assert_eq!(seen["executor_pid"], pod.executor.executor().pid());
        assert_eq!(seen["launcher"], "linux");
        assert_eq!(seen["orphaned"], false);
        let containers = seen["pod"].as_array().context("a pod")?;
        let mut ids: Vec<&str> = containers
            .iter()
            .filter_map(|one| one["id"].as_str())
            .collect();
        ids.sort_unstable();
        let mut expected: Vec<&str> = pod.containers.iter().map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(ids, expected, "{seen}");
        for container in containers {
            assert_eq!(container["image"], IMAGE);
            assert_eq!(container["joined_by"], key, "{container}");
            assert_eq!(container["kept"], json!(false));
        }
    }
    let table = say(&host.scratch, &["executors"])?;
    let table = &table.expect(0).out;
    assert_eq!(table.lines().count(), 1 + 2 + 3, "{table}");
    ensure!(table.contains(&web.containers[0][..12]), "{table}");

    web.executor.sigkill_executor()?;
    let case = watcher.wait_case(web.executor.container_id())?;
    host.ensure_clean(&web, &case)?;
    let after = wait_json(&host.scratch, &["executors"], "one to be left", |answer| {
        answer["executors"]
            .as_array()
            .is_some_and(|all| all.len() == 1)
    })?;
    assert_eq!(after["executors"][0]["executor"], "db \"x\"");
    assert_eq!(
        after["executors"][0]["pod"].as_array().map(Vec::len),
        Some(1)
    );
    Ok(())
}

#[test]
fn without_a_daemon() -> Result<()> {
    let scratch = Scratch::new("noexecutors")?;
    configure(&scratch, &scratch.path().join("no-docker.sock"), &[], "")?;
    say(&scratch, &["executors"])?.expect_line(3, &["no daemon runs"]);
    let refused = say(&scratch, &["executors", "--output", "xml"])?;
    ensure!(refused.expect(2).errors.contains("xml"));
    Ok(())
}
