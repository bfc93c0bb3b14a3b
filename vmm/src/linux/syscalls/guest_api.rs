//! The calls of `libkvmserverguest.so` (guestlib/kvmserverguest.h), which Linux does not have.

use crate::limits::PAGE;
use crate::linux::gate::{BUFFER_BYTES, RemoteCall, Role};
use crate::linux::table::{Arg, Entry, full};
use crate::linux::{Answer, Call, Errno, Outcome, Restart, Wait, WaitFor};
use crate::memory::Protection;

/// The `prctl(2)` option that asks for the version of this interface.
pub(crate) const PRCTL_VERSION: u32 = 0x4b56_4d53;
/// The version, as in the header.
pub(crate) const VERSION: u64 = 1;
/// The number of the first call.
pub(crate) const FIRST: usize = 0x4b56_0001;

/// The rows of this family, by number from [`FIRST`]. They are in no table of Linux's.
pub(crate) const ENTRIES: &[Entry] = &[
    full(FIRST as u32, "kvmserverguest_remote_resume", &[Arg::Pointer, Arg::Int], remote_resume),
    full(FIRST as u32 + 1, "kvmserverguest_storage_wait_paused", &[Arg::Pointer, Arg::Int], storage_wait_paused),
    full(FIRST as u32 + 2, "kvmserverguest_shared_buffer", &[Arg::Uint], shared_buffer),
];

/// `ssize_t kvmserverguest_remote_resume(void *buffer, ssize_t len)`
fn remote_resume(call: &mut Call<'_>) -> Answer {
    match call.kernel.role {
        Role::Alone => return Err(Errno::NOSYS),
        Role::Storage(_) => return Err(Errno::DEADLK),
        Role::Caller(_) => {}
    }
    let [buffer, length, ..] = call.args;
    if length > BUFFER_BYTES {
        return Err(Errno::INVAL);
    }
    if length > 0 && !may_read_and_write(call, buffer, length) {
        return Err(Errno::INVAL);
    }
    Ok(Outcome::Remote(RemoteCall { buffer, length }))
}

/// The answer has to go where the question came from, so a buffer that cannot be written is refused before the storage program
/// sees anything.
fn may_read_and_write(call: &Call<'_>, buffer: u64, length: u64) -> bool {
    let Some(end) = buffer.checked_add(length).filter(|&end| end <= call.space.size()) else { return false };
    let mut at = buffer - buffer % PAGE;
    while at < end {
        match call.space.vmas().find(at) {
            Some(vma) if vma.protection.contains(Protection::READ | Protection::WRITE) => at = vma.end,
            _ => return false,
        }
    }
    true
}

/// `ssize_t kvmserverguest_storage_wait_paused(void **buffer, ssize_t result)`
fn storage_wait_paused(call: &mut Call<'_>) -> Answer {
    let [pointer, result, ..] = call.args;
    let Role::Storage(mut state) = call.kernel.role else {
        return Err(if call.kernel.role == Role::Alone { Errno::NOSYS } else { Errno::PERM });
    };
    if state.in_call {
        // A pointer that cannot take the next buffer is found out while the caller still waits.
        call.memory().write(pointer, &0_u64)?;
        state.in_call = false;
        state.answer = Some(result.cast_signed());
    } else if let Some((address, length)) = state.incoming {
        call.memory().write(pointer, &address)?;
        state.incoming = None;
        state.in_call = true;
        call.kernel.role = Role::Storage(state);
        return Ok(Outcome::Return(length));
    }
    call.kernel.role = Role::Storage(state);
    Ok(Outcome::Block(Wait { on: WaitFor::Call, deadline: None, restart: Restart::Always }))
}

/// `void *kvmserverguest_shared_buffer(size_t len)`
fn shared_buffer(call: &mut Call<'_>) -> Answer {
    let Role::Caller(mut shared) = call.kernel.role else { return Err(Errno::NOSYS) };
    let length = call.args[0].checked_next_multiple_of(PAGE).filter(|&length| length > 0).ok_or(Errno::INVAL)?;
    let used = shared.used.checked_add(length).filter(|&used| used <= BUFFER_BYTES).ok_or(Errno::NOMEM)?;
    let address = shared.start + shared.used;
    shared.used = used;
    call.kernel.role = Role::Caller(shared);
    Ok(Outcome::Return(address))
}
