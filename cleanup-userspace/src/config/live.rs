//! The configuration while the daemon runs: what of it may change, and what did.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;

use super::{Config, JournalConfig};
use crate::case::printable;

/// What a value that is not set is called.
const NOT_SET: &str = "not set";

/// The configuration that holds now.
#[derive(Debug)]
pub struct LiveConfig(RwLock<Arc<Config>>);

impl LiveConfig {
    pub fn new(config: Config) -> Self {
        Self(RwLock::new(Arc::new(config)))
    }

    pub fn get(&self) -> Arc<Config> {
        // Replacing it is one step: a panic leaves nothing half done.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set(&self, config: Config) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }
}

/// A key whose values differ, as people write them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Such as `journal.max_age`.
    pub key: String,
    pub old: String,
    pub new: String,
}

impl Config {
    /// Of this configuration what may change while the daemon runs; the rest as it is
    /// `running` with.
    pub fn while_running(&self, running: &Self) -> Self {
        // Named one by one: whoever adds a key has to say which kind it is.
        let Self {
            mode,
            action,
            teardown,
            probe: _,
            label_join,
            keep_label,
            remove_after,
            networks,
            anonymous_volumes,
            grace,
            settle,
            agent_deadline,
            docker_fallback,
            docker_deadline,
            max_inferred_stops,
            reconcile_interval,
            shutdown_deadline,
            priority: _,
            log_format: _,
            run_dir: _,
            inbox: _,
            docker: _,
            cgroup: _,
            ebpf: _,
            journal:
                JournalConfig {
                    enabled: _,
                    path: _,
                    max_age,
                    max_bytes,
                },
            metrics: _,
            exclude,
            agents: _,
        } = self;
        Self {
            mode: *mode,
            action: *action,
            teardown: *teardown,
            probe: running.probe,
            label_join: *label_join,
            keep_label: *keep_label,
            remove_after: *remove_after,
            networks: *networks,
            anonymous_volumes: *anonymous_volumes,
            grace: *grace,
            settle: *settle,
            agent_deadline: *agent_deadline,
            docker_fallback: *docker_fallback,
            docker_deadline: *docker_deadline,
            max_inferred_stops: *max_inferred_stops,
            reconcile_interval: *reconcile_interval,
            shutdown_deadline: *shutdown_deadline,
            priority: running.priority,
            log_format: running.log_format,
            run_dir: running.run_dir.clone(),
            inbox: running.inbox.clone(),
            docker: running.docker.clone(),
            cgroup: running.cgroup.clone(),
            ebpf: running.ebpf.clone(),
            journal: JournalConfig {
                enabled: running.journal.enabled,
                path: running.journal.path.clone(),
                max_age: *max_age,
                max_bytes: *max_bytes,
            },
            metrics: running.metrics.clone(),
            exclude: exclude.clone(),
            agents: running.agents.clone(),
        }
    }

    /// The keys that `new` has other values for, in the order of their names.
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let (old, new) = (self.values(), new.values());
        let mut changes = Vec::new();
        compare("", &old, &new, &mut changes);
        changes
    }

    fn values(&self) -> Value {
        let mut config = self.clone();
        // The one path that may come from the command line, and so may be no text.
        config.docker.socket = PathBuf::from(printable(config.docker.socket.as_os_str()));
        serde_json::to_value(config).unwrap_or_default()
    }
}

fn compare(key: &str, old: &Value, new: &Value, changes: &mut Vec<Change>) {
    if let (Value::Object(old), Value::Object(new)) = (old, new) {
        // Both have them in the order of their names.
        let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
        keys.sort();
        keys.dedup();
        for name in keys {
            let within = if key.is_empty() {
                name.clone()
            } else {
                format!("{key}.{name}")
            };
            let of = |table: &serde_json::Map<String, Value>| {
                table.get(name).cloned().unwrap_or_default()
            };
            compare(&within, &of(old), &of(new), changes);
        }
    } else if old != new {
        changes.push(Change {
            key: key.to_owned(),
            old: as_text(old),
            new: as_text(new),
        });
    }
}

fn as_text(value: &Value) -> String {
    match value {
        Value::Null => NOT_SET.to_owned(),
        Value::String(text) => printable(text.as_ref()),
        other => printable(other.to_string().as_ref()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("f")).unwrap()
    }

    fn told(changes: &[Change]) -> Vec<String> {
        let told = |change: &Change| {
            let Change { key, old, new } = change;
            format!("{key}: {old} → {new}")
        };
        changes.iter().map(told).collect()
    }

    #[test]
    fn what_may_change_is_taken_over_and_the_rest_is_named() {
        let running = config("grace = \"3s\"\nremove_after = \"1d\"\njournal.path = \"/a/j.db\"");
        let wanted = config(
            "mode = \"enforce\"\nrun_dir = \"/elsewhere\"\nprobe = \"poll\"\n\
             [journal]\nmax_age = \"1h\"\npath = \"/b/j.db\"\n\
             [docker]\ntimeout = \"1s\"\n\
             [[exclude]]\nexecutor = \"db-*\"\n[[agents]]\nwork_dir = \"/w\"\n",
        );
        let next = wanted.while_running(&running);
        assert_eq!(
            told(&running.changes(&next)),
            [
                "exclude: [] → [{\"executor\":\"db-*\"}]",
                "grace: 3s → 10s",
                "journal.max_age: 30days → 1h",
                "mode: observe → enforce",
                "remove_after: 1day → not set",
            ]
        );
        assert_eq!(
            told(&next.changes(&wanted)),
            [
                "agents: [] → [{\"cgroups_root\":\"mesos\",\"runtime_dir\":\"/var/run/mesos\",\"work_dir\":\"/w\"}]",
                "docker.timeout: 20s → 1s",
                "journal.path: /a/j.db → /b/j.db",
                "probe: ebpf → poll",
                "run_dir: /run/compose-cleanup → /elsewhere",
            ]
        );
        // Again: nothing more to do, and still to be named.
        assert_eq!(wanted.while_running(&next), next);
        assert_eq!(next.changes(&next), []);
    }

    #[test]
    fn what_is_valid_stays_valid() {
        let running = config("action = \"remove\"\nanonymous_volumes = \"remove\"");
        let next = config("run_dir = \"/x\"").while_running(&running);
        assert_eq!(next.validate(), Ok(()));
    }

    #[test]
    fn a_value_cannot_play_tricks_on_a_terminal() {
        let wanted = config("[[exclude]]\nexecutor = \"\\u001bc\\u009b\"\n");
        let changes = Config::default().changes(&wanted);
        assert!(!changes[0].new.contains(char::is_control), "{changes:?}");
    }

    #[test]
    fn a_socket_that_is_no_text_can_be_compared() {
        use std::os::unix::ffi::OsStringExt as _;
        let mut odd = Config::default();
        odd.docker.socket = std::ffi::OsString::from_vec(b"/run/\xff".to_vec()).into();
        assert_eq!(odd.changes(&odd), []);
        assert_eq!(odd.changes(&Config::default()).len(), 1);
    }
}
