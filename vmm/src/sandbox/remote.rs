//! The two sides of a call to the storage program, as the run loop sees them: a request VM that makes one, and the storage
//! program's VM that is driven to its answer. Who brings them together is [`crate::storage`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;

use super::{Pause, RunEnd, Sandbox, SnapshotError};
use crate::config::Gate;
use crate::linux::Kernel;
use crate::linux::dispatch::{Applied, error_value};
use crate::linux::gate::{BUFFER_BYTES, RemoteCall, Role, SharedMemory};
use crate::linux::thread::Tid;
use crate::memory::{AddressSpace, GuestMemory, MemoryImage, SharedArea};
use crate::platform::kvm::{Kicker, Vm};

/// Where the buffer of a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallBuffer {
    /// Somewhere in the caller's memory: it has to be copied.
    Private {
        /// Guest address.
        address: u64,
        /// Bytes, at most [`BUFFER_BYTES`].
        length: u64,
    },
    /// In the memory that the caller shares with the storage program.
    Shared {
        /// Which of the storage program's shared areas it is.
        lane: usize,
        /// Where in it.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// Carries calls to a storage program.
pub trait Remote: fmt::Debug + Send + Sync {
    /// Ask the storage program on the calling thread; its result, or a negated errno. `None` where `deadline`, the end of the
    /// caller's own run, came first.
    fn call(&self, caller: &GuestMemory, buffer: CallBuffer, kicker: &Kicker, deadline: u64) -> Option<i64>;
}

/// What connects a request VM with the storage program.
#[derive(Debug, Clone)]
pub struct RemoteLink {
    /// Who carries its calls.
    pub remote: Arc<dyn Remote>,
    /// Which of the storage program's shared areas is this VM's.
    pub lane: usize,
    /// That area.
    pub area: SharedArea,
}

/// A request VM's shared memory, and the way to the storage program, where there is one.
#[derive(Debug)]
pub(super) struct CallerSide {
    /// Where the shared memory is.
    pub(super) address: u64,
    pub(super) area: SharedArea,
    link: Option<RemoteLink>,
}

impl CallerSide {
    /// For a space that has this role; maps the shared memory.
    pub(super) fn new(role: Role, space: &mut AddressSpace, link: Option<RemoteLink>) -> Result<Option<Self>, Errno> {
        let Role::Caller(SharedMemory { start, .. }) = role else { return Ok(None) };
        let area = match &link {
            Some(link) => link.area.clone(),
            None => SharedArea::new(BUFFER_BYTES)?,
        };
        space.map_shared(start, &area)?;
        Ok(Some(Self { address: start, area, link }))
    }
}

/// Give a new address space the memory of its side of the gate; answers the program's role.
pub(super) fn prepare(space: &mut AddressSpace, gate: Option<Gate>) -> Result<Role, Errno> {
    Ok(match gate {
        None => Role::Alone,
        Some(Gate::Caller) => Role::Caller(SharedMemory { start: space.set_aside(BUFFER_BYTES)?, used: 0 }),
        Some(Gate::Storage { lanes }) => {
            let bytes = (lanes as u64).checked_add(1).and_then(|areas| areas.checked_mul(BUFFER_BYTES)).ok_or(Errno::NOMEM)?;
            let window = space.set_aside(bytes)?;
            space.map_window(window, BUFFER_BYTES)?;
            Role::STORAGE
        }
    })
}

/// A storage program's VM without its VM: what one process hands to another that is forked from it.
#[derive(Debug)]
pub struct Suspended {
    memory: Arc<MemoryImage>,
    kernel: Kernel,
    on_vcpu: Tid,
    extended: Vec<u8>,
    initial_extended: Arc<[u8]>,
    random: (u64, [u8; 16]),
    trace: bool,
}

impl Suspended {
    /// Go on in this process, with these shared areas.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn resume(self, lanes: &[SharedArea]) -> Result<Sandbox, SnapshotError> {
        let mut space = AddressSpace::fork_of(&self.memory)?;
        // Between two calls it holds nothing; anew, it is not in the small pages of the frozen image.
        let window = space.aside();
        space.map_window(window, BUFFER_BYTES)?;
        map_lanes(&mut space, lanes)?;
        let mut vm = Vm::new(&space, false)?;
        vm.set_extended(&self.extended)?;
        // This thread may have run another VM before.
        vm.restore_segments();
        let sandbox = Sandbox {
            on_vcpu: self.on_vcpu,
            random: self.random,
            trace: self.trace,
            ..Sandbox::assemble(vm, space, self.kernel, self.initial_extended)
        };
        sandbox.update_clock_page();
        Ok(sandbox)
    }
}

fn map_lanes(space: &mut AddressSpace, lanes: &[SharedArea]) -> Result<(), Errno> {
    for (lane, area) in lanes.iter().enumerate() {
        let address = lane_address(space, lane);
        space.map_shared(address, area)?;
    }
    Ok(())
}

/// Where the storage program sees a shared area.
fn lane_address(space: &AddressSpace, lane: usize) -> u64 {
    space.aside() + BUFFER_BYTES * (lane as u64 + 1)
}

impl Sandbox {
    /// Connect a master with the storage program: its shared memory becomes that of the link.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn connect(&mut self, link: RemoteLink) -> Result<(), Errno> {
        self.caller = CallerSide::new(self.kernel.role, &mut self.space, Some(link))?;
        Ok(())
    }

    /// Map the shared areas of the request VMs into a storage program's VM, before it runs.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn share(&mut self, lanes: &[SharedArea]) -> Result<(), Errno> {
        map_lanes(&mut self.space, lanes)
    }

    /// Make the call that a thread has asked for; the pause of the run if its time is over.
    pub(super) fn call_storage(&mut self, kicker: &Kicker, deadline: u64, tid: Tid, remote: RemoteCall) -> Option<Pause> {
        let registers = self.kernel.threads.get_mut(tid).cpu.registers;
        let call =
            (registers.rax as u32 as usize, [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9]);
        let value = match self.caller.as_ref().and_then(|side| side.link.as_ref()) {
            None => Some(error_value(Errno::NOSYS).cast_signed()),
            Some(link) => {
                let RemoteCall { buffer: address, length } = remote;
                let buffer = match self.kernel.role {
                    // Where nothing is does not matter, and need not be an address.
                    _ if length == 0 => CallBuffer::Private { address: 0, length },
                    Role::Caller(shared) if shared.contains(address, length) => {
                        CallBuffer::Shared { lane: link.lane, offset: address - shared.start, length }
                    }
                    _ => CallBuffer::Private { address, length },
                };
                let remote = Arc::clone(&link.remote);
                remote.call(self.space.memory(), buffer, kicker, deadline)
            }
        };
        // The other VM has used the timer.
        self.armed = u64::MAX;
        let Some(value) = value else { return Some(Pause::Ended(RunEnd::TimedOut { detail: self.describe(tid) })) };
        self.kernel.threads.get_mut(tid).cpu.registers.rax = value.cast_unsigned();
        self.after_call(tid, Applied::Done, call, true);
        None
    }

    /// Do something with this sandbox on a thread whose kicker belongs to another.
    pub fn with_kicker<T>(&mut self, kicker: &Kicker, act: impl FnOnce(&mut Self) -> T) -> T {
        let previous = kicker.aim(self.vm.kick_flag());
        self.armed = u64::MAX;
        self.vm.clear_kick();
        let result = act(self);
        kicker.aim(previous);
        result
    }

    /// Whether those who wait for this VM want the thread that runs it to let go.
    pub(super) fn is_wanted(&self) -> bool {
        self.yield_when.as_ref().is_some_and(|waiting| waiting.load(Ordering::Acquire) > 0)
    }

    /// From now on [`Sandbox::run`] ends with [`Pause::Yielded`] when this counter is not zero (after a kick, or by itself).
    pub fn yield_when(&mut self, waiting: Option<Arc<AtomicUsize>>) {
        self.yield_when = waiting;
    }

    /// Let the storage program see a call at its next look; the address it is given.
    ///
    /// # Errors
    ///
    /// EINVAL where the caller's buffer cannot be read; EFAULT where the window cannot be written, which is the storage program's fault.
    pub fn deliver(&mut self, caller: &GuestMemory, buffer: CallBuffer) -> Result<(), Errno> {
        let (address, length) = match buffer {
            CallBuffer::Shared { lane, offset, length } => (lane_address(&self.space, lane) + offset, length),
            CallBuffer::Private { address, length } => {
                let window = self.space.aside();
                // Whatever becomes of it, a part may have been copied that the program is not to see.
                self.window_used = self.window_used.max(length);
                self.space.memory().copy_unrecorded_from(window, caller, address, length).map_err(|_| Errno::INVAL)?;
                self.clear_window(length)?;
                (window, length)
            }
        };
        self.kernel.deliver_call(address, length);
        Ok(())
    }

    /// Bring the answered buffer back to the caller. What is in the window is zeroed before the program runs again.
    ///
    /// # Errors
    ///
    /// EINVAL where the caller's buffer cannot be written any more.
    pub fn collect(&mut self, caller: &GuestMemory, buffer: CallBuffer) -> Result<(), Errno> {
        match buffer {
            CallBuffer::Shared { .. } => Ok(()),
            CallBuffer::Private { address, length } => {
                self.window_used = length;
                caller.copy_back_from(address, self.space.memory(), self.space.aside(), length).map_err(|_| Errno::INVAL)
            }
        }
    }

    /// The caller of a call has gone: the program finishes it with a copy of what the two shared, since the memory itself is the next
    /// request's.
    ///
    /// # Errors
    ///
    /// EMFILE, ENOMEM: the program still has that memory and has to be ended.
    pub fn detach(&mut self, buffer: CallBuffer, lanes: &[SharedArea]) -> Result<(), Errno> {
        match buffer {
            CallBuffer::Private { .. } => Ok(()),
            CallBuffer::Shared { lane, .. } => {
                let copy = lanes.get(lane).ok_or(Errno::INVAL)?.duplicate()?;
                self.space.map_shared(lane_address(&self.space, lane), &copy)
            }
        }
    }

    /// A call whose caller has gone has come to its end: leave nothing of it, and share again what [`Sandbox::detach`] has taken away.
    ///
    /// # Errors
    ///
    /// ENOMEM: nothing is shared any more.
    pub fn reattach(&mut self, buffer: CallBuffer, lanes: &[SharedArea]) -> Result<(), Errno> {
        match buffer {
            CallBuffer::Private { length, .. } => {
                self.window_used = length;
                Ok(())
            }
            CallBuffer::Shared { lane, .. } => {
                let address = lane_address(&self.space, lane);
                self.space.map_shared(address, lanes.get(lane).ok_or(Errno::INVAL)?)
            }
        }
    }

    /// Zero what the last call has left in the window, but for the first `kept` bytes, which are those of the next one.
    ///
    /// Done before the program runs and not after the call: a call overwrites most of what the one before it has left.
    ///
    /// # Errors
    ///
    /// EFAULT; never, as the window cannot be unmapped.
    pub(super) fn clear_window(&mut self, kept: u64) -> Result<(), Errno> {
        let used = std::mem::take(&mut self.window_used);
        match used.checked_sub(kept) {
            None | Some(0) => Ok(()),
            Some(length) => self.space.clear_window(kept, length),
        }
    }

    /// Stop for good in this process; another that is forked from it can go on.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn suspend(mut self) -> Result<Suspended, SnapshotError> {
        self.clear_window(0)?;
        Ok(Suspended {
            extended: self.vm.extended()?,
            memory: Arc::new(MemoryImage::freeze(&self.space, true)?),
            kernel: self.kernel,
            on_vcpu: self.on_vcpu,
            initial_extended: self.initial_extended,
            random: self.random,
            trace: self.trace,
        })
    }
}
