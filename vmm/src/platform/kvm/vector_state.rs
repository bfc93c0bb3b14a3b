//! Vector and mask registers in an XSAVE area of standard format (AMD64 manual volume 2, section 11.5; SDM volume 1, section 13.4).

use iced_x86::Register;
use kvm_bindings::CpuId;

use super::cpuid::component_offset;

/// Where the area has XMM registers, and the upper halves of the first sixteen YMM registers: the same on all processors.
const XMM: usize = 160;
const YMM_UPPER: usize = 576;

/// Where it has the state of AVX-512, which differs between processors; zero for what there is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    masks: usize,
    zmm_upper: usize,
    further_zmm: usize,
}

impl Places {
    /// As CPUID tells.
    pub(super) fn of(cpuid: &CpuId) -> Self {
        let [masks, zmm_upper, further_zmm] = [5, 6, 7].map(|component| component_offset(cpuid, component));
        Self { masks, zmm_upper, further_zmm }
    }
}

/// An area, and where things are in it.
#[derive(Debug, Clone)]
pub(super) struct VectorState {
    pub(super) area: Vec<u8>,
    pub(super) places: Places,
}

impl VectorState {
    /// `bytes` (4 or 8) of a vector register from its byte `at` on; `None` where the area has no such register.
    pub(super) fn element(&self, register: Register, at: usize, bytes: usize) -> Option<u64> {
        if !(register.is_xmm() || register.is_ymm() || register.is_zmm()) || at + bytes > register.size() {
            return None;
        }
        let place = |known: usize, offset: usize| (known != 0).then_some(known + offset);
        let start = match (register.number(), at) {
            (number @ ..16, ..16) => XMM + number * 16 + at,
            (number @ ..16, 16..32) => YMM_UPPER + number * 16 + at - 16,
            (number @ ..16, _) => place(self.places.zmm_upper, number * 32 + at - 32)?,
            (number, _) => place(self.places.further_zmm, (number - 16) * 64 + at)?,
        };
        self.word(start, bytes)
    }

    /// A mask register's bits; `None` where there are no mask registers.
    pub(super) fn mask(&self, register: Register) -> Option<u64> {
        if !register.is_k() || self.places.masks == 0 {
            return None;
        }
        self.word(self.places.masks + register.number() * 8, 8)
    }

    fn word(&self, start: usize, bytes: usize) -> Option<u64> {
        match *self.area.get(start..start + bytes)? {
            [a, b, c, d] => Some(u32::from_le_bytes([a, b, c, d]).into()),
            [a, b, c, d, e, f, g, h] => Some(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
            _ => None,
        }
    }
}

#[cfg(test)]
impl VectorState {
    /// An empty area with AVX-512 where AMD's processors have it.
    pub(super) fn for_tests() -> Self {
        Self { area: vec![0; 2688], places: Places { masks: 832, zmm_upper: 896, further_zmm: 1408 } }
    }

    /// Fill a ZMM register's elements of four bytes.
    pub(super) fn set(&mut self, number: usize, elements: [u32; 16]) {
        for (index, element) in elements.into_iter().enumerate() {
            let start = match (number, index) {
                (..16, ..4) => XMM + number * 16 + index * 4,
                (..16, 4..8) => YMM_UPPER + number * 16 + (index - 4) * 4,
                (..16, _) => self.places.zmm_upper + number * 32 + (index - 8) * 4,
                _ => self.places.further_zmm + (number - 16) * 64 + index * 4,
            };
            self.area[start..start + 4].copy_from_slice(&element.to_le_bytes());
        }
    }

    /// Fill a mask register.
    pub(super) fn set_mask(&mut self, number: usize, bits: u64) {
        let start = self.places.masks + number * 8;
        self.area[start..start + 8].copy_from_slice(&bits.to_le_bytes());
    }
}
