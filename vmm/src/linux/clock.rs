//! The guest's clocks. CLOCK_MONOTONIC stands still while a snapshot is not running; CLOCK_REALTIME is always true.

use rustix::time::{ClockId, clock_gettime};

use super::MonotonicNs;

/// Clocks as offsets from the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Clock {
    /// Added to the host's CLOCK_MONOTONIC, nanoseconds.
    offset: i64,
}

/// The host's CLOCK_MONOTONIC in nanoseconds.
#[must_use]
pub fn host_monotonic() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// The host's CLOCK_REALTIME in nanoseconds since the epoch.
#[must_use]
pub fn host_realtime() -> u64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

fn nanoseconds(time: rustix::time::Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

impl Clock {
    /// CLOCK_MONOTONIC (and CLOCK_BOOTTIME) of the guest.
    #[must_use]
    pub fn monotonic(&self) -> MonotonicNs {
        host_monotonic().saturating_add_signed(self.offset)
    }

    /// CLOCK_REALTIME.
    #[must_use]
    pub fn realtime(&self) -> u64 {
        host_realtime()
    }

    /// The moment on CLOCK_MONOTONIC at which CLOCK_REALTIME shows `realtime`, as both run now.
    #[must_use]
    pub fn from_realtime(&self, realtime: u64) -> MonotonicNs {
        let now = self.realtime();
        if realtime >= now { self.monotonic().saturating_add(realtime - now) } else { self.monotonic().saturating_sub(now - realtime) }
    }

    /// What to add to a host's CLOCK_MONOTONIC to get the guest's.
    #[must_use]
    pub const fn offset(&self) -> i64 {
        self.offset
    }

    /// Make CLOCK_MONOTONIC go on from `instant` now: at a fork and at every reset it resumes at the snapshot's instant.
    pub fn resume_at(&mut self, instant: MonotonicNs) {
        self.offset = i64::try_from(i128::from(instant) - i128::from(host_monotonic())).unwrap_or(0);
    }

    /// The host's moment for a guest's moment.
    #[must_use]
    pub fn to_host(&self, instant: MonotonicNs) -> u64 {
        instant.saturating_add_signed(self.offset.saturating_neg())
    }
}
