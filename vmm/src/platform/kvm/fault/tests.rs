//! Each instruction with memory that refuses one of its accesses, and with memory that refuses none.

use std::sync::Arc;

use super::*;
use crate::limits::PAGE;
use crate::memory::{Backing, MapRequest, Placement};

const RW: Protection = Protection::READ.union(Protection::WRITE);
/// Code, then data: a page that may be written, one that may be read, one that may not be touched; behind it nothing.
const CODE: u64 = 0x8000_0000;
const DATA: u64 = 0x9000_0000;
const READ_ONLY: u64 = DATA + PAGE;
const NONE: u64 = DATA + 2 * PAGE;
const NOTHING: u64 = DATA + 3 * PAGE;

fn space(code: &[u8]) -> AddressSpace {
    let mut space = AddressSpace::new(4 << 30, 1 << 30).unwrap();
    for (address, pages) in [(CODE, 1), (DATA, 3)] {
        let placement = Placement::Fixed(address);
        let request = MapRequest { placement, length: pages * PAGE, protection: RW, backing: Backing::Anonymous, label: "" };
        space.map(request).unwrap();
    }
    space.memory().write_bytes(CODE, code).unwrap();
    space.protect(CODE, PAGE, Protection::READ | Protection::EXEC).unwrap();
    space.protect(READ_ONLY, PAGE, Protection::READ).unwrap();
    space.protect(NONE, PAGE, Protection::empty()).unwrap();
    space
}

fn find_in(space: &AddressSpace, registers: &Registers, vectors: &VectorState) -> Option<MemoryFault> {
    find(space, &Registers { rip: CODE, ..*registers }, (DATA + 64, 0), &|| vectors.clone())
}

/// Registers that name writable memory, but for one.
fn pointing(rdi: u64, rsp: u64) -> Registers {
    Registers { rdi, rsp, rsi: DATA, rbp: rsp, rcx: 8, ..Registers::default() }
}

const fn refused(address: u64, write: bool, kind: FaultKind) -> Option<MemoryFault> {
    Some(MemoryFault { address, write, fetch: false, kind })
}

#[test]
fn the_operand_that_is_refused_is_found() {
    use FaultKind::{Protected, Unmapped};
    let stack = DATA + 256;
    let good = DATA + 128;
    let cases: &[(&str, &[u8], Registers, Option<MemoryFault>)] = &[
        ("mov %rax, (%rdi)", &[0x48, 0x89, 0x07], pointing(good, stack), None),
        ("mov %rax, (%rdi)", &[0x48, 0x89, 0x07], pointing(READ_ONLY, stack), refused(READ_ONLY, true, Protected)),
        ("mov %rax, (%rdi)", &[0x48, 0x89, 0x07], pointing(NOTHING, stack), refused(NOTHING, true, Unmapped)),
        ("mov %rax, (%rdi), across pages", &[0x48, 0x89, 0x07], pointing(READ_ONLY - 4, stack), refused(READ_ONLY + 3, true, Protected)),
        ("incq (%rdi)", &[0x48, 0xff, 0x07], pointing(READ_ONLY, stack), refused(READ_ONLY, true, Protected)),
        ("incq (%rdi)", &[0x48, 0xff, 0x07], pointing(NONE, stack), refused(NONE, false, Protected)),
        ("movaps (%rdi), %xmm0", &[0x0f, 0x28, 0x07], pointing(READ_ONLY, stack), None),
        ("movaps (%rdi), %xmm0", &[0x0f, 0x28, 0x07], pointing(NONE, stack), refused(NONE, false, Protected)),
        ("vmovdqu %ymm0, (%rdi)", &[0xc5, 0xfe, 0x7f, 0x07], pointing(READ_ONLY - 16, stack), refused(READ_ONLY + 15, true, Protected)),
        ("cmpxchg16b (%rdi)", &[0x48, 0x0f, 0xc7, 0x0f], pointing(READ_ONLY, stack), refused(READ_ONLY, true, Protected)),
        ("push %rax", &[0x50], pointing(good, READ_ONLY + 8), refused(READ_ONLY, true, Protected)),
        ("push %rax", &[0x50], pointing(good, stack), None),
        ("leave", &[0xc9], pointing(good, NONE), refused(NONE, false, Protected)),
        ("call *(%rdi)", &[0xff, 0x17], pointing(NONE, stack), refused(NONE, false, Protected)),
        ("call *(%rdi)", &[0xff, 0x17], pointing(good, READ_ONLY + 8), refused(READ_ONLY, true, Protected)),
        ("rep movsb", &[0xf3, 0xa4], pointing(READ_ONLY, stack), refused(READ_ONLY, true, Protected)),
        ("rep movsb", &[0xf3, 0xa4], Registers { rsi: NONE, ..pointing(good, stack) }, refused(NONE, false, Protected)),
        ("stosb", &[0xaa], pointing(NOTHING, stack), refused(NOTHING, true, Unmapped)),
        ("mov %fs:16, %rax", &[0x64, 0x48, 0x8b, 0x04, 0x25, 16, 0, 0, 0], pointing(NONE, NONE), None),
        (
            "mov %fs:8256, %rax",
            &[0x64, 0x48, 0x8b, 0x04, 0x25, 0x40, 0x20, 0, 0],
            pointing(good, stack),
            refused(NONE + 128, false, Protected),
        ),
    ];
    for (name, code, registers, expected) in cases {
        let found = find_in(&space(code), registers, &VectorState::for_tests());
        assert_eq!(found, *expected, "{name} with rdi {:#x}, rsp {:#x}", registers.rdi, registers.rsp);
    }
}

/// An instruction, its index register, its mask register, how many elements it has; with `(%rdi, index, 4)` or 8.
type Gather = (&'static str, &'static [u8], usize, Mask, usize, Access);

#[derive(Clone, Copy)]
enum Mask {
    /// The sign bits of this vector register's elements, of so many bytes.
    Vector(usize, usize),
    Bits(usize),
}

#[derive(Clone, Copy)]
struct Access {
    index_bytes: usize,
    scale: u64,
    write: bool,
}

const GATHERS: [Gather; 6] = [
    (
        "vpgatherdd %ymm2, (%rdi, %ymm1, 4), %ymm0",
        &[0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x8f],
        1,
        Mask::Vector(2, 4),
        8,
        Access { index_bytes: 4, scale: 4, write: false },
    ),
    (
        "vpgatherdq %xmm2, (%rdi, %xmm1, 8), %xmm0",
        &[0xc4, 0xe2, 0xe9, 0x90, 0x04, 0xcf],
        1,
        Mask::Vector(2, 8),
        2,
        Access { index_bytes: 4, scale: 8, write: false },
    ),
    (
        "vpgatherdd (%rdi, %zmm17, 4), %zmm0{%k1}",
        &[0x62, 0xf2, 0x7d, 0x41, 0x90, 0x04, 0x8f],
        17,
        Mask::Bits(1),
        16,
        Access { index_bytes: 4, scale: 4, write: false },
    ),
    (
        "vpgatherqd (%rdi, %zmm1, 8), %ymm0{%k1}",
        &[0x62, 0xf2, 0x7d, 0x49, 0x91, 0x04, 0xcf],
        1,
        Mask::Bits(1),
        8,
        Access { index_bytes: 8, scale: 8, write: false },
    ),
    (
        "vgatherdpd (%rdi, %ymm1, 8), %zmm0{%k1}",
        &[0x62, 0xf2, 0xfd, 0x49, 0x92, 0x04, 0xcf],
        1,
        Mask::Bits(1),
        8,
        Access { index_bytes: 4, scale: 8, write: false },
    ),
    (
        "vpscatterdd %zmm0, (%rdi, %zmm20, 4){%k2}",
        &[0x62, 0xf2, 0x7d, 0x42, 0xa0, 0x04, 0xa7],
        20,
        Mask::Bits(2),
        16,
        Access { index_bytes: 4, scale: 4, write: true },
    ),
];

/// Vector registers in which element `bad` of the index leads to `NONE` from `DATA`, and every other one to `DATA`.
fn vectors((_, _, index, mask, _, access): Gather, bad: usize, masked: bool) -> VectorState {
    let mut vectors = VectorState::for_tests();
    let mut elements = [0_u32; 16];
    let words = access.index_bytes / 4;
    if bad * words < 16 {
        elements[bad * words] = ((NONE - DATA) / access.scale) as u32;
    }
    vectors.set(index, elements);
    let active = |lane: usize| lane != bad || !masked;
    match mask {
        Mask::Bits(number) => vectors.set_mask(number, (0..64).filter(|&lane| active(lane)).map(|lane| 1 << lane).sum()),
        Mask::Vector(number, bytes) => {
            vectors.set(number, std::array::from_fn(|word| if active(word * 4 / bytes) { 0x8000_0000 } else { 0x7fff_ffff }));
        }
    }
    vectors
}

#[test]
fn every_element_of_a_gather_is_looked_at_where_its_mask_has_it_and_no_other() {
    for gather in GATHERS {
        let (name, code, _, _, count, access) = gather;
        let space = space(code);
        let registers = pointing(DATA, DATA + 256);
        for bad in 0..16 {
            let expected = if bad < count { refused(NONE, access.write, FaultKind::Protected) } else { None };
            assert_eq!(find_in(&space, &registers, &vectors(gather, bad, false)), expected, "{name}: element {bad} of {count}");
            assert_eq!(find_in(&space, &registers, &vectors(gather, bad, true)), None, "{name}: element {bad}, masked out");
        }
    }
}

#[test]
fn what_is_fetched_is_looked_at_first() {
    // A jump to memory that may not be executed, and an instruction of which half is on such a page.
    let mut whole = space(&[0x90]);
    let fetch = |address, kind| Some(MemoryFault { address, write: false, fetch: true, kind });
    let at = |rip| Registers { rip, ..Registers::default() };
    let vectors = || VectorState::for_tests();
    assert_eq!(find(&whole, &at(DATA), (0, 0), &vectors), fetch(DATA, FaultKind::Protected));
    assert_eq!(find(&whole, &at(NOTHING), (0, 0), &vectors), fetch(NOTHING, FaultKind::Unmapped));
    whole.protect(CODE, PAGE, RW).unwrap();
    whole.memory().write_bytes(CODE + PAGE - 2, &[0x48, 0x89]).unwrap();
    whole.protect(CODE, PAGE, Protection::READ | Protection::EXEC).unwrap();
    assert_eq!(find(&whole, &at(CODE + PAGE - 2), (0, 0), &vectors), fetch(CODE + PAGE, FaultKind::Unmapped));
}

#[test]
fn behind_the_end_of_a_mapped_file_there_is_memory_without_content() {
    // mov (%rdi), %rax
    let mut space = space(&[0x48, 0x8b, 0x07]);
    let file = rustix::fs::memfd_create("short", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&file, b"short").unwrap();
    let backing = Backing::File { file: Arc::new(file), offset: 0, shared: false, name: "short".into() };
    let mapped = 0xa000_0000;
    let request = MapRequest { placement: Placement::Fixed(mapped), length: 2 * PAGE, protection: Protection::READ, backing, label: "" };
    space.map(request).unwrap();
    let found = |address| find_in(&space, &pointing(address, DATA + 256), &VectorState::for_tests());
    assert_eq!(found(mapped), None);
    assert_eq!(found(mapped + PAGE), refused(mapped + PAGE, false, FaultKind::Beyond));
}
