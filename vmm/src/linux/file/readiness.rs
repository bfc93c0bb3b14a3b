//! What every kind of file is ready for, what its last close does, and which host descriptors blocked threads wait for.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::epoll::Looked;
use super::local::{READABLE, Side, WRITABLE};
use super::{File, FileId, Files, PollEvents, Readiness, View};
use crate::linux::thread::{State, Tid};
use crate::linux::{Kernel, MonotonicNs, WaitFor};

/// Regular files and directories are always ready (`poll(2)`).
const ALWAYS_READY: Readiness = Readiness::of(PollEvents::IN.union(PollEvents::OUT).union(PollEvents::RDNORM).union(PollEvents::WRNORM));

impl File {
    /// Whether it may be a member of an epoll set: EPERM for what is always ready.
    #[must_use]
    pub const fn pollable(&self) -> bool {
        !matches!(self, Self::Host(_) | Self::Special(_))
    }
}

impl Files {
    /// What a file is ready for now; NVAL for one that has gone.
    #[must_use]
    pub fn readiness(&self, id: FileId, view: &View) -> Readiness {
        self.look(id, view, &mut Looked::new())
    }

    pub(super) fn look(&self, id: FileId, view: &View, looked: &mut Looked) -> Readiness {
        let Ok(slot) = self.get(id) else { return Readiness::of(PollEvents::NVAL) };
        match &slot.file {
            File::Host(_) | File::Special(_) => ALWAYS_READY,
            File::Console(console) => console.readiness(),
            File::Pipe(pipe) => self.channels.get(pipe.channel).map_or(Readiness::of(PollEvents::ERR), |channel| pipe.readiness(channel)),
            File::Pair(end) => self.pair_readiness(end),
            File::Stream(stream) => self.pair_readiness(&stream.end),
            File::Event(event) => event.readiness(),
            File::Timer(timer) => timer.readiness(view.now),
            File::Signal(signals) => signals.readiness(view.pending_signals),
            File::Epoll(set) => self.epoll_readiness(id, set, view, looked),
            File::Listener(listener) => listener.readiness(),
            File::Socket(socket) => socket.readiness(),
        }
    }

    fn pair_readiness(&self, end: &super::local::PairEnd) -> Readiness {
        match (self.channels.get(end.incoming), self.channels.get(end.outgoing)) {
            (Ok(incoming), Ok(outgoing)) => end.readiness(incoming, outgoing),
            // An end keeps both of its channels alive.
            _ => Readiness::of(PollEvents::ERR | PollEvents::HUP),
        }
    }

    /// Whether a wait for any of these events of these files is over, also because a file has gone. Who waits to read is woken by
    /// errors and hang-ups, who waits to write by errors; who waits for something else (select's third set) by nothing else.
    #[must_use]
    pub fn any_ready(&self, files: &[(FileId, PollEvents)], view: &View) -> bool {
        let mut looked = Looked::new();
        files.iter().any(|(id, wanted)| {
            let mut ends = *wanted | PollEvents::NVAL;
            ends.set(PollEvents::ERR, ends.intersects(READABLE | WRITABLE | PollEvents::ERR));
            ends.set(PollEvents::HUP, ends.intersects(READABLE | PollEvents::HUP));
            self.look(*id, view, &mut looked).events.intersects(ends)
        })
    }

    /// When the next timerfd becomes readable, if one is armed and not yet readable.
    #[must_use]
    pub fn next_timer(&self, now: MonotonicNs) -> Option<MonotonicNs> {
        self.iter().filter_map(|(_, slot)| if let File::Timer(timer) = &slot.file { timer.next(now) } else { None }).min()
    }

    /// A fork of a snapshot begins: host sockets that carry connections stay with the snapshot.
    pub fn after_fork(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            if let File::Socket(socket) = &mut slot.file {
                socket.after_fork();
            } else if let File::Host(file) = &mut slot.file {
                file.after_fork();
            }
        }
    }

    /// The last descriptor of a file has gone.
    pub(super) fn closed(&mut self, file: File) {
        match file {
            File::Pipe(pipe) => {
                self.channels.tell(pipe.channel);
                match pipe.side {
                    Side::Reader => self.channels.drop_reader(pipe.channel),
                    Side::Writer => self.channels.drop_writer(pipe.channel),
                }
            }
            File::Pair(end) => self.close_pair(&end),
            File::Stream(stream) => self.close_pair(&stream.end),
            File::Listener(listener) => self.refuse_queue(listener.queue, &listener.base),
            File::Special(file) => {
                if let Some(id) = file.memory() {
                    self.shm.close(id);
                }
            }
            File::Host(_) | File::Console(_) | File::Event(_) | File::Timer(_) | File::Signal(_) | File::Epoll(_) | File::Socket(_) => {}
        }
    }

    /// A file's counters, for its last look back.
    pub(super) fn counters(&self, id: FileId) -> Readiness {
        // Only signalfds and timerfds depend on who looks when, and only in whether the last event counts as seen.
        self.host_counters(id).unwrap_or_else(|| self.readiness(id, &View { now: 0, pending_signals: 0 }))
    }

    /// The counters of a host descriptor, without asking the host.
    fn host_counters(&self, id: FileId) -> Option<Readiness> {
        match &self.get(id).ok()?.file {
            File::Socket(socket) => Some(Readiness { events: PollEvents::empty(), arrivals: socket.reads, room: socket.stalls, ends: 0 }),
            File::Console(console) => Some(console.counters()),
            _ => None,
        }
    }

    fn host_polls_of(&self, id: FileId, events: PollEvents, seen: &mut Vec<FileId>, polls: &mut Vec<(Arc<OwnedFd>, PollEvents)>) {
        match self.get(id).map(|slot| &slot.file) {
            Ok(File::Socket(socket)) => polls.extend(socket.host.clone().map(|host| (host, events))),
            Ok(File::Console(console)) if console.waits() => polls.push((Arc::clone(console.descriptor()), events)),
            Ok(File::Epoll(set)) if !seen.contains(&id) => {
                seen.push(id);
                for (member, events) in set.awaited(|member| self.host_counters(member)) {
                    self.host_polls_of(member, events, seen, polls);
                }
            }
            _ => {}
        }
    }
}

impl Kernel {
    /// What the readiness of files depends on besides the files, for this thread.
    #[must_use]
    pub fn view(&self, tid: Tid) -> View {
        View { now: self.clock.monotonic(), pending_signals: self.pending_signals(tid) }
    }

    /// The host descriptors that blocked threads wait for, directly or through epoll sets, so that the run loop can poll them.
    /// An event on one of them ends no wait by itself: look at the blocked threads' files again.
    #[must_use]
    pub fn host_polls(&self) -> Vec<(Arc<OwnedFd>, PollEvents)> {
        let mut polls = Vec::new();
        for thread in self.threads.iter() {
            if let State::Blocked(blocked) = &thread.state
                && let WaitFor::Files(files) = &blocked.wait.on
            {
                let mut seen = Vec::new();
                for (id, events) in files {
                    self.files.host_polls_of(*id, *events, &mut seen, &mut polls);
                }
            }
        }
        polls
    }
}
