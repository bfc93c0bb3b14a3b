//! Where the supervisor's structures lie in guest memory: one area behind the address space, in a memslot of its own, of which
//! user mode sees only the page with the system-call entry.

use crate::limits::{BLOCK, PAGE};

/// Port of the system-call entry.
pub(super) const PORT_SYSTEM_CALL: u16 = 0x20;
/// Port of the exception handlers.
pub(super) const PORT_EXCEPTION: u16 = 0x21;
/// Port of the page-table routine.
pub(super) const PORT_EDITED: u16 = 0x22;

/// Offsets in the area, bytes.
pub(super) const GDT: u64 = 0;
pub(super) const IDT: u64 = PAGE;
pub(super) const TSS: u64 = 2 * PAGE;
/// Top of the stack on which exceptions push their frames.
pub(super) const STACK_TOP: u64 = 4 * PAGE;
pub(super) const HANDLERS: u64 = 4 * PAGE;
pub(super) const ENTRY: u64 = 5 * PAGE;
pub(super) const EDITOR: u64 = 6 * PAGE;
/// The extended state that a reset brings back, where user mode can read it and nobody in the guest can write it.
pub(super) const KEPT: u64 = 7 * PAGE;
/// In that page: RAX, RDX and RIP of whoever it is brought back for.
pub(super) const KEPT_RAX: u64 = KEPT + 4032;
pub(super) const KEPT_RDX: u64 = KEPT_RAX + 8;
pub(super) const KEPT_RIP: u64 = KEPT_RAX + 16;
pub(super) const PML4: u64 = 16 * PAGE;
pub(super) const PDPT: u64 = 17 * PAGE;
/// Page table and directory of the area itself.
pub(super) const AREA_TABLE: u64 = 18 * PAGE;
pub(super) const AREA_DIRECTORY: u64 = 19 * PAGE;
/// One page directory per GiB of the address space.
pub(super) const DIRECTORIES: u64 = 32 * PAGE;

/// Selectors and segment bases as Linux has them, because programs can see CS and SS.
pub(super) const KERNEL_CS: u16 = 0x10;
pub(super) const KERNEL_SS: u16 = 0x18;
pub(super) const USER_SS: u16 = 0x2b;
pub(super) const USER_CS: u16 = 0x33;
pub(super) const TSS_SELECTOR: u16 = 0x40;

/// Bytes between the handlers of two exception vectors.
pub(super) const HANDLER_BYTES: u64 = 16;
/// Exception vectors.
pub(super) const VECTORS: u64 = 32;
/// Gates of the IDT: all there can be, so that `int n` is refused by its gate's privilege level (#GP) and not by its absence.
pub(super) const GATES: u64 = 256;

/// Largest address space: what one page-directory-pointer table reaches, less room for the area.
pub(super) const SPACE_MAX: u64 = 480 << 30;

/// Size of the area for an address space of this size: whole blocks.
pub(super) const fn area_bytes(space: u64) -> u64 {
    (DIRECTORIES + space.div_ceil(1 << 30) * PAGE).next_multiple_of(BLOCK)
}

/// Guest-physical (and virtual) address of the area: the first whole GiB behind the address space.
pub(super) const fn area_address(space: u64) -> u64 {
    space.next_multiple_of(1 << 30)
}
