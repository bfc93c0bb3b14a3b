//! One request through one sandbox: in memory for the warm-up, between a connection and a VM for serving.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags};
use rustix::net::Shutdown;

use super::connection::{Connection, Progress};
use super::http1::{BadResponse, Client, Ending, Response};
use super::upload::push;
use crate::config::ClientConfig;
use crate::limits::PAGE;
use crate::linux::clock::host_monotonic;
use crate::linux::file::FileId;
use crate::linux::file::stream_host::{PeerAddress, StreamHandle};
use crate::panics::contain;
use crate::platform::kvm::Kicker;
use crate::sandbox::{Pause, RunEnd, Sandbox, WatchedStream};
use crate::stats::{RunCounters, page_faults_of_thread};

/// How long a program may go on after its response is complete, nanoseconds.
const AFTER_RESPONSE_NS: u64 = 1_000_000;

/// Feed `data` to the program as one connection and collect what it answers.
///
/// Ends when the program closes the stream, or its answer is complete by its framing and it waits again.
pub fn run_in_memory(sandbox: &mut Sandbox, kicker: &Kicker, listener: FileId, data: &[u8], deadline: u64) -> (Vec<u8>, RunEnd) {
    let peer = PeerAddress::Inet(std::net::SocketAddr::from(([127, 0, 0, 1], 40_000)));
    sandbox.resume_clock();
    let stream = match sandbox.kernel_mut().connect_stream(listener, &peer) {
        Ok(stream) => stream,
        Err(errno) => return (Vec::new(), RunEnd::Broken { detail: format!("the program takes no connection: {errno}") }),
    };
    let client = Client { version: 1, is_head: data.starts_with(b"HEAD "), upgrade: false, timing: false };
    // What a client would get of it does not matter here, only where it ends; what is no response ends when the program closes.
    let (mut response, mut passed) = (Response::new(client), Vec::new());
    let (mut pushed, mut answer) = (0, Vec::new());
    let end = loop {
        pushed += sandbox.kernel_mut().stream_push(stream, &data[pushed..]);
        let pause = sandbox.run(kicker, deadline, Some(WatchedStream { stream, at_ticks: false }));
        let piece = sandbox.kernel_mut().stream_take(stream, usize::MAX);
        let _ = response.take(&piece, &mut passed);
        passed.clear();
        let moved = !piece.is_empty();
        answer.extend(piece);
        match pause {
            Pause::StreamClosed => break RunEnd::Responded,
            Pause::Ended(end) => break end,
            Pause::Tick | Pause::Answered | Pause::Yielded => {}
            Pause::Idle if response.is_complete() => break RunEnd::Responded,
            Pause::Idle if moved || pushed < data.len() && sandbox.kernel().stream_status(stream).input_len == 0 => {}
            Pause::Idle => {
                if let Err(end) = sandbox.sleep(deadline, &[]) {
                    break end;
                }
            }
        }
    };
    finish(sandbox, kicker, stream);
    (answer, end)
}

/// Let go of a stream, and let the program see it: it closes its end and waits again.
fn finish(sandbox: &mut Sandbox, kicker: &Kicker, stream: StreamHandle) {
    sandbox.kernel_mut().stream_finish(stream);
    sandbox.kernel_mut().stream_release(stream);
    let _ = sandbox.run(kicker, host_monotonic().saturating_add(100 * AFTER_RESPONSE_NS), None);
}

/// How an exchange ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The client has got a whole response.
    Whole,
    /// The run failed, or its client went away.
    Run(RunEnd),
    /// The program answered with something that cannot be passed on, or stopped in the middle of it.
    BadResponse(&'static str),
    /// The rest of the request is none: 400 or 413.
    BadRequest(u16),
    /// The program waited for the rest of the request, and the client sent nothing in time.
    LateBody,
}

impl Outcome {
    /// Its name in statistics.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Whole => "responded",
            Self::Run(end) => end.name(),
            Self::BadResponse(_) => "bad_response",
            Self::BadRequest(_) => "bad_request",
            Self::LateBody => "late_body",
        }
    }

    /// The status that a client gets if nothing was sent yet.
    pub(super) const fn http_status(&self) -> u16 {
        match self {
            Self::Run(end) => end.http_status(),
            Self::BadRequest(status) => *status,
            Self::LateBody => 408,
            Self::Whole | Self::BadResponse(_) => 502,
        }
    }

    /// One sentence for the log, where the program is to blame.
    pub(super) fn complaint(&self) -> Option<String> {
        match self {
            Self::Whole | Self::BadRequest(_) | Self::LateBody | Self::Run(RunEnd::Responded | RunEnd::ClientGone) => None,
            Self::Run(end) => Some(end.sentence()),
            Self::BadResponse(what) => Some(format!("the program's response cannot be passed on: {what}")),
        }
    }

    /// Whether a VM that is not reset cannot go on after it.
    pub(super) const fn ruins_the_vm(&self) -> bool {
        !matches!(
            self,
            Self::Whole | Self::BadRequest(_) | Self::LateBody | Self::BadResponse(_) | Self::Run(RunEnd::ClientGone | RunEnd::NoAnswer)
        )
    }
}

/// What serving one request came to.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) outcome: Outcome,
    /// Whether the final response has begun: there is no going back to an answer of ours.
    pub(super) has_begun: bool,
    /// Whether the connection may go on behind it.
    pub(super) keeps: bool,
    /// Whether the client takes the end of the connection for the end of its response.
    pub(super) ends_by_closing: bool,
}

/// What responses are told about time, for `--server-timing`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// How long the request waited for a VM, nanoseconds.
    pub(super) queue_ns: u64,
    /// When the run began, a host moment.
    pub(super) started: u64,
    /// Page faults of this thread before the run.
    pub(super) page_faults: u64,
    /// What the VM's run before it has cost, with the reset behind that run.
    pub(super) previous: RunCounters,
    /// Which VM, of all workers.
    pub(super) vm: usize,
    /// Its which run.
    pub(super) run: u64,
}

impl Timing {
    /// The fields for a response that begins when the run has cost `so_far`.
    fn fields(&self, so_far: &RunCounters) -> Vec<u8> {
        let ms = |ns: u64| format!("{}.{:03}", ns / 1_000_000, ns / 1000 % 1000);
        let Self { queue_ns, started, page_faults, previous, vm, run } = self;
        let lasted = ms(host_monotonic().saturating_sub(*started));
        let (queue, reset) = (ms(*queue_ns), ms(previous.reset_ns));
        let RunCounters { exits, system_calls, calls_in_guest, faults, .. } = so_far;
        let page_faults = page_faults_of_thread().saturating_sub(*page_faults);
        let (dirty, copied) = (previous.dirty_pages, previous.copied_pages * PAGE);
        format!(
            "Server-Timing: queue;dur={queue}, run;dur={lasted}, reset-prev;dur={reset}\r\n\
             kvmserver-vm: {vm}/{run}\r\n\
             kvmserver-counters: exits={exits}, system-calls={system_calls}, calls-in-guest={calls_in_guest}, faults={faults}, \
             page-faults={page_faults}, dirty-pages-prev={dirty}, copied-bytes-prev={copied}\r\n"
        )
        .into_bytes()
    }
}

/// One request between a connection and a VM; or, without a request, one whole connection.
pub(super) struct Exchange<'a> {
    pub(super) sandbox: &'a mut Sandbox,
    pub(super) kicker: &'a Kicker,
    pub(super) connection: &'a mut Connection,
    pub(super) clients: &'a ClientConfig,
    pub(super) deadline: u64,
    /// Whether the VM is reset afterwards (else it has to see the end of the stream).
    pub(super) ephemeral: bool,
    pub(super) timing: Option<Timing>,
    /// The worker takes no more requests.
    pub(super) draining: &'a AtomicBool,
    /// Whether anything of the program's answer has been taken: then it may have reached the client.
    pub(super) has_taken: bool,
}

/// What is known during an exchange.
struct State {
    stream: StreamHandle,
    response: Response,
    /// The client has gone; the program has been told.
    is_gone: bool,
    /// When the client last took something, or there began to be something for it, a host moment.
    taken_at: u64,
    /// Since when the program has had all that came of the request and nothing came, a host moment.
    awaited_since: Option<u64>,
    /// The program has ended its side of a switched connection, and the client has been told.
    has_shut: bool,
}

impl Exchange<'_> {
    /// Run the request as [`Self::serve`]. Where that panics, the VM is as one that KVM has lost; answers also whether it did.
    pub(super) fn serve_contained(&mut self) -> (Served, bool) {
        match contain(|| self.serve()) {
            Ok(served) => (served, false),
            Err(detail) => {
                if !self.has_taken {
                    self.connection.output.clear();
                }
                let outcome = Outcome::Run(RunEnd::Broken { detail });
                (Served { outcome, has_begun: self.has_taken, keeps: false, ends_by_closing: self.has_taken }, true)
            }
        }
    }

    /// Run the request. What the client cannot take at once stays in the connection's output.
    fn serve(&mut self) -> Served {
        #[cfg(test)]
        crate::panics::injected::pass("request");
        let stream = match self.sandbox.kernel_mut().connect_stream(self.connection.listener, &self.connection.peer) {
            Ok(stream) => stream,
            Err(errno) => {
                let end = RunEnd::Broken { detail: format!("the program takes no connection: {errno}") };
                return Served { outcome: Outcome::Run(end), has_begun: false, keeps: self.may_keep(), ends_by_closing: false };
            }
        };
        let response = self.connection.request.as_ref().map_or_else(Response::raw, |request| {
            let (version, is_head, upgrade) = (request.version, request.is_head, request.upgrade);
            Response::new(Client { version, is_head, upgrade, timing: self.timing.is_some() })
        });
        let mut state = State { stream, response, is_gone: false, taken_at: 0, awaited_since: None, has_shut: false };
        let outcome = self.pass(&mut state);
        let outcome = self.complete(outcome, &mut state);
        if !self.ephemeral {
            self.let_go(&outcome, &state);
        }
        let keeps = if state.response.has_begun() { state.response.keeps } else { self.may_keep() };
        Served { outcome, has_begun: state.response.has_begun(), keeps, ends_by_closing: state.response.ends_by_closing() }
    }

    /// Pass bytes in both directions until the run is over.
    fn pass(&mut self, state: &mut State) -> Outcome {
        loop {
            let fed = match self.feed(state) {
                Ok(fed) => fed,
                Err(status) => return Outcome::BadRequest(status),
            };
            let at_ticks = !self.connection.output.is_empty() || self.wants_input(state) || self.has_input(state);
            let pause = self.sandbox.run(self.kicker, self.deadline, Some(WatchedStream { stream: state.stream, at_ticks }));
            if matches!(pause, Pause::StreamClosed) {
                return Outcome::Whole;
            }
            let drained = match self.drain(state) {
                Ok(drained) => drained,
                Err(BadResponse(what)) => return Outcome::BadResponse(what),
            };
            let is_complete = state.response.is_complete();
            match pause {
                // The program was given its time after the response.
                Pause::Ended(RunEnd::TimedOut { .. }) if is_complete => return Outcome::Whole,
                Pause::Ended(end) => return Outcome::Run(end),
                Pause::Tick if is_complete => self.deadline = self.deadline.min(host_monotonic().saturating_add(AFTER_RESPONSE_NS)),
                Pause::Idle if is_complete => return Outcome::Whole,
                _ if self.is_unread(state) => return Outcome::Run(RunEnd::ClientGone),
                Pause::Idle if !fed && !drained => {
                    if let Some(outcome) = self.wait(state) {
                        return outcome;
                    }
                }
                Pause::Tick if self.wants_input(state) => {
                    self.await_input(state);
                    if !self.receive(state) && self.is_late(state) {
                        return Outcome::LateBody;
                    }
                }
                _ => {}
            }
        }
    }

    /// Whatever the program has written before its end belongs to the response, however slow the client is: at most what the
    /// stream holds. Then it is seen whether that is all.
    fn complete(&mut self, outcome: Outcome, state: &mut State) -> Outcome {
        if state.is_gone {
            return Outcome::Run(RunEnd::ClientGone);
        }
        if matches!(outcome, Outcome::BadResponse(_)) {
            return outcome;
        }
        if let Err(BadResponse(what)) = self.take(state, usize::MAX) {
            return Outcome::BadResponse(what);
        }
        if outcome != Outcome::Whole {
            return if state.response.is_complete() { Outcome::Whole } else { outcome };
        }
        match state.response.close(self.connection.output.tail()) {
            Ending::Whole => Outcome::Whole,
            // Closed without a byte: a gateway says so instead of hanging up.
            Ending::Nothing => Outcome::Run(RunEnd::NoAnswer),
            Ending::Cut => Outcome::BadResponse("it breaks off"),
        }
    }

    /// A VM that goes on has to see that the connection is over.
    fn let_go(&mut self, outcome: &Outcome, state: &State) {
        if outcome.ruins_the_vm() {
            return;
        }
        if *outcome == Outcome::Whole {
            self.sandbox.kernel_mut().stream_finish(state.stream);
        }
        if !state.is_gone {
            self.sandbox.kernel_mut().stream_release(state.stream);
        }
        let _ = self.sandbox.run(self.kicker, host_monotonic().saturating_add(100 * AFTER_RESPONSE_NS), None);
    }

    /// Whether the connection may go on: both sides want it to, and the next request begins behind this one.
    fn may_keep(&self) -> bool {
        let connection = &*self.connection;
        let (Some(request), Some(upload)) = (&connection.request, &connection.upload) else { return false };
        let is_last = connection.ended && connection.input.len() <= upload.bytes_in(&connection.input);
        request.keep_alive && !is_last && !upload.wants_more(&connection.input) && !self.draining.load(Ordering::Relaxed)
    }

    /// Move request bytes to the program; whether any moved.
    ///
    /// # Errors
    ///
    /// The status for the client, where the rest of its body is none.
    fn feed(&mut self, state: &State) -> Result<bool, u16> {
        let kernel = self.sandbox.kernel_mut();
        let connection = &mut *self.connection;
        if state.is_gone {
            return Ok(false);
        }
        let mut moved = push(kernel, state.stream, &mut connection.head, usize::MAX) > 0;
        if !connection.head.is_empty() {
            return Ok(moved);
        }
        let mut is_over = connection.ended;
        if let Some(upload) = &mut connection.upload {
            upload.collect(&mut connection.input, self.clients.request_buffer)?;
            moved |= upload.feed(kernel, state.stream, &mut connection.input);
            is_over &= upload.is_given(&connection.input) && upload.wants_more(&connection.input);
        }
        if state.response.has_switched() {
            moved |= push(kernel, state.stream, &mut connection.input, usize::MAX) > 0;
            is_over = connection.ended && connection.input.is_empty();
        }
        if is_over {
            // The client ends its side before the end of its request, or of its bytes.
            kernel.stream_finish(state.stream);
        }
        Ok(moved)
    }

    /// Take at most `most` bytes that the program has written into the connection's output; whether there were any.
    fn take(&mut self, state: &mut State, most: usize) -> Result<bool, BadResponse> {
        let (front, back) = self.sandbox.kernel().stream_front(state.stream, most);
        let count = front.len() + back.len();
        if count == 0 {
            return Ok(false);
        }
        if self.connection.output.is_empty() {
            state.taken_at = host_monotonic();
        }
        if !state.response.has_begun() {
            state.response.keeps = self.may_keep();
            state.response.extra = self.timing.as_ref().map(|timing| timing.fields(&self.sandbox.counters)).unwrap_or_default();
        }
        let output = self.connection.output.tail();
        let taken = state.response.take(front, output).and_then(|()| state.response.take(back, output));
        self.has_taken = true;
        self.sandbox.kernel_mut().stream_consume(state.stream, count);
        taken.map(|()| true)
    }

    /// Take what the program has written, as far as there is room for it, and send what the client takes; whether anything moved.
    fn drain(&mut self, state: &mut State) -> Result<bool, BadResponse> {
        let mut moved = false;
        while !state.is_gone {
            let room = self.clients.response_buffer.saturating_sub(self.connection.output.len());
            let taken = room > 0 && self.take(state, room)?;
            let sent = self.send(state);
            moved |= taken || sent;
            // Once the client takes no more, or there is nothing more for it.
            if !self.connection.output.is_empty() || !taken && !sent {
                break;
            }
        }
        Ok(moved)
    }

    /// Whether the client took any of what there is for it.
    fn send(&mut self, state: &mut State) -> bool {
        let before = self.connection.output.len();
        if before == 0 {
            return false;
        }
        if self.connection.send() == Progress::Closed {
            // The program sees what it would have seen natively, and decides what that means.
            self.sandbox.kernel_mut().stream_release(state.stream);
            self.connection.output.clear();
            (self.connection.ended, state.is_gone) = (true, true);
        }
        let sent = self.connection.output.len() < before;
        if sent {
            state.taken_at = host_monotonic();
        }
        sent
    }

    /// Whether the client has taken nothing for as long as it may. Who asks has just tried to send: a socket is called writable when
    /// a third of its buffer is free, which at a slow client's pace takes long, but it takes bytes as soon as there is any room.
    fn is_unread(&self, state: &State) -> bool {
        !self.connection.output.is_empty() && host_monotonic() >= state.taken_at.saturating_add(self.clients.write_timeout_ns)
    }

    /// Read what has come of the request; whether anything has, or its end.
    fn receive(&mut self, state: &mut State) -> bool {
        let before = self.connection.input.len();
        self.connection.receive(self.clients.request_buffer);
        let has_come = self.connection.input.len() != before || self.connection.ended;
        if has_come {
            state.awaited_since = None;
        }
        has_come
    }

    /// Nothing can move: wait for the client, for what the program waits for, or for the deadline.
    fn wait(&mut self, state: &mut State) -> Option<Outcome> {
        if state.is_gone {
            return self.wait_alone();
        }
        let status = self.sandbox.kernel().stream_status(state.stream);
        if status.guest_finished && status.output_len == 0 {
            if !state.response.has_switched() {
                // It waits for the client to close, as careful servers do.
                return Some(Outcome::Whole);
            }
            if self.connection.output.is_empty() && !std::mem::replace(&mut state.has_shut, true) {
                let _ = rustix::net::shutdown(&self.connection.socket, Shutdown::Write);
            }
        }
        let has_output = !self.connection.output.is_empty();
        self.await_input(state);
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.wants_input(state));
        flags.set(PollFlags::OUT, has_output);
        let unread = has_output.then(|| state.taken_at.saturating_add(self.clients.write_timeout_ns));
        let late = state.awaited_since.map(|since| since.saturating_add(self.clients.body_timeout_ns));
        let until = [unread, late].into_iter().flatten().fold(self.deadline, u64::min);
        let client = [PollFd::from_borrowed_fd(std::os::fd::AsFd::as_fd(&self.connection.socket), flags)];
        let ready = match self.sandbox.sleep(until, &client) {
            Ok(ready) => ready.first().copied().unwrap_or(PollFlags::empty()),
            Err(end @ RunEnd::TimedOut { .. }) => return self.time_is_over(state, end),
            Err(end) => return Some(Outcome::Run(end)),
        };
        if ready.contains(PollFlags::IN) {
            self.receive(state);
        }
        if ready.contains(PollFlags::OUT) {
            self.send(state);
        }
        if ready.intersects(PollFlags::HUP | PollFlags::ERR) {
            // Both sides are down: nobody will take an answer.
            self.connection.ended = true;
            self.connection.output.clear();
            return Some(Outcome::Run(RunEnd::ClientGone));
        }
        None
    }

    /// The run's time is over, or the client's to send or to take something.
    fn time_is_over(&mut self, state: &mut State, end: RunEnd) -> Option<Outcome> {
        let is_last = host_monotonic() >= self.deadline;
        // What came in time and was not looked at counts.
        if state.awaited_since.is_some() && (is_last || !self.receive(state) && self.is_late(state)) {
            return Some(Outcome::LateBody);
        }
        // Whether the client has taken too little is seen behind the next attempt to send.
        is_last.then_some(Outcome::Run(end))
    }

    /// The client has gone; what the program still waits for may come, but not for ever.
    fn wait_alone(&mut self) -> Option<Outcome> {
        let kernel = self.sandbox.kernel();
        if kernel.next_deadline().is_none() && kernel.host_polls().is_empty() {
            return Some(Outcome::Run(RunEnd::ClientGone));
        }
        self.sandbox.sleep(self.deadline, &[]).err().map(Outcome::Run)
    }

    /// Whether the client has something to say that the program waits for. What it does not take yet stays with the client.
    fn wants_input(&self, state: &State) -> bool {
        let connection = &*self.connection;
        let is_wanted =
            state.response.has_switched() || connection.upload.as_ref().is_some_and(|upload| upload.wants_more(&connection.input));
        is_wanted && !connection.ended && connection.input.len() < self.clients.request_buffer
    }

    /// Whether bytes of the request are here that the program has not been given, because there was no room for them.
    fn has_input(&self, state: &State) -> bool {
        let Connection { head, input, upload, .. } = &*self.connection;
        let is_given = upload.as_ref().is_none_or(|upload| upload.is_given(input));
        !head.is_empty() || !is_given || state.response.has_switched() && !input.is_empty()
    }

    /// Note since when the program has had all that came of the request and wants more of it. A protocol that was switched to has its
    /// own times.
    fn await_input(&self, state: &mut State) {
        let has_read = || self.sandbox.kernel().stream_status(state.stream).input_len == 0;
        let is_awaited = self.wants_input(state) && !state.response.has_switched() && !self.has_input(state) && has_read();
        state.awaited_since = is_awaited.then(|| state.awaited_since.unwrap_or_else(host_monotonic));
    }

    /// Whether nothing has come for as long as that may last.
    fn is_late(&self, state: &State) -> bool {
        state.awaited_since.is_some_and(|since| host_monotonic() >= since.saturating_add(self.clients.body_timeout_ns))
    }
}
