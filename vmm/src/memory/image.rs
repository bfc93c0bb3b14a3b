#![expect(unsafe_code, reason = "the read-only mapping of the frozen pages, and copies from it")]
//! Frozen guest memory: the populated pages of a snapshot, densely in one sealed memfd, and where they belong.
//!
//! A fork maps the runs private and everything else fresh; a reset copies pages back from the read-only mapping here, or
//! drops them. The memfd has no holes that anybody maps: reading a hole of shared memory would allocate a page for ever.
//!
//! UNSAFETY: the read-only mapping lives as long as the image; the memfd is sealed against writes and truncation, so its
//! pages can neither change nor vanish. Copies go to the mirror through the recoverable routines.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::address_space::{Brk, joined};
use super::pagemap::Pagemap;
use super::{AddressSpace, Backing, Protection, Vma, VmaTree};
use crate::fast_path::FastPath;
use crate::limits::PAGE;

/// Unpopulated gaps below this are filled with zero pages, so that a fork needs few host mappings.
const GAP: u64 = 64 << 10;

/// Guest pages `[start, end)` whose content begins at `offset` in the memfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First guest address.
    pub start: u64,
    /// Guest address behind the last byte.
    pub end: u64,
    /// Where the content begins in the memfd.
    pub offset: u64,
}

/// The frozen memory of one program.
#[derive(Debug)]
pub struct MemoryImage {
    memfd: OwnedFd,
    pristine: *const u8,
    length: usize,
    runs: Vec<Run>,
    /// The mappings at the time of the snapshot.
    pub(super) vmas: VmaTree,
    /// The program break at the time of the snapshot.
    pub(super) brk: Brk,
    /// Where the clock page is mapped, if there is one.
    pub(super) clock_page: Option<u64>,
    /// Size of the address space.
    pub(super) space_bytes: u64,
    /// The limit on writable private memory.
    pub(super) commit_limit: u64,
    /// Where the memory begins that the guest cannot map anew.
    pub(super) open_end: u64,
    /// Where the fast path is, if there is one.
    pub(super) fast_path: Option<FastPath>,
}

// SAFETY: the mapping is read-only and sealed; nothing in here has thread affinity or interior mutability.
unsafe impl Send for MemoryImage {}
// SAFETY: as above.
unsafe impl Sync for MemoryImage {}

impl Drop for MemoryImage {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: the mapping made in `freeze`; nobody can hold a pointer into it past this value.
            let _ = unsafe { rustix::mm::munmap(self.pristine.cast_mut().cast(), self.length) };
        }
    }
}

/// How often sealing is tried, and how long is waited in between: five seconds in all.
const SEAL_ATTEMPTS: usize = 100;
const SEAL_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// Let nobody write or resize the file any more. The kernel refuses with EBUSY as long as somebody else holds one of its pages, as
/// its own compaction and DAMON do for moments (mm/memfd.c, `memfd_wait_for_pins`, gives them 150 ms).
fn seal(memfd: &OwnedFd) -> Result<(), Errno> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match rustix::fs::fcntl_add_seals(memfd, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL) {
            Err(Errno::BUSY) if attempts < SEAL_ATTEMPTS => std::thread::sleep(SEAL_PAUSE),
            other => return other,
        }
    }
}

impl MemoryImage {
    /// Freeze the memory of a space that will not run again; with what MADV_WIPEONFORK leaves out, where `whole` says so.
    ///
    /// # Errors
    ///
    /// What the host says: ENOMEM, EMFILE.
    pub fn freeze(space: &AddressSpace, whole: bool) -> Result<Self, Errno> {
        let memfd =
            rustix::fs::memfd_create("kvmserver-snapshot", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL)
                .or_else(|_| rustix::fs::memfd_create("kvmserver-snapshot", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING))?;
        let pagemap = Pagemap::open()?;
        let mut runs = Vec::new();
        let mut length = 0;
        for vma in space.vmas.iter().filter(|vma| vma.is_private() && (whole || !vma.wipe_on_fork)) {
            for (start, end) in populated(space, &pagemap, vma)? {
                runs.push(Run { start, end, offset: length });
                length += end - start;
            }
        }
        rustix::fs::ftruncate(&memfd, length)?;
        for run in &runs {
            store(space, &memfd, run)?;
        }
        seal(&memfd)?;
        let length = usize::try_from(length).map_err(|_| Errno::NOMEM)?;
        let pristine = if length == 0 {
            std::ptr::null()
        } else {
            // SAFETY: a new mapping at an address the kernel chooses, of a memfd of this length.
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, &memfd, 0) }?
                .cast::<u8>()
                .cast_const()
        };
        Ok(Self {
            memfd,
            pristine,
            length,
            runs,
            vmas: space.vmas.clone(),
            brk: space.brk,
            clock_page: space.clock_page_address(),
            space_bytes: space.size(),
            commit_limit: space.commit_limit(),
            open_end: space.open_end,
            fast_path: space.fast_path,
        })
    }

    /// Bytes of frozen memory.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.length
    }

    /// The mappings at the time of the snapshot.
    #[must_use]
    pub const fn vmas(&self) -> &VmaTree {
        &self.vmas
    }

    /// The program break at the time of the snapshot.
    #[must_use]
    pub const fn brk(&self) -> Brk {
        self.brk
    }

    /// All runs in address order.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The parts of `[start, end)` that the memfd holds, in order, cut to the range.
    #[must_use]
    pub fn runs_in(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        self.pieces(start, end).map(|run| (run.start, run.end)).collect()
    }

    /// An upper bound on the host's mappings for a fork of this: mappings, runs in them, and what lies between.
    fn host_mappings(&self) -> usize {
        2 * (self.vmas.len() + self.runs.len()) + 1
    }

    fn pieces(&self, start: u64, end: u64) -> impl Iterator<Item = Run> + '_ {
        let first = self.runs.partition_point(|run| run.end <= start);
        self.runs[first..].iter().take_while(move |run| run.start < end).map(move |run| {
            let from = run.start.max(start);
            Run { start: from, end: run.end.min(end), offset: run.offset + (from - run.start) }
        })
    }

    /// The frozen content of the page at this address: a pointer to its 4,096 bytes, or `None` where the snapshot holds none.
    fn page(&self, address: u64) -> Option<*const u8> {
        self.piece(address).map(|(pointer, _)| pointer)
    }

    /// Copy the frozen bytes at `[address, address + buffer.len())` of one page; zeros where the snapshot holds none.
    pub(crate) fn read_page(&self, address: u64, buffer: &mut [u8; PAGE as usize]) {
        match self.page(address) {
            // SAFETY: `page` answers a pointer to a whole page of the sealed mapping.
            Some(from) => unsafe { std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), buffer.len()) },
            None => buffer.fill(0),
        }
    }

    /// Whether the snapshot holds this page.
    #[must_use]
    pub fn holds(&self, address: u64) -> bool {
        self.page(address).is_some()
    }

    /// Blocks of memory the memfd has allocated, in 512-byte units: constant, or somebody wrote to the snapshot.
    ///
    /// # Errors
    ///
    /// What fstat says.
    pub fn blocks(&self) -> Result<i64, Errno> {
        rustix::fs::fstat(&self.memfd).map(|stat| stat.st_blocks)
    }

    /// The frozen content of a run of pages that begins at this address: a pointer, and how many bytes lie there in one piece.
    pub(super) fn piece(&self, address: u64) -> Option<(*const u8, u64)> {
        let index = self.runs.partition_point(|run| run.end <= address);
        let run = self.runs.get(index).filter(|run| run.start <= address)?;
        Some((self.pristine.wrapping_add((run.offset + (address - run.start)) as usize), run.end - address))
    }
}

/// The page ranges of a mapping that have private content, with small gaps closed. A private file mapping with any
/// written page goes in whole, so that the file may change afterwards.
fn populated(space: &AddressSpace, pagemap: &Pagemap, vma: &Vma) -> Result<Vec<(u64, u64)>, Errno> {
    let base = space.host_base();
    let mut found: Vec<(u64, u64)> = Vec::new();
    for (start, end) in pagemap.private_pages(base + vma.start, base + vma.end)? {
        let (start, end) = (start - base, end - base);
        match found.last_mut() {
            Some(last) if start - last.1 < GAP => last.1 = end,
            _ => found.push((start, end)),
        }
    }
    if matches!(vma.backing, Backing::File { .. }) && !found.is_empty() {
        return Ok(vec![(vma.start, vma.end)]);
    }
    Ok(found)
}

fn store(space: &AddressSpace, memfd: &OwnedFd, run: &Run) -> Result<(), Errno> {
    let vma = space.vmas.find(run.start).ok_or(Errno::FAULT)?;
    if !vma.protection.contains(Protection::READ) {
        // The program took its own access away; the content still belongs to the snapshot.
        space.mirror.protect(vma.start, vma.length(), Protection::READ)?;
    }
    let mut buffer = vec![0; 1 << 20];
    let mut at = run.start;
    while at < run.end {
        let piece = usize::try_from(run.end - at).unwrap_or(usize::MAX).min(buffer.len());
        let read = space.memory().read_some(at, &mut buffer[..piece]);
        if read == 0 {
            // Behind the end of a mapped file there is nothing to read: zeros, which the memfd has there already.
            at += PAGE;
            continue;
        }
        let mut written = 0;
        while written < read {
            written += rustix::io::pwrite(memfd, &buffer[written..read], run.offset + (at - run.start) + written as u64)?;
        }
        at += read as u64;
    }
    Ok(())
}

impl AddressSpace {
    /// A fork: the frozen mappings and content in a reservation of its own.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn fork_of(image: &std::sync::Arc<MemoryImage>) -> Result<Self, Errno> {
        let mut space = Self::new(image.space_bytes, image.commit_limit)?;
        space.vmas = image.vmas.clone();
        space.brk = image.brk;
        space.open_end = image.open_end;
        space.fast_path = image.fast_path;
        for vma in image.vmas.iter() {
            space.map_frozen(image, vma)?;
        }
        space.adopt_kinds();
        space.image = Some(std::sync::Arc::clone(image));
        if let Some(address) = image.clock_page {
            space.map_clock_page(address)?;
        }
        space.touched.clear();
        space.host_mappings = image.host_mappings();
        Ok(space)
    }

    /// Make the host mappings of one frozen mapping, or of a part of one.
    fn map_frozen(&mut self, image: &MemoryImage, vma: &Vma) -> Result<(), Errno> {
        let mut at = vma.start;
        if vma.is_private() {
            for run in image.pieces(vma.start, vma.end) {
                self.map_backing(vma, at, run.start)?;
                self.mirror.map_file(run.start, run.end - run.start, vma.protection, image.memfd.as_fd(), run.offset, false)?;
                at = run.end;
            }
        }
        self.map_backing(vma, at, vma.end)?;
        self.mark_stale(vma.start, vma.end);
        Ok(())
    }

    fn map_backing(&self, vma: &Vma, start: u64, end: u64) -> Result<(), Errno> {
        match &vma.backing {
            _ if start >= end => Ok(()),
            Backing::Anonymous => self.mirror.map_anonymous(start, end - start, vma.protection),
            Backing::File { file, offset, shared, .. } => {
                self.mirror.map_file(start, end - start, vma.protection, file.as_fd(), offset + (start - vma.start), *shared)
            }
        }
    }

    /// Undo the changes of mappings since the snapshot; returns the ranges that were made anew (their pages are pristine).
    ///
    /// # Errors
    ///
    /// ENOMEM: the fork has to be thrown away.
    pub fn restore_mappings(&mut self) -> Result<usize, Errno> {
        let Some(image) = self.image.clone() else { return Ok(0) };
        let touched = joined(std::mem::take(&mut self.touched), usize::MAX);
        let restored = touched.iter().try_for_each(|&range| self.restore_range(&image, range));
        if restored == Err(Errno::NOMEM) {
            // The process may have as many mappings as it can: give back all that the run has made first.
            for &(start, end) in &touched {
                self.mirror.map_anonymous(start, end - start, Protection::empty())?;
            }
            touched.iter().try_for_each(|&range| self.restore_range(&image, range))?;
        } else {
            restored?;
        }
        let inside = |address: u64| {
            let index = touched.partition_point(|&(_, end)| end <= address);
            touched.get(index).is_some_and(|&(start, _)| start <= address)
        };
        if !touched.is_empty() {
            self.kept.forget();
            self.memory().dirty_mut().retain(|page| !inside(page * PAGE));
            self.host_mappings = image.host_mappings();
        }
        if let Some(address) = image.clock_page
            && inside(address)
        {
            // The snapshot's mapping is of the master's page; this guest reads the time from one of its own.
            self.map_clock_page(address)?;
            self.touched.clear();
        }
        self.brk = image.brk;
        Ok(touched.len())
    }

    fn restore_range(&mut self, image: &MemoryImage, (start, end): (u64, u64)) -> Result<(), Errno> {
        self.vmas.remove(start, end);
        let mut at = start;
        for vma in image.vmas.overlapping(start, end) {
            if at < vma.start {
                self.mirror.map_anonymous(at, vma.start - at, Protection::empty())?;
            }
            self.map_frozen(image, &vma)?;
            at = vma.end;
            self.vmas.insert(vma);
        }
        if at < end {
            self.mirror.map_anonymous(at, end - at, Protection::empty())?;
        }
        self.mark_stale(start, end);
        Ok(())
    }

    pub(super) fn drop_pages(&self, start: u64, end: u64) -> Result<(), Errno> {
        for vma in self.vmas.overlapping(start, end) {
            if vma.is_private() {
                self.mirror.discard(vma.start, vma.length())?;
            }
        }
        Ok(())
    }
}
