//! The guest's address space: the reservation, the mappings in it, and the host mappings that mirror them.

use super::{Backing, GuestMemory, Protection, VmaTree};
use rustix::io::Errno;

/// Where a mapping may go. Hints are not honoured: addresses are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Wherever there is room.
    Anywhere,
    /// Below 2 GiB (MAP_32BIT).
    Low,
    /// Exactly here, replacing what is there (MAP_FIXED).
    Fixed(u64),
    /// Exactly here, EEXIST where something is there (MAP_FIXED_NOREPLACE).
    FixedNoReplace(u64),
}

/// A mapping to make.
#[derive(Debug, Clone)]
pub struct MapRequest {
    /// Where.
    pub placement: Placement,
    /// Length in bytes, rounded up to pages.
    pub length: u64,
    /// What the guest may do with it.
    pub protection: Protection,
    /// Its content.
    pub backing: Backing,
    /// Its name in /proc/self/maps, or empty.
    pub label: &'static str,
}

/// One guest address space. Every method takes numbers straight from a guest: it checks them and answers with Linux's errno.
#[derive(Debug)]
pub struct AddressSpace {
    memory: GuestMemory,
    vmas: VmaTree,
}

impl AddressSpace {
    /// The bytes.
    #[must_use]
    pub const fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The mappings.
    #[must_use]
    pub const fn vmas(&self) -> &VmaTree {
        &self.vmas
    }

    /// `mmap(2)`.
    ///
    /// # Errors
    ///
    /// EINVAL, ENOMEM, EEXIST as mmap answers.
    pub fn map(&mut self, _request: MapRequest) -> Result<u64, Errno> {
        Err(Errno::NOMEM)
    }
    /// `munmap(2)`.
    ///
    /// # Errors
    ///
    /// EINVAL.
    pub fn unmap(&mut self, _address: u64, _length: u64) -> Result<(), Errno> {
        Err(Errno::NOMEM)
    }
    /// `mprotect(2)`.
    ///
    /// # Errors
    ///
    /// EINVAL, ENOMEM, EACCES.
    pub fn protect(&mut self, _address: u64, _length: u64, _protection: Protection) -> Result<(), Errno> {
        Err(Errno::NOMEM)
    }

    /// Where the program break begins: set once by the loader, behind the program's data.
    pub fn set_brk_start(&mut self, _address: u64) {}
}
