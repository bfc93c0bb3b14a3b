//! epoll: `epoll_create(2)`, `epoll_ctl(2)`, `epoll_wait(2)`.

use linux_raw_sys::general as raw;

use super::poll::{begin_mask, end_call, read_timeout};
use crate::limits::EPOLL_MEMBERS_MAX;
use crate::linux::file::epoll::{EpollSet, Ready, Request};
use crate::linux::file::{File, FileId, PollEvents};
use crate::linux::table::{Arg, Entry, full};
use crate::linux::{Answer, Attempt, Call, Errno, Outcome, Restart, Wait, WaitFor};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(raw::__NR_epoll_create, "epoll_create", &[Arg::Int], epoll_create),
    full(raw::__NR_epoll_create1, "epoll_create1", &[Arg::Hex], epoll_create1),
    full(raw::__NR_epoll_ctl, "epoll_ctl", &[Arg::Fd, Arg::Int, Arg::Fd, Arg::Pointer], epoll_ctl),
    full(raw::__NR_epoll_wait, "epoll_wait", &[Arg::Fd, Arg::Pointer, Arg::Int, Arg::Int], epoll_wait),
    full(raw::__NR_epoll_pwait, "epoll_pwait", &[Arg::Fd, Arg::Pointer, Arg::Int, Arg::Int, Arg::Pointer, Arg::Uint], epoll_pwait),
    full(raw::__NR_epoll_pwait2, "epoll_pwait2", &[Arg::Fd, Arg::Pointer, Arg::Int, Arg::Timespec, Arg::Pointer, Arg::Uint], epoll_pwait2),
];

/// Size of `struct epoll_event`, which is packed on x86-64: 32 bits of events, 64 bits of data.
const EVENT_BYTES: u64 = 12;

/// `int epoll_create(int size)`.
fn epoll_create(call: &mut Call<'_>) -> Answer {
    if call.int(0) <= 0 {
        return Err(Errno::INVAL);
    }
    super::event::install(call, File::Epoll(EpollSet::default()), raw::O_RDWR, false)
}

/// `int epoll_create1(int flags)`.
fn epoll_create1(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(0);
    if flags & !raw::EPOLL_CLOEXEC != 0 {
        return Err(Errno::INVAL);
    }
    super::event::install(call, File::Epoll(EpollSet::default()), raw::O_RDWR, flags != 0)
}

/// `int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)`.
fn epoll_ctl(call: &mut Call<'_>) -> Answer {
    let operation = call.uint(1);
    let request = if operation == raw::EPOLL_CTL_DEL { None } else { Some(read_request(call)?) };
    let set = call.file(0)?;
    let (fd, file) = (call.int(2), call.file(2)?);
    let view = call.kernel.view(call.tid);
    let files = &mut call.kernel.files;
    // A file that cannot be polled is refused before the set is looked at.
    if !files.get(file)?.file.pollable() {
        return Err(Errno::PERM);
    }
    if set == file {
        return Err(Errno::INVAL);
    }
    files.epoll_set(set)?;
    match (operation, request) {
        (raw::EPOLL_CTL_ADD, Some(request)) => files.epoll_add(set, fd, file, request, &view)?,
        (raw::EPOLL_CTL_MOD, Some(request)) => files.epoll_modify(set, fd, file, request, &view)?,
        (raw::EPOLL_CTL_DEL, _) => files.epoll_delete(set, fd, file, &view)?,
        _ => return Err(Errno::INVAL),
    }
    Ok(Outcome::OK)
}

fn read_request(call: &Call<'_>) -> Result<Request, Errno> {
    let [events, low, high]: [u32; 3] = call.memory().read(call.args[3])?;
    Ok(Request { events, data: u64::from(low) | u64::from(high) << 32 })
}

/// `int epoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout)`.
fn epoll_wait(call: &mut Call<'_>) -> Answer {
    let timeout = milliseconds(call.int(3));
    wait(call, timeout)
}

/// `int epoll_pwait(int epfd, struct epoll_event *events, int maxevents, int timeout, const sigset_t *mask, size_t size)`.
fn epoll_pwait(call: &mut Call<'_>) -> Answer {
    begin_mask(call, call.args[4], call.args[5])?;
    let timeout = milliseconds(call.int(3));
    let answer = wait(call, timeout);
    end_call(call, answer)
}

/// `int epoll_pwait2(int epfd, struct epoll_event *events, int maxevents, const struct timespec *timeout, const sigset_t *mask,
/// size_t size)`.
fn epoll_pwait2(call: &mut Call<'_>) -> Answer {
    let timeout = read_timeout(call, call.args[3])?;
    begin_mask(call, call.args[4], call.args[5])?;
    let answer = wait(call, timeout);
    end_call(call, answer)
}

/// A timeout in milliseconds; negative ones wait for ever.
pub(super) fn milliseconds(timeout: i32) -> Option<u64> {
    u64::try_from(timeout).ok().map(|timeout| timeout * 1_000_000)
}

fn wait(call: &mut Call<'_>, timeout: Option<u64>) -> Answer {
    let most = usize::try_from(call.int(2))
        .ok()
        .filter(|&most| most > 0 && most <= i32::MAX as usize / EVENT_BYTES as usize)
        .ok_or(Errno::INVAL)?;
    let most = most.min(EPOLL_MEMBERS_MAX);
    let end = call.args[1].checked_add(most as u64 * EVENT_BYTES).filter(|&end| end <= call.memory().size());
    end.ok_or(Errno::FAULT)?;
    let set = call.file(0)?;
    let view = call.kernel.view(call.tid);
    let ready = call.kernel.files.epoll_look(set, most, &view)?;
    if !ready.is_empty() {
        return report(call, set, &ready);
    }
    if call.timed_out() || (call.attempt == Attempt::First && timeout == Some(0)) {
        return Ok(Outcome::OK);
    }
    let on = WaitFor::Files(vec![(set, PollEvents::IN)]);
    Ok(Outcome::Block(Wait { on, deadline: call.deadline(timeout), restart: Restart::Never }))
}

fn report(call: &mut Call<'_>, set: FileId, ready: &[Ready]) -> Answer {
    let mut bytes = Vec::with_capacity(ready.len() * EVENT_BYTES as usize);
    for event in ready {
        bytes.extend(event.events.bits().to_ne_bytes());
        bytes.extend(event.data.to_ne_bytes());
    }
    let whole = call.memory().write_some(call.args[1], &bytes) / EVENT_BYTES as usize;
    if whole == 0 {
        return Err(Errno::FAULT);
    }
    call.kernel.files.epoll_reported(set, ready.get(..whole).unwrap_or(ready));
    Ok(whole.into())
}
