//! What a vCPU is made of besides its general registers: control registers, segments, MSRs, extended state.
//!
//! References: AMD64 manual volume 2, chapters 4 (segments), 6 (SYSCALL), 11 (XSAVE); Documentation/virt/kvm/api.rst.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_segment, kvm_sregs, kvm_xcrs, kvm_xsave};
use kvm_ioctls::VcpuFd;
use rustix::io::Errno;

use super::area::Area;
use super::cpuid::Processor;
use super::layout::{GATES, GDT, IDT, KERNEL_CS, KERNEL_SS, PML4, TSS, TSS_SELECTOR, USER_CS, USER_SS};
use super::time_stamp;

/// PG, AM, WP, NE, ET, MP, PE.
const CR0: u64 = 0x8005_0033;
/// OSXSAVE, OSXMMEXCPT, OSFXSR, PAE. No SMEP and no SMAP: the entry is on a user page.
const CR4: u64 = 0x0004_0620;
/// Programs may read and write the bases of FS and GS themselves, as under Linux since 5.9.
const CR4_FSGSBASE: u64 = 1 << 16;
/// NXE, LMA, LME, SCE.
const EFER: u64 = 0xd01;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;
/// Flags cleared on entry: AC, NT, IOPL, DF, IF, TF (as Linux).
const SFMASK: u64 = 0x4_7700;

fn segment(selector: u16, type_: u8, dpl: u8, code: bool) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..kvm_segment::default()
    }
}

/// User code and stack segments.
pub(super) fn user_segments() -> (kvm_segment, kvm_segment) {
    (segment(USER_CS, 11, 3, true), segment(USER_SS, 3, 3, false))
}

/// Supervisor code and stack segments.
pub(super) fn supervisor_segments() -> (kvm_segment, kvm_segment) {
    (segment(KERNEL_CS, 11, 0, true), segment(KERNEL_SS, 3, 0, false))
}

/// Null selectors in DS, ES, FS and GS, as 64-bit programs have them under Linux; the bases of FS and GS stay.
pub(super) fn clear_data_segments(sregs: &mut kvm_sregs) {
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs] {
        *segment = kvm_segment { base: segment.base, limit: 0xffff_ffff, unusable: 1, ..kvm_segment::default() };
    }
    (sregs.ds.base, sregs.es.base) = (0, 0);
}

/// Long mode with the area's tables, in user mode.
fn special_registers(mut sregs: kvm_sregs, area: &Area, fsgsbase: bool) -> kvm_sregs {
    let (code, stack) = user_segments();
    sregs.cr0 = CR0;
    sregs.cr3 = area.address() + PML4;
    sregs.cr4 = if fsgsbase { CR4 | CR4_FSGSBASE } else { CR4 };
    sregs.efer = EFER;
    sregs.gdt.base = area.address() + GDT;
    sregs.gdt.limit = TSS_SELECTOR + 15;
    sregs.idt.base = area.address() + IDT;
    sregs.idt.limit = (GATES * 16 - 1) as u16;
    sregs.cs = code;
    sregs.ss = stack;
    clear_data_segments(&mut sregs);
    sregs.tr = kvm_segment {
        base: area.address() + TSS,
        limit: 104 + 16,
        selector: TSS_SELECTOR,
        type_: 11,
        present: 1,
        ..kvm_segment::default()
    };
    sregs
}

fn errno(error: kvm_ioctls::Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

/// Set up a fresh vCPU. EINVAL where KVM refuses to set CR4.FSGSBASE, if it was to be set.
pub(super) fn initialise(vcpu: &VcpuFd, processor: &Processor, area: &Area) -> Result<kvm_sregs, Errno> {
    vcpu.set_cpuid2(&processor.cpuid).map_err(errno)?;
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
    xcrs.xcrs[0].value = processor.xcr0;
    let sregs = special_registers(vcpu.get_sregs().map_err(errno)?, area, processor.fsgsbase);
    vcpu.set_sregs(&sregs).map_err(errno)?;
    vcpu.set_xcrs(&xcrs).map_err(errno)?;
    let star = u64::from(KERNEL_CS) << 32 | 0x23 << 48;
    let entry = |index, data| kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
    let list = [entry(MSR_STAR, star), entry(MSR_LSTAR, area.entry()), entry(MSR_SFMASK, SFMASK)];
    let msrs = Msrs::from_entries(&list).map_err(|_| Errno::NOMEM)?;
    if vcpu.set_msrs(&msrs).map_err(errno)? < list.len() {
        return Err(Errno::INVAL);
    }
    time_stamp::follow_host(vcpu)?;
    Ok(sregs)
}

/// Bytes of the XSAVE area in standard format for the features offered (AVX-512's last component ends at 2,688).
pub(super) const XSAVE_BYTES: usize = 2688;

/// The extended state, standard format.
pub(super) fn get_extended(vcpu: &VcpuFd) -> Result<Vec<u8>, Errno> {
    let area = vcpu.get_xsave().map_err(errno)?;
    Ok(area.region.iter().flat_map(|word| word.to_ne_bytes()).take(XSAVE_BYTES).collect())
}

/// Replace the extended state.
#[expect(unsafe_code, reason = "kvm-ioctls marks set_xsave unsafe because of dynamically enabled features, which we never enable")]
pub(super) fn set_extended(vcpu: &VcpuFd, bytes: &[u8]) -> Result<(), Errno> {
    let mut area = kvm_xsave::default();
    for (word, chunk) in area.region.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(chunk.try_into().unwrap_or_default());
    }
    // SAFETY: the struct is 4,096 bytes, and no feature that would need more is enabled.
    unsafe { vcpu.set_xsave(&area) }.map_err(errno)
}
