//! The run loop: pick a thread, deliver its signals, run it until an exit, answer the exit, again.

use super::fast_path::Told;
use super::{RunEnd, Sandbox};
use crate::cpu::ExtendedState;
use crate::limits::{PAGE, SLICE_NS};
use crate::linux::clock::host_monotonic;
use crate::linux::dispatch::Applied;
use crate::linux::file::stream_host::StreamHandle;
use crate::linux::signal_delivery::Delivery;
use crate::linux::thread::{Blocked, State, Tid};
use crate::linux::{Attempt, Kernel, trace};
use crate::platform::Exit;
use crate::platform::kvm::{Host, Kicker, Vm};

/// How often a fork's memory and the output for its client are looked at while it computes, nanoseconds.
const TICK_NS: u64 = 20_000_000;

/// gettimeofday, time, clock_gettime: made by the vDSO when its page is out of date.
const CLOCK_CALLS: [usize; 3] = [96, 201, 228];

/// Why [`Sandbox::run`] returned.
#[derive(Debug)]
pub enum Pause {
    /// All threads sleep, and nothing inside the VM can wake them now.
    Idle,
    /// The program has closed the stream that was watched.
    StreamClosed,
    /// The program goes on running, and a tick has come at which something is to be done for the stream that was watched.
    Tick,
    /// The storage program has answered the call it was given.
    Answered,
    /// Another thread wants this VM.
    Yielded,
    /// The run is over.
    Ended(RunEnd),
}

/// For which moment the kicker counts as armed before a new request: for none if it is near, so that it is armed anew.
const fn postponed(armed: u64, now: u64) -> u64 {
    if armed.saturating_sub(now) < TICK_NS / 2 { u64::MAX } else { armed }
}

/// The client's stream that a run is for.
#[derive(Debug, Clone, Copy)]
pub struct WatchedStream {
    /// The stream.
    pub stream: StreamHandle,
    /// Pause at every tick, and not only at those at which the stream holds output: the client's socket has to be looked at.
    pub at_ticks: bool,
}

/// The extended state of the thread on the vCPU, as signal frames want it.
struct OnVcpu<'a>(&'a mut Vm);

impl ExtendedState for OnVcpu<'_> {
    fn load(&mut self) -> Vec<u8> {
        // An ioctl that only fails on a broken vCPU, which the next run reports.
        self.0.extended().unwrap_or_default()
    }

    fn store(&mut self, area: &[u8]) {
        let _ = self.0.set_extended(area);
    }

    fn features(&self) -> u64 {
        Host::get().map_or(3, Host::xcr0)
    }
}

impl Sandbox {
    /// Run the program until all its threads sleep, it closes the watched stream, it ends, or `deadline` (a moment of the host's
    /// CLOCK_MONOTONIC) has passed; or, while it goes on, until a tick as `watched` wants it.
    pub fn run(&mut self, kicker: &Kicker, deadline: u64, watched: Option<WatchedStream>) -> Pause {
        if let Err(errno) = self.clear_window(0) {
            return Pause::Ended(self.broken("clear the window", errno));
        }
        self.told = Told::Stale;
        loop {
            if let Some(status) = self.kernel.process.exit_status {
                return Pause::Ended(RunEnd::Exited { status: status & 0xff });
            }
            if watched.is_some_and(|watched| self.kernel.stream_is_closed(watched.stream)) {
                return Pause::StreamClosed;
            }
            if self.kernel.has_answered() {
                return Pause::Answered;
            }
            if self.is_wanted() {
                return Pause::Yielded;
            }
            let Some(tid) = self.pick() else { return Pause::Idle };
            self.kernel.threads.current = tid;
            if let Some((attempt, call)) = self.due_attempt(tid) {
                self.told = Told::Stale;
                let applied = self.kernel.retry(&mut self.space, tid, attempt);
                self.after_call(tid, applied, call, true);
                // Calls that are woken again and again never enter the guest, where time is looked at otherwise.
                if host_monotonic() >= deadline {
                    return Pause::Ended(RunEnd::TimedOut { detail: self.describe(tid) });
                }
                continue;
            }
            if let Err(errno) = self.switch_to(tid) {
                return Pause::Ended(self.broken("switch threads", errno));
            }
            match self.kernel.deliver_signals(&mut self.space, tid, &mut OnVcpu(&mut self.vm)) {
                Delivery::Killed { signal, .. } => return Pause::Ended(self.killed(tid, signal)),
                Delivery::None | Delivery::Handler => {}
            }
            if let Some(pause) = self.enter(kicker, deadline, tid, watched) {
                return pause;
            }
        }
    }

    /// The thread to run now: the current one while its slice lasts, else the next that can.
    fn pick(&mut self) -> Option<Tid> {
        let current = self.kernel.threads.current;
        let can_run = |kernel: &Kernel| {
            let state = kernel.threads.peek(current).map(|thread| &thread.state);
            matches!(state, Some(State::Runnable | State::Blocked(Blocked { woken: true, .. })))
        };
        let slice_over = self.kernel.threads.slice_end.is_some_and(|end| end <= self.kernel.clock.monotonic());
        if slice_over {
            self.kernel.threads.slice_end = None;
        } else if can_run(&self.kernel) {
            return Some(current);
        }
        if let Some(next) = self.kernel.threads.next_runnable(current) {
            return Some(next);
        }
        let now = self.kernel.clock.monotonic();
        self.kernel.fire_timers(now);
        self.seen_changes = self.kernel.files.changes;
        if self.kernel.wake_sleepers(now) { self.kernel.threads.next_runnable(current) } else { None }
    }

    /// For a thread that was woken inside a call: why.
    fn due_attempt(&mut self, tid: Tid) -> Option<(Attempt, (usize, [u64; 6]))> {
        let State::Blocked(blocked) = &mut self.kernel.threads.get_mut(tid).state else { return None };
        blocked.woken = false;
        let call = (blocked.number, blocked.args);
        // What woke it may be gone again; then the handler looks, and sleeps on.
        let attempt = self.kernel.wait_over(tid, self.kernel.clock.monotonic()).unwrap_or(Attempt::Woken);
        Some((attempt, call))
    }

    /// Put a thread on the vCPU: its general registers always, its extended state if another thread's is there.
    fn switch_to(&mut self, tid: Tid) -> Result<(), rustix::io::Errno> {
        if tid != self.on_vcpu {
            self.kernel.abort_sequence(&self.space, self.on_vcpu);
            self.counters.switches += 1;
            if let Some(previous) = self.kernel.threads.find(self.on_vcpu) {
                previous.cpu.extended = self.vm.extended()?;
            }
            let thread = self.kernel.threads.get_mut(tid);
            let extended = std::mem::take(&mut thread.cpu.extended);
            thread.extended_changed = false;
            self.vm.set_extended(&extended)?;
            self.on_vcpu = tid;
        }
        let thread = self.kernel.threads.get_mut(tid);
        if std::mem::take(&mut thread.extended_changed) {
            let extended = std::mem::take(&mut thread.cpu.extended);
            self.vm.set_extended(&extended)?;
        }
        Ok(())
    }

    /// Run the thread on the vCPU until an exit, and answer it; the pause of the run if that is one.
    fn enter(&mut self, kicker: &Kicker, deadline: u64, tid: Tid, watched: Option<WatchedStream>) -> Option<Pause> {
        let cpu = &self.kernel.threads.get_mut(tid).cpu;
        let state = self.vm.state_mut();
        (state.registers, state.fs_base, state.gs_base) = (cpu.registers, cpu.fs_base, cpu.gs_base);
        self.arm(kicker, deadline, tid, watched.is_some());
        if let Err(errno) = self.tell_fast_path(tid, watched.map(|watched| watched.stream)) {
            return Some(Pause::Ended(self.broken("tell the fast path", errno)));
        }
        let before = host_monotonic();
        let exit = match self.vm.run(&mut self.space) {
            Ok(exit) => exit,
            Err(error) => return Some(Pause::Ended(self.broken("run the virtual machine", error))),
        };
        self.counters.exits += 1;
        let now = host_monotonic();
        if now >= self.armed {
            // The kick has come, whether this exit shows it or not: the next run needs another.
            self.armed = u64::MAX;
        }
        let state = *self.vm.state();
        let thread = self.kernel.threads.get_mut(tid);
        thread.cpu_time_ns += now.saturating_sub(before);
        (thread.cpu.registers, thread.cpu.fs_base, thread.cpu.gs_base) = (state.registers, state.fs_base, state.gs_base);
        if let Err(end) = self.replay_fast_path() {
            return Some(Pause::Ended(end));
        }
        match exit {
            Exit::SystemCall => {
                self.retried_fault = None;
                self.system_call(tid);
                if let Some(remote) = self.remote_call.take()
                    && let Some(pause) = self.call_storage(kicker, deadline, tid, remote)
                {
                    return Some(pause);
                }
            }
            Exit::Exception(exception) => self.exception(tid, exception),
            Exit::MemoryFault(fault) => self.memory_fault(tid, fault),
            Exit::Forbidden(_) => self.forbidden(tid),
            Exit::Kicked => {
                self.told = Told::Stale;
                self.vm.clear_kick();
                self.kernel.fire_timers(self.kernel.clock.monotonic());
                self.kernel.wake_sleepers(self.kernel.clock.monotonic());
                if let Err(errno) = self.vm.harvest(&self.space).and_then(|()| self.vm.rearm_if_filling(&self.space)) {
                    return Some(Pause::Ended(self.broken("see what was written", errno)));
                }
            }
        }
        if now >= deadline {
            return Some(Pause::Ended(RunEnd::TimedOut { detail: self.describe(tid) }));
        }
        if let Some(end) = self.over_memory() {
            return Some(Pause::Ended(end));
        }
        let is_due = |watched: WatchedStream| watched.at_ticks || self.kernel.stream_status(watched.stream).output_len > 0;
        (exit == Exit::Kicked && watched.is_some_and(is_due)).then_some(Pause::Tick)
    }

    fn over_memory(&self) -> Option<RunEnd> {
        let pages = self.space.memory().dirty().pages().len() as u64;
        (pages > self.dirty_pages_max).then(|| {
            let mebibytes = |pages: u64| (pages * PAGE) >> 20;
            RunEnd::OutOfMemory { detail: format!("{} MiB written, {} MiB allowed", mebibytes(pages), mebibytes(self.dirty_pages_max)) }
        })
    }

    /// See to it that a kick comes at the next moment at which something has to be looked at.
    fn arm(&mut self, kicker: &Kicker, deadline: u64, tid: Tid, watched: bool) {
        let mut moment = deadline;
        if let Some(next) = self.kernel.next_deadline() {
            moment = moment.min(self.kernel.clock.to_host(next));
        }
        if self.kernel.threads.len() > 1 && self.kernel.others_can_run(tid) {
            let now = self.kernel.clock.monotonic();
            let end = *self.kernel.threads.slice_end.get_or_insert(now + SLICE_NS);
            moment = moment.min(self.kernel.clock.to_host(end));
        }
        if (watched || self.dirty_pages_max != u64::MAX) && self.armed == u64::MAX {
            moment = moment.min(host_monotonic() + TICK_NS);
        }
        // An earlier kick than needed does no harm: what it should look at is looked at, and the next one is armed.
        if moment < self.armed {
            kicker.arm(moment);
            self.armed = moment;
        }
    }

    /// Behind a request: a tick that is near would be in the middle of one of the next, most of which are over before their own first tick.
    /// So where requests are short, none of them is interrupted.
    pub(super) const fn postpone_tick(&mut self, now: u64) {
        self.armed = postponed(self.armed, now);
    }

    fn system_call(&mut self, tid: Tid) {
        self.counters.system_calls += 1;
        let registers = self.kernel.threads.get_mut(tid).cpu.registers;
        let number = registers.rax as u32 as usize;
        let args = [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
        let threads = self.kernel.threads.len();
        self.doubt_fast_path(number);
        let applied = self.kernel.system_call(&mut self.space, tid);
        if self.kernel.threads.len() > threads {
            self.inherit_extended();
        }
        if CLOCK_CALLS.contains(&number) {
            self.update_clock_page();
        }
        self.after_call(tid, applied, (number, args), false);
    }

    /// A new thread starts with its parent's extended state, which is on the vCPU at this moment.
    fn inherit_extended(&mut self) {
        for thread in self.kernel.threads.iter_mut() {
            if thread.inherit_extended_from.take().is_some() {
                thread.cpu.extended = self.vm.extended().unwrap_or_default();
            }
        }
    }

    pub(super) fn after_call(&mut self, tid: Tid, applied: Applied, (number, args): (usize, [u64; 6]), resumed: bool) {
        let applied = match applied {
            Applied::Execute(execute) => {
                self.execute(tid, *execute);
                Applied::Done
            }
            Applied::Remote(remote) => {
                self.remote_call = Some(remote);
                Applied::Blocked
            }
            other => other,
        };
        let result = match applied {
            Applied::Done => self.kernel.threads.peek(tid).map(|thread| Kernel::result_of(thread.cpu.registers.rax)),
            _ => None,
        };
        // A call that slept is recorded when it begins, and again when it has its result.
        if !resumed || result.is_some() {
            self.record(tid, (number, args), result, resumed);
        }
        if self.kernel.files.changes != self.seen_changes && self.kernel.threads.len() > 1 {
            self.seen_changes = self.kernel.files.changes;
            self.kernel.wake_sleepers(self.kernel.clock.monotonic());
        }
    }

    /// Keep a call for reports, and show it where that is wanted.
    pub(super) fn record(&mut self, tid: Tid, (number, args): (usize, [u64; 6]), result: trace::CallResult, resumed: bool) {
        self.recorder.push(number, args, result);
        if self.trace {
            // As strace: threads are told apart once there are several.
            let tid = if self.kernel.threads.len() > 1 { tid } else { 0 };
            let format = if resumed { trace::resumed } else { trace::line };
            eprint_line(&format(number, &args, self.space.memory(), result, tid));
        }
    }

    pub(super) fn broken(&self, what: &str, error: impl std::fmt::Display) -> RunEnd {
        RunEnd::Broken { detail: format!("cannot {what}: {error}") }
    }

    pub(super) fn killed(&mut self, tid: Tid, signal: i32) -> RunEnd {
        RunEnd::Killed { signal, detail: self.describe(tid) }
    }

    /// Where a thread is and what the program did last, in one line.
    pub(super) fn describe(&mut self, tid: Tid) -> String {
        let Some(thread) = self.kernel.threads.peek(tid) else { return "the thread has ended".into() };
        let rip = thread.cpu.registers.rip;
        let place = crate::loader::symbols::place(&self.space, rip);
        let doing = match &thread.state {
            State::Blocked(blocked) => format!("thread {tid} sleeps in {}", crate::linux::table::name(blocked.number)),
            State::Runnable => format!("thread {tid} at {rip:#x} ({place})"),
        };
        let calls = self.recorder.lines().join("; ");
        if calls.is_empty() { doing } else { format!("{doing}; last system calls: {calls}") }
    }
}

/// A trace line: written straight to standard error, which the program may share.
fn eprint_line(line: &str) {
    let mut bytes = Vec::with_capacity(line.len() + 1);
    bytes.extend_from_slice(line.as_bytes());
    bytes.push(b'\n');
    let _ = rustix::io::write(rustix::stdio::stderr(), &bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_tick_that_is_near_is_postponed() {
        let now = 1_000_000_000;
        assert_eq!(postponed(now + TICK_NS, now), now + TICK_NS);
        assert_eq!(postponed(now + TICK_NS / 2, now), now + TICK_NS / 2);
        for passed_or_near in [0, now, now + TICK_NS / 2 - 1] {
            assert_eq!(postponed(passed_or_near, now), u64::MAX);
        }
        assert_eq!(postponed(u64::MAX, now), u64::MAX);
    }
}
