//! The ContainerID of a top-level Mesos container: one per executor run.

use std::fmt;
use std::str::FromStr;

/// A random UUID in canonical lower-case text with dashes, which is how a Mesos
/// agent makes the ids of top-level containers (`id::UUID::random().toString()`,
/// src/slave/slave.cpp at 1.11.0). Ids of nested containers and of standalone
/// containers may be any text: those are not ours.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId([u8; ContainerId::LENGTH]);

/// Not the name of a top-level container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a Mesos container id (a lower-case UUID)")]
pub struct NotAContainerId;

impl ContainerId {
    const LENGTH: usize = 36;

    pub fn as_str(&self) -> &str {
        // Only ASCII gets past `from_str`.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for ContainerId {
    type Err = NotAContainerId;

    fn from_str(text: &str) -> Result<Self, NotAContainerId> {
        let bytes: [u8; Self::LENGTH] = text.as_bytes().try_into().map_err(|_| NotAContainerId)?;
        let canonical = bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        });
        canonical.then_some(Self(bytes)).ok_or(NotAContainerId)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for ContainerId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "857fd7a0-df05-458b-bd72-f5c280790aa0";

    #[test]
    fn canonical_ids_only() {
        assert_eq!(
            ID.parse::<ContainerId>().map(|id| id.to_string()),
            Ok(ID.to_owned())
        );
        for bad in [
            "",
            "slave",
            "agent",
            "test",
            "mesos",
            "..",
            ".",
            "latest",
            "857FD7A0-df05-458b-bd72-f5c280790aa0",
            "857fd7a0-df05-458b-bd72-f5c280790aa",
            "857fd7a0-df05-458b-bd72-f5c280790aa00",
            "857fd7a0/df05-458b-bd72-f5c280790aa0",
            "857fd7a0ddf05-458b-bd72-f5c280790aa0",
            "857fd7a0-df05-458b-bd72-f5c280790aa0\n",
        ] {
            assert_eq!(bad.parse::<ContainerId>(), Err(NotAContainerId), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(text in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}") {
            prop_assert_eq!(text.parse::<ContainerId>().unwrap().to_string(), text);
        }

        #[test]
        fn nothing_that_parses_can_leave_a_directory(text in ".{0,40}") {
            if let Ok(id) = text.parse::<ContainerId>() {
                prop_assert!(!id.as_str().contains(['/', '.', '\0']));
            }
        }
    }
}
