//! One request through one sandbox: in memory for the warm-up, between a connection and a VM for serving.

use super::connection::{Connection, Progress, REQUEST_BUFFER};
use super::http1::{Body, Request, ResponseFrame};
use crate::linux::clock::host_monotonic;
use crate::linux::file::FileId;
use crate::linux::file::stream_host::{PeerAddress, StreamHandle};
use crate::platform::kvm::Kicker;
use crate::sandbox::{Pause, RunEnd, Sandbox};

/// Bytes moved between a stream and a connection at once.
const PIECE: usize = 256 << 10;
/// Output that may wait for a slow client while the VM runs; then the VM waits with it.
const RESPONSE_BUFFER: usize = 16 << 20;
/// How long a program may go on after its response is complete, nanoseconds.
const AFTER_RESPONSE_NS: u64 = 1_000_000;

/// Feed `data` to the program as one connection and collect what it answers.
///
/// Ends when the program closes the stream, or its answer is complete by its framing and it waits again.
pub fn run_in_memory(sandbox: &mut Sandbox, kicker: &Kicker, listener: FileId, data: &[u8], deadline: u64) -> (Vec<u8>, RunEnd) {
    let peer = PeerAddress::Inet(std::net::SocketAddr::from(([127, 0, 0, 1], 40_000)));
    let stream = match sandbox.kernel_mut().connect_stream(listener, &peer) {
        Ok(stream) => stream,
        Err(errno) => return (Vec::new(), RunEnd::Broken { detail: format!("the program takes no connection: {errno}") }),
    };
    let is_head = data.starts_with(b"HEAD ");
    let (mut pushed, mut answer, mut frame) = (0, Vec::new(), ResponseFrame::new(is_head, false));
    let end = loop {
        pushed += sandbox.kernel_mut().stream_push(stream, &data[pushed..]);
        let pause = sandbox.run(kicker, deadline, Some(stream));
        let piece = sandbox.kernel_mut().stream_take(stream, usize::MAX);
        frame.take(&piece);
        let moved = !piece.is_empty();
        answer.extend(piece);
        match pause {
            Pause::StreamClosed => break RunEnd::Responded,
            Pause::Ended(end) => break end,
            Pause::Output | Pause::Answered | Pause::Yielded => {}
            Pause::Idle if frame.is_complete() => break RunEnd::Responded,
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

/// What serving one request came to.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) end: RunEnd,
    /// Whether any byte of a response was given to the client.
    pub(super) answered: bool,
    /// Whether that was a whole response.
    pub(super) complete: bool,
}

/// One request between a connection and a VM.
#[derive(Debug)]
pub(super) struct Exchange<'a> {
    pub(super) sandbox: &'a mut Sandbox,
    pub(super) kicker: &'a Kicker,
    pub(super) connection: &'a mut Connection,
    pub(super) deadline: u64,
    /// Whether the VM is reset afterwards (else it has to see the end of the stream).
    pub(super) ephemeral: bool,
}

impl Exchange<'_> {
    /// Run the request. What the client cannot take at once stays in the connection's output.
    pub(super) fn serve(&mut self, request: Request) -> Served {
        let peer = self.connection.peer.clone();
        let stream = match self.sandbox.kernel_mut().connect_stream(self.connection.listener, &peer) {
            Ok(stream) => stream,
            Err(errno) => {
                return Served {
                    end: RunEnd::Broken { detail: format!("the program takes no connection: {errno}") },
                    answered: false,
                    complete: false,
                };
            }
        };
        let opaque = request.body == Body::UntilClose;
        let mut frame = ResponseFrame::new(request.is_head, opaque);
        let mut upload = Upload { head: request.head, body: request.body, left: 0, is_wrong: false };
        self.connection.input.drain(..request.head_bytes);
        if let Body::Length(length) = upload.body {
            upload.left = length;
        }
        let mut answered = false;
        let end = loop {
            let fed = self.feed(stream, &mut upload);
            let pause = self.sandbox.run(self.kicker, self.deadline, Some(stream));
            let drained = self.connection.output.len() <= RESPONSE_BUFFER && self.drain(stream, &mut frame, &mut answered);
            match pause {
                Pause::StreamClosed => break RunEnd::Responded,
                // The program was given its time after the response.
                Pause::Ended(RunEnd::TimedOut { .. }) if frame.is_complete() => break RunEnd::Responded,
                Pause::Ended(end) => break end,
                Pause::Output if frame.is_complete() => {
                    self.deadline = self.deadline.min(host_monotonic().saturating_add(AFTER_RESPONSE_NS));
                }
                Pause::Idle if frame.is_complete() => break RunEnd::Responded,
                // The client has ended a body that is not one.
                Pause::Idle | Pause::Output if upload.is_wrong => break RunEnd::ClientGone,
                Pause::Output | Pause::Answered | Pause::Yielded => {}
                Pause::Idle if fed || drained => {}
                Pause::Idle => {
                    if let Some(end) = self.wait(&upload, opaque) {
                        break end;
                    }
                }
            }
        };
        // Whatever the program has written before its end belongs to the response, however slow the client is: at most what
        // the stream holds.
        self.drain(stream, &mut frame, &mut answered);
        // A program that writes less than a head and closes: its bytes are passed on as they are.
        if end == RunEnd::Responded {
            let rest = frame.held_back();
            answered |= !rest.is_empty();
            self.connection.output.extend(rest);
        }
        if self.ephemeral {
            self.sandbox.kernel_mut().stream_release(stream);
        } else if end == RunEnd::Responded {
            finish(self.sandbox, self.kicker, stream);
        }
        // Closed without a byte: a gateway says so instead of hanging up.
        let end = if end == RunEnd::Responded && !answered && !opaque { RunEnd::NoAnswer } else { end };
        Served { end, answered, complete: frame.is_complete() }
    }

    /// Move request bytes to the program; whether any moved.
    fn feed(&mut self, stream: StreamHandle, upload: &mut Upload) -> bool {
        let kernel = self.sandbox.kernel_mut();
        let mut moved = false;
        if !upload.head.is_empty() {
            let count = kernel.stream_push(stream, &upload.head);
            upload.head.drain(..count);
            moved |= count > 0;
            if !upload.head.is_empty() {
                return moved;
            }
        }
        let ready = upload.ready(&self.connection.input);
        if ready > 0 {
            let count = kernel.stream_push(stream, &self.connection.input[..ready.min(PIECE)]);
            upload.took(&self.connection.input[..count]);
            self.connection.input.drain(..count);
            moved |= count > 0;
        }
        if upload.body == Body::UntilClose && self.connection.ended && self.connection.input.is_empty() {
            kernel.stream_finish(stream);
        }
        moved
    }

    /// Move response bytes to the connection; whether any moved.
    fn drain(&mut self, stream: StreamHandle, frame: &mut ResponseFrame, answered: &mut bool) -> bool {
        let piece = self.sandbox.kernel_mut().stream_take(stream, RESPONSE_BUFFER);
        if piece.is_empty() {
            return false;
        }
        let passed = frame.take(&piece);
        *answered |= !passed.is_empty();
        self.connection.output.extend(passed);
        if self.connection.send() == Progress::Closed {
            // The client has gone; the program writes into the void until its run ends.
            self.connection.output.clear();
            self.connection.ended = true;
        }
        true
    }

    /// Nothing can move: wait for the client, for what the program waits for, or for the deadline.
    fn wait(&mut self, upload: &Upload, opaque: bool) -> Option<RunEnd> {
        use rustix::event::{PollFd, PollFlags};
        use std::os::fd::AsFd;
        let mut flags = PollFlags::empty();
        // What the program does not take yet stays with the client.
        if (upload.wants_more() || opaque) && !self.connection.ended && self.connection.input.len() < REQUEST_BUFFER {
            flags |= PollFlags::IN;
        }
        if !self.connection.output.is_empty() {
            flags |= PollFlags::OUT;
        }
        let client = [PollFd::from_borrowed_fd(self.connection.socket.as_fd(), flags)];
        let ready = match self.sandbox.sleep(self.deadline, &client) {
            Ok(ready) => ready.first().copied().unwrap_or(PollFlags::empty()),
            Err(end) => return Some(end),
        };
        if ready.contains(PollFlags::IN) {
            self.connection.receive();
        }
        if ready.intersects(PollFlags::OUT) {
            self.connection.send();
        }
        if ready.intersects(PollFlags::HUP | PollFlags::ERR) {
            // Both sides are down: nobody will take an answer.
            self.connection.ended = true;
            self.connection.output.clear();
            return Some(RunEnd::ClientGone);
        }
        None
    }
}

/// The request's bytes on their way to the program.
#[derive(Debug)]
struct Upload {
    head: Vec<u8>,
    body: Body,
    /// Body bytes that have not been given yet, where the length is known.
    left: u64,
    /// What the client sends is not a body.
    is_wrong: bool,
}

impl Upload {
    /// How many of these input bytes belong to the body.
    fn ready(&mut self, input: &[u8]) -> usize {
        match &self.body {
            Body::Length(_) => usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len()),
            Body::Chunked(chunks) => {
                let ready = chunks.clone().take(input);
                self.is_wrong |= ready.is_err();
                ready.unwrap_or(0)
            }
            Body::UntilClose => input.len(),
        }
    }

    fn took(&mut self, bytes: &[u8]) {
        match &mut self.body {
            Body::Length(_) => self.left -= bytes.len() as u64,
            Body::Chunked(chunks) => {
                let _ = chunks.take(bytes);
            }
            Body::UntilClose => {}
        }
    }

    fn wants_more(&self) -> bool {
        match &self.body {
            Body::Length(_) => self.left > 0,
            Body::Chunked(chunks) => !chunks.ended(),
            Body::UntilClose => true,
        }
    }
}
