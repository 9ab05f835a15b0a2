//! Keeps the kernel's table of roots true.
//!
//! The program knows a root by the inode of its directory. An agent makes that directory when it
//! starts, and anybody may remove it and make it again, so it is watched from its parents: any
//! directory on the way to it may be the one that is missing. A thread of its own does it, since an
//! executor may start and die in a new root while the runtime is busy with something else.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya::maps::{Array, MapData};
use cleanup_common::{ANY_CSS, RootTable};
use inotify::{EventMask, Inotify, WatchMask};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{Mode, OFlags};
use tracing::{debug, info, warn};

use super::{
    Layout, ProbeError, RootSpec, RootState,
    landmarks::Landmarks,
    mounts::{Hierarchies, MOUNTINFO},
};

/// The map that holds the table: the program's section of that name.
pub(super) const MAP: &str = ".data.roots";

/// Hosts that run containers mount all day, and reading the table costs more the more they run.
const MOUNTS_INTERVAL: Duration = Duration::from_secs(1);
/// How often to look when the kernel refuses to tell.
const BLIND_INTERVAL: Duration = Duration::from_secs(1);

/// The watch over all roots; ends when dropped.
pub(super) struct RootWatch {
    known: Arc<Known>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// What the watch knows, for others to read.
pub(super) struct Known {
    states: Mutex<Vec<RootState>>,
    v1_controllers: AtomicU32,
}

impl Known {
    /// In the order of the roots.
    pub(super) fn states(&self) -> Vec<RootState> {
        self.states
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// See [`Hierarchies::v1_controllers`].
    pub(super) fn v1_controllers(&self) -> u32 {
        self.v1_controllers.load(Ordering::Relaxed)
    }
}

impl RootWatch {
    /// Fills the table, and keeps it true from then on.
    pub(super) fn start(
        specs: Vec<RootSpec>,
        controllers: Vec<Option<&'static str>>,
        table: Array<MapData, RootTable>,
        landmarks: Option<Landmarks>,
    ) -> Result<Self, ProbeError> {
        let known = Arc::new(Known {
            states: Mutex::new(Vec::new()),
            v1_controllers: AtomicU32::new(0),
        });
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| ProbeError::io("eventfd", e))?;
        let stopped = stop
            .try_clone()
            .map_err(|e| ProbeError::io("dup eventfd", e))?;
        let mut watcher = Watcher::new(specs, controllers, table, landmarks, Arc::clone(&known))?;
        watcher.blind = matches!(watcher.refresh()?, Sight::Partial);
        let thread = thread::Builder::new()
            .name("root-watch".into())
            .spawn(move || watcher.run(&stopped))
            .map_err(|e| ProbeError::io("cannot start the thread root-watch", e))?;
        Ok(Self {
            known,
            stop,
            thread: Some(thread),
        })
    }

    pub(super) fn known(&self) -> &Arc<Known> {
        &self.known
    }
}

impl Drop for RootWatch {
    fn drop(&mut self) {
        // Cannot fail: the counter is far from full.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

struct Watcher {
    specs: Vec<RootSpec>,
    controllers: Vec<Option<&'static str>>,
    table: Array<MapData, RootTable>,
    landmarks: Option<Landmarks>,
    known: Arc<Known>,
    /// Names of the directories on the way to a root: events about others mean nothing.
    names: BTreeSet<OsString>,
    inotify: Inotify,
    /// Whether something could not be watched or told: then it looks again before long.
    blind: bool,
    mountinfo: File,
    mounts: Hierarchies,
    mounts_seen: Instant,
    written: RootTable,
}

impl Watcher {
    fn new(
        specs: Vec<RootSpec>,
        controllers: Vec<Option<&'static str>>,
        table: Array<MapData, RootTable>,
        landmarks: Option<Landmarks>,
        known: Arc<Known>,
    ) -> Result<Self, ProbeError> {
        let names = specs
            .iter()
            .flat_map(|spec| &spec.path)
            .map(OsString::from)
            .collect();
        let inotify = Inotify::init().map_err(|e| ProbeError::io("inotify_init", e))?;
        // Opened before it is read: a change in between is reported by the first poll.
        let mountinfo = File::open(MOUNTINFO).map_err(cannot_read)?;
        Ok(Self {
            specs,
            controllers,
            table,
            landmarks,
            known,
            names,
            inotify,
            blind: false,
            mountinfo,
            mounts: Hierarchies::default(),
            mounts_seen: Instant::now(),
            written: RootTable::default(),
        })
    }

    fn run(mut self, stop: &OwnedFd) {
        loop {
            let changed = match self.wait(stop) {
                Ok(Wake::Stop) => return,
                Ok(Wake::Changed) => true,
                Ok(Wake::Nothing) => false,
                Err(error) => {
                    warn!(%error, "cannot wait for changes of the cgroup roots");
                    thread::sleep(BLIND_INTERVAL);
                    true
                }
            };
            if changed || self.blind {
                self.blind = match self.refresh() {
                    Ok(Sight::Full) => false,
                    Ok(Sight::Partial) => true,
                    Err(error) => {
                        if !self.blind {
                            warn!(%error, "cannot update the kernel's table of cgroup roots");
                        }
                        true
                    }
                };
            }
        }
    }

    /// Waits until something may have changed.
    fn wait(&mut self, stop: &OwnedFd) -> io::Result<Wake> {
        let quiet = MOUNTS_INTERVAL.saturating_sub(self.mounts_seen.elapsed());
        let timeout = match (quiet.is_zero(), self.blind) {
            (false, _) => Some(quiet),
            (true, true) => Some(BLIND_INTERVAL),
            (true, false) => None,
        };
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let inotify = self.inotify.as_fd();
        let mut fds = vec![
            PollFd::new(stop, PollFlags::IN),
            PollFd::from_borrowed_fd(inotify, PollFlags::IN),
        ];
        if quiet.is_zero() {
            fds.push(PollFd::new(&self.mountinfo, PollFlags::PRI));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            return Ok(Wake::Stop);
        }
        let mut changed = ready[1] && self.read_events()?;
        if ready.get(2) == Some(&true) {
            changed = true;
            self.mounts_seen = Instant::now();
            // A mount hides directories without a word about them: start anew.
            self.inotify = Inotify::init()?;
        }
        Ok(if changed {
            Wake::Changed
        } else {
            Wake::Nothing
        })
    }

    /// Takes all events. Whether any of them is about a directory on the way to a root.
    fn read_events(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let mut relevant = false;
        loop {
            let events = match self.inotify.read_events(&mut buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(relevant),
                Err(error) => return Err(error),
            };
            for event in events {
                relevant |= event.mask.contains(EventMask::Q_OVERFLOW)
                    || event.name.is_some_and(|name| self.names.contains(name));
            }
        }
    }

    /// Looks at every root, and tells the kernel program if anything changed.
    fn refresh(&mut self) -> Result<Sight, ProbeError> {
        let mut sight = Sight::Full;
        self.mounts = Hierarchies::read(&self.controllers).map_err(cannot_read)?;
        let mut table = RootTable::of(self.specs.len());
        let mut states = Vec::with_capacity(self.specs.len());
        for (slot, spec) in self.specs.iter().enumerate() {
            // First the watches, then the look: what changes in between is reported.
            if let Err(error) = watch_parents(&self.inotify, &spec.path) {
                if !self.blind {
                    let path = spec.path.display();
                    warn!(%path, %error, "cannot watch the way to a cgroup root: polling");
                }
                sight = Sight::Partial;
            }
            let state = match look(spec, &self.mounts, self.landmarks.as_mut()) {
                Look::No(state) => state,
                Look::Root { inode, css } => {
                    let roots = match spec.layout {
                        Layout::V1 => &mut table.v1,
                        Layout::V2 => &mut table.v2,
                    };
                    roots.ids[slot] = inode;
                    roots.css[slot] = css.unwrap_or(ANY_CSS);
                    RootState::Watched {
                        inode,
                        known: css.is_some(),
                    }
                }
            };
            states.push(state);
        }
        if table != self.written {
            self.table
                .set(0, table, 0)
                .map_err(|e| ProbeError::map(MAP, e))?;
            self.written = table;
        }
        self.publish(states);
        Ok(sight)
    }

    fn publish(&self, states: Vec<RootState>) {
        self.known
            .v1_controllers
            .store(self.mounts.v1_controllers, Ordering::Relaxed);
        let mut known = self
            .known
            .states
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (slot, spec) in self.specs.iter().enumerate() {
            let (before, now) = (known.get(slot), states[slot]);
            if before != Some(&now) {
                info!(path = %spec.path.display(), state = ?now, "cgroup root");
            }
        }
        *known = states;
    }
}

/// What is at a root's path.
enum Look {
    /// Its directory, and the address of the structure that its containers have for a parent.
    Root { inode: u64, css: Option<u64> },
    /// None that can be watched.
    No(RootState),
}

fn look(spec: &RootSpec, mounts: &Hierarchies, landmarks: Option<&mut Landmarks>) -> Look {
    // Opened, so that all that is said of it is said of one directory.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(&spec.path, flags, Mode::empty()).map(File::from) else {
        return Look::No(RootState::Absent);
    };
    let Ok(metadata) = file.metadata() else {
        return Look::No(RootState::Absent);
    };
    let hierarchy = match spec.layout {
        Layout::V1 => mounts.freezer,
        Layout::V2 => mounts.unified,
    };
    if !metadata.is_dir() || hierarchy != Some(metadata.dev()) {
        return Look::No(RootState::WrongHierarchy);
    }
    let inode = metadata.ino();
    let found = landmarks.map(|landmarks| landmarks.directory(file.as_fd(), inode));
    let css = match found {
        None => None,
        Some(Ok(found)) => Some(match spec.layout {
            Layout::V1 => found.freezer_css,
            Layout::V2 => found.unified_css,
        }),
        Some(Err(error)) => {
            let path = spec.path.display();
            debug!(%path, %error, "the kernel's structure of a cgroup root stays unknown");
            None
        }
    };
    Look::Root {
        inode,
        css: css.filter(|css| *css != 0),
    }
}

/// Why the watcher woke up.
enum Wake {
    Stop,
    Changed,
    Nothing,
}

/// Whether the kernel will tell of every change.
enum Sight {
    Full,
    Partial,
}

/// Watches every directory on the way to `path` that exists, from the top.
fn watch_parents(inotify: &Inotify, path: &Path) -> io::Result<()> {
    let mask = WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::ONLYDIR;
    let mut parents: Vec<PathBuf> = path.ancestors().skip(1).map(Path::to_path_buf).collect();
    parents.reverse();
    for parent in parents {
        match inotify.watches().add(&parent, mask) {
            Ok(_) => {}
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn cannot_read(error: io::Error) -> ProbeError {
    ProbeError::io(format!("cannot read {MOUNTINFO}"), error)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
