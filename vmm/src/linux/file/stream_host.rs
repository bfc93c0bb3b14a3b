//! The host's end of client streams: what `serve` and the warm-up do in a client's place, without any socket.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::channel::ChannelId;
use super::socket_address::{Address, Family};
use super::{Errno, File, FileId, Files, PollEvents};
use crate::linux::Kernel;
use crate::linux::WaitFor;
use crate::linux::thread::State;

/// Who connects, as `accept` and `getpeername` show it.
pub type PeerAddress = Address;

/// A socket that listens, or has been bound to do so.
#[derive(Debug, Clone)]
pub struct ListenerInfo {
    /// For [`Kernel::connect_stream`].
    pub id: FileId,
    /// Its family.
    pub family: Family,
    /// Where it listens.
    pub address: Address,
    /// Whether `listen(2)` has been called.
    pub listening: bool,
    /// As given to `listen(2)`.
    pub backlog: u32,
    /// The host socket that is bound to the address.
    pub host: Option<Arc<OwnedFd>>,
}

/// An address that the guest was allowed to listen on, but that the host would not bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindFailure {
    /// The address.
    pub address: Address,
    /// Why: usually EADDRINUSE or EACCES.
    pub errno: Errno,
}

/// The host's end of a client stream: it writes `incoming` and reads `outgoing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamHandle {
    /// What the guest reads.
    pub incoming: ChannelId,
    /// What the guest writes.
    pub outgoing: ChannelId,
}

/// What has become of a client stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamStatus {
    /// The guest has accepted it.
    pub accepted: bool,
    /// All descriptors of the guest's end are closed (or its listener is, before it was accepted).
    pub guest_closed: bool,
    /// The guest will write nothing more.
    pub guest_finished: bool,
    /// Bytes that the guest has written and the host has not taken.
    pub output_len: usize,
    /// Bytes that the host has pushed and the guest has not read.
    pub input_len: usize,
}

/// In which kind of call a program waits for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitKind {
    /// epoll_wait and relatives.
    Epoll,
    /// poll, ppoll.
    Poll,
    /// select, pselect6.
    Select,
    /// accept, accept4.
    Accept,
}

impl WaitKind {
    /// The word for start-up lines and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Epoll => "epoll",
            Self::Poll => "poll",
            Self::Select => "select",
            Self::Accept => "accept",
        }
    }

    fn of_call(number: usize) -> Option<Self> {
        use linux_raw_sys::general as nr;
        match u32::try_from(number).ok()? {
            nr::__NR_epoll_wait | nr::__NR_epoll_pwait | nr::__NR_epoll_pwait2 => Some(Self::Epoll),
            nr::__NR_poll | nr::__NR_ppoll => Some(Self::Poll),
            nr::__NR_select | nr::__NR_pselect6 => Some(Self::Select),
            nr::__NR_accept | nr::__NR_accept4 => Some(Self::Accept),
            _ => None,
        }
    }
}

impl Kernel {
    /// All sockets that listen or could, in the order of their making.
    #[must_use]
    pub fn listeners(&self) -> Vec<ListenerInfo> {
        let info = |(id, slot): (FileId, &super::Slot)| match &slot.file {
            File::Listener(listener) => Some(ListenerInfo {
                id,
                family: listener.base.family,
                address: listener.base.local.clone(),
                listening: listener.listening,
                backlog: listener.backlog,
                host: listener.host.clone(),
            }),
            _ => None,
        };
        self.files.iter().filter_map(info).collect()
    }

    /// Addresses that the guest could not bind because the host refused.
    #[must_use]
    pub fn bind_failures(&self) -> &[BindFailure] {
        &self.files.bind_failures
    }

    /// Connect a client: the connection waits for an accept, and bytes may be pushed at once.
    ///
    /// # Errors
    ///
    /// ECONNREFUSED where the socket does not listen (any more), EAGAIN where its queue is full.
    pub fn connect_stream(&mut self, listener: FileId, peer: &PeerAddress) -> Result<StreamHandle, Errno> {
        let target = self.files.listener(listener)?.base.local.clone();
        let (outgoing, incoming) = self.files.enqueue(listener, peer, &target, false)?;
        self.files.channel(incoming)?.held = true;
        self.files.channel(outgoing)?.held = true;
        Ok(StreamHandle { incoming, outgoing })
    }

    /// The client sends bytes; returns how many were taken.
    pub fn stream_push(&mut self, handle: StreamHandle, bytes: &[u8]) -> usize {
        match self.files.channel(handle.incoming) {
            Ok(channel) if channel.readers > 0 => channel.push(bytes),
            // Nobody reads any more: the bytes vanish, as they do on a network.
            _ => bytes.len(),
        }
    }

    /// The client sends nothing more (FIN): the guest reads end of file behind what is buffered.
    pub fn stream_finish(&mut self, handle: StreamHandle) {
        if let Ok(channel) = self.files.channel(handle.incoming)
            && channel.writers > 0
        {
            channel.writers = 0;
            channel.ends += 1;
        }
    }

    /// Take at most `most` bytes of what the guest has written.
    pub fn stream_take(&mut self, handle: StreamHandle, most: usize) -> Vec<u8> {
        let Ok(channel) = self.files.channel(handle.outgoing) else { return Vec::new() };
        let bytes = channel.peek(most);
        channel.consume(bytes.len());
        bytes
    }

    /// At most `most` bytes of what the guest has written, in two pieces, left where they are.
    #[must_use]
    pub fn stream_front(&self, handle: StreamHandle, most: usize) -> (&[u8], &[u8]) {
        self.files.channels.get(handle.outgoing).map_or((&[], &[]), |channel| channel.front(most))
    }

    /// Drop `count` bytes of what the guest has written: they have been taken.
    pub fn stream_consume(&mut self, handle: StreamHandle, count: usize) {
        if let Ok(channel) = self.files.channel(handle.outgoing) {
            channel.consume(count);
        }
    }

    /// What has become of the stream.
    #[must_use]
    pub fn stream_status(&self, handle: StreamHandle) -> StreamStatus {
        let incoming = self.files.channels.get(handle.incoming).ok();
        let outgoing = self.files.channels.get(handle.outgoing).ok();
        let finished = outgoing.is_none_or(|channel| channel.writers == 0);
        let closed = finished && incoming.is_none_or(|channel| channel.readers == 0);
        StreamStatus {
            accepted: incoming.is_some_and(|channel| channel.accepted),
            guest_closed: closed,
            guest_finished: finished,
            output_len: outgoing.map_or(0, |channel| channel.data.len()),
            input_len: incoming.map_or(0, |channel| channel.data.len()),
        }
    }

    /// Whether all descriptors of the guest's end are closed; cheap enough for every turn of the run loop.
    #[must_use]
    pub fn stream_is_closed(&self, handle: StreamHandle) -> bool {
        let channels = &self.files.channels;
        channels.get(handle.outgoing).map_or(true, |channel| channel.writers == 0)
            && channels.get(handle.incoming).map_or(true, |channel| channel.readers == 0)
    }

    /// The host gives the connection up: a guest that still uses it sees a reset.
    pub fn stream_release(&mut self, handle: StreamHandle) {
        self.files.release_stream(handle);
    }

    /// In which call a thread waits for clients: its set contains a listening socket, directly or through nested epoll sets.
    #[must_use]
    pub fn waits_for_clients(&self) -> Option<WaitKind> {
        self.threads.iter().find_map(|thread| {
            let State::Blocked(blocked) = &thread.state else { return None };
            let WaitFor::Files(files) = &blocked.wait.on else { return None };
            let kind = WaitKind::of_call(blocked.number)?;
            let mut seen = Vec::new();
            files.iter().any(|(id, events)| self.files.watches_listener(*id, *events, &mut seen)).then_some(kind)
        })
    }
}

impl Files {
    fn release_stream(&mut self, handle: StreamHandle) {
        self.changes += 1;
        let mut errored = false;
        for slot in self.slots.iter_mut().flatten() {
            if let File::Stream(stream) = &mut slot.file
                && stream.end.incoming == handle.incoming
            {
                // RST after the client's FIN shows as EPIPE, before it as ECONNRESET (tcp_reset).
                let finished = self.channels.get(handle.incoming).is_ok_and(|channel| channel.writers == 0);
                stream.end.base.error = Some(if finished { Errno::PIPE } else { Errno::CONNRESET });
                stream.end.reset = true;
                errored = true;
            }
        }
        if !errored {
            self.reset_queued(handle);
        }
        for id in [handle.incoming, handle.outgoing] {
            self.channels.tell(id);
            if let Ok(channel) = self.channels.get_mut(id) {
                channel.held = false;
            }
        }
        self.channels.drop_writer(handle.incoming);
        self.channels.drop_reader(handle.outgoing);
    }

    /// A connection that is reset before it was accepted leaves the queue, as on Linux.
    fn reset_queued(&mut self, handle: StreamHandle) {
        for slot in self.slots.iter_mut().flatten() {
            if let File::Listener(listener) = &mut slot.file
                && let Some(index) = listener.queue.iter().position(|pending| pending.incoming == handle.incoming)
            {
                listener.queue.remove(index);
                self.channels.drop_reader(handle.incoming);
                self.channels.drop_writer(handle.outgoing);
                return;
            }
        }
    }

    fn watches_listener(&self, id: FileId, events: PollEvents, seen: &mut Vec<FileId>) -> bool {
        if !events.intersects(super::local::READABLE) || seen.contains(&id) {
            return false;
        }
        match self.get(id).map(|slot| &slot.file) {
            Ok(File::Listener(listener)) => listener.listening,
            Ok(File::Epoll(set)) => {
                seen.push(id);
                set.watched().any(|(member, events)| self.watches_listener(member, events, seen))
            }
            _ => false,
        }
    }
}
