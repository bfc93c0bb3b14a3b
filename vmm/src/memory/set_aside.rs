//! Memory at the top of a guest's address space that the guest may read and write but not map, unmap or protect: the fast path
//! (topmost), and below it the window through which a storage program sees a call, or the memory that a request VM shares with it.
//!
//! Invariant: `open_end` is where it begins; every change that a guest asks for ends at or below it. A shared area is a memfd
//! of its own, kept by this space, so that a fork has the fork's and not the master's.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags, SeekFrom};
use rustix::io::Errno;

use super::{AddressSpace, Backing, MapRequest, Placement, Protection};
use crate::fast_path::FastPath;
use crate::limits::{BLOCK, PAGE};

/// Written pages of a shared area that are zeroed where they are; more are given back.
const KEPT_PAGES: u64 = 256;

const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

/// Memory that two VMs map.
#[derive(Debug, Clone)]
pub struct SharedArea {
    memfd: Arc<OwnedFd>,
    bytes: u64,
}

impl SharedArea {
    /// `bytes` of zeros, allocated when they are touched.
    ///
    /// # Errors
    ///
    /// EMFILE, ENOMEM.
    pub fn new(bytes: u64) -> Result<Self, Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = rustix::fs::memfd_create("kvmserver-shared", flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| rustix::fs::memfd_create("kvmserver-shared", flags))?;
        rustix::fs::ftruncate(&memfd, bytes)?;
        rustix::fs::fcntl_add_seals(&memfd, rustix::fs::SealFlags::GROW | rustix::fs::SealFlags::SHRINK)?;
        Ok(Self { memfd: Arc::new(memfd), bytes })
    }

    /// Another area with the same content.
    ///
    /// # Errors
    ///
    /// EMFILE, ENOMEM.
    pub fn duplicate(&self) -> Result<Self, Errno> {
        let copy = Self::new(self.bytes)?;
        let mut page = [0; PAGE as usize];
        for (start, end) in self.touched()? {
            for at in (start..end).step_by(PAGE as usize) {
                let read = rustix::io::pread(&self.memfd, &mut page, at)?;
                if rustix::io::pwrite(&copy.memfd, &page[..read], at)? != read {
                    return Err(Errno::NOMEM);
                }
            }
        }
        Ok(copy)
    }

    /// The ranges that were ever touched and are not given back, `[start, end)` in bytes.
    fn touched(&self) -> Result<Vec<(u64, u64)>, Errno> {
        let mut ranges = Vec::new();
        if rustix::fs::fstat(&self.memfd)?.st_blocks == 0 {
            return Ok(ranges);
        }
        let mut at = 0;
        while at < self.bytes {
            let start = match rustix::fs::seek(&self.memfd, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno),
            };
            at = rustix::fs::seek(&self.memfd, SeekFrom::Hole(start))?;
            ranges.push((start, at));
        }
        Ok(ranges)
    }
}

impl AddressSpace {
    /// Set `bytes` more at the top aside, a multiple of 2 MiB; answers where they begin. Before anything is mapped there.
    ///
    /// # Errors
    ///
    /// ENOMEM where the address space is smaller than that.
    pub fn set_aside(&mut self, bytes: u64) -> Result<u64, Errno> {
        let start = self.open_end.checked_sub(bytes.next_multiple_of(BLOCK)).filter(|&start| start > 0).ok_or(Errno::NOMEM)?;
        self.open_end = start;
        Ok(start)
    }

    /// Where what is set aside begins; the end of the address space if nothing is.
    #[must_use]
    pub const fn aside(&self) -> u64 {
        self.open_end
    }

    /// Map zeroed private memory at an address that is set aside. In large pages, where the host has them: everything that is
    /// copied through the window misses the translation of each page twice, since an exit forgets them.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn map_window(&mut self, address: u64, bytes: u64) -> Result<(), Errno> {
        self.map_aside(address, bytes, Backing::Anonymous, "[storage window]")?;
        self.mirror.advise_large_pages(address, bytes)
    }

    /// Zero `length` bytes of the window from `offset` on.
    ///
    /// # Errors
    ///
    /// EFAULT; never, as a guest cannot unmap the window.
    pub fn clear_window(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.memory().zero_unrecorded(self.aside() + offset, length)
    }

    /// Map a shared area at an address that is set aside.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn map_shared(&mut self, address: u64, area: &SharedArea) -> Result<(), Errno> {
        let backing = Backing::File { file: Arc::clone(&area.memfd), offset: 0, shared: true, name: Arc::from("[shared buffer]") };
        self.map_aside(address, area.bytes, backing, "[shared buffer]")
    }

    /// Put the fast path at the top; before anything else is set aside.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn map_fast_path(&mut self, fast: FastPath) -> Result<(), Errno> {
        self.set_aside(FastPath::ASIDE_BYTES)?;
        let ((area, bytes), (code, image)) = (fast.area(), fast.image());
        self.map_aside(area, bytes, Backing::Anonymous, "[fast path]")?;
        self.map_aside(code, image.len() as u64, Backing::Anonymous, "[fast path]")?;
        self.memory().write_bytes(code, image)?;
        self.with_all_open(|space| space.protect(code, image.len() as u64, Protection::READ | Protection::EXEC))?;
        self.fast_path = Some(fast);
        Ok(())
    }

    /// Where the fast path is, if there is one.
    #[must_use]
    pub const fn fast_path(&self) -> Option<FastPath> {
        self.fast_path
    }

    fn with_all_open<T>(&mut self, change: impl FnOnce(&mut Self) -> T) -> T {
        let size = self.size();
        let open_end = std::mem::replace(&mut self.open_end, size);
        let result = change(self);
        self.open_end = open_end;
        result
    }

    fn map_aside(&mut self, address: u64, length: u64, backing: Backing, label: &'static str) -> Result<(), Errno> {
        let request = MapRequest { placement: Placement::Fixed(address), length, protection: READ_WRITE, backing, label };
        let mapped = self.with_all_open(|space| space.map(request));
        // Not a change that a reset has to undo.
        self.forget_touched(address, address + length);
        mapped.map(drop)
    }

    /// Zero what was ever written to a shared area that is mapped at `address`; answers how many pages were.
    ///
    /// # Errors
    ///
    /// What the host says: the fork has to be thrown away.
    pub fn clear_shared(&self, address: u64, area: &SharedArea) -> Result<u64, Errno> {
        let ranges = area.touched()?;
        let pages = ranges.iter().map(|(start, end)| (end - start) / PAGE).sum();
        if pages > KEPT_PAGES {
            rustix::fs::fallocate(area.memfd.as_fd(), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, area.bytes)?;
            return Ok(pages);
        }
        for (start, end) in ranges {
            self.memory().zero_unrecorded(address + start, end - start)?;
        }
        Ok(pages)
    }

    /// Whether a shared area that is mapped at `address` holds only zeros.
    ///
    /// # Errors
    ///
    /// What the host says.
    pub fn shared_is_clear(&self, address: u64, area: &SharedArea) -> Result<bool, Errno> {
        let mut page = vec![0; PAGE as usize];
        for (start, end) in area.touched()? {
            for at in (start..end).step_by(PAGE as usize) {
                self.memory().read_bytes(address + at, &mut page)?;
                if page.iter().any(|&byte| byte != 0) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
