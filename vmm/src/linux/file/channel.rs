//! Byte channels: the buffer of a pipe, of one direction of a socketpair, and of one direction of a client stream.
//!
//! Invariants: `data.len() <= capacity` except for one message that [`Channel::push_all`] was asked to take whole; the
//! counters only grow; a channel lives while it has a reader or a writer.

use std::collections::VecDeque;

use super::Errno;

/// The number of a channel in [`Channels`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(u32);

/// One direction of bytes.
#[derive(Debug, Clone, Default)]
pub struct Channel {
    /// Bytes on their way.
    pub data: VecDeque<u8>,
    /// Most bytes it holds.
    pub capacity: usize,
    /// Lengths of the messages in `data`, oldest first, for datagram and packet kinds; empty for byte streams.
    pub messages: VecDeque<u32>,
    /// Whether somebody can still read.
    pub readers: u32,
    /// Whether somebody can still write.
    pub writers: u32,
    /// Counts arrivals, including the writer's end.
    pub arrivals: u64,
    /// Counts times room appeared, including the reader's end.
    pub room: u64,
}

impl Channel {
    /// Bytes that may still be written.
    #[must_use]
    pub fn space(&self) -> usize {
        self.capacity.saturating_sub(self.data.len())
    }

    /// Append what fits; returns how many bytes that was.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.space());
        self.push_all(&bytes[..count]);
        count
    }

    /// Append everything, whatever the capacity; the caller has bounded it.
    pub fn push_all(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.data.extend(bytes);
            self.arrivals += 1;
        }
    }

    /// The first `most` bytes, left where they are.
    #[must_use]
    pub fn peek(&self, most: usize) -> Vec<u8> {
        let (front, back) = self.data.as_slices();
        let count = most.min(self.data.len());
        let mut bytes = Vec::with_capacity(count);
        bytes.extend_from_slice(&front[..front.len().min(count)]);
        let rest = count - bytes.len();
        bytes.extend_from_slice(&back[..rest]);
        bytes
    }

    /// Drop the first `count` bytes: they have been read.
    pub fn consume(&mut self, count: usize) {
        if count > 0 {
            self.data.drain(..count.min(self.data.len()));
            self.room += 1;
        }
    }
}

/// The arena of channels.
#[derive(Debug, Clone, Default)]
pub struct Channels {
    slots: Vec<Option<Channel>>,
}

impl Channels {
    /// A new channel with one reader and one writer.
    pub fn add(&mut self, capacity: usize) -> ChannelId {
        let channel = Channel { capacity, readers: 1, writers: 1, ..Channel::default() };
        let index = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[index] = Some(channel);
        // The arena is bounded by FILES_MAX descriptions with two channels each, far below 2^32.
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

    /// One reader fewer. Without readers the bytes are dropped; without readers and writers the channel goes.
    pub fn drop_reader(&mut self, id: ChannelId) {
        if let Ok(channel) = self.get_mut(id) {
            channel.readers = channel.readers.saturating_sub(1);
            channel.room += 1;
            if channel.readers == 0 {
                channel.data.clear();
                channel.messages.clear();
            }
        }
        self.collect(id);
    }

    /// One writer fewer: the reader will see end of file behind what is buffered.
    pub fn drop_writer(&mut self, id: ChannelId) {
        if let Ok(channel) = self.get_mut(id) {
            channel.writers = channel.writers.saturating_sub(1);
            channel.arrivals += 1;
        }
        self.collect(id);
    }

    fn collect(&mut self, id: ChannelId) {
        if let Some(slot) = self.slots.get_mut(id.0 as usize)
            && slot.as_ref().is_some_and(|channel| channel.readers == 0 && channel.writers == 0)
        {
            *slot = None;
        }
    }
}
