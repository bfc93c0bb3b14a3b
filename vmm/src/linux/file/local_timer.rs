//! timerfd (`timerfd_create(2)`): expirations are computed from the clock when somebody looks, nothing runs in between.

use super::local::flag;
use super::{PollEvents, Readiness};
use crate::linux::MonotonicNs;
use crate::linux::clock::host_realtime;

/// The clock that an expiry is a moment of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerClock {
    /// CLOCK_MONOTONIC and CLOCK_BOOTTIME; also relative times on CLOCK_REALTIME, which clock changes do not move.
    Monotonic,
    /// Absolute times on CLOCK_REALTIME.
    Realtime,
}

impl TimerClock {
    /// This clock's time when the guest's CLOCK_MONOTONIC shows `now`.
    fn now(self, now: MonotonicNs) -> u64 {
        match self {
            Self::Monotonic => now,
            Self::Realtime => host_realtime(),
        }
    }
}

/// A timerfd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimerFd {
    /// Whether it was created for CLOCK_REALTIME, which decides what absolute times mean.
    pub realtime: bool,
    clock: TimerClock,
    /// When it expires next (or has expired and not been read), in `clock`; `None` while disarmed.
    expiry: Option<u64>,
    /// Period, nanoseconds; 0 for one expiration.
    interval: u64,
    /// How often it was set or read.
    epoch: u64,
}

/// `struct itimerspec` in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimerSetting {
    /// Time until it expires; 0 while disarmed.
    pub value: u64,
    /// Period.
    pub interval: u64,
}

impl TimerFd {
    /// A disarmed timer.
    #[must_use]
    pub const fn new(realtime: bool) -> Self {
        Self { realtime, clock: TimerClock::Monotonic, expiry: None, interval: 0, epoch: 0 }
    }

    /// Arm it at an absolute or relative time, or disarm it with a value of 0.
    pub fn set(&mut self, setting: TimerSetting, absolute: bool, now: MonotonicNs) {
        self.clock = if absolute && self.realtime { TimerClock::Realtime } else { TimerClock::Monotonic };
        self.interval = setting.interval;
        self.expiry = match setting.value {
            0 => None,
            value if absolute => Some(value),
            value => Some(now.saturating_add(value)),
        };
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// What is left, as `timerfd_gettime` shows it.
    #[must_use]
    pub fn remaining(&self, now: MonotonicNs) -> TimerSetting {
        let now = self.clock.now(now);
        let value = match self.expiry {
            None => 0,
            Some(expiry) if expiry > now => expiry - now,
            Some(expiry) => (now - expiry).checked_rem(self.interval).map_or(0, |into| self.interval - into),
        };
        TimerSetting { value, interval: self.interval }
    }

    /// Expirations that nobody has read.
    #[must_use]
    pub fn ticks(&self, now: MonotonicNs) -> u64 {
        let now = self.clock.now(now);
        match self.expiry {
            Some(expiry) if expiry <= now => (now - expiry).checked_div(self.interval).unwrap_or(0).saturating_add(1),
            _ => 0,
        }
    }

    /// Read the expirations; `None` where there are none yet.
    pub fn take(&mut self, now: MonotonicNs) -> Option<u64> {
        let ticks = self.ticks(now);
        if ticks == 0 {
            return None;
        }
        self.expiry = match self.expiry {
            Some(expiry) if self.interval > 0 => Some(expiry.saturating_add(self.interval.saturating_mul(ticks))),
            _ => None,
        };
        self.epoch = self.epoch.wrapping_add(1);
        Some(ticks)
    }

    /// When it will next become readable, on CLOCK_MONOTONIC; `None` where it is readable or disarmed.
    #[must_use]
    pub fn next(&self, now: MonotonicNs) -> Option<MonotonicNs> {
        let here = self.clock.now(now);
        self.expiry.filter(|&expiry| expiry > here).map(|expiry| now.saturating_add(expiry - here))
    }

    /// What `poll(2)` says of it.
    pub(super) fn readiness(&self, now: MonotonicNs) -> Readiness {
        let expired = self.ticks(now) > 0;
        // As on Linux an expired timer is one edge until it is read, however often it would have fired since.
        let arrivals = self.epoch.wrapping_mul(2).wrapping_add(u64::from(expired));
        Readiness { events: flag(expired, PollEvents::IN), arrivals, room: 0, ends: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armed(value: u64, interval: u64, now: u64) -> TimerFd {
        let mut timer = TimerFd::new(false);
        timer.set(TimerSetting { value, interval }, false, now);
        timer
    }

    #[test]
    fn a_single_expiration_is_read_once() {
        let mut timer = armed(10, 0, 100);
        assert_eq!((timer.take(109), timer.next(109)), (None, Some(110)));
        assert_eq!((timer.take(500), timer.take(900)), (Some(1), None));
        assert_eq!(timer.remaining(900), TimerSetting::default());
    }

    #[test]
    fn an_interval_counts_what_was_missed_and_keeps_its_phase() {
        let mut timer = armed(10, 7, 100);
        assert_eq!(timer.ticks(110 + 7 * 3), 4);
        assert_eq!(timer.remaining(110 + 7 * 3 + 2).value, 5);
        assert_eq!(timer.next(200), None);
        assert_eq!(timer.take(110 + 7 * 3 + 2), Some(4));
        assert_eq!(timer.next(133), Some(138));
    }

    #[test]
    fn a_past_absolute_time_expires_at_once() {
        let mut timer = TimerFd::new(false);
        timer.set(TimerSetting { value: 5, interval: 0 }, true, 100);
        assert_eq!(timer.readiness(100).events, PollEvents::IN);
    }

    #[test]
    fn realtime_counts_only_for_absolute_times() {
        let mut timer = TimerFd::new(true);
        timer.set(TimerSetting { value: 50, interval: 0 }, false, 100);
        assert_eq!(timer.next(100), Some(150));
        timer.set(TimerSetting { value: host_realtime() + 3_600_000_000_000, interval: 0 }, true, 100);
        assert!(timer.next(100).is_some_and(|next| next > 3_500_000_000_000 && next < 3_700_000_000_000));
        timer.set(TimerSetting { value: 1, interval: 0 }, true, 100);
        assert_eq!(timer.ticks(100), 1);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut timer = armed(u64::MAX, u64::MAX, 5);
        assert_eq!(timer.ticks(u64::MAX), 1);
        assert_eq!(timer.take(u64::MAX), Some(1));
        assert_eq!(timer.next(7), Some(u64::MAX));
        let mut fast = armed(1, 1, 0);
        assert_eq!(fast.take(u64::MAX - 1), Some(u64::MAX - 1));
    }

    #[test]
    fn an_expiry_is_one_edge_until_it_is_read() {
        let mut timer = armed(10, 10, 0);
        let before = timer.readiness(5).arrivals;
        let first = timer.readiness(10).arrivals;
        assert_ne!(before, first);
        assert_eq!(first, timer.readiness(35).arrivals);
        timer.take(35);
        assert_ne!(first, timer.readiness(40).arrivals);
    }
}
