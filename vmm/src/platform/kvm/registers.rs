//! A vCPU's registers, in and out: through the `kvm_run` page where KVM has KVM_CAP_SYNC_REGS, else by ioctls (four more
//! host calls an exit).
//!
//! Reference: Documentation/virt/kvm/api.rst, KVM_CAP_SYNC_REGS.

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::{SyncReg, VcpuFd};
use rustix::io::Errno;

/// How registers travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RegisterAccess {
    /// With KVM_RUN, through the shared page.
    Shared,
    /// By KVM_GET_REGS and its relatives.
    Calls,
}

fn errno(error: kvm_ioctls::Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

impl RegisterAccess {
    /// Prepare a vCPU whose special registers are `sregs`.
    pub(super) fn attach(self, vcpu: &mut VcpuFd, sregs: kvm_sregs) {
        if self == Self::Shared {
            vcpu.set_sync_valid_reg(SyncReg::Register);
            vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
            vcpu.sync_regs_mut().sregs = sregs;
        }
    }

    /// The registers after a run.
    pub(super) fn take(self, vcpu: &mut VcpuFd) -> Result<(kvm_regs, kvm_sregs), Errno> {
        match self {
            Self::Shared => {
                let sync = vcpu.sync_regs_mut();
                Ok((sync.regs, sync.sregs))
            }
            Self::Calls => Ok((vcpu.get_regs().map_err(errno)?, vcpu.get_sregs().map_err(errno)?)),
        }
    }

    /// Use these general registers in the next run.
    pub(super) fn put_general(self, vcpu: &mut VcpuFd, registers: kvm_regs) -> Result<(), Errno> {
        match self {
            Self::Shared => {
                vcpu.sync_regs_mut().regs = registers;
                vcpu.set_sync_dirty_reg(SyncReg::Register);
                Ok(())
            }
            Self::Calls => vcpu.set_regs(&registers).map_err(errno),
        }
    }

    /// Use these special registers in the next run.
    pub(super) fn put_special(self, vcpu: &mut VcpuFd, registers: kvm_sregs) -> Result<(), Errno> {
        match self {
            Self::Shared => {
                vcpu.sync_regs_mut().sregs = registers;
                vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
                Ok(())
            }
            Self::Calls => vcpu.set_sregs(&registers).map_err(errno),
        }
    }
}
