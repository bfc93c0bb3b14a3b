//! Freezing a master, and forking request VMs from it.

use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use super::remote::CallerSide;
use super::{HotPages, RemoteLink, Sandbox};
use crate::limits::PAGE;
use crate::linux::thread::{State, Tid};
use crate::linux::{Kernel, MonotonicNs};
use crate::memory::{AddressSpace, MemoryImage};
use crate::platform::kvm::{OpenKvmError, SLOT_BYTES, Vm};

/// Why a snapshot could not be made or forked.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The memory could not be frozen or mapped.
    #[error("cannot map the snapshot: {0}")]
    Memory(#[from] Errno),
    /// KVM refused a VM.
    #[error(transparent)]
    Kvm(#[from] OpenKvmError),
    /// A thread could still run.
    #[error("the program is not at rest")]
    NotAtRest,
}

/// Everything that a reset returns to.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) memory: Arc<MemoryImage>,
    pub(super) kernel: Kernel,
    /// The thread that was on the vCPU last, and its extended state.
    pub(super) on_vcpu: Tid,
    pub(super) extended: Vec<u8>,
    /// The kernel as text, made when a verification first needs it.
    pub(super) kernel_text: OnceLock<String>,
    /// What a program starts with.
    pub(super) initial_extended: Arc<[u8]>,
    /// The guest's CLOCK_MONOTONIC at the freeze.
    pub(super) instant: MonotonicNs,
    /// Address of the AT_RANDOM bytes.
    pub(super) random_address: u64,
    /// Blocks of the memfd, to see that nobody wrote to it.
    pub(super) memfd_blocks: i64,
    /// Memory slots that its mappings need at most.
    pub(super) slots: u64,
}

/// A frozen program: immutable, shared by its forks, inherited by forked processes.
#[derive(Debug, Clone)]
pub struct Snapshot {
    frozen: Arc<Frozen>,
}

/// What a fork is for.
#[derive(Debug, Clone, Copy)]
pub struct ForkOptions {
    /// Whether it will be reset: only then KVM logs its dirty pages.
    pub ephemeral: bool,
    /// Most bytes one run may write.
    pub max_request_memory: u64,
    /// Most pages that stay mapped at a reset.
    pub hot_pages: usize,
    /// Most mappings that the host may have for it; see [`AddressSpace::limit_host_mappings`].
    pub host_mappings: usize,
}

impl Snapshot {
    /// Bytes of frozen memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.frozen.memory.bytes()
    }

    /// The kernel as it was frozen.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.frozen.kernel
    }

    /// A request VM, with its way to the storage program if there is one.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn fork(&self, options: &ForkOptions, link: Option<RemoteLink>) -> Result<Sandbox, SnapshotError> {
        let frozen = &self.frozen;
        let mut space = AddressSpace::fork_of(&frozen.memory)?;
        space.limit_host_mappings(options.host_mappings);
        let dirty_pages_max = if options.ephemeral { options.max_request_memory / PAGE } else { u64::MAX };
        space.memory().limit_written(dirty_pages_max);
        let caller = CallerSide::new(frozen.kernel.role, &mut space, link)?;
        let mut vm = Vm::new(&space, options.ephemeral)?;
        vm.keep_extended(&frozen.extended)?;
        // This thread may have run another VM before.
        vm.restore_segments();
        let mut random = [0; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let mut sandbox = Sandbox {
            on_vcpu: frozen.on_vcpu,
            dirty_pages_max,
            frozen: Some(Arc::clone(frozen)),
            hot: HotPages::new(options.hot_pages),
            random: (frozen.random_address, random),
            caller,
            ..Sandbox::assemble(vm, space, frozen.kernel.clone(), Arc::clone(&frozen.initial_extended))
        };
        sandbox.begin()?;
        sandbox.resume_clock();
        Ok(sandbox)
    }
}

impl Sandbox {
    /// Freeze this sandbox; it must not run again.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn freeze(mut self) -> Result<Snapshot, SnapshotError> {
        if self.kernel.threads.iter().any(|thread| thread.state == State::Runnable) {
            return Err(SnapshotError::NotAtRest);
        }
        let instant = self.kernel.clock.monotonic();
        let extended = self.vm.extended()?;
        self.kernel.files.after_fork();
        if let Some(fast) = self.space.fast_path() {
            fast.clear(self.space.memory())?;
        }
        let memory = Arc::new(MemoryImage::freeze(&self.space, false)?);
        let memfd_blocks = memory.blocks()?;
        let accessible = memory.vmas().iter().filter(|vma| !vma.protection.is_empty());
        let slots = accessible.map(|vma| vma.length().div_ceil(SLOT_BYTES) + 1).sum();
        let frozen = Frozen {
            memory,
            kernel: self.kernel,
            on_vcpu: self.on_vcpu,
            extended,
            initial_extended: self.initial_extended,
            instant,
            random_address: self.random.0,
            memfd_blocks,
            slots,
            kernel_text: OnceLock::new(),
        };
        Ok(Snapshot { frozen: Arc::new(frozen) })
    }

    /// What a run needs that is not part of the snapshot: its own randomness. (Its time it gets when it begins.)
    pub(super) fn begin(&mut self) -> Result<(), Errno> {
        if self.frozen.is_none() {
            return Ok(());
        }
        let (address, bytes) = self.random;
        if address != 0 {
            self.space.memory().write_bytes(address, &bytes)?;
        }
        Ok(())
    }

    /// CLOCK_MONOTONIC goes on from the snapshot's instant now: a VM that waited for its request has not lived meanwhile, or
    /// every interval timer of the program would be overdue.
    pub fn resume_clock(&mut self) {
        if let Some(frozen) = &self.frozen {
            self.kernel.clock.resume_at(frozen.instant);
            self.update_clock_page();
        }
    }

    /// Tell the vDSO how to make the guest's clocks of the processor's counter; a page that was never written says "use the system call".
    pub(super) fn update_clock_page(&self) {
        if self.vm.has_host_counter() {
            crate::loader::vdso::write(&self.space, &self.kernel.clock);
        }
    }
}
