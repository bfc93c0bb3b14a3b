//! Whose turn it is with the storage program's VM: first come, first served, with a limit to the waiting. Nobody is woken where
//! nobody waits.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use crate::linux::clock::host_monotonic;

/// How long to wait awake for one who is about to let go, nanoseconds: some times what a kicked VM needs for it, and less than
/// what sleeping and being woken costs on a busy machine.
const SPIN_NS: u64 = 100_000;

#[derive(Debug)]
struct Waiter {
    thread: Thread,
    granted: AtomicBool,
}

#[derive(Debug, Default)]
struct Line {
    taken: bool,
    waiting: VecDeque<Arc<Waiter>>,
}

/// The right to use one thing, for one thread at a time.
#[derive(Debug, Default)]
pub(super) struct Turns {
    line: Mutex<Line>,
}

/// It is this thread's turn, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
}

impl Turns {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait for a turn until a moment of the host's CLOCK_MONOTONIC; `None` where that came first. `urge` is called once if
    /// there is somebody to wait for; it answers whether that one is about to let go, so that it is better not to sleep.
    pub(super) fn take(&self, until: u64, urge: impl FnOnce() -> bool) -> Option<Turn<'_>> {
        let waiter = {
            let mut line = self.line();
            if !line.taken {
                line.taken = true;
                return Some(Turn { turns: self });
            }
            let waiter = Arc::new(Waiter { thread: std::thread::current(), granted: AtomicBool::new(false) });
            line.waiting.push_back(Arc::clone(&waiter));
            waiter
        };
        if urge() {
            let patience = host_monotonic().saturating_add(SPIN_NS).min(until);
            while !waiter.granted.load(Ordering::Acquire) && host_monotonic() < patience {
                std::hint::spin_loop();
            }
        }
        while !waiter.granted.load(Ordering::Acquire) {
            let left = until.saturating_sub(host_monotonic());
            if left == 0 {
                let mut line = self.line();
                // It may have been granted while we took the lock.
                if !waiter.granted.load(Ordering::Acquire) {
                    line.waiting.retain(|other| !Arc::ptr_eq(other, &waiter));
                    return None;
                }
                break;
            }
            std::thread::park_timeout(Duration::from_nanos(left));
        }
        Some(Turn { turns: self })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut line = self.turns.line();
        match line.waiting.pop_front() {
            Some(next) => {
                next.granted.store(true, Ordering::Release);
                drop(line);
                next.thread.unpark();
            }
            None => line.taken = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_in_the_order_of_asking_and_a_latecomer_gives_up() {
        let (turns, order) = (Turns::default(), Mutex::new(Vec::new()));
        let urged = AtomicBool::new(false);
        let first = turns.take(u64::MAX, || false).unwrap();
        assert!(
            turns
                .take(host_monotonic() + 1_000_000, || {
                    urged.store(true, Ordering::Release);
                    true
                })
                .is_none()
        );
        assert!(urged.load(Ordering::Acquire));
        std::thread::scope(|scope| {
            for number in 0..4 {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let turn = turns.take(u64::MAX, || false).unwrap();
                    order.lock().unwrap().push(number);
                    drop(turn);
                });
                while turns.line().waiting.len() <= number {
                    std::thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
        assert!(!turns.line().taken);
    }
}
