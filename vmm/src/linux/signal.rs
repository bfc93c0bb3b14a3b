//! Signals: what a process does on each, what is pending, and which thread is told (`signal(7)`, `sigaction(2)`).
//!
//! * a signal below 32 is queued at most once per queue, a real-time signal as often as it is sent, up to a limit;
//! * a signal that would be ignored and is not blocked is dropped when it is sent, so that it never interrupts a call;
//! * `notified` is Linux's TIF_SIGPENDING: of the threads that could take a signal of the process, one is told, and only that
//!   one has its system call interrupted;
//! * SIGKILL and SIGSTOP are in no mask.
//!
//! How a signal reaches its handler is in [`super::signal_delivery`], the frame in [`super::signal_frame`], timers that send
//! signals in [`super::signal_timers`].

use linux_raw_sys::general as sys;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use super::signal_delivery::Delivery;
use super::signal_frame::ExtendedLayout;
use super::signal_timers::Timers;
use super::thread::{Blocked, State, Tid};
use super::{Errno, Kernel, Restart, WaitFor};
use crate::limits::SIGNALS_MAX;

/// A signal number, 1 to 64.
pub type Signal = i32;

/// Highest signal number.
pub const SIGNAL_LAST: Signal = 64;
/// Lowest real-time signal, as the kernel counts (glibc keeps the first two for itself).
pub const REAL_TIME_FIRST: Signal = 32;

/// `si_code`: sent by `kill`.
pub const SI_USER: i32 = sys::SI_USER.cast_signed();
/// `si_code`: sent by the kernel.
pub const SI_KERNEL: i32 = sys::SI_KERNEL.cast_signed();
/// `si_code`: sent by `sigqueue`.
pub const SI_QUEUE: i32 = sys::SI_QUEUE;
/// `si_code`: sent by a POSIX timer.
pub const SI_TIMER: i32 = sys::SI_TIMER;
/// `si_code`: sent by `tkill` or `tgkill`.
pub const SI_TKILL: i32 = sys::SI_TKILL;

/// The default action.
pub const SIG_DFL: u64 = 0;
/// Ignore the signal.
pub const SIG_IGN: u64 = 1;

/// `sa_flags` bits that a kernel of our release knows, without the architecture's SA_RESTORER.
pub mod flags {
    /// Children that stop send no SIGCHLD.
    pub const NOCLDSTOP: u64 = 1;
    /// Children leave no zombies.
    pub const NOCLDWAIT: u64 = 2;
    /// The handler takes a siginfo.
    pub const SIGINFO: u64 = 4;
    /// The kernel clears bits it does not know (asked for when probing).
    pub const UNSUPPORTED: u64 = 0x400;
    /// The address in siginfo keeps its tag bits.
    pub const EXPOSE_TAGBITS: u64 = 0x800;
    /// x86-64: `sa_restorer` is where a handler returns to.
    pub const RESTORER: u64 = 0x0400_0000;
    /// The handler runs on the alternate stack.
    pub const ONSTACK: u64 = 0x0800_0000;
    /// Interrupted calls are made again.
    pub const RESTART: u64 = 0x1000_0000;
    /// The signal is not blocked in its own handler.
    pub const NODEFER: u64 = 0x4000_0000;
    /// The action is the default again once the handler runs.
    pub const RESETHAND: u64 = 0x8000_0000;
    /// All of them.
    pub const KNOWN: u64 = NOCLDSTOP | NOCLDWAIT | SIGINFO | EXPOSE_TAGBITS | RESTORER | ONSTACK | RESTART | NODEFER | RESETHAND;
}

/// The bit of a signal in a set; 0 for a number that is none.
#[must_use]
pub const fn bit(signal: Signal) -> u64 {
    if signal >= 1 && signal <= SIGNAL_LAST { 1 << (signal - 1) } else { 0 }
}

const fn bits(signals: &[u32]) -> u64 {
    let mut set = 0;
    let mut index = 0;
    while index < signals.len() {
        set |= 1 << (signals[index] - 1);
        index += 1;
    }
    set
}

/// SIGKILL and SIGSTOP: never blocked, caught or ignored.
pub const UNBLOCKABLE: u64 = bits(&[sys::SIGKILL, sys::SIGSTOP]);
/// Signals that an instruction causes: they are delivered before others.
const SYNCHRONOUS: u64 = bits(&[sys::SIGSEGV, sys::SIGBUS, sys::SIGILL, sys::SIGTRAP, sys::SIGFPE, sys::SIGSYS]);
/// Signals that do nothing by default.
const IGNORED_BY_DEFAULT: u64 = bits(&[sys::SIGCONT, sys::SIGCHLD, sys::SIGWINCH, sys::SIGURG]);
/// Signals that stop a process by default.
const STOPPING: u64 = bits(&[sys::SIGSTOP, sys::SIGTSTP, sys::SIGTTIN, sys::SIGTTOU]);
/// Signals that leave a core dump by default.
const DUMPING: u64 = bits(&[
    sys::SIGQUIT,
    sys::SIGILL,
    sys::SIGTRAP,
    sys::SIGABRT,
    sys::SIGFPE,
    sys::SIGSEGV,
    sys::SIGBUS,
    sys::SIGSYS,
    sys::SIGXCPU,
    sys::SIGXFSZ,
]);

/// What the default action of a signal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultAction {
    /// Nothing. The stopping signals too: in a VM nobody could make the process go on, so it goes on at once, as Linux lets
    /// an orphaned process group do for all of them but SIGSTOP.
    Ignore,
    /// The process ends.
    Terminate {
        /// Natively a core dump would be written.
        core: bool,
    },
}

/// The default action of a signal.
#[must_use]
pub const fn default_action(signal: Signal) -> DefaultAction {
    if bit(signal) & (IGNORED_BY_DEFAULT | STOPPING) != 0 {
        DefaultAction::Ignore
    } else {
        DefaultAction::Terminate { core: bit(signal) & DUMPING != 0 }
    }
}

/// The part of `siginfo_t` that means something: its first 48 bytes; the other 80 are zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SignalInfo {
    /// `si_signo`.
    pub signal: Signal,
    /// `si_errno`.
    pub errno: i32,
    /// `si_code`.
    pub code: i32,
    /// Zero.
    pub padding: u32,
    /// The union, by kind of signal: pid and uid, value; timer, overrun, value, our timer's generation; fault address.
    pub fields: [u64; 4],
}

impl SignalInfo {
    /// A signal of the kernel's own making.
    #[must_use]
    pub const fn kernel(signal: Signal) -> Self {
        Self { signal, errno: 0, code: SI_KERNEL, padding: 0, fields: [0; 4] }
    }

    /// A signal sent by a process.
    #[must_use]
    pub const fn user(signal: Signal, code: i32, pid: Tid, uid: u32) -> Self {
        Self { signal, errno: 0, code, padding: 0, fields: [pair(pid.cast_unsigned(), uid), 0, 0, 0] }
    }

    /// A fault of an instruction at a data or code address.
    #[must_use]
    pub const fn fault(signal: Signal, code: i32, address: u64) -> Self {
        Self { signal, errno: 0, code, padding: 0, fields: [address, 0, 0, 0] }
    }

    /// An expired POSIX timer.
    #[must_use]
    pub const fn timer(signal: Signal, timer: i32, value: u64, generation: u32) -> Self {
        Self { signal, errno: 0, code: SI_TIMER, padding: 0, fields: [pair(timer.cast_unsigned(), 0), value, generation as u64, 0] }
    }

    fn is_of_timer(&self, generation: u32) -> bool {
        self.code == SI_TIMER && self.fields[2] == u64::from(generation)
    }

    /// All 128 bytes of the `siginfo_t`.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 128] {
        let mut bytes = [0; 128];
        bytes[..48].copy_from_slice(self.as_bytes());
        bytes
    }
}

/// Two 32-bit fields of a siginfo, the lower address first.
const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// Signals that have been sent and not been taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pending {
    set: u64,
    queue: Vec<SignalInfo>,
}

impl Pending {
    /// Which signals.
    #[must_use]
    pub const fn set(&self) -> u64 {
        self.set
    }

    fn add(&mut self, info: SignalInfo) {
        self.set |= bit(info.signal);
        self.queue.push(info);
    }

    /// The oldest of this number. A signal whose details found no room in the queue says "somebody", as in Linux.
    fn take(&mut self, signal: Signal) -> SignalInfo {
        let found = self.queue.iter().position(|info| info.signal == signal);
        let info = found.map_or_else(|| SignalInfo::user(signal, SI_USER, 0, 0), |index| self.queue.remove(index));
        if !self.queue.iter().any(|other| other.signal == signal) {
            self.set &= !bit(signal);
        }
        info
    }

    fn flush(&mut self, set: u64) {
        self.set &= !set;
        self.queue.retain(|info| bit(info.signal) & set == 0);
    }

    /// Whether the signal of this arming of a POSIX timer is here.
    pub(super) fn holds_timer(&self, generation: u32) -> bool {
        self.queue.iter().any(|info| info.is_of_timer(generation))
    }

    /// Drop the signal of this arming of a POSIX timer.
    pub(super) fn forget_timer(&mut self, generation: u32) {
        let Some(index) = self.queue.iter().position(|info| info.is_of_timer(generation)) else { return };
        let signal = self.queue.remove(index).signal;
        if !self.queue.iter().any(|other| other.signal == signal) {
            self.set &= !bit(signal);
        }
    }

    /// Which signal of `wanted` is next: those of instructions first, then by number.
    const fn next(&self, wanted: u64) -> Option<Signal> {
        let mut set = self.set & wanted;
        if set & SYNCHRONOUS != 0 {
            set &= SYNCHRONOUS;
        }
        // At most 64, so the cast keeps the value.
        if set == 0 { None } else { Some(set.trailing_zeros().cast_signed() + 1) }
    }
}

/// `struct kernel_sigaction` of x86-64.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Action {
    /// Address of the handler, [`SIG_DFL`] or [`SIG_IGN`].
    pub handler: u64,
    /// See [`flags`].
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: u64,
    /// Signals blocked in the handler besides this one.
    pub mask: u64,
}

/// `sigaltstack(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlternateStack {
    /// Lowest address.
    pub base: u64,
    /// Bytes; 0 for none.
    pub size: u64,
    /// SS_DISABLE, SS_ONSTACK or 0, and SS_AUTODISARM, as the program passed them.
    pub flags: u32,
}

impl Default for AlternateStack {
    fn default() -> Self {
        Self { base: 0, size: 0, flags: sys::SS_DISABLE }
    }
}

impl AlternateStack {
    /// Whether a stack pointer is on it, whatever its flags.
    #[must_use]
    pub const fn holds(&self, rsp: u64) -> bool {
        rsp > self.base && rsp - self.base <= self.size
    }

    /// Whether a thread with this stack pointer counts as running on it.
    #[must_use]
    pub const fn active(&self, rsp: u64) -> bool {
        self.flags & sys::SS_AUTODISARM == 0 && self.holds(rsp)
    }

    /// `ss_flags` as `sigaltstack(2)` reports them.
    #[must_use]
    pub const fn status(&self, rsp: u64) -> u32 {
        if self.size == 0 {
            sys::SS_DISABLE
        } else if self.active(rsp) {
            sys::SS_ONSTACK
        } else {
            0
        }
    }
}

/// The last fault of a thread, which every later signal frame shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trap {
    /// Vector of the exception.
    pub number: u64,
    /// Its error code.
    pub error_code: u64,
    /// CR2: address of the last page fault.
    pub address: u64,
}

/// A thread's part of the signal state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ThreadSignals {
    /// The mask.
    pub blocked: u64,
    /// The mask to go back to after `sigsuspend`, `ppoll` and relatives, while such a call has replaced it.
    pub saved_mask: Option<u64>,
    /// Signals sent to this thread.
    pub pending: Pending,
    /// The thread has been told that it has a signal to take.
    pub notified: bool,
    /// Its alternate stack.
    pub stack: AlternateStack,
    /// Its last fault.
    pub trap: Trap,
}

/// The process's part of the signal state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSignals {
    actions: [Action; 64],
    /// Signals sent to the process: any thread may take them.
    pub pending: Pending,
    /// How the extended state is laid out; all zero until the first entry into guest code.
    pub extended: ExtendedLayout,
    /// Interval timers and POSIX timers.
    pub timers: Timers,
}

impl Default for ProcessSignals {
    fn default() -> Self {
        Self {
            actions: [Action::default(); 64],
            pending: Pending::default(),
            extended: ExtendedLayout::default(),
            timers: Timers::default(),
        }
    }
}

impl ProcessSignals {
    /// What happens on a signal; the default action for a number that is none.
    #[must_use]
    pub fn action(&self, signal: Signal) -> Action {
        index(signal).and_then(|index| self.actions.get(index).copied()).unwrap_or_default()
    }

    /// Change it; returns the old one.
    pub fn set_action(&mut self, signal: Signal, action: Action) -> Action {
        match index(signal).and_then(|index| self.actions.get_mut(index)) {
            Some(slot) => std::mem::replace(slot, action),
            None => Action::default(),
        }
    }

    /// Whether a signal that nobody blocks would have no effect at all.
    #[must_use]
    pub fn ignores(&self, signal: Signal) -> bool {
        match self.action(signal).handler {
            SIG_IGN => bit(signal) & UNBLOCKABLE == 0,
            SIG_DFL => default_action(signal) == DefaultAction::Ignore,
            _ => false,
        }
    }

    /// The set of caught and the set of ignored signals, for `/proc/self/status`.
    #[must_use]
    pub fn caught_and_ignored(&self) -> (u64, u64) {
        (1..=SIGNAL_LAST).fold((0, 0), |(caught, ignored), signal| match self.action(signal).handler {
            SIG_DFL => (caught, ignored),
            SIG_IGN => (caught, ignored | bit(signal)),
            _ => (caught | bit(signal), ignored),
        })
    }

    /// What `execve` does: handlers and POSIX timers go; ignored signals stay ignored and interval timers run on.
    pub fn reset_for_exec(&mut self) {
        self.timers.forget_posix();
        for action in &mut self.actions {
            let handler = if action.handler == SIG_IGN { SIG_IGN } else { SIG_DFL };
            *action = Action { handler, ..Action::default() };
        }
    }
}

fn index(signal: Signal) -> Option<usize> {
    usize::try_from(signal).ok()?.checked_sub(1)
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// One thread.
    Thread(Tid),
    /// The process: any thread that does not block it.
    Process,
}

impl Kernel {
    /// Send a signal to a thread as the program itself would with `tgkill` (SIGPIPE of a broken write, for example).
    pub fn send_thread_signal(&mut self, tid: Tid, signal: Signal) {
        let info = SignalInfo::user(signal, SI_USER, self.process.pid, self.process.identity.uid);
        // A signal below 32 is never refused for lack of room.
        let _ = self.queue_signal(Target::Thread(tid), info);
    }

    /// Send a signal of the kernel's own to the process (SIGALRM, SIGTERM at a drain).
    pub fn send_process_signal(&mut self, signal: Signal) {
        let _ = self.queue_signal(Target::Process, SignalInfo::kernel(signal));
    }

    /// Send a signal.
    ///
    /// # Errors
    ///
    /// EAGAIN where a real-time signal finds no room, ESRCH where the thread has gone.
    pub fn queue_signal(&mut self, target: Target, info: SignalInfo) -> Result<(), Errno> {
        let signal = info.signal;
        if let Target::Thread(tid) = target
            && self.threads.peek(tid).is_none()
        {
            return Err(Errno::SRCH);
        }
        self.cancel_opposite(signal);
        if self.drops(target, signal) {
            self.note_stop(signal);
            return Ok(());
        }
        let room = self.queued_signals() < SIGNALS_MAX.min(self.limit_of(sys::RLIMIT_SIGPENDING));
        let Some(pending) = self.pending_of(target) else { return Err(Errno::SRCH) };
        let from_timer = info.code == SI_TIMER && info.fields[2] != 0;
        if signal < REAL_TIME_FIRST && pending.set() & bit(signal) != 0 && !from_timer {
            return Ok(());
        }
        // Signals below 32 from the kernel or `kill` are few by the rule above; timers have one place each.
        if room || from_timer || signal < REAL_TIME_FIRST && info.code >= 0 {
            pending.add(info);
        } else if signal >= REAL_TIME_FIRST && info.code != SI_USER {
            return Err(Errno::AGAIN);
        } else {
            pending.set |= bit(signal);
        }
        // signalfd readers look again.
        self.files.changes += 1;
        self.tell(target, signal);
        Ok(())
    }

    fn pending_of(&mut self, target: Target) -> Option<&mut Pending> {
        match target {
            Target::Thread(tid) => self.threads.find(tid).map(|thread| &mut thread.signals.pending),
            Target::Process => Some(&mut self.process.signals.pending),
        }
    }

    fn queued_signals(&self) -> usize {
        self.threads.iter().map(|thread| thread.signals.pending.queue.len()).sum::<usize>() + self.process.signals.pending.queue.len()
    }

    /// SIGCONT takes back pending stops and the other way round.
    fn cancel_opposite(&mut self, signal: Signal) {
        let continuing = bit(sys::SIGCONT.cast_signed());
        if bit(signal) & STOPPING != 0 {
            self.flush_signals(continuing);
        } else if bit(signal) == continuing {
            self.flush_signals(STOPPING);
        }
    }

    /// Forget pending signals.
    pub fn flush_signals(&mut self, set: u64) {
        self.process.signals.pending.flush(set);
        for thread in self.threads.iter_mut() {
            thread.signals.pending.flush(set);
        }
    }

    /// Whether a signal is dropped where it is sent: it has no effect, and the receiver does not block it.
    fn drops(&self, target: Target, signal: Signal) -> bool {
        let receiver = match target {
            Target::Thread(tid) => self.threads.peek(tid),
            Target::Process => self.threads.peek(self.process.pid).or_else(|| self.threads.iter().next()),
        };
        receiver.is_some_and(|thread| thread.signals.blocked & bit(signal) == 0) && self.process.signals.ignores(signal)
    }

    fn note_stop(&mut self, signal: Signal) {
        if signal.cast_unsigned() == sys::SIGSTOP {
            self.note("the program stopped itself with SIGSTOP; it goes on, since nothing in a VM could continue it".to_owned());
        }
    }

    /// Choose a thread for a new signal and wake it or have its call interrupted.
    fn tell(&mut self, target: Target, signal: Signal) {
        let chosen = match target {
            Target::Thread(tid) => Some(tid).filter(|&tid| self.takes(tid, signal)),
            Target::Process => self.choose(signal),
        };
        let Some(thread) = chosen.and_then(|tid| self.threads.find(tid)) else { return };
        match &mut thread.state {
            State::Blocked(Blocked { wait, woken, .. }) if matches!(wait.on, WaitFor::Signals(set) if set & bit(signal) != 0) => {
                *woken = true
            }
            _ => thread.signals.notified = true,
        }
    }

    /// Of the threads that take a signal: the main thread, else one without another signal to take, else none needs telling.
    fn choose(&self, signal: Signal) -> Option<Tid> {
        let free = |tid: Tid| tid == self.threads.current || self.threads.peek(tid).is_some_and(|thread| !thread.signals.notified);
        let main = Some(self.process.pid).filter(|&tid| self.takes(tid, signal) && free(tid));
        main.or_else(|| self.threads.iter().map(|thread| thread.tid).find(|&tid| self.takes(tid, signal) && free(tid)))
            .or_else(|| self.threads.iter().map(|thread| thread.tid).find(|&tid| self.takes(tid, signal)))
    }

    fn takes(&self, tid: Tid, signal: Signal) -> bool {
        self.threads.peek(tid).is_some_and(|thread| unblocked(thread) & bit(signal) != 0)
    }

    /// The signals that are pending for a thread, blocked or not: what `signalfd` and `/proc` look at.
    #[must_use]
    pub fn pending_signals(&self, tid: Tid) -> u64 {
        self.process.signals.pending.set() | self.threads.peek(tid).map_or(0, |thread| thread.signals.pending.set())
    }

    /// Whether a thread has a signal to take that it does not block: its system call is to be interrupted.
    #[must_use]
    pub fn signal_pending(&self, tid: Tid) -> bool {
        self.threads.peek(tid).is_some_and(|thread| thread.signals.notified && self.pending_signals(tid) & !thread.signals.blocked != 0)
    }

    /// The blocked threads whose calls a signal interrupts.
    #[must_use]
    pub fn interrupted_threads(&self) -> Vec<Tid> {
        self.threads
            .iter()
            .filter(|thread| thread.signals.notified && matches!(thread.state, State::Blocked(_)))
            .map(|thread| thread.tid)
            .filter(|&tid| self.signal_pending(tid))
            .collect()
    }

    /// Take the next pending signal of `wanted`: those of the thread first. Used by delivery, `sigtimedwait` and `signalfd`.
    pub fn take_signal(&mut self, tid: Tid, wanted: u64) -> Option<SignalInfo> {
        let thread = self.threads.find(tid)?;
        let own = thread.signals.pending.next(wanted);
        let mut info = match own {
            Some(signal) => thread.signals.pending.take(signal),
            None => {
                let signal = self.process.signals.pending.next(wanted)?;
                self.process.signals.pending.take(signal)
            }
        };
        if own.is_none() {
            self.interval_signal_taken(info.signal);
        }
        if info.code == SI_TIMER && info.fields[2] != 0 {
            self.timer_signal_taken(&mut info);
        }
        self.renotify(tid);
        Some(info)
    }

    /// Which action the thread's next signal has, without taking it; signals that do nothing do not count.
    #[must_use]
    pub fn next_action(&self, tid: Tid) -> Option<(Signal, Action)> {
        let thread = self.threads.peek(tid)?;
        let mut wanted = !thread.signals.blocked;
        loop {
            let signal = thread.signals.pending.next(wanted).or_else(|| self.process.signals.pending.next(wanted))?;
            if !self.process.signals.ignores(signal) {
                return Some((signal, self.process.signals.action(signal)));
            }
            wanted &= !bit(signal);
        }
    }

    /// Whether a call that a signal has interrupted is made again (after the handler, if one runs) instead of failing with EINTR.
    #[must_use]
    pub fn call_restarts(&self, tid: Tid, restart: Restart) -> bool {
        match self.next_action(tid) {
            Some((_, action)) if action.handler != SIG_DFL => match restart {
                Restart::Never => false,
                Restart::IfAsked => action.flags & flags::RESTART != 0,
                Restart::Always => true,
            },
            _ => true,
        }
    }

    /// Work out again whether a thread has a signal to take.
    pub fn renotify(&mut self, tid: Tid) {
        let pending = self.pending_signals(tid);
        if let Some(thread) = self.threads.find(tid) {
            thread.signals.notified = pending & !thread.signals.blocked != 0;
        }
    }

    /// Change a thread's mask. Signals of the process that it no longer takes are offered to other threads.
    pub fn set_mask(&mut self, tid: Tid, mask: u64) {
        let mask = mask & !UNBLOCKABLE;
        let Some(thread) = self.threads.find(tid) else { return };
        let newly_blocked = mask & !thread.signals.blocked;
        thread.signals.blocked = mask;
        self.offer(newly_blocked);
        self.renotify(tid);
    }

    /// Tell other threads about pending signals of the process in `set`.
    pub fn offer(&mut self, set: u64) {
        let mut left = self.process.signals.pending.set() & set;
        while left != 0 {
            let signal = left.trailing_zeros().cast_signed() + 1;
            left &= left - 1;
            self.tell(Target::Process, signal);
        }
    }

    /// Replace a thread's mask for the length of one call (`ppoll`, `pselect6`, `epoll_pwait`, `sigsuspend`). Call it on the first
    /// attempt only. A handler that runs at the end of the call sees the old mask in its frame and returns to it.
    pub fn set_temporary_mask(&mut self, tid: Tid, mask: u64) {
        if let Some(thread) = self.threads.find(tid) {
            thread.signals.saved_mask = Some(thread.signals.saved_mask.unwrap_or(thread.signals.blocked));
        }
        self.set_mask(tid, mask);
    }

    /// Go back to the mask before [`Kernel::set_temporary_mask`], if one is set: for a call that ends otherwise than by EINTR.
    /// Delivery does the same when no handler has run.
    pub fn end_temporary_mask(&mut self, tid: Tid) {
        if let Some(mask) = self.threads.find(tid).and_then(|thread| thread.signals.saved_mask.take()) {
            self.set_mask(tid, mask);
        }
    }

    /// The soft limit of a resource as a count.
    #[must_use]
    pub fn limit_of(&self, resource: u32) -> usize {
        self.process.rlimits.get(resource as usize).map_or(usize::MAX, |limit| usize::try_from(limit.0).unwrap_or(usize::MAX))
    }
}

/// The signals that a thread takes now, including those it waits for in `sigtimedwait`.
fn unblocked(thread: &super::thread::Thread) -> u64 {
    let waited = match &thread.state {
        State::Blocked(Blocked { wait, .. }) => match wait.on {
            WaitFor::Signals(set) => set,
            _ => 0,
        },
        State::Runnable => 0,
    };
    !thread.signals.blocked | waited
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_gives_faults_first_and_keeps_the_order_of_equal_signals() {
        let mut pending = Pending::default();
        pending.add(SignalInfo::user(10, SI_USER, 1, 2));
        for value in 0..3 {
            pending.add(SignalInfo { fields: [value, 0, 0, 0], ..SignalInfo::user(40, SI_QUEUE, 0, 0) });
        }
        pending.add(SignalInfo::fault(11, 1, 0x1234));
        assert_eq!(pending.next(u64::MAX), Some(11));
        assert_eq!(pending.take(11).fields[0], 0x1234);
        assert_eq!(pending.next(u64::MAX), Some(10));
        assert_eq!(pending.next(!bit(10)), Some(40));
        assert_eq!(pending.take(10).fields[0], 1 | 2 << 32);
        for value in 0..3 {
            assert_eq!(pending.take(40).fields[0], value);
        }
        assert_eq!(pending.set(), 0);
        assert_eq!(pending.next(u64::MAX), None);
    }

    #[test]
    fn default_actions_are_those_of_the_man_page() {
        assert_eq!(default_action(9), DefaultAction::Terminate { core: false });
        assert_eq!(default_action(11), DefaultAction::Terminate { core: true });
        assert_eq!(default_action(17), DefaultAction::Ignore);
        assert_eq!(default_action(34), DefaultAction::Terminate { core: false });
        assert_eq!(default_action(20), DefaultAction::Ignore);
    }

    #[test]
    fn the_alternate_stack_begins_above_its_base() {
        let stack = AlternateStack { base: 0x1000, size: 0x1000, flags: 0 };
        assert!(!stack.holds(0x1000));
        assert!(stack.holds(0x1001));
        assert!(stack.holds(0x2000));
        assert!(!stack.holds(0x2001));
    }
}
