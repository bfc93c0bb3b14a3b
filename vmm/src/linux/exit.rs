//! The end of a thread: robust futexes, the word that joiners wait for, and the process with its last thread.

use linux_raw_sys::general as sys;

use super::Kernel;
use super::futex::{self, TID_MASK};
use super::thread::Tid;
use crate::memory::AddressSpace;

/// Entries of a robust list that are looked at (ROBUST_LIST_LIMIT): a list may be a circle that never comes back to its head.
const ROBUST_LIST_MAX: usize = 2048;
/// Lowest bit of a list pointer: the futex is a priority-inheriting one.
const PRIORITY_BIT: u64 = 1;

impl Kernel {
    /// End a thread. The last one ends the process, with the main thread's status if that has ended before.
    pub fn exit_thread(&mut self, space: &mut AddressSpace, tid: Tid, status: i32) {
        self.release_robust_list(space, tid);
        self.release_owned_locks(space, tid);
        self.futexes.remove(tid);
        let Some(thread) = self.threads.remove(tid) else { return };
        self.threads.ended_cpu_time_ns = self.threads.ended_cpu_time_ns.saturating_add(thread.cpu_time_ns);
        // A write that fails is the program's loss, as in Linux.
        if thread.clear_tid != 0 && !self.threads.is_empty() && space.memory().write(thread.clear_tid, &0_u32).is_ok() {
            self.futex_wake(space, thread.clear_tid, 1);
        }
        if tid == self.process.pid {
            self.threads.main_status = Some(status);
        }
        if self.threads.is_empty() {
            self.process.exit_status = Some(self.threads.main_status.unwrap_or(status));
        } else {
            // What it was told about and has not taken is somebody else's now.
            self.offer(!thread.signals.blocked);
        }
    }

    /// `set_robust_list(2)`: mark the mutexes that the thread still holds, and wake one waiter of each.
    fn release_robust_list(&mut self, space: &AddressSpace, tid: Tid) {
        let head = self.threads.peek(tid).map_or(0, |thread| thread.robust_list);
        if head == 0 {
            return;
        }
        let Ok([first, offset, pending]) = space.memory().read::<[u64; 3]>(head) else { return };
        let (pending, pending_priority) = (pending & !PRIORITY_BIT, pending & PRIORITY_BIT != 0);
        let mut entry = first;
        for _ in 0..ROBUST_LIST_MAX {
            let (address, priority) = (entry & !PRIORITY_BIT, entry & PRIORITY_BIT != 0);
            if address == head {
                break;
            }
            let next = space.memory().read::<u64>(address);
            if address != pending && !self.release_robust(space, tid, address.wrapping_add(offset), priority, false) {
                return;
            }
            let Ok(next) = next else { return };
            entry = next;
        }
        if pending != 0 {
            self.release_robust(space, tid, pending.wrapping_add(offset), pending_priority, true);
        }
    }

    /// One mutex; false where the list cannot be trusted any more.
    fn release_robust(&mut self, space: &AddressSpace, tid: Tid, address: u64, priority: bool, pending: bool) -> bool {
        if !address.is_multiple_of(4) {
            return false;
        }
        let Ok(word) = futex::load(space.memory(), address) else { return false };
        // The thread died between giving the mutex free and waking a waiter.
        if pending && !priority && word == 0 {
            self.futex_wake(space, address, 1);
            return true;
        }
        if word & TID_MASK != tid.cast_unsigned() {
            return true;
        }
        let died = word & sys::FUTEX_WAITERS | sys::FUTEX_OWNER_DIED;
        if space.memory().write(address, &died).is_err() {
            return false;
        }
        if !priority && word & sys::FUTEX_WAITERS != 0 {
            self.futex_wake(space, address, 1);
        }
        true
    }
}
