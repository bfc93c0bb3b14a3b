//! The guest's side of the gate between request VMs and the storage program (`guestlib/kvmserverguest.h`): what a program is
//! to it, as plain data. Who carries a call across is [`crate::storage`].

use super::Kernel;
use super::thread::Tid;
use super::{State, WaitFor};

/// Longest buffer of a call, and size of each request VM's shared memory, bytes.
pub const BUFFER_BYTES: u64 = 16 << 20;

/// A call from a request VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteCall {
    /// Guest address of the buffer; the range has been found readable and writable.
    pub buffer: u64,
    /// Its length, 0 to [`BUFFER_BYTES`].
    pub length: u64,
}

/// The shared memory of a request VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedMemory {
    /// Where it begins; [`BUFFER_BYTES`] long.
    pub start: u64,
    /// How much of it was given out, bytes.
    pub used: u64,
}

impl SharedMemory {
    /// Whether a range lies in it.
    #[must_use]
    pub fn contains(&self, address: u64, length: u64) -> bool {
        address >= self.start && address.checked_add(length).is_some_and(|end| end <= self.start + BUFFER_BYTES)
    }
}

/// The storage program between its waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageState {
    /// A call that no thread has taken yet: address and length of its buffer.
    pub incoming: Option<(u64, u64)>,
    /// A call was taken and not yet answered. True at the start: the first wait answers nobody.
    pub in_call: bool,
    /// The answer, until the host takes it.
    pub answer: Option<i64>,
}

/// What the program is to the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// There is no storage program.
    #[default]
    Alone,
    /// It calls.
    Caller(SharedMemory),
    /// It is called.
    Storage(StorageState),
}

impl Role {
    /// The storage program before its first wait.
    pub const STORAGE: Self = Self::Storage(StorageState { incoming: None, in_call: true, answer: None });
}

impl Kernel {
    /// Whether the storage program has given an answer that the host has not taken.
    #[must_use]
    pub const fn has_answered(&self) -> bool {
        matches!(self.role, Role::Storage(StorageState { answer: Some(_), .. }))
    }

    /// Take the storage program's answer.
    pub const fn take_answer(&mut self) -> Option<i64> {
        match &mut self.role {
            Role::Storage(state) => state.answer.take(),
            _ => None,
        }
    }

    /// Hand a call to the storage program. A thread that waits for one is the next to run.
    pub fn deliver_call(&mut self, address: u64, length: u64) {
        let Role::Storage(state) = &mut self.role else { return };
        (state.incoming, state.answer) = (Some((address, length)), None);
        if let Some(tid) = self.call_waiter() {
            if let Some(thread) = self.threads.find(tid)
                && let State::Blocked(blocked) = &mut thread.state
            {
                blocked.woken = true;
            }
            self.threads.current = tid;
            self.threads.slice_end = None;
        }
    }

    /// A thread that waits for a call.
    fn call_waiter(&self) -> Option<Tid> {
        let waits = |state: &State| matches!(state, State::Blocked(blocked) if blocked.wait.on == WaitFor::Call);
        self.threads.iter().find(|thread| waits(&thread.state)).map(|thread| thread.tid)
    }
}
