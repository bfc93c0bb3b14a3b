#![expect(unsafe_code, reason = "an ioctl that kvm-ioctls has for other processors only, and RDTSC")]
//! The guest's time-stamp counter, which is to count as the host's: the vDSO makes its clocks of it.
//!
//! UNSAFETY: the ioctl reads one structure and the word that it points to, both of which live as long as the call; RDTSC reads a
//! counter.

use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_device_attr, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use rustix::io::Errno;

/// `KVM_SET_DEVICE_ATTR`, `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
const MSR_TSC: u32 = 0x10;
/// How far apart the two may be, ticks: where the counter was set, what went by between reading and setting, which an interruption can
/// make long; less than 2 ms. A counter that begins at zero, or runs at another speed, is further away.
const TOLERANCE: u64 = 1 << 22;

/// Let a fresh vCPU's counter be the host's (Documentation/virt/kvm/devices/vcpu.rst, KVM_VCPU_TSC_OFFSET, Linux 5.16), or set it to
/// what the host's is now. Whether that has come to anything, [`is_hosts`] tells.
pub(super) fn follow_host(vcpu: &VcpuFd) -> Result<(), Errno> {
    let offset = 0_u64;
    let attribute =
        kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET.into(), addr: (&raw const offset) as u64 };
    // SAFETY: the descriptor is open as long as the borrow; KVM reads the structure and the word, and both outlive the call.
    if unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attribute) } == 0 {
        return Ok(());
    }
    let entry = kvm_msr_entry { index: MSR_TSC, data: host_counter(), ..kvm_msr_entry::default() };
    let msrs = Msrs::from_entries(&[entry]).map_err(|_| Errno::NOMEM)?;
    vcpu.set_msrs(&msrs).map(|_| ()).map_err(|error| Errno::from_raw_os_error(error.errno()))
}

/// The host's counter now.
pub(super) fn host_counter() -> u64 {
    // SAFETY: RDTSC has no preconditions in user mode.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Whether a guest that read `guest` between the host's `before` and `after` has the host's counter.
pub(super) const fn is_hosts(guest: u64, before: u64, after: u64) -> bool {
    guest.saturating_add(TOLERANCE) >= before && guest <= after.saturating_add(TOLERANCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_of_its_own_is_told_from_the_hosts() {
        let before = 1 << 40;
        let after = before + 100_000;
        for guest in [before, after, before + 7, before - 300, after + 300] {
            assert!(is_hosts(guest, before, after), "{guest}");
        }
        for guest in [0, 100_000, before / 2, before - 2 * TOLERANCE, after + 2 * TOLERANCE, u64::MAX] {
            assert!(!is_hosts(guest, before, after), "{guest}");
        }
    }
}
