#![expect(unsafe_code, reason = "the ring is memory shared with KVM")]
//! The dirty ring of a vCPU: KVM appends an entry for each page that the guest writes for the first time.
//!
//! Without a reset of the ring a page is reported once, until its mapping is dropped; [`DirtyRing::harvest`] therefore only
//! reads, and the caller re-arms ([`DirtyRing::rearm`]) when the ring is full or it wants to learn again.
//!
//! UNSAFETY: the mapping is made and unmapped here; entries are read and written with volatile accesses, flags with
//! acquire/release order, as the protocol asks (Documentation/virt/kvm/api.rst, KVM_CAP_DIRTY_LOG_RING).
//!
//! Why not kvm-ioctls: 0.25 has the capability and not the ring.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use kvm_ioctls::{VcpuFd, VmFd};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::limits::PAGE;

/// `KVM_DIRTY_GFN_F_DIRTY` and `KVM_DIRTY_GFN_F_RESET` (bindgen cannot translate their BIT() form).
const KVM_DIRTY_GFN_F_DIRTY: u32 = 1;
const KVM_DIRTY_GFN_F_RESET: u32 = 2;

/// `KVM_RESET_DIRTY_RINGS`, `_IO(KVMIO, 0xc7)`.
const KVM_RESET_DIRTY_RINGS: libc::c_ulong = 0xaec7;

/// Entries of a ring, a power of two: 256 KiB of kernel memory a VM, and a request that writes 64 MiB fills it once.
pub(super) const ENTRIES: usize = 16_384;
/// What KVM_ENABLE_CAP takes: bytes.
pub(super) const BYTES: u64 = (ENTRIES * size_of::<kvm_dirty_gfn>()) as u64;

/// One vCPU's ring.
#[derive(Debug)]
pub(super) struct DirtyRing {
    entries: *mut kvm_dirty_gfn,
    /// Next entry to read.
    read: usize,
    /// Next entry to give back.
    given: usize,
}

// SAFETY: the mapping belongs to this value alone and has no thread affinity.
unsafe impl Send for DirtyRing {}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`.
        let _ = unsafe { rustix::mm::munmap(self.entries.cast(), BYTES as usize) };
    }
}

impl DirtyRing {
    /// Map the ring of a vCPU of a VM that has rings enabled.
    pub(super) fn map(vcpu: &VcpuFd) -> Result<Self, Errno> {
        // SAFETY: the descriptor is open as long as the borrow of the vCPU.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE;
        // SAFETY: a new mapping at an address the kernel chooses.
        let entries = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), BYTES as usize, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, offset)
        }?;
        Ok(Self { entries: entries.cast(), read: 0, given: 0 })
    }

    fn entry(&self, index: usize) -> *mut kvm_dirty_gfn {
        self.entries.wrapping_add(index % ENTRIES)
    }

    fn flags(&self, index: usize) -> &AtomicU32 {
        // The flags are the entry's first word (struct kvm_dirty_gfn).
        let flags = self.entry(index).cast::<u32>();
        // SAFETY: the word is inside the mapping, which outlives the reference, and KVM uses it atomically too.
        unsafe { AtomicU32::from_ptr(flags) }
    }

    /// Report every new entry as (slot, page offset in the slot).
    pub(super) fn harvest(&mut self, mut report: impl FnMut(u32, u64)) {
        while self.read - self.given < ENTRIES && self.flags(self.read).load(Ordering::Acquire) & KVM_DIRTY_GFN_F_DIRTY != 0 {
            // SAFETY: the entry is inside the mapping, and KVM does not touch it until it is given back.
            let entry = unsafe { self.entry(self.read).read_volatile() };
            report(entry.slot & 0xffff, entry.offset);
            self.read += 1;
        }
    }

    /// Give all harvested entries back, so that their pages are reported anew when they are written next.
    pub(super) fn rearm(&mut self, vm: &VmFd) -> Result<(), Errno> {
        while self.given < self.read {
            self.flags(self.given).store(KVM_DIRTY_GFN_F_RESET, Ordering::Release);
            self.given += 1;
        }
        // Newer kernels stop half-way where a signal is pending (a kick), and a ring that stays full lets no guest run: until nothing
        // is left. Every turn but the last takes entries back, or finds another signal.
        for _ in 0..ENTRIES {
            // SAFETY: an ioctl without an argument on a VM that is open as long as the borrow.
            let result = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS) };
            if result == 0 {
                return Ok(());
            }
            let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
            if result < 0 && errno != Errno::INTR {
                return Err(errno);
            }
        }
        Err(Errno::IO)
    }

    /// Entries in use.
    pub(super) const fn used(&self) -> usize {
        self.read - self.given
    }
}
