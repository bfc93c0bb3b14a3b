//! What differs between KVMs (docs/kvm.md), a test for each row: what the probes found is what guests meet, and where KVMs
//! do different things, the rest of the program sees one thing.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_sregs};
use kvm_ioctls::Kvm;

use super::*;
use crate::platform::kvm::EntryKind;
use crate::platform::kvm::area::Area;
use crate::platform::kvm::dirty_log::DirtyLog;
use crate::platform::kvm::layout::PORT_SYSTEM_CALL;
use crate::platform::kvm::time_stamp;
use crate::withheld::Feature;

/// SMEP, SMAP and the bit for protection keys in CR4.
const CR4_NEVER: u64 = 1 << 20 | 1 << 21 | 1 << 22;
/// Page-table entry bits: present, writable, user, large.
const PRESENT_WRITABLE_USER: u64 = 7;
const LARGE: u64 = 1 << 7;

/// Run `code` to its first system call, and return the VM as it is then.
fn run_to_call(code: &[u8]) -> Vm {
    let (mut space, address) = program(code);
    let mut vm = Vm::new(&space, false).unwrap();
    start(&mut vm, address, 0);
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall, "{:x?}", vm.state());
    vm
}

/// The answer of `cpuid` inside a guest: EAX, EBX, ECX, EDX.
fn cpuid(leaf: u32, index: u32) -> [u32; 4] {
    // mov $leaf, %eax; mov $index, %ecx; cpuid; mov %ecx, %esi; syscall
    let code = [&[0xb8], &leaf.to_le_bytes()[..], &[0xb9], &index.to_le_bytes()[..], &[0x0f, 0xa2, 0x89, 0xce, 0x0f, 0x05]].concat();
    let registers = run_to_call(&code).state().registers;
    [registers.rax, registers.rbx, registers.rsi, registers.rdx].map(|register| register as u32)
}

#[test]
fn the_extended_state_that_cpuid_offers_is_switched_on() {
    let xcr0 = Host::get().unwrap().xcr0();
    assert_eq!(xcr0 & 3, 3, "x87 and SSE are part of the architecture");
    // xor %ecx, %ecx; xgetbv; syscall (which leaves EAX and EDX alone)
    let registers = run_to_call(&[0x31, 0xc9, 0x0f, 0x01, 0xd0, 0x0f, 0x05]).state().registers;
    assert_eq!(registers.rdx << 32 | registers.rax, xcr0);
    let [offered, _, _, more] = cpuid(0xd, 0);
    assert_eq!(u64::from(offered) | u64::from(more) << 32, xcr0);
    let [_, leaf7, _, _] = cpuid(7, 0);
    if leaf7 & 1 << 16 != 0 && xcr0 & 0xe0 == 0xe0 {
        // vpternlogd $0xff, %zmm31, %zmm31, %zmm31; vextracti32x4 $3, %zmm31, %xmm0; vmovd %xmm0, %ebx; syscall
        let code = [0x62, 3, 5, 0x40, 0x25, 0xff, 0xff, 0x62, 0x63, 0x7d, 0x48, 0x39, 0xf8, 3, 0xc5, 0xf9, 0x7e, 0xc3, 0x0f, 0x05];
        assert_eq!(run_to_call(&code).state().registers.rbx, 0xffff_ffff);
    }
}

#[test]
fn state_that_cannot_be_reset_cheaply_is_hidden() {
    let host = Host::get().unwrap();
    assert_eq!(host.xcr0() & !0xe7, 0, "protection keys, AMX, MPX");
    let [_, _, ecx, edx] = cpuid(7, 0);
    assert_eq!(ecx & (1 << 3 | 1 << 4), 0, "protection keys");
    assert_eq!(edx & (1 << 22 | 1 << 24 | 1 << 25), 0, "AMX");
    // xor %ecx, %ecx; rdpkru: undefined where CR4.PKE is clear.
    let (mut space, code) = program(&[0x31, 0xc9, 0x0f, 0x01, 0xee, 0x0f, 0x05]);
    let mut vm = Vm::new(&space, false).unwrap();
    start(&mut vm, code, 0);
    let exit = vm.run(&mut space).unwrap();
    assert!(matches!(exit, Exit::Exception(Exception { vector: 6, .. })), "{exit:?}");
}

#[test]
fn supervisor_code_runs_whether_interpreted_or_native() {
    // The routine that changes a present entry is all of it: a store, `invlpg`, an exit.
    let (mut space, code) = program(&[0xc6, 0x07, 5, 0x0f, 0x05]);
    let request =
        MapRequest { placement: Placement::Fixed(0x8000_0000), length: PAGE, protection: RW, backing: Backing::Anonymous, label: "" };
    let data = space.map(request).unwrap();
    let mut vm = Vm::new(&space, false).unwrap();
    start(&mut vm, code, data);
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    let block = data / BLOCK;
    for usage in [BlockUse::Code, BlockUse::Data, BlockUse::Code] {
        vm.edit_entry(&space, block, Area::entry_value(block, usage)).unwrap();
        assert_eq!(vm.area.block_entry(block), Area::entry_value(block, usage));
        // The new entry is in force at once.
        space.memory().write_bytes(data, &[0x0f, 0x05]).unwrap();
        space.protect(data, PAGE, if usage == BlockUse::Code { Protection::READ | Protection::EXEC } else { RW }).unwrap();
        start(&mut vm, data, 0);
        let exit = vm.run(&mut space).unwrap();
        assert_eq!(exit == Exit::SystemCall, usage == BlockUse::Code, "{usage:?}: {exit:?}");
        space.protect(data, PAGE, RW).unwrap();
    }
}

#[test]
fn the_entry_is_reached_in_the_mode_that_the_probe_found() {
    let vm = run_to_call(&[0x0f, 0x05]);
    let user_mode = vm.sregs.cs.selector & 3 == 3;
    assert_eq!(user_mode, Host::get().unwrap().capabilities().entry == EntryKind::UserMode);
    assert_eq!(vm.stopped, if user_mode { Stopped::User } else { Stopped::Entry });
}

#[test]
fn every_way_back_from_a_call_ends_in_user_mode_with_the_registers_of_linux() {
    // stc; std; syscall; mov %cs, %ebx; mov %ss, %esi; pushfq is memory: lahf instead; syscall; hlt
    let code = [0xf9, 0xfd, 0x0f, 0x05, 0x8c, 0xcb, 0x8c, 0xd6, 0x9f, 0x0f, 0x05, 0xf4];
    let (mut space, address) = program(&code);
    let mut vm = Vm::new(&space, false).unwrap();
    // By the entry's return instruction; and with another RIP than the entry would go to, as after a signal.
    for by_entry in [true, false] {
        start(&mut vm, address, 0);
        assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
        let registers = vm.state().registers;
        assert_eq!((registers.rcx, registers.rip), (address + 4, address + 4));
        assert_eq!(registers.r11 & 0x401, 0x401, "carry and direction are kept for the way back");
        assert_eq!(registers.rflags, registers.r11);
        if !by_entry {
            vm.state_mut().registers.rcx = 0;
        }
        vm.state_mut().registers.rax = 0;
        assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
        let registers = vm.state().registers;
        assert_eq!((registers.rbx & 3, registers.rsi & 3), (3, 3), "privilege level of CS and SS");
        assert_eq!(registers.rax >> 8 & 1, 1, "carry");
        assert_eq!(registers.rip, address + 11);
        // User mode it is: a supervisor instruction is refused.
        let exit = vm.run(&mut space).unwrap();
        assert!(matches!(exit, Exit::Exception(Exception { vector: 13, .. })), "{exit:?}");
    }
}

#[test]
fn rip_at_an_exit_is_where_the_probe_found_it_and_never_seen_outside() {
    // syscall; inc %rbx; syscall; inc %rbx; inc %rbx; syscall
    const CALLS_AND_STEPS: &[u8] = &[0x0f, 0x05, 0x48, 0xff, 0xc3, 0x0f, 0x05, 0x48, 0xff, 0xc3, 0x48, 0xff, 0xc3, 0x0f, 0x05];
    let (mut space, code) = program(CALLS_AND_STEPS);
    let mut vm = Vm::new(&space, false).unwrap();
    start(&mut vm, code, 0);
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    let (raw, _) = vm.access.take(&mut vm.vcpu).unwrap();
    let behind = Host::get().unwrap().capabilities().rip_behind_out;
    assert_eq!(raw.rip, if behind { vm.area.entry_return() } else { vm.area.entry() });
    assert_eq!(vm.state().registers.rip, code + 2);
    // Behind it goes on; and elsewhere nothing is skipped, where KVM would have advanced RIP by the length of the `out`.
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    assert_eq!(vm.state().registers.rbx, 1);
    vm.state_mut().registers.rip = code + 7;
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    assert_eq!((vm.state().registers.rbx, vm.state().registers.rip), (3, code + 15));
    // A snapshot's registers in a new VM: no trace of the exit they were taken at.
    let state = *vm.state();
    let (mut fresh, same_code) = program(CALLS_AND_STEPS);
    assert_eq!(same_code, code);
    let mut other = Vm::new(&fresh, false).unwrap();
    *other.state_mut() = state;
    other.state_mut().registers.rip = code + 7;
    assert_eq!(other.run(&mut fresh).unwrap(), Exit::SystemCall);
    assert_eq!(other.state().registers.rbx, 5);
}

#[test]
fn exceptions_of_user_mode_arrive_with_the_state_of_the_instruction() {
    // stc; mov $7, %ebx; ud2
    let (mut space, code) = program(&[0xf9, 0xbb, 7, 0, 0, 0, 0x0f, 0x0b]);
    let mut vm = Vm::new(&space, false).unwrap();
    vm.state_mut().registers.rsp = 0x1234_5678;
    for _ in 0..3 {
        let rsp = 0x1234_5678;
        start(&mut vm, code, 0);
        vm.state_mut().registers.rsp = rsp;
        assert_eq!(vm.run(&mut space).unwrap(), Exit::Exception(Exception { vector: 6, error_code: 0, address: vm.sregs.cr2 }));
        let registers = vm.state().registers;
        assert_eq!((registers.rip, registers.rsp, registers.rbx, registers.rflags & 1), (code + 6, rsp, 7, 1));
    }
}

#[test]
fn a_page_that_is_copied_on_write_is_seen_by_both_sides() {
    // mov (%rdi), %rbx; incq (%rdi); syscall
    let (mut space, code) = program(&[0x48, 0x8b, 0x1f, 0x48, 0xff, 0x07, 0x0f, 0x05]);
    let data = map(&mut space, PAGE, RW);
    space.memory().write_bytes(data, &41_u64.to_le_bytes()).unwrap();
    let image = std::sync::Arc::new(MemoryImage::freeze(&space, false).unwrap());
    let mut forks: Vec<AddressSpace> = (0..2).map(|_| AddressSpace::fork_of(&image).unwrap()).collect();
    for fork in &mut forks {
        let mut vm = Vm::new(fork, true).unwrap();
        // The guest reads the snapshot's page, writes a copy, and reads the copy; the host replaces what it holds.
        for (before, stored) in [(41, None), (42, None), (7, Some(7_u64))] {
            if let Some(value) = stored {
                fork.memory().write_bytes(data, &value.to_le_bytes()).unwrap();
            }
            start(&mut vm, code, data);
            assert_eq!(vm.run(fork).unwrap(), Exit::SystemCall);
            assert_eq!(vm.state().registers.rbx, before);
            assert_eq!(fork.memory().read_vec(data, 8).unwrap(), (before + 1).to_le_bytes());
        }
    }
}

#[test]
fn no_feature_is_on_that_would_keep_the_entry_from_user_mode() {
    let vm = run_to_call(&[0x0f, 0x05]);
    assert_eq!(vm.sregs.cr4 & CR4_NEVER, 0);
    for block in [0_u64, 1, 512, 1023] {
        let entry = Area::entry_value(block, BlockUse::Code);
        assert_eq!(entry & PRESENT_WRITABLE_USER, PRESENT_WRITABLE_USER);
        assert_eq!(entry & LARGE, LARGE, "2 MiB, in a directory of its own: never 1 GiB");
        assert_eq!(entry & !0xfff, block * BLOCK);
    }
}

#[test]
fn an_exit_reason_of_an_earlier_run_is_not_believed() {
    // syscall; movb $5, (%rdi); syscall
    let (mut space, code) = program(&[0x0f, 0x05, 0xc6, 0x07, 5, 0x0f, 0x05]);
    let request =
        MapRequest { placement: Placement::Fixed(0x8000_0000), length: PAGE, protection: RW, backing: Backing::Anonymous, label: "" };
    let data = space.map(request).unwrap();
    let mut vm = Vm::new(&space, false).unwrap();
    for protection in [Protection::READ, Protection::empty()] {
        space.protect(data, PAGE, protection).unwrap();
        for _ in 0..3 {
            start(&mut vm, code, data);
            assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
            // The run before left KVM_EXIT_IO; this one fails with EFAULT and may not touch it.
            let fault = MemoryFault { address: data, write: true, fetch: false, kind: FaultKind::Protected };
            assert_eq!(vm.run(&mut space).unwrap(), Exit::MemoryFault(Some(fault)));
            assert_eq!(vm.state().registers.rip, code + 2, "at the instruction");
        }
    }
    space.protect(data, PAGE, RW).unwrap();
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    assert_eq!(vm.state().registers.rip, code + 7);
}

#[test]
fn no_port_answers_a_program() {
    let is_user_mode = Host::get().unwrap().capabilities().entry == EntryKind::UserMode;
    // in and out of one, two and four bytes, port in DX.
    for (instruction, width) in
        [(&[0xec_u8] as &[u8], 1), (&[0x66, 0xed], 2), (&[0xed], 4), (&[0xee], 1), (&[0x66, 0xef], 2), (&[0xef], 4_u16)]
    {
        let (mut space, code) = program(&[instruction, &[0x0f, 0x05]].concat());
        let mut vm = Vm::new(&space, false).unwrap();
        let ours = PORT_SYSTEM_CALL - 4..PORT_SYSTEM_CALL + 8;
        for port in ours.chain([0, 0x40, 0x60, 0x70, 0x80, 0xcf8, 0x3f8, 0x7fff, 0xffff]) {
            start(&mut vm, code, 0);
            vm.state_mut().registers.rdx = port.into();
            vm.state_mut().registers.rax = 0x55;
            let exit = vm.run(&mut space).unwrap();
            // The entry's `out` of one byte needs its port open where it runs in user mode; there the exit's address tells the two apart.
            let is_open = is_user_mode && width == 1 && port == PORT_SYSTEM_CALL;
            let refused = if is_open {
                matches!(exit, Exit::Forbidden(_))
            } else {
                exit == Exit::Exception(Exception { vector: 13, error_code: 0, address: vm.sregs.cr2 })
            };
            assert!(refused, "port {port:#x}, {instruction:x?}: {exit:?}");
            assert_eq!(vm.state().registers.rax, 0x55, "port {port:#x}: nothing was read");
        }
        // The VM goes on as if nothing had been.
        start(&mut vm, code + instruction.len() as u64, 0);
        assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    }
}

#[test]
fn all_cpuid_entries_are_taken_however_many_there_are() {
    let found = Host::get().unwrap().capabilities().cpuid_entries;
    let kvm = Kvm::new().unwrap();
    let all = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    assert_eq!(found, all.as_slice().len());
    assert!(found < KVM_MAX_CPUID_ENTRIES, "{found} entries fill the table: there may be more");
    if found > 64 {
        assert_eq!(kvm.get_supported_cpuid(64).map_err(|error| error.errno()).err(), Some(rustix::io::Errno::TOOBIG.raw_os_error()));
    }
    // A leaf from the end of the list reaches the guest, too.
    let last = all.as_slice().iter().rev().find(|entry| entry.function >= 0x8000_0000 && entry.index == 0).unwrap();
    assert_eq!(cpuid(0x8000_0000, 0)[0] & 0x8000_0000, 0x8000_0000);
    assert!(cpuid(0x8000_0000, 0)[0] >= last.function & 0xffff_ff00);
}

#[test]
fn a_feature_counts_as_present_where_kvm_has_it_and_nobody_withholds_it() {
    let kvm = Kvm::new().unwrap();
    // Documentation/virt/kvm/api.rst: KVM_CAP_NR_MEMSLOTS, SYNC_REGS, DIRTY_LOG_RING and its successor, MEMORY_FAULT_INFO.
    let [memslots, registers, ring, strict_ring, fault_info] = [10, 74, 192, 223, 232].map(|number| kvm.check_extension_raw(number));
    let found = Host::get().unwrap().capabilities();
    assert_eq!(found.dirty_ring, (ring > 0 || strict_ring > 0) && !Feature::DirtyRing.is_withheld());
    assert_eq!(found.sync_registers, registers & 3 == 3 && !Feature::SyncRegisters.is_withheld());
    assert_eq!(found.memory_fault_info, fault_info > 0);
    assert_eq!(found.memslots, memslots as usize);
    // And it is used.
    let (space, _) = program(&[0x0f, 0x05]);
    let vm = Vm::new(&space, true).unwrap();
    assert_eq!(matches!(vm.dirty_log, DirtyLog::Ring(_)), found.dirty_ring);
    assert_eq!(matches!(vm.access, RegisterAccess::Shared), found.sync_registers);
}

#[test]
fn the_counter_of_a_guest_is_the_hosts_where_clocks_are_made_of_it() {
    // Every KVM that this was tried on has it.
    let expected = !Feature::TimeStampCounter.is_withheld();
    assert_eq!(Host::get().unwrap().capabilities().time_stamp_counter, expected);
    for _ in 0..8 {
        // rdtsc; syscall
        let (mut space, code) = program(&[0x0f, 0x31, 0x0f, 0x05]);
        let mut vm = Vm::new(&space, false).unwrap();
        assert_eq!(vm.has_host_counter(), expected);
        let mut before = time_stamp::host_counter();
        for _ in 0..8 {
            start(&mut vm, code, 0);
            assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
            let registers = vm.state().registers;
            let (guest, after) = (registers.rdx << 32 | registers.rax, time_stamp::host_counter());
            assert!((before..=after).contains(&guest), "{before} {guest} {after}");
            before = guest;
        }
    }
}

#[test]
fn the_base_of_fs_can_be_read_where_the_probe_could_switch_it_on() {
    // rdfsbase %rbx; syscall
    let (mut space, code) = program(&[0xf3, 0x48, 0x0f, 0xae, 0xc3, 0x0f, 0x05]);
    let mut vm = Vm::new(&space, false).unwrap();
    start(&mut vm, code, 0);
    vm.state_mut().fs_base = 0x7000;
    let exit = vm.run(&mut space).unwrap();
    let found = Host::get().unwrap().capabilities();
    // Without hardware virtualisation the bit that counts is the host's.
    if found.fsgsbase || found.entry == EntryKind::UserMode {
        assert_eq!((exit, vm.state().registers.rbx), (Exit::SystemCall, 0x7000));
    } else {
        assert!(matches!(exit, Exit::Exception(Exception { vector: 6, .. })), "{exit:?}");
    }
}

#[test]
fn writes_are_logged_only_where_a_reset_needs_it() {
    let (space, _) = program(&[0x0f, 0x05]);
    assert!(matches!(Vm::new(&space, false).unwrap().dirty_log, DirtyLog::Off));
    assert!(!matches!(Vm::new(&space, true).unwrap().dirty_log, DirtyLog::Off));
}

#[test]
fn flags_that_no_program_may_set_are_masked_on_every_way_in() {
    // lahf cannot show them: pushfq to (%rsp); syscall
    let (mut space, code) = program(&[0x9c, 0x0f, 0x05]);
    let stack = map(&mut space, PAGE, RW);
    let mut vm = Vm::new(&space, false).unwrap();
    start(&mut vm, code, 0);
    // IOPL 3, NT, VM and resume.
    vm.state_mut().registers.rflags = 0x202 | 0x3000 | 0x4000 | 0x2_0000 | 0x1_0000;
    vm.state_mut().registers.rsp = stack + 64;
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    let pushed = space.memory().read_vec(stack + 56, 8).unwrap();
    let flags = u64::from_le_bytes(pushed.try_into().unwrap());
    assert_eq!(flags & 0x3_7000, 0, "{flags:#x}");
    // An address that sysretq would fault on in supervisor mode is the program's own fault.
    vm.state_mut().registers.rip = 0x8000_0000_0000_0000;
    vm.state_mut().registers.rcx = 0x8000_0000_0000_0000;
    assert_eq!(vm.run(&mut space).unwrap(), Exit::Exception(Exception { vector: 13, error_code: 0, address: 0 }));
}

/// A fork with a ring, in which `rsi` pages from `rdi` on are written, and then a call is made; with the address of that code, and of
/// as many writable pages as were asked for.
fn writer(pages: u64) -> (AddressSpace, Vm, u64, u64) {
    // 1: movb $5, (%rdi); add $4096, %rdi; dec %rsi; jnz 1b; syscall
    let (mut space, code) = program(&[0xc6, 0x07, 5, 0x48, 0x81, 0xc7, 0, 0x10, 0, 0, 0x48, 0xff, 0xce, 0x75, 0xf1, 0x0f, 0x05]);
    let data = map(&mut space, pages * PAGE, RW);
    let image = std::sync::Arc::new(MemoryImage::freeze(&space, false).unwrap());
    let fork = AddressSpace::fork_of(&image).unwrap();
    let vm = Vm::new(&fork, true).unwrap();
    (fork, vm, code, data)
}

#[test]
fn the_full_dirty_ring_is_harvested_and_nothing_is_lost() {
    // More pages than the ring has entries.
    let pages = 20_000_u64;
    let (mut fork, mut vm, code, data) = writer(pages);
    start(&mut vm, code, data);
    vm.state_mut().registers.rsi = pages;
    let mut fills = 0;
    loop {
        match vm.run(&mut fork).unwrap() {
            Exit::SystemCall => break,
            Exit::Kicked => {
                fills += 1;
                vm.harvest(&fork).unwrap();
                vm.rearm_if_filling(&fork).unwrap();
            }
            exit => panic!("{exit:?}"),
        }
        assert!(fills < 100, "no progress");
    }
    vm.harvest(&fork).unwrap();
    let dirty: std::collections::BTreeSet<u64> = fork.memory().dirty().pages().iter().map(|&page| u64::from(page)).collect();
    let missing: Vec<u64> = (data / PAGE..data / PAGE + pages).filter(|page| !dirty.contains(page)).collect();
    assert_eq!(missing, Vec::<u64>::new());
    if matches!(vm.dirty_log, DirtyLog::Ring(_)) {
        assert!(fills > 0, "the ring never filled: this test shows nothing");
    }
}

#[test]
fn a_full_dirty_ring_keeps_no_page_table_entry_from_being_changed() {
    let pages = 20_000_u64;
    let (mut fork, mut vm, code, data) = writer(pages);
    if matches!(vm.dirty_log, DirtyLog::Bitmaps) {
        return;
    }
    start(&mut vm, code, data);
    vm.state_mut().registers.rsi = pages;
    vm.update_tables(&mut fork).unwrap();
    vm.load().unwrap();
    // As the run loop does, but that nobody looks at the ring: with page-modification logging (Intel manual, volume 3, 30.3.6) any
    // exit can leave it full.
    while vm.vcpu.run().is_err() {}
    assert!(vm.is_ring_full(), "exit {}", vm.vcpu.get_kvm_run().exit_reason);
    vm.stale = true;
    // A block in the middle, with nothing executable in it so far, and an entry that is present.
    let block = data / BLOCK + 2;
    let before = vm.area.block_entry(block);
    fork.protect(block * BLOCK, PAGE, RW.union(Protection::EXEC)).unwrap();
    start(&mut vm, code, data);
    vm.state_mut().registers.rsi = 1;
    assert_eq!(vm.run(&mut fork).unwrap(), Exit::SystemCall);
    assert_ne!(vm.area.block_entry(block), before);
}

#[test]
fn registers_travel_the_same_through_the_shared_page_and_by_ioctls() {
    let mut seen: Vec<(UserState, kvm_sregs)> = Vec::new();
    for access in [RegisterAccess::Shared, RegisterAccess::Calls] {
        // inc %rbx; syscall
        let (mut space, code) = program(&[0x48, 0xff, 0xc3, 0x0f, 0x05]);
        let mut vm = Vm::new(&space, false).unwrap();
        if Host::get().unwrap().capabilities().sync_registers {
            vm.access = access;
        }
        start(&mut vm, code, 17);
        vm.state_mut().fs_base = 0x7000;
        vm.state_mut().gs_base = 0x9000;
        assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
        seen.push((*vm.state(), vm.sregs));
        assert_eq!(vm.state().registers.rbx, 1);
    }
    assert_eq!(seen[0].0, seen[1].0);
    assert_eq!((seen[0].1.cr4, seen[0].1.efer, seen[0].1.cs), (seen[1].1.cr4, seen[1].1.efer, seen[1].1.cs));
}
