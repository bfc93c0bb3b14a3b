//! The state of a processor as a user program sees it: what is saved for a thread, in a snapshot, in a signal frame.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::clone_in_place::clone_in_place;

/// General registers, instruction pointer and flags (AMD64 manual volume 1, section 3.1).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(missing_docs, reason = "the names of the registers say it")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// RFLAGS bits that user mode may set: CF PF AF ZF SF TF DF OF AC ID (never IF, IOPL, NT, RF, VM).
pub const USER_RFLAGS: u64 = 0x0024_0dd5 & !0x0001_0000 | 0x0020_0000;
/// RFLAGS bits that are always set in user mode: the reserved bit 1 and IF.
pub const FIXED_RFLAGS: u64 = 0x202;

impl Registers {
    /// Flags as they may enter user mode, whatever a guest wrote into a frame.
    #[must_use]
    pub const fn user_rflags(rflags: u64) -> u64 {
        rflags & USER_RFLAGS | FIXED_RFLAGS
    }
}

/// A thread's whole processor state outside memory.
#[derive(Debug, Default, PartialEq)]
pub struct CpuState {
    /// General registers. After a system call: `rip` is the instruction after `syscall`, RCX and R11 are as the
    /// processor left them (RCX = rip, R11 = rflags).
    pub registers: Registers,
    /// Base of FS (thread-local storage on x86-64).
    pub fs_base: u64,
    /// Base of GS.
    pub gs_base: u64,
    /// The XSAVE area in standard format (x87, SSE, AVX, AVX-512); empty means the initial state.
    pub extended: Vec<u8>,
}

clone_in_place!(CpuState { registers, fs_base, gs_base, extended });

/// Access to the extended state of the thread that is on the processor now; signal frames save and restore it.
pub trait ExtendedState {
    /// The XSAVE area of the running thread, standard format.
    fn load(&mut self) -> Vec<u8>;
    /// Replace it; the length is that of [`ExtendedState::load`]. Reserved bits were checked by the caller: the header's
    /// XSTATE_BV within [`ExtendedState::features`], MXCSR within its mask.
    fn store(&mut self, area: &[u8]);
    /// XCR0: the features an area may hold.
    fn features(&self) -> u64;
}
