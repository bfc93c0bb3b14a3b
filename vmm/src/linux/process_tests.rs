//! Threads, limits, identity, clocks and traces as a program sees them.

use linux_raw_sys::general as sys;

use super::Errno;
use super::testing::{Came, MEMORY, Machine, PID};
use crate::limits::THREADS_MAX;
use crate::linux::trace;

const SCRATCH: u64 = MEMORY + 0x100;
const THREAD_FLAGS: u64 = 0x3d_0f00;

#[test]
fn a_thread_starts_as_its_creator_but_for_stack_tls_and_result() {
    let mut machine = Machine::new();
    machine.kernel.threads.get_mut(PID).cpu.registers.rbx = 77;
    machine.kernel.threads.get_mut(PID).signals.blocked = 5;
    let (stack, parent, child, tls) = (MEMORY + 0x8000, SCRATCH, SCRATCH + 8, MEMORY + 0xa000);
    let flags = THREAD_FLAGS | 0x100_0000 | 0x20_0000 | 0x10_0000;
    let tid = machine.main(sys::__NR_clone, &[flags, stack, parent, child, tls]).unwrap();
    let tid = i32::try_from(tid).unwrap();
    let thread = machine.kernel.threads.peek(tid).unwrap();
    let cpu = &thread.cpu;
    assert_eq!((cpu.registers.rax, cpu.registers.rsp, cpu.registers.rbx, cpu.fs_base), (0, stack, 77, tls));
    assert_eq!((thread.signals.blocked, thread.clear_tid, thread.inherit_extended_from), (5, child, Some(PID)));
    assert_eq!((machine.peek::<i32>(parent), machine.peek::<i32>(child)), (tid, tid));
}

#[test]
fn a_clone_bomb_meets_a_limit() {
    let mut machine = Machine::new();
    let results: Vec<_> = (0..THREADS_MAX + 10).map(|_| machine.main(sys::__NR_clone, &[THREAD_FLAGS, MEMORY + 0x8000])).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), THREADS_MAX - 1);
    assert_eq!(results.last(), Some(&Err(Errno::AGAIN)));
}

#[test]
fn clone_refuses_what_linux_refuses() {
    let mut machine = Machine::new();
    let thread = u64::from(sys::CLONE_THREAD);
    assert_eq!(machine.main(sys::__NR_clone, &[thread, 0]), Err(Errno::INVAL));
    assert_eq!(machine.main(sys::__NR_clone, &[thread | u64::from(sys::CLONE_SIGHAND), 0]), Err(Errno::INVAL));
    assert_eq!(machine.main(sys::__NR_clone, &[u64::from(sys::CLONE_NEWNET), 0]), Err(Errno::PERM));
    assert_eq!(machine.main(sys::__NR_clone, &[17, 0]), Err(Errno::NOSYS));
    assert_eq!(machine.main(sys::__NR_clone3, &[SCRATCH, 56]), Err(Errno::INVAL));
    assert_eq!(machine.main(sys::__NR_clone3, &[SCRATCH, 5000]), Err(Errno::TOOBIG));
    machine.poke(SCRATCH, &[THREAD_FLAGS, 0, 0, 0, 0, MEMORY, 0x4000, MEMORY]);
    machine.poke(SCRATCH + 64, &[0_u64, 0, 0, 1]);
    assert_eq!(machine.main(sys::__NR_clone3, &[SCRATCH, 96]), Err(Errno::TOOBIG));
    assert!(machine.main(sys::__NR_clone3, &[SCRATCH, 88]).is_ok());
    machine.poke(SCRATCH + 40, &[MEMORY, 0]);
    assert_eq!(machine.main(sys::__NR_clone3, &[SCRATCH, 88]), Err(Errno::INVAL));
}

#[test]
fn the_last_thread_ends_the_process_with_the_main_threads_status() {
    let mut machine = Machine::new();
    let other = machine.thread();
    assert_eq!(machine.call(PID, sys::__NR_exit, &[3]), Came::Ended);
    assert_eq!(machine.kernel.process.exit_status, None);
    assert_eq!(machine.call(other, sys::__NR_exit, &[4]), Came::Ended);
    assert_eq!(machine.kernel.process.exit_status, Some(3));
    let mut machine = Machine::new();
    machine.thread();
    assert_eq!(machine.call(PID, sys::__NR_exit_group, &[0x107]), Came::Ended);
    assert_eq!(machine.kernel.process.exit_status, Some(7));
}

#[test]
fn prlimit_reads_the_new_limit_and_writes_the_old_one() {
    let mut machine = Machine::new();
    let (new, old) = (SCRATCH, SCRATCH + 16);
    let resource = u64::from(sys::RLIMIT_STACK);
    machine.poke(new, &[1_u64 << 20, u64::MAX]);
    assert_eq!(machine.main(sys::__NR_prlimit64, &[0, resource, new, old]), Ok(0));
    assert_eq!(machine.peek::<[u64; 2]>(old), [8 << 20, u64::MAX]);
    assert_eq!(machine.main(sys::__NR_getrlimit, &[resource, old]), Ok(0));
    assert_eq!(machine.peek::<[u64; 2]>(old), [1 << 20, u64::MAX]);
    machine.poke(new, &[2_u64, 1]);
    assert_eq!(machine.main(sys::__NR_setrlimit, &[resource, new]), Err(Errno::INVAL));
    machine.poke(new, &[1_u64, 1 << 40]);
    assert_eq!(machine.main(sys::__NR_setrlimit, &[u64::from(sys::RLIMIT_NOFILE), new]), Err(Errno::PERM));
    assert_eq!(machine.main(sys::__NR_getrlimit, &[16, old]), Err(Errno::INVAL));
    assert_eq!(machine.main(sys::__NR_prlimit64, &[1, resource, 0, old]), Err(Errno::SRCH));
}

#[test]
fn names_are_fifteen_bytes_and_never_read_past_their_end() {
    let mut machine = Machine::new();
    let end = MEMORY + super::testing::MEMORY_BYTES;
    machine.space.memory().write_bytes(end - 5, b"name\0").unwrap();
    assert_eq!(machine.main(sys::__NR_prctl, &[15, end - 5]), Ok(0));
    machine.space.memory().write_bytes(SCRATCH, &[0xff; 24]).unwrap();
    assert_eq!(machine.main(sys::__NR_prctl, &[16, SCRATCH]), Ok(0));
    assert_eq!(&machine.peek::<[u8; 18]>(SCRATCH), b"name\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff");
    machine.space.memory().write_bytes(SCRATCH, b"a-name-that-is-too-long\0").unwrap();
    assert_eq!(machine.main(sys::__NR_prctl, &[15, SCRATCH]), Ok(0));
    assert_eq!(&machine.kernel.threads.peek(PID).unwrap().name, b"a-name-that-is-\0");
    assert_eq!(machine.main(sys::__NR_prctl, &[15, end]), Err(Errno::FAULT));
}

#[test]
fn segment_bases_keep_all_their_bits() {
    let mut machine = Machine::new();
    let base = 0x7f12_3456_7890_u64;
    assert_eq!(machine.main(sys::__NR_arch_prctl, &[0x1002, base]), Ok(0));
    assert_eq!(machine.main(sys::__NR_arch_prctl, &[0x1003, SCRATCH]), Ok(0));
    assert_eq!(machine.peek::<u64>(SCRATCH), base);
    assert_eq!(machine.main(sys::__NR_arch_prctl, &[0x1001, 1 << 47]), Err(Errno::PERM));
    assert_eq!(machine.main(sys::__NR_arch_prctl, &[0x3001, SCRATCH]), Err(Errno::INVAL));
}

#[test]
fn identity_is_the_users_and_cannot_be_changed_to_another() {
    let mut machine = Machine::new();
    assert_eq!(machine.main(sys::__NR_getuid, &[]), Ok(1000));
    assert_eq!(machine.main(sys::__NR_setuid, &[1000]), Ok(0));
    assert_eq!(machine.main(sys::__NR_setuid, &[0]), Err(Errno::PERM));
    assert_eq!(machine.main(sys::__NR_setresgid, &[u64::MAX, 1001, u64::MAX]), Ok(0));
    assert_eq!(machine.main(sys::__NR_setresgid, &[u64::MAX, 0, u64::MAX]), Err(Errno::PERM));
    assert_eq!(machine.main(sys::__NR_getsid, &[0]), Ok(1));
    assert_eq!(machine.main(sys::__NR_setsid, &[]), Err(Errno::PERM));
    assert_eq!(machine.main(sys::__NR_wait4, &[u64::MAX, 0, 0, 0]), Err(Errno::CHILD));
    assert_eq!(machine.main(sys::__NR_mount, &[]), Err(Errno::PERM));
    assert_eq!(machine.main(sys::__NR_io_uring_setup, &[]), Err(Errno::NOSYS));
    assert_eq!(machine.main(400, &[]), Err(Errno::NOSYS));
}

#[test]
fn each_clock_is_its_own() {
    let mut machine = Machine::new();
    machine.kernel.threads.get_mut(PID).cpu_time_ns = 3_000_000_123;
    machine.kernel.threads.ended_cpu_time_ns = 1_000_000_000;
    let mut read = |clock: u64| machine.main(sys::__NR_clock_gettime, &[clock, SCRATCH]).map(|_| machine.peek::<[u64; 2]>(SCRATCH));
    assert_eq!(read(3), Ok([3, 123]));
    assert_eq!(read(2), Ok([4, 123]));
    assert_eq!(read(u64::from((!PID << 3 | 2).cast_unsigned())), Ok([4, 123]));
    assert_eq!(read(u64::from((!PID << 3 | 6).cast_unsigned())), Ok([3, 123]));
    assert_eq!(read(u64::from((!999_i32 << 3 | 6).cast_unsigned())), Err(Errno::INVAL));
    assert_eq!(read(12), Err(Errno::INVAL));
    let [monotonic, real] = [read(1).unwrap()[0], read(0).unwrap()[0]];
    assert!(real > 1_600_000_000 && monotonic < real);
    assert_eq!(machine.main(sys::__NR_clock_settime, &[0, SCRATCH]), Err(Errno::PERM));
    assert_eq!(machine.main(sys::__NR_clock_nanosleep, &[3, 0, SCRATCH, 0]), Err(Errno::INVAL));
}

#[test]
fn one_cpu_is_seen() {
    let mut machine = Machine::new();
    machine.space.memory().write_bytes(SCRATCH, &[0xff; 16]).unwrap();
    assert_eq!(machine.main(sys::__NR_sched_getaffinity, &[0, 128, SCRATCH]), Ok(8));
    assert_eq!(machine.peek::<[u64; 2]>(SCRATCH), [1, u64::MAX]);
    assert_eq!(machine.main(sys::__NR_sched_getaffinity, &[0, 4, SCRATCH]), Err(Errno::INVAL));
    assert_eq!(machine.main(sys::__NR_sched_setaffinity, &[0, 8, SCRATCH]), Ok(0));
    machine.poke(SCRATCH, &2_u64);
    assert_eq!(machine.main(sys::__NR_sched_setaffinity, &[0, 8, SCRATCH]), Err(Errno::INVAL));
}

#[test]
fn random_bytes_are_bounded_by_the_memory_they_go_to() {
    let mut machine = Machine::new();
    assert_eq!(machine.main(sys::__NR_getrandom, &[SCRATCH, 32, 0]), Ok(32));
    assert_ne!(machine.peek::<[u8; 32]>(SCRATCH), [0; 32]);
    let end = MEMORY + super::testing::MEMORY_BYTES;
    assert_eq!(machine.main(sys::__NR_getrandom, &[end - 100, u64::MAX, 0]), Ok(100));
    assert_eq!(machine.main(sys::__NR_getrandom, &[end, 1, 0]), Err(Errno::FAULT));
    assert_eq!(machine.main(sys::__NR_getrandom, &[SCRATCH, 1, 8]), Err(Errno::INVAL));
}

#[test]
fn uname_fits_its_fields() {
    let mut machine = Machine::new();
    assert_eq!(machine.main(sys::__NR_uname, &[SCRATCH]), Ok(0));
    let name = machine.peek::<[u8; 390]>(SCRATCH);
    assert!(name.starts_with(b"Linux\0") && name[130..].starts_with(b"6.1") && name[260..].starts_with(b"x86_64\0"));
}

#[test]
fn traces_look_like_straces() {
    let machine = Machine::new();
    let memory = machine.space.memory();
    let line = |number: u32, args: [u64; 6], result| trace::line(number as usize, &args, memory, result, 0);
    memory.write_bytes(SCRATCH, b"/etc/ld.so.cache\0").unwrap();
    let at_fdcwd = u64::from((-100_i32).cast_unsigned());
    assert_eq!(
        line(sys::__NR_openat, [at_fdcwd, SCRATCH, 0o2_000_000, 0, 0, 0], Some(Ok(3))),
        "openat(AT_FDCWD, \"/etc/ld.so.cache\", O_RDONLY|O_CLOEXEC) = 3"
    );
    assert_eq!(
        line(sys::__NR_openat, [at_fdcwd, SCRATCH, 0o101, 0o644, 0, 0], Some(Err(Errno::NOENT))),
        "openat(AT_FDCWD, \"/etc/ld.so.cache\", O_WRONLY|O_CREAT, 0644) = -1 ENOENT (No such file or directory)"
    );
    assert_eq!(line(sys::__NR_brk, [0; 6], Some(Ok(0x5555_0000))), "brk(NULL)                               = 0x55550000");
    assert_eq!(line(sys::__NR_exit_group, [0; 6], None), "exit_group(0)                           = ?");
    memory.write_bytes(SCRATCH, b"a\"\n\x01\x019\xff and then many more bytes than fit").unwrap();
    assert_eq!(
        line(sys::__NR_write, [1, SCRATCH, 40, 0, 0, 0], Some(Ok(40))),
        "write(1, \"a\\\"\\n\\1\\0019\\377 and then many more bytes\"..., 40) = 40"
    );
    assert_eq!(line(sys::__NR_futex, [0x1000, 128, 2, 0, 0, 0], None), "futex(0x1000, FUTEX_WAIT_PRIVATE, 2, NULL <unfinished ...>");
    assert_eq!(trace::resumed(sys::__NR_futex as usize, &[0; 6], memory, Some(Ok(0)), 101), "[pid   101] <... futex resumed>)        = 0");
    memory.write(SCRATCH, &[0x401000_u64, 0x1400_0000, 0x402000, 1 << 9 | 1 << 33]).unwrap();
    assert_eq!(
        line(sys::__NR_rt_sigaction, [34, SCRATCH, 0, 8, 0, 0], Some(Ok(0))),
        "rt_sigaction(SIGRT_2, {sa_handler=0x401000, sa_mask=[USR1 RT_2], sa_flags=SA_RESTORER|SA_RESTART, sa_restorer=0x402000}, NULL, 8) = 0"
    );
    // Pointers that lead nowhere are shown as numbers.
    assert_eq!(
        line(sys::__NR_chdir, [0xdead, 0, 0, 0, 0, 0], Some(Err(Errno::FAULT))),
        "chdir(0xdead)                           = -1 EFAULT (Bad address)"
    );
}

#[test]
fn the_recorder_keeps_the_last_sixteen_calls() {
    let mut recorder = trace::Recorder::default();
    for index in 0..20 {
        recorder.push(sys::__NR_close as usize, [index, 0, 0, 0, 0, 0], Some(Ok(0)));
    }
    let lines = recorder.lines();
    assert_eq!(lines.len(), 16);
    assert_eq!(lines.first().map(String::as_str), Some("close(0x4) = 0"));
    assert_eq!(lines.last().map(String::as_str), Some("close(0x13) = 0"));
}
