//! A client's connection: its bytes in and out, without blocking.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use crate::linux::file::FileId;
use crate::linux::file::stream_host::PeerAddress;

/// How much of a body is waited for before a VM is given to the request, bytes; the rest is streamed.
pub(super) const REQUEST_BUFFER: usize = 1 << 20;
/// Most bytes read from a socket at once.
const READ_BYTES: usize = 64 << 10;
/// Most bytes that are thrown away so that a response arrives: what a host's receive buffer holds at most by default.
const UNREAD_BYTES_MAX: usize = 6 << 20;

/// What reading or writing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Something moved.
    Some,
    /// Nothing can be moved now.
    WouldBlock,
    /// The other side has ended, or the connection is broken.
    Closed,
}

/// One accepted connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) peer: PeerAddress,
    /// The guest's listener that it is for.
    pub(super) listener: FileId,
    /// Bytes read and not yet used.
    pub(super) input: Vec<u8>,
    /// Bytes to be written.
    pub(super) output: Vec<u8>,
    /// The host moment after which it is given up, nanoseconds.
    pub(super) expires: u64,
    /// `100 Continue` has been sent.
    pub(super) continued: bool,
    /// The client has ended its side.
    pub(super) ended: bool,
}

impl Connection {
    /// Read what is there.
    pub(super) fn receive(&mut self) -> Progress {
        let start = self.input.len();
        self.input.resize(start + READ_BYTES, 0);
        let result = rustix::net::recv(&self.socket, &mut self.input[start..], RecvFlags::DONTWAIT);
        let (count, progress) = match result {
            Ok((0, _)) => {
                self.ended = true;
                (0, Progress::Closed)
            }
            Ok((count, _)) => (count, Progress::Some),
            Err(Errno::AGAIN | Errno::INTR) => (0, Progress::WouldBlock),
            Err(_) => {
                self.ended = true;
                (0, Progress::Closed)
            }
        };
        self.input.truncate(start + count);
        progress
    }

    /// Write what can be written of the output.
    pub(super) fn send(&mut self) -> Progress {
        let mut sent = 0;
        let progress = loop {
            if sent == self.output.len() {
                break Progress::Some;
            }
            match rustix::net::send(&self.socket, &self.output[sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break Progress::WouldBlock,
                Err(_) => break Progress::Closed,
            }
        };
        self.output.drain(..sent);
        progress
    }

    /// Close it so that what was sent arrives: unread bytes of the client at the close would make TCP throw the response away.
    pub(super) fn close(mut self) {
        // One cheap question where a receive would prepare a buffer: nearly always the request was all that came.
        if self.ended || rustix::io::ioctl_fionread(&self.socket).unwrap_or(0) == 0 {
            return;
        }
        // The client learns first that nobody will read on.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        self.input.clear();
        for _ in 0..UNREAD_BYTES_MAX / READ_BYTES {
            if self.receive() != Progress::Some {
                break;
            }
            self.input.clear();
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
