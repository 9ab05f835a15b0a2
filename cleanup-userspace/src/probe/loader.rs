//! Checks the host, then loads and attaches the program.

use std::{fs, io, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, ProgramError, ProgramInfo, tp_btf::BtfTracePointLinkId},
};
use cleanup_common::{RootTable, TRACEPOINT, Tops};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{
    GroupDeadSource, Layout, MAX_ROOTS, ProbeError, ProbeOptions, ProgramSize, btf::Btf,
    landmarks::Landmarks, offsets::Kernel, patch::patch, roots,
};

/// Built by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/exit-probe"));

/// Names in the BPF object.
const SUBSYSTEMS: &str = "SUBSYSTEMS";
const EVENTS: &str = "EVENTS";
pub(super) const LOSSES: &str = "LOSSES";
const LOGS: &str = "AYA_LOGS";

const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";
const OS_RELEASE: &str = "/proc/sys/kernel/osrelease";
const STATUS: &str = "/proc/self/status";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// Ring buffers, CAP_BPF and CAP_PERFMON.
const OLDEST_KERNEL: (u32, u32) = (5, 8);
/// From here on the memory of maps belongs to a cgroup, before to a resource limit.
const MEMCG_KERNEL: (u32, u32) = (5, 11);

/// Numbers of `include/uapi/linux/capability.h`.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The program in the kernel, not yet attached, and what user space shares with it.
pub(super) struct Loaded {
    pub(super) program: Program,
    pub(super) events: RingBuf<MapData>,
    pub(super) losses: PerCpuArray<MapData, u64>,
    pub(super) roots: Array<MapData, RootTable>,
    /// Controllers by their index in the kernel's masks.
    pub(super) controllers: Vec<Option<&'static str>>,
    pub(super) group_dead: GroupDeadSource,
    /// Whether it knows the tops of the hierarchies.
    pub(super) top_known: bool,
    /// `None`: this kernel does not let anybody look.
    pub(super) landmarks: Option<Landmarks>,
    pub(super) size: ProgramSize,
}

/// The program, attached or not.
pub(super) struct Program {
    ebpf: Ebpf,
    /// Of the one that is loaded.
    name: &'static str,
    link: Option<BtfTracePointLinkId>,
}

impl Program {
    pub(super) fn attach(&mut self) -> Result<(), ProbeError> {
        let program = program(&mut self.ebpf, self.name)?;
        self.link = Some(program.attach().map_err(failed("attach"))?);
        Ok(())
    }

    pub(super) fn detach(&mut self) -> Result<(), ProbeError> {
        match self.link.take() {
            Some(link) => program(&mut self.ebpf, self.name)?
                .detach(link)
                .map_err(failed("detach")),
            None => Ok(()),
        }
    }

    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

impl ProgramSize {
    fn of(program: &BtfTracePoint) -> Self {
        let info = program.info().ok();
        let info = info.as_ref();
        Self {
            verified_instructions: info.and_then(ProgramInfo::verified_instruction_count),
            translated_bytes: info.and_then(ProgramInfo::size_translated),
            machine_bytes: info
                .map(ProgramInfo::size_jitted)
                .filter(|bytes| *bytes > 0),
        }
    }
}

/// Takes about a tenth of a second, without a pause for others.
pub(super) fn load(
    options: &ProbeOptions,
    group_dead: Option<GroupDeadSource>,
) -> Result<Loaded, ProbeError> {
    check_options(options)?;
    let release = KernelRelease::read()?;
    check_host(&release)?;

    let kernel = Kernel::read(&read_btf()?)?;
    let group_dead = group_dead.unwrap_or(kernel.group_dead);
    let name = program_for(options, &kernel, group_dead)?;
    let subsystems = kernel.controllers.len() as u32;
    raise_memlock_limit(&release);

    let log_level = if options.kernel_log {
        aya_log::Level::Debug as u8
    } else {
        0
    };
    let mut loader = EbpfLoader::new();
    // Nothing of ours has relocations, and what `new` read takes 20 MB.
    loader.btf(None);
    let landmarks = Landmarks::load(&mut loader, &kernel.offsets)
        .and_then(|mut landmarks| Ok((landmarks.tops()?, landmarks)));
    let (tops, landmarks) = match landmarks {
        Ok((tops, landmarks)) => (tops, Some(landmarks)),
        Err(error) => {
            tracing::debug!(%error, "the landmarks of the cgroup hierarchies stay unknown");
            (Tops::default(), None)
        }
    };
    let object = patch(OBJECT, &kernel.offsets, tops).map_err(|error| ProbeError::Unsupported {
        what: format!("the exit probe cannot be fitted to this kernel: {error}"),
        remedy: "report it".into(),
    })?;
    loader
        .override_global(SUBSYSTEMS, &subsystems, true)
        .override_global(aya_log::LEVEL, &log_level, true)
        .map_max_entries(EVENTS, options.ring_bytes);
    if !options.kernel_log {
        // Never used, and cannot be left out.
        loader.map_max_entries(LOGS, page_bytes());
    }
    let mut ebpf = loader
        .load(&object)
        .map_err(|e| ProbeError::Load(Box::new(e)))?;

    let program = program(&mut ebpf, name)?;
    {
        // For the tracepoint's id, and as large: dropped at once.
        let types = aya::Btf::from_sys_fs().map_err(|e| ProbeError::Load(Box::new(e.into())))?;
        program.load(TRACEPOINT, &types).map_err(failed("verify"))?;
    }
    let size = ProgramSize::of(program);

    Ok(Loaded {
        events: take_map(&mut ebpf, EVENTS)?,
        losses: take_map(&mut ebpf, LOSSES)?,
        roots: take_map(&mut ebpf, roots::MAP)?,
        controllers: kernel.controllers,
        group_dead,
        top_known: (!watches(options, Layout::V1) || tops.freezer_css != 0)
            && (!watches(options, Layout::V2) || tops.unified_cgroup != 0),
        landmarks,
        size,
        program: Program {
            ebpf,
            name,
            link: None,
        },
    })
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint, ProbeError> {
    ebpf.program_mut(name)
        .ok_or(ProgramError::NotLoaded)
        .and_then(TryInto::try_into)
        .map_err(failed("find"))
}

fn failed(action: &'static str) -> impl FnOnce(ProgramError) -> ProbeError {
    move |source| ProbeError::Attach {
        action,
        source: Box::new(source),
    }
}

fn take_map<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, ProbeError>
where
    M: TryFrom<Map, Error = MapError>,
{
    ebpf.take_map(name)
        .ok_or_else(|| MapError::InvalidName { name: name.into() })
        .and_then(M::try_from)
        .map_err(|error| ProbeError::map(name, error))
}

/// Whether a root is laid out so.
fn watches(options: &ProbeOptions, layout: Layout) -> bool {
    options.roots.iter().any(|root| root.layout == layout)
}

/// The name of the program for these roots on this kernel.
fn program_for(
    options: &ProbeOptions,
    kernel: &Kernel,
    group_dead: GroupDeadSource,
) -> Result<&'static str, ProbeError> {
    let (v1, v2) = (watches(options, Layout::V1), watches(options, Layout::V2));
    if v1 && !kernel.freezer {
        return Err(ProbeError::Unsupported {
            what: "this kernel has no freezer controller, where version 1 executors are looked for"
                .into(),
            remedy: "build it with CONFIG_CGROUP_FREEZER=y, or configure a version 2 root".into(),
        });
    }
    // Without roots any of them matches nothing.
    Ok(match (v1, v2, group_dead) {
        (true, true, GroupDeadSource::Argument) => "exit_both_arg",
        (true, true, GroupDeadSource::LiveCounter) => "exit_both_live",
        (true, false, GroupDeadSource::Argument) => "exit_v1_arg",
        (true, false, GroupDeadSource::LiveCounter) => "exit_v1_live",
        (false, _, GroupDeadSource::Argument) => "exit_v2_arg",
        (false, _, GroupDeadSource::LiveCounter) => "exit_v2_live",
    })
}

fn check_options(options: &ProbeOptions) -> Result<(), ProbeError> {
    let invalid = |option, reason| Err(ProbeError::InvalidOption { option, reason });
    let ProbeOptions {
        roots,
        ring_bytes,
        kernel_log: _,
    } = options;
    if roots.len() > MAX_ROOTS {
        return invalid(
            "roots",
            format!("{} are too many, {MAX_ROOTS} at most", roots.len()),
        );
    }
    if let Some(root) = roots.iter().find(|root| !root.path.is_absolute()) {
        return invalid("roots", format!("{} is not absolute", root.path.display()));
    }
    if !ring_bytes.is_power_of_two() || *ring_bytes < page_bytes() {
        return invalid(
            "ring_bytes",
            format!(
                "{ring_bytes} is not a power of two of at least a page ({})",
                page_bytes()
            ),
        );
    }
    Ok(())
}

/// What loading the program takes, but for the kernel's types: `uname -r` if it is
/// there.
pub(super) fn examine_kernel() -> Result<String, ProbeError> {
    let release = KernelRelease::read()?;
    check_host(&release)?;
    Ok(release.text)
}

/// Whether the kernel's types are such that the program knows its way about.
pub(super) fn examine_types() -> Result<GroupDeadSource, ProbeError> {
    Ok(Kernel::read(&read_btf()?)?.group_dead)
}

fn check_host(release: &KernelRelease) -> Result<(), ProbeError> {
    if release.version < OLDEST_KERNEL {
        return Err(ProbeError::KernelTooOld {
            release: release.text.clone(),
        });
    }
    let missing = missing_capabilities(&read(STATUS)?);
    if !missing.is_empty() {
        return Err(ProbeError::MissingCapability { missing });
    }
    // Absent without the securityfs; then the load says it, if less clearly.
    if fs::read_to_string(LOCKDOWN).is_ok_and(|modes| modes.contains("[confidentiality]")) {
        return Err(ProbeError::Unsupported {
            what:
                "the kernel is locked down for confidentiality and lets no program read its memory"
                    .into(),
            remedy: "boot it with lockdown=integrity or lockdown=none".into(),
        });
    }
    Ok(())
}

/// The capabilities that the process lacks, by the content of its status file.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: u32| effective & (1 << capability) != 0;
    if has(CAP_SYS_ADMIN) {
        return Vec::new();
    }
    [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
        .into_iter()
        .filter_map(|(capability, name)| (!has(capability)).then_some(name))
        .collect()
}

struct KernelRelease {
    text: String,
    version: (u32, u32),
}

impl KernelRelease {
    fn read() -> Result<Self, ProbeError> {
        let text = read(OS_RELEASE)?.trim().to_owned();
        let version = parse_version(&text).ok_or_else(|| ProbeError::Unsupported {
            what: format!("the kernel calls itself {text:?}, which is no version"),
            remedy: "report it".into(),
        })?;
        Ok(Self { text, version })
    }
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn read_btf() -> Result<Btf, ProbeError> {
    let path = Path::new(BTF_PATH);
    let blob = fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ProbeError::NoBtf { path: path.into() },
        _ => ProbeError::io(format!("cannot read {BTF_PATH}"), error),
    })?;
    Btf::parse(blob).map_err(|source| ProbeError::InvalidBtf {
        path: path.into(),
        source,
    })
}

fn read(path: &str) -> Result<String, ProbeError> {
    fs::read_to_string(path).map_err(|e| ProbeError::io(format!("cannot read {path}"), e))
}

/// For who gives up the right to raise limits before the probe is loaded.
pub fn raise_limits() {
    if let Ok(release) = KernelRelease::read() {
        raise_memlock_limit(&release);
    }
}

/// Best effort: if it is refused and needed, creating the maps says so.
fn raise_memlock_limit(release: &KernelRelease) {
    if release.version >= MEMCG_KERNEL {
        return;
    }
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let _ = setrlimit(Resource::Memlock, unlimited);
}

fn page_bytes() -> u32 {
    rustix::param::page_size() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions_as_distributions_write_them() {
        for (release, version) in [
            ("5.10.0-32-cloud-amd64", Some((5, 10))),
            ("6.18.44", Some((6, 18))),
            ("7.0-rc3", Some((7, 0))),
            ("5.4+", Some((5, 4))),
            ("6", None),
            ("", None),
        ] {
            assert_eq!(parse_version(release), version, "{release}");
        }
    }

    #[test]
    fn names_the_capabilities_that_are_missing() {
        let missing =
            |mask: u64| missing_capabilities(&format!("Name:\tx\nCapEff:\t{mask:016x}\n"));
        assert_eq!(missing(1 << CAP_SYS_ADMIN), Vec::<&str>::new());
        assert_eq!(missing(1 << CAP_BPF | 1 << CAP_PERFMON), Vec::<&str>::new());
        assert_eq!(missing(1 << CAP_BPF), ["CAP_PERFMON"]);
        assert_eq!(missing(0), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing_capabilities("garbage"), ["CAP_BPF", "CAP_PERFMON"]);
    }

    #[test]
    fn refuses_options_that_no_kernel_satisfies() {
        let valid = ProbeOptions::default();
        assert!(check_options(&valid).is_ok());
        for ring_bytes in [0, 1 << 10, (1 << 20) + 1] {
            let options = ProbeOptions {
                ring_bytes,
                ..valid.clone()
            };
            assert!(check_options(&options).is_err(), "{ring_bytes}");
        }
        let root = super::super::RootSpec {
            path: "mesos".into(),
            layout: Layout::V1,
        };
        let options = ProbeOptions {
            roots: vec![root],
            ..valid
        };
        let message = check_options(&options)
            .expect_err("a relative root")
            .to_string();
        assert!(message.contains("mesos is not absolute"), "{message}");
    }
}
