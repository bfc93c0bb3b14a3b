//! Byte channels: the buffer of a pipe, of one direction of a socketpair, and of one direction of a client stream.
//!
//! Invariants: `data` is longer than `capacity` only by one message or by what [`Channel::push_all`] was asked to take whole;
//! the counters only grow; `room` moves when a full channel becomes writable again (on a talkative one with every
//! read), `arrivals` with every piece of data,
//! `ends` when a side goes away; a channel lives while it has a reader or a writer, or the host
//! holds it.

use std::collections::VecDeque;

use super::Errno;
use crate::clone_in_place::clone_in_place;
use crate::limits::CHANNEL_MESSAGES_MAX;

/// The number of a channel in [`Channels`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(u32);

/// One direction of bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Channel {
    /// Bytes on their way.
    pub data: VecDeque<u8>,
    /// Most bytes it holds.
    pub capacity: usize,
    /// It is reported writable while it holds at most this many bytes.
    pub low_water: usize,
    /// Lengths of the messages in `data`, oldest first, for datagram and packet kinds; empty for byte streams.
    pub messages: VecDeque<u32>,
    /// How many can still read.
    pub readers: u32,
    /// How many can still write.
    pub writers: u32,
    /// Each piece that was written counts as room that appeared when it has been read, as unix sockets tell their writers.
    pub talkative: bool,
    /// What is left of each piece in a talkative channel of bytes, oldest first.
    pieces: VecDeque<u32>,
    /// The host holds one side by this channel's id: it stays even when both sides have ended.
    pub held: bool,
    /// An end that has shut down its writing still counts by it: it stays until that end closes.
    pub kept: bool,
    /// The connection whose reading side it is has been accepted.
    pub accepted: bool,
    /// The reader takes nothing more (`shutdown(SHUT_RD)` of a unix socket), though it may still read what is here.
    pub refused: bool,
    /// Counts arrivals of data.
    pub arrivals: u64,
    /// Counts times it became writable again.
    pub room: u64,
    /// Counts sides that went away or were shut down.
    pub ends: u64,
}

impl Channel {
    /// Bytes that may still be written.
    #[must_use]
    pub fn space(&self) -> usize {
        self.capacity.saturating_sub(self.data.len())
    }

    /// Whether `poll(2)` calls it writable.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.data.len() <= self.low_water && self.messages.len() < CHANNEL_MESSAGES_MAX
    }

    /// Whether nobody takes what is written.
    #[must_use]
    pub const fn deaf(&self) -> bool {
        self.readers == 0 || self.refused
    }

    /// Append what fits; returns how many bytes that was.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.space());
        self.push_all(bytes.get(..count).unwrap_or_default());
        count
    }

    /// Append everything, whatever the capacity; the caller has bounded it.
    pub fn push_all(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.data.extend(bytes);
            self.arrivals += 1;
            if self.talkative {
                self.pieces.push_back(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            }
        }
    }

    /// Append one message, which may be empty. As on Linux it is taken whole whenever the channel is not yet full.
    ///
    /// # Errors
    ///
    /// EAGAIN where the channel is full, EMSGSIZE where the message could never fit.
    pub fn push_message(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= self.capacity).ok_or(Errno::MSGSIZE)?;
        if !self.writable() {
            return Err(Errno::AGAIN);
        }
        self.data.extend(bytes);
        self.messages.push_back(length);
        self.arrivals += 1;
        Ok(())
    }

    /// The first `most` bytes as two pieces, left where they are.
    #[must_use]
    pub fn front(&self, most: usize) -> (&[u8], &[u8]) {
        let (front, back) = self.data.as_slices();
        let first = front.len().min(most);
        let second = back.len().min(most - first);
        (front.get(..first).unwrap_or_default(), back.get(..second).unwrap_or_default())
    }

    /// The first `most` bytes, left where they are.
    #[must_use]
    pub fn peek(&self, most: usize) -> Vec<u8> {
        let (front, back) = self.front(most);
        [front, back].concat()
    }

    /// Drop the first `count` bytes: they have been read.
    pub fn consume(&mut self, count: usize) {
        let was_writable = self.writable();
        let count = count.min(self.data.len());
        self.data.drain(..count);
        let finished = self.finish_pieces(count);
        self.gave_room(was_writable && !finished);
    }

    /// Take `count` bytes off the pieces; answers whether one of them has been read to its end.
    fn finish_pieces(&mut self, count: usize) -> bool {
        let mut left = count;
        let mut finished = false;
        while let Some(piece) = self.pieces.front_mut() {
            let taken = left.min(*piece as usize);
            left -= taken;
            *piece -= taken as u32;
            if *piece > 0 {
                break;
            }
            self.pieces.pop_front();
            finished = true;
        }
        finished
    }

    /// Drop the oldest message: it has been read.
    pub fn consume_message(&mut self) {
        let was_writable = self.writable();
        let length = self.messages.pop_front().unwrap_or(0) as usize;
        self.data.drain(..length.min(self.data.len()));
        self.gave_room(was_writable && !self.talkative);
    }

    /// Change how much it holds (F_SETPIPE_SZ, SO_SNDBUF).
    pub fn resize(&mut self, capacity: usize, low_water: usize) {
        let was_writable = self.writable();
        self.capacity = capacity;
        self.low_water = low_water;
        self.gave_room(was_writable);
    }

    fn gave_room(&mut self, was_writable: bool) {
        if !was_writable && self.writable() {
            self.room += 1;
        }
    }
}

/// The arena of channels.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Channels {
    slots: Vec<Option<Channel>>,
}

clone_in_place!(Channels {} lists { slots });

impl Channels {
    /// A new channel with one reader and one writer, which counts as writable while it holds at most `low_water` bytes.
    pub fn add(&mut self, capacity: usize, low_water: usize) -> ChannelId {
        let channel = Channel { capacity, low_water, readers: 1, writers: 1, ..Channel::default() };
        let index = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[index] = Some(channel);
        // The arena is bounded by FILES_MAX descriptions and the listeners' queues, far below 2^32.
        ChannelId(index as u32)
    }

    /// The channel with this id.
    ///
    /// # Errors
    ///
    /// EBADF where it has gone.
    pub fn get(&self, id: ChannelId) -> Result<&Channel, Errno> {
        self.slots.get(id.0 as usize).and_then(Option::as_ref).ok_or(Errno::BADF)
    }

    /// As [`Channels::get`], to change it.
    ///
    /// # Errors
    ///
    /// EBADF where it has gone.
    pub fn get_mut(&mut self, id: ChannelId) -> Result<&mut Channel, Errno> {
        self.slots.get_mut(id.0 as usize).and_then(Option::as_mut).ok_or(Errno::BADF)
    }

    /// One more description reads it.
    pub fn add_reader(&mut self, id: ChannelId) {
        if let Ok(channel) = self.get_mut(id) {
            channel.readers = channel.readers.saturating_add(1);
        }
    }

    /// One more description writes it.
    pub fn add_writer(&mut self, id: ChannelId) {
        if let Ok(channel) = self.get_mut(id) {
            channel.writers = channel.writers.saturating_add(1);
        }
    }

    /// Whoever watches this channel is woken: a side went away or was shut down.
    pub fn tell(&mut self, id: ChannelId) {
        if let Ok(channel) = self.get_mut(id) {
            channel.ends += 1;
        }
    }

    /// One reader fewer. Without readers the bytes are dropped; without readers and writers the channel goes. Whether the writers
    /// hear of it is up to the caller ([`Channels::tell`]).
    pub fn drop_reader(&mut self, id: ChannelId) {
        if let Ok(channel) = self.get_mut(id) {
            channel.readers = channel.readers.saturating_sub(1);
            if channel.readers == 0 {
                let was_writable = channel.writable();
                channel.data = VecDeque::new();
                channel.messages = VecDeque::new();
                channel.pieces = VecDeque::new();
                channel.gave_room(was_writable);
            }
        }
        self.collect(id);
    }

    /// One writer fewer: the reader will see end of file behind what is buffered, and hears of it through [`Channels::tell`].
    pub fn drop_writer(&mut self, id: ChannelId) {
        if let Ok(channel) = self.get_mut(id) {
            channel.writers = channel.writers.saturating_sub(1);
        }
        self.collect(id);
    }

    /// An end that had shut down its writing closes.
    pub fn let_go(&mut self, id: ChannelId) {
        if let Ok(channel) = self.get_mut(id) {
            channel.kept = false;
        }
        self.collect(id);
    }

    fn collect(&mut self, id: ChannelId) {
        if let Some(slot) = self.slots.get_mut(id.0 as usize)
            && slot.as_ref().is_some_and(|channel| channel.readers == 0 && channel.writers == 0 && !channel.held && !channel.kept)
        {
            *slot = None;
        }
        while let Some(None) = self.slots.last() {
            self.slots.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_counts_only_when_a_full_channel_becomes_writable_again() {
        let mut channels = Channels::default();
        let id = channels.add(100, 60);
        let channel = channels.get_mut(id).expect("channel");
        assert_eq!(channel.push(&[1; 200]), 100);
        assert!(!channel.writable());
        channel.consume(20);
        assert_eq!((channel.room, channel.writable()), (0, false));
        channel.consume(20);
        assert_eq!((channel.room, channel.writable()), (1, true));
        channel.consume(20);
        assert_eq!(channel.room, 1);
    }

    #[test]
    fn messages_keep_their_bounds_and_a_full_channel_says_so() {
        let mut channels = Channels::default();
        let id = channels.add(10, 9);
        let channel = channels.get_mut(id).expect("channel");
        assert_eq!(channel.push_message(&[0; 11]), Err(Errno::MSGSIZE));
        channel.push_message(b"four").expect("room");
        channel.push_message(b"").expect("room");
        channel.push_message(b"seven!!").expect("the last one may exceed the capacity");
        assert_eq!(channel.push_message(b""), Err(Errno::AGAIN));
        channel.consume_message();
        assert_eq!((channel.messages.front(), channel.peek(3)), (Some(&0), b"sev".to_vec()));
    }

    #[test]
    fn a_channel_goes_with_its_last_side() {
        let mut channels = Channels::default();
        let id = channels.add(10, 9);
        channels.drop_reader(id);
        assert!(channels.get(id).is_ok_and(Channel::deaf));
        channels.drop_writer(id);
        assert_eq!(channels.get(id).err(), Some(Errno::BADF));
        assert_eq!(channels, Channels::default());
    }
}
