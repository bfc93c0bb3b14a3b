//! Futexes: futex(2), futex_waitv(2).

use linux_raw_sys::general as sys;
use linux_raw_sys::general::{__NR_futex, __NR_futex_waitv};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::linux::abi::Timespec;
use crate::linux::futex::{BITSET_ANY, FUTEX_WAITV_MAX, FutexKey, Waiter, WaiterKind, WakeOperation, key, load};
use crate::linux::futex_pi::Lock;
use crate::linux::table::{Arg, Entry, full};
use crate::linux::{Answer, Attempt, Call, Errno, MonotonicNs, Outcome, Restart, Wait, WaitFor};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(__NR_futex, "futex", &[Arg::Pointer, Arg::FutexOperation, Arg::Uint32, Arg::FutexTimeout, Arg::Pointer, Arg::Uint32], futex),
    full(__NR_futex_waitv, "futex_waitv", &[Arg::Pointer, Arg::Uint, Arg::Hex, Arg::Timespec, Arg::ClockId], futex_waitv),
];

/// `long futex(uint32_t *uaddr, int op, uint32_t val, const struct timespec *timeout, uint32_t *uaddr2, uint32_t val3)`
fn futex(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(1);
    let operation = flags & !(sys::FUTEX_PRIVATE_FLAG | sys::FUTEX_CLOCK_REALTIME);
    let realtime = flags & sys::FUTEX_CLOCK_REALTIME != 0;
    let clock_allowed = matches!(operation, sys::FUTEX_WAIT_BITSET | sys::FUTEX_WAIT_REQUEUE_PI | sys::FUTEX_LOCK_PI2);
    let bitset = if matches!(operation, sys::FUTEX_WAIT | sys::FUTEX_WAKE) { BITSET_ANY } else { call.uint(5) };
    if realtime && !clock_allowed {
        return Err(Errno::NOSYS);
    }
    match operation {
        sys::FUTEX_WAIT | sys::FUTEX_WAIT_BITSET => {
            let deadline = deadline(call, call.args[3], operation == sys::FUTEX_WAIT, realtime)?;
            wait(call, deadline, bitset)
        }
        sys::FUTEX_WAKE | sys::FUTEX_WAKE_BITSET => wake(call, bitset),
        sys::FUTEX_REQUEUE => requeue(call, None),
        sys::FUTEX_CMP_REQUEUE => requeue(call, Some(call.uint(5))),
        sys::FUTEX_WAKE_OP => wake_operation(call),
        sys::FUTEX_LOCK_PI | sys::FUTEX_LOCK_PI2 => {
            let deadline = deadline(call, call.args[3], false, realtime || operation == sys::FUTEX_LOCK_PI)?;
            lock(call, deadline)
        }
        sys::FUTEX_TRYLOCK_PI => try_lock(call),
        sys::FUTEX_UNLOCK_PI => unlock(call),
        sys::FUTEX_WAIT_REQUEUE_PI => {
            let deadline = deadline(call, call.args[3], false, realtime)?;
            wait_requeue_lock(call, deadline, call.uint(5))
        }
        sys::FUTEX_CMP_REQUEUE_PI => requeue_lock(call),
        _ => Err(Errno::NOSYS),
    }
}

fn private(call: &Call<'_>) -> bool {
    call.uint(1) & sys::FUTEX_PRIVATE_FLAG != 0
}

fn first_key(call: &Call<'_>, write: bool) -> Result<FutexKey, Errno> {
    key(call.space, call.args[0], private(call), write)
}

fn second_key(call: &Call<'_>, write: bool) -> Result<FutexKey, Errno> {
    key(call.space, call.args[4], private(call), write)
}

/// When a wait ends: the timeout is relative to now, or a moment of CLOCK_REALTIME or CLOCK_MONOTONIC.
fn deadline(call: &Call<'_>, timeout: u64, relative: bool, realtime: bool) -> Result<Option<MonotonicNs>, Errno> {
    if call.attempt != Attempt::First {
        return Ok(call.saved_deadline);
    }
    if timeout == 0 {
        return Ok(None);
    }
    let timeout = call.memory().read::<Timespec>(timeout)?.to_ns()?;
    let clock = &call.kernel.clock;
    Ok(Some(if relative {
        clock.monotonic().saturating_add(timeout)
    } else if realtime {
        clock.from_realtime(timeout)
    } else {
        timeout
    }))
}

/// What a thread that has been queued answers when it is looked at again, or that it sleeps on.
fn queued(call: &mut Call<'_>, deadline: Option<MonotonicNs>, restart: Restart) -> Answer {
    if let Some(answer) = call.kernel.futex_take_wake(call.tid) {
        return Ok(Outcome::Return(u64::from(answer)));
    }
    match call.attempt {
        Attempt::TimedOut => {
            call.kernel.futexes.remove(call.tid);
            return Err(Errno::TIMEDOUT);
        }
        Attempt::Interrupted => call.kernel.futexes.remove(call.tid),
        Attempt::First | Attempt::Woken => {}
    }
    Ok(Outcome::Block(Wait { on: WaitFor::Futex, deadline, restart }))
}

fn enqueue(call: &mut Call<'_>, key: FutexKey, address: u64, bitset: u32, kind: WaiterKind) {
    let tid = call.tid;
    call.thread().futex_woken = false;
    call.kernel.futexes.enqueue(Waiter { tid, key, address, bitset, kind });
}

fn wait(call: &mut Call<'_>, deadline: Option<MonotonicNs>, bitset: u32) -> Answer {
    if call.attempt == Attempt::First {
        if bitset == 0 {
            return Err(Errno::INVAL);
        }
        let key = first_key(call, false)?;
        if load(call.memory(), call.args[0])? != call.uint(2) {
            return Err(Errno::AGAIN);
        }
        enqueue(call, key, call.args[0], bitset, WaiterKind::Plain);
    }
    // A wait with a timeout fails with EINTR whatever the handler's flags say.
    queued(call, deadline, if deadline.is_none() { Restart::IfAsked } else { Restart::Never })
}

/// How many a wake of `count` wakes: never fewer than one, as in Linux.
fn at_least_one(count: u32) -> usize {
    usize::try_from(count.cast_signed()).unwrap_or(1).max(1)
}

fn wake(call: &mut Call<'_>, bitset: u32) -> Answer {
    if bitset == 0 {
        return Err(Errno::INVAL);
    }
    let key = first_key(call, false)?;
    call.kernel.futex_wake_key(key, at_least_one(call.uint(2)), bitset).map(Outcome::from)
}

fn counts(call: &Call<'_>) -> Result<(usize, usize), Errno> {
    // The fourth argument is a number here.
    let wake = usize::try_from(call.int(2)).map_err(|_| Errno::INVAL)?;
    let requeue = usize::try_from(call.int(3)).map_err(|_| Errno::INVAL)?;
    Ok((wake, requeue))
}

fn requeue(call: &mut Call<'_>, expected: Option<u32>) -> Answer {
    let (wake, requeue) = counts(call)?;
    let from = first_key(call, false)?;
    let to = second_key(call, false)?;
    if let Some(expected) = expected
        && load(call.memory(), call.args[0])? != expected
    {
        return Err(Errno::AGAIN);
    }
    let (woken, moved) = call.kernel.futex_requeue(from, (to, call.args[4]), wake, requeue)?;
    Ok(Outcome::from(woken + moved))
}

fn wake_operation(call: &mut Call<'_>) -> Answer {
    let from = first_key(call, false)?;
    let to = second_key(call, true)?;
    let operation = WakeOperation::decode(call.uint(5))?;
    let old = load(call.memory(), call.args[4])?;
    call.memory().write(call.args[4], &operation.apply(old))?;
    let mut woken = call.kernel.futex_wake_key(from, at_least_one(call.uint(2)), BITSET_ANY)?;
    if operation.holds(old) {
        woken += call.kernel.futex_wake_key(to, at_least_one(call.uint(3)), BITSET_ANY)?;
    }
    Ok(Outcome::from(woken))
}

fn lock(call: &mut Call<'_>, deadline: Option<MonotonicNs>) -> Answer {
    if call.attempt == Attempt::First {
        let key = first_key(call, true)?;
        let (address, tid) = (call.args[0], call.tid);
        if call.kernel.futex_acquire(call.space.memory(), address, key, tid, true)? == Lock::Acquired {
            return Ok(Outcome::OK);
        }
        enqueue(call, key, address, BITSET_ANY, WaiterKind::Lock);
    }
    queued(call, deadline, Restart::Always)
}

fn try_lock(call: &mut Call<'_>) -> Answer {
    let key = first_key(call, true)?;
    match call.kernel.futex_acquire(call.space.memory(), call.args[0], key, call.tid, false)? {
        Lock::Acquired => Ok(Outcome::OK),
        Lock::Contended => Err(Errno::AGAIN),
    }
}

fn unlock(call: &mut Call<'_>) -> Answer {
    let address = call.args[0];
    // The owner is looked at before the key, so that a thread without the lock hears EPERM.
    if load(call.memory(), address)? & sys::FUTEX_TID_MASK != call.tid.cast_unsigned() {
        return Err(Errno::PERM);
    }
    let key = first_key(call, true)?;
    call.kernel.futex_unlock(call.space.memory(), address, key, call.tid)?;
    Ok(Outcome::OK)
}

fn wait_requeue_lock(call: &mut Call<'_>, deadline: Option<MonotonicNs>, bitset: u32) -> Answer {
    if call.attempt == Attempt::First {
        if call.args[0] == call.args[4] || bitset == 0 {
            return Err(Errno::INVAL);
        }
        let lock = second_key(call, true)?;
        let key = first_key(call, false)?;
        if load(call.memory(), call.args[0])? != call.uint(2) {
            return Err(Errno::AGAIN);
        }
        if key == lock {
            return Err(Errno::INVAL);
        }
        enqueue(call, key, call.args[0], bitset, WaiterKind::Requeue(lock));
    }
    // Once it has been moved to the lock, the condition has changed: the call would answer EAGAIN if it were made again.
    if call.attempt == Attempt::Interrupted && call.kernel.futexes.wants_lock(call.tid) {
        call.kernel.futexes.remove(call.tid);
        return Err(Errno::AGAIN);
    }
    queued(call, deadline, Restart::Always)
}

fn requeue_lock(call: &mut Call<'_>) -> Answer {
    let (wake, requeue) = counts(call)?;
    if call.args[0] == call.args[4] || wake != 1 {
        return Err(Errno::INVAL);
    }
    let from = first_key(call, false)?;
    let to = second_key(call, true)?;
    if from == to {
        return Err(Errno::INVAL);
    }
    if load(call.memory(), call.args[0])? != call.uint(5) {
        return Err(Errno::AGAIN);
    }
    let target = (to, call.args[4]);
    call.kernel.futex_requeue_lock(call.space.memory(), from, target, requeue).map(Outcome::from)
}

/// `struct futex_waitv`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct VectorEntry {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

/// FUTEX2_SIZE_U32.
const SIZE_U32: u32 = 2;

/// `long futex_waitv(struct futex_waitv *waiters, unsigned int nr, unsigned int flags, struct timespec *timeout, clockid_t clockid)`
fn futex_waitv(call: &mut Call<'_>) -> Answer {
    let deadline = if call.attempt == Attempt::First { start_vector(call)? } else { call.saved_deadline };
    queued(call, deadline, Restart::IfAsked)
}

fn vector_deadline(call: &Call<'_>) -> Result<Option<MonotonicNs>, Errno> {
    if call.args[3] == 0 {
        return Ok(None);
    }
    match call.uint(4) {
        sys::CLOCK_MONOTONIC => deadline(call, call.args[3], false, false),
        sys::CLOCK_REALTIME => deadline(call, call.args[3], false, true),
        _ => Err(Errno::INVAL),
    }
}

/// Check everything, queue the thread for each word; returns the deadline.
fn start_vector(call: &mut Call<'_>) -> Result<Option<MonotonicNs>, Errno> {
    let count = call.uint(1) as usize;
    if call.uint(2) != 0 || count == 0 || count > FUTEX_WAITV_MAX || call.args[0] == 0 {
        return Err(Errno::INVAL);
    }
    let deadline = vector_deadline(call)?;
    let mut futexes = Vec::with_capacity(count);
    for index in 0..count {
        let at = call.args[0].checked_add(index as u64 * 24).ok_or(Errno::FAULT)?;
        let entry = call.memory().read::<VectorEntry>(at)?;
        if entry.flags & !(SIZE_U32 | sys::FUTEX_PRIVATE_FLAG) != 0 || entry.flags & SIZE_U32 == 0 || entry.reserved != 0 {
            return Err(Errno::INVAL);
        }
        futexes.push(entry);
    }
    let mut keys = Vec::with_capacity(count);
    for entry in &futexes {
        keys.push(key(call.space, entry.address, entry.flags & sys::FUTEX_PRIVATE_FLAG != 0, false)?);
    }
    for entry in &futexes {
        // Only a 32-bit value can be equal to a 32-bit word.
        if u64::from(load(call.memory(), entry.address)?) != entry.value & 0xffff_ffff {
            return Err(Errno::AGAIN);
        }
    }
    for ((entry, key), index) in futexes.iter().zip(keys).zip(0..) {
        enqueue(call, key, entry.address, BITSET_ANY, WaiterKind::Vector(index));
    }
    Ok(deadline)
}
