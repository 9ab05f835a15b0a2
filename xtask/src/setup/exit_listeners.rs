//! Other programs that listen to exits, to be measured beside ours. No test needs them.

use super::Packages;
use super::machine::Machine;

pub(crate) fn bpftrace() -> Packages {
    Packages {
        name: "bpftrace",
        look: || find("bpftrace"),
        packages: |_| &["bpftrace"],
        note: "",
    }
}

pub(crate) fn forkstat() -> Packages {
    Packages {
        name: "forkstat",
        look: || find("forkstat"),
        packages: |_| &["forkstat"],
        note: "",
    }
}

pub(crate) fn exitsnoop() -> Packages {
    Packages {
        name: "exitsnoop",
        look: || find("exitsnoop"),
        packages: |_| &["libbpf-tools"],
        note: "",
    }
}

fn find(name: &str) -> Result<String, String> {
    Machine::find(name)
        .map(|file| file.display().to_string())
        .ok_or_else(|| format!("no {name} on PATH"))
}
