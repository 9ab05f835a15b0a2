//! The exit probe: a BPF program that reports the end of every executor, what it needs around, and
//! what there is where it cannot run ([`ExitSource`]).

pub mod btf;
mod error;
mod landmarks;
mod loader;
mod loss;
mod mounts;
mod offsets;
mod patch;
mod record;
mod roots;
mod source;
mod stream;

use std::{fmt, io, path::PathBuf, sync::Arc};

use aya::maps::{MapData, PerCpuArray};
use aya_log::EbpfLogger;
use tokio::task::AbortHandle;

pub use self::{
    error::ProbeError,
    loss::Losses,
    record::{ExitRecord, TaskHierarchies},
    source::{ExitSource, ProbeKind},
};
use self::{
    loader::{Loaded, Program},
    roots::RootWatch,
    stream::ExitStream,
};

/// A directory beneath which an agent makes its containers' cgroups.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RootSpec {
    /// Absolute directory of the agent's `cgroups_root` in the launcher's hierarchy. It need not exist.
    pub path: PathBuf,
    /// How the agent lays out a container beneath it.
    pub layout: Layout,
}

/// Where an executor sits beneath a root.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Layout {
    /// `<freezer>/<root>/<container>`
    V1,
    /// `<unified>/<root>/<container>/leaf`
    V2,
}

/// What to watch, and with how much memory.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// At most [`MAX_ROOTS`].
    pub roots: Vec<RootSpec>,
    /// Size of the ring buffer: a power of two, and a multiple of the page size.
    pub ring_bytes: u32,
    /// Whether the kernel program explains itself through the `log` crate.
    pub kernel_log: bool,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self {
            roots: Vec::new(),
            ring_bytes: 1 << 19,
            kernel_log: false,
        }
    }
}

/// How many roots one probe can watch.
pub const MAX_ROOTS: usize = cleanup_common::MAX_ROOTS;

/// How the kernel program knows that a thread group is dead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GroupDeadSource {
    /// The tracepoint says so (Linux 6.16 and later).
    Argument,
    /// No thread is left in the group's counter; a claim makes it once-only.
    LiveCounter,
}

/// How large the program is, as far as the kernel tells.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ProgramSize {
    /// Instructions that the verifier walked through (5.16 and later).
    pub verified_instructions: Option<u32>,
    /// Bytes of its instructions, after the verifier has removed what never runs.
    pub translated_bytes: Option<u32>,
    /// Bytes of machine code.
    pub machine_bytes: Option<u32>,
}

/// What the probe found out about its host and itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProbeInfo {
    /// How a group's end is recognised.
    pub group_dead: GroupDeadSource,
    /// Whether a task at the top of the cgroup hierarchy is dismissed at first sight (5.10 and later).
    pub top_known: bool,
    /// How large the program is to the kernel.
    pub size: ProgramSize,
    /// Size of the ring buffer in bytes.
    pub ring_bytes: u32,
    /// Whether the kernel program explains itself.
    pub kernel_log: bool,
    /// The roots in the order of the options.
    pub roots: Vec<RootInfo>,
}

/// What is known of one root at the moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RootInfo {
    /// As configured.
    pub spec: RootSpec,
    /// Whether exits beneath it are reported now.
    pub state: RootState,
}

/// Whether a root's directory is one that the kernel program can match.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RootState {
    /// It exists, with this inode.
    Watched {
        /// The kernel's id of the cgroup.
        inode: u64,
        /// Whether exits elsewhere are dismissed at first sight (5.10 and later).
        known: bool,
    },
    /// It does not exist (yet); its creation will be seen.
    Absent,
    /// It exists, but not in the hierarchy of the layout: freezer for V1, cgroup2 for V2.
    WrongHierarchy,
}

/// Whether this kernel, and this process' rights, are enough for the probe, but for
/// the kernel's types; `uname -r` if they are. Loads nothing.
pub fn examine_kernel() -> Result<String, ProbeError> {
    loader::examine_kernel()
}

/// Whether the kernel's types tell what the probe has to know, and how it would
/// recognise a group's end. Loads nothing.
pub fn examine_types() -> Result<GroupDeadSource, ProbeError> {
    loader::examine_types()
}

/// Takes the limits that loading needs on old kernels: CAP_SYS_RESOURCE may, and the
/// probe can do without it afterwards. Best effort: a load says what is missing.
pub fn raise_limits() {
    loader::raise_limits();
}

/// A loaded and attached exit probe. Dropping it detaches it.
pub struct Probe {
    stream: ExitStream,
    roots: RootWatch,
    losses: PerCpuArray<MapData, u64>,
    program: Program,
    kernel_log: Option<AbortOnDrop>,
    specs: Vec<RootSpec>,
    info: StaticInfo,
}

/// The part of [`ProbeInfo`] that never changes.
struct StaticInfo {
    group_dead: GroupDeadSource,
    top_known: bool,
    size: ProgramSize,
    ring_bytes: u32,
}

impl Probe {
    /// Loads and attaches the kernel program. No exit after the return is missed.
    pub async fn start(options: ProbeOptions) -> Result<Self, ProbeError> {
        Self::start_with(options, None).await
    }

    /// As [`Self::start`], but by this source instead of the best that the kernel has: newer
    /// kernels have the older source too, so that it can be tested there.
    #[doc(hidden)]
    pub async fn start_with(
        options: ProbeOptions,
        group_dead: Option<GroupDeadSource>,
    ) -> Result<Self, ProbeError> {
        let (options, loaded) = tokio::task::spawn_blocking(move || {
            let loaded = loader::load(&options, group_dead)?;
            Ok::<_, ProbeError>((options, loaded))
        })
        .await
        .map_err(|error| ProbeError::io("loading the exit probe", io::Error::from(error)))??;
        let Loaded {
            mut program,
            events,
            losses,
            roots,
            controllers,
            group_dead,
            top_known,
            landmarks,
            size,
        } = loaded;
        let ProbeOptions {
            roots: specs,
            ring_bytes,
            kernel_log,
        } = options;

        let kernel_log = if kernel_log {
            Some(forward_log(&mut program)?)
        } else {
            None
        };
        // The table first: attached without it, the program would let exits pass.
        let roots = RootWatch::start(specs.clone(), controllers.clone(), roots, landmarks)?;
        let stream = ExitStream::new(events, ring_bytes, controllers, Arc::clone(roots.known()));
        program.attach()?;
        Ok(Self {
            stream,
            roots,
            losses,
            program,
            kernel_log,
            specs,
            info: StaticInfo {
                group_dead,
                top_known,
                size,
                ring_bytes,
            },
        })
    }

    /// The next record. Cancel safe: a record is either returned or still in the ring. The runtime
    /// in which this is first waited for is the one that polls the ring.
    pub async fn next(&mut self) -> Result<ExitRecord, ProbeError> {
        self.stream.next().await
    }

    /// Stops reporting. What is in the ring stays there for [`Self::drain`].
    ///
    /// A report that another CPU is writing at this very moment still arrives, a few microseconds
    /// later.
    pub fn detach(&mut self) -> Result<(), ProbeError> {
        self.program.detach()
    }

    /// Takes what is in the ring, without waiting: at most what it can hold.
    pub fn drain(&mut self) -> Vec<ExitRecord> {
        self.stream.drain()
    }

    /// Counters of what was lost, summed over CPUs.
    pub fn losses(&self) -> Result<Losses, ProbeError> {
        Losses::read(&self.losses, self.stream.rejected())
    }

    /// What the probe found out about its host and itself.
    #[must_use]
    pub fn describe(&self) -> ProbeInfo {
        let StaticInfo {
            group_dead,
            top_known,
            size,
            ring_bytes,
        } = self.info;
        let states = self.roots.known().states();
        let roots = self.specs.iter().cloned().zip(states);
        ProbeInfo {
            group_dead,
            top_known,
            size,
            ring_bytes,
            kernel_log: self.kernel_log.is_some(),
            roots: roots
                .map(|(spec, state)| RootInfo { spec, state })
                .collect(),
        }
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe")
            .field("info", &self.describe())
            .finish_non_exhaustive()
    }
}

/// Hands what the kernel program says to the `log` crate.
fn forward_log(program: &mut Program) -> Result<AbortOnDrop, ProbeError> {
    let unusable = |error: &dyn fmt::Display| ProbeError::Unsupported {
        what: format!("the kernel program's log cannot be read: {error}"),
        remedy: "turn kernel_log off".into(),
    };
    let logger = EbpfLogger::init(program.ebpf()).map_err(|e| unusable(&e))?;
    let mut logger = stream::poll_readable(logger).map_err(|e| unusable(&e))?;
    let task = tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(AbortOnDrop(task.abort_handle()))
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
