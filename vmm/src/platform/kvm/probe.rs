//! What this machine's KVM does, found out by trying: nothing is guessed from a vendor string.

use std::path::Path;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_sregs};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use rustix::io::Errno;
use serde::Serialize;

use super::area::Area;
use super::cpuid::{self, Processor};
use super::dirty_log::DirtyLog;
use super::dirty_ring;
use super::memslots::Memslots;
use super::{Host, OpenKvmError, cpu_state, time_stamp};
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
    /// Whether a dirty ring of our size could be had, by either capability; else written pages come from bitmaps.
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
    /// Whether programs may read and write the bases of FS and GS themselves (CR4.FSGSBASE).
    pub fsgsbase: bool,
    /// Whether a guest's time-stamp counter is the host's; else its clocks are system calls.
    pub time_stamp_counter: bool,
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
    let mut processor = cpuid::offered(cpuid);
    let probe = Probe::of(&kvm, &mut processor)?;
    let found = probe.entry()?;
    let capabilities = Capabilities {
        api_version: kvm.get_api_version(),
        entry: found.entry,
        dirty_ring: !Feature::DirtyRing.is_withheld() && has_dirty_ring(&kvm),
        sync_registers: kvm.check_extension_int(Cap::SyncRegs) & 3 == 3 && !Feature::SyncRegisters.is_withheld(),
        pagemap_scan: Pagemap::open().is_ok_and(|pagemap| pagemap.has_scan()),
        immediate_exit: true,
        memory_fault_info: kvm.check_extension_raw(CAP_MEMORY_FAULT_INFO.into()) > 0,
        rip_behind_out: found.rip_behind_out,
        fsgsbase: processor.fsgsbase,
        time_stamp_counter: found.time_stamp_counter && !Feature::TimeStampCounter.is_withheld(),
        cpuid_entries,
        memslots: kvm.get_nr_memslots(),
        xcr0: processor.xcr0,
        kind: kind(
            |module| Path::new("/sys/module").join(module).exists(),
            || std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
        ),
    };
    Ok(Host { kvm, processor, capabilities })
}

/// Whether a VM can have a ring as large as ours: a capability's answer is the most bytes, and says nothing of whether there is room.
fn has_dirty_ring(kvm: &Kvm) -> bool {
    let bytes = |number: u32| u64::try_from(kvm.check_extension_raw(number.into())).unwrap_or(0);
    if bytes(CAP_DIRTY_LOG_RING).max(bytes(CAP_DIRTY_LOG_RING_ACQ_REL)) < dirty_ring::BYTES {
        return false;
    }
    let Ok(vm) = kvm.create_vm() else { return false };
    DirtyLog::enable_ring(&vm).is_ok() && vm.create_vcpu(0).is_ok_and(|vcpu| DirtyLog::ring(&vcpu).is_ok())
}

/// The module behind /dev/kvm. Where a kernel has several built in, the processor's flags say which of them is in use.
fn kind(is_loaded: impl Fn(&str) -> bool, cpuinfo: impl FnOnce() -> String) -> &'static str {
    const KINDS: [(&str, &str); 3] = [("kvm_pvm", ""), ("kvm_amd", "svm"), ("kvm_intel", "vmx")];
    let loaded: Vec<(&str, &str)> = KINDS.into_iter().filter(|(module, _)| is_loaded(module)).collect();
    if let [(module, _)] = *loaded {
        return module;
    }
    let text = cpuinfo();
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let in_use = loaded.into_iter().find(|(_, needed)| flags.split_whitespace().any(|flag| flag == *needed));
    in_use.map_or("unknown", |(module, _)| module)
}

/// What one system call of the probe shows.
struct Found {
    entry: EntryKind,
    /// Whether RIP is behind the `out`.
    rip_behind_out: bool,
    time_stamp_counter: bool,
}

/// A VM without a program, whose two instructions are `rdtsc` and `syscall`.
struct Probe {
    vcpu: VcpuFd,
    area: Area,
    // Dropped last: the vCPU belongs to it, and it uses the area's memory.
    _vm: VmFd,
}

impl Probe {
    fn new(kvm: &Kvm, processor: &Processor) -> Result<Self, OpenKvmError> {
        let failed = |errno| OpenKvmError::Ioctl("run a probe", errno);
        let vm = kvm.create_vm().map_err(OpenKvmError::ioctl("create a VM"))?;
        let area = Area::new(1 << 30, EntryKind::UserMode, None, processor.xcr0).map_err(failed)?;
        Memslots::new(&vm, (area.address(), area.host_address(), area.bytes()), 0, false).map_err(failed)?;
        let vcpu = vm.create_vcpu(0).map_err(OpenKvmError::ioctl("create a vCPU"))?;
        cpu_state::initialise(&vcpu, processor, &area).map_err(|errno| OpenKvmError::Ioctl("set up a processor with XSAVE", errno))?;
        Ok(Self { vcpu, area, _vm: vm })
    }

    /// With CR4.FSGSBASE where KVM lets it be set. CPUID does not tell: kvm_pvm offers it in neither, and has it.
    fn of(kvm: &Kvm, processor: &mut Processor) -> Result<Self, OpenKvmError> {
        match Self::new(kvm, processor) {
            Err(OpenKvmError::Ioctl(_, Errno::INVAL)) => {
                processor.fsgsbase = false;
                Self::new(kvm, processor)
            }
            probe => probe,
        }
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

    fn entry(mut self) -> Result<Found, OpenKvmError> {
        let before = time_stamp::host_counter();
        self.exit()?;
        let after = time_stamp::host_counter();
        let sregs = self.vcpu.get_sregs().map_err(OpenKvmError::ioctl("read registers"))?;
        let regs = self.vcpu.get_regs().map_err(OpenKvmError::ioctl("read registers"))?;
        Ok(Found {
            entry: if sregs.cs.selector & 3 == 3 { EntryKind::UserMode } else { EntryKind::SupervisorMode },
            rip_behind_out: regs.rip != self.area.entry(),
            time_stamp_counter: time_stamp::is_hosts(regs.rdx << 32 | regs.rax, before, after),
        })
    }
}

/// What an exit and the way back into the guest cost, nanoseconds: the median of a few hundred.
///
/// # Errors
///
/// [`OpenKvmError`].
pub fn exit_cost_ns(host: &Host) -> Result<u64, OpenKvmError> {
    let mut probe = Probe::new(&host.kvm, &host.processor)?;
    let mut times = (0..EXITS).map(|_| probe.exit()).collect::<Result<Vec<u64>, _>>()?;
    times.sort_unstable();
    Ok(times[EXITS / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_that_refuses_fsgsbase_is_used_without() {
        const FSGSBASE: u32 = 1;
        let kvm = Kvm::new().unwrap();
        let mut list = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        for entry in list.as_mut_slice().iter_mut().filter(|entry| (entry.function, entry.index) == (7, 0)) {
            entry.ebx &= !FSGSBASE;
        }
        let mut processor = cpuid::offered(list);
        let found = Probe::of(&kvm, &mut processor).unwrap().entry().unwrap();
        // Where supervisor mode is the processor's, KVM lets nothing be switched on that CPUID does not offer.
        assert!(!processor.fsgsbase || found.entry == EntryKind::UserMode);
    }

    #[test]
    fn of_several_modules_the_processor_says_which_is_in_use() {
        let told = |loaded: &[&str], flags: &str| {
            kind(|module| loaded.contains(&module), || format!("model name\t: svm vmx\nflags\t\t: fpu {flags} sse\n"))
        };
        assert_eq!(told(&["kvm_pvm"], ""), "kvm_pvm");
        assert_eq!(told(&["kvm_amd"], ""), "kvm_amd");
        assert_eq!(told(&["kvm_amd", "kvm_intel"], "vmx"), "kvm_intel");
        assert_eq!(told(&["kvm_amd", "kvm_intel"], "svm"), "kvm_amd");
        assert_eq!(told(&["kvm_amd", "kvm_intel"], "svm_lock"), "unknown");
        assert_eq!(told(&[], "svm"), "unknown");
    }
}
