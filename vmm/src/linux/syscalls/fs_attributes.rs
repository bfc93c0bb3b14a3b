//! Changing what a file is like: chmod(2), chown(2), utimensat(2), truncate(2), fallocate(2), and making changes durable.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use linux_raw_sys::general as abi;
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, Timespec as HostTimespec, Timestamps, Uid};

use super::fs_change::file_type;
use super::fs_open::{note_refusal, path_argument};
use super::fs_stat::{optional_path, place_at};
use super::io::open_for;
use crate::linux::abi::{Timespec, Timeval};
use crate::linux::file::shm::InodeId;
use crate::linux::file::special::Node as SpecialNode;
use crate::linux::file::{File, FileId};
use crate::linux::path::{AT_FDCWD, Node, Place, Walker};
use crate::linux::table::{Arg, Entry, full, ignored, partial};
use crate::linux::{Answer, Call, Errno, Outcome, host_path};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(abi::__NR_chmod, "chmod", &[Arg::Path, Arg::Mode], chmod),
    full(abi::__NR_fchmod, "fchmod", &[Arg::Fd, Arg::Mode], fchmod),
    full(abi::__NR_fchmodat, "fchmodat", &[Arg::Fd, Arg::Path, Arg::Mode], fchmodat),
    full(abi::__NR_fchmodat2, "fchmodat2", &[Arg::Fd, Arg::Path, Arg::Mode, Arg::Hex], fchmodat2),
    full(abi::__NR_chown, "chown", &[Arg::Path, Arg::Int, Arg::Int], chown),
    full(abi::__NR_fchown, "fchown", &[Arg::Fd, Arg::Int, Arg::Int], fchown),
    full(abi::__NR_lchown, "lchown", &[Arg::Path, Arg::Int, Arg::Int], lchown),
    full(abi::__NR_fchownat, "fchownat", &[Arg::Fd, Arg::Path, Arg::Int, Arg::Int, Arg::Hex], fchownat),
    full(abi::__NR_utimensat, "utimensat", &[Arg::Fd, Arg::Path, Arg::Pointer, Arg::Hex], utimensat),
    full(abi::__NR_utime, "utime", &[Arg::Path, Arg::Pointer], utime),
    full(abi::__NR_utimes, "utimes", &[Arg::Path, Arg::Pointer], utimes),
    full(abi::__NR_futimesat, "futimesat", &[Arg::Fd, Arg::Path, Arg::Pointer], futimesat),
    full(abi::__NR_truncate, "truncate", &[Arg::Path, Arg::Int], truncate),
    full(abi::__NR_ftruncate, "ftruncate", &[Arg::Fd, Arg::Int], ftruncate),
    full(abi::__NR_fallocate, "fallocate", &[Arg::Fd, Arg::Hex, Arg::Int, Arg::Int], fallocate),
    full(abi::__NR_fsync, "fsync", &[Arg::Fd], fsync),
    full(abi::__NR_fdatasync, "fdatasync", &[Arg::Fd], fdatasync),
    full(abi::__NR_syncfs, "syncfs", &[Arg::Fd], syncfs),
    partial(
        abi::__NR_sync,
        "sync",
        &[],
        sync,
        "makes the files durable that the program has open for writing, not those of the whole host",
    ),
    partial(
        abi::__NR_sync_file_range,
        "sync_file_range",
        &[Arg::Fd, Arg::Int, Arg::Int, Arg::Hex],
        sync_file_range,
        "makes the whole file durable",
    ),
    ignored(
        abi::__NR_fadvise64,
        "fadvise64",
        &[Arg::Fd, Arg::Int, Arg::Int, Arg::Int],
        fadvise64,
        "the advice is checked and not passed on",
    ),
    ignored(abi::__NR_readahead, "readahead", &[Arg::Fd, Arg::Int, Arg::Uint], readahead, "the host reads ahead by itself"),
];

/// The host object behind a place, if the program may change it.
fn changeable(call: &mut Call<'_>, place: &Place) -> Result<Arc<OwnedFd>, Errno> {
    let path = &place.path;
    match &place.node {
        Node::Host(handle, _) | Node::HostLink(handle, _) if call.kernel.grants.access(path).write => Ok(Arc::clone(handle)),
        Node::Open(_) => Err(Errno::INVAL),
        _ => {
            note_refusal(call, "change", path, Errno::ACCESS);
            // Ours belong to nobody who could change them; what is only readable is on a read-only file system, as it were.
            Err(Errno::PERM)
        }
    }
}

fn open_place(call: &Call<'_>, index: usize) -> Result<Place, Errno> {
    Walker::new(call.kernel, call.tid).open_file(call.file(index)?)
}

fn change_mode(call: &mut Call<'_>, place: &Place, mode: u32) -> Answer {
    if let Node::Special(SpecialNode::Memory(id)) = place.node {
        call.kernel.files.shm.get_mut(id)?.mode = mode & 0o1777;
        return Ok(Outcome::OK);
    }
    let handle = changeable(call, place)?;
    // A program must not be able to leave a set-user-ID program on the host: the bits are dropped, as chmod(2) drops
    // set-group-ID for those who are not in the group.
    let allowed = match file_type(&handle)? {
        FileType::Symlink => return Err(Errno::OPNOTSUPP),
        FileType::Directory => 0o7777,
        _ => 0o1777,
    };
    rustix::fs::chmod(host_path::by_descriptor(&*handle), Mode::from_bits_retain(mode & allowed))?;
    Ok(Outcome::OK)
}

fn chmod(call: &mut Call<'_>) -> Answer {
    let path = path_argument(call, call.args[0])?;
    let place = place_at(call, AT_FDCWD, &path, 0)?;
    change_mode(call, &place, call.uint(1))
}

fn fchmod(call: &mut Call<'_>) -> Answer {
    open_for(call.kernel, call.file(0)?, u32::MAX)?;
    let place = open_place(call, 0)?;
    change_mode(call, &place, call.uint(1))
}

fn fchmodat(call: &mut Call<'_>) -> Answer {
    let path = path_argument(call, call.args[1])?;
    let place = place_at(call, call.int(0), &path, 0)?;
    change_mode(call, &place, call.uint(2))
}

fn fchmodat2(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(3);
    if flags & !(abi::AT_SYMLINK_NOFOLLOW | abi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    let path = optional_path(call, call.args[1], flags)?;
    let place = place_at(call, call.int(0), &path, flags)?;
    change_mode(call, &place, call.uint(2))
}

fn change_owner(call: &mut Call<'_>, place: &Place, owner: u32, group: u32) -> Answer {
    let handle = changeable(call, place)?;
    let id = |id: u32| (id != u32::MAX).then_some(id);
    rustix::fs::chownat(&*handle, "", id(owner).map(Uid::from_raw), id(group).map(Gid::from_raw), AtFlags::EMPTY_PATH)?;
    Ok(Outcome::OK)
}

fn chown(call: &mut Call<'_>) -> Answer {
    let path = path_argument(call, call.args[0])?;
    let place = place_at(call, AT_FDCWD, &path, 0)?;
    change_owner(call, &place, call.uint(1), call.uint(2))
}

fn fchown(call: &mut Call<'_>) -> Answer {
    open_for(call.kernel, call.file(0)?, u32::MAX)?;
    let place = open_place(call, 0)?;
    change_owner(call, &place, call.uint(1), call.uint(2))
}

fn lchown(call: &mut Call<'_>) -> Answer {
    let path = path_argument(call, call.args[0])?;
    let place = place_at(call, AT_FDCWD, &path, abi::AT_SYMLINK_NOFOLLOW)?;
    change_owner(call, &place, call.uint(1), call.uint(2))
}

fn fchownat(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(4);
    if flags & !(abi::AT_SYMLINK_NOFOLLOW | abi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    let path = optional_path(call, call.args[1], flags)?;
    let place = place_at(call, call.int(0), &path, flags)?;
    change_owner(call, &place, call.uint(2), call.uint(3))
}

const NOW: Timespec = Timespec { seconds: 0, nanoseconds: abi::UTIME_NOW as i64 };
const OMIT: i64 = abi::UTIME_OMIT as i64;

fn set_times(call: &mut Call<'_>, place: &Place, times: [Timespec; 2]) -> Answer {
    let valid =
        |time: &Timespec| matches!(time.nanoseconds, 0..1_000_000_000) || time.nanoseconds == NOW.nanoseconds || time.nanoseconds == OMIT;
    if !times.iter().all(valid) {
        return Err(Errno::INVAL);
    }
    if times.iter().all(|time| time.nanoseconds == OMIT) {
        return Ok(Outcome::OK);
    }
    if let Node::Special(SpecialNode::Memory(id)) = place.node {
        let now = call.kernel.clock.realtime();
        let time = times[1];
        call.kernel.files.shm.get_mut(id)?.modified = if time == NOW { now } else { time.to_ns().unwrap_or(now) };
        return Ok(Outcome::OK);
    }
    let handle = changeable(call, place)?;
    let [last_access, last_modification] = times.map(|time| HostTimespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds });
    let times = Timestamps { last_access, last_modification };
    match rustix::fs::utimensat(&*handle, "", &times, AtFlags::EMPTY_PATH) {
        // Before Linux 5.8 an empty path was not understood here.
        Err(Errno::INVAL | Errno::NOENT) if file_type(&handle)? != FileType::Symlink => {
            rustix::fs::utimensat(CWD, host_path::by_descriptor(&*handle), &times, AtFlags::empty())?;
        }
        answer => answer?,
    }
    Ok(Outcome::OK)
}

fn utimensat(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(3);
    if flags & !(abi::AT_SYMLINK_NOFOLLOW | abi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    let times = match call.args[2] {
        0 => [NOW, NOW],
        address => call.memory().read::<[Timespec; 2]>(address)?,
    };
    // A null path means the descriptor's own file (`futimens(3)`).
    let place = if call.args[1] == 0 && call.int(0) != AT_FDCWD {
        if flags & abi::AT_SYMLINK_NOFOLLOW != 0 {
            return Err(Errno::INVAL);
        }
        open_place(call, 0)?
    } else {
        let path = optional_path(call, call.args[1], flags)?;
        place_at(call, call.int(0), &path, flags)?
    };
    set_times(call, &place, times)
}

fn utime(call: &mut Call<'_>) -> Answer {
    let times = match call.args[1] {
        0 => [NOW, NOW],
        address => call.memory().read::<[i64; 2]>(address)?.map(|seconds| Timespec { seconds, nanoseconds: 0 }),
    };
    let path = path_argument(call, call.args[0])?;
    let place = place_at(call, AT_FDCWD, &path, 0)?;
    set_times(call, &place, times)
}

fn utimes(call: &mut Call<'_>) -> Answer {
    times_of_day(call, AT_FDCWD, call.args[0], call.args[1])
}

fn futimesat(call: &mut Call<'_>) -> Answer {
    times_of_day(call, call.int(0), call.args[1], call.args[2])
}

fn times_of_day(call: &mut Call<'_>, dirfd: i32, path: u64, times: u64) -> Answer {
    let times = match times {
        0 => [NOW, NOW],
        address => {
            let times = call.memory().read::<[Timeval; 2]>(address)?;
            if times.iter().any(|time| !matches!(time.microseconds, 0..1_000_000)) {
                return Err(Errno::INVAL);
            }
            times.map(|time| Timespec { seconds: time.seconds, nanoseconds: time.microseconds * 1000 })
        }
    };
    let place = if path == 0 {
        Walker::new(call.kernel, call.tid).open_file(call.kernel.process.fds.get(dirfd)?)?
    } else {
        let path = path_argument(call, path)?;
        place_at(call, dirfd, &path, 0)?
    };
    set_times(call, &place, times)
}

/// RLIMIT_FSIZE.
fn check_size(call: &mut Call<'_>, size: u64) -> Result<(), Errno> {
    let (limit, _) = call.kernel.process.rlimits[abi::RLIMIT_FSIZE as usize];
    if size > limit { Err(super::io::too_large(call)) } else { Ok(()) }
}

fn truncate(call: &mut Call<'_>) -> Answer {
    let length = u64::try_from(call.args[1].cast_signed()).map_err(|_| Errno::INVAL)?;
    let path = path_argument(call, call.args[0])?;
    let place = place_at(call, AT_FDCWD, &path, 0)?;
    match &place.node {
        Node::Host(_, true) | Node::Virtual => return Err(Errno::ISDIR),
        Node::Host(handle, false) if file_type(handle)? == FileType::RegularFile => {}
        Node::Host(..) => return Err(Errno::INVAL),
        Node::Special(SpecialNode::Memory(id)) => return resize_memory(call, *id, length),
        _ => return Err(Errno::ACCESS),
    }
    let handle = changeable(call, &place).map_err(|_| Errno::ACCESS)?;
    check_size(call, length)?;
    let file = host_path::open_object(&handle, OFlags::WRONLY)?;
    rustix::fs::ftruncate(file, length)?;
    Ok(Outcome::OK)
}

/// The host file of argument 0, opened for writing.
fn writable_file(call: &Call<'_>, otherwise: Errno) -> Result<Arc<OwnedFd>, Errno> {
    let id = call.file(0)?;
    open_for(call.kernel, id, u32::MAX)?;
    match &call.kernel.files.get(id)?.file {
        File::Host(file) => {
            open_for(call.kernel, id, abi::O_RDONLY).map_err(|_| otherwise)?;
            Ok(Arc::clone(file.descriptor()))
        }
        _ => Err(otherwise),
    }
}

fn ftruncate(call: &mut Call<'_>) -> Answer {
    let length = u64::try_from(call.args[1].cast_signed()).map_err(|_| Errno::INVAL)?;
    if let Some(inode) = writable_memory(call)? {
        return resize_memory(call, inode, length);
    }
    let file = writable_file(call, Errno::INVAL)?;
    check_size(call, length)?;
    rustix::fs::ftruncate(file, length)?;
    Ok(Outcome::OK)
}

fn resize_memory(call: &mut Call<'_>, inode: InodeId, length: u64) -> Answer {
    let now = call.kernel.clock.realtime();
    call.kernel.files.shm.resize(inode, length, now)?;
    Ok(Outcome::OK)
}

/// The file in memory of argument 0, opened for writing, if it is one.
fn writable_memory(call: &Call<'_>) -> Result<Option<InodeId>, Errno> {
    let id = call.file(0)?;
    match &call.kernel.files.get(id)?.file {
        File::Special(file) if file.memory().is_some() => {
            open_for(call.kernel, id, abi::O_RDONLY).map_err(|_| Errno::INVAL)?;
            Ok(file.memory())
        }
        _ => Ok(None),
    }
}

fn fallocate(call: &mut Call<'_>) -> Answer {
    let (offset, length) = (call.args[2].cast_signed(), call.args[3].cast_signed());
    let (Ok(offset), Ok(length)) = (u64::try_from(offset), u64::try_from(length)) else { return Err(Errno::INVAL) };
    if let Some(inode) = writable_memory(call).map_err(|_| Errno::BADF)? {
        if call.uint(1) != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let end = offset.checked_add(length).filter(|_| length > 0).ok_or(Errno::INVAL)?;
        let size = call.kernel.files.shm.get(inode)?.data().len() as u64;
        return if end > size { resize_memory(call, inode, end) } else { Ok(Outcome::OK) };
    }
    let file = match writable_file(call, Errno::BADF) {
        Err(Errno::BADF) if !matches!(call.kernel.files.get(call.file(0)?)?.file, File::Host(_)) => return Err(Errno::NODEV),
        file => file?,
    };
    check_size(call, offset.saturating_add(length))?;
    rustix::fs::fallocate(file, FallocateFlags::from_bits_retain(call.uint(1)), offset, length)?;
    Ok(Outcome::OK)
}

fn host_file(call: &Call<'_>, id: FileId) -> Result<Arc<OwnedFd>, Errno> {
    open_for(call.kernel, id, u32::MAX)?;
    match &call.kernel.files.get(id)?.file {
        File::Host(file) => Ok(Arc::clone(file.descriptor())),
        // What is not on a disk cannot be made durable (`fsync(2)`).
        _ => Err(Errno::INVAL),
    }
}

fn fsync(call: &mut Call<'_>) -> Answer {
    fsync_as(call, |file| rustix::fs::fsync(file))
}

fn fsync_as(call: &Call<'_>, make_durable: fn(&OwnedFd) -> Result<(), Errno>) -> Answer {
    let id = call.file(0)?;
    // Memory is as durable as it will ever be.
    if !matches!(&call.kernel.files.get(id)?.file, File::Special(file) if file.memory().is_some()) {
        make_durable(&*host_file(call, id)?)?;
    }
    Ok(Outcome::OK)
}

fn fdatasync(call: &mut Call<'_>) -> Answer {
    fsync_as(call, |file| rustix::fs::fdatasync(file))
}

/// The whole file system is more than the program's: its own open file is what it can have written.
fn syncfs(call: &mut Call<'_>) -> Answer {
    let id = call.file(0)?;
    if let Ok(file) = host_file(call, id) {
        rustix::fs::fsync(file)?;
    }
    sync(call)
}

fn sync(call: &mut Call<'_>) -> Answer {
    let written = call.kernel.files.iter().filter_map(|(_, slot)| match &slot.file {
        File::Host(file) if slot.flags & abi::O_ACCMODE != abi::O_RDONLY => Some(file),
        _ => None,
    });
    for file in written {
        // sync(2) has no errors to report.
        let _ = rustix::fs::fsync(file.descriptor());
    }
    Ok(Outcome::OK)
}

fn sync_file_range(call: &mut Call<'_>) -> Answer {
    let (offset, length, flags) = (call.args[1].cast_signed(), call.args[2].cast_signed(), call.uint(3));
    if offset < 0 || length < 0 || offset.checked_add(length).is_none() || flags & !7 != 0 {
        return Err(Errno::INVAL);
    }
    let file = host_file(call, call.file(0)?).map_err(|errno| if errno == Errno::INVAL { Errno::SPIPE } else { errno })?;
    if flags != 0 {
        rustix::fs::fdatasync(file)?;
    }
    Ok(Outcome::OK)
}

fn fadvise64(call: &mut Call<'_>) -> Answer {
    let id = call.file(0)?;
    open_for(call.kernel, id, u32::MAX)?;
    if matches!(call.kernel.files.get(id)?.file, File::Pipe(_)) {
        return Err(Errno::SPIPE);
    }
    if call.args[2].cast_signed() < 0 || call.uint(3) > abi::POSIX_FADV_NOREUSE {
        return Err(Errno::INVAL);
    }
    Ok(Outcome::OK)
}

fn readahead(call: &mut Call<'_>) -> Answer {
    let id = call.file(0)?;
    open_for(call.kernel, id, abi::O_WRONLY)?;
    match &call.kernel.files.get(id)?.file {
        File::Host(file) if !file.is_directory() => Ok(Outcome::OK),
        _ => Err(Errno::INVAL),
    }
}
