//! Reading a signalfd: pending signals become `struct signalfd_siginfo`s (`signalfd(2)`).

use super::ops::{Received, Step, total_length, wait_for};
use super::{Errno, File, FileId, PollEvents};
use crate::linux::Call;
use crate::linux::signal::{SI_KERNEL, SI_TIMER, SI_USER, SignalInfo};
use crate::memory::Segment;

/// Size of `struct signalfd_siginfo`.
const RECORD_BYTES: usize = 128;

/// `read(2)` of a signalfd: as many records as fit and are pending.
pub(super) fn receive_signals(call: &mut Call<'_>, file: FileId, segments: &[Segment]) -> Result<Step<Received>, Errno> {
    let room = usize::try_from(total_length(segments)).unwrap_or(0) / RECORD_BYTES;
    if room == 0 {
        return Err(Errno::INVAL);
    }
    let slot = call.kernel.files.get(file)?;
    let nonblocking = slot.nonblocking();
    let File::Signal(signals) = &slot.file else { return Err(Errno::INVAL) };
    let mask = signals.mask;
    let mut bytes = Vec::new();
    while bytes.len() / RECORD_BYTES < room
        && let Some(info) = call.kernel.take_signal(call.tid, mask)
    {
        bytes.extend(record(&info));
    }
    if bytes.is_empty() {
        return if nonblocking { Err(Errno::AGAIN) } else { wait_for(call, file, PollEvents::IN, 0) };
    }
    if let File::Signal(signals) = &mut call.kernel.files.get_mut(file)?.file {
        signals.taken = signals.taken.wrapping_add((bytes.len() / RECORD_BYTES) as u64);
    }
    let count = call.space.memory().scatter(segments, 0, &bytes)? / RECORD_BYTES * RECORD_BYTES;
    if count == 0 {
        return Err(Errno::FAULT);
    }
    Ok(Step::Done(Received { count: count as u64, full: count as u64, ..Received::default() }))
}

fn record(info: &SignalInfo) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    let mut put = |at: usize, value: &[u8]| {
        if let Some(place) = bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    };
    put(0, &info.signal.to_ne_bytes());
    put(4, &info.errno.to_ne_bytes());
    put(8, &info.code.to_ne_bytes());
    let [first, second, ..] = info.fields;
    let (low, high) = ((first as u32).to_ne_bytes(), ((first >> 32) as u32).to_ne_bytes());
    match info.code {
        SI_TIMER => {
            put(24, &low);
            put(32, &high);
        }
        // Codes above a user's that are not the kernel's own describe a fault.
        code if code > SI_USER && code != SI_KERNEL => put(72, &first.to_ne_bytes()),
        _ => {
            put(12, &low);
            put(16, &high);
        }
    }
    if info.code < SI_USER {
        put(44, &(second as u32).to_ne_bytes());
        put(48, &second.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    #[test]
    fn a_users_signal_names_its_sender() {
        let bytes = record(&SignalInfo::user(10, 0, 42, 1000));
        assert_eq!((word(&bytes, 0), word(&bytes, 12), word(&bytes, 16)), (10, 42, 1000));
    }

    #[test]
    fn a_fault_names_its_address() {
        let bytes = record(&SignalInfo::fault(11, 1, 0x1234_5678_9abc));
        assert_eq!((word(&bytes, 72), word(&bytes, 76), word(&bytes, 12)), (0x5678_9abc, 0x1234, 0));
    }
}
