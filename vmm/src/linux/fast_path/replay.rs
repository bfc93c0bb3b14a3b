//! What the fast path says it has answered is done again, on the objects themselves.
//!
//! The log is the guest's to write. Each entry is an operation that the guest could have had by a system call, and it is done with the
//! checks of one; what cannot have come to what the log says makes the guest a liar, and that is the end of its run. The work is
//! bounded by the length of the log, and nothing is read twice.

use linux_raw_sys::general as nr;
use linux_raw_sys::net::MSG_DONTWAIT;
use linux_raw_sys::{general, ioctl};

use super::{is_client, is_known};
use crate::fast_path::{FastPath, LOG_ENTRIES, Logged, OUTPUT_BYTES, POLLED};
use crate::limits::EPOLL_MEMBERS_MAX;
use crate::linux::file::epoll::Request;
use crate::linux::file::local::EventFd;
use crate::linux::file::stream_host::StreamHandle;
use crate::linux::file::{File, FileId, Slot, socket_options};
use crate::linux::syscalls::SETTABLE_FLAGS;
use crate::linux::thread::Tid;
use crate::linux::{Errno, Kernel};
use crate::memory::GuestMemory;

/// The log cannot be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lie;

impl From<Errno> for Lie {
    fn from(_: Errno) -> Self {
        Self
    }
}

fn must(condition: bool) -> Result<(), Lie> {
    if condition { Ok(()) } else { Err(Lie) }
}

/// What is being repeated.
struct Replay<'a> {
    kernel: &'a mut Kernel,
    memory: &'a GuestMemory,
    fast: FastPath,
    tid: Tid,
    client: StreamHandle,
    /// Bytes of the output area that have been taken.
    taken: usize,
}

impl Kernel {
    /// Do what thread `tid` was answered while it served this client; answers the calls in their order.
    ///
    /// # Errors
    ///
    /// [`Lie`]; some of the calls may have been done.
    pub fn replay_fast_path(&mut self, memory: &GuestMemory, fast: FastPath, tid: Tid, client: StreamHandle) -> Result<Vec<Logged>, Lie> {
        let count = usize::try_from(fast.logged(memory)).map_err(|_| Lie)?;
        must(count <= LOG_ENTRIES)?;
        let mut calls = Vec::with_capacity(count);
        let mut replay = Replay { kernel: self, memory, fast, tid, client, taken: 0 };
        for index in 0..count {
            let call: Logged = memory.read(fast.log(index))?;
            replay.repeat(&call)?;
            calls.push(call);
        }
        Ok(calls)
    }
}

impl Replay<'_> {
    fn repeat(&mut self, call: &Logged) -> Result<(), Lie> {
        match call.number {
            nr::__NR_read if self.is_event(call) => self.read_event(call),
            nr::__NR_write if self.is_event(call) => self.write_event(call),
            // Nothing changes by it.
            nr::__NR_poll | nr::__NR_ppoll => must((0..=i64::from(POLLED)).contains(&call.result)),
            nr::__NR_read | nr::__NR_readv => self.receive(call, false),
            nr::__NR_recvfrom => self.receive(call, call.args[3] as u32 & MSG_DONTWAIT != 0),
            nr::__NR_recvmsg => self.receive(call, call.args[2] as u32 & MSG_DONTWAIT != 0),
            nr::__NR_write | nr::__NR_writev | nr::__NR_sendto | nr::__NR_sendmsg => self.send(call),
            nr::__NR_accept => self.accept(call, 0),
            nr::__NR_accept4 => self.accept(call, call.args[3] as u32),
            nr::__NR_epoll_ctl => self.epoll_control(call),
            nr::__NR_epoll_wait | nr::__NR_epoll_pwait | nr::__NR_epoll_pwait2 => self.epoll_wait(call),
            nr::__NR_getsockname | nr::__NR_getpeername | nr::__NR_getsockopt => {
                self.stream(call)?;
                must(call.result == 0)
            }
            nr::__NR_setsockopt => self.set_option(call),
            nr::__NR_fcntl => self.file_control(call),
            nr::__NR_ioctl => self.device_control(call),
            nr::__NR_getpid => must(call.result == i64::from(self.kernel.process.pid)),
            nr::__NR_gettid => must(call.result == i64::from(self.tid)),
            nr::__NR_sched_yield | nr::__NR_futex => must(call.result == 0),
            _ => Err(Lie),
        }
    }

    fn file(&self, number: u64) -> Result<FileId, Lie> {
        Ok(self.kernel.process.fds.get(number as u32 as i32)?)
    }

    /// The client's stream, which the first argument has to name.
    fn stream(&mut self, call: &Logged) -> Result<&mut Slot, Lie> {
        let file = self.file(call.args[0])?;
        must(is_client(self.kernel, file, self.client))?;
        Ok(self.kernel.files.get_mut(file)?)
    }

    fn is_event(&self, call: &Logged) -> bool {
        self.file(call.args[0]).and_then(|file| Ok(self.kernel.files.get(file)?)).is_ok_and(|slot| matches!(slot.file, File::Event(_)))
    }

    fn event(&mut self, call: &Logged) -> Result<(&mut EventFd, bool), Lie> {
        let file = self.file(call.args[0])?;
        must(is_known(self.kernel, file, self.client))?;
        self.kernel.files.changes += 1;
        let slot = self.kernel.files.get_mut(file)?;
        let nonblocking = slot.nonblocking();
        match &mut slot.file {
            File::Event(event) => Ok((event, nonblocking)),
            _ => Err(Lie),
        }
    }

    fn read_event(&mut self, call: &Logged) -> Result<(), Lie> {
        let (event, nonblocking) = self.event(call)?;
        match event.take() {
            Some(_) => must(call.result == 8),
            None => must(is_again(call) && nonblocking),
        }
    }

    fn write_event(&mut self, call: &Logged) -> Result<(), Lie> {
        must(call.result == 8)?;
        let (event, _) = self.event(call)?;
        must(event.add(call.data)?)
    }

    fn receive(&mut self, call: &Logged, dont_wait: bool) -> Result<(), Lie> {
        let slot = self.stream(call)?;
        let nonblocking = dont_wait || slot.nonblocking();
        let end = slot.file.pair().ok_or(Lie)?;
        must(end.base.error.is_none())?;
        let end = end.clone();
        let channel = self.kernel.files.channels.get(end.incoming)?;
        let (waiting, ended) = (channel.data.len(), end.at_end(channel));
        match usize::try_from(call.result) {
            Ok(0) => must(waiting == 0 && ended),
            Ok(count) => {
                must(count <= waiting)?;
                self.kernel.files.channel(end.incoming)?.consume(count);
                Ok(())
            }
            Err(_) => must(is_again(call) && waiting == 0 && !ended && nonblocking),
        }
    }

    fn send(&mut self, call: &Logged) -> Result<(), Lie> {
        let end = self.stream(call)?.file.pair().ok_or(Lie)?;
        must(end.base.error.is_none() && !end.write_shut && !end.reset)?;
        let outgoing = end.outgoing;
        let channel = self.kernel.files.channels.get(outgoing)?;
        let count = usize::try_from(call.result).map_err(|_| Lie)?;
        must(count > 0 && count <= channel.space() && !channel.deaf() && count <= OUTPUT_BYTES - self.taken)?;
        let bytes = self.memory.read_vec(self.fast.output() + self.taken as u64, count)?;
        self.taken += count;
        self.kernel.files.channel(outgoing)?.push_all(&bytes);
        Ok(())
    }

    fn accept(&mut self, call: &Logged, flags: u32) -> Result<(), Lie> {
        let id = self.file(call.args[0])?;
        let nonblocking = self.kernel.files.get(id)?.nonblocking();
        let listener = self.kernel.files.listener(id)?;
        must(listener.listening && flags & !(general::O_NONBLOCK | general::O_CLOEXEC) == 0)?;
        if is_again(call) {
            return must(listener.queue.is_empty() && nonblocking);
        }
        must(listener.queue.front().is_some_and(|pending| pending.incoming == self.client.incoming && !pending.inner))?;
        let file = self.kernel.files.dequeue(id)?.ok_or(Lie)?;
        let file = self.kernel.files.add(file, general::O_RDWR | flags & general::O_NONBLOCK)?;
        let fd = self.kernel.install_fd(file, flags & general::O_CLOEXEC != 0)?;
        must(i64::from(fd.number()) == call.result)
    }

    fn epoll_control(&mut self, call: &Logged) -> Result<(), Lie> {
        must(call.result == 0)?;
        let (set, fd, file) = (self.file(call.args[0])?, call.args[2] as u32 as i32, self.file(call.args[2])?);
        must(is_known(self.kernel, file, self.client))?;
        let view = self.kernel.view(self.tid);
        let request = Request { events: call.events, data: call.data };
        let files = &mut self.kernel.files;
        match call.args[1] as u32 {
            general::EPOLL_CTL_ADD => files.epoll_add(set, fd, file, request, &view)?,
            general::EPOLL_CTL_MOD => files.epoll_modify(set, fd, file, request, &view)?,
            general::EPOLL_CTL_DEL => files.epoll_delete(set, fd, file, &view)?,
            _ => return Err(Lie),
        }
        Ok(())
    }

    fn epoll_wait(&mut self, call: &Logged) -> Result<(), Lie> {
        let set = self.file(call.args[0])?;
        let most = usize::try_from(call.args[2] as u32 as i32).map_err(|_| Lie)?;
        must(most > 0)?;
        let view = self.kernel.view(self.tid);
        let known = |file| is_known(self.kernel, file, self.client);
        let ready = self.kernel.files.epoll_look_at(set, most.min(EPOLL_MEMBERS_MAX), known, &view)?;
        must(usize::try_from(call.result) == Ok(ready.len()))?;
        if !ready.is_empty() {
            self.kernel.files.epoll_reported(set, &ready);
        }
        Ok(())
    }

    fn set_option(&mut self, call: &Logged) -> Result<(), Lie> {
        must(call.result == 0)?;
        let base = self.stream(call)?.file.socket_mut()?;
        Ok(socket_options::set(base, call.args[1] as u32, call.args[2] as u32, &(call.data as u32).to_ne_bytes())?)
    }

    fn file_control(&mut self, call: &Logged) -> Result<(), Lie> {
        let argument = call.args[2];
        let fd = call.args[0] as u32 as i32;
        let slot = self.stream(call)?;
        match call.args[1] as u32 {
            general::F_GETFL => must(call.result == i64::from(slot.flags)),
            general::F_SETFL => {
                slot.flags = slot.flags & !SETTABLE_FLAGS | argument as u32 & SETTABLE_FLAGS;
                must(call.result == 0)
            }
            general::F_GETFD => must(call.result == i64::from(self.kernel.process.fds.entry(fd)?.close_on_exec)),
            general::F_SETFD => {
                self.kernel.process.fds.entry_mut(fd)?.close_on_exec = argument & u64::from(general::FD_CLOEXEC) != 0;
                must(call.result == 0)
            }
            _ => Err(Lie),
        }
    }

    fn device_control(&mut self, call: &Logged) -> Result<(), Lie> {
        must(call.result == 0 && call.args[1] as u32 == ioctl::FIONBIO)?;
        let slot = self.stream(call)?;
        slot.flags = slot.flags & !general::O_NONBLOCK | if call.data == 0 { 0 } else { general::O_NONBLOCK };
        Ok(())
    }
}

/// Whether a call came to EAGAIN.
fn is_again(call: &Logged) -> bool {
    call.result == -i64::from(Errno::AGAIN.raw_os_error())
}
