//! Client connections as the guest sees them, and the sockets that listen for them.
//!
//! Neither is a socket of the host: the host owns the real listener and the real connections, and plays the client's part in
//! memory ([`super::stream_host`]). A [`Listener`] keeps a bound host socket so that EADDRINUSE and port 0 mean what they
//! always mean; the host listens on it when the program is ready.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::channel::ChannelId;
use super::local::{PairEnd, READABLE, WRITABLE, flag};
use super::socket_address::{Address, Family};
use super::socket_base::SocketBase;
use super::{Errno, File, FileId, Files, PollEvents, Readiness};
use crate::clone_in_place::clone_in_place;

/// A client's connection: the guest's end; the host holds the other ends of its channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// The same as a socketpair's end.
    pub end: PairEnd,
}

/// A connection that waits for an accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// What the accepting side will read.
    pub incoming: ChannelId,
    /// What the accepting side will write.
    pub outgoing: ChannelId,
    /// Who connects.
    pub peer: Address,
    /// The address that was connected to.
    pub local: Address,
    /// Whether the other side is a socket of this VM and not a client of the host.
    pub inner: bool,
}

/// A stream socket that has been bound, and perhaps listens.
#[derive(Debug)]
pub struct Listener {
    /// Address and options.
    pub base: SocketBase,
    /// Whether `listen(2)` has been called.
    pub listening: bool,
    /// Most connections that may wait.
    pub backlog: u32,
    /// Connections that wait.
    pub queue: VecDeque<Pending>,
    /// The host socket that is bound to the address.
    pub host: Option<Arc<OwnedFd>>,
    /// Canonical path of a unix socket's name, by which programs of this VM find it.
    pub path: Option<Vec<u8>>,
    /// Counts connections that arrived.
    arrivals: u64,
}

clone_in_place!(Listener { base, listening, backlog, host, path, arrivals } lists { queue });

impl Listener {
    /// A bound socket that does not listen yet.
    #[must_use]
    pub const fn new(base: SocketBase, host: Option<Arc<OwnedFd>>) -> Self {
        Self { base, listening: false, backlog: 0, queue: VecDeque::new(), host, path: None, arrivals: 0 }
    }

    /// What `poll(2)` says of it. A TCP socket that is neither connected nor listening is writable and hung up.
    pub(super) fn readiness(&self) -> Readiness {
        let events = if self.listening { flag(!self.queue.is_empty(), READABLE) } else { WRITABLE | PollEvents::HUP };
        Readiness { events, arrivals: self.arrivals.wrapping_add(u64::from(self.listening)), room: 0, ends: 0 }
    }
}

impl Files {
    /// The listener behind an id.
    ///
    /// # Errors
    ///
    /// EBADF, ENOTSOCK, or EINVAL for another kind of socket.
    pub fn listener(&mut self, id: FileId) -> Result<&mut Listener, Errno> {
        match &mut self.get_mut(id)?.file {
            File::Listener(listener) => Ok(listener),
            File::Pair(_) | File::Stream(_) | File::Socket(_) => Err(Errno::INVAL),
            _ => Err(Errno::NOTSOCK),
        }
    }

    /// Queue a connection from `peer`; returns the connecting side's (incoming, outgoing).
    ///
    /// # Errors
    ///
    /// ECONNREFUSED where nothing listens, EAGAIN where the queue is full.
    pub fn enqueue(&mut self, listener: FileId, peer: &Address, target: &Address, inner: bool) -> Result<(ChannelId, ChannelId), Errno> {
        let found = self.listener(listener).map_err(|_| Errno::CONNREFUSED)?;
        if !found.listening {
            return Err(Errno::CONNREFUSED);
        }
        // Linux lets one more than the backlog wait.
        if found.queue.len() > found.backlog as usize {
            return Err(Errno::AGAIN);
        }
        let family = found.base.family;
        let local = found.base.local.as_reached(target).seen_by(family);
        let capacity = crate::limits::STREAM_BYTES;
        let (incoming, outgoing) = self.channel_pair(family, capacity, super::local::stream_low_water(capacity));
        self.changes += 1;
        let found = self.listener(listener)?;
        found.queue.push_back(Pending { incoming, outgoing, peer: peer.seen_by(family), local, inner });
        found.arrivals = found.arrivals.wrapping_add(1);
        Ok((outgoing, incoming))
    }

    /// The oldest waiting connection as an open file; `None` where none waits.
    ///
    /// # Errors
    ///
    /// EINVAL where the socket does not listen, ENOTSOCK.
    pub fn dequeue(&mut self, listener: FileId) -> Result<Option<File>, Errno> {
        let listener = self.listener(listener)?;
        if !listener.listening {
            return Err(Errno::INVAL);
        }
        let Some(pending) = listener.queue.pop_front() else { return Ok(None) };
        let base = listener.base.accepted(pending.local, pending.peer);
        self.channels.get_mut(pending.incoming)?.accepted = true;
        let end = PairEnd::new(base, pending.incoming, pending.outgoing);
        Ok(Some(if pending.inner { File::Pair(end) } else { File::Stream(Stream { end }) }))
    }

    /// Nobody will accept what waits: the clients see their connections reset.
    pub(in crate::linux) fn refuse_queue(&mut self, queue: VecDeque<Pending>, base: &SocketBase) {
        for pending in queue {
            let end = PairEnd::new(base.accepted(pending.local, pending.peer), pending.incoming, pending.outgoing);
            self.reset_peer(&end);
            self.close_pair(&end);
        }
    }

    /// A listening socket of this VM that a connection to `target` reaches.
    #[must_use]
    pub fn own_listener(&self, family: Family, target: &Address) -> Option<FileId> {
        self.iter().find_map(|(id, slot)| match &slot.file {
            File::Listener(listener) if listener.listening && reachable(listener, family, target) => Some(id),
            _ => None,
        })
    }
}

fn reachable(listener: &Listener, family: Family, target: &Address) -> bool {
    let base = &listener.base;
    if let Address::Unix(path) = target {
        return listener.path.as_ref() == Some(path);
    }
    let v6_only = base.family == Family::Inet6 && base.options.v6_only && target.canonical().is_some_and(|address| address.is_ipv4());
    family != Family::Unix && !v6_only && base.local.accepts(target)
}
