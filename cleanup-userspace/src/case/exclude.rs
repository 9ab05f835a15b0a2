//! The operator's exclusions: executors that are left alone, dead or not.

use std::ffi::OsStr;
use std::fmt;

use glob::Pattern;
use serde::{Deserialize, Serialize};

use crate::mesos::Identity;

/// One `[[exclude]]` of the configuration: it matches where all of its patterns do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exclude {
    /// Of the framework id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub framework: Option<Glob>,
    /// Of the executor id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<Glob>,
}

impl Exclude {
    /// Whether it says anything: a rule without a pattern would match everybody.
    pub fn is_empty(&self) -> bool {
        let Self {
            framework,
            executor,
        } = self;
        framework.is_none() && executor.is_none()
    }

    pub fn matches(&self, identity: &Identity) -> bool {
        let fits = |glob: &Option<Glob>, id: &OsStr| glob.as_ref().is_none_or(|glob| glob.fits(id));
        !self.is_empty()
            && fits(&self.framework, &identity.framework_id)
            && fits(&self.executor, &identity.executor_id)
    }
}

/// Whether one of the rules matches the executor; `None` if there are rules and
/// who it is is not known.
pub fn is_excluded(rules: &[Exclude], identity: Option<&Identity>) -> Option<bool> {
    if rules.is_empty() {
        return Some(false);
    }
    let identity = identity?;
    Some(rules.iter().any(|rule| rule.matches(identity)))
}

/// A pattern as in a shell: `*`, `?`, `[a-z]`, `[!a-z]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob(Pattern);

impl Glob {
    /// Bytes that are no text stand for U+FFFD.
    fn fits(&self, id: &OsStr) -> bool {
        self.0.matches(&id.to_string_lossy())
    }
}

impl TryFrom<String> for Glob {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match Pattern::new(&text) {
            Ok(pattern) => Ok(Self(pattern)),
            Err(error) => Err(format!("`{text}` is not a pattern: {error}")),
        }
    }
}

impl From<Glob> for String {
    fn from(glob: Glob) -> Self {
        glob.0.as_str().to_owned()
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn identity(framework: &str, executor: &str) -> Identity {
        Identity {
            agent_id: "S".into(),
            framework_id: framework.into(),
            executor_id: executor.into(),
            container: "857fd7a0-df05-458b-bd72-f5c280790aa0".parse().unwrap(),
            sandbox: PathBuf::new(),
            resolved: PathBuf::new(),
        }
    }

    fn rules(text: &str) -> Vec<Exclude> {
        #[derive(Deserialize)]
        struct File {
            exclude: Vec<Exclude>,
        }
        toml::from_str::<File>(text).unwrap().exclude
    }

    #[test]
    fn all_patterns_of_one_rule_and_any_rule() {
        let rules = rules(
            "[[exclude]]\nframework = \"*-0001\"\nexecutor = \"db-*\"\n[[exclude]]\nexecutor = \"keep[0-9]\"",
        );
        for (framework, executor, excluded) in [
            ("x-0001", "db-1", true),
            ("x-0002", "db-1", false),
            ("x-0001", "web", false),
            ("x-0002", "keep7", true),
            ("x-0002", "keep77", false),
        ] {
            let found = is_excluded(&rules, Some(&identity(framework, executor)));
            assert_eq!(found, Some(excluded), "{framework} {executor}");
        }
        assert_eq!(is_excluded(&rules, None), None);
        assert_eq!(is_excluded(&[], None), Some(false));
    }

    #[test]
    fn a_rule_without_a_pattern_matches_nobody() {
        assert!(!Exclude::default().matches(&identity("f", "e")));
    }

    #[test]
    fn a_broken_pattern_says_so() {
        let error = Glob::try_from("a[".to_owned()).unwrap_err();
        assert!(error.contains("`a[`"), "{error}");
    }
}
