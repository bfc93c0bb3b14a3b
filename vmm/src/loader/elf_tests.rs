//! Damaged ELF files are refused with a reason and never end the loader: real files with their headers mutated.

use proptest::prelude::*;

use super::*;

fn real(path: &str) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What must hold of everything that `parse` lets through.
fn check(elf: &Elf, size: u64) {
    let mut end = 0;
    for segment in &elf.segments {
        assert!(segment.address >= end && segment.memory_bytes >= segment.file_bytes && segment.memory_bytes > 0);
        end = segment.address.checked_add(segment.memory_bytes).expect("no overflow");
        assert!(segment.file_bytes == 0 || segment.offset.checked_add(segment.file_bytes).expect("no overflow") <= size);
        assert!(segment.file_bytes == 0 || segment.offset % PAGE == segment.address % PAGE);
    }
    assert!(end <= USER_END && elf.alignment.is_power_of_two() && elf.alignment >= PAGE);
    let (low, high) = elf.span();
    assert!(low < high && low % PAGE == 0 && high % PAGE == 0);
    assert!(elf.interpreter.as_ref().is_none_or(|path| !path.is_empty() && path.len() < PATH_MAX && !path.contains(&0)));
}

#[test]
fn a_dynamic_program_names_its_interpreter() {
    let bytes = real("/bin/true");
    let elf = Elf::parse(&bytes[..]).expect("/bin/true");
    check(&elf, bytes.len() as u64);
    assert_eq!(elf.kind, Kind::Relocatable);
    assert_eq!(elf.interpreter.as_deref(), Some(&b"/lib64/ld-linux-x86-64.so.2"[..]));
    assert!(!elf.executable_stack);
    assert_eq!(elf.headers_address, Some(64));
    assert!(elf.dynamic.is_some());
}

#[test]
fn text_scripts_and_short_files_are_not_elf() {
    assert_eq!(Elf::parse(&b""[..]), Err(ElfError::NotElf));
    assert_eq!(Elf::parse(&b"#!/bin/sh\n"[..]), Err(ElfError::NotElf));
    assert_eq!(Elf::parse(&b"\x7fELF"[..]), Err(ElfError::BadHeader));
}

fn patched(offset: usize, value: &[u8]) -> Result<Elf, ElfError> {
    let mut bytes = real("/bin/true");
    bytes[offset..offset + value.len()].copy_from_slice(value);
    Elf::parse(&bytes[..])
}

#[test]
fn foreign_headers_are_named() {
    assert_eq!(patched(4, &[1]), Err(ElfError::Class32));
    assert_eq!(patched(5, &[2]), Err(ElfError::BadHeader));
    assert_eq!(patched(16, &1_u16.to_le_bytes()), Err(ElfError::Type(1)));
    assert_eq!(patched(16, &4_u16.to_le_bytes()), Err(ElfError::Type(4)));
    assert_eq!(patched(18, &183_u16.to_le_bytes()), Err(ElfError::Machine(183)));
    assert_eq!(patched(24, &u64::MAX.to_le_bytes()), Err(ElfError::Entry));
    assert_eq!(patched(32, &u64::MAX.to_le_bytes()), Err(ElfError::ProgramHeaders));
    assert_eq!(patched(54, &32_u16.to_le_bytes()), Err(ElfError::ProgramHeaders));
    assert_eq!(patched(56, &0_u16.to_le_bytes()), Err(ElfError::ProgramHeaders));
    assert_eq!(patched(56, &u16::MAX.to_le_bytes()), Err(ElfError::ProgramHeaders));
}

/// File offset of field `field` of the first program header of type `wanted` of /bin/true.
fn field(wanted: u32, field: usize) -> usize {
    let bytes = real("/bin/true");
    let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
    let index = (0..count).find(|index| bytes[64 + index * 56..][..4] == wanted.to_le_bytes()).expect("a header of that type");
    64 + index * 56 + field
}

#[test]
fn hostile_segments_are_refused() {
    const LOAD: u32 = 1;
    let (offset, address, file_bytes, memory_bytes, alignment) =
        (field(LOAD, 8), field(LOAD, 16), field(LOAD, 32), field(LOAD, 40), field(LOAD, 48));
    for (at, value) in [
        (offset, 1),
        (address, u64::MAX - 0xfff),
        (address, 1 << 46),
        (file_bytes, u64::MAX),
        (memory_bytes, u64::MAX),
        (memory_bytes, 1),
        (memory_bytes, 1 << 46),
    ] {
        assert!(matches!(patched(at, &value.to_le_bytes()), Err(ElfError::Segment(_))), "field at {at} = {value:#x}");
    }
    assert!(matches!(patched(offset, &0x7fff_ffff_ffff_f000_u64.to_le_bytes()), Err(ElfError::CutOff(_))));
    assert!(matches!(patched(alignment, &(1_u64 << 40).to_le_bytes()), Err(ElfError::Alignment(_))));
}

#[test]
fn hostile_interpreters_are_refused() {
    const INTERP: u32 = 3;
    let (offset, length) = (field(INTERP, 8), field(INTERP, 32));
    for (at, value) in [
        (offset, u64::MAX),
        (offset, u64::MAX - 10),
        (offset, i64::MAX as u64),
        (length, u64::MAX),
        (length, 0),
        (length, 1),
        (length, 5),
        (length, 4097),
    ] {
        assert_eq!(patched(at, &value.to_le_bytes()), Err(ElfError::InterpreterPath), "field at {at} = {value:#x}");
    }
}

#[test]
fn a_truncated_file_is_cut_off() {
    let bytes = real("/bin/true");
    let whole = Elf::parse(&bytes[..]).expect("/bin/true");
    let needed = whole.segments.iter().map(|segment| segment.offset + segment.file_bytes).max().expect("segments");
    for length in (0..usize::try_from(needed).expect("small")).step_by(97) {
        assert!(Elf::parse(&bytes[..length]).is_err(), "length {length}");
    }
}

/// The beginning of a real file, which is mutated, and the file's true length.
#[derive(Debug, Clone)]
struct Head {
    bytes: Vec<u8>,
    size: u64,
}

impl ReadAt for Head {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.bytes.read_at(offset, buffer)
    }

    fn size(&self) -> Result<u64, Errno> {
        Ok(self.size)
    }
}

fn corpus(file: usize) -> Head {
    static CORPUS: std::sync::OnceLock<Vec<Head>> = std::sync::OnceLock::new();
    let files = CORPUS.get_or_init(|| {
        ["/bin/true", "/lib64/ld-linux-x86-64.so.2", "/proc/self/exe"]
            .iter()
            .map(|path| {
                let mut bytes = real(path);
                let size = bytes.len() as u64;
                bytes.truncate(4096);
                Head { bytes, size }
            })
            .collect()
    });
    files[file].clone()
}

proptest! {
    #![proptest_config(crate::fuzzing::cases(4096))]

    #[test]
    fn mutated_headers_never_break_the_parser(file in 0..3_usize, edits in prop::collection::vec((0..1024_usize, any::<u8>()), 1..12)) {
        let mut head = corpus(file);
        for (offset, value) in edits {
            head.bytes[offset] = value;
        }
        if let Ok(elf) = Elf::parse(&head) {
            check(&elf, head.size);
        }
    }

    #[test]
    fn mutated_words_never_break_the_parser(
        file in 0..3_usize,
        edits in prop::collection::vec((0..128_usize, prop::sample::select(vec![0, 1, 0xfff, 0x1000, 0x7fff_ffff, 0xffff_ffff, 1 << 46, (1 << 47) - 1, 1 << 47, i64::MAX as u64, u64::MAX - 0xfff, u64::MAX])), 1..6),
    ) {
        let mut head = corpus(file);
        for (word, value) in edits {
            head.bytes[word * 8..word * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
        if let Ok(elf) = Elf::parse(&head) {
            check(&elf, head.size);
        }
    }
}
