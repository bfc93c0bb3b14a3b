//! KVM: user mode native, everything below it ours. See docs/kvm.md for how implementations differ.

mod area;
mod cpu_state;
mod cpuid;
mod dirty_log;
mod dirty_ring;
mod fault;
mod kick;
mod layout;
mod memslots;
mod probe;
mod registers;
mod segments;
mod time_stamp;
mod vcpu;
mod vector_state;

use std::sync::OnceLock;

use kvm_ioctls::Kvm;

pub use kick::{Kick, KickFlag, Kicker};
pub use memslots::SLOT_BYTES;
pub use probe::{Capabilities, EntryKind, exit_cost_ns};
pub use vcpu::Vm;

/// Why KVM cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenKvmError {
    /// The device is missing or may not be opened.
    #[error("cannot open /dev/kvm: {0}")]
    Device(rustix::io::Errno),
    /// The environment names a feature to do without that is none.
    #[error("cannot do without {0:?}, which {variable} names: it knows {known}", variable = crate::withheld::VARIABLE, known = crate::withheld::known())]
    Withheld(String),
    /// The kernel's KVM lacks something that nothing can replace.
    #[error("this KVM lacks {0}")]
    Lacks(&'static str),
    /// An ioctl failed that never fails on a working KVM.
    #[error("KVM failed to {0}: {1}")]
    Ioctl(&'static str, rustix::io::Errno),
}

impl OpenKvmError {
    fn ioctl(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Ioctl(what, rustix::io::Errno::from_raw_os_error(error.errno()))
    }
}

/// The opened device and what was found out about it.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    processor: cpuid::Processor,
    capabilities: Capabilities,
}

impl Host {
    /// Open `/dev/kvm` and probe it, once per process; a forked process goes on with what its parent found.
    ///
    /// # Errors
    ///
    /// [`OpenKvmError`].
    pub fn get() -> Result<&'static Self, OpenKvmError> {
        static HOST: OnceLock<Host> = OnceLock::new();
        if let Some(host) = HOST.get() {
            return Ok(host);
        }
        let host = probe::open()?;
        Ok(HOST.get_or_init(|| host))
    }

    /// What this KVM can do.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// XCR0 of every guest: the extended state that a thread has.
    #[must_use]
    pub const fn xcr0(&self) -> u64 {
        self.processor.xcr0
    }
}
