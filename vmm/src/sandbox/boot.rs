//! From a configuration to a program that is ready: load, run until it waits for clients, or until it ends.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::end::ListenerReport;
use super::remote::{CallerSide, prepare};
use super::{Pause, RunEnd, Sandbox};
use crate::config::{Gate, SandboxConfig};
use crate::cpu::CpuState;
use crate::linux::Kernel;
use crate::linux::clock::{Clock, host_monotonic};
use crate::linux::fd_table::{Entry, FdTable};
use crate::linux::file::console::Console;
use crate::linux::file::socket_address::{Address, Family};
use crate::linux::file::{File, Files, PollEvents};
use crate::linux::futex::FutexTable;
use crate::linux::grants::{GrantError, Grants};
use crate::linux::path::{Directory, Last, Node, Walker};
use crate::linux::process::{Identity, Process};
use crate::linux::thread::{Thread, Threads, Tid};
use crate::loader::{Command, LoadError};
use crate::memory::AddressSpace;
use crate::platform::kvm::{Kicker, OpenKvmError, Vm};

/// The guest's process id: never 0 or 1, so that no program takes itself for init.
const PID: Tid = 2;
/// Descriptors that a process may have open on the host's side, bytes of umask as login shells set it.
const UMASK: u32 = 0o022;

/// Why a program could not be put into a VM.
#[derive(Debug, thiserror::Error)]
pub enum LoadSandboxError {
    /// A permission names what cannot be granted.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// The program cannot be loaded.
    #[error(transparent)]
    Program(#[from] LoadError),
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] OpenKvmError),
    /// The host has no such range of addresses.
    #[error("cannot reserve {0} MiB of address space: {1}")]
    AddressSpace(u64, Errno),
    /// Something of the first process could not be made.
    #[error("cannot set up the process: {0}")]
    Process(Errno),
}

impl Sandbox {
    /// Load a program into a new VM.
    ///
    /// # Errors
    ///
    /// [`LoadSandboxError`].
    pub fn load(config: &SandboxConfig) -> Result<Self, LoadSandboxError> {
        let implicit = crate::loader::implicit_files(Path::new(&config.program));
        let grants = Arc::new(Grants::new(config, implicit)?);
        let mut space = AddressSpace::new(config.max_address_space, config.max_main_memory)
            .map_err(|errno| LoadSandboxError::AddressSpace(config.max_address_space >> 20, errno))?;
        if config.fast_path && !matches!(config.gate, Some(Gate::Storage { .. })) {
            crate::fast_path::map(&mut space).map_err(|errno| LoadSandboxError::AddressSpace(config.max_address_space >> 20, errno))?;
        }
        let clock = Clock::default();
        let cwd = Directory::first(&grants);
        let process = Process::new(PID, cwd, UMASK, Arc::new(Identity::default()), clock.monotonic());
        let mut kernel = Kernel {
            process,
            threads: Threads::new(Thread { tid: PID, ..Thread::default() }),
            files: Files::default(),
            futexes: FutexTable::default(),
            clock,
            grants,
            role: prepare(&mut space, config.gate)
                .map_err(|errno| LoadSandboxError::AddressSpace(config.max_address_space >> 20, errno))?,
            notes: Vec::new(),
        };
        let loaded = crate::loader::load(&Command::from(config), &|path: &[u8]| open_program(&kernel, path), &mut space)?;
        let main = kernel.threads.get_mut(PID);
        main.cpu = CpuState { registers: loaded.registers, ..CpuState::default() };
        main.name = loaded.name;
        kernel.process.identity = Arc::new(loaded.identity);
        open_standard_streams(&mut kernel).map_err(LoadSandboxError::Process)?;
        let vm = Vm::new(&space, false)?;
        let initial_extended = vm.extended().map_err(LoadSandboxError::Process)?.into();
        let caller = CallerSide::new(kernel.role, &mut space, None).map_err(LoadSandboxError::Process)?;
        let sandbox = Self {
            trace: config.trace_system_calls,
            random: (loaded.random_address, [0; 16]),
            caller,
            ..Self::assemble(vm, space, kernel, initial_extended)
        };
        sandbox.update_clock_page();
        Ok(sandbox)
    }

    /// Run until the program is ready or ends; `deadline` is a moment of the host's CLOCK_MONOTONIC.
    pub fn boot(&mut self, kicker: &Kicker, deadline: u64) -> RunEnd {
        let started = host_monotonic();
        loop {
            match self.run(kicker, deadline, None) {
                Pause::Ended(end) => return end,
                Pause::StreamClosed | Pause::Tick | Pause::Answered | Pause::Yielded => {}
                Pause::Idle => {
                    if let Some(wait) = self.kernel.waits_for_clients() {
                        return RunEnd::Ready {
                            wait: wait.name(),
                            listeners: self.listener_reports(),
                            init_ns: host_monotonic().saturating_sub(started),
                        };
                    }
                    if let Err(end) = self.sleep(deadline, &[]) {
                        return end;
                    }
                }
            }
        }
    }

    fn listener_reports(&self) -> Vec<ListenerReport> {
        let listeners = self.kernel.listeners();
        listeners.iter().filter(|listener| listener.listening).map(|listener| report(listener.family, &listener.address)).collect()
    }

    /// The first address that the host would not bind for the program.
    #[must_use]
    pub fn refused_listen(&self) -> Option<(ListenerReport, Errno)> {
        let failure = self.kernel.bind_failures().first()?;
        let family = match &failure.address {
            Address::Inet(address) if address.is_ipv6() => Family::Inet6,
            Address::Unix(_) => Family::Unix,
            _ => Family::Inet,
        };
        Some((report(family, &failure.address), failure.errno))
    }

    /// All threads sleep: wait on the host for whatever may wake one, for `others`, or for the deadline. Answers what of
    /// `others` is ready.
    ///
    /// # Errors
    ///
    /// The end of the run, where the deadline has passed, or where nothing can ever happen.
    pub fn sleep(&mut self, deadline: u64, others: &[PollFd<'_>]) -> Result<Vec<PollFlags>, RunEnd> {
        let now = host_monotonic();
        let tid = self.kernel.threads.current;
        if now >= deadline {
            return Err(RunEnd::TimedOut { detail: self.describe(tid) });
        }
        let polls = self.kernel.host_polls();
        let next = self.kernel.next_deadline().map(|next| self.kernel.clock.to_host(next));
        // A timer may have expired since the sleepers were looked at: it is no deadline any more, and not a deadlock.
        if self.kernel.wake_sleepers(self.kernel.clock.monotonic()) {
            return Ok(vec![PollFlags::empty(); others.len()]);
        }
        if polls.is_empty() && next.is_none() && others.is_empty() && self.frozen.is_none() {
            return Err(RunEnd::Deadlocked { detail: self.describe(tid) });
        }
        let until = next.map_or(deadline, |next| next.min(deadline));
        let left = until.saturating_sub(now);
        let timeout =
            rustix::time::Timespec { tv_sec: (left / 1_000_000_000).cast_signed(), tv_nsec: (left % 1_000_000_000).cast_signed() };
        let ready = poll_both(&polls, others, (until != u64::MAX).then_some(&timeout));
        self.vm.clear_kick();
        self.armed = u64::MAX;
        self.kernel.files.changes += 1;
        Ok(ready)
    }
}

/// Poll what the program waits for and what the caller waits for; the caller's results come back. EINTR is a kick: nothing is
/// ready, and the caller looks at everything again.
fn poll_both(polls: &[(Arc<OwnedFd>, PollEvents)], others: &[PollFd<'_>], timeout: Option<&rustix::time::Timespec>) -> Vec<PollFlags> {
    let flags = |events: PollEvents| PollFlags::from_bits_retain(u16::try_from(events.bits()).unwrap_or(0));
    let mut fds: Vec<PollFd<'_>> = others.to_vec();
    fds.extend(polls.iter().map(|(fd, events)| PollFd::new(&**fd, flags(*events))));
    let polled = rustix::event::poll(&mut fds, timeout).is_ok();
    fds.iter().take(others.len()).map(|fd| if polled { fd.revents() } else { PollFlags::empty() }).collect()
}

fn report(family: Family, address: &Address) -> ListenerReport {
    let family = match family {
        Family::Inet => "inet",
        Family::Inet6 => "inet6",
        Family::Unix => "unix",
    };
    match address {
        Address::Inet(address) => ListenerReport { family, address: address.ip().to_string(), port: address.port() },
        Address::Unix(path) => ListenerReport { family, address: String::from_utf8_lossy(path).into_owned(), port: 0 },
        Address::Unnamed => ListenerReport { family, address: String::new(), port: 0 },
    }
}

/// Open a file for the loader as the program itself could.
pub(super) fn open_program(kernel: &Kernel, path: &[u8]) -> Result<OwnedFd, Errno> {
    let walker = Walker::new(kernel, PID);
    let found = walker.walk_from(walker.root()?, path, Last::Follow)?.existing()?;
    if !walker.access(&found.path).read {
        return Err(Errno::ACCESS);
    }
    match &found.node {
        Node::Host(handle, _) => crate::linux::host_path::open_object(handle, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK),
        _ => Err(Errno::ACCESS),
    }
}

fn open_standard_streams(kernel: &mut Kernel) -> Result<(), Errno> {
    for number in 0..3 {
        if let Some(console) = Console::standard(number) {
            let mode = console.access_mode();
            let file = kernel.files.add(File::Console(console), mode)?;
            let fd = FdTable::chosen(i32::from(number), usize::MAX)?;
            kernel.process.fds.set(fd, Some(Entry { file, close_on_exec: false }));
        }
    }
    Ok(())
}
