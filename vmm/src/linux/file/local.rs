//! Pipe, socketpair, eventfd, signalfd: objects that live in our Linux alone.

use super::channel::{Channel, ChannelId};
use super::socket_address::{Family, Kind};
use super::socket_base::SocketBase;
use super::{Errno, FileId, Files, PollEvents, Readiness};
use crate::limits::PIPE_ATOMIC_BYTES;

/// Which end of a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The end that is read.
    Reader,
    /// The end that is written.
    Writer,
}

/// One end of a pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipeEnd {
    /// The bytes between the ends.
    pub channel: ChannelId,
    /// Which end this is.
    pub side: Side,
}

impl PipeEnd {
    /// What `poll(2)` says of it.
    pub(super) fn readiness(&self, channel: &Channel) -> Readiness {
        let events = match self.side {
            Side::Reader => flag(!channel.data.is_empty(), READABLE) | flag(channel.writers == 0, PollEvents::HUP),
            Side::Writer => flag(channel.writable(), WRITABLE) | flag(channel.readers == 0, PollEvents::ERR),
        };
        // Each end hears only of its own side.
        let (arrivals, room) = if self.side == Side::Reader { (channel.arrivals, 0) } else { (0, channel.room) };
        Readiness { events, arrivals, room, ends: channel.ends }
    }
}

/// At how many bytes a pipe of this capacity stops being writable: there must be room for one atomic write.
#[must_use]
pub const fn pipe_low_water(capacity: usize) -> usize {
    capacity.saturating_sub(PIPE_ATOMIC_BYTES)
}

/// At how many queued bytes a stream socket stops being writable (`sk_stream_is_writeable`: free space at least half of what
/// is queued).
#[must_use]
pub const fn stream_low_water(capacity: usize) -> usize {
    capacity / 3 * 2
}

pub(super) const READABLE: PollEvents = PollEvents::IN.union(PollEvents::RDNORM);
pub(super) const WRITABLE: PollEvents = PollEvents::OUT.union(PollEvents::WRNORM);

pub(super) const fn flag(condition: bool, events: PollEvents) -> PollEvents {
    if condition { events } else { PollEvents::empty() }
}

/// One end of a socketpair, of a connection between two sockets of this VM, or (in a [`super::stream::Stream`]) of a
/// connection to a client of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairEnd {
    /// Addresses and options.
    pub base: SocketBase,
    /// What arrives.
    pub incoming: ChannelId,
    /// What is sent.
    pub outgoing: ChannelId,
    /// `shutdown(SHUT_RD)`.
    pub read_shut: bool,
    /// `shutdown(SHUT_WR)`, which has already dropped this end's share of `outgoing`.
    pub write_shut: bool,
    /// The connection was reset, or a datagram socket has learned that its peer is gone: nothing can be sent any more.
    pub reset: bool,
    /// Counts wake-ups of this end alone.
    pub nudges: u64,
}

impl PairEnd {
    /// An end that is open in both directions.
    #[must_use]
    pub const fn new(base: SocketBase, incoming: ChannelId, outgoing: ChannelId) -> Self {
        Self { base, incoming, outgoing, read_shut: false, write_shut: false, reset: false, nudges: 0 }
    }

    /// Whether messages keep their bounds.
    #[must_use]
    pub fn is_message(&self) -> bool {
        self.base.kind != Kind::Stream
    }

    /// Whether nothing more will arrive. A datagram socket never learns that its peer has gone.
    #[must_use]
    pub fn at_end(&self, incoming: &Channel) -> bool {
        self.read_shut || (self.base.kind != Kind::Datagram && (self.reset || incoming.writers == 0))
    }

    fn send_shut(&self, outgoing: &Channel) -> bool {
        // A unix socket sees at once that its peer has gone; a TCP socket only when an answer to what it sent comes back.
        let gone = self.base.family == Family::Unix && outgoing.deaf();
        self.write_shut || (self.base.kind != Kind::Datagram && (self.reset || gone))
    }

    /// What `poll(2)` says of it.
    pub(in crate::linux) fn readiness(&self, incoming: &Channel, outgoing: &Channel) -> Readiness {
        let waiting = if self.is_message() { !incoming.messages.is_empty() } else { !incoming.data.is_empty() };
        let (no_more, shut) = (self.at_end(incoming), self.send_shut(outgoing));
        let writable = if self.base.family == Family::Unix { outgoing.writable() } else { outgoing.writable() || shut };
        let events = flag(waiting || no_more, READABLE)
            | flag(no_more, PollEvents::RDHUP)
            | flag(no_more && shut, PollEvents::HUP)
            | flag(writable, WRITABLE)
            | flag(self.base.error.is_some(), PollEvents::ERR);
        let ends = incoming.ends.wrapping_add(outgoing.ends).wrapping_add(self.nudges);
        Readiness { events, arrivals: incoming.arrivals, room: outgoing.room, ends }
    }
}

impl Files {
    /// Two channels, as (incoming, outgoing) of one end of a pair; the other end has them the other way round.
    pub(in crate::linux) fn channel_pair(&mut self, family: Family, capacity: usize, low_water: usize) -> (ChannelId, ChannelId) {
        let ids = [0; 2].map(|_| self.channels.add(capacity, low_water));
        for id in ids {
            if let Ok(channel) = self.channels.get_mut(id) {
                channel.talkative = family == Family::Unix;
            }
        }
        (ids[0], ids[1])
    }

    /// `shutdown(2)` of a pair or client stream.
    ///
    /// # Errors
    ///
    /// ENOTSOCK for other files, ENOTCONN for a TCP connection that has ended in both directions.
    pub fn shut_file(&mut self, file: FileId, read: bool, write: bool) -> Result<(), Errno> {
        let end = self.get(file)?.file.pair().ok_or(Errno::NOTSOCK)?;
        let finished = self.channels.get(end.incoming).map_or(true, |channel| channel.writers == 0);
        let over = end.base.family != Family::Unix && (end.reset || (end.write_shut && finished));
        let (shut_read, shut_write) = (read && !over, write && !end.write_shut && !over);
        let (incoming, outgoing) = (end.incoming, end.outgoing);
        let unix = end.base.family == Family::Unix;
        let heard = if unix { end.base.kind != Kind::Datagram } else { shut_write };
        self.changes += 1;
        if let Some(end) = self.get_mut(file)?.file.pair_mut() {
            end.read_shut |= shut_read;
            end.write_shut |= shut_write;
            // Even a call that is refused wakes whoever watches the socket.
            end.nudges = end.nudges.wrapping_add(1);
        }
        if over {
            return Err(Errno::NOTCONN);
        }
        if shut_read
            && unix
            && let Ok(channel) = self.channels.get_mut(incoming)
        {
            channel.refused = true;
        }
        if heard {
            self.channels.tell(incoming);
            self.channels.tell(outgoing);
        }
        if shut_write {
            self.channel(outgoing)?.kept = true;
            self.channels.drop_writer(outgoing);
        }
        Ok(())
    }

    /// The last descriptor of a pair or client stream has gone. Unread bytes make it a reset for the other side.
    pub(super) fn close_pair(&mut self, end: &PairEnd) {
        let unread = self.channels.get(end.incoming).is_ok_and(|channel| !channel.data.is_empty());
        if end.base.kind != Kind::Datagram {
            if unread {
                self.reset_peer(end);
            }
            // A TCP socket that had already sent its FIN closes without another word.
            if unread || end.base.family == Family::Unix || !end.write_shut {
                self.channels.tell(end.incoming);
                self.channels.tell(end.outgoing);
            }
        }
        self.channels.drop_reader(end.incoming);
        if end.write_shut {
            self.channels.let_go(end.outgoing);
        } else {
            self.channels.drop_writer(end.outgoing);
        }
    }

    /// The other side of a connection learns that it was reset; behind a TCP FIN that shows as a broken pipe.
    pub(super) fn reset_peer(&mut self, end: &PairEnd) {
        let errno = if end.base.family != Family::Unix && end.write_shut { Errno::PIPE } else { Errno::CONNRESET };
        for slot in self.slots.iter_mut().flatten() {
            if let Some(other) = slot.file.pair_mut()
                && other.incoming == end.outgoing
            {
                other.base.error = Some(errno);
                other.reset = true;
            }
        }
    }
}

/// eventfd (`eventfd(2)`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFd {
    /// The counter, at most `u64::MAX - 1`.
    pub count: u64,
    /// EFD_SEMAPHORE: a read takes 1.
    pub semaphore: bool,
    /// What the last writer that had to wait wants to add.
    refused: u64,
    arrivals: u64,
    room: u64,
}

impl EventFd {
    /// A counter that begins at `count`.
    #[must_use]
    pub const fn new(count: u64, semaphore: bool) -> Self {
        Self { count, semaphore, refused: 0, arrivals: 0, room: 0 }
    }

    /// Take the count, or 1 of it; `None` while it is 0.
    pub const fn take(&mut self) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let taken = if self.semaphore { 1 } else { self.count };
        self.count -= taken;
        self.room = self.room.wrapping_add(1);
        Some(taken)
    }

    /// Add to the count; `false` while that would overflow.
    ///
    /// # Errors
    ///
    /// EINVAL for `u64::MAX`.
    pub const fn add(&mut self, value: u64) -> Result<bool, Errno> {
        if value == u64::MAX {
            return Err(Errno::INVAL);
        }
        match self.count.checked_add(value) {
            Some(count) if count < u64::MAX => {
                self.count = count;
                self.arrivals = self.arrivals.wrapping_add(1);
                Ok(true)
            }
            _ => {
                self.refused = value;
                Ok(false)
            }
        }
    }

    /// Whether a writer has ever had to wait.
    #[must_use]
    pub const fn has_refused(&self) -> bool {
        self.refused > 0
    }

    /// What a writer that was refused waits for: room for its value, which POLLOUT (room for 1) does not promise.
    pub const ROOM_FOR_REFUSED: PollEvents = PollEvents::WRBAND;

    /// What `poll(2)` says of it.
    pub(super) fn readiness(&self) -> Readiness {
        let fits = self.refused > 0 && self.count.checked_add(self.refused).is_some_and(|count| count < u64::MAX);
        let events =
            flag(self.count > 0, PollEvents::IN) | flag(self.count < u64::MAX - 1, PollEvents::OUT) | flag(fits, Self::ROOM_FOR_REFUSED);
        Readiness { events, arrivals: self.arrivals, room: self.room, ends: 0 }
    }
}

/// signalfd (`signalfd(2)`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignalFd {
    /// The signals it takes, bit `n - 1` for signal `n`.
    pub mask: u64,
    /// How many signals were taken, so that the same signal arriving again is an edge.
    pub taken: u64,
}

impl SignalFd {
    /// What `poll(2)` says of it to a thread with these pending signals.
    pub(super) fn readiness(&self, pending: u64) -> Readiness {
        let waiting = pending & self.mask;
        // Any change of the set, and any read in between, must look like movement.
        let arrivals = waiting.wrapping_add(self.taken.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Readiness { events: flag(waiting != 0, PollEvents::IN), arrivals, room: 0, ends: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eventfd_counts_as_the_man_page_says() {
        let mut event = EventFd::new(0, false);
        assert_eq!(event.take(), None);
        assert_eq!(event.add(u64::MAX), Err(Errno::INVAL));
        assert_eq!(event.add(u64::MAX - 1), Ok(true));
        assert_eq!(event.readiness().events, PollEvents::IN);
        assert_eq!(event.add(1), Ok(false));
        assert_eq!(event.add(0), Ok(true));
        assert_eq!(event.take(), Some(u64::MAX - 1));
        assert_eq!(event.readiness().events - EventFd::ROOM_FOR_REFUSED, PollEvents::OUT);
    }

    #[test]
    fn a_semaphore_gives_one_at_a_time() {
        let mut event = EventFd::new(2, true);
        assert_eq!((event.take(), event.take(), event.take()), (Some(1), Some(1), None));
    }

    #[test]
    fn every_write_to_an_eventfd_is_an_edge() {
        let mut event = EventFd::new(1, false);
        let before = event.readiness().arrivals;
        assert_eq!(event.add(1), Ok(true));
        assert_ne!(event.readiness().arrivals, before);
    }

    #[test]
    fn a_signal_that_comes_again_after_a_read_is_an_edge() {
        let mut signals = SignalFd { mask: 0b110, taken: 0 };
        let first = signals.readiness(0b10);
        signals.taken += 1;
        let second = signals.readiness(0b10);
        assert_eq!(first.events, PollEvents::IN);
        assert_ne!(first.arrivals, second.arrivals);
        assert_eq!(signals.readiness(0b1).events, PollEvents::empty());
    }
}
