//! A client's connection: its bytes in and out, without blocking, and the request that it is about.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::buffer::Buffer;
use super::http1::{Answer, HeadScan, Refusal, Request, Rules, parse_request};
use super::proxy_protocol;
use super::table::Slot;
use super::upload::Upload;
use crate::config::{ClientConfig, Protocol};
use crate::linux::file::FileId;
use crate::linux::file::stream_host::PeerAddress;

/// Least room for a receive, bytes.
const ROOM: usize = 4 << 10;
/// Most bytes read from a socket in one turn.
const TURN: usize = 256 << 10;
/// Most memory that an idle connection keeps for a buffer, bytes.
const IDLE_BYTES: usize = 16 << 10;
/// Empty lines that may stand before a request (RFC 9112, section 2.2).
const EMPTY_LINES_MAX: usize = 4;
/// Most bytes that are thrown away so that a response arrives.
const UNREAD_BYTES_MAX: usize = 64 << 20;
/// Longest time for that, nanoseconds.
const LINGER_NS: u64 = 2_000_000_000;

/// What reading or writing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Something moved; for writing: everything.
    Some,
    /// Nothing more can be moved now.
    WouldBlock,
    /// The other side has ended, or the connection is broken.
    Closed,
}

/// What comes after the response that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// The next request.
    Keep,
    /// The end.
    Close,
    /// The end, although the client has not stopped sending.
    Linger,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// A request, or its end.
    Idle,
    /// The rest of a head.
    Head,
    /// The rest of a body, or of as much as is waited for.
    Body,
    /// A VM: the request is here.
    Ready,
    /// That the client takes its response.
    Writing(After),
    /// That the client stops sending, so that what was written arrives.
    Lingering,
}

/// What [`Connection::advance`] came to.
#[derive(Debug)]
pub(super) enum Step {
    /// More bytes are needed.
    More,
    /// The request can be given to a VM.
    Ready,
    /// It is none; the connection closes behind this answer.
    Refuse(Answer),
    /// There is nothing to be said.
    Gone,
}

/// One accepted connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) peer: PeerAddress,
    /// The guest's listener that it is for.
    pub(super) listener: FileId,
    /// Its place in the table.
    pub(super) slot: Slot,
    /// It is in the epoll set.
    pub(super) is_watched: bool,
    pub(super) phase: Phase,
    /// The host moment after which the phase has lasted too long, nanoseconds.
    pub(super) expires: u64,
    /// The host moment at which the request was here.
    pub(super) ready_at: u64,
    /// Bytes read and not yet used.
    pub(super) input: Buffer,
    /// Bytes to be written.
    pub(super) output: Buffer,
    /// The request whose head has been taken from the input.
    pub(super) request: Option<Request>,
    /// What the program is given for it.
    pub(super) head: Buffer,
    /// Its body.
    pub(super) upload: Option<Upload>,
    /// The client has ended its side.
    pub(super) ended: bool,
    scan: HeadScan,
    empty_lines: usize,
    /// A preface of the PROXY protocol has to come first.
    needs_preface: bool,
    /// `100 Continue` has been sent.
    continued: bool,
    /// Bytes thrown away.
    unread: usize,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, peer: PeerAddress, listener: FileId, slot: Slot, clients: &ClientConfig, now: u64) -> Self {
        Self {
            socket,
            peer,
            listener,
            slot,
            is_watched: false,
            phase: Phase::Head,
            expires: now.saturating_add(clients.header_timeout_ns),
            ready_at: now,
            input: Buffer::default(),
            output: Buffer::default(),
            request: None,
            head: Buffer::default(),
            upload: None,
            ended: false,
            scan: HeadScan::default(),
            empty_lines: 0,
            needs_preface: clients.proxy_protocol,
            continued: false,
            unread: 0,
        }
    }

    /// Whether it was just accepted and has to say something before anything can be done.
    pub(super) fn speaks_first(&self, clients: &ClientConfig) -> bool {
        clients.protocol == Protocol::Http || self.needs_preface
    }

    /// Whether what it says now is HTTP, so that it can be answered.
    pub(super) fn speaks_http(&self, clients: &ClientConfig) -> bool {
        clients.protocol == Protocol::Http && !self.needs_preface
    }

    /// Read what is there, until the input holds `most` bytes.
    pub(super) fn receive(&mut self, most: usize) -> Progress {
        let mut progress = Progress::WouldBlock;
        let most = most.min(self.input.len().saturating_add(TURN));
        while self.input.len() < most {
            let bytes = self.input.tail();
            if bytes.capacity() - bytes.len() < ROOM {
                bytes.reserve(ROOM);
            }
            let room = bytes.capacity() - bytes.len();
            match rustix::net::recv(&self.socket, spare_capacity(bytes), RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    self.ended = true;
                    return Progress::Closed;
                }
                Ok((count, _)) if count == room => progress = Progress::Some,
                Ok(_) => return Progress::Some,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return progress,
                Err(_) => {
                    self.ended = true;
                    self.input.clear();
                    return Progress::Closed;
                }
            }
        }
        progress
    }

    /// Write what can be written of the output. [`Progress::Some`] says that all of it was.
    pub(super) fn send(&mut self) -> Progress {
        while !self.output.is_empty() {
            match rustix::net::send(&self.socket, self.output.bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => self.output.consume(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Progress::WouldBlock,
                Err(_) => return Progress::Closed,
            }
        }
        Progress::Some
    }

    /// Most bytes of input that are wanted in this phase.
    pub(super) const fn input_max(&self, clients: &ClientConfig) -> usize {
        match self.phase {
            Phase::Body => clients.request_buffer.saturating_add(ROOM),
            _ => clients.max_header_size.saturating_add(ROOM),
        }
    }

    /// Go on with the request as far as the bytes that are here allow.
    pub(super) fn advance(&mut self, clients: &ClientConfig, now: u64) -> Step {
        if self.needs_preface {
            match proxy_protocol::parse(self.input.bytes()) {
                Err(proxy_protocol::NoPreface) => return Step::Gone,
                Ok(None) => return self.more(),
                Ok(Some(preface)) => {
                    self.input.consume(preface.bytes);
                    self.peer = preface.client.map_or_else(|| self.peer.clone(), PeerAddress::Inet);
                    self.needs_preface = false;
                }
            }
        }
        if clients.protocol == Protocol::Tcp {
            return Step::Ready;
        }
        if self.request.is_none() {
            match self.read_head(clients, now) {
                Ok(true) => {}
                Ok(false) => return self.more(),
                Err(status) => return Step::Refuse(Answer::last(status, "the request is not valid HTTP/1.1\n")),
            }
        }
        self.read_body(clients)
    }

    fn more(&self) -> Step {
        if self.ended { Step::Gone } else { Step::More }
    }

    /// Whether the head is here.
    fn read_head(&mut self, clients: &ClientConfig, now: u64) -> Result<bool, u16> {
        while self.scan == HeadScan::default() && self.input.bytes().starts_with(b"\r\n") {
            self.empty_lines += 1;
            if self.empty_lines > EMPTY_LINES_MAX {
                return Err(400);
            }
            self.input.consume(2);
        }
        if self.input.is_empty() || self.input.bytes() == b"\r" {
            return Ok(false);
        }
        if self.phase == Phase::Idle {
            self.phase = Phase::Head;
            self.expires = now.saturating_add(clients.header_timeout_ns);
        }
        let address = match &self.peer {
            PeerAddress::Inet(address) => Some(address.ip()),
            _ => None,
        };
        let rules = Rules { head_bytes_max: clients.max_header_size, forwarded_for: clients.proxy_headers.then_some(address) };
        let parsed = parse_request(self.input.bytes(), &mut self.scan, &rules, self.head.tail());
        let Some(request) = parsed.map_err(|Refusal(status)| status)? else { return Ok(false) };
        self.input.consume(request.head_bytes);
        self.upload = Some(Upload::new(request.body, clients.max_body_size)?);
        self.request = Some(request);
        self.phase = Phase::Body;
        self.expires = now.saturating_add(clients.body_timeout_ns);
        Ok(true)
    }

    /// Whether as much of the body is here as is waited for before a VM is given to the request.
    fn read_body(&mut self, clients: &ClientConfig) -> Step {
        let (Some(upload), Some(request)) = (&mut self.upload, &self.request) else { return Step::Gone };
        if let Err(status) = upload.collect(&mut self.input, clients.request_buffer) {
            return Step::Refuse(Answer::last(status, "the request's body is not valid or too long\n"));
        }
        if upload.is_here(&self.input, clients.request_buffer) {
            return Step::Ready;
        }
        if request.expects_continue && !self.continued && self.input.is_empty() {
            self.continued = true;
            let _ = rustix::net::send(&self.socket, b"HTTP/1.1 100 Continue\r\n\r\n", SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        self.more()
    }

    /// The request is over: make ready for the next. Whether that can begin, because the body has ended.
    pub(super) fn finish_request(&mut self) -> bool {
        let can_go_on = self.upload.take().is_none_or(|mut upload| upload.skip(&mut self.input));
        self.request = None;
        self.head.clear();
        self.scan = HeadScan::default();
        (self.continued, self.empty_lines) = (false, 0);
        can_go_on
    }

    /// Bytes of its request and response that wait here.
    pub(super) fn held(&self) -> usize {
        self.input.len() + self.output.len() + self.head.len() + self.upload.as_ref().map_or(0, Upload::held)
    }

    /// It may be idle for long: keep no memory for it.
    pub(super) fn trim(&mut self) {
        self.input.trim(IDLE_BYTES);
        self.output.trim(IDLE_BYTES);
        self.head.trim(IDLE_BYTES);
    }

    /// What goes on behind a response: nothing where the client has still something to send, which at the close would make TCP
    /// throw the response away. Whether it has to linger.
    pub(super) fn must_linger(&mut self, after: After, now: u64) -> bool {
        // One cheap question: nearly always the request was all that came.
        let has_unread = || rustix::io::ioctl_fionread(&self.socket).unwrap_or(0) > 0;
        if self.ended || after != After::Linger && !has_unread() {
            return false;
        }
        // The client learns first that nobody will read on.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        self.input.clear();
        (self.phase, self.expires) = (Phase::Lingering, now.saturating_add(LINGER_NS));
        true
    }

    /// Throw away what comes; whether more may come.
    pub(super) fn throw_away(&mut self) -> bool {
        let progress = self.receive(TURN);
        self.unread += self.input.len();
        self.input.clear();
        progress != Progress::Closed && self.unread < UNREAD_BYTES_MAX
    }

    /// Close it so that what the client has got does not look like a whole response.
    pub(super) fn abort(self) {
        let _ = rustix::net::sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
