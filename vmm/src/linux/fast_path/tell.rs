//! What the fast path is told before the guest runs.

use zerocopy::{FromZeros, IntoBytes};

use linux_raw_sys::general::{
    __NR_accept, __NR_accept4, __NR_epoll_ctl, __NR_epoll_pwait, __NR_epoll_pwait2, __NR_epoll_wait, __NR_fcntl, __NR_futex,
    __NR_getpeername, __NR_getpid, __NR_getsockname, __NR_getsockopt, __NR_gettid, __NR_ioctl, __NR_poll, __NR_ppoll, __NR_read,
    __NR_readv, __NR_recvfrom, __NR_recvmsg, __NR_sched_yield, __NR_sendmsg, __NR_sendto, __NR_setsockopt, __NR_write, __NR_writev,
};

use super::{is_client, is_known};
use crate::fast_path::{
    ADDRESS_BYTES, ANSWERED_WORDS, Event, FastPath, INPUT_BYTES, Listener, MEMBERS, Member, OUTPUT_BYTES, POLLED, SEEN, SEEN_ARRIVALS,
    SEEN_ENDS, SEEN_ROOM, STREAM_TARGET, Set, State, Stream,
};
use crate::limits::{EPOLL_MEMBERS_MAX, EPOLL_MEMBERS_TOTAL_MAX};
use crate::linux::file::channel::Channel;
use crate::linux::file::epoll_views::MemberView;
use crate::linux::file::local::PairEnd;
use crate::linux::file::socket_address::{Address, Family};
use crate::linux::file::socket_base::SocketBase;
use crate::linux::file::stream_host::StreamHandle;
use crate::linux::file::{File, FileId, PollEvents, View};
use crate::linux::futex::FutexKey;
use crate::linux::thread::{State as ThreadState, Tid};
use crate::linux::{Errno, Kernel, WaitFor};
use crate::memory::GuestMemory;

/// The calls that can be answered in the guest.
const ANSWERED: [u64; ANSWERED_WORDS] = bitmap(&[
    __NR_read,
    __NR_write,
    __NR_poll,
    __NR_ppoll,
    __NR_ioctl,
    __NR_readv,
    __NR_writev,
    __NR_sched_yield,
    __NR_getpid,
    __NR_accept,
    __NR_sendto,
    __NR_recvfrom,
    __NR_sendmsg,
    __NR_recvmsg,
    __NR_getsockname,
    __NR_getpeername,
    __NR_setsockopt,
    __NR_getsockopt,
    __NR_fcntl,
    __NR_gettid,
    __NR_futex,
    __NR_epoll_wait,
    __NR_epoll_ctl,
    __NR_epoll_pwait,
    __NR_accept4,
    __NR_epoll_pwait2,
]);

const fn bitmap(numbers: &[u32]) -> [u64; ANSWERED_WORDS] {
    let mut words = [0; ANSWERED_WORDS];
    let mut index = 0;
    while index < numbers.len() {
        words[numbers[index] as usize / 64] |= 1 << (numbers[index] % 64);
        index += 1;
    }
    words
}

/// Let the fast path answer no calls until it is told again.
///
/// # Errors
///
/// EFAULT; never, as a guest cannot unmap the memory.
pub fn nothing(memory: &GuestMemory, fast: FastPath) -> Result<(), Errno> {
    memory.write(fast.answered(), &[0_u64; ANSWERED_WORDS])
}

impl Kernel {
    /// Tell the fast path of what thread `tid` may find while it answers this client. Answers whether there is anything to tell.
    ///
    /// # Errors
    ///
    /// EFAULT; never, as a guest cannot unmap the memory.
    pub fn tell_fast_path(&self, memory: &GuestMemory, fast: FastPath, tid: Tid, client: StreamHandle) -> Result<bool, Errno> {
        let Some(mut state) = self.fast_state(tid, client) else { return Ok(false) };
        state.space_end = memory.size();
        if let Ok(channel) = self.files.channels.get(client.incoming) {
            let (front, back) = channel.front(INPUT_BYTES);
            memory.write_bytes(fast.input(), front)?;
            memory.write_bytes(fast.input() + front.len() as u64, back)?;
        }
        memory.write_bytes(fast.state(), state.as_bytes())?;
        memory.write(fast.answered(), &ANSWERED)?;
        Ok(true)
    }

    /// What is known; `None` where the connection is in a state in which the host has to answer all calls.
    fn fast_state(&self, tid: Tid, client: StreamHandle) -> Option<State> {
        let mut state = State::new_zeroed();
        state.stream = self.fast_stream(client)?;
        state.pending_file = match (state.stream.fd, self.pending_at(client)) {
            (-1, file) => i32::try_from(file?.number()).ok()?,
            _ => -1,
        };
        self.tell_listeners(&mut state, client)?;
        let told = self.tell_events(&mut state, tid, client).and_then(|()| self.tell_sets(&mut state, tid, client));
        if told.is_none() {
            (state.event_count, state.set_count, state.member_count) = (0, 0, 0);
        }
        state.poll_most = u32::try_from(self.descriptor_limit()).unwrap_or(POLLED).min(POLLED);
        self.tell_futexes(&mut state);
        state.free_fd = self.free_fd();
        (state.pid, state.tid) = (self.process.pid, tid);
        state.alone = u32::from(!self.others_can_run(tid));
        Some(state)
    }

    /// The lowest free descriptor, or -1 where accepting one connection would leave none.
    fn free_fd(&self) -> i32 {
        let limit = self.descriptor_limit();
        let Ok(fd) = self.process.fds.lowest_free(0, limit) else { return -1 };
        let is_last = self.process.fds.lowest_free(fd.number() as usize + 1, limit).is_err();
        if is_last || !self.files.has_room() { -1 } else { fd.number().cast_signed() }
    }

    fn descriptor_limit(&self) -> usize {
        let (limit, _) = self.process.rlimits[linux_raw_sys::general::RLIMIT_NOFILE as usize];
        usize::try_from(limit).unwrap_or(usize::MAX)
    }

    /// The listener at which the client waits to be accepted, alone.
    fn pending_at(&self, client: StreamHandle) -> Option<FileId> {
        self.files.iter().find_map(|(id, slot)| match &slot.file {
            File::Listener(listener) if listener.listening && listener.queue.len() == 1 => {
                listener.queue.front().filter(|pending| pending.incoming == client.incoming && !pending.inner).map(|_| id)
            }
            _ => None,
        })
    }

    fn fast_stream(&self, client: StreamHandle) -> Option<Stream> {
        let (incoming, outgoing) = (self.files.channels.get(client.incoming).ok()?, self.files.channels.get(client.outgoing).ok()?);
        let mut stream = Stream::new_zeroed();
        let mut is_shut = false;
        stream.fd = -1;
        let accepted = self.files.iter().find_map(|(id, slot)| match &slot.file {
            File::Stream(found) if found.end.incoming == client.incoming => Some((id, slot, &found.end)),
            _ => None,
        });
        match accepted {
            Some((id, slot, end)) => {
                let mut entries = self.process.fds.iter().filter(|(_, entry)| entry.file == id);
                let (fd, entry) = entries.next()?;
                if entries.next().is_some() || end.is_message() || end.read_shut || end.reset || end.base.error.is_some() {
                    return None;
                }
                stream.fd = i32::try_from(fd.number()).ok()?;
                is_shut = end.write_shut;
                (stream.flags, stream.close_on_exec) = (slot.flags, u32::from(entry.close_on_exec));
                tell_base(&mut stream, &end.base);
                stream.events = constant_events(end, incoming, outgoing);
            }
            None => {
                let listener = self.pending_at(client)?;
                let File::Listener(listener) = &self.files.get(listener).ok()?.file else { return None };
                let pending = listener.queue.front()?;
                let base = listener.base.accepted(pending.local.clone(), pending.peer.clone());
                tell_base(&mut stream, &base);
                stream.events = constant_events(&PairEnd::new(base, client.incoming, client.outgoing), incoming, outgoing);
            }
        }
        if outgoing.deaf() || incoming.readers == 0 {
            return None;
        }
        stream.ended = u32::from(incoming.writers == 0);
        let here = incoming.data.len().min(INPUT_BYTES);
        stream.input_end = u32::try_from(here).ok()?;
        stream.input_more = u32::from(here < incoming.data.len());
        // Up to the mark at which it would stop being writable, so that this does not change.
        let room = outgoing.low_water.saturating_sub(outgoing.data.len()).min(outgoing.space()).min(OUTPUT_BYTES);
        stream.output_end = if is_shut { 0 } else { u32::try_from(room).ok()? };
        Some(stream)
    }

    fn tell_listeners(&self, state: &mut State, client: StreamHandle) -> Option<()> {
        let listening = self.process.fds.iter().filter_map(|(fd, entry)| match self.files.get(entry.file) {
            Ok(slot) if matches!(slot.file, File::Listener(_)) && is_known(self, entry.file, client) => {
                Some((fd.number(), entry.file.number(), u32::from(slot.nonblocking())))
            }
            _ => None,
        });
        for (place, (fd, file, says_again)) in state.listeners.iter_mut().zip(listening) {
            *place = Listener { fd: i32::try_from(fd).ok()?, file, says_again, padding: 0 };
            state.listener_count += 1;
        }
        Some(())
    }

    /// The eventfds that nobody else can be woken by; `None` where they do not fit. (Those that may wake somebody are not told of, but
    /// members that watch them are: that they are ready only changes by calls that are not answered inside.)
    fn tell_events(&self, state: &mut State, tid: Tid, client: StreamHandle) -> Option<()> {
        for (fd, entry) in self.process.fds.iter() {
            let slot = self.files.get(entry.file).ok()?;
            let File::Event(event) = &slot.file else { continue };
            if !is_known(self, entry.file, client) {
                continue;
            }
            let place = state.events.get_mut(state.event_count as usize)?;
            let wakes = self.is_awaited(entry.file, tid) || self.is_watched_by_others(entry.file, tid);
            // Under a number that no descriptor has it can be looked at, and not changed.
            let fd = if wakes { -1 } else { i32::try_from(fd.number()).ok()? };
            let (is_semaphore, says_again) = (u32::from(event.semaphore), u32::from(slot.nonblocking()));
            *place = Event { fd, file: entry.file.number(), count: event.count, is_semaphore, says_again };
            state.event_count += 1;
        }
        Some(())
    }

    /// Whether a set that the fast path is not told of, because others wait for it, has this member.
    fn is_watched_by_others(&self, file: FileId, tid: Tid) -> bool {
        let watching = self.files.iter().filter(|(_, slot)| matches!(&slot.file, File::Epoll(set) if set.watches(file)));
        watching.map(|(id, _)| id).any(|id| self.files.is_nested(id) || self.is_awaited(id, tid))
    }

    /// The sets for which nobody else waits; `None` where they do not fit.
    fn tell_sets(&self, state: &mut State, tid: Tid, client: StreamHandle) -> Option<()> {
        let view = self.view(tid);
        let known = |file| is_known(self, file, client);
        let mut total = 0;
        for (id, slot) in self.files.iter() {
            let File::Epoll(set) = &slot.file else { continue };
            total += set.len();
            if self.files.is_nested(id) || self.is_awaited(id, tid) || set.len() + MEMBERS > EPOLL_MEMBERS_MAX {
                continue;
            }
            let number = u16::try_from(id.number()).ok()?;
            let may_wait = u32::from(self.files.others_are_quiet(id, known, &view));
            for (fd, _) in self.process.fds.iter().filter(|(_, entry)| entry.file == id) {
                *state.sets.get_mut(state.set_count as usize)? =
                    Set { fd: i32::try_from(fd.number()).ok()?, set: u32::from(number), may_wait, padding: 0 };
                state.set_count += 1;
            }
            for member in self.files.epoll_members(id).filter(|member| known(member.file)) {
                *state.members.get_mut(state.member_count as usize)? = self.fast_member(&member, number, client, &view)?;
                state.member_count += 1;
            }
        }
        (total + MEMBERS <= EPOLL_MEMBERS_TOTAL_MAX).then_some(())
    }

    fn fast_member(&self, member: &MemberView, set: u16, client: StreamHandle, view: &View) -> Option<Member> {
        let target = match is_client(self, member.file, client) {
            true => STREAM_TARGET,
            false => u16::try_from(member.file.number()).ok()?.checked_add(1)?,
        };
        let (mut seen, mut seen_events) = (0, 0);
        if let Some(then) = member.seen {
            let now = self.files.readiness(member.file, view);
            seen_events = then.events.bits();
            seen = SEEN;
            for (bit, moved) in
                [(SEEN_ARRIVALS, now.arrivals != then.arrivals), (SEEN_ROOM, now.room != then.room), (SEEN_ENDS, now.ends != then.ends)]
            {
                seen |= if moved { bit } else { 0 };
            }
        }
        let armed = u32::from(member.armed);
        Some(Member { fd: member.fd, set, target, events: member.events, armed, data: member.data, seen_events, seen })
    }

    /// Whether another thread sleeps until something happens to this file.
    fn is_awaited(&self, file: FileId, tid: Tid) -> bool {
        self.threads.iter().filter(|thread| thread.tid != tid).any(|thread| match &thread.state {
            ThreadState::Blocked(blocked) => matches!(&blocked.wait.on, WaitFor::Files(files) if files.iter().any(|(id, _)| *id == file)),
            ThreadState::Runnable => false,
        })
    }

    fn tell_futexes(&self, state: &mut State) {
        let private = self.futexes.keys().filter_map(|key| if let FutexKey::Private(address) = key { Some(address) } else { None });
        for address in private {
            let Some(place) = state.futexes.get_mut(state.futex_count as usize) else { return };
            *place = address;
            state.futex_count += 1;
        }
        state.futexes_known = 1;
    }
}

/// What a stream is ready for whether or not bytes wait.
fn constant_events(end: &PairEnd, incoming: &Channel, outgoing: &Channel) -> u32 {
    (end.readiness(incoming, outgoing).events - (PollEvents::IN | PollEvents::RDNORM)).bits()
}

fn tell_base(stream: &mut Stream, base: &SocketBase) {
    stream.is_tcp = u32::from(base.family != Family::Unix);
    stream.peer_bytes = put(&mut stream.peer, &base.peer, base.family);
    stream.local_bytes = put(&mut stream.local, &base.local, base.family);
}

/// The bytes of an address; 0 where it does not fit.
fn put(to: &mut [u8; ADDRESS_BYTES], address: &Address, family: Family) -> u32 {
    let bytes = address.encode(family);
    match to.get_mut(..bytes.len()) {
        Some(place) => {
            place.copy_from_slice(&bytes);
            bytes.len() as u32
        }
        None => 0,
    }
}
