#![expect(unsafe_code, reason = "copies of frozen pages over written ones")]
//! Putting written pages back: the ones that stay mapped are copied from the snapshot, the others dropped.
//!
//! Which pages stay changes rarely, so the copies are planned once, in address order, neighbours joined, and made at every
//! reset without looking anything up.
//!
//! Invariant: the first `count` pages of the dirty set are the kept ones, in the order in which they were added (the set
//! keeps its order when others are removed).
//!
//! UNSAFETY: sources are pieces of the image's sealed mapping, which the address space keeps alive; targets are ranges of the
//! reservation, checked when the plan is made; the copies recover from faults.

use rustix::io::Errno;

use super::{AddressSpace, Backing, MemoryImage, Protection, access};
use crate::limits::PAGE;

/// Which written pages stay mapped.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "a borrowed function has nothing to show")]
pub enum Keep<'a> {
    /// None: all memory that was written is given back.
    Nothing,
    /// Those for which this answers true, page numbers given. The answer for a page that is kept must not change.
    These(&'a dyn Fn(u64) -> bool),
}

/// One copy: bytes to `to`, from the snapshot or zeros.
#[derive(Debug, Clone, Copy)]
struct Copy {
    to: *mut u8,
    from: Option<*const u8>,
    length: usize,
}

/// The pages that stay mapped.
#[derive(Debug, Default)]
pub(super) struct KeptPages {
    count: usize,
    copies: Vec<Copy>,
}

// SAFETY: the pointers are into the reservation and the image of the address space that holds this value.
unsafe impl Send for KeptPages {}

impl KeptPages {
    /// The dirty set was changed by others: what is kept has to be found anew.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

impl AddressSpace {
    /// Put every written page back: those to keep are copied and stay mapped and in the set, the others are dropped.
    /// Returns how many were copied and how many dropped.
    ///
    /// # Errors
    ///
    /// EFAULT where a page could not be restored: the fork has to be thrown away.
    pub fn restore_pages(&mut self, keep: Keep<'_>) -> Result<(usize, usize), Errno> {
        let Some(image) = self.image.clone() else { return Ok((0, 0)) };
        if matches!(keep, Keep::Nothing) {
            self.kept.forget();
        }
        let (mut kept, mut dropped) = (Vec::new(), Vec::new());
        for &page in self.memory().dirty().pages().get(self.kept.count..).unwrap_or_default() {
            let page = u64::from(page);
            let wanted = matches!(keep, Keep::These(these) if these(page));
            if wanted && self.restorable(&image, page * PAGE) { kept.push(page) } else { dropped.push(page) }
        }
        self.drop_written(&mut dropped)?;
        if !kept.is_empty() {
            self.plan(&image)?;
        }
        for copy in &self.kept.copies {
            let done = match copy.from {
                // SAFETY: see the module's header.
                Some(from) => unsafe { access::copy(copy.to, from, copy.length) },
                // SAFETY: see the module's header.
                None => unsafe { access::zero(copy.to, copy.length) },
            };
            if done != copy.length {
                return Err(Errno::FAULT);
            }
        }
        Ok((self.kept.count, dropped.len()))
    }

    fn drop_written(&self, dropped: &mut [u64]) -> Result<(), Errno> {
        if dropped.is_empty() {
            return Ok(());
        }
        dropped.sort_unstable();
        for range in dropped.chunk_by(|a, b| a + 1 == *b) {
            let (first, last) = (range[0], range[range.len() - 1]);
            self.drop_pages(first * PAGE, (last + 1) * PAGE)?;
        }
        self.memory().dirty_mut().retain(|page| dropped.binary_search(&page).is_err());
        Ok(())
    }

    /// Whether a page can be copied back: its pristine content is known here (a page of a clean file mapping comes back from
    /// the file instead), and the host may write to it (MADV_DONTNEED writes zeros to read-only pages too).
    fn restorable(&self, image: &MemoryImage, address: u64) -> bool {
        self.vmas.find(address).is_some_and(|vma| {
            vma.protection.contains(Protection::WRITE)
                && vma.is_private()
                && (matches!(vma.backing, Backing::Anonymous) || image.holds(address))
        })
    }

    /// Plan the copies for all pages in the dirty set: after the drop they are the kept ones.
    fn plan(&mut self, image: &MemoryImage) -> Result<(), Errno> {
        let mut pages = self.memory().dirty().pages().to_vec();
        self.kept.count = pages.len();
        pages.sort_unstable();
        self.kept.copies.clear();
        for page in pages {
            let address = u64::from(page) * PAGE;
            let to = self.memory().host_address(address, PAGE)?;
            let from = image.piece(address).map(|(pointer, _)| pointer);
            let length = PAGE as usize;
            if let Some(last) = self.kept.copies.last_mut() {
                let continues = match (last.from, from) {
                    (Some(last_from), Some(from)) => last_from.wrapping_add(last.length) == from,
                    (None, None) => true,
                    _ => false,
                };
                if continues && last.to.wrapping_add(last.length) == to {
                    last.length += length;
                    continue;
                }
            }
            self.kept.copies.push(Copy { to, from, length });
        }
        Ok(())
    }
}
