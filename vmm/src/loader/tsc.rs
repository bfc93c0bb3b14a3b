#![expect(unsafe_code, reason = "the standard library marks the intrinsics for LFENCE and RDTSC unsafe")]
//! How fast the processor's time stamp counter runs against CLOCK_MONOTONIC, measured, not taken from CPUID.
//!
//! UNSAFETY: RDTSC reads a counter and touches nothing else; user mode may execute it (Linux leaves CR4.TSD clear, and a
//! program that has forbidden it to itself by prctl would get SIGSEGV here, which ours never does).

use std::path::Path;

use crate::linux::clock::{Clock, host_monotonic, host_realtime};

use super::vdso::{CLOCK_PAGE_TSC, ClockPage};

/// Shortest time between two samples that gives a rate: a sample is good to about 50 ns, so the rate to 5 ppm.
const WINDOW_NS_MIN: u64 = 10_000_000;
/// Longest time a rate is averaged over; the host's clock is being disciplined all the while (`adjtimex(2)`, up to 500 ppm).
const WINDOW_NS_MAX: u64 = 16_000_000_000;
/// How often the rate is brought up to date, nanoseconds: every request asks for a page.
const RENEW_NS: u64 = 1_000_000;
/// A rate that differs by more than this from the one before says that the counter is not what we think it is (suspend,
/// migration), in parts per million.
const DRIFT_PPM_MAX: u64 = 1000;
/// How long a page may be used; by then the rate's error has come to a few microseconds, a leap of the host's clock shows.
const VALID_NS: u64 = 1_000_000_000;
/// Attempts for a sample that nothing interrupted.
const ATTEMPTS: usize = 8;

/// The two clocks and the counter at one instant.
#[derive(Debug, Clone, Copy)]
struct Sample {
    tsc: u64,
    monotonic_ns: u64,
    realtime_ns: u64,
    /// Ticks it took: how uncertain it is.
    spread: u64,
}

/// Nanoseconds a tick, times two to the power of `shift`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate {
    mult: u32,
    shift: u32,
    /// How many ticks a page may be used.
    valid_ticks: u64,
}

/// The relation between the host's counter and its clocks, followed over time. One in a process is enough; it is plain data.
#[derive(Debug, Clone)]
pub struct TscClock {
    /// Where the current window began.
    anchor: Sample,
    /// Where the next window will begin.
    next_anchor: Sample,
    rate: Option<Rate>,
    /// When that was brought up to date, CLOCK_MONOTONIC.
    rated_at_ns: u64,
    /// Ticks a sample takes when nothing interrupts it.
    best_spread: u64,
    usable: bool,
}

impl TscClock {
    /// Begin to measure. A rate is known at the first [`TscClock::clock_page`] that is at least 10 ms later, and becomes more
    /// precise with time; until then, and where the host's kernel does not trust the counter, pages say "use the system call".
    #[must_use]
    pub fn start() -> Self {
        let first = (0..ATTEMPTS).map(|_| Sample::take()).min_by_key(|sample| sample.spread).unwrap_or_else(Sample::take);
        let usable = host_trusts_counter();
        Self { anchor: first, next_anchor: first, rate: None, rated_at_ns: 0, best_spread: first.spread, usable }
    }

    /// Measure for 10 ms: for callers that need the first page to be complete.
    #[must_use]
    pub fn calibrate() -> Self {
        let mut clock = Self::start();
        std::thread::sleep(std::time::Duration::from_nanos(WINDOW_NS_MIN));
        clock.follow(clock.sample());
        clock
    }

    /// The content of a guest's clock page from now on, for a guest whose clocks are `guest`.
    pub fn clock_page(&mut self, guest: &Clock) -> ClockPage {
        let sample = self.sample();
        self.follow(sample);
        let Some(rate) = self.rate.filter(|_| self.usable) else { return ClockPage::default() };
        ClockPage {
            flags: CLOCK_PAGE_TSC,
            tsc_base: sample.tsc,
            monotonic_ns: sample.monotonic_ns.saturating_add_signed(guest.offset()),
            realtime_ns: sample.realtime_ns,
            mult: rate.mult,
            shift: rate.shift,
            valid_ticks: rate.valid_ticks,
            ..ClockPage::default()
        }
    }

    fn sample(&self) -> Sample {
        let mut best = Sample::take();
        for _ in 1..ATTEMPTS {
            if best.spread <= self.best_spread.saturating_mul(2) {
                break;
            }
            let other = Sample::take();
            if other.spread < best.spread {
                best = other;
            }
        }
        best
    }

    /// Bring the rate up to date with a new sample.
    fn follow(&mut self, sample: Sample) {
        let window = sample.monotonic_ns.saturating_sub(self.anchor.monotonic_ns);
        // A sample that was interrupted is no measure; the next one will do.
        if window < WINDOW_NS_MIN || sample.spread > self.best_spread.saturating_mul(10) {
            return;
        }
        if self.rate.is_some() && sample.monotonic_ns.saturating_sub(self.rated_at_ns) < RENEW_NS {
            return;
        }
        self.rated_at_ns = sample.monotonic_ns;
        self.best_spread = self.best_spread.min(sample.spread);
        let rate = sample.tsc.checked_sub(self.anchor.tsc).and_then(|ticks| Rate::new(window, ticks));
        match (rate, self.rate) {
            (Some(new), Some(old)) if !new.is_near(old) => self.begin_again(sample),
            (Some(new), _) => self.rate = Some(new),
            (None, _) => self.begin_again(sample),
        }
        if window >= WINDOW_NS_MAX / 2 && self.next_anchor.monotonic_ns == self.anchor.monotonic_ns {
            self.next_anchor = sample;
        }
        if window >= WINDOW_NS_MAX {
            self.anchor = self.next_anchor;
        }
    }

    /// Forget the rate: system calls are used until there is a new one.
    fn begin_again(&mut self, sample: Sample) {
        (self.anchor, self.next_anchor, self.rate) = (sample, sample, None);
    }
}

impl Sample {
    fn take() -> Self {
        let before = counter();
        let monotonic_ns = host_monotonic();
        let between = counter();
        let realtime_ns = host_realtime();
        let after = counter();
        // Each clock was read about in the middle of its two counts; the two middles lie a few dozen nanoseconds apart, which is
        // less than CLOCK_REALTIME is good for.
        Self { tsc: before.wrapping_add(between.wrapping_sub(before) / 2), monotonic_ns, realtime_ns, spread: after.wrapping_sub(before) }
    }
}

impl Rate {
    /// `ns` nanoseconds took `ticks` ticks; `None` where that is no plausible processor (100 MHz to 20 GHz).
    fn new(ns: u64, ticks: u64) -> Option<Self> {
        if ns == 0 || ticks / ns > 20 || ticks < ns / 10 {
            return None;
        }
        // The largest shift whose multiplier has 32 bits: all the precision there is. The logarithms know it but for one.
        let most = (33 + ticks.ilog2()).saturating_sub(ns.ilog2()).min(63);
        (0..=most).rev().find_map(|shift| {
            let mult = u32::try_from((u128::from(ns) << shift) / u128::from(ticks)).ok()?;
            Some(Self { mult, shift, valid_ticks: Self::ticks(mult, shift, VALID_NS) })
        })
    }

    /// How many ticks take so many nanoseconds.
    fn ticks(mult: u32, shift: u32, ns: u64) -> u64 {
        u64::try_from((u128::from(ns) << shift) / u128::from(mult.max(1))).unwrap_or(u64::MAX)
    }

    fn is_near(self, other: Self) -> bool {
        let scaled = |rate: Self| u128::from(rate.mult) << (64 - rate.shift);
        let (a, b) = (scaled(self), scaled(other));
        a.abs_diff(b) <= a / 1_000_000 * u128::from(DRIFT_PPM_MAX)
    }
}

/// Whether Linux still offers the counter as a clock source: it withdraws one that stops, changes its rate or differs between
/// processors.
fn host_trusts_counter() -> bool {
    let path = Path::new("/sys/devices/system/clocksource/clocksource0/available_clocksource");
    std::fs::read_to_string(path).is_ok_and(|names| names.split_whitespace().any(|name| name == "tsc"))
}

/// The time stamp counter, after all earlier instructions.
fn counter() -> u64 {
    // SAFETY: LFENCE is part of SSE2, which every x86-64 processor has.
    unsafe { std::arch::x86_64::_mm_lfence() };
    // SAFETY: see the head of the file.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_use_all_bits_and_refuse_nonsense() {
        let rate = Rate::new(1_000_000_000, 3_000_000_000).expect("3 GHz");
        assert!(rate.mult >= 1 << 31);
        assert!(rate.valid_ticks.abs_diff(3_000_000_000) < 2);
        let ns = (3_000_000_000_u128 * 3600 * u128::from(rate.mult)) >> rate.shift;
        assert!(ns.abs_diff(3_600_000_000_000) < 10_000, "{ns} after an hour");
        assert_eq!(Rate::new(0, 1), None);
        assert_eq!(Rate::new(1_000_000, 1), None);
        assert_eq!(Rate::new(1, u64::MAX), None);
        assert!(rate.is_near(Rate::new(1_000_000_000, 3_000_300_000).expect("near")));
        assert!(!rate.is_near(Rate::new(1_000_000_000, 3_100_000_000).expect("far")));
    }

    #[test]
    fn a_counter_that_jumps_is_given_up_until_measured_again() {
        // An attempt that is interrupted in both of its samples measures nothing.
        let mut clock = (0..100).map(|_| TscClock::calibrate()).find(|clock| clock.rate.is_some()).unwrap();
        let far =
            Sample { tsc: clock.anchor.tsc.wrapping_add(1 << 45), monotonic_ns: clock.anchor.monotonic_ns + 20_000_000, ..clock.anchor };
        clock.follow(far);
        assert_eq!(clock.rate, None);
    }

    #[test]
    fn windows_move_along_and_follow_a_slow_change() {
        let mut clock = TscClock { usable: true, ..TscClock::start() };
        let first = clock.anchor;
        let mut tsc = first.tsc;
        for second in 1..40 {
            // The host's clock is being slewed: a tick becomes 20 ppm shorter every second.
            tsc += 3_000_000_000 + second * 60_000;
            clock.follow(Sample { tsc, monotonic_ns: first.monotonic_ns + second * 1_000_000_000, ..first });
            assert!(clock.rate.is_some(), "second {second}");
        }
        assert!(clock.anchor.monotonic_ns >= first.monotonic_ns + 20_000_000_000);
    }
}
