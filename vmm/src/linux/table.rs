//! **The** table of system calls: every x86-64 number, its name, its arguments, who answers it, and how well.
//!
//! Each family in [`super::syscalls`] lists its own entries beside the handlers; this file joins them with the calls that
//! nobody answers, for dispatch, tracing and `docs/syscalls.md`.

use std::sync::OnceLock;

use super::Handler;

/// How well a call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// As the man page says, within the limits of `limits.rs`.
    Full,
    /// Some of it; the note says what is missing.
    Partial,
    /// Accepted without effect, where that is harmless; the note says why.
    Ignored,
    /// Refused with the errno of a kernel that lacks it or forbids it.
    None,
}

/// How an argument is shown in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// A signed number.
    Int,
    /// An unsigned number.
    Uint,
    /// A number best shown in hexadecimal.
    Hex,
    /// A descriptor (AT_FDCWD by name).
    Fd,
    /// A pointer.
    Pointer,
    /// A pointer to a path or other zero-terminated string.
    Path,
    /// A pointer to bytes whose length is the next argument.
    Buffer,
    /// A pointer to bytes that the call fills; its result is their length.
    OutBuffer,
    /// Open flags.
    OpenFlags,
    /// Permission bits, octal.
    Mode,
    /// A signal number.
    Signal,
    /// PROT_* bits.
    Protection,
    /// MAP_* bits.
    MapFlags,
    /// A futex operation.
    FutexOperation,
    /// A pointer to a `struct timespec`.
    Timespec,
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// System-call number on x86-64.
    pub number: usize,
    /// Name, as in `syscalls(2)`.
    pub name: &'static str,
    /// Arguments, for traces.
    pub args: &'static [Arg],
    /// Who answers.
    pub handler: Handler,
    /// How well.
    pub support: Support,
    /// What is missing, or why it is refused.
    pub note: &'static str,
}

/// A row that is answered in full.
#[must_use]
pub const fn full(number: u32, name: &'static str, args: &'static [Arg], handler: Handler) -> Entry {
    Entry { number: number as usize, name, args, handler, support: Support::Full, note: "" }
}

/// A row that lacks something.
#[must_use]
pub const fn partial(number: u32, name: &'static str, args: &'static [Arg], handler: Handler, note: &'static str) -> Entry {
    Entry { number: number as usize, name, args, handler, support: Support::Partial, note }
}

/// A row that succeeds without effect.
#[must_use]
pub const fn ignored(number: u32, name: &'static str, args: &'static [Arg], handler: Handler, note: &'static str) -> Entry {
    Entry { number: number as usize, name, args, handler, support: Support::Ignored, note }
}

/// One past the highest number the table holds.
pub const NUMBERS: usize = 512;

/// The table by number.
pub fn table() -> &'static [Option<Entry>; NUMBERS] {
    static TABLE: OnceLock<Box<[Option<Entry>; NUMBERS]>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = Box::new([None; NUMBERS]);
        for entry in super::syscalls::FAMILIES.iter().flat_map(|family| family.iter()) {
            if let Some(slot) = table.get_mut(entry.number) {
                *slot = Some(*entry);
            }
        }
        table
    })
}

/// The name of a call.
#[must_use]
pub fn name(number: usize) -> &'static str {
    table().get(number).copied().flatten().map_or("an unknown call", |entry| entry.name)
}

/// The table as JSON, for the documentation.
#[must_use]
pub fn table_json() -> String {
    let rows: Vec<_> = table()
        .iter()
        .flatten()
        .map(|entry| serde_json::json!({"number": entry.number, "name": entry.name, "support": format!("{:?}", entry.support).to_lowercase(), "note": entry.note}))
        .collect();
    serde_json::Value::from(rows).to_string()
}
