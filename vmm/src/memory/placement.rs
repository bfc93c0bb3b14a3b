//! Where a mapping without a fixed address goes: packed, lowest address first, kinds apart in 2 MiB blocks.
//!
//! Page-table entries cover 2 MiB, and an entry is executable as a whole; so executable mappings (and the files from which
//! a loader makes them) share blocks only with their like, and large reservations, which often become executable later,
//! have blocks of their own. Very large reservations (V8's cages) come from the top, to keep everything else close to
//! the program's text: LuaJIT and V8 want executable memory within 2 GiB of it.

use super::{Backing, Protection, VmaTree};
use crate::limits::BLOCK;

/// Who a block belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Plain data.
    Data,
    /// Files and executable memory.
    Code,
    /// A large reservation, alone in its blocks.
    Reserved,
}

/// A reservation of this size or more comes from the top.
const HUGE: u64 = 1 << 30;

/// The kind of each block that holds a mapping; of blocks that hold none the value means nothing.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    kinds: Vec<Kind>,
}

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) length: u64,
    pub(super) kind: Kind,
    /// The lowest address it may have.
    pub(super) low: u64,
    /// It must end at or below this.
    pub(super) high: u64,
}

impl Kind {
    /// The kind of a mapping.
    pub(super) fn of(length: u64, protection: Protection, backing: &Backing) -> Self {
        match backing {
            _ if protection.contains(Protection::EXEC) => Self::Code,
            Backing::File { .. } => Self::Code,
            Backing::Anonymous if protection.is_empty() && length >= BLOCK => Self::Reserved,
            Backing::Anonymous => Self::Data,
        }
    }
}

impl Blocks {
    /// For an address space of `bytes` bytes.
    pub(super) fn new(bytes: u64) -> Self {
        Self { kinds: vec![Kind::Data; usize::try_from(bytes.div_ceil(BLOCK)).unwrap_or(0)] }
    }

    fn kind(&self, address: u64) -> Kind {
        usize::try_from(address / BLOCK).ok().and_then(|block| self.kinds.get(block).copied()).unwrap_or(Kind::Data)
    }

    /// Record a new mapping: its first and last block keep their kind where they hold something else too.
    pub(super) fn record(&mut self, vmas: &VmaTree, start: u64, end: u64, kind: Kind) {
        for block in start / BLOCK..end.div_ceil(BLOCK) {
            let (first, last) = (block * BLOCK, (block + 1) * BLOCK);
            let alone = vmas.overlapping(first, first.max(start)).is_empty() && vmas.overlapping(last.min(end), last).is_empty();
            if alone && let Some(slot) = usize::try_from(block).ok().and_then(|block| self.kinds.get_mut(block)) {
                *slot = kind;
            }
        }
    }

    /// Record a mapping of a snapshot: code wins where kinds meet in one block.
    pub(super) fn adopt(&mut self, start: u64, end: u64, kind: Kind) {
        for block in start / BLOCK..end.div_ceil(BLOCK) {
            if let Some(slot) = usize::try_from(block).ok().and_then(|block| self.kinds.get_mut(block))
                && *slot != Kind::Code
            {
                *slot = kind;
            }
        }
    }

    /// The part of a gap that a mapping of this kind may use: not the rest of a neighbour's block of another kind.
    fn usable(&self, (start, end): (u64, u64), wanted: &Wanted) -> (u64, u64) {
        let alone = wanted.kind == Kind::Reserved;
        let start = if start % BLOCK != 0 && (alone || self.kind(start) != wanted.kind) { start.next_multiple_of(BLOCK) } else { start };
        let end = if end % BLOCK != 0 && (alone || self.kind(end) != wanted.kind) { end - end % BLOCK } else { end };
        (start, end)
    }

    /// Find room for a mapping.
    pub(super) fn find(&self, vmas: &VmaTree, forbidden: (u64, u64), wanted: &Wanted) -> Option<u64> {
        let fits = |gap: (u64, u64)| {
            let (start, end) = self.usable(gap, wanted);
            (start.checked_add(wanted.length)? <= end).then_some((start, end))
        };
        let pieces = vmas.gaps(wanted.low, wanted.high).flat_map(|gap| without(gap, forbidden));
        if wanted.kind == Kind::Reserved && wanted.length >= HUGE {
            let (_, end) = pieces.filter_map(fits).last()?;
            return Some((end - wanted.length) / BLOCK * BLOCK)
                .filter(|&start| start >= wanted.low && vmas.overlapping(start, start + wanted.length).is_empty());
        }
        pieces.filter_map(fits).next().map(|(start, _)| start)
    }
}

/// What is left of a range without another one: at most two pieces.
fn without((start, end): (u64, u64), (low, high): (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let pieces = if low >= high { [(start, end), (0, 0)] } else { [(start, end.min(low)), (start.max(high), end)] };
    pieces.into_iter().filter(|(start, end)| start < end)
}
