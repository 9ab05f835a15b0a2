//! What runs in a guest, and what does not, and why.

use clap::ValueEnum;
use std::fmt;

use cleanup_tests::guest::{CgroupMode, Program};

use super::image::{BUSYBOX, DAEMON, KERNEL_SUITE, STANDIN_SUITE};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// Does the probe load, and is the pod of one dead executor cleaned up?
    Smoke,
    /// All that a kernel and its cgroups can make a difference to
    Full,
    /// The package and its units under a real systemd
    Systemd,
}

/// Tests that a guest does not run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LeftOut {
    suite: &'static str,
    /// A part of their names; empty: the whole suite.
    test: &'static str,
    pub(crate) why: &'static str,
    modes: &'static [CgroupMode],
}

const EVERY: &[CgroupMode] = &CgroupMode::ALL;
/// By the names of the guest's programs.
pub(crate) const TOOLS: &str = "tools";
const KERNEL: &str = "kernel";
const STANDIN: &str = "standin";

/// What needs no cgroups at all.
const LOAD: &str = "loading_costs_the_verifier_little";
const DEATH: &str = "everywhere::ebpf::pod_of_a_dead_executor";

const LEFT_OUT: &[LeftOut] = &[
    LeftOut {
        suite: KERNEL,
        test: "",
        why: "compares hierarchies of both versions",
        modes: &[CgroupMode::V1, CgroupMode::V2],
    },
    LeftOut {
        suite: KERNEL,
        test: "threads_that_end_together",
        why: "10,000 pairs of processes: more than ten minutes without KVM",
        modes: &[CgroupMode::Hybrid],
    },
    LeftOut {
        suite: STANDIN,
        test: "destroy_",
        why: "agents that fail: nothing of the kernel's, and minutes without KVM",
        modes: EVERY,
    },
    LeftOut {
        suite: STANDIN,
        test: "races::",
        why: "hundreds of executors: too long without KVM",
        modes: EVERY,
    },
    LeftOut {
        suite: STANDIN,
        test: "poll::death_",
        why: "one death shows that a host can do without eBPF",
        modes: EVERY,
    },
    LeftOut {
        suite: STANDIN,
        test: "poll::v2_leaf_layout",
        why: "the same",
        modes: &[CgroupMode::Hybrid, CgroupMode::V2],
    },
    LeftOut {
        suite: STANDIN,
        test: "v2_leaf_layout",
        why: "no version 2 is mounted",
        modes: &[CgroupMode::V1],
    },
];

impl LeftOut {
    fn is_whole_suite(&self) -> bool {
        self.test.is_empty()
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            suite,
            test,
            why,
            modes: _,
        } = self;
        if self.is_whole_suite() {
            write!(f, "{suite}: {why}")
        } else {
            write!(f, "{suite} {test}…: {why}")
        }
    }
}

impl Suite {
    /// In their order.
    pub(crate) fn programs(self, mode: CgroupMode) -> Vec<Program> {
        let tools = format!("{BUSYBOX} --install -s /bin && ip link set lo up");
        let mut programs = vec![
            program(TOOLS, &[BUSYBOX, "sh", "-c", &tools]),
            program("doctor", &[DAEMON, "doctor"]),
            program("probe", &[KERNEL_SUITE, "--exact", LOAD, "--nocapture"]),
        ];
        match self {
            Self::Smoke => programs.push(program("death", &[STANDIN_SUITE, "--exact", DEATH])),
            // Its guests are others.
            Self::Systemd => {}
            Self::Full => {
                // Its load test is a program of its own, above.
                programs.extend(self.most_of(KERNEL, KERNEL_SUITE, mode, &[LOAD]));
                programs.extend(self.most_of(STANDIN, STANDIN_SUITE, mode, &[]));
            }
        }
        programs
    }

    /// Of what it would run otherwise.
    pub(crate) fn left_out(self, mode: CgroupMode) -> Vec<&'static LeftOut> {
        if self != Self::Full {
            return Vec::new();
        }
        let fits = |left: &&LeftOut| left.modes.contains(&mode);
        LEFT_OUT.iter().filter(fits).collect()
    }

    /// A suite without what is left out of it in this mode; `None`: all of it.
    fn most_of(
        self,
        name: &str,
        file: &str,
        mode: CgroupMode,
        besides: &[&str],
    ) -> Option<Program> {
        let mut left_out = self.left_out(mode);
        left_out.retain(|left| left.suite == name);
        if left_out.iter().any(|left| left.is_whole_suite()) {
            return None;
        }
        // One after the other: there is one processor, and the tests have deadlines.
        let mut command = vec![file, "--test-threads", "1"];
        let left_out = left_out.iter().map(|left| left.test);
        for test in left_out.chain(besides.iter().copied()) {
            command.extend(["--skip", test]);
        }
        Some(program(name, &command))
    }
}

/// A prompt, with busybox's tools on the path.
pub(crate) fn shell() -> Vec<Program> {
    let script = format!("{BUSYBOX} --install -s /bin; ip link set lo up; exec setsid cttyhack sh");
    vec![program("shell", &[BUSYBOX, "sh", "-c", &script])]
}

fn program(name: &str, command: &[&str]) -> Program {
    Program {
        name: name.to_owned(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace;

    fn names(suite: Suite, mode: CgroupMode) -> Vec<String> {
        let programs = suite.programs(mode).into_iter();
        programs.map(|program| program.name).collect()
    }

    #[test]
    fn every_guest_sees_a_death_and_only_a_hybrid_one_has_what_the_kernel_suite_compares() {
        for mode in CgroupMode::ALL {
            assert_eq!(
                names(Suite::Smoke, mode),
                ["tools", "doctor", "probe", "death"]
            );
        }
        assert_eq!(
            names(Suite::Full, CgroupMode::Hybrid),
            ["tools", "doctor", "probe", "kernel", "standin"]
        );
        assert_eq!(
            names(Suite::Full, CgroupMode::V1),
            ["tools", "doctor", "probe", "standin"]
        );
    }

    #[test]
    fn what_is_left_out_is_what_is_skipped() {
        for mode in CgroupMode::ALL {
            let programs = Suite::Full.programs(mode);
            for left in Suite::Full.left_out(mode) {
                let program = programs.iter().find(|program| program.name == left.suite);
                let skips = |program: &Program| {
                    let mut pairs = program.command.windows(2);
                    pairs.any(|pair| pair == ["--skip", left.test])
                };
                let is_so = program.map_or(left.is_whole_suite(), skips);
                assert!(is_so, "{left:?} and {program:?}");
            }
        }
        assert!(Suite::Smoke.left_out(CgroupMode::V1).is_empty());
    }

    /// A test that was renamed would be run, and named as left out none the less.
    #[test]
    fn what_is_named_exists() {
        let source = |place: &str| {
            let path = workspace::root().join("tests/suites").join(place);
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{place}: {error}"))
        };
        let kernel = source("kernel.rs");
        let standin = ["main.rs", "races.rs", "everywhere.rs"]
            .map(|file| source(&format!("standin/{file}")))
            .concat();
        let run = [(KERNEL, LOAD), (STANDIN, DEATH)];
        let left_out = LEFT_OUT.iter().map(|left| (left.suite, left.test));
        let left_out = left_out.filter(|(_, test)| !test.is_empty());
        for (suite, test) in run.into_iter().chain(left_out) {
            let text = if suite == KERNEL { &kernel } else { &standin };
            let mut names = test.rsplit("::");
            let fits = match names.next() {
                Some("") => text.contains(&format!("mod {};", names.next().unwrap_or(test))),
                Some(name) => text.contains(&format!("fn {name}")),
                None => false,
            };
            assert!(fits, "{suite}: {test}");
        }
    }
}
