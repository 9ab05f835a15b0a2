//! Writes what is known of the running kernel into the instructions of a BPF object, before aya
//! reads it: offsets of members, and what to compare pointers with.
//!
//! A frozen global is a constant to the verifier, but still a load to the CPU, and a cache line that
//! nobody but an exit probe uses. That was half of what an exit of no interest cost.

use std::ops::Range;

use cleanup_common::{FREEZER_TOP_MARK, OFFSET_MARK, OFFSET_STEP, Offsets, Tops, UNIFIED_TOP_MARK};
use object::elf::SHF_EXECINSTR;
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _, SectionFlags};

/// Bytes of an instruction. One that loads 64 bits takes two.
const INSTRUCTION: usize = 8;

// Operations of `Documentation/bpf/standardization/instruction-set.rst`.
/// `dst = *(size *)(src + offset)`, for 4, 2, 1 and 8 bytes.
const LOADS: [u8; 4] = [0x61, 0x69, 0x71, 0x79];
/// `dst += imm` and `dst = imm`: where the compiler keeps an address for more than one load.
const IMMEDIATES: [u8; 2] = [0x07, 0xb7];
/// `dst = imm64`
const LOAD_IMMEDIATE_64: u8 = 0x18;

/// Why an object was not patched.
#[derive(Debug, thiserror::Error)]
pub(super) enum PatchError {
    #[error("no BPF object: {0}")]
    NotElf(#[from] object::Error),
    #[error("instructions lie outside of the file")]
    Truncated,
    #[error("offset {0} does not fit into an instruction")]
    TooFar(u32),
}

/// The object for this kernel.
pub(super) fn patch(object: &[u8], offsets: &Offsets, tops: Tops) -> Result<Vec<u8>, PatchError> {
    let code = code(object)?;
    let mut patched = object.to_vec();
    for range in code {
        let section = patched.get_mut(range).ok_or(PatchError::Truncated)?;
        patch_code(section, &offsets.words(), tops)?;
    }
    Ok(patched)
}

/// Where in the file the instructions are.
fn code(object: &[u8]) -> Result<Vec<Range<usize>>, PatchError> {
    let elf = ElfFile64::<object::Endianness>::parse(object)?;
    let mut found = Vec::new();
    for section in elf.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else {
            continue;
        };
        if sh_flags & u64::from(SHF_EXECINSTR) == 0 {
            continue;
        }
        let Some((start, length)) = section.file_range() else {
            continue;
        };
        let end = start.checked_add(length).ok_or(PatchError::Truncated)?;
        let start = usize::try_from(start).map_err(|_| PatchError::Truncated)?;
        found.push(start..usize::try_from(end).map_err(|_| PatchError::Truncated)?);
    }
    Ok(found)
}

fn patch_code(code: &mut [u8], offsets: &[u32], tops: Tops) -> Result<(), PatchError> {
    let mut rest = code;
    while let Some((instruction, after)) = rest.split_first_chunk_mut::<INSTRUCTION>() {
        rest = after;
        let [operation, _, off_0, off_1, imm @ ..] = instruction;
        if *operation == LOAD_IMMEDIATE_64 {
            let Some((second, after)) = rest.split_first_chunk_mut::<INSTRUCTION>() else {
                return Err(PatchError::Truncated);
            };
            rest = after;
            let Some(high) = second.last_chunk_mut() else {
                return Err(PatchError::Truncated);
            };
            let value =
                u64::from(u32::from_ne_bytes(*high)) << 32 | u64::from(u32::from_ne_bytes(*imm));
            let top = match value {
                FREEZER_TOP_MARK => tops.freezer_css,
                UNIFIED_TOP_MARK => tops.unified_cgroup,
                _ => continue,
            };
            *imm = (top as u32).to_ne_bytes();
            *high = ((top >> 32) as u32).to_ne_bytes();
        } else if LOADS.contains(operation) {
            let mark = u16::from_ne_bytes([*off_0, *off_1]);
            if let Some(offset) = meaning(mark.into(), offsets) {
                let offset = i16::try_from(offset).map_err(|_| PatchError::TooFar(offset))?;
                [*off_0, *off_1] = offset.to_ne_bytes();
            }
        } else if IMMEDIATES.contains(operation)
            && let Some(offset) = meaning(u32::from_ne_bytes(*imm), offsets)
        {
            *imm = offset.to_ne_bytes();
        }
    }
    Ok(())
}

/// The offset that a mark stands for, and what was added to it.
fn meaning(mark: u32, offsets: &[u32]) -> Option<u32> {
    let distance = mark.checked_sub(OFFSET_MARK)?;
    let offset = offsets.get((distance / OFFSET_STEP) as usize)?;
    Some(offset + distance % OFFSET_STEP)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use cleanup_common::offset_mark;

    use super::*;

    const TOPS: Tops = Tops {
        freezer_css: 0xffff_8881_0000_1230,
        unified_cgroup: 0xffff_8881_0000_4560,
    };

    fn instruction(operation: u8, offset: u16, imm: u32) -> [u8; INSTRUCTION] {
        let mut bytes = [operation, 0x12, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
        bytes[4..].copy_from_slice(&imm.to_ne_bytes());
        bytes
    }

    fn patched(instructions: &[[u8; INSTRUCTION]]) -> Vec<u8> {
        let offsets = Offsets {
            task_flags: 44,
            css_set_subsys: 88,
            ..Offsets::default()
        };
        let mut code = instructions.concat();
        patch_code(&mut code, &offsets.words(), TOPS).expect("whole instructions");
        code
    }

    #[test]
    fn offsets_are_written_where_their_marks_are() {
        let flags = offset_mark(offset_of!(Offsets, task_flags));
        let subsys = offset_mark(offset_of!(Offsets, css_set_subsys));
        assert_eq!(
            patched(&[
                instruction(0x61, flags as u16, 0),
                instruction(0x79, subsys as u16 + 16, 0),
                instruction(0x07, 0, subsys),
                instruction(0xb7, 0, flags),
            ]),
            [
                instruction(0x61, 44, 0),
                instruction(0x79, 88 + 16, 0),
                instruction(0x07, 0, 88),
                instruction(0xb7, 0, 44),
            ]
            .concat()
        );
    }

    #[test]
    fn everything_else_stays() {
        let flags = offset_mark(offset_of!(Offsets, task_flags));
        let others = [
            instruction(0x61, 8, flags),        // a load has no immediate
            instruction(0x05, flags as u16, 0), // a jump
            instruction(0x15, 0, flags),        // a comparison
            instruction(0x07, 0, OFFSET_MARK - 1),
            instruction(0x07, 0, OFFSET_MARK + Offsets::COUNT as u32 * OFFSET_STEP),
            instruction(LOAD_IMMEDIATE_64, 0, flags), // an address, and its second half,
            instruction(0x61, flags as u16, 0),       // which is no instruction
        ];
        assert_eq!(patched(&others), others.concat());
    }

    #[test]
    fn both_halves_of_a_top_are_written() {
        let (low, high) = (FREEZER_TOP_MARK as u32, (FREEZER_TOP_MARK >> 32) as u32);
        let marked = [
            instruction(LOAD_IMMEDIATE_64, 0, low),
            instruction(0, 0, high),
        ];
        let known = [
            instruction(LOAD_IMMEDIATE_64, 0, 0x0000_1230),
            instruction(0, 0, 0xffff_8881),
        ];
        assert_eq!(patched(&marked), known.concat());
    }

    #[test]
    fn an_object_that_is_none_is_refused() {
        let offsets = Offsets::default();
        assert!(patch(b"no ELF", &offsets, TOPS).is_err());
        let mut half = instruction(LOAD_IMMEDIATE_64, 0, 0).to_vec();
        let refused = patch_code(&mut half, &offsets.words(), TOPS);
        assert!(matches!(refused, Err(PatchError::Truncated)), "{refused:?}");
        let far = Offsets {
            kn_id: 0x8000,
            ..offsets
        };
        let mark = offset_mark(offset_of!(Offsets, kn_id)) as u16;
        let mut load = instruction(0x79, mark, 0).to_vec();
        let refused = patch_code(&mut load, &far.words(), TOPS);
        assert!(
            matches!(refused, Err(PatchError::TooFar(0x8000))),
            "{refused:?}"
        );
    }

    #[test]
    fn each_offset_has_its_own_mark() {
        let offsets = Offsets {
            task_cgroups: 1,
            kn_parent: 2,
            ..Offsets::default()
        };
        let words = offsets.words();
        let of = |at| meaning(offset_mark(at), &words);
        assert_eq!(of(offset_of!(Offsets, task_cgroups)), Some(1));
        assert_eq!(of(offset_of!(Offsets, kn_parent)), Some(2));
        assert_eq!(words.len(), Offsets::COUNT);
    }
}
