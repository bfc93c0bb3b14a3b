//! The storage program: a VM beside the request VMs that is never reset, and the gate through which they call it.
//!
//! A call happens on the caller's own thread: it takes its turn, copies the buffer into the storage VM's window (nothing where
//! the buffer lies in the memory that both share), runs that VM until it answers, and copies back. While nobody calls, a
//! thread of this module's ([`background`]) runs what the program does by itself; a caller that finds it running kicks it.
//! That thread also starts the program anew when it has died, and sees calls to their end whose caller has gone.
//!
//! Everything is behind one order of turns ([`turn`]), so the locks here are never waited for.

mod background;
mod machine;
mod notices;
mod turn;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::EventfdFlags;
use rustix::io::Errno;
use serde::Serialize;

use crate::config::{Gate, SandboxConfig, StorageConfig};
use crate::linux::clock::host_monotonic;
use crate::linux::dispatch::error_value;
use crate::linux::gate::BUFFER_BYTES;
use crate::memory::{GuestMemory, SharedArea};
use crate::platform::kvm::{Kick, Kicker};
use crate::sandbox::{CallBuffer, LoadSandboxError, Remote, RunEnd, Sandbox, SnapshotError, Suspended};
use machine::{Detached, Driven, Machine, drive, has_work, watched};
pub use notices::Message;
use notices::Notices;
use turn::{Turn, Turns};

/// How the message begins that tells of the program's end.
pub const FAILED: &str = "the storage program failed";

/// What a storage program has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StorageStats {
    /// Calls that came to the gate.
    pub calls: u64,
    /// Those that ended with an error of ours.
    pub failed_calls: u64,
    /// How often the program was started.
    pub starts: u64,
    /// How often it died or had to be ended.
    pub failures: u64,
    /// How often it had to be stopped in what it did by itself, to take a call.
    pub kicks: u64,
    /// Bytes copied through the window, both ways.
    pub bytes_copied: u64,
    /// VM exits in calls.
    pub exits: u64,
}

impl StorageStats {
    /// Add another's.
    pub const fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.failed_calls += other.failed_calls;
        self.starts += other.starts;
        self.failures += other.failures;
        self.kicks += other.kicks;
        self.bytes_copied += other.bytes_copied;
        self.exits += other.exits;
    }
}

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    failed_calls: AtomicU64,
    starts: AtomicU64,
    failures: AtomicU64,
    kicks: AtomicU64,
    bytes_copied: AtomicU64,
    exits: AtomicU64,
}

/// What callers and the background thread share.
#[derive(Debug)]
struct Shared {
    config: StorageConfig,
    lanes: Vec<SharedArea>,
    turns: Turns,
    machine: Mutex<Machine>,
    /// Callers that wait for their turn.
    waiting: Arc<AtomicUsize>,
    /// The background thread runs the VM.
    background_runs: AtomicBool,
    background: Mutex<Option<Kick>>,
    wake: OwnedFd,
    stop: AtomicBool,
    notices: Mutex<Notices>,
    counters: Counters,
}

/// A storage program's VM and the thread that looks after it.
#[derive(Debug)]
pub struct Storage {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The negated errno, as a guest gets it.
fn failure(errno: Errno) -> i64 {
    error_value(errno).cast_signed()
}

fn broken(what: &str, errno: Errno) -> RunEnd {
    RunEnd::Broken { detail: format!("cannot {what}: {errno}") }
}

impl Storage {
    /// A gate with `lanes` shared areas, and no program behind it yet.
    ///
    /// # Errors
    ///
    /// EMFILE, ENOMEM.
    pub fn new(config: &StorageConfig, lanes: usize) -> Result<Self, Errno> {
        let mut config = config.clone();
        config.sandbox.gate = Some(Gate::Storage { lanes: lanes.max(lanes_of(&config.sandbox)) });
        let lanes = (0..lanes).map(|_| SharedArea::new(BUFFER_BYTES)).collect::<Result<_, _>>()?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Shared {
            config,
            lanes,
            turns: Turns::default(),
            machine: Mutex::default(),
            waiting: Arc::default(),
            background_runs: AtomicBool::new(false),
            background: Mutex::default(),
            wake,
            stop: AtomicBool::new(false),
            notices: Mutex::default(),
            counters: Counters::default(),
        };
        Ok(Self { shared: Arc::new(shared), thread: Mutex::default() })
    }

    /// Load the program and run it on the calling thread until its first wait; the nanoseconds that took.
    ///
    /// # Errors
    ///
    /// Why it cannot be loaded, or how it ended instead of waiting.
    pub fn boot(&self, timeout_ns: u64) -> Result<u64, BootError> {
        self.shared.boot(timeout_ns)
    }

    /// Go on with a program that another process has suspended.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn resume(&self, suspended: Suspended) -> Result<(), SnapshotError> {
        let sandbox = suspended.resume(&self.shared.lanes)?;
        self.shared.install(sandbox);
        Ok(())
    }

    /// Let a thread look after the program from now on; `restart` says whether it is to be started anew when it dies.
    ///
    /// # Errors
    ///
    /// EAGAIN where no thread can be made.
    pub fn look_after(&self, restart: bool) -> Result<(), Errno> {
        let shared = Arc::clone(&self.shared);
        let spawned = std::thread::Builder::new().name("storage".into()).spawn(move || background::run(&shared, restart));
        *lock(&self.thread) = Some(spawned.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?);
        Ok(())
    }

    /// Whether a thread does so.
    #[must_use]
    pub fn is_looked_after(&self) -> bool {
        lock(&self.thread).is_some()
    }

    /// Stop the program and the thread that looks after it, so that this process can be forked and the program can go on there.
    ///
    /// # Errors
    ///
    /// `None` where the program has died; else what the host says.
    pub fn suspend(&self) -> Result<Suspended, Option<SnapshotError>> {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.waiting.fetch_add(1, Ordering::SeqCst);
        self.shared.wake();
        if let Some(kick) = lock(&self.shared.background).as_ref() {
            kick.kick();
        }
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
        self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
        let sandbox = lock(&self.shared.machine).sandbox.take().ok_or(None)?;
        sandbox.suspend().map_err(Some)
    }

    /// The areas that it shares with request VMs.
    #[must_use]
    pub fn lanes(&self) -> &[SharedArea] {
        &self.shared.lanes
    }

    /// The way to it for request VMs.
    #[must_use]
    pub fn remote(&self) -> Arc<dyn Remote> {
        Arc::clone(&self.shared) as Arc<dyn Remote>
    }

    /// What happened since the last time.
    #[must_use]
    pub fn take_messages(&self) -> Vec<Message> {
        lock(&self.shared.notices).take()
    }

    /// What it has done.
    #[must_use]
    pub fn stats(&self) -> StorageStats {
        let Counters { calls, failed_calls, starts, failures, kicks, bytes_copied, exits } = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StorageStats {
            calls: get(calls),
            failed_calls: get(failed_calls),
            starts: get(starts),
            failures: get(failures),
            kicks: get(kicks),
            bytes_copied: get(bytes_copied),
            exits: get(exits),
        }
    }
}

impl Drop for Storage {
    /// The thread ends by itself when it next looks: it may be in the middle of a long start.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
    }
}

fn lanes_of(config: &SandboxConfig) -> usize {
    match config.gate {
        Some(Gate::Storage { lanes }) => lanes,
        _ => 0,
    }
}

/// Why a storage program does not wait for calls.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// It cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadSandboxError),
    /// The host refused something.
    #[error("cannot set up the storage program's VM: {0}")]
    System(#[from] Errno),
    /// It ended, hung or crashed.
    #[error("{}", .0.sentence())]
    Ended(RunEnd),
}

impl Shared {
    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// What our Linux has to say about the program goes into the log.
    fn pass_on_notes(&self, sandbox: &mut Sandbox) {
        for note in std::mem::take(&mut sandbox.kernel_mut().notes) {
            lock(&self.notices).note(note);
        }
    }

    fn boot(&self, timeout_ns: u64) -> Result<u64, BootError> {
        let started = host_monotonic();
        let mut sandbox = Sandbox::load(&self.config.sandbox)?;
        sandbox.share(&self.lanes)?;
        let kicker = Kicker::for_this_thread()?;
        let until = if timeout_ns == 0 { u64::MAX } else { started.saturating_add(timeout_ns) };
        let driven = drive(&mut sandbox, &kicker, until, true);
        self.pass_on_notes(&mut sandbox);
        match driven {
            Driven::Answered(_) => {
                self.install(sandbox);
                Ok(host_monotonic().saturating_sub(started))
            }
            Driven::TimedOut(end) | Driven::Died(end) => Err(BootError::Ended(end)),
            Driven::Yielded | Driven::Idle => Err(BootError::System(Errno::AGAIN)),
        }
    }

    fn install(&self, sandbox: Sandbox) {
        self.counters.starts.fetch_add(1, Ordering::Relaxed);
        let turn = self.turns.take(u64::MAX, || false);
        let mut machine = lock(&self.machine);
        *machine = Machine { sandbox: Some(Box::new(sandbox)), ..Machine::default() };
        drop(machine);
        drop(turn);
        self.wake();
    }

    /// Wait for a turn; a background thread that runs the VM is made to let go. Answers also whether there was anything to wait for.
    fn turn(&self, until: u64) -> Option<(Turn<'_>, bool)> {
        let mut waited = false;
        let turn = self.turns.take(until, || {
            waited = true;
            self.waiting.fetch_add(1, Ordering::SeqCst);
            if !self.background_runs.load(Ordering::SeqCst) {
                return false;
            }
            self.counters.kicks.fetch_add(1, Ordering::Relaxed);
            lock(&self.background).as_ref().inspect(|kick| kick.kick()).is_some()
        });
        if waited {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        turn.map(|turn| (turn, waited))
    }

    /// The VM, for whose turn it is. A panic in the middle of its work has left it in nobody knows which state: then it is lost.
    fn machine(&self) -> MutexGuard<'_, Machine> {
        let mut machine = lock(&self.machine);
        if self.machine.is_poisoned() {
            self.machine.clear_poison();
            self.background_runs.store(false, Ordering::SeqCst);
            self.lose(&mut machine, &RunEnd::Broken { detail: "an internal error interrupted its work".into() });
        }
        machine
    }

    /// The program is no more.
    fn lose(&self, machine: &mut Machine, end: &RunEnd) {
        machine.sandbox = None;
        machine.detached = None;
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        lock(&self.notices).failed(format!("{FAILED}: {}", end.sentence()));
        self.wake();
    }

    /// Give a call to the program and wait for its answer.
    fn perform(&self, machine: &mut Machine, caller: &GuestMemory, buffer: CallBuffer, kicker: &Kicker, times: Times) -> Option<i64> {
        let times = match self.finish_detached(machine, kicker, times) {
            Earlier::None => times,
            Earlier::Over => times.begun_now(self.config.max_call_time_ns),
            Earlier::TookAll(value) => return value,
        };
        let Some(sandbox) = &mut machine.sandbox else { return Some(failure(Errno::AGAIN)) };
        if let Err(errno) = sandbox.deliver(caller, buffer) {
            return Some(failure(errno));
        }
        let exits = sandbox.counters.exits;
        let driven = drive(sandbox, kicker, times.nearest(), true);
        self.counters.exits.fetch_add(sandbox.counters.exits - exits, Ordering::Relaxed);
        match driven {
            Driven::Answered(value) => {
                if let CallBuffer::Private { length, .. } = buffer {
                    self.counters.bytes_copied.fetch_add(2 * length, Ordering::Relaxed);
                }
                Some(sandbox.collect(caller, buffer).map_or_else(failure, |()| value))
            }
            // The caller's own time is over: the program may finish what it does.
            Driven::TimedOut(_) if times.caller < times.call => {
                match sandbox.detach(buffer, &self.lanes) {
                    Ok(()) => machine.detached = Some(Detached { buffer, limit: times.call }),
                    Err(errno) => self.lose(machine, &broken("take shared memory away", errno)),
                }
                self.wake();
                None
            }
            Driven::TimedOut(end) => {
                self.lose(machine, &end);
                Some(failure(Errno::TIMEDOUT))
            }
            Driven::Died(end) => {
                self.lose(machine, &end);
                Some(failure(Errno::PIPE))
            }
            Driven::Yielded | Driven::Idle => Some(failure(Errno::AGAIN)),
        }
    }

    /// A call whose caller has gone was answered.
    fn settle(&self, machine: &mut Machine) {
        if let Machine { sandbox: Some(sandbox), detached, .. } = machine
            && let Some(detached) = detached.take()
            && let Err(errno) = sandbox.reattach(detached.buffer, &self.lanes)
        {
            self.lose(machine, &broken("share memory again", errno));
        }
    }

    /// See an earlier call to its end whose caller has gone.
    fn finish_detached(&self, machine: &mut Machine, kicker: &Kicker, times: Times) -> Earlier {
        let Machine { sandbox: Some(sandbox), detached: Some(detached), .. } = machine else { return Earlier::None };
        let limit = detached.limit;
        match drive(sandbox, kicker, limit.min(times.nearest()), true) {
            Driven::Answered(_) => self.settle(machine),
            Driven::TimedOut(end) if limit <= times.nearest() => self.lose(machine, &end),
            Driven::TimedOut(_) => return Earlier::TookAll(times.end_of_caller()),
            Driven::Died(end) => self.lose(machine, &end),
            Driven::Yielded | Driven::Idle => {}
        }
        Earlier::Over
    }
}

/// What has become of an earlier call, and with it of the present one.
enum Earlier {
    /// There was none.
    None,
    /// It has ended.
    Over,
    /// It has used up the time of the present one, whose result this is.
    TookAll(Option<i64>),
}

/// When a call has to be over.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// By the limit on calls: first for the wait in the line, and from the beginning again when the program can begin with it. Otherwise
    /// the program would be ended for the length of the line, and would mostly answer callers that have just gone.
    call: u64,
    /// By the caller's own limit.
    caller: u64,
}

impl Times {
    fn nearest(self) -> u64 {
        self.call.min(self.caller)
    }

    /// The program begins with the call only now.
    fn begun_now(self, max_call_time_ns: u64) -> Self {
        Self { call: host_monotonic().saturating_add(max_call_time_ns), ..self }
    }

    /// The result where the caller's time is over before there is one: none at all, if its run is.
    fn end_of_caller(self) -> Option<i64> {
        (self.caller >= self.call).then(|| failure(Errno::TIMEDOUT))
    }
}

impl Remote for Shared {
    fn call(&self, caller: &GuestMemory, buffer: CallBuffer, kicker: &Kicker, deadline: u64) -> Option<i64> {
        self.counters.calls.fetch_add(1, Ordering::Relaxed);
        let limit = self.config.max_call_time_ns;
        let times = Times { call: host_monotonic().saturating_add(limit), caller: deadline };
        let value = match self.turn(times.nearest()) {
            None => times.end_of_caller(),
            Some((turn, waited)) => {
                let times = if waited { times.begun_now(limit) } else { times };
                let mut machine = self.machine();
                let value = self.perform(&mut machine, caller, buffer, kicker, times);
                let Machine { sandbox, watched: known, .. } = &mut *machine;
                if let Some(sandbox) = sandbox {
                    self.pass_on_notes(sandbox);
                    // What the program does by itself, the background thread has to see to.
                    if has_work(sandbox) || !known.covers(&watched(sandbox)) {
                        self.wake();
                    }
                }
                drop(machine);
                drop(turn);
                value
            }
        };
        if value.is_none_or(|value| (-4095..0).contains(&value)) {
            self.counters.failed_calls.fetch_add(1, Ordering::Relaxed);
        }
        value
    }
}
