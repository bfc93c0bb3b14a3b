//! The stack frame of a signal handler, byte for byte as x86-64 Linux lays it out, and the way back from it (`rt_sigreturn`).
//!
//! ```text
//!   interrupted RSP
//!   128 bytes red zone                        (or the top of the alternate stack)
//!   extended state + FP_XSTATE_MAGIC2         64-byte aligned
//!   siginfo            128 bytes
//!   ucontext           304 bytes
//!   return address       8 bytes              RSP of the handler, 8 modulo 16, as after a call
//! ```
//!
//! Everything read back is a guest's: flags are masked, RIP must be canonical, the extended state must be one that XRSTOR
//! accepts. Sources: AMD64 ABI section 3.4.1; Intel SDM volume 1 chapter 13; `sigaltstack(2)`, `sigreturn(2)`.

use linux_raw_sys::general as sys;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Errno;
use super::signal::{Action, AlternateStack, SignalInfo, Trap, flags};
use crate::cpu::Registers;
use crate::memory::GuestMemory;

/// Bytes below RSP that a function may use without moving RSP (AMD64 ABI section 3.2.2).
const RED_ZONE: u64 = 128;
/// `__USER_CS`.
const USER_CS: u16 = 0x33;
/// `__USER_DS`.
const USER_SS: u16 = 0x2b;
/// UC_FP_XSTATE: the extended state is an XSAVE area.
const UC_FP_XSTATE: u64 = 1;
/// UC_SIGCONTEXT_SS: `ss` is valid.
const UC_SIGCONTEXT_SS: u64 = 2;
/// UC_STRICT_RESTORE_SS: and will be restored.
const UC_STRICT_RESTORE_SS: u64 = 4;
/// Marks `fx_sw_bytes` as valid.
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
/// Follows the area.
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// Where `struct _fpx_sw_bytes` lies in the area: bytes that FXSAVE leaves to software.
const SOFTWARE_BYTES: usize = 464;
/// Size of the legacy part.
const LEGACY_BYTES: usize = 512;
/// Size of the legacy part and the XSAVE header: the smallest area.
pub const AREA_BYTES_MIN: usize = 576;
/// x87 and SSE, which are always there.
const FEATURES_LEGACY: u64 = 3;
/// SSE or AVX: features whose restoring loads MXCSR.
const FEATURES_MXCSR: u64 = 6;
/// MXCSR bits where the processor does not say (SDM volume 1, section 11.6.6).
const MXCSR_MASK_DEFAULT: u32 = 0xffbf;
/// FCW after FNINIT.
const FCW_INITIAL: u16 = 0x37f;
/// MXCSR after reset.
const MXCSR_INITIAL: u32 = 0x1f80;
/// One past the last address of user mode.
const USER_END: u64 = 1 << 47;
/// CF PF AF ZF SF TF DF OF AC RF: flags that a frame may change (FIX_EFLAGS).
const RESTORED_RFLAGS: u64 = 0x0005_0dd5;
/// TF, DF and RF are clear when a handler begins.
const CLEARED_RFLAGS: u64 = 0x0001_0500;

/// `struct sigcontext_64`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct MachineContext {
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rax: u64,
    rcx: u64,
    rsp: u64,
    rip: u64,
    rflags: u64,
    cs: u16,
    gs: u16,
    fs: u16,
    ss: u16,
    error_code: u64,
    trap_number: u64,
    old_mask: u64,
    cr2: u64,
    extended: u64,
    reserved: [u64; 8],
}

/// `struct ucontext` of the kernel.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Context {
    flags: u64,
    link: u64,
    stack: StackT,
    machine: MachineContext,
    mask: u64,
}

/// `stack_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StackT {
    /// `ss_sp`.
    pub base: u64,
    /// `ss_flags`.
    pub flags: u32,
    /// Padding.
    pub padding: u32,
    /// `ss_size`.
    pub size: u64,
}

/// The return address and the context: what is always written, in front of the siginfo.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Head {
    return_address: u64,
    context: Context,
}

/// `sizeof(struct rt_sigframe)`.
const FRAME_BYTES: u64 = 440;
const HEAD_BYTES: u64 = 312;
const _: () = assert!(size_of::<MachineContext>() == 256 && size_of::<Context>() == 304);
const _: () = assert!(size_of::<Head>() as u64 == HEAD_BYTES && HEAD_BYTES + 128 == FRAME_BYTES);

/// What the processor's extended state looks like; the same for the whole life of a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtendedLayout {
    /// Bytes of an area in standard format.
    pub area_bytes: usize,
    /// XCR0.
    pub features: u64,
    /// Valid bits of MXCSR.
    pub mxcsr_mask: u32,
}

impl ExtendedLayout {
    /// From an area of this processor and XCR0.
    #[must_use]
    pub fn of(area: &[u8], features: u64) -> Self {
        let mask = u32_at(area, 28);
        let mxcsr_mask = if mask == 0 { MXCSR_MASK_DEFAULT } else { mask };
        Self { area_bytes: area.len().max(AREA_BYTES_MIN), features: features | FEATURES_LEGACY, mxcsr_mask }
    }

    /// The area of the initial state.
    #[must_use]
    pub fn initial(&self) -> Vec<u8> {
        let mut area = vec![0; self.area_bytes.max(AREA_BYTES_MIN)];
        put(&mut area, 0, &FCW_INITIAL.to_le_bytes());
        put(&mut area, 24, &MXCSR_INITIAL.to_le_bytes());
        put(&mut area, 28, &self.mxcsr_mask.to_le_bytes());
        area
    }

    /// The area as a frame holds it: marked for software, and with the second magic number behind it.
    fn to_frame(self, mut area: Vec<u8>) -> Vec<u8> {
        area.resize(self.area_bytes.max(AREA_BYTES_MIN), 0);
        // A guest cannot have more than 8 KiB of it, so the casts keep the values.
        let bytes = area.len() as u32;
        put(&mut area, SOFTWARE_BYTES, &[0; 48]);
        put(&mut area, SOFTWARE_BYTES, &FP_XSTATE_MAGIC1.to_le_bytes());
        put(&mut area, SOFTWARE_BYTES + 4, &(bytes + 4).to_le_bytes());
        put(&mut area, SOFTWARE_BYTES + 8, &self.features.to_le_bytes());
        put(&mut area, SOFTWARE_BYTES + 16, &bytes.to_le_bytes());
        let present = u64_at(&area, LEGACY_BYTES) | FEATURES_LEGACY;
        put(&mut area, LEGACY_BYTES, &present.to_le_bytes());
        area.extend_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
        area
    }

    /// The area that a frame points to, checked as XRSTOR checks it.
    ///
    /// # Errors
    ///
    /// EFAULT for what cannot be read or restored: the thread gets SIGSEGV.
    fn read_area(self, memory: &GuestMemory, address: u64) -> Result<Vec<u8>, Errno> {
        let mut area = self.initial();
        if address == 0 {
            return Ok(area);
        }
        let legacy = memory.read::<[u8; LEGACY_BYTES]>(address)?;
        let [magic, extended_bytes] = [u32_at(&legacy, SOFTWARE_BYTES), u32_at(&legacy, SOFTWARE_BYTES + 4)];
        let bytes = u32_at(&legacy, SOFTWARE_BYTES + 16) as usize;
        let plausible = magic == FP_XSTATE_MAGIC1 && bytes >= AREA_BYTES_MIN && bytes <= area.len() && bytes <= extended_bytes as usize;
        let whole = plausible && {
            let end = address.checked_add(bytes as u64).ok_or(Errno::FAULT)?;
            memory.read::<u32>(end)? == FP_XSTATE_MAGIC2
        };
        let mut wanted = FEATURES_LEGACY;
        let mut present = FEATURES_LEGACY;
        put(&mut area, 0, &legacy);
        if whole {
            let rest = memory.read_vec(address.saturating_add(LEGACY_BYTES as u64), bytes - LEGACY_BYTES)?;
            present = u64_at(&rest, 0);
            wanted = u64_at(&legacy, SOFTWARE_BYTES + 8) & self.features;
            let reserved = rest.get(8..64).is_none_or(|bytes| bytes.iter().any(|&byte| byte != 0));
            if present & !self.features != 0 || reserved {
                return Err(Errno::FAULT);
            }
            put(&mut area, LEGACY_BYTES, &rest);
        }
        put(&mut area, LEGACY_BYTES, &(present & wanted).to_le_bytes());
        self.finish_restore(area, wanted)
    }

    fn finish_restore(self, mut area: Vec<u8>, wanted: u64) -> Result<Vec<u8>, Errno> {
        put(&mut area, SOFTWARE_BYTES, &[0; 48]);
        put(&mut area, 28, &self.mxcsr_mask.to_le_bytes());
        if wanted & FEATURES_MXCSR == 0 {
            put(&mut area, 24, &MXCSR_INITIAL.to_le_bytes());
        } else if u32_at(&area, 24) & !self.mxcsr_mask != 0 {
            return Err(Errno::FAULT);
        }
        Ok(area)
    }

    /// Least bytes of stack that a frame may need: AT_MINSIGSTKSZ (never below MINSIGSTKSZ).
    #[must_use]
    pub const fn stack_bytes_min(&self) -> u64 {
        // Alignment of the area and of the frame, as Linux counts them.
        let bytes = FRAME_BYTES + self.area_bytes as u64 + 4 + 64 + 16;
        let bytes = bytes.next_multiple_of(16);
        if bytes < sys::MINSIGSTKSZ as u64 { sys::MINSIGSTKSZ as u64 } else { bytes }
    }
}

/// AT_MINSIGSTKSZ for every guest: with AVX-512, the largest state that is offered.
pub const STACK_BYTES_MIN: u64 = ExtendedLayout { area_bytes: 2688, features: 0, mxcsr_mask: 0 }.stack_bytes_min();

fn put(area: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = area.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn u32_at(area: &[u8], at: usize) -> u32 {
    area.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(area: &[u8], at: usize) -> u64 {
    area.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// What goes into a frame.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The signal.
    pub info: SignalInfo,
    /// What to do on it: a handler.
    pub action: Action,
    /// The mask to go back to.
    pub mask: u64,
    /// The thread's alternate stack.
    pub stack: AlternateStack,
    /// Its last fault.
    pub trap: Trap,
    /// The extended state and how it is laid out.
    pub area: Vec<u8>,
    /// See [`ExtendedLayout`].
    pub layout: &'a ExtendedLayout,
}

impl Frame<'_> {
    /// Write the frame below the interrupted stack pointer or on the alternate stack; returns the registers of the handler.
    ///
    /// # Errors
    ///
    /// EFAULT where the frame cannot be written or the action is not one that can run: the thread gets SIGSEGV.
    pub fn push(self, memory: &GuestMemory, registers: &Registers) -> Result<Registers, Errno> {
        if self.action.flags & flags::RESTORER == 0 || self.action.handler >= USER_END {
            return Err(Errno::FAULT);
        }
        let area = self.layout.to_frame(self.area);
        let (frame, extended) = place(registers.rsp, self.action.flags & flags::ONSTACK != 0, &self.stack, area.len() as u64)?;
        memory.write_bytes(extended, &area)?;
        let context = Context {
            flags: UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
            link: 0,
            stack: StackT { base: self.stack.base, flags: self.stack.flags, padding: 0, size: self.stack.size },
            machine: MachineContext { old_mask: self.mask, extended, ..machine(registers, &self.trap) },
            mask: self.mask,
        };
        memory.write(frame, &Head { return_address: self.action.restorer, context })?;
        let info = frame.checked_add(HEAD_BYTES).ok_or(Errno::FAULT)?;
        if self.action.flags & flags::SIGINFO != 0 {
            memory.write_bytes(info, &self.info.to_bytes())?;
        }
        Ok(Registers {
            rax: 0,
            rdi: self.info.signal as u64,
            rsi: info,
            rdx: frame + 8,
            rsp: frame,
            rip: self.action.handler,
            rflags: Registers::user_rflags(registers.rflags & !CLEARED_RFLAGS),
            ..*registers
        })
    }
}

/// Where the frame and the extended state go.
fn place(rsp: u64, on_stack: bool, stack: &AlternateStack, area_bytes: u64) -> Result<(u64, u64), Errno> {
    let mut top = rsp.wrapping_sub(RED_ZONE);
    let nested = stack.active(rsp);
    let entering = on_stack && stack.status(top) == 0;
    if entering {
        top = stack.base.wrapping_add(stack.size);
    }
    let extended = top.wrapping_sub(area_bytes) & !63;
    let frame = (extended.wrapping_sub(FRAME_BYTES) & !15).wrapping_sub(8);
    // A frame that leaves the alternate stack would destroy what lies below it.
    if (nested || entering) && !stack.holds(frame) { Err(Errno::FAULT) } else { Ok((frame, extended)) }
}

fn machine(registers: &Registers, trap: &Trap) -> MachineContext {
    MachineContext {
        r8: registers.r8,
        r9: registers.r9,
        r10: registers.r10,
        r11: registers.r11,
        r12: registers.r12,
        r13: registers.r13,
        r14: registers.r14,
        r15: registers.r15,
        rdi: registers.rdi,
        rsi: registers.rsi,
        rbp: registers.rbp,
        rbx: registers.rbx,
        rdx: registers.rdx,
        rax: registers.rax,
        rcx: registers.rcx,
        rsp: registers.rsp,
        rip: registers.rip,
        rflags: registers.rflags,
        cs: USER_CS,
        ss: USER_SS,
        error_code: trap.error_code,
        trap_number: trap.number,
        cr2: trap.address,
        ..MachineContext::default()
    }
}

/// What `rt_sigreturn` brings back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// General registers, sanitised.
    pub registers: Registers,
    /// The mask.
    pub mask: u64,
    /// `uc_stack`, as for `sigaltstack(2)`.
    pub stack: StackT,
    /// The extended state.
    pub area: Vec<u8>,
}

/// Read the frame whose return address was just popped from `registers.rsp - 8`.
///
/// # Errors
///
/// EFAULT where it cannot be read or restored: the thread gets SIGSEGV.
pub fn pop(memory: &GuestMemory, registers: &Registers, layout: &ExtendedLayout) -> Result<Restored, Errno> {
    let Head { context, .. } = memory.read::<Head>(registers.rsp.wrapping_sub(8))?;
    let machine = context.machine;
    // Any other code segment would be a 32-bit or a supervisor one; an address at or above the end cannot be returned to.
    if machine.cs | 3 != USER_CS || machine.rip >= USER_END {
        return Err(Errno::FAULT);
    }
    let area = layout.read_area(memory, machine.extended)?;
    let registers = Registers {
        rax: machine.rax,
        rbx: machine.rbx,
        rcx: machine.rcx,
        rdx: machine.rdx,
        rsi: machine.rsi,
        rdi: machine.rdi,
        rsp: machine.rsp,
        rbp: machine.rbp,
        r8: machine.r8,
        r9: machine.r9,
        r10: machine.r10,
        r11: machine.r11,
        r12: machine.r12,
        r13: machine.r13,
        r14: machine.r14,
        r15: machine.r15,
        rip: machine.rip,
        rflags: Registers::user_rflags(registers.rflags & !RESTORED_RFLAGS | machine.rflags & RESTORED_RFLAGS),
    };
    Ok(Restored { registers, mask: context.mask, stack: context.stack, area })
}
