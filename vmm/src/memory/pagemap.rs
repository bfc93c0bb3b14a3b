#![expect(unsafe_code, reason = "one ioctl that rustix and libc do not have")]
//! Which pages of this process hold private content: PAGEMAP_SCAN (Linux 6.7), else `/proc/self/pagemap`.
//!
//! The latter has eight bytes for every page of the range, mapped or not: 240 MB for an address space of 120 GiB. So for a large
//! range `/proc/self/smaps` is asked first which mappings hold anything; it skips what has no page tables.
//!
//! References: Documentation/admin-guide/mm/pagemap.rst, Documentation/filesystems/proc.rst (smaps). UNSAFETY: the ioctl's argument is a live struct of the kernel's
//! layout (size asserted) that points at a live vector with its length.
//!
//! Why not a crate: none wraps this ioctl (checked 2026-11).

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::limits::PAGE;
use crate::withheld::Feature;

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

/// A range from which on it is cheaper to ask where to look.
const LARGE_RANGE: u64 = 64 << 20;

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
            Err(Errno::NOTTY | Errno::INVAL) => self.scan_without_ioctl(start, end),
            other => other,
        }
    }

    /// Whether this kernel has the ioctl (Linux 6.7), and it is not withheld.
    #[must_use]
    pub fn has_scan(&self) -> bool {
        let page = std::ptr::from_ref(self) as u64 & !(PAGE - 1);
        self.scan_by_ioctl(page, page + PAGE).is_ok()
    }

    fn scan_without_ioctl(&self, start: u64, end: u64) -> Result<Vec<(u64, u64)>, Errno> {
        if end - start < LARGE_RANGE {
            return self.scan_by_reading(start, end);
        }
        let smaps = std::fs::read_to_string("/proc/self/smaps").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let mut found: Vec<(u64, u64)> = Vec::new();
        for (first, last) in mappings_with_private_pages(&smaps) {
            let (first, last) = (first.max(start), last.min(end));
            if first < last {
                for range in self.scan_by_reading(first, last)? {
                    append(&mut found, range);
                }
            }
        }
        Ok(found)
    }

    fn scan_by_ioctl(&self, start: u64, end: u64) -> Result<Vec<(u64, u64)>, Errno> {
        if Feature::PagemapScan.is_withheld() {
            return Err(Errno::NOTTY);
        }
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
                    append(&mut found, (at, at + PAGE));
                }
                at += PAGE;
            }
        }
        Ok(found)
    }
}

/// Add a range behind all others, as one with the last where they touch.
fn append(ranges: &mut Vec<(u64, u64)>, (start, end): (u64, u64)) {
    match ranges.last_mut() {
        Some(last) if last.1 == start => last.1 = end,
        _ => ranges.push((start, end)),
    }
}

/// The address ranges of the mappings in the text of `/proc/PID/smaps` that hold anonymous pages, in memory or swapped.
fn mappings_with_private_pages(smaps: &str) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("Anonymous:" | "Swap:"), Some(kilobytes)) if kilobytes != "0" => found.extend(current.take()),
            (Some(range), _) if !range.ends_with(':') => {
                let address = |text| u64::from_str_radix(text, 16).ok();
                current = range.split_once('-').and_then(|(start, end)| Some((address(start)?, address(end)?)));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{AddressSpace, Backing, MapRequest, Placement, Protection};

    #[test]
    fn only_mappings_that_hold_something_are_looked_at() {
        let smaps = "\
            1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nAnonymous: 4 kB\nAnonHugePages: 0 kB\nSwap: 8 kB\nVmFlags: rd wr\n\
            3000-5000 r--p 00000000 fe:00 7 /lib/x y\nAnonymous: 0 kB\nShmemPmdMapped: 4 kB\nSwap: 0 kB\nSwapPss: 4 kB\n\
            ffff000-fffff000 ---p 00000000 00:00 0 \nAnonymous: 0 kB\nSwap: 12 kB\n";
        assert_eq!(mappings_with_private_pages(smaps), [(0x1000, 0x3000), (0xffff000, 0xffff_f000)]);
    }

    #[test]
    fn without_the_ioctl_the_same_pages_are_found() {
        let mut space = AddressSpace::new(64 << 30, 32 << 30).unwrap();
        let protection = Protection::READ | Protection::WRITE;
        let request = MapRequest { placement: Placement::Anywhere, length: 1 << 30, protection, backing: Backing::Anonymous, label: "" };
        let address = space.map(request).unwrap();
        // Whole huge pages are written, because the host may give out nothing smaller.
        let block = crate::limits::BLOCK / PAGE;
        let first = address.next_multiple_of(crate::limits::BLOCK);
        for page in [0..2 * block, 77 * block..78 * block].into_iter().flatten() {
            space.memory().write_bytes(first + page * PAGE, b"x").unwrap();
        }
        let (pagemap, base) = (Pagemap::open().unwrap(), space.host_base());
        let at = |blocks| base + first + blocks * crate::limits::BLOCK;
        let expected = [(at(0), at(2)), (at(77), at(78))];
        for pages in [pagemap.scan_without_ioctl(base, base + space.size()), pagemap.private_pages(base, base + space.size())] {
            assert_eq!(pages.unwrap(), expected);
        }
        assert_eq!(pagemap.scan_without_ioctl(at(1), at(78)).unwrap(), [(at(1), at(2)), (at(77), at(78))]);
    }
}
