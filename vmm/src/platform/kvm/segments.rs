#![expect(unsafe_code, reason = "the segment registers of the calling thread")]
//! The data segment registers of the host thread, which kvm_pvm shares with the guest that the thread runs.
//!
//! In 64-bit mode DS, ES, FS and GS do nothing but hold what was put into them. A program that may load them (any selector of
//! the descriptor table will do) can leave a few bits there for the next request; on kvm_pvm they stay in the thread's own
//! registers, which KVM_GET_SREGS does not show.
//!
//! UNSAFETY: reading selectors has no effect; null selectors in DS and ES have none in 64-bit mode (AMD64 manual volume 2,
//! section 4.5); FS and GS are set by the kernel together with their bases, so that thread-local storage is never lost.

use std::arch::asm;

const ARCH_SET_GS: libc::c_ulong = 0x1001;
const ARCH_SET_FS: libc::c_ulong = 0x1002;
const ARCH_GET_FS: libc::c_ulong = 0x1003;

/// DS, ES, FS, GS.
fn selectors() -> [u16; 4] {
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: see the module's header.
    unsafe {
        asm!("mov {0:x}, ds", "mov {1:x}, es", "mov {2:x}, fs", "mov {3:x}, gs", out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs,
            options(nomem, nostack, preserves_flags));
    }
    [ds, es, fs, gs]
}

/// Whether all four are null, as a 64-bit process has them under Linux.
pub(super) fn are_null() -> bool {
    selectors() == [0; 4]
}

/// Make them null.
pub(super) fn clear() {
    let [ds, es, fs, gs] = selectors();
    if ds | es != 0 {
        // SAFETY: see the module's header.
        unsafe { asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) 0_u16, options(nostack, preserves_flags)) };
    }
    if fs != 0 {
        let mut base = 0_u64;
        // SAFETY: arch_prctl(2) stores to a live word.
        let got = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &raw mut base) };
        if got == 0 {
            // SAFETY: the base that the thread has already.
            unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_FS, base) };
        }
    }
    if gs != 0 {
        // SAFETY: nothing in a 64-bit process uses GS.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, 0_u64) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_that_was_left_is_cleared_and_thread_local_storage_stays() {
        // SAFETY: the stack's selector is valid in DS, ES and GS.
        unsafe { asm!("mov {0:x}, ss", "mov ds, {0:x}", "mov es, {0:x}", "mov gs, {0:x}", out(reg) _, options(nostack)) };
        assert!(!are_null());
        clear();
        assert!(are_null());
        assert!(std::thread::current().name().is_some());
    }
}
