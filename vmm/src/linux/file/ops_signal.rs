//! signalfd's side of signals: taking what is pending (`signalfd(2)`).

use super::ops::{Received, Step};
use super::{Errno, File, FileId, PollEvents};
use crate::linux::signal::SignalInfo;
use crate::linux::{Call, Restart, Wait, WaitFor};
use crate::memory::Segment;

/// `sizeof(struct signalfd_siginfo)`.
const INFO_BYTES: usize = 128;

/// A signal as `struct signalfd_siginfo`.
fn encode(info: &SignalInfo) -> [u8; INFO_BYTES] {
    let mut bytes = [0; INFO_BYTES];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &info.signal.to_ne_bytes());
    put(4, &info.errno.to_ne_bytes());
    put(8, &info.code.to_ne_bytes());
    // si_pid and si_uid share the first word of the union with si_tid and si_overrun; si_value is the second.
    put(12, &info.fields[0].to_ne_bytes());
    put(44, &(info.fields[1] as u32).to_ne_bytes());
    put(48, &info.fields[1].to_ne_bytes());
    bytes
}

/// `read(2)` of a signalfd.
pub(super) fn receive_signals(call: &mut Call<'_>, file: FileId, segments: &[Segment]) -> Result<Step<Received>, Errno> {
    let slot = call.kernel.files.get(file)?;
    let (File::Signal(signals), nonblocking) = (&slot.file, slot.nonblocking()) else { return Err(Errno::INVAL) };
    let mask = signals.mask;
    let room = segments.iter().fold(0_u64, |sum, segment| sum.saturating_add(segment.length)) / INFO_BYTES as u64;
    if room == 0 {
        return Err(Errno::INVAL);
    }
    let mut count = 0;
    while count / (INFO_BYTES as u64) < room.min(64) {
        let Some(info) = call.kernel.take_signal(call.tid, mask) else { break };
        let stored = call.memory().scatter(segments, count, &encode(&info))?;
        if let File::Signal(signals) = &mut call.kernel.files.get_mut(file)?.file {
            signals.taken += 1;
        }
        if stored < INFO_BYTES {
            return Err(Errno::FAULT);
        }
        count += INFO_BYTES as u64;
    }
    if count > 0 {
        return Ok(Step::Done(Received { count, full: count, ..Received::default() }));
    }
    if nonblocking {
        return Err(Errno::AGAIN);
    }
    Ok(Step::Block(Wait { on: WaitFor::Files(vec![(file, PollEvents::IN)]), deadline: None, restart: Restart::IfAsked }))
}
