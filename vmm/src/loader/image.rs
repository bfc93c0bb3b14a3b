//! An ELF file's segments as mappings of the guest, as Linux maps them: private mappings of the file, zeros behind the
//! file's part, nothing in the holes.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::elf::{Elf, Kind, Segment, page_down, page_up};
use crate::limits::PAGE;
use crate::memory::{AddressSpace, Backing, MapRequest, Placement, Protection};

/// Base of position-independent programs: above everything that programs at fixed addresses use, on a 1 GiB border so that
/// any alignment a segment may ask for is met.
pub(super) const PROGRAM_BASE: u64 = 1 << 30;
/// Lowest address a program may ask for (`vm.mmap_min_addr`): below, a null pointer must fault.
const LOWEST_ADDRESS: u64 = 0x1_0000;

/// Whose image it is, which decides where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The program: at [`PROGRAM_BASE`] or at its own address.
    Program,
    /// Its interpreter: wherever there is room.
    Interpreter,
}

/// A mapped image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapped {
    /// What to add to the addresses in the file.
    pub(super) bias: u64,
    /// First address behind the image, page aligned.
    pub(super) end: u64,
}

/// Map all segments of `elf`, whose bytes are `file`'s and which the guest knows as `name`.
pub(super) fn map(space: &mut AddressSpace, elf: &Elf, file: &Arc<OwnedFd>, name: &Arc<str>, role: Role) -> Result<Mapped, Errno> {
    let (low, high) = elf.span();
    let start = reserve(space, elf, role, low, high - low)?;
    let bias = start.wrapping_sub(low);
    let mut previous_end = start;
    for segment in &elf.segments {
        // With the whole span reserved, `address + bias` lies in it and cannot wrap.
        let begin = segment.address.wrapping_add(bias);
        if page_down(begin) > previous_end {
            space.unmap(previous_end, page_down(begin) - previous_end)?;
        }
        map_segment(space, segment, begin, file, name)?;
        previous_end = page_up(begin + segment.memory_bytes);
    }
    Ok(Mapped { bias, end: start + (high - low) })
}

/// Take the span as one piece, so that nothing else can be in it and an image that does not fit fails here.
fn reserve(space: &mut AddressSpace, elf: &Elf, role: Role, low: u64, length: u64) -> Result<u64, Errno> {
    // Executable, because the address space keeps such mappings in 2 MiB blocks of their own and its choice of blocks is made
    // here. Everything is mapped over or given back before the guest runs.
    let protection = Protection::READ | Protection::EXEC;
    let mut reserve = |placement, length| space.map(MapRequest { placement, length, protection, backing: Backing::Anonymous, label: "" });
    match (elf.kind, role) {
        (Kind::Fixed, _) if low < LOWEST_ADDRESS => Err(Errno::PERM),
        (Kind::Fixed, _) => reserve(Placement::FixedNoReplace(low), length),
        // The addresses in the file need not be multiples of the alignment; the bias must be.
        (Kind::Relocatable, Role::Program) => reserve(Placement::FixedNoReplace(PROGRAM_BASE + low % elf.alignment), length),
        (Kind::Relocatable, Role::Interpreter) => {
            let slack = elf.alignment - PAGE;
            let first = reserve(Placement::Anywhere, length + slack)?;
            let start = first + (low.wrapping_sub(first) & (elf.alignment - 1));
            trim(space, (first, first + length + slack), (start, start + length))?;
            Ok(start)
        }
    }
}

/// Give back what `inner` leaves of `outer` on both sides.
fn trim(space: &mut AddressSpace, outer: (u64, u64), inner: (u64, u64)) -> Result<(), Errno> {
    if inner.0 > outer.0 {
        space.unmap(outer.0, inner.0 - outer.0)?;
    }
    if outer.1 > inner.1 {
        space.unmap(inner.1, outer.1 - inner.1)?;
    }
    Ok(())
}

/// Map one segment at `begin`, which lies in reserved space together with everything up to its end.
fn map_segment(space: &mut AddressSpace, segment: &Segment, begin: u64, file: &Arc<OwnedFd>, name: &Arc<str>) -> Result<(), Errno> {
    let file_end = begin + segment.file_bytes;
    let end = page_up(begin + segment.memory_bytes);
    let mut zeros_start = page_down(begin);
    if segment.file_bytes > 0 {
        let into_page = begin - zeros_start;
        let backing = Backing::File { file: Arc::clone(file), offset: segment.offset - into_page, shared: false, name: Arc::clone(name) };
        fixed(space, zeros_start, page_up(file_end) - zeros_start, segment.protection, backing)?;
        zeros_start = page_up(file_end);
        // Behind the file's part the last page must be zero. Where the program may not write, Linux leaves it as it is.
        if segment.memory_bytes > segment.file_bytes && segment.protection.contains(Protection::WRITE) && zeros_start > file_end {
            space.memory().write_zeros(file_end, zeros_start - file_end)?;
        }
    }
    if end > zeros_start {
        // As in Linux, zero pages are writable whatever the segment says.
        let protection = Protection::READ | Protection::WRITE | (segment.protection & Protection::EXEC);
        fixed(space, zeros_start, end - zeros_start, protection, Backing::Anonymous)?;
    }
    Ok(())
}

fn fixed(space: &mut AddressSpace, address: u64, length: u64, protection: Protection, backing: Backing) -> Result<(), Errno> {
    space.map(MapRequest { placement: Placement::Fixed(address), length, protection, backing, label: "" }).map(|_| ())
}
