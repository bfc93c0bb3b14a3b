//! close(2), close_range(2), dup(2) and relatives, fcntl(2).

use linux_raw_sys::general as abi;

use super::fs_lock;
use crate::limits::{FDS_MAX, PAGE, PIPE_BYTES};
use crate::linux::fd_table::{Entry as FdEntry, FdTable};
use crate::linux::file::local::pipe_low_water;
use crate::linux::file::{File, FileId};
use crate::linux::table::{Arg, Entry, full, partial};
use crate::linux::{Answer, Call, Errno, Outcome};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(abi::__NR_close, "close", &[Arg::Fd], close),
    partial(
        abi::__NR_close_range,
        "close_range",
        &[Arg::Uint, Arg::Uint, Arg::Hex],
        close_range,
        "the descriptor table is never shared between processes, so CLOSE_RANGE_UNSHARE changes nothing",
    ),
    full(abi::__NR_dup, "dup", &[Arg::Fd], dup),
    full(abi::__NR_dup2, "dup2", &[Arg::Fd, Arg::Int], dup2),
    full(abi::__NR_dup3, "dup3", &[Arg::Fd, Arg::Int, Arg::OpenFlags], dup3),
    partial(abi::__NR_fcntl, "fcntl", &[Arg::Fd, Arg::Int, Arg::Hex], fcntl, "no leases, no directory notifications, no SIGIO: EINVAL"),
];

/// Close with the table unshared from other processes'.
const CLOSE_RANGE_UNSHARE: u32 = 2;
/// Mark for closing at execve(2) instead of closing.
const CLOSE_RANGE_CLOEXEC: u32 = 4;
/// Largest pipe that a user without privileges may ask for (/proc/sys/fs/pipe-max-size).
const PIPE_BYTES_MAX: usize = 16 * PIPE_BYTES;
/// Status flags that F_SETFL may change.
pub(in crate::linux) const SETTABLE: u32 = abi::O_APPEND | abi::O_NONBLOCK | abi::O_DIRECT | abi::O_NOATIME;

fn close(call: &mut Call<'_>) -> Answer {
    close_one(call, call.int(0))?;
    Ok(Outcome::OK)
}

/// Close a descriptor; record locks on its file go with it, whichever descriptor they were made through.
fn close_one(call: &mut Call<'_>, fd: i32) -> Result<(), Errno> {
    fs_lock::forget_record_locks(call.kernel, call.kernel.process.fds.get(fd)?);
    call.kernel.close_fd(fd)
}

fn close_range(call: &mut Call<'_>) -> Answer {
    let (first, last, flags) = (call.uint(0), call.uint(1), call.uint(2));
    if flags & !(CLOSE_RANGE_CLOEXEC | CLOSE_RANGE_UNSHARE) != 0 || first > last {
        return Err(Errno::INVAL);
    }
    let in_range: Vec<i32> = call
        .kernel
        .process
        .fds
        .iter()
        .map(|(fd, _)| fd.number())
        .filter(|fd| (first..=last).contains(fd))
        .filter_map(|fd| i32::try_from(fd).ok())
        .collect();
    for fd in in_range {
        if flags & CLOSE_RANGE_CLOEXEC != 0 {
            call.kernel.process.fds.entry_mut(fd)?.close_on_exec = true;
        } else {
            close_one(call, fd)?;
        }
    }
    Ok(Outcome::OK)
}

fn dup(call: &mut Call<'_>) -> Answer {
    let id = call.file(0)?;
    duplicate(call, id, false, 0)
}

fn duplicate(call: &mut Call<'_>, id: FileId, close_on_exec: bool, lowest: usize) -> Answer {
    call.kernel.files.retain(id);
    Ok(call.kernel.install_fd_from(id, close_on_exec, lowest)?.into())
}

fn dup2(call: &mut Call<'_>) -> Answer {
    let id = call.file(0)?;
    if call.int(0) == call.int(1) {
        return Ok(Outcome::Return(u64::from(call.uint(1))));
    }
    duplicate_onto(call, id, call.int(1), false)
}

fn dup3(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(2);
    if flags & !abi::O_CLOEXEC != 0 || call.int(0) == call.int(1) {
        return Err(Errno::INVAL);
    }
    let id = call.file(0)?;
    duplicate_onto(call, id, call.int(1), flags != 0)
}

fn duplicate_onto(call: &mut Call<'_>, id: FileId, fd: i32, close_on_exec: bool) -> Answer {
    let limit = descriptor_limit(call);
    let chosen = FdTable::chosen(fd, limit)?;
    if let Ok(previous) = call.kernel.process.fds.get(fd) {
        fs_lock::forget_record_locks(call.kernel, previous);
    }
    call.kernel.files.retain(id);
    if let Some(previous) = call.kernel.process.fds.set(chosen, Some(FdEntry { file: id, close_on_exec })) {
        call.kernel.files.release(previous.file);
    }
    Ok(chosen.into())
}

fn descriptor_limit(call: &Call<'_>) -> usize {
    let (soft, _) = call.kernel.process.rlimits[abi::RLIMIT_NOFILE as usize];
    usize::try_from(soft).unwrap_or(usize::MAX).min(FDS_MAX)
}

fn fcntl(call: &mut Call<'_>) -> Answer {
    let id = call.file(0)?;
    let (command, argument) = (call.uint(1), call.args[2]);
    let path_only = call.kernel.files.get(id)?.flags & abi::O_PATH != 0;
    if path_only && !matches!(command, abi::F_DUPFD | abi::F_DUPFD_CLOEXEC | abi::F_GETFD | abi::F_SETFD | abi::F_GETFL) {
        return Err(Errno::BADF);
    }
    match command {
        abi::F_DUPFD | abi::F_DUPFD_CLOEXEC => {
            let lowest = usize::try_from(call.int(2)).ok().filter(|&lowest| lowest < descriptor_limit(call)).ok_or(Errno::INVAL)?;
            duplicate(call, id, command == abi::F_DUPFD_CLOEXEC, lowest)
        }
        abi::F_GETFD => Ok(Outcome::Return(u64::from(call.kernel.process.fds.entry(call.int(0))?.close_on_exec))),
        abi::F_SETFD => {
            call.kernel.process.fds.entry_mut(call.int(0))?.close_on_exec = argument & u64::from(abi::FD_CLOEXEC) != 0;
            Ok(Outcome::OK)
        }
        abi::F_GETFL => Ok(Outcome::Return(u64::from(call.kernel.files.get(id)?.flags))),
        abi::F_SETFL => {
            let slot = call.kernel.files.get_mut(id)?;
            slot.flags = slot.flags & !SETTABLE | argument as u32 & SETTABLE;
            Ok(Outcome::OK)
        }
        abi::F_GETLK | abi::F_SETLK | abi::F_SETLKW | abi::F_OFD_GETLK | abi::F_OFD_SETLK | abi::F_OFD_SETLKW => {
            fs_lock::record_lock(call, id, command)
        }
        abi::F_GETPIPE_SZ | abi::F_SETPIPE_SZ => pipe_size(call, id, command),
        // Nobody is ever signalled, so there is no owner; a program that clears it is right.
        abi::F_GETOWN => Ok(Outcome::OK),
        abi::F_SETOWN if argument == 0 => Ok(Outcome::OK),
        _ => Err(Errno::INVAL),
    }
}

/// F_GETPIPE_SZ, F_SETPIPE_SZ.
fn pipe_size(call: &mut Call<'_>, id: FileId, command: u32) -> Answer {
    let File::Pipe(pipe) = &call.kernel.files.get(id)?.file else { return Err(Errno::BADF) };
    let channel = pipe.channel;
    if command == abi::F_SETPIPE_SZ {
        // Rounded up to a power of two pages, as the kernel's ring of buffers is.
        let asked = usize::try_from(call.uint(2)).ok().filter(|&size| size > 0).ok_or(Errno::INVAL)?;
        let size = asked.max(PAGE as usize).checked_next_power_of_two().ok_or(Errno::INVAL)?;
        if size > PIPE_BYTES_MAX {
            return Err(Errno::PERM);
        }
        let channel = call.kernel.files.channel(channel)?;
        if channel.data.len() > size {
            return Err(Errno::BUSY);
        }
        channel.resize(size, pipe_low_water(size));
    }
    Ok(call.kernel.files.channels.get(channel)?.capacity.into())
}
