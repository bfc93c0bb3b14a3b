//! Pipes, eventfd, timerfd and signalfd: `pipe(2)`, `eventfd(2)`, `timerfd_create(2)`, `signalfd(2)`.

use linux_raw_sys::general as raw;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::limits::PIPE_BYTES;
use crate::linux::abi::Timespec;
use crate::linux::fd_table::Fd;
use crate::linux::file::local::{EventFd, PipeEnd, Side, SignalFd, pipe_low_water};
use crate::linux::file::local_timer::{TimerFd, TimerSetting};
use crate::linux::file::{File, FileId};
use crate::linux::table::{Arg, Entry, full, partial};
use crate::linux::{Answer, Call, Errno, Kernel, Outcome};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(raw::__NR_pipe, "pipe", &[Arg::Pointer], pipe),
    full(raw::__NR_pipe2, "pipe2", &[Arg::Pointer, Arg::Hex], pipe2),
    full(raw::__NR_eventfd, "eventfd", &[Arg::Uint], eventfd),
    full(raw::__NR_eventfd2, "eventfd2", &[Arg::Uint, Arg::Hex], eventfd2),
    partial(
        raw::__NR_timerfd_create,
        "timerfd_create",
        &[Arg::Int, Arg::Hex],
        timerfd_create,
        "TFD_TIMER_CANCEL_ON_SET never cancels: the clock is the host's",
    ),
    full(raw::__NR_timerfd_settime, "timerfd_settime", &[Arg::Fd, Arg::Hex, Arg::Pointer, Arg::Pointer], timerfd_settime),
    full(raw::__NR_timerfd_gettime, "timerfd_gettime", &[Arg::Fd, Arg::Pointer], timerfd_gettime),
    full(raw::__NR_signalfd, "signalfd", &[Arg::Fd, Arg::Pointer, Arg::Uint], signalfd),
    full(raw::__NR_signalfd4, "signalfd4", &[Arg::Fd, Arg::Pointer, Arg::Uint, Arg::Hex], signalfd4),
];

const CLOEXEC: u32 = raw::O_CLOEXEC;
const NONBLOCK: u32 = raw::O_NONBLOCK;

/// `int pipe(int fds[2])`.
fn pipe(call: &mut Call<'_>) -> Answer {
    make_pipe(call, 0)
}

/// `int pipe2(int fds[2], int flags)`.
fn pipe2(call: &mut Call<'_>) -> Answer {
    make_pipe(call, call.uint(1))
}

fn make_pipe(call: &mut Call<'_>, flags: u32) -> Answer {
    if flags & !(CLOEXEC | NONBLOCK | raw::O_DIRECT) != 0 {
        return Err(Errno::INVAL);
    }
    let status = flags & (NONBLOCK | raw::O_DIRECT);
    let files = &mut call.kernel.files;
    let channel = files.channels.add(PIPE_BYTES, pipe_low_water(PIPE_BYTES));
    let ends = [
        (File::Pipe(PipeEnd { channel, side: Side::Reader }), raw::O_RDONLY | status),
        (File::Pipe(PipeEnd { channel, side: Side::Writer }), raw::O_WRONLY | status),
    ];
    install_two(call, ends, flags & CLOEXEC != 0, call.args[0])
}

/// Give two files descriptors and store them; on any failure neither is left open.
///
/// # Errors
///
/// ENFILE, EMFILE, EFAULT.
pub(super) fn install_two(call: &mut Call<'_>, ends: [(File, u32); 2], close_on_exec: bool, address: u64) -> Answer {
    let kernel = &mut *call.kernel;
    let [(first, first_flags), (second, second_flags)] = ends;
    let (first_id, second_id) = kernel.files.add_two((first, first_flags), (second, second_flags))?;
    let first_fd = kernel.install_fd(first_id, close_on_exec).inspect_err(|_| kernel.files.release(second_id))?;
    let installed = kernel.install_fd(second_id, close_on_exec);
    let second_fd = match installed {
        Ok(fd) => fd,
        Err(errno) => {
            close(kernel, first_fd);
            return Err(errno);
        }
    };
    if let Err(errno) = call.space.memory().write(address, &[first_fd.number(), second_fd.number()]) {
        close(call.kernel, first_fd);
        close(call.kernel, second_fd);
        return Err(errno);
    }
    Ok(Outcome::OK)
}

fn close(kernel: &mut Kernel, fd: Fd) {
    // The descriptor was installed a moment ago, so closing it cannot fail.
    let _ = kernel.close_fd(fd.number().cast_signed());
}

/// Add a file and give it the lowest descriptor.
///
/// # Errors
///
/// ENFILE, EMFILE.
pub(super) fn install(call: &mut Call<'_>, file: File, flags: u32, close_on_exec: bool) -> Answer {
    let id = call.kernel.files.add(file, flags)?;
    Ok(call.kernel.install_fd(id, close_on_exec)?.into())
}

/// `int eventfd(unsigned int initval)`.
fn eventfd(call: &mut Call<'_>) -> Answer {
    make_eventfd(call, 0)
}

/// `int eventfd2(unsigned int initval, int flags)`.
fn eventfd2(call: &mut Call<'_>) -> Answer {
    make_eventfd(call, call.uint(1))
}

fn make_eventfd(call: &mut Call<'_>, flags: u32) -> Answer {
    if flags & !(raw::EFD_SEMAPHORE | CLOEXEC | NONBLOCK) != 0 {
        return Err(Errno::INVAL);
    }
    let event = EventFd::new(u64::from(call.uint(0)), flags & raw::EFD_SEMAPHORE != 0);
    install(call, File::Event(event), raw::O_RDWR | flags & NONBLOCK, flags & CLOEXEC != 0)
}

/// `struct itimerspec`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Itimerspec {
    interval: Timespec,
    value: Timespec,
}

impl From<TimerSetting> for Itimerspec {
    fn from(setting: TimerSetting) -> Self {
        Self { interval: Timespec::from_ns(setting.interval), value: Timespec::from_ns(setting.value) }
    }
}

/// `int timerfd_create(int clockid, int flags)`.
fn timerfd_create(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(1);
    if flags & !(CLOEXEC | NONBLOCK) != 0 {
        return Err(Errno::INVAL);
    }
    let realtime = match call.uint(0) {
        raw::CLOCK_REALTIME => true,
        raw::CLOCK_MONOTONIC | raw::CLOCK_BOOTTIME => false,
        raw::CLOCK_REALTIME_ALARM | raw::CLOCK_BOOTTIME_ALARM => return Err(Errno::PERM),
        _ => return Err(Errno::INVAL),
    };
    install(call, File::Timer(TimerFd::new(realtime)), raw::O_RDWR | flags & NONBLOCK, flags & CLOEXEC != 0)
}

fn timer(kernel: &mut Kernel, id: FileId) -> Result<&mut TimerFd, Errno> {
    match &mut kernel.files.get_mut(id)?.file {
        File::Timer(timer) => Ok(timer),
        _ => Err(Errno::INVAL),
    }
}

/// `int timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old)`.
fn timerfd_settime(call: &mut Call<'_>) -> Answer {
    let new: Itimerspec = call.memory().read(call.args[2])?;
    let flags = call.uint(1);
    let setting = TimerSetting { value: new.value.to_ns()?, interval: new.interval.to_ns()? };
    if flags & !(raw::TFD_TIMER_ABSTIME | raw::TFD_TIMER_CANCEL_ON_SET) != 0 {
        return Err(Errno::INVAL);
    }
    let id = call.file(0)?;
    let now = call.kernel.clock.monotonic();
    let timer = timer(call.kernel, id)?;
    let old = timer.remaining(now);
    timer.set(setting, flags & raw::TFD_TIMER_ABSTIME != 0, now);
    call.kernel.files.changes += 1;
    if call.args[3] != 0 {
        call.memory().write(call.args[3], &Itimerspec::from(old))?;
    }
    Ok(Outcome::OK)
}

/// `int timerfd_gettime(int fd, struct itimerspec *current)`.
fn timerfd_gettime(call: &mut Call<'_>) -> Answer {
    let id = call.file(0)?;
    let now = call.kernel.clock.monotonic();
    let current = timer(call.kernel, id)?.remaining(now);
    call.memory().write(call.args[1], &Itimerspec::from(current))?;
    Ok(Outcome::OK)
}

/// `int signalfd(int fd, const sigset_t *mask, size_t size)`.
fn signalfd(call: &mut Call<'_>) -> Answer {
    make_signalfd(call, 0)
}

/// `int signalfd4(int fd, const sigset_t *mask, size_t size, int flags)`.
fn signalfd4(call: &mut Call<'_>) -> Answer {
    make_signalfd(call, call.uint(3))
}

fn make_signalfd(call: &mut Call<'_>, flags: u32) -> Answer {
    if call.args[2] != 8 {
        return Err(Errno::INVAL);
    }
    let mask: u64 = call.memory().read(call.args[1])?;
    if flags & !(CLOEXEC | NONBLOCK) != 0 {
        return Err(Errno::INVAL);
    }
    // SIGKILL and SIGSTOP are taken out silently.
    let mask = mask & !(1 << (raw::SIGKILL - 1)) & !(1 << (raw::SIGSTOP - 1));
    if call.int(0) == -1 {
        let file = File::Signal(SignalFd { mask, taken: 0 });
        return install(call, file, raw::O_RDWR | flags & NONBLOCK, flags & CLOEXEC != 0);
    }
    let id = call.file(0)?;
    match &mut call.kernel.files.get_mut(id)?.file {
        File::Signal(signals) => signals.mask = mask,
        _ => return Err(Errno::INVAL),
    }
    call.kernel.files.changes += 1;
    Ok(Outcome::Return(u64::from(call.uint(0))))
}
