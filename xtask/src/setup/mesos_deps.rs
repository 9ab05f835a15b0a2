//! What it takes to run real Mesos releases: pip's session to fetch the
//! libraries, readelf (and a C compiler) to stub what they link to, and the
//! libevent of releases before 1.8.

use super::machine::Machine;
use super::{PROBE_LIMIT, Packages};
use crate::exec::Tool;

/// Sonames of the libevent that stands in for the one of old releases.
const LIBEVENT: &[&str] = &[
    "libevent-2.1.so.7",
    "libevent_openssl-2.1.so.7",
    "libevent_pthreads-2.1.so.7",
];

pub(crate) fn python() -> Packages {
    Packages {
        name: "python3 with pip",
        look: || {
            // A python3 that comes earlier in PATH may be anyone's.
            let candidates = [Machine::find("python3"), Some("/usr/bin/python3".into())];
            candidates
                .into_iter()
                .flatten()
                .find(|python| {
                    Tool::new(python, PROBE_LIMIT)
                        .args(["-c", HAS_PIP])
                        .read()
                        .is_ok()
                })
                .map(|python| python.display().to_string())
                .ok_or_else(|| "no python3 (3.8 or newer) that can import pip".to_owned())
        },
        packages: |_| &["python3", "python3-pip"],
        note: "",
    }
}

/// Finds pip without loading it, which takes a while.
const HAS_PIP: &str = "import importlib.util, sys\n\
    sys.exit(sys.version_info < (3, 8) or importlib.util.find_spec('pip') is None)";

pub(crate) fn readelf() -> Packages {
    Packages {
        name: "readelf",
        look: || {
            Machine::find("readelf")
                .map(|file| file.display().to_string())
                .ok_or_else(|| "no readelf on PATH".to_owned())
        },
        packages: |_| &["binutils"],
        note: "",
    }
}

/// For the steps of the C++ hook, which a benchmark compares with. No test needs it.
pub(crate) fn cgroup_tools() -> Packages {
    Packages {
        name: "cgroup-tools",
        look: || {
            let found = ["lscgroup", "cgdelete"].map(Machine::find);
            let [Some(lists), Some(_)] = found else {
                return Err("no lscgroup or no cgdelete on PATH".to_owned());
            };
            Ok(lists.display().to_string())
        },
        packages: |_| &["cgroup-tools"],
        note: "",
    }
}

pub(crate) fn libevent() -> Packages {
    Packages {
        name: "libevent",
        look: || {
            let ldconfig = Machine::find("ldconfig").ok_or("there is no ldconfig")?;
            let cache = Tool::new(ldconfig, PROBE_LIMIT)
                .arg("-p")
                .read()
                .map_err(|failure| failure.to_string())?;
            let missing = missing_libraries(&cache, LIBEVENT);
            if missing.is_empty() {
                Ok(LIBEVENT[0].to_owned())
            } else {
                Err(format!("no {}", missing.join(", no ")))
            }
        },
        packages: |_| {
            &[
                "libevent-2.1-7",
                "libevent-openssl-2.1-7",
                "libevent-pthreads-2.1-7",
            ]
        },
        note: "",
    }
}

/// What of `wanted` is not in `ldconfig -p`'s list.
fn missing_libraries<'a>(cache: &str, wanted: &[&'a str]) -> Vec<&'a str> {
    let known: Vec<&str> = cache
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next())
        .collect();
    wanted
        .iter()
        .copied()
        .filter(|name| !known.contains(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_matched_by_their_whole_name() {
        let cache = "2 libs found in cache `/etc/ld.so.cache'\n\
            \tlibevent_core-2.1.so.7 (libc6,x86-64) => /lib/libevent_core-2.1.so.7\n\
            \tlibevent-2.1.so.7 (libc6,x86-64) => /lib/libevent-2.1.so.7\n";
        assert_eq!(
            missing_libraries(cache, LIBEVENT),
            ["libevent_openssl-2.1.so.7", "libevent_pthreads-2.1.so.7"]
        );
        assert_eq!(missing_libraries("", &["libc.so.6"]), ["libc.so.6"]);
    }
}
