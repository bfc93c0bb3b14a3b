//! **The** table of system calls: every x86-64 number, its name, its arguments, who answers it, and how well.
//!
//! Each family in [`super::syscalls`] lists its own entries beside the handlers; this file joins them with the calls that
//! nobody answers, for dispatch, tracing and `docs/syscalls.md`.

use std::sync::OnceLock;

use super::Handler;
use super::syscalls::guest_api;
use super::table_names::{NAMES, REFUSED, Refusal};

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
    /// An unsigned 32-bit number.
    Uint32,
    /// The fourth argument of futex: a timeout or a number, by the operation.
    FutexTimeout,
    /// A pointer to a `struct sigaction`.
    SignalAction,
    /// A pointer to a signal set.
    SignalSet,
    /// SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK.
    MaskHow,
    /// CLONE_* bits and the signal at the end.
    CloneFlags,
    /// A pointer to a `struct clone_args`.
    CloneArgs,
    /// ARCH_* option of arch_prctl.
    ArchPrctl,
    /// PR_* option of prctl.
    Prctl,
    /// CLOCK_* number.
    ClockId,
    /// RLIMIT_* number.
    Resource,
    /// A pointer to a `struct rlimit`.
    Rlimit,
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

/// The table by number: the rows of the families, and for every other system call there is a row that refuses it.
pub fn table() -> &'static [Option<Entry>; NUMBERS] {
    static TABLE: OnceLock<Box<[Option<Entry>; NUMBERS]>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = Box::new([None; NUMBERS]);
        for &(number, name) in NAMES {
            if let Some(slot) = table.get_mut(number as usize) {
                *slot = Some(refused(number, name));
            }
        }
        for entry in super::syscalls::FAMILIES.iter().flat_map(|family| family.iter()) {
            if let Some(slot) = table.get_mut(entry.number) {
                *slot = Some(*entry);
            }
        }
        table
    })
}

fn refused(number: u32, name: &'static str) -> Entry {
    let special = REFUSED.iter().find(|(_, _, names)| names.contains(&name));
    let (refusal, note) = special.map_or((Refusal::NoSuchCall, "not supported"), |&(refusal, note, _)| (refusal, note));
    Entry { number: number as usize, name, args: &[Arg::Hex; 6], handler: refusal.handler(), support: Support::None, note }
}

/// The row of a number, Linux's or of `libkvmserverguest.so`; `None` for a number that is no system call.
#[must_use]
pub fn find(number: usize) -> Option<&'static Entry> {
    match number.checked_sub(guest_api::FIRST) {
        Some(index) => guest_api::ENTRIES.get(index),
        None => table().get(number)?.as_ref(),
    }
}

/// The name of a call.
#[must_use]
pub fn name(number: usize) -> &'static str {
    find(number).map_or("an unknown call", |entry| entry.name)
}

/// The table as JSON, from which `docs/syscalls.md` is made: an array of objects with number, name, support and note.
#[must_use]
pub fn table_json() -> String {
    let rows = table().iter().flatten().map(|entry| {
        serde_json::json!({
            "number": entry.number,
            "name": entry.name,
            "support": match entry.support {
                Support::Full => "full",
                Support::Partial => "partial",
                Support::Ignored => "ignored",
                Support::None => "none",
            },
            "note": entry.note,
        })
    });
    serde_json::Value::Array(rows.collect()).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_number_of_linux_has_a_row_and_every_name_is_unique() {
        let rows: Vec<&Entry> = table().iter().flatten().collect();
        for number in (0..=336).chain(424..=470) {
            assert!(find(number).is_some_and(|entry| entry.number == number), "{number}");
        }
        assert_eq!(rows.len(), 337 + 47);
        assert_eq!(rows.iter().map(|entry| entry.name).collect::<BTreeSet<_>>().len(), rows.len());
    }

    #[test]
    fn families_name_calls_as_linux_does_and_none_twice() {
        let mut seen = BTreeSet::new();
        for entry in crate::linux::syscalls::FAMILIES.iter().flat_map(|family| family.iter()) {
            assert!(seen.insert(entry.number), "{} has two rows", entry.name);
            assert!(NAMES.iter().any(|&(number, name)| number as usize == entry.number && name == entry.name), "{}", entry.name);
            assert!(entry.support == Support::Full || !entry.note.is_empty(), "{} needs a note", entry.name);
            assert!(entry.args.len() <= 6);
        }
    }

    #[test]
    fn refused_names_exist_once() {
        let mut seen = BTreeSet::new();
        for name in REFUSED.iter().flat_map(|(_, _, names)| names.iter()) {
            assert!(seen.insert(name), "{name}");
            assert!(NAMES.iter().any(|(_, known)| known == name), "{name}");
        }
    }
}
