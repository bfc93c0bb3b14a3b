//! The pages that were written since they were last pristine: a safe superset, from the dirty ring and from the host's own writes.

use crate::limits::PAGE;

/// A set of guest pages with cheap insertion and iteration.
///
/// The bitmap covers the whole address space but is allocated zeroed, so only its touched parts cost memory.
#[derive(Debug, Clone)]
pub struct DirtySet {
    bits: Vec<u64>,
    pages: Vec<u32>,
}

impl DirtySet {
    /// An empty set for an address space of `bytes` bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let words = usize::try_from(bytes.div_ceil(PAGE).div_ceil(64)).unwrap_or(0);
        Self { bits: vec![0; words], pages: Vec::new() }
    }

    /// Add the page with this number (address divided by the page size); numbers outside the space are ignored.
    pub fn insert(&mut self, page: u64) {
        let (word, bit) = (usize::try_from(page / 64).unwrap_or(usize::MAX), page % 64);
        if let Some(slot) = self.bits.get_mut(word)
            && *slot & (1 << bit) == 0
            && let Ok(page) = u32::try_from(page)
        {
            *slot |= 1 << bit;
            self.pages.push(page);
        }
    }

    /// Add every page that `[address, address + length)` touches.
    pub fn insert_range(&mut self, address: u64, length: u64) {
        if length == 0 {
            return;
        }
        for page in address / PAGE..=address.saturating_add(length - 1) / PAGE {
            self.insert(page);
        }
    }

    /// Whether the page is in the set.
    #[must_use]
    pub fn contains(&self, page: u64) -> bool {
        usize::try_from(page / 64).ok().and_then(|word| self.bits.get(word)).is_some_and(|word| word & (1 << (page % 64)) != 0)
    }

    /// The pages, in the order in which they were added.
    #[must_use]
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Keep only the pages for which `keep` answers true.
    pub fn retain(&mut self, mut keep: impl FnMut(u64) -> bool) {
        let bits = &mut self.bits;
        self.pages.retain(|&page| {
            let kept = keep(u64::from(page));
            if !kept && let Some(word) = bits.get_mut(page as usize / 64) {
                *word &= !(1 << (page % 64));
            }
            kept
        });
    }

    /// Forget all pages.
    pub fn clear(&mut self) {
        self.retain(|_| false);
    }
}
