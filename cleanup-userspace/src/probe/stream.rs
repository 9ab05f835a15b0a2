//! Records out of the ring buffer.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use aya::maps::{MapData, RingBuf};
use cleanup_common::{ExitEvent, UNIFIED_BIT};
use tokio::io::{Interest, unix::AsyncFd};

use super::{ExitRecord, ProbeError, TaskHierarchies, roots::Known};
use crate::process::monotonic_ns;

/// The reader of the ring buffer.
pub(super) struct ExitStream {
    ring: RingBuf<MapData>,
    /// Tells that there is something in the ring: in the runtime in which it was first waited for.
    ready: Option<AsyncFd<OwnedFd>>,
    decoder: Decoder,
    /// In records.
    capacity: usize,
}

/// Makes records of what the kernel program wrote.
struct Decoder {
    controllers: Vec<Option<&'static str>>,
    known: Arc<Known>,
    rejected: Rejected,
}

/// Counters of what came through the ring and was no record.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rejected {
    pub(super) name_not_utf8: u64,
    pub(super) malformed: u64,
}

impl ExitStream {
    pub(super) fn new(
        ring: RingBuf<MapData>,
        ring_bytes: u32,
        controllers: Vec<Option<&'static str>>,
        known: Arc<Known>,
    ) -> Self {
        Self {
            ring,
            ready: None,
            decoder: Decoder {
                controllers,
                known,
                rejected: Rejected::default(),
            },
            capacity: ring_bytes as usize / size_of::<ExitEvent>(),
        }
    }

    /// Waits for the next record, within a tokio runtime. A record is taken in the same step in which
    /// it is returned, so dropping the future loses none.
    pub(super) async fn next(&mut self) -> Result<ExitRecord, ProbeError> {
        let Self {
            ring,
            ready,
            decoder,
            ..
        } = self;
        let cannot_poll = |e| ProbeError::io("cannot poll the ring buffer", e);
        let ready = match ready {
            Some(ready) => ready,
            None => ready.insert(
                ring.as_fd()
                    .try_clone_to_owned()
                    .and_then(poll_readable)
                    .map_err(cannot_poll)?,
            ),
        };
        loop {
            let mut is_ready = ready.readable().await.map_err(cannot_poll)?;
            if let Some(record) = decoder.take(ring) {
                return Ok(record);
            }
            // The kernel wakes a reader that has caught up, so only now may the readiness go. What
            // came since is a readiness of its own, which this does not clear.
            is_ready.clear_ready();
        }
    }

    /// Takes what is there: at most what the ring can hold, whoever goes on writing.
    pub(super) fn drain(&mut self) -> Vec<ExitRecord> {
        let Self {
            ring,
            decoder,
            capacity,
            ..
        } = self;
        std::iter::from_fn(|| decoder.take(ring))
            .take(*capacity)
            .collect()
    }

    pub(super) fn rejected(&self) -> Rejected {
        self.decoder.rejected
    }
}

impl Decoder {
    /// The next record; None when the ring is empty.
    fn take(&mut self, ring: &mut RingBuf<MapData>) -> Option<ExitRecord> {
        loop {
            let item = ring.next()?;
            if let Some(record) = self.decode(&item) {
                return Some(record);
            }
        }
    }

    fn decode(&mut self, bytes: &[u8]) -> Option<ExitRecord> {
        let Some(event) = as_event(bytes) else {
            self.rejected.malformed += 1;
            return None;
        };
        let Some(container) = name(&event) else {
            self.rejected.name_not_utf8 += 1;
            return None;
        };
        Some(ExitRecord {
            at_ns: event.at_ns,
            received_ns: monotonic_ns(),
            tgid: event.tgid,
            tid: event.tid,
            ppid: event.ppid,
            gppid: event.gppid,
            start_boottime_ns: event.start_boottime_ns,
            wait_status: event.wait_status,
            root: event.root as usize,
            container,
            hierarchies: self.hierarchies(event.hierarchies),
        })
    }

    fn hierarchies(&self, bits: u32) -> TaskHierarchies {
        let mounted = bits & self.known.v1_controllers();
        let controllers = self
            .controllers
            .iter()
            .enumerate()
            .filter(|(index, _)| mounted & (1 << index) != 0)
            .filter_map(|(_, name)| *name);
        TaskHierarchies::new(controllers, bits & (1 << UNIFIED_BIT) != 0)
    }
}

/// Registers a ring buffer, or another descriptor of it, with the runtime.
pub(super) fn poll_readable<T: AsFd + AsRawFd>(ring: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: aya's ring buffers and `OwnedFd` own their descriptor, never change it, and close it
    // last.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(Into::into)
}

fn as_event(bytes: &[u8]) -> Option<ExitEvent> {
    if bytes.len() != size_of::<ExitEvent>() {
        return None;
    }
    // SAFETY: the length is right, every content is valid for a type of integers only (aya::Pod),
    // and an unaligned read needs no alignment.
    Some(unsafe { bytes.as_ptr().cast::<ExitEvent>().read_unaligned() })
}

/// The container's name; None if it is not UTF-8.
fn name(event: &ExitEvent) -> Option<String> {
    let bytes: Vec<u8> = event
        .container
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    let text = bytes.split(|byte| *byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}
