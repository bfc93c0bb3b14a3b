//! Timers that send signals: alarm(2), getitimer(2), setitimer(2), timer_create(2), timer_settime(2), timer_gettime(2), timer_getoverrun(2),
//! timer_delete(2).

use linux_raw_sys::general as sys;
use linux_raw_sys::general::{
    __NR_alarm, __NR_getitimer, __NR_setitimer, __NR_timer_create, __NR_timer_delete, __NR_timer_getoverrun, __NR_timer_gettime,
    __NR_timer_settime,
};

use zerocopy::{Immutable, IntoBytes};

use super::time::{clock, timeval};
use crate::linux::abi::{Timespec, Timeval};
use crate::linux::signal::{SIGNAL_LAST, Target};
use crate::linux::signal_timers::{IntervalKind, Notify};
use crate::linux::table::{Arg, Entry, full};
use crate::linux::{Answer, Call, Errno, Outcome};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(__NR_alarm, "alarm", &[Arg::Uint], alarm),
    full(__NR_getitimer, "getitimer", &[Arg::Int, Arg::Pointer], getitimer),
    full(__NR_setitimer, "setitimer", &[Arg::Int, Arg::Pointer, Arg::Pointer], setitimer),
    full(__NR_timer_create, "timer_create", &[Arg::ClockId, Arg::Pointer, Arg::Pointer], timer_create),
    full(__NR_timer_settime, "timer_settime", &[Arg::Int, Arg::Hex, Arg::Pointer, Arg::Pointer], timer_settime),
    full(__NR_timer_gettime, "timer_gettime", &[Arg::Int, Arg::Pointer], timer_gettime),
    full(__NR_timer_getoverrun, "timer_getoverrun", &[Arg::Int], timer_getoverrun),
    full(__NR_timer_delete, "timer_delete", &[Arg::Int], timer_delete),
];

const SECOND_NS: u64 = 1_000_000_000;

/// `unsigned int alarm(unsigned int seconds)`: answers the seconds that were left, never 0 for an alarm that was set.
fn alarm(call: &mut Call<'_>) -> Answer {
    let value = u64::from(call.uint(0)) * SECOND_NS;
    let (left, _) = call.kernel.set_interval_timer(IntervalKind::Real, value, 0);
    let rounded = (left + SECOND_NS / 2) / SECOND_NS;
    Ok(Outcome::Return(if left > 0 { rounded.max(1) } else { 0 }))
}

fn kind(which: i32) -> Result<IntervalKind, Errno> {
    match which {
        0 => Ok(IntervalKind::Real),
        1 => Ok(IntervalKind::Virtual),
        2 => Ok(IntervalKind::Profile),
        _ => Err(Errno::INVAL),
    }
}

/// `struct itimerval` from the time that is left, rounded so that an armed timer never shows zero, and the period.
fn itimerval((left, interval): (u64, u64)) -> [Timeval; 2] {
    let left = if left > 0 { left.max(1000) } else { 0 };
    [timeval(interval), timeval(left)]
}

fn nanoseconds(time: Timeval) -> Result<u64, Errno> {
    match (u64::try_from(time.seconds), u64::try_from(time.microseconds)) {
        (Ok(seconds), Ok(microseconds)) if microseconds < 1_000_000 => {
            Ok(seconds.saturating_mul(SECOND_NS).saturating_add(microseconds * 1000))
        }
        _ => Err(Errno::INVAL),
    }
}

/// `int getitimer(int which, struct itimerval *curr_value)`
fn getitimer(call: &mut Call<'_>) -> Answer {
    let current = call.kernel.interval_timer(kind(call.int(0))?);
    answer(call, call.args[1], &itimerval(current))
}

/// `int setitimer(int which, const struct itimerval *new_value, struct itimerval *old_value)`; a null new value disarms.
fn setitimer(call: &mut Call<'_>) -> Answer {
    let (new, old) = (call.args[1], call.args[2]);
    let [interval, value] = if new == 0 { [Timeval::default(); 2] } else { call.memory().read::<[Timeval; 2]>(new)? };
    let (interval, value) = (nanoseconds(interval)?, nanoseconds(value)?);
    let before = call.kernel.set_interval_timer(kind(call.int(0))?, value, interval);
    if old != 0 { answer(call, old, &itimerval(before)) } else { Ok(Outcome::OK) }
}

/// `sizeof(struct sigevent)` is 64; the fields end with the thread id.
type SigEvent = [u32; 6];

/// `int timer_create(clockid_t clockid, struct sigevent *sevp, timer_t *timerid)`
fn timer_create(call: &mut Call<'_>) -> Answer {
    let (id, event) = (call.uint(0), call.args[1]);
    match id {
        // Clocks that only answer the time, and those that wake a sleeping machine.
        sys::CLOCK_REALTIME_COARSE | sys::CLOCK_MONOTONIC_COARSE | sys::CLOCK_MONOTONIC_RAW => return Err(Errno::OPNOTSUPP),
        sys::CLOCK_REALTIME_ALARM | sys::CLOCK_BOOTTIME_ALARM => return Err(Errno::PERM),
        _ => {}
    }
    let event = if event == 0 { None } else { Some(call.memory().read::<SigEvent>(event)?) };
    let clock = clock(call, call.int(0))?;
    let (notify, signal, value) = match event {
        None => (Notify::Signal(Target::Process), sys::SIGALRM.cast_signed(), None),
        Some([low, high, signal, how, tid, _]) => {
            let notify = notification(call, how, signal, tid.cast_signed())?;
            (notify, signal.cast_signed(), Some(u64::from(low) | u64::from(high) << 32))
        }
    };
    let timer = call.kernel.create_timer(clock, notify, signal, value)?;
    if let Err(errno) = call.memory().write(call.args[2], &timer) {
        call.kernel.delete_timer(timer)?;
        return Err(errno);
    }
    Ok(Outcome::OK)
}

/// `sigev_notify`. SIGEV_THREAD is a matter of the C library: to the kernel it is SIGEV_SIGNAL.
fn notification(call: &Call<'_>, how: u32, signal: u32, tid: i32) -> Result<Notify, Errno> {
    let valid = (1..=SIGNAL_LAST).contains(&signal.cast_signed());
    match how {
        sys::SIGEV_NONE => Ok(Notify::None),
        sys::SIGEV_SIGNAL | sys::SIGEV_THREAD if valid => Ok(Notify::Signal(Target::Process)),
        sys::SIGEV_THREAD_ID if valid && call.kernel.threads.peek(tid).is_some() => Ok(Notify::Signal(Target::Thread(tid))),
        _ => Err(Errno::INVAL),
    }
}

/// `struct itimerspec`: the period, then the time that is left.
fn itimerspec((left, interval): (u64, u64)) -> [Timespec; 2] {
    [Timespec::from_ns(interval), Timespec::from_ns(left)]
}

/// `int timer_settime(timer_t timerid, int flags, const struct itimerspec *new_value, struct itimerspec *old_value)`
fn timer_settime(call: &mut Call<'_>) -> Answer {
    let (new, old) = (call.args[2], call.args[3]);
    if new == 0 {
        return Err(Errno::INVAL);
    }
    let [interval, value] = call.memory().read::<[Timespec; 2]>(new)?;
    let (interval, value) = (interval.to_ns()?, value.to_ns()?);
    let absolute = call.uint(1) & sys::TIMER_ABSTIME != 0;
    let before = call.kernel.set_timer(call.int(0), value, interval, absolute)?;
    if old != 0 { answer(call, old, &itimerspec(before)) } else { Ok(Outcome::OK) }
}

/// `int timer_gettime(timer_t timerid, struct itimerspec *curr_value)`
fn timer_gettime(call: &mut Call<'_>) -> Answer {
    let setting = call.kernel.timer_setting(call.int(0))?;
    answer(call, call.args[1], &itimerspec(setting))
}

/// `int timer_getoverrun(timer_t timerid)`
fn timer_getoverrun(call: &mut Call<'_>) -> Answer {
    let overrun = call.kernel.process.signals.timers.posix(call.int(0))?.overrun;
    Ok(Outcome::Return(u64::from(overrun.cast_unsigned())))
}

/// `int timer_delete(timer_t timerid)`
fn timer_delete(call: &mut Call<'_>) -> Answer {
    call.kernel.delete_timer(call.int(0))?;
    Ok(Outcome::OK)
}

fn answer<T: IntoBytes + Immutable>(call: &Call<'_>, address: u64, value: &T) -> Answer {
    call.memory().write(address, value)?;
    Ok(Outcome::OK)
}
