//! Which access failed: where KVM_RUN says only EFAULT, the instruction at RIP is decoded and every byte it may touch is
//! compared with the mappings.

use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};

use super::vector_state::VectorState;
use crate::cpu::Registers;
use crate::memory::{AddressSpace, Protection};
use crate::platform::{FaultKind, MemoryFault};

/// Longest instruction, bytes.
const INSTRUCTION_BYTES: usize = 15;

/// Find the first access of the instruction at RIP that its mapping refuses; `None` where none does.
///
/// `bases` are those of FS and GS; `vectors` gets the vector registers, for the indices of a gather.
pub(super) fn find(
    space: &AddressSpace,
    registers: &Registers,
    (fs_base, gs_base): (u64, u64),
    vectors: &dyn Fn() -> VectorState,
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
    let vectors = instruction.is_vsib().then(vectors);
    let lanes = vectors.as_ref().map_or_else(|| vec![0], |vectors| active_lanes(&instruction, vectors));
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
        for &lane in &lanes {
            let index = |register, lane, bytes| vectors.as_ref().and_then(|vectors| index(vectors, register, lane, bytes));
            let lookup = |register: Register, lane, bytes| value(register).or_else(|| index(register, lane, bytes));
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

/// Which elements a gather or scatter accesses: as many as there are indices and room for, where the mask has them. A mask's bit goes
/// when its element is done (SDM volume 2, VPGATHERDD and VPSCATTERDD).
fn active_lanes(instruction: &Instruction, vectors: &VectorState) -> Vec<usize> {
    let element_bytes = instruction.memory_size().size().max(1);
    let index_bytes = if instruction.is_vsib64() { 8 } else { 4 };
    // The other operand: what is gathered into, or scattered. Prefetches have none.
    let data = (0..instruction.op_count().min(2)).find(|&operand| instruction.op_kind(operand) == OpKind::Register);
    let room = data.map_or(usize::MAX, |operand| instruction.op_register(operand).size() / element_bytes);
    let indices = instruction.memory_index().size() / index_bytes;
    let is_active = |lane: usize| match instruction.op_mask() {
        // AVX2: the third operand, the upper bit of each of its elements.
        Register::None => vectors
            .element(instruction.op_register(2), lane * element_bytes, element_bytes)
            .is_none_or(|element| element >> (element_bytes * 8 - 1) & 1 != 0),
        mask => vectors.mask(mask).is_none_or(|bits| bits >> lane & 1 != 0),
    };
    (0..indices.min(room)).filter(|&lane| is_active(lane)).collect()
}

/// One index of a gather, with its sign.
fn index(vectors: &VectorState, register: Register, lane: usize, bytes: usize) -> Option<u64> {
    let index = vectors.element(register, lane * bytes, bytes)?;
    Some(if bytes == 4 { i64::from(index as u32 as i32).cast_unsigned() } else { index })
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

#[cfg(test)]
mod tests;
