//! Whom a question is about.

use std::ffi::OsStr;

use crate::case::printable;
use crate::mesos::ContainerId;
use crate::registry::Run;

/// As an operator names a run: its executor id, whole, or its container id, whole or
/// the first digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target(String);

/// Fewer digits name half a host.
const SHORTEST: usize = 4;

impl Target {
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub fn is(&self, run: &Run) -> bool {
        let executor = run.identity.as_ref().map(|identity| &*identity.executor_id);
        self.names(run.container, executor)
    }

    /// Whether it names the run with this container id, of this executor.
    pub fn names(&self, container: ContainerId, executor: Option<&OsStr>) -> bool {
        let Self(text) = self;
        let by_digits = text.len() >= SHORTEST && container.as_str().starts_with(text.as_str());
        by_digits || executor.is_some_and(|id| id == OsStr::new(text) || printable(id) == *text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    #[test]
    fn an_executor_by_its_name_and_a_container_by_its_first_digits() {
        let container = "857fd7a0-df05-458b-bd72-f5c280790aa0".parse().unwrap();
        let executor = OsStr::from_bytes(b"web \xff");
        for (text, named) in [
            ("857fd7a0-df05-458b-bd72-f5c280790aa0", true),
            ("857f", true),
            ("857", false),
            ("", false),
            ("857fd7a0-df05-458b-bd72-f5c280790aa00", false),
            ("57fd7a0", false),
            ("web \\xff", true),
            ("web", false),
        ] {
            let target = Target::new(text);
            assert_eq!(target.names(container, Some(executor)), named, "{text}");
        }
        assert!(!Target::new("web").names(container, None));
        assert!(Target::new("web").names(container, Some(OsStr::new("web"))));
    }
}
