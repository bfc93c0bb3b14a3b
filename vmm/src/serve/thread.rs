//! One thread of a worker with its request VM: wait, serve a request, reset.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::busy_poll::BusyPoll;
use super::connection::{After, Connection};
use super::exchange::{Exchange, Outcome, Served, Timing, run_in_memory};
use super::http1::Answer;
use super::lock;
use super::shared::{Desk, Shared, WAKE};
use super::worker::ServeError;
use crate::limits::VMAS_MAX;
use crate::linux::clock::host_monotonic;
use crate::panics::contain;
use crate::platform::kvm::Kicker;
use crate::sandbox::{ForkOptions, RunEnd, Sandbox};
use crate::stats::{RunCounters, page_faults_of_thread};

/// Mappings of a worker process that are not its VMs' memory.
const OTHER_MAPPINGS: usize = 8192;
/// Mappings that every VM may have.
const HOST_MAPPINGS_MIN: usize = 1024;
/// How long is waited before the first new attempt to fork a VM, and at most; the pause doubles.
const RENEW_PAUSE: Duration = Duration::from_millis(10);
const RENEW_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Longest wait for events: a VM that keeps its state has things to do between requests.
const WAIT: Duration = Duration::from_secs(1);
/// How often is looked whether the last connection has gone, during a drain.
const DRAIN_PAUSE: Duration = Duration::from_millis(5);

/// One thread with its VM.
pub(super) struct Thread<'a> {
    shared: &'a Shared<'a>,
    desk: &'a Desk,
    /// Which of the worker's VMs it has.
    number: usize,
    // Before the VM, which its timer could still kick.
    kicker: Kicker,
    sandbox: Sandbox,
    /// Runs so far.
    runs: u64,
    /// What the last run has cost, with its reset.
    previous: RunCounters,
    busy_poll: BusyPoll,
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

    /// Serve until the worker is drained.
    pub(super) fn run(shared: &'a Shared<'a>, number: usize) -> Result<(), ServeError> {
        if let Some(storage) = &shared.storage {
            storage.start(number)?;
        }
        let (sandbox, kicker) = Self::fork(shared, number)?;
        let busy_poll = BusyPoll::new(shared.config.busy_poll_ns, std::thread::available_parallelism().map_or(1, usize::from));
        let (desk, previous) = (&shared.desks[number], RunCounters::default());
        let mut thread = Self { shared, desk, number, sandbox, kicker, runs: 0, previous, busy_poll };
        thread.desk.busy_since.store(host_monotonic(), Ordering::SeqCst);
        thread.prime()?;
        if shared.forked.fetch_add(1, Ordering::AcqRel) + 1 == shared.config.threads {
            shared.control.ready();
        }
        loop {
            match contain(|| thread.turn()) {
                Ok(Ok(true)) => {}
                Ok(result) => return result.map(drop),
                Err(panic) => thread.start_over(&panic)?,
            }
        }
    }

    /// Wait for something to do, and do it; whether there may be more to come.
    fn turn(&mut self) -> Result<bool, ServeError> {
        if let Some(connection) = self.next_in_line() {
            self.serve(connection)?;
            return Ok(true);
        }
        match self.next_event()? {
            None => self.background(),
            Some(WAKE) => {}
            Some(token) => {
                if let Some(connection) = self.shared.handle(token, self.desk) {
                    self.serve(connection)?;
                }
                return Ok(true);
            }
        }
        if self.shared.is_draining() {
            if self.shared.table.open() == 0 {
                return Ok(false);
            }
            std::thread::sleep(DRAIN_PAUSE);
        }
        Ok(true)
    }

    /// Go on after a panic outside of a request's run. What it has left of the VM is unknown, and so is which connection it was about:
    /// that is closed.
    fn start_over(&mut self, panic: &str) -> Result<(), ServeError> {
        self.shared.control.limited("log", "error", &format!("{panic}; its VM is thrown away"));
        lock(&self.desk.stats).internal_errors += 1;
        self.sandbox.counters = RunCounters::default();
        self.desk.serves.store(false, Ordering::Relaxed);
        // Each is taken out of the set by its event, and put back when that is dealt with.
        for index in 0..self.shared.listeners.len() {
            self.shared.watch_listener(index).map_err(|errno| ServeError::System("watch a socket", errno))?;
        }
        self.renew()
    }

    /// A request that has waited for a VM.
    fn next_in_line(&self) -> Option<Box<Connection>> {
        // In this order: who puts a request into the queue looks for free threads afterwards.
        self.desk.busy_since.store(0, Ordering::SeqCst);
        let connection = self.shared.queue.pop_if(|_| true)?;
        self.desk.busy_since.store(host_monotonic(), Ordering::SeqCst);
        Some(connection)
    }

    /// Let the VM answer a few requests in memory, so that it knows its hot pages before the first client comes.
    fn prime(&mut self) -> Result<(), ServeError> {
        let Some(listener) = self.shared.listeners.first().map(|listener| listener.id) else { return Ok(()) };
        for request in &self.shared.config.prime {
            let bytes: Vec<u8> = request.chars().filter_map(|character| u8::try_from(u32::from(character)).ok()).collect();
            let deadline = host_monotonic().saturating_add(self.shared.config.max_request_time_ns);
            let (_, end) = run_in_memory(&mut self.sandbox, &self.kicker, listener, &bytes, deadline);
            if end != RunEnd::Responded {
                self.report(&end.sentence());
            }
            self.reset()?;
            self.sandbox.counters = RunCounters::default();
        }
        Ok(())
    }

    fn next_event(&mut self) -> Result<Option<u64>, ServeError> {
        let mut timeout = if self.shared.is_draining() { DRAIN_PAUSE } else { WAIT };
        if !self.shared.config.ephemeral
            && let Some(next) = self.sandbox.kernel().next_deadline()
        {
            let moment = self.sandbox.kernel().clock.to_host(next);
            timeout = timeout.min(Duration::from_nanos(moment.saturating_sub(host_monotonic())));
        }
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }];
        let begin = host_monotonic();
        let mut result = self.wait_awake(begin, timeout, &mut events);
        if result == Ok(0) {
            let rest = timeout.saturating_sub(Duration::from_nanos(host_monotonic().saturating_sub(begin)));
            let rest = Timespec { tv_sec: rest.as_secs().cast_signed(), tv_nsec: i64::from(rest.subsec_nanos()) };
            result = epoll::wait(&self.shared.epoll, &mut events, Some(&rest));
        } else {
            lock(&self.desk.stats).awake_waits += 1;
        }
        let end = host_monotonic();
        self.busy_poll.waited(end.saturating_sub(begin));
        self.desk.busy_since.store(end, Ordering::SeqCst);
        match result {
            Ok(0) | Err(Errno::INTR) => Ok(None),
            Ok(_) => Ok(Some(events[0].data.u64())),
            Err(errno) => Err(ServeError::System("wait for connections", errno)),
        }
    }

    /// Look for an event for a while, where that is worth it, but no longer than `timeout`; nothing was found otherwise.
    fn wait_awake(&self, begin: u64, timeout: Duration, events: &mut [Event; 1]) -> Result<usize, Errno> {
        let Some((most, _seated)) = self.busy_poll.begin(&self.shared.seat, || self.shared.busy_threads()) else { return Ok(0) };
        let most = most.min(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
        while host_monotonic().saturating_sub(begin) < most {
            match epoll::wait(&self.shared.epoll, &mut *events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                // Whoever else wants this CPU comes first: it may be the client.
                Ok(0) => std::thread::yield_now(),
                found => return found,
            }
        }
        Ok(0)
    }

    /// A VM that keeps its state also does what it does between requests.
    fn background(&mut self) {
        if !self.shared.config.ephemeral {
            let deadline = host_monotonic().saturating_add(self.shared.config.max_request_time_ns);
            if let crate::sandbox::Pause::Ended(end) = self.sandbox.run(&self.kicker, deadline, None) {
                self.report(&end.sentence());
                let _ = self.renew();
            }
        }
    }

    /// Serve one request, and make the VM ready for the next.
    fn serve(&mut self, mut connection: Box<Connection>) -> Result<(), ServeError> {
        let config = self.shared.config;
        let (started, page_faults) = (host_monotonic(), page_faults_of_thread());
        let queue_ns = started.saturating_sub(connection.ready_at);
        if queue_ns > config.clients.queue_time_ns {
            self.shared.turn_away(connection, self.desk);
            return Ok(());
        }
        self.runs += 1;
        self.desk.serves.store(true, Ordering::Relaxed);
        // Before the client can know: who asks for the statistics after an answer finds its request in them.
        lock(&self.desk.stats).requests += 1;
        let (vm, run, previous) = (config.first_vm + self.number, self.runs, self.previous);
        let ephemeral = config.ephemeral;
        if ephemeral {
            self.sandbox.resume_clock();
        }
        let (served, has_panicked) = Exchange {
            sandbox: &mut self.sandbox,
            kicker: &self.kicker,
            connection: &mut connection,
            clients: &config.clients,
            deadline: started.saturating_add(config.max_request_time_ns),
            ephemeral,
            timing: config.clients.server_timing.then_some(Timing { queue_ns, started, page_faults, previous, vm, run }),
            draining: &self.shared.draining,
            has_taken: false,
        }
        .serve_contained();
        lock(&self.desk.stats).internal_errors += u64::from(has_panicked);
        self.sandbox.counters.run_ns = host_monotonic().saturating_sub(started);
        self.sandbox.counters.page_faults = page_faults_of_thread().saturating_sub(page_faults);
        if let Some(complaint) = served.outcome.complaint() {
            self.report(&complaint);
        }
        self.answer(connection, &served);
        self.take_notes();
        let is_broken = matches!(served.outcome, Outcome::Run(RunEnd::Broken { .. }));
        let reset = if ephemeral && !is_broken {
            self.reset()
        } else if ephemeral || served.outcome.ruins_the_vm() {
            self.renew().map(|()| false)
        } else {
            Ok(false)
        };
        self.desk.serves.store(false, Ordering::Relaxed);
        let counters = std::mem::take(&mut self.sandbox.counters);
        self.previous = counters;
        self.count(&served.outcome, &counters, ephemeral);
        reset.map(drop)
    }

    /// Give the client what it gets, and let its connection wait for the next request, or go.
    fn answer(&self, mut connection: Box<Connection>, served: &Served) {
        let request = connection.request;
        let is_whole = served.outcome == Outcome::Whole;
        if !is_whole && (served.has_begun || served.outcome == Outcome::Run(RunEnd::ClientGone)) {
            // A response that breaks off must not look complete.
            connection.send();
            if served.ends_by_closing || !connection.output.is_empty() {
                connection.abort();
            }
            return;
        }
        let can_go_on = connection.finish_request();
        let keeps = served.keeps && can_go_on;
        if !is_whole {
            let status = served.outcome.http_status();
            let body = match status {
                504 => "the program did not answer in time\n",
                502 => "the program failed to answer this request\n",
                408 => "the request did not arrive in time\n",
                _ => "the request's body is not valid or too long\n",
            };
            let (is_head, version) = request.map_or((false, 1), |request| (request.is_head, request.version));
            Answer { status, body, keeps, is_head, version }.write(connection.output.tail());
        }
        let after = match (keeps, can_go_on) {
            (true, _) => After::Keep,
            (false, true) => After::Close,
            (false, false) => After::Linger,
        };
        self.shared.give(connection, after, self.desk);
    }

    fn count(&self, outcome: &Outcome, counters: &RunCounters, reset: bool) {
        let mut stats = lock(&self.desk.stats);
        stats.resets += u64::from(reset);
        match outcome {
            Outcome::Whole => stats.responses += 1,
            outcome => *stats.failures.entry(outcome.name().to_owned()).or_default() += 1,
        }
        stats.totals.add(counters);
    }

    /// Reset the VM, and verify it if asked; a VM that cannot be reset is thrown away. Whether it was kept.
    fn reset(&mut self) -> Result<bool, ServeError> {
        #[cfg(test)]
        crate::panics::injected::pass("reset");
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
                lock(&self.desk.stats).discarded += 1;
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
        #[cfg(test)]
        crate::panics::injected::pass("renew");
        let mut pause = RENEW_PAUSE;
        loop {
            match Self::fork(self.shared, self.number) {
                Ok((sandbox, kicker)) => {
                    self.kicker = kicker;
                    self.sandbox = sandbox;
                    return Ok(());
                }
                // No request will want the VM.
                Err(_) if self.shared.is_draining() => return Ok(()),
                Err(error) => self.shared.control.limited("log", "error", &format!("{error}; trying again in {} ms", pause.as_millis())),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(RENEW_PAUSE_MAX);
        }
    }

    fn report(&self, sentence: &str) {
        self.shared.control.limited("run_failed", "warning", sentence);
    }

    fn take_notes(&mut self) {
        for note in std::mem::take(&mut self.sandbox.kernel_mut().notes) {
            self.shared.control.limited("log", "warning", &note);
        }
    }
}
