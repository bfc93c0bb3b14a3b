//! What this machine's KVM does, found out by trying: nothing is guessed from a vendor string.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_sregs};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use rustix::io::Errno;
use serde::Serialize;

use super::area::Area;
use super::memslots::Memslots;
use super::{Host, OpenKvmError, cpu_state};
use crate::linux::clock::host_monotonic;
use crate::memory::Pagemap;
use crate::withheld::{Feature, withheld};

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
    /// Whether the dirty ring exists, by either capability; else written pages come from bitmaps.
    pub dirty_ring: bool,
    /// KVM_CAP_SYNC_REGS with general and special registers; else they travel by ioctls.
    pub sync_registers: bool,
    /// The PAGEMAP_SCAN ioctl; else page maps are read.
    pub pagemap_scan: bool,
    /// KVM_CAP_IMMEDIATE_EXIT.
    pub immediate_exit: bool,
    /// KVM_CAP_MEMORY_FAULT_INFO.
    pub memory_fault_info: bool,
    /// Whether RIP is behind an `out` when it exits, or at it until the next run.
    pub rip_behind_out: bool,
    /// Entries of KVM_GET_SUPPORTED_CPUID.
    pub cpuid_entries: usize,
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
/// Exits that are timed to tell people what one costs.
const EXITS: usize = 301;

pub(super) fn open() -> Result<Host, OpenKvmError> {
    if let Err(name) = withheld() {
        return Err(OpenKvmError::Withheld(name.clone()));
    }
    let kvm = Kvm::new().map_err(|error| OpenKvmError::Device(Errno::from_raw_os_error(error.errno())))?;
    if kvm.get_api_version() != 12 {
        return Err(OpenKvmError::Lacks("API version 12"));
    }
    if !kvm.check_extension(Cap::ImmediateExit) {
        return Err(OpenKvmError::Lacks("immediate_exit (Linux 4.13)"));
    }
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(OpenKvmError::ioctl("list the CPU's features"))?;
    let cpuid_entries = cpuid.as_slice().len();
    let (cpuid, xcr0) = cpu_state::offered(cpuid);
    let extension = |number: u32| kvm.check_extension_raw(number.into());
    let capabilities = Capabilities {
        api_version: kvm.get_api_version(),
        entry: EntryKind::UserMode,
        dirty_ring: (extension(CAP_DIRTY_LOG_RING) > 0 || extension(CAP_DIRTY_LOG_RING_ACQ_REL) > 0) && !Feature::DirtyRing.is_withheld(),
        sync_registers: kvm.check_extension_int(Cap::SyncRegs) & 3 == 3 && !Feature::SyncRegisters.is_withheld(),
        pagemap_scan: Pagemap::open().is_ok_and(|pagemap| pagemap.has_scan()),
        immediate_exit: true,
        memory_fault_info: extension(CAP_MEMORY_FAULT_INFO) > 0,
        rip_behind_out: true,
        cpuid_entries,
        memslots: kvm.get_nr_memslots(),
        xcr0,
        kind: kind(),
    };
    let mut host = Host { kvm, cpuid, xcr0, capabilities };
    let probe = Probe::new(&host)?;
    (host.capabilities.entry, host.capabilities.rip_behind_out) = probe.entry()?;
    Ok(host)
}

fn kind() -> &'static str {
    ["kvm_pvm", "kvm_amd", "kvm_intel"]
        .into_iter()
        .find(|module| std::path::Path::new("/sys/module").join(module).exists())
        .unwrap_or("unknown")
}

/// A VM without a program, whose one instruction is a `syscall`.
struct Probe {
    vcpu: VcpuFd,
    area: Area,
    // Dropped last: the vCPU belongs to it, and it uses the area's memory.
    _vm: VmFd,
}

impl Probe {
    fn new(host: &Host) -> Result<Self, OpenKvmError> {
        let failed = |errno| OpenKvmError::Ioctl("run a probe", errno);
        let vm = host.kvm.create_vm().map_err(OpenKvmError::ioctl("create a VM"))?;
        let area = Area::new(1 << 30, EntryKind::UserMode, None, host.xcr0).map_err(failed)?;
        Memslots::new(&vm, (area.address(), area.host_address(), area.bytes()), 0, false).map_err(failed)?;
        let vcpu = vm.create_vcpu(0).map_err(OpenKvmError::ioctl("create a vCPU"))?;
        cpu_state::initialise(&vcpu, &host.cpuid, host.xcr0, &area, None).map_err(failed)?;
        Ok(Self { vcpu, area, _vm: vm })
    }

    /// From `syscall` to the exit; the nanoseconds of KVM_RUN.
    fn exit(&mut self) -> Result<u64, OpenKvmError> {
        let registers = kvm_regs { rip: self.area.probe(), rflags: 0x202, ..kvm_regs::default() };
        self.vcpu.set_regs(&registers).map_err(OpenKvmError::ioctl("set registers"))?;
        let (code, stack) = cpu_state::user_segments();
        let sregs = self.vcpu.get_sregs().map_err(OpenKvmError::ioctl("read registers"))?;
        self.vcpu.set_sregs(&kvm_sregs { cs: code, ss: stack, ..sregs }).map_err(OpenKvmError::ioctl("set registers"))?;
        let start = host_monotonic();
        self.vcpu.run().map_err(OpenKvmError::ioctl("run a probe"))?;
        Ok(host_monotonic().saturating_sub(start))
    }

    /// How the system-call entry is reached, and whether RIP is behind the `out` there.
    fn entry(mut self) -> Result<(EntryKind, bool), OpenKvmError> {
        self.exit()?;
        let sregs = self.vcpu.get_sregs().map_err(OpenKvmError::ioctl("read registers"))?;
        let regs = self.vcpu.get_regs().map_err(OpenKvmError::ioctl("read registers"))?;
        let kind = if sregs.cs.selector & 3 == 3 { EntryKind::UserMode } else { EntryKind::SupervisorMode };
        Ok((kind, regs.rip != self.area.entry()))
    }
}

/// What an exit and the way back into the guest cost, nanoseconds: the median of a few hundred.
///
/// # Errors
///
/// [`OpenKvmError`].
pub fn exit_cost_ns(host: &Host) -> Result<u64, OpenKvmError> {
    let mut probe = Probe::new(host)?;
    let mut times = (0..EXITS).map(|_| probe.exit()).collect::<Result<Vec<u64>, _>>()?;
    times.sort_unstable();
    Ok(times[EXITS / 2])
}
