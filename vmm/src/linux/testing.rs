//! A kernel with an address space and no virtual machine: what the tests of the system calls run on.

use std::sync::Arc;

use super::clock::Clock;
use super::dispatch::Applied;
use super::file::Files;
use super::futex::FutexTable;
use super::grants::Grants;
use super::path::Directory;
use super::process::{Identity, Process};
use super::signal_delivery::Delivery;
use super::thread::{Thread, Threads, Tid};
use super::{Attempt, Errno, Kernel};
use crate::config::SandboxConfig;
use crate::cpu::ExtendedState;
use crate::memory::{AddressSpace, Backing, MapRequest, Placement, Protection};

/// Process id in these tests.
pub(crate) const PID: Tid = 100;
/// Where memory that a test may use begins, and how long it is.
pub(crate) const MEMORY: u64 = 0x100_0000;
pub(crate) const MEMORY_BYTES: u64 = 1 << 20;
/// Bytes of the made-up processor's state, and its features: x87, SSE, AVX.
pub(crate) const AREA_BYTES: usize = 832;
pub(crate) const FEATURES: u64 = 7;

/// A processor's extended state that is only bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FakeExtended(pub(crate) Vec<u8>);

impl Default for FakeExtended {
    fn default() -> Self {
        Self((0..AREA_BYTES).map(|index| if (512..576).contains(&index) || (24..32).contains(&index) { 0 } else { index as u8 }).collect())
    }
}

impl ExtendedState for FakeExtended {
    fn load(&mut self) -> Vec<u8> {
        self.0.clone()
    }

    fn store(&mut self, area: &[u8]) {
        self.0 = area.to_vec();
    }

    fn features(&self) -> u64 {
        FEATURES
    }
}

/// What a call came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    Back(Result<u64, Errno>),
    Blocked,
    Ended,
}

/// A machine without a processor.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) kernel: Kernel,
    pub(crate) space: AddressSpace,
    pub(crate) extended: FakeExtended,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let mut space = AddressSpace::new(1 << 32, 1 << 30).expect("an address space");
        let request = MapRequest {
            placement: Placement::Fixed(MEMORY),
            length: MEMORY_BYTES,
            protection: Protection::READ | Protection::WRITE,
            backing: Backing::Anonymous,
            label: "",
        };
        space.map(request).expect("test memory");
        let grants = Grants::new(&SandboxConfig::default(), Vec::new()).expect("no grants");
        let cwd = Directory::first(&grants);
        let identity = Identity { uid: 1000, gid: 1001, ppid: 1, ..Identity::default() };
        let clock = Clock::default();
        let process = Process::new(PID, cwd, 0o22, Arc::new(identity), clock.monotonic());
        let threads = Threads::new(Thread { tid: PID, ..Thread::default() });
        let (files, futexes) = (Files::default(), FutexTable::default());
        let kernel =
            Kernel { process, threads, files, futexes, clock, grants: Arc::new(grants), role: Default::default(), notes: Vec::new() };
        let mut machine = Self { kernel, space, extended: FakeExtended::default() };
        machine.kernel.threads.get_mut(PID).cpu.registers.rsp = MEMORY + MEMORY_BYTES / 2;
        machine
    }

    /// Make a system call in a thread.
    pub(crate) fn call(&mut self, tid: Tid, number: u32, args: &[u64]) -> Came {
        let registers = &mut self.kernel.threads.get_mut(tid).cpu.registers;
        registers.rax = u64::from(number);
        let at = |index: usize| args.get(index).copied().unwrap_or(0);
        (registers.rdi, registers.rsi, registers.rdx) = (at(0), at(1), at(2));
        (registers.r10, registers.r8, registers.r9) = (at(3), at(4), at(5));
        let applied = self.kernel.system_call(&mut self.space, tid);
        self.came(tid, applied)
    }

    /// Make a system call in the main thread that comes back.
    pub(crate) fn main(&mut self, number: u32, args: &[u64]) -> Result<u64, Errno> {
        match self.call(PID, number, args) {
            Came::Back(result) => result,
            other => panic!("{other:?}"),
        }
    }

    /// Let a sleeping thread's handler run again if its wait may be over.
    pub(crate) fn look(&mut self, tid: Tid) -> Came {
        let now = self.kernel.clock.monotonic();
        let Some(attempt) = self.kernel.wait_over(tid, now) else { return Came::Blocked };
        self.retry(tid, attempt)
    }

    pub(crate) fn retry(&mut self, tid: Tid, attempt: Attempt) -> Came {
        let applied = self.kernel.retry(&mut self.space, tid, attempt);
        self.came(tid, applied)
    }

    fn came(&mut self, tid: Tid, applied: Applied) -> Came {
        match applied {
            Applied::Done | Applied::Restarted => Came::Back(Kernel::result_of(self.kernel.threads.get_mut(tid).cpu.registers.rax)),
            Applied::Blocked => Came::Blocked,
            Applied::ThreadEnded | Applied::ProcessEnded => Came::Ended,
            Applied::Execute(_) | Applied::Remote(_) => panic!("no test runs another program"),
        }
    }

    /// Another thread, as pthread_create makes it.
    pub(crate) fn thread(&mut self) -> Tid {
        let flags = 0x3d_0f00;
        let tid = self.main(56, &[flags, MEMORY + 0x8000, 0, MEMORY + 0x9000, MEMORY + 0xa000]).expect("a thread");
        i32::try_from(tid).expect("a thread id")
    }

    pub(crate) fn deliver(&mut self, tid: Tid) -> Delivery {
        self.kernel.deliver_signals(&mut self.space, tid, &mut self.extended)
    }

    pub(crate) fn poke<T: zerocopy::IntoBytes + zerocopy::Immutable>(&self, address: u64, value: &T) {
        self.space.memory().write(address, value).expect("test memory");
    }

    pub(crate) fn peek<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&self, address: u64) -> T {
        self.space.memory().read(address).expect("test memory")
    }
}
