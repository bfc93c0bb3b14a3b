//! CPUID as guests see it: what KVM offers, without what a reset cannot bring back cheaply and what only a kernel could use.
//!
//! References: Intel SDM volume 2, CPUID; AMD64 manual volume 3, appendix E.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::vector_state::Places;
use crate::withheld::Feature;

/// x87, SSE, AVX and AVX-512. Protection keys (bit 9) and AMX (17, 18) stay hidden: neither can be reset cheaply.
const XCR0_OFFERED: u64 = 0xe7;
/// x87 and SSE, which are part of the architecture.
const XCR0_MIN: u64 = 3;
/// Components of XCR0_OFFERED that have a place of their own in the XSAVE area.
const COMPONENTS: std::ops::RangeInclusive<u32> = 2..=7;
/// Bytes of an XSAVE area with x87 and SSE alone: the legacy region and the header (SDM volume 1, section 13.4).
const XSAVE_BYTES_MIN: u32 = 576;

/// Flags of leaf 1 (ECX): MONITOR, x2APIC, TSC-deadline timer: supervisor business that a program might believe in.
const LEAF1_ECX_HIDDEN: u32 = 1 << 3 | 1 << 21 | 1 << 24;
/// Flag of leaf 7 (EBX): MPX, whose components are not in XCR0.
const LEAF7_EBX_HIDDEN: u32 = 1 << 14;
/// Flags of leaf 7 (ECX): PKU, OSPKE, WAITPKG, shadow stacks.
const LEAF7_ECX_HIDDEN: u32 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7;
/// Flags of leaf 7 (EDX): indirect-branch tracking, AMX-BF16, AMX-TILE, AMX-INT8.
const LEAF7_EDX_HIDDEN: u32 = 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25;
/// Flag of leaf 7, sub-leaf 1 (EAX): AMX-FP16.
const LEAF7_1_EAX_HIDDEN: u32 = 1 << 21;
/// Flag of leaf 7, sub-leaf 1 (EDX): AMX-COMPLEX.
const LEAF7_1_EDX_HIDDEN: u32 = 1 << 8;
/// Flag of leaf 0xD, sub-leaf 1 (EAX): extended feature disable, which is for AMX.
const LEAFD_1_EAX_HIDDEN: u32 = 1 << 4;

/// What every vCPU is given.
#[derive(Debug, Clone)]
pub(super) struct Processor {
    pub(super) cpuid: CpuId,
    /// The extended state of guests.
    pub(super) xcr0: u64,
    /// Where its XSAVE area has the registers of AVX-512.
    pub(super) places: Places,
    /// Whether CR4.FSGSBASE is set; what cannot be set is for the probe to find out.
    pub(super) fsgsbase: bool,
}

fn leaf(cpuid: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
    cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index)).copied()
}

/// Where the standard format of XSAVE has a component; zero where the processor lacks it.
pub(super) fn component_offset(cpuid: &CpuId, component: u32) -> usize {
    leaf(cpuid, 0xd, component).map_or(0, |entry| entry.ebx as usize)
}

/// What of KVM's offer guests get. Whether XSAVE can be switched on is not asked here: kvm_pvm has it and does not say so.
pub(super) fn offered(mut cpuid: CpuId) -> Processor {
    let xcr0 = leaf(&cpuid, 0xd, 0).map_or(XCR0_MIN, |entry| u64::from(entry.eax) & XCR0_OFFERED);
    let end = |component| leaf(&cpuid, 0xd, component).filter(|_| xcr0 & 1 << component != 0).map_or(0, |entry| entry.ebx + entry.eax);
    let bytes = COMPONENTS.map(end).max().unwrap_or(0).max(XSAVE_BYTES_MIN);
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ecx &= !LEAF1_ECX_HIDDEN;
                // One logical processor with APIC id 0.
                entry.ebx = entry.ebx & 0xffff | 1 << 16;
            }
            (7, 0) => {
                entry.ebx &= !LEAF7_EBX_HIDDEN;
                entry.ecx &= !LEAF7_ECX_HIDDEN;
                entry.edx &= !LEAF7_EDX_HIDDEN;
            }
            (7, 1) => {
                entry.eax &= !LEAF7_1_EAX_HIDDEN;
                entry.edx &= !LEAF7_1_EDX_HIDDEN;
            }
            (0xb | 0x1f, _) => entry.ebx &= 0xffff_0000,
            (0xd, 0) => (entry.eax, entry.ecx, entry.edx) = (xcr0 as u32, bytes, 0),
            // Components that only a kernel sees (IA32_XSS) are not switched on.
            (0xd, 1) => (entry.eax, entry.ecx, entry.edx) = (entry.eax & !LEAFD_1_EAX_HIDDEN, 0, 0),
            (0xd, component) if component >= 64 || xcr0 & 1 << component == 0 => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            // The tiles of AMX.
            (0x1d | 0x1e, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            _ => {}
        }
    }
    let places = Places::of(&cpuid);
    Processor { cpuid, xcr0, places, fsgsbase: !Feature::Fsgsbase.is_withheld() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An offer in which every bit is set, components of AMX and a kernel's among them.
    fn everything() -> CpuId {
        let full =
            |function, index| kvm_cpuid_entry2 { function, index, eax: !0, ebx: !0, ecx: !0, edx: !0, ..kvm_cpuid_entry2::default() };
        // Bytes and offset, as Intel's processors have them.
        let component = |index, eax, ebx| kvm_cpuid_entry2 { eax, ebx, ..full(0xd, index) };
        let entries = [
            full(1, 0),
            full(7, 0),
            full(7, 1),
            full(0xb, 0),
            full(0xd, 0),
            full(0xd, 1),
            component(2, 256, 576),
            component(3, 64, 960),
            component(4, 64, 1024),
            component(5, 64, 1088),
            component(6, 512, 1152),
            component(7, 1024, 1664),
            component(9, 8, 2688),
            component(11, 16, 0),
            component(17, 64, 2752),
            component(18, 8192, 2816),
            full(0x1d, 0),
            full(0x1d, 1),
            full(0x1e, 0),
        ];
        CpuId::from_entries(&entries).unwrap()
    }

    #[test]
    fn of_a_processor_that_has_everything_guests_see_what_can_be_reset() {
        let processor = offered(everything());
        assert_eq!(processor.xcr0, 0xe7);
        let leaf = |function, index| leaf(&processor.cpuid, function, index).unwrap();
        assert_eq!(leaf(0xd, 0).eax, 0xe7);
        assert_eq!((leaf(0xd, 0).ecx, leaf(0xd, 0).edx), (2688, 0), "the area ends with AVX-512");
        assert_eq!((leaf(0xd, 1).eax & 1 << 4, leaf(0xd, 1).ecx, leaf(0xd, 1).edx), (0, 0, 0), "no component of a kernel");
        for component in [3, 4, 9, 11, 17, 18] {
            let entry = leaf(0xd, component);
            assert_eq!((entry.eax, entry.ebx, entry.ecx, entry.edx), (0, 0, 0, 0), "component {component}");
        }
        for (component, offset) in [(2, 576), (5, 1088), (6, 1152), (7, 1664)] {
            assert_eq!(component_offset(&processor.cpuid, component), offset);
        }
        for (function, index) in [(0x1d, 0), (0x1d, 1), (0x1e, 0)] {
            let entry = leaf(function, index);
            assert_eq!((entry.eax, entry.ebx, entry.ecx, entry.edx), (0, 0, 0, 0), "leaf {function:#x}");
        }
        let [first, second] = [leaf(7, 0), leaf(7, 1)];
        assert_eq!(first.edx & (1 << 22 | 1 << 24 | 1 << 25), 0, "AMX");
        assert_eq!(second.eax & 1 << 21, 0, "AMX-FP16");
        assert_eq!(second.edx & 1 << 8, 0, "AMX-COMPLEX");
        assert_eq!(first.ecx & (1 << 3 | 1 << 4), 0, "protection keys");
        assert_eq!((first.ecx & 1 << 7, first.edx & 1 << 20), (0, 0), "control-flow enforcement");
        assert_eq!(first.ebx & 1 << 14, 0, "MPX");
        assert_eq!(first.ebx & 1 << 16, 1 << 16, "AVX-512 stays");
        assert_eq!(leaf(1, 0).ecx & (1 << 3 | 1 << 21 | 1 << 24), 0);
        assert_eq!(leaf(1, 0).ebx >> 16, 1, "one logical processor, with the first number");
    }

    #[test]
    fn a_processor_without_avx_512_has_a_shorter_area() {
        let mut cpuid = everything();
        for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| (entry.function, entry.index) == (0xd, 0)) {
            entry.eax = 7;
        }
        let processor = offered(cpuid);
        assert_eq!(processor.xcr0, 7);
        assert_eq!(leaf(&processor.cpuid, 0xd, 0).unwrap().ecx, 576 + 256);
        assert_eq!(component_offset(&processor.cpuid, 7), 0);
    }

    #[test]
    fn of_no_offer_comes_what_every_processor_has() {
        assert_eq!(offered(CpuId::new(0).unwrap()).xcr0, 3);
    }
}
