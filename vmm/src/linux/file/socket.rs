//! Sockets that are neither listening nor connected inside this VM: fresh ones, and those that use a host socket.
//!
//! A host socket is made when it is first needed, always non-blocking and close-on-exec; blocking is ours. It belongs to one
//! VM: a fork never uses its snapshot's ([`Socket::after_fork`]).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::local::{READABLE, WRITABLE};
use super::socket_address::{Address, Family, Kind};
use super::socket_base::SocketBase;
use super::{Errno, PollEvents, Readiness};

/// How far a socket has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Neither connected nor connecting.
    Fresh,
    /// A connection is being made.
    Connecting,
    /// Connected.
    Connected,
    /// Its connection belonged to the snapshot and cannot be used in a fork.
    Broken,
}

/// A socket.
#[derive(Debug, Clone)]
pub struct Socket {
    /// Addresses and options.
    pub base: SocketBase,
    /// How far it has come.
    pub progress: Progress,
    /// The host socket, once there is one.
    pub host: Option<Arc<OwnedFd>>,
    /// The address it was bound to, as asked (port 0 stays 0).
    pub bound: Option<Address>,
    /// Counts reads, which re-arm edges of a host descriptor.
    pub reads: u64,
    /// Counts writes that found the buffer full, likewise.
    pub stalls: u64,
}

impl Socket {
    /// A fresh socket.
    #[must_use]
    pub const fn new(base: SocketBase) -> Self {
        Self { base, progress: Progress::Fresh, host: None, bound: None, reads: 0, stalls: 0 }
    }

    /// What `poll(2)` says of it.
    pub(super) fn readiness(&self) -> Readiness {
        let events = match (&self.host, self.progress) {
            (_, Progress::Broken) => READABLE | WRITABLE | PollEvents::ERR | PollEvents::HUP | PollEvents::RDHUP,
            (Some(host), _) => host_events(host),
            // As tcp_poll says of a closed socket.
            (None, _) if self.base.kind == Kind::Stream => WRITABLE | PollEvents::HUP,
            (None, _) => WRITABLE,
        };
        Readiness { events, arrivals: self.reads, room: self.stalls, ends: 0 }
    }

    /// A fork begins: connections stay with the snapshot, everything else is made anew when it is needed.
    pub(super) fn after_fork(&mut self) {
        if self.base.kind != Kind::Datagram && matches!(self.progress, Progress::Connected | Progress::Connecting) {
            self.progress = Progress::Broken;
            self.base.error = Some(Errno::CONNRESET);
        }
        self.host = None;
    }

    /// The host socket, made now if there is none: with this socket's options, bound and (datagrams) connected as this one is.
    ///
    /// # Errors
    ///
    /// ECONNRESET where the connection was lost by a fork, or what the host answers.
    pub fn host(&mut self) -> Result<Arc<OwnedFd>, Errno> {
        if self.progress == Progress::Broken {
            return Err(self.base.error.take().unwrap_or(Errno::NOTCONN));
        }
        if let Some(host) = &self.host {
            return Ok(Arc::clone(host));
        }
        let host = open_host(&self.base)?;
        if let Some(bound) = &self.bound {
            bind_host(&host, bound)?;
        }
        if self.base.kind == Kind::Datagram && self.progress == Progress::Connected {
            connect_host(&host, &self.base.peer)?;
        }
        let host = Arc::new(host);
        self.host = Some(Arc::clone(&host));
        self.learn_local();
        Ok(host)
    }

    /// Ask the host for the socket's own address: after a bind or connect it may have chosen one.
    pub fn learn_local(&mut self) {
        if self.base.family != Family::Unix
            && let Some(Ok(address)) = self.host.as_deref().map(rustix::net::getsockname)
        {
            self.base.local = from_host(&address);
        }
    }

    /// The error that the host holds for it (SO_ERROR), which is thereby forgotten.
    pub fn take_host_error(&mut self) -> Option<Errno> {
        let errno = sockopt::socket_error(self.host.as_deref()?).ok()?.err()?;
        if self.progress == Progress::Connecting {
            // The attempt has failed; another one begins afresh.
            self.progress = Progress::Fresh;
            self.host = None;
        }
        Some(errno)
    }

    /// Whether the host says that it is connected; a connection that was being made may have come about meanwhile.
    pub fn is_connected(&mut self) -> bool {
        if self.progress == Progress::Connecting
            && let Some(host) = &self.host
            && matches!(rustix::net::getpeername(host), Ok(Some(_)))
        {
            self.progress = Progress::Connected;
            self.learn_local();
        }
        self.progress == Progress::Connected
    }
}

/// A host socket of this family and type with these options.
///
/// # Errors
///
/// What the host answers.
pub fn open_host(base: &SocketBase) -> Result<OwnedFd, Errno> {
    let family = match base.family {
        Family::Inet => AddressFamily::INET,
        Family::Inet6 => AddressFamily::INET6,
        Family::Unix => AddressFamily::UNIX,
    };
    let kind = match base.kind {
        Kind::Stream => SocketType::STREAM,
        Kind::Datagram => SocketType::DGRAM,
        Kind::Packet => SocketType::SEQPACKET,
    };
    let host = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    super::socket_options::apply_all(&host, base);
    if base.family == Family::Inet6 {
        sockopt::set_ipv6_v6only(&host, base.options.v6_only)?;
    }
    Ok(host)
}

/// Bind a host socket. Unix paths must be the host's, already checked.
///
/// # Errors
///
/// What the host answers.
pub fn bind_host(host: &OwnedFd, address: &Address) -> Result<(), Errno> {
    match address {
        Address::Inet(address) => rustix::net::bind(host, address),
        Address::Unix(path) => rustix::net::bind(host, &SocketAddrUnix::new(path.as_slice())?),
        Address::Unnamed => Ok(()),
    }
}

/// Connect a host socket. Unix paths must be the host's, already checked.
///
/// # Errors
///
/// What the host answers; EINPROGRESS where it goes on.
pub fn connect_host(host: &OwnedFd, address: &Address) -> Result<(), Errno> {
    match address {
        Address::Inet(address) => rustix::net::connect(host, address),
        Address::Unix(path) => rustix::net::connect(host, &SocketAddrUnix::new(path.as_slice())?),
        Address::Unnamed => Err(Errno::INVAL),
    }
}

/// An address that the host reported. Unix peers stay without a name: the host's paths are not the guest's.
#[must_use]
pub fn from_host(address: &SocketAddrAny) -> Address {
    std::net::SocketAddr::try_from(address.clone()).map_or(Address::Unnamed, Address::Inet)
}

/// What the host says about a descriptor now.
#[must_use]
pub fn host_events(host: &OwnedFd) -> PollEvents {
    let wanted = READABLE | WRITABLE | PollEvents::PRI | PollEvents::RDHUP;
    let flags = PollFlags::from_bits_truncate(u16::try_from(wanted.bits()).unwrap_or(0));
    let mut fds = [PollFd::new(host, flags)];
    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(_) => PollEvents::from_bits_truncate(u32::from(fds[0].revents().bits())),
        Err(_) => PollEvents::empty(),
    }
}
