//! The handlers, one file a family: decode, reject unknown flags, look up, call the object, return.

use super::table::Entry;

/// The rows of every family.
pub const FAMILIES: &[&[Entry]] = &[];
