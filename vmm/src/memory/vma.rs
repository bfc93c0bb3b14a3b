//! The list of mappings of a guest's address space, as data: what `/proc/self/maps` shows. No host calls here.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitflags::bitflags;

use crate::limits::PAGE;

bitflags! {
    /// What the guest may do with a mapping.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct Protection: u8 {
        /// PROT_READ.
        const READ = 1;
        /// PROT_WRITE.
        const WRITE = 2;
        /// PROT_EXEC.
        const EXEC = 4;
    }
}

/// Where a mapping's content comes from.
#[derive(Debug, Clone)]
pub enum Backing {
    /// Zero pages, private to the guest. Shared anonymous mappings are the same thing while there is one process.
    Anonymous,
    /// A host file.
    File {
        /// The open file; kept alive by the mapping.
        file: Arc<std::os::fd::OwnedFd>,
        /// File offset of the mapping's first byte.
        offset: u64,
        /// MAP_SHARED: writes reach the file.
        shared: bool,
        /// The path the guest knows it by, for `/proc/self/maps` and reports.
        name: Arc<str>,
    },
}

/// One mapping: `[start, end)`.
#[derive(Debug, Clone)]
pub struct Vma {
    /// First address, page aligned.
    pub start: u64,
    /// Address behind the last byte, page aligned.
    pub end: u64,
    /// What the guest may do.
    pub protection: Protection,
    /// Where the content comes from.
    pub backing: Backing,
    /// A name for maps and reports, such as `[stack]`; empty for none.
    pub label: &'static str,
    /// MADV_WIPEONFORK: zero in every request VM.
    pub wipe_on_fork: bool,
}

impl Vma {
    /// Length in bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.end - self.start
    }

    /// Whether writes stay private and may cost memory.
    #[must_use]
    pub const fn is_private(&self) -> bool {
        !matches!(self.backing, Backing::File { shared: true, .. })
    }

    /// Whether it counts towards the limit on writable private memory.
    #[must_use]
    pub fn commits(&self) -> bool {
        self.is_private() && self.protection.contains(Protection::WRITE)
    }

    fn slice(&self, start: u64, end: u64) -> Self {
        let mut piece = Self { start, end, ..self.clone() };
        if let Backing::File { offset, .. } = &mut piece.backing {
            *offset += start - self.start;
        }
        piece
    }

    fn continues(&self, next: &Self) -> bool {
        let same_backing = match (&self.backing, &next.backing) {
            (Backing::Anonymous, Backing::Anonymous) => true,
            (Backing::File { file: a, offset: x, shared: p, .. }, Backing::File { file: b, offset: y, shared: q, .. }) => {
                Arc::ptr_eq(a, b) && p == q && x + self.length() == *y
            }
            _ => false,
        };
        self.end == next.start
            && self.protection == next.protection
            && self.label == next.label
            && self.wipe_on_fork == next.wipe_on_fork
            && same_backing
    }
}

/// Mappings by start address; they never overlap, and neighbours that could be one are one.
#[derive(Debug, Clone, Default)]
pub struct VmaTree {
    by_start: BTreeMap<u64, Vma>,
    /// Sum over the mappings that commit, kept in step by `put` and `take`.
    committed: u64,
}

impl VmaTree {
    /// The mapping that holds `address`.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<&Vma> {
        self.by_start.range(..=address).next_back().map(|(_, vma)| vma).filter(|vma| address < vma.end)
    }

    /// All mappings in address order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Vma> {
        self.by_start.values()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_start.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    /// The parts of mappings that lie in `[start, end)`, cut to it, in order.
    #[must_use]
    pub fn overlapping(&self, start: u64, end: u64) -> Vec<Vma> {
        let first = self.find(start).map_or(start, |vma| vma.start);
        self.by_start
            .range(first..end.max(first))
            .map(|(_, vma)| vma.slice(vma.start.max(start), vma.end.min(end)))
            .filter(|vma| vma.start < vma.end)
            .collect()
    }

    /// Whether every byte of `[start, end)` is mapped.
    #[must_use]
    pub fn covers(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        while at < end {
            match self.find(at) {
                Some(vma) => at = vma.end,
                None => return false,
            }
        }
        true
    }

    fn put(&mut self, vma: Vma) {
        if vma.commits() {
            self.committed += vma.length();
        }
        self.by_start.insert(vma.start, vma);
    }

    fn take(&mut self, start: u64) -> Option<Vma> {
        let vma = self.by_start.remove(&start)?;
        if vma.commits() {
            self.committed -= vma.length();
        }
        Some(vma)
    }

    /// Remove `[start, end)` and return the removed parts.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<Vma> {
        let removed = self.overlapping(start, end);
        for piece in &removed {
            let Some(whole) = self.find(piece.start).map(|vma| vma.start).and_then(|start| self.take(start)) else { continue };
            if whole.start < piece.start {
                self.put(whole.slice(whole.start, piece.start));
            }
            if piece.end < whole.end {
                self.put(whole.slice(piece.end, whole.end));
            }
        }
        removed
    }

    /// Put a mapping in, replacing whatever was in its range, and join it with its neighbours where they continue each other.
    pub fn insert(&mut self, vma: Vma) {
        if vma.start >= vma.end {
            return;
        }
        self.remove(vma.start, vma.end);
        let mut vma = vma;
        if let Some((&start, before)) = self.by_start.range(..vma.start).next_back()
            && before.continues(&vma)
        {
            let before = before.clone();
            self.take(start);
            vma = Vma { end: vma.end, ..before };
        }
        if let Some(after) = self.by_start.get(&vma.end)
            && vma.continues(after)
        {
            let end = after.end;
            self.take(vma.end);
            vma.end = end;
        }
        self.put(vma);
    }

    /// Free ranges inside `[low, high)`, in address order.
    pub fn gaps(&self, low: u64, high: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut at = self.find(low).map_or(low, |vma| vma.end);
        let mut mappings = self.by_start.range(low..high);
        let mut finished = false;
        std::iter::from_fn(move || {
            while !finished {
                let (gap, next) = match mappings.next() {
                    Some((&start, vma)) => ((at, start.min(high)), vma.end),
                    None => {
                        finished = true;
                        ((at, high), high)
                    }
                };
                at = at.max(next);
                if gap.0 < gap.1 {
                    return Some(gap);
                }
            }
            None
        })
    }

    /// Total bytes of private mappings that are writable: what the guest may come to use.
    #[must_use]
    pub const fn writable_private_bytes(&self) -> u64 {
        self.committed
    }
}

/// Round up to a whole page; `None` past the end of the number range.
#[must_use]
pub(super) fn page_up(length: u64) -> Option<u64> {
    length.checked_next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anonymous(start: u64, end: u64, protection: Protection) -> Vma {
        Vma { start, end, protection, backing: Backing::Anonymous, label: "", wipe_on_fork: false }
    }

    #[test]
    fn neighbours_join_and_split() {
        let mut tree = VmaTree::default();
        tree.insert(anonymous(0x1000, 0x2000, Protection::READ));
        tree.insert(anonymous(0x3000, 0x4000, Protection::READ));
        tree.insert(anonymous(0x2000, 0x3000, Protection::READ));
        assert_eq!(tree.len(), 1);
        tree.insert(anonymous(0x2000, 0x3000, Protection::WRITE));
        assert_eq!(tree.len(), 3);
        assert!(tree.covers(0x1000, 0x4000));
        tree.remove(0x1800, 0x3800);
        assert!(!tree.covers(0x1000, 0x4000));
        assert_eq!(tree.gaps(0, 0x5000).collect::<Vec<_>>(), vec![(0, 0x1000), (0x1800, 0x3800), (0x4000, 0x5000)]);
    }
}
