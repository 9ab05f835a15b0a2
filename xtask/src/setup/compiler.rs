//! A C compiler: cargo links with it, SQLite and the stubs of the Mesos runtime are
//! built with it.

use super::Packages;
use super::machine::Machine;

pub(crate) fn cc() -> Packages {
    Packages {
        name: "C compiler",
        look: || {
            Machine::find("cc")
                .map(|file| file.display().to_string())
                .ok_or_else(|| "no cc on PATH".to_owned())
        },
        packages: |_| &["gcc", "libc6-dev"],
        note: "",
    }
}
