//! The hook module and the daemon on one host: whichever notices first, a pod is
//! cleaned once, and with the daemon missing the requests wait or are taken by
//! `compose-cleanup clean`.

mod clean;
mod one_at_a_time;

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use cleanup_tests::hook::{self, inbox::hex};
use cleanup_tests::host::Host;
use cleanup_tests::mesos::agent::{AgentOptions, HookModule};
use cleanup_tests::scratch::Scratch;
use cleanup_tests::wait;
use cleanup_tests::watcher::Watcher;

const MESOS: &str = "1.11.0";
const SOON: Duration = Duration::from_secs(60);
/// Mesos calls the hook when the framework has acknowledged the task's end: the
/// case has to be open still.
const PATIENT: &str = "mode = \"enforce\"\ngrace = \"2s\"\nsettle = \"3s\"";

fn hooked(name: &str, options: AgentOptions) -> Result<Host> {
    let scratch = Scratch::new(name)?;
    let inbox = Watcher::inbox(&scratch);
    fs::DirBuilder::new().mode(0o700).create(&inbox)?;
    let options = AgentOptions {
        hook: Some(HookModule {
            library: hook::shipped()?.to_owned(),
            name: "org_apache_mesos_ComposePodCleanupHook".to_owned(),
            parameters: vec![("inbox_dir".to_owned(), inbox.display().to_string())],
        }),
        ..options
    };
    Host::on(scratch, MESOS, options, &[])
}

/// Names of the requests in the inbox, those that are kept for later included.
fn requests(host: &Host) -> Result<Vec<String>> {
    let entries = fs::read_dir(Watcher::inbox(&host.scratch))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<_> = names.collect::<Result<_>>()?;
    names.retain(|name| name.ends_with(".request"));
    Ok(names)
}

/// The agent has called the hook.
fn wait_request(host: &Host) -> Result<()> {
    wait::until(SOON, "the hook's request", || {
        requests(host)
            .is_ok_and(|names| names.len() == 1)
            .then_some(())
    })
}

/// What the hook would write.
fn request_text(framework_id: &str, executor_id: &str) -> String {
    format!(
        "compose-cleanup-request 1\nframework_id={}\nexecutor_id={}\ntime_ns=1\nagent_pid=1\nmesos=1.11.0\nend\n",
        hex(framework_id.as_bytes()),
        hex(executor_id.as_bytes())
    )
}

/// Writes a request as the hook does.
fn ask(host: &Host, name: &str, text: &str) -> Result<()> {
    let inbox = Watcher::inbox(&host.scratch);
    fs::write(inbox.join(".tmp-x"), text)?;
    fs::rename(inbox.join(".tmp-x"), inbox.join(name))?;
    Ok(())
}

#[test]
fn both_notice_and_the_pod_is_cleaned_once() -> Result<()> {
    let host = hooked("both", AgentOptions::default())?;
    let watcher = host.watch(PATIENT)?;
    let pod = host.run_pod("we b\"pod", 2, "")?;
    let neighbour = host.run_pod("neighbour", 1, "")?;
    pod.executor.sigkill_executor()?;
    // Whoever starts it meanwhile (a systemd unit) does no harm.
    let clean = host.clean(PATIENT, &[])?.end()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["origin"], "kernel", "{case}");
    assert_eq!(case["also"], "hook", "{case}");
    clean.expect(0);
    assert_eq!(clean.said("case")?.len(), 0);
    ensure!(
        clean.output.contains("takes the requests itself"),
        "{}",
        clean.output
    );
    host.ensure_clean(&pod, &case)?;
    wait::until(SOON, "the inbox to be empty", || {
        requests(&host)
            .is_ok_and(|names| names.is_empty())
            .then_some(())
    })?;
    assert_eq!(watcher.said("case")?.len(), 1);
    ensure!(neighbour.executor.executor().alive());
    assert_eq!(neighbour.executor.running_pod(&host.docker)?.len(), 1);
    Ok(())
}

/// The daemon was down when the executor died: the request waits for it.
#[test]
fn the_hook_alone_notices() -> Result<()> {
    let host = hooked("alone", AgentOptions::posix())?;
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 2, "")?;
    let twin = host.run_pod("twin", 1, "")?;
    watcher.kill9()?;
    pod.executor.sigkill_executor()?;
    host.framework.wait_terminal(&pod.task_id, SOON)?;
    wait_request(&host)?;
    let watcher = host.enforce()?;
    let case = watcher.wait_case(pod.executor.container_id())?;
    assert_eq!(case["origin"], "hook", "{case}");
    host.ensure_clean(&pod, &case)?;
    assert_eq!(requests(&host)?, Vec::<String>::new());
    assert_eq!(twin.executor.running_pod(&host.docker)?.len(), 1);
    Ok(())
}

/// Who may write into the inbox can make the daemon look, and nothing else.
#[test]
fn a_request_for_a_living_executor_changes_nothing() -> Result<()> {
    let host = hooked("living", AgentOptions::default())?;
    let watcher = host.enforce()?;
    let pod = host.run_pod("pod", 2, "")?;
    ask(
        &host,
        "1-1-1.request",
        &request_text(pod.executor.framework_id(), "pod"),
    )?;
    let inbox = Watcher::inbox(&host.scratch);
    fs::write(inbox.join("2-1-1.request"), "garbage")?;
    watcher.wait_message("the hook told of an executor")?;
    // Longer than two surveys.
    wait::holds(Duration::from_secs(5), "the pod runs", || {
        pod.executor
            .running_pod(&host.docker)
            .is_ok_and(|running| running.len() == 2)
    })?;
    assert_eq!(watcher.said("case")?.len(), 0);
    ensure!(
        inbox.join("refused/2-1-1.request").exists(),
        "garbage is put aside"
    );
    Ok(())
}

/// What the kernel says of an end comes first, however much others have to say: it
/// alone knows the time and the status.
#[test]
fn a_flood_of_requests_hides_no_death() -> Result<()> {
    const BETWEEN_DEATHS: usize = 600;
    let host = hooked("flood", AgentOptions::default())?;
    let watcher = host.enforce()?;
    let neighbour = host.run_pod("neighbour", 1, "")?;
    let pods = ["a", "b", "c", "d", "e"].map(|task| host.run_pod(task, 1, ""));
    let pods = pods.into_iter().collect::<Result<Vec<_>>>()?;
    let text = request_text(neighbour.executor.framework_id(), "neighbour");
    let written = host.scratch.path().join("written");
    fs::create_dir(&written)?;
    let names: Vec<_> = (0..BETWEEN_DEATHS * (pods.len() + 1))
        .map(|number| format!("1-1-{number}.request"))
        .collect();
    for name in &names {
        fs::write(written.join(name), &text)?;
    }
    let inbox = Watcher::inbox(&host.scratch);
    let mut next = pods.iter();
    for names in names.chunks(BETWEEN_DEATHS) {
        for name in names {
            fs::rename(written.join(name), inbox.join(name))?;
        }
        if let Some(pod) = next.next() {
            pod.executor.sigkill_executor()?;
        }
    }
    for pod in &pods {
        let case = watcher.wait_case(pod.executor.container_id())?;
        assert_eq!(case["origin"], "kernel", "{case}");
        assert_eq!(case["status"], "signal 9", "{case}");
        host.ensure_clean(pod, &case)?;
    }
    ensure!(neighbour.executor.executor().alive());
    assert_eq!(neighbour.executor.running_pod(&host.docker)?.len(), 1);
    Ok(())
}
