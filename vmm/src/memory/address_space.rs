//! The guest's address space: its mappings, and the host mappings that mirror them.
//!
//! Invariants: the mirror shows exactly what `vmas` says (holes are inaccessible); a range whose mappings differ from the
//! snapshot's is in `touched`; a range whose page-table entries may be out of date is in `stale_blocks`.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::clock_page::ClockPage;
use super::image::MemoryImage;
use super::mirror::Mirror;
use super::placement::{Blocks, Kind, Wanted};
use super::restore::KeptPages;
use super::vma::page_up;
use super::{Backing, GuestMemory, Pagemap, Protection, Vma, VmaTree};
use crate::fast_path::FastPath;
use crate::limits::{BLOCK, PAGE, VMAS_MAX};

/// Nothing is mapped below this (vm.mmap_min_addr), so that null pointers fault.
const LOWEST: u64 = 64 << 10;
/// Where addresses are given out from: behind a position-independent program's base.
const MAP_BASE: u64 = 1 << 30;
/// Room kept free behind the program's data for `brk`; malloc goes on with mmap when it is used up. More would push
/// libraries and executable memory away from the program's text.
const BRK_ROOM: u64 = 256 << 20;
/// Lengths beyond what Linux gives any process are wrong, shorter ones merely too long.
const TASK_SIZE: u64 = (1 << 47) - PAGE;
/// MAP_32BIT stays below this.
const LOW_END: u64 = 2 << 30;

/// Changed ranges that are kept apart; beyond that neighbours are joined, and what lies between them is mapped anew too.
const TOUCHED_MAX: usize = 1024;

/// The ranges in order, those that touch joined; where more than `most` are left, those with small gaps too.
pub(super) fn joined(mut ranges: Vec<(u64, u64)>, most: usize) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut gap = 0;
    loop {
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for &(start, end) in &ranges {
            match joined.last_mut() {
                Some(last) if start <= last.1.saturating_add(gap) => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        if joined.len() <= most {
            return joined;
        }
        ranges = joined;
        gap = (gap * 2).max(PAGE);
    }
}

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

/// The program break.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Brk {
    /// Where it begins; 0 before the loader has said so.
    pub start: u64,
    /// Where it is.
    pub current: u64,
}

/// What page-table entry a 2 MiB block needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockUse {
    /// Nothing accessible in it.
    Unused,
    /// Something accessible, nothing executable.
    Data,
    /// Something executable.
    Code,
}

/// One guest address space. Every method takes numbers straight from a guest: it checks them and answers with Linux's errno.
#[derive(Debug)]
pub struct AddressSpace {
    // Declared before the mirror so that it is dropped first.
    memory: GuestMemory,
    pub(super) mirror: Mirror,
    pub(super) vmas: VmaTree,
    blocks: Blocks,
    pub(super) brk: Brk,
    commit_limit: u64,
    /// The guest may change mappings below this; see set_aside.rs.
    pub(super) open_end: u64,
    /// Where its fast path is, if it has one.
    pub(super) fast_path: Option<FastPath>,
    /// The frozen content this space was forked from.
    pub(super) image: Option<Arc<MemoryImage>>,
    /// Ranges whose mappings changed since the fork or the last reset.
    pub(super) touched: Vec<(u64, u64)>,
    stale_blocks: Vec<(u64, u64)>,
    pub(super) clock_page: Option<ClockPage>,
    /// The written pages that stay mapped, as copies to make at a reset.
    pub(super) kept: KeptPages,
    /// Most mappings of the host this space may have, and an upper bound on those it has.
    host_mappings_max: usize,
    pub(super) host_mappings: usize,
}

impl AddressSpace {
    /// An empty address space of `size` bytes in which at most `commit_limit` bytes may be mapped private and writable.
    ///
    /// # Errors
    ///
    /// ENOMEM where the host has no such range of addresses.
    pub fn new(size: u64, commit_limit: u64) -> Result<Self, Errno> {
        let size = page_up(size).ok_or(Errno::NOMEM)?.next_multiple_of(BLOCK);
        let mirror = Mirror::reserve(size)?;
        let memory = GuestMemory::over(&mirror, size);
        Ok(Self {
            memory,
            mirror,
            vmas: VmaTree::default(),
            blocks: Blocks::new(size),
            brk: Brk::default(),
            commit_limit,
            open_end: size,
            fast_path: None,
            image: None,
            touched: Vec::new(),
            stale_blocks: Vec::new(),
            clock_page: None,
            kept: KeptPages::default(),
            host_mappings_max: usize::MAX,
            host_mappings: 0,
        })
    }

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

    /// The limit on writable private memory, bytes.
    #[must_use]
    pub const fn commit_limit(&self) -> u64 {
        self.commit_limit
    }

    /// Record the kinds of all blocks anew, from the mappings.
    pub(super) fn adopt_kinds(&mut self) {
        for vma in self.vmas.iter() {
            self.blocks.adopt(vma.start, vma.end, Kind::of(vma.length(), vma.protection, &vma.backing));
        }
    }

    /// Size of the address space in bytes, a multiple of 2 MiB.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.memory.size()
    }

    /// The host address of guest address 0, for memslots.
    #[must_use]
    pub fn host_base(&self) -> u64 {
        self.mirror.base() as u64
    }

    /// The frozen content that this space was forked from, if it was.
    #[must_use]
    pub const fn image(&self) -> Option<&Arc<MemoryImage>> {
        self.image.as_ref()
    }

    fn checked_range(&self, address: u64, length: u64, out_of_range: Errno) -> Result<(u64, u64), Errno> {
        if !address.is_multiple_of(PAGE) {
            return Err(Errno::INVAL);
        }
        let length = page_up(length).ok_or(out_of_range)?;
        let end = address.checked_add(length).filter(|&end| end <= self.open_end).ok_or(out_of_range)?;
        Ok((address, end))
    }

    /// Let the host have at most this many mappings for this space: a process has 65,530 for all its VMs.
    pub const fn limit_host_mappings(&mut self, most: usize) {
        self.host_mappings_max = most;
    }

    fn changed(&mut self, start: u64, end: u64) {
        if self.image.is_some() {
            match self.touched.last_mut() {
                Some(last) if start <= last.1 && last.0 <= end => *last = (last.0.min(start), last.1.max(end)),
                _ => self.touched.push((start, end)),
            }
            if self.touched.len() >= TOUCHED_MAX {
                self.touched = joined(std::mem::take(&mut self.touched), TOUCHED_MAX / 2);
            }
        }
        self.mark_stale(start, end);
    }

    /// A change that is none for a reset.
    pub(super) fn forget_touched(&mut self, start: u64, end: u64) {
        self.touched.retain(|&range| range != (start, end));
    }

    pub(super) fn mark_stale(&mut self, start: u64, end: u64) {
        let (first, last) = (start / BLOCK, end.div_ceil(BLOCK));
        match self.stale_blocks.last_mut() {
            Some(known) if first <= known.1 && known.0 <= last => *known = (known.0.min(first), known.1.max(last)),
            _ => self.stale_blocks.push((first, last)),
        }
    }

    /// Have the page-table entry of this address looked at again.
    pub fn refresh_block(&mut self, address: u64) {
        self.mark_stale(address, address.saturating_add(1));
    }

    /// Blocks (numbers of 2 MiB ranges, `[first, last)`) whose page-table entries must be looked at before the guest runs again.
    pub fn take_stale_blocks(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.stale_blocks)
    }

    /// What a block's entry has to allow.
    #[must_use]
    pub fn block_use(&self, block: u64) -> BlockUse {
        let start = block * BLOCK;
        let mut answer = BlockUse::Unused;
        let mut at = start;
        while at < start + BLOCK {
            match self.vmas.find(at) {
                Some(vma) if vma.protection.contains(Protection::EXEC) => return BlockUse::Code,
                Some(vma) => {
                    if !vma.protection.is_empty() {
                        answer = BlockUse::Data;
                    }
                    at = vma.end;
                }
                None => match self.vmas.gaps(at, start + BLOCK).next() {
                    Some((_, end)) => at = end,
                    None => break,
                },
            }
        }
        answer
    }

    /// `mmap(2)`.
    ///
    /// # Errors
    ///
    /// EINVAL, ENOMEM, EEXIST as mmap answers, and what the host says of a file.
    pub fn map(&mut self, request: MapRequest) -> Result<u64, Errno> {
        if request.length == 0 {
            return Err(Errno::INVAL);
        }
        let length = page_up(request.length).ok_or(Errno::NOMEM)?;
        let start = self.place(&request, length)?;
        let end = start + length;
        let writable = request.protection.contains(Protection::WRITE) && !matches!(request.backing, Backing::File { shared: true, .. });
        let replaced: u64 = self.vmas.overlapping(start, end).iter().filter(|vma| vma.commits()).map(Vma::length).sum();
        self.check_commit(if writable { length } else { 0 }, replaced)?;
        self.check_count()?;
        let mapped = match &request.backing {
            Backing::Anonymous => self.mirror.map_anonymous(start, length, request.protection),
            Backing::File { file, offset, shared, .. } => {
                self.mirror.map_file(start, length, request.protection, file.as_fd(), *offset, *shared)
            }
        };
        if let Err(errno) = mapped {
            if self.mirror.close_hole(start, length) {
                self.vmas.remove(start, end);
                self.changed(start, end);
            }
            return Err(errno);
        }
        let kind = Kind::of(length, request.protection, &request.backing);
        self.vmas.remove(start, end);
        self.blocks.record(&self.vmas, start, end, kind);
        self.vmas.insert(Vma {
            start,
            end,
            protection: request.protection,
            backing: request.backing,
            label: request.label,
            wipe_on_fork: false,
        });
        self.changed(start, end);
        Ok(start)
    }

    fn place(&self, request: &MapRequest, length: u64) -> Result<u64, Errno> {
        match request.placement {
            Placement::Fixed(address) | Placement::FixedNoReplace(address) => {
                let (start, end) = self.checked_range(address, length, Errno::NOMEM)?;
                if start < LOWEST {
                    return Err(Errno::PERM);
                }
                if matches!(request.placement, Placement::FixedNoReplace(_)) && !self.vmas.overlapping(start, end).is_empty() {
                    return Err(Errno::EXIST);
                }
                Ok(start)
            }
            Placement::Anywhere => self.find_room(length, Kind::of(length, request.protection, &request.backing), MAP_BASE, self.open_end),
            Placement::Low => {
                self.find_room(length, Kind::of(length, request.protection, &request.backing), LOWEST, LOW_END.min(self.open_end))
            }
        }
    }

    fn find_room(&self, length: u64, kind: Kind, low: u64, high: u64) -> Result<u64, Errno> {
        let forbidden = (self.brk.start, self.brk.start.saturating_add(BRK_ROOM));
        let low = low.min(high);
        self.blocks.find(&self.vmas, forbidden, &Wanted { length, kind, low, high }).ok_or(Errno::NOMEM)
    }

    fn check_commit(&self, more: u64, less: u64) -> Result<(), Errno> {
        if more <= less || self.vmas.writable_private_bytes() - less + more <= self.commit_limit { Ok(()) } else { Err(Errno::NOMEM) }
    }

    fn check_count(&mut self) -> Result<(), Errno> {
        // A change splits one mapping into three at most.
        if self.vmas.len() + 2 >= VMAS_MAX {
            return Err(Errno::NOMEM);
        }
        self.host_mappings += 2;
        if self.host_mappings > self.host_mappings_max {
            // The bound is a coarse one; see how many there really are.
            self.host_mappings = self.mirror.host_mappings().saturating_add(2);
        }
        if self.host_mappings > self.host_mappings_max { Err(Errno::NOMEM) } else { Ok(()) }
    }

    /// `munmap(2)`.
    ///
    /// # Errors
    ///
    /// EINVAL for an unaligned or out-of-range address or an empty length, ENOMEM where it would split too many mappings.
    pub fn unmap(&mut self, address: u64, length: u64) -> Result<(), Errno> {
        if length == 0 {
            return Err(Errno::INVAL);
        }
        let (start, end) = self.checked_range(address, length, Errno::INVAL)?;
        let removed = self.vmas.overlapping(start, end);
        if let [inside] = removed.as_slice()
            && self.vmas.find(inside.start).is_some_and(|whole| whole.start < start && end < whole.end)
        {
            // Only a hole in the middle makes more mappings; giving memory back must work at the limit too.
            self.check_count()?;
        }
        if let (Some(first), Some(last)) = (removed.first(), removed.last()) {
            self.mirror.map_anonymous(first.start, last.end - first.start, Protection::empty())?;
            self.vmas.remove(start, end);
            self.changed(first.start, last.end);
        }
        Ok(())
    }

    /// Unmap everything: another program takes the process over.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn clear(&mut self) -> Result<(), Errno> {
        self.unmap(0, self.open_end)?;
        self.brk = Brk::default();
        self.clock_page = None;
        Ok(())
    }

    /// `mprotect(2)`.
    ///
    /// # Errors
    ///
    /// EINVAL (unaligned), ENOMEM (a hole, or the limit on writable memory), EACCES (a shared mapping of a read-only file).
    pub fn protect(&mut self, address: u64, length: u64, protection: Protection) -> Result<(), Errno> {
        if length == 0 {
            return if address.is_multiple_of(PAGE) { Ok(()) } else { Err(Errno::INVAL) };
        }
        let (start, end) = self.checked_range(address, length, Errno::NOMEM)?;
        let pieces = self.vmas.overlapping(start, end);
        if !self.vmas.covers(start, end) {
            return Err(Errno::NOMEM);
        }
        if protection.contains(Protection::WRITE) {
            let more = pieces.iter().filter(|vma| vma.is_private() && !vma.commits()).map(Vma::length).sum();
            self.check_commit(more, 0)?;
        }
        self.check_count()?;
        for mut piece in pieces {
            if piece.protection != protection {
                self.mirror.protect(piece.start, piece.length(), protection)?;
                let (start, end) = (piece.start, piece.end);
                piece.protection = protection;
                self.vmas.insert(piece);
                self.changed(start, end);
            }
        }
        Ok(())
    }

    /// `mremap(2)`; `to` is the new address of MREMAP_FIXED.
    ///
    /// # Errors
    ///
    /// EINVAL, EFAULT (no such mapping, or several), ENOMEM.
    pub fn remap(&mut self, address: u64, old: u64, new: u64, may_move: bool, to: Option<u64>) -> Result<u64, Errno> {
        if !address.is_multiple_of(PAGE) {
            return Err(Errno::INVAL);
        }
        let new = page_up(new).filter(|&new| new > 0 && new <= TASK_SIZE).ok_or(Errno::INVAL)?;
        let (start, old_end) = self.checked_range(address, old, Errno::FAULT)?;
        let vma = self.vmas.find(start).cloned().ok_or(Errno::FAULT)?;
        let old = old_end - start;
        if old == 0 {
            // Duplicating a shared mapping: an obsolete use that needs a second process to make sense.
            return Err(Errno::INVAL);
        }
        if old_end > vma.end {
            return Err(Errno::FAULT);
        }
        if new > self.size() {
            return Err(Errno::NOMEM);
        }
        if to.is_none() && new <= old {
            if new < old {
                self.unmap(start + new, old - new)?;
            }
            return Ok(start);
        }
        if vma.commits() && new > old {
            self.check_commit(new - old, 0)?;
        }
        if to.is_none() && old_end == vma.end && self.grow_in_place(&vma, start, old, new)? {
            return Ok(start);
        }
        let target = match to {
            Some(_) if !may_move => return Err(Errno::INVAL),
            Some(to) => {
                let (to, end) = self.checked_range(to, new, Errno::INVAL)?;
                if to < old_end && start < end || to < LOWEST {
                    return Err(Errno::INVAL);
                }
                self.unmap(to, new)?;
                to
            }
            None if !may_move => return Err(Errno::NOMEM),
            None => self.find_room(new, Kind::of(new, vma.protection, &vma.backing), MAP_BASE, self.open_end)?,
        };
        self.relocate(&vma, (start, old), (target, new))
    }

    fn grow_in_place(&mut self, vma: &Vma, start: u64, old: u64, new: u64) -> Result<bool, Errno> {
        let end = start.checked_add(new).filter(|&end| end <= self.open_end).ok_or(Errno::NOMEM)?;
        if !self.vmas.overlapping(start + old, end).is_empty() {
            return Ok(false);
        }
        let mut backing = vma.backing.clone();
        if let Backing::File { offset, .. } = &mut backing {
            *offset += vma.length();
        }
        let request =
            MapRequest { placement: Placement::Fixed(vma.end), length: new - old, protection: vma.protection, backing, label: vma.label };
        self.map(request)?;
        Ok(true)
    }

    fn relocate(&mut self, vma: &Vma, (start, old): (u64, u64), (target, new): (u64, u64)) -> Result<u64, Errno> {
        self.check_count()?;
        let moved = old.min(new);
        let pieces = self.vmas.overlapping(start, start + moved);
        if let Err(errno) = self.move_content(vma, (start, moved), (target, new)) {
            // Nothing may stay mapped that the list of mappings does not know.
            self.mirror.map_anonymous(target, new, Protection::empty())?;
            self.changed(target, target + new);
            return Err(errno);
        }
        if moved < old {
            self.mirror.map_anonymous(start + moved, old - moved, Protection::empty())?;
        }
        self.memory.move_dirty(start, target, moved);
        self.vmas.remove(start, start + old);
        self.changed(start, start + old);
        let kind = Kind::of(new, vma.protection, &vma.backing);
        self.blocks.record(&self.vmas, target, target + new, kind);
        for piece in pieces {
            let mut piece = Vma { start: target, end: target + new, ..piece };
            if let (Backing::File { offset, .. }, Backing::File { offset: from, .. }) = (&mut piece.backing, &vma.backing) {
                *offset = from + (start - vma.start);
            }
            self.vmas.insert(piece);
        }
        self.changed(target, target + new);
        Ok(target)
    }

    /// Make the new mapping, and move what was written to the old one. The host can move pages only where one mapping of the
    /// guest is one of the host: not in a fork (runs of the snapshot, and what lies between), and not always elsewhere.
    fn move_content(&mut self, vma: &Vma, (start, moved): (u64, u64), (target, new): (u64, u64)) -> Result<(), Errno> {
        self.map_like(vma, start, (target, target + new), vma.protection)?;
        if self.image.is_none() && self.mirror.relocate(start, moved, target).is_ok() {
            return Ok(());
        }
        if vma.is_private() {
            let both = Protection::READ | Protection::WRITE;
            self.map_like(vma, start, (target, target + new), vma.protection | both)?;
            self.mirror.protect(start, moved, vma.protection | Protection::READ)?;
            let copied = self.copy_written((start, moved), target);
            self.mirror.protect(start, moved, vma.protection)?;
            copied?;
            self.mirror.protect(target, new, vma.protection)?;
        }
        self.mirror.map_anonymous(start, moved, Protection::empty())
    }

    /// The host mapping at `[from, to)` of what `vma` maps at `start`.
    fn map_like(&self, vma: &Vma, start: u64, (from, to): (u64, u64), protection: Protection) -> Result<(), Errno> {
        match &vma.backing {
            Backing::Anonymous => self.mirror.map_anonymous(from, to - from, protection),
            Backing::File { file, offset, shared, .. } => {
                self.mirror.map_file(from, to - from, protection, file.as_fd(), offset + (start - vma.start), *shared)
            }
        }
    }

    /// Copy the pages with content of their own: those of the snapshot, and those written since.
    fn copy_written(&self, (start, moved): (u64, u64), target: u64) -> Result<(), Errno> {
        let base = self.host_base();
        let mut ranges = Pagemap::open()?.private_pages(base + start, base + start + moved)?;
        for range in &mut ranges {
            *range = (range.0 - base, range.1 - base);
        }
        if let Some(image) = &self.image {
            ranges.extend(image.runs_in(start, start + moved));
        }
        let mut page = vec![0; PAGE as usize];
        for (from, to) in joined(ranges, usize::MAX) {
            for at in (from..to).step_by(PAGE as usize) {
                // A page behind the end of a file cannot be read or written here or there.
                if self.memory.read_bytes(at, &mut page).is_ok() {
                    let _ = self.memory.write_bytes(target + (at - start), &page);
                }
            }
        }
        Ok(())
    }

    /// Drop the content of a range (MADV_DONTNEED): private anonymous memory reads as zero afterwards, files as the file.
    ///
    /// # Errors
    ///
    /// EINVAL (unaligned), ENOMEM (a hole; what is mapped was dropped all the same).
    pub fn discard(&mut self, address: u64, length: u64) -> Result<(), Errno> {
        let (start, end) = self.checked_range(address, length, Errno::NOMEM)?;
        let whole = self.vmas.covers(start, end);
        for piece in self.vmas.overlapping(start, end) {
            self.discard_piece(&piece)?;
        }
        if whole { Ok(()) } else { Err(Errno::NOMEM) }
    }

    fn discard_piece(&mut self, piece: &Vma) -> Result<(), Errno> {
        let Some(image) = self.image.clone() else { return self.mirror.discard(piece.start, piece.length()) };
        match &piece.backing {
            Backing::Anonymous => {
                // Dropping a page of the snapshot would bring the snapshot's content back: zero those, drop the others.
                let mut at = piece.start;
                for (start, end) in image.runs_in(piece.start, piece.end) {
                    if at < start {
                        self.mirror.discard(at, start - at)?;
                    }
                    self.zero_mapped(piece, start, end)?;
                    at = end;
                }
                if at < piece.end { self.mirror.discard(at, piece.end - at) } else { Ok(()) }
            }
            Backing::File { file, offset, shared, .. } => {
                if image.runs_in(piece.start, piece.end).is_empty() {
                    return self.mirror.discard(piece.start, piece.length());
                }
                // The snapshot's copy of a private file mapping: the file itself comes back.
                self.mirror.map_file(piece.start, piece.length(), piece.protection, file.as_fd(), *offset, *shared)?;
                self.changed(piece.start, piece.end);
                Ok(())
            }
        }
    }

    fn zero_mapped(&mut self, piece: &Vma, start: u64, end: u64) -> Result<(), Errno> {
        // Where the guest has replaced the mapping since the fork, the host page is not the snapshot's any more, but zeroing is right too.
        let writable = piece.protection.contains(Protection::WRITE);
        if !writable {
            self.mirror.protect(start, end - start, Protection::READ | Protection::WRITE)?;
        }
        let result = self.memory.write_zeros(start, end - start);
        if !writable {
            self.mirror.protect(start, end - start, piece.protection)?;
        }
        result
    }

    /// Set MADV_WIPEONFORK or MADV_KEEPONFORK on a range of private anonymous memory.
    ///
    /// # Errors
    ///
    /// EINVAL (unaligned, or a file), ENOMEM (a hole).
    pub fn set_wipe_on_fork(&mut self, address: u64, length: u64, wipe: bool) -> Result<(), Errno> {
        let (start, end) = self.checked_range(address, length, Errno::INVAL)?;
        if !self.vmas.covers(start, end) {
            return Err(Errno::NOMEM);
        }
        self.check_count()?;
        for mut piece in self.vmas.overlapping(start, end) {
            if wipe && !matches!(piece.backing, Backing::Anonymous) {
                return Err(Errno::INVAL);
            }
            piece.wipe_on_fork = wipe;
            let (start, end) = (piece.start, piece.end);
            self.vmas.insert(piece);
            self.changed(start, end);
        }
        Ok(())
    }

    /// `msync(2)` with MS_SYNC on what is mapped shared.
    ///
    /// # Errors
    ///
    /// EINVAL (unaligned), ENOMEM (a hole), and what the host says.
    pub fn sync(&mut self, address: u64, length: u64) -> Result<(), Errno> {
        let (start, end) = self.checked_range(address, length, Errno::NOMEM)?;
        for piece in self.vmas.overlapping(start, end) {
            if !piece.is_private() {
                self.mirror.sync(piece.start, piece.length())?;
            }
        }
        if self.vmas.covers(start, end) { Ok(()) } else { Err(Errno::NOMEM) }
    }

    /// Where the program break begins: set once by the loader, behind the program's data and before anything else is mapped.
    pub fn set_brk_start(&mut self, address: u64) {
        let start = page_up(address).unwrap_or(address);
        self.brk = Brk { start, current: start };
    }

    /// `brk(2)`: move the break, or answer where it is if it cannot be moved there.
    pub fn set_brk(&mut self, address: u64) -> u64 {
        let Brk { start, current } = self.brk;
        if address < start || address > start.saturating_add(BRK_ROOM) {
            return current;
        }
        let (Some(old_end), Some(new_end)) = (page_up(current), page_up(address)) else { return current };
        let moved = match new_end.cmp(&old_end) {
            std::cmp::Ordering::Greater => self.map(MapRequest {
                placement: Placement::FixedNoReplace(old_end),
                length: new_end - old_end,
                protection: Protection::READ | Protection::WRITE,
                backing: Backing::Anonymous,
                label: "[heap]",
            }),
            std::cmp::Ordering::Less => self.unmap(new_end, old_end - new_end).map(|()| new_end),
            std::cmp::Ordering::Equal => Ok(address),
        };
        if moved.is_ok() {
            self.brk.current = address;
        }
        self.brk.current
    }

    /// The program break.
    #[must_use]
    pub const fn brk(&self) -> Brk {
        self.brk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Keep;

    const RW: Protection = Protection::READ.union(Protection::WRITE);

    fn anonymous(length: u64, protection: Protection) -> MapRequest {
        MapRequest { placement: Placement::Anywhere, length, protection, backing: Backing::Anonymous, label: "" }
    }

    #[test]
    fn a_fork_reads_what_was_frozen_and_a_reset_brings_it_back() {
        let mut master = AddressSpace::new(4 << 30, 1 << 30).unwrap();
        let data = master.map(anonymous(1 << 20, RW)).unwrap();
        let gone = master.map(anonymous(1 << 20, RW)).unwrap();
        master.memory().write_bytes(data + 5000, b"frozen").unwrap();
        let image = Arc::new(MemoryImage::freeze(&master, false).unwrap());
        drop(master);
        let mut fork = AddressSpace::fork_of(&image).unwrap();
        let read = |fork: &AddressSpace| fork.memory().read_vec(data + 5000, 6).unwrap();
        assert_eq!(read(&fork), b"frozen");
        fork.memory().write_bytes(data + 5000, b"change").unwrap();
        fork.memory().write_bytes(data + 900_000, b"fresh").unwrap();
        fork.unmap(gone, 1 << 20).unwrap();
        let new = fork.map(anonymous(8 << 20, RW)).unwrap();
        fork.memory().write_bytes(new, b"secret").unwrap();
        fork.discard(data, 1 << 20).unwrap();
        assert_eq!(read(&fork), [0; 6]);
        fork.restore_mappings().unwrap();
        let (copied, dropped) = fork.restore_pages(Keep::These(&|page| page == (data + 5000) / PAGE)).unwrap();
        assert!(copied == 1 && dropped >= 1, "{copied} {dropped}");
        assert_eq!(read(&fork), b"frozen");
        assert_eq!(fork.memory().read_vec(data + 900_000, 5).unwrap(), [0; 5]);
        assert!(fork.vmas().covers(gone, gone + (1 << 20)));
        assert_eq!(fork.memory().read_vec(new.max(gone + (1 << 20)), 1), Err(Errno::FAULT));
    }

    #[test]
    fn kinds_do_not_share_blocks_and_freed_ranges_are_used_again() {
        let mut space = AddressSpace::new(8 << 30, 1 << 30).unwrap();
        let data = space.map(anonymous(PAGE, RW)).unwrap();
        let code = space.map(anonymous(PAGE, Protection::READ | Protection::EXEC)).unwrap();
        assert_ne!(data / BLOCK, code / BLOCK);
        assert_eq!(space.block_use(code / BLOCK), BlockUse::Code);
        assert_eq!(space.block_use(data / BLOCK), BlockUse::Data);
        let cage = space.map(anonymous(2 << 30, Protection::empty())).unwrap();
        assert!(cage > 4 << 30);
        space.unmap(data, PAGE).unwrap();
        assert_eq!(space.map(anonymous(PAGE, RW)).unwrap(), data);
        assert_eq!(space.map(MapRequest { placement: Placement::FixedNoReplace(data), ..anonymous(PAGE, RW) }), Err(Errno::EXIST));
        assert_eq!(space.unmap(u64::MAX - 4095, PAGE), Err(Errno::INVAL));
        assert_eq!(space.map(anonymous(2 << 30, RW)), Err(Errno::NOMEM));
    }

    #[test]
    fn mremap_keeps_content_before_and_after_a_fork() {
        let mut space = AddressSpace::new(4 << 30, 1 << 30).unwrap();
        let first = space.map(anonymous(PAGE, RW)).unwrap();
        let behind = space.map(anonymous(PAGE, RW)).unwrap();
        assert_eq!(behind, first + PAGE);
        space.memory().write_bytes(first, b"here").unwrap();
        let moved = space.remap(first, PAGE, 4 * PAGE, true, None).unwrap();
        assert_ne!(moved, first);
        assert_eq!(space.memory().read_vec(moved, 4).unwrap(), b"here");
        let image = Arc::new(MemoryImage::freeze(&space, false).unwrap());
        let mut fork = AddressSpace::fork_of(&image).unwrap();
        let again = fork.remap(moved, 4 * PAGE, 512 * PAGE, true, None).unwrap();
        assert_eq!(fork.memory().read_vec(again, 4).unwrap(), b"here");
        fork.restore_mappings().unwrap();
        assert_eq!(fork.memory().read_vec(moved, 4).unwrap(), b"here");
    }
}
