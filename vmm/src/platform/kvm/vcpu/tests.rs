//! The platform alone: a few instructions in a guest without a kernel.

use super::*;
use crate::limits::PAGE;
use crate::memory::{Backing, Keep, MapRequest, MemoryImage, Placement, Protection};
use crate::platform::{FaultKind, MemoryFault};

mod differences;
mod fast_path;

const RW: Protection = Protection::READ.union(Protection::WRITE);

fn map(space: &mut AddressSpace, length: u64, protection: Protection) -> u64 {
    let request = MapRequest { placement: Placement::Anywhere, length, protection, backing: Backing::Anonymous, label: "" };
    space.map(request).unwrap()
}

/// A space with `code` in an executable page, and the address of the code.
fn program(code: &[u8]) -> (AddressSpace, u64) {
    let mut space = AddressSpace::new(4 << 30, 1 << 30).unwrap();
    let address = map(&mut space, PAGE, RW);
    space.memory().write_bytes(address, code).unwrap();
    space.protect(address, PAGE, Protection::READ | Protection::EXEC).unwrap();
    (space, address)
}

fn start(vm: &mut Vm, rip: u64, rdi: u64) {
    vm.state_mut().registers = Registers { rip, rdi, rflags: 0x202, ..Registers::default() };
}

#[test]
fn a_system_call_exits_with_its_registers_and_goes_on_behind_it() {
    // mov $39, %eax; syscall; mov %rax, %rbx; syscall
    let (mut space, code) = program(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x48, 0x89, 0xc3, 0x0f, 0x05]);
    let mut vm = Vm::new(&space, false).unwrap();
    start(&mut vm, code, 0);
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    assert_eq!((vm.state().registers.rax, vm.state().registers.rip), (39, code + 7));
    vm.state_mut().registers.rax = 4711;
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    assert_eq!((vm.state().registers.rbx, vm.state().registers.rip), (4711, code + 12));
}

#[test]
fn faults_are_told_apart() {
    // movb $5, (%rdi); syscall
    let (mut space, code) = program(&[0xc6, 0x07, 5, 0x0f, 0x05]);
    // In a block of its own: the code's block is executable as a whole.
    let request =
        MapRequest { placement: Placement::Fixed(0x8000_0000), length: 2 * PAGE, protection: RW, backing: Backing::Anonymous, label: "" };
    let data = space.map(request).unwrap();
    let reserved = map(&mut space, 64 << 20, Protection::empty());
    space.protect(data + PAGE, PAGE, Protection::READ).unwrap();
    let mut vm = Vm::new(&space, false).unwrap();
    for (address, kind) in [(data + PAGE, FaultKind::Protected), (data + 2 * PAGE, FaultKind::Unmapped)] {
        start(&mut vm, code, address);
        let fault = MemoryFault { address, write: true, fetch: false, kind };
        assert_eq!(vm.run(&mut space).unwrap(), Exit::MemoryFault(Some(fault)));
        assert_eq!(vm.state().registers.rip, code);
    }
    // An absent entry is a page fault inside the guest.
    start(&mut vm, code, reserved);
    assert_eq!(vm.run(&mut space).unwrap(), Exit::Exception(Exception { vector: 14, error_code: 6, address: reserved }));
    assert_eq!(vm.state().registers.rip, code);
    space.protect(reserved, PAGE, RW).unwrap();
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    // Data is not executable until it is made so.
    space.memory().write_bytes(data, &[0x0f, 0x05]).unwrap();
    start(&mut vm, data, 0);
    let exit = vm.run(&mut space).unwrap();
    assert!(matches!(exit, Exit::Exception(Exception { vector: 14, .. })), "{exit:x?} {:x?}", vm.state());
    space.protect(data, PAGE, Protection::READ | Protection::EXEC).unwrap();
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    // Division by zero, an undefined instruction, a breakpoint, an I/O instruction, a supervisor instruction.
    for (bytes, vector) in
        [(&[0x31_u8, 0xc9, 0xf7, 0xf1] as &[u8], 0), (&[0x0f, 0x0b], 6), (&[0xcc], 3), (&[0xe6, 0x80], 13), (&[0xf4], 13)]
    {
        space.protect(data, PAGE, RW).unwrap();
        space.memory().write_bytes(data, bytes).unwrap();
        space.protect(data, PAGE, Protection::READ | Protection::EXEC).unwrap();
        start(&mut vm, data, 0);
        let exit = vm.run(&mut space).unwrap();
        assert!(matches!(exit, Exit::Exception(Exception { vector: v, .. }) if v == vector), "{vector}: {exit:?}");
    }
}

#[test]
fn an_endless_loop_is_kicked_and_goes_on() {
    // 1: inc %rbx; jmp 1b
    let (mut space, code) = program(&[0x48, 0xff, 0xc3, 0xeb, 0xfb]);
    let mut vm = Vm::new(&space, false).unwrap();
    let kicker = vm.kicker().unwrap();
    start(&mut vm, code, 0);
    let (mut last, mut progress) = (0, 0);
    // A kick may come before the first instruction, on a slow host more often than not.
    for round in 1..=10 {
        kicker.arm(crate::linux::clock::host_monotonic() + round * 3_000_000);
        assert_eq!(vm.run(&mut space).unwrap(), Exit::Kicked);
        vm.clear_kick();
        assert!(vm.state().registers.rbx >= last, "it began anew");
        progress += u32::from(vm.state().registers.rbx > last);
        last = vm.state().registers.rbx;
    }
    assert!(progress > 1, "{progress} runs that came anywhere");
}

#[test]
fn a_kick_behind_the_end_of_its_vm_meets_nothing() {
    let (space, _) = program(&[0x0f, 0x05]);
    for _ in 0..20 {
        let mut vm = Vm::new(&space, false).unwrap();
        let kicker = vm.kicker().unwrap();
        drop(vm);
        // At once, to this thread: its handler would store into memory that is gone.
        kicker.arm(1);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_fork_reports_the_pages_it_writes_and_keeps_the_snapshot_clean() {
    // movb $5, (%rdi); syscall
    let (mut space, code) = program(&[0xc6, 0x07, 5, 0x0f, 0x05]);
    let data = map(&mut space, 64 * PAGE, RW);
    space.memory().write_zeros(data, 64 * PAGE).unwrap();
    space.memory().write_bytes(data, b"frozen").unwrap();
    let image = std::sync::Arc::new(MemoryImage::freeze(&space, false).unwrap());
    let mut fork = AddressSpace::fork_of(&image).unwrap();
    let mut vm = Vm::new(&fork, true).unwrap();
    for round in 0..100 {
        for page in [0, 7, 63] {
            start(&mut vm, code, data + page * PAGE);
            assert_eq!(vm.run(&mut fork).unwrap(), Exit::SystemCall);
        }
        vm.harvest(&fork).unwrap();
        let dirty: Vec<u32> = fork.memory().dirty().pages().to_vec();
        assert_eq!(
            dirty.iter().map(|&page| u64::from(page) - data / PAGE).collect::<std::collections::BTreeSet<_>>(),
            [0, 7, 63].into(),
            "{round}"
        );
        fork.restore_pages(Keep::These(&|page| page != data / PAGE + 63)).unwrap();
        assert_eq!(fork.memory().read_vec(data, 6).unwrap(), b"frozen");
        assert_eq!(fork.memory().read_vec(data + 63 * PAGE, 1).unwrap(), [0]);
        if round % 10 == 0 {
            vm.rearm(&fork).unwrap();
        }
    }
}

#[test]
fn extended_state_is_kept_and_replaced() {
    // vpcmpeqd %ymm3, %ymm3, %ymm3; syscall; vmovd %xmm3, %ebx; syscall
    let (mut space, code) = program(&[0xc5, 0xe5, 0x76, 0xdb, 0x0f, 0x05, 0xc5, 0xf9, 0x7e, 0xdb, 0x0f, 0x05]);
    let mut vm = Vm::new(&space, false).unwrap();
    let fresh = vm.extended().unwrap();
    start(&mut vm, code, 0);
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    let written = vm.extended().unwrap();
    assert_ne!(written, fresh);
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    assert_eq!(vm.state().registers.rbx, 0xffff_ffff);
    vm.set_extended(&fresh).unwrap();
    start(&mut vm, code + 6, 0);
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    assert_eq!(vm.state().registers.rbx, 0);
}

#[test]
fn extended_state_is_brought_back_by_the_guest_before_anything_else() {
    // syscall; vmovd %xmm3, %ebx; vpxor %ymm3, %ymm3, %ymm3; vpcmpeqd %ymm9, %ymm9, %ymm9; syscall
    let code = [0x0f, 0x05, 0xc5, 0xf9, 0x7e, 0xdb, 0xc5, 0xe5, 0xef, 0xdb, 0xc4, 0x41, 0x35, 0x76, 0xc9, 0x0f, 0x05];
    let (mut space, code) = program(&[&[0xc5_u8, 0xe5, 0x76, 0xdb] as &[u8], &code].concat());
    let mut vm = Vm::new(&space, false).unwrap();
    start(&mut vm, code, 0);
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    let kept = vm.extended().unwrap();
    vm.keep_extended(&kept).unwrap();
    let kicker = vm.kicker().unwrap();
    for round in 0..200_u64 {
        // Kicks at all moments: between the host's order and the program's first instruction, too.
        kicker.arm(crate::linux::clock::host_monotonic() + round % 50 * 1000);
        vm.state_mut().registers =
            Registers { rip: code + 6, rax: 7, rdx: 8, rcx: 9, rbx: 0, rflags: 0x202 | (round % 2), ..Registers::default() };
        vm.restore_extended();
        while vm.run(&mut space).unwrap() == Exit::Kicked {
            vm.clear_kick();
        }
        let registers = vm.state().registers;
        assert_eq!((registers.rip, registers.rbx, registers.rax, registers.rdx), (code + 21, 0xffff_ffff, 7, 8), "round {round}");
        assert_eq!(registers.r11 & 1, round % 2, "the flags are the program's");
        assert_ne!(vm.extended().unwrap(), kept);
    }
    // The last kick is over.
    std::thread::sleep(std::time::Duration::from_millis(1));
    vm.clear_kick();
    // Looked at, it is there; and the program still goes on where it is.
    vm.restore_extended();
    assert_eq!(vm.extended().unwrap(), kept);
    start(&mut vm, code + 6, 0);
    vm.finish_restore(&mut space).unwrap();
    assert_eq!(vm.extended().unwrap(), kept);
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    assert_eq!((vm.state().registers.rbx, vm.state().registers.rip), (0xffff_ffff, code + 21));
    // A kick that comes meanwhile is still to be seen.
    vm.restore_extended();
    kicker.arm(crate::linux::clock::host_monotonic());
    while vm.vcpu.get_kvm_run().immediate_exit == 0 {
        std::thread::yield_now();
    }
    vm.finish_restore(&mut space).unwrap();
    start(&mut vm, code + 6, 0);
    assert_eq!(vm.run(&mut space).unwrap(), Exit::Kicked);
    // A program can read what it is brought back from, and not change it.
    let kept_page = vm.area.address() + super::super::layout::KEPT;
    // mov (%rdi), %rbx; syscall; incq (%rdi)
    let (mut space, code) = program(&[0x48, 0x8b, 0x1f, 0x0f, 0x05, 0x48, 0xff, 0x07]);
    let mut vm = Vm::new(&space, false).unwrap();
    start(&mut vm, code, kept_page);
    assert_eq!(vm.run(&mut space).unwrap(), Exit::SystemCall);
    let exit = vm.run(&mut space).unwrap();
    assert_eq!(exit, Exit::Exception(Exception { vector: 14, error_code: 7, address: kept_page }));
}
