//! The module's parameters.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::proto::Pairs;

/// Made at installation and by the daemon.
const INBOX_DIR: &str = "/run/compose-cleanup/inbox";
/// What the kernel takes for a path, and some room for the file's name.
const LONGEST_PATH: usize = 3800;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Absolute.
    pub(crate) inbox_dir: PathBuf,
    /// False: loaded, but does nothing (`mode` is `off`).
    pub(crate) hands_off: bool,
    /// The operator accepts a Mesos of which no release could be tested.
    pub(crate) accepts_untested: bool,
}

impl Settings {
    /// Err: what is wrong, for the agent's log.
    pub(crate) fn of(parameters: Pairs) -> Result<Self, String> {
        let mut settings = Self {
            inbox_dir: INBOX_DIR.into(),
            hands_off: true,
            accepts_untested: false,
        };
        let mut seen: Vec<Vec<u8>> = Vec::new();
        for (key, value) in parameters {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            if seen.contains(&key) {
                return Err(format!("parameter {} is given twice", text(&key)));
            }
            let wrong = |allowed: &str| {
                Err(format!(
                    "parameter {} is \"{}\", not {allowed}",
                    text(&key),
                    text(&value)
                ))
            };
            match (&key[..], &value[..]) {
                (b"inbox_dir", _) => {
                    let path = PathBuf::from(OsString::from_vec(value.clone()));
                    if !is_usable(&path) {
                        return wrong("an absolute path");
                    }
                    settings.inbox_dir = path;
                }
                (b"mode", b"handoff") => settings.hands_off = true,
                (b"mode", b"off") => settings.hands_off = false,
                (b"mode", _) => return wrong("\"handoff\" or \"off\""),
                (b"untested_abi", b"accept") => settings.accepts_untested = true,
                (b"untested_abi", b"refuse") => settings.accepts_untested = false,
                (b"untested_abi", _) => return wrong("\"accept\" or \"refuse\""),
                _ => {
                    return Err(format!(
                        "parameter {} is unknown (known: inbox_dir, mode, untested_abi)",
                        text(&key)
                    ));
                }
            }
            seen.push(key);
        }
        Ok(settings)
    }
}

fn is_usable(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    path.is_absolute() && bytes.len() <= LONGEST_PATH && !bytes.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        let pair = |&(key, value): &(&str, &str)| (key.into(), value.into());
        Settings::of(pairs.iter().map(pair).collect())
    }

    #[test]
    fn defaults() {
        let settings = of(&[]).expect("valid");
        assert_eq!(settings.inbox_dir, Path::new(INBOX_DIR));
        assert!(settings.hands_off && !settings.accepts_untested);
    }

    #[test]
    fn all_parameters() {
        let settings = of(&[
            ("mode", "off"),
            ("untested_abi", "accept"),
            ("inbox_dir", "/a b"),
        ]);
        let settings = settings.expect("valid");
        assert_eq!(settings.inbox_dir, Path::new("/a b"));
        assert!(!settings.hands_off && settings.accepts_untested);
    }

    #[test]
    fn anything_else_is_refused_with_a_reason() {
        for (parameters, reason) in [
            (&[("inbox", "/a")][..], "parameter inbox is unknown"),
            (&[("mode", "")], "parameter mode is \"\", not"),
            (&[("mode", "Off")], "not \"handoff\" or \"off\""),
            (&[("untested_abi", "yes")], "not \"accept\" or \"refuse\""),
            (&[("inbox_dir", "inbox")], "not an absolute path"),
            (&[("inbox_dir", "")], "not an absolute path"),
            (&[("inbox_dir", "/a\0b")], "not an absolute path"),
            (
                &[("mode", "off"), ("mode", "off")],
                "parameter mode is given twice",
            ),
        ] {
            let refusal = of(parameters).expect_err("wrong");
            assert!(refusal.contains(reason), "{refusal}");
        }
    }
}
