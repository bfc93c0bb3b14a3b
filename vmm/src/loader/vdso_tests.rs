#![expect(unsafe_code, reason = "runs the guest's code in this process, from memory mapped for it")]
//! The vDSO image answers as the host's clocks do, run natively from a copy of what a guest gets.

use std::ffi::c_void;

use object::read::elf::{FileHeader as _, SectionHeader as _, Sym as _};
use object::{Object as _, ObjectSymbol as _};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use super::*;
use crate::linux::clock::{Clock, host_monotonic, host_realtime};
use crate::loader::TscClock;
use crate::loader::elf::{Elf, Kind};

type GetTime = extern "C" fn(i32, *mut [i64; 2]) -> i32;
type Time = extern "C" fn(*mut i64) -> i64;

/// The image behind a clock page, in memory that may be executed.
struct Native {
    base: *mut u8,
}

impl Native {
    fn new() -> Self {
        let page = 4096;
        let length = page + IMAGE.len().next_multiple_of(page);
        // SAFETY: a fresh anonymous mapping.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC, MapFlags::PRIVATE)
        };
        let base = base.expect("memory").cast::<u8>();
        // SAFETY: the mapping is a page longer than the image.
        unsafe { base.wrapping_add(page).copy_from_nonoverlapping(IMAGE.as_ptr(), IMAGE.len()) };
        Self { base }
    }

    fn set(&self, page: ClockPage) {
        // SAFETY: the first page of the mapping, which is aligned and which no reference points into.
        unsafe { self.base.cast::<ClockPage>().write_volatile(page) };
    }

    fn symbol(&self, name: &str) -> *const c_void {
        let file = object::File::parse(IMAGE).expect("the image");
        let symbol = file.dynamic_symbols().find(|symbol| symbol.name() == Ok(name)).unwrap_or_else(|| panic!("no symbol {name}"));
        let offset = usize::try_from(symbol.address()).expect("small");
        self.base.wrapping_add(4096 + offset).cast()
    }

    fn clock(&self, id: i32) -> u64 {
        // SAFETY: the symbol has this C signature.
        let gettime: GetTime = unsafe { std::mem::transmute(self.symbol("__vdso_clock_gettime")) };
        let mut time = [0; 2];
        assert_eq!(gettime(id, &raw mut time), 0);
        assert!((0..1_000_000_000).contains(&time[1]));
        u64::try_from(time[0] * 1_000_000_000 + time[1]).expect("positive")
    }
}

#[test]
fn clocks_agree_with_the_hosts() {
    let native = Native::new();
    let mut tsc = TscClock::calibrate();
    let page = tsc.clock_page(&Clock::default());
    assert_eq!(page.flags, CLOCK_PAGE_TSC, "this machine's counter is trusted");
    native.set(page);
    std::thread::sleep(std::time::Duration::from_millis(50));
    for (id, host) in [(1, host_monotonic as fn() -> u64), (7, host_monotonic), (6, host_monotonic), (0, host_realtime), (5, host_realtime)]
    {
        // The smallest error of a few tries: another process may run in between.
        let error = (0..20).map(|_| {
            let (before, guest, after) = (host(), native.clock(id), host());
            if guest < before { before - guest } else { guest.saturating_sub(after) }
        });
        let error = error.min().expect("tries");
        assert!(error < 5_000, "clock {id} is {error} ns off after 50 ms");
    }
}

#[test]
fn a_page_without_the_counter_means_the_system_call() {
    let native = Native::new();
    native.set(ClockPage { monotonic_ns: 1, realtime_ns: 1, ..ClockPage::default() });
    let before = host_monotonic();
    assert!(native.clock(1) >= before);
    // So does one that is out of date.
    native.set(ClockPage { flags: CLOCK_PAGE_TSC, monotonic_ns: 1, mult: 1, valid_ticks: 1000, ..ClockPage::default() });
    assert!(native.clock(1) >= before);
    // CLOCK_THREAD_CPUTIME_ID and CLOCK_MONOTONIC_RAW are always asked.
    native.set(ClockPage { flags: CLOCK_PAGE_TSC, monotonic_ns: 1, realtime_ns: 1, ..ClockPage::default() });
    assert!(native.clock(4) > 1_000_000);
    assert!(native.clock(3) > 1);
    // SAFETY: the symbol has this C signature.
    let gettime: GetTime = unsafe { std::mem::transmute(native.symbol("__vdso_clock_gettime")) };
    let mut unused = [0; 2];
    assert_eq!(gettime(99, &raw mut unused), -22);
}

#[test]
fn seconds_and_microseconds_come_from_the_page() {
    let native = Native::new();
    let realtime_ns = 1_700_000_000_123_456_789;
    native.set(ClockPage {
        flags: CLOCK_PAGE_TSC,
        tsc_base: u64::MAX / 2,
        monotonic_ns: 5,
        realtime_ns,
        mult: 1,
        shift: 63,
        ..ClockPage::default()
    });
    // SAFETY: the symbols have these C signatures.
    let time: Time = unsafe { std::mem::transmute(native.symbol("__vdso_time")) };
    let mut seconds = 0;
    assert_eq!((time(&raw mut seconds), seconds), (1_700_000_000, 1_700_000_000));
    assert_eq!(time(std::ptr::null_mut()), 1_700_000_000);
    // SAFETY: as above.
    let timeofday: extern "C" fn(*mut [i64; 2], *mut [i32; 2]) -> i32 =
        unsafe { std::mem::transmute(native.symbol("__vdso_gettimeofday")) };
    let (mut now, mut zone) = ([0; 2], [7; 2]);
    assert_eq!(timeofday(&raw mut now, &raw mut zone), 0);
    assert_eq!((now, zone), ([1_700_000_000, 123_456], [0, 0]));
    // The page was written "later" than now: time stands, it does not run backwards by centuries.
    assert_eq!(native.clock(1), 5);
    // SAFETY: as above.
    let getcpu: extern "C" fn(*mut u32, *mut u32) -> i64 = unsafe { std::mem::transmute(native.symbol("__vdso_getcpu")) };
    let (mut cpu, mut node) = (9, 9);
    assert_eq!((getcpu(&raw mut cpu, &raw mut node), cpu, node), (0, 0, 0));
    // SAFETY: as above.
    let getres: GetTime = unsafe { std::mem::transmute(native.symbol("__vdso_clock_getres")) };
    let mut resolution = [7; 2];
    assert_eq!((getres(1, &raw mut resolution), resolution), (0, [0, 1]));
}

#[test]
fn a_reader_waits_for_a_writer() {
    let native = Native::new();
    native.set(ClockPage { sequence: 1, flags: CLOCK_PAGE_TSC, monotonic_ns: 1, ..ClockPage::default() });
    let address = native.base as usize;
    let writer = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        Native { base: address as *mut u8 }.set(ClockPage {
            sequence: 2,
            flags: CLOCK_PAGE_TSC,
            monotonic_ns: 42,
            tsc_base: u64::MAX / 2,
            ..ClockPage::default()
        });
    });
    assert_eq!(native.clock(1), 42);
    writer.join().expect("the writer");
}

#[test]
fn the_image_is_what_loaders_expect() {
    let elf = Elf::parse(IMAGE).expect("the image");
    assert_eq!((elf.kind, elf.segments.len(), elf.segments[0].address, elf.segments[0].offset), (Kind::Relocatable, 1, 0, 0));
    assert_eq!(elf.segments[0].protection, Protection::READ | Protection::EXEC);
    assert_eq!(elf.segments[0].file_bytes, elf.segments[0].memory_bytes, "no data that would have to be zeroed");
    let endian = object::LittleEndian;
    let header = object::elf::FileHeader64::<object::LittleEndian>::parse(IMAGE).expect("the header");
    let sections = header.sections(endian, IMAGE).expect("sections");
    assert!(sections.iter().all(|section| !matches!(section.sh_type(endian), object::elf::SHT_RELA | object::elf::SHT_REL)));
    let versions = sections.versions(endian, IMAGE).expect("versions").expect("a version table");
    let symbols = sections.symbols(endian, IMAGE, object::elf::SHT_DYNSYM).expect("symbols");
    let mut names = Vec::new();
    for (index, symbol) in symbols.enumerate().filter(|(_, symbol)| symbol.st_type() == object::elf::STT_FUNC) {
        let version = versions.version(versions.version_index(endian, index).into()).expect("an index").expect("a version");
        assert_eq!(version.name(), b"LINUX_2.6");
        names.push(String::from_utf8_lossy(symbol.name(endian, symbols.strings()).expect("a name")).into_owned());
    }
    for name in ["clock_gettime", "gettimeofday", "time", "clock_getres", "getcpu"] {
        assert!(
            names.iter().any(|found| found == name) && names.iter().any(|found| *found == format!("__vdso_{name}")),
            "{name} in {names:?}"
        );
    }
}

#[test]
fn a_guest_can_read_the_page_and_not_write_it() {
    let mut space = AddressSpace::new(4 << 30, 1 << 30).expect("an address space");
    let mapped = map(&mut space).expect("room");
    assert_eq!(mapped.image, mapped.clock_page + PAGE);
    let page = ClockPage { flags: CLOCK_PAGE_TSC, tsc_base: 7, mult: 3, ..ClockPage::default() };
    page.publish(&space);
    let first: ClockPage = space.memory().read(mapped.clock_page).expect("readable");
    page.publish(&space);
    let second: ClockPage = space.memory().read(mapped.clock_page).expect("readable");
    assert_eq!((first.tsc_base, first.mult, first.flags), (7, 3, CLOCK_PAGE_TSC));
    assert_eq!((first.sequence & 1, second.sequence & 1), (0, 0));
    assert_ne!(first.sequence, second.sequence);
    assert_eq!(space.memory().write(mapped.clock_page, &page), Err(Errno::FAULT));
    assert_eq!(space.memory().write(mapped.image, &page), Err(Errno::FAULT));
    assert_eq!(space.memory().read_vec(mapped.image, IMAGE.len()).expect("readable"), IMAGE);
    let labels: Vec<_> = space.vmas().iter().map(|vma| (vma.label, vma.protection)).collect();
    assert_eq!(labels, [("[vvar]", Protection::READ), ("[vdso]", Protection::READ | Protection::EXEC)]);
}

#[test]
fn the_page_gets_the_rate_once_it_is_known() {
    let mut space = AddressSpace::new(4 << 30, 1 << 30).expect("an address space");
    let mapped = map(&mut space).expect("room");
    let mut clock = Clock::default();
    write(&space, &clock);
    std::thread::sleep(std::time::Duration::from_millis(20));
    clock.resume_at(1_000_000_000);
    write(&space, &clock);
    let page: ClockPage = space.memory().read(mapped.clock_page).expect("readable");
    assert_eq!(page.flags, CLOCK_PAGE_TSC);
    assert!((1_000_000_000..2_000_000_000).contains(&page.monotonic_ns), "{page:?}");
}
