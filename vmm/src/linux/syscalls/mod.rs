//! The handlers, one file a family: decode, reject unknown flags, look up, call the object, return.

mod epoll;
mod event;
mod fcntl;
mod fs_dir;
mod fs_lock;
mod fs_open;
mod fs_stat;
mod io;
mod ioctl;
mod poll;

use super::table::Entry;

/// The rows of every family.
pub const FAMILIES: &[&[Entry]] = &[
    epoll::ENTRIES,
    event::ENTRIES,
    fcntl::ENTRIES,
    fs_dir::ENTRIES,
    fs_lock::ENTRIES,
    fs_open::ENTRIES,
    fs_stat::ENTRIES,
    io::ENTRIES,
    ioctl::ENTRIES,
    poll::ENTRIES,
];
