//! Scheduling: sched_yield(2), sched_getaffinity(2), sched_setscheduler(2) and relatives, getcpu(2). The guest has one CPU, and all its
//! threads are SCHED_OTHER.

use linux_raw_sys::general as sys;
use linux_raw_sys::general::{
    __NR_getcpu, __NR_sched_get_priority_max, __NR_sched_get_priority_min, __NR_sched_getaffinity, __NR_sched_getattr, __NR_sched_getparam,
    __NR_sched_getscheduler, __NR_sched_rr_get_interval, __NR_sched_setaffinity, __NR_sched_setattr, __NR_sched_setparam,
    __NR_sched_setscheduler, __NR_sched_yield,
};

use crate::limits::{PAGE, SLICE_NS};
use crate::linux::abi::Timespec;
use crate::linux::table::{Arg, Entry, full, partial};
use crate::linux::{Answer, Call, Errno, Outcome};

const ONE_CLASS: &str = "SCHED_OTHER, SCHED_BATCH and SCHED_IDLE, which are all the same here; real-time classes are EPERM";

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(__NR_sched_yield, "sched_yield", &[], sched_yield),
    full(__NR_sched_getaffinity, "sched_getaffinity", &[Arg::Int, Arg::Uint, Arg::Pointer], sched_getaffinity),
    full(__NR_sched_setaffinity, "sched_setaffinity", &[Arg::Int, Arg::Uint, Arg::Pointer], sched_setaffinity),
    partial(__NR_sched_setscheduler, "sched_setscheduler", &[Arg::Int, Arg::Int, Arg::Pointer], sched_setscheduler, ONE_CLASS),
    partial(__NR_sched_getscheduler, "sched_getscheduler", &[Arg::Int], sched_getscheduler, ONE_CLASS),
    partial(__NR_sched_setparam, "sched_setparam", &[Arg::Int, Arg::Pointer], sched_setparam, ONE_CLASS),
    partial(__NR_sched_getparam, "sched_getparam", &[Arg::Int, Arg::Pointer], sched_getparam, ONE_CLASS),
    partial(__NR_sched_setattr, "sched_setattr", &[Arg::Int, Arg::Pointer, Arg::Hex], sched_setattr, ONE_CLASS),
    partial(__NR_sched_getattr, "sched_getattr", &[Arg::Int, Arg::Pointer, Arg::Uint, Arg::Hex], sched_getattr, ONE_CLASS),
    full(__NR_sched_get_priority_max, "sched_get_priority_max", &[Arg::Int], sched_get_priority_max),
    full(__NR_sched_get_priority_min, "sched_get_priority_min", &[Arg::Int], sched_get_priority_min),
    full(__NR_sched_rr_get_interval, "sched_rr_get_interval", &[Arg::Int, Arg::Pointer], sched_rr_get_interval),
    full(__NR_getcpu, "getcpu", &[Arg::Pointer, Arg::Pointer, Arg::Pointer], getcpu),
];

/// Bytes of a CPU mask that the kernel fills: one word, for one CPU.
const MASK_BYTES: u64 = 8;

fn check_thread(call: &Call<'_>, tid: i32) -> Result<(), Errno> {
    if tid == 0 || call.kernel.threads.peek(tid).is_some() || tid == call.kernel.process.pid { Ok(()) } else { Err(Errno::SRCH) }
}

/// As [`check_thread`], for calls that refuse negative ids first.
fn check_positive(call: &Call<'_>, tid: i32) -> Result<(), Errno> {
    if tid < 0 { Err(Errno::INVAL) } else { check_thread(call, tid) }
}

/// `int sched_yield(void)`: the slice of the thread is over.
fn sched_yield(call: &mut Call<'_>) -> Answer {
    call.kernel.threads.slice_end = Some(0);
    Ok(Outcome::OK)
}

/// `int sched_getaffinity(pid_t pid, size_t cpusetsize, cpu_set_t *mask)`: answers how many bytes it wrote.
fn sched_getaffinity(call: &mut Call<'_>) -> Answer {
    let (tid, size) = (call.int(0), call.uint(1));
    if u64::from(size) < MASK_BYTES || u64::from(size) % MASK_BYTES != 0 {
        return Err(Errno::INVAL);
    }
    check_thread(call, tid)?;
    call.memory().write(call.args[2], &1_u64)?;
    Ok(Outcome::Return(MASK_BYTES))
}

/// `int sched_setaffinity(pid_t pid, size_t cpusetsize, const cpu_set_t *mask)`
fn sched_setaffinity(call: &mut Call<'_>) -> Answer {
    let size = usize::try_from(u64::from(call.uint(1)).min(MASK_BYTES)).map_err(|_| Errno::INVAL)?;
    let mask = call.memory().read_vec(call.args[2], size)?;
    check_thread(call, call.int(0))?;
    if mask.first().is_some_and(|byte| byte & 1 != 0) { Ok(Outcome::OK) } else { Err(Errno::INVAL) }
}

/// Whether a policy may be set with this real-time priority.
fn check_policy(policy: u32, priority: i32) -> Result<(), Errno> {
    match policy & !sys::SCHED_RESET_ON_FORK {
        sys::SCHED_NORMAL | sys::SCHED_BATCH | sys::SCHED_IDLE if priority == 0 => Ok(()),
        sys::SCHED_FIFO | sys::SCHED_RR if (1..=99).contains(&priority) => Err(Errno::PERM),
        sys::SCHED_DEADLINE if priority == 0 => Err(Errno::PERM),
        _ => Err(Errno::INVAL),
    }
}

/// `int sched_setscheduler(pid_t pid, int policy, const struct sched_param *param)`
fn sched_setscheduler(call: &mut Call<'_>) -> Answer {
    let (tid, policy) = (call.int(0), call.int(1));
    if policy < 0 || tid < 0 || call.args[2] == 0 {
        return Err(Errno::INVAL);
    }
    let priority = call.memory().read::<i32>(call.args[2])?;
    check_positive(call, tid)?;
    check_policy(policy.cast_unsigned(), priority)?;
    Ok(Outcome::OK)
}

/// `int sched_getscheduler(pid_t pid)`
fn sched_getscheduler(call: &mut Call<'_>) -> Answer {
    check_positive(call, call.int(0))?;
    Ok(Outcome::Return(u64::from(sys::SCHED_NORMAL)))
}

/// `int sched_setparam(pid_t pid, const struct sched_param *param)`
fn sched_setparam(call: &mut Call<'_>) -> Answer {
    if call.int(0) < 0 || call.args[1] == 0 {
        return Err(Errno::INVAL);
    }
    let priority = call.memory().read::<i32>(call.args[1])?;
    check_positive(call, call.int(0))?;
    check_policy(sys::SCHED_NORMAL, priority)?;
    Ok(Outcome::OK)
}

/// `int sched_getparam(pid_t pid, struct sched_param *param)`
fn sched_getparam(call: &mut Call<'_>) -> Answer {
    if call.args[1] == 0 {
        return Err(Errno::INVAL);
    }
    check_positive(call, call.int(0))?;
    call.memory().write(call.args[1], &0_i32)?;
    Ok(Outcome::OK)
}

/// Bytes of the first version of `struct sched_attr`, and of the version with utilisation clamps.
const ATTR_BYTES_MIN: u32 = 48;
const ATTR_BYTES: u32 = 56;

/// `int sched_setattr(pid_t pid, struct sched_attr *attr, unsigned int flags)`
fn sched_setattr(call: &mut Call<'_>) -> Answer {
    let (tid, address) = (call.int(0), call.args[1]);
    if address == 0 || tid < 0 || call.uint(2) != 0 {
        return Err(Errno::INVAL);
    }
    let [size, policy] = call.memory().read::<[u32; 2]>(address)?;
    let size = if size == 0 { ATTR_BYTES_MIN } else { size };
    if size < ATTR_BYTES_MIN || u64::from(size) > PAGE {
        call.memory().write(address, &ATTR_BYTES)?;
        return Err(Errno::TOOBIG);
    }
    let [_nice, priority] = call.memory().read::<[i32; 2]>(address.checked_add(16).ok_or(Errno::FAULT)?)?;
    check_positive(call, tid)?;
    check_policy(policy, priority)?;
    Ok(Outcome::OK)
}

/// `int sched_getattr(pid_t pid, struct sched_attr *attr, unsigned int size, unsigned int flags)`
fn sched_getattr(call: &mut Call<'_>) -> Answer {
    let (tid, address, size) = (call.int(0), call.args[1], call.uint(2));
    if address == 0 || tid < 0 || u64::from(size) > PAGE || size < ATTR_BYTES_MIN || call.uint(3) != 0 {
        return Err(Errno::INVAL);
    }
    check_positive(call, tid)?;
    let mut attributes = [0_u32; (ATTR_BYTES / 4) as usize];
    attributes[0] = size.min(ATTR_BYTES);
    attributes[4] = call.kernel.process.nice.cast_unsigned();
    let bytes = zerocopy::IntoBytes::as_bytes(&attributes);
    call.memory().write_bytes(address, bytes.get(..attributes[0] as usize).unwrap_or(bytes))?;
    Ok(Outcome::OK)
}

/// `int sched_get_priority_max(int policy)`
fn sched_get_priority_max(call: &mut Call<'_>) -> Answer {
    priority_bound(call, 99)
}

/// `int sched_get_priority_min(int policy)`
fn sched_get_priority_min(call: &mut Call<'_>) -> Answer {
    priority_bound(call, 1)
}

fn priority_bound(call: &Call<'_>, real_time: u64) -> Answer {
    match call.uint(0) {
        sys::SCHED_FIFO | sys::SCHED_RR => Ok(Outcome::Return(real_time)),
        sys::SCHED_NORMAL | sys::SCHED_BATCH | sys::SCHED_IDLE | sys::SCHED_DEADLINE => Ok(Outcome::OK),
        _ => Err(Errno::INVAL),
    }
}

/// `int sched_rr_get_interval(pid_t pid, struct timespec *tp)`
fn sched_rr_get_interval(call: &mut Call<'_>) -> Answer {
    check_positive(call, call.int(0))?;
    call.memory().write(call.args[1], &Timespec::from_ns(SLICE_NS))?;
    Ok(Outcome::OK)
}

/// `int getcpu(unsigned int *cpu, unsigned int *node, struct getcpu_cache *tcache)`
fn getcpu(call: &mut Call<'_>) -> Answer {
    for address in [call.args[0], call.args[1]] {
        if address != 0 {
            call.memory().write(address, &0_u32)?;
        }
    }
    Ok(Outcome::OK)
}
