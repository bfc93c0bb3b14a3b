//! The vDSO of a guest: an ELF image made from guestlib/vdso.c, and the page below it from which the image computes the time.
//!
//! The guest can only read the page; the host writes it through [`AddressSpace::write_clock_page`], outside of the dirty set.
//! While its flags are 0 (a fresh page), and a second after it was written, every clock is a system call: so a page is never
//! wrong, only slow.
//!
//! **Who writes it**: by [`write`], whoever begins a run, and the run loop whenever the guest has asked for the time by system
//! call. A comparison of a VM with its snapshot leaves it out.

use std::cell::RefCell;
use std::sync::OnceLock;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::TscClock;
use crate::limits::PAGE;
use crate::linux::clock::Clock;
use crate::memory::{AddressSpace, Backing, MapRequest, Placement, Protection};

/// The image: one segment that begins at file offset 0 and virtual address 0, without relocations.
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vdso.so"));
/// Flag: the guest's counter is the host's, and the fields are valid (`CLOCK_PAGE_TSC`).
pub const CLOCK_PAGE_TSC: u32 = 1;

/// What guestlib/clock_page.h calls `struct clock_page`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ClockPage {
    /// Odd while the page is being changed.
    pub sequence: u32,
    /// [`CLOCK_PAGE_TSC`] or 0.
    pub flags: u32,
    /// The counter at the instant of the two times.
    pub tsc_base: u64,
    /// The guest's CLOCK_MONOTONIC then.
    pub monotonic_ns: u64,
    /// CLOCK_REALTIME then.
    pub realtime_ns: u64,
    /// Nanoseconds a tick, times two to the power of `shift`.
    pub mult: u32,
    /// At most 63.
    pub shift: u32,
    /// The page is out of date so many ticks after `tsc_base`: every clock is a system call again.
    pub valid_ticks: u64,
    /// Zero.
    pub reserved: [u64; 2],
}

const _: () = assert!(size_of::<ClockPage>() == 64);
const _: () = assert!(std::mem::offset_of!(ClockPage, tsc_base) == 8);
const _: () = assert!(std::mem::offset_of!(ClockPage, mult) == 32);
const _: () = assert!(std::mem::offset_of!(ClockPage, valid_ticks) == 40);

impl ClockPage {
    /// Make this the content of a guest's clock page, if it has one. No guest code runs meanwhile.
    pub fn publish(&self, space: &AddressSpace) {
        // Where the guest has unmapped the page, nobody will read it.
        let sequence = space.clock_page_address().and_then(|address| space.memory().read::<u32>(address).ok()).unwrap_or(0);
        // Even, and another number than before: a thread that was stopped in the middle of reading starts over.
        let page = Self { sequence: (sequence | 1).wrapping_add(1), ..*self };
        space.write_clock_page(page.as_bytes());
    }
}

/// Bring the clock page of a guest whose clocks are `clock` up to date, if it has one. About 0.3 us. No guest code runs
/// meanwhile. The rate is known 10 ms after the first call in a process (or in the one it was forked from).
pub fn write(space: &AddressSpace, clock: &Clock) {
    /// Where measuring began; inherited by threads and forked processes, so that each has a rate from its first call on.
    static START: OnceLock<TscClock> = OnceLock::new();
    thread_local! {
        static TSC: RefCell<TscClock> = RefCell::new(START.get_or_init(TscClock::start).clone());
    }
    if space.clock_page_address().is_some() {
        TSC.with_borrow_mut(|tsc| tsc.clock_page(clock)).publish(space);
    }
}

/// Where the two mappings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapped {
    /// The ELF header, for AT_SYSINFO_EHDR.
    pub(super) image: u64,
    /// The page directly below.
    pub(super) clock_page: u64,
}

/// Map the image and the page.
pub(super) fn map(space: &mut AddressSpace) -> Result<Mapped, Errno> {
    let image_bytes = (IMAGE.len() as u64).next_multiple_of(PAGE);
    let all = Protection::READ | Protection::WRITE | Protection::EXEC;
    let request = MapRequest {
        placement: Placement::Anywhere,
        length: PAGE + image_bytes,
        protection: all,
        backing: Backing::Anonymous,
        label: "[vdso]",
    };
    let clock_page = space.map(request)?;
    let image = clock_page + PAGE;
    space.map_clock_page(clock_page)?;
    space.memory().write_bytes(image, IMAGE)?;
    space.protect(image, image_bytes, Protection::READ | Protection::EXEC)?;
    ClockPage::default().publish(space);
    Ok(Mapped { image, clock_page })
}

#[cfg(test)]
#[path = "vdso_tests.rs"]
mod tests;
