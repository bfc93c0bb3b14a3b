//! What is told is what is, what honest guests log comes to the same as the calls themselves, and garbage comes to nothing.

use linux_raw_sys::general as nr;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::replay::Lie;
use crate::fast_path::{FastPath, LOG_ENTRIES, Logged, OUTPUT_BYTES, SEEN, State, Stream};
use crate::linux::Errno;
use crate::linux::file::epoll::EpollSet;
use crate::linux::file::socket_address::{Address, Family, Kind};
use crate::linux::file::socket_base::SocketBase;
use crate::linux::file::stream::Listener;
use crate::linux::file::stream_host::StreamHandle;
use crate::linux::file::{File, FileId};
use crate::linux::testing::{Came, MEMORY, Machine, PID};

/// Descriptors of the machine below: its listener and its epoll set; the stream gets the next one.
const LISTENER: u64 = 0;
const SET: u64 = 1;
const STREAM: u64 = 2;
/// Those of [`Scene::with_events`]: a semaphore, and an eventfd that is none.
const SEMAPHORE: u64 = 3;
const EVENT: u64 = 4;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
const NONBLOCK: u32 = nr::O_NONBLOCK;

fn address(text: &str) -> Address {
    Address::Inet(text.parse().expect("an address"))
}

/// A machine with a fast path, a listener that a set watches, and a client that has sent its request.
struct Scene {
    machine: Machine,
    fast: FastPath,
    client: StreamHandle,
}

fn install(machine: &mut Machine, file: File, flags: u32) -> FileId {
    let id = machine.kernel.files.add(file, flags).expect("room");
    machine.kernel.install_fd(id, false).expect("room");
    id
}

impl Scene {
    fn new() -> Self {
        let mut machine = Machine::new();
        let fast = FastPath::in_space_of(machine.space.size());
        machine.space.map_fast_path(fast).expect("room");
        let mut base = SocketBase::new(Family::Inet, Kind::Stream, 6);
        base.local = address("127.0.0.1:80");
        let mut listening = Listener::new(base, None);
        (listening.listening, listening.backlog) = (true, 8);
        let listener = install(&mut machine, File::Listener(listening), nr::O_RDWR | NONBLOCK);
        install(&mut machine, File::Epoll(EpollSet::default()), nr::O_RDWR);
        machine.poke(MEMORY, &[1_u32, 7, 0]);
        machine.main(nr::__NR_epoll_ctl, &[SET, 1, LISTENER, MEMORY]).expect("added");
        let client = machine.kernel.connect_stream(listener, &address("192.0.2.7:4711")).expect("queued");
        assert_eq!(machine.kernel.stream_push(client, REQUEST), REQUEST.len());
        Self { machine, fast, client }
    }

    /// With two eventfds that start at these counts, above the descriptor that the stream will get.
    fn with_events(semaphore: u32, event: u32) -> Self {
        let mut scene = Self::new();
        let machine = &mut scene.machine;
        let flags = u64::from(NONBLOCK);
        assert_eq!(machine.main(nr::__NR_eventfd2, &[event.into(), flags]), Ok(STREAM));
        assert_eq!(machine.main(nr::__NR_eventfd2, &[semaphore.into(), flags | u64::from(nr::EFD_SEMAPHORE)]), Ok(SEMAPHORE));
        assert_eq!(machine.main(nr::__NR_dup2, &[STREAM, EVENT]), Ok(EVENT));
        machine.main(nr::__NR_close, &[STREAM]).expect("closed");
        scene
    }

    /// What an eventfd has counted.
    fn count(&self, fd: u64) -> u64 {
        let kernel = &self.machine.kernel;
        let file = kernel.process.fds.get(fd as i32).expect("open");
        let File::Event(event) = &kernel.files.get(file).expect("open").file else { panic!("no eventfd") };
        event.count
    }

    fn tell(&self) -> Option<State> {
        let memory = self.machine.space.memory();
        let told = self.machine.kernel.tell_fast_path(memory, self.fast, PID, self.client).expect("memory");
        told.then(|| memory.read(self.fast.state()).expect("memory"))
    }

    /// Let the guest log these calls, and repeat them.
    fn replay(&mut self, calls: &[Logged], output: &[u8]) -> Result<(), Lie> {
        self.replay_counted(calls, calls.len() as u64, output)
    }

    /// The same, where the log says that it holds `count` calls.
    fn replay_counted(&mut self, calls: &[Logged], count: u64, output: &[u8]) -> Result<(), Lie> {
        let Self { machine, fast, client } = self;
        let memory = machine.space.memory();
        for (index, call) in calls.iter().enumerate() {
            memory.write(fast.log(index), call).expect("memory");
        }
        memory.write(fast.state() + 8, &count).expect("memory");
        memory.write_bytes(fast.output(), output).expect("memory");
        machine.kernel.replay_fast_path(memory, *fast, PID, *client).map(drop)
    }

    /// All files and descriptors, as text; without the count of changes, which only makes sleepers look again.
    fn text(&mut self) -> String {
        self.machine.kernel.files.changes = 0;
        format!("{:?} {:?}", self.machine.kernel.files, self.machine.kernel.process.fds)
    }
}

fn logged(number: u32, args: &[u64], result: i64) -> Logged {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Logged { number, result, args: all, ..Logged::default() }
}

fn accepted() -> Logged {
    logged(nr::__NR_accept4, &[LISTENER, 0, 0, u64::from(NONBLOCK)], 2)
}

const AGAIN: i64 = -11;

#[test]
fn what_is_told_is_what_is() {
    let mut scene = Scene::new();
    let state = scene.tell().expect("a client that waits alone");
    let Stream { fd, input_end, input_more, peer_bytes, peer, is_tcp, .. } = state.stream;
    assert_eq!((fd, input_end, input_more, peer_bytes, is_tcp), (-1, REQUEST.len() as u32, 0, 16, 1));
    assert_eq!(&peer[..8], [2, 0, 0x12, 0x67, 192, 0, 2, 7]);
    assert_eq!((state.listener_count, state.set_count, state.member_count, state.free_fd, state.pending_file), (1, 1, 1, 2, 0));
    assert_eq!((state.sets[0].may_wait, state.members[0].data, state.members[0].seen, state.alone), (1, 7, 0, 1));
    let input = scene.machine.space.memory().read_vec(scene.fast.input(), REQUEST.len()).expect("memory");
    assert_eq!(input, REQUEST);
    scene.replay(&[accepted()], b"").expect("it waits");
    let state = scene.tell().expect("an open stream");
    assert_eq!((state.stream.fd, state.stream.flags, state.pending_file, state.free_fd), (2, nr::O_RDWR | NONBLOCK, -1, 3));
    assert_eq!(state.listeners[0].says_again, 1);
    // A second descriptor, an end to reading: the host has to answer.
    scene.machine.main(nr::__NR_dup, &[STREAM]).expect("a descriptor");
    assert_eq!(scene.tell(), None);
    scene.machine.main(nr::__NR_close, &[3]).expect("closed");
    assert!(scene.tell().is_some_and(|state| state.stream.output_end > 0));
    scene.machine.main(nr::__NR_shutdown, &[STREAM, 1]).expect("shut");
    assert!(scene.tell().is_some_and(|state| state.stream.output_end == 0), "only writing is over");
    scene.machine.main(nr::__NR_shutdown, &[STREAM, 0]).expect("shut");
    assert_eq!(scene.tell(), None);
}

#[test]
fn a_set_that_may_be_ready_otherwise_is_not_waited_for_inside() {
    let mut scene = Scene::new();
    // A pipe that is ready; then one that is not, and a set in the set.
    scene.machine.main(nr::__NR_pipe2, &[MEMORY + 32, 0]).expect("descriptors");
    let [pipe, writer]: [u32; 2] = scene.machine.peek(MEMORY + 32);
    scene.machine.main(nr::__NR_write, &[writer.into(), MEMORY, 8]).expect("written");
    scene.machine.poke(MEMORY, &[1_u32, 0, 0]);
    scene.machine.main(nr::__NR_epoll_ctl, &[SET, 1, pipe.into(), MEMORY]).expect("added");
    let may_wait = |scene: &Scene| scene.tell().map(|state| (state.set_count, state.sets[0].may_wait));
    assert_eq!(may_wait(&scene), Some((1, 0)));
    scene.machine.main(nr::__NR_read, &[pipe.into(), MEMORY + 64, 8]).expect("read");
    assert_eq!(may_wait(&scene), Some((1, 1)));
    let inner = scene.machine.main(nr::__NR_epoll_create1, &[0]).expect("a descriptor");
    assert_eq!(scene.tell().map(|state| state.set_count), Some(2));
    scene.machine.main(nr::__NR_epoll_ctl, &[SET, 1, inner, MEMORY]).expect("added");
    assert_eq!(may_wait(&scene), Some((1, 0)), "the inner set is not told of, the outer one may be ready through it");
    // Another thread that sleeps until the set is ready would have to be woken.
    scene.machine.main(nr::__NR_epoll_ctl, &[SET, 2, LISTENER, 0]).expect("removed");
    let other = scene.machine.thread();
    assert_eq!(scene.machine.call(other, nr::__NR_epoll_wait, &[SET, MEMORY, 1, u64::MAX]), Came::Blocked);
    assert_eq!(scene.tell().map(|state| state.set_count), Some(0));
}

#[test]
fn what_honest_guests_log_comes_to_the_same_as_the_calls() {
    let (mut inside, mut outside) = (Scene::new(), Scene::new());
    let mut event = 0;
    for scene in [&mut inside, &mut outside] {
        scene.machine.main(nr::__NR_eventfd2, &[0, u64::from(NONBLOCK)]).expect("a descriptor");
        event = scene.machine.main(nr::__NR_dup2, &[2, 9]).expect("a descriptor");
        scene.machine.main(nr::__NR_close, &[2]).expect("closed");
    }
    let edge = Logged { events: 1 << 31 | 5, data: 99, ..logged(nr::__NR_epoll_ctl, &[SET, 1, STREAM, MEMORY], 0) };
    let option = Logged { data: 1, ..logged(nr::__NR_setsockopt, &[STREAM, 6, 1, MEMORY + 16, 4], 0) };
    let calls = [
        logged(nr::__NR_epoll_wait, &[SET, MEMORY + 100, 4, u64::MAX], 1),
        accepted(),
        logged(nr::__NR_accept4, &[LISTENER, 0, 0, 0], AGAIN),
        edge,
        option,
        logged(nr::__NR_getpeername, &[STREAM, MEMORY + 200, MEMORY + 300], 0),
        logged(nr::__NR_epoll_wait, &[SET, MEMORY + 100, 4, u64::MAX], 1),
        logged(nr::__NR_epoll_wait, &[SET, MEMORY + 100, 4, 0], 0),
        logged(nr::__NR_recvfrom, &[STREAM, MEMORY + 400, 7, 0, 0, 0], 7),
        logged(nr::__NR_read, &[STREAM, MEMORY + 400, 500], REQUEST.len() as i64 - 7),
        logged(nr::__NR_read, &[STREAM, MEMORY + 400, 500], AGAIN),
        logged(nr::__NR_fcntl, &[STREAM, u64::from(nr::F_SETFD), 1], 0),
        logged(nr::__NR_fcntl, &[STREAM, u64::from(nr::F_GETFL), 0], i64::from(nr::O_RDWR | NONBLOCK)),
        logged(nr::__NR_write, &[STREAM, MEMORY + 500, 5], 5),
        logged(nr::__NR_sendto, &[STREAM, MEMORY + 503, 2, 0x4000, 0, 0], 2),
        logged(nr::__NR_epoll_ctl, &[SET, 2, STREAM, 0], 0),
        logged(nr::__NR_getpid, &[], i64::from(PID)),
        logged(nr::__NR_futex, &[MEMORY, 129, 1], 0),
        logged(nr::__NR_read, &[event, MEMORY + 600, 8], AGAIN),
        Logged { data: 3, ..logged(nr::__NR_write, &[event, MEMORY + 608, 8], 8) },
        Logged { events: 1 << 31 | 1, ..logged(nr::__NR_epoll_ctl, &[SET, 1, event, MEMORY + 616], 0) },
        logged(nr::__NR_epoll_wait, &[SET, MEMORY + 100, 4, 0], 1),
        Logged { data: 3, ..logged(nr::__NR_write, &[event, MEMORY + 608, 8], 8) },
        logged(nr::__NR_epoll_wait, &[SET, MEMORY + 100, 4, 0], 1),
        logged(nr::__NR_read, &[event, MEMORY + 600, 9], 8),
        logged(nr::__NR_poll, &[MEMORY + 640, 2, 0], 1),
    ];
    outside.machine.poke(MEMORY + 608, &3_u64);
    outside.machine.poke(MEMORY + 616, &[1_u32 << 31 | 1, 0, 0]);
    outside.machine.poke(MEMORY + 640, &[STREAM as u32, 1 | 4, event as u32, 1]);
    outside.machine.poke(MEMORY, &[1_u32 << 31 | 5, 99, 0]);
    outside.machine.poke(MEMORY + 16, &1_u32);
    outside.machine.poke(MEMORY + 300, &16_u32);
    outside.machine.space.memory().write_bytes(MEMORY + 500, b"hello").expect("memory");
    for call in &calls {
        let came = outside.machine.main(call.number, &call.args);
        let result = came.map_or_else(|errno: Errno| -i64::from(errno.raw_os_error()), |value| value as i64);
        assert_eq!(result, call.result, "{call:?}");
    }
    inside.replay(&calls, b"hellolo").expect("true");
    assert_eq!(inside.text(), outside.text());
    assert_eq!(inside.machine.kernel.stream_take(inside.client, 100), b"hellolo");
}

#[test]
fn an_edge_that_was_reported_is_told_as_spent() {
    let mut scene = Scene::new();
    let edge = Logged { events: 1 << 31 | 1, ..logged(nr::__NR_epoll_ctl, &[SET, 1, STREAM, MEMORY], 0) };
    scene.replay(&[accepted(), edge, logged(nr::__NR_epoll_wait, &[SET, MEMORY, 4, 0], 1)], b"").expect("true");
    let member = |scene: &Scene| scene.tell().map(|state| (state.member_count, state.members[1].seen)).expect("open");
    assert_eq!(member(&scene), (2, SEEN));
    scene.machine.kernel.stream_push(scene.client, b"more");
    assert_eq!(member(&scene), (2, SEEN | crate::fast_path::SEEN_ARRIVALS));
}

#[test]
fn every_kind_of_lie_is_found() {
    let lies = [
        vec![logged(nr::__NR_read, &[STREAM, MEMORY, 5], 5)],
        vec![accepted(), accepted()],
        vec![logged(nr::__NR_accept4, &[LISTENER, 0, 0, 0], 3)],
        vec![logged(nr::__NR_accept4, &[LISTENER, 0, 0, 0], AGAIN)],
        vec![logged(nr::__NR_accept4, &[LISTENER, 0, 0, 1], 2)],
        vec![logged(nr::__NR_accept4, &[SET, 0, 0, 0], 2)],
        vec![accepted(), logged(nr::__NR_read, &[STREAM, MEMORY, 500], 19)],
        vec![accepted(), logged(nr::__NR_read, &[STREAM, MEMORY, 500], 0)],
        vec![accepted(), logged(nr::__NR_read, &[STREAM, MEMORY, 500], AGAIN)],
        vec![accepted(), logged(nr::__NR_read, &[STREAM, MEMORY, 500], -14)],
        vec![accepted(), logged(nr::__NR_read, &[LISTENER, MEMORY, 500], 1)],
        vec![accepted(), logged(nr::__NR_write, &[STREAM, MEMORY, 5], 0)],
        vec![accepted(), logged(nr::__NR_write, &[STREAM, MEMORY, 5], 16_385)],
        vec![accepted(), logged(nr::__NR_write, &[STREAM, MEMORY, 5], 16_384), logged(nr::__NR_write, &[STREAM, MEMORY, 5], 1)],
        vec![accepted(), logged(nr::__NR_write, &[STREAM, MEMORY, 5], i64::MIN)],
        vec![logged(nr::__NR_epoll_wait, &[SET, MEMORY, 4, 0], 2)],
        vec![logged(nr::__NR_epoll_wait, &[SET, MEMORY, 4, 0], 0)],
        vec![logged(nr::__NR_epoll_wait, &[SET, MEMORY, u64::MAX, 0], 1)],
        vec![logged(nr::__NR_epoll_wait, &[LISTENER, MEMORY, 1, 0], 1)],
        vec![logged(nr::__NR_epoll_ctl, &[SET, 1, SET, 0], 0)],
        vec![logged(nr::__NR_epoll_ctl, &[SET, 1, LISTENER, 0], 0)],
        vec![accepted(), logged(nr::__NR_setsockopt, &[STREAM, 6, 4711, 0, 4], 0)],
        vec![accepted(), logged(nr::__NR_fcntl, &[STREAM, u64::from(nr::F_DUPFD), 0], 3)],
        vec![accepted(), logged(nr::__NR_ioctl, &[STREAM, 0x5401, 0], 0)],
        vec![logged(nr::__NR_getpid, &[], 1)],
        vec![logged(nr::__NR_gettid, &[], 0)],
        vec![logged(nr::__NR_futex, &[MEMORY, 129, 1], 1)],
        vec![logged(nr::__NR_close, &[STREAM], 0)],
        vec![logged(nr::__NR_mmap, &[], 0)],
        vec![logged(u32::MAX, &[], 0)],
    ];
    for lie in lies {
        assert_eq!(Scene::new().replay(&lie, b""), Err(Lie), "{lie:?}");
    }
    let too_many = vec![logged(nr::__NR_getpid, &[], i64::from(PID)); LOG_ENTRIES + 1];
    assert_eq!(Scene::new().replay(&too_many, b""), Err(Lie));
    assert_eq!(Scene::new().replay(&too_many[1..], b""), Ok(()));
}

/// A call that could nearly be true.
fn plausible() -> impl Strategy<Value = Logged> {
    let numbers = [0_u32, 1, 7, 271, 16, 19, 20, 24, 39, 43, 44, 45, 46, 47, 51, 52, 54, 55, 72, 186, 202, 232, 233, 281, 288, 441];
    let word = || prop_oneof![6 => 0_u64..6, 1 => any::<u64>(), 1 => Just(MEMORY), 1 => Just(0x5421)];
    let number = prop_oneof![20 => proptest::sample::select(numbers.to_vec()), 1 => any::<u32>()];
    let result = prop_oneof![4 => 0_i64..20, 2 => Just(AGAIN), 1 => 0_i64..20_000, 1 => any::<i64>()];
    (number, any::<u32>(), result, [word(), word(), word(), word(), word(), word()], word())
        .prop_map(|(number, events, result, args, data)| Logged { number, events, result, args, data })
}

/// A call on the stream or on an eventfd that is often true.
fn transfer() -> impl Strategy<Value = Logged> {
    let value = prop_oneof![4 => 0_u64..4, 2 => (0_u64..4).prop_map(|less| u64::MAX - less), 1 => any::<u64>()];
    let result = prop_oneof![8 => Just(8_i64), 3 => Just(AGAIN), 2 => 0_i64..20, 1 => 16_380_i64..16_390];
    let number = proptest::sample::select(vec![nr::__NR_read, nr::__NR_write]);
    (number, prop_oneof![1 => Just(STREAM), 2 => Just(SEMAPHORE), 2 => Just(EVENT)], result, value)
        .prop_map(|(number, fd, result, data)| Logged { data, ..logged(number, &[fd, MEMORY, 500], result) })
}

/// What a log of transfers comes to where all of it is true, by the manual pages alone.
struct Model {
    /// Of the semaphore and of the other eventfd.
    counts: [u64; 2],
    input: usize,
    output: usize,
}

impl Model {
    /// One more call; `false` where it cannot have come to that.
    fn makes(&mut self, call: &Logged) -> bool {
        let writes = call.number == nr::__NR_write;
        if call.args[0] == STREAM {
            let count = usize::try_from(call.result);
            return match (writes, count) {
                (true, Ok(count)) => {
                    self.output += count;
                    (1..=OUTPUT_BYTES).contains(&self.output) && count > 0
                }
                (true, Err(_)) => false,
                (false, Ok(count)) if count > 0 && count <= self.input => {
                    self.input -= count;
                    true
                }
                (false, _) => call.result == AGAIN && self.input == 0,
            };
        }
        let is_semaphore = call.args[0] == SEMAPHORE;
        let count = &mut self.counts[usize::from(!is_semaphore)];
        if writes {
            let sum = u128::from(*count) + u128::from(call.data);
            *count = count.wrapping_add(call.data);
            return call.result == 8 && sum < u128::from(u64::MAX);
        }
        if *count == 0 {
            return call.result == AGAIN;
        }
        *count -= if is_semaphore { 1 } else { *count };
        call.result == 8
    }
}

proptest! {
    #![proptest_config(crate::fuzzing::cases(2000))]

    /// Whatever the log says, the kernel stays sound: its bounds hold, and the next calls are answered.
    #[test]
    fn garbage_in_the_log_comes_to_nothing(
        calls in proptest::collection::vec(prop_oneof![2 => plausible(), 1 => transfer()], 0..12),
        bytes in any::<[u8; 72]>(),
        at in 0_usize..12,
        count in prop_oneof![6 => Just(None), 3 => (0..=LOG_ENTRIES as u64 + 3).prop_map(Some), 1 => any::<u64>().prop_map(Some)],
        output in proptest::collection::vec(any::<u8>(), 0..100),
        event in any::<u32>(),
    ) {
        let mut scene = Scene::with_events(2, event);
        let mut calls = calls;
        if let Some(call) = calls.get_mut(at) {
            *call = Logged::read_from_bytes(&bytes).expect("72 bytes");
        }
        calls.insert(0, accepted());
        let count = count.unwrap_or(calls.len() as u64);
        let came = scene.replay_counted(&calls, count, &output);
        prop_assert!(came.is_err() || count <= LOG_ENTRIES as u64);
        let status = scene.machine.kernel.stream_status(scene.client);
        prop_assert!(status.output_len <= OUTPUT_BYTES && status.input_len <= REQUEST.len());
        prop_assert!(scene.count(SEMAPHORE) < u64::MAX && scene.count(EVENT) < u64::MAX);
        prop_assert!(scene.machine.kernel.process.fds.iter().count() <= 5);
        let _ = scene.tell();
        prop_assert_eq!(scene.machine.main(nr::__NR_getpid, &[]), Ok(u64::from(PID.unsigned_abs())));
        prop_assert_eq!(scene.machine.main(nr::__NR_close, &[STREAM]).is_ok(), (1..=LOG_ENTRIES as u64).contains(&count));
    }

    /// Transfers are repeated where the calls could have come to that, and only there, and then nothing else is.
    #[test]
    fn transfers_are_repeated_exactly_where_they_are_true(
        calls in proptest::collection::vec(transfer(), 0..6),
        output in proptest::collection::vec(any::<u8>(), OUTPUT_BYTES),
        semaphore in 0_u32..3,
        event in prop_oneof![Just(0_u32), any::<u32>()],
    ) {
        let mut scene = Scene::with_events(semaphore, event);
        let mut model = Model { counts: [semaphore.into(), event.into()], input: REQUEST.len(), output: 0 };
        let is_true = calls.iter().all(|call| model.makes(call));
        let all: Vec<Logged> = std::iter::once(accepted()).chain(calls).collect();
        prop_assert_eq!(scene.replay(&all, &output), if is_true { Ok(()) } else { Err(Lie) });
        if is_true {
            prop_assert_eq!([scene.count(SEMAPHORE), scene.count(EVENT)], model.counts);
            let status = scene.machine.kernel.stream_status(scene.client);
            prop_assert_eq!((status.input_len, status.output_len), (model.input, model.output));
            let sent = scene.machine.kernel.stream_take(scene.client, OUTPUT_BYTES);
            prop_assert!(sent[..] == output[..model.output]);
        }
    }

    /// Whatever is in the memory, an interruption in the code is a call that was made, or one that was answered.
    #[test]
    fn garbage_in_the_saved_registers_is_only_the_guests_own(words in any::<[u64; 20]>(), offset in 0_u64..8192, rcx in any::<u64>()) {
        let scene = Scene::new();
        let memory = scene.machine.space.memory();
        memory.write_bytes(scene.fast.saved(), words.as_bytes()).expect("memory");
        let (code, image) = scene.fast.image();
        let mut registers = crate::cpu::Registers { rip: code + offset, rcx, ..Default::default() };
        let found = scene.fast.settle(memory, &mut registers);
        prop_assert_eq!(found == crate::fast_path::Interrupted::Program, offset >= image.len() as u64);
        if found != crate::fast_path::Interrupted::Program {
            prop_assert_eq!(registers.rip, words[0]);
        }
    }
}
