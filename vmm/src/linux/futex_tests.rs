//! Futexes: every operation against a model of queues, and the orders and errors of futex(2).

use linux_raw_sys::general as sys;
use proptest::prelude::*;

use super::testing::{Came, MEMORY, MEMORY_BYTES, Machine, PID};
use super::thread::Tid;
use super::{Attempt, Errno};

const WORD: u64 = MEMORY + 0x100;
const OTHER: u64 = MEMORY + 0x200;
const PRIVATE: u64 = sys::FUTEX_PRIVATE_FLAG as u64;

fn futex(machine: &mut Machine, tid: Tid, word: u64, operation: u32, rest: &[u64]) -> Came {
    let mut args = vec![word, u64::from(operation) | PRIVATE];
    args.extend_from_slice(rest);
    machine.call(tid, sys::__NR_futex, &args)
}

fn main(machine: &mut Machine, word: u64, operation: u32, rest: &[u64]) -> Result<u64, Errno> {
    match futex(machine, PID, word, operation, rest) {
        Came::Back(result) => result,
        other => panic!("{other:?}"),
    }
}

/// One step of a random run.
#[derive(Debug, Clone)]
enum Step {
    Wait { thread: usize, word: usize, expected: u32, bitset: u32 },
    Wake { word: usize, count: u32, bitset: u32 },
    Requeue { from: usize, to: usize, wake: u32, requeue: u32, expected: Option<u32> },
    Store { word: usize, value: u32 },
    GiveUp { thread: usize, timeout: bool },
    Look { thread: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (thread, word, value, bitset) = (0..4_usize, 0..3_usize, 0..3_u32, 0..4_u32);
    prop_oneof![
        4 => (thread.clone(), word.clone(), value.clone(), bitset.clone())
            .prop_map(|(thread, word, expected, bitset)| Step::Wait { thread, word, expected, bitset }),
        3 => (word.clone(), 0..4_u32, bitset).prop_map(|(word, count, bitset)| Step::Wake { word, count, bitset }),
        2 => (word.clone(), word.clone(), 0..3_u32, 0..3_u32, proptest::option::of(value.clone()))
            .prop_map(|(from, to, wake, requeue, expected)| Step::Requeue { from, to, wake, requeue, expected }),
        1 => (word, value).prop_map(|(word, value)| Step::Store { word, value }),
        1 => (thread.clone(), any::<bool>()).prop_map(|(thread, timeout)| Step::GiveUp { thread, timeout }),
        3 => thread.prop_map(|thread| Step::Look { thread }),
    ]
}

/// Queues as the man page describes them: what each thread waits for in order of arrival, and who has been woken.
#[derive(Debug, Default)]
struct Model {
    words: [u32; 3],
    queue: Vec<(usize, usize, u32)>,
    woken: Vec<usize>,
}

impl Model {
    fn asleep(&self, thread: usize) -> bool {
        self.queue.iter().any(|&(waiter, ..)| waiter == thread) || self.woken.contains(&thread)
    }

    fn wake(&mut self, word: usize, count: usize, bitset: u32) -> u64 {
        let mut done = 0;
        while done < count {
            let Some(index) = self.queue.iter().position(|&(_, at, bits)| at == word && bits & bitset != 0) else { break };
            self.woken.push(self.queue.remove(index).0);
            done += 1;
        }
        done as u64
    }

    fn requeue(&mut self, from: usize, to: usize, wake: usize, requeue: usize) -> u64 {
        let woken = self.wake(from, wake, u32::MAX);
        let mut moving: Vec<_> = self.queue.iter().filter(|waiter| waiter.1 == from).take(requeue).copied().collect();
        let moved = moving.len() as u64;
        if from != to {
            self.queue.retain(|waiter| !moving.contains(waiter));
            moving.iter_mut().for_each(|waiter| waiter.1 = to);
            self.queue.append(&mut moving);
        }
        woken + moved
    }
}

proptest! {
    #[test]
    fn every_sequence_of_operations_agrees_with_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        let mut machine = Machine::new();
        let threads: Vec<Tid> = (0..4).map(|_| machine.thread()).collect();
        let address = |word: usize| WORD + 16 * word as u64;
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Wait { thread, word, expected, bitset } if !model.asleep(thread) => {
                    let rest = [u64::from(expected), 0, 0, u64::from(bitset)];
                    let came = futex(&mut machine, threads[thread], address(word), sys::FUTEX_WAIT_BITSET, &rest);
                    if bitset == 0 {
                        prop_assert_eq!(came, Came::Back(Err(Errno::INVAL)));
                    } else if model.words[word] == expected {
                        prop_assert_eq!(came, Came::Blocked);
                        model.queue.push((thread, word, bitset));
                    } else {
                        prop_assert_eq!(came, Came::Back(Err(Errno::AGAIN)));
                    }
                }
                Step::Wait { .. } => {}
                Step::Wake { word, count, bitset } => {
                    let answer = main(&mut machine, address(word), sys::FUTEX_WAKE_BITSET, &[u64::from(count), 0, 0, u64::from(bitset)]);
                    // Linux wakes one waiter even where none was asked for.
                    let expected = if bitset == 0 { Err(Errno::INVAL) } else { Ok(model.wake(word, count.max(1) as usize, bitset)) };
                    prop_assert_eq!(answer, expected);
                }
                Step::Requeue { from, to, wake, requeue, expected } => {
                    let operation = if expected.is_some() { sys::FUTEX_CMP_REQUEUE } else { sys::FUTEX_REQUEUE };
                    let rest = [u64::from(wake), u64::from(requeue), address(to), u64::from(expected.unwrap_or(0))];
                    let answer = main(&mut machine, address(from), operation, &rest);
                    let expected = if expected.is_some_and(|value| value != model.words[from]) {
                        Err(Errno::AGAIN)
                    } else {
                        Ok(model.requeue(from, to, wake as usize, requeue as usize))
                    };
                    prop_assert_eq!(answer, expected);
                }
                Step::Store { word, value } => {
                    machine.poke(address(word), &value);
                    model.words[word] = value;
                }
                Step::GiveUp { thread, timeout } if model.queue.iter().any(|waiter| waiter.0 == thread) => {
                    let attempt = if timeout { Attempt::TimedOut } else { Attempt::Interrupted };
                    let came = machine.retry(threads[thread], attempt);
                    if timeout {
                        prop_assert_eq!(came, Came::Back(Err(Errno::TIMEDOUT)));
                    }
                    model.queue.retain(|waiter| waiter.0 != thread);
                }
                Step::GiveUp { .. } => {}
                Step::Look { thread } if model.asleep(thread) => {
                    let woken = model.woken.contains(&thread);
                    let expected = if woken { Came::Back(Ok(0)) } else { Came::Blocked };
                    prop_assert_eq!(machine.look(threads[thread]), expected);
                    model.woken.retain(|&other| other != thread);
                }
                Step::Look { .. } => {}
            }
            prop_assert_eq!(machine.kernel.futexes.len(), model.queue.len());
        }
    }
}

#[test]
fn errors_are_those_of_the_man_page() {
    let mut machine = Machine::new();
    let bad = MEMORY + MEMORY_BYTES;
    assert_eq!(main(&mut machine, WORD + 1, sys::FUTEX_WAIT, &[0, 0]), Err(Errno::INVAL));
    assert_eq!(main(&mut machine, bad, sys::FUTEX_WAIT, &[0, 0]), Err(Errno::FAULT));
    assert_eq!(main(&mut machine, u64::MAX - 3, sys::FUTEX_WAKE, &[1]), Err(Errno::FAULT));
    assert_eq!(machine.main(sys::__NR_futex, &[bad, u64::from(sys::FUTEX_WAKE), 1]), Err(Errno::FAULT));
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_WAIT, &[1, 0]), Err(Errno::AGAIN));
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_WAIT, &[0, bad]), Err(Errno::FAULT));
    machine.poke(OTHER, &[0_u64, 1_000_000_000]);
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_WAIT, &[0, OTHER]), Err(Errno::INVAL));
    assert_eq!(main(&mut machine, WORD, 2, &[0, 0]), Err(Errno::NOSYS));
    assert_eq!(main(&mut machine, WORD, 99, &[0, 0]), Err(Errno::NOSYS));
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_WAKE | sys::FUTEX_CLOCK_REALTIME, &[1]), Err(Errno::NOSYS));
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_REQUEUE, &[u64::MAX, 0, OTHER]), Err(Errno::INVAL));
}

#[test]
fn timeouts_are_relative_or_of_the_named_clock() {
    let mut machine = Machine::new();
    let now = machine.kernel.clock.monotonic();
    let deadline = |machine: &Machine| match &machine.kernel.threads.peek(PID).unwrap().state {
        super::thread::State::Blocked(blocked) => blocked.wait.deadline.unwrap(),
        super::thread::State::Runnable => panic!("awake"),
    };
    machine.poke(OTHER, &[10_u64, 0]);
    assert_eq!(futex(&mut machine, PID, WORD, sys::FUTEX_WAIT, &[0, OTHER]), Came::Blocked);
    assert!((now + 10_000_000_000..now + 11_000_000_000).contains(&deadline(&machine)));
    assert_eq!(machine.retry(PID, Attempt::TimedOut), Came::Back(Err(Errno::TIMEDOUT)));
    machine.poke(OTHER, &[(now + 20_000_000_000) / 1_000_000_000, 0]);
    assert_eq!(futex(&mut machine, PID, WORD, sys::FUTEX_WAIT_BITSET, &[0, OTHER, 0, u64::MAX]), Came::Blocked);
    assert!(deadline(&machine) <= now + 20_000_000_000);
    machine.retry(PID, Attempt::TimedOut);
    let real = machine.kernel.clock.realtime() / 1_000_000_000 + 30;
    machine.poke(OTHER, &[real, 0]);
    let operation = sys::FUTEX_WAIT_BITSET | sys::FUTEX_CLOCK_REALTIME;
    assert_eq!(futex(&mut machine, PID, WORD, operation, &[0, OTHER, 0, u64::MAX]), Came::Blocked);
    assert!((now + 28_000_000_000..now + 31_000_000_000).contains(&deadline(&machine)));
    // A moment that has passed is still a wait that fails, not one that succeeds.
    machine.retry(PID, Attempt::TimedOut);
    machine.poke(OTHER, &[0_u64, 0]);
    assert_eq!(futex(&mut machine, PID, WORD, sys::FUTEX_WAIT_BITSET, &[0, OTHER, 0, u64::MAX]), Came::Blocked);
    assert_eq!(machine.look(PID), Came::Back(Err(Errno::TIMEDOUT)));
}

#[test]
fn private_and_shared_futexes_at_one_address_are_two() {
    let mut machine = Machine::new();
    let thread = machine.thread();
    assert_eq!(futex(&mut machine, thread, WORD, sys::FUTEX_WAIT, &[0, 0]), Came::Blocked);
    assert_eq!(machine.main(sys::__NR_futex, &[WORD, u64::from(sys::FUTEX_WAKE), 1]), Ok(0));
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_WAKE, &[1]), Ok(1));
}

#[test]
fn wake_op_changes_the_second_word_and_wakes_by_its_old_value() {
    let mut machine = Machine::new();
    let (first, second) = (machine.thread(), machine.thread());
    assert_eq!(futex(&mut machine, first, WORD, sys::FUTEX_WAIT, &[0, 0]), Came::Blocked);
    assert_eq!(futex(&mut machine, second, OTHER, sys::FUTEX_WAIT, &[0, 0]), Came::Blocked);
    let encode = |operation: u32, comparison: u32, operand: u32, comparand: u32| {
        u64::from(operation << 28 | comparison << 24 | (operand & 0xfff) << 12 | comparand & 0xfff)
    };
    let add_minus_one = encode(sys::FUTEX_OP_ADD, sys::FUTEX_OP_CMP_GT, 0xfff, 0);
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_WAKE_OP, &[1, 1, OTHER, add_minus_one]), Ok(1));
    assert_eq!(machine.peek::<u32>(OTHER), u32::MAX);
    let set_shifted = encode(sys::FUTEX_OP_SET | 8, sys::FUTEX_OP_CMP_LT, 4, 0);
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_WAKE_OP, &[1, 1, OTHER, set_shifted]), Ok(1));
    assert_eq!(machine.peek::<u32>(OTHER), 16);
    assert_eq!(machine.look(second), Came::Back(Ok(0)));
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_WAKE_OP, &[1, 1, OTHER, encode(7, 0, 0, 0)]), Err(Errno::NOSYS));
}

#[test]
fn a_lock_is_handed_over_in_order() {
    let mut machine = Machine::new();
    let (first, second) = (machine.thread(), machine.thread());
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_LOCK_PI, &[0, 0]), Ok(0));
    assert_eq!(machine.peek::<u32>(WORD), PID as u32);
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_LOCK_PI, &[0, 0]), Err(Errno::DEADLK));
    assert_eq!(futex(&mut machine, first, WORD, sys::FUTEX_TRYLOCK_PI, &[]), Came::Back(Err(Errno::AGAIN)));
    assert_eq!(futex(&mut machine, first, WORD, sys::FUTEX_LOCK_PI, &[0, 0]), Came::Blocked);
    assert_eq!(futex(&mut machine, second, WORD, sys::FUTEX_LOCK_PI2, &[0, 0]), Came::Blocked);
    assert_eq!(machine.peek::<u32>(WORD), PID as u32 | sys::FUTEX_WAITERS);
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_WAKE, &[1]), Err(Errno::INVAL));
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_UNLOCK_PI, &[]), Ok(0));
    assert_eq!(machine.peek::<u32>(WORD), first as u32 | sys::FUTEX_WAITERS);
    assert_eq!(machine.look(first), Came::Back(Ok(0)));
    assert_eq!(machine.look(second), Came::Blocked);
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_UNLOCK_PI, &[]), Err(Errno::PERM));
    // The owner ends without unlocking: the next one owns it and hears of it.
    assert_eq!(machine.call(first, sys::__NR_exit, &[0]), Came::Ended);
    assert_eq!(machine.peek::<u32>(WORD), second as u32 | sys::FUTEX_OWNER_DIED);
    assert_eq!(machine.look(second), Came::Back(Ok(0)));
    assert_eq!(futex(&mut machine, second, WORD, sys::FUTEX_UNLOCK_PI, &[]), Came::Back(Ok(0)));
    assert_eq!(machine.peek::<u32>(WORD), 0);
    machine.poke(WORD, &4999_u32);
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_LOCK_PI, &[0, 0]), Err(Errno::SRCH));
}

#[test]
fn condition_variables_move_waiters_to_the_lock() {
    let mut machine = Machine::new();
    let threads: Vec<Tid> = (0..3).map(|_| machine.thread()).collect();
    for &thread in &threads {
        assert_eq!(futex(&mut machine, thread, WORD, sys::FUTEX_WAIT_REQUEUE_PI, &[0, 0, OTHER, u64::MAX]), Came::Blocked);
    }
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_WAKE, &[1]), Err(Errno::INVAL));
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_CMP_REQUEUE_PI, &[1, 9, OTHER, 1]), Err(Errno::AGAIN));
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_CMP_REQUEUE_PI, &[2, 9, OTHER, 0]), Err(Errno::INVAL));
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_CMP_REQUEUE_PI, &[1, 9, OTHER, 0]), Ok(3));
    assert_eq!(machine.look(threads[0]), Came::Back(Ok(0)));
    assert_eq!(machine.peek::<u32>(OTHER), threads[0] as u32 | sys::FUTEX_WAITERS);
    assert_eq!(futex(&mut machine, threads[0], OTHER, sys::FUTEX_UNLOCK_PI, &[]), Came::Back(Ok(0)));
    assert_eq!(machine.look(threads[1]), Came::Back(Ok(0)));
    assert_eq!(machine.look(threads[2]), Came::Blocked);
    assert_eq!(machine.retry(threads[2], Attempt::TimedOut), Came::Back(Err(Errno::TIMEDOUT)));
}

#[test]
fn a_vector_wait_answers_which_futex_was_woken() {
    let mut machine = Machine::new();
    let thread = machine.thread();
    let array = MEMORY + 0x400;
    for (index, word) in [WORD, OTHER].into_iter().enumerate() {
        machine.poke(array + 24 * index as u64, &[0, word, 0x82]);
    }
    assert_eq!(machine.call(thread, sys::__NR_futex_waitv, &[array, 2, 0, 0, 1]), Came::Blocked);
    assert_eq!(main(&mut machine, OTHER, sys::FUTEX_WAKE, &[1]), Ok(1));
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_WAKE, &[1]), Ok(0));
    assert_eq!(machine.look(thread), Came::Back(Ok(1)));
    assert_eq!(machine.main(sys::__NR_futex_waitv, &[array, 129, 0, 0, 1]), Err(Errno::INVAL));
    assert_eq!(machine.main(sys::__NR_futex_waitv, &[array, 0, 0, 0, 1]), Err(Errno::INVAL));
    machine.poke(OTHER, &1_u32);
    assert_eq!(machine.main(sys::__NR_futex_waitv, &[array, 2, 0, 0, 1]), Err(Errno::AGAIN));
    assert!(machine.kernel.futexes.is_empty());
}

#[test]
fn the_end_of_a_thread_wakes_its_joiner_and_the_waiters_of_its_mutexes() {
    let mut machine = Machine::new();
    let flags = 0x3d_0f00_u64 | 0x20_0000;
    let joined = MEMORY + 0x9000;
    let thread = i32::try_from(machine.main(sys::__NR_clone, &[flags, MEMORY + 0x8000, 0, joined, 0]).unwrap()).unwrap();
    machine.poke(joined, &thread);
    // A robust list of two mutexes, one of which has a waiter, in a circle that does not come back to its head.
    let (head, first, second) = (MEMORY + 0x500, MEMORY + 0x540, MEMORY + 0x580);
    machine.poke(head, &[first, 16, 0]);
    machine.poke(first, &second);
    machine.poke(second, &first);
    machine.poke(first + 16, &(thread as u32 | sys::FUTEX_WAITERS));
    machine.poke(second + 16, &(thread as u32));
    assert_eq!(machine.call(thread, sys::__NR_set_robust_list, &[head, 24]), Came::Back(Ok(0)));
    let waiter = machine.thread();
    let value = u64::from(machine.peek::<u32>(first + 16));
    assert_eq!(machine.call(waiter, sys::__NR_futex, &[first + 16, 0, value, 0]), Came::Blocked);
    assert_eq!(machine.call(PID, sys::__NR_futex, &[joined, 0, thread as u64, 0]), Came::Blocked);
    assert_eq!(machine.call(thread, sys::__NR_exit, &[0]), Came::Ended);
    assert_eq!(machine.look(waiter), Came::Back(Ok(0)));
    assert_eq!(machine.look(PID), Came::Back(Ok(0)));
    assert_eq!(machine.peek::<u32>(joined), 0);
    assert_eq!(machine.peek::<u32>(first + 16), sys::FUTEX_WAITERS | sys::FUTEX_OWNER_DIED);
    assert_eq!(machine.peek::<u32>(second + 16), sys::FUTEX_OWNER_DIED);
}

#[test]
fn a_lock_is_waited_for_again_after_any_handler() {
    let mut machine = Machine::new();
    let thread = machine.thread();
    machine.poke(MEMORY + 0x600, &[0x40_1000_u64, 0x0400_0000, 0x40_2000, 0]);
    assert_eq!(machine.main(sys::__NR_rt_sigaction, &[10, MEMORY + 0x600, 0, 8]), Ok(0));
    assert_eq!(main(&mut machine, WORD, sys::FUTEX_LOCK_PI, &[0, 0]), Ok(0));
    assert_eq!(futex(&mut machine, thread, WORD, sys::FUTEX_LOCK_PI, &[0, 0]), Came::Blocked);
    let rip = machine.kernel.threads.get_mut(thread).cpu.registers.rip;
    machine.kernel.send_thread_signal(thread, 10);
    machine.look(thread);
    assert_eq!(machine.kernel.threads.get_mut(thread).cpu.registers.rip, rip.wrapping_sub(2));
    // A waiter that has been moved to the lock is told that the condition is another one now.
    assert_eq!(futex(&mut machine, thread, OTHER, sys::FUTEX_WAIT_REQUEUE_PI, &[0, 0, WORD, u64::MAX]), Came::Blocked);
    assert_eq!(main(&mut machine, OTHER, sys::FUTEX_CMP_REQUEUE_PI, &[1, 9, WORD, 0]), Ok(1));
    assert_eq!(machine.look(thread), Came::Back(Err(Errno::AGAIN)));
}
