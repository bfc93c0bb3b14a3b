//! Sockets from making to closing: `socket(2)`, `socketpair(2)`, `bind(2)`, `listen(2)`, `accept(2)`, `connect(2)`,
//! `getsockname(2)`, `getpeername(2)`, `shutdown(2)`. Transfers are in `net_message`, options in `net_options`.

use linux_raw_sys::{general, net as raw};

use super::event::{install, install_two};
use crate::limits::{BACKLOG_MAX, PIPE_BYTES, SOCKET_ADDRESS_MAX};
use crate::linux::file::local::{PairEnd, stream_low_water};
use crate::linux::file::ops::{Step, wait_for};
use crate::linux::file::socket::Socket;
use crate::linux::file::socket_address::{Family, Kind, Named};
use crate::linux::file::socket_base::SocketBase;
use crate::linux::file::{File, FileId, PollEvents, socket_bind, socket_connect};
use crate::linux::table::{Arg, Entry, full, partial};
use crate::linux::{Answer, Call, Errno, Outcome};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    partial(general::__NR_socket, "socket", &[Arg::Int, Arg::Hex, Arg::Int], socket, "TCP, UDP and unix sockets only"),
    full(general::__NR_socketpair, "socketpair", &[Arg::Int, Arg::Hex, Arg::Int, Arg::Pointer], socketpair),
    partial(general::__NR_bind, "bind", &[Arg::Fd, Arg::Pointer, Arg::Uint], bind, "within the grants; no abstract unix names"),
    full(general::__NR_listen, "listen", &[Arg::Fd, Arg::Int], listen),
    full(general::__NR_accept, "accept", &[Arg::Fd, Arg::Pointer, Arg::Pointer], accept),
    full(general::__NR_accept4, "accept4", &[Arg::Fd, Arg::Pointer, Arg::Pointer, Arg::Hex], accept4),
    partial(general::__NR_connect, "connect", &[Arg::Fd, Arg::Pointer, Arg::Uint], connect, "within the grants; no abstract unix names"),
    full(general::__NR_getsockname, "getsockname", &[Arg::Fd, Arg::Pointer, Arg::Pointer], getsockname),
    full(general::__NR_getpeername, "getpeername", &[Arg::Fd, Arg::Pointer, Arg::Pointer], getpeername),
    full(general::__NR_shutdown, "shutdown", &[Arg::Fd, Arg::Int], shutdown),
];

const SOCK_NONBLOCK: u32 = general::O_NONBLOCK;
const SOCK_CLOEXEC: u32 = general::O_CLOEXEC;
/// One past the last type, SOCK_PACKET.
const SOCK_MAX: u32 = 11;
/// The part of `socket(2)`'s type argument that is the type.
const TYPE_MASK: u32 = 0xf;

/// The family, type and protocol of a new socket, checked.
fn new_base(domain: u32, kind: u32, protocol: i32) -> Result<SocketBase, Errno> {
    if kind & !(TYPE_MASK | SOCK_NONBLOCK | SOCK_CLOEXEC) != 0 {
        return Err(Errno::INVAL);
    }
    let kind = kind & TYPE_MASK;
    if kind >= SOCK_MAX {
        return Err(Errno::INVAL);
    }
    match domain {
        raw::AF_UNIX => unix_base(kind, protocol),
        raw::AF_INET => inet_base(Family::Inet, kind, protocol),
        raw::AF_INET6 => inet_base(Family::Inet6, kind, protocol),
        raw::AF_PACKET => Err(Errno::PERM),
        _ => Err(Errno::AFNOSUPPORT),
    }
}

fn unix_base(kind: u32, protocol: i32) -> Result<SocketBase, Errno> {
    if protocol != 0 && protocol != raw::AF_UNIX as i32 {
        return Err(Errno::PROTONOSUPPORT);
    }
    let kind = match kind {
        raw::SOCK_STREAM => Kind::Stream,
        // BSD programs ask for SOCK_RAW and mean datagrams.
        raw::SOCK_DGRAM | raw::SOCK_RAW => Kind::Datagram,
        raw::SOCK_SEQPACKET => Kind::Packet,
        _ => return Err(Errno::SOCKTNOSUPPORT),
    };
    Ok(SocketBase::new(Family::Unix, kind, 0))
}

fn inet_base(family: Family, kind: u32, protocol: i32) -> Result<SocketBase, Errno> {
    let (tcp, udp) = (raw::IPPROTO_TCP as i32, raw::IPPROTO_UDP as i32);
    match kind {
        raw::SOCK_STREAM if protocol == 0 || protocol == tcp => Ok(SocketBase::new(family, Kind::Stream, tcp.cast_unsigned())),
        raw::SOCK_DGRAM if protocol == 0 || protocol == udp => Ok(SocketBase::new(family, Kind::Datagram, udp.cast_unsigned())),
        // Pings without privileges need a group of the host's that no guest has.
        raw::SOCK_DGRAM if protocol == raw::IPPROTO_ICMP as i32 || protocol == raw::IPPROTO_ICMPV6 as i32 => Err(Errno::ACCESS),
        raw::SOCK_STREAM | raw::SOCK_DGRAM => Err(Errno::PROTONOSUPPORT),
        raw::SOCK_RAW => Err(Errno::PERM),
        _ => Err(Errno::SOCKTNOSUPPORT),
    }
}

/// `int socket(int domain, int type, int protocol)`.
fn socket(call: &mut Call<'_>) -> Answer {
    let kind = call.uint(1);
    let base = new_base(call.uint(0), kind, call.int(2))?;
    let flags = general::O_RDWR | kind & SOCK_NONBLOCK;
    install(call, File::Socket(Socket::new(base)), flags, kind & SOCK_CLOEXEC != 0)
}

/// `int socketpair(int domain, int type, int protocol, int fds[2])`.
fn socketpair(call: &mut Call<'_>) -> Answer {
    let kind = call.uint(1);
    let base = new_base(call.uint(0), kind, call.int(2))?;
    if base.family != Family::Unix {
        return Err(Errno::OPNOTSUPP);
    }
    let low_water = if base.kind == Kind::Stream { stream_low_water(PIPE_BYTES) } else { PIPE_BYTES - 1 };
    let (one, other) = call.kernel.files.channel_pair(Family::Unix, PIPE_BYTES, low_water);
    let flags = general::O_RDWR | kind & SOCK_NONBLOCK;
    let ends = [(File::Pair(PairEnd::new(base.clone(), one, other)), flags), (File::Pair(PairEnd::new(base, other, one)), flags)];
    install_two(call, ends, kind & SOCK_CLOEXEC != 0, call.args[3])
}

/// A socket address argument.
///
/// # Errors
///
/// EINVAL, EFAULT, EAFNOSUPPORT.
pub(super) fn read_address(call: &Call<'_>, address: u64, length: u32) -> Result<Named, Errno> {
    // The length is a C int: negative ones are too long as well.
    let length = usize::try_from(length).ok().filter(|&length| length <= SOCKET_ADDRESS_MAX).ok_or(Errno::INVAL)?;
    Named::decode(&call.memory().read_vec(address, length)?)
}

/// Store an address and its full length, truncating it to the room that `*length` says there is.
///
/// # Errors
///
/// EFAULT, or EINVAL for negative room.
pub(super) fn write_address(call: &Call<'_>, bytes: &[u8], address: u64, length: u64) -> Result<(), Errno> {
    let room: i32 = call.memory().read(length)?;
    let room = usize::try_from(room).map_err(|_| Errno::INVAL)?.min(bytes.len());
    call.memory().write_bytes(address, bytes.get(..room).unwrap_or(bytes))?;
    // At most 112 bytes.
    call.memory().write(length, &(bytes.len() as u32))
}

/// `int bind(int fd, const struct sockaddr *address, socklen_t length)`.
fn bind(call: &mut Call<'_>) -> Answer {
    let file = call.file(0)?;
    call.kernel.files.get(file)?.file.socket()?;
    let named = read_address(call, call.args[1], call.uint(2))?;
    socket_bind::bind(call.kernel, call.tid, file, named)?;
    Ok(Outcome::OK)
}

/// `int listen(int fd, int backlog)`.
fn listen(call: &mut Call<'_>) -> Answer {
    let file = call.file(0)?;
    // As on Linux a negative backlog is a very large one.
    let backlog = call.uint(1).min(BACKLOG_MAX);
    socket_bind::listen(call.kernel, call.tid, file, backlog)?;
    Ok(Outcome::OK)
}

/// `int accept(int fd, struct sockaddr *address, socklen_t *length)`.
fn accept(call: &mut Call<'_>) -> Answer {
    accept_with(call, 0)
}

/// `int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)`.
fn accept4(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(3);
    if flags & !(SOCK_NONBLOCK | SOCK_CLOEXEC) != 0 {
        return Err(Errno::INVAL);
    }
    accept_with(call, flags)
}

fn accept_with(call: &mut Call<'_>, flags: u32) -> Answer {
    let listener = call.file(0)?;
    check_accepts(call, listener)?;
    // A descriptor first, so that no connection is lost for the want of one.
    let limit = usize::try_from(call.kernel.process.rlimits[general::RLIMIT_NOFILE as usize].0).unwrap_or(usize::MAX);
    call.kernel.process.fds.lowest_free(0, limit)?;
    let Some(file) = call.kernel.files.dequeue(listener)? else {
        let slot = call.kernel.files.get(listener)?;
        if slot.nonblocking() {
            return Err(Errno::AGAIN);
        }
        let timeout = slot.file.socket()?.options.receive_timeout;
        return match wait_for::<()>(call, listener, PollEvents::IN, timeout)? {
            Step::Block(wait) => Ok(Outcome::Block(wait)),
            Step::Done(()) => Err(Errno::AGAIN),
        };
    };
    let base = file.socket()?;
    let peer = base.peer.encode(base.family);
    // The flags decide alone: the listener's own O_NONBLOCK is not inherited.
    let id = call.kernel.files.add(file, general::O_RDWR | flags & SOCK_NONBLOCK)?;
    let fd = call.kernel.install_fd(id, flags & SOCK_CLOEXEC != 0)?;
    if call.args[1] != 0
        && let Err(errno) = write_address(call, &peer, call.args[1], call.args[2])
    {
        call.kernel.close_fd(fd.number().cast_signed())?;
        return Err(errno);
    }
    Ok(fd.into())
}

fn check_accepts(call: &Call<'_>, file: FileId) -> Result<(), Errno> {
    let base = call.kernel.files.get(file)?.file.socket()?;
    if base.kind == Kind::Datagram { Err(Errno::OPNOTSUPP) } else { Ok(()) }
}

/// `int connect(int fd, const struct sockaddr *address, socklen_t length)`.
fn connect(call: &mut Call<'_>) -> Answer {
    let file = call.file(0)?;
    call.kernel.files.get(file)?.file.socket()?;
    let named = read_address(call, call.args[1], call.uint(2))?;
    match socket_connect::connect(call, file, named)? {
        Step::Done(()) => Ok(Outcome::OK),
        Step::Block(wait) => Ok(Outcome::Block(wait)),
    }
}

/// `int getsockname(int fd, struct sockaddr *address, socklen_t *length)`.
fn getsockname(call: &mut Call<'_>) -> Answer {
    let file = call.file(0)?;
    let slot = call.kernel.files.get_mut(file)?;
    // Connecting may have chosen an address since.
    if let File::Socket(socket) = &mut slot.file {
        socket.learn_local();
    }
    let base = slot.file.socket()?;
    let bytes = base.local.encode(base.family);
    write_address(call, &bytes, call.args[1], call.args[2])?;
    Ok(Outcome::OK)
}

/// `int getpeername(int fd, struct sockaddr *address, socklen_t *length)`.
fn getpeername(call: &mut Call<'_>) -> Answer {
    let file = call.file(0)?;
    let slot = call.kernel.files.get_mut(file)?;
    let connected = match &mut slot.file {
        File::Pair(end) => !end.reset,
        File::Stream(stream) => !stream.end.reset,
        File::Socket(socket) => socket.is_connected(),
        _ => false,
    };
    let base = slot.file.socket()?;
    if !connected {
        return Err(Errno::NOTCONN);
    }
    let bytes = base.peer.encode(base.family);
    write_address(call, &bytes, call.args[1], call.args[2])?;
    Ok(Outcome::OK)
}

/// `int shutdown(int fd, int how)`.
fn shutdown(call: &mut Call<'_>) -> Answer {
    let file = call.file(0)?;
    call.kernel.files.get(file)?.file.socket()?;
    let (read, write) = match call.uint(1) {
        0 => (true, false),
        1 => (false, true),
        2 => (true, true),
        _ => return Err(Errno::INVAL),
    };
    let files = &mut call.kernel.files;
    match &mut files.get_mut(file)?.file {
        File::Listener(listener) if !listener.listening => return Err(Errno::NOTCONN),
        File::Listener(listener) if read => {
            listener.listening = false;
            let (queue, base) = (std::mem::take(&mut listener.queue), listener.base.clone());
            files.changes += 1;
            files.refuse_queue(queue, &base);
        }
        File::Socket(socket) => {
            if !socket.is_connected() {
                return Err(Errno::NOTCONN);
            }
            let how = match (read, write) {
                (true, true) => rustix::net::Shutdown::Both,
                (true, false) => rustix::net::Shutdown::Read,
                _ => rustix::net::Shutdown::Write,
            };
            rustix::net::shutdown(socket.host()?, how)?;
            socket.reads = socket.reads.wrapping_add(1);
        }
        File::Listener(_) => {}
        _ => files.shut_file(file, read, write)?,
    }
    Ok(Outcome::OK)
}
