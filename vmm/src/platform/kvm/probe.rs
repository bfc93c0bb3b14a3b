//! What this machine's KVM does, found out by trying: nothing is guessed from a vendor string.

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, Kvm};
use rustix::io::Errno;
use serde::Serialize;

use super::area::Area;
use super::memslots::Memslots;
use super::{Host, OpenKvmError, cpu_state};

/// In which mode the processor arrives at the system-call entry, and so which instruction returns from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// Still in user mode (kvm_pvm): return with a jump through RCX.
    UserMode,
    /// In supervisor mode (kvm_amd, kvm_intel): return with `sysretq`.
    SupervisorMode,
}

/// What the probes found.
#[derive(Debug, Clone, Serialize)]
pub struct Capabilities {
    /// KVM_GET_API_VERSION.
    pub api_version: i32,
    /// How the system-call entry is reached.
    pub entry: EntryKind,
    /// Whether the dirty ring exists, by either capability.
    pub dirty_ring: bool,
    /// KVM_CAP_SYNC_REGS with general and special registers.
    pub sync_registers: bool,
    /// KVM_CAP_IMMEDIATE_EXIT.
    pub immediate_exit: bool,
    /// KVM_CAP_MEMORY_FAULT_INFO.
    pub memory_fault_info: bool,
    /// Memslots a VM may have.
    pub memslots: usize,
    /// XCR0 of guests.
    pub xcr0: u64,
    /// The module behind /dev/kvm as /sys/module tells, for people; nothing depends on it.
    pub kind: &'static str,
}

/// KVM_CAP_DIRTY_LOG_RING and its stricter successor.
pub(super) const CAP_DIRTY_LOG_RING: u32 = 192;
pub(super) const CAP_DIRTY_LOG_RING_ACQ_REL: u32 = 223;
const CAP_MEMORY_FAULT_INFO: u32 = 232;

pub(super) fn open() -> Result<Host, OpenKvmError> {
    let kvm = Kvm::new().map_err(|error| OpenKvmError::Device(Errno::from_raw_os_error(error.errno())))?;
    if kvm.get_api_version() != 12 {
        return Err(OpenKvmError::Lacks("API version 12"));
    }
    if !kvm.check_extension(Cap::ImmediateExit) {
        return Err(OpenKvmError::Lacks("immediate_exit (Linux 4.13)"));
    }
    let sync = kvm.check_extension_int(Cap::SyncRegs);
    if sync & 3 != 3 {
        return Err(OpenKvmError::Lacks("synchronised registers (KVM_CAP_SYNC_REGS)"));
    }
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(OpenKvmError::ioctl("list the CPU's features"))?;
    let (cpuid, xcr0) = cpu_state::offered(cpuid);
    let extension = |number: u32| kvm.check_extension_raw(number.into());
    let capabilities = Capabilities {
        api_version: kvm.get_api_version(),
        entry: EntryKind::UserMode,
        dirty_ring: extension(CAP_DIRTY_LOG_RING) > 0 || extension(CAP_DIRTY_LOG_RING_ACQ_REL) > 0,
        sync_registers: true,
        immediate_exit: true,
        memory_fault_info: extension(CAP_MEMORY_FAULT_INFO) > 0,
        memslots: kvm.get_nr_memslots(),
        xcr0,
        kind: kind(),
    };
    let mut host = Host { kvm, cpuid, xcr0, capabilities };
    host.capabilities.entry = entry_kind(&host)?;
    if !host.capabilities.dirty_ring {
        return Err(OpenKvmError::Lacks("the dirty ring (Linux 5.11)"));
    }
    Ok(host)
}

fn kind() -> &'static str {
    ["kvm_pvm", "kvm_amd", "kvm_intel"]
        .into_iter()
        .find(|module| std::path::Path::new("/sys/module").join(module).exists())
        .unwrap_or("unknown")
}

/// Run one `syscall` instruction and look at the code segment at the exit.
fn entry_kind(host: &Host) -> Result<EntryKind, OpenKvmError> {
    let failed = |errno| OpenKvmError::Ioctl("run a probe", errno);
    let vm = host.kvm.create_vm().map_err(OpenKvmError::ioctl("create a VM"))?;
    let area = Area::new(1 << 30, EntryKind::UserMode).map_err(failed)?;
    let _slots = Memslots::new(&vm, (area.address(), area.host_address(), area.bytes()), 0, false).map_err(failed)?;
    let mut vcpu = vm.create_vcpu(0).map_err(OpenKvmError::ioctl("create a vCPU"))?;
    cpu_state::initialise(&vcpu, &host.cpuid, host.xcr0, &area, None).map_err(failed)?;
    let registers = kvm_bindings::kvm_regs { rip: area.probe(), rflags: 0x202, ..kvm_bindings::kvm_regs::default() };
    vcpu.set_regs(&registers).map_err(OpenKvmError::ioctl("set registers"))?;
    vcpu.run().map_err(OpenKvmError::ioctl("run a probe"))?;
    let sregs = vcpu.get_sregs().map_err(OpenKvmError::ioctl("read registers"))?;
    drop(vcpu);
    drop(vm);
    Ok(if sregs.cs.selector & 3 == 3 { EntryKind::UserMode } else { EntryKind::SupervisorMode })
}
