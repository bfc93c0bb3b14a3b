//! `connect(2)`: to a socket of this VM in memory, to everything else through a host socket and as the grants allow.

use super::local::PairEnd;
use super::ops::{Step, wait_for};
use super::socket::{Progress, Socket, connect_host, host_events};
use super::socket_address::{Address, Family, Kind, Named};
use super::socket_base::SocketBase;
use super::socket_path::HostName;
use super::{Errno, File, FileId, PollEvents, socket_path};
use crate::linux::Call;

/// The first port of a connection inside the VM; Linux's default range begins here.
const FIRST_PORT: u16 = 32_768;
/// How many ports that range has.
const PORTS: u64 = 28_232;

/// `connect(2)`.
///
/// # Errors
///
/// EACCES without a grant, and as the man page says.
pub fn connect(call: &mut Call<'_>, file: FileId, named: Named) -> Result<Step<()>, Errno> {
    release_bound(call, file)?;
    let File::Socket(socket) = &mut call.kernel.files.get_mut(file)?.file else { return Err(Errno::ISCONN) };
    let address = match named {
        Named::Unspecified => return dissolve(socket).map(Step::Done),
        Named::Address(family, address) if family == socket.base.family => address,
        // An IPv6 datagram socket may name an IPv4 peer by an AF_INET address.
        Named::Address(Family::Inet, address) if socket.base.family == Family::Inet6 && socket.base.kind == Kind::Datagram => {
            address.seen_by(Family::Inet6)
        }
        Named::Address(..) => return Err(Errno::AFNOSUPPORT),
    };
    let address = address.on_this_machine();
    if socket.base.kind == Kind::Datagram {
        return connect_datagram(call, file, address).map(Step::Done);
    }
    match socket.progress {
        Progress::Broken => Err(Errno::CONNRESET),
        Progress::Fresh => start(call, file, &address),
        Progress::Connecting | Progress::Connected => go_on(call, file),
    }
}

/// A socket that is bound but does not listen may connect: it becomes an ordinary one, with a host socket of its own (a fork
/// would share the listener's with others).
fn release_bound(call: &mut Call<'_>, file: FileId) -> Result<(), Errno> {
    let slot = call.kernel.files.get_mut(file)?;
    if let File::Listener(listener) = &mut slot.file
        && !listener.listening
        && listener.base.family != Family::Unix
    {
        let socket = Socket { bound: Some(listener.base.local.clone()), ..Socket::new(listener.base.clone()) };
        slot.file = File::Socket(socket);
        call.kernel.files.changes += 1;
    }
    Ok(())
}

/// `connect(2)` with AF_UNSPEC: the socket forgets its peer.
fn dissolve(socket: &mut Socket) -> Result<(), Errno> {
    if socket.base.family == Family::Unix && socket.base.kind != Kind::Datagram {
        return Err(Errno::INVAL);
    }
    if socket.base.kind == Kind::Datagram {
        if let Some(host) = &socket.host {
            rustix::net::connect_unspec(host)?;
        }
    } else {
        socket.host = None;
    }
    socket.progress = Progress::Fresh;
    socket.base.peer = Address::Unnamed;
    socket.learn_local();
    Ok(())
}

fn check_grant(call: &mut Call<'_>, address: &Address) -> Result<(), Errno> {
    match address.canonical() {
        Some(canonical) if call.kernel.grants.may_connect(canonical) => Ok(()),
        Some(canonical) => {
            call.kernel.note(format!("the program may not connect to {canonical}"));
            Err(Errno::ACCESS)
        }
        None => Err(Errno::INVAL),
    }
}

/// Whether a datagram may go to this address.
///
/// # Errors
///
/// EACCES, EINVAL.
pub(super) fn check_destination(call: &mut Call<'_>, address: &Address) -> Result<(), Errno> {
    check_grant(call, address)
}

/// The address for the host's call. A unix socket is named by way of a descriptor, which has to be held until the call is made.
fn host_address(call: &mut Call<'_>, address: &Address) -> Result<(Address, Option<HostName>), Errno> {
    match address {
        Address::Unix(name) => {
            let held = socket_path::to_connect(call.kernel, call.tid, name)?;
            Ok((Address::Unix(held.host_path()), Some(held)))
        }
        _ => {
            check_grant(call, address)?;
            Ok((address.clone(), None))
        }
    }
}

fn connect_datagram(call: &mut Call<'_>, file: FileId, address: Address) -> Result<(), Errno> {
    let (host_address, _held) = host_address(call, &address)?;
    let File::Socket(socket) = &mut call.kernel.files.get_mut(file)?.file else { return Err(Errno::INVAL) };
    // Connecting anew is allowed; a fork's new host socket must not connect to the old peer first.
    socket.progress = Progress::Fresh;
    connect_host(&*socket.host()?, &host_address)?;
    socket.progress = Progress::Connected;
    socket.base.peer = address;
    socket.learn_local();
    Ok(())
}

fn start(call: &mut Call<'_>, file: FileId, address: &Address) -> Result<Step<()>, Errno> {
    let base = call.kernel.files.get(file)?.file.socket()?.clone();
    let target = match address {
        Address::Unix(name) => Address::Unix(socket_path::canonical(call.kernel, call.tid, name)),
        _ => address.clone(),
    };
    if let Some(listener) = call.kernel.files.own_listener(base.family, &target) {
        return connect_inside(call, file, &base, listener, address);
    }
    let (host_address, _held) = host_address(call, address)?;
    let File::Socket(socket) = &mut call.kernel.files.get_mut(file)?.file else { return Err(Errno::INVAL) };
    let host = socket.host()?;
    socket.base.peer = address.clone();
    match connect_host(&host, &host_address) {
        Ok(()) => {
            socket.progress = Progress::Connected;
            socket.learn_local();
            Ok(Step::Done(()))
        }
        Err(Errno::INPROGRESS) => {
            socket.progress = Progress::Connecting;
            // It was writable before and will be again: that has to count as an edge.
            socket.stalls = socket.stalls.wrapping_add(1);
            in_progress(call, file, Errno::INPROGRESS)
        }
        Err(errno) => {
            // Linux lets a socket try again after a failure; a host socket that failed is not used again.
            socket.host = None;
            Err(errno)
        }
    }
}

/// A connection is being made, or has been: what another `connect` says, which is also how a blocked one looks again.
fn go_on(call: &mut Call<'_>, file: FileId) -> Result<Step<()>, Errno> {
    let first = call.attempt == crate::linux::Attempt::First;
    let File::Socket(socket) = &mut call.kernel.files.get_mut(file)?.file else { return Err(Errno::INVAL) };
    if socket.progress == Progress::Connected {
        return Err(Errno::ISCONN);
    }
    if let Some(errno) = socket.take_host_error() {
        return Err(errno);
    }
    if socket.is_connected() {
        // A blocked call reports its success; a new one on a connection that came about by itself does too, once, as on Linux.
        return Ok(Step::Done(()));
    }
    if host_events(&*socket.host()?).contains(PollEvents::HUP) {
        // It has failed, and another call has already taken the reason.
        socket.progress = Progress::Fresh;
        socket.host = None;
        return Err(Errno::CONNABORTED);
    }
    in_progress(call, file, if first { Errno::ALREADY } else { Errno::INPROGRESS })
}

fn in_progress(call: &mut Call<'_>, file: FileId, nonblocking: Errno) -> Result<Step<()>, Errno> {
    let slot = call.kernel.files.get(file)?;
    if slot.nonblocking() {
        return Err(nonblocking);
    }
    let timeout = slot.file.socket()?.options.send_timeout;
    wait_for(call, file, PollEvents::OUT, timeout).map_err(|_| Errno::INPROGRESS)
}

/// Both ends are in this VM: a pair of channels, and the other end waits for its accept.
fn connect_inside(call: &mut Call<'_>, file: FileId, base: &SocketBase, listener: FileId, target: &Address) -> Result<Step<()>, Errno> {
    let files = &mut call.kernel.files;
    if files.get(listener)?.file.socket()?.kind != base.kind {
        return Err(Errno::PROTOTYPE);
    }
    let local = match (&base.local, base.family) {
        (Address::Unnamed, Family::Unix) => Address::Unnamed,
        (Address::Inet(local), _) if local.port() != 0 => base.local.clone(),
        _ => target.with_port(FIRST_PORT.saturating_add(u16::try_from(files.changes % PORTS).unwrap_or(0))),
    };
    // A full TCP queue drops the attempt and the client tries again; here nobody would.
    let refused = if base.family == Family::Unix { Errno::AGAIN } else { Errno::CONNREFUSED };
    let (incoming, outgoing) =
        files.enqueue(listener, &local, target, true).map_err(|errno| if errno == Errno::AGAIN { refused } else { errno })?;
    // To a watcher that knew the fresh socket the connection is an edge.
    files.channels.tell(incoming);
    let base = SocketBase { local, peer: target.clone(), ..base.clone() };
    files.get_mut(file)?.file = File::Pair(PairEnd::new(base, incoming, outgoing));
    Ok(Step::Done(()))
}
