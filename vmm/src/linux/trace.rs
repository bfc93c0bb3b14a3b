//! One line per system call, in the shape of strace's, from the kinds of arguments that the table gives; and the last calls of a
//! VM, kept at all times for the report of a crash.
//!
//! ```text
//! openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3
//! access("/etc/ld.so.preload", R_OK)      = -1 ENOENT (No such file or directory)
//! [pid   101] futex(0x7f00c0, FUTEX_WAIT_PRIVATE, 2, NULL <unfinished ...>
//! [pid   101] <... futex resumed>)        = 0
//! ```
//!
//! A line is made when the call has its result, so buffers show what is in them then. Guest bytes are escaped and cut.

use std::fmt::Write as _;

use linux_raw_sys::general as sys;

use super::abi::Timespec;
use super::signal::{Action, SIG_DFL, SIG_IGN};
use super::table::{self, Arg};
use super::thread::Tid;
use super::trace_names::{
    ACTION_FLAGS, ARCH_OPTIONS, CLOCKS, CLONE_FLAGS, ERRNOS, FUTEX_OPERATIONS, MAP_FLAGS, MASK_HOW, OPEN_FLAGS, PRCTL_OPTIONS, PROTECTIONS,
    RESOURCES, SIGNALS,
};
use super::{Errno, trace_names};
use crate::memory::GuestMemory;

/// What a call came to: `None` while it sleeps, and for those that never return.
pub type CallResult = Option<Result<u64, Errno>>;

/// Bytes of a buffer that are shown, as strace does.
const BUFFER_BYTES_SHOWN: usize = 32;
/// Bytes of a path that are shown.
const PATH_BYTES_SHOWN: usize = 1024;
/// Where results are aligned, as strace does.
const RESULT_COLUMN: usize = 40;
/// Calls that the recorder keeps.
const CALLS_KEPT: usize = 16;

/// The last system calls of a VM: a ring that costs a few stores a call, formatted only when somebody asks.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    calls: [Option<(usize, [u64; 6], CallResult)>; CALLS_KEPT],
    next: usize,
}

impl Recorder {
    /// Note a call.
    pub fn push(&mut self, number: usize, args: [u64; 6], result: CallResult) {
        if let Some(place) = self.calls.get_mut(self.next % CALLS_KEPT) {
            *place = Some((number, args, result));
        }
        self.next = self.next.wrapping_add(1);
    }

    /// The calls, oldest first, with plain numbers: guest memory may have changed since.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let ring = (0..CALLS_KEPT).filter_map(|offset| self.calls.get(self.next.wrapping_add(offset) % CALLS_KEPT).copied().flatten());
        ring.map(|(number, args, result)| plain(number, &args, result)).collect()
    }

    /// Forget them.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

fn plain(number: usize, args: &[u64; 6], result: CallResult) -> String {
    let count = table::find(number).map_or(6, |entry| entry.args.len());
    let args: Vec<String> = args.iter().take(count).map(|&value| hexadecimal(value)).collect();
    let result = result.map_or_else(|| "...".to_owned(), |result| outcome(number, result));
    format!("{}({}) = {result}", call_name(number), args.join(", "))
}

/// The line of a call, without a line end. `tid` is shown in front; 0 for a program with one thread, as strace does.
#[must_use]
pub fn line(number: usize, args: &[u64; 6], memory: &GuestMemory, result: CallResult, tid: Tid) -> String {
    let mut line = prefix(tid);
    let shown = Shown { number, args, memory, result }.arguments();
    let _ = write!(line, "{}({shown}", call_name(number));
    finish(line, number, result)
}

/// The line of a call that slept and now has its result.
#[must_use]
pub fn resumed(number: usize, _args: &[u64; 6], _memory: &GuestMemory, result: CallResult, tid: Tid) -> String {
    let mut line = prefix(tid);
    let _ = write!(line, "<... {} resumed>", call_name(number));
    finish(line, number, result)
}

fn prefix(tid: Tid) -> String {
    if tid == 0 { String::new() } else { format!("[pid {tid:5}] ") }
}

fn call_name(number: usize) -> String {
    table::find(number).map_or_else(|| format!("syscall_{number:#x}"), |entry| entry.name.to_owned())
}

fn finish(mut line: String, number: usize, result: CallResult) -> String {
    let result = match result {
        Some(result) => outcome(number, result),
        None if matches!(u32::try_from(number), Ok(sys::__NR_exit | sys::__NR_exit_group)) => "?".to_owned(),
        None => return line + " <unfinished ...>",
    };
    line.push_str(") ");
    while line.len() < RESULT_COLUMN {
        line.push(' ');
    }
    line + "= " + &result
}

fn outcome(number: usize, result: Result<u64, Errno>) -> String {
    match (result, u32::try_from(number)) {
        (Err(errno), _) => failure(errno),
        (Ok(value), Ok(sys::__NR_mmap | sys::__NR_mremap | sys::__NR_brk | sys::__NR_shmat)) => format!("{value:#x}"),
        (Ok(value), _) => value.cast_signed().to_string(),
    }
}

fn failure(errno: Errno) -> String {
    let number = errno.raw_os_error();
    let name = usize::try_from(number).ok().and_then(|index| ERRNOS.get(index)).copied().unwrap_or_default();
    let message = std::io::Error::from_raw_os_error(number).to_string();
    let message = message.split(" (os error").next().unwrap_or_default();
    format!("-1 {name} ({message})")
}

/// A call whose arguments are shown.
struct Shown<'a> {
    number: usize,
    args: &'a [u64; 6],
    memory: &'a GuestMemory,
    result: CallResult,
}

impl Shown<'_> {
    fn arguments(&self) -> String {
        if u32::try_from(self.number) == Ok(sys::__NR_futex) {
            return self.futex();
        }
        let kinds = table::find(self.number).map_or(&[Arg::Hex; 6][..], |entry| entry.args);
        let mut shown = Vec::with_capacity(kinds.len());
        for (index, &kind) in kinds.iter().enumerate() {
            // A mode means something only where a file may be created.
            if kind == Arg::Mode && index > 0 && kinds.get(index - 1) == Some(&Arg::OpenFlags) && !creates(self.value(index - 1)) {
                break;
            }
            shown.push(self.argument(index, kind));
        }
        shown.join(", ")
    }

    fn value(&self, index: usize) -> u64 {
        self.args.get(index).copied().unwrap_or(0)
    }

    fn argument(&self, index: usize, kind: Arg) -> String {
        let value = self.value(index);
        match kind {
            Arg::Int => int(value).to_string(),
            Arg::Uint => value.to_string(),
            Arg::Uint32 => u32_of(value).to_string(),
            Arg::Hex => hexadecimal(value),
            Arg::Fd if int(value) == sys::AT_FDCWD => "AT_FDCWD".to_owned(),
            Arg::Fd => int(value).to_string(),
            Arg::Pointer => pointer(value),
            Arg::Path => self.path(value),
            Arg::Buffer => self.buffer(value, self.value(index + 1)),
            Arg::OutBuffer => match self.result {
                Some(Ok(length)) => self.buffer(value, length),
                _ => pointer(value),
            },
            Arg::OpenFlags => open_flags(value),
            Arg::Mode => format!("{:#o}", u32_of(value)).replacen("0o", "0", 1),
            Arg::Signal => signal_name(int(value)),
            Arg::Protection => flags(value, PROTECTIONS, "PROT_NONE"),
            Arg::MapFlags => flags(value, MAP_FLAGS, "0"),
            Arg::FutexOperation => futex_operation(u32_of(value)),
            Arg::Timespec | Arg::FutexTimeout => self.timespec(value),
            Arg::SignalAction => self.action(value),
            Arg::SignalSet => self.read::<u64>(value).map_or_else(|| pointer(value), signal_set),
            Arg::MaskHow => named(value, MASK_HOW),
            Arg::CloneFlags => clone_flags(value),
            Arg::CloneArgs => self.clone_args(value),
            Arg::ArchPrctl => named(value, ARCH_OPTIONS),
            Arg::Prctl => named(value, PRCTL_OPTIONS),
            Arg::ClockId => named(value & 0xffff_ffff, CLOCKS),
            Arg::Resource => named(value & 0xffff_ffff, RESOURCES),
            Arg::Rlimit => self.read::<[u64; 2]>(value).map_or_else(|| pointer(value), rlimit),
        }
    }

    /// A struct behind a pointer; `None` for a null or bad one.
    fn read<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&self, address: u64) -> Option<T> {
        if address == 0 { None } else { self.memory.read::<T>(address).ok() }
    }

    fn path(&self, address: u64) -> String {
        if address == 0 {
            return "NULL".to_owned();
        }
        match self.memory.read_string(address, PATH_BYTES_SHOWN) {
            Ok(path) => quoted(&path, false),
            Err(Errno::NAMETOOLONG) => self.buffer(address, PATH_BYTES_SHOWN as u64),
            Err(_) => pointer(address),
        }
    }

    fn buffer(&self, address: u64, length: u64) -> String {
        if address == 0 {
            return "NULL".to_owned();
        }
        let shown = usize::try_from(length).unwrap_or(usize::MAX).min(BUFFER_BYTES_SHOWN);
        match self.memory.read_vec(address, shown) {
            Ok(bytes) => quoted(&bytes, length > shown as u64),
            Err(_) => pointer(address),
        }
    }

    fn timespec(&self, address: u64) -> String {
        self.read::<Timespec>(address)
            .map_or_else(|| pointer(address), |time| format!("{{tv_sec={}, tv_nsec={}}}", time.seconds, time.nanoseconds))
    }

    fn action(&self, address: u64) -> String {
        let Some(action) = self.read::<Action>(address) else { return pointer(address) };
        let handler = match action.handler {
            SIG_DFL => "SIG_DFL".to_owned(),
            SIG_IGN => "SIG_IGN".to_owned(),
            address => format!("{address:#x}"),
        };
        let name = if action.flags & super::signal::flags::SIGINFO != 0 { "sa_sigaction" } else { "sa_handler" };
        let mut shown =
            format!("{{{name}={handler}, sa_mask={}, sa_flags={}", signal_set(action.mask), flags(action.flags, ACTION_FLAGS, "0"));
        if action.flags & super::signal::flags::RESTORER != 0 {
            let _ = write!(shown, ", sa_restorer={:#x}", action.restorer);
        }
        shown + "}"
    }

    fn clone_args(&self, address: u64) -> String {
        let Some([flag_bits, _, child_tid, parent_tid, exit_signal, stack, stack_bytes, tls]) = self.read::<[u64; 8]>(address) else {
            return pointer(address);
        };
        format!(
            "{{flags={}, child_tid={}, parent_tid={}, exit_signal={exit_signal}, stack={}, stack_size={}, tls={}}}",
            flags(flag_bits, CLONE_FLAGS, "0"),
            pointer(child_tid),
            pointer(parent_tid),
            pointer(stack),
            hexadecimal(stack_bytes),
            pointer(tls),
        )
    }

    /// The operation decides how many arguments there are and what they mean.
    fn futex(&self) -> String {
        let operation = u32_of(self.value(1)) & !(sys::FUTEX_PRIVATE_FLAG | sys::FUTEX_CLOCK_REALTIME);
        let (word, value, other) = (pointer(self.value(0)), u32_of(self.value(2)), u32_of(self.value(5)));
        let name = futex_operation(u32_of(self.value(1)));
        let start = format!("{word}, {name}, {value}");
        let timeout = self.timespec(self.value(3));
        let second = format!("{}, {}", u32_of(self.value(3)), pointer(self.value(4)));
        match operation {
            sys::FUTEX_WAKE => start,
            sys::FUTEX_WAIT => format!("{start}, {timeout}"),
            sys::FUTEX_WAIT_BITSET => format!("{start}, {timeout}, {}", bitset(other)),
            sys::FUTEX_WAKE_BITSET => format!("{start}, {}", bitset(other)),
            sys::FUTEX_REQUEUE => format!("{start}, {second}"),
            sys::FUTEX_CMP_REQUEUE | sys::FUTEX_CMP_REQUEUE_PI => format!("{start}, {second}, {other}"),
            sys::FUTEX_WAKE_OP => format!("{start}, {second}, {other:#x}"),
            sys::FUTEX_LOCK_PI | sys::FUTEX_LOCK_PI2 => format!("{word}, {name}, {timeout}"),
            sys::FUTEX_UNLOCK_PI | sys::FUTEX_TRYLOCK_PI => format!("{word}, {name}"),
            sys::FUTEX_WAIT_REQUEUE_PI => format!("{start}, {timeout}, {}", pointer(self.value(4))),
            _ => format!("{start}, {}, {}, {other}", hexadecimal(self.value(3)), pointer(self.value(4))),
        }
    }
}

/// The lower half of a register as the C `int` that it is.
const fn int(value: u64) -> i32 {
    u32_of(value).cast_signed()
}

const fn u32_of(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

fn hexadecimal(value: u64) -> String {
    if value == 0 { "0".to_owned() } else { format!("{value:#x}") }
}

fn pointer(value: u64) -> String {
    if value == 0 { "NULL".to_owned() } else { format!("{value:#x}") }
}

fn creates(open: u64) -> bool {
    open & u64::from(sys::O_CREAT) != 0 || open & trace_names::TEMPORARY == trace_names::TEMPORARY
}

/// Bytes as a C string: the usual escapes, octal for the rest, as short as the next byte allows.
fn quoted(bytes: &[u8], cut: bool) -> String {
    let mut text = String::from("\"");
    for (index, &byte) in bytes.iter().enumerate() {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\t' => text.push_str("\\t"),
            b'\r' => text.push_str("\\r"),
            0x0b => text.push_str("\\v"),
            0x0c => text.push_str("\\f"),
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            0x20..0x7f => text.push(char::from(byte)),
            _ => {
                let digit_follows = bytes.get(index + 1).is_some_and(u8::is_ascii_digit);
                let _ = if digit_follows { write!(text, "\\{byte:03o}") } else { write!(text, "\\{byte:o}") };
            }
        }
    }
    text.push('"');
    if cut { text + "..." } else { text }
}

/// Bits by name, what is left over in hexadecimal.
fn flags(value: u64, names: &[(u64, &str)], none: &str) -> String {
    let mut left = value;
    let mut shown = Vec::new();
    for &(bits, name) in names {
        if bits != 0 && left & bits == bits {
            shown.push(name.to_owned());
            left &= !bits;
        }
    }
    if left != 0 {
        shown.push(format!("{left:#x}"));
    }
    if shown.is_empty() { none.to_owned() } else { shown.join("|") }
}

fn named(value: u64, names: &[(u64, &str)]) -> String {
    names.iter().find(|(number, _)| *number == value).map_or_else(|| hexadecimal(value), |(_, name)| (*name).to_owned())
}

fn open_flags(value: u64) -> String {
    let value = value & 0xffff_ffff;
    let access = match value & 3 {
        0 => "O_RDONLY",
        1 => "O_WRONLY",
        2 => "O_RDWR",
        _ => "O_ACCMODE",
    };
    let rest = flags(value & !3, OPEN_FLAGS, "");
    if rest.is_empty() { access.to_owned() } else { format!("{access}|{rest}") }
}

fn clone_flags(value: u64) -> String {
    let (signal, bits) = (int(value & 0xff), value & 0xffff_ff00);
    let shown = flags(bits, CLONE_FLAGS, "0");
    if signal == 0 { shown } else { format!("{shown}|{}", signal_name(signal)) }
}

fn bitset(value: u32) -> String {
    if value == u32::MAX { "FUTEX_BITSET_MATCH_ANY".to_owned() } else { format!("{value:#x}") }
}

fn futex_operation(value: u32) -> String {
    let operation = u64::from(value & !(sys::FUTEX_PRIVATE_FLAG | sys::FUTEX_CLOCK_REALTIME));
    let mut shown = named(operation, FUTEX_OPERATIONS);
    if value & sys::FUTEX_PRIVATE_FLAG != 0 {
        shown.push_str("_PRIVATE");
    }
    if value & sys::FUTEX_CLOCK_REALTIME != 0 {
        shown.push_str("|FUTEX_CLOCK_REALTIME");
    }
    shown
}

/// A signal without its prefix, for sets: the real-time ones are counted from the kernel's first.
fn short_signal(signal: i32) -> String {
    let known = usize::try_from(signal).ok().and_then(|number| number.checked_sub(1)).and_then(|index| SIGNALS.get(index));
    match (known, signal) {
        (Some(name), _) => (*name).to_owned(),
        (None, 32) => "RTMIN".to_owned(),
        (None, 33..=64) => format!("RT_{}", signal - 32),
        _ => signal.to_string(),
    }
}

/// A signal by name; a number that is none stays one.
#[must_use]
pub fn signal_name(signal: i32) -> String {
    if (1..=64).contains(&signal) { format!("SIG{}", short_signal(signal)) } else { signal.to_string() }
}

/// A set as strace shows it: the complement of one that is mostly full.
fn signal_set(set: u64) -> String {
    let inverted = set.count_ones() > 42;
    let shown = if inverted { !set } else { set };
    let names: Vec<String> = (1..=64).filter(|signal| shown >> (signal - 1) & 1 != 0).map(short_signal).collect();
    format!("{}[{}]", if inverted { "~" } else { "" }, names.join(" "))
}

fn rlimit([soft, hard]: [u64; 2]) -> String {
    let shown = |value: u64| match value {
        u64::MAX => "RLIM64_INFINITY".to_owned(),
        value if value > 1024 && value % 1024 == 0 => format!("{}*1024", value / 1024),
        value => value.to_string(),
    };
    format!("{{rlim_cur={}, rlim_max={}}}", shown(soft), shown(hard))
}
