//! Which pages the guest has written: from the dirty ring, or where KVM has none from a bitmap for each memslot.
//!
//! The ring costs what was written; the bitmaps cost a host call for each slot and reset (a slot is 32 MiB), and KVM
//! write-protects a page again when it was reported, so that hot pages fault anew in every request.
//!
//! Reference: Documentation/virt/kvm/api.rst, KVM_GET_DIRTY_LOG and KVM_CAP_DIRTY_LOG_RING.

use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING_ACQ_REL, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use rustix::io::Errno;

use super::OpenKvmError;
use super::dirty_ring::{self, DirtyRing};
use super::memslots::Memslots;
use super::probe::CAP_DIRTY_LOG_RING;
use crate::limits::PAGE;
use crate::memory::AddressSpace;

/// Where KVM tells of written pages.
#[derive(Debug)]
pub(super) enum DirtyLog {
    /// Nobody asks.
    Off,
    /// In the vCPU's ring.
    Ring(DirtyRing),
    /// In a bitmap for each slot, which is cleared when it is read.
    Bitmaps,
}

impl DirtyLog {
    /// Prepare a VM, before it has vCPUs, for a ring.
    pub(super) fn enable_ring(vm: &VmFd) -> Result<(), OpenKvmError> {
        let enable = |cap| vm.enable_cap(&kvm_enable_cap { cap, args: [dirty_ring::BYTES, 0, 0, 0], ..kvm_enable_cap::default() });
        enable(KVM_CAP_DIRTY_LOG_RING_ACQ_REL).or_else(|_| enable(CAP_DIRTY_LOG_RING)).map_err(OpenKvmError::ioctl("enable the dirty ring"))
    }

    /// The ring of a vCPU of such a VM.
    pub(super) fn ring(vcpu: &VcpuFd) -> Result<Self, Errno> {
        DirtyRing::map(vcpu).map(Self::Ring)
    }

    /// Put the pages that were reported since the last harvest into the memory's dirty set.
    pub(super) fn harvest(&mut self, vm: &VmFd, slots: &Memslots, space: &AddressSpace) -> Result<(), Errno> {
        let mut dirty = space.memory().dirty_mut();
        match self {
            Self::Off => {}
            Self::Ring(ring) => ring.harvest(|slot, offset| {
                if slot != 0
                    && let Some(start) = slots.start(slot)
                {
                    dirty.insert(start / PAGE + offset);
                }
            }),
            Self::Bitmaps => {
                for (slot, start, bytes) in slots.logged() {
                    let bytes = usize::try_from(bytes).map_err(|_| Errno::NOMEM)?;
                    let words = vm.get_dirty_log(slot, bytes).map_err(|error| Errno::from_raw_os_error(error.errno()))?;
                    for (word, mut bits) in words.into_iter().enumerate() {
                        while bits != 0 {
                            dirty.insert(start / PAGE + word as u64 * 64 + u64::from(bits.trailing_zeros()));
                            bits &= bits - 1;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether it should be re-armed soon, because it is running full.
    pub(super) const fn is_filling(&self) -> bool {
        matches!(self, Self::Ring(ring) if ring.used() > dirty_ring::ENTRIES / 2)
    }

    /// Let KVM report every page anew when it is written next.
    pub(super) fn rearm(&mut self, vm: &VmFd) -> Result<(), Errno> {
        match self {
            Self::Ring(ring) => ring.rearm(vm),
            Self::Off | Self::Bitmaps => Ok(()),
        }
    }
}
