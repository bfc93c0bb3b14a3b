//! Reading and writing everything that is not a file of the host: what `read`, `write`, `send`, `recv` and their relatives do
//! with pipes, pairs, streams, sockets, eventfds, timerfds and signalfds, including blocking, partial progress and SIGPIPE.

use bitflags::bitflags;
use linux_raw_sys::general::SIGPIPE;
use linux_raw_sys::net as raw;

use super::channel::ChannelId;
use super::local::{EventFd, PairEnd, Side};
use super::socket_address::{Address, Family, Kind};
use super::{Errno, File, FileId, Files, PollEvents};
use crate::limits::{PIPE_ATOMIC_BYTES, RW_BYTES_MAX};
use crate::linux::{Answer, Attempt, Call, Outcome, Restart, Wait, WaitFor};
use crate::memory::Segment;

bitflags! {
    /// MSG_* flags of the receiving calls.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct RecvFlags: u32 {
        /// Leave the data where it is.
        const PEEK = raw::MSG_PEEK;
        /// Do not block, whatever O_NONBLOCK says.
        const DONTWAIT = raw::MSG_DONTWAIT;
        /// Block until everything asked for has arrived.
        const WAITALL = raw::MSG_WAITALL;
        /// Answer the message's real length.
        const TRUNC = raw::MSG_TRUNC;
    }
}

bitflags! {
    /// MSG_* flags of the sending calls.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct SendFlags: u32 {
        /// Do not block, whatever O_NONBLOCK says.
        const DONTWAIT = raw::MSG_DONTWAIT;
        /// EPIPE without SIGPIPE.
        const NOSIGNAL = raw::MSG_NOSIGNAL;
        /// More follows: only a hint.
        const MORE = raw::MSG_MORE;
    }
}

/// What a transfer came to.
#[derive(Debug)]
pub enum Step<T> {
    /// It is done.
    Done(T),
    /// The thread has to wait.
    Block(Wait),
}

/// What was received.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Received {
    /// Bytes stored.
    pub count: u64,
    /// Length of the message, which may be more.
    pub full: u64,
    /// Where it came from, if it is not the connected peer.
    pub source: Option<Address>,
    /// Further MSG_* flags for `msg_flags`.
    pub flags: u32,
}

impl Received {
    fn bytes(count: u64) -> Self {
        Self { count, full: count, ..Self::default() }
    }
}

/// `read(2)` and `readv(2)` of everything but host files, generated files and the console; `recv(2)` of sockets.
///
/// # Errors
///
/// As the man page of the file's kind says.
pub fn read_stream_like(call: &mut Call<'_>, file: FileId, segments: &[Segment], flags: RecvFlags) -> Answer {
    Ok(match receive(call, file, segments, flags)? {
        Step::Done(received) if flags.contains(RecvFlags::TRUNC) => Outcome::Return(received.full),
        Step::Done(received) => Outcome::Return(received.count),
        Step::Block(wait) => Outcome::Block(wait),
    })
}

/// `write(2)` and `writev(2)` of everything but host files, generated files and the console; `send(2)` of sockets.
///
/// # Errors
///
/// As the man page of the file's kind says. EPIPE comes with SIGPIPE unless `flags` say otherwise.
pub fn write_stream_like(call: &mut Call<'_>, file: FileId, segments: &[Segment], flags: SendFlags) -> Answer {
    Ok(match send(call, file, segments, flags, None)? {
        Step::Done(count) => Outcome::Return(count),
        Step::Block(wait) => Outcome::Block(wait),
    })
}

/// Bytes that the segments name together, at most what one call moves.
#[must_use]
pub fn total_length(segments: &[Segment]) -> u64 {
    segments.iter().fold(0_u64, |sum, segment| sum.saturating_add(segment.length)).min(RW_BYTES_MAX)
}

/// A wait for a file, within SO_RCVTIMEO or SO_SNDTIMEO (nanoseconds, 0 for none).
///
/// # Errors
///
/// EAGAIN where that time is over.
pub fn wait_for<T>(call: &Call<'_>, file: FileId, events: PollEvents, timeout: u64) -> Result<Step<T>, Errno> {
    if call.timed_out() {
        return Err(Errno::AGAIN);
    }
    let deadline = call.deadline((timeout > 0).then_some(timeout));
    let restart = if timeout > 0 { Restart::Never } else { Restart::IfAsked };
    let on = WaitFor::Files(vec![(file, events | PollEvents::ERR | PollEvents::HUP)]);
    Ok(Step::Block(Wait { on, deadline, restart }))
}

/// EPIPE, with SIGPIPE for the calling thread unless that is not wanted.
pub fn broken_pipe(call: &mut Call<'_>, flags: SendFlags) -> Errno {
    if !flags.contains(SendFlags::NOSIGNAL) {
        call.kernel.send_thread_signal(call.tid, SIGPIPE as i32);
    }
    Errno::PIPE
}

/// Receive from any kind.
///
/// # Errors
///
/// As [`read_stream_like`].
pub fn receive(call: &mut Call<'_>, file: FileId, segments: &[Segment], flags: RecvFlags) -> Result<Step<Received>, Errno> {
    let slot = call.kernel.files.get(file)?;
    match &slot.file {
        File::Pipe(_) | File::Pair(_) | File::Stream(_) => receive_channel(call, file, segments, flags),
        File::Event(_) | File::Timer(_) => receive_counter(call, file, segments),
        File::Signal(_) => super::ops_signal::receive_signals(call, file, segments),
        File::Socket(_) => super::socket_io::receive(call, file, segments, flags),
        File::Listener(_) => Err(Errno::NOTCONN),
        File::Host(_) | File::Special(_) | File::Console(_) | File::Epoll(_) => Err(Errno::INVAL),
    }
}

/// Send to any kind; `to` is the address of an unconnected datagram.
///
/// # Errors
///
/// As [`write_stream_like`].
pub fn send(call: &mut Call<'_>, file: FileId, segments: &[Segment], flags: SendFlags, to: Option<&Address>) -> Result<Step<u64>, Errno> {
    let slot = call.kernel.files.get(file)?;
    match &slot.file {
        File::Pipe(_) | File::Pair(_) | File::Stream(_) => send_channel(call, file, segments, flags, to),
        File::Event(_) => send_event(call, file, segments),
        File::Socket(_) => super::socket_io::send(call, file, segments, flags, to),
        File::Listener(_) => Err(broken_pipe(call, flags)),
        File::Host(_) | File::Special(_) | File::Console(_) | File::Timer(_) | File::Signal(_) | File::Epoll(_) => Err(Errno::INVAL),
    }
}

/// Where a receiving call looks.
struct Source {
    channel: ChannelId,
    message: bool,
    datagram: bool,
    /// MSG_TRUNC on a TCP socket throws bytes away (`tcp(7)`).
    discard: bool,
    ended: bool,
    timeout: u64,
    nonblocking: bool,
}

impl Source {
    fn of(files: &Files, file: FileId, flags: RecvFlags) -> Result<Self, Errno> {
        let slot = files.get(file)?;
        let nonblocking = slot.nonblocking() || flags.contains(RecvFlags::DONTWAIT);
        if let File::Pipe(pipe) = &slot.file {
            if pipe.side == Side::Writer {
                return Err(Errno::BADF);
            }
            let channel = files.channels.get(pipe.channel)?;
            let message = !channel.messages.is_empty();
            return Ok(Self {
                channel: pipe.channel,
                message,
                datagram: false,
                discard: false,
                ended: channel.writers == 0,
                timeout: 0,
                nonblocking,
            });
        }
        let end = slot.file.pair().ok_or(Errno::INVAL)?;
        let ended = end.at_end(files.channels.get(end.incoming)?);
        let discard = flags.contains(RecvFlags::TRUNC) && end.base.family != Family::Unix;
        Ok(Self {
            channel: end.incoming,
            message: end.is_message(),
            datagram: end.base.kind == Kind::Datagram,
            discard,
            ended,
            timeout: end.base.options.receive_timeout,
            nonblocking,
        })
    }
}

fn receive_channel(call: &mut Call<'_>, file: FileId, segments: &[Segment], flags: RecvFlags) -> Result<Step<Received>, Errno> {
    let source = Source::of(&call.kernel.files, file, flags)?;
    if source.message {
        return receive_message(call, file, &source, segments, flags);
    }
    let wanted = total_length(segments);
    let before = call.progress.min(wanted);
    let done = match take_bytes(call, &source, segments, wanted - before, flags) {
        Ok(count) => before.saturating_add(count as u64),
        Err(_) if before > 0 => return Ok(Step::Done(Received::bytes(before))),
        Err(errno) => return Err(errno),
    };
    let patient = flags.contains(RecvFlags::WAITALL) && !flags.contains(RecvFlags::PEEK) && !source.nonblocking;
    if done == wanted || (done > 0 && !(patient && call.attempt_may_wait())) {
        return Ok(Step::Done(Received::bytes(done)));
    }
    if done == 0
        && let Some(errno) = take_read_error(call, file)
    {
        return Err(errno);
    }
    if source.ended {
        return Ok(Step::Done(Received::bytes(done)));
    }
    if source.nonblocking {
        return Err(Errno::AGAIN);
    }
    call.progress = done;
    wait_for(call, file, PollEvents::IN, source.timeout)
}

/// Copy from a channel to the guest, after what earlier attempts have stored.
fn take_bytes(call: &mut Call<'_>, source: &Source, segments: &[Segment], most: u64, flags: RecvFlags) -> Result<usize, Errno> {
    let channel = call.kernel.files.channels.get(source.channel)?;
    let (front, back) = channel.front(usize::try_from(most).unwrap_or(usize::MAX));
    let count =
        if source.discard { front.len() + back.len() } else { scatter_both(call.space.memory(), segments, call.progress, front, back)? };
    if count > 0 && !flags.contains(RecvFlags::PEEK) {
        call.kernel.files.channel(source.channel)?.consume(count);
    }
    Ok(count)
}

fn scatter_both(memory: &crate::memory::GuestMemory, segments: &[Segment], skip: u64, front: &[u8], back: &[u8]) -> Result<usize, Errno> {
    let first = memory.scatter(segments, skip, front)?;
    if first < front.len() || back.is_empty() {
        return Ok(first);
    }
    match memory.scatter(segments, skip.saturating_add(first as u64), back) {
        Ok(second) => Ok(first.saturating_add(second)),
        Err(_) if first > 0 => Ok(first),
        Err(errno) => Err(errno),
    }
}

fn receive_message(
    call: &mut Call<'_>,
    file: FileId,
    source: &Source,
    segments: &[Segment],
    flags: RecvFlags,
) -> Result<Step<Received>, Errno> {
    // Unlike a stream's, a message socket's error comes before what has arrived.
    if let Some(errno) = take_error(call, file) {
        return Err(errno);
    }
    let channel = call.kernel.files.channels.get(source.channel)?;
    if let Some(&length) = channel.messages.front() {
        let full = u64::from(length);
        let count = full.min(total_length(segments));
        let (front, back) = channel.front(usize::try_from(count).unwrap_or(0));
        if (scatter_both(call.space.memory(), segments, 0, front, back)? as u64) < count {
            return Err(Errno::FAULT);
        }
        if !flags.contains(RecvFlags::PEEK) {
            call.kernel.files.channel(source.channel)?.consume_message();
        }
        return Ok(Step::Done(Received { count, full, ..Received::default() }));
    }
    // A datagram socket whose reading side was shut down is at its end only for those who would wait.
    if source.ended && !(source.nonblocking && source.datagram) {
        return Ok(Step::Done(Received::default()));
    }
    if source.nonblocking { Err(Errno::AGAIN) } else { wait_for(call, file, PollEvents::IN, source.timeout) }
}

/// The error that ends a read, which is thereby reported. A TCP connection that was reset behind its end only says that it ended.
fn take_read_error(call: &mut Call<'_>, file: FileId) -> Option<Errno> {
    let base = &call.kernel.files.get(file).ok()?.file.pair()?.base;
    if base.family != Family::Unix && base.error == Some(Errno::PIPE) { None } else { take_error(call, file) }
}

/// SO_ERROR is reported once.
fn take_error(call: &mut Call<'_>, file: FileId) -> Option<Errno> {
    call.kernel.files.get_mut(file).ok()?.file.pair_mut()?.base.error.take()
}

/// Where a sending call puts its bytes.
struct Target {
    channel: ChannelId,
    shape: Shape,
    timeout: u64,
    nonblocking: bool,
}

/// How bytes become what is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// A stream socket: as much as fits.
    Bytes,
    /// A pipe: as much as fits, but a small write whole or not at all.
    Pipe,
    /// A pipe with O_DIRECT: a packet for each PIPE_BUF bytes.
    Packets,
    /// A datagram or packet socket: one message.
    Message,
}

fn send_channel(
    call: &mut Call<'_>,
    file: FileId,
    segments: &[Segment],
    flags: SendFlags,
    to: Option<&Address>,
) -> Result<Step<u64>, Errno> {
    let wanted = total_length(segments);
    let slot = call.kernel.files.get(file)?;
    let nonblocking = slot.nonblocking() || flags.contains(SendFlags::DONTWAIT);
    let target = match &slot.file {
        File::Pipe(pipe) if pipe.side == Side::Reader => return Err(Errno::BADF),
        File::Pipe(_) if wanted == 0 => return Ok(Step::Done(0)),
        File::Pipe(pipe) => {
            let shape = if slot.flags & linux_raw_sys::general::O_DIRECT == 0 { Shape::Pipe } else { Shape::Packets };
            let target = Target { channel: pipe.channel, shape, timeout: 0, nonblocking };
            if call.kernel.files.channels.get(target.channel)?.readers == 0 {
                return partly(call.progress, broken_pipe(call, flags));
            }
            target
        }
        other => {
            let end = other.pair().ok_or(Errno::INVAL)?;
            if to.is_some() {
                return Err(Errno::ISCONN);
            }
            let shape = if end.is_message() { Shape::Message } else { Shape::Bytes };
            let target = Target { channel: end.outgoing, shape, timeout: end.base.options.send_timeout, nonblocking };
            if let Some(step) = check_connected(call, file, wanted, flags)? {
                return Ok(step);
            }
            target
        }
    };
    put(call, file, &target, segments, wanted)
}

/// What a sending call comes to that an error ended: what was sent before counts more than the error.
fn partly(progress: u64, errno: Errno) -> Result<Step<u64>, Errno> {
    if progress > 0 { Ok(Step::Done(progress)) } else { Err(errno) }
}

/// What a sending call comes to that found no room for the rest: it waits, or answers how much it has sent.
pub(super) fn sent_so_far(call: &mut Call<'_>, file: FileId, done: u64, nonblocking: bool, timeout: u64) -> Result<Step<u64>, Errno> {
    if nonblocking || (done > 0 && !call.attempt_may_wait()) {
        return partly(done, Errno::AGAIN);
    }
    call.progress = done;
    wait_for(call, file, PollEvents::OUT, timeout)
}

/// Whether an end of a pair can send; answers where the call is already over.
fn check_connected(call: &mut Call<'_>, file: FileId, wanted: u64, flags: SendFlags) -> Result<Option<Step<u64>>, Errno> {
    let progress = call.progress;
    let files = &call.kernel.files;
    let Some(end) = files.get(file)?.file.pair() else { return Err(Errno::INVAL) };
    let (family, kind, outgoing) = (end.base.family, end.base.kind, end.outgoing);
    let (gone, refused) = files.channels.get(outgoing).map_or((true, false), |channel| (channel.readers == 0, channel.refused));
    let (write_shut, shut) = (end.write_shut, end.write_shut || end.reset);
    // A unix stream looks at its state first and keeps the error for a reader; the others report the error first.
    if !(family == Family::Unix && kind == Kind::Stream && (shut || gone || refused))
        && let Some(errno) = take_error(call, file)
    {
        let errno = if errno == Errno::PIPE { broken_pipe(call, flags) } else { errno };
        return partly(progress, errno).map(Some);
    }
    match (kind, family) {
        (Kind::Stream, Family::Unix) if shut || gone || refused => {
            let errno = broken_pipe(call, flags);
            partly(progress, errno).map(Some)
        }
        (Kind::Stream, _) if shut => {
            let errno = broken_pipe(call, flags);
            partly(progress, errno).map(Some)
        }
        (Kind::Stream, Family::Inet | Family::Inet6) if gone => {
            // TCP: what is sent to a closed peer is accepted, and answered by a reset that the next call sees.
            let files = &mut call.kernel.files;
            files.changes += 1;
            files.channels.tell(outgoing);
            if let Some(end) = files.get_mut(file)?.file.pair_mut() {
                end.reset = true;
                end.base.error = Some(Errno::PIPE);
            }
            Ok(Some(Step::Done(wanted)))
        }
        // Messages never raise SIGPIPE.
        (Kind::Datagram, _) if gone && !write_shut => Err(part_datagram(call, file)),
        (Kind::Datagram | Kind::Packet, _) if shut || gone || refused => {
            if kind == Kind::Datagram && !shut {
                // The message was made before it turned out that nobody wants it; that it is gone again is room.
                call.kernel.files.channel(outgoing)?.room += 1;
            }
            Err(Errno::PIPE)
        }
        _ => Ok(None),
    }
}

/// A datagram socket finds that its peer is gone: the first time it loses what it had received, afterwards it is not connected.
fn part_datagram(call: &mut Call<'_>, file: FileId) -> Errno {
    let files = &mut call.kernel.files;
    let Ok(Some(end)) = files.get_mut(file).map(|slot| slot.file.pair_mut()) else { return Errno::BADF };
    let (known, incoming, outgoing) = (end.reset, end.incoming, end.outgoing);
    end.reset = true;
    // The message was made before it turned out that it goes nowhere; that it is gone again is room.
    if let Ok(channel) = files.channel(outgoing) {
        channel.room += 1;
    }
    if known {
        return Errno::NOTCONN;
    }
    if let Ok(channel) = files.channel(incoming) {
        while !channel.messages.is_empty() {
            channel.consume_message();
        }
    }
    Errno::CONNREFUSED
}

fn put(call: &mut Call<'_>, file: FileId, target: &Target, segments: &[Segment], wanted: u64) -> Result<Step<u64>, Errno> {
    let before = call.progress.min(wanted);
    let put = match target.shape {
        Shape::Bytes | Shape::Pipe => put_bytes(call, target, segments, wanted - before),
        Shape::Packets => put_packets(call, target, segments, wanted - before),
        Shape::Message => put_message(call, target, segments, wanted).map(|sent| if sent { (wanted, true) } else { (0, false) }),
    };
    let (count, finished) = match put {
        Ok(put) => put,
        Err(errno) => return partly(before, errno),
    };
    let done = before.saturating_add(count);
    if finished { Ok(Step::Done(done)) } else { sent_so_far(call, file, done, target.nonblocking, target.timeout) }
}

/// Put as much as fits; answers how much that was and whether the call is over (everything sent, or a bad page met).
fn put_bytes(call: &mut Call<'_>, target: &Target, segments: &[Segment], left: u64) -> Result<(u64, bool), Errno> {
    let room = call.kernel.files.channels.get(target.channel)?.space();
    let most = usize::try_from(left).unwrap_or(usize::MAX).min(room);
    // Only the first attempt can be small enough to be atomic: a later one continues a write that was not.
    let atomic = target.shape == Shape::Pipe && call.progress == 0 && left <= PIPE_ATOMIC_BYTES as u64;
    if most == 0 || (atomic && (most as u64) < left) {
        return Ok((0, left == 0));
    }
    let bytes = call.space.memory().gather(segments, call.progress, most)?;
    call.kernel.files.channel(target.channel)?.push_all(&bytes);
    Ok((bytes.len() as u64, bytes.len() < most || bytes.len() as u64 == left))
}

fn put_packets(call: &mut Call<'_>, target: &Target, segments: &[Segment], left: u64) -> Result<(u64, bool), Errno> {
    let mut done = 0_u64;
    while done < left {
        let most = usize::try_from(left - done).unwrap_or(usize::MAX).min(PIPE_ATOMIC_BYTES);
        if !call.kernel.files.channels.get(target.channel)?.writable() {
            return Ok((done, false));
        }
        let bytes = match call.space.memory().gather(segments, call.progress.saturating_add(done), most) {
            Ok(bytes) => bytes,
            Err(_) if done > 0 => return Ok((done, true)),
            Err(errno) => return Err(errno),
        };
        call.kernel.files.channel(target.channel)?.push_message(&bytes)?;
        done = done.saturating_add(bytes.len() as u64);
        if bytes.len() < most {
            return Ok((done, true));
        }
    }
    Ok((done, true))
}

fn put_message(call: &mut Call<'_>, target: &Target, segments: &[Segment], wanted: u64) -> Result<bool, Errno> {
    let channel = call.kernel.files.channels.get(target.channel)?;
    let length = usize::try_from(wanted).ok().filter(|&length| length <= channel.capacity).ok_or(Errno::MSGSIZE)?;
    if !channel.writable() {
        return Ok(false);
    }
    let bytes = call.space.memory().gather(segments, 0, length)?;
    if bytes.len() < length {
        return Err(Errno::FAULT);
    }
    call.kernel.files.channel(target.channel)?.push_message(&bytes)?;
    Ok(true)
}

fn receive_counter(call: &mut Call<'_>, file: FileId, segments: &[Segment]) -> Result<Step<Received>, Errno> {
    if total_length(segments) < 8 {
        return Err(Errno::INVAL);
    }
    let now = call.kernel.clock.monotonic();
    let slot = call.kernel.files.get_mut(file)?;
    let nonblocking = slot.nonblocking();
    let value = match &mut slot.file {
        File::Event(event) => event.take(),
        File::Timer(timer) => timer.take(now),
        _ => return Err(Errno::INVAL),
    };
    match value {
        Some(value) => {
            call.kernel.files.changes += 1;
            // As on Linux the count is gone even where the buffer turns out to be bad.
            if call.space.memory().scatter(segments, 0, &value.to_ne_bytes())? < 8 {
                Err(Errno::FAULT)
            } else {
                Ok(Step::Done(Received::bytes(8)))
            }
        }
        None if nonblocking => Err(Errno::AGAIN),
        None => wait_for(call, file, PollEvents::IN, 0),
    }
}

fn send_event(call: &mut Call<'_>, file: FileId, segments: &[Segment]) -> Result<Step<u64>, Errno> {
    if total_length(segments) < 8 {
        return Err(Errno::INVAL);
    }
    let bytes = call.space.memory().gather(segments, 0, 8)?;
    let value = u64::from_ne_bytes(bytes.first_chunk().copied().ok_or(Errno::FAULT)?);
    let slot = call.kernel.files.get_mut(file)?;
    let nonblocking = slot.nonblocking();
    let File::Event(event) = &mut slot.file else { return Err(Errno::INVAL) };
    if event.add(value)? {
        call.kernel.files.changes += 1;
        return Ok(Step::Done(8));
    }
    if nonblocking {
        return Err(Errno::AGAIN);
    }
    let on = WaitFor::Files(vec![(file, EventFd::ROOM_FOR_REFUSED)]);
    Ok(Step::Block(Wait { on, deadline: None, restart: Restart::IfAsked }))
}

impl Call<'_> {
    /// Whether this attempt may end in a wait: an interrupted or overdue one answers with what it has.
    pub(super) const fn attempt_may_wait(&self) -> bool {
        matches!(self.attempt, Attempt::First | Attempt::Woken)
    }
}

impl Files {
    /// Bytes that could be read now (FIONREAD): of the next message where messages keep their bounds. `None` for kinds that
    /// cannot say.
    #[must_use]
    pub fn readable_bytes(&self, file: FileId) -> Option<usize> {
        let slot = self.get(file).ok()?;
        let id = match &slot.file {
            File::Socket(socket) => {
                let count = socket.host.as_ref().map_or(Ok(0), rustix::io::ioctl_fionread).ok()?;
                return usize::try_from(count).ok();
            }
            File::Pipe(pipe) => pipe.channel,
            other => other.pair().map(|end: &PairEnd| end.incoming)?,
        };
        let channel = self.channels.get(id).ok()?;
        let messages = slot.file.pair().is_some_and(PairEnd::is_message);
        Some(if messages { channel.messages.front().map_or(0, |&length| length as usize) } else { channel.data.len() })
    }

    /// Bytes that wait to be taken by the other side (SIOCOUTQ). `None` for kinds that cannot say.
    #[must_use]
    pub fn unsent_bytes(&self, file: FileId) -> Option<usize> {
        let id = self.get(file).ok()?.file.pair()?.outgoing;
        Some(self.channels.get(id).map_or(0, |channel| channel.data.len()))
    }
}
