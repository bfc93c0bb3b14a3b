//! Process identity and resources: getpid(2), getuid(2) and relatives, setuid(2) and relatives, setpgid(2), setsid(2), uname(2), sysinfo(2),
//! getrusage(2), times(2), prlimit(2), getpriority(2), wait4(2), capget(2), personality(2).

use linux_raw_sys::general as sys;
use linux_raw_sys::general::{
    __NR_capget, __NR_capset, __NR_getegid, __NR_geteuid, __NR_getgid, __NR_getgroups, __NR_getpgid, __NR_getpgrp, __NR_getpid,
    __NR_getppid, __NR_getpriority, __NR_getresgid, __NR_getresuid, __NR_getrlimit, __NR_getrusage, __NR_getsid, __NR_getuid,
    __NR_ioprio_get, __NR_ioprio_set, __NR_personality, __NR_prlimit64, __NR_setfsgid, __NR_setfsuid, __NR_setgid, __NR_setgroups,
    __NR_setpgid, __NR_setpriority, __NR_setregid, __NR_setresgid, __NR_setresuid, __NR_setreuid, __NR_setrlimit, __NR_setsid, __NR_setuid,
    __NR_times, __NR_wait4, __NR_waitid,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::time::timeval;
use crate::limits::{FDS_MAX, SIGNALS_MAX, THREADS_MAX};
use crate::linux::abi::Timeval;
use crate::linux::table::{Arg, Entry, full, partial};
use crate::linux::{Answer, Call, Errno, Outcome};

const OWN_IDS: &str = "only to the ids the process has; else EPERM, as for a user without privileges";
const NO_CHILDREN: &str = "there are no children: ECHILD";

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(__NR_getpid, "getpid", &[], getpid),
    full(__NR_getppid, "getppid", &[], getppid),
    full(__NR_getuid, "getuid", &[], getuid),
    full(__NR_geteuid, "geteuid", &[], getuid),
    full(__NR_getgid, "getgid", &[], getgid),
    full(__NR_getegid, "getegid", &[], getgid),
    full(__NR_getresuid, "getresuid", &[Arg::Pointer, Arg::Pointer, Arg::Pointer], getresuid),
    full(__NR_getresgid, "getresgid", &[Arg::Pointer, Arg::Pointer, Arg::Pointer], getresgid),
    full(__NR_getgroups, "getgroups", &[Arg::Int, Arg::Pointer], getgroups),
    partial(__NR_setuid, "setuid", &[Arg::Int], setuid, OWN_IDS),
    partial(__NR_setgid, "setgid", &[Arg::Int], setgid, OWN_IDS),
    partial(__NR_setreuid, "setreuid", &[Arg::Int, Arg::Int], setreuid, OWN_IDS),
    partial(__NR_setregid, "setregid", &[Arg::Int, Arg::Int], setregid, OWN_IDS),
    partial(__NR_setresuid, "setresuid", &[Arg::Int, Arg::Int, Arg::Int], setresuid, OWN_IDS),
    partial(__NR_setresgid, "setresgid", &[Arg::Int, Arg::Int, Arg::Int], setresgid, OWN_IDS),
    partial(__NR_setfsuid, "setfsuid", &[Arg::Int], getuid, "never changes it"),
    partial(__NR_setfsgid, "setfsgid", &[Arg::Int], getgid, "never changes it"),
    partial(__NR_setgroups, "setgroups", &[Arg::Int, Arg::Pointer], refuse, "EPERM, as for a user without privileges"),
    full(__NR_getpgid, "getpgid", &[Arg::Int], getpgid),
    full(__NR_getpgrp, "getpgrp", &[], getpgrp),
    full(__NR_getsid, "getsid", &[Arg::Int], getsid),
    full(__NR_setpgid, "setpgid", &[Arg::Int, Arg::Int], setpgid),
    full(__NR_setsid, "setsid", &[], setsid),
    full(__NR_getrusage, "getrusage", &[Arg::Int, Arg::Pointer], getrusage),
    full(__NR_times, "times", &[Arg::Pointer], times),
    full(__NR_getrlimit, "getrlimit", &[Arg::Resource, Arg::Rlimit], getrlimit),
    full(__NR_setrlimit, "setrlimit", &[Arg::Resource, Arg::Rlimit], setrlimit),
    full(__NR_prlimit64, "prlimit64", &[Arg::Int, Arg::Resource, Arg::Rlimit, Arg::Rlimit], prlimit64),
    full(__NR_getpriority, "getpriority", &[Arg::Int, Arg::Int], getpriority),
    partial(
        __NR_setpriority,
        "setpriority",
        &[Arg::Int, Arg::Int, Arg::Int],
        setpriority,
        "remembered; it changes nothing, since one program has the VM",
    ),
    full(__NR_ioprio_get, "ioprio_get", &[Arg::Int, Arg::Int], ioprio_get),
    partial(__NR_ioprio_set, "ioprio_set", &[Arg::Int, Arg::Int, Arg::Hex], ioprio_set, "remembered without effect"),
    partial(__NR_wait4, "wait4", &[Arg::Int, Arg::Pointer, Arg::Hex, Arg::Pointer], wait4, NO_CHILDREN),
    partial(__NR_waitid, "waitid", &[Arg::Int, Arg::Int, Arg::Pointer, Arg::Hex, Arg::Pointer], waitid, NO_CHILDREN),
    full(__NR_capget, "capget", &[Arg::Pointer, Arg::Pointer], capget),
    partial(__NR_capset, "capset", &[Arg::Pointer, Arg::Pointer], capset, "there are none to give up; asking for any is EPERM"),
    partial(__NR_personality, "personality", &[Arg::Hex], personality, "PER_LINUX; ADDR_NO_RANDOMIZE is remembered"),
];

const fn number(value: i32) -> Answer {
    Ok(Outcome::Return(value.cast_unsigned() as u64))
}

fn refuse(_call: &mut Call<'_>) -> Answer {
    Err(Errno::PERM)
}

/// `pid_t getpid(void)`
fn getpid(call: &mut Call<'_>) -> Answer {
    number(call.kernel.process.pid)
}

/// `pid_t getppid(void)`
fn getppid(call: &mut Call<'_>) -> Answer {
    number(call.kernel.process.identity.ppid)
}

/// `uid_t getuid(void)`, `uid_t geteuid(void)`, `int setfsuid(uid_t fsuid)`: all user ids of the process are the same.
fn getuid(call: &mut Call<'_>) -> Answer {
    Ok(Outcome::Return(u64::from(call.kernel.process.identity.uid)))
}

/// `gid_t getgid(void)`, `gid_t getegid(void)`, `int setfsgid(gid_t fsgid)`
fn getgid(call: &mut Call<'_>) -> Answer {
    Ok(Outcome::Return(u64::from(call.kernel.process.identity.gid)))
}

fn write_three(call: &Call<'_>, id: u32) -> Answer {
    for address in [call.args[0], call.args[1], call.args[2]] {
        call.memory().write(address, &id)?;
    }
    Ok(Outcome::OK)
}

/// `int getresuid(uid_t *ruid, uid_t *euid, uid_t *suid)`
fn getresuid(call: &mut Call<'_>) -> Answer {
    write_three(call, call.kernel.process.identity.uid)
}

/// `int getresgid(gid_t *rgid, gid_t *egid, gid_t *sgid)`
fn getresgid(call: &mut Call<'_>) -> Answer {
    write_three(call, call.kernel.process.identity.gid)
}

/// `int getgroups(int size, gid_t list[])`: the process's own group only.
fn getgroups(call: &mut Call<'_>) -> Answer {
    match call.int(0) {
        ..0 => Err(Errno::INVAL),
        0 => number(1),
        _ => {
            call.memory().write(call.args[1], &call.kernel.process.identity.gid)?;
            number(1)
        }
    }
}

/// Whether each of the first `count` arguments is the id that the process has, or -1 where that means "as it is".
fn set_ids(call: &Call<'_>, count: usize, own: u32, may_keep: bool) -> Answer {
    let allowed = (0..count).all(|index| call.uint(index) == own || may_keep && call.uint(index) == u32::MAX);
    if !may_keep && call.uint(0) == u32::MAX {
        return Err(Errno::INVAL);
    }
    if allowed { Ok(Outcome::OK) } else { Err(Errno::PERM) }
}

/// `int setuid(uid_t uid)`
fn setuid(call: &mut Call<'_>) -> Answer {
    set_ids(call, 1, call.kernel.process.identity.uid, false)
}

/// `int setgid(gid_t gid)`
fn setgid(call: &mut Call<'_>) -> Answer {
    set_ids(call, 1, call.kernel.process.identity.gid, false)
}

/// `int setreuid(uid_t ruid, uid_t euid)`
fn setreuid(call: &mut Call<'_>) -> Answer {
    set_ids(call, 2, call.kernel.process.identity.uid, true)
}

/// `int setregid(gid_t rgid, gid_t egid)`
fn setregid(call: &mut Call<'_>) -> Answer {
    set_ids(call, 2, call.kernel.process.identity.gid, true)
}

/// `int setresuid(uid_t ruid, uid_t euid, uid_t suid)`
fn setresuid(call: &mut Call<'_>) -> Answer {
    set_ids(call, 3, call.kernel.process.identity.uid, true)
}

/// `int setresgid(gid_t rgid, gid_t egid, gid_t sgid)`
fn setresgid(call: &mut Call<'_>) -> Answer {
    set_ids(call, 3, call.kernel.process.identity.gid, true)
}

/// Whether an id names the process: 0 is the caller.
fn is_own(call: &Call<'_>, pid: i32) -> bool {
    pid == 0 || pid == call.kernel.process.pid || call.kernel.threads.peek(pid).is_some()
}

fn check_own(call: &Call<'_>, pid: i32) -> Result<(), Errno> {
    if is_own(call, pid) { Ok(()) } else { Err(Errno::SRCH) }
}

/// `pid_t getpgid(pid_t pid)`
fn getpgid(call: &mut Call<'_>) -> Answer {
    check_own(call, call.int(0))?;
    number(call.kernel.process.pgid)
}

/// `pid_t getpgrp(void)`
fn getpgrp(call: &mut Call<'_>) -> Answer {
    number(call.kernel.process.pgid)
}

/// `pid_t getsid(pid_t pid)`
fn getsid(call: &mut Call<'_>) -> Answer {
    check_own(call, call.int(0))?;
    number(call.kernel.process.sid())
}

/// `int setpgid(pid_t pid, pid_t pgid)`
fn setpgid(call: &mut Call<'_>) -> Answer {
    let (pid, group) = (call.int(0), call.int(1));
    let process = &mut call.kernel.process;
    let group = if group == 0 { process.pid } else { group };
    if group < 0 {
        return Err(Errno::INVAL);
    }
    if pid != 0 && pid != process.pid {
        return Err(Errno::SRCH);
    }
    // A session leader stays where it is, and there is no other group in the session to join.
    if process.leads_session || group != process.pid && group != process.pgid {
        return Err(Errno::PERM);
    }
    process.pgid = group;
    Ok(Outcome::OK)
}

/// `pid_t setsid(void)`
fn setsid(call: &mut Call<'_>) -> Answer {
    let process = &mut call.kernel.process;
    if process.pgid == process.pid {
        return Err(Errno::PERM);
    }
    process.pgid = process.pid;
    process.leads_session = true;
    number(process.pid)
}

/// `struct rusage`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Rusage {
    user: Timeval,
    system: Timeval,
    max_resident_kib: u64,
    rest: [u64; 13],
}

const _: () = assert!(size_of::<Rusage>() == 144);
const RUSAGE_CHILDREN: i32 = -1;
const RUSAGE_SELF: i32 = 0;
const RUSAGE_THREAD: i32 = 1;

/// `int getrusage(int who, struct rusage *usage)`
fn getrusage(call: &mut Call<'_>) -> Answer {
    let user = match call.int(0) {
        RUSAGE_SELF => call.kernel.threads.cpu_time_ns(),
        RUSAGE_THREAD => call.thread().cpu_time_ns,
        RUSAGE_CHILDREN => 0,
        _ => return Err(Errno::INVAL),
    };
    let mapped: u64 = call.space.vmas().iter().filter(|vma| vma.is_private() && !vma.protection.is_empty()).map(|vma| vma.length()).sum();
    let max_resident_kib = if call.int(0) == RUSAGE_CHILDREN { 0 } else { mapped >> 10 };
    let usage = Rusage { user: timeval(user), max_resident_kib, ..Rusage::default() };
    call.memory().write(call.args[1], &usage)?;
    Ok(Outcome::OK)
}

/// Nanoseconds of a clock tick: USER_HZ is 100.
const CLOCK_TICK_NS: u64 = 10_000_000;

/// `clock_t times(struct tms *buf)`
fn times(call: &mut Call<'_>) -> Answer {
    if call.args[0] != 0 {
        let user = call.kernel.threads.cpu_time_ns() / CLOCK_TICK_NS;
        call.memory().write(call.args[0], &[user, 0, 0, 0])?;
    }
    Ok(Outcome::Return(call.kernel.clock.monotonic() / CLOCK_TICK_NS))
}

/// Soft and hard limit, `struct rlimit` and `struct rlimit64`.
type Rlimit = [u64; 2];

fn limit_index(resource: u32) -> Result<usize, Errno> {
    usize::try_from(resource).ok().filter(|&index| index < sys::RLIM_NLIMITS as usize).ok_or(Errno::INVAL)
}

fn current_limit(call: &Call<'_>, index: usize) -> Result<Rlimit, Errno> {
    call.kernel.process.rlimits.get(index).map(|&(soft, hard)| [soft, hard]).ok_or(Errno::INVAL)
}

fn change_limit(call: &mut Call<'_>, index: usize, [soft, hard]: Rlimit) -> Result<(), Errno> {
    let [_, allowed] = current_limit(call, index)?;
    if soft > hard {
        return Err(Errno::INVAL);
    }
    if hard > allowed {
        return Err(Errno::PERM);
    }
    let most = match u32::try_from(index) {
        Ok(sys::RLIMIT_NOFILE) => FDS_MAX,
        Ok(sys::RLIMIT_NPROC) => THREADS_MAX,
        Ok(sys::RLIMIT_SIGPENDING) => SIGNALS_MAX,
        _ => usize::MAX,
    } as u64;
    if let Some(limit) = call.kernel.process.rlimits.get_mut(index) {
        *limit = (soft.min(most), hard.min(most));
    }
    Ok(())
}

/// `int getrlimit(int resource, struct rlimit *rlim)`
fn getrlimit(call: &mut Call<'_>) -> Answer {
    let limit = current_limit(call, limit_index(call.uint(0))?)?;
    call.memory().write(call.args[1], &limit)?;
    Ok(Outcome::OK)
}

/// `int setrlimit(int resource, const struct rlimit *rlim)`
fn setrlimit(call: &mut Call<'_>) -> Answer {
    let limit = call.memory().read::<Rlimit>(call.args[1])?;
    change_limit(call, limit_index(call.uint(0))?, limit)?;
    Ok(Outcome::OK)
}

/// `int prlimit(pid_t pid, int resource, const struct rlimit *new_limit, struct rlimit *old_limit)`
fn prlimit64(call: &mut Call<'_>) -> Answer {
    let (pid, new, old) = (call.int(0), call.args[2], call.args[3]);
    let index = limit_index(call.uint(1))?;
    let wanted = if new == 0 { None } else { Some(call.memory().read::<Rlimit>(new)?) };
    check_own(call, pid)?;
    let before = current_limit(call, index)?;
    if let Some(wanted) = wanted {
        change_limit(call, index, wanted)?;
    }
    if old != 0 {
        call.memory().write(old, &before)?;
    }
    Ok(Outcome::OK)
}

/// Whom `getpriority` and `ioprio_get` mean: the process, its group or its user.
fn check_which(call: &Call<'_>, first: i32) -> Result<(), Errno> {
    let who = call.int(1);
    let found = match call.int(0).checked_sub(first) {
        Some(0) => is_own(call, who),
        Some(1) => who == 0 || who == call.kernel.process.pgid,
        Some(2) => who == 0 || who.cast_unsigned() == call.kernel.process.identity.uid,
        _ => return Err(Errno::INVAL),
    };
    if found { Ok(()) } else { Err(Errno::SRCH) }
}

/// `int getpriority(int which, id_t who)`: 20 minus the nice value, so that no answer looks like an error.
fn getpriority(call: &mut Call<'_>) -> Answer {
    check_which(call, 0)?;
    number(20 - call.kernel.process.nice)
}

/// `int setpriority(int which, id_t who, int prio)`
fn setpriority(call: &mut Call<'_>) -> Answer {
    check_which(call, 0)?;
    let nice = call.int(2).clamp(-20, 19);
    if nice < call.kernel.process.nice {
        return Err(Errno::ACCESS);
    }
    call.kernel.process.nice = nice;
    Ok(Outcome::OK)
}

/// `int ioprio_get(int which, int who)`
fn ioprio_get(call: &mut Call<'_>) -> Answer {
    check_which(call, 1)?;
    Ok(Outcome::Return(u64::from(call.kernel.process.io_priority)))
}

/// `int ioprio_set(int which, int who, int ioprio)`
fn ioprio_set(call: &mut Call<'_>) -> Answer {
    const CLASS_REAL_TIME: u32 = 1;
    let (class, level) = (call.uint(2) >> 13, call.uint(2) & 0x1fff);
    if class == CLASS_REAL_TIME {
        return Err(Errno::PERM);
    }
    if class > 3 || class == 2 && level >= 8 || class == 0 && level != 0 {
        return Err(Errno::INVAL);
    }
    check_which(call, 1)?;
    call.kernel.process.io_priority = call.uint(2);
    Ok(Outcome::OK)
}

/// WNOHANG, WUNTRACED, WCONTINUED, __WNOTHREAD, __WALL, __WCLONE.
const WAIT4_OPTIONS: u32 = 0xe000_000b;

/// `pid_t wait4(pid_t pid, int *wstatus, int options, struct rusage *rusage)`
fn wait4(call: &mut Call<'_>) -> Answer {
    if call.uint(2) & !WAIT4_OPTIONS != 0 {
        return Err(Errno::INVAL);
    }
    // -INT_MIN is no process group.
    Err(if call.int(0) == i32::MIN { Errno::SRCH } else { Errno::CHILD })
}

/// `int waitid(idtype_t idtype, id_t id, siginfo_t *infop, int options, struct rusage *rusage)`
fn waitid(call: &mut Call<'_>) -> Answer {
    const WHICH: u32 = sys::WEXITED | sys::WSTOPPED | sys::WCONTINUED;
    let options = call.uint(3);
    let known = WHICH | WAIT4_OPTIONS | sys::WNOWAIT;
    if options & !known != 0 || options & WHICH == 0 || call.uint(0) > 3 {
        return Err(Errno::INVAL);
    }
    match call.uint(0) {
        1 if call.int(1) <= 0 => Err(Errno::INVAL),
        2 if call.int(1) < 0 => Err(Errno::INVAL),
        3 => Err(Errno::BADF),
        _ => Err(Errno::CHILD),
    }
}

const CAPABILITY_VERSION_1: u32 = 0x1998_0330;
const CAPABILITY_VERSION_2: u32 = 0x2007_1026;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// How many 32-bit triples the header's version means; an unknown version is replaced by ours and refused.
fn capability_words(call: &Call<'_>, header: u64) -> Result<usize, Errno> {
    match call.memory().read::<u32>(header)? {
        CAPABILITY_VERSION_1 => Ok(1),
        CAPABILITY_VERSION_2 | CAPABILITY_VERSION_3 => Ok(2),
        _ => {
            call.memory().write(header, &CAPABILITY_VERSION_3)?;
            Err(Errno::INVAL)
        }
    }
}

fn capability_target(call: &Call<'_>, header: u64) -> Result<i32, Errno> {
    call.memory().read::<i32>(header.checked_add(4).ok_or(Errno::FAULT)?)
}

/// `int capget(cap_user_header_t hdrp, cap_user_data_t datap)`: a user without any.
fn capget(call: &mut Call<'_>) -> Answer {
    let (header, data) = (call.args[0], call.args[1]);
    let words = match capability_words(call, header) {
        // Asking with no data only finds out the version.
        Err(Errno::INVAL) if data == 0 => return Ok(Outcome::OK),
        words => words?,
    };
    let pid = capability_target(call, header)?;
    if pid < 0 {
        return Err(Errno::INVAL);
    }
    check_own(call, pid)?;
    if data != 0 {
        call.memory().write_zeros(data, words as u64 * 12)?;
    }
    Ok(Outcome::OK)
}

/// `int capset(cap_user_header_t hdrp, const cap_user_data_t datap)`
fn capset(call: &mut Call<'_>) -> Answer {
    let words = capability_words(call, call.args[0])?;
    let pid = capability_target(call, call.args[0])?;
    if pid != 0 && pid != call.tid {
        return Err(Errno::PERM);
    }
    let sets = call.memory().read_vec(call.args[1], words * 12)?;
    if sets.iter().any(|&byte| byte != 0) { Err(Errno::PERM) } else { Ok(Outcome::OK) }
}

/// `int personality(unsigned long persona)`: 0xffffffff asks.
fn personality(call: &mut Call<'_>) -> Answer {
    let old = call.kernel.process.prctl.personality;
    match call.uint(0) {
        u32::MAX => {}
        wanted if wanted & !ADDR_NO_RANDOMIZE == 0 => call.kernel.process.prctl.personality = wanted,
        _ => return Err(Errno::INVAL),
    }
    Ok(Outcome::Return(u64::from(old)))
}

const ADDR_NO_RANDOMIZE: u32 = 0x0004_0000;
