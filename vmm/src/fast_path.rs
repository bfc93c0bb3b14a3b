//! The in-guest fast path: where its code and its memory lie in a guest, and what is in that memory.
//!
//! The code (`guestlib/fastpath/`) runs in user mode and answers the calls that the current request's connection needs. Its memory is
//! the guest's own to write: what is read from it is believed as little as any other guest memory. Both are at the top of the address
//! space, where a guest cannot map, unmap or protect anything; the memory is dirtied and reset as all other.
//!
//! Who writes it: `linux::fast_path`. Who repeats what was answered: the same. Who takes back what was interrupted: the platform.

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cpu::Registers;
use crate::limits::{BLOCK, PAGE};
use crate::memory::{AddressSpace, GuestMemory};

/// The image: a header of four words, code, constants.
const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/fastpath.bin"));

/// Calls that one log holds (`FAST_LOG_ENTRIES`); as for the others below, fastpath.h has the same numbers.
pub const LOG_ENTRIES: usize = 56;
/// Descriptors of listening sockets that can be told of.
pub const LISTENERS: usize = 8;
/// Descriptors of epoll sets that can be told of.
pub const SETS: usize = 8;
/// Members of epoll sets that can be told of.
pub const MEMBERS: usize = 16;
/// Futexes with waiters that can be told of.
pub const FUTEXES: usize = 16;
/// Eventfds that can be told of.
pub const EVENTS: usize = 16;
/// Descriptors of one `poll` that can be answered.
pub const POLLED: u32 = 8;
/// Longest socket address, bytes.
pub const ADDRESS_BYTES: usize = 32;
/// Bytes of the client's that are told at a time.
pub const INPUT_BYTES: usize = 16 << 10;
/// Bytes for the client that are taken at a time.
pub const OUTPUT_BYTES: usize = 16 << 10;
/// Words of the bitmap of calls that are answered.
pub const ANSWERED_WORDS: usize = 8;

const SAVED: u64 = 64;
const STATE: u64 = 192;
const LOG: u64 = PAGE;
const INPUT: u64 = 2 * PAGE;
const OUTPUT: u64 = INPUT + INPUT_BYTES as u64;
/// Bytes of the whole area.
const AREA_BYTES: u64 = OUTPUT + OUTPUT_BYTES as u64;

/// `struct fast_saved`: the registers when the call was made.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "the names of the registers say it")]
pub struct Saved {
    pub rcx: u64,
    pub r11: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

/// `struct fast_logged`: a call that was answered.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Logged {
    /// System-call number.
    pub number: u32,
    /// `epoll_ctl`: the events asked for.
    pub events: u32,
    /// What it came to: RAX.
    pub result: i64,
    /// Its arguments.
    pub args: [u64; 6],
    /// `epoll_ctl`: the data; `setsockopt`, `ioctl`: the value.
    pub data: u64,
}

/// `struct fast_stream`: the client's connection.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "fastpath.h says it")]
pub struct Stream {
    pub fd: i32,
    pub flags: u32,
    pub close_on_exec: u32,
    pub is_tcp: u32,
    pub events: u32,
    pub ended: u32,
    pub input_at: u32,
    pub input_end: u32,
    pub input_more: u32,
    pub output_at: u32,
    pub output_end: u32,
    pub peer_bytes: u32,
    pub local_bytes: u32,
    pub padding: u32,
    pub peer: [u8; ADDRESS_BYTES],
    pub local: [u8; ADDRESS_BYTES],
}

/// `struct fast_listener`: a descriptor of a listening socket.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "fastpath.h says it")]
pub struct Listener {
    pub fd: i32,
    pub file: u32,
    pub says_again: u32,
    pub padding: u32,
}

/// `struct fast_set`: a descriptor of an epoll set.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "fastpath.h says it")]
pub struct Set {
    pub fd: i32,
    pub set: u32,
    pub may_wait: u32,
    pub padding: u32,
}

/// `struct fast_member`: a member of an epoll set.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "fastpath.h says it")]
pub struct Member {
    pub fd: i32,
    pub set: u16,
    pub target: u16,
    pub events: u32,
    pub armed: u32,
    pub data: u64,
    pub seen_events: u32,
    pub seen: u32,
}

/// `struct fast_event`: an eventfd.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "fastpath.h says it")]
pub struct Event {
    pub fd: i32,
    pub file: u32,
    pub count: u64,
    pub is_semaphore: u32,
    pub says_again: u32,
}

/// The target of a member that watches the stream; those of others are one more than their file.
pub const STREAM_TARGET: u16 = 0;
/// `Member::seen`: it has reported.
pub const SEEN: u32 = 1;
/// Since then something has arrived.
pub const SEEN_ARRIVALS: u32 = 2;
/// Since then room has appeared.
pub const SEEN_ROOM: u32 = 4;
/// Since then a side has ended.
pub const SEEN_ENDS: u32 = 8;

/// The part of `struct fast_area` that begins with the state of the log: all that the host says before a run, but the bitmap and the
/// client's bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "fastpath.h says it")]
pub struct State {
    pub began: u64,
    pub logged: u64,
    pub result: i64,
    pub space_end: u64,
    pub stream: Stream,
    pub listeners: [Listener; LISTENERS],
    pub sets: [Set; SETS],
    pub members: [Member; MEMBERS],
    pub events: [Event; EVENTS],
    pub futexes: [u64; FUTEXES],
    pub listener_count: u32,
    pub set_count: u32,
    pub member_count: u32,
    pub futex_count: u32,
    pub pending_file: i32,
    pub free_fd: i32,
    pub pid: i32,
    pub tid: i32,
    pub alone: u32,
    pub futexes_known: u32,
    pub event_count: u32,
    pub poll_most: u32,
}

const _: () = assert!(size_of::<Saved>() as u64 == STATE - SAVED);
const _: () = assert!(size_of::<Logged>() == 72 && LOG_ENTRIES * 72 <= PAGE as usize);
const _: () = assert!(size_of::<Stream>() == 120);
const _: () = assert!(size_of::<Member>() == 32);
const _: () = assert!(STATE + size_of::<State>() as u64 == 1672);

/// Where the fast path of one guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastPath {
    /// Guest address of its memory.
    area: u64,
}

const fn header(word: usize) -> u64 {
    let mut bytes = [0; 8];
    let mut at = 0;
    while at < 8 {
        bytes[at] = IMAGE[word * 8 + at];
        at += 1;
    }
    u64::from_le_bytes(bytes)
}

impl FastPath {
    /// Bytes that it takes at the top of an address space: a block that stays unmapped, so that no buffer below reaches into it, one for
    /// the memory, one for the code.
    pub const ASIDE_BYTES: u64 = 3 * BLOCK;

    /// That of an address space of `size` bytes.
    #[must_use]
    pub const fn in_space_of(size: u64) -> Self {
        Self { area: size - Self::ASIDE_BYTES + BLOCK }
    }

    /// Guest address of the memory, and its bytes.
    #[must_use]
    pub const fn area(&self) -> (u64, u64) {
        (self.area, AREA_BYTES)
    }

    /// Guest address of the code, and the code.
    #[must_use]
    pub const fn image(&self) -> (u64, &'static [u8]) {
        (self.area + BLOCK, IMAGE)
    }

    /// Where the system-call entry goes.
    #[must_use]
    pub const fn entry(&self) -> u64 {
        self.area + BLOCK + header(0)
    }

    /// From here on the registers are in [`Saved`].
    const fn body(&self) -> u64 {
        self.area + BLOCK + header(1)
    }

    /// Behind the `syscall` with which it hands a call to the host.
    #[must_use]
    pub const fn exit(&self) -> u64 {
        self.area + BLOCK + header(2)
    }

    /// Where the bitmap of calls is.
    #[must_use]
    pub const fn answered(&self) -> u64 {
        self.area
    }

    /// Where [`Saved`] is.
    #[must_use]
    pub const fn saved(&self) -> u64 {
        self.area + SAVED
    }

    /// Where [`State`] is.
    #[must_use]
    pub const fn state(&self) -> u64 {
        self.area + STATE
    }

    /// Where an entry of the log is.
    #[must_use]
    pub const fn log(&self, index: usize) -> u64 {
        self.area + LOG + index as u64 * size_of::<Logged>() as u64
    }

    /// Where the client's bytes are.
    #[must_use]
    pub const fn input(&self) -> u64 {
        self.area + INPUT
    }

    /// Where the bytes for the client are.
    #[must_use]
    pub const fn output(&self) -> u64 {
        self.area + OUTPUT
    }

    /// How many calls the log says it holds: any number at all.
    #[must_use]
    pub fn logged(&self, memory: &GuestMemory) -> u64 {
        memory.read(self.area + STATE + 8).unwrap_or(0)
    }

    /// Nothing is answered any more, and nothing of what was is left.
    ///
    /// # Errors
    ///
    /// EFAULT; never, as a guest cannot unmap the memory.
    pub fn clear(&self, memory: &GuestMemory) -> Result<(), Errno> {
        memory.write_zeros(self.area, AREA_BYTES)
    }
}

/// What became of a call whose making or answering was interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupted {
    /// The program itself was: there is no such call.
    Program,
    /// It has not been answered: the registers are those it was made with, RIP is behind the `syscall`.
    Asked,
    /// It has been answered: the registers are those it returns with.
    Answered,
}

impl FastPath {
    /// The registers of a program that was interrupted in the code of the fast path, as if that were one instruction. What they are
    /// made of is the guest's own; whoever loads them sees to the flags and to RIP.
    #[must_use]
    pub fn settle(&self, memory: &GuestMemory, registers: &mut Registers) -> Interrupted {
        let (code, end) = (self.area + BLOCK, self.area + BLOCK + header(3));
        if !(code..end).contains(&registers.rip) {
            return Interrupted::Program;
        }
        let saved: Saved = memory.read(self.saved()).unwrap_or_default();
        if registers.rip < self.body() {
            *registers = Registers { rcx: saved.rcx, rip: saved.rcx, rflags: registers.r11, ..*registers };
            return Interrupted::Asked;
        }
        let Saved { rcx, r11, rax, rbx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r12, r13, r14, r15 } = saved;
        *registers = Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip: rcx, rflags: r11 };
        let [began, logged]: [u64; 2] = memory.read(self.state()).unwrap_or_default();
        if began == logged {
            return Interrupted::Asked;
        }
        let last = logged.wrapping_sub(1) as usize % LOG_ENTRIES;
        let entry: Logged = memory.read(self.log(last)).unwrap_or_default();
        registers.rax = entry.result.cast_unsigned();
        Interrupted::Answered
    }

    /// The registers of a call that the system-call entry was left with, when RCX is an address of the fast path's and not yet, or no
    /// more, the program's.
    pub fn restore(&self, memory: &GuestMemory, registers: &mut Registers) {
        if registers.rcx == self.exit() || registers.rcx == self.entry() {
            let saved: Saved = memory.read(self.saved()).unwrap_or_default();
            if registers.rcx == self.exit() {
                registers.r11 = saved.r11;
            }
            registers.rcx = saved.rcx;
        }
    }
}

/// Put the fast path into a new address space, at its top; what else is set aside comes below it.
///
/// # Errors
///
/// ENOMEM.
pub fn map(space: &mut AddressSpace) -> Result<(), Errno> {
    let fast = FastPath::in_space_of(space.size());
    space.map_fast_path(fast)
}
