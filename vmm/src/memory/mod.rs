//! Guest memory: addresses, the one door to guest bytes, the mirrored address space, the set of written pages.
//!
//! | to do this | take |
//! | --- | --- |
//! | read or write a struct, a string, some bytes | [`GuestMemory::read`], [`GuestMemory::write`] and relatives: checked, recoverable copies |
//! | let the host kernel fill or empty a buffer | [`GuestMemory::with_readable`], [`GuestMemory::with_writable`]: iovecs on `base + pointer` |
//! | change mappings | [`AddressSpace`] |
//! | know what was written since the snapshot | [`DirtySet`] |
//!
//! No Rust reference into guest memory ever exists.

mod access;
mod address_space;
mod clock_page;
mod dirty;
mod guest;
mod image;
mod mirror;
mod pagemap;
mod placement;
mod restore;
mod set_aside;
mod vma;

pub use access::install_fault_handler;
pub use address_space::{AddressSpace, BlockUse, Brk, MapRequest, Placement};
pub use dirty::DirtySet;
pub use guest::{GuestMemory, Segment};
pub use image::{MemoryImage, Run};
pub use pagemap::Pagemap;
pub use restore::Keep;
pub use set_aside::SharedArea;
pub use vma::{Backing, Protection, Vma, VmaTree};
