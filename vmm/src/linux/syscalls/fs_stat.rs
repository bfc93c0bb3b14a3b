//! stat(2) and relatives, statx(2), access(2), readlink(2), statfs(2).

use std::os::fd::OwnedFd;

use linux_raw_sys::general as abi;
use rustix::fs::{Access as HostAccess, AtFlags, CWD};
use zerocopy::{Immutable, IntoBytes};

use super::fs_open::{note_refusal, path_argument};
use crate::linux::file::attributes::{Attributes, StatxTime};
use crate::linux::file::special::{self, Node as SpecialNode};
use crate::linux::file::{File, FileId, host};
use crate::linux::path::{AT_FDCWD, Last, Node, Place, Walker};
use crate::linux::table::{Arg, Entry, full};
use crate::linux::{Answer, Call, Errno, Kernel, Outcome, host_path};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(abi::__NR_stat, "stat", &[Arg::Path, Arg::Pointer], stat),
    full(abi::__NR_fstat, "fstat", &[Arg::Fd, Arg::Pointer], fstat),
    full(abi::__NR_lstat, "lstat", &[Arg::Path, Arg::Pointer], lstat),
    full(abi::__NR_newfstatat, "newfstatat", &[Arg::Fd, Arg::Path, Arg::Pointer, Arg::Hex], newfstatat),
    full(abi::__NR_statx, "statx", &[Arg::Fd, Arg::Path, Arg::Hex, Arg::Hex, Arg::Pointer], statx),
    full(abi::__NR_access, "access", &[Arg::Path, Arg::Int], access),
    full(abi::__NR_faccessat, "faccessat", &[Arg::Fd, Arg::Path, Arg::Int], faccessat),
    full(abi::__NR_faccessat2, "faccessat2", &[Arg::Fd, Arg::Path, Arg::Int, Arg::Hex], faccessat2),
    full(abi::__NR_readlink, "readlink", &[Arg::Path, Arg::OutBuffer, Arg::Uint], readlink),
    full(abi::__NR_readlinkat, "readlinkat", &[Arg::Fd, Arg::Path, Arg::OutBuffer, Arg::Uint], readlinkat),
    full(abi::__NR_statfs, "statfs", &[Arg::Path, Arg::Pointer], statfs),
    full(abi::__NR_fstatfs, "fstatfs", &[Arg::Fd, Arg::Pointer], fstatfs),
];

const TERMINAL: &[u8] = b"/dev/tty";
const PROC_MAGIC: i64 = 0x9fa0;
const SYSFS_MAGIC: i64 = 0x6265_6572;
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// The object that a dirfd, a path and AT_* flags name.
pub(super) fn place_at(call: &Call<'_>, dirfd: i32, path: &[u8], flags: u32) -> Result<Place, Errno> {
    let walker = Walker::new(call.kernel, call.tid);
    if path.is_empty() {
        return match (flags & abi::AT_EMPTY_PATH != 0, dirfd) {
            (false, _) => Err(Errno::NOENT),
            (true, AT_FDCWD) => walker.start(AT_FDCWD),
            (true, _) => walker.open_file(call.kernel.process.fds.get(dirfd)?),
        };
    }
    let last = if flags & abi::AT_SYMLINK_NOFOLLOW != 0 { Last::Keep } else { Last::Follow };
    walker.walk(dirfd, path, last)?.existing()
}

/// A path argument that may be null with AT_EMPTY_PATH, as since Linux 6.11.
pub(super) fn optional_path(call: &Call<'_>, address: u64, flags: u32) -> Result<Vec<u8>, Errno> {
    if address == 0 && flags & abi::AT_EMPTY_PATH != 0 { Ok(Vec::new()) } else { path_argument(call, address) }
}

/// The attributes of a place.
pub(super) fn attributes(kernel: &Kernel, place: &Place) -> Result<Attributes, Errno> {
    match &place.node {
        Node::Host(handle, _) | Node::HostLink(handle, _) => host::attributes_of(handle),
        Node::Special(node) => Ok(special::attributes(kernel, &place.path, *node)),
        Node::Virtual => Ok(special::attributes(kernel, &place.path, SpecialNode::Directory)),
        Node::VirtualLink(target) => {
            let link = special::attributes(kernel, &place.path, SpecialNode::Link(special::Link::OwnProcess));
            Ok(Attributes { size: target.len() as u64, ..link })
        }
        Node::Open(id) => attributes_of_file(kernel, *id),
    }
}

/// The attributes of an open file.
fn attributes_of_file(kernel: &Kernel, id: FileId) -> Result<Attributes, Errno> {
    let slot = kernel.files.get(id)?;
    let mode = match &slot.file {
        File::Host(file) => return file.attributes(),
        File::Special(file) => return Ok(special::attributes(kernel, file.path(), file.node())),
        // The terminal is /dev/tty to the guest, under whichever descriptor (`ttyname(3)` compares the two).
        File::Console(console) if rustix::termios::isatty(console.descriptor()) => {
            return Ok(special::attributes(kernel, TERMINAL, SpecialNode::Device(special::Device::Terminal)));
        }
        File::Console(console) => return console.attributes(),
        File::Pipe(_) => 0o010_600,
        File::Event(_) | File::Timer(_) | File::Signal(_) | File::Epoll(_) => 0o600,
        File::Pair(_) | File::Listener(_) | File::Stream(_) | File::Socket(_) => 0o140_777,
    };
    let now = kernel.clock.realtime();
    let moment = StatxTime::new(i64::try_from(now / 1_000_000_000).unwrap_or(0), (now % 1_000_000_000) as u32);
    Ok(Attributes {
        device: (0, 9),
        inode: 1000 + u64::from(id.0),
        mode,
        links: 1,
        uid: kernel.process.identity.uid,
        gid: kernel.process.identity.gid,
        block_size: 4096,
        accessed: moment,
        modified: moment,
        changed: moment,
        ..Attributes::default()
    })
}

fn answer_stat(call: &mut Call<'_>, dirfd: i32, path: &[u8], flags: u32, buffer: u64) -> Answer {
    match place_at(call, dirfd, path, flags) {
        Ok(place) => write_out(call, buffer, &attributes(call.kernel, &place)?.to_stat()),
        Err(errno) => {
            note_refusal(call, "see", path, errno);
            Err(errno)
        }
    }
}

fn write_out(call: &Call<'_>, buffer: u64, value: &(impl IntoBytes + Immutable)) -> Answer {
    call.memory().write(buffer, value)?;
    Ok(Outcome::OK)
}

fn stat(call: &mut Call<'_>) -> Answer {
    let path = path_argument(call, call.args[0])?;
    answer_stat(call, AT_FDCWD, &path, 0, call.args[1])
}

fn lstat(call: &mut Call<'_>) -> Answer {
    let path = path_argument(call, call.args[0])?;
    answer_stat(call, AT_FDCWD, &path, abi::AT_SYMLINK_NOFOLLOW, call.args[1])
}

fn fstat(call: &mut Call<'_>) -> Answer {
    let attributes = attributes_of_file(call.kernel, call.file(0)?)?;
    write_out(call, call.args[1], &attributes.to_stat())
}

fn newfstatat(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(3);
    if flags & !(abi::AT_SYMLINK_NOFOLLOW | abi::AT_NO_AUTOMOUNT | abi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    let path = optional_path(call, call.args[1], flags)?;
    if path.is_empty() && flags & abi::AT_EMPTY_PATH != 0 && call.int(0) != AT_FDCWD {
        let attributes = attributes_of_file(call.kernel, call.file(0)?)?;
        return write_out(call, call.args[2], &attributes.to_stat());
    }
    answer_stat(call, call.int(0), &path, flags, call.args[2])
}

fn statx(call: &mut Call<'_>) -> Answer {
    let (flags, mask) = (call.uint(2), call.uint(3));
    let known = abi::AT_SYMLINK_NOFOLLOW | abi::AT_NO_AUTOMOUNT | abi::AT_EMPTY_PATH | abi::AT_STATX_SYNC_TYPE;
    if flags & !known != 0 || flags & abi::AT_STATX_SYNC_TYPE == abi::AT_STATX_SYNC_TYPE || mask & abi::STATX__RESERVED != 0 {
        return Err(Errno::INVAL);
    }
    let path = optional_path(call, call.args[1], flags)?;
    let found = if path.is_empty() && flags & abi::AT_EMPTY_PATH != 0 && call.int(0) != AT_FDCWD {
        let id = call.file(0)?;
        let born = if let File::Host(file) = &call.kernel.files.get(id)?.file { host::birth_of(file.descriptor()) } else { None };
        attributes_of_file(call.kernel, id).map(|attributes| Attributes { born, ..attributes })
    } else {
        place_at(call, call.int(0), &path, flags).and_then(|place| {
            let born = if let Node::Host(handle, _) | Node::HostLink(handle, _) = &place.node { host::birth_of(handle) } else { None };
            Ok(Attributes { born, ..attributes(call.kernel, &place)? })
        })
    };
    match found {
        Ok(attributes) => write_out(call, call.args[4], &attributes.to_statx()),
        Err(errno) => {
            note_refusal(call, "see", &path, errno);
            Err(errno)
        }
    }
}

fn access(call: &mut Call<'_>) -> Answer {
    answer_access(call, AT_FDCWD, call.args[0], call.uint(1), 0)
}

fn faccessat(call: &mut Call<'_>) -> Answer {
    answer_access(call, call.int(0), call.args[1], call.uint(2), 0)
}

fn faccessat2(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(3);
    if flags & !(abi::AT_EACCESS | abi::AT_SYMLINK_NOFOLLOW | abi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    answer_access(call, call.int(0), call.args[1], call.uint(2), flags)
}

fn answer_access(call: &mut Call<'_>, dirfd: i32, path: u64, mode: u32, flags: u32) -> Answer {
    if mode & !(abi::R_OK | abi::W_OK | abi::X_OK) != 0 {
        return Err(Errno::INVAL);
    }
    let path = optional_path(call, path, flags)?;
    let answer = place_at(call, dirfd, &path, flags).and_then(|place| check_access(call.kernel, &place, mode));
    match answer {
        Ok(()) => Ok(Outcome::OK),
        Err(errno) => {
            note_refusal(call, "see", &path, errno);
            Err(errno)
        }
    }
}

fn check_access(kernel: &Kernel, place: &Place, mode: u32) -> Result<(), Errno> {
    let (reads, writes, executes) = (mode & abi::R_OK != 0, mode & abi::W_OK != 0, mode & abi::X_OK != 0);
    match &place.node {
        Node::Host(handle, is_directory) => {
            let granted = kernel.grants.access(&place.path);
            // Running a program needs reading it; passing through a directory needs no grant of its own.
            if reads && !granted.read || writes && !granted.write || executes && !granted.read && !is_directory {
                return Err(Errno::ACCESS);
            }
            rustix::fs::accessat(CWD, host_path::by_descriptor(&**handle), HostAccess::from_bits_retain(mode), AtFlags::empty())
        }
        Node::Special(node) if writes && node.mode() & 0o222 == 0 || executes && *node != SpecialNode::Directory => Err(Errno::ACCESS),
        Node::Virtual if writes => Err(Errno::ACCESS),
        _ => Ok(()),
    }
}

fn readlink(call: &mut Call<'_>) -> Answer {
    answer_readlink(call, AT_FDCWD, call.args[0], call.args[1], call.int(2))
}

fn readlinkat(call: &mut Call<'_>) -> Answer {
    answer_readlink(call, call.int(0), call.args[1], call.args[2], call.int(3))
}

fn answer_readlink(call: &mut Call<'_>, dirfd: i32, path: u64, buffer: u64, size: i32) -> Answer {
    let size = usize::try_from(size).ok().filter(|&size| size > 0).ok_or(Errno::INVAL)?;
    let path = path_argument(call, path)?;
    // An empty path means the link that dirfd (opened with O_PATH | O_NOFOLLOW) names.
    let place = place_at(call, dirfd, &path, abi::AT_SYMLINK_NOFOLLOW | if path.is_empty() { abi::AT_EMPTY_PATH } else { 0 })?;
    let target = match place.node {
        Node::HostLink(_, target) | Node::VirtualLink(target) => target,
        Node::Special(SpecialNode::Link(link)) => special::link_target(call.kernel, call.tid, link),
        _ if path.is_empty() => return Err(Errno::NOENT),
        _ => return Err(Errno::INVAL),
    };
    let length = target.len().min(size);
    call.memory().write_bytes(buffer, &target[..length])?;
    Ok(length.into())
}

fn statfs(call: &mut Call<'_>) -> Answer {
    let path = path_argument(call, call.args[0])?;
    let place = place_at(call, AT_FDCWD, &path, 0)?;
    answer_statfs(call, &place, call.args[1])
}

fn fstatfs(call: &mut Call<'_>) -> Answer {
    let place = Walker::new(call.kernel, call.tid).open_file(call.file(0)?)?;
    answer_statfs(call, &place, call.args[1])
}

fn answer_statfs(call: &mut Call<'_>, place: &Place, buffer: u64) -> Answer {
    let fields = match &place.node {
        Node::Host(handle, _) | Node::HostLink(handle, _) => host_statfs(handle)?,
        _ => {
            let magic = match () {
                () if place.path.starts_with(b"/proc") => PROC_MAGIC,
                () if place.path.starts_with(b"/sys") => SYSFS_MAGIC,
                () => TMPFS_MAGIC,
            };
            [magic, 4096, 0, 0, 0, 0, 0, 0, 255, 4096, 0, 0, 0, 0, 0]
        }
    };
    write_out(call, buffer, &fields)
}

/// `struct statfs` of x86-64: fifteen words (f_fsid is one, and ours to keep). Nothing else about the host's file system is told.
fn host_statfs(handle: &OwnedFd) -> Result<[i64; 15], Errno> {
    let status = rustix::fs::fstatfs(handle)?;
    let word = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    Ok([
        status.f_type,
        status.f_bsize,
        word(status.f_blocks),
        word(status.f_bfree),
        word(status.f_bavail),
        word(status.f_files),
        word(status.f_ffree),
        0,
        status.f_namelen,
        status.f_frsize,
        status.f_flags,
        0,
        0,
        0,
        0,
    ])
}
