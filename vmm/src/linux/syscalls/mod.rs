//! The handlers, one file a family: decode, reject unknown flags, look up, call the object, return.

mod epoll;
mod event;
mod execute;
mod fcntl;
mod fs_attributes;
mod fs_change;
mod fs_copy;
mod fs_dir;
mod fs_lock;
mod fs_open;
mod fs_refused;
mod fs_stat;
mod fs_xattr;
mod futex;
pub(super) mod guest_api;
mod io;
mod ioctl;
mod memory;
mod net;
mod net_message;
mod net_options;
mod poll;
mod prctl;
mod process;
mod scheduling;
mod signal;
pub(super) mod system;
mod thread;
mod time;
mod timer;

pub(super) use fcntl::SETTABLE as SETTABLE_FLAGS;

use super::table::Entry;

/// The rows of every family.
pub const FAMILIES: &[&[Entry]] = &[
    epoll::ENTRIES,
    event::ENTRIES,
    execute::ENTRIES,
    fcntl::ENTRIES,
    fs_attributes::ENTRIES,
    fs_change::ENTRIES,
    fs_copy::ENTRIES,
    fs_dir::ENTRIES,
    fs_lock::ENTRIES,
    fs_open::ENTRIES,
    fs_refused::ENTRIES,
    fs_stat::ENTRIES,
    fs_xattr::ENTRIES,
    futex::ENTRIES,
    io::ENTRIES,
    ioctl::ENTRIES,
    memory::ENTRIES,
    net::ENTRIES,
    net_message::ENTRIES,
    net_options::ENTRIES,
    poll::ENTRIES,
    prctl::ENTRIES,
    process::ENTRIES,
    scheduling::ENTRIES,
    signal::ENTRIES,
    system::ENTRIES,
    thread::ENTRIES,
    time::ENTRIES,
    timer::ENTRIES,
];

#[cfg(test)]
mod fs_tests;
