//! Signals: rt_sigaction(2), rt_sigprocmask(2), rt_sigpending(2), rt_sigsuspend(2), rt_sigtimedwait(2), rt_sigqueueinfo(2), rt_sigreturn(2),
//! sigaltstack(2), kill(2), tkill(2), tgkill(2), pause(2).

use linux_raw_sys::general as sys;
use linux_raw_sys::general::{
    __NR_kill, __NR_pause, __NR_rt_sigaction, __NR_rt_sigpending, __NR_rt_sigprocmask, __NR_rt_sigqueueinfo, __NR_rt_sigreturn,
    __NR_rt_sigsuspend, __NR_rt_sigtimedwait, __NR_rt_tgsigqueueinfo, __NR_sigaltstack, __NR_tgkill, __NR_tkill,
};

use crate::linux::abi::Timespec;
use crate::linux::signal::{
    Action, SI_KERNEL, SI_TIMER, SI_TKILL, SI_USER, SIGNAL_LAST, Signal, SignalInfo, Target, UNBLOCKABLE, bit, flags,
};
use crate::linux::signal_frame::StackT;
use crate::linux::table::{Arg, Entry, full, partial};
use crate::linux::thread::Tid;
use crate::linux::{Answer, Attempt, Call, Errno, Outcome, Restart, Wait, WaitFor};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(__NR_rt_sigaction, "rt_sigaction", &[Arg::Signal, Arg::SignalAction, Arg::SignalAction, Arg::Uint], rt_sigaction),
    full(__NR_rt_sigprocmask, "rt_sigprocmask", &[Arg::MaskHow, Arg::SignalSet, Arg::SignalSet, Arg::Uint], rt_sigprocmask),
    full(__NR_rt_sigpending, "rt_sigpending", &[Arg::SignalSet, Arg::Uint], rt_sigpending),
    full(__NR_rt_sigsuspend, "rt_sigsuspend", &[Arg::SignalSet, Arg::Uint], rt_sigsuspend),
    full(__NR_rt_sigtimedwait, "rt_sigtimedwait", &[Arg::SignalSet, Arg::Pointer, Arg::Timespec, Arg::Uint], rt_sigtimedwait),
    full(__NR_rt_sigqueueinfo, "rt_sigqueueinfo", &[Arg::Int, Arg::Signal, Arg::Pointer], rt_sigqueueinfo),
    full(__NR_rt_tgsigqueueinfo, "rt_tgsigqueueinfo", &[Arg::Int, Arg::Int, Arg::Signal, Arg::Pointer], rt_tgsigqueueinfo),
    full(__NR_rt_sigreturn, "rt_sigreturn", &[], rt_sigreturn),
    full(__NR_sigaltstack, "sigaltstack", &[Arg::Pointer, Arg::Pointer], sigaltstack),
    partial(__NR_kill, "kill", &[Arg::Int, Arg::Signal], kill, "the guest's own process is the only one; it cannot be stopped"),
    full(__NR_tkill, "tkill", &[Arg::Int, Arg::Signal], tkill),
    full(__NR_tgkill, "tgkill", &[Arg::Int, Arg::Int, Arg::Signal], tgkill),
    full(__NR_pause, "pause", &[], pause),
];

/// `sizeof(sigset_t)` of the kernel.
const SET_BYTES: u64 = 8;

fn check_set_size(size: u64) -> Result<(), Errno> {
    if size == SET_BYTES { Ok(()) } else { Err(Errno::INVAL) }
}

/// A signal number to send; 0 only asks whether one could.
fn check_signal(signal: i32) -> Result<Signal, Errno> {
    if (0..=SIGNAL_LAST).contains(&signal) { Ok(signal) } else { Err(Errno::INVAL) }
}

/// `int rt_sigaction(int sig, const struct sigaction *act, struct sigaction *oact, size_t sigsetsize)`
fn rt_sigaction(call: &mut Call<'_>) -> Answer {
    let (signal, new, old) = (call.int(0), call.args[1], call.args[2]);
    check_set_size(call.args[3])?;
    let action = if new == 0 { None } else { Some(call.memory().read::<Action>(new)?) };
    if !(1..=SIGNAL_LAST).contains(&signal) || action.is_some() && bit(signal) & UNBLOCKABLE != 0 {
        return Err(Errno::INVAL);
    }
    let previous = call.kernel.process.signals.action(signal);
    if let Some(mut action) = action {
        // Bits that are unknown are cleared, so that a program can find out what is supported.
        action.flags &= flags::KNOWN;
        action.mask &= !UNBLOCKABLE;
        call.kernel.process.signals.set_action(signal, action);
        if call.kernel.process.signals.ignores(signal) {
            call.kernel.flush_signals(bit(signal));
        }
    }
    if old != 0 {
        call.memory().write(old, &previous)?;
    }
    Ok(Outcome::OK)
}

/// `int rt_sigprocmask(int how, const sigset_t *set, sigset_t *oldset, size_t sigsetsize)`
fn rt_sigprocmask(call: &mut Call<'_>) -> Answer {
    let (set, old) = (call.args[1], call.args[2]);
    check_set_size(call.args[3])?;
    let blocked = call.thread().signals.blocked;
    if set != 0 {
        let set = call.memory().read::<u64>(set)? & !UNBLOCKABLE;
        let mask = match call.uint(0) {
            sys::SIG_BLOCK => blocked | set,
            sys::SIG_UNBLOCK => blocked & !set,
            sys::SIG_SETMASK => set,
            _ => return Err(Errno::INVAL),
        };
        call.kernel.set_mask(call.tid, mask);
    }
    if old != 0 {
        call.memory().write(old, &blocked)?;
    }
    Ok(Outcome::OK)
}

/// `int rt_sigpending(sigset_t *set, size_t sigsetsize)`: signals that are blocked and pending.
fn rt_sigpending(call: &mut Call<'_>) -> Answer {
    let size = usize::try_from(call.args[1]).ok().filter(|&size| size <= 8).ok_or(Errno::INVAL)?;
    let set = call.kernel.pending_signals(call.tid) & call.thread().signals.blocked;
    let bytes = set.to_le_bytes();
    call.memory().write_bytes(call.args[0], bytes.get(..size).unwrap_or(&bytes))?;
    Ok(Outcome::OK)
}

/// `int rt_sigsuspend(const sigset_t *mask, size_t sigsetsize)`
fn rt_sigsuspend(call: &mut Call<'_>) -> Answer {
    if call.attempt == Attempt::First {
        check_set_size(call.args[1])?;
        let mask = call.memory().read::<u64>(call.args[0])?;
        call.kernel.set_temporary_mask(call.tid, mask);
    }
    until_signal()
}

/// `int pause(void)`
fn pause(_call: &mut Call<'_>) -> Answer {
    until_signal()
}

const fn until_signal() -> Answer {
    Ok(Outcome::Block(Wait { on: WaitFor::Nothing, deadline: None, restart: Restart::Never }))
}

/// `int rt_sigtimedwait(const sigset_t *set, siginfo_t *info, const struct timespec *timeout, size_t sigsetsize)`
fn rt_sigtimedwait(call: &mut Call<'_>) -> Answer {
    let (info, timeout) = (call.args[1], call.args[2]);
    check_set_size(call.args[3])?;
    let wanted = call.memory().read::<u64>(call.args[0])? & !UNBLOCKABLE;
    let timeout =
        if timeout == 0 || call.attempt != Attempt::First { None } else { Some(call.memory().read::<Timespec>(timeout)?.to_ns()?) };
    if let Some(taken) = call.kernel.take_signal(call.tid, wanted) {
        if info != 0 {
            call.memory().write_bytes(info, &taken.to_bytes())?;
        }
        return Ok(Outcome::from(u64::from(taken.signal.cast_unsigned())));
    }
    if call.timed_out() || timeout == Some(0) {
        return Err(Errno::AGAIN);
    }
    Ok(Outcome::Block(Wait { on: WaitFor::Signals(wanted), deadline: call.deadline(timeout), restart: Restart::Never }))
}

/// `int rt_sigqueueinfo(pid_t tgid, int sig, siginfo_t *info)`
fn rt_sigqueueinfo(call: &mut Call<'_>) -> Answer {
    let (pid, signal) = (call.int(0), call.int(1));
    let info = read_info(call, signal, call.args[2])?;
    check_pid(call, pid)?;
    send(call, Target::Process, info)
}

/// `int rt_tgsigqueueinfo(pid_t tgid, pid_t tid, int sig, siginfo_t *info)`
fn rt_tgsigqueueinfo(call: &mut Call<'_>) -> Answer {
    let (pid, tid, signal) = (call.int(0), call.int(1), call.int(2));
    let info = read_info(call, signal, call.args[3])?;
    if pid <= 0 || tid <= 0 {
        return Err(Errno::INVAL);
    }
    check_pid(call, pid)?;
    check_thread(call, tid)?;
    send(call, Target::Thread(tid), info)
}

/// A process id that names this process.
fn check_pid(call: &Call<'_>, pid: Tid) -> Result<(), Errno> {
    if call.kernel.process.pid == pid || call.kernel.threads.peek(pid).is_some() { Ok(()) } else { Err(Errno::SRCH) }
}

fn check_thread(call: &Call<'_>, tid: Tid) -> Result<(), Errno> {
    call.kernel.threads.peek(tid).map(|_| ()).ok_or(Errno::SRCH)
}

/// A siginfo that a program made up; it may say what it likes to itself, except that a signal came from a timer of ours.
fn read_info(call: &Call<'_>, signal: i32, address: u64) -> Result<SignalInfo, Errno> {
    let mut info = call.memory().read::<SignalInfo>(address)?;
    (info.signal, info.padding) = (signal, 0);
    if !known_layout(signal, info.code) {
        let rest = call.memory().read_vec(address.checked_add(48).ok_or(Errno::FAULT)?, 80)?;
        if rest.iter().any(|&byte| byte != 0) {
            return Err(Errno::TOOBIG);
        }
    }
    if info.code == SI_TIMER {
        info.fields[2] = 0;
    }
    Ok(info)
}

/// Whether the kernel knows what is in a siginfo with this code, and so may drop what lies behind it.
fn known_layout(signal: Signal, code: i32) -> bool {
    const SI_ASYNCNL: i32 = -60;
    const SI_DETHREAD: i32 = -7;
    const POLL_CODES: i32 = 6;
    let codes = match signal.cast_unsigned() {
        sys::SIGILL => 11,
        sys::SIGFPE => 15,
        sys::SIGSEGV => 10,
        sys::SIGBUS => 5,
        sys::SIGTRAP => 6,
        sys::SIGCHLD => 6,
        sys::SIGIO => 6,
        sys::SIGSYS => 2,
        _ => POLL_CODES,
    };
    code == SI_KERNEL || code > SI_USER && code <= codes || (SI_DETHREAD..=SI_USER).contains(&code) || code == SI_ASYNCNL
}

fn send(call: &mut Call<'_>, target: Target, info: SignalInfo) -> Answer {
    if check_signal(info.signal)? != 0 {
        call.kernel.queue_signal(target, info)?;
    }
    Ok(Outcome::OK)
}

/// `int rt_sigreturn(unsigned long __unused)`
fn rt_sigreturn(call: &mut Call<'_>) -> Answer {
    call.kernel.return_from_signal(call.space, call.tid);
    Ok(Outcome::Replaced)
}

/// `int sigaltstack(const stack_t *ss, stack_t *old_ss)`
fn sigaltstack(call: &mut Call<'_>) -> Answer {
    let (new, old) = (call.args[0], call.args[1]);
    let wanted = if new == 0 { None } else { Some(call.memory().read::<StackT>(new)?) };
    let thread = call.thread();
    let stack = thread.signals.stack;
    let flags = stack.status(thread.cpu.registers.rsp) | stack.flags & sys::SS_AUTODISARM;
    if let Some(wanted) = wanted {
        call.kernel.set_alternate_stack(call.tid, &wanted)?;
    }
    if old != 0 {
        call.memory().write(old, &StackT { base: stack.base, flags, padding: 0, size: stack.size })?;
    }
    Ok(Outcome::OK)
}

/// `int kill(pid_t pid, int sig)`: the process itself, its group, or everybody, which is nobody else.
fn kill(call: &mut Call<'_>) -> Answer {
    let (pid, signal) = (call.int(0), call.int(1));
    let process = &call.kernel.process;
    let to_itself =
        pid == process.pid || pid == 0 || pid < -1 && pid.checked_neg() == Some(process.pgid) || call.kernel.threads.peek(pid).is_some();
    if !to_itself {
        check_signal(signal)?;
        // -1 is everybody but the caller; the parent and init belong to nobody the guest may signal.
        let foreign = pid == 1 || pid == process.identity.ppid;
        return Err(if foreign { Errno::PERM } else { Errno::SRCH });
    }
    let info = SignalInfo::user(signal, SI_USER, process.pid, process.identity.uid);
    send(call, Target::Process, info)
}

/// `int tkill(pid_t tid, int sig)`
fn tkill(call: &mut Call<'_>) -> Answer {
    let (tid, signal) = (call.int(0), call.int(1));
    if tid <= 0 {
        return Err(Errno::INVAL);
    }
    send_to_thread(call, tid, signal)
}

/// `int tgkill(pid_t tgid, pid_t tid, int sig)`
fn tgkill(call: &mut Call<'_>) -> Answer {
    let (pid, tid, signal) = (call.int(0), call.int(1), call.int(2));
    if pid <= 0 || tid <= 0 {
        return Err(Errno::INVAL);
    }
    if pid != call.kernel.process.pid {
        return Err(Errno::SRCH);
    }
    send_to_thread(call, tid, signal)
}

fn send_to_thread(call: &mut Call<'_>, tid: Tid, signal: i32) -> Answer {
    check_thread(call, tid)?;
    let info = SignalInfo::user(signal, SI_TKILL, call.kernel.process.pid, call.kernel.process.identity.uid);
    send(call, Target::Thread(tid), info)
}
