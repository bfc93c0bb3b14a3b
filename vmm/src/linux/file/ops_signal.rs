//! signalfd's side of signals: what is pending, and taking it.

use super::ops::{Received, Step};
use super::{Errno, FileId};
use crate::linux::thread::Tid;
use crate::linux::{Call, Kernel};
use crate::memory::Segment;

impl Kernel {
    pub(super) fn signals_pending_for(&self, _tid: Tid) -> u64 {
        0
    }

    pub(super) fn send_thread_signal(&mut self, _tid: Tid, _signal: i32) {}
}

/// `read(2)` of a signalfd.
pub(super) fn receive_signals(_call: &mut Call<'_>, _file: FileId, _segments: &[Segment]) -> Result<Step<Received>, Errno> {
    Err(Errno::AGAIN)
}

impl Kernel {
    pub(in crate::linux) fn begin_wait_mask(&mut self, _tid: Tid, _mask: u64) {}

    pub(in crate::linux) fn end_wait_mask(&mut self, _tid: Tid) {}
}
