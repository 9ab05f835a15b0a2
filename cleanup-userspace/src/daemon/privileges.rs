//! What the daemon's threads may do: what its work takes, and no more.
//!
//! Capabilities belong to a thread and are inherited by those that it makes. So this
//! is done before there is a second one.

use std::fmt;

use anyhow::Context as _;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use crate::config::{Config, ProbeChoice};

/// To read directories and remove cgroups of any user; to end what any user's
/// executor leaves; to read the environment and the namespaces of processes that may
/// do more than this one.
const ALWAYS: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SYS_PTRACE);

/// To load the exit probe, now and when it has to be attached anew, and to use its
/// maps where unprivileged processes may make no bpf(2) call.
const PROBE: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::PERFMON);

/// Below this a port takes CAP_NET_BIND_SERVICE.
const UNPRIVILEGED_PORTS: u16 = 1024;

/// Gives up every capability that the daemon does not need with this configuration,
/// of all five sets, and the gaining of others by running a program. Never fails: a
/// part that is refused is said, and the work goes on with more than it needs.
/// `limited`: real-time priority is wanted, and takes a capability on this host.
///
/// Must be called before this process has a second thread.
pub fn drop_unneeded(config: &Config, limited: bool) {
    match keep_only(config, limited) {
        Ok(kept) => tracing::debug!(capabilities = %Names(kept), "capabilities"),
        Err(error) => tracing::warn!(
            error = %format!("{error:#}"),
            "capabilities that are not needed could not all be given up; the work goes on"
        ),
    }
}

/// Returns what is left.
fn keep_only(config: &Config, limited: bool) -> anyhow::Result<CapabilitySet> {
    let now = capabilities(None).context("cannot read the capabilities of this process")?;
    let kept = needed(config, limited, now.permitted) & now.permitted;
    set_no_new_privs(true).context("cannot set no_new_privs")?;
    match clear_ambient_capability_set() {
        // Before Linux 4.3 there is no such set.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error).context("cannot clear the ambient set"),
    }
    // While it may. Without this right the set is what whoever started this process
    // made it; a program that gained from it would have to be run, and none is.
    let bounding = if now.effective.contains(CapabilitySet::SETPCAP) {
        limit_bounding_set(kept)
    } else {
        Ok(())
    };
    set_capabilities(
        None,
        CapabilitySets {
            effective: now.effective & kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
    .context("cannot set the capabilities of this process")?;
    bounding?;
    Ok(kept)
}

fn needed(config: &Config, limited: bool, permitted: CapabilitySet) -> CapabilitySet {
    let mut needed = ALWAYS;
    if limited {
        needed |= CapabilitySet::SYS_NICE;
    }
    if config.probe != ProbeChoice::Poll {
        needed |= PROBE;
        if !permitted.contains(PROBE) {
            // Whoever gave this process its rights knew one for all of bpf(2).
            needed |= CapabilitySet::SYS_ADMIN;
        }
    }
    let port = config.metrics.listen.map_or(0, |listen| listen.port());
    if (1..UNPRIVILEGED_PORTS).contains(&port) {
        needed |= CapabilitySet::NET_BIND_SERVICE;
    }
    needed
}

fn limit_bounding_set(kept: CapabilitySet) -> anyhow::Result<()> {
    for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match capability_is_in_bounding_set(capability) {
            // Past the last one that this kernel has.
            Err(Errno::INVAL) => break,
            Ok(true) if !kept.contains(capability) => {
                remove_capability_from_bounding_set(capability).with_context(|| {
                    format!("cannot take {} out of the bounding set", Names(capability))
                })?;
            }
            Ok(_) => {}
            Err(error) => return Err(error).context("cannot read the bounding set"),
        }
    }
    Ok(())
}

/// As capabilities(7) names them.
struct Names(CapabilitySet);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let mut first = true;
        for (name, _) in self.0.iter_names() {
            let space = if std::mem::take(&mut first) { "" } else { " " };
            write!(f, "{space}CAP_{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn kept(text: &str, permitted: CapabilitySet) -> String {
        let config = Config::parse(text, Path::new("f")).unwrap();
        Names(needed(&config, false, permitted) & permitted).to_string()
    }

    #[test]
    fn what_is_kept_follows_from_the_configuration() {
        let all = CapabilitySet::all();
        for (text, names) in [
            (
                "",
                "CAP_DAC_OVERRIDE CAP_KILL CAP_SYS_PTRACE CAP_PERFMON CAP_BPF",
            ),
            (
                "probe = \"auto\"",
                "CAP_DAC_OVERRIDE CAP_KILL CAP_SYS_PTRACE CAP_PERFMON CAP_BPF",
            ),
            (
                "probe = \"poll\"\nmetrics.listen = \"127.0.0.1:9109\"",
                "CAP_DAC_OVERRIDE CAP_KILL CAP_SYS_PTRACE",
            ),
            (
                "probe = \"poll\"\nmetrics.listen = \"127.0.0.1:80\"",
                "CAP_DAC_OVERRIDE CAP_KILL CAP_NET_BIND_SERVICE CAP_SYS_PTRACE",
            ),
            (
                "probe = \"poll\"\nmetrics.listen = \"127.0.0.1:0\"",
                "CAP_DAC_OVERRIDE CAP_KILL CAP_SYS_PTRACE",
            ),
        ] {
            assert_eq!(kept(text, all), names, "{text}");
        }
    }

    #[test]
    fn what_it_does_not_have_is_not_taken() {
        let few = CapabilitySet::KILL | CapabilitySet::CHOWN;
        assert_eq!(kept("", few), "CAP_KILL");
        let nice = CapabilitySet::SYS_NICE;
        assert_eq!(needed(&Config::default(), true, nice) & nice, nice);
        assert_eq!(kept("", CapabilitySet::empty()), "none");
        // The probe's old right stands in for the two new ones, and only then.
        let old = CapabilitySet::KILL | CapabilitySet::SYS_ADMIN;
        assert_eq!(kept("", old), "CAP_KILL CAP_SYS_ADMIN");
        assert_eq!(kept("probe = \"poll\"", old), "CAP_KILL");
    }

    /// On a thread of its own, which ends with what it gave up.
    #[test]
    fn a_thread_has_no_more_than_that() {
        let had = capabilities(None).unwrap().permitted;
        if !had.contains(CapabilitySet::SETPCAP) {
            println!("not enough rights to give any up");
            return;
        }
        let left = std::thread::spawn(|| {
            let kept = keep_only(&Config::default(), false).unwrap();
            let now = capabilities(None).unwrap();
            assert_eq!(
                (now.permitted, now.inheritable),
                (kept, CapabilitySet::empty())
            );
            assert!(!now.permitted.contains(CapabilitySet::SYS_ADMIN));
            let bounds = |one| capability_is_in_bounding_set(one).unwrap();
            assert!(bounds(CapabilitySet::KILL) && !bounds(CapabilitySet::SYS_ADMIN));
            assert!(rustix::thread::no_new_privs().unwrap());
            // Again: nothing is left to do.
            assert_eq!(keep_only(&Config::default(), false).unwrap(), kept);
        });
        left.join().unwrap();
        assert_eq!(capabilities(None).unwrap().permitted, had);
    }
}
