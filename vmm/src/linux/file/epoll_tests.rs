//! epoll sets against a plain reference, and the rules of `epoll_ctl(2)`.
//!
//! The reference works as Linux does, with a ready list that wake-ups put members on; ours looks at counters. For any
//! sequence of operations both must report the same events.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::local::{EventFd, PipeEnd, Side, pipe_low_water};
use super::*;

const VIEW: View = View { now: 0, pending_signals: 0 };
const IN: u32 = PollEvents::IN.bits();
const OUT: u32 = PollEvents::OUT.bits();
const ET: u32 = EpollMode::EDGE.bits();
const ONESHOT: u32 = EpollMode::ONESHOT.bits();

fn files() -> (Files, FileId) {
    let mut files = Files::default();
    let set = files.add(File::Epoll(EpollSet::default()), 0).expect("room");
    (files, set)
}

fn event(files: &mut Files) -> FileId {
    files.add(File::Event(EventFd::new(0, false)), 0).expect("room")
}

fn signal(files: &mut Files, id: FileId) {
    if let Ok(File::Event(event)) = files.get_mut(id).map(|slot| &mut slot.file) {
        assert_eq!(event.add(1), Ok(true));
    }
}

fn drain(files: &mut Files, id: FileId) -> bool {
    let Ok(File::Event(event)) = files.get_mut(id).map(|slot| &mut slot.file) else { return false };
    event.take().is_some()
}

fn request(events: u32, data: u64) -> Request {
    Request { events, data }
}

fn wait(files: &mut Files, set: FileId, most: usize) -> Vec<(u64, u32)> {
    let ready = files.epoll_look(set, most, &VIEW).expect("a set");
    files.epoll_reported(set, &ready);
    ready.iter().map(|event| (event.data, event.events.bits())).collect()
}

#[test]
fn level_edge_and_one_shot() {
    let (mut files, set) = files();
    let [level, edge, once] = [0; 3].map(|_| event(&mut files));
    files.epoll_add(set, 1, level, request(IN, 1), &VIEW).expect("added");
    files.epoll_add(set, 2, edge, request(IN | ET, 2), &VIEW).expect("added");
    files.epoll_add(set, 3, once, request(IN | ONESHOT, 3), &VIEW).expect("added");
    assert_eq!(wait(&mut files, set, 8), []);
    for id in [level, edge, once] {
        signal(&mut files, id);
    }
    assert_eq!(wait(&mut files, set, 8), [(1, IN), (2, IN), (3, IN)]);
    assert_eq!(wait(&mut files, set, 8), [(1, IN)]);
    signal(&mut files, edge);
    signal(&mut files, once);
    files.epoll_modify(set, 3, once, request(IN | ONESHOT, 33), &VIEW).expect("armed again");
    let mut events = wait(&mut files, set, 8);
    events.sort_unstable();
    assert_eq!(events, [(1, IN), (2, IN), (33, IN)]);
}

#[test]
fn a_small_buffer_gives_everybody_a_turn() {
    let (mut files, set) = files();
    for data in 0..5 {
        let id = event(&mut files);
        files.epoll_add(set, data, id, request(IN, data as u64), &VIEW).expect("added");
        signal(&mut files, id);
    }
    let turns: Vec<u64> = (0..5).flat_map(|_| wait(&mut files, set, 2)).map(|(data, _)| data).collect();
    assert_eq!(turns, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
}

#[test]
fn members_are_named_by_number_and_file() {
    let (mut files, set) = files();
    let id = event(&mut files);
    files.epoll_add(set, 5, id, request(IN, 5), &VIEW).expect("added");
    assert_eq!(files.epoll_add(set, 5, id, request(IN, 5), &VIEW), Err(Errno::EXIST));
    files.epoll_add(set, 6, id, request(IN, 6), &VIEW).expect("a duplicate's number");
    assert_eq!(files.epoll_delete(set, 7, id, &VIEW), Err(Errno::NOENT));
    assert_eq!(files.epoll_modify(set, 7, id, request(IN, 7), &VIEW), Err(Errno::NOENT));
    // One of two descriptors closes: the member stays; the last one takes both members along.
    files.retain(id);
    files.release(id);
    signal(&mut files, id);
    assert_eq!(wait(&mut files, set, 8), [(5, IN), (6, IN)]);
    files.release(id);
    assert_eq!(files.epoll_set(set).map(|set| set.len()), Ok(0));
}

#[test]
fn sets_form_no_circles_and_no_long_chains() {
    let (mut files, first) = files();
    let mut sets = vec![first];
    for index in 1..EPOLL_DEPTH_MAX {
        let next = files.add(File::Epoll(EpollSet::default()), 0).expect("room");
        files.epoll_add(next, index as i32, sets[index - 1], request(IN, 0), &VIEW).expect("short enough");
        sets.push(next);
    }
    let last = sets[EPOLL_DEPTH_MAX - 1];
    assert_eq!(files.epoll_add(first, 90, first, request(IN, 0), &VIEW), Err(Errno::INVAL));
    assert_eq!(files.epoll_add(first, 91, last, request(IN, 0), &VIEW), Err(Errno::LOOP));
    let one_more = files.add(File::Epoll(EpollSet::default()), 0).expect("room");
    assert_eq!(files.epoll_add(one_more, 92, last, request(IN, 0), &VIEW), Err(Errno::LOOP));
    let id = event(&mut files);
    files.epoll_add(first, 93, id, request(IN, 7), &VIEW).expect("added");
    assert_eq!(wait(&mut files, last, 8), []);
    signal(&mut files, id);
    assert_eq!(wait(&mut files, last, 8), [(0, IN)]);
}

#[test]
fn an_edge_inside_a_nested_set_is_an_edge_outside() {
    let (mut files, inner) = files();
    let outer = files.add(File::Epoll(EpollSet::default()), 0).expect("room");
    let id = event(&mut files);
    files.epoll_add(outer, 1, inner, request(IN | ET, 1), &VIEW).expect("added");
    files.epoll_add(inner, 2, id, request(IN, 2), &VIEW).expect("added");
    signal(&mut files, id);
    assert_eq!(wait(&mut files, outer, 8), [(1, IN)]);
    assert_eq!(wait(&mut files, outer, 8), []);
    signal(&mut files, id);
    assert_eq!(wait(&mut files, outer, 8), [(1, IN)]);
}

#[test]
fn a_web_of_sets_costs_its_size_and_not_its_paths() {
    let (mut files, mut below) = files();
    let id = event(&mut files);
    files.epoll_add(below, 0, id, request(IN, 0), &VIEW).expect("added");
    for _ in 1..EPOLL_DEPTH_MAX {
        let above = files.add(File::Epoll(EpollSet::default()), 0).expect("room");
        for fd in 0..1000 {
            files.epoll_add(above, fd, below, request(IN, 0), &VIEW).expect("added");
        }
        below = above;
    }
    assert_eq!(files.readiness(below, &VIEW).events, PollEvents::empty());
    signal(&mut files, id);
    assert_eq!(files.readiness(below, &VIEW).events, super::super::local::READABLE);
}

#[test]
fn exclusive_members_are_as_the_man_page_says() {
    let (mut files, set) = files();
    let exclusive = EpollMode::EXCLUSIVE.bits();
    let id = event(&mut files);
    let inner = files.add(File::Epoll(EpollSet::default()), 0).expect("room");
    assert_eq!(files.epoll_add(set, 1, id, request(IN | exclusive | ONESHOT, 0), &VIEW), Err(Errno::INVAL));
    assert_eq!(files.epoll_add(set, 1, inner, request(IN | exclusive, 0), &VIEW), Err(Errno::INVAL));
    files.epoll_add(set, 1, id, request(IN | exclusive | ET, 0), &VIEW).expect("added");
    assert_eq!(files.epoll_modify(set, 1, id, request(IN, 0), &VIEW), Err(Errno::INVAL));
}

#[test]
fn a_pipe_whose_writer_went_hangs_up_and_one_whose_reader_went_is_in_error() {
    let (mut files, set) = files();
    let channel = files.channels.add(65_536, pipe_low_water(65_536));
    let reader = files.add(File::Pipe(PipeEnd { channel, side: Side::Reader }), 0).expect("room");
    let writer = files.add(File::Pipe(PipeEnd { channel, side: Side::Writer }), 0).expect("room");
    files.epoll_add(set, 1, reader, request(IN | ET, 1), &VIEW).expect("added");
    files.release(writer);
    assert_eq!(wait(&mut files, set, 8), [(1, PollEvents::HUP.bits())]);
    assert_eq!(wait(&mut files, set, 8), []);

    let channel = files.channels.add(65_536, pipe_low_water(65_536));
    let reader = files.add(File::Pipe(PipeEnd { channel, side: Side::Reader }), 0).expect("room");
    let writer = files.add(File::Pipe(PipeEnd { channel, side: Side::Writer }), 0).expect("room");
    files.epoll_add(set, 2, writer, request(0, 2), &VIEW).expect("added");
    assert_eq!(wait(&mut files, set, 8), []);
    files.release(reader);
    assert_eq!(wait(&mut files, set, 8), [(2, PollEvents::ERR.bits())]);
}

/// A member of the reference.
#[derive(Debug, Clone, Copy)]
struct Known {
    file: usize,
    events: u32,
    data: u64,
    armed: bool,
}

/// epoll with a ready list, over counters that are readable while they are not 0 and always writable.
#[derive(Debug, Default)]
struct Reference {
    counts: BTreeMap<usize, u64>,
    members: BTreeMap<usize, Known>,
    list: Vec<usize>,
}

impl Reference {
    fn poll(&self, member: &Known) -> u32 {
        let readable = if self.counts.get(&member.file).is_some_and(|count| *count > 0) { IN } else { 0 };
        (readable | OUT) & member.events
    }

    fn wake(&mut self, file: usize, key: u32) {
        for (name, member) in &self.members {
            if member.file == file && member.armed && member.events & key != 0 && !self.list.contains(name) {
                self.list.push(*name);
            }
        }
    }

    fn set(&mut self, name: usize, member: Known) {
        self.members.insert(name, member);
        if self.poll(&member) != 0 && !self.list.contains(&name) {
            self.list.push(name);
        }
    }

    fn wait(&mut self) -> Vec<(u64, u32)> {
        let mut events = Vec::new();
        for name in std::mem::take(&mut self.list) {
            let Some(mut member) = self.members.get(&name).copied() else { continue };
            let now = self.poll(&member);
            if now == 0 || !member.armed {
                continue;
            }
            events.push((member.data, now));
            if member.events & ONESHOT != 0 {
                member.armed = false;
            } else if member.events & ET == 0 {
                self.list.push(name);
            }
            self.members.insert(name, member);
        }
        events
    }
}

#[derive(Debug, Clone)]
enum Step {
    Signal(usize),
    Drain(usize),
    Add(usize, u32),
    Modify(usize, u32),
    Delete(usize),
    Wait,
}

const EVENTS: usize = 4;

fn step() -> impl Strategy<Value = Step> {
    let modes = prop::sample::select(vec![IN, OUT, IN | OUT, IN | ET, OUT | ET, IN | OUT | ET, IN | ONESHOT, IN | OUT | ET | ONESHOT]);
    // Two members, under different numbers, for each counter.
    prop_oneof![
        (0..EVENTS).prop_map(Step::Signal),
        (0..EVENTS).prop_map(Step::Drain),
        (0..2 * EVENTS, modes.clone()).prop_map(|(name, mode)| Step::Add(name, mode)),
        (0..2 * EVENTS, modes).prop_map(|(name, mode)| Step::Modify(name, mode)),
        (0..2 * EVENTS).prop_map(Step::Delete),
        Just(Step::Wait),
        Just(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(crate::fuzzing::cases(2000))]

    #[test]
    fn reports_what_the_reference_reports(steps in prop::collection::vec(step(), 1..60)) {
        let (mut files, set) = files();
        let ids: Vec<FileId> = (0..EVENTS).map(|_| event(&mut files)).collect();
        let mut reference = Reference::default();
        let mut next = 0;
        for step in steps {
            next += 1;
            match step {
                Step::Signal(index) => {
                    signal(&mut files, ids[index]);
                    *reference.counts.entry(index).or_default() += 1;
                    reference.wake(index, IN);
                }
                Step::Drain(index) => {
                    if drain(&mut files, ids[index]) {
                        reference.counts.insert(index, 0);
                        reference.wake(index, OUT);
                    }
                }
                Step::Add(name, events) => {
                    let added = files.epoll_add(set, name as i32, ids[name / 2], request(events, next), &VIEW);
                    prop_assert_eq!(added.is_err(), reference.members.contains_key(&name));
                    if added.is_ok() {
                        reference.set(name, Known { file: name / 2, events, data: next, armed: true });
                    }
                }
                Step::Modify(name, events) => {
                    let changed = files.epoll_modify(set, name as i32, ids[name / 2], request(events, next), &VIEW);
                    prop_assert_eq!(changed.is_ok(), reference.members.contains_key(&name));
                    if changed.is_ok() {
                        reference.set(name, Known { file: name / 2, events, data: next, armed: true });
                    }
                }
                Step::Delete(name) => {
                    let deleted = files.epoll_delete(set, name as i32, ids[name / 2], &VIEW);
                    prop_assert_eq!(deleted.is_ok(), reference.members.remove(&name).is_some());
                    reference.list.retain(|listed| *listed != name);
                }
                Step::Wait => {
                    let nested = !files.readiness(set, &VIEW).events.is_empty();
                    let (mut ours, mut theirs) = (wait(&mut files, set, 64), reference.wait());
                    ours.sort_unstable();
                    theirs.sort_unstable();
                    prop_assert_eq!(nested, !ours.is_empty());
                    prop_assert_eq!(ours, theirs);
                }
            }
        }
    }
}
