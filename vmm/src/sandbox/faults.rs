//! Processor faults as the signals Linux makes of them (arch/x86 traps as `sigaction(2)` describes their codes).

use linux_raw_sys::general::{
    BUS_ADRALN, BUS_ADRERR, FPE_FLTDIV, FPE_FLTINV, FPE_FLTOVF, FPE_FLTRES, FPE_FLTUND, FPE_INTDIV, ILL_ILLOPN, SEGV_ACCERR, SEGV_MAPERR,
    SI_KERNEL, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP, TRAP_TRACE,
};

use super::Sandbox;
use crate::linux::signal_delivery::PAGE_FAULT;
use crate::linux::thread::Tid;
use crate::memory::Protection;
use crate::platform::{Exception, FaultKind, MemoryFault};

/// Page-fault error code: write, user, instruction fetch.
const FAULT_WRITE: u64 = 1 << 1;
const FAULT_USER: u64 = 1 << 2;
const FAULT_FETCH: u64 = 1 << 4;
/// Vector of a general protection fault.
const GENERAL_PROTECTION: u8 = 13;
/// `int imm8`.
const INT_OPCODE: u8 = 0xcd;

/// What is told to a signal handler.
struct Forced {
    signal: u32,
    code: u32,
    address: u64,
    trap: u8,
    error_code: u64,
}

impl Sandbox {
    /// An exception of the processor.
    pub(super) fn exception(&mut self, tid: Tid, exception: Exception) {
        let Exception { vector, error_code, address } = exception;
        let rip = self.vm.state().registers.rip;
        let forced = |signal, code, address| Forced { signal, code, address, trap: vector, error_code };
        let forced = match vector {
            0 => forced(SIGFPE, FPE_INTDIV, rip),
            1 => forced(SIGTRAP, TRAP_TRACE, rip),
            3 => forced(SIGTRAP, SI_KERNEL, 0),
            // kvm_pvm raises an undefined instruction for `int n`, where processors find that the gate may not be used.
            6 if self.is_software_interrupt(rip) => Forced { trap: GENERAL_PROTECTION, ..forced(SIGSEGV, SI_KERNEL, 0) },
            6 => forced(SIGILL, ILL_ILLOPN, rip),
            11 | 12 => forced(SIGBUS, SI_KERNEL, 0),
            PAGE_FAULT => return self.page_fault(tid, error_code, address),
            16 | 19 => forced(SIGFPE, self.float_code(vector), rip),
            17 => forced(SIGBUS, BUS_ADRALN, 0),
            _ => forced(SIGSEGV, SI_KERNEL, 0),
        };
        self.force(tid, &forced);
    }

    fn is_software_interrupt(&self, rip: u64) -> bool {
        let mut opcode = [0];
        self.space.memory().read_some(rip, &mut opcode) == 1 && opcode[0] == INT_OPCODE
    }

    /// Which of the unmasked floating-point exceptions it was (`FPE_FLTDIV` and so on), from the status word or MXCSR.
    fn float_code(&self, vector: u8) -> u32 {
        let Ok(area) = self.vm.extended() else { return FPE_FLTINV };
        let word = |at: usize| u32::from_le_bytes([area[at], area[at + 1], area[at + 2], area[at + 3]]);
        let raised = if vector == 19 {
            let mxcsr = word(24);
            mxcsr & !(mxcsr >> 7) & 0x3f
        } else {
            (word(0) >> 16) & !word(0) & 0x3f
        };
        // Invalid, denormal, division by zero, overflow, underflow, inexact.
        match raised.trailing_zeros() {
            0 => FPE_FLTINV,
            2 => FPE_FLTDIV,
            3 => FPE_FLTOVF,
            1 | 4 => FPE_FLTUND,
            5 => FPE_FLTRES,
            _ => FPE_FLTINV,
        }
    }

    fn page_fault(&mut self, tid: Tid, error_code: u64, address: u64) {
        let needed = if error_code & FAULT_FETCH != 0 {
            Protection::EXEC
        } else if error_code & FAULT_WRITE != 0 {
            Protection::WRITE
        } else {
            Protection::READ
        };
        let code = match self.space.vmas().find(address) {
            None => SEGV_MAPERR,
            Some(vma) => {
                let allowed = if needed == Protection::READ { !vma.protection.is_empty() } else { vma.protection.contains(needed) };
                let rip = self.vm.state().registers.rip;
                if allowed && self.retried_fault.replace((rip, address)) != Some((rip, address)) {
                    // The mapping allows it: the page-table entry was behind. It is brought up to date before the next run.
                    self.space.refresh_block(address);
                    return;
                }
                SEGV_ACCERR
            }
        };
        self.force(tid, &Forced { signal: SIGSEGV, code, address, trap: PAGE_FAULT, error_code: error_code | FAULT_USER });
    }

    /// An access that the host's mapping refused.
    pub(super) fn memory_fault(&mut self, tid: Tid, fault: Option<MemoryFault>) {
        let rip = self.vm.state().registers.rip;
        let (signal, code, address, error_code) = match fault {
            None => (SIGBUS, BUS_ADRERR, rip, 0),
            Some(fault) => {
                let error_code = FAULT_USER | if fault.write { FAULT_WRITE } else { 0 } | if fault.fetch { FAULT_FETCH } else { 0 };
                match fault.kind {
                    FaultKind::Unmapped => (SIGSEGV, SEGV_MAPERR, fault.address, error_code),
                    FaultKind::Protected => (SIGSEGV, SEGV_ACCERR, fault.address, error_code | 1),
                    FaultKind::Beyond => (SIGBUS, BUS_ADRERR, fault.address, error_code),
                }
            }
        };
        self.force(tid, &Forced { signal, code, address, trap: PAGE_FAULT, error_code });
    }

    /// Something that no program may do.
    pub(super) fn forbidden(&mut self, tid: Tid) {
        self.force(tid, &Forced { signal: SIGSEGV, code: SI_KERNEL, address: 0, trap: GENERAL_PROTECTION, error_code: 0 });
    }

    fn force(&mut self, tid: Tid, forced: &Forced) {
        self.counters.faults += 1;
        let (signal, code) = (forced.signal.cast_signed(), forced.code.cast_signed());
        self.kernel.fault_signal(tid, signal, code, forced.address, u64::from(forced.trap), forced.error_code);
    }
}
