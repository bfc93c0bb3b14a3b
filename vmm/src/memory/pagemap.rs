#![expect(unsafe_code, reason = "one ioctl that rustix and libc do not have")]
//! Which pages of this process hold private content: PAGEMAP_SCAN (Linux 6.7), else `/proc/self/pagemap`.
//!
//! References: Documentation/admin-guide/mm/pagemap.rst. UNSAFETY: the ioctl's argument is a live struct of the kernel's
//! layout (size asserted) that points at a live vector with its length.
//!
//! Why not a crate: none wraps this ioctl (checked 2026-11).

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::limits::PAGE;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<ScanArgument>() == 96);

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// The page map of this process.
#[derive(Debug)]
pub struct Pagemap {
    file: OwnedFd,
}

impl Pagemap {
    /// Open `/proc/self/pagemap`.
    ///
    /// # Errors
    ///
    /// What open says.
    pub fn open() -> Result<Self, Errno> {
        let file = rustix::fs::open("/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { file })
    }

    /// The host pages in `[start, end)` that hold private content (written anonymous memory, copies of a file's pages; not the
    /// zero page, not a file's cache), as ranges in order.
    ///
    /// # Errors
    ///
    /// What the host says.
    pub fn private_pages(&self, start: u64, end: u64) -> Result<Vec<(u64, u64)>, Errno> {
        match self.scan_by_ioctl(start, end) {
            Err(Errno::NOTTY | Errno::INVAL) => self.scan_by_reading(start, end),
            other => other,
        }
    }

    fn scan_by_ioctl(&self, start: u64, end: u64) -> Result<Vec<(u64, u64)>, Errno> {
        let mut found = Vec::new();
        let mut regions = vec![PageRegion::default(); 512];
        let mut at = start;
        while at < end {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                flags: 0,
                start: at,
                end,
                walk_end: 0,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                max_pages: 0,
                // Neither of these two, and one of the two below.
                category_inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
                category_mask: PAGE_IS_FILE | PAGE_IS_PFNZERO,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            };
            // SAFETY: see the module's header.
            let count = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            if count < 0 {
                return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
            }
            found.extend(regions.iter().take(count as usize).map(|region| (region.start, region.end)));
            if argument.walk_end <= at {
                break;
            }
            at = argument.walk_end;
        }
        Ok(found)
    }

    fn scan_by_reading(&self, start: u64, end: u64) -> Result<Vec<(u64, u64)>, Errno> {
        let mut found: Vec<(u64, u64)> = Vec::new();
        let mut buffer = vec![0_u8; 64 << 10];
        let mut at = start;
        while at < end {
            let wanted = usize::try_from((end - at) / PAGE * 8).unwrap_or(usize::MAX).min(buffer.len());
            let read = rustix::io::pread(&self.file, &mut buffer[..wanted], at / PAGE * 8)? / 8 * 8;
            if read == 0 {
                break;
            }
            for entry in buffer[..read].chunks_exact(8) {
                let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
                // Bit 63: present, 62: swapped, 61: a page of a file or of shared memory.
                if entry >> 62 != 0 && entry >> 61 & 1 == 0 {
                    match found.last_mut() {
                        Some(last) if last.1 == at => last.1 = at + PAGE,
                        _ => found.push((at, at + PAGE)),
                    }
                }
                at += PAGE;
            }
        }
        Ok(found)
    }
}
