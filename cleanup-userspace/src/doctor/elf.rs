//! What a shared object says of itself, without loading it.
//!
//! With `object`: maintained by the gimli project, part of rustc's own toolchain,
//! and in this program already (aya reads the BPF program with it). goblin would
//! be a second parser for the same.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use object::Endianness;
use object::elf::{DT_SONAME, EM_X86_64, ET_DYN};
use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _};
use object::read::{Object as _, ObjectSymbol as _, ReadCache, ReadRef};

/// No shared object, or not one that this machine can read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ElfError {
    #[error("cannot open {path}: {error}")]
    Open {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("{path} is no 64-bit ELF file: {error}")]
    NotElf { path: PathBuf, error: object::Error },
    #[error("{path} is no shared object for x86_64")]
    OtherKind { path: PathBuf },
}

/// What was asked of a file.
#[derive(Debug, Default)]
pub(super) struct Elf {
    pub(super) soname: Option<String>,
    /// Those of the wanted symbols that it defines.
    exports: HashSet<&'static str>,
    /// Versions of other libraries' symbols that it cannot be loaded without:
    /// `GLIBC_2.17`.
    pub(super) needs: BTreeSet<String>,
}

impl Elf {
    pub(super) fn exports(&self, symbol: &str) -> bool {
        self.exports.contains(symbol)
    }

    /// Reads a file, and which of `wanted` it exports.
    pub(super) fn read(path: &Path, wanted: &[&'static str]) -> Result<Self, ElfError> {
        let file = File::open(path).map_err(|error| ElfError::Open {
            path: path.to_owned(),
            error,
        })?;
        // A libmesos has more than 100 MB, of which a few are looked at.
        let cache = ReadCache::new(file);
        let not_elf = |error| ElfError::NotElf {
            path: path.to_owned(),
            error,
        };
        let elf = ElfFile64::<Endianness, _>::parse(&cache).map_err(not_elf)?;
        let header = elf.elf_header();
        let endian = elf.endian();
        if header.e_type(endian) != ET_DYN || header.e_machine(endian) != EM_X86_64 {
            return Err(ElfError::OtherKind {
                path: path.to_owned(),
            });
        }
        let mut found = Self::default();
        for symbol in elf.dynamic_symbols() {
            if !symbol.is_definition() {
                continue;
            }
            let Ok(name) = symbol.name_bytes() else {
                continue;
            };
            found.exports.extend(
                wanted
                    .iter()
                    .copied()
                    .find(|wanted| wanted.as_bytes() == name),
            );
        }
        found.read_dynamic(&elf, &cache).map_err(not_elf)?;
        Ok(found)
    }

    fn read_dynamic<'data, R: ReadRef<'data>>(
        &mut self,
        elf: &ElfFile64<'data, Endianness, R>,
        data: R,
    ) -> object::Result<()> {
        let endian = elf.endian();
        let sections = elf.elf_section_table();
        if let Some((entries, link)) = sections.dynamic(endian, data)? {
            let strings = sections.strings(endian, data, link)?;
            self.soname = entries
                .iter()
                .find(|entry| entry.tag(endian) == DT_SONAME)
                .and_then(|entry| entry.string(endian, strings).ok())
                .map(|name| String::from_utf8_lossy(name).into_owned());
        }
        if let Some((mut libraries, link)) = sections.gnu_verneed(endian, data)? {
            let strings = sections.strings(endian, data, link)?;
            while let Some((_, mut versions)) = libraries.next()? {
                while let Some(version) = versions.next()? {
                    let name = version.name(endian, strings)?;
                    self.needs
                        .insert(String::from_utf8_lossy(name).into_owned());
                }
            }
        }
        Ok(())
    }

    /// The newest glibc that it needs: `(2, 17)`.
    pub(super) fn needed_glibc(&self) -> Option<(u32, u32)> {
        self.needs
            .iter()
            .filter_map(|need| glibc_version(need.strip_prefix("GLIBC_")?))
            .max()
    }
}

/// `2.17`, `2.2.5`, as far as it matters.
pub(super) fn glibc_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_c_library_says_of_itself() {
        let libc = procfs::process::Process::myself()
            .and_then(|me| me.maps())
            .unwrap()
            .into_iter()
            .find_map(|map| match map.pathname {
                procfs::process::MMapPath::Path(path)
                    if path.file_name().is_some_and(|name| name == "libc.so.6") =>
                {
                    Some(path)
                }
                _ => None,
            })
            .unwrap();
        let elf = Elf::read(&libc, &["malloc", "no_such_symbol", "stdout"]).unwrap();
        assert_eq!(elf.soname.as_deref(), Some("libc.so.6"));
        assert!(elf.exports("malloc") && elf.exports("stdout"));
        assert!(!elf.exports("no_such_symbol"));
        // Of its own dynamic linker.
        assert!(elf.needs.contains("GLIBC_PRIVATE"), "{:?}", elf.needs);
    }

    #[test]
    fn what_is_no_shared_object_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(matches!(
            Elf::read(&path, &[]).unwrap_err(),
            ElfError::Open { .. }
        ));
        for content in [&b""[..], b"garbage", b"\x7fELF\x02\x01\x01"] {
            std::fs::write(&path, content).unwrap();
            assert!(matches!(
                Elf::read(&path, &[]).unwrap_err(),
                ElfError::NotElf { .. }
            ));
        }
        // Whole, but for another machine; cut short anywhere: never a panic.
        let libc = std::fs::read("/proc/self/exe").unwrap();
        let mut other = libc[..libc.len().min(1 << 16)].to_vec();
        for length in (0..other.len()).step_by(997) {
            std::fs::write(&path, &other[..length]).unwrap();
            let _ = Elf::read(&path, &["malloc"]);
        }
        other[18] = 183;
        std::fs::write(&path, &other).unwrap();
        assert!(Elf::read(&path, &[]).is_err());
    }

    #[test]
    fn versions_of_glibc() {
        assert_eq!(glibc_version("2.2.5"), Some((2, 2)));
        assert_eq!(glibc_version("2.17"), Some((2, 17)));
        assert_eq!(glibc_version("PRIVATE"), None);
        let elf = Elf {
            needs: ["GLIBC_2.9", "GLIBC_2.17", "GCC_4.2.0", "GLIBC_PRIVATE"]
                .map(str::to_owned)
                .into(),
            ..Elf::default()
        };
        assert_eq!(elf.needed_glibc(), Some((2, 17)));
    }
}
