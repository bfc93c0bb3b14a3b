//! Threads: clone(2), clone3(2), fork(2), exit(2), exit_group(2), gettid(2), set_tid_address(2), set_robust_list(2), get_robust_list(2),
//! rseq(2), arch_prctl(2), membarrier(2).

use linux_raw_sys::general as sys;
use linux_raw_sys::general::{
    __NR_arch_prctl, __NR_clone, __NR_clone3, __NR_exit, __NR_exit_group, __NR_fork, __NR_get_robust_list, __NR_gettid, __NR_membarrier,
    __NR_rseq, __NR_set_robust_list, __NR_set_tid_address, __NR_vfork,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cpu::CpuState;
use crate::limits::{PAGE, THREADS_MAX};
use crate::linux::rseq;
use crate::linux::signal::ThreadSignals;
use crate::linux::table::{Arg, Entry, full, ignored, partial};
use crate::linux::thread::Thread;
use crate::linux::{Answer, Call, Errno, Outcome};

const NO_PROCESSES: &str = "threads only: a new process is refused with ENOSYS";

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    partial(__NR_clone, "clone", &[Arg::CloneFlags, Arg::Pointer, Arg::Pointer, Arg::Pointer, Arg::Hex], clone, NO_PROCESSES),
    partial(__NR_clone3, "clone3", &[Arg::CloneArgs, Arg::Uint], clone3, NO_PROCESSES),
    partial(__NR_fork, "fork", &[], fork, "refused with ENOSYS"),
    partial(__NR_vfork, "vfork", &[], fork, "refused with ENOSYS"),
    full(__NR_exit, "exit", &[Arg::Int], exit),
    full(__NR_exit_group, "exit_group", &[Arg::Int], exit_group),
    full(__NR_gettid, "gettid", &[], gettid),
    full(__NR_set_tid_address, "set_tid_address", &[Arg::Pointer], set_tid_address),
    full(__NR_set_robust_list, "set_robust_list", &[Arg::Pointer, Arg::Uint], set_robust_list),
    full(__NR_get_robust_list, "get_robust_list", &[Arg::Int, Arg::Pointer, Arg::Pointer], get_robust_list),
    full(__NR_rseq, "rseq", &[Arg::Pointer, Arg::Uint, Arg::Hex, Arg::Hex], rseq),
    partial(__NR_arch_prctl, "arch_prctl", &[Arg::ArchPrctl, Arg::Pointer], arch_prctl, "FS and GS; no shadow stacks, no CPUID faulting"),
    ignored(__NR_membarrier, "membarrier", &[Arg::Int, Arg::Uint, Arg::Int], membarrier, "one CPU is always in order"),
];

/// `struct clone_args`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// CLONE_ARGS_SIZE_VER0.
const CLONE_ARGS_BYTES_MIN: u64 = 64;
/// What a thread of the same process shares with the others.
const THREAD_FLAGS: u64 = (sys::CLONE_VM | sys::CLONE_FS | sys::CLONE_FILES | sys::CLONE_SIGHAND | sys::CLONE_THREAD) as u64;
/// New namespaces.
const NAMESPACE_FLAGS: u64 = (sys::CLONE_NEWNS
    | sys::CLONE_NEWCGROUP
    | sys::CLONE_NEWUTS
    | sys::CLONE_NEWIPC
    | sys::CLONE_NEWUSER
    | sys::CLONE_NEWPID
    | sys::CLONE_NEWNET) as u64;
/// CLONE_CLEAR_SIGHAND and CLONE_INTO_CGROUP of `clone3`.
const CLEAR_SIGHAND: u64 = 1 << 32;
const INTO_CGROUP: u64 = 1 << 33;

const fn has(flags: u64, flag: u32) -> bool {
    flags & flag as u64 != 0
}

/// `long clone(unsigned long flags, void *stack, int *parent_tid, int *child_tid, unsigned long tls)`
fn clone(call: &mut Call<'_>) -> Answer {
    let [flags, stack, parent_tid, child_tid, tls, _] = call.args;
    // The upper half of the register does not count; the lowest byte is the signal at the child's end.
    let flags = flags & 0xffff_ffff;
    let args = CloneArgs { flags: flags & !u64::from(sys::CSIGNAL), child_tid, parent_tid, stack, tls, ..CloneArgs::default() };
    start(call, &args)
}

/// `long clone3(struct clone_args *args, size_t size)`
fn clone3(call: &mut Call<'_>) -> Answer {
    let args = read_clone_args(call)?;
    let known = u64::from(u32::MAX) | CLEAR_SIGHAND | INTO_CGROUP;
    let signal_bits = u64::from(sys::CSIGNAL) & !u64::from(sys::CLONE_NEWTIME);
    if args.flags & !known != 0 || args.flags & (u64::from(sys::CLONE_DETACHED) | signal_bits) != 0 {
        return Err(Errno::INVAL);
    }
    if args.flags & CLEAR_SIGHAND != 0 && has(args.flags, sys::CLONE_SIGHAND) {
        return Err(Errno::INVAL);
    }
    if has(args.flags, sys::CLONE_THREAD | sys::CLONE_PARENT) && args.exit_signal != 0 || args.exit_signal > 64 {
        return Err(Errno::INVAL);
    }
    if (args.stack == 0) != (args.stack_size == 0) || (args.set_tid == 0) != (args.set_tid_size == 0) {
        return Err(Errno::INVAL);
    }
    if args.set_tid != 0 {
        return Err(if args.set_tid_size > 32 { Errno::INVAL } else { Errno::PERM });
    }
    let end = args.stack.checked_add(args.stack_size).filter(|&end| end <= call.memory().size()).ok_or(Errno::INVAL)?;
    start(call, &CloneArgs { stack: end, ..args })
}

/// Copy the struct in; a longer one than ours must have nothing in what we do not know.
fn read_clone_args(call: &Call<'_>) -> Result<CloneArgs, Errno> {
    let (address, size) = (call.args[0], call.args[1]);
    if size > PAGE {
        return Err(Errno::TOOBIG);
    }
    if size < CLONE_ARGS_BYTES_MIN {
        return Err(Errno::INVAL);
    }
    let bytes = call.memory().read_vec(address, usize::try_from(size).map_err(|_| Errno::TOOBIG)?)?;
    let mut args = CloneArgs::default();
    let known = bytes.len().min(size_of::<CloneArgs>());
    if bytes.iter().skip(known).any(|&byte| byte != 0) {
        return Err(Errno::TOOBIG);
    }
    for (to, from) in args.as_mut_bytes().iter_mut().zip(&bytes) {
        *to = *from;
    }
    Ok(args)
}

fn check_flags(flags: u64) -> Result<(), Errno> {
    let invalid = has(flags, sys::CLONE_THREAD) && !has(flags, sys::CLONE_SIGHAND)
        || has(flags, sys::CLONE_SIGHAND) && !has(flags, sys::CLONE_VM)
        || has(flags, sys::CLONE_NEWNS) && has(flags, sys::CLONE_FS)
        || has(flags, sys::CLONE_NEWUSER) && has(flags, sys::CLONE_FS)
        || has(flags, sys::CLONE_THREAD) && has(flags, sys::CLONE_NEWUSER | sys::CLONE_NEWPID)
        || has(flags, sys::CLONE_PIDFD) && has(flags, sys::CLONE_DETACHED | sys::CLONE_THREAD);
    if invalid {
        return Err(Errno::INVAL);
    }
    if flags & NAMESPACE_FLAGS != 0 {
        return Err(Errno::PERM);
    }
    Ok(())
}

/// Make the thread. Its registers are the caller's, with 0 as the call's result.
fn start(call: &mut Call<'_>, args: &CloneArgs) -> Answer {
    check_flags(args.flags)?;
    if args.flags & THREAD_FLAGS != THREAD_FLAGS {
        return fork(call);
    }
    let limit = THREADS_MAX.min(call.kernel.limit_of(sys::RLIMIT_NPROC));
    if call.kernel.threads.len() >= limit {
        return Err(Errno::AGAIN);
    }
    let parent = call.thread();
    let mut cpu =
        CpuState { registers: parent.cpu.registers, fs_base: parent.cpu.fs_base, gs_base: parent.cpu.gs_base, extended: Vec::new() };
    cpu.registers.rax = 0;
    if args.stack != 0 {
        cpu.registers.rsp = args.stack;
    }
    if has(args.flags, sys::CLONE_SETTLS) {
        cpu.fs_base = check_base(args.tls)?;
    }
    let thread = Thread {
        cpu,
        signals: ThreadSignals { blocked: parent.signals.blocked, ..ThreadSignals::default() },
        clear_tid: if has(args.flags, sys::CLONE_CHILD_CLEARTID) { args.child_tid } else { 0 },
        name: parent.name,
        inherit_extended_from: Some(call.tid),
        ..Thread::default()
    };
    let tid = call.kernel.threads.add(thread);
    // Addresses that cannot be written are the program's loss, as in Linux: the thread exists already.
    if has(args.flags, sys::CLONE_PARENT_SETTID) {
        let _ = call.memory().write(args.parent_tid, &tid);
    }
    if has(args.flags, sys::CLONE_CHILD_SETTID) {
        let _ = call.memory().write(args.child_tid, &tid);
    }
    Ok(Outcome::Return(u64::from(tid.cast_unsigned())))
}

/// `pid_t fork(void)`: a guest is one process.
fn fork(call: &mut Call<'_>) -> Answer {
    call.kernel.note("the program asked for another process (fork), which is not supported yet: ENOSYS".to_owned());
    Err(Errno::NOSYS)
}

/// `void exit(int status)`
fn exit(call: &mut Call<'_>) -> Answer {
    Ok(Outcome::ExitThread(call.int(0) & 0xff))
}

/// `void exit_group(int status)`
fn exit_group(call: &mut Call<'_>) -> Answer {
    Ok(Outcome::ExitProcess(call.int(0) & 0xff))
}

/// `pid_t gettid(void)`
fn gettid(call: &mut Call<'_>) -> Answer {
    Ok(Outcome::Return(u64::from(call.tid.cast_unsigned())))
}

/// `pid_t set_tid_address(int *tidptr)`
fn set_tid_address(call: &mut Call<'_>) -> Answer {
    call.thread().clear_tid = call.args[0];
    gettid(call)
}

/// Bytes of `struct robust_list_head`.
const ROBUST_HEAD_BYTES: u64 = 24;

/// `long set_robust_list(struct robust_list_head *head, size_t len)`
fn set_robust_list(call: &mut Call<'_>) -> Answer {
    if call.args[1] != ROBUST_HEAD_BYTES {
        return Err(Errno::INVAL);
    }
    call.thread().robust_list = call.args[0];
    Ok(Outcome::OK)
}

/// `long get_robust_list(int pid, struct robust_list_head **head_ptr, size_t *len_ptr)`
fn get_robust_list(call: &mut Call<'_>) -> Answer {
    let tid = if call.int(0) == 0 { call.tid } else { call.int(0) };
    let head = call.kernel.threads.peek(tid).ok_or(Errno::SRCH)?.robust_list;
    call.memory().write(call.args[2], &ROBUST_HEAD_BYTES)?;
    call.memory().write(call.args[1], &head)?;
    Ok(Outcome::OK)
}

const RSEQ_FLAG_UNREGISTER: u32 = 1;

/// `int rseq(struct rseq *rseq, uint32_t rseq_len, int flags, uint32_t sig)`
fn rseq(call: &mut Call<'_>) -> Answer {
    let (address, length, flags, signature) = (call.args[0], call.uint(1), call.uint(2), call.uint(3));
    let registered = call.thread().rseq;
    if flags & RSEQ_FLAG_UNREGISTER != 0 {
        if flags != RSEQ_FLAG_UNREGISTER || registered.0 != address || address == 0 || registered.1 != length {
            return Err(Errno::INVAL);
        }
        if registered.2 != signature {
            return Err(Errno::PERM);
        }
        rseq::unregister(call.memory(), address)?;
        call.thread().rseq = (0, 0, 0);
        return Ok(Outcome::OK);
    }
    if flags != 0 {
        return Err(Errno::INVAL);
    }
    if registered.0 != 0 {
        let same = registered.0 == address && registered.1 == length;
        return Err(if !same {
            Errno::INVAL
        } else if registered.2 != signature {
            Errno::PERM
        } else {
            Errno::BUSY
        });
    }
    if length < rseq::AREA_BYTES || address % rseq::AREA_ALIGNMENT != 0 {
        return Err(Errno::INVAL);
    }
    if address.checked_add(u64::from(length)).is_none_or(|end| end > call.memory().size()) {
        return Err(Errno::FAULT);
    }
    rseq::register(call.memory(), address)?;
    call.thread().rseq = (address, length, signature);
    Ok(Outcome::OK)
}

/// One past the last address a segment base may have (TASK_SIZE_MAX).
const BASE_END: u64 = (1 << 47) - PAGE;

fn check_base(address: u64) -> Result<u64, Errno> {
    if address < BASE_END { Ok(address) } else { Err(Errno::PERM) }
}

const ARCH_SET_GS: u32 = 0x1001;
const ARCH_SET_FS: u32 = 0x1002;
const ARCH_GET_FS: u32 = 0x1003;
const ARCH_GET_GS: u32 = 0x1004;
const ARCH_GET_CPUID: u32 = 0x1011;
const ARCH_SET_CPUID: u32 = 0x1012;

/// `int arch_prctl(int option, unsigned long arg2)`
fn arch_prctl(call: &mut Call<'_>) -> Answer {
    let argument = call.args[1];
    match call.uint(0) {
        ARCH_SET_FS => call.thread().cpu.fs_base = check_base(argument)?,
        ARCH_SET_GS => call.thread().cpu.gs_base = check_base(argument)?,
        ARCH_GET_FS => {
            let base = call.thread().cpu.fs_base;
            call.memory().write(argument, &base)?;
        }
        ARCH_GET_GS => {
            let base = call.thread().cpu.gs_base;
            call.memory().write(argument, &base)?;
        }
        ARCH_GET_CPUID => return Ok(Outcome::Return(1)),
        ARCH_SET_CPUID => return Err(Errno::NODEV),
        // Shadow stacks (CET), extended-state permissions and address tagging: a kernel without them.
        _ => return Err(Errno::INVAL),
    }
    Ok(Outcome::OK)
}

/// Commands of `membarrier(2)` that a kernel of our release has.
const MEMBARRIER_COMMANDS: u32 = 0x1ff;
const MEMBARRIER_GLOBAL: u32 = 1;
const MEMBARRIER_GLOBAL_EXPEDITED: u32 = 1 << 1;
/// The private commands, each of which needs the registration that is the next bit.
const MEMBARRIER_PRIVATE: u32 = 1 << 3 | 1 << 5 | MEMBARRIER_PRIVATE_RSEQ;
const MEMBARRIER_PRIVATE_RSEQ: u32 = 1 << 7;
const MEMBARRIER_FLAG_CPU: u32 = 1;

/// `int membarrier(int cmd, unsigned int flags, int cpu_id)`: with one CPU, every access is in order already.
fn membarrier(call: &mut Call<'_>) -> Answer {
    let (command, flags) = (call.uint(0), call.uint(1));
    let allowed = if command == MEMBARRIER_PRIVATE_RSEQ { MEMBARRIER_FLAG_CPU } else { 0 };
    if flags & !allowed != 0 {
        return Err(Errno::INVAL);
    }
    let registered = &mut call.kernel.process.prctl.membarrier;
    match command {
        0 => Ok(Outcome::Return(u64::from(MEMBARRIER_COMMANDS))),
        MEMBARRIER_GLOBAL | MEMBARRIER_GLOBAL_EXPEDITED => Ok(Outcome::OK),
        _ if !command.is_power_of_two() || command & MEMBARRIER_COMMANDS == 0 => Err(Errno::INVAL),
        _ if command & MEMBARRIER_PRIVATE == 0 => {
            *registered |= command;
            Ok(Outcome::OK)
        }
        // A thread inside a restartable sequence is aborted when it runs again, since the caller ran in between.
        _ if *registered & (command << 1) != 0 => Ok(Outcome::OK),
        _ => Err(Errno::PERM),
    }
}
