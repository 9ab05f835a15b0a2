//! How the daemon would notice deaths on this host, and why.

use super::{Check, Verdict};
use crate::config::ProbeChoice;
use crate::probe::{self, GroupDeadSource, ProbeError, ProbeKind};
use crate::process;

const WHAT: &str = "probe";
/// What an operator has to know of the fallback.
const LESS: &str = "an executor that lives and dies between two looks is found seconds later, and \
                    exit statuses are not known (docs/operations.md, \"Without eBPF\")";

/// What the exit probe needs, and which way of noticing deaths this host gets.
pub(super) fn checks(choice: ProbeChoice) -> Vec<Check> {
    let kernel = kernel();
    let types = kernel_types();
    let missing = [&kernel, &types]
        .into_iter()
        .find(|check| check.verdict != Verdict::Ok)
        .map(|check| check.detail.clone());
    let pidfds = process::pidfds_work().map_err(|error| error.to_string());
    let probe = which(choice, missing.as_deref(), pidfds.as_ref().err());
    let needed = choice == ProbeChoice::Ebpf;
    [kernel, types]
        .into_iter()
        .map(|check| if needed { check } else { optional(check) })
        .chain([probe])
        .collect()
}

/// `missing`: what the exit probe lacks here; `no_pidfds`: why there are none.
fn which(choice: ProbeChoice, missing: Option<&str>, no_pidfds: Option<&String>) -> Check {
    let poll = |why: &str, remedy: String| {
        let how = no_pidfds.map_or_else(
            || "processes are watched by pidfd".to_owned(),
            |error| format!("processes are looked at 5 times a second, without pidfds ({error})"),
        );
        let kind = ProbeKind::Poll;
        Check::warning(WHAT, format!("{kind}, {why}; {how}"), remedy)
    };
    match (choice, missing) {
        (ProbeChoice::Ebpf, None) => Check::ok(WHAT, "ebpf: the kernel reports each death"),
        (ProbeChoice::Auto, None) => Check::ok(
            WHAT,
            "ebpf, by probe = \"auto\": the kernel reports each death",
        ),
        (ProbeChoice::Ebpf, Some(missing)) => Check::refused(
            WHAT,
            format!("ebpf, which cannot run here: {missing}"),
            format!("see above; or set probe = \"poll\" or \"auto\": {LESS}"),
        ),
        (ProbeChoice::Auto, Some(missing)) => poll(
            &format!("by probe = \"auto\", since eBPF cannot run here: {missing}"),
            format!("see above; until then {LESS}"),
        ),
        (ProbeChoice::Poll, Some(missing)) => poll(
            &format!("as configured (eBPF cannot run here: {missing})"),
            format!("see above, then set probe = \"ebpf\"; until then {LESS}"),
        ),
        (ProbeChoice::Poll, None) => poll(
            "as configured, though eBPF can run here",
            format!("set probe = \"ebpf\"; until then {LESS}"),
        ),
    }
}

/// Something that only the exit probe needs, where there is another way.
fn optional(check: Check) -> Check {
    Check {
        verdict: check.verdict.min(Verdict::Warning),
        ..check
    }
}

fn kernel() -> Check {
    const WHAT: &str = "kernel";
    match probe::examine_kernel() {
        Ok(release) => Check::ok(WHAT, format!("Linux {release}, and what loading BPF takes")),
        Err(error) => Check::refused(WHAT, error.to_string(), remedy(&error)),
    }
}

fn kernel_types() -> Check {
    const WHAT: &str = "kernel types";
    match probe::examine_types() {
        Ok(GroupDeadSource::Argument) => Check::ok(
            WHAT,
            "BTF, and a tracepoint that tells the end of a process",
        ),
        Ok(GroupDeadSource::LiveCounter) => Check::ok(
            WHAT,
            "BTF; the end of a process is told by its thread counter",
        ),
        Err(error) => Check::refused(WHAT, error.to_string(), remedy(&error)),
    }
}

fn remedy(error: &ProbeError) -> String {
    match error {
        ProbeError::Unsupported { remedy, .. } => remedy.clone(),
        ProbeError::MissingCapability { .. } => {
            "run as root with CAP_BPF and CAP_PERFMON".to_owned()
        }
        ProbeError::NoBtf { .. } | ProbeError::InvalidBtf { .. } => {
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y".to_owned()
        }
        ProbeError::KernelTooOld { .. } => "boot Linux 5.8 or later".to_owned(),
        _ => "report it with the output of `uname -r`".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_says_which_one_the_host_gets_and_why() {
        use ProbeChoice::{Auto, Ebpf, Poll};
        let old = "a kernel from before".to_owned();
        for (choice, missing, verdict, words) in [
            (Ebpf, None, Verdict::Ok, "ebpf"),
            (Auto, None, Verdict::Ok, "ebpf, by probe = \"auto\""),
            (Ebpf, Some("no BTF"), Verdict::Refused, "no BTF"),
            (
                Auto,
                Some("no BTF"),
                Verdict::Warning,
                "poll, by probe = \"auto\"",
            ),
            (
                Poll,
                Some("no BTF"),
                Verdict::Warning,
                "poll, as configured (eBPF",
            ),
            (Poll, None, Verdict::Warning, "though eBPF can run here"),
        ] {
            for no_pidfds in [None, Some(&old)] {
                let check = which(choice, missing, no_pidfds);
                assert_eq!(check.verdict, verdict, "{check:?}");
                assert!(check.detail.contains(words), "{check:?}");
                assert!(check.detail.contains(missing.unwrap_or("")), "{check:?}");
                let polls = verdict == Verdict::Warning;
                let says = no_pidfds.is_some() && polls;
                assert_eq!(check.detail.contains(&old), says, "{check:?}");
                assert_eq!(check.remedy.is_some(), verdict != Verdict::Ok, "{check:?}");
            }
        }
    }

    #[test]
    fn what_only_the_exit_probe_needs_is_no_refusal_without_it() {
        for choice in [ProbeChoice::Poll, ProbeChoice::Auto] {
            for check in checks(choice) {
                assert_ne!(check.verdict, Verdict::Refused, "{check:?}");
            }
        }
    }
}
