#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION hands host addresses to KVM")]
//! Memslots: which parts of the address space KVM knows. Added when a block in them is first used, never deleted.
//!
//! A slot covers an aligned 32 MiB: on shadow-paging hosts a slot costs 3.8 MB of kernel memory per GiB, so reservations
//! that nobody touches get none, and one host call (28 us on kvm_pvm) serves sixteen blocks.
//!
//! UNSAFETY: the host range of a slot is part of a reservation (or area) that outlives the VM: the VM's owner drops the VM first.

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use rustix::io::Errno;

/// Bytes of one slot.
pub const SLOT_BYTES: u64 = 32 << 20;

/// The slots of one VM.
#[derive(Debug, Default)]
pub(super) struct Memslots {
    /// Whether the slot of the n-th 32 MiB exists, and its number.
    numbers: Vec<Option<u32>>,
    /// First address by slot number.
    starts: Vec<u64>,
    log_dirty: bool,
    /// Where the address space ends.
    space: u64,
}

impl Memslots {
    /// Make the slot of the supervisor area, number 0, without dirty logging.
    pub(super) fn new(vm: &VmFd, area: (u64, u64, u64), space: u64, log_dirty: bool) -> Result<Self, Errno> {
        let (guest, host, bytes) = area;
        let region = kvm_userspace_memory_region { slot: 0, flags: 0, guest_phys_addr: guest, memory_size: bytes, userspace_addr: host };
        // SAFETY: see the module's header.
        unsafe { vm.set_user_memory_region(region) }.map_err(|error| Errno::from_raw_os_error(error.errno()))?;
        Ok(Self { numbers: Vec::new(), starts: vec![guest], log_dirty, space })
    }

    /// Make sure that `[start, end)` is covered.
    pub(super) fn cover(&mut self, vm: &VmFd, host_base: u64, start: u64, end: u64) -> Result<(), Errno> {
        for index in start / SLOT_BYTES..end.div_ceil(SLOT_BYTES) {
            let position = usize::try_from(index).map_err(|_| Errno::NOMEM)?;
            if self.numbers.len() <= position {
                self.numbers.resize(position + 1, None);
            }
            if self.numbers[position].is_some() {
                continue;
            }
            let slot = u32::try_from(self.starts.len()).map_err(|_| Errno::NOMEM)?;
            let address = index * SLOT_BYTES;
            let region = kvm_userspace_memory_region {
                slot,
                flags: if self.log_dirty { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
                guest_phys_addr: address,
                memory_size: self.bytes_at(address),
                userspace_addr: host_base + address,
            };
            // SAFETY: see the module's header.
            unsafe { vm.set_user_memory_region(region) }.map_err(|error| Errno::from_raw_os_error(error.errno()))?;
            self.starts.push(address);
            self.numbers[position] = Some(slot);
        }
        Ok(())
    }

    /// How many slots there are besides the supervisor area's.
    pub(super) fn count(&self) -> usize {
        self.starts.len() - 1
    }

    /// Number, first address and bytes of every slot that is logged.
    pub(super) fn logged(&self) -> impl Iterator<Item = (u32, u64, u64)> + '_ {
        (0_u32..).zip(&self.starts).skip(1).map(|(slot, &start)| (slot, start, self.bytes_at(start)))
    }

    /// The last one ends with the reservation.
    fn bytes_at(&self, address: u64) -> u64 {
        SLOT_BYTES.min(self.space.saturating_sub(address))
    }

    /// The first address of a slot.
    pub(super) fn start(&self, slot: u32) -> Option<u64> {
        self.starts.get(slot as usize).copied()
    }
}
