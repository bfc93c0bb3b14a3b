//! Priority-inheriting futexes (`futex(2)`, "Priority-inheritance futexes"). All threads have the same priority here, so what is
//! left of the protocol is the ownership: the word holds the owner's thread id, and an unlock hands it to the oldest waiter.

use linux_raw_sys::general as sys;

use super::futex::{self, FutexKey, TID_MASK, Waiter, WaiterKind};
use super::thread::Tid;
use super::{Errno, Kernel};
use crate::memory::{AddressSpace, GuestMemory};

/// What an attempt to lock came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// The thread owns it.
    Acquired,
    /// Somebody else does; the word says that there are waiters.
    Contended,
}

impl Kernel {
    /// Try to take a lock for `tid`; with `announce`, say in the word that somebody waits where it is taken.
    ///
    /// # Errors
    ///
    /// EFAULT; EDEADLK where the thread owns it already; ESRCH where the owner does not exist; EINVAL where the word and the queue
    /// contradict each other.
    pub fn futex_acquire(&mut self, memory: &GuestMemory, address: u64, key: FutexKey, tid: Tid, announce: bool) -> Result<Lock, Errno> {
        let word = futex::load(memory, address)?;
        let owner = word & TID_MASK;
        if owner == tid.cast_unsigned() {
            return Err(Errno::DEADLK);
        }
        let queued = self.lock_waiters(key)?;
        if owner == 0 {
            // With waiters the word of a lock always names an owner, or its owner died and the first waiter got it.
            if queued > 0 {
                return Err(Errno::INVAL);
            }
            let waiters = if announce && word & sys::FUTEX_WAITERS != 0 { sys::FUTEX_WAITERS } else { 0 };
            memory.write(address, &(word & sys::FUTEX_OWNER_DIED | waiters | tid.cast_unsigned()))?;
            return Ok(Lock::Acquired);
        }
        if self.threads.peek(owner.cast_signed()).is_none() {
            return Err(Errno::SRCH);
        }
        if announce {
            memory.write(address, &(word | sys::FUTEX_WAITERS))?;
        }
        Ok(Lock::Contended)
    }

    /// How many threads wait for a lock.
    ///
    /// # Errors
    ///
    /// EINVAL where the word is used as an ordinary futex too.
    fn lock_waiters(&self, key: FutexKey) -> Result<usize, Errno> {
        let waiters = self.futexes.waiters.iter().filter(|waiter| waiter.key == key);
        waiters.map(|waiter| if waiter.kind == WaiterKind::Lock { Ok(1) } else { Err(Errno::INVAL) }).sum()
    }

    /// Give a lock to its oldest waiter, or free it; `died` says that the owner ended without unlocking.
    ///
    /// # Errors
    ///
    /// EFAULT, and EINVAL as for [`Kernel::futex_acquire`].
    pub fn futex_hand_over(&mut self, memory: &GuestMemory, address: u64, key: FutexKey, died: bool) -> Result<(), Errno> {
        let queued = self.lock_waiters(key)?;
        let died = if died { sys::FUTEX_OWNER_DIED } else { 0 };
        let Some(next) = self.futexes.waiters.iter().find(|waiter| waiter.key == key).map(|waiter| waiter.tid) else {
            return memory.write(address, &died);
        };
        let waiters = if queued > 1 { sys::FUTEX_WAITERS } else { 0 };
        memory.write(address, &(next.cast_unsigned() | waiters | died))?;
        self.futex_release(next, 0);
        Ok(())
    }

    /// FUTEX_UNLOCK_PI.
    ///
    /// # Errors
    ///
    /// EPERM where the thread is not the owner, EFAULT, EINVAL.
    pub fn futex_unlock(&mut self, memory: &GuestMemory, address: u64, key: FutexKey, tid: Tid) -> Result<(), Errno> {
        if futex::load(memory, address)? & TID_MASK != tid.cast_unsigned() {
            return Err(Errno::PERM);
        }
        self.futex_hand_over(memory, address, key, false)
    }

    /// FUTEX_CMP_REQUEUE_PI: take the lock for the oldest waiter if it is free, and queue up to `requeue` others for it. Returns how
    /// many threads that were.
    ///
    /// # Errors
    ///
    /// EINVAL where a waiter waits for another lock or none, and as for [`Kernel::futex_acquire`].
    pub fn futex_requeue_lock(
        &mut self,
        memory: &GuestMemory,
        from: FutexKey,
        to: (FutexKey, u64),
        requeue: usize,
    ) -> Result<usize, Errno> {
        let waiters: Vec<Waiter> = self.futexes.waiters.iter().filter(|waiter| waiter.key == from).copied().collect();
        if waiters.iter().any(|waiter| waiter.kind != WaiterKind::Requeue(to.0)) {
            return Err(Errno::INVAL);
        }
        let mut moved = 0;
        let mut limit = requeue.saturating_add(1);
        for waiter in waiters {
            if limit == 0 {
                break;
            }
            limit -= 1;
            let lock = if moved == 0 { self.futex_acquire(memory, to.1, to.0, waiter.tid, true)? } else { Lock::Contended };
            match lock {
                Lock::Acquired => self.futex_release(waiter.tid, 0),
                Lock::Contended => self.requeue_for_lock(memory, &waiter, to)?,
            }
            moved += 1;
        }
        Ok(moved)
    }

    fn requeue_for_lock(&mut self, memory: &GuestMemory, waiter: &Waiter, to: (FutexKey, u64)) -> Result<(), Errno> {
        let word = futex::load(memory, to.1)?;
        memory.write(to.1, &(word | sys::FUTEX_WAITERS))?;
        self.futexes.remove(waiter.tid);
        self.futexes.enqueue(Waiter { key: to.0, address: to.1, kind: WaiterKind::Lock, ..*waiter });
        Ok(())
    }

    /// A thread that owns locks has ended: the first waiter of each becomes the owner and learns that the last one died.
    pub(super) fn release_owned_locks(&mut self, space: &AddressSpace, tid: Tid) {
        let locks: Vec<(FutexKey, u64)> = self
            .futexes
            .waiters
            .iter()
            .filter(|waiter| waiter.kind == WaiterKind::Lock && waiter.tid != tid)
            .map(|waiter| (waiter.key, waiter.address))
            .collect();
        for (key, address) in locks {
            let Ok(word) = futex::load(space.memory(), address) else { continue };
            // A robust lock has lost its owner's id in the walk of the list just before.
            let orphaned = word & TID_MASK == tid.cast_unsigned() || word & TID_MASK == 0 && word & sys::FUTEX_OWNER_DIED != 0;
            if orphaned {
                let _ = self.futex_hand_over(space.memory(), address, key, true);
            }
        }
    }
}
