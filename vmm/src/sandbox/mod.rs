//! A sandbox: one VM with its kernel and its program, and the life of a snapshot.
//!
//! A *master* is loaded, booted until it is ready, warmed up and frozen ([`Snapshot`]). A *request VM* is a fork: it runs one
//! request, is reset, verified if asked, and runs the next. A fork whose reset failed is thrown away, never used again.
//!
//! The run loop ([`run`]) applies what the platform and our Linux say to one another; neither knows the other.

mod boot;
mod end;
mod execute;
mod fast_path;
mod faults;
mod hot_pages;
mod remote;
mod reset;
mod run;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;
mod verify;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

pub use boot::LoadSandboxError;
pub use end::RunEnd;
pub use remote::{CallBuffer, Remote, RemoteLink, Suspended};
pub use run::{Pause, WatchedStream};
pub use snapshot::{ForkOptions, Snapshot, SnapshotError};
pub use verify::{Mismatch, Skip};

use crate::linux::Kernel;
use crate::linux::gate::RemoteCall;
use crate::linux::thread::Tid;
use crate::linux::trace::Recorder;
use crate::memory::AddressSpace;
use crate::platform::kvm::Vm;
use crate::stats::RunCounters;
use fast_path::Told;
use hot_pages::HotPages;
use remote::CallerSide;
use snapshot::Frozen;

/// One VM with its kernel and program.
#[derive(Debug)]
pub struct Sandbox {
    // Dropped in this order: KVM must let go of the memory before the memory goes.
    vm: Vm,
    space: AddressSpace,
    kernel: Kernel,
    /// The thread whose extended state is on the vCPU.
    on_vcpu: Tid,
    recorder: Recorder,
    trace: bool,
    /// The extended state of a fresh vCPU: what a program starts with.
    initial_extended: Arc<[u8]>,
    /// What the current run has cost.
    pub counters: RunCounters,
    /// Most pages a run may have written; `u64::MAX` for a master, whose memory is bounded when it is mapped.
    dirty_pages_max: u64,
    /// What this sandbox was forked from.
    frozen: Option<Arc<Frozen>>,
    hot: HotPages,
    /// Address of the AT_RANDOM bytes, and this VM's own.
    random: (u64, [u8; 16]),
    /// The page fault that was retried last (RIP and address), so that none is retried twice.
    retried_fault: Option<(u64, u64)>,
    /// `files.changes` when sleepers were last looked at.
    seen_changes: u64,
    /// The host moment for which the kicker is armed.
    armed: u64,
    /// For a program that calls a storage program: its shared memory, and the way there.
    caller: Option<CallerSide>,
    /// For a storage program: how much of the window the last call has left in use, bytes.
    window_used: u64,
    /// What the fast path in the guest knows.
    told: Told,
    /// A call to the storage program that a thread has just asked for.
    remote_call: Option<RemoteCall>,
    /// How many threads of the host wait for this VM, where somebody may.
    yield_when: Option<Arc<AtomicUsize>>,
}

impl Sandbox {
    /// A sandbox that is not the fork of a snapshot.
    fn assemble(vm: Vm, space: AddressSpace, kernel: Kernel, initial_extended: Arc<[u8]>) -> Self {
        Self {
            on_vcpu: kernel.process.pid,
            initial_extended,
            vm,
            space,
            kernel,
            recorder: Recorder::default(),
            trace: false,
            counters: RunCounters::default(),
            dirty_pages_max: u64::MAX,
            frozen: None,
            hot: HotPages::default(),
            random: (0, [0; 16]),
            retried_fault: None,
            seen_changes: 0,
            armed: u64::MAX,
            caller: None,
            window_used: 0,
            told: Told::Stale,
            remote_call: None,
            yield_when: None,
        }
    }

    /// Our Linux.
    #[must_use]
    pub const fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Our Linux, to feed streams and take notes.
    pub const fn kernel_mut(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// The guest's memory.
    #[must_use]
    pub const fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// The last system calls, for reports.
    pub const fn recorder(&mut self) -> &mut Recorder {
        &mut self.recorder
    }

    /// A kicker for the calling thread, which is going to run this sandbox.
    ///
    /// # Errors
    ///
    /// EAGAIN where the user has too many timers.
    pub fn kicker(&mut self) -> Result<crate::platform::kvm::Kicker, rustix::io::Errno> {
        self.armed = u64::MAX;
        self.vm.kicker()
    }
}
