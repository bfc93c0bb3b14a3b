//! The storage program's VM under whoever's turn it is: driven to an answer, or while nobody calls.

use crate::linux::clock::host_monotonic;
use crate::linux::file::PollEvents;
use crate::platform::kvm::Kicker;
use crate::sandbox::{CallBuffer, Pause, RunEnd, Sandbox};

/// What driving it came to.
#[derive(Debug)]
pub(super) enum Driven {
    /// It has answered.
    Answered(i64),
    /// The moment has come before.
    TimedOut(RunEnd),
    /// Somebody else wants it.
    Yielded,
    /// All its threads sleep, and it was not to be waited for.
    Idle,
    /// It is no more.
    Died(RunEnd),
}

/// A call whose caller has gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Detached {
    pub(super) buffer: CallBuffer,
    /// When its time is over.
    pub(super) limit: u64,
}

/// What an idle VM waits for, to see whether the thread that watches it has to be told of a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Watched {
    /// Host descriptors and events.
    pub(super) descriptors: Vec<(i32, PollEvents)>,
    /// A moment of the host's clock.
    pub(super) moment: Option<u64>,
}

impl Watched {
    /// Whether one who waits for this needs no waking to wait for `other`.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let in_time = match (self.moment, other.moment) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(mine), Some(theirs)) => mine <= theirs,
        };
        in_time && self.descriptors == other.descriptors
    }
}

/// The VM, or nothing while the program is being started again.
#[derive(Debug, Default)]
pub(super) struct Machine {
    pub(super) sandbox: Option<Box<Sandbox>>,
    pub(super) detached: Option<Detached>,
    /// What the background thread waits for.
    pub(super) watched: Watched,
}

/// Run a storage program until it answers, waiting for whatever it waits for.
pub(super) fn drive(sandbox: &mut Sandbox, kicker: &Kicker, until: u64, wait: bool) -> Driven {
    sandbox.with_kicker(kicker, |sandbox| {
        loop {
            let end = match sandbox.run(kicker, until, None) {
                Pause::Answered => return Driven::Answered(sandbox.kernel_mut().take_answer().unwrap_or_default()),
                Pause::Yielded => return Driven::Yielded,
                Pause::Ended(end) => end,
                Pause::Idle if !wait => return Driven::Idle,
                Pause::Idle => match sandbox.sleep(until, &[]) {
                    Ok(_) => continue,
                    Err(end) => end,
                },
                Pause::StreamClosed | Pause::Tick => continue,
            };
            return match end {
                RunEnd::TimedOut { .. } => Driven::TimedOut(end),
                end => Driven::Died(end),
            };
        }
    })
}

/// What an idle VM waits for.
pub(super) fn watched(sandbox: &Sandbox) -> Watched {
    use std::os::fd::AsRawFd;
    let kernel = sandbox.kernel();
    Watched {
        descriptors: kernel.host_polls().iter().map(|(descriptor, events)| (descriptor.as_raw_fd(), *events)).collect(),
        moment: kernel.next_deadline().map(|moment| kernel.clock.to_host(moment)),
    }
}

/// Whether some thread of it could run now.
pub(super) fn has_work(sandbox: &Sandbox) -> bool {
    let kernel = sandbox.kernel();
    kernel.threads.next_runnable(kernel.threads.current).is_some()
        || kernel.next_deadline().is_some_and(|moment| kernel.clock.to_host(moment) <= host_monotonic())
}
