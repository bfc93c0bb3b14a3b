//! A worker process: threads with a request VM each on one epoll set, and one thread without, which watches over them.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::busy_poll::Seat;
use super::control::{Command, Control};
use super::lock;
use super::shared::{CONNECTIONS_MAX, Desk, ListenerSocket, Queue, Shared, WAKE};
use super::storage::StoragePrograms;
use super::table::Table;
use super::thread::Thread;
use crate::config::ServeConfig;
use crate::linux::clock::host_monotonic;
use crate::panics::contain;
use crate::sandbox::{Snapshot, SnapshotError, Suspended};
use crate::stats::ServeStats;

/// How often the watch looks around, nanoseconds; and while no thread gets on. Each look takes a CPU from a thread or from its client:
/// more of them would be seen in the slowest hundredth of short requests.
const WATCH_NS: u64 = 50_000_000;
const WATCH_STUCK_NS: u64 = 10_000_000;
/// How often connections are looked at for having waited too long, nanoseconds.
const SWEEP_NS: u64 = 100_000_000;
/// After this long with the same work a thread is not expected back soon, nanoseconds.
const STUCK_NS: u64 = 10_000_000;
/// How often requests are taken in while threads are busy but get on, nanoseconds, at least and at most: their waiting time is
/// known as exactly.
const TAKE_IN_NS: (u64, u64) = (20_000_000, 500_000_000);
/// Events taken at once.
const EVENTS: usize = 64;
/// Most connections taken in one turn of the watch.
const TURNS: usize = 64;
/// Connections that are closed at once to make room.
const ROOM: usize = 64;

/// Why a worker could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A request VM could not be made.
    #[error("cannot fork a request VM: {0}")]
    Fork(#[from] SnapshotError),
    /// The host refused something.
    #[error("cannot {0}: {1}")]
    System(&'static str, Errno),
    /// The program listens on nothing.
    #[error("the program has no listening socket")]
    NoListener,
}

const fn system(what: &'static str) -> impl FnOnce(Errno) -> ServeError {
    move |errno| ServeError::System(what, errno)
}

/// The sockets to accept from, and the program's listener that each is for: the program's own, or `others` in their place, in order;
/// those that are more than the program's are for its last.
fn listeners(snapshot: &Snapshot, others: Vec<OwnedFd>) -> Vec<ListenerSocket> {
    let own: Vec<_> = snapshot.kernel().listeners().into_iter().filter(|listener| listener.listening).collect();
    if others.is_empty() {
        return own.into_iter().filter_map(|listener| Some(ListenerSocket::new(listener.host?, listener.id))).collect();
    }
    let target = |index: usize| own.get(index).or(own.last()).map(|listener| listener.id);
    let pairs = others.into_iter().enumerate();
    pairs.filter_map(|(index, socket)| Some(ListenerSocket::new(Arc::new(socket), target(index)?))).collect()
}

/// Serve until drained; returns what was done. `sockets` listen in place of the program's own, if there are any.
///
/// # Errors
///
/// [`ServeError`], before the first request.
pub fn serve(
    snapshot: &Snapshot,
    config: &ServeConfig,
    control: BorrowedFd<'_>,
    sockets: Vec<OwnedFd>,
    suspended: Option<Suspended>,
) -> Result<ServeStats, ServeError> {
    let listeners = listeners(snapshot, sockets);
    if listeners.is_empty() {
        return Err(ServeError::NoListener);
    }
    let shared = Shared {
        config,
        snapshot,
        epoll: epoll::create(CreateFlags::CLOEXEC).map_err(system("make an epoll set"))?,
        wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(system("make an event descriptor"))?,
        seat: Seat::default(),
        listeners,
        table: Table::new(CONNECTIONS_MAX),
        queue: Queue::default(),
        draining: AtomicBool::new(false),
        forked: AtomicUsize::new(0),
        alive: AtomicUsize::new(config.threads),
        desks: (0..=config.threads).map(|_| Desk::default()).collect(),
        control: Control::new(control, config.worker).map_err(system("use the control socket"))?,
        failure: Mutex::default(),
        storage: config.storage.as_ref().map(|storage| StoragePrograms::new(storage, config.threads, suspended)).transpose()?,
    };
    for (index, listener) in shared.listeners.iter().enumerate() {
        let _ = rustix::io::ioctl_fionbio(&*listener.socket, true);
        // Linux gives it on to accepted sockets. Not every listener is of TCP.
        let _ = rustix::net::sockopt::set_tcp_nodelay(&*listener.socket, true);
        shared.watch_listener(index).map_err(system("watch a socket"))?;
    }
    epoll::add(&shared.epoll, &shared.wake, EventData::new_u64(WAKE), EventFlags::IN).map_err(system("watch an event descriptor"))?;
    std::thread::scope(|scope| {
        for index in 0..config.threads {
            let shared = &shared;
            let spawned = std::thread::Builder::new().name(format!("vm-{index}")).spawn_scoped(scope, move || {
                match contain(|| Thread::run(shared, index)) {
                    Ok(Ok(())) => {}
                    // The others would serve on without this VM, for ever.
                    Ok(Err(error)) => fail(&shared.control, &error.to_string()),
                    // Not even a new VM could be made for it.
                    Err(panic) => fail(&shared.control, &panic),
                }
                if shared.alive.fetch_sub(1, Ordering::AcqRel) == 1 {
                    shared.wake_all();
                }
            });
            if let Err(error) = spawned {
                *lock(&shared.failure) = Some(ServeError::System("start a thread", Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)));
                shared.alive.fetch_sub(1, Ordering::AcqRel);
            }
        }
        if let Err(panic) = contain(|| Watch::new(&shared).run()) {
            // The threads would serve on, but nobody could stop them.
            fail(&shared.control, &panic);
        }
    });
    let failure = lock(&shared.failure).take();
    let stats = shared.stats();
    shared.control.drained(&stats);
    failure.map_or(Ok(stats), Err)
}

impl Shared<'_> {
    /// What happened to the storage program goes into the log.
    fn pass_on_messages(&self) {
        for message in self.storage.iter().flat_map(StoragePrograms::take_messages) {
            self.control.limited("log", message.level, &message.text);
        }
    }

    /// Accept no more, and end what is idle.
    fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        for listener in &self.listeners {
            let _ = epoll::delete(&self.epoll, &*listener.socket);
        }
        self.wake_all();
    }

    fn wake_all(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

#[expect(clippy::exit, reason = "the supervisor is gone, the drain time is over, or a thread has failed: nothing is left to be tidy for")]
fn end_process(status: i32) {
    std::process::exit(status);
}

/// End the process after a failure that it cannot go on with; its parent starts it again.
fn fail(control: &Control, message: &str) {
    control.failed(message);
    end_process(1);
}

/// Whether work that was taken then goes on for so long that its thread is not expected back soon.
const fn is_stuck(since: u64, now: u64) -> bool {
    now.saturating_sub(since) >= STUCK_NS
}

/// The thread without a VM: follows the supervisor's commands, ends what lasts too long, and does the threads' work with connections
/// while all of them are busy with their VMs, so that the requests that wait are known by name.
struct Watch<'a> {
    shared: &'a Shared<'a>,
    drain_deadline: Option<u64>,
    swept_at: u64,
    took_in_at: u64,
}

impl<'a> Watch<'a> {
    const fn new(shared: &'a Shared<'a>) -> Self {
        Self { shared, drain_deadline: None, swept_at: 0, took_in_at: 0 }
    }

    /// Until all threads are done.
    fn run(mut self) {
        let mut buffer = Vec::new();
        while self.shared.alive.load(Ordering::Acquire) > 0 {
            self.shared.pass_on_messages();
            let mut fds = [PollFd::new(self.shared.control.socket(), PollFlags::IN)];
            match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: self.pause_ns(host_monotonic()).cast_signed() })) {
                Ok(0) | Err(Errno::INTR) => {}
                _ => self.obey(&mut buffer),
            }
            let now = host_monotonic();
            if self.drain_deadline.is_some_and(|deadline| deadline < now) {
                // Requests that still run had their time.
                self.shared.control.drained(&self.shared.stats());
                end_process(0);
            }
            self.look_after_connections(now);
        }
    }

    fn obey(&mut self, buffer: &mut Vec<u8>) {
        match self.shared.control.receive(buffer) {
            Some(Command::Drain) => {
                self.drain_deadline = Some(host_monotonic().saturating_add(self.shared.config.drain_time_ns));
                self.shared.drain();
                self.swept_at = 0;
            }
            Some(Command::Stats) => self.shared.control.stats(&self.shared.stats()),
            None => end_process(1),
        }
    }

    fn desk(&self) -> &'a Desk {
        &self.shared.desks[self.shared.config.threads]
    }

    /// Where all threads are busy: when the last of them took its work.
    fn oldest_work(&self) -> Option<u64> {
        let threads = self.shared.desks.iter().take(self.shared.config.threads);
        threads.map(|desk| desk.busy_since.load(Ordering::SeqCst)).try_fold(0, |last, since| (since > 0).then_some(last.max(since)))
    }

    /// Until the next look.
    fn pause_ns(&self, now: u64) -> u64 {
        if self.oldest_work().is_some_and(|since| is_stuck(since, now)) { WATCH_STUCK_NS } else { WATCH_NS.min(self.take_in_pause_ns()) }
    }

    fn take_in_pause_ns(&self) -> u64 {
        (self.shared.config.clients.queue_time_ns / 20).clamp(TAKE_IN_NS.0, TAKE_IN_NS.1)
    }

    fn look_after_connections(&mut self, now: u64) {
        self.shared.relieve();
        if now.saturating_sub(self.swept_at) >= SWEEP_NS {
            self.swept_at = now;
            self.shared.sweep(self.desk());
            if self.shared.has_paused_listener() {
                self.shared.make_room(ROOM);
                self.shared.resume_listeners();
            }
        }
        let is_due = now.saturating_sub(self.took_in_at) >= self.take_in_pause_ns();
        if self.oldest_work().is_some_and(|since| is_due || is_stuck(since, now)) {
            self.took_in_at = now;
            self.take_in();
        }
    }

    /// Do for connections what a thread would do, without a VM.
    fn take_in(&self) {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS];
        for _ in 0..TURNS {
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            let count = epoll::wait(&self.shared.epoll, &mut events, Some(&at_once)).unwrap_or(0);
            let tokens = events.iter().take(count).map(|event| event.data.u64()).filter(|&token| token != WAKE);
            let mut is_done = true;
            for token in tokens {
                is_done = false;
                if let Some(connection) = self.shared.handle(token, self.desk()) {
                    self.shared.enqueue(connection);
                }
            }
            if is_done {
                return;
            }
        }
    }
}
