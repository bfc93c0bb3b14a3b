//! epoll sets (`epoll(7)`).
//!
//! A set keeps no ready list: it looks at its members when somebody asks, and each member remembers what it saw at its last
//! report. Level-triggered members report whenever they are ready; edge-triggered ones when a counter of their interest has
//! moved since ([`super::Readiness`]). Invariants: a member's file is open ([`Files::release`] takes it out with its last
//! descriptor); sets never contain one another in a circle; a chain of sets is at most [`EPOLL_DEPTH_MAX`] long.

use std::collections::BTreeMap;

use bitflags::bitflags;

use super::epoll_views::MemberView;
use super::{Errno, File, FileId, Files, PollEvents, Readiness, View};
use crate::clone_in_place::clone_in_place;
use crate::limits::{EPOLL_DEPTH_MAX, EPOLL_MEMBERS_MAX, EPOLL_MEMBERS_TOTAL_MAX};

bitflags! {
    /// The mode bits of `struct epoll_event`'s `events`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct EpollMode: u32 {
        /// EPOLLEXCLUSIVE: with one vCPU a wake-up never reaches two sets at the same instant, so it only limits what may be asked.
        const EXCLUSIVE = 1 << 28;
        /// EPOLLWAKEUP: about suspend, without effect.
        const WAKEUP = 1 << 29;
        /// EPOLLONESHOT.
        const ONESHOT = 1 << 30;
        /// EPOLLET.
        const EDGE = 1 << 31;
    }
}

/// Events that concern reading: a member interested in one of them hears of arrivals.
const READING: PollEvents = PollEvents::IN.union(PollEvents::RDNORM).union(PollEvents::RDBAND).union(PollEvents::PRI);
/// Events that concern writing.
const WRITING: PollEvents = PollEvents::OUT.union(PollEvents::WRNORM).union(PollEvents::WRBAND);
/// Events that are always of interest.
const ALWAYS: PollEvents = PollEvents::ERR.union(PollEvents::HUP);

/// What a guest asked of a member (`struct epoll_event`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// EPOLL* events and mode bits.
    pub events: u32,
    /// Returned with each event.
    pub data: u64,
}

impl Request {
    /// The mode bits.
    #[must_use]
    pub const fn mode(self) -> EpollMode {
        EpollMode::from_bits_truncate(self.events)
    }

    fn interest(self) -> PollEvents {
        PollEvents::from_bits_truncate(self.events) | ALWAYS
    }
}

/// A watched file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    /// With `file`, its name in the set: the number under which it was added, which may since mean another file.
    fd: i32,
    file: FileId,
    interest: PollEvents,
    mode: EpollMode,
    data: u64,
    /// Cleared by a report of a one-shot member.
    armed: bool,
    /// Its counters count what the guest did with a host descriptor, because arrivals there cannot be counted.
    sampled: bool,
    /// Its counters' sum when it was added or changed: what has happened since is its share of the set's own counter.
    origin: u64,
    /// What it was at the last report, if that still counts (edge-triggered).
    seen: Option<Readiness>,
}

impl Member {
    fn new(fd: i32, file: FileId, sampled: bool, request: Request) -> Self {
        let (interest, mode, data) = (request.interest(), request.mode(), request.data);
        Self { fd, file, interest, mode, data, armed: true, sampled, origin: 0, seen: None }
    }

    /// The events it would report.
    fn report(&self, now: Readiness) -> PollEvents {
        let events = now.events & self.interest;
        if !self.armed || events.is_empty() {
            return PollEvents::empty();
        }
        match self.seen {
            Some(seen) if self.mode.contains(EpollMode::EDGE) && !self.edge(seen, now) => PollEvents::empty(),
            _ => events,
        }
    }

    fn edge(&self, seen: Readiness, now: Readiness) -> bool {
        let gained = now.events & !seen.events & self.interest;
        // Counters of a host descriptor say what the guest did, not what arrived: they matter for the side that is ready.
        let concerns = if self.sampled { self.interest & now.events } else { self.interest };
        !gained.is_empty()
            || now.ends != seen.ends
            || (concerns.intersects(READING) && now.arrivals != seen.arrivals)
            || (concerns.intersects(WRITING) && now.room != seen.room)
    }

    /// How often something has happened that it is interested in; a disarmed one takes no notice.
    fn movement(&self, now: Readiness) -> u64 {
        let now = if self.armed { now } else { self.seen.unwrap_or(now) };
        let reading = if self.interest.intersects(READING) { now.arrivals } else { 0 };
        let writing = if self.interest.intersects(WRITING) { now.room } else { 0 };
        reading.wrapping_add(writing).wrapping_add(now.ends).wrapping_sub(self.origin)
    }
}

/// An epoll set.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EpollSet {
    /// Least recently reported first.
    members: Vec<Member>,
    /// Moves with additions and changes of members that make the set ready; keeps the shares of members that have gone.
    changes: u64,
}

clone_in_place!(EpollSet { changes } lists { members });

impl EpollSet {
    /// Whether a file is a member.
    #[must_use]
    pub fn watches(&self, file: FileId) -> bool {
        self.members.iter().any(|member| member.file == file)
    }

    /// A file with this readiness is closed for good; its members' shares of the set's counter stay in it.
    pub(super) fn forget(&mut self, file: FileId, last: Readiness) {
        let changes = &mut self.changes;
        self.members.retain(|member| {
            let stays = member.file != file;
            if !stays {
                *changes = changes.wrapping_add(member.movement(last));
            }
            stays
        });
    }

    /// The files that an armed member watches, with the events of interest.
    pub fn watched(&self) -> impl Iterator<Item = (FileId, PollEvents)> + '_ {
        self.members.iter().filter(|member| member.armed).map(|member| (member.file, member.interest))
    }

    /// As [`EpollSet::watched`], without the events of edges that are spent: a host descriptor that shows them goes on showing
    /// them, and waiting for them would be no wait. `counters` answers a file's counters.
    pub(super) fn awaited(&self, counters: impl Fn(FileId) -> Option<Readiness>) -> impl Iterator<Item = (FileId, PollEvents)> {
        self.members.iter().filter(|member| member.armed).filter_map(move |member| {
            let seen = member.seen.filter(|_| member.mode.contains(EpollMode::EDGE));
            let (Some(seen), Some(now)) = (seen, counters(member.file)) else { return Some((member.file, member.interest)) };
            if seen.events.intersects(ALWAYS) {
                return None;
            }
            let mut spent = PollEvents::RDHUP & seen.events;
            spent.set(READING & seen.events, now.arrivals == seen.arrivals);
            spent.set(WRITING & seen.events, now.room == seen.room);
            Some((member.file, member.interest - spent))
        })
    }

    /// How many members it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether it has no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The first `most` events that members report, whose files are as `readiness` answers.
    pub(super) fn ready(&self, most: usize, mut readiness: impl FnMut(FileId) -> Readiness) -> Vec<Ready> {
        let mut ready = Vec::new();
        for (index, member) in self.members.iter().enumerate() {
            let readiness = readiness(member.file);
            let events = member.report(readiness);
            if !events.is_empty() {
                ready.push(Ready { events, data: member.data, index, readiness });
                if ready.len() == most {
                    break;
                }
            }
        }
        ready
    }

    /// Whether all armed members are such as `may_be` allows, and none reports anything.
    pub(super) fn quiet(&self, may_be: impl Fn(FileId) -> bool, mut readiness: impl FnMut(FileId) -> Readiness) -> bool {
        self.members.iter().all(|member| !member.armed || (may_be(member.file) && member.report(readiness(member.file)).is_empty()))
    }

    /// The members as the fast path is told of them.
    pub(super) fn views(&self) -> impl Iterator<Item = MemberView> + '_ {
        self.members.iter().map(|member| {
            let &Member { fd, file, interest, mode, data, armed, seen, .. } = member;
            MemberView { fd, file, events: interest.bits() | mode.bits(), data, armed, seen }
        })
    }

    fn position(&self, fd: i32, file: FileId) -> Option<usize> {
        self.members.iter().position(|member| member.fd == fd && member.file == file)
    }
}

/// One event to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// What happened.
    pub events: PollEvents,
    /// The member's data.
    pub data: u64,
    index: usize,
    readiness: Readiness,
}

/// Readiness of sets that have been computed during one look, so that a web of sets costs its size and not its paths.
pub(super) type Looked = BTreeMap<FileId, Readiness>;

impl Files {
    /// The set behind an id.
    ///
    /// # Errors
    ///
    /// EBADF, or EINVAL where it is another kind of file.
    pub fn epoll_set(&mut self, id: FileId) -> Result<&mut EpollSet, Errno> {
        match &mut self.get_mut(id)?.file {
            File::Epoll(set) => Ok(set),
            _ => Err(Errno::INVAL),
        }
    }

    /// EPOLL_CTL_ADD.
    ///
    /// # Errors
    ///
    /// EEXIST, EINVAL, ELOOP, ENOSPC, EPERM as `epoll_ctl(2)` lists them.
    pub fn epoll_add(&mut self, set: FileId, fd: i32, file: FileId, request: Request, view: &View) -> Result<(), Errno> {
        let target = &self.get(file)?.file;
        if !target.pollable() {
            return Err(Errno::PERM);
        }
        let nested = matches!(target, File::Epoll(_));
        let sampled = matches!(target, File::Socket(_) | File::Console(_));
        check_exclusive(request, nested)?;
        if nested {
            self.check_nesting(set, file)?;
        }
        let total: usize = self.iter().map(|(_, slot)| if let File::Epoll(set) = &slot.file { set.len() } else { 0 }).sum();
        let id = set;
        let set = self.epoll_set(set)?;
        if set.position(fd, file).is_some() {
            return Err(Errno::EXIST);
        }
        if set.len() >= EPOLL_MEMBERS_MAX || total >= EPOLL_MEMBERS_TOTAL_MAX {
            return Err(Errno::NOSPC);
        }
        set.members.push(Member::new(fd, file, sampled, request));
        self.epoll_changed(id, fd, file, false, view)
    }

    /// EPOLL_CTL_MOD: also arms a one-shot member again, and lets an edge-triggered one report what it has now.
    ///
    /// # Errors
    ///
    /// ENOENT, EINVAL.
    pub fn epoll_modify(&mut self, set: FileId, fd: i32, file: FileId, request: Request, view: &View) -> Result<(), Errno> {
        let id = set;
        let now = self.readiness(file, view);
        let set = self.epoll_set(id)?;
        let index = set.position(fd, file).ok_or(Errno::NOENT)?;
        let Some(member) = set.members.get_mut(index) else { return Err(Errno::NOENT) };
        if member.mode.contains(EpollMode::EXCLUSIVE) || request.mode().contains(EpollMode::EXCLUSIVE) {
            return Err(Errno::INVAL);
        }
        let listed = !member.report(now).is_empty();
        set.changes = set.changes.wrapping_add(member.movement(now));
        *member = Member::new(fd, file, member.sampled, request);
        self.epoll_changed(id, fd, file, listed, view)
    }

    /// A new or changed member begins to count from here; if it is ready and was not before (`listed`), it wakes whoever waits for
    /// the set.
    fn epoll_changed(&mut self, id: FileId, fd: i32, file: FileId, listed: bool, view: &View) -> Result<(), Errno> {
        let now = self.readiness(file, view);
        let set = self.epoll_set(id)?;
        if let Some(index) = set.position(fd, file)
            && let Some(member) = set.members.get_mut(index)
        {
            member.origin = member.movement(now);
            if !listed && !member.report(now).is_empty() {
                set.changes = set.changes.wrapping_add(1);
                self.changes += 1;
            }
        }
        Ok(())
    }

    /// EPOLL_CTL_DEL.
    ///
    /// # Errors
    ///
    /// ENOENT.
    pub fn epoll_delete(&mut self, set: FileId, fd: i32, file: FileId, view: &View) -> Result<(), Errno> {
        let now = self.readiness(file, view);
        let set = self.epoll_set(set)?;
        let index = set.position(fd, file).ok_or(Errno::NOENT)?;
        let member = set.members.remove(index);
        set.changes = set.changes.wrapping_add(member.movement(now));
        Ok(())
    }

    /// The first `most` events that `epoll_wait` would report now; nothing is consumed.
    ///
    /// # Errors
    ///
    /// EBADF, EINVAL.
    pub fn epoll_look(&self, set: FileId, most: usize, view: &View) -> Result<Vec<Ready>, Errno> {
        let File::Epoll(set) = &self.get(set)?.file else { return Err(Errno::INVAL) };
        let mut looked = Looked::new();
        Ok(set.ready(most, |file| self.look(file, view, &mut looked)))
    }

    /// These events have reached the guest: edges are spent, one-shot members disarmed, and the others get their turn first
    /// next time.
    pub fn epoll_reported(&mut self, set: FileId, ready: &[Ready]) {
        let Ok(set) = self.epoll_set(set) else { return };
        for event in ready {
            if let Some(member) = set.members.get_mut(event.index) {
                member.seen = Some(event.readiness);
                member.armed = !member.mode.contains(EpollMode::ONESHOT);
            }
        }
        if ready.len() < set.members.len() {
            let mut reported = ready.iter().map(|event| event.index).peekable();
            let mut back = Vec::with_capacity(ready.len());
            let mut index = 0;
            set.members.retain(|member| {
                let moves = reported.next_if_eq(&index).is_some();
                if moves {
                    back.push(*member);
                }
                index += 1;
                !moves
            });
            set.members.extend(back);
        }
    }

    /// A set's own readiness, as a member of another set or in `poll`.
    pub(super) fn epoll_readiness(&self, id: FileId, set: &EpollSet, view: &View, looked: &mut Looked) -> Readiness {
        if let Some(readiness) = looked.get(&id) {
            return *readiness;
        }
        // Sets form no circles; should they ever, the inner look finds this one not ready.
        looked.insert(id, Readiness::default());
        let mut readiness = Readiness { arrivals: set.changes, ..Readiness::default() };
        for member in &set.members {
            let now = self.look(member.file, view, looked);
            if !member.report(now).is_empty() {
                readiness.events = super::local::READABLE;
            }
            readiness.arrivals = readiness.arrivals.wrapping_add(member.movement(now));
        }
        looked.insert(id, readiness);
        readiness
    }

    fn check_nesting(&self, set: FileId, inner: FileId) -> Result<(), Errno> {
        if set == inner {
            return Err(Errno::INVAL);
        }
        let mut below = BTreeMap::new();
        let mut above = BTreeMap::new();
        let chain = self.sets_below(inner, &mut below) + self.sets_above(set, &mut above);
        if below.contains_key(&set) || chain > EPOLL_DEPTH_MAX { Err(Errno::LOOP) } else { Ok(()) }
    }

    /// Length of the longest chain of sets that begins with `id`.
    fn sets_below(&self, id: FileId, seen: &mut BTreeMap<FileId, usize>) -> usize {
        let Ok(File::Epoll(set)) = self.get(id).map(|slot| &slot.file) else { return 0 };
        if let Some(length) = seen.get(&id) {
            return *length;
        }
        seen.insert(id, 1);
        let length = 1 + set.members.iter().map(|member| self.sets_below(member.file, seen)).max().unwrap_or(0);
        seen.insert(id, length);
        length
    }

    /// Length of the longest chain of sets that ends with `id`.
    fn sets_above(&self, id: FileId, seen: &mut BTreeMap<FileId, usize>) -> usize {
        if let Some(length) = seen.get(&id) {
            return *length;
        }
        seen.insert(id, 1);
        let holds = |slot: &super::Slot| matches!(&slot.file, File::Epoll(set) if set.members.iter().any(|member| member.file == id));
        let holders: Vec<FileId> = self.iter().filter(|(_, slot)| holds(slot)).map(|(id, _)| id).collect();
        let length = 1 + holders.into_iter().map(|holder| self.sets_above(holder, seen)).max().unwrap_or(0);
        seen.insert(id, length);
        length
    }
}

/// EPOLLEXCLUSIVE goes only with these bits, and never with a set as the target.
fn check_exclusive(request: Request, nested: bool) -> Result<(), Errno> {
    let allowed = (PollEvents::IN | PollEvents::OUT | ALWAYS).bits() | (EpollMode::EXCLUSIVE | EpollMode::WAKEUP | EpollMode::EDGE).bits();
    if request.mode().contains(EpollMode::EXCLUSIVE) && (nested || request.events & !allowed != 0) {
        return Err(Errno::INVAL);
    }
    Ok(())
}

#[cfg(test)]
#[path = "epoll_tests.rs"]
mod tests;
