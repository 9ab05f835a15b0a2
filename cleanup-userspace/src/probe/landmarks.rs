//! Structures of the cgroup hierarchies that the exit probe compares pointers with: what the tasks at
//! the top hold, which are most tasks of most hosts, and what the containers beneath a root have for
//! their parent. By these an exit of no interest is dismissed at first sight.
//!
//! What cannot be found stays unknown, which costs such exits some nanoseconds and nothing else: the
//! kernel runs a program without an event since 5.10.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, MapData},
    programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _},
};
use cleanup_common::{Directory, Offsets, Tops};

use super::patch::patch;

/// Built by build.rs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/landmarks"));

/// Names in the BPF object: a program, and the section that is a map of its result.
const TOPS: (&str, &str) = ("tops", ".data.tops");
const DIRECTORY: (&str, &str) = ("directory", ".data.directory");

/// The programs that look, loaded.
pub(super) struct Landmarks(Ebpf);

impl Landmarks {
    pub(super) fn load(loader: &mut EbpfLoader<'_>, offsets: &Offsets) -> Result<Self> {
        let object = patch(OBJECT, offsets, Tops::default())?;
        let mut ebpf = loader.load(&object)?;
        for (name, _) in [TOPS, DIRECTORY] {
            program(&mut ebpf, name)?.load()?;
        }
        Ok(Self(ebpf))
    }

    /// The tops of the hierarchies, which are there for as long as the kernel runs.
    pub(super) fn tops(&mut self) -> Result<Tops> {
        self.run(TOPS)
    }

    /// What an open directory stands for, whose inode has this number.
    pub(super) fn directory(&mut self, fd: BorrowedFd<'_>, inode: u64) -> Result<Directory> {
        let wanted = Directory {
            fd: u64::try_from(fd.as_raw_fd())?,
            id: inode,
            ..Directory::default()
        };
        self.map(DIRECTORY.1)?.set(0, wanted, 0)?;
        self.run(DIRECTORY)
    }

    fn run<T: Pod>(&mut self, (name, section): (&str, &str)) -> Result<T> {
        program(&mut self.0, name)?.test_run(RawTracePointRunOptions::new())?;
        Ok(self.map(section)?.get(&0, 0)?)
    }

    fn map<T: Pod>(&mut self, section: &str) -> Result<Array<&mut MapData, T>> {
        let map = self.0.map_mut(section).context("no such map")?;
        Ok(map.try_into()?)
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut RawTracePoint> {
    let program = ebpf.program_mut(name).context("no such program")?;
    Ok(program.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::MetadataExt as _;

    use super::super::{btf::Btf, offsets::Kernel};
    use super::*;

    fn landmarks() -> Landmarks {
        let blob = std::fs::read("/sys/kernel/btf/vmlinux").expect("a kernel with BTF");
        let btf = Btf::parse(blob).expect("the kernel's own BTF");
        let kernel = Kernel::read(&btf).expect("a kernel that this release knows");
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        Landmarks::load(&mut loader, &kernel.offsets).expect("root, and Linux 5.10")
    }

    /// Two ways to the same place: by a task that is there, and by the directory.
    #[test]
    fn directory_at_the_top_is_what_tasks_there_hold() {
        let mut landmarks = landmarks();
        let tops = landmarks.tops().expect("a run");
        assert_ne!(tops, Tops::default());
        for path in ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup/unified"] {
            let top = File::open(path).expect("the machine's hierarchies");
            let inode = top.metadata().expect("its metadata").ino();
            let found = landmarks.directory(top.as_fd(), inode).expect("a run");
            let is_freezer = path.ends_with("freezer");
            let (css, top) = if is_freezer {
                (found.freezer_css, tops.freezer_css)
            } else {
                (found.unified_css, tops.unified_cgroup)
            };
            assert_eq!(css, top, "{path}");
        }
    }

    #[test]
    fn what_is_no_cgroup_or_another_one_is_not_found() {
        let mut landmarks = landmarks();
        let elsewhere = tempfile::tempfile().expect("a file");
        let inode = elsewhere.metadata().expect("its metadata").ino();
        let cgroup = File::open("/sys/fs/cgroup/freezer").expect("the freezer");
        for (file, inode) in [(&elsewhere, inode), (&cgroup, 2)] {
            let found = landmarks.directory(file.as_fd(), inode).expect("a run");
            assert_eq!((found.freezer_css, found.unified_css), (0, 0), "{file:?}");
        }
    }
}
