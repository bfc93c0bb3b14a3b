//! strace-like lines for system calls, formatted from the table.

use super::{Errno, table};
use crate::memory::GuestMemory;

/// The last system calls of a VM.
#[derive(Debug, Default)]
pub struct Recorder {
    calls: std::collections::VecDeque<(usize, [u64; 6], Option<Result<u64, Errno>>)>,
}

impl Recorder {
    /// Note a call.
    pub fn push(&mut self, number: usize, args: [u64; 6], result: Option<Result<u64, Errno>>) {
        if self.calls.len() == 16 {
            self.calls.pop_front();
        }
        self.calls.push_back((number, args, result));
    }

    /// The calls, oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.calls.iter().map(|(number, _, result)| format!("{}() = {result:?}", table::name(*number))).collect()
    }

    /// Forget them.
    pub fn clear(&mut self) {
        self.calls.clear();
    }
}

/// One line.
#[must_use]
pub fn line(number: usize, args: &[u64; 6], _memory: &GuestMemory, result: Option<Result<u64, Errno>>, tid: i32) -> String {
    format!("[{tid}] {}({args:x?}) = {result:x?}", table::name(number))
}
