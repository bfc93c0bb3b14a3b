//! poll and select: `poll(2)`, `ppoll(2)`, `select(2)`, `pselect(2)`.

use linux_raw_sys::general as raw;

use crate::limits::FDS_MAX;
use crate::linux::abi::{Timespec, Timeval};
use crate::linux::file::{FileId, PollEvents, View};
use crate::linux::table::{Arg, Entry, full};
use crate::linux::{Answer, Attempt, Call, Errno, MonotonicNs, Outcome, Restart, Wait, WaitFor};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(raw::__NR_poll, "poll", &[Arg::Pointer, Arg::Uint, Arg::Int], poll),
    full(raw::__NR_ppoll, "ppoll", &[Arg::Pointer, Arg::Uint, Arg::Timespec, Arg::Pointer, Arg::Uint], ppoll),
    full(raw::__NR_select, "select", &[Arg::Int, Arg::Pointer, Arg::Pointer, Arg::Pointer, Arg::Pointer], select),
    full(raw::__NR_pselect6, "pselect6", &[Arg::Int, Arg::Pointer, Arg::Pointer, Arg::Pointer, Arg::Timespec, Arg::Pointer], pselect6),
];

/// Events that are reported whether or not they were asked for.
const ALWAYS: PollEvents = PollEvents::ERR.union(PollEvents::HUP).union(PollEvents::NVAL);

/// `int poll(struct pollfd *fds, nfds_t count, int timeout)`.
fn poll(call: &mut Call<'_>) -> Answer {
    let timeout = super::epoll::milliseconds(call.int(2));
    poll_files(call, timeout)
}

/// `int ppoll(struct pollfd *fds, nfds_t count, struct timespec *timeout, const sigset_t *mask, size_t size)`: the remaining time
/// is written back, as the system call does whatever C libraries make of it.
fn ppoll(call: &mut Call<'_>) -> Answer {
    let timeout = read_timeout(call, call.args[2])?;
    begin_mask(call, call.args[3], call.args[4])?;
    let answer = poll_files(call, timeout);
    write_remaining(call, call.args[2], timeout, &answer, Remaining::Timespec);
    end_call(call, answer)
}

/// A descriptor to poll (`struct pollfd`).
#[derive(Debug, Clone, Copy)]
struct Polled {
    fd: i32,
    events: PollEvents,
}

fn read_polled(call: &Call<'_>) -> Result<Vec<Polled>, Errno> {
    let count = usize::try_from(call.uint(1)).map_err(|_| Errno::INVAL)?;
    let limit = call.kernel.process.rlimits[raw::RLIMIT_NOFILE as usize].0;
    if count as u64 > limit || count > FDS_MAX {
        return Err(Errno::INVAL);
    }
    let bytes = call.memory().read_vec(call.args[0], count * 8)?;
    let polled = |entry: &[u8; 8]| {
        let fd = i32::from_ne_bytes([entry[0], entry[1], entry[2], entry[3]]);
        let events = PollEvents::from_bits_truncate(u32::from(u16::from_ne_bytes([entry[4], entry[5]])));
        Polled { fd, events: events | ALWAYS }
    };
    Ok(bytes.as_chunks().0.iter().map(polled).collect())
}

fn poll_files(call: &mut Call<'_>, timeout: Option<u64>) -> Answer {
    let polled = read_polled(call)?;
    let view = call.kernel.view(call.tid);
    let mut waits = Vec::with_capacity(polled.len());
    let mut ready = 0_usize;
    let mut answers = Vec::with_capacity(polled.len());
    for entry in &polled {
        let events = look(call, &view, *entry, &mut waits);
        ready += usize::from(!events.is_empty());
        answers.push(events);
    }
    let over = ready > 0 || call.timed_out() || (call.attempt == Attempt::First && timeout == Some(0));
    if over || call.attempt == Attempt::Interrupted {
        write_answers(call, &answers)?;
    }
    if over {
        return Ok(ready.into());
    }
    Ok(Outcome::Block(Wait { on: WaitFor::Files(waits), deadline: call.deadline(timeout), restart: Restart::Never }))
}

fn look(call: &Call<'_>, view: &View, entry: Polled, waits: &mut Vec<(FileId, PollEvents)>) -> PollEvents {
    if entry.fd < 0 {
        return PollEvents::empty();
    }
    let Ok(file) = call.kernel.process.fds.get(entry.fd) else { return PollEvents::NVAL };
    waits.push((file, entry.events));
    call.kernel.files.readiness(file, view).events & entry.events
}

/// Store `revents`, and nothing else: other threads may use the rest of the array.
fn write_answers(call: &Call<'_>, answers: &[PollEvents]) -> Result<(), Errno> {
    for (index, events) in answers.iter().enumerate() {
        let at = call.args[0].checked_add(index as u64 * 8 + 6).ok_or(Errno::FAULT)?;
        // Only bits of the low half were asked for or are always reported.
        call.memory().write(at, &(events.bits() as u16))?;
    }
    Ok(())
}

/// `int select(int count, fd_set *read, fd_set *write, fd_set *except, struct timeval *timeout)`.
fn select(call: &mut Call<'_>) -> Answer {
    let timeout = if call.attempt == Attempt::First && call.args[4] != 0 {
        let timeout: Timeval = call.memory().read(call.args[4])?;
        // Unlike a timespec's, the smaller unit may exceed a second.
        let (seconds, micros) = (timeout.microseconds.div_euclid(1_000_000), timeout.microseconds.rem_euclid(1_000_000));
        let seconds = timeout.seconds.checked_add(seconds).filter(|_| timeout.seconds >= 0 && timeout.microseconds >= 0);
        Some(Timespec { seconds: seconds.ok_or(Errno::INVAL)?, nanoseconds: micros * 1000 }.to_ns()?)
    } else {
        None
    };
    let answer = select_files(call, timeout);
    write_remaining(call, call.args[4], timeout, &answer, Remaining::Timeval);
    answer
}

/// `int pselect6(int count, fd_set *read, fd_set *write, fd_set *except, struct timespec *timeout, void *mask_and_size)`.
fn pselect6(call: &mut Call<'_>) -> Answer {
    let [mask, size]: [u64; 2] = if call.args[5] == 0 { [0, 0] } else { call.memory().read(call.args[5])? };
    let timeout = read_timeout(call, call.args[4])?;
    begin_mask(call, mask, size)?;
    let answer = select_files(call, timeout);
    write_remaining(call, call.args[4], timeout, &answer, Remaining::Timespec);
    end_call(call, answer)
}

/// What each of select's three sets asks for, and what makes a descriptor a member of its answer (`POLLIN_SET` and relatives).
const SETS: [PollEvents; 3] = [
    PollEvents::IN.union(PollEvents::RDNORM).union(PollEvents::RDBAND).union(PollEvents::HUP).union(PollEvents::ERR),
    PollEvents::OUT.union(PollEvents::WRNORM).union(PollEvents::WRBAND).union(PollEvents::ERR),
    PollEvents::PRI,
];

fn select_files(call: &mut Call<'_>, timeout: Option<u64>) -> Answer {
    let count = usize::try_from(call.int(0)).map_err(|_| Errno::INVAL)?.min(FDS_MAX);
    let sets = read_sets(call, count)?;
    let view = call.kernel.view(call.tid);
    let mut answers = sets.clone().map(|set| set.map(|set| vec![0_u64; set.len()]));
    let mut waits = Vec::new();
    let mut ready = 0_usize;
    for fd in 0..count {
        let asked = sets.each_ref().map(|set| set.as_ref().is_some_and(|set| contains(set, fd)));
        if asked == [false; 3] {
            continue;
        }
        let file = call.kernel.process.fds.get(i32::try_from(fd).map_err(|_| Errno::BADF)?)?;
        let wanted = SETS.iter().zip(asked).filter(|(_, asked)| *asked).fold(PollEvents::empty(), |sum, (events, _)| sum | *events);
        let events = call.kernel.files.readiness(file, &view).events;
        waits.push((file, wanted));
        for ((answer, events_of_set), asked) in answers.iter_mut().zip(SETS).zip(asked) {
            if asked
                && events.intersects(events_of_set)
                && let Some(word) = answer.as_mut().and_then(|answer| answer.get_mut(fd / 64))
            {
                *word |= 1 << (fd % 64);
                ready += 1;
            }
        }
    }
    if ready > 0 || call.timed_out() || (call.attempt == Attempt::First && timeout == Some(0)) {
        write_sets(call, &answers)?;
        return Ok(ready.into());
    }
    Ok(Outcome::Block(Wait { on: WaitFor::Files(waits), deadline: call.deadline(timeout), restart: Restart::Never }))
}

fn contains(set: &[u64], fd: usize) -> bool {
    set.get(fd / 64).is_some_and(|word| word & 1 << (fd % 64) != 0)
}

type Sets = [Option<Vec<u64>>; 3];

fn read_sets(call: &Call<'_>, count: usize) -> Result<Sets, Errno> {
    let read = |address: u64| {
        if address == 0 {
            return Ok(None);
        }
        let bytes = call.memory().read_vec(address, count.div_ceil(64) * 8)?;
        Ok(Some(bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect()))
    };
    Ok([read(call.args[1])?, read(call.args[2])?, read(call.args[3])?])
}

fn write_sets(call: &Call<'_>, sets: &Sets) -> Result<(), Errno> {
    for (set, address) in sets.iter().zip(&call.args[1..4]) {
        if let Some(set) = set {
            let bytes: Vec<u8> = set.iter().flat_map(|word| word.to_ne_bytes()).collect();
            call.memory().write_bytes(*address, &bytes)?;
        }
    }
    Ok(())
}

/// Read a relative timeout at the first attempt; 0 for none. Retries go by the deadline that was made of it.
///
/// # Errors
///
/// EFAULT, or EINVAL for a time that is none.
pub(super) fn read_timeout(call: &Call<'_>, address: u64) -> Result<Option<u64>, Errno> {
    if address == 0 || call.attempt != Attempt::First {
        return Ok(None);
    }
    call.memory().read::<Timespec>(address)?.to_ns().map(Some)
}

/// The two ways in which a timeout is written back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Remaining {
    Timespec,
    Timeval,
}

/// Store what is left of the timeout when a call ends, also by a signal. A bad pointer does not matter any more.
fn write_remaining(call: &Call<'_>, address: u64, timeout: Option<u64>, answer: &Answer, form: Remaining) {
    let ends = !matches!(answer, Ok(Outcome::Block(_))) || call.attempt == Attempt::Interrupted;
    let deadline: Option<MonotonicNs> = call.deadline(timeout);
    if address == 0 || !ends {
        return;
    }
    let Some(deadline) = deadline else { return };
    let left = if timeout == Some(0) { 0 } else { deadline.saturating_sub(call.kernel.clock.monotonic()) };
    let time = Timespec::from_ns(left);
    let _ = match form {
        Remaining::Timespec => call.memory().write(address, &time),
        Remaining::Timeval => call.memory().write(address, &Timeval { seconds: time.seconds, microseconds: time.nanoseconds / 1000 }),
    };
}

/// Put the caller's signal mask into force for the length of the call; 0 for none.
///
/// # Errors
///
/// EFAULT, or EINVAL for a size that is not a signal set's.
pub(super) fn begin_mask(call: &mut Call<'_>, address: u64, size: u64) -> Result<(), Errno> {
    if address == 0 || call.attempt != Attempt::First {
        return Ok(());
    }
    if size != 8 {
        return Err(Errno::INVAL);
    }
    let mask: u64 = call.memory().read(address)?;
    call.kernel.set_temporary_mask(call.tid, mask);
    Ok(())
}

/// The call ends otherwise than by a signal: the old mask comes back now. A call that a signal ends leaves that to delivery, so
/// that the handler's frame holds the old mask.
pub(super) fn end_call(call: &mut Call<'_>, answer: Answer) -> Answer {
    if !matches!(answer, Ok(Outcome::Block(_))) {
        call.kernel.end_temporary_mask(call.tid);
    }
    answer
}
