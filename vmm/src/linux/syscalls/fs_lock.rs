//! flock(2) and the record locks of fcntl(2), on the host's files, so that they hold between VMs and against every other
//! program of the host.
//!
//! A lock of the host belongs to a process or to an open file description. All VMs of a worker are one process, and a snapshot
//! and its forks share descriptions, so neither would keep two VMs apart. Therefore each lock is held by a description that is
//! opened for it alone, and record locks are made as open-file-description locks on the host. A lock that somebody else has
//! is tried again after a pause: the host has no wait that another thread's work could be done in.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use linux_raw_sys::general as abi;
use nix::fcntl::FcntlArg;
use nix::libc;
use rustix::fs::{FlockOperation, OFlags};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::linux::file::host::HostFile;
use crate::linux::file::{File, FileId};
use crate::linux::table::{Arg, Entry, partial};
use crate::linux::{Answer, Call, Errno, Kernel, Outcome, Restart, Wait, WaitFor};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[partial(
    abi::__NR_flock,
    "flock",
    &[Arg::Fd, Arg::Hex],
    flock,
    "only files of the host; EOPNOTSUPP for pipes, sockets and generated files",
)];

/// First pause before a lock is tried again, nanoseconds; it doubles up to [`PAUSE_MAX_NS`].
const PAUSE_NS: u64 = 250_000;
/// Longest pause, nanoseconds.
const PAUSE_MAX_NS: u64 = 32_000_000;

/// `struct flock` of x86-64.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct RecordLock {
    kind: i16,
    whence: i16,
    padding: u32,
    start: i64,
    length: i64,
    pid: i32,
    end_padding: u32,
}

const _: () = assert!(size_of::<RecordLock>() == size_of::<abi::flock>());

fn flock(call: &mut Call<'_>) -> Answer {
    let id = call.file(0)?;
    super::io::open_for(call.kernel, id, u32::MAX)?;
    let operation = call.uint(1);
    let wait = operation & abi::LOCK_NB == 0;
    let operation = match operation & !abi::LOCK_NB {
        abi::LOCK_SH => FlockOperation::NonBlockingLockShared,
        abi::LOCK_EX => FlockOperation::NonBlockingLockExclusive,
        abi::LOCK_UN => FlockOperation::Unlock,
        _ => return Err(Errno::INVAL),
    };
    let File::Host(file) = &mut call.kernel.files.get_mut(id)?.file else { return Err(Errno::OPNOTSUPP) };
    if operation == FlockOperation::Unlock {
        // Our description goes, and the lock with it. (A snapshot's lock stays with the snapshot: it is not ours to give up.)
        file.lock = None;
        return Ok(Outcome::OK);
    }
    let description = match &file.lock {
        Some(description) => Arc::clone(description),
        None => Arc::new(file.reopen(OFlags::RDONLY).or_else(|_| file.reopen(OFlags::WRONLY))?),
    };
    match rustix::fs::flock(&description, operation) {
        Ok(()) => {
            file.lock = Some(description);
            Ok(Outcome::OK)
        }
        Err(Errno::WOULDBLOCK) if wait => pause(call),
        Err(errno) => Err(errno),
    }
}

/// Try again a little later; the pauses of one call grow.
fn pause(call: &mut Call<'_>) -> Answer {
    let tries = call.progress.min(16);
    call.progress = tries + 1;
    let pause = (PAUSE_NS << tries).min(PAUSE_MAX_NS);
    let deadline = call.kernel.clock.monotonic().saturating_add(pause);
    Ok(Outcome::Block(Wait { on: WaitFor::Nothing, deadline: Some(deadline), restart: Restart::IfAsked }))
}

/// F_GETLK, F_SETLK, F_SETLKW and their F_OFD forms.
pub(super) fn record_lock(call: &mut Call<'_>, id: FileId, command: u32) -> Answer {
    let lock = call.memory().read::<RecordLock>(call.args[2])?;
    let of_description = matches!(command, abi::F_OFD_GETLK | abi::F_OFD_SETLK | abi::F_OFD_SETLKW);
    if of_description && lock.pid != 0 {
        return Err(Errno::INVAL);
    }
    let flags = call.kernel.files.get(id)?.flags;
    let File::Host(file) = &call.kernel.files.get(id)?.file else { return Err(Errno::INVAL) };
    let host_lock = to_host(&lock, file)?;
    let asks = matches!(command, abi::F_GETLK | abi::F_OFD_GETLK);
    let forbidden = match u32::try_from(lock.kind).map_err(|_| Errno::INVAL)? {
        abi::F_RDLCK => abi::O_WRONLY,
        abi::F_WRLCK => abi::O_RDONLY,
        abi::F_UNLCK if !asks => u32::MAX,
        _ => return Err(Errno::INVAL),
    };
    if !asks && flags & abi::O_ACCMODE == forbidden {
        return Err(Errno::BADF);
    }
    let description = description_for(call.kernel, id, of_description)?;
    if asks {
        return answer_who(call, &description, host_lock, lock);
    }
    match nix::fcntl::fcntl(&*description, FcntlArg::F_OFD_SETLK(&host_lock)) {
        Ok(_) => {
            keep(call.kernel, id, description, of_description)?;
            Ok(Outcome::OK)
        }
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) if matches!(command, abi::F_SETLKW | abi::F_OFD_SETLKW) => pause(call),
        Err(errno) => Err(Errno::from_raw_os_error(errno as i32)),
    }
}

/// F_GETLK: the first lock in the way, or F_UNLCK.
fn answer_who(call: &mut Call<'_>, description: &OwnedFd, mut host_lock: libc::flock, asked: RecordLock) -> Answer {
    nix::fcntl::fcntl(description, FcntlArg::F_OFD_GETLK(&mut host_lock)).map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    let free = i32::from(host_lock.l_type) == libc::F_UNLCK;
    let answer = if free {
        RecordLock { kind: abi::F_UNLCK as i16, ..asked }
    } else {
        // Who holds it is a process of the host, which the guest does not see: -1, as for an open file description.
        RecordLock {
            kind: host_lock.l_type,
            whence: 0,
            padding: 0,
            start: host_lock.l_start,
            length: host_lock.l_len,
            pid: -1,
            end_padding: 0,
        }
    };
    call.memory().write(call.args[2], &answer)?;
    Ok(Outcome::OK)
}

/// The lock with an absolute start; our offset is not the host's.
fn to_host(lock: &RecordLock, file: &HostFile) -> Result<libc::flock, Errno> {
    let base = match u32::try_from(lock.whence).map_err(|_| Errno::INVAL)? {
        abi::SEEK_SET => 0,
        abi::SEEK_CUR => i64::try_from(file.position).map_err(|_| Errno::OVERFLOW)?,
        abi::SEEK_END => i64::try_from(file.size()?).map_err(|_| Errno::OVERFLOW)?,
        _ => return Err(Errno::INVAL),
    };
    let start = base.checked_add(lock.start).ok_or(Errno::OVERFLOW)?;
    Ok(libc::flock { l_type: lock.kind, l_whence: 0, l_start: start, l_len: lock.length, l_pid: 0 })
}

fn inode_of(file: &HostFile) -> Option<(u64, u64)> {
    rustix::fs::fstat(file.descriptor()).ok().map(|status| (status.st_dev, status.st_ino))
}

/// The description that holds (or will hold) the locks: the file's own, or the process's for this inode.
fn description_for(kernel: &Kernel, id: FileId, of_description: bool) -> Result<Arc<OwnedFd>, Errno> {
    let File::Host(file) = &kernel.files.get(id)?.file else { return Err(Errno::INVAL) };
    let own = if of_description { &file.range_lock } else { &file.record_lock };
    if let Some(description) = own {
        return Ok(Arc::clone(description));
    }
    if !of_description && let Some(inode) = inode_of(file) {
        let others = kernel.files.iter().filter_map(|(_, slot)| if let File::Host(other) = &slot.file { Some(other) } else { None });
        let mut holders = others.filter(|other| other.record_lock.is_some());
        if let Some(description) = holders.find(|other| inode_of(other) == Some(inode)).and_then(|other| other.record_lock.clone()) {
            return Ok(description);
        }
    }
    // A write lock needs a writable description; where the file cannot be opened so, only read locks can be asked for.
    let description = file.reopen(OFlags::RDWR).or_else(|_| file.reopen(OFlags::RDONLY)).or_else(|_| file.reopen(OFlags::WRONLY))?;
    Ok(Arc::new(description))
}

fn keep(kernel: &mut Kernel, id: FileId, description: Arc<OwnedFd>, of_description: bool) -> Result<(), Errno> {
    if let File::Host(file) = &mut kernel.files.get_mut(id)?.file {
        if of_description {
            file.range_lock = Some(description);
        } else {
            file.record_lock = Some(description);
        }
    }
    Ok(())
}

/// A process loses all its record locks on a file when it closes any descriptor of it (`fcntl_locking(2)`).
pub(super) fn forget_record_locks(kernel: &mut Kernel, closing: FileId) {
    let Ok(File::Host(file)) = kernel.files.get(closing).map(|slot| &slot.file) else { return };
    let holders: Vec<FileId> = kernel
        .files
        .iter()
        .filter(|(_, slot)| matches!(&slot.file, File::Host(other) if other.record_lock.is_some()))
        .map(|(id, _)| id)
        .collect();
    if holders.is_empty() {
        return;
    }
    let inode = inode_of(file);
    for id in holders {
        if let Ok(slot) = kernel.files.get_mut(id)
            && let File::Host(other) = &mut slot.file
            && inode_of(other) == inode
        {
            other.record_lock = None;
        }
    }
}
