//! Extended attributes: getxattr(2), setxattr(2), listxattr(2), removexattr(2) and relatives, on the host's files.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use linux_raw_sys::general as abi;
use rustix::fs::XattrFlags;

use super::fs_open::path_argument;
use super::fs_stat::place_at;
use crate::linux::path::{AT_FDCWD, Node, Place, Walker};
use crate::linux::table::{Arg, Entry, full, partial};
use crate::linux::{Answer, Call, Errno, Outcome, host_path};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(abi::__NR_getxattr, "getxattr", &[Arg::Path, Arg::Path, Arg::Pointer, Arg::Uint], getxattr),
    full(abi::__NR_lgetxattr, "lgetxattr", &[Arg::Path, Arg::Path, Arg::Pointer, Arg::Uint], lgetxattr),
    full(abi::__NR_fgetxattr, "fgetxattr", &[Arg::Fd, Arg::Path, Arg::Pointer, Arg::Uint], fgetxattr),
    partial(abi::__NR_setxattr, "setxattr", &[Arg::Path, Arg::Path, Arg::Buffer, Arg::Uint, Arg::Hex], setxattr, USER_ONLY),
    partial(abi::__NR_lsetxattr, "lsetxattr", &[Arg::Path, Arg::Path, Arg::Buffer, Arg::Uint, Arg::Hex], lsetxattr, USER_ONLY),
    partial(abi::__NR_fsetxattr, "fsetxattr", &[Arg::Fd, Arg::Path, Arg::Buffer, Arg::Uint, Arg::Hex], fsetxattr, USER_ONLY),
    full(abi::__NR_listxattr, "listxattr", &[Arg::Path, Arg::Pointer, Arg::Uint], listxattr),
    full(abi::__NR_llistxattr, "llistxattr", &[Arg::Path, Arg::Pointer, Arg::Uint], llistxattr),
    full(abi::__NR_flistxattr, "flistxattr", &[Arg::Fd, Arg::Pointer, Arg::Uint], flistxattr),
    partial(abi::__NR_removexattr, "removexattr", &[Arg::Path, Arg::Path], removexattr, USER_ONLY),
    partial(abi::__NR_lremovexattr, "lremovexattr", &[Arg::Path, Arg::Path], lremovexattr, USER_ONLY),
    partial(abi::__NR_fremovexattr, "fremovexattr", &[Arg::Fd, Arg::Path], fremovexattr, USER_ONLY),
];

const USER_ONLY: &str = "only attributes that begin with user.; EPERM for others";
/// Longest name with its terminator (XATTR_NAME_MAX + 1).
const NAME_MAX: usize = 256;
/// Longest value and longest list (XATTR_SIZE_MAX, XATTR_LIST_MAX), bytes.
const SIZE_MAX: usize = 65_536;

fn followed(call: &Call<'_>) -> Result<Place, Errno> {
    place_at(call, AT_FDCWD, &path_argument(call, call.args[0])?, 0)
}

fn kept(call: &Call<'_>) -> Result<Place, Errno> {
    place_at(call, AT_FDCWD, &path_argument(call, call.args[0])?, abi::AT_SYMLINK_NOFOLLOW)
}

fn opened(call: &Call<'_>) -> Result<Place, Errno> {
    let id = call.file(0)?;
    super::io::open_for(call.kernel, id, u32::MAX)?;
    Walker::new(call.kernel, call.tid).open_file(id)
}

/// The host object whose attributes are meant, or what the call answers for one of ours.
fn readable(call: &Call<'_>, place: &Place) -> Result<Arc<OwnedFd>, Errno> {
    match &place.node {
        Node::Host(handle, _) if call.kernel.grants.access(&place.path).read => Ok(Arc::clone(handle)),
        Node::Host(..) => Err(Errno::ACCESS),
        // Symbolic links have no attributes of users.
        Node::HostLink(..) | Node::VirtualLink(_) => Err(Errno::NODATA),
        _ => Err(Errno::OPNOTSUPP),
    }
}

fn writable(call: &Call<'_>, place: &Place, name: &[u8]) -> Result<Arc<OwnedFd>, Errno> {
    match &place.node {
        Node::Host(..) if !name.starts_with(b"user.") => Err(Errno::PERM),
        Node::Host(handle, _) if call.kernel.grants.access(&place.path).write => Ok(Arc::clone(handle)),
        Node::Host(..) => Err(Errno::ACCESS),
        Node::HostLink(..) | Node::VirtualLink(_) => Err(Errno::PERM),
        _ => Err(Errno::OPNOTSUPP),
    }
}

fn name_argument(call: &Call<'_>) -> Result<Vec<u8>, Errno> {
    match call.memory().read_string(call.args[1], NAME_MAX) {
        Err(Errno::NAMETOOLONG) => Err(Errno::RANGE),
        Ok(name) if name.is_empty() => Err(Errno::RANGE),
        name => name,
    }
}

/// Give a value or list to the guest; a size of 0 asks for the length only.
fn answer(call: &Call<'_>, address: u64, size: u64, bytes: &[u8]) -> Answer {
    if size == 0 {
        return Ok(bytes.len().into());
    }
    if (bytes.len() as u64) > size {
        return Err(Errno::RANGE);
    }
    call.memory().write_bytes(address, bytes)?;
    Ok(bytes.len().into())
}

fn get(call: &Call<'_>, place: &Place) -> Answer {
    let name = name_argument(call)?;
    let handle = readable(call, place)?;
    let mut value = vec![0; SIZE_MAX];
    let length = rustix::fs::getxattr(host_path::by_descriptor(&*handle), name.as_slice(), &mut value[..])?;
    value.truncate(length);
    answer(call, call.args[2], call.args[3], &value)
}

fn getxattr(call: &mut Call<'_>) -> Answer {
    get(call, &followed(call)?)
}

fn lgetxattr(call: &mut Call<'_>) -> Answer {
    get(call, &kept(call)?)
}

fn fgetxattr(call: &mut Call<'_>) -> Answer {
    get(call, &opened(call)?)
}

fn set(call: &Call<'_>, place: &Place) -> Answer {
    let flags = call.uint(4);
    if flags & !(abi::XATTR_CREATE | abi::XATTR_REPLACE) != 0 {
        return Err(Errno::INVAL);
    }
    let name = name_argument(call)?;
    let size = usize::try_from(call.args[3]).ok().filter(|&size| size <= SIZE_MAX).ok_or(Errno::TOOBIG)?;
    let value = call.memory().read_vec(call.args[2], size)?;
    let handle = writable(call, place, &name)?;
    rustix::fs::setxattr(host_path::by_descriptor(&*handle), name.as_slice(), &value, XattrFlags::from_bits_retain(flags))?;
    Ok(Outcome::OK)
}

fn setxattr(call: &mut Call<'_>) -> Answer {
    set(call, &followed(call)?)
}

fn lsetxattr(call: &mut Call<'_>) -> Answer {
    set(call, &kept(call)?)
}

fn fsetxattr(call: &mut Call<'_>) -> Answer {
    set(call, &opened(call)?)
}

fn list(call: &Call<'_>, place: &Place) -> Answer {
    let names = match readable(call, place) {
        Ok(handle) => {
            let mut names = vec![0; SIZE_MAX];
            let length = rustix::fs::listxattr(host_path::by_descriptor(&*handle), &mut names[..])?;
            names.truncate(length);
            names
        }
        Err(Errno::NODATA) => Vec::new(),
        Err(errno) => return Err(errno),
    };
    answer(call, call.args[1], call.args[2], &names)
}

fn listxattr(call: &mut Call<'_>) -> Answer {
    list(call, &followed(call)?)
}

fn llistxattr(call: &mut Call<'_>) -> Answer {
    list(call, &kept(call)?)
}

fn flistxattr(call: &mut Call<'_>) -> Answer {
    list(call, &opened(call)?)
}

fn remove(call: &Call<'_>, place: &Place) -> Answer {
    let name = name_argument(call)?;
    let handle = writable(call, place, &name)?;
    rustix::fs::removexattr(host_path::by_descriptor(&*handle), name.as_slice())?;
    Ok(Outcome::OK)
}

fn removexattr(call: &mut Call<'_>) -> Answer {
    remove(call, &followed(call)?)
}

fn lremovexattr(call: &mut Call<'_>) -> Answer {
    remove(call, &kept(call)?)
}

fn fremovexattr(call: &mut Call<'_>) -> Answer {
    remove(call, &opened(call)?)
}
