//! The threads of a worker process, one request VM each, on one epoll set.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::connection::{Connection, Progress, REQUEST_BUFFER};
use super::control::{Command, Control};
use super::http1::{self, Body, Request};
use super::request::{Exchange, run_in_memory};
use super::storage::StoragePrograms;
use crate::config::ServeConfig;
use crate::limits::VMAS_MAX;
use crate::linux::clock::host_monotonic;
use crate::linux::file::FileId;
use crate::linux::file::stream_host::PeerAddress;
use crate::platform::kvm::Kicker;
use crate::sandbox::{ForkOptions, RunEnd, Sandbox, Snapshot, SnapshotError, Suspended};
use crate::stats::{RunCounters, ServeStats};

/// How long a client may take to send a request, or to take the rest of its response.
const CLIENT_TIME_NS: u64 = 10_000_000_000;
/// Connections that may wait; beyond that no more are accepted until some have gone.
const CONNECTIONS_MAX: usize = 8192;
/// Mappings of a worker process that are not its VMs' memory.
const OTHER_MAPPINGS: usize = 8192;
/// Mappings that every VM may have.
const HOST_MAPPINGS_MIN: usize = 1024;
/// How long is waited before the first new attempt to fork a VM, and at most; the pause doubles.
const RENEW_PAUSE: Duration = Duration::from_millis(10);
const RENEW_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often expired connections are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// Tokens of the epoll set: listeners from 0, the wake-up, connections from here.
const WAKE: u64 = 1 << 32;
const FIRST_CONNECTION: u64 = WAKE + 1;

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

struct ListenerSocket {
    socket: Arc<OwnedFd>,
    id: FileId,
}

/// What the threads share.
struct Shared<'a> {
    config: &'a ServeConfig,
    snapshot: &'a Snapshot,
    epoll: OwnedFd,
    wake: OwnedFd,
    listeners: Vec<ListenerSocket>,
    waiting: Mutex<HashMap<u64, Connection>>,
    next_token: AtomicU64,
    draining: AtomicBool,
    forked: AtomicUsize,
    alive: AtomicUsize,
    stats: Mutex<ServeStats>,
    control: Control,
    failure: Mutex<Option<ServeError>>,
    storage: Option<StoragePrograms>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serve until drained; returns what was done.
///
/// # Errors
///
/// [`ServeError`], before the first request.
pub fn serve(
    snapshot: &Snapshot,
    config: &ServeConfig,
    control: BorrowedFd<'_>,
    suspended: Option<Suspended>,
) -> Result<ServeStats, ServeError> {
    let system = |what| move |errno| ServeError::System(what, errno);
    let listeners: Vec<ListenerSocket> = snapshot
        .kernel()
        .listeners()
        .into_iter()
        .filter(|listener| listener.listening)
        .filter_map(|listener| Some(ListenerSocket { socket: listener.host?, id: listener.id }))
        .collect();
    if listeners.is_empty() {
        return Err(ServeError::NoListener);
    }
    let shared = Shared {
        config,
        snapshot,
        epoll: epoll::create(CreateFlags::CLOEXEC).map_err(system("make an epoll set"))?,
        wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(system("make an event descriptor"))?,
        listeners,
        waiting: Mutex::default(),
        next_token: AtomicU64::new(FIRST_CONNECTION),
        draining: AtomicBool::new(false),
        forked: AtomicUsize::new(0),
        alive: AtomicUsize::new(config.threads),
        stats: Mutex::default(),
        control: Control::new(control, config.worker).map_err(system("use the control socket"))?,
        failure: Mutex::default(),
        storage: config.storage.as_ref().map(|storage| StoragePrograms::new(storage, config.threads, suspended)).transpose()?,
    };
    for (index, listener) in shared.listeners.iter().enumerate() {
        let _ = rustix::io::ioctl_fionbio(&*listener.socket, true);
        epoll::add(&shared.epoll, &*listener.socket, EventData::new_u64(index as u64), EventFlags::IN | EventFlags::ONESHOT)
            .map_err(system("watch a socket"))?;
    }
    epoll::add(&shared.epoll, &shared.wake, EventData::new_u64(WAKE), EventFlags::IN).map_err(system("watch an event descriptor"))?;
    std::thread::scope(|scope| {
        for index in 0..config.threads {
            let shared = &shared;
            let spawned = std::thread::Builder::new().name(format!("vm-{index}")).spawn_scoped(scope, move || {
                if let Err(error) = Thread::run(shared, index) {
                    shared.control.limited("log", "error", &error.to_string());
                    *lock(&shared.failure) = Some(error);
                }
                if shared.alive.fetch_sub(1, Ordering::AcqRel) == 1 {
                    shared.finished();
                }
            });
            if let Err(error) = spawned {
                *lock(&shared.failure) = Some(ServeError::System("start a thread", Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)));
                shared.alive.fetch_sub(1, Ordering::AcqRel);
            }
        }
        shared.obey();
    });
    let failure = lock(&shared.failure).take();
    let stats = shared.stats();
    shared.control.drained(&stats);
    failure.map_or(Ok(stats), Err)
}

impl Shared<'_> {
    /// Follow the supervisor's commands until all threads are done.
    fn obey(&self) {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut buffer = Vec::new();
        let mut drain_deadline = None;
        while self.alive.load(Ordering::Acquire) > 0 {
            self.pass_on_messages();
            let mut fds = [PollFd::new(self.control.socket(), PollFlags::IN)];
            let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                _ => match self.control.receive(&mut buffer) {
                    Some(Command::Drain) => {
                        drain_deadline = Some(host_monotonic().saturating_add(self.config.drain_time_ns));
                        self.drain();
                    }
                    Some(Command::Stats) => self.control.stats(&self.stats()),
                    None => end_process(1),
                },
            }
            if drain_deadline.is_some_and(|deadline| deadline < host_monotonic()) {
                // Requests that still run had their time.
                self.control.drained(&self.stats());
                end_process(0);
            }
        }
    }

    fn stats(&self) -> ServeStats {
        let mut stats = lock(&self.stats).clone();
        stats.storage = self.storage.as_ref().map(StoragePrograms::stats);
        stats
    }

    /// What happened to the storage program goes into the log.
    fn pass_on_messages(&self) {
        for message in self.storage.iter().flat_map(StoragePrograms::take_messages) {
            self.control.limited("log", message.level, &message.text);
        }
    }

    fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn finished(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn rearm_listener(&self, index: usize) {
        let listener = &self.listeners[index];
        let _ = epoll::modify(&self.epoll, &*listener.socket, EventData::new_u64(index as u64), EventFlags::IN | EventFlags::ONESHOT);
    }

    /// Let a connection wait in the set.
    fn park(&self, connection: Connection, flags: EventFlags) {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let mut waiting = lock(&self.waiting);
        // Under the lock: another thread may be woken for it at once and has to find it.
        let connection = waiting.entry(token).or_insert(connection);
        let event = EventData::new_u64(token);
        let flags = flags | EventFlags::ONESHOT;
        let added = epoll::add(&self.epoll, connection.as_fd(), event, flags)
            .or_else(|_| epoll::modify(&self.epoll, connection.as_fd(), event, flags));
        if added.is_err() {
            waiting.remove(&token);
        }
    }

    fn sweep(&self) {
        let now = host_monotonic();
        let expired: Vec<Connection> = {
            let mut waiting = lock(&self.waiting);
            let tokens: Vec<u64> = waiting.iter().filter(|(_, connection)| connection.expires < now).map(|(&token, _)| token).collect();
            tokens.into_iter().filter_map(|token| waiting.remove(&token)).collect()
        };
        for mut connection in expired {
            if connection.output.is_empty() && !connection.input.is_empty() {
                connection.output = http1::own_response(408, "the request did not arrive in time\n");
                connection.send();
            }
            connection.close();
        }
    }
}

#[expect(clippy::exit, reason = "the supervisor is gone, or the drain time is over: nothing is left to be tidy for")]
fn end_process(status: i32) {
    std::process::exit(status);
}

/// One thread with its VM.
struct Thread<'a> {
    shared: &'a Shared<'a>,
    /// Which of the worker's VMs it has.
    number: usize,
    sandbox: Sandbox,
    kicker: Kicker,
}

impl<'a> Thread<'a> {
    fn fork(shared: &Shared<'_>, number: usize) -> Result<(Sandbox, Kicker), ServeError> {
        let options = ForkOptions {
            ephemeral: shared.config.ephemeral,
            max_request_memory: shared.config.max_request_memory,
            hot_pages: shared.config.hot_pages,
            host_mappings: (VMAS_MAX - OTHER_MAPPINGS).checked_div(shared.config.threads).unwrap_or(0).max(HOST_MAPPINGS_MIN),
        };
        let mut sandbox = shared.snapshot.fork(&options, shared.storage.as_ref().map(|storage| storage.link(number)))?;
        let kicker = sandbox.kicker().map_err(|errno| ServeError::System("make a timer", errno))?;
        Ok((sandbox, kicker))
    }

    fn run(shared: &'a Shared<'a>, number: usize) -> Result<(), ServeError> {
        if let Some(storage) = &shared.storage {
            storage.start(number)?;
        }
        let (sandbox, kicker) = Self::fork(shared, number)?;
        let mut thread = Self { shared, number, sandbox, kicker };
        thread.prime()?;
        if shared.forked.fetch_add(1, Ordering::AcqRel) + 1 == shared.config.threads {
            shared.control.ready();
        }
        while !shared.draining.load(Ordering::Acquire) {
            match thread.next_event()? {
                None => {
                    shared.sweep();
                    thread.background();
                }
                Some(WAKE) => {}
                Some(token) if token < WAKE => thread.accept(token as usize)?,
                Some(token) => {
                    let connection = lock(&shared.waiting).remove(&token);
                    if let Some(connection) = connection {
                        thread.progress(connection)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Let the VM answer a few requests in memory, so that it knows its hot pages before the first client comes.
    fn prime(&mut self) -> Result<(), ServeError> {
        let Some(listener) = self.shared.listeners.first().map(|listener| listener.id) else { return Ok(()) };
        for request in &self.shared.config.prime {
            let bytes: Vec<u8> = request.chars().filter_map(|character| u8::try_from(u32::from(character)).ok()).collect();
            let deadline = host_monotonic().saturating_add(self.shared.config.max_request_time_ns);
            let (_, end) = run_in_memory(&mut self.sandbox, &self.kicker, listener, &bytes, deadline);
            if end != RunEnd::Responded {
                self.report(&end);
            }
            self.reset()?;
            self.sandbox.counters = RunCounters::default();
        }
        Ok(())
    }

    fn next_event(&self) -> Result<Option<u64>, ServeError> {
        let mut timeout = SWEEP;
        if !self.shared.config.ephemeral
            && let Some(next) = self.sandbox.kernel().next_deadline()
        {
            let moment = self.sandbox.kernel().clock.to_host(next);
            timeout = timeout.min(Duration::from_nanos(moment.saturating_sub(host_monotonic())));
        }
        let timeout = rustix::time::Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: i64::from(timeout.subsec_nanos()) };
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }];
        match epoll::wait(&self.shared.epoll, &mut events, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => Ok(None),
            Ok(_) => Ok(Some(events[0].data.u64())),
            Err(errno) => Err(ServeError::System("wait for connections", errno)),
        }
    }

    /// A VM that keeps its state also does what it does between requests.
    fn background(&mut self) {
        if !self.shared.config.ephemeral {
            let deadline = host_monotonic().saturating_add(self.shared.config.max_request_time_ns);
            if let crate::sandbox::Pause::Ended(end) = self.sandbox.run(&self.kicker, deadline, None) {
                self.report(&end);
                let _ = self.renew();
            }
        }
    }

    fn accept(&mut self, index: usize) -> Result<(), ServeError> {
        let listener = &self.shared.listeners[index];
        let accepted = rustix::net::acceptfrom_with(&*listener.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        if lock(&self.shared.waiting).len() >= CONNECTIONS_MAX {
            // Full: this one is served if it can be, and the oldest expire; the backlog holds the others.
            self.shared.sweep();
        }
        self.shared.rearm_listener(index);
        let Ok((socket, address)) = accepted else { return Ok(()) };
        let peer = address.and_then(|address| std::net::SocketAddr::try_from(address).ok()).map_or(PeerAddress::Unnamed, PeerAddress::Inet);
        if matches!(peer, PeerAddress::Inet(_)) {
            let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
        }
        lock(&self.shared.stats).connections += 1;
        self.progress(Connection {
            socket,
            peer,
            listener: listener.id,
            input: Vec::new(),
            output: Vec::new(),
            expires: host_monotonic().saturating_add(CLIENT_TIME_NS),
            continued: false,
            ended: false,
        })
    }

    /// Do what can be done for a connection.
    fn progress(&mut self, mut connection: Connection) -> Result<(), ServeError> {
        if !connection.output.is_empty() {
            self.give(connection);
            return Ok(());
        }
        let progress = connection.receive();
        match http1::parse_request(&connection.input) {
            Err(refusal) => self.refuse(connection, refusal.0, "the request is not valid HTTP/1.1\n"),
            Ok(Some(request)) => match body_state(&connection, &request) {
                BodyState::Here => return self.exchange(connection, request),
                BodyState::Wrong => self.refuse(connection, 400, "the request's body is not valid HTTP/1.1\n"),
                BodyState::Coming if progress == Progress::Closed => connection.close(),
                BodyState::Coming => {
                    if request.expects_continue && !connection.continued {
                        connection.continued = true;
                        let _ = rustix::net::send(&connection.socket, b"HTTP/1.1 100 Continue\r\n\r\n", rustix::net::SendFlags::NOSIGNAL);
                    }
                    self.shared.park(connection, EventFlags::IN | EventFlags::RDHUP);
                }
            },
            Ok(None) if progress == Progress::Closed => connection.close(),
            Ok(None) => self.shared.park(connection, EventFlags::IN | EventFlags::RDHUP),
        }
        Ok(())
    }

    fn refuse(&self, mut connection: Connection, status: u16, body: &str) {
        lock(&self.shared.stats).refused += 1;
        connection.output = http1::own_response(status, body);
        self.give(connection);
    }

    /// Write what is left of a response; a client that does not take it waits without a VM.
    fn give(&self, mut connection: Connection) {
        match connection.send() {
            Progress::WouldBlock => {
                connection.expires = host_monotonic().saturating_add(CLIENT_TIME_NS);
                self.shared.park(connection, EventFlags::OUT);
            }
            Progress::Some | Progress::Closed => connection.close(),
        }
    }

    /// Serve one request, and make the VM ready for the next.
    fn exchange(&mut self, mut connection: Connection, request: Request) -> Result<(), ServeError> {
        let started = host_monotonic();
        let deadline = started.saturating_add(self.shared.config.max_request_time_ns);
        let ephemeral = self.shared.config.ephemeral;
        if ephemeral {
            self.sandbox.resume_clock();
        }
        let served =
            Exchange { sandbox: &mut self.sandbox, kicker: &self.kicker, connection: &mut connection, deadline, ephemeral }.serve(request);
        self.sandbox.counters.run_ns = host_monotonic().saturating_sub(started);
        let failed = !matches!(served.end, RunEnd::Responded | RunEnd::ClientGone);
        if failed {
            self.report(&served.end);
            if !served.answered {
                let body = if served.end.http_status() == 504 {
                    "the program did not answer in time\n"
                } else {
                    "the program failed to answer this request\n"
                };
                connection.output = http1::own_response(served.end.http_status(), body);
            }
        }
        if served.answered && failed && !served.complete {
            // A response that breaks off must not look complete.
            drop(connection);
        } else {
            self.give(connection);
        }
        self.take_notes();
        let reset = if ephemeral && !matches!(served.end, RunEnd::Broken { .. }) {
            self.reset()
        } else if ephemeral || failed {
            self.renew().map(|()| false)
        } else {
            Ok(false)
        };
        let counters = std::mem::take(&mut self.sandbox.counters);
        self.count(&served.end, &counters, ephemeral);
        reset.map(drop)
    }

    fn count(&self, end: &RunEnd, counters: &RunCounters, reset: bool) {
        let mut stats = lock(&self.shared.stats);
        stats.requests += 1;
        stats.resets += u64::from(reset);
        match end {
            RunEnd::Responded => stats.responses += 1,
            end => *stats.failures.entry(end.name().to_owned()).or_default() += 1,
        }
        stats.totals.add(counters);
    }

    /// Reset the VM, and verify it if asked; a VM that cannot be reset is thrown away. Whether it was kept.
    fn reset(&mut self) -> Result<bool, ServeError> {
        let reset = self.sandbox.reset(self.shared.config.limit_request_memory).map_err(|errno| format!("cannot reset a VM: {errno}"));
        let verified = reset.and_then(|()| {
            if self.shared.config.verify_reset { self.sandbox.verify().map_err(|mismatch| mismatch.to_string()) } else { Ok(()) }
        });
        let started = verified.and_then(|()| self.sandbox.start_over().map_err(|end| end.sentence()));
        match started {
            Ok(()) if self.sandbox.is_bloated() => {
                let counters = std::mem::take(&mut self.sandbox.counters);
                self.renew()?;
                self.sandbox.counters = counters;
                Ok(true)
            }
            Ok(()) => Ok(true),
            Err(message) => {
                self.shared.control.limited("log", "error", &message);
                lock(&self.shared.stats).discarded += 1;
                let counters = std::mem::take(&mut self.sandbox.counters);
                self.renew()?;
                self.sandbox.counters = counters;
                Ok(false)
            }
        }
    }

    /// Throw the VM away and fork another. Where the host has no room for one (EMFILE, ENOMEM), try again until it has: the client
    /// was answered before, and other threads take those that come meanwhile.
    fn renew(&mut self) -> Result<(), ServeError> {
        let mut pause = RENEW_PAUSE;
        loop {
            match Self::fork(self.shared, self.number) {
                Ok((sandbox, kicker)) => {
                    self.kicker = kicker;
                    self.sandbox = sandbox;
                    return Ok(());
                }
                // No request will want the VM.
                Err(_) if self.shared.draining.load(Ordering::Acquire) => return Ok(()),
                Err(error) => self.shared.control.limited("log", "error", &format!("{error}; trying again in {} ms", pause.as_millis())),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(RENEW_PAUSE_MAX);
        }
    }

    fn report(&self, end: &RunEnd) {
        self.shared.control.limited("run_failed", "warning", &end.sentence());
    }

    fn take_notes(&mut self) {
        for note in std::mem::take(&mut self.sandbox.kernel_mut().notes) {
            self.shared.control.limited("log", "warning", &note);
        }
    }
}

enum BodyState {
    Here,
    Coming,
    Wrong,
}

/// Whether as much of the body is here as is waited for before a VM is given to the request.
fn body_state(connection: &Connection, request: &Request) -> BodyState {
    let body = &connection.input[request.head_bytes..];
    let here = match &request.body {
        Body::Length(length) => body.len() as u64 >= (*length).min(REQUEST_BUFFER as u64),
        Body::Chunked(chunks) => {
            let mut chunks = chunks.clone();
            if chunks.take(body).is_err() {
                return BodyState::Wrong;
            }
            chunks.ended() || body.len() >= REQUEST_BUFFER
        }
        Body::UntilClose => true,
    };
    if here { BodyState::Here } else { BodyState::Coming }
}
