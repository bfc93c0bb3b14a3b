//! Waiting awake: a thread looks for its next event for a while before it goes to sleep, where the last wait was that short.
//!
//! To sleep and to be woken costs as much as a short request (an interrupt to another CPU, and on virtual machines an exit for each
//! halt), and behind a response the client's next request is often closer than that. KVM does the same for a halted vCPU
//! (Documentation/virt/kvm/halt-polling.rst). A server without clients never does: one long wait ends it.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether some thread of the worker waits awake: one at a time, since the next event goes to one.
#[derive(Debug, Default)]
pub(super) struct Seat(AtomicBool);

/// What a thread knows of its waits.
#[derive(Debug)]
pub(super) struct BusyPoll {
    most_ns: u64,
    /// Others that may be busy meanwhile.
    busy_max: Option<usize>,
    was_short: bool,
}

/// The seat is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Seated<'a>(&'a Seat);

impl BusyPoll {
    /// Waits of up to `most_ns` nanoseconds are worth it; 0 for none. Of the CPUs one has to be left for the client.
    pub(super) const fn new(most_ns: u64, cpus: usize) -> Self {
        Self { most_ns, busy_max: cpus.checked_sub(2), was_short: false }
    }

    /// How long to wait awake, nanoseconds, if at all, where so many of the worker's threads are `busy`.
    pub(super) fn begin<'a>(&self, seat: &'a Seat, busy: impl FnOnce() -> usize) -> Option<(u64, Seated<'a>)> {
        if self.most_ns == 0 || !self.was_short || busy() > self.busy_max? {
            return None;
        }
        let is_free = seat.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        // Not made where the seat is another's: its end would free that.
        is_free.then(|| (self.most_ns, Seated(seat)))
    }

    /// A wait is over, which lasted so long, awake and asleep.
    pub(super) const fn waited(&mut self, nanoseconds: u64) {
        self.was_short = nanoseconds <= self.most_ns;
    }
}

impl Drop for Seated<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_short_wait_makes_the_next_one_awake() {
        let seat = Seat::default();
        let mut poll = BusyPoll::new(50, 2);
        assert!(poll.begin(&seat, || 0).is_none());
        poll.waited(51);
        assert!(poll.begin(&seat, || 0).is_none());
        poll.waited(50);
        assert_eq!(poll.begin(&seat, || 0).map(|(most, _)| most), Some(50));
        poll.waited(1_000);
        assert!(poll.begin(&seat, || 0).is_none());
    }

    #[test]
    fn one_thread_at_a_time() {
        let seat = Seat::default();
        let (mut first, mut second) = (BusyPoll::new(50, 2), BusyPoll::new(50, 2));
        first.waited(1);
        second.waited(1);
        let seated = first.begin(&seat, || 0);
        assert!(seated.is_some() && second.begin(&seat, || 0).is_none());
        // Who found it taken has not given it back.
        assert!(second.begin(&seat, || 0).is_none());
        drop(seated);
        assert!(second.begin(&seat, || 0).is_some());
    }

    #[test]
    fn a_cpu_is_left_for_the_client() {
        let seat = Seat::default();
        let mut poll = BusyPoll::new(50, 4);
        poll.waited(1);
        assert!(poll.begin(&seat, || 2).is_some() && poll.begin(&seat, || 3).is_none());
    }

    #[test]
    fn never_where_it_is_off_or_there_is_one_cpu() {
        let seat = Seat::default();
        for mut poll in [BusyPoll::new(0, 2), BusyPoll::new(50, 1)] {
            poll.waited(0);
            assert!(poll.begin(&seat, || 0).is_none());
        }
    }
}
