//! Open file descriptions: what a descriptor names, in one arena, so that copying the arena copies all of them.
//!
//! Everything but [`File::Host`] and [`File::Socket`] is plain data of ours; those two hold host descriptors, shared by
//! reference count between a snapshot and its forks (offsets are ours, so no two VMs share one).
//!
//! **Edge triggers.** Each file answers a [`Readiness`]: the events it has now and three counters, of what happened on its
//! reading side (bytes arrived), on its writing side (room appeared), and to all of it (the other side went away). An
//! edge-triggered epoll member reports when it is ready and a counter of its interest has moved since its last report.

pub mod attributes;
pub mod channel;
pub mod console;
pub mod epoll;
pub mod epoll_views;
pub mod host;
pub mod local;
pub mod local_timer;
pub mod ops;
mod ops_signal;
pub mod readiness;
pub mod shm;
pub mod socket;
pub mod socket_address;
pub mod socket_base;
pub mod socket_bind;
pub mod socket_connect;
mod socket_io;
pub mod socket_options;
mod socket_path;
pub mod special;
pub mod special_process;
pub mod special_text;
pub mod stream;
pub mod stream_host;
#[cfg(test)]
mod test_machine;
#[cfg(test)]
mod tests_local;
#[cfg(test)]
mod tests_socket;
#[cfg(test)]
mod tests_wait;

use bitflags::bitflags;

use super::Errno;
use super::fd_table::{Entry, Fd, FdTable};
use super::{Kernel, MonotonicNs};
use crate::clone_in_place::clone_in_place;
use crate::limits::FILES_MAX;
use channel::{Channel, ChannelId};

bitflags! {
    /// Poll and epoll events (same bits: `poll(2)`, `epoll_ctl(2)`), without epoll's mode bits.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct PollEvents: u32 {
        /// POLLIN.
        const IN = 0x1;
        /// POLLPRI.
        const PRI = 0x2;
        /// POLLOUT.
        const OUT = 0x4;
        /// POLLERR.
        const ERR = 0x8;
        /// POLLHUP.
        const HUP = 0x10;
        /// POLLNVAL.
        const NVAL = 0x20;
        /// POLLRDNORM.
        const RDNORM = 0x40;
        /// POLLRDBAND.
        const RDBAND = 0x80;
        /// POLLWRNORM.
        const WRNORM = 0x100;
        /// POLLWRBAND.
        const WRBAND = 0x200;
        /// POLLRDHUP.
        const RDHUP = 0x2000;
    }
}

/// What a file is ready for, and how often something happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// Ready now.
    pub events: PollEvents,
    /// Counts arrivals: data, connections.
    pub arrivals: u64,
    /// Counts room that appeared for writing.
    pub room: u64,
    /// Counts what concerns every watcher: the other side went away or was shut down.
    pub ends: u64,
}

impl Readiness {
    /// Ready for these events, and nothing ever changes.
    #[must_use]
    pub const fn of(events: PollEvents) -> Self {
        Self { events, arrivals: 0, room: 0, ends: 0 }
    }
}

/// What the readiness of a file depends on besides the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// The guest's CLOCK_MONOTONIC, for timerfds.
    pub now: MonotonicNs,
    /// Signals pending for the thread that looks, blocked ones too, for signalfds.
    pub pending_signals: u64,
}

/// The number of an open file description in [`Files`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub(super) u32);

impl FileId {
    /// The number, for what has to look like a kernel object's identity.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// The kinds of open files.
#[derive(Debug)]
pub enum File {
    /// A regular file, directory or device of the host, below a grant.
    Host(host::HostFile),
    /// A generated file or directory of /proc, /dev, /sys.
    Special(special::SpecialFile),
    /// The guest's standard input, output or error.
    Console(console::Console),
    /// One end of a pipe.
    Pipe(local::PipeEnd),
    /// One end of a socketpair, or a connection between two sockets of this VM.
    Pair(local::PairEnd),
    /// eventfd.
    Event(local::EventFd),
    /// timerfd.
    Timer(local_timer::TimerFd),
    /// signalfd.
    Signal(local::SignalFd),
    /// epoll.
    Epoll(epoll::EpollSet),
    /// A socket that listens for the host's clients, or has been bound to do so.
    Listener(stream::Listener),
    /// A client's connection.
    Stream(stream::Stream),
    /// An outgoing or datagram socket on a host socket, or one that is neither bound nor connected yet.
    Socket(socket::Socket),
}

impl Clone for File {
    fn clone(&self) -> Self {
        match self {
            Self::Host(file) => Self::Host(file.clone()),
            Self::Special(file) => Self::Special(file.clone()),
            Self::Console(file) => Self::Console(file.clone()),
            Self::Pipe(file) => Self::Pipe(file.clone()),
            Self::Pair(file) => Self::Pair(file.clone()),
            Self::Event(file) => Self::Event(file.clone()),
            Self::Timer(file) => Self::Timer(file.clone()),
            Self::Signal(file) => Self::Signal(file.clone()),
            Self::Epoll(file) => Self::Epoll(file.clone()),
            Self::Listener(file) => Self::Listener(file.clone()),
            Self::Stream(file) => Self::Stream(file.clone()),
            Self::Socket(file) => Self::Socket(file.clone()),
        }
    }

    /// Those with lists that grow in every request are assigned in place.
    fn clone_from(&mut self, source: &Self) {
        match (&mut *self, source) {
            (Self::Epoll(file), Self::Epoll(source)) => file.clone_from(source),
            (Self::Listener(file), Self::Listener(source)) => file.clone_from(source),
            (_, source) => *self = source.clone(),
        }
    }
}

impl File {
    /// The end of a socketpair or stream that it is, if it is one.
    #[must_use]
    pub const fn pair(&self) -> Option<&local::PairEnd> {
        match self {
            Self::Pair(end) => Some(end),
            Self::Stream(stream) => Some(&stream.end),
            _ => None,
        }
    }

    /// As [`File::pair`], to change it.
    pub const fn pair_mut(&mut self) -> Option<&mut local::PairEnd> {
        match self {
            Self::Pair(end) => Some(end),
            Self::Stream(stream) => Some(&mut stream.end),
            _ => None,
        }
    }

    /// What it has as a socket.
    ///
    /// # Errors
    ///
    /// ENOTSOCK.
    pub const fn socket(&self) -> Result<&socket_base::SocketBase, Errno> {
        match self {
            Self::Pair(end) => Ok(&end.base),
            Self::Stream(stream) => Ok(&stream.end.base),
            Self::Listener(listener) => Ok(&listener.base),
            Self::Socket(socket) => Ok(&socket.base),
            _ => Err(Errno::NOTSOCK),
        }
    }

    /// As [`File::socket`], to change it.
    ///
    /// # Errors
    ///
    /// ENOTSOCK.
    pub const fn socket_mut(&mut self) -> Result<&mut socket_base::SocketBase, Errno> {
        match self {
            Self::Pair(end) => Ok(&mut end.base),
            Self::Stream(stream) => Ok(&mut stream.end.base),
            Self::Listener(listener) => Ok(&mut listener.base),
            Self::Socket(socket) => Ok(&mut socket.base),
            _ => Err(Errno::NOTSOCK),
        }
    }
}

/// An open file description.
#[derive(Debug)]
pub struct Slot {
    references: u32,
    /// Access mode and status flags: O_RDONLY/O_WRONLY/O_RDWR, O_APPEND, O_NONBLOCK, O_DIRECT, O_ASYNC, O_NOATIME.
    pub flags: u32,
    /// What it is.
    pub file: File,
}

clone_in_place!(Slot { references, flags, file });

impl Slot {
    /// O_NONBLOCK.
    #[must_use]
    pub const fn nonblocking(&self) -> bool {
        self.flags & linux_raw_sys::general::O_NONBLOCK != 0
    }
}

/// The arena of open file descriptions, and of the byte channels that connect some of them.
#[derive(Debug, Default)]
pub struct Files {
    slots: Vec<Option<Slot>>,
    /// Buffers of pipes, socketpairs and streams.
    pub channels: channel::Channels,
    /// Files in /dev/shm.
    pub shm: shm::Shm,
    /// Counts every change that may end somebody's wait; the scheduler looks at blocked threads again when it moved.
    pub changes: u64,
    /// Addresses that the host would not bind, for the message of a program that never gets to listen.
    pub(super) bind_failures: Vec<stream_host::BindFailure>,
}

clone_in_place!(Files { channels, shm, changes, bind_failures } lists { slots });

impl Files {
    /// Add an open file description with one reference, owned by the caller until it installs or releases it; where there is no
    /// room for it, it is closed.
    ///
    /// # Errors
    ///
    /// ENFILE.
    pub fn add(&mut self, file: File, flags: u32) -> Result<FileId, Errno> {
        let slot = Slot { references: 1, flags, file };
        let index = match self.slots.iter().position(Option::is_none) {
            Some(index) => index,
            None if self.slots.len() < FILES_MAX => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => {
                self.closed(slot.file);
                return Err(Errno::NFILE);
            }
        };
        self.slots[index] = Some(slot);
        u32::try_from(index).map(FileId).map_err(|_| Errno::NFILE)
    }

    /// Whether one more can be added.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.slots.len() < FILES_MAX || self.slots.iter().any(Option::is_none)
    }

    /// Add two files that belong together, or neither.
    ///
    /// # Errors
    ///
    /// ENFILE.
    pub fn add_two(&mut self, first: (File, u32), second: (File, u32)) -> Result<(FileId, FileId), Errno> {
        let first = self.add(first.0, first.1);
        // The second one is added or closed even where the first one failed: its share of their channels must go.
        let second = self.add(second.0, second.1);
        match (first, second) {
            (Ok(first), Ok(second)) => Ok((first, second)),
            (first, second) => {
                first.into_iter().chain(second).for_each(|id| self.release(id));
                Err(Errno::NFILE)
            }
        }
    }

    /// The description behind an id. Ids held by descriptors, waits or epoll sets may have gone: EBADF.
    ///
    /// # Errors
    ///
    /// EBADF.
    pub fn get(&self, id: FileId) -> Result<&Slot, Errno> {
        self.slots.get(id.0 as usize).and_then(Option::as_ref).ok_or(Errno::BADF)
    }

    /// As [`Files::get`], to change it.
    ///
    /// # Errors
    ///
    /// EBADF.
    pub fn get_mut(&mut self, id: FileId) -> Result<&mut Slot, Errno> {
        self.slots.get_mut(id.0 as usize).and_then(Option::as_mut).ok_or(Errno::BADF)
    }

    /// One more descriptor names it (`dup`).
    pub fn retain(&mut self, id: FileId) {
        if let Ok(slot) = self.get_mut(id) {
            slot.references = slot.references.saturating_add(1);
        }
    }

    /// One descriptor fewer names it; the last one closes it: it leaves every epoll set, and its channels hear of it.
    pub fn release(&mut self, id: FileId) {
        let Ok(slot) = self.get_mut(id) else { return };
        slot.references -= 1;
        if slot.references > 0 {
            return;
        }
        let watched = self.slots.iter().flatten().any(|other| matches!(&other.file, File::Epoll(set) if set.watches(id)));
        if watched {
            let last = self.counters(id);
            for other in self.slots.iter_mut().flatten() {
                if let File::Epoll(set) = &mut other.file {
                    set.forget(id, last);
                }
            }
        }
        let Some(slot) = self.slots.get_mut(id.0 as usize).and_then(Option::take) else { return };
        self.changes += 1;
        self.closed(slot.file);
    }

    /// All descriptions.
    pub fn iter(&self) -> impl Iterator<Item = (FileId, &Slot)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| Some((FileId(u32::try_from(index).ok()?), slot.as_ref()?)))
    }

    /// The channel with this id.
    ///
    /// # Errors
    ///
    /// EBADF where it has gone.
    pub fn channel(&mut self, id: ChannelId) -> Result<&mut Channel, Errno> {
        self.changes += 1;
        self.channels.get_mut(id)
    }
}

impl Kernel {
    /// Give an open file description the lowest free number at or above `lowest`. The table takes over the caller's reference;
    /// on failure it is released.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn install_fd_from(&mut self, file: FileId, close_on_exec: bool, lowest: usize) -> Result<Fd, Errno> {
        let limit = usize::try_from(self.process.rlimits[linux_raw_sys::general::RLIMIT_NOFILE as usize].0).unwrap_or(usize::MAX);
        match self.process.fds.lowest_free(lowest, limit) {
            Ok(fd) => {
                self.process.fds.set(fd, Some(Entry { file, close_on_exec }));
                Ok(fd)
            }
            Err(errno) => {
                self.files.release(file);
                Err(errno)
            }
        }
    }

    /// As [`Kernel::install_fd_from`], from 0.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn install_fd(&mut self, file: FileId, close_on_exec: bool) -> Result<Fd, Errno> {
        self.install_fd_from(file, close_on_exec, 0)
    }

    /// Close a descriptor that a guest named.
    ///
    /// # Errors
    ///
    /// EBADF.
    pub fn close_fd(&mut self, fd: i32) -> Result<(), Errno> {
        let entry = self.process.fds.entry(fd)?;
        if let Ok(fd) = FdTable::chosen(fd, usize::MAX) {
            self.process.fds.set(fd, None);
        }
        self.files.release(entry.file);
        Ok(())
    }
}
