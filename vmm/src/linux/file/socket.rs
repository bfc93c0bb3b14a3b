//! Sockets that are neither listening nor connected inside this VM: fresh ones, and those that use a host socket.
//!
//! A host socket is made when it is first needed, always non-blocking and close-on-exec; blocking is ours. It belongs to one
//! VM: a fork never uses its snapshot's ([`Socket::after_fork`]).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::local::{READABLE, WRITABLE};
use super::socket_address::{Address, Kind};
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
        Readiness { events, arrivals: self.reads, room: self.stalls }
    }

    /// A fork begins: connections stay with the snapshot, everything else is made anew when it is needed.
    pub(super) fn after_fork(&mut self) {
        if self.base.kind != Kind::Datagram && matches!(self.progress, Progress::Connected | Progress::Connecting) {
            self.progress = Progress::Broken;
            self.base.error = Some(Errno::CONNRESET);
        }
        self.host = None;
    }
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
