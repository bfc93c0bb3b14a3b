//! Which thread runs next, and what the kernel as a whole waits for.

use super::file::View;
use super::gate::{Role, StorageState};
use super::thread::{State, Tid};
use super::{Attempt, Kernel, MonotonicNs, WaitFor};

impl Kernel {
    /// Why a sleeping thread's handler should look again now; `None` to let it sleep on.
    #[must_use]
    pub fn wait_over(&self, tid: Tid, now: MonotonicNs) -> Option<Attempt> {
        let thread = self.threads.peek(tid)?;
        let State::Blocked(blocked) = &thread.state else { return None };
        let happened = match &blocked.wait.on {
            WaitFor::Nothing => false,
            WaitFor::Futex => thread.futex_woken,
            WaitFor::Call => matches!(self.role, Role::Storage(StorageState { incoming: Some(_), .. })),
            WaitFor::Signals(mask) => self.pending_signals(tid) & mask != 0,
            WaitFor::Files(files) => {
                let view = View { now, pending_signals: self.pending_signals(tid) };
                self.files.any_ready(files, &view)
            }
        };
        if happened {
            Some(Attempt::Woken)
        } else if self.signal_pending(tid) {
            Some(Attempt::Interrupted)
        } else if blocked.wait.deadline.is_some_and(|deadline| deadline <= now) {
            Some(Attempt::TimedOut)
        } else {
            None
        }
    }

    /// Mark every sleeping thread whose wait may be over; returns whether any thread can run.
    pub fn wake_sleepers(&mut self, now: MonotonicNs) -> bool {
        let sleepers: Vec<Tid> = self
            .threads
            .iter()
            .filter(|thread| matches!(&thread.state, State::Blocked(blocked) if !blocked.woken))
            .map(|thread| thread.tid)
            .collect();
        for tid in sleepers {
            if self.wait_over(tid, now).is_some()
                && let State::Blocked(blocked) = &mut self.threads.get_mut(tid).state
            {
                blocked.woken = true;
            }
        }
        self.threads.next_runnable(self.threads.current).is_some()
    }

    /// The next moment at which something happens by itself: a sleeper's deadline or a timer.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonotonicNs> {
        let sleepers = self.threads.iter().filter_map(|thread| match &thread.state {
            // One that was woken only waits for its turn.
            State::Blocked(blocked) if !blocked.woken => blocked.wait.deadline,
            _ => None,
        });
        sleepers.chain(self.next_timer()).min()
    }

    /// Whether another thread than this one can run.
    #[must_use]
    pub fn others_can_run(&self, tid: Tid) -> bool {
        self.threads.next_runnable(tid).is_some_and(|next| next != tid)
    }
}
