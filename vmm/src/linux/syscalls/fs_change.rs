//! Making, moving and removing names: mkdir(2), mknod(2), rmdir(2), unlink(2), rename(2), link(2), symlink(2) and relatives.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use linux_raw_sys::general as abi;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};

use super::fs_open::{note_refusal, path_argument};
use crate::linux::file::shm::InodeId;
use crate::linux::file::special::{Node as SpecialNode, SHM};
use crate::linux::grants::Grants;
use crate::linux::path::{AT_FDCWD, Found, Last, Node, Place, Walker};
use crate::linux::table::{Arg, Entry, full, partial};
use crate::linux::{Answer, Call, Errno, Kernel, Outcome, guest_path, host_path};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(abi::__NR_mkdir, "mkdir", &[Arg::Path, Arg::Mode], mkdir),
    full(abi::__NR_mkdirat, "mkdirat", &[Arg::Fd, Arg::Path, Arg::Mode], mkdirat),
    partial(abi::__NR_mknod, "mknod", &[Arg::Path, Arg::Mode, Arg::Hex], mknod, "regular files only; EPERM for devices, FIFOs and sockets"),
    partial(abi::__NR_mknodat, "mknodat", &[Arg::Fd, Arg::Path, Arg::Mode, Arg::Hex], mknodat, "as mknod"),
    full(abi::__NR_rmdir, "rmdir", &[Arg::Path], rmdir),
    full(abi::__NR_unlink, "unlink", &[Arg::Path], unlink),
    full(abi::__NR_unlinkat, "unlinkat", &[Arg::Fd, Arg::Path, Arg::Hex], unlinkat),
    full(abi::__NR_rename, "rename", &[Arg::Path, Arg::Path], rename),
    full(abi::__NR_renameat, "renameat", &[Arg::Fd, Arg::Path, Arg::Fd, Arg::Path], renameat),
    full(abi::__NR_renameat2, "renameat2", &[Arg::Fd, Arg::Path, Arg::Fd, Arg::Path, Arg::Hex], renameat2),
    full(abi::__NR_link, "link", &[Arg::Path, Arg::Path], link),
    full(abi::__NR_linkat, "linkat", &[Arg::Fd, Arg::Path, Arg::Fd, Arg::Path, Arg::Hex], linkat),
    full(abi::__NR_symlink, "symlink", &[Arg::Path, Arg::Path], symlink),
    full(abi::__NR_symlinkat, "symlinkat", &[Arg::Path, Arg::Fd, Arg::Path], symlinkat),
];

/// A host directory and a name in it.
struct Spot {
    directory: Arc<OwnedFd>,
    name: Vec<u8>,
    found: Found,
}

/// Walk to the place where a name is to be made, changed or removed, without following it.
fn walk_to(call: &mut Call<'_>, dirfd: i32, path: &[u8]) -> Result<Found, Errno> {
    let walker = Walker::new(call.kernel, call.tid);
    let found = walker.walk(dirfd, path, Last::Keep);
    let answer = found.map_err(|errno| walker.refusal(path, errno));
    if let Err(errno) = &answer {
        note_refusal(call, "change", path, *errno);
    }
    answer
}

/// The host's side of it, if the program may write there.
fn spot(call: &mut Call<'_>, found: Found, path: &[u8]) -> Result<Spot, Errno> {
    match Walker::new(call.kernel, call.tid).holder(&found) {
        Ok((directory, name)) => Ok(Spot { directory, name, found }),
        Err(errno) => {
            note_refusal(call, "change", path, errno);
            Err(errno)
        }
    }
}

/// A spot where there is nothing yet.
fn empty_spot(call: &mut Call<'_>, dirfd: i32, path: &[u8]) -> Result<Spot, Errno> {
    let found = walk_to(call, dirfd, path)?;
    if found.place.is_some() {
        return Err(Errno::EXIST);
    }
    spot(call, found, path)
}

fn mkdir(call: &mut Call<'_>) -> Answer {
    make_directory(call, AT_FDCWD, call.args[0], call.uint(1))
}

fn mkdirat(call: &mut Call<'_>) -> Answer {
    make_directory(call, call.int(0), call.args[1], call.uint(2))
}

fn make_directory(call: &mut Call<'_>, dirfd: i32, path: u64, mode: u32) -> Answer {
    let path = path_argument(call, path)?;
    let spot = empty_spot(call, dirfd, &path)?;
    let wanted = mode & 0o1777 & !call.kernel.process.umask;
    rustix::fs::mkdirat(&spot.directory, spot.name.as_slice(), Mode::from_bits_retain(wanted))?;
    if call.kernel.grants.host_umask & wanted != 0 {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&spot.directory, spot.name.as_slice(), flags, Mode::empty())?;
        // A directory may take the set-group-ID bit from its parent: it stays.
        let kept = rustix::fs::fstat(&made)?.st_mode & 0o2000;
        rustix::fs::chmod(host_path::by_descriptor(&made), Mode::from_bits_retain(wanted | kept))?;
    }
    Ok(Outcome::OK)
}

fn mknod(call: &mut Call<'_>) -> Answer {
    make_node(call, AT_FDCWD, call.args[0], call.uint(1))
}

fn mknodat(call: &mut Call<'_>) -> Answer {
    make_node(call, call.int(0), call.args[1], call.uint(2))
}

fn make_node(call: &mut Call<'_>, dirfd: i32, path: u64, mode: u32) -> Answer {
    let path = path_argument(call, path)?;
    let found = walk_to(call, dirfd, &path)?;
    if found.place.is_some() {
        return Err(Errno::EXIST);
    }
    match mode & 0o170_000 {
        0 | 0o100_000 => {}
        0o010_000 | 0o140_000 | 0o020_000 | 0o060_000 => return Err(Errno::PERM),
        0o040_000 => return Err(Errno::PERM),
        _ => return Err(Errno::INVAL),
    }
    if found.slash {
        return Err(Errno::NOENT);
    }
    let spot = spot(call, found, &path)?;
    let wanted = mode & 0o1777 & !call.kernel.process.umask;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(&spot.directory, spot.name.as_slice(), flags, Mode::from_bits_retain(wanted))?;
    super::fs_open::restore_mode(call, &made, wanted)?;
    Ok(Outcome::OK)
}

fn rmdir(call: &mut Call<'_>) -> Answer {
    remove(call, AT_FDCWD, call.args[0], true)
}

fn unlink(call: &mut Call<'_>) -> Answer {
    remove(call, AT_FDCWD, call.args[0], false)
}

fn unlinkat(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(2);
    if flags & !abi::AT_REMOVEDIR != 0 {
        return Err(Errno::INVAL);
    }
    remove(call, call.int(0), call.args[1], flags & abi::AT_REMOVEDIR != 0)
}

fn remove(call: &mut Call<'_>, dirfd: i32, path: u64, directory: bool) -> Answer {
    let path = path_argument(call, path)?;
    let found = walk_to(call, dirfd, &path)?;
    if found.name.is_empty() {
        return Err(named_itself(&path, directory));
    }
    let Some(place) = &found.place else { return Err(Walker::new(call.kernel, call.tid).refusal(&path, Errno::NOENT)) };
    if found.slash && !place.is_directory() {
        return Err(Errno::NOTDIR);
    }
    if let Node::Special(SpecialNode::Memory(_)) = place.node {
        if directory {
            return Err(Errno::NOTDIR);
        }
        call.kernel.files.shm.unlink(&found.name)?;
        return Ok(Outcome::OK);
    }
    let spot = spot(call, found, &path)?;
    let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    rustix::fs::unlinkat(&spot.directory, spot.name.as_slice(), flags)?;
    Ok(Outcome::OK)
}

/// What removing `.`, `..` or `/` answers.
fn named_itself(path: &[u8], directory: bool) -> Errno {
    let last = crate::linux::guest_path::components(path).next_back();
    match last {
        _ if !directory => Errno::ISDIR,
        Some(b".") => Errno::INVAL,
        Some(b"..") => Errno::NOTEMPTY,
        _ => Errno::BUSY,
    }
}

fn rename(call: &mut Call<'_>) -> Answer {
    move_name(call, (AT_FDCWD, call.args[0]), (AT_FDCWD, call.args[1]), 0)
}

fn renameat(call: &mut Call<'_>) -> Answer {
    move_name(call, (call.int(0), call.args[1]), (call.int(2), call.args[3]), 0)
}

fn renameat2(call: &mut Call<'_>) -> Answer {
    move_name(call, (call.int(0), call.args[1]), (call.int(2), call.args[3]), call.uint(4))
}

fn move_name(call: &mut Call<'_>, from: (i32, u64), to: (i32, u64), flags: u32) -> Answer {
    let (no_replace, exchange) = (flags & abi::RENAME_NOREPLACE != 0, flags & abi::RENAME_EXCHANGE != 0);
    // A whiteout is a device node: only a kernel's overlay needs one.
    if flags & !(abi::RENAME_NOREPLACE | abi::RENAME_EXCHANGE) != 0 || no_replace && exchange {
        return Err(Errno::INVAL);
    }
    let (old, new) = (path_argument(call, from.1)?, path_argument(call, to.1)?);
    let source = walk_to(call, from.0, &old)?;
    let target = walk_to(call, to.0, &new)?;
    if source.name.is_empty() || target.name.is_empty() {
        return Err(Errno::BUSY);
    }
    let moved = source.place.as_ref().ok_or_else(|| Walker::new(call.kernel, call.tid).refusal(&old, Errno::NOENT))?;
    if (source.slash || target.slash) && !moved.is_directory() {
        return Err(Errno::NOTDIR);
    }
    if no_replace && target.place.is_some() {
        return Err(Errno::EXIST);
    }
    if let Node::Special(SpecialNode::Memory(_)) = moved.node
        && target.directory.path == SHM
        && !exchange
    {
        call.kernel.files.shm.rename(&source.name, &target.name)?;
        return Ok(Outcome::OK);
    }
    may_move(&call.kernel.grants, moved, &target.path(), exchange)?;
    let (old_path, new_path) = (moved.path.clone(), target.path());
    let (source, target) = (spot(call, source, &old)?, spot(call, target, &new)?);
    let flags = RenameFlags::from_bits_retain(flags);
    rustix::fs::renameat_with(&source.directory, source.name.as_slice(), &target.directory, target.name.as_slice(), flags)?;
    if !exchange && old_path != new_path {
        follow_rename(call.kernel, &old_path, &new_path);
    }
    Ok(Outcome::OK)
}

/// Open files and the working directory keep their identity and learn their new names.
fn follow_rename(kernel: &mut Kernel, from: &[u8], to: &[u8]) {
    if let Some(path) = guest_path::moved(&kernel.process.cwd.path, from, to) {
        kernel.process.cwd.path = path;
    }
    for file in kernel.files.host_files_mut() {
        file.renamed(from, to);
    }
}

/// Moving must not make readable what was not; a directory that has rights of its own further down stays where it is.
fn may_move(grants: &Grants, moved: &Place, to: &[u8], exchange: bool) -> Result<(), Errno> {
    let (from, to_access) = (grants.access(&moved.path), grants.access(to));
    if to_access.read && !from.read || exchange && from.read && !to_access.read {
        return Err(Errno::ACCESS);
    }
    let is_fixed = |path: &[u8]| grants.has_rule_below(path);
    if moved.is_directory() && (is_fixed(&moved.path) || is_fixed(to)) || exchange && is_fixed(to) { Err(Errno::BUSY) } else { Ok(()) }
}

fn link(call: &mut Call<'_>) -> Answer {
    make_link(call, (AT_FDCWD, call.args[0]), (AT_FDCWD, call.args[1]), 0)
}

fn linkat(call: &mut Call<'_>) -> Answer {
    make_link(call, (call.int(0), call.args[1]), (call.int(2), call.args[3]), call.uint(4))
}

fn make_link(call: &mut Call<'_>, from: (i32, u64), to: (i32, u64), flags: u32) -> Answer {
    if flags & !(abi::AT_SYMLINK_FOLLOW | abi::AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    let old = super::fs_stat::optional_path(call, from.1, flags)?;
    let new = path_argument(call, to.1)?;
    let follow = if flags & abi::AT_SYMLINK_FOLLOW != 0 { 0 } else { abi::AT_SYMLINK_NOFOLLOW };
    let place = super::fs_stat::place_at(call, from.0, &old, flags & abi::AT_EMPTY_PATH | follow)?;
    if let Node::Special(SpecialNode::Memory(inode)) = place.node {
        return link_memory(call, inode, to.0, &new);
    }
    let spot = empty_spot(call, to.0, &new)?;
    if spot.found.slash {
        return Err(Errno::NOENT);
    }
    let handle = match &place.node {
        Node::Host(_, true) => return Err(Errno::PERM),
        Node::Host(handle, false) | Node::HostLink(handle, _) => Arc::clone(handle),
        _ => return Err(Errno::XDEV),
    };
    may_link(&call.kernel.grants, &place, &spot.found.path())?;
    // The link in /proc/self/fd leads to the very object that was found; a symbolic link itself has to be named by descriptor.
    let linked =
        rustix::fs::linkat(CWD, host_path::by_descriptor(&*handle), &spot.directory, spot.name.as_slice(), AtFlags::SYMLINK_FOLLOW);
    if matches!(place.node, Node::HostLink(..)) && linked == Err(Errno::LOOP) {
        return Err(Errno::PERM);
    }
    linked?;
    Ok(Outcome::OK)
}

fn link_memory(call: &mut Call<'_>, inode: InodeId, dirfd: i32, path: &[u8]) -> Answer {
    let found = walk_to(call, dirfd, path)?;
    match found.place {
        Some(_) => Err(Errno::EXIST),
        None if found.directory.path != SHM => Err(Errno::XDEV),
        None => {
            call.kernel.files.shm.link(inode, &found.name)?;
            Ok(Outcome::OK)
        }
    }
}

/// A second name must not give a right that the first does not: the new place may be readable or writable only where the
/// old one is.
fn may_link(grants: &Grants, old: &Place, new: &[u8]) -> Result<(), Errno> {
    let (had, gets) = (grants.access(&old.path), grants.access(new));
    if gets.read && !had.read || gets.write && !had.write { Err(Errno::ACCESS) } else { Ok(()) }
}

fn symlink(call: &mut Call<'_>) -> Answer {
    make_symbolic_link(call, call.args[0], AT_FDCWD, call.args[1])
}

fn symlinkat(call: &mut Call<'_>) -> Answer {
    make_symbolic_link(call, call.args[0], call.int(1), call.args[2])
}

fn make_symbolic_link(call: &mut Call<'_>, target: u64, dirfd: i32, path: u64) -> Answer {
    let (target, path) = (path_argument(call, target)?, path_argument(call, path)?);
    if target.is_empty() {
        return Err(Errno::NOENT);
    }
    let spot = empty_spot(call, dirfd, &path)?;
    if spot.found.slash {
        return Err(Errno::NOENT);
    }
    rustix::fs::symlinkat(target.as_slice(), &spot.directory, spot.name.as_slice())?;
    Ok(Outcome::OK)
}

/// The type of what a descriptor names.
pub(super) fn file_type(handle: &OwnedFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(handle)?.st_mode))
}
