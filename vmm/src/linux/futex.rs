//! Futexes (`futex(2)`): the queues of threads that wait on words of guest memory, and every operation on them but the
//! priority-inheriting ones, which are in [`super::futex_pi`].
//!
//! * The guest has one vCPU: while a handler looks at a word and queues the thread, no other thread runs, so there is no race
//!   between the check and the sleep.
//! * A thread sleeps until somebody wakes it, its time is over or a signal comes: never for any other reason, and a wake-up is
//!   never lost or invented.
//! * The order of waiters is that in which they came.

use linux_raw_sys::general as sys;
use rustix::fs::fstat;

use super::thread::{Blocked, State, Tid};
use super::{Errno, Kernel};
use crate::memory::{AddressSpace, Backing, GuestMemory, Protection};

/// What identifies a futex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FutexKey {
    /// FUTEX_PRIVATE_FLAG: the address in this process.
    Private(u64),
    /// A shared futex in memory that only this process has: the address too, but apart from the private ones, as in Linux.
    Local(u64),
    /// A shared futex in a shared mapping of a file: device, inode and offset.
    File(u64, u64, u64),
}

/// Why a thread is in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaiterKind {
    /// FUTEX_WAIT and FUTEX_WAIT_BITSET.
    Plain,
    /// `futex_waitv`: the index of this futex in the thread's array.
    Vector(u32),
    /// FUTEX_LOCK_PI, or a requeued FUTEX_WAIT_REQUEUE_PI.
    Lock,
    /// FUTEX_WAIT_REQUEUE_PI before it is requeued: the key of the lock it wants.
    Requeue(FutexKey),
}

/// A thread in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiter {
    /// The thread.
    pub tid: Tid,
    /// The futex.
    pub key: FutexKey,
    /// Where its word is: a robust owner's death is written there.
    pub address: u64,
    /// Which wakes it hears.
    pub bitset: u32,
    /// Why it waits.
    pub kind: WaiterKind,
}

/// All waiters, oldest first, and who owns the priority-inheriting locks that somebody waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FutexTable {
    /// In the order in which they came. Bounded by threads times `FUTEX_WAITV_MAX`.
    pub(super) waiters: Vec<Waiter>,
}

/// Every bit: what FUTEX_WAIT waits for and FUTEX_WAKE wakes.
pub const BITSET_ANY: u32 = u32::MAX;
/// Futexes of one `futex_waitv`; EINVAL.
pub const FUTEX_WAITV_MAX: usize = 128;
/// Bits of a word that hold a thread id.
pub const TID_MASK: u32 = sys::FUTEX_TID_MASK;

impl FutexTable {
    /// Put a thread at the end of a queue.
    pub fn enqueue(&mut self, waiter: Waiter) {
        self.waiters.push(waiter);
    }

    /// Take a thread out of every queue: its wait is over.
    pub fn remove(&mut self, tid: Tid) {
        self.waiters.retain(|waiter| waiter.tid != tid);
    }

    /// Whether a thread is in a queue.
    #[must_use]
    pub fn waits(&self, tid: Tid) -> bool {
        self.waiters.iter().any(|waiter| waiter.tid == tid)
    }

    /// Whether a thread is in the queue of a lock.
    #[must_use]
    pub fn wants_lock(&self, tid: Tid) -> bool {
        self.waiters.iter().any(|waiter| waiter.tid == tid && waiter.kind == WaiterKind::Lock)
    }

    /// What is waited on, in the order in which waiters came.
    pub fn keys(&self) -> impl Iterator<Item = FutexKey> + '_ {
        self.waiters.iter().map(|waiter| waiter.key)
    }

    /// How many threads are queued.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }
}

/// The key of a futex word that a guest named.
///
/// # Errors
///
/// EINVAL for an address that is not a multiple of 4, EFAULT for memory that cannot be read (or, for `write`, written).
pub fn key(space: &AddressSpace, address: u64, private: bool, write: bool) -> Result<FutexKey, Errno> {
    if !address.is_multiple_of(4) {
        return Err(Errno::INVAL);
    }
    if address.checked_add(4).is_none_or(|end| end > space.memory().size()) {
        return Err(Errno::FAULT);
    }
    if private {
        return Ok(FutexKey::Private(address));
    }
    let vma = space.vmas().find(address).ok_or(Errno::FAULT)?;
    let needed = if write { Protection::WRITE } else { Protection::READ };
    if !vma.protection.intersects(needed | Protection::WRITE) {
        return Err(Errno::FAULT);
    }
    match &vma.backing {
        Backing::File { file, offset, shared: true, .. } => {
            let stat = fstat(file)?;
            Ok(FutexKey::File(stat.st_dev, stat.st_ino, offset.wrapping_add(address - vma.start)))
        }
        _ => Ok(FutexKey::Local(address)),
    }
}

/// What FUTEX_WAKE_OP does to the second word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeOperation {
    operation: u32,
    comparison: u32,
    operand: u32,
    comparand: u32,
}

impl WakeOperation {
    /// From the encoded argument; the shift of a FUTEX_OP_OPARG_SHIFT operand is taken modulo 32, as Linux does.
    ///
    /// # Errors
    ///
    /// ENOSYS for an operation or a comparison that there is not.
    pub const fn decode(encoded: u32) -> Result<Self, Errno> {
        let operation = encoded >> 28 & 7;
        let comparison = encoded >> 24 & 15;
        let operand = (((encoded >> 12 << 20).cast_signed()) >> 20).cast_unsigned();
        let comparand = (((encoded << 20).cast_signed()) >> 20).cast_unsigned();
        if operation > sys::FUTEX_OP_XOR || comparison > sys::FUTEX_OP_CMP_GE {
            return Err(Errno::NOSYS);
        }
        let operand = if encoded >> 31 != 0 { 1 << (operand & 31) } else { operand };
        Ok(Self { operation, comparison, operand, comparand })
    }

    /// The new value of the word.
    #[must_use]
    pub const fn apply(self, old: u32) -> u32 {
        match self.operation {
            sys::FUTEX_OP_SET => self.operand,
            sys::FUTEX_OP_ADD => old.wrapping_add(self.operand),
            sys::FUTEX_OP_OR => old | self.operand,
            sys::FUTEX_OP_ANDN => old & !self.operand,
            _ => old ^ self.operand,
        }
    }

    /// Whether the old value makes the second wake happen; words are compared as signed numbers.
    #[must_use]
    pub const fn holds(self, old: u32) -> bool {
        let (old, comparand) = (old.cast_signed(), self.comparand.cast_signed());
        match self.comparison {
            sys::FUTEX_OP_CMP_EQ => old == comparand,
            sys::FUTEX_OP_CMP_NE => old != comparand,
            sys::FUTEX_OP_CMP_LT => old < comparand,
            sys::FUTEX_OP_CMP_LE => old <= comparand,
            sys::FUTEX_OP_CMP_GT => old > comparand,
            _ => old >= comparand,
        }
    }
}

impl Kernel {
    /// Wake at most `most` threads that wait on `key` for any bit of `bitset`; returns how many were woken.
    ///
    /// # Errors
    ///
    /// EINVAL where a waiter is one of a priority-inheriting lock, which only its own operations may wake.
    pub fn futex_wake_key(&mut self, key: FutexKey, most: usize, bitset: u32) -> Result<usize, Errno> {
        let mut woken = 0;
        while woken < most {
            let found = self.futexes.waiters.iter().find(|waiter| waiter.key == key && waiter.bitset & bitset != 0).copied();
            let Some(waiter) = found else { break };
            match waiter.kind {
                WaiterKind::Plain => self.futex_release(waiter.tid, 0),
                WaiterKind::Vector(index) => self.futex_release(waiter.tid, index),
                WaiterKind::Lock | WaiterKind::Requeue(_) => return Err(Errno::INVAL),
            }
            woken += 1;
        }
        Ok(woken)
    }

    /// End a thread's wait with an answer.
    pub(super) fn futex_release(&mut self, tid: Tid, answer: u32) {
        self.futexes.remove(tid);
        if let Some(thread) = self.threads.find(tid) {
            thread.futex_woken = true;
            thread.futex_answer = answer;
            if let State::Blocked(Blocked { woken, .. }) = &mut thread.state {
                *woken = true;
            }
        }
    }

    /// FUTEX_WAKE on a shared futex, as the kernel itself does it when a thread ends.
    pub fn futex_wake(&mut self, space: &AddressSpace, address: u64, most: usize) {
        if let Ok(key) = key(space, address, false, false) {
            let _ = self.futex_wake_key(key, most, BITSET_ANY);
        }
    }

    /// Move waiters from one futex to another after waking some: FUTEX_REQUEUE and FUTEX_CMP_REQUEUE. Returns how many were woken and
    /// how many moved.
    ///
    /// # Errors
    ///
    /// EINVAL as for [`Kernel::futex_wake_key`].
    pub fn futex_requeue(&mut self, from: FutexKey, to: (FutexKey, u64), wake: usize, requeue: usize) -> Result<(usize, usize), Errno> {
        if self.futexes.waiters.iter().any(|waiter| waiter.key == from && matches!(waiter.kind, WaiterKind::Lock | WaiterKind::Requeue(_)))
        {
            return Err(Errno::INVAL);
        }
        let woken = self.futex_wake_key(from, wake, BITSET_ANY)?;
        if from == to.0 {
            let rest = self.futexes.waiters.iter().filter(|waiter| waiter.key == from).count();
            return Ok((woken, rest.min(requeue)));
        }
        // Moved waiters come behind those that wait there already.
        let mut moved = Vec::new();
        self.futexes.waiters.retain(|waiter| {
            let moves = waiter.key == from && moved.len() < requeue;
            if moves {
                moved.push(Waiter { key: to.0, address: to.1, ..*waiter });
            }
            !moves
        });
        let count = moved.len();
        self.futexes.waiters.append(&mut moved);
        Ok((woken, count))
    }

    /// A thread's wait is over without a wake, whatever it waited for.
    pub fn cancel_wait(&mut self, tid: Tid) {
        self.futexes.remove(tid);
    }

    /// Whether a thread's futex wait has been ended by a wake; asking takes the wake. The answer is the index for `futex_waitv`.
    pub fn futex_take_wake(&mut self, tid: Tid) -> Option<u32> {
        let thread = self.threads.find(tid)?;
        std::mem::take(&mut thread.futex_woken).then_some(thread.futex_answer)
    }
}

/// Read a futex word.
///
/// # Errors
///
/// EFAULT.
pub fn load(memory: &GuestMemory, address: u64) -> Result<u32, Errno> {
    memory.read::<u32>(address)
}
