//! A process of our Linux with some memory and no processor: tests make system calls as a thread would, and see it sleep.

use std::sync::Arc;

use crate::config::{NetRule, SandboxConfig};
use crate::linux::clock::Clock;
use crate::linux::dispatch::Applied;
use crate::linux::file::Files;
use crate::linux::futex::FutexTable;
use crate::linux::grants::Grants;
use crate::linux::path::Directory;
use crate::linux::process::{Identity, Process};
use crate::linux::thread::{State, Thread, Threads, Tid};
use crate::linux::{Errno, Kernel};
use crate::memory::{AddressSpace, Backing, MapRequest, Placement, Protection};

/// The main thread.
pub(super) const MAIN: Tid = 42;
/// Size of the memory that tests may use, bytes.
const MEMORY_BYTES: u64 = 4 << 20;

/// What a system call came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// It returned.
    Value(u64),
    /// It failed.
    Error(Errno),
    /// The thread sleeps.
    Sleeps,
}

pub(super) struct Machine {
    pub(super) kernel: Kernel,
    pub(super) space: AddressSpace,
    /// Where the memory begins.
    pub(super) base: u64,
}

impl Machine {
    /// A process that may do nothing outside.
    pub(super) fn new() -> Self {
        Self::with(&SandboxConfig::default())
    }

    /// A process that may use the network of this host.
    pub(super) fn with_network() -> Self {
        let any = || vec![NetRule { address: None, port: None }];
        Self::with(&SandboxConfig { connect: any(), listen: any(), ..SandboxConfig::default() })
    }

    pub(super) fn with(config: &SandboxConfig) -> Self {
        let config = SandboxConfig { working_directory: "/".into(), ..config.clone() };
        let grants = Arc::new(Grants::new(&config, Vec::new()).expect("grants"));
        let mut space = AddressSpace::new(64 << 30, 1 << 30).expect("address space");
        let request = MapRequest {
            placement: Placement::Anywhere,
            length: MEMORY_BYTES,
            protection: Protection::READ | Protection::WRITE,
            backing: Backing::Anonymous,
            label: "",
        };
        let base = space.map(request).expect("memory");
        let clock = Clock::default();
        let mut process = Process::new(MAIN, Directory::first(&grants), 0o022, Arc::new(Identity::default()), clock.monotonic());
        process.rlimits[linux_raw_sys::general::RLIMIT_NOFILE as usize] = (1024, 4096);
        let kernel = Kernel {
            process,
            threads: Threads::new(Thread { tid: MAIN, ..Thread::default() }),
            files: Files::default(),
            futexes: FutexTable::default(),
            clock,
            grants,
            role: crate::linux::gate::Role::Alone,
            notes: Vec::new(),
        };
        Self { kernel, space, base }
    }

    /// One more thread.
    pub(super) fn thread(&mut self) -> Tid {
        self.kernel.threads.add(Thread::default())
    }

    /// A system call by a thread.
    pub(super) fn call_as(&mut self, tid: Tid, number: u32, args: &[u64]) -> Reply {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let registers = &mut self.kernel.threads.get_mut(tid).cpu.registers;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = all;
        registers.rax = u64::from(number);
        let applied = self.kernel.system_call(&mut self.space, tid);
        self.reply(tid, applied)
    }

    /// A system call by the main thread.
    pub(super) fn call(&mut self, number: u32, args: &[u64]) -> Reply {
        self.call_as(MAIN, number, args)
    }

    /// A system call that has to succeed.
    pub(super) fn ok(&mut self, number: u32, args: &[u64]) -> u64 {
        match self.call(number, args) {
            Reply::Value(value) => value,
            other => panic!("call {number} with {args:x?}: {other:?}"),
        }
    }

    /// A system call that has to fail.
    pub(super) fn errno(&mut self, number: u32, args: &[u64]) -> Errno {
        match self.call(number, args) {
            Reply::Error(errno) => errno,
            other => panic!("call {number} with {args:x?}: {other:?}"),
        }
    }

    /// Let a sleeping thread look again if its wait is over, as the run loop does.
    pub(super) fn resume(&mut self, tid: Tid) -> Reply {
        let now = self.kernel.clock.monotonic();
        match self.kernel.wait_over(tid, now) {
            Some(attempt) => {
                let applied = self.kernel.retry(&mut self.space, tid, attempt);
                self.reply(tid, applied)
            }
            None => Reply::Sleeps,
        }
    }

    /// Wait on the host until a sleeping thread's call is over, for at most ten seconds.
    pub(super) fn settle(&mut self, tid: Tid) -> Reply {
        for _ in 0..10_000 {
            match self.resume(tid) {
                Reply::Sleeps => std::thread::sleep(std::time::Duration::from_millis(1)),
                reply => return reply,
            }
        }
        Reply::Sleeps
    }

    fn reply(&mut self, tid: Tid, applied: Applied) -> Reply {
        match applied {
            Applied::Blocked => {
                assert!(matches!(self.kernel.threads.get_mut(tid).state, State::Blocked(_)));
                Reply::Sleeps
            }
            _ => match Kernel::result_of(self.kernel.threads.get_mut(tid).cpu.registers.rax) {
                Ok(value) => Reply::Value(value),
                Err(errno) => Reply::Error(errno),
            },
        }
    }

    /// Put bytes at an offset of the memory; returns their address.
    pub(super) fn put(&self, offset: u64, bytes: &[u8]) -> u64 {
        self.space.memory().write_bytes(self.base + offset, bytes).expect("test memory");
        self.base + offset
    }

    /// The bytes at an offset.
    pub(super) fn get(&self, offset: u64, length: usize) -> Vec<u8> {
        self.space.memory().read_vec(self.base + offset, length).expect("test memory")
    }

    /// A 32-bit number at an offset.
    pub(super) fn word(&self, offset: u64) -> u32 {
        self.space.memory().read(self.base + offset).expect("test memory")
    }

    /// A 64-bit number at an offset.
    pub(super) fn long(&self, offset: u64) -> u64 {
        self.space.memory().read(self.base + offset).expect("test memory")
    }
}
