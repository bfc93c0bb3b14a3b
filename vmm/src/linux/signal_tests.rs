//! Signals from sending to returning, against the layouts and rules of signal(7) and the AMD64 ABI.

use linux_raw_sys::general as sys;

use super::testing::{AREA_BYTES, Came, FEATURES, FakeExtended, MEMORY, MEMORY_BYTES, Machine, PID};
use super::{Attempt, Errno};
use crate::linux::signal::{Action, SI_KERNEL, SI_TKILL, SI_USER, SignalInfo, Target, bit, flags};
use crate::linux::signal_delivery::Delivery;

const HANDLER: u64 = 0x40_1000;
const RESTORER: u64 = 0x40_2000;
const SCRATCH: u64 = MEMORY + 0x100;
const SIGUSR1: i32 = sys::SIGUSR1.cast_signed();
const SIGSEGV: i32 = sys::SIGSEGV.cast_signed();
const SIGALRM: i32 = sys::SIGALRM.cast_signed();

fn install(machine: &mut Machine, signal: i32, extra: u64, mask: u64) {
    let action = Action { handler: HANDLER + signal as u64, flags: flags::RESTORER | flags::SIGINFO | extra, restorer: RESTORER, mask };
    machine.poke(SCRATCH, &action);
    assert_eq!(machine.main(sys::__NR_rt_sigaction, &[signal as u64, SCRATCH, 0, 8]), Ok(0));
}

fn set_mask(machine: &mut Machine, tid: i32, mask: u64) {
    machine.poke(SCRATCH, &mask);
    assert_eq!(machine.call(tid, sys::__NR_rt_sigprocmask, &[u64::from(sys::SIG_SETMASK), SCRATCH, 0, 8]), Came::Back(Ok(0)));
}

fn registers(machine: &mut Machine) -> &mut crate::cpu::Registers {
    &mut machine.kernel.threads.get_mut(PID).cpu.registers
}

#[test]
fn a_frame_lies_where_linux_puts_it_and_comes_back_unchanged() {
    let mut machine = Machine::new();
    install(&mut machine, SIGUSR1, 0, bit(12));
    let before = {
        let registers = registers(&mut machine);
        for (index, register) in [&mut registers.rbx, &mut registers.r8, &mut registers.r15, &mut registers.rcx].into_iter().enumerate() {
            *register = 0x1111 * (index as u64 + 1);
        }
        (registers.rip, registers.rflags) = (0x40_0123, 0x246 | 0x400);
        *registers
    };
    let state = machine.extended.clone();
    machine.kernel.send_thread_signal(PID, SIGUSR1);
    assert_eq!(machine.deliver(PID), Delivery::Handler);

    let inside = *registers(&mut machine);
    assert_eq!(inside.rip, HANDLER + 10);
    assert_eq!((inside.rdi, inside.rax), (10, 0));
    assert_eq!(inside.rsp % 16, 8);
    assert_eq!((inside.rsi, inside.rdx), (inside.rsp + 312, inside.rsp + 8));
    assert_eq!(inside.rflags & 0x400, 0);
    assert_eq!(machine.peek::<u64>(inside.rsp), RESTORER);
    // uc_flags, then the registers of the interrupted code behind the 40 bytes of flags, link and stack.
    assert_eq!(machine.peek::<u64>(inside.rdx), 7);
    assert_eq!(machine.peek::<u64>(inside.rdx + 40), before.r8);
    assert_eq!(machine.peek::<u64>(inside.rdx + 40 + 16 * 8), before.rip);
    assert_eq!(machine.peek::<[u16; 4]>(inside.rdx + 40 + 18 * 8), [0x33, 0, 0, 0x2b]);
    let area = machine.peek::<u64>(inside.rdx + 40 + 184);
    assert_eq!(area % 64, 0);
    assert!(area + AREA_BYTES as u64 + 4 <= before.rsp - 128);
    assert_eq!(machine.peek::<u32>(area + 464), 0x4650_5853);
    assert_eq!(machine.peek::<u32>(area + 468), AREA_BYTES as u32 + 4);
    assert_eq!(machine.peek::<u64>(area + 472), FEATURES);
    assert_eq!(machine.peek::<u32>(area + 480), AREA_BYTES as u32);
    assert_eq!(machine.peek::<u32>(area + AREA_BYTES as u64), 0x4650_5845);
    // The handler starts with a fresh state and a mask of its own.
    assert_eq!(machine.extended.0[..2], [0x7f, 0x03]);
    assert_eq!(machine.kernel.threads.get_mut(PID).signals.blocked, bit(10) | bit(12));
    let info = machine.peek::<[i32; 6]>(inside.rsi);
    assert_eq!(info, [10, 0, SI_USER, 0, PID, 1000]);

    // The handler returns: `ret` has popped the return address.
    registers(&mut machine).rsp = inside.rsp + 8;
    machine.call(PID, sys::__NR_rt_sigreturn, &[]);
    let thread = machine.kernel.threads.get_mut(PID);
    assert_eq!(thread.cpu.registers, before);
    assert_eq!(thread.signals.blocked, 0);
    assert!(thread.extended_changed);
    let restored = &thread.cpu.extended;
    assert_eq!(restored[..24], state.0[..24]);
    assert_eq!(restored[32..464], state.0[32..464]);
    assert_eq!(restored[576..], state.0[576..]);
}

#[test]
fn handlers_run_on_the_alternate_stack_and_die_where_it_is_too_small() {
    let mut machine = Machine::new();
    let stack = MEMORY + 0x2_0000;
    machine.poke(SCRATCH, &[stack, 0, 0x4000]);
    assert_eq!(machine.main(sys::__NR_sigaltstack, &[SCRATCH, 0]), Ok(0));
    install(&mut machine, SIGUSR1, flags::ONSTACK | flags::NODEFER, 0);
    machine.kernel.send_thread_signal(PID, SIGUSR1);
    assert_eq!(machine.deliver(PID), Delivery::Handler);
    let rsp = registers(&mut machine).rsp;
    assert!(rsp > stack && rsp < stack + 0x4000);
    // While it is in use it cannot be changed, and reports so.
    assert_eq!(machine.main(sys::__NR_sigaltstack, &[SCRATCH, 0]), Err(Errno::PERM));
    assert_eq!(machine.main(sys::__NR_sigaltstack, &[0, SCRATCH]), Ok(0));
    assert_eq!(machine.peek::<[u64; 3]>(SCRATCH), [stack, 1, 0x4000]);
    // A second one nests below; one that leaves the stack is a SIGSEGV.
    machine.kernel.send_thread_signal(PID, SIGUSR1);
    assert_eq!(machine.deliver(PID), Delivery::Handler);
    assert!(registers(&mut machine).rsp < rsp);
    registers(&mut machine).rsp = stack + 0x200;
    machine.kernel.send_thread_signal(PID, SIGUSR1);
    assert_eq!(machine.deliver(PID), Delivery::Killed { signal: SIGSEGV, core: true });
}

#[test]
fn a_frame_that_cannot_be_written_is_a_fault_that_a_handler_on_another_stack_may_take() {
    let mut machine = Machine::new();
    install(&mut machine, SIGUSR1, 0, 0);
    registers(&mut machine).rsp = 0x10;
    machine.kernel.send_thread_signal(PID, SIGUSR1);
    assert_eq!(machine.deliver(PID), Delivery::Killed { signal: SIGSEGV, core: true });

    let mut machine = Machine::new();
    install(&mut machine, SIGUSR1, 0, 0);
    install(&mut machine, SIGSEGV, flags::ONSTACK, 0);
    machine.poke(SCRATCH, &[MEMORY + 0x2_0000, 0, 0x4000]);
    assert_eq!(machine.main(sys::__NR_sigaltstack, &[SCRATCH, 0]), Ok(0));
    registers(&mut machine).rsp = 0x10;
    machine.kernel.send_thread_signal(PID, SIGUSR1);
    assert_eq!(machine.deliver(PID), Delivery::Handler);
    assert_eq!(registers(&mut machine).rdi, 11);
}

#[test]
fn a_forged_frame_cannot_leave_user_mode() {
    let mut machine = Machine::new();
    assert_eq!(machine.deliver(PID), Delivery::None);
    let frame = MEMORY + 0x3_0000;
    for (offset, value) in [(16 * 8, 1_u64 << 47), (16 * 8, u64::MAX), (18 * 8, 0x10)] {
        machine.space.memory().write_zeros(frame, 4096).unwrap();
        machine.poke(frame + 48 + 18 * 8, &0x33_u16);
        machine.poke(frame + 48 + offset, &value);
        registers(&mut machine).rsp = frame + 8;
        machine.call(PID, sys::__NR_rt_sigreturn, &[]);
        assert_eq!(machine.deliver(PID), Delivery::Killed { signal: SIGSEGV, core: true });
    }
    // Flags: the privileged ones stay as they are.
    machine.space.memory().write_zeros(frame, 4096).unwrap();
    machine.poke(frame + 48 + 16 * 8, &[0x40_0000_u64, u64::MAX, 0x33]);
    registers(&mut machine).rsp = frame + 8;
    machine.call(PID, sys::__NR_rt_sigreturn, &[]);
    assert_eq!(registers(&mut machine).rip, 0x40_0000);
    let rflags = registers(&mut machine).rflags;
    assert_eq!(rflags & (0x3000 | 0x4000 | 0x1_0000 | 0x2_0000 | 0x18_0000), 0);
    assert_eq!(rflags & 0x202, 0x202);
}

#[test]
fn a_forged_extended_state_is_refused_as_the_processor_refuses_it() {
    let mut machine = Machine::new();
    install(&mut machine, SIGUSR1, 0, 0);
    let original = *registers(&mut machine);
    // A feature the processor lacks, a reserved byte of the header, a reserved bit of MXCSR.
    for (offset, value) in [(512_u64, 0x80_u8), (512 + 30, 1), (24 + 3, 0x80)] {
        machine.extended = FakeExtended::default();
        *registers(&mut machine) = original;
        machine.kernel.send_thread_signal(PID, SIGUSR1);
        assert_eq!(machine.deliver(PID), Delivery::Handler);
        let inside = *registers(&mut machine);
        let area = machine.peek::<u64>(inside.rdx + 40 + 184);
        machine.poke(area + offset, &value);
        registers(&mut machine).rsp = inside.rsp + 8;
        machine.call(PID, sys::__NR_rt_sigreturn, &[]);
        assert_eq!(machine.deliver(PID), Delivery::Killed { signal: SIGSEGV, core: true });
        let thread = machine.kernel.threads.get_mut(PID);
        (thread.signals.blocked, thread.extended_changed) = (0, false);
    }
}

#[test]
fn blocked_signals_wait_and_faults_kill_through_a_mask() {
    let mut machine = Machine::new();
    install(&mut machine, SIGUSR1, 0, 0);
    set_mask(&mut machine, PID, bit(10) | bit(11) | bit(9));
    machine.kernel.send_thread_signal(PID, SIGUSR1);
    assert_eq!(machine.deliver(PID), Delivery::None);
    assert_eq!(machine.main(sys::__NR_rt_sigpending, &[SCRATCH, 8]), Ok(0));
    assert_eq!(machine.peek::<u64>(SCRATCH), bit(10));
    machine.kernel.fault_signal(PID, SIGSEGV, 1, 0xdead_0000, 14, 6);
    assert_eq!(machine.deliver(PID), Delivery::Killed { signal: SIGSEGV, core: true });
}

#[test]
fn a_fault_shows_its_trap_in_the_frame() {
    let mut machine = Machine::new();
    install(&mut machine, SIGSEGV, 0, 0);
    machine.kernel.fault_signal(PID, SIGSEGV, 2, 0xdead_0000, 14, 7);
    assert_eq!(machine.deliver(PID), Delivery::Handler);
    let inside = *registers(&mut machine);
    assert_eq!(machine.peek::<[u64; 4]>(inside.rdx + 40 + 19 * 8), [7, 14, 0, 0xdead_0000]);
    assert_eq!(machine.peek::<[u32; 6]>(inside.rsi), [11, 0, 2, 0, 0xdead_0000, 0]);
}

#[test]
fn ignored_signals_interrupt_nothing_and_default_ones_kill() {
    let mut machine = Machine::new();
    machine.kernel.send_process_signal(17);
    machine.kernel.send_process_signal(20);
    assert!(!machine.kernel.signal_pending(PID));
    machine.kernel.send_process_signal(15);
    assert_eq!(machine.deliver(PID), Delivery::Killed { signal: 15, core: false });
}

#[test]
fn real_time_signals_queue_in_order_and_are_limited() {
    let mut machine = Machine::new();
    install(&mut machine, 40, 0, 0);
    set_mask(&mut machine, PID, bit(40));
    let info = |value: u64| SignalInfo { fields: [0, value, 0, 0], code: -1, ..SignalInfo::user(40, -1, 0, 0) };
    let sent = (0..2000).filter(|&value| machine.kernel.queue_signal(Target::Process, info(value)).is_ok()).count();
    assert_eq!(sent, crate::limits::SIGNALS_MAX);
    for value in 0..3 {
        assert_eq!(machine.kernel.take_signal(PID, bit(40)).map(|info| info.fields[1]), Some(value));
    }
}

#[test]
fn sigtimedwait_takes_waits_and_gives_up() {
    let mut machine = Machine::new();
    set_mask(&mut machine, PID, bit(10));
    machine.poke(SCRATCH, &[bit(10), 0, 0]);
    assert_eq!(machine.main(sys::__NR_rt_sigtimedwait, &[SCRATCH, 0, SCRATCH + 8, 8]), Err(Errno::AGAIN));
    let info = MEMORY + 0x200;
    assert_eq!(machine.call(PID, sys::__NR_rt_sigtimedwait, &[SCRATCH, info, 0, 8]), Came::Blocked);
    assert_eq!(machine.look(PID), Came::Blocked);
    machine.kernel.send_process_signal(SIGUSR1);
    assert_eq!(machine.look(PID), Came::Back(Ok(10)));
    assert_eq!(machine.peek::<[i32; 3]>(info), [10, 0, SI_KERNEL]);
    assert_eq!(machine.deliver(PID), Delivery::None);
}

#[test]
fn sigsuspend_runs_the_handler_under_the_old_mask_in_its_frame() {
    let mut machine = Machine::new();
    install(&mut machine, SIGUSR1, flags::RESTART, 0);
    set_mask(&mut machine, PID, bit(10) | bit(12));
    machine.poke(SCRATCH, &bit(13));
    assert_eq!(machine.call(PID, sys::__NR_rt_sigsuspend, &[SCRATCH, 8]), Came::Blocked);
    machine.kernel.send_process_signal(SIGUSR1);
    assert!(machine.kernel.signal_pending(PID));
    assert_eq!(machine.look(PID), Came::Back(Err(Errno::INTR)));
    assert_eq!(machine.deliver(PID), Delivery::Handler);
    let inside = *registers(&mut machine);
    assert_eq!(machine.peek::<u64>(inside.rdx + 40 + 256), bit(10) | bit(12));
    assert_eq!(machine.kernel.threads.get_mut(PID).signals.blocked, bit(13) | bit(10));
}

#[test]
fn an_interrupted_call_restarts_only_where_both_sides_agree() {
    for (extra, restarts) in [(flags::RESTART, true), (0, false)] {
        let mut machine = Machine::new();
        install(&mut machine, SIGUSR1, extra, 0);
        machine.poke(SCRATCH, &5_u32);
        assert_eq!(machine.call(PID, sys::__NR_futex, &[SCRATCH, 0x80, 5, 0]), Came::Blocked);
        let rip = registers(&mut machine).rip;
        machine.kernel.send_process_signal(SIGUSR1);
        let came = machine.look(PID);
        assert!(machine.kernel.futexes.is_empty());
        if restarts {
            assert_eq!(registers(&mut machine).rip, rip.wrapping_sub(2));
            assert_eq!(registers(&mut machine).rax, u64::from(sys::__NR_futex));
        } else {
            assert_eq!(came, Came::Back(Err(Errno::INTR)));
        }
        assert_eq!(machine.deliver(PID), Delivery::Handler);
    }
}

#[test]
fn a_signal_of_the_process_interrupts_one_thread_that_takes_it() {
    let mut machine = Machine::new();
    install(&mut machine, SIGUSR1, 0, 0);
    let other = machine.thread();
    set_mask(&mut machine, PID, bit(10));
    assert_eq!(machine.call(other, sys::__NR_pause, &[]), Came::Blocked);
    machine.kernel.send_process_signal(SIGUSR1);
    assert!(!machine.kernel.signal_pending(PID));
    assert_eq!(machine.kernel.interrupted_threads(), [other]);
    // The thread that was told blocks it before it looks: another one that does not is told instead.
    set_mask(&mut machine, PID, 0);
    machine.kernel.set_mask(other, bit(10));
    assert!(machine.kernel.signal_pending(PID));
    assert!(machine.kernel.interrupted_threads().is_empty());
}

#[test]
fn the_handler_goes_back_to_the_default_where_asked() {
    let mut machine = Machine::new();
    install(&mut machine, SIGUSR1, flags::RESETHAND, 0);
    machine.kernel.send_thread_signal(PID, SIGUSR1);
    assert_eq!(machine.deliver(PID), Delivery::Handler);
    set_mask(&mut machine, PID, 0);
    machine.kernel.send_thread_signal(PID, SIGUSR1);
    assert_eq!(machine.deliver(PID), Delivery::Killed { signal: SIGUSR1, core: false });
}

#[test]
fn errors_of_the_calls_are_those_of_the_man_pages() {
    let mut machine = Machine::new();
    let bad = MEMORY + MEMORY_BYTES;
    assert_eq!(machine.main(sys::__NR_rt_sigaction, &[9, SCRATCH, 0, 8]), Err(Errno::INVAL));
    assert_eq!(machine.main(sys::__NR_rt_sigaction, &[65, 0, SCRATCH, 8]), Err(Errno::INVAL));
    assert_eq!(machine.main(sys::__NR_rt_sigaction, &[9, 0, SCRATCH, 8]), Ok(0));
    assert_eq!(machine.main(sys::__NR_rt_sigaction, &[10, 0, SCRATCH, 16]), Err(Errno::INVAL));
    assert_eq!(machine.main(sys::__NR_rt_sigprocmask, &[7, SCRATCH, 0, 8]), Err(Errno::INVAL));
    assert_eq!(machine.main(sys::__NR_rt_sigprocmask, &[0, bad, 0, 8]), Err(Errno::FAULT));
    assert_eq!(machine.main(sys::__NR_kill, &[12345, 0]), Err(Errno::SRCH));
    assert_eq!(machine.main(sys::__NR_kill, &[1, 0]), Err(Errno::PERM));
    assert_eq!(machine.main(sys::__NR_kill, &[PID as u64, 0]), Ok(0));
    assert_eq!(machine.main(sys::__NR_kill, &[PID as u64, 65]), Err(Errno::INVAL));
    assert_eq!(machine.main(sys::__NR_kill, &[u64::from(i32::MIN.cast_unsigned()), 0]), Err(Errno::SRCH));
    assert_eq!(machine.main(sys::__NR_tgkill, &[PID as u64, 999, 0]), Err(Errno::SRCH));
    assert_eq!(machine.main(sys::__NR_tkill, &[0, 0]), Err(Errno::INVAL));
    machine.poke(SCRATCH, &[MEMORY, 0, 1024]);
    assert_eq!(machine.main(sys::__NR_sigaltstack, &[SCRATCH, 0]), Err(Errno::NOMEM));
    machine.poke(SCRATCH, &[MEMORY, 4, 8192]);
    assert_eq!(machine.main(sys::__NR_sigaltstack, &[SCRATCH, 0]), Err(Errno::INVAL));
}

#[test]
fn a_program_cannot_pass_off_a_signal_as_that_of_a_timer() {
    let mut machine = Machine::new();
    install(&mut machine, 40, 0, 0);
    set_mask(&mut machine, PID, bit(40));
    machine.space.memory().write_zeros(SCRATCH, 128).unwrap();
    machine.poke(SCRATCH, &[40, 0, -2]);
    machine.poke(SCRATCH + 32, &1_u64);
    assert_eq!(machine.main(sys::__NR_rt_sigqueueinfo, &[PID as u64, 40, SCRATCH]), Ok(0));
    assert_eq!(machine.kernel.take_signal(PID, bit(40)).map(|info| info.fields[2]), Some(0));
    machine.call(PID, sys::__NR_tkill, &[PID as u64, 40]);
    assert_eq!(machine.kernel.take_signal(PID, bit(40)).map(|info| info.code), Some(SI_TKILL));
}

#[test]
fn a_periodic_timer_counts_what_was_missed_and_waits_for_its_signal_to_be_taken() {
    let mut machine = Machine::new();
    install(&mut machine, 40, 0, 0);
    set_mask(&mut machine, PID, bit(40));
    machine.poke(SCRATCH, &[7_u64, 40, 0, 0]);
    assert_eq!(machine.main(sys::__NR_timer_create, &[u64::from(sys::CLOCK_MONOTONIC), SCRATCH, SCRATCH + 64]), Ok(0));
    let id = u64::from(machine.peek::<u32>(SCRATCH + 64));
    // Every millisecond, beginning in the past.
    machine.poke(SCRATCH, &[0_u64, 1_000_000, 0, 1]);
    let absolute = u64::from(sys::TIMER_ABSTIME);
    assert_eq!(machine.main(sys::__NR_timer_settime, &[id, absolute, SCRATCH, 0]), Ok(0));
    let now = machine.kernel.clock.monotonic();
    machine.kernel.fire_timers(now);
    machine.kernel.fire_timers(now + 5_000_000);
    assert_eq!(machine.kernel.next_timer(), None);
    let info = machine.kernel.take_signal(PID, bit(40)).unwrap();
    assert_eq!((info.code, info.fields[1], info.fields[2]), (-2, 7, 0));
    let missed = info.fields[0] >> 32;
    assert!(missed >= now / 1_000_000 - 1);
    assert_eq!(machine.main(sys::__NR_timer_getoverrun, &[id]), Ok(missed));
    assert!(machine.kernel.take_signal(PID, bit(40)).is_none());
    assert!(machine.kernel.next_timer().is_some_and(|at| at > now));
    assert_eq!(machine.main(sys::__NR_timer_delete, &[id]), Ok(0));
    assert_eq!(machine.main(sys::__NR_timer_gettime, &[id, SCRATCH]), Err(Errno::INVAL));
    assert_eq!(machine.kernel.next_timer(), None);
}

#[test]
fn alarms_ring_once_and_tell_what_was_left() {
    let mut machine = Machine::new();
    install(&mut machine, SIGALRM, 0, 0);
    assert_eq!(machine.main(sys::__NR_alarm, &[10]), Ok(0));
    assert_eq!(machine.main(sys::__NR_alarm, &[3]), Ok(10));
    let at = machine.kernel.next_timer().unwrap();
    machine.kernel.fire_timers(at - 1);
    assert!(!machine.kernel.signal_pending(PID));
    machine.kernel.fire_timers(at);
    assert_eq!(machine.deliver(PID), Delivery::Handler);
    assert_eq!(machine.kernel.next_timer(), None);
    assert_eq!(machine.main(sys::__NR_alarm, &[0]), Ok(0));
}

#[test]
fn an_interval_timer_goes_on_when_its_signal_is_taken() {
    let mut machine = Machine::new();
    install(&mut machine, SIGALRM, 0, 0);
    machine.poke(SCRATCH, &[0_u64, 1000, 0, 1000]);
    assert_eq!(machine.main(sys::__NR_setitimer, &[0, SCRATCH, 0]), Ok(0));
    let at = machine.kernel.next_timer().unwrap();
    machine.kernel.fire_timers(at);
    assert_eq!(machine.kernel.next_timer(), None);
    assert_eq!(machine.deliver(PID), Delivery::Handler);
    assert!(machine.kernel.next_timer().is_some());
    // Processor time: fires once the process has used it.
    machine.poke(SCRATCH, &[0_u64, 0, 0, 1000]);
    assert_eq!(machine.main(sys::__NR_setitimer, &[2, SCRATCH, 0]), Ok(0));
    machine.kernel.fire_timers(at);
    assert_eq!(machine.kernel.pending_signals(PID) & bit(27), 0);
    machine.kernel.threads.get_mut(PID).cpu_time_ns += 1_000_000;
    machine.kernel.fire_timers(at);
    assert_ne!(machine.kernel.pending_signals(PID) & bit(27), 0);
}

#[test]
fn a_restartable_sequence_is_aborted_by_a_signal_and_by_another_thread() {
    let mut machine = Machine::new();
    install(&mut machine, SIGUSR1, 0, 0);
    let (area, descriptor, code) = (MEMORY + 0x1000, MEMORY + 0x1100, MEMORY + 0x2000);
    machine.poke(code + 0x100 - 4, &0x5305_3053_u32);
    assert_eq!(machine.main(sys::__NR_rseq, &[area, 32, 0, 0x5305_3053]), Ok(0));
    assert_eq!(machine.main(sys::__NR_rseq, &[area, 32, 0, 0x5305_3053]), Err(Errno::BUSY));
    assert_eq!(machine.peek::<[u32; 2]>(area), [0, 0]);
    machine.deliver(PID);
    let enter = |machine: &mut Machine| {
        machine.poke(descriptor, &[0_u64, code, 0x20, code + 0x100]);
        machine.poke(area + 8, &descriptor);
        registers(machine).rip = code + 0x10;
    };
    enter(&mut machine);
    machine.deliver(PID);
    assert_eq!(registers(&mut machine).rip, code + 0x10);
    machine.kernel.threads.last_entered = PID + 1;
    machine.deliver(PID);
    assert_eq!(registers(&mut machine).rip, code + 0x100);
    assert_eq!(machine.peek::<u64>(area + 8), 0);
    enter(&mut machine);
    machine.kernel.send_thread_signal(PID, SIGUSR1);
    assert_eq!(machine.deliver(PID), Delivery::Handler);
    let context = registers(&mut machine).rdx;
    assert_eq!(machine.peek::<u64>(context + 40 + 16 * 8), code + 0x100);
    // A descriptor that lies about its signature kills.
    enter(&mut machine);
    machine.poke(code + 0x100 - 4, &0_u32);
    machine.kernel.threads.last_entered = PID + 1;
    assert_eq!(machine.deliver(PID), Delivery::Killed { signal: SIGSEGV, core: true });
}

#[test]
fn nanosleep_says_what_is_left() {
    let mut machine = Machine::new();
    machine.poke(SCRATCH, &[3600_u64, 0]);
    assert_eq!(machine.call(PID, sys::__NR_nanosleep, &[SCRATCH, SCRATCH + 16]), Came::Blocked);
    assert_eq!(machine.retry(PID, Attempt::Interrupted), Came::Back(Err(Errno::INTR)));
    let [seconds, _] = machine.peek::<[u64; 2]>(SCRATCH + 16);
    assert_eq!(seconds, 3599);
    machine.poke(SCRATCH, &[0_u64, 1_000_000_000]);
    assert_eq!(machine.main(sys::__NR_nanosleep, &[SCRATCH, 0]), Err(Errno::INVAL));
    machine.poke(SCRATCH, &[0_u64, 0]);
    assert_eq!(machine.main(sys::__NR_nanosleep, &[SCRATCH, 0]), Ok(0));
}
