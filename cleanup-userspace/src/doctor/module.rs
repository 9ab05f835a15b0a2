//! Will the Mesos hook module load in that agent? A module that refuses stops the
//! agent from starting, so it is asked beforehand.
//!
//! The module's own guards are in cleanup-hook/src/host.rs and abi.rs; this is
//! what of them can be told from the files. [`super::load`] runs the guards
//! themselves.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::Check;
use super::elf::{Elf, glibc_version};

/// What Mesos looks for.
pub(super) const NAME: &str = "org_apache_mesos_ComposePodCleanupHook";
/// An export that only a build with test switches has.
const TEST_BUILD: &str = "cleanup_hook_test_compare";

/// The way out whenever the module will not load.
const WITHOUT: &str = "take org_apache_mesos_ComposePodCleanupHook out of --hooks and --modules \
                       before the agent starts (the watcher works without it); docs/hook.md";
const ACCEPT: &str = "leave the module out (the watcher works without it), or take the risk with \
                      its parameter untested_abi=accept; docs/hook.md";

/// Releases whose own binaries ran every hook function of the module
/// (tests/suites/hook.rs).
const TESTED: [Version; 14] = [
    Version(1, 4, 3),
    Version(1, 5, 2),
    Version(1, 5, 3),
    Version(1, 6, 1),
    Version(1, 6, 2),
    Version(1, 7, 0),
    Version(1, 7, 1),
    Version(1, 7, 2),
    Version(1, 7, 3),
    Version(1, 8, 0),
    Version(1, 8, 1),
    Version(1, 9, 0),
    Version(1, 10, 0),
    Version(1, 11, 0),
];

/// Of Mesos.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl Version {
    /// As the module reads it: releases only, without what follows a `+`.
    fn parse(text: &str) -> Option<Self> {
        let release = text.split('+').next()?;
        let mut numbers = release.split('.').map(|number| number.parse().ok());
        let version = Self(
            numbers.next()??,
            numbers.next()??,
            numbers.next().unwrap_or(Some(0))?,
        );
        numbers.next().is_none().then_some(version)
    }
}

/// Whether the module serves this release of Mesos. `accepts_untested`: its
/// parameter `untested_abi` is `accept`.
pub fn release(text: &str, accepts_untested: bool) -> Check {
    const WHAT: &str = "mesos release";
    let Some(version) = Version::parse(text) else {
        return Check::refused(
            WHAT,
            format!("{text:?} is none of a release (1.0.0 to 1.11.x are known)"),
            WITHOUT,
        );
    };
    match version {
        _ if TESTED.contains(&version) => Check::ok(
            WHAT,
            format!("{text}: supported, and tested with this very release"),
        ),
        Version(1, 4..=11, _) => Check::warning(
            WHAT,
            format!("{text}: supported; this patch release was not run, others of its minor were"),
            "ask with --libmesos PATH --load, or begin with one agent",
        ),
        Version(1, 0..=3, _) if accepts_untested => Check::warning(
            WHAT,
            format!("{text}: never run with a real binary; the risk was accepted"),
            "begin with one agent that may fail",
        ),
        Version(1, 0..=3, _) => Check::refused(
            WHAT,
            format!("{text}: never run with a real binary, refused by default"),
            ACCEPT,
        ),
        _ => Check::refused(
            WHAT,
            format!("{text}: not known to this module (1.0 to 1.11 are)"),
            WITHOUT,
        ),
    }
}

/// Symbols of libmesos, mangled.
mod symbol {
    pub(super) const NEW_STRINGS: &str = "_ZN5mesos8internal11HookManager10initializeERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE";
    pub(super) const OLD_STRINGS: &str = "_ZN5mesos8internal11HookManager10initializeERKSs";
    pub(super) const VERSIONS_NEW: &str = "_ZN5mesos7modules13ModuleManager13kindToVersionB5cxx11E";
    pub(super) const VERSIONS_OLD: &str = "_ZN5mesos7modules13ModuleManager13kindToVersionE";
    /// Since 1.8.
    pub(super) const RESOURCE_DECORATOR: &str = "_ZN5mesos8internal11HookManager33masterLaunchTaskResourceDecoratorERKNS_8TaskInfoERKNS_9ResourcesE";
    /// Since 1.2.
    pub(super) const PREPARE_INFO: &str =
        "_ZN5mesos29DockerTaskExecutorPrepareInfo16default_instanceEv";
    pub(super) const REMOVE_EXECUTOR: &str = "_ZN5mesos8internal11HookManager23slaveRemoveExecutorHookERKNS_13FrameworkInfoERKNS_12ExecutorInfoE";
    pub(super) const SERIALIZE: &str =
        "_ZNK6google8protobuf11MessageLite23SerializePartialToArrayEPvi";
    pub(super) const SPACE_USED: [&str; 2] = [
        "_ZNK6google8protobuf7Message13SpaceUsedLongEv",
        "_ZNK6google8protobuf7Message9SpaceUsedEv",
    ];
    /// Sizes of the messages that are read: since protobuf 3, and before.
    pub(super) const BYTE_SIZES: [[&str; 2]; 3] = [
        [
            "_ZNK5mesos13FrameworkInfo12ByteSizeLongEv",
            "_ZNK5mesos13FrameworkInfo8ByteSizeEv",
        ],
        [
            "_ZNK5mesos12ExecutorInfo12ByteSizeLongEv",
            "_ZNK5mesos12ExecutorInfo8ByteSizeEv",
        ],
        [
            "_ZNK5mesos10Parameters12ByteSizeLongEv",
            "_ZNK5mesos10Parameters8ByteSizeEv",
        ],
    ];
    pub(super) const INSTANCES: [&str; 3] = [
        "_ZN5mesos6Labels16default_instanceEv",
        "_ZN5mesos11Environment16default_instanceEv",
        "_ZN5mesos10TaskStatus16default_instanceEv",
    ];

    pub(super) fn all() -> Vec<&'static str> {
        let single = [
            NEW_STRINGS,
            OLD_STRINGS,
            VERSIONS_NEW,
            VERSIONS_OLD,
            RESOURCE_DECORATOR,
            PREPARE_INFO,
            REMOVE_EXECUTOR,
            SERIALIZE,
        ];
        single
            .into_iter()
            .chain(SPACE_USED)
            .chain(BYTE_SIZES.into_iter().flatten())
            .chain(INSTANCES)
            .collect()
    }
}

/// What a libmesos says of itself, without loading it. `release`: its version, as
/// the operator has it.
pub fn libmesos(path: &Path, release: Option<&str>, accepts_untested: bool) -> Vec<Check> {
    let elf = match Elf::read(path, &symbol::all()) {
        Ok(elf) => elf,
        Err(error) => {
            return vec![Check::refused(
                "libmesos",
                error.to_string(),
                "name the libmesos that the agent is linked with (ldd $(command -v mesos-agent))",
            )];
        }
    };
    let named = named_version(&elf, path);
    let version = release.map(str::to_owned).or_else(|| named.clone());
    let mut checks = Vec::new();
    match (release, &named) {
        // The release itself is a check of its own.
        (Some(given), Some(named)) if given.split('+').next() != named.split('+').next() => {
            checks.push(Check::warning(
                "libmesos",
                format!("{}: calls itself {named}, not {given}", path.display()),
                "is it the right file?",
            ));
        }
        (None, Some(named)) => {
            checks.push(Check::ok("libmesos", path.display().to_string()));
            checks.push(self::release(named, accepts_untested));
        }
        (None, None) => checks.push(Check::warning(
            "libmesos",
            format!("{}: its name does not tell its version", path.display()),
            "give it with --mesos-version as well (mesos-agent --version)",
        )),
        (Some(_), _) => checks.push(Check::ok("libmesos", path.display().to_string())),
    }
    checks.push(strings(&elf, accepts_untested));
    checks.push(interface(&elf, version.as_deref().and_then(Version::parse)));
    checks
}

/// The version in `libmesos-1.11.0.so`: the name that libtool gives it, or the
/// file's after all links.
fn named_version(elf: &Elf, path: &Path) -> Option<String> {
    let in_name = |name: &str| {
        let version = name.strip_prefix("libmesos-")?.split(".so").next()?;
        Version::parse(version).map(|_| version.to_owned())
    };
    let file = path.canonicalize().ok();
    let file = file.as_deref().and_then(Path::file_name)?.to_str()?;
    elf.soname
        .as_deref()
        .and_then(in_name)
        .or_else(|| in_name(file))
}

fn strings(elf: &Elf, accepts_untested: bool) -> Check {
    const WHAT: &str = "string ABI";
    const OLD: &str =
        "the old std::string (_GLIBCXX_USE_CXX11_ABI=0): never run with a real binary";
    match (
        elf.exports(symbol::NEW_STRINGS),
        elf.exports(symbol::OLD_STRINGS),
    ) {
        (true, false) => Check::ok(WHAT, "the std::string of GCC 5 and later"),
        (false, true) if accepts_untested => {
            Check::warning(WHAT, OLD, "begin with one agent that may fail")
        }
        (false, true) => Check::refused(WHAT, OLD, ACCEPT),
        _ => Check::refused(
            WHAT,
            "it cannot be told: no libmesos, one built with libc++, or with hidden symbols",
            WITHOUT,
        ),
    }
}

fn interface(elf: &Elf, version: Option<Version>) -> Check {
    const WHAT: &str = "hook interface";
    let refuse = |why: String| Check::refused(WHAT, why, WITHOUT);
    let has = |symbol: &str| elf.exports(symbol);
    // A datum whose type holds a new string has a tag in its name.
    let versions = if has(symbol::NEW_STRINGS) {
        symbol::VERSIONS_NEW
    } else {
        symbol::VERSIONS_OLD
    };
    if !has(versions) {
        return refuse("it does not export its version (ModuleManager::kindToVersion)".to_owned());
    }
    let group = match (has(symbol::RESOURCE_DECORATOR), has(symbol::PREPARE_INFO)) {
        (true, true) => 8..=11,
        (false, true) => 2..=7,
        (false, false) => 0..=1,
        (true, false) => {
            return refuse("its hook functions are those of no release".to_owned());
        }
    };
    let releases = format!("1.{} to 1.{}", group.start(), group.end());
    if let Some(Version(major, minor, patch)) = version
        && (major != 1 || !group.contains(&minor))
    {
        return refuse(format!(
            "its hook functions are those of {releases}, not of {major}.{minor}.{patch}"
        ));
    }
    let mut missing: Vec<&str> = [symbol::REMOVE_EXECUTOR, symbol::SERIALIZE]
        .into_iter()
        .chain(symbol::INSTANCES)
        .filter(|symbol| !has(symbol))
        .collect();
    let choices = symbol::BYTE_SIZES.iter().chain([&symbol::SPACE_USED]);
    missing.extend(
        choices
            .filter(|choice| !choice.iter().any(|symbol| has(symbol)))
            .map(|choice| choice[0]),
    );
    if !missing.is_empty() {
        return refuse(format!("it does not export {}", missing.join(", ")));
    }
    Check::ok(
        WHAT,
        format!("that of {releases}; the sizes of its messages are told by --load only"),
    )
}

/// The module's file: what it is, who may change it, and whether this host's C
/// library is new enough for it.
pub fn file(path: &Path) -> Vec<Check> {
    let checks = vec![library(path)];
    match Elf::read(path, &[]) {
        Ok(elf) => checks.into_iter().chain([glibc(&elf)]).collect(),
        Err(_) => checks,
    }
}

fn library(path: &Path) -> Check {
    const WHAT: &str = "module file";
    const INSTALL: &str = "install it (docs/hook.md, Install), or name it with --module PATH";
    let elf = match Elf::read(path, &[NAME, TEST_BUILD]) {
        Ok(elf) => elf,
        Err(error) => return Check::refused(WHAT, error.to_string(), INSTALL),
    };
    let path = path.display();
    if !elf.exports(NAME) {
        return Check::refused(WHAT, format!("{path} does not export {NAME}"), INSTALL);
    }
    if elf.exports(TEST_BUILD) {
        return Check::refused(
            WHAT,
            format!("{path} is a build with test switches: it obeys its environment"),
            "build it without features: cargo build --release -p cleanup-hook",
        );
    }
    Check::ok(WHAT, path.to_string())
}

/// The agent runs whatever is in it, usually as root.
pub fn owner(path: &Path) -> Check {
    const WHAT: &str = "module owner";
    let safe = |path: &Path| {
        let meta = path.metadata()?;
        Ok::<_, std::io::Error>(meta.uid() == 0 && meta.mode() & 0o022 == 0)
    };
    let Ok(real) = path.canonicalize() else {
        return Check::refused(
            WHAT,
            format!("{} cannot be found", path.display()),
            "install it (docs/hook.md, Install), or name it with --module PATH",
        );
    };
    match real
        .ancestors()
        .find(|part| !matches!(safe(part), Ok(true)))
    {
        None => Check::ok(WHAT, "root's alone, and so is every directory above it"),
        Some(part) => Check::warning(
            WHAT,
            format!("{} may be changed by others than root", part.display()),
            "whoever can change it runs code in the agent: chown root, chmod go-w",
        ),
    }
}

fn glibc(elf: &Elf) -> Check {
    const WHAT: &str = "C library";
    let Some(needed) = elf.needed_glibc() else {
        return Check::warning(
            WHAT,
            "the module does not tell which glibc it needs",
            "build it with the toolchain that the repository names",
        );
    };
    let shown = format!("{}.{}", needed.0, needed.1);
    match host_glibc() {
        Some(text) if glibc_version(&text).is_some_and(|host| host >= needed) => {
            Check::ok(WHAT, format!("glibc {text}; the module needs {shown}"))
        }
        Some(text) => Check::refused(
            WHAT,
            format!("glibc {text} is older than the module needs ({shown})"),
            "build the module as it ships: it needs 2.17 only",
        ),
        None => Check::warning(
            WHAT,
            format!("this program has another C library; the module needs glibc {shown}"),
            "compare with what `ldd --version` says on the agent's host",
        ),
    }
}

#[cfg(target_env = "gnu")]
fn host_glibc() -> Option<String> {
    // SAFETY: takes nothing, returns a string that is never freed.
    let text = unsafe { libc::gnu_get_libc_version() };
    // SAFETY: it ends with a zero.
    let text = unsafe { std::ffi::CStr::from_ptr(text) };
    text.to_str().ok().map(str::to_owned)
}

#[cfg(not(target_env = "gnu"))]
fn host_glibc() -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn releases() {
        use Verdict::{Ok, Refused, Warning};
        for (text, refusing, accepting) in [
            ("1.11.0", Ok, Ok),
            ("1.4.3", Ok, Ok),
            ("1.11.0+vendor.2", Ok, Ok),
            ("1.9.7", Warning, Warning),
            ("1.8", Ok, Ok),
            ("1.3.2", Refused, Warning),
            ("1.0.0", Refused, Warning),
            ("0.28.3", Refused, Refused),
            ("1.12.0", Refused, Refused),
            ("2.0.0", Refused, Refused),
            ("1.11.0-rc1", Refused, Refused),
            ("", Refused, Refused),
            ("latest", Refused, Refused),
        ] {
            assert_eq!(release(text, false).verdict, refusing, "{text}");
            assert_eq!(release(text, true).verdict, accepting, "{text}");
        }
    }

    /// The module asks for the very same symbols.
    #[test]
    fn symbols_are_those_that_the_module_looks_for() {
        let source = include_str!("../../../cleanup-hook/src/host.rs");
        for symbol in symbol::all() {
            // It puts some of them together from a class and the rest.
            let parts = [
                "_ZN5mesos8internal11HookManager",
                "_ZN5mesos7modules13ModuleManager13kindToVersion",
                "_ZNK5mesos",
                "_ZN5mesos",
            ];
            let rest = parts
                .iter()
                .find_map(|part| symbol.strip_prefix(part))
                .unwrap_or(symbol);
            let rest = ["12ByteSizeLongEv", "8ByteSizeEv", "16default_instanceEv"]
                .iter()
                .find(|method| rest.ends_with(**method))
                .map_or(rest, |method| {
                    let class = rest.strip_suffix(method).unwrap_or_default();
                    assert!(source.contains(class), "{symbol}");
                    method
                });
            let string = "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE";
            let rest = rest.strip_prefix("10initializeERK").map_or(rest, |rest| {
                assert!(source.contains("10initializeERK"));
                rest
            });
            let rest = match rest {
                "B5cxx11E" => "\"B5cxx11\"",
                "E" => "{tag}E",
                _ if rest == string => string,
                _ => rest,
            };
            assert!(source.contains(rest), "{symbol}: {rest}");
        }
        let tested = include_str!("../../../tests/suites/hook.rs");
        for Version(major, minor, patch) in TESTED {
            let version = format!("\"{major}.{minor}.{patch}\"");
            assert!(tested.contains(&version), "{version}");
        }
    }

    #[test]
    fn what_is_not_there_or_no_module_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libmesos.so");
        for checks in [libmesos(&path, None, false), file(&path)] {
            assert_eq!(checks.len(), 1, "{checks:?}");
            assert_eq!(checks[0].verdict, Verdict::Refused);
            assert!(checks[0].detail.contains(&*path.to_string_lossy()));
        }
        // A shared object of another kind.
        let libc = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6"]
            .map(Path::new)
            .into_iter()
            .find(|path| path.exists())
            .unwrap();
        let verdicts = |checks: Vec<Check>| -> Vec<_> {
            let named = checks.iter().map(|check| (check.name, check.verdict));
            named.collect()
        };
        assert_eq!(
            verdicts(libmesos(libc, Some("1.11.0"), true)),
            [
                ("libmesos", Verdict::Ok),
                ("string ABI", Verdict::Refused),
                ("hook interface", Verdict::Refused)
            ]
        );
        assert_eq!(
            verdicts(file(libc)),
            [
                ("module file", Verdict::Refused),
                ("C library", Verdict::Ok)
            ]
        );
        assert_eq!(owner(&path).verdict, Verdict::Refused);
        std::fs::write(&path, "").unwrap();
        // Beneath /tmp, where anybody may put files.
        assert_eq!(owner(&path).verdict, Verdict::Warning);
        assert_eq!(owner(libc).verdict, Verdict::Ok);
    }
}
