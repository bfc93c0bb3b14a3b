#![expect(unsafe_code, reason = "a POSIX timer, a signal handler, and the flag in the shared kvm_run page that it sets")]
//! The kick: a thread-directed signal whose handler sets `immediate_exit` in the kvm_run page of the vCPU that this thread runs.
//!
//! The flag closes the window between "looked at everything" and KVM_RUN: whenever the signal comes, the next KVM_RUN returns
//! at once. Only the run loop clears it, before it looks at its deadlines again.
//!
//! UNSAFETY: the thread-local pointer is to the kvm_run mapping of a vCPU that is alive while it is set (set and cleared by
//! [`Kicker::attach`] and its drop, and where a vCPU goes first, by [`forget`]); the handler does one store through it.
//!
//! References: timer_create(2) (SIGEV_THREAD_ID), Documentation/virt/kvm/api.rst (immediate_exit).

use std::cell::Cell;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;

thread_local! {
    static FLAG: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// The signal of kicks: a real-time one that neither Python nor a libc uses.
fn signal() -> i32 {
    libc::SIGRTMIN() + 4
}

extern "C" fn on_kick(_signal: i32) {
    let flag = FLAG.get();
    if !flag.is_null() {
        // SAFETY: see the module's header.
        unsafe { flag.write_volatile(1) };
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid value of this C struct.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_kick as *const () as usize;
        // No SA_RESTART: a blocking host call of ours is to return EINTR.
        action.sa_flags = libc::SA_ONSTACK;
        // SAFETY: a live struct, and a handler that only does async-signal-safe things.
        unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) };
    });
}

/// Let kicks of this thread set nothing, if it was this flag that they set: the vCPU is about to go.
pub(super) fn forget(flag: KickFlag) {
    if FLAG.get() == flag.0 {
        FLAG.set(std::ptr::null_mut());
    }
}

/// The right to be kicked, for the thread that made it: a timer and the flag of one vCPU.
#[derive(Debug)]
pub struct Kicker {
    timer: libc::timer_t,
    flag: *mut u8,
    armed: Cell<bool>,
}

impl Kicker {
    /// For the calling thread, aimed at nothing yet.
    ///
    /// # Errors
    ///
    /// EAGAIN where the user has too many timers.
    pub fn for_this_thread() -> Result<Self, Errno> {
        Self::attach(std::ptr::null_mut())
    }

    /// For the calling thread. `flag` is the `immediate_exit` byte of the vCPU that this thread is going to run.
    ///
    /// # Errors
    ///
    /// EAGAIN where the user has too many timers.
    pub(super) fn attach(flag: *mut u8) -> Result<Self, Errno> {
        install();
        // SAFETY: an all-zero sigevent is a valid value of this C struct.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        // SAFETY: gettid cannot fail.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both pointers are to live values.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } != 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN));
        }
        FLAG.set(flag);
        Ok(Self { timer, flag, armed: Cell::new(false) })
    }

    /// Let kicks set another vCPU's flag (null for none); answers whose it was before. The vCPU must not be dropped while it is aimed at.
    pub fn aim(&self, flag: KickFlag) -> KickFlag {
        KickFlag(FLAG.replace(flag.0))
    }

    /// Kick this thread at a moment of the host's CLOCK_MONOTONIC, nanoseconds; at once where it has passed.
    pub fn arm(&self, deadline: u64) {
        self.set(deadline.max(1));
        self.armed.set(true);
    }

    /// No kick any more (one may still be on its way).
    pub fn disarm(&self) {
        if self.armed.replace(false) {
            self.set(0);
        }
    }

    fn set(&self, nanoseconds: u64) {
        let value = libc::timespec {
            tv_sec: i64::try_from(nanoseconds / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: (nanoseconds % 1_000_000_000).cast_signed(),
        };
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: the timer is ours and alive, the struct is too.
        unsafe { libc::timer_settime(self.timer, libc::TIMER_ABSTIME, &raw const setting, std::ptr::null_mut()) };
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        // Another kicker of this thread may have taken over already.
        forget(KickFlag(self.flag));
        // SAFETY: the timer is ours and nobody uses it after this value.
        unsafe { libc::timer_delete(self.timer) };
    }
}

/// The `immediate_exit` byte of a vCPU, or none.
#[derive(Debug, Clone, Copy)]
pub struct KickFlag(pub(super) *mut u8);

/// A handle for other threads: kick the thread that made it.
#[derive(Debug)]
pub struct Kick {
    thread: AtomicI32,
}

impl Kick {
    /// For the calling thread.
    #[must_use]
    pub fn this_thread() -> Self {
        install();
        // SAFETY: gettid cannot fail.
        Self { thread: AtomicI32::new(unsafe { libc::gettid() }) }
    }

    /// Make the thread leave the guest, or the host call it waits in.
    pub fn kick(&self) {
        let thread = self.thread.load(Ordering::Relaxed);
        let process = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: tgkill with our own process id reaches only our own threads; one that has ended gives ESRCH.
        unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal()) };
    }
}
