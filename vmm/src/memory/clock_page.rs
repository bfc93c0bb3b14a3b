#![expect(unsafe_code, reason = "the host's own mapping of the clock page")]
//! The clock page: one page that the vDSO reads and only the host writes, although the guest's mapping is read-only.
//!
//! It is a page of a memfd of its own, mapped shared and read-only in the mirror and writable elsewhere in this process;
//! so an update is a plain store, touches no page table, and is in no dirty set.
//!
//! UNSAFETY: the writable mapping is made, used and unmapped by this value alone; the guest only reads the page.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::{AddressSpace, Backing, MapRequest, Placement, Protection};
use crate::limits::PAGE;

/// The host's side of one guest's clock page.
#[derive(Debug)]
pub(super) struct ClockPage {
    pub(super) address: u64,
    writable: *mut u8,
    memfd: Arc<OwnedFd>,
}

// SAFETY: the mapping belongs to this value alone and has no thread affinity.
unsafe impl Send for ClockPage {}

impl ClockPage {
    fn new(address: u64) -> Result<Self, Errno> {
        let memfd = rustix::fs::memfd_create("kvmserver-clock", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memfd, PAGE)?;
        // SAFETY: a new mapping at an address the kernel chooses.
        let writable = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), PAGE as usize, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &memfd, 0)
        }?;
        Ok(Self { address, writable: writable.cast(), memfd: Arc::new(memfd) })
    }
}

impl Drop for ClockPage {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`.
        let _ = unsafe { rustix::mm::munmap(self.writable.cast(), PAGE as usize) };
    }
}

impl AddressSpace {
    /// Map a fresh clock page at this address, instead of whatever is there.
    ///
    /// # Errors
    ///
    /// EMFILE, ENOMEM.
    pub fn map_clock_page(&mut self, address: u64) -> Result<(), Errno> {
        let page = ClockPage::new(address)?;
        let backing = Backing::File { file: Arc::clone(&page.memfd), offset: 0, shared: true, name: Arc::from("[vvar]") };
        self.map(MapRequest {
            placement: Placement::Fixed(address),
            length: PAGE,
            protection: Protection::READ,
            backing,
            label: "[vvar]",
        })?;
        self.clock_page = Some(page);
        Ok(())
    }

    /// Where the clock page is.
    #[must_use]
    pub fn clock_page_address(&self) -> Option<u64> {
        self.clock_page.as_ref().map(|page| page.address)
    }

    /// Store `bytes` at the start of the clock page. The guest does not run meanwhile.
    pub fn write_clock_page(&self, bytes: &[u8]) {
        if let Some(page) = &self.clock_page {
            // SAFETY: the mapping is one page long and ours.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), page.writable, bytes.len().min(PAGE as usize)) };
        }
    }
}
