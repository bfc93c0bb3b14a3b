//! Sending and receiving on host sockets. The host calls never block and never raise SIGPIPE in this process; descriptors that
//! a peer passes along are dropped by the host kernel, because no room is offered for them.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net as host;
use rustix::net::{RecvAncillaryBuffer, ReturnFlags, SendAncillaryBuffer, SocketAddrUnix};

use super::ops::{Received, RecvFlags, SendFlags, Step, broken_pipe, sent_so_far, total_length, wait_for};
use super::socket::{Progress, Socket, from_host};
use super::socket_address::{Address, Family, Kind};
use super::socket_path::HostName;
use super::{Errno, File, FileId, PollEvents, socket_connect, socket_path};
use crate::limits::RW_BYTES_MAX;
use crate::linux::Call;
use crate::memory::Segment;

/// What a transfer needs to know about its socket.
struct Open {
    host: Arc<OwnedFd>,
    family: Family,
    kind: Kind,
    nonblocking: bool,
    timeout: u64,
}

fn socket<'a>(call: &'a mut Call<'_>, file: FileId) -> Result<&'a mut Socket, Errno> {
    match &mut call.kernel.files.get_mut(file)?.file {
        File::Socket(socket) => Ok(socket),
        _ => Err(Errno::NOTSOCK),
    }
}

/// The host socket to use, or what a call on a socket without one answers.
fn open(call: &mut Call<'_>, file: FileId, dont_wait: bool, send: bool) -> Result<Open, Errno> {
    let nonblocking = dont_wait || call.kernel.files.get(file)?.nonblocking();
    let socket = socket(call, file)?;
    let (family, kind) = (socket.base.family, socket.base.kind);
    if kind != Kind::Datagram && socket.progress == Progress::Fresh {
        return Err(Errno::NOTCONN);
    }
    let options = &socket.base.options;
    let timeout = if send { options.send_timeout } else { options.receive_timeout };
    Ok(Open { host: socket.host()?, family, kind, nonblocking, timeout })
}

/// The segments behind the first `skip` bytes.
fn behind(segments: &[Segment], skip: u64) -> Vec<Segment> {
    let mut skip = skip;
    let cut = |segment: &Segment| {
        let cut = skip.min(segment.length);
        skip -= cut;
        Segment { address: segment.address.wrapping_add(cut), length: segment.length - cut }
    };
    segments.iter().map(cut).filter(|segment| segment.length > 0).collect()
}

/// What one host call brought.
struct Message {
    bytes: u64,
    truncated: bool,
    address: Option<Address>,
}

fn receive_once(call: &Call<'_>, open: &Open, segments: &[Segment], flags: RecvFlags) -> Result<Message, Errno> {
    let mut wanted = host::RecvFlags::DONTWAIT;
    wanted.set(host::RecvFlags::PEEK, flags.contains(RecvFlags::PEEK));
    // A message's real length is always asked for; a stream would throw its bytes away.
    wanted.set(host::RecvFlags::TRUNC, open.kind != Kind::Stream);
    let mut got = None;
    call.memory().with_writable(segments, RW_BYTES_MAX, |slices: &mut [IoSliceMut<'_>]| {
        let message = host::recvmsg(&open.host, slices, &mut RecvAncillaryBuffer::default(), wanted)?;
        let bytes = message.bytes;
        got = Some(message);
        Ok(bytes)
    })?;
    let message = got.ok_or(Errno::IO)?;
    let address = message.address.as_ref().map(|address| from_host(address).seen_by(open.family));
    Ok(Message { bytes: message.bytes as u64, truncated: message.flags.contains(ReturnFlags::TRUNC), address })
}

/// Receive from a host socket.
pub(super) fn receive(call: &mut Call<'_>, file: FileId, segments: &[Segment], flags: RecvFlags) -> Result<Step<Received>, Errno> {
    let open = open(call, file, flags.contains(RecvFlags::DONTWAIT), false)?;
    let wanted = total_length(segments);
    let before = call.progress.min(wanted);
    let done = |count: u64| Ok(Step::Done(Received { count, full: count, ..Received::default() }));
    let message = receive_once(call, &open, &behind(segments, before), flags);
    if let Ok(socket) = socket(call, file) {
        socket.reads = socket.reads.wrapping_add(1);
    }
    let message = match message {
        Ok(message) => message,
        Err(Errno::AGAIN) if open.nonblocking && before == 0 => return Err(Errno::AGAIN),
        Err(Errno::AGAIN) if !open.nonblocking && call.attempt_may_wait() => return wait_for(call, file, PollEvents::IN, open.timeout),
        // An interrupted call without progress asks to wait and becomes EINTR or a restart; an overdue one is EAGAIN.
        Err(Errno::AGAIN) if before == 0 => return wait_for(call, file, PollEvents::IN, open.timeout),
        Err(_) if before > 0 => return done(before),
        Err(errno) => return Err(errno),
    };
    if open.kind != Kind::Stream {
        let flags = if message.truncated { RecvFlags::TRUNC.bits() } else { 0 };
        let source = if open.kind == Kind::Datagram { message.address } else { None };
        return Ok(Step::Done(Received { count: message.bytes.min(wanted), full: message.bytes, source, flags }));
    }
    let total = before.saturating_add(message.bytes);
    let patient = flags.contains(RecvFlags::WAITALL) && !flags.contains(RecvFlags::PEEK) && !open.nonblocking;
    if patient && total < wanted && message.bytes > 0 && call.attempt_may_wait() {
        call.progress = total;
        return wait_for(call, file, PollEvents::IN, open.timeout);
    }
    done(total)
}

/// Where a message goes.
enum Destination {
    /// To the connected peer.
    Peer,
    /// To this address.
    Inet(std::net::SocketAddr),
    /// To this socket of the host's file system, which is named by way of a descriptor that must be held.
    Unix(SocketAddrUnix, #[expect(dead_code, reason = "held, not used")] HostName),
}

fn destination(call: &mut Call<'_>, file: FileId, to: Option<&Address>) -> Result<Destination, Errno> {
    let socket = socket(call, file)?;
    let (family, connected) = (socket.base.family, socket.progress == Progress::Connected);
    match to {
        // TCP does not look at it.
        _ if socket.base.kind == Kind::Stream && family != Family::Unix => Ok(Destination::Peer),
        Some(_) if socket.base.kind != Kind::Datagram => Err(if connected { Errno::ISCONN } else { Errno::OPNOTSUPP }),
        None if !connected && family == Family::Unix => Err(Errno::NOTCONN),
        None if !connected && socket.base.kind == Kind::Datagram => Err(Errno::DESTADDRREQ),
        None => Ok(Destination::Peer),
        Some(Address::Unix(name)) => {
            let path = socket_path::to_connect(call.kernel, call.tid, name)?;
            Ok(Destination::Unix(SocketAddrUnix::new(path.host_path())?, path))
        }
        Some(address) => {
            let address = address.seen_by(family).on_this_machine();
            socket_connect::check_destination(call, &address)?;
            match address {
                Address::Inet(address) => Ok(Destination::Inet(address)),
                _ => Err(Errno::INVAL),
            }
        }
    }
}

fn send_once(call: &Call<'_>, open: &Open, segments: &[Segment], destination: &Destination, more: bool) -> Result<u64, Errno> {
    let mut flags = host::SendFlags::DONTWAIT | host::SendFlags::NOSIGNAL;
    flags.set(host::SendFlags::MORE, more);
    let count = call.memory().with_readable(segments, RW_BYTES_MAX, |slices: &[IoSlice<'_>]| {
        let control = &mut SendAncillaryBuffer::default();
        match destination {
            Destination::Peer => host::sendmsg(&open.host, slices, control, flags),
            Destination::Inet(address) => host::sendmsg_addr(&open.host, address, slices, control, flags),
            Destination::Unix(address, _) => host::sendmsg_addr(&open.host, address, slices, control, flags),
        }
    })?;
    Ok(count as u64)
}

/// Send on a host socket; `to` is the destination of a datagram.
pub(super) fn send(
    call: &mut Call<'_>,
    file: FileId,
    segments: &[Segment],
    flags: SendFlags,
    to: Option<&Address>,
) -> Result<Step<u64>, Errno> {
    let destination = destination(call, file, to)?;
    let open = match open(call, file, flags.contains(SendFlags::DONTWAIT), true) {
        Ok(open) => open,
        Err(Errno::NOTCONN) if socket(call, file)?.base.kind == Kind::Stream => return Err(broken_pipe(call, flags)),
        Err(errno) => return Err(errno),
    };
    let wanted = total_length(segments);
    let before = call.progress.min(wanted);
    let sent = send_once(call, &open, &behind(segments, before), &destination, flags.contains(SendFlags::MORE));
    let done = match sent {
        Ok(count) => before.saturating_add(count),
        // The peer's queue is full; the host's socket never says when it has room, so nobody can wait for it.
        Err(Errno::AGAIN) if matches!(destination, Destination::Unix(..)) && !open.nonblocking => return Err(Errno::NOBUFS),
        Err(Errno::AGAIN) => before,
        Err(_) if before > 0 => return Ok(Step::Done(before)),
        Err(Errno::PIPE) => return Err(broken_pipe(call, flags)),
        Err(errno) => return Err(errno),
    };
    if sent.is_ok() && (done == wanted || open.kind != Kind::Stream) {
        return Ok(Step::Done(done));
    }
    if let Ok(socket) = socket(call, file) {
        socket.stalls = socket.stalls.wrapping_add(1);
    }
    sent_so_far(call, file, done, open.nonblocking, open.timeout)
}
