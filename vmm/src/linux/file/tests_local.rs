//! Pipes, pairs, eventfd, timerfd as programs use them: end of file, EPIPE, atomic writes, blocking, hostile pointers.

use linux_raw_sys::general::*;
use linux_raw_sys::net::{AF_INET, AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_PEEK, MSG_TRUNC, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM};
use proptest::prelude::*;

use super::test_machine::{MAIN, Machine, Reply};
use crate::linux::Errno;
use crate::linux::signal::bit;

const SIGPIPE_BIT: u64 = bit(SIGPIPE as i32);

fn pipe(machine: &mut Machine, flags: u32) -> (u64, u64) {
    let at = machine.base;
    machine.ok(__NR_pipe2, &[at, u64::from(flags)]);
    (u64::from(machine.word(0)), u64::from(machine.word(4)))
}

fn pair(machine: &mut Machine, kind: u32) -> (u64, u64) {
    let at = machine.base;
    machine.ok(__NR_socketpair, &[u64::from(AF_UNIX), u64::from(kind), 0, at]);
    (u64::from(machine.word(0)), u64::from(machine.word(4)))
}

fn write(machine: &mut Machine, fd: u64, bytes: &[u8]) -> Reply {
    let at = machine.put(0x1_0000, bytes);
    machine.call(__NR_write, &[fd, at, bytes.len() as u64])
}

fn read(machine: &mut Machine, fd: u64, most: u64) -> Result<Vec<u8>, Errno> {
    let at = machine.base + 0x8_0000;
    match machine.call(__NR_read, &[fd, at, most]) {
        Reply::Value(count) => Ok(machine.get(0x8_0000, count as usize)),
        Reply::Error(errno) => Err(errno),
        Reply::Sleeps => Err(Errno::WOULDBLOCK),
    }
}

#[test]
fn a_pipe_ends_when_its_writers_are_gone_and_breaks_when_its_readers_are() {
    let mut machine = Machine::new();
    let (reader, writer) = pipe(&mut machine, 0);
    assert_eq!(write(&mut machine, writer, b"hello"), Reply::Value(5));
    let duplicate = machine.ok(__NR_dup, &[writer]);
    machine.ok(__NR_close, &[writer]);
    assert_eq!(read(&mut machine, reader, 3), Ok(b"hel".to_vec()));
    machine.ok(__NR_close, &[duplicate]);
    assert_eq!(read(&mut machine, reader, 100), Ok(b"lo".to_vec()));
    assert_eq!(read(&mut machine, reader, 100), Ok(Vec::new()));

    let (reader, writer) = pipe(&mut machine, 0);
    machine.ok(__NR_close, &[reader]);
    assert_eq!(write(&mut machine, writer, b""), Reply::Value(0));
    assert_eq!(write(&mut machine, writer, b"x"), Reply::Error(Errno::PIPE));
    assert_ne!(machine.kernel.pending_signals(MAIN) & SIGPIPE_BIT, 0);
}

#[test]
fn small_writes_to_a_pipe_are_never_split_and_large_ones_block_in_between() {
    let mut machine = Machine::new();
    let (reader, writer) = pipe(&mut machine, O_NONBLOCK);
    assert_eq!(write(&mut machine, writer, &[1; 62_000]), Reply::Value(62_000));
    assert_eq!(write(&mut machine, writer, &[2; 4096]), Reply::Error(Errno::AGAIN));
    assert_eq!(write(&mut machine, writer, &[2; 5000]), Reply::Value(3536));
    assert_eq!(read(&mut machine, reader, 65_536).map(|bytes| bytes.len()), Ok(65_536));

    let (reader, writer) = pipe(&mut machine, 0);
    let thread = machine.thread();
    let at = machine.put(0x1_0000, &[7; 150_000]);
    assert_eq!(machine.call_as(thread, __NR_write, &[writer, at, 150_000]), Reply::Sleeps);
    assert_eq!(read(&mut machine, reader, 65_536).map(|bytes| bytes.len()), Ok(65_536));
    assert_eq!(machine.resume(thread), Reply::Sleeps);
    assert_eq!(read(&mut machine, reader, 65_536).map(|bytes| bytes.len()), Ok(65_536));
    assert_eq!(machine.resume(thread), Reply::Value(150_000));
}

#[test]
fn a_writer_that_is_interrupted_answers_with_what_it_has_written() {
    let mut machine = Machine::new();
    let (reader, writer) = pipe(&mut machine, 0);
    let thread = machine.thread();
    let at = machine.put(0x1_0000, &[7; 70_000]);
    assert_eq!(machine.call_as(thread, __NR_write, &[writer, at, 70_000]), Reply::Sleeps);
    machine.ok(__NR_close, &[reader]);
    assert_eq!(machine.resume(thread), Reply::Value(65_536));
}

#[test]
fn packets_keep_their_bounds_in_a_pipe_with_o_direct() {
    let mut machine = Machine::new();
    let (reader, writer) = pipe(&mut machine, O_DIRECT | O_NONBLOCK);
    write(&mut machine, writer, b"first");
    write(&mut machine, writer, b"second");
    assert_eq!(read(&mut machine, reader, 3), Ok(b"fir".to_vec()));
    assert_eq!(read(&mut machine, reader, 100), Ok(b"second".to_vec()));
    assert_eq!(read(&mut machine, reader, 100), Err(Errno::AGAIN));
}

#[test]
fn hostile_arguments_get_errnos() {
    let mut machine = Machine::new();
    let at = machine.base;
    assert_eq!(machine.errno(__NR_pipe2, &[at, u64::from(O_APPEND)]), Errno::INVAL);
    assert_eq!(machine.errno(__NR_pipe2, &[u64::MAX - 3, 0]), Errno::FAULT);
    assert_eq!(machine.kernel.process.fds.iter().count(), 0);
    assert_eq!(machine.errno(__NR_socketpair, &[u64::from(AF_INET), u64::from(SOCK_STREAM), 0, at]), Errno::OPNOTSUPP);
    let (reader, writer) = pipe(&mut machine, 0);
    assert_eq!(machine.errno(__NR_write, &[reader, at, 1]), Errno::BADF);
    assert_eq!(machine.errno(__NR_read, &[writer, at, 1]), Errno::BADF);
    assert_eq!(machine.errno(__NR_write, &[writer, 1 << 46, 10]), Errno::FAULT);
    write(&mut machine, writer, b"kept");
    assert_eq!(machine.errno(__NR_read, &[reader, 1 << 46, 10]), Errno::FAULT);
    assert_eq!(read(&mut machine, reader, 10), Ok(b"kept".to_vec()));
}

#[test]
fn a_unix_pair_says_that_its_peer_has_gone() {
    let mut machine = Machine::new();
    let (one, other) = pair(&mut machine, SOCK_STREAM);
    write(&mut machine, one, b"bye");
    machine.ok(__NR_close, &[one]);
    assert_eq!(read(&mut machine, other, 10), Ok(b"bye".to_vec()));
    assert_eq!(read(&mut machine, other, 10), Ok(Vec::new()));
    let at = machine.base;
    assert_eq!(machine.errno(__NR_sendto, &[other, at, 1, u64::from(MSG_NOSIGNAL), 0, 0]), Errno::PIPE);
    assert_eq!(machine.kernel.pending_signals(MAIN) & SIGPIPE_BIT, 0);
    assert_eq!(write(&mut machine, other, b"x"), Reply::Error(Errno::PIPE));
    assert_ne!(machine.kernel.pending_signals(MAIN) & SIGPIPE_BIT, 0);
}

#[test]
fn closing_with_unread_bytes_resets_the_peer() {
    let mut machine = Machine::new();
    let (one, other) = pair(&mut machine, SOCK_STREAM);
    write(&mut machine, other, b"never read");
    machine.ok(__NR_close, &[one]);
    assert_eq!(read(&mut machine, other, 10), Err(Errno::CONNRESET));
    assert_eq!(read(&mut machine, other, 10), Ok(Vec::new()));
}

#[test]
fn shutdown_closes_one_direction() {
    let mut machine = Machine::new();
    let (one, other) = pair(&mut machine, SOCK_STREAM);
    write(&mut machine, one, b"last");
    machine.ok(__NR_shutdown, &[one, 1]);
    assert_eq!(write(&mut machine, one, b"x"), Reply::Error(Errno::PIPE));
    assert_eq!(read(&mut machine, other, 10), Ok(b"last".to_vec()));
    assert_eq!(read(&mut machine, other, 10), Ok(Vec::new()));
    assert_eq!(write(&mut machine, other, b"answer"), Reply::Value(6));
    assert_eq!(read(&mut machine, one, 10), Ok(b"answer".to_vec()));
    assert_eq!(machine.errno(__NR_shutdown, &[one, 3]), Errno::INVAL);
}

#[test]
fn datagrams_and_packets_keep_their_bounds() {
    for kind in [SOCK_DGRAM, SOCK_SEQPACKET] {
        let mut machine = Machine::new();
        let (one, other) = pair(&mut machine, kind | O_NONBLOCK);
        for message in [b"longer".as_slice(), b"", b"end"] {
            assert_eq!(write(&mut machine, one, message), Reply::Value(message.len() as u64));
        }
        let at = machine.base;
        let flags = u64::from(MSG_PEEK | MSG_TRUNC);
        assert_eq!(machine.ok(__NR_recvfrom, &[other, at, 2, flags, 0, 0]), 6);
        assert_eq!(read(&mut machine, other, 2), Ok(b"lo".to_vec()));
        assert_eq!(read(&mut machine, other, 9), Ok(Vec::new()));
        assert_eq!(read(&mut machine, other, 9), Ok(b"end".to_vec()));
        assert_eq!(write(&mut machine, one, &[0; 70_000]), Reply::Error(Errno::MSGSIZE));
        machine.ok(__NR_close, &[one]);
        let ended = if kind == SOCK_DGRAM { Err(Errno::AGAIN) } else { Ok(Vec::new()) };
        assert_eq!(read(&mut machine, other, 9), ended);
        let refused = if kind == SOCK_DGRAM { Errno::CONNREFUSED } else { Errno::PIPE };
        assert_eq!(write(&mut machine, other, b"x"), Reply::Error(refused));
    }
}

#[test]
fn dontwait_does_not_wait() {
    let mut machine = Machine::new();
    let (one, _) = pair(&mut machine, SOCK_STREAM);
    let at = machine.base;
    assert_eq!(machine.errno(__NR_recvfrom, &[one, at, 1, u64::from(MSG_DONTWAIT), 0, 0]), Errno::AGAIN);
    assert_eq!(machine.call(__NR_recvfrom, &[one, at, 1, 0, 0, 0]), Reply::Sleeps);
}

#[test]
fn eventfd_wakes_its_reader() {
    let mut machine = Machine::new();
    let event = machine.ok(__NR_eventfd2, &[0, 0]);
    let thread = machine.thread();
    let at = machine.base + 0x100;
    assert_eq!(machine.call_as(thread, __NR_read, &[event, at, 8]), Reply::Sleeps);
    assert_eq!(machine.resume(thread), Reply::Sleeps);
    assert_eq!(write(&mut machine, event, &5_u64.to_ne_bytes()), Reply::Value(8));
    assert_eq!(machine.resume(thread), Reply::Value(8));
    assert_eq!(machine.long(0x100), 5);
    assert_eq!(write(&mut machine, event, &[0; 7]), Reply::Error(Errno::INVAL));
    assert_eq!(write(&mut machine, event, &[0xff; 8]), Reply::Error(Errno::INVAL));
    assert_eq!(machine.errno(__NR_eventfd2, &[0, 4]), Errno::INVAL);
}

#[test]
fn a_write_that_does_not_fit_into_an_eventfd_sleeps_until_it_does() {
    let mut machine = Machine::new();
    let event = machine.ok(__NR_eventfd2, &[0, u64::from(EFD_SEMAPHORE)]);
    write(&mut machine, event, &(u64::MAX - 11).to_ne_bytes());
    let thread = machine.thread();
    let at = machine.put(0, &11_u64.to_ne_bytes());
    assert_eq!(machine.call_as(thread, __NR_write, &[event, at, 8]), Reply::Sleeps);
    // POLLOUT is set, and yet this writer must not be woken again and again.
    assert_eq!(machine.kernel.wait_over(thread, 0), None);
    assert_eq!(read(&mut machine, event, 8).map(|bytes| bytes.len()), Ok(8));
    assert_eq!(machine.resume(thread), Reply::Value(8));
}

#[test]
fn timerfd_fires_by_itself() {
    let mut machine = Machine::new();
    let timer = machine.ok(__NR_timerfd_create, &[u64::from(CLOCK_MONOTONIC), 0]);
    let setting: Vec<u8> = [0_u64, 0, 0, 2_000_000].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let at = machine.put(0, &setting);
    machine.ok(__NR_timerfd_settime, &[timer, 0, at, 0]);
    assert_eq!(machine.call(__NR_read, &[timer, at, 8]), Reply::Sleeps);
    assert!(machine.kernel.files.next_timer(machine.kernel.clock.monotonic()).is_some());
    assert_eq!(machine.settle(MAIN), Reply::Value(8));
    assert_eq!((machine.long(0), machine.kernel.files.next_timer(machine.kernel.clock.monotonic())), (1, None));
    let bad: Vec<u8> = [0_u64, 0, 0, 1_000_000_000].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let at = machine.put(0, &bad);
    assert_eq!(machine.errno(__NR_timerfd_settime, &[timer, 0, at, 0]), Errno::INVAL);
}

#[test]
fn signalfd_takes_what_is_blocked() {
    let mut machine = Machine::new();
    let mask = machine.put(0, &SIGPIPE_BIT.to_ne_bytes());
    let signals = machine.ok(__NR_signalfd4, &[u64::MAX, mask, 8, 0]);
    machine.kernel.set_mask(MAIN, SIGPIPE_BIT);
    let at = machine.base + 0x100;
    assert_eq!(machine.errno(__NR_read, &[signals, at, 127]), Errno::INVAL);
    assert_eq!(machine.call(__NR_read, &[signals, at, 256]), Reply::Sleeps);
    machine.kernel.send_thread_signal(MAIN, SIGPIPE as i32);
    assert_eq!(machine.resume(MAIN), Reply::Value(128));
    assert_eq!(machine.word(0x100), SIGPIPE);
    assert_eq!(machine.kernel.pending_signals(MAIN), 0);
}

proptest! {
    #![proptest_config(crate::fuzzing::cases(64))]

    /// Whatever the sizes of the writes and reads, the bytes come out as they went in.
    #[test]
    fn bytes_come_out_as_they_went_in(sizes in prop::collection::vec((1_usize..30_000, 1_u64..30_000), 1..30), over_pair in any::<bool>()) {
        let mut machine = Machine::new();
        let (reader, writer) = if over_pair { pair(&mut machine, SOCK_STREAM | O_NONBLOCK) } else { pipe(&mut machine, O_NONBLOCK) };
        let (mut sent, mut seen) = (Vec::<u8>::new(), Vec::<u8>::new());
        let mut next = 0_u8;
        for (length, most) in sizes {
            let bytes: Vec<u8> = (0..length).map(|_| { next = next.wrapping_mul(5).wrapping_add(3); next }).collect();
            if let Reply::Value(count) = write(&mut machine, writer, &bytes) {
                sent.extend(&bytes[..count as usize]);
            }
            if let Ok(bytes) = read(&mut machine, reader, most) {
                seen.extend(bytes);
            }
        }
        machine.ok(__NR_close, &[writer]);
        while let Ok(bytes) = read(&mut machine, reader, 65_536) {
            if bytes.is_empty() { break }
            seen.extend(bytes);
        }
        prop_assert_eq!(sent, seen);
    }
}
