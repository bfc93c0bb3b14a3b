//! Restartable sequences (`rseq(2)`): a thread that is preempted or gets a signal inside a sequence it has registered goes on
//! at the sequence's abort address instead.
//!
//! The guest has one CPU, so the area says CPU 0, node 0, for ever; a sequence can only be broken by another thread of this
//! VM or by a handler.

use linux_raw_sys::general as sys;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::signal::SignalInfo;
use super::thread::Tid;
use super::{Errno, Kernel};
use crate::memory::{AddressSpace, GuestMemory};

/// Bytes of the first version of `struct rseq`.
pub const AREA_BYTES: u32 = 32;
/// Alignment of the area.
pub const AREA_ALIGNMENT: u64 = 32;
/// Offset of the pointer to the current sequence.
const SEQUENCE_POINTER: u64 = 8;
/// `cpu_id` of an area that is not registered.
const CPU_UNINITIALIZED: u32 = u32::MAX;
/// One past the last address of user mode.
const USER_END: u64 = 1 << 47;

/// The part of `struct rseq` that the kernel writes when it is registered.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Area {
    cpu_id_start: u32,
    cpu_id: u32,
    sequence: u64,
    flags: u32,
    node_id: u32,
    memory_cid: u32,
    padding: u32,
}

/// `struct rseq_cs`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Sequence {
    version: u32,
    flags: u32,
    start: u64,
    length: u64,
    abort: u64,
}

/// Fill in an area at registration: the program set the flags and may have set the sequence, which must be none.
///
/// # Errors
///
/// EFAULT.
pub fn register(memory: &GuestMemory, address: u64) -> Result<(), Errno> {
    memory.write(address, &[0_u32, 0])?;
    memory.write(address.checked_add(SEQUENCE_POINTER).ok_or(Errno::FAULT)?, &0_u64)?;
    memory.write(address.checked_add(20).ok_or(Errno::FAULT)?, &[0_u32, 0])
}

/// Mark an area as no longer kept up to date.
///
/// # Errors
///
/// EFAULT.
pub fn unregister(memory: &GuestMemory, address: u64) -> Result<(), Errno> {
    let area = Area { cpu_id: CPU_UNINITIALIZED, ..Area::default() };
    memory.write(address, &[area.cpu_id_start, area.cpu_id])?;
    memory.write(address.checked_add(20).ok_or(Errno::FAULT)?, &[area.node_id, area.memory_cid])
}

impl Kernel {
    /// If the thread is inside a restartable sequence, move it to the abort address. An area or descriptor that makes no sense
    /// is SIGSEGV, as in Linux.
    pub fn abort_sequence(&mut self, space: &AddressSpace, tid: Tid) {
        let Some(thread) = self.threads.find(tid) else { return };
        let (area, _, signature) = thread.rseq;
        if area == 0 {
            return;
        }
        match aborted(space.memory(), area, signature, thread.cpu.registers.rip) {
            Ok(Some(abort)) => thread.cpu.registers.rip = abort,
            Ok(None) => {}
            Err(_) => self.force_signal(tid, SignalInfo::kernel(sys::SIGSEGV.cast_signed())),
        }
    }
}

/// Where a thread at `rip` goes on: at the abort address if it is inside the sequence, which is then over.
fn aborted(memory: &GuestMemory, area: u64, signature: u32, rip: u64) -> Result<Option<u64>, Errno> {
    let pointer = area.checked_add(SEQUENCE_POINTER).ok_or(Errno::FAULT)?;
    let address = memory.read::<u64>(pointer)?;
    if address == 0 {
        return Ok(None);
    }
    let sequence = memory.read::<Sequence>(address)?;
    let end = sequence.start.checked_add(sequence.length).ok_or(Errno::INVAL)?;
    if sequence.version > 0 || sequence.start >= USER_END || end > USER_END || sequence.abort >= USER_END || sequence.abort < 4 {
        return Err(Errno::INVAL);
    }
    // The abort address inside the sequence would loop; the signature in front of it shows that the program meant it.
    if sequence.abort.wrapping_sub(sequence.start) < sequence.length || memory.read::<u32>(sequence.abort - 4)? != signature {
        return Err(Errno::INVAL);
    }
    memory.write(pointer, &0_u64)?;
    Ok((rip.wrapping_sub(sequence.start) < sequence.length).then_some(sequence.abort))
}
