//! Time: clock_gettime(2), clock_getres(2), clock_settime(2), clock_nanosleep(2), nanosleep(2), gettimeofday(2), settimeofday(2), time(2),
//! clock_adjtime(2), adjtimex(2).

use linux_raw_sys::general as sys;
use linux_raw_sys::general::{
    __NR_adjtimex, __NR_clock_adjtime, __NR_clock_getres, __NR_clock_gettime, __NR_clock_nanosleep, __NR_clock_settime, __NR_gettimeofday,
    __NR_nanosleep, __NR_settimeofday, __NR_time,
};

use crate::linux::abi::{Timespec, Timeval};
use crate::linux::signal_timers::TimerClock;
use crate::linux::table::{Arg, Entry, full, partial};
use crate::linux::{Answer, Attempt, Call, Errno, MonotonicNs, Outcome, Restart, Wait, WaitFor};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(__NR_clock_gettime, "clock_gettime", &[Arg::ClockId, Arg::Timespec], clock_gettime),
    full(__NR_clock_getres, "clock_getres", &[Arg::ClockId, Arg::Timespec], clock_getres),
    partial(__NR_clock_settime, "clock_settime", &[Arg::ClockId, Arg::Timespec], clock_settime, "EPERM: the clock is the host's"),
    full(__NR_clock_nanosleep, "clock_nanosleep", &[Arg::ClockId, Arg::Hex, Arg::Timespec, Arg::Pointer], clock_nanosleep),
    full(__NR_nanosleep, "nanosleep", &[Arg::Timespec, Arg::Pointer], nanosleep),
    full(__NR_gettimeofday, "gettimeofday", &[Arg::Pointer, Arg::Pointer], gettimeofday),
    partial(__NR_settimeofday, "settimeofday", &[Arg::Pointer, Arg::Pointer], settimeofday, "EPERM: the clock is the host's"),
    full(__NR_time, "time", &[Arg::Pointer], time),
    partial(__NR_clock_adjtime, "clock_adjtime", &[Arg::ClockId, Arg::Pointer], clock_adjtime, "reading only"),
    partial(__NR_adjtimex, "adjtimex", &[Arg::Pointer], adjtimex, "reading only"),
];

const SECOND_NS: u64 = 1_000_000_000;
/// Resolution of the coarse clocks: a tick at 250 Hz.
const TICK_NS: u64 = 4_000_000;

/// A clock that a guest named.
///
/// # Errors
///
/// EINVAL where there is none, also for a process or thread that there is not.
pub(super) fn clock(call: &Call<'_>, id: i32) -> Result<TimerClock, Errno> {
    let Ok(number) = u32::try_from(id) else { return cpu_clock(call, id) };
    match number {
        sys::CLOCK_REALTIME | sys::CLOCK_REALTIME_COARSE | sys::CLOCK_REALTIME_ALARM | sys::CLOCK_TAI => Ok(TimerClock::Realtime),
        sys::CLOCK_MONOTONIC | sys::CLOCK_MONOTONIC_RAW | sys::CLOCK_MONOTONIC_COARSE | sys::CLOCK_BOOTTIME | sys::CLOCK_BOOTTIME_ALARM => {
            Ok(TimerClock::Monotonic)
        }
        sys::CLOCK_PROCESS_CPUTIME_ID => Ok(TimerClock::ProcessCpu),
        sys::CLOCK_THREAD_CPUTIME_ID => Ok(TimerClock::ThreadCpu(call.tid)),
        _ => Err(Errno::INVAL),
    }
}

/// Clocks of `clock_getcpuclockid(3)` and `pthread_getcpuclockid(3)`: the complement of an id, above three bits that say of what.
fn cpu_clock(call: &Call<'_>, id: i32) -> Result<TimerClock, Errno> {
    let of_thread = id & 4 != 0;
    // 3 is a clock device behind a descriptor, which a guest has none of.
    if id & 3 == 3 {
        return Err(Errno::INVAL);
    }
    let number = !(id >> 3);
    if of_thread {
        let tid = if number == 0 { call.tid } else { number };
        return call.kernel.threads.peek(tid).map(|_| TimerClock::ThreadCpu(tid)).ok_or(Errno::INVAL);
    }
    if number == 0 || number == call.kernel.process.pid { Ok(TimerClock::ProcessCpu) } else { Err(Errno::INVAL) }
}

const fn is_coarse(id: i32) -> bool {
    matches!(id.cast_unsigned(), sys::CLOCK_REALTIME_COARSE | sys::CLOCK_MONOTONIC_COARSE)
}

/// `int clock_gettime(clockid_t clockid, struct timespec *tp)`
fn clock_gettime(call: &mut Call<'_>) -> Answer {
    let clock = clock(call, call.int(0))?;
    let now = call.kernel.timer_clock(clock);
    call.memory().write(call.args[1], &Timespec::from_ns(now))?;
    Ok(Outcome::OK)
}

/// `int clock_getres(clockid_t clockid, struct timespec *res)`
fn clock_getres(call: &mut Call<'_>) -> Answer {
    let id = call.int(0);
    clock(call, id)?;
    if call.args[1] != 0 {
        let resolution = if is_coarse(id) { TICK_NS } else { 1 };
        call.memory().write(call.args[1], &Timespec::from_ns(resolution))?;
    }
    Ok(Outcome::OK)
}

/// `int clock_settime(clockid_t clockid, const struct timespec *tp)`: the guest has no privilege to.
fn clock_settime(call: &mut Call<'_>) -> Answer {
    let settable = call.uint(0) == sys::CLOCK_REALTIME;
    clock(call, call.int(0))?;
    call.memory().read::<Timespec>(call.args[1])?.to_ns()?;
    Err(if settable || call.int(0) < 0 { Errno::PERM } else { Errno::INVAL })
}

/// `int clock_nanosleep(clockid_t clockid, int flags, const struct timespec *request, struct timespec *remain)`
fn clock_nanosleep(call: &mut Call<'_>) -> Answer {
    let id = call.int(0);
    let clock = clock(call, id)?;
    // Coarse and raw clocks cannot be slept on, alarm clocks need a privilege, a thread cannot wait for its own processor time.
    match id.cast_unsigned() {
        sys::CLOCK_REALTIME_COARSE | sys::CLOCK_MONOTONIC_COARSE | sys::CLOCK_MONOTONIC_RAW => return Err(Errno::OPNOTSUPP),
        sys::CLOCK_REALTIME_ALARM | sys::CLOCK_BOOTTIME_ALARM => return Err(Errno::PERM),
        sys::CLOCK_THREAD_CPUTIME_ID => return Err(Errno::INVAL),
        _ => {}
    }
    if clock == TimerClock::ThreadCpu(call.tid) {
        return Err(Errno::INVAL);
    }
    let absolute = call.uint(1) & sys::TIMER_ABSTIME != 0;
    sleep(call, clock, absolute, (call.args[2], call.args[3]))
}

/// `int nanosleep(const struct timespec *request, struct timespec *remain)`
fn nanosleep(call: &mut Call<'_>) -> Answer {
    sleep(call, TimerClock::Monotonic, false, (call.args[0], call.args[1]))
}

fn sleep(call: &mut Call<'_>, clock: TimerClock, absolute: bool, (request, remain): (u64, u64)) -> Answer {
    // A relative sleep on CLOCK_REALTIME is one on CLOCK_MONOTONIC: setting the clock does not change it.
    let clock = if clock == TimerClock::Realtime && !absolute { TimerClock::Monotonic } else { clock };
    if call.attempt == Attempt::First {
        let request = call.memory().read::<Timespec>(request)?.to_ns()?;
        let now = call.kernel.timer_clock(clock);
        // The moment on the clock that is slept on; kept across the attempts.
        call.progress = if absolute { request } else { now.saturating_add(request) };
    }
    let until = call.progress;
    let now = call.kernel.timer_clock(clock);
    if now >= until {
        return Ok(Outcome::OK);
    }
    if call.attempt == Attempt::Interrupted && !absolute {
        if remain != 0 {
            call.memory().write(remain, &Timespec::from_ns(until - now))?;
        }
        return Err(Errno::INTR);
    }
    let deadline = wake_at(call, clock, until, now);
    Ok(Outcome::Block(Wait { on: WaitFor::Nothing, deadline: Some(deadline), restart: Restart::Never }))
}

/// When to look again: at the moment itself, or at the earliest one at which processor time can have come so far.
fn wake_at(call: &Call<'_>, clock: TimerClock, until: u64, now: u64) -> MonotonicNs {
    match clock {
        TimerClock::Monotonic => until,
        TimerClock::Realtime => call.kernel.clock.from_realtime(until),
        TimerClock::ProcessCpu | TimerClock::ThreadCpu(_) => call.kernel.clock.monotonic().saturating_add((until - now).max(TICK_NS)),
    }
}

/// `int gettimeofday(struct timeval *tv, struct timezone *tz)`: the time zone is always UTC.
fn gettimeofday(call: &mut Call<'_>) -> Answer {
    let now = call.kernel.clock.realtime();
    if call.args[0] != 0 {
        call.memory().write(call.args[0], &timeval(now))?;
    }
    if call.args[1] != 0 {
        call.memory().write(call.args[1], &[0_i32; 2])?;
    }
    Ok(Outcome::OK)
}

/// Nanoseconds as a `struct timeval`.
pub(super) fn timeval(ns: u64) -> Timeval {
    let Timespec { seconds, nanoseconds } = Timespec::from_ns(ns);
    Timeval { seconds, microseconds: nanoseconds / 1000 }
}

/// `int settimeofday(const struct timeval *tv, const struct timezone *tz)`
fn settimeofday(call: &mut Call<'_>) -> Answer {
    if call.args[0] != 0 {
        let time = call.memory().read::<Timeval>(call.args[0])?;
        if !(0..1_000_000).contains(&time.microseconds) || time.seconds < 0 {
            return Err(Errno::INVAL);
        }
    }
    if call.args[1] != 0 {
        call.memory().read::<[i32; 2]>(call.args[1])?;
    }
    Err(Errno::PERM)
}

/// `time_t time(time_t *tloc)`
fn time(call: &mut Call<'_>) -> Answer {
    let now = call.kernel.clock.realtime() / SECOND_NS;
    if call.args[0] != 0 {
        call.memory().write(call.args[0], &now)?;
    }
    Ok(Outcome::Return(now))
}

/// `sizeof(struct timex)`.
const TIMEX_BYTES: usize = 208;
/// TIME_OK is 0; STA_UNSYNC and TIME_ERROR are what a machine answers that does not know better.
const STA_UNSYNC: i32 = 0x40;
const TIME_ERROR: u64 = 5;

/// `int clock_adjtime(clockid_t clk_id, struct timex *buf)`
fn clock_adjtime(call: &mut Call<'_>) -> Answer {
    if call.uint(0) != sys::CLOCK_REALTIME {
        clock(call, call.int(0))?;
        return Err(Errno::OPNOTSUPP);
    }
    adjust(call, call.args[1])
}

/// `int adjtimex(struct timex *buf)`
fn adjtimex(call: &mut Call<'_>) -> Answer {
    adjust(call, call.args[0])
}

fn adjust(call: &Call<'_>, address: u64) -> Answer {
    let modes = call.memory().read::<u32>(address)?;
    // ADJ_OFFSET_SS_READ only reads.
    if modes != 0 && modes != 0xa001 {
        return Err(Errno::PERM);
    }
    let now = timeval(call.kernel.clock.realtime());
    let mut timex = [0_u8; TIMEX_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = timex.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &modes.to_le_bytes());
    put(24, &16_000_000_i64.to_le_bytes());
    put(32, &16_000_000_i64.to_le_bytes());
    put(40, &STA_UNSYNC.to_le_bytes());
    put(48, &2_i64.to_le_bytes());
    put(56, &1_i64.to_le_bytes());
    put(64, &32_768_000_i64.to_le_bytes());
    put(72, &now.seconds.to_le_bytes());
    put(80, &now.microseconds.to_le_bytes());
    put(88, &10_000_i64.to_le_bytes());
    call.memory().write_bytes(address, &timex)?;
    Ok(Outcome::Return(TIME_ERROR))
}
