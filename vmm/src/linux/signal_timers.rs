//! Timers that send signals: `setitimer(2)`, `alarm(2)`, `timer_create(2)`.
//!
//! As in Linux, a periodic timer whose signal has not been taken yet is not armed: it goes on from its own schedule when the
//! signal is taken, and the expiries in between are its overrun. So a timer of one nanosecond costs as much as the program
//! takes signals, no more. Timers on processor time are looked at once a millisecond at most.

use linux_raw_sys::general as sys;

use super::signal::{Signal, SignalInfo, Target};
use super::thread::{State, Tid};
use super::{Errno, Kernel, MonotonicNs};
use crate::limits::TIMERS_MAX;

/// How finely processor time is watched, and how often a periodic timer whose signal is ignored is looked at, nanoseconds.
const TICK_NS: u64 = 1_000_000;

/// What a timer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerClock {
    /// CLOCK_MONOTONIC and CLOCK_BOOTTIME.
    Monotonic,
    /// CLOCK_REALTIME and CLOCK_TAI.
    Realtime,
    /// Processor time of the process.
    ProcessCpu,
    /// Processor time of a thread.
    ThreadCpu(Tid),
}

/// When a timer expires next and how long its period is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Time of the timer's clock, nanoseconds; none for a disarmed timer.
    pub expires: Option<u64>,
    /// Nanoseconds; 0 for a timer that expires once.
    pub interval: u64,
}

impl Schedule {
    /// Go on to the first expiry after `now`; returns how many expiries that passes over. A timer that expires once is disarmed.
    fn forward(&mut self, now: u64) -> u64 {
        let Some(expires) = self.expires else { return 0 };
        if self.interval == 0 {
            self.expires = None;
            return 1;
        }
        if expires > now {
            return 0;
        }
        let passed = (now - expires) / self.interval + 1;
        self.expires = Some(expires.saturating_add(passed.saturating_mul(self.interval)));
        passed
    }

    /// Nanoseconds until the next expiry, at least one for a timer that is armed; 0 for one that is not.
    fn remaining(mut self, now: u64) -> u64 {
        if self.interval != 0 {
            self.forward(now);
        }
        self.expires.map_or(0, |expires| expires.saturating_sub(now).max(1))
    }
}

/// The three timers of `setitimer(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntervalKind {
    /// ITIMER_REAL: SIGALRM.
    Real,
    /// ITIMER_VIRTUAL: SIGVTALRM.
    Virtual,
    /// ITIMER_PROF: SIGPROF.
    Profile,
}

/// Whom a POSIX timer tells (`sigevent(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notify {
    /// Nobody.
    None,
    /// The process or a thread.
    Signal(Target),
}

/// What `timer_create(2)` makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PosixTimer {
    /// Its id.
    pub id: i32,
    /// What it was created to count.
    pub clock: TimerClock,
    /// Whom it tells.
    pub notify: Notify,
    /// With which signal.
    pub signal: Signal,
    /// And which value.
    pub value: u64,
    /// On `base`.
    pub schedule: Schedule,
    /// The clock of the schedule: a relative time on CLOCK_REALTIME is not moved by setting that clock.
    base: TimerClock,
    /// Its signal has been sent and not been taken.
    queued: bool,
    /// Distinguishes this arming in the signal's information.
    generation: u32,
    /// What `timer_getoverrun` answers.
    pub overrun: i32,
}

/// All timers of a process that send signals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timers {
    real: Schedule,
    real_queued: bool,
    cpu_virtual: Schedule,
    cpu_profile: Schedule,
    posix: Vec<PosixTimer>,
    next_id: i32,
    next_generation: u32,
}

impl Timers {
    fn interval(&mut self, kind: IntervalKind) -> &mut Schedule {
        match kind {
            IntervalKind::Real => &mut self.real,
            IntervalKind::Virtual => &mut self.cpu_virtual,
            IntervalKind::Profile => &mut self.cpu_profile,
        }
    }

    fn generation(&mut self) -> u32 {
        // Never 0: that says "not from a timer of ours".
        self.next_generation = self.next_generation.checked_add(1).unwrap_or(1);
        self.next_generation
    }

    /// Delete all POSIX timers.
    pub(super) fn forget_posix(&mut self) {
        self.posix.clear();
    }

    /// The timer with an id that a guest named.
    ///
    /// # Errors
    ///
    /// EINVAL.
    pub fn posix(&self, id: i32) -> Result<&PosixTimer, Errno> {
        self.posix.iter().find(|timer| timer.id == id).ok_or(Errno::INVAL)
    }

    fn posix_mut(&mut self, id: i32) -> Result<&mut PosixTimer, Errno> {
        self.posix.iter_mut().find(|timer| timer.id == id).ok_or(Errno::INVAL)
    }
}

impl Kernel {
    /// Time of a timer's clock, nanoseconds. The clock of a thread that has ended stands still.
    #[must_use]
    pub fn timer_clock(&self, clock: TimerClock) -> u64 {
        match clock {
            TimerClock::Monotonic => self.clock.monotonic(),
            TimerClock::Realtime => self.clock.realtime(),
            TimerClock::ProcessCpu => self.threads.cpu_time_ns(),
            TimerClock::ThreadCpu(tid) => self.threads.peek(tid).map_or(0, |thread| thread.cpu_time_ns),
        }
    }

    const fn interval_clock(kind: IntervalKind) -> TimerClock {
        match kind {
            IntervalKind::Real => TimerClock::Monotonic,
            IntervalKind::Virtual | IntervalKind::Profile => TimerClock::ProcessCpu,
        }
    }

    /// `getitimer(2)`: nanoseconds until the next expiry and the period.
    pub fn interval_timer(&mut self, kind: IntervalKind) -> (u64, u64) {
        let now = self.timer_clock(Self::interval_clock(kind));
        let schedule = *self.process.signals.timers.interval(kind);
        (schedule.remaining(now), schedule.interval)
    }

    /// `setitimer(2)`: `value` nanoseconds from now, 0 to disarm; returns what [`Kernel::interval_timer`] would have.
    pub fn set_interval_timer(&mut self, kind: IntervalKind, value: u64, interval: u64) -> (u64, u64) {
        let old = self.interval_timer(kind);
        let expires = (value != 0).then(|| self.timer_clock(Self::interval_clock(kind)).saturating_add(value));
        let timers = &mut self.process.signals.timers;
        *timers.interval(kind) = Schedule { expires, interval };
        if kind == IntervalKind::Real {
            timers.real_queued = false;
        }
        old
    }

    /// `timer_create(2)`; `signal` and `value` of `None` are those of a null `sigevent`. Returns the id.
    ///
    /// # Errors
    ///
    /// EAGAIN where there are too many.
    pub fn create_timer(&mut self, clock: TimerClock, notify: Notify, signal: Signal, value: Option<u64>) -> Result<i32, Errno> {
        let timers = &mut self.process.signals.timers;
        if timers.posix.len() >= TIMERS_MAX {
            return Err(Errno::AGAIN);
        }
        let mut id = timers.next_id;
        while timers.posix(id).is_ok() {
            id = id.checked_add(1).unwrap_or(0);
        }
        timers.next_id = id.checked_add(1).unwrap_or(0);
        let value = value.unwrap_or(u64::from(id.cast_unsigned()));
        let generation = timers.generation();
        let schedule = Schedule::default();
        timers.posix.push(PosixTimer { id, clock, notify, signal, value, schedule, base: clock, queued: false, generation, overrun: 0 });
        Ok(id)
    }

    /// `timer_delete(2)`. A signal of it that has not been taken goes with it.
    ///
    /// # Errors
    ///
    /// EINVAL.
    pub fn delete_timer(&mut self, id: i32) -> Result<(), Errno> {
        let generation = self.process.signals.timers.posix(id)?.generation;
        self.forget_timer_signal(generation);
        self.process.signals.timers.posix.retain(|timer| timer.id != id);
        Ok(())
    }

    /// `timer_gettime(2)`: nanoseconds until the next expiry and the period.
    ///
    /// # Errors
    ///
    /// EINVAL.
    pub fn timer_setting(&self, id: i32) -> Result<(u64, u64), Errno> {
        let timer = self.process.signals.timers.posix(id)?;
        let now = self.timer_clock(timer.base);
        let over = timer.notify == Notify::None && timer.schedule.interval == 0 && timer.schedule.expires.is_some_and(|at| at <= now);
        let remaining = if over { 0 } else { timer.schedule.remaining(now) };
        Ok((remaining, timer.schedule.interval))
    }

    /// `timer_settime(2)`: expire at `value` on the timer's clock if `absolute`, else `value` nanoseconds from now; 0 disarms. Returns
    /// what [`Kernel::timer_setting`] would have.
    ///
    /// # Errors
    ///
    /// EINVAL.
    pub fn set_timer(&mut self, id: i32, value: u64, interval: u64, absolute: bool) -> Result<(u64, u64), Errno> {
        let old = self.timer_setting(id)?;
        let timer = self.process.signals.timers.posix(id)?;
        let generation = timer.generation;
        let base = if timer.clock == TimerClock::Realtime && !absolute { TimerClock::Monotonic } else { timer.clock };
        let start = if absolute { 0 } else { self.timer_clock(base) };
        self.forget_timer_signal(generation);
        let timers = &mut self.process.signals.timers;
        let generation = timers.generation();
        let timer = timers.posix_mut(id)?;
        timer.base = base;
        timer.schedule = Schedule { expires: (value != 0).then(|| start.saturating_add(value)), interval };
        (timer.queued, timer.overrun, timer.generation) = (false, 0, generation);
        Ok(old)
    }

    fn forget_timer_signal(&mut self, generation: u32) {
        self.process.signals.pending.forget_timer(generation);
        for thread in self.threads.iter_mut() {
            thread.signals.pending.forget_timer(generation);
        }
    }

    /// SIGALRM of the process was taken: ITIMER_REAL goes on.
    pub(super) fn interval_signal_taken(&mut self, signal: Signal) {
        if signal == sys::SIGALRM.cast_signed() && self.process.signals.timers.real_queued {
            let now = self.clock.monotonic();
            let timers = &mut self.process.signals.timers;
            timers.real_queued = false;
            timers.real.forward(now);
        }
    }

    /// The signal of a POSIX timer was taken: the timer goes on, and the signal says how many expiries were lost.
    pub(super) fn timer_signal_taken(&mut self, info: &mut SignalInfo) {
        let generation = std::mem::take(&mut info.fields[2]);
        let Some(timer) = self.process.signals.timers.posix.iter().find(|timer| u64::from(timer.generation) == generation) else { return };
        let now = self.timer_clock(timer.base);
        let id = timer.id;
        let Ok(timer) = self.process.signals.timers.posix_mut(id) else { return };
        timer.queued = false;
        timer.overrun = i32::try_from(timer.schedule.forward(now).saturating_sub(1)).unwrap_or(i32::MAX);
        info.fields[0] = u64::from(timer.id.cast_unsigned()) | u64::from(timer.overrun.cast_unsigned()) << 32;
    }

    /// When the next timer that sends a signal (or a timerfd) expires.
    #[must_use]
    pub fn next_timer(&self) -> Option<MonotonicNs> {
        let timers = &self.process.signals.timers;
        let real = timers.real.expires.filter(|_| !timers.real_queued);
        let cpu = [timers.cpu_virtual.expires, timers.cpu_profile.expires].into_iter().flatten().min();
        let cpu = cpu.and_then(|at| self.moment(TimerClock::ProcessCpu, at));
        let posix = timers.posix.iter().filter(|timer| !timer.queued && timer.notify != Notify::None);
        let posix = posix.filter_map(|timer| self.moment(timer.base, timer.schedule.expires?)).min();
        let files = self.files.next_timer(self.clock.monotonic());
        [real, cpu, posix, files].into_iter().flatten().min()
    }

    /// The moment on CLOCK_MONOTONIC at which a clock shows `at`; for processor time the earliest at which it can.
    fn moment(&self, clock: TimerClock, at: u64) -> Option<MonotonicNs> {
        if clock == TimerClock::Monotonic {
            return Some(at);
        }
        let left = at.saturating_sub(self.timer_clock(clock));
        match clock {
            TimerClock::Monotonic | TimerClock::Realtime => Some(self.clock.monotonic().saturating_add(left)),
            TimerClock::ProcessCpu if !self.threads.iter().any(|thread| running(&thread.state)) => None,
            TimerClock::ThreadCpu(tid) if !self.threads.peek(tid).is_some_and(|thread| running(&thread.state)) => None,
            TimerClock::ProcessCpu | TimerClock::ThreadCpu(_) => Some(self.clock.monotonic().saturating_add(left.max(TICK_NS))),
        }
    }

    /// Send the signals of timers that have expired by `now`.
    pub fn fire_timers(&mut self, now: MonotonicNs) {
        self.fire_real(now);
        let used = self.threads.cpu_time_ns();
        for (kind, signal) in [(IntervalKind::Virtual, sys::SIGVTALRM), (IntervalKind::Profile, sys::SIGPROF)] {
            let schedule = self.process.signals.timers.interval(kind);
            if schedule.expires.is_some_and(|at| at <= used) {
                schedule.forward(used);
                self.send_process_signal(signal.cast_signed());
            }
        }
        for index in 0..self.process.signals.timers.posix.len() {
            self.fire_posix(index);
        }
    }

    fn fire_real(&mut self, now: MonotonicNs) {
        let timers = &mut self.process.signals.timers;
        if timers.real_queued || timers.real.expires.is_none_or(|at| at > now) {
            return;
        }
        let signal = sys::SIGALRM.cast_signed();
        if timers.real.interval == 0 {
            timers.real.expires = None;
            self.send_process_signal(signal);
        } else {
            self.send_process_signal(signal);
            let queued = self.process.signals.pending.set() & super::signal::bit(signal) != 0;
            let timers = &mut self.process.signals.timers;
            timers.real_queued = queued;
            if !queued {
                timers.real.forward(now.saturating_add(TICK_NS));
            }
        }
    }

    fn fire_posix(&mut self, index: usize) {
        let Some(timer) = self.process.signals.timers.posix.get(index) else { return };
        let Notify::Signal(target) = timer.notify else { return };
        let now = self.timer_clock(timer.base);
        if timer.queued || timer.schedule.expires.is_none_or(|at| at > now) {
            return;
        }
        let info = SignalInfo::timer(timer.signal, timer.id, timer.value, timer.generation);
        let generation = timer.generation;
        // Whether it was sent shows in the queue: it is dropped where it would be ignored or the thread has gone.
        let _ = self.queue_signal(target, info);
        let sent = match target {
            Target::Thread(tid) => self.threads.peek(tid).is_some_and(|thread| thread.signals.pending.holds_timer(generation)),
            Target::Process => self.process.signals.pending.holds_timer(generation),
        };
        let Some(timer) = self.process.signals.timers.posix.get_mut(index) else { return };
        if timer.schedule.interval == 0 {
            timer.schedule.expires = None;
        } else if sent {
            timer.queued = true;
        } else {
            timer.schedule.forward(now.saturating_add(TICK_NS));
        }
    }
}

const fn running(state: &State) -> bool {
    matches!(state, State::Runnable)
}
