#![expect(unsafe_code, reason = "mmap, mprotect, mremap and madvise on the reservation")]
//! The host mappings that mirror a guest's address space: guest address `v` lives at `base + v`.
//!
//! UNSAFETY: every call names a range inside a reservation that this value made and owns, with MAP_FIXED, so that nothing
//! else of the process is touched; the range is checked here. Guard regions surround the reservation. Host mappings are
//! never executable.

use std::io::BufRead;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use super::Protection;

/// Inaccessible bytes on either side of the reservation: the largest distance that a wrong offset of ours might cover.
const GUARD: usize = 16 << 20;

/// A reservation of host addresses.
#[derive(Debug)]
pub(super) struct Mirror {
    start: *mut u8,
    size: usize,
}

// SAFETY: the reservation belongs to this value alone and has no thread affinity.
unsafe impl Send for Mirror {}

fn host_protection(protection: Protection) -> ProtFlags {
    // Write and execute imply read on x86, and a host mapping is never executed.
    if protection.contains(Protection::WRITE) {
        ProtFlags::READ | ProtFlags::WRITE
    } else if protection.is_empty() {
        ProtFlags::empty()
    } else {
        ProtFlags::READ
    }
}

impl Mirror {
    /// Reserve `size` bytes of addresses; no memory.
    pub(super) fn reserve(size: u64) -> Result<Self, Errno> {
        let size = usize::try_from(size).map_err(|_| Errno::NOMEM)?;
        let whole = size.checked_add(2 * GUARD).ok_or(Errno::NOMEM)?;
        // SAFETY: a new mapping at an address the kernel chooses.
        let start = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), whole, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
        }?;
        Ok(Self { start: start.cast(), size })
    }

    /// The host address of guest address 0.
    pub(super) const fn base(&self) -> *mut u8 {
        self.start.wrapping_add(GUARD)
    }

    fn range(&self, address: u64, length: u64) -> Result<(*mut std::ffi::c_void, usize), Errno> {
        let (address, length) = (usize::try_from(address).map_err(|_| Errno::NOMEM)?, usize::try_from(length).map_err(|_| Errno::NOMEM)?);
        let end = address.checked_add(length).ok_or(Errno::NOMEM)?;
        if end > self.size || length == 0 {
            return Err(Errno::NOMEM);
        }
        Ok((self.base().wrapping_add(address).cast(), length))
    }

    /// Fresh zero pages, or with an empty protection a mere reservation.
    pub(super) fn map_anonymous(&self, address: u64, length: u64, protection: Protection) -> Result<(), Errno> {
        let (pointer, length) = self.range(address, length)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range is inside our reservation.
        unsafe { rustix::mm::mmap_anonymous(pointer, length, host_protection(protection), flags) }.map(drop)
    }

    /// Ask for large pages in a range; where the host has none, nothing changes.
    pub(super) fn advise_large_pages(&self, address: u64, length: u64) -> Result<(), Errno> {
        let (pointer, length) = self.range(address, length)?;
        // SAFETY: the range is inside our reservation, and the advice changes no content.
        let _ = unsafe { rustix::mm::madvise(pointer, length, rustix::mm::Advice::LinuxHugepage) };
        Ok(())
    }

    /// A mapping of a file; private unless `shared`.
    pub(super) fn map_file(
        &self,
        address: u64,
        length: u64,
        protection: Protection,
        file: BorrowedFd<'_>,
        offset: u64,
        shared: bool,
    ) -> Result<(), Errno> {
        let (pointer, length) = self.range(address, length)?;
        let flags = MapFlags::FIXED | if shared { MapFlags::SHARED } else { MapFlags::PRIVATE | MapFlags::NORESERVE };
        // SAFETY: the range is inside our reservation.
        unsafe { rustix::mm::mmap(pointer, length, host_protection(protection), flags, file, offset) }.map(drop)
    }

    /// After a mapping that failed: if the host has let go of what was there, make a reservation of it again, so that nothing
    /// else of the process can come to lie in it. Answers whether it had.
    pub(super) fn close_hole(&self, address: u64, length: u64) -> bool {
        let Ok((pointer, length)) = self.range(address, length) else { return false };
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
        // SAFETY: the range is inside our reservation, and nothing is replaced.
        unsafe { rustix::mm::mmap_anonymous(pointer, length, ProtFlags::empty(), flags) }.is_ok()
    }

    /// Change the protection of a mapped range.
    pub(super) fn protect(&self, address: u64, length: u64, protection: Protection) -> Result<(), Errno> {
        let (pointer, length) = self.range(address, length)?;
        let flags = MprotectFlags::from_bits_retain(host_protection(protection).bits());
        // SAFETY: the range is inside our reservation.
        unsafe { rustix::mm::mprotect(pointer, length, flags) }
    }

    /// Move pages; the source becomes a reservation again. The host never lets go of it meanwhile (MREMAP_DONTUNMAP), or another
    /// thread's mapping could come to lie there.
    pub(super) fn relocate(&self, from: u64, length: u64, to: u64) -> Result<(), Errno> {
        let (source, length_) = self.range(from, length)?;
        let (target, _) = self.range(to, length)?;
        let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
        // SAFETY: both ranges are inside our reservation, and the caller has seen to it that they do not overlap.
        unsafe { rustix::mm::mremap_fixed(source, length_, length_, flags, target) }?;
        self.map_anonymous(from, length, Protection::empty())
    }

    /// How many mappings the host has in the reservation (they count towards the process's limit, reservations included).
    pub(super) fn host_mappings(&self) -> usize {
        let Ok(file) = std::fs::File::open("/proc/self/maps") else { return usize::MAX };
        let range = self.start as u64..self.start as u64 + (self.size + 2 * GUARD) as u64;
        let starts = std::io::BufReader::with_capacity(1 << 18, file).split(b'\n').map_while(Result::ok).filter_map(|line| {
            let text = std::str::from_utf8(line.split(|&byte| byte == b'-').next()?).ok()?;
            u64::from_str_radix(text, 16).ok()
        });
        starts.filter(|start| range.contains(start)).count()
    }

    /// Drop the pages of a range: private ones return to what they map.
    pub(super) fn discard(&self, address: u64, length: u64) -> Result<(), Errno> {
        let (pointer, length) = self.range(address, length)?;
        // SAFETY: the range is inside our reservation; the content is to be lost.
        unsafe { rustix::mm::madvise(pointer, length, Advice::LinuxDontNeed) }
    }

    /// Write a shared file mapping back (`msync` with MS_SYNC).
    pub(super) fn sync(&self, address: u64, length: u64) -> Result<(), Errno> {
        let (pointer, length) = self.range(address, length)?;
        // SAFETY: the range is inside our reservation.
        unsafe { rustix::mm::msync(pointer, length, rustix::mm::MsyncFlags::SYNC) }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // SAFETY: the whole reservation with its guards, which nobody can use after this value.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), self.size + 2 * GUARD) };
    }
}
