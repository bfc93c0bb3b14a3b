//! The system-call entry and the fast path behind it, whatever interrupts them.

use zerocopy::IntoBytes;

use super::*;
use crate::fast_path::{FastPath, Logged, Saved};

/// The number of getpid, and a bitmap in which only that is answered.
const GETPID: u64 = 39;

/// A program with a fast path, and its VM.
struct Scene {
    space: AddressSpace,
    vm: Vm,
    fast: FastPath,
    code: u64,
}

impl Scene {
    fn new(code: &[u8]) -> Self {
        let mut space = AddressSpace::new(4 << 30, 1 << 30).unwrap();
        let fast = FastPath::in_space_of(space.size());
        space.map_fast_path(fast).unwrap();
        let address = map(&mut space, PAGE, RW);
        space.memory().write_bytes(address, code).unwrap();
        space.protect(address, PAGE, Protection::READ | Protection::EXEC).unwrap();
        let vm = Vm::new(&space, false).unwrap();
        Self { space, vm, fast, code: address }
    }

    fn run(&mut self) -> Exit {
        self.vm.run(&mut self.space).unwrap()
    }

    /// Be kicked before the first instruction.
    fn run_kicked(&mut self) -> Exit {
        self.vm.vcpu.set_kvm_immediate_exit(1);
        let exit = self.run();
        self.vm.clear_kick();
        exit
    }
}

#[test]
fn a_call_is_answered_inside_where_its_bit_is_set_and_leaves_all_registers_alone() {
    // mov $39, %eax; syscall; mov %rax, %r15; mov $40, %eax; syscall
    let mut scene = Scene::new(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x49, 0x89, 0xc7, 0xb8, 40, 0, 0, 0, 0x0f, 0x05]);
    let memory = scene.space.memory();
    memory.write(scene.fast.answered(), &(1_u64 << GETPID)).unwrap();
    // The process id is the third number from the end of what is told.
    let told = scene.fast.state() + std::mem::offset_of!(crate::fast_path::State, pid) as u64;
    memory.write(told, &4711_i32).unwrap();
    let registers = Registers {
        rbx: 1,
        rdx: 2,
        rsi: 3,
        rdi: 4,
        rbp: 5,
        rsp: 6,
        r8: 7,
        r9: 8,
        r10: 9,
        r12: 10,
        r13: 11,
        r14: 12,
        rflags: 0x602 | 0x8d5,
        ..Registers::default()
    };
    scene.vm.state_mut().registers = Registers { rip: scene.code, ..registers };
    assert_eq!(scene.run(), Exit::SystemCall);
    let found = scene.vm.state().registers;
    assert_eq!((found.rax, found.r15, found.rip), (40, 4711, scene.code + 17));
    let kept = Registers { rax: 0, rcx: 0, r11: 0, r15: 0, rip: 0, ..found };
    assert_eq!(kept, Registers { rflags: kept.rflags, ..registers });
    assert_eq!(kept.rflags & 0xcd5, 0xcd5, "flags, the direction too");
    assert_eq!(scene.fast.logged(scene.space.memory()), 1);
}

#[test]
fn what_is_not_answered_comes_to_the_host_as_it_was_made() {
    // mov $39, %eax; syscall: the log is full.
    let mut scene = Scene::new(&[0xb8, 39, 0, 0, 0, 0x0f, 0x05]);
    let memory = scene.space.memory();
    memory.write(scene.fast.answered(), &(1_u64 << GETPID)).unwrap();
    memory.write(scene.fast.state() + 8, &(crate::fast_path::LOG_ENTRIES as u64)).unwrap();
    start(&mut scene.vm, scene.code, 77);
    assert_eq!(scene.run(), Exit::SystemCall);
    let found = scene.vm.state().registers;
    assert_eq!((found.rax, found.rdi, found.rip, found.rcx), (GETPID, 77, scene.code + 7, scene.code + 7));
}

#[test]
fn an_interrupted_answer_is_taken_back_or_finished_and_never_gone_on_with() {
    // syscall; syscall
    let mut scene = Scene::new(&[0x0f, 0x05, 0x0f, 0x05]);
    let (image, bytes) = scene.fast.image();
    let middle = image + bytes.len() as u64 / 2;
    for is_answered in [false, true] {
        let memory = scene.space.memory();
        let saved = Saved { rcx: scene.code + 2, r11: 0x202, rax: 600, rdi: 5, ..Saved::default() };
        memory.write_bytes(scene.fast.saved(), saved.as_bytes()).unwrap();
        memory.write(scene.fast.state(), &[0_u64, u64::from(is_answered)]).unwrap();
        memory.write(scene.fast.log(0), &Logged { result: -11, ..Logged::default() }).unwrap();
        start(&mut scene.vm, middle, 99);
        assert_eq!(scene.run_kicked(), Exit::Kicked);
        let found = scene.vm.state().registers;
        let wanted = if is_answered { (scene.code + 2, (-11_i64).cast_unsigned()) } else { (scene.code, 600) };
        assert_eq!((found.rip, found.rax, found.rdi), (wanted.0, wanted.1, 5));
        // The registers are as they are to be, and are not changed: they have to be handed over all the same.
        assert_eq!(scene.run(), Exit::SystemCall);
        let found = scene.vm.state().registers;
        assert_eq!((found.rip, found.rax, found.rdi), (wanted.0 + 2, wanted.1, 5));
    }
}

#[test]
fn an_interrupted_entry_is_a_call_that_was_not_made() {
    let mut scene = Scene::new(&[0x0f, 0x05]);
    let saved = Saved { rcx: scene.code + 2, r11: 0x203, ..Saved::default() };
    scene.space.memory().write_bytes(scene.fast.saved(), saved.as_bytes()).unwrap();
    let (entry, out) = (scene.vm.area.entry(), scene.vm.area.entry_out());
    for rip in entry..=out {
        // On the way in, on the way to the fast path, and on its way to the host.
        for (rcx, r11) in [(scene.code + 2, 0x203), (scene.fast.entry(), 0x203), (scene.fast.exit(), 0x46)] {
            start(&mut scene.vm, rip, 7);
            let registers = &mut scene.vm.state_mut().registers;
            (registers.rcx, registers.r11, registers.rax) = (rcx, r11, 600);
            assert_eq!(scene.run_kicked(), Exit::Kicked);
            let found = scene.vm.state().registers;
            assert_eq!((found.rip, found.rcx, found.r11, found.rflags), (scene.code, scene.code + 2, 0x203, 0x203), "{:#x}", rip - entry);
        }
    }
    assert_eq!(scene.run(), Exit::SystemCall);
    assert_eq!(scene.vm.state().registers.rax, 600);
}
