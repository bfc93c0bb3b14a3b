//! The thread that looks after a storage program: runs what it does while nobody calls, ends what hangs, starts it anew.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use super::machine::{Driven, Machine, drive, watched};
use super::{Shared, lock};
use crate::linux::clock::host_monotonic;
use crate::panics::contain;
use crate::platform::kvm::{Kick, Kicker};

/// The pause before the second start in a row, and the longest: a program that can start is up again within a second, most of which
/// it may need itself.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(160);
/// A program that has run for this long has failed for a new reason: the next start is made at once.
const HEALTHY_NS: u64 = 5_000_000_000;

/// How long callers are left alone after one of them was waiting.
const YIELD_PAUSE: Duration = Duration::from_micros(200);

/// What to do next.
enum Next {
    /// Wait for the descriptors of the program, or a moment of the host's clock.
    Wait(Vec<(std::sync::Arc<std::os::fd::OwnedFd>, crate::linux::file::PollEvents)>, Option<u64>),
    /// Look again.
    Again,
    /// Somebody else was waiting, and may come again at once.
    Yield,
    /// There is no program.
    Start,
}

/// Look after the program until it is to stop.
pub(super) fn run(shared: &Shared, restart: bool) {
    let Ok(kicker) = Kicker::for_this_thread() else {
        lock(&shared.notices).error("the storage program cannot run by itself: no timer could be made".into());
        return;
    };
    *lock(&shared.background) = Some(Kick::this_thread());
    let mut starts = Starts::default();
    while !shared.stop.load(Ordering::Acquire) {
        let next = contain(|| turn(shared, &kicker)).unwrap_or_else(|panic| {
            lock(&shared.notices).error(format!("{panic}; the storage program is started again"));
            Next::Again
        });
        match next {
            Next::Again => {}
            // Not straight back into the line: with callers one after the other, each would have to wait for us.
            Next::Yield => std::thread::sleep(YIELD_PAUSE),
            Next::Wait(polls, moment) => wait(shared, &polls, moment),
            Next::Start if restart => starts.start(shared),
            Next::Start => wait(shared, &[], None),
        }
    }
}

/// Run the program for a turn.
fn turn(shared: &Shared, kicker: &Kicker) -> Next {
    let Some(turn) = shared.turns.take(u64::MAX, || false) else { return Next::Again };
    let mut machine = shared.machine();
    let Machine { sandbox: Some(sandbox), detached, .. } = &mut *machine else { return Next::Start };
    let limit = detached.map(|detached| detached.limit);
    sandbox.yield_when(Some(std::sync::Arc::clone(&shared.waiting)));
    // Whatever it waited for may have happened.
    sandbox.kernel_mut().files.changes += 1;
    shared.background_runs.store(true, Ordering::SeqCst);
    let driven = if shared.stop.load(Ordering::Acquire) {
        Driven::Yielded
    } else {
        drive(sandbox, kicker, limit.unwrap_or(u64::MAX).min(host_monotonic().saturating_add(LONGEST_TURN_NS)), false)
    };
    shared.background_runs.store(false, Ordering::SeqCst);
    sandbox.yield_when(None);
    shared.pass_on_notes(sandbox);
    let next = match driven {
        Driven::Idle => {
            let watching = watched(sandbox);
            let moment = [watching.moment, limit].into_iter().flatten().min();
            let polls = sandbox.kernel().host_polls();
            machine.watched = watching;
            Next::Wait(polls, moment)
        }
        Driven::Answered(_) => {
            shared.settle(&mut machine);
            Next::Again
        }
        Driven::TimedOut(end) if limit.is_some_and(|limit| limit <= host_monotonic()) => {
            shared.lose(&mut machine, &end);
            Next::Start
        }
        Driven::TimedOut(_) => Next::Again,
        Driven::Yielded => Next::Yield,
        Driven::Died(end) => {
            shared.lose(&mut machine, &end);
            Next::Start
        }
    };
    drop(machine);
    drop(turn);
    next
}

/// A busy program is looked at again after this long, nanoseconds.
const LONGEST_TURN_NS: u64 = 1_000_000_000;

/// Sleep until there is something to do.
fn wait(shared: &Shared, polls: &[(std::sync::Arc<std::os::fd::OwnedFd>, crate::linux::file::PollEvents)], moment: Option<u64>) {
    let mut descriptors = vec![PollFd::new(&shared.wake, PollFlags::IN)];
    descriptors.extend(
        polls
            .iter()
            .map(|(descriptor, events)| PollFd::new(&**descriptor, PollFlags::from_bits_retain(u16::try_from(events.bits()).unwrap_or(0)))),
    );
    let timeout = moment.map(|moment| {
        let left = moment.saturating_sub(host_monotonic());
        rustix::time::Timespec { tv_sec: (left / 1_000_000_000).cast_signed(), tv_nsec: (left % 1_000_000_000).cast_signed() }
    });
    let _ = rustix::event::poll(&mut descriptors, timeout.as_ref());
    let mut count = [0; 8];
    let _ = rustix::io::read(&shared.wake, &mut count);
}

/// Starts in a row, with growing pauses between them.
#[derive(Debug, Default)]
struct Starts {
    pause: Duration,
    last: u64,
}

impl Starts {
    fn start(&mut self, shared: &Shared) {
        if host_monotonic().saturating_sub(self.last) > HEALTHY_NS {
            self.pause = Duration::ZERO;
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.last = host_monotonic();
        match shared.boot(shared.config.boot_time_ns) {
            Ok(took) => lock(&shared.notices).started(format!("the storage program was started again in {} ms", took / 1_000_000)),
            Err(error) => {
                shared.counters.failures.fetch_add(1, Ordering::Relaxed);
                lock(&shared.notices).failed(format!("the storage program cannot be started again: {error}"));
            }
        }
    }
}
