//! The guest's standard input, output and error: the host's descriptors 0, 1 and 2, duplicated, so that closing one in the
//! guest closes nothing of ours. The VMM's thread never waits in a host call here: what would block becomes a wait for the
//! descriptor's readiness. (Only a write to a terminal that the user has stopped can hold it, until the next signal.)

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FileType;
use rustix::io::ReadWriteFlags;
use rustix::time::Timespec;

use super::attributes::Attributes;
use super::{Errno, PollEvents, Readiness};
use crate::limits::RW_BYTES_MAX;
use crate::memory::{GuestMemory, Segment};

/// Bytes that a pipe surely takes once it is writable at all (PIPE_BUF).
const PIPE_BUF: u64 = 4096;
/// "The current offset" to preadv2 and pwritev2.
const CURRENT: u64 = u64::MAX;

/// One of the three.
#[derive(Debug, Clone)]
pub struct Console {
    descriptor: Arc<OwnedFd>,
    waits: bool,
    /// Counts reads, and writes that found no room: what an edge-triggered watcher of a host descriptor goes by.
    reads: u64,
    stalls: u64,
}

impl Console {
    /// Standard stream `number` (0, 1 or 2) of this process; `None` where that is closed.
    #[must_use]
    pub fn standard(number: u8) -> Option<Self> {
        let stream: BorrowedFd<'static> = match number {
            0 => rustix::stdio::stdin(),
            1 => rustix::stdio::stdout(),
            _ => rustix::stdio::stderr(),
        };
        rustix::io::fcntl_dupfd_cloexec(stream, 3).ok().map(Self::new)
    }

    /// A console on any host descriptor.
    #[must_use]
    pub fn new(descriptor: OwnedFd) -> Self {
        let kind = rustix::fs::fstat(&descriptor).map_or(FileType::Unknown, |status| FileType::from_raw_mode(status.st_mode));
        let waits = match kind {
            FileType::RegularFile | FileType::BlockDevice | FileType::Directory => false,
            FileType::CharacterDevice => rustix::termios::isatty(&descriptor),
            _ => true,
        };
        Self { descriptor: Arc::new(descriptor), waits, reads: 0, stalls: 0 }
    }

    /// The access mode that the host's descriptor has (O_RDONLY, O_WRONLY or O_RDWR).
    #[must_use]
    pub fn access_mode(&self) -> u32 {
        let flags = rustix::fs::fcntl_getfl(&self.descriptor).map_or(0, |flags| flags.bits());
        flags & linux_raw_sys::general::O_ACCMODE
    }

    /// The host's descriptor, for the run loop to poll.
    #[must_use]
    pub const fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }

    /// Whether reading or writing may have to wait (terminals, pipes, sockets).
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.waits
    }

    /// Its counters, without asking the host.
    #[must_use]
    pub const fn counters(&self) -> Readiness {
        Readiness { events: PollEvents::empty(), arrivals: self.reads, room: self.stalls, ends: 0 }
    }

    /// What it is ready for now.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let wanted = PollFlags::IN | PollFlags::OUT | PollFlags::PRI | PollFlags::RDHUP;
        let mut polled = [PollFd::from_borrowed_fd(self.descriptor.as_fd(), wanted)];
        let events = match poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) => PollEvents::from_bits_truncate(u32::from(polled[0].revents().bits())),
            Err(_) => PollEvents::empty(),
        };
        Readiness { events, ..self.counters() }
    }

    fn is_ready(&self, events: PollEvents) -> bool {
        self.readiness().events.intersects(events | PollEvents::HUP | PollEvents::ERR)
    }

    /// Read into guest memory.
    ///
    /// # Errors
    ///
    /// EAGAIN where the call would wait; otherwise as `readv(2)`.
    pub fn read(&mut self, memory: &GuestMemory, segments: &[Segment]) -> Result<usize, Errno> {
        self.reads = self.reads.wrapping_add(1);
        if self.waits && !self.is_ready(PollEvents::IN) {
            return Err(Errno::AGAIN);
        }
        memory.with_writable(segments, RW_BYTES_MAX, |slices| {
            // Somebody else may empty the pipe between poll and read: RWF_NOWAIT where the file knows it.
            match rustix::io::preadv2(&self.descriptor, slices, CURRENT, ReadWriteFlags::NOWAIT) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => again(rustix::io::readv(&self.descriptor, slices)),
                answer => again(answer),
            }
        })
    }

    /// Write guest memory beginning `skip` bytes into the segments; may write less than all.
    ///
    /// # Errors
    ///
    /// EAGAIN where the call would wait; otherwise as `writev(2)`.
    pub fn write(&mut self, memory: &GuestMemory, segments: &[Segment], skip: u64) -> Result<usize, Errno> {
        let most = if self.waits { PIPE_BUF } else { RW_BYTES_MAX };
        if self.waits && !self.is_ready(PollEvents::OUT) {
            self.stalls = self.stalls.wrapping_add(1);
            return Err(Errno::AGAIN);
        }
        let mut skip = skip;
        let rest: Vec<Segment> = segments
            .iter()
            .filter_map(|segment| {
                let cut = skip.min(segment.length);
                skip -= cut;
                (segment.length > cut).then(|| Segment { address: segment.address.wrapping_add(cut), length: segment.length - cut })
            })
            .collect();
        memory.with_readable(&rest, most, |slices| again(rustix::io::writev(&self.descriptor, slices)))
    }

    /// Write bytes of ours; may write less than all.
    ///
    /// # Errors
    ///
    /// As [`Console::write`].
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        if self.waits && !self.is_ready(PollEvents::OUT) {
            self.stalls = self.stalls.wrapping_add(1);
            return Err(Errno::AGAIN);
        }
        let most = if self.waits { PIPE_BUF as usize } else { bytes.len() };
        again(rustix::io::write(&self.descriptor, &bytes[..most.min(bytes.len())]))
    }

    /// Its attributes, as the host has them.
    ///
    /// # Errors
    ///
    /// As `fstat(2)`.
    pub fn attributes(&self) -> Result<Attributes, Errno> {
        super::host::attributes_of(&self.descriptor)
    }
}

/// An interrupted call has done nothing yet: look again when the descriptor is ready.
fn again(answer: Result<usize, Errno>) -> Result<usize, Errno> {
    answer.map_err(|errno| if errno == Errno::INTR { Errno::AGAIN } else { errno })
}
