//! Which access failed: where KVM_RUN says only EFAULT, the instruction at RIP is decoded and every byte it may touch is
//! compared with the mappings.

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, OpAccess, Register};

use crate::cpu::Registers;
use crate::memory::{AddressSpace, Protection};
use crate::platform::{FaultKind, MemoryFault};

/// Longest instruction, bytes.
const INSTRUCTION_BYTES: usize = 15;
/// Bytes of a vector register that a gather's indices are looked for in.
const VECTOR_BYTES: usize = 32;
/// Where an XSAVE area has XMM0, and the upper half of YMM0.
const SSE_OFFSET: usize = 160;
const AVX_OFFSET: usize = 576;

/// Find the first access of the instruction at RIP that its mapping refuses; `None` where none does.
///
/// `bases` are those of FS and GS; `extended` gets the XSAVE area, for the indices of a gather.
pub(super) fn find(
    space: &AddressSpace,
    registers: &Registers,
    (fs_base, gs_base): (u64, u64),
    extended: &dyn Fn() -> Vec<u8>,
) -> Option<MemoryFault> {
    let fetch = |address| check(space, address, 1, Protection::EXEC).map(|kind| MemoryFault { address, write: false, fetch: true, kind });
    if let Some(fault) = fetch(registers.rip) {
        return Some(fault);
    }
    let mut code = [0; INSTRUCTION_BYTES];
    let length = space.memory().read_some(registers.rip, &mut code);
    let mut decoder = Decoder::with_ip(64, &code[..length], registers.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return fetch(registers.rip.wrapping_add(length as u64));
    }
    let value = |register: Register| register_value(registers, fs_base, gs_base, register);
    let area = if instruction.is_vsib() { extended() } else { Vec::new() };
    let lanes = if instruction.is_vsib() { VECTOR_BYTES / instruction.memory_size().size().max(1) } else { 1 };
    let mut factory = InstructionInfoFactory::new();
    for memory in factory.info(&instruction).used_memory() {
        let size = match memory.memory_size().size() {
            0 => 64,
            size => size,
        };
        let accesses: &[Protection] = match memory.access() {
            OpAccess::Read | OpAccess::CondRead => &[Protection::READ],
            OpAccess::Write | OpAccess::CondWrite => &[Protection::WRITE],
            OpAccess::ReadWrite | OpAccess::ReadCondWrite => &[Protection::READ, Protection::WRITE],
            _ => &[],
        };
        for lane in 0..lanes {
            let lookup = |register: Register, lane, bytes| value(register).or_else(|| index_value(&area, register, lane, bytes));
            let Some(address) = memory.virtual_address(lane, lookup) else { continue };
            for &needed in accesses {
                for at in [address, address.wrapping_add(size as u64 - 1)] {
                    if let Some(kind) = check(space, at, 1, needed) {
                        return Some(MemoryFault { address: at, write: needed == Protection::WRITE, fetch: false, kind });
                    }
                }
            }
        }
    }
    None
}

/// One index of a gather, from the SSE and AVX parts of an XSAVE area in standard format (AMD64 manual volume 2, section 11.5).
/// AVX-512's further registers and halves are not looked at: their place differs between processors.
fn index_value(area: &[u8], register: Register, lane: usize, bytes: usize) -> Option<u64> {
    if !(register.is_xmm() || register.is_ymm() || register.is_zmm()) || register.number() >= 16 {
        return None;
    }
    let at = lane * bytes;
    let half = if at < 16 { SSE_OFFSET } else { AVX_OFFSET };
    let start = half + register.number() * 16 + at % 16;
    let field = area.get(start..start + bytes).filter(|_| at < VECTOR_BYTES)?;
    match *field {
        [a, b, c, d] => Some(i64::from(i32::from_le_bytes([a, b, c, d])).cast_unsigned()),
        [a, b, c, d, e, f, g, h] => Some(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
        _ => None,
    }
}

fn check(space: &AddressSpace, address: u64, length: usize, needed: Protection) -> Option<FaultKind> {
    let Some(vma) = space.vmas().find(address) else { return Some(FaultKind::Unmapped) };
    // On x86 whatever may be written or executed may be read.
    let allowed = if needed == Protection::READ { !vma.protection.is_empty() } else { vma.protection.contains(needed) };
    if !allowed {
        return Some(FaultKind::Protected);
    }
    let mut byte = [0; 1];
    (space.memory().read_some(address, &mut byte[..length]) < length).then_some(FaultKind::Beyond)
}

fn register_value(registers: &Registers, fs_base: u64, gs_base: u64, register: Register) -> Option<u64> {
    let full = match register.full_register() {
        Register::RAX => registers.rax,
        Register::RBX => registers.rbx,
        Register::RCX => registers.rcx,
        Register::RDX => registers.rdx,
        Register::RSI => registers.rsi,
        Register::RDI => registers.rdi,
        Register::RSP => registers.rsp,
        Register::RBP => registers.rbp,
        Register::R8 => registers.r8,
        Register::R9 => registers.r9,
        Register::R10 => registers.r10,
        Register::R11 => registers.r11,
        Register::R12 => registers.r12,
        Register::R13 => registers.r13,
        Register::R14 => registers.r14,
        Register::R15 => registers.r15,
        Register::RIP => registers.rip,
        Register::FS => return Some(fs_base),
        Register::GS => return Some(gs_base),
        Register::CS | Register::DS | Register::ES | Register::SS => return Some(0),
        _ => return None,
    };
    Some(if register.size() == 4 { full & 0xffff_ffff } else { full })
}
