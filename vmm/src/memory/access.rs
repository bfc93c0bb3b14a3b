#![expect(unsafe_code, reason = "copies from and to memory that a guest can unmap, and the signal handler that recovers from it")]
//! Recoverable copies: a load or store of ours that faults on guest memory comes back as a short count instead of ending the process.
//!
//! UNSAFETY: the copies are `rep movs` / `rep stos` instructions, which the processor leaves restartable: on a fault RCX holds what
//! is left. The SIGSEGV/SIGBUS handler recognises exactly those instructions by address and moves RIP behind them: from words to
//! bytes, which find the byte that faults, from bytes to a return path; every other fault goes to the handler that was installed
//! before (pytest's faulthandler, Rust's stack guard).
//!
//! Why words: a processor of hardware moves both at the same speed, one emulated in software moves one element at a time.
//!
//! Why not a crate: gVisor and OpenVMM each carry their own; nothing published does this (checked 2026-11).

use std::arch::global_asm;
use std::sync::OnceLock;

/// Below this many bytes a second instruction costs more than it could save.
const WORDS_MIN: usize = 256;

global_asm!(
    ".text",
    ".balign 64",
    // (rdi = to, rsi = from, rdx = length) -> rax = bytes left
    "kvmserver_copy:",
    "mov rcx, rdx",
    "cmp rdx, {words_min}",
    "jb kvmserver_copy_bytes",
    "shr rcx, 3",
    "and edx, 7",
    "kvmserver_copy_words:",
    "rep movsq",
    "kvmserver_copy_words_done:",
    "lea rcx, [rdx + rcx * 8]",
    "kvmserver_copy_bytes:",
    "rep movsb",
    "kvmserver_copy_done:",
    "mov rax, rcx",
    "ret",
    ".balign 64",
    // (rdi = to, rsi = length) -> rax = bytes left
    "kvmserver_zero:",
    "mov rcx, rsi",
    "xor eax, eax",
    "cmp rsi, {words_min}",
    "jb kvmserver_zero_bytes",
    "shr rcx, 3",
    "and esi, 7",
    "kvmserver_zero_words:",
    "rep stosq",
    "kvmserver_zero_words_done:",
    "lea rcx, [rsi + rcx * 8]",
    "kvmserver_zero_bytes:",
    "rep stosb",
    "kvmserver_zero_done:",
    "mov rax, rcx",
    "ret",
    words_min = const WORDS_MIN,
);

unsafe extern "C" {
    fn kvmserver_copy(to: *mut u8, from: *const u8, length: usize) -> usize;
    fn kvmserver_zero(to: *mut u8, length: usize) -> usize;
    static kvmserver_copy_words: u8;
    static kvmserver_copy_words_done: u8;
    static kvmserver_copy_bytes: u8;
    static kvmserver_copy_done: u8;
    static kvmserver_zero_words: u8;
    static kvmserver_zero_words_done: u8;
    static kvmserver_zero_bytes: u8;
    static kvmserver_zero_done: u8;
}

/// Copy `length` bytes; returns how many were copied before a fault, if any.
///
/// # Safety
///
/// The ranges must lie in memory that the caller owns or in a guest's reservation (where a fault is recovered), and must
/// not be borrowed by Rust references; [`install_fault_handler`] has been called.
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, length: usize) -> usize {
    // SAFETY: forwarded from the caller; the routine touches nothing else.
    length - unsafe { kvmserver_copy(to, from, length) }
}

/// Store `length` zero bytes; returns how many were stored before a fault, if any.
///
/// # Safety
///
/// As for [`copy`].
pub(super) unsafe fn zero(to: *mut u8, length: usize) -> usize {
    // SAFETY: forwarded from the caller; the routine touches nothing else.
    length - unsafe { kvmserver_zero(to, length) }
}

/// Ask for the translations of the pages in a range, without waiting for them. Any address will do: a prefetch never faults.
pub(super) fn prefetch_pages(start: *const u8, length: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for at in (0..length).step_by(crate::limits::PAGE as usize) {
        // SAFETY: a hint to the processor, which changes nothing that a program could see.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(at).cast()) };
    }
}

static PREVIOUS: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

/// Install the handler once per process; later calls do nothing. Fork keeps it.
pub fn install_fault_handler() {
    PREVIOUS.get_or_init(|| [install(libc::SIGSEGV), install(libc::SIGBUS)]);
}

fn install(signal: i32) -> libc::sigaction {
    // SAFETY: an all-zero sigaction is a valid value of this C struct.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_fault as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: both pointers are to live structs, and the handler only touches the context it is given.
    unsafe { libc::sigaction(signal, &raw const action, &raw mut previous) };
    previous
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid ucontext to an SA_SIGINFO handler.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize];
    let recoverable = [
        (&raw const kvmserver_copy_words, &raw const kvmserver_copy_words_done),
        (&raw const kvmserver_copy_bytes, &raw const kvmserver_copy_done),
        (&raw const kvmserver_zero_words, &raw const kvmserver_zero_words_done),
        (&raw const kvmserver_zero_bytes, &raw const kvmserver_zero_done),
    ];
    for (fault, done) in recoverable {
        if rip == fault as i64 {
            registers[libc::REG_RIP as usize] = done as i64;
            return;
        }
    }
    chain(signal, info, context.cast());
}

fn chain(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let index = usize::from(signal == libc::SIGBUS);
    let previous = PREVIOUS.get().map(|all| all[index]);
    match previous {
        Some(action) if action.sa_sigaction > 1 => {
            if action.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: the previous owner registered this address as a handler of exactly this signature.
                let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                    unsafe { std::mem::transmute(action.sa_sigaction) };
                handler(signal, info, context);
            } else {
                // SAFETY: as above, for the one-argument form.
                let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(action.sa_sigaction) };
                handler(signal);
            }
        }
        _ => {
            // Nobody else wants it: the default action, as if we were not here; the faulting instruction runs again and ends us.
            // SAFETY: resetting a signal's action is async-signal-safe.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_from_an_unreadable_page_stops_at_the_page() {
        install_fault_handler();
        let page = 4096;
        // SAFETY: a fresh anonymous mapping of three pages.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                3 * page,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::PRIVATE,
            )
        }
        .expect("mmap")
        .cast::<u8>();
        // SAFETY: the middle page of the mapping above.
        unsafe { rustix::mm::mprotect(base.wrapping_add(page).cast(), page, rustix::mm::MprotectFlags::empty()) }.expect("mprotect");
        let mut buffer = vec![1_u8; 2 * page];
        // Whole words, words that end within one that faults, fewer bytes than are moved as words.
        for here in [page, page - 100, 1000, 8, 3] {
            // SAFETY: the mapping is ours; the fault is what is tested.
            assert_eq!(unsafe { copy(buffer.as_mut_ptr(), base.wrapping_add(page - here), 2 * page) }, here);
            // SAFETY: as above.
            assert_eq!(unsafe { copy(base.wrapping_add(page - here), buffer.as_ptr(), 2 * page) }, here);
            // SAFETY: as above.
            assert_eq!(unsafe { zero(base.wrapping_add(page - here), 2 * page) }, here);
            // SAFETY: as above.
            assert_eq!(unsafe { copy(base.wrapping_add(page - here), buffer.as_ptr(), here + 1) }, here);
        }
        // SAFETY: as above.
        assert_eq!(unsafe { zero(base.wrapping_add(2 * page), page) }, page);
        // SAFETY: as above.
        assert_eq!(unsafe { zero(base.wrapping_add(page), page) }, 0);
    }

    #[test]
    fn exactly_what_was_asked_for_is_copied_and_zeroed() {
        let from: Vec<u8> = (0..2000_u32).map(|index| (index % 251) as u8 + 1).collect();
        for length in [0, 1, 7, 8, WORDS_MIN - 1, WORDS_MIN, WORDS_MIN + 1, WORDS_MIN + 7, 1500] {
            for offset in [0, 1, 5] {
                let mut to = vec![0xee_u8; 2000];
                // SAFETY: both ranges lie inside vectors of ours.
                assert_eq!(unsafe { copy(to[offset..].as_mut_ptr(), from.as_ptr(), length) }, length);
                assert_eq!(to[offset..offset + length], from[..length]);
                assert!(to[..offset].iter().chain(&to[offset + length..]).all(|byte| *byte == 0xee));
                // SAFETY: as above.
                assert_eq!(unsafe { zero(to[offset..].as_mut_ptr(), length) }, length);
                assert!(to[offset..offset + length].iter().all(|byte| *byte == 0));
                assert!(to[..offset].iter().chain(&to[offset + length..]).all(|byte| *byte == 0xee));
            }
        }
    }
}
