//! The connections of a worker: a fixed number of places, each with a lock of its own, so that threads do not wait for one another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::connection::Connection;
use super::lock;

/// The places. A connection keeps its place from its accept to its close; while a thread works for it, the place is empty.
#[derive(Debug)]
pub(super) struct Table {
    places: Vec<Mutex<Option<Box<Connection>>>>,
    free: Arc<Free>,
}

#[derive(Debug)]
struct Free {
    indexes: Mutex<Vec<u32>>,
    taken: AtomicUsize,
    /// What the connections in their places hold, bytes.
    held: AtomicUsize,
    /// No place beyond has ever been taken.
    touched: AtomicUsize,
}

/// The right to a place, which ends with the connection that has it.
#[derive(Debug)]
pub(super) struct Slot {
    index: u32,
    /// What was last said to be held.
    held: usize,
    free: Arc<Free>,
}

impl Table {
    pub(super) fn new(size: u32) -> Self {
        // The lowest are taken first: what looks at all places looks at few.
        let free = Free {
            indexes: Mutex::new((0..size).rev().collect()),
            taken: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            touched: AtomicUsize::new(0),
        };
        Self { places: (0..size).map(|_| Mutex::default()).collect(), free: Arc::new(free) }
    }

    /// A place, unless all are taken.
    pub(super) fn claim(&self) -> Option<Slot> {
        let index = lock(&self.free.indexes).pop()?;
        self.free.taken.fetch_add(1, Ordering::AcqRel);
        self.free.touched.fetch_max(index as usize + 1, Ordering::AcqRel);
        Some(Slot { index, held: 0, free: self.free.clone() })
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        self.free.taken.load(Ordering::Acquire)
    }

    /// Bytes of requests and responses that wait in connections, as these have said when they were put into their places.
    pub(super) fn held(&self) -> usize {
        self.free.held.load(Ordering::Relaxed)
    }

    /// A place, locked.
    pub(super) fn place(&self, index: usize) -> Option<MutexGuard<'_, Option<Box<Connection>>>> {
        self.places.get(index).map(lock)
    }

    /// The indexes of all places that may hold a connection.
    pub(super) fn indexes(&self) -> std::ops::Range<usize> {
        0..self.free.touched.load(Ordering::Acquire)
    }
}

impl Slot {
    pub(super) const fn index(&self) -> usize {
        self.index as usize
    }

    /// Say how many bytes the connection holds now.
    pub(super) fn hold(&mut self, bytes: usize) {
        // One addition, which wraps where the number falls: nobody sees a sum in between.
        self.free.held.fetch_add(bytes.wrapping_sub(self.held), Ordering::Relaxed);
        self.held = bytes;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.hold(0);
        lock(&self.free.indexes).push(self.index);
        self.free.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let table = Table::new(2);
        let (first, second) = (table.claim().unwrap(), table.claim().unwrap());
        assert_eq!((first.index(), second.index(), table.open()), (0, 1, 2));
        assert!(table.claim().is_none());
        let mut second = second;
        for (bytes, sum) in [(10, 10), (3, 3), (0, 0), (7, 7)] {
            second.hold(bytes);
            assert_eq!(table.held(), sum);
        }
        drop(first);
        assert_eq!(table.claim().map(|slot| slot.index()), Some(0));
        assert_eq!(table.open(), 1);
        assert_eq!(table.indexes(), 0..2);
        drop(second);
        assert_eq!(table.held(), 0);
    }
}
