//! File-system calls that a guest may not make, with the errno of a kernel that lacks or forbids them.

use linux_raw_sys::general as abi;

use super::fs_open::path_argument;
use super::fs_stat::place_at;
use crate::linux::path::AT_FDCWD;
use crate::linux::table::{Arg, Entry, Support};
use crate::linux::{Answer, Call, Errno};

const fn refused(number: u32, name: &'static str, args: &'static [Arg], handler: crate::linux::Handler, note: &'static str) -> Entry {
    Entry { number: number as usize, name, args, handler, support: Support::None, note }
}

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    refused(abi::__NR_chroot, "chroot", &[Arg::Path], chroot, "EPERM: needs a privilege that no guest has"),
    refused(
        abi::__NR_memfd_create,
        "memfd_create",
        &[Arg::Path, Arg::Hex],
        no_such_call,
        "ENOSYS: its memory would be shared by a snapshot and all its forks; programs fall back to private memory",
    ),
    refused(abi::__NR_inotify_init, "inotify_init", &[], no_such_call, "ENOSYS: watches on the host's files would outlive a reset"),
    refused(abi::__NR_inotify_init1, "inotify_init1", &[Arg::Hex], no_such_call, "ENOSYS: as inotify_init"),
    refused(
        abi::__NR_inotify_add_watch,
        "inotify_add_watch",
        &[Arg::Fd, Arg::Path, Arg::Hex],
        no_such_watch,
        "EINVAL: there is no inotify instance",
    ),
    refused(abi::__NR_inotify_rm_watch, "inotify_rm_watch", &[Arg::Fd, Arg::Int], no_such_watch, "EINVAL: there is no inotify instance"),
];

fn chroot(call: &mut Call<'_>) -> Answer {
    let path = path_argument(call, call.args[0])?;
    let place = place_at(call, AT_FDCWD, &path, 0)?;
    Err(if place.is_directory() { Errno::PERM } else { Errno::NOTDIR })
}

const fn no_such_call(_call: &mut Call<'_>) -> Answer {
    Err(Errno::NOSYS)
}

fn no_such_watch(call: &mut Call<'_>) -> Answer {
    call.file(0)?;
    Err(Errno::INVAL)
}
