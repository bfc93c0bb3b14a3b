//! What the threads of a worker share, and all that is done for connections without a VM.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::busy_poll::Seat;
use super::connection::{After, Connection, Phase, Progress, Step};
use super::control::Control;
use super::http1::Answer;
use super::lock;
use super::storage::StoragePrograms;
use super::table::Table;
use super::worker::ServeError;
use crate::config::ServeConfig;
use crate::linux::clock::host_monotonic;
use crate::linux::file::FileId;
use crate::linux::file::stream_host::PeerAddress;
use crate::sandbox::Snapshot;
use crate::stats::ServeStats;

/// Connections of a worker; beyond that no more are accepted until some have gone ([`Shared::make_room`]).
pub(super) const CONNECTIONS_MAX: u32 = 8192;
/// Tokens of the epoll set: listeners from 0, the wake-up, connections from here.
pub(super) const WAKE: u64 = 1 << 32;
const FIRST_CONNECTION: u64 = WAKE + 1;
/// What a refused client may still send after a drain has begun, nanoseconds.
const LAST_REQUEST_NS: u64 = 1_000_000_000;

/// A socket that listens for one of the program's.
#[derive(Debug)]
pub(super) struct ListenerSocket {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) id: FileId,
    /// It is not in the set, because there was no room for another connection.
    is_paused: AtomicBool,
}

impl ListenerSocket {
    pub(super) const fn new(socket: Arc<OwnedFd>, id: FileId) -> Self {
        Self { socket, id, is_paused: AtomicBool::new(false) }
    }
}

/// What others see of a thread.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Desk {
    /// The host moment at which it took what it works on; 0 while it waits for events.
    pub(super) busy_since: AtomicU64,
    /// Its VM has a request, or is reset after one.
    pub(super) serves: AtomicBool,
    pub(super) stats: Mutex<ServeStats>,
}

/// Requests that are here and wait for a VM because all have been busy for a while; oldest first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<VecDeque<Box<Connection>>>,
    length: AtomicUsize,
}

impl Queue {
    fn push(&self, connection: Box<Connection>) {
        let mut waiting = lock(&self.waiting);
        waiting.push_back(connection);
        self.length.store(waiting.len(), Ordering::SeqCst);
    }

    /// The oldest, if `is_wanted`.
    pub(super) fn pop_if(&self, is_wanted: impl FnOnce(&Connection) -> bool) -> Option<Box<Connection>> {
        if self.length.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut waiting = lock(&self.waiting);
        let connection = if waiting.front().is_some_and(|first| is_wanted(first)) { waiting.pop_front() } else { None };
        self.length.store(waiting.len(), Ordering::SeqCst);
        connection
    }
}

/// What the threads share.
pub(super) struct Shared<'a> {
    pub(super) config: &'a ServeConfig,
    pub(super) snapshot: &'a Snapshot,
    pub(super) epoll: OwnedFd,
    pub(super) wake: OwnedFd,
    pub(super) seat: Seat,
    pub(super) listeners: Vec<ListenerSocket>,
    pub(super) table: Table,
    pub(super) queue: Queue,
    pub(super) draining: AtomicBool,
    pub(super) forked: AtomicUsize,
    pub(super) alive: AtomicUsize,
    /// One for each thread with a VM, and the last for the one without.
    pub(super) desks: Vec<Desk>,
    pub(super) control: Control,
    pub(super) failure: Mutex<Option<ServeError>>,
    pub(super) storage: Option<StoragePrograms>,
}

impl Shared<'_> {
    pub(super) fn stats(&self) -> ServeStats {
        let mut stats = ServeStats {
            open_connections: self.table.open() as u64,
            held_bytes: self.table.held() as u64,
            waiting_requests: self.queue.length.load(Ordering::Relaxed) as u64,
            ..ServeStats::default()
        };
        for desk in &self.desks {
            stats.add(&lock(&desk.stats));
            stats.busy_vms += u64::from(desk.serves.load(Ordering::Relaxed));
        }
        stats.storage = self.storage.as_ref().map(StoragePrograms::stats);
        stats
    }

    /// Threads with a VM that do not wait for events.
    pub(super) fn busy_threads(&self) -> usize {
        self.desks.iter().filter(|desk| desk.busy_since.load(Ordering::Relaxed) > 0).count()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Put a listener back into the set; the first time, into it.
    pub(super) fn watch_listener(&self, index: usize) -> Result<(), Errno> {
        let Some(listener) = self.listeners.get(index) else { return Ok(()) };
        if self.is_draining() {
            return Ok(());
        }
        let (event, flags) = (EventData::new_u64(index as u64), EventFlags::IN | EventFlags::ONESHOT);
        epoll::modify(&self.epoll, &*listener.socket, event, flags).or_else(|_| epoll::add(&self.epoll, &*listener.socket, event, flags))
    }

    /// Go on with listeners that had to wait.
    pub(super) fn resume_listeners(&self) {
        for (index, listener) in self.listeners.iter().enumerate() {
            if listener.is_paused.swap(false, Ordering::AcqRel) {
                let _ = self.watch_listener(index);
            }
        }
    }

    pub(super) fn has_paused_listener(&self) -> bool {
        self.listeners.iter().any(|listener| listener.is_paused.load(Ordering::Acquire))
    }

    /// Take what an event is about: a connection whose request is ready for a VM, or nothing more to be done.
    pub(super) fn handle(&self, token: u64, desk: &Desk) -> Option<Box<Connection>> {
        #[cfg(test)]
        crate::panics::injected::pass("event");
        if token < WAKE {
            return self.accept(usize::try_from(token).unwrap_or(usize::MAX), desk);
        }
        let index = usize::try_from(token.checked_sub(FIRST_CONNECTION)?).ok()?;
        let connection = self.table.place(index)?.take()?;
        self.progress(connection, desk)
    }

    fn accept(&self, index: usize, desk: &Desk) -> Option<Box<Connection>> {
        let listener = self.listeners.get(index)?;
        let Some(slot) = self.table.claim() else {
            listener.is_paused.store(true, Ordering::Release);
            return None;
        };
        let accepted = rustix::net::acceptfrom_with(&*listener.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        if let Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::INVAL) = accepted {
            // At once it would fail again.
            listener.is_paused.store(true, Ordering::Release);
            return None;
        }
        let _ = self.watch_listener(index);
        let (socket, address) = accepted.ok()?;
        let peer = address.and_then(|address| std::net::SocketAddr::try_from(address).ok()).map_or(PeerAddress::Unnamed, PeerAddress::Inet);
        lock(&desk.stats).connections += 1;
        let clients = &self.config.clients;
        let connection = Box::new(Connection::new(socket, peer, listener.id, slot, clients, host_monotonic()));
        if connection.speaks_first(clients) { self.progress(connection, desk) } else { Some(connection) }
    }

    /// Do what can be done for a connection without a VM; it comes back where its request is ready for one.
    fn progress(&self, mut connection: Box<Connection>, desk: &Desk) -> Option<Box<Connection>> {
        match connection.phase {
            Phase::Ready => return Some(connection),
            Phase::Writing(after) => self.give(connection, after, desk),
            Phase::Lingering => {
                if connection.throw_away() {
                    self.park(connection, EventFlags::IN);
                }
            }
            Phase::Idle | Phase::Head | Phase::Body => {
                if connection.receive(connection.input_max(&self.config.clients)) == Progress::WouldBlock {
                    self.park(connection, EventFlags::IN);
                } else {
                    return self.advance(connection, desk);
                }
            }
        }
        None
    }

    fn advance(&self, mut connection: Box<Connection>, desk: &Desk) -> Option<Box<Connection>> {
        #[cfg(test)]
        crate::panics::injected::pass("head");
        let now = host_monotonic();
        match connection.advance(&self.config.clients, now) {
            Step::Ready => {
                connection.ready_at = now;
                return Some(connection);
            }
            Step::More => self.park(connection, EventFlags::IN),
            Step::Refuse(answer) => self.refuse(connection, answer, desk),
            Step::Gone => {}
        }
        None
    }

    /// Answer instead of the program, for the last time on this connection.
    fn refuse(&self, mut connection: Box<Connection>, answer: Answer, desk: &Desk) {
        lock(&desk.stats).refused += 1;
        answer.write(connection.output.tail());
        self.give(connection, After::Linger, desk);
    }

    /// No VM was free for a request in time.
    pub(super) fn turn_away(&self, mut connection: Box<Connection>, desk: &Desk) {
        lock(&desk.stats).refused += 1;
        let time = std::time::Duration::from_nanos(self.config.clients.queue_time_ns);
        self.control.limited("log", "warning", &format!("no VM was free for a request within {time:?} (--queue-time)"));
        let Some(request) = connection.request else { return };
        let can_go_on = connection.finish_request();
        let keeps = request.keep_alive && can_go_on && !self.is_draining();
        let body = "the server is busy\n";
        Answer { status: 503, body, keeps, is_head: request.is_head, version: request.version }.write(connection.output.tail());
        self.give(connection, if keeps { After::Keep } else { After::Linger }, desk);
    }

    /// Write what is left of a response; a client that does not take it waits without a VM.
    pub(super) fn give(&self, mut connection: Box<Connection>, after: After, desk: &Desk) {
        let before = connection.output.len();
        match connection.send() {
            Progress::Closed => {}
            Progress::Some => self.follow(connection, after, desk),
            Progress::WouldBlock => {
                if connection.output.len() < before || connection.phase != Phase::Writing(after) {
                    connection.expires = host_monotonic().saturating_add(self.config.clients.write_timeout_ns);
                }
                connection.phase = Phase::Writing(after);
                self.park(connection, EventFlags::OUT);
            }
        }
    }

    /// What comes behind a response.
    fn follow(&self, mut connection: Box<Connection>, after: After, desk: &Desk) {
        let now = host_monotonic();
        if after != After::Keep || self.is_draining() {
            if connection.must_linger(after, now) {
                self.park(connection, EventFlags::IN);
            }
            return;
        }
        let clients = &self.config.clients;
        connection.phase = Phase::Idle;
        if connection.input.is_empty() {
            if !connection.ended {
                connection.expires = now.saturating_add(clients.idle_timeout_ns);
                connection.trim();
                self.park(connection, EventFlags::IN);
            }
            return;
        }
        // The client has sent more requests at once: the next one stands in line behind what others have sent meanwhile.
        match connection.advance(clients, now) {
            Step::Ready => {
                (connection.phase, connection.ready_at) = (Phase::Ready, now);
                connection.expires = now.saturating_add(clients.queue_time_ns);
                self.park(connection, EventFlags::OUT);
            }
            Step::More => self.park(connection, EventFlags::IN),
            Step::Refuse(answer) => self.refuse(connection, answer, desk),
            Step::Gone => {}
        }
    }

    /// Let a connection wait in the set.
    fn park(&self, mut connection: Box<Connection>, flags: EventFlags) {
        let index = connection.slot.index();
        let Some(mut place) = self.table.place(index) else { return };
        let (event, flags) = (EventData::new_u64(FIRST_CONNECTION + index as u64), flags | EventFlags::ONESHOT);
        let is_watched = std::mem::replace(&mut connection.is_watched, true);
        let held = connection.held();
        connection.slot.hold(held);
        // Under the lock of its place: another thread may be woken for it at once and has to find it.
        let connection = place.insert(connection);
        let armed = if is_watched {
            epoll::modify(&self.epoll, connection.as_fd(), event, flags)
        } else {
            epoll::add(&self.epoll, connection.as_fd(), event, flags)
        };
        if armed.is_err() {
            drop(place.take());
        }
    }

    /// Let a request wait for a VM. Where a thread has become free meanwhile, it is woken for it.
    pub(super) fn enqueue(&self, mut connection: Box<Connection>) {
        connection.phase = Phase::Ready;
        connection.expires = connection.ready_at.saturating_add(self.config.clients.queue_time_ns);
        self.queue.push(connection);
        let (_, threads) = self.desks.split_last().unwrap_or((&self.desks[0], &[]));
        if threads.iter().any(|desk| desk.busy_since.load(Ordering::SeqCst) == 0) {
            while let Some(connection) = self.queue.pop_if(|_| true) {
                self.park(connection, EventFlags::OUT);
            }
        }
    }

    /// End what has lasted too long.
    pub(super) fn sweep(&self, desk: &Desk) {
        let now = host_monotonic();
        let is_draining = self.is_draining();
        for index in self.table.indexes() {
            let Some(mut place) = self.table.place(index) else { continue };
            if is_draining && let Some(connection) = place.as_mut() {
                hurry(connection, now);
            }
            let expired = place.as_ref().is_some_and(|connection| connection.expires <= now);
            let Some(connection) = expired.then(|| place.take()).flatten() else { continue };
            drop(place);
            self.expire(connection, desk);
        }
        while let Some(connection) = self.queue.pop_if(|first| first.expires <= now) {
            self.turn_away(connection, desk);
        }
    }

    /// A socket is called writable when a third of its buffer is free, which at a slow client's pace takes long; but it takes bytes
    /// as soon as there is any room.
    fn try_once_more(&self, mut connection: Box<Connection>, after: After, desk: &Desk) {
        let before = connection.output.len();
        connection.send();
        if connection.output.len() == before {
            connection.abort();
        } else {
            connection.expires = host_monotonic().saturating_add(self.config.clients.write_timeout_ns);
            self.give(connection, after, desk);
        }
    }

    fn expire(&self, mut connection: Box<Connection>, desk: &Desk) {
        if matches!(connection.phase, Phase::Idle | Phase::Head | Phase::Body) {
            // What came in time and was not looked at, because everybody was busy, counts.
            connection.receive(connection.input_max(&self.config.clients));
            let now = host_monotonic();
            match connection.advance(&self.config.clients, now) {
                Step::Ready => {
                    connection.ready_at = now;
                    return self.enqueue(connection);
                }
                Step::Refuse(answer) => return self.refuse(connection, answer, desk),
                Step::Gone => return,
                // A kept connection's next request has begun.
                Step::More if connection.expires > now => return self.park(connection, EventFlags::IN),
                Step::More => {}
            }
        }
        match connection.phase {
            Phase::Ready => self.turn_away(connection, desk),
            Phase::Writing(after) => self.try_once_more(connection, after, desk),
            Phase::Head if connection.input.is_empty() || !connection.speaks_http(&self.config.clients) => {}
            Phase::Head | Phase::Body => self.refuse(connection, Answer::last(408, "the request did not arrive in time\n"), desk),
            Phase::Idle | Phase::Lingering => {}
        }
    }

    /// Close connections to make room for new ones: those between two requests, and where there is none of them, those whose first or
    /// next head is not complete; those first that would be closed first.
    pub(super) fn make_room(&self, wanted: usize) {
        for phase in [Phase::Idle, Phase::Head] {
            let is_meant = |connection: &Connection| connection.phase == phase;
            if self.closest_to_their_end(is_meant).take(wanted).map(drop).count() > 0 {
                return;
            }
        }
    }

    /// Where requests and responses that wait for their clients have become too many bytes, close the connections that have waited
    /// longest, until a quarter of the room is free.
    pub(super) fn relieve(&self) {
        let most = self.config.clients.connection_memory;
        if self.table.held() <= most {
            return;
        }
        let holds = |connection: &Connection| connection.held() > 0 && connection.phase != Phase::Ready;
        let mut closed = 0;
        for connection in self.closest_to_their_end(holds) {
            connection.abort();
            closed += 1;
            if self.table.held() <= most / 4 * 3 {
                break;
            }
        }
        if closed > 0 {
            let message = "slow clients made connections hold too much (--connection-memory): those that waited longest were closed";
            self.control.limited("log", "warning", message);
        }
    }

    /// Connections in their places, taken one by one, those first whose time is over first.
    fn closest_to_their_end(&self, is_meant: impl Fn(&Connection) -> bool) -> impl Iterator<Item = Box<Connection>> {
        let mut found: Vec<(u64, usize)> = Vec::new();
        for index in self.table.indexes() {
            if let Some(place) = self.table.place(index)
                && let Some(connection) = place.as_deref().filter(|connection| is_meant(connection))
            {
                found.push((connection.expires, index));
            }
        }
        found.sort_unstable();
        found.into_iter().filter_map(move |(_, index)| {
            let mut place = self.table.place(index)?;
            if place.as_deref().is_some_and(&is_meant) { place.take() } else { None }
        })
    }
}

/// During a drain nobody may take their time.
fn hurry(connection: &mut Connection, now: u64) {
    match connection.phase {
        Phase::Idle => connection.expires = now,
        Phase::Head if connection.input.is_empty() => connection.expires = now,
        Phase::Head | Phase::Body => connection.expires = connection.expires.min(now.saturating_add(LAST_REQUEST_NS)),
        _ => {}
    }
}
