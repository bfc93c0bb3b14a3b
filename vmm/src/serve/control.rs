//! The socket to the supervisor: one JSON object a line, both ways (see `_vmm.pyi`).

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Mutex;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use serde::Deserialize;
use serde_json::json;

use crate::linux::clock::host_monotonic;
use crate::stats::ServeStats;

/// Lines that a guest can cause, in one window; more are counted and dropped.
const LINES_MAX: u32 = 20;
/// The window, nanoseconds.
const WINDOW_NS: u64 = 5_000_000_000;
/// Longest message, bytes.
const MESSAGE_MAX: usize = 2000;

/// What the supervisor asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum Command {
    /// Stop accepting, finish what runs.
    Drain,
    /// Report.
    Stats,
}

#[derive(Debug, Default)]
struct Window {
    since: u64,
    lines: u32,
    dropped: u32,
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Control {
    socket: OwnedFd,
    worker: u32,
    /// One window for what programs do, one for failures of ours: a noisy program must not hide them.
    windows: [Mutex<Window>; 2],
}

impl Control {
    pub(super) fn new(fd: BorrowedFd<'_>, worker: u32) -> Result<Self, Errno> {
        Ok(Self { socket: rustix::io::fcntl_dupfd_cloexec(fd, 3)?, worker, windows: Default::default() })
    }

    pub(super) const fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    fn send(&self, value: &serde_json::Value) {
        let line = format!("{value}\n");
        let mut rest = line.as_bytes();
        // A line is short; the supervisor reads. Where it does not, the line is lost rather than a request delayed.
        while !rest.is_empty() {
            match rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    pub(super) fn ready(&self) {
        self.send(&json!({"event": "ready", "worker": self.worker}));
    }

    pub(super) fn stats(&self, stats: &ServeStats) {
        self.send(&json!({"event": "stats", "worker": self.worker, "stats": stats}));
    }

    pub(super) fn drained(&self, stats: &ServeStats) {
        self.send(&json!({"event": "drained", "worker": self.worker, "stats": stats}));
    }

    /// The process is about to end.
    pub(super) fn failed(&self, message: &str) {
        self.send(&json!({"event": "failed", "worker": self.worker, "message": message}));
    }

    /// A line that a guest can cause.
    pub(super) fn limited(&self, event: &str, level: &str, message: &str) {
        let dropped = {
            let mut window = self.windows[usize::from(level == "error")].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let now = host_monotonic();
            if now.saturating_sub(window.since) > WINDOW_NS {
                *window = Window { since: now, lines: 0, dropped: window.dropped };
            }
            window.lines += 1;
            if window.lines > LINES_MAX {
                window.dropped += 1;
                return;
            }
            std::mem::take(&mut window.dropped)
        };
        let mut message: String =
            message.chars().map(|character| if character.is_control() { '?' } else { character }).take(MESSAGE_MAX).collect();
        if dropped > 0 {
            message.push_str(&format!(" ({dropped} lines like this were left out before)"));
        }
        self.send(&json!({"event": event, "level": level, "worker": self.worker, "message": message}));
    }

    /// Wait for the next command; `None` when the supervisor is gone.
    pub(super) fn receive(&self, buffer: &mut Vec<u8>) -> Option<Command> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', buffer) {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                if let Ok(command) = serde_json::from_slice(&line) {
                    return Some(command);
                }
                continue;
            }
            let mut piece = [0; 4096];
            match rustix::net::recv(&self.socket, &mut piece, RecvFlags::empty()) {
                Ok((0, _)) => return None,
                Ok((count, _)) => buffer.extend_from_slice(&piece[..count]),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }
}
