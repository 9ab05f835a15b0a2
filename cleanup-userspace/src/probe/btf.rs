//! A reader of the kernel's own type information (BTF), as small as the probe's questions: where a
//! member is, what an enumerator's value is, how many arguments a tracepoint passes.
//!
//! The format is documented in the kernel's `Documentation/bpf/btf.rst`. Nothing here trusts its
//! input: a blob that makes no sense is an error or a question without an answer, never a panic.

use std::ops::Range;

const MAGIC: u16 = 0xeb9f;
/// Enough for every header that was ever written; later ones say that they are longer.
const MIN_HEADER: usize = 24;
/// Anonymous members and modifiers nest a few levels deep. Deeper is a loop in a broken blob.
const MAX_DEPTH: usize = 32;

/// What is wrong with a blob that claims to be BTF.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BtfError {
    /// It ends before what it announces.
    #[error("truncated: nothing at byte {0}")]
    Truncated(usize),
    /// Not BTF, or of the other byte order.
    #[error("magic {0:#06x} instead of {MAGIC:#06x}")]
    Magic(u16),
    /// Without knowing a kind, what follows it cannot be found.
    #[error("unknown kind {kind} of type {id}")]
    UnknownKind {
        /// Number of the type.
        id: usize,
        /// What it claims to be.
        kind: u8,
    },
}

/// Parsed type information: the blob, and where each type begins in it.
#[derive(Debug)]
pub struct Btf {
    blob: Vec<u8>,
    /// Byte offset of each type; ids count from 1.
    types: Vec<usize>,
    strings: Range<usize>,
}

/// Kinds, by their numbers in `include/uapi/linux/btf.h`.
mod kind {
    pub(super) const INT: u8 = 1;
    pub(super) const PTR: u8 = 2;
    pub(super) const ARRAY: u8 = 3;
    pub(super) const STRUCT: u8 = 4;
    pub(super) const UNION: u8 = 5;
    pub(super) const ENUM: u8 = 6;
    pub(super) const FWD: u8 = 7;
    pub(super) const TYPEDEF: u8 = 8;
    pub(super) const VOLATILE: u8 = 9;
    pub(super) const CONST: u8 = 10;
    pub(super) const RESTRICT: u8 = 11;
    pub(super) const FUNC: u8 = 12;
    pub(super) const FUNC_PROTO: u8 = 13;
    pub(super) const VAR: u8 = 14;
    pub(super) const DATASEC: u8 = 15;
    pub(super) const FLOAT: u8 = 16;
    pub(super) const DECL_TAG: u8 = 17;
    pub(super) const TYPE_TAG: u8 = 18;
    pub(super) const ENUM64: u8 = 19;
}

/// The common head of a type: `struct btf_type`.
#[derive(Clone, Copy)]
struct Type {
    /// Where what is special to its kind begins.
    body: usize,
    name: u32,
    kind: u8,
    /// Number of members, enumerators or parameters.
    entries: usize,
    /// The meaning depends on the kind: for a struct, members carry their width.
    flag: bool,
    /// Id of the type it refers to, or its size.
    refers: u32,
}

impl Type {
    /// Size of what follows the head.
    fn body_bytes(self) -> Option<usize> {
        let each = match self.kind {
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            kind::INT | kind::VAR | kind::DECL_TAG => return Some(4),
            kind::ARRAY => return Some(12),
            kind::ENUM | kind::FUNC_PROTO => 8,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12,
            _ => return None,
        };
        Some(each * self.entries)
    }
}

impl Btf {
    /// Reads a blob in this machine's byte order.
    pub fn parse(blob: Vec<u8>) -> Result<Self, BtfError> {
        let magic = blob.first_chunk().copied().map(u16::from_ne_bytes);
        match magic.ok_or(BtfError::Truncated(0))? {
            MAGIC => {}
            other => return Err(BtfError::Magic(other)),
        }
        let word = |at| read_u32(&blob, at).ok_or(BtfError::Truncated(at));
        let header = word(4)? as usize;
        if header < MIN_HEADER {
            return Err(BtfError::Truncated(header));
        }
        let section = |offset: u32, length: u32| {
            let start = header.saturating_add(offset as usize);
            let end = start.saturating_add(length as usize);
            if end > blob.len() {
                return Err(BtfError::Truncated(end));
            }
            Ok(start..end)
        };
        let types = section(word(8)?, word(12)?)?;
        let strings = section(word(16)?, word(20)?)?;

        let mut btf = Self {
            blob,
            types: Vec::new(),
            strings,
        };
        let mut at = types.start;
        while at < types.end {
            let id = btf.types.len() + 1;
            let head = btf.head(at).ok_or(BtfError::Truncated(at))?;
            let body = head.body_bytes().ok_or(BtfError::UnknownKind {
                id,
                kind: head.kind,
            })?;
            btf.types.push(at);
            at = head.body + body;
        }
        if at > types.end {
            return Err(BtfError::Truncated(at));
        }
        Ok(btf)
    }

    /// Byte offset of a member of a struct, also one of an anonymous struct or union within it.
    ///
    /// None if there is no such struct or member, or if it is a bit field between bytes.
    #[must_use]
    pub fn member_offset(&self, structure: &str, member: &str) -> Option<u32> {
        let bits = self
            .named(kind::STRUCT, structure)
            .find_map(|found| self.member_bits(found, member, MAX_DEPTH))?;
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// The enumerators of an enum of 32 bits, in their order.
    #[must_use]
    pub fn enumerators(&self, enumeration: &str) -> Option<Vec<(&str, u32)>> {
        let found = self.named(kind::ENUM, enumeration).next()?;
        (0..found.entries)
            .map(|index| {
                let entry = found.body + index * 8;
                Some((self.string(self.word(entry)?)?, self.word(entry + 4)?))
            })
            .collect()
    }

    /// How many parameters a pointer to a function has, by the name of its typedef.
    #[must_use]
    pub fn function_arity(&self, typedef: &str) -> Option<usize> {
        let mut found = self.named(kind::TYPEDEF, typedef).next()?;
        for _ in 0..MAX_DEPTH {
            match found.kind {
                kind::FUNC_PROTO => return Some(found.entries),
                kind::PTR
                | kind::TYPEDEF
                | kind::VOLATILE
                | kind::CONST
                | kind::RESTRICT
                | kind::TYPE_TAG => found = self.by_id(found.refers)?,
                _ => return None,
            }
        }
        None
    }

    /// The number by which a tracepoint's program names the typedef of its arguments.
    #[must_use]
    pub fn typedef_id(&self, name: &str) -> Option<u32> {
        let is_it = |at: &usize| {
            self.head(*at).is_some_and(|found| {
                found.kind == kind::TYPEDEF && self.string(found.name) == Some(name)
            })
        };
        let index = self.types.iter().position(is_it)?;
        u32::try_from(index + 1).ok()
    }

    fn named<'a>(&'a self, kind: u8, name: &'a str) -> impl Iterator<Item = Type> + 'a {
        self.types
            .iter()
            .filter_map(|at| self.head(*at))
            .filter(move |found| found.kind == kind && self.string(found.name) == Some(name))
    }

    fn by_id(&self, id: u32) -> Option<Type> {
        let index = (id as usize).checked_sub(1)?;
        self.head(*self.types.get(index)?)
    }

    fn member_bits(&self, structure: Type, member: &str, depth: usize) -> Option<u32> {
        let depth = depth.checked_sub(1)?;
        let structure = self.without_modifiers(structure)?;
        if !matches!(structure.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        (0..structure.entries).find_map(|index| {
            let entry = structure.body + index * 12;
            let name = self.string(self.word(entry)?)?;
            let bits = match (self.word(entry + 8)?, structure.flag) {
                (bits, false) => bits,
                (width_and_bits, true) => width_and_bits & 0x00ff_ffff,
            };
            if name == member {
                Some(bits)
            } else if name.is_empty() {
                let inner = self.by_id(self.word(entry + 4)?)?;
                bits.checked_add(self.member_bits(inner, member, depth)?)
            } else {
                None
            }
        })
    }

    fn without_modifiers(&self, mut found: Type) -> Option<Type> {
        for _ in 0..MAX_DEPTH {
            match found.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    found = self.by_id(found.refers)?;
                }
                _ => return Some(found),
            }
        }
        None
    }

    fn head(&self, at: usize) -> Option<Type> {
        let info = self.word(at + 4)?;
        Some(Type {
            body: at + 12,
            name: self.word(at)?,
            kind: (info >> 24) as u8 & 0x1f,
            entries: (info & 0xffff) as usize,
            flag: info >> 31 != 0,
            refers: self.word(at + 8)?,
        })
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let table = self.blob.get(self.strings.clone())?;
        let tail = table.get(offset as usize..)?;
        let end = tail.iter().position(|byte| *byte == 0)?;
        str::from_utf8(&tail[..end]).ok()
    }

    fn word(&self, at: usize) -> Option<u32> {
        read_u32(&self.blob, at)
    }
}

fn read_u32(blob: &[u8], at: usize) -> Option<u32> {
    let bytes = blob.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Builds blobs, so that a test can say what is in one.
    #[derive(Default)]
    struct Builder {
        types: Vec<u8>,
        count: u32,
        strings: Vec<u8>,
    }

    impl Builder {
        fn new() -> Self {
            Self {
                strings: vec![0],
                ..Self::default()
            }
        }

        fn name(&mut self, name: &str) -> u32 {
            if name.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend(name.as_bytes());
            self.strings.push(0);
            at
        }

        fn add(
            &mut self,
            name: &str,
            kind: u8,
            flag: bool,
            entries: usize,
            refers: u32,
            body: &[u32],
        ) -> u32 {
            let name = self.name(name);
            let info = u32::from(flag) << 31 | u32::from(kind) << 24 | entries as u32;
            for word in [name, info, refers].iter().chain(body) {
                self.types.extend(word.to_ne_bytes());
            }
            self.count += 1;
            self.count
        }

        fn structure(
            &mut self,
            name: &str,
            kind: u8,
            flag: bool,
            members: &[(&str, u32, u32)],
        ) -> u32 {
            let body: Vec<u32> = members
                .iter()
                .flat_map(|(name, id, bits)| [self.name(name), *id, *bits])
                .collect();
            self.add(name, kind, flag, members.len(), 0, &body)
        }

        fn blob(&self) -> Vec<u8> {
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            let mut blob = Vec::new();
            blob.extend(MAGIC.to_ne_bytes());
            blob.extend([1, 0]);
            for word in [24, 0, types, types, strings] {
                blob.extend(word.to_ne_bytes());
            }
            blob.extend(&self.types);
            blob.extend(&self.strings);
            blob
        }

        fn parse(&self) -> Btf {
            Btf::parse(self.blob()).expect("a well-formed blob")
        }
    }

    fn vmlinux() -> Vec<u8> {
        std::fs::read("/sys/kernel/btf/vmlinux").expect("a kernel with CONFIG_DEBUG_INFO_BTF")
    }

    #[test]
    fn finds_a_member_through_anonymous_structs_and_modifiers() {
        let mut builder = Builder::new();
        let int = builder.add("int", kind::INT, false, 0, 4, &[32]);
        let inner = builder.structure("", kind::UNION, false, &[("x", int, 0), ("deep", int, 32)]);
        let constant = builder.add("", kind::CONST, false, 0, inner, &[]);
        builder.structure(
            "outer",
            kind::STRUCT,
            false,
            &[("a", int, 0), ("", constant, 64), ("z", int, 128)],
        );
        let btf = builder.parse();
        assert_eq!(btf.member_offset("outer", "a"), Some(0));
        assert_eq!(btf.member_offset("outer", "deep"), Some(12));
        assert_eq!(btf.member_offset("outer", "z"), Some(16));
        assert_eq!(btf.member_offset("outer", "missing"), None);
        assert_eq!(btf.member_offset("nowhere", "a"), None);
    }

    #[test]
    fn reads_offsets_beside_widths() {
        let mut builder = Builder::new();
        let int = builder.add("int", kind::INT, false, 0, 4, &[32]);
        builder.structure(
            "fields",
            kind::STRUCT,
            true,
            &[("bit", int, 1 << 24 | 3), ("whole", int, 64)],
        );
        let btf = builder.parse();
        assert_eq!(btf.member_offset("fields", "bit"), None, "not on a byte");
        assert_eq!(btf.member_offset("fields", "whole"), Some(8));
    }

    #[test]
    fn reads_enumerators_and_arity() {
        let mut builder = Builder::new();
        let names = [builder.name("first"), builder.name("second")];
        builder.add(
            "order",
            kind::ENUM,
            false,
            2,
            4,
            &[names[0], 0, names[1], 7],
        );
        let proto = builder.add("", kind::FUNC_PROTO, false, 2, 0, &[0, 0, 0, 0]);
        let pointer = builder.add("", kind::PTR, false, 0, proto, &[]);
        builder.add("callback", kind::TYPEDEF, false, 0, pointer, &[]);
        let btf = builder.parse();
        assert_eq!(
            btf.enumerators("order"),
            Some(vec![("first", 0), ("second", 7)])
        );
        assert_eq!(btf.function_arity("callback"), Some(2));
        assert_eq!(btf.function_arity("order"), None);
        assert_eq!(btf.typedef_id("callback"), Some(4));
        assert_eq!(btf.typedef_id("order"), None, "no typedef");
    }

    #[test]
    fn a_struct_within_itself_ends() {
        let mut builder = Builder::new();
        builder.structure("loop", kind::STRUCT, false, &[("", 1, 8)]);
        builder.add("self", kind::TYPEDEF, false, 0, 2, &[]);
        let btf = builder.parse();
        assert_eq!(btf.member_offset("loop", "anything"), None);
        assert_eq!(btf.function_arity("self"), None);
    }

    #[test]
    fn refuses_what_is_not_btf() {
        assert_eq!(Btf::parse(Vec::new()).unwrap_err(), BtfError::Truncated(0));
        assert_eq!(
            Btf::parse(vec![0x7f, b'E', b'L', b'F']).unwrap_err(),
            BtfError::Magic(u16::from_ne_bytes([0x7f, b'E']))
        );
        let mut builder = Builder::new();
        builder.add("future", 31, false, 0, 0, &[]);
        assert_eq!(
            Btf::parse(builder.blob()).unwrap_err(),
            BtfError::UnknownKind { id: 1, kind: 31 }
        );
    }

    #[test]
    fn reads_the_running_kernel() {
        let btf = Btf::parse(vmlinux()).expect("the kernel's own BTF");
        // Facts that hold on every 64 bit kernel.
        assert_eq!(btf.member_offset("list_head", "prev"), Some(8));
        assert!(
            btf.member_offset("task_struct", "real_parent")
                .is_some_and(|offset| offset > 0)
        );
        // In an anonymous struct since Linux 5.19, plain before.
        assert!(btf.member_offset("sk_buff", "len").is_some());
        let controllers = btf.enumerators("cgroup_subsys_id").expect("cgroups");
        assert_eq!(
            controllers.last().map(|(name, _)| *name),
            Some("CGROUP_SUBSYS_COUNT")
        );
        assert!(matches!(
            btf.function_arity("btf_trace_sched_process_exit"),
            Some(2 | 3)
        ));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(blob in vec(any::<u8>(), 0..512)) {
            ask_everything(blob);
        }

        #[test]
        fn damage_never_panics(hits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..32), cut in any::<prop::sample::Index>()) {
            let mut blob = sample();
            for (index, byte) in hits {
                let at = index.index(blob.len());
                blob[at] = byte;
            }
            blob.truncate(cut.index(blob.len() + 1));
            ask_everything(blob);
        }
    }

    /// A bit of everything, so that damage hits something that matters.
    fn sample() -> Vec<u8> {
        let mut builder = Builder::new();
        let int = builder.add("int", kind::INT, false, 0, 4, &[32]);
        let inner = builder.structure("", kind::UNION, false, &[("x", int, 0)]);
        builder.structure("s", kind::STRUCT, false, &[("a", int, 0), ("", inner, 32)]);
        let value = builder.name("v");
        builder.add("e", kind::ENUM, false, 1, 4, &[value, 1]);
        let proto = builder.add("", kind::FUNC_PROTO, false, 1, 0, &[0, int]);
        let pointer = builder.add("", kind::PTR, false, 0, proto, &[]);
        builder.add("t", kind::TYPEDEF, false, 0, pointer, &[]);
        builder.blob()
    }

    fn ask_everything(blob: Vec<u8>) {
        if let Ok(btf) = Btf::parse(blob) {
            for name in ["", "s", "e", "t", "int"] {
                let _ = btf.member_offset(name, "x");
                let _ = btf.enumerators(name);
                let _ = btf.function_arity(name);
            }
        }
    }
}
