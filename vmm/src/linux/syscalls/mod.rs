//! The handlers, one file a family: decode, reject unknown flags, look up, call the object, return.

mod epoll;
mod event;
mod poll;

use super::table::Entry;

/// The rows of every family.
pub const FAMILIES: &[&[Entry]] = &[epoll::ENTRIES, event::ENTRIES, poll::ENTRIES];
