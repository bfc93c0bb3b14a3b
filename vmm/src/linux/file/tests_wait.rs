//! epoll_wait, poll and select as system calls: results at the right places, timeouts, masks, hostile arguments.

use linux_raw_sys::general::*;

use super::test_machine::{MAIN, Machine, Reply};
use crate::linux::Errno;
use crate::linux::signal::bit;

const POLLIN: u16 = 1;
const POLLOUT: u16 = 4;
const POLLHUP: u16 = 16;
const POLLNVAL: u16 = 32;
const EPOLL_IN: u32 = 1;

fn eventfd(machine: &mut Machine, count: u64) -> u64 {
    machine.ok(__NR_eventfd2, &[count, 0])
}

fn signal(machine: &mut Machine, event: u64) {
    let at = machine.put(0xf000, &1_u64.to_ne_bytes());
    machine.ok(__NR_write, &[event, at, 8]);
}

fn pollfds(machine: &Machine, entries: &[(i32, u16)]) -> u64 {
    let bytes: Vec<u8> =
        entries.iter().flat_map(|(fd, events)| [&fd.to_ne_bytes()[..], &events.to_ne_bytes(), &[0xee; 2]].concat()).collect();
    machine.put(0, &bytes)
}

fn revents(machine: &Machine, count: usize) -> Vec<u16> {
    machine.get(0, count * 8).chunks(8).map(|entry| u16::from_ne_bytes([entry[6], entry[7]])).collect()
}

fn timespec(machine: &Machine, offset: u64, seconds: i64, nanoseconds: i64) -> u64 {
    machine.put(offset, &[seconds.to_ne_bytes(), nanoseconds.to_ne_bytes()].concat())
}

fn epoll_add(machine: &mut Machine, set: u64, fd: u64, events: u32) {
    let bytes = [&events.to_ne_bytes()[..], &fd.to_ne_bytes()].concat();
    let at = machine.put(0xf100, &bytes);
    machine.ok(__NR_epoll_ctl, &[set, u64::from(EPOLL_CTL_ADD), fd, at]);
}

#[test]
fn poll_puts_every_answer_at_its_entry() {
    let mut machine = Machine::new();
    let (quiet, ready) = (eventfd(&mut machine, 0), eventfd(&mut machine, 1));
    let (quiet, ready) = (quiet as i32, ready as i32);
    let at = pollfds(&machine, &[(quiet, POLLIN), (-1, POLLIN), (ready, POLLIN), (900, POLLIN), (ready, POLLIN | POLLOUT)]);
    assert_eq!(machine.ok(__NR_poll, &[at, 5, 0]), 3);
    assert_eq!(revents(&machine, 5), [0, 0, POLLIN, POLLNVAL, POLLIN | POLLOUT]);
}

#[test]
fn poll_takes_as_many_descriptors_as_the_limit_allows() {
    let mut machine = Machine::new();
    let ready = eventfd(&mut machine, 1) as i32;
    let entries: Vec<(i32, u16)> = (0..1024).map(|index| if index % 256 == 255 { (ready, POLLIN) } else { (-1, 0) }).collect();
    let at = pollfds(&machine, &entries);
    assert_eq!(machine.ok(__NR_poll, &[at, 1024, 0]), 4);
    assert_eq!(revents(&machine, 1024)[1023], POLLIN);
    assert_eq!(machine.errno(__NR_poll, &[at, 1025, 0]), Errno::INVAL);
    assert_eq!(machine.errno(__NR_poll, &[at, u64::from(u32::MAX), 0]), Errno::INVAL);
    assert_eq!(machine.errno(__NR_poll, &[1 << 46, 1, 0]), Errno::FAULT);
}

#[test]
fn a_sleeping_poll_wakes_and_times_out() {
    let mut machine = Machine::new();
    let event = eventfd(&mut machine, 0);
    let at = pollfds(&machine, &[(event as i32, POLLIN)]);
    let thread = machine.thread();
    assert_eq!(machine.call_as(thread, __NR_poll, &[at, 1, u64::MAX]), Reply::Sleeps);
    signal(&mut machine, event);
    assert_eq!(machine.resume(thread), Reply::Value(1));
    let nothing = pollfds(&machine, &[(-1, POLLIN)]);
    assert_eq!(machine.call(__NR_poll, &[nothing, 1, 2]), Reply::Sleeps);
    assert_eq!(machine.settle(MAIN), Reply::Value(0));
}

#[test]
fn ppoll_checks_its_timespec_and_writes_back_what_is_left() {
    let mut machine = Machine::new();
    let event = eventfd(&mut machine, 1);
    let at = pollfds(&machine, &[(event as i32, POLLIN)]);
    for (seconds, nanoseconds) in [(-1, 0), (0, 1_000_000_000), (0, -1)] {
        let time = timespec(&machine, 0x100, seconds, nanoseconds);
        assert_eq!(machine.errno(__NR_ppoll, &[at, 1, time, 0, 0]), Errno::INVAL);
    }
    let time = timespec(&machine, 0x100, 100, 0);
    assert_eq!(machine.ok(__NR_ppoll, &[at, 1, time, 0, 0]), 1);
    assert!((90..100).contains(&machine.long(0x100)));
    let for_ever = timespec(&machine, 0x100, 1 << 62, 0);
    let nothing = pollfds(&machine, &[(-1, POLLIN)]);
    assert_eq!(machine.call(__NR_ppoll, &[nothing, 1, for_ever, 0, 0]), Reply::Sleeps);
}

#[test]
fn ppoll_replaces_the_mask_for_the_length_of_the_call() {
    let mut machine = Machine::new();
    let own = bit(10);
    machine.kernel.set_mask(MAIN, own);
    let mask = machine.put(0x200, &bit(12).to_ne_bytes());
    let nothing = pollfds(&machine, &[(-1, POLLIN)]);
    let time = timespec(&machine, 0x100, 0, 1_000_000);
    assert_eq!(machine.errno(__NR_ppoll, &[nothing, 1, time, mask, 4]), Errno::INVAL);
    assert_eq!(machine.call(__NR_ppoll, &[nothing, 1, time, mask, 8]), Reply::Sleeps);
    assert_eq!(machine.kernel.threads.get_mut(MAIN).signals.blocked, bit(12));
    assert_eq!(machine.settle(MAIN), Reply::Value(0));
    assert_eq!(machine.kernel.threads.get_mut(MAIN).signals.blocked, own);
}

#[test]
fn a_signal_interrupts_a_wait_and_leaves_the_mask_to_its_delivery() {
    let mut machine = Machine::new();
    machine.kernel.set_mask(MAIN, bit(10));
    machine.kernel.process.signals.set_action(10, crate::linux::signal::Action { handler: 0x1000, ..Default::default() });
    let set = machine.ok(__NR_epoll_create1, &[0]);
    let mask = machine.put(0x200, &0_u64.to_ne_bytes());
    let at = machine.base;
    assert_eq!(machine.call(__NR_epoll_pwait, &[set, at, 8, u64::MAX, mask, 8]), Reply::Sleeps);
    machine.kernel.send_thread_signal(MAIN, 10);
    assert_eq!(machine.resume(MAIN), Reply::Error(Errno::INTR));
    assert_eq!(machine.kernel.threads.get_mut(MAIN).signals.saved_mask, Some(bit(10)));
}

fn bits(machine: &Machine, offset: u64, fds: &[u64]) -> u64 {
    let word = fds.iter().fold(0_u64, |word, fd| word | 1 << fd);
    machine.put(offset, &word.to_ne_bytes())
}

#[test]
fn select_answers_in_its_three_sets() {
    let mut machine = Machine::new();
    let at = machine.base;
    machine.ok(__NR_pipe2, &[at, 0]);
    let (reader, writer) = (u64::from(machine.word(0)), u64::from(machine.word(4)));
    let ready = eventfd(&mut machine, 1);
    let (read, write, except) =
        (bits(&machine, 0x100, &[reader, ready]), bits(&machine, 0x110, &[writer, ready]), bits(&machine, 0x120, &[ready]));
    assert_eq!(machine.ok(__NR_select, &[8, read, write, except, 0]), 3);
    assert_eq!((machine.long(0x100), machine.long(0x110), machine.long(0x120)), (1 << ready, 1 << writer | 1 << ready, 0));
    let read = bits(&machine, 0x100, &[60]);
    assert_eq!(machine.errno(__NR_select, &[64, read, 0, 0, 0]), Errno::BADF);
    assert_eq!(machine.errno(__NR_select, &[u64::from(u32::MAX), read, 0, 0, 0]), Errno::INVAL);
    assert_eq!(machine.errno(__NR_select, &[64, 1 << 46, 0, 0, 0]), Errno::FAULT);
}

#[test]
fn select_times_out_with_empty_sets_and_takes_odd_timevals() {
    let mut machine = Machine::new();
    let quiet = eventfd(&mut machine, 0);
    let read = bits(&machine, 0x100, &[quiet]);
    let time = timespec(&machine, 0x200, 0, 1500);
    assert_eq!(machine.call(__NR_select, &[8, read, 0, 0, time]), Reply::Sleeps);
    assert_eq!(machine.settle(MAIN), Reply::Value(0));
    assert_eq!((machine.long(0x100), machine.long(0x200), machine.long(0x208)), (0, 0, 0));
    let read = bits(&machine, 0x100, &[quiet]);
    let time = timespec(&machine, 0x200, 1, 2_500_000);
    let thread = machine.thread();
    assert_eq!(machine.call_as(thread, __NR_select, &[8, read, 0, 0, time]), Reply::Sleeps);
    signal(&mut machine, quiet);
    assert_eq!(machine.resume(thread), Reply::Value(1));
    assert_eq!(machine.long(0x200), 3);
    let time = timespec(&machine, 0x200, -1, 0);
    assert_eq!(machine.errno(__NR_select, &[8, read, 0, 0, time]), Errno::INVAL);
}

#[test]
fn a_hang_up_does_not_wake_who_waits_for_exceptions_only() {
    let mut machine = Machine::new();
    let at = machine.base;
    machine.ok(__NR_pipe2, &[at, 0]);
    let (reader, writer) = (u64::from(machine.word(0)), u64::from(machine.word(4)));
    let except = bits(&machine, 0x100, &[reader]);
    let thread = machine.thread();
    assert_eq!(machine.call_as(thread, __NR_select, &[8, 0, 0, except, 0]), Reply::Sleeps);
    machine.ok(__NR_close, &[writer]);
    assert_eq!(machine.kernel.wait_over(thread, 0), None);
    let at = pollfds(&machine, &[(reader as i32, POLLIN)]);
    assert_eq!(machine.ok(__NR_poll, &[at, 1, 0]), 1);
    assert_eq!(revents(&machine, 1), [POLLHUP]);
}

#[test]
fn epoll_wait_checks_its_arguments_and_keeps_what_it_could_not_store() {
    let mut machine = Machine::new();
    let set = machine.ok(__NR_epoll_create1, &[0]);
    let event = eventfd(&mut machine, 1);
    epoll_add(&mut machine, set, event, EPOLL_IN | 1 << 31);
    let at = machine.base;
    assert_eq!(machine.errno(__NR_epoll_wait, &[set, at, 0, 0]), Errno::INVAL);
    assert_eq!(machine.errno(__NR_epoll_wait, &[set, at, u64::from(u32::MAX), 0]), Errno::INVAL);
    assert_eq!(machine.errno(__NR_epoll_wait, &[event, at, 8, 0]), Errno::INVAL);
    assert_eq!(machine.errno(__NR_epoll_wait, &[99, at, 8, 0]), Errno::BADF);
    assert_eq!(machine.errno(__NR_epoll_wait, &[set, 1 << 46, 8, 0]), Errno::FAULT);
    // Inside the address space, but nothing is mapped there: the edge is not spent.
    assert_eq!(machine.errno(__NR_epoll_wait, &[set, 0x1000, 8, 0]), Errno::FAULT);
    assert_eq!(machine.ok(__NR_epoll_wait, &[set, at, 8, 0]), 1);
    assert_eq!((machine.word(0), machine.get(4, 8)), (EPOLL_IN, event.to_ne_bytes().to_vec()));
    assert_eq!(machine.ok(__NR_epoll_wait, &[set, at, 8, 0]), 0);
}

#[test]
fn epoll_ctl_refuses_what_cannot_be_watched() {
    let mut machine = Machine::new();
    let set = machine.ok(__NR_epoll_create1, &[0]);
    let at = machine.put(0x100, &[0; 12]);
    let path = machine.put(0x200, b"/dev/null\0");
    let null = machine.ok(__NR_openat, &[u64::MAX - 99, path, 0, 0]);
    assert_eq!(machine.errno(__NR_epoll_ctl, &[set, u64::from(EPOLL_CTL_ADD), null, at]), Errno::PERM);
    assert_eq!(machine.errno(__NR_epoll_ctl, &[set, u64::from(EPOLL_CTL_ADD), set, at]), Errno::INVAL);
    assert_eq!(machine.errno(__NR_epoll_ctl, &[set, u64::from(EPOLL_CTL_ADD), 77, at]), Errno::BADF);
    let event = eventfd(&mut machine, 0);
    assert_eq!(machine.errno(__NR_epoll_ctl, &[set, 9, event, at]), Errno::INVAL);
    assert_eq!(machine.errno(__NR_epoll_ctl, &[set, u64::from(EPOLL_CTL_ADD), event, 1 << 46]), Errno::FAULT);
    assert_eq!(machine.errno(__NR_epoll_ctl, &[set, u64::from(EPOLL_CTL_DEL), event, 0]), Errno::NOENT);
}

#[test]
fn a_blocked_epoll_wait_wakes_through_a_nested_set() {
    let mut machine = Machine::new();
    let (outer, inner) = (machine.ok(__NR_epoll_create1, &[0]), machine.ok(__NR_epoll_create1, &[0]));
    let event = eventfd(&mut machine, 0);
    epoll_add(&mut machine, outer, inner, EPOLL_IN);
    epoll_add(&mut machine, inner, event, EPOLL_IN);
    let at = machine.base;
    let thread = machine.thread();
    assert_eq!(machine.call_as(thread, __NR_epoll_wait, &[outer, at, 8, u64::MAX]), Reply::Sleeps);
    assert_eq!(machine.resume(thread), Reply::Sleeps);
    signal(&mut machine, event);
    assert_eq!(machine.resume(thread), Reply::Value(1));
    assert_eq!(machine.get(4, 8), inner.to_ne_bytes());
}
