#![expect(unsafe_code, reason = "the supervisor area is host memory shared with a guest's page walker")]
//! The supervisor area: descriptor tables, entry code, exception handlers, page tables, as bytes.
//!
//! Guest page tables are static: 2 MiB entries with A and D preset, identity-mapped (guest-physical = guest-virtual).
//! An **absent** entry may be filled by the host at any time; a present one is only changed by the routine at `EDITOR`
//! that runs inside the guest (a host-side store to it stays invisible to a shadow MMU).
//!
//! UNSAFETY: the area is one anonymous mapping that this value owns; loads and stores are volatile, at checked offsets, and
//! happen only while the vCPU does not run.

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::layout::{
    AREA_DIRECTORY, AREA_TABLE, DIRECTORIES, EDITOR, ENTRY, GATES, GDT, HANDLER_BYTES, HANDLERS, IDT, KEPT, KEPT_RAX, KEPT_RDX, KEPT_RIP,
    KERNEL_CS, PDPT, PML4, PORT_EDITED, PORT_EXCEPTION, PORT_SYSTEM_CALL, STACK_TOP, TSS, TSS_SELECTOR, VECTORS, area_address, area_bytes,
};
use super::probe::EntryKind;
use crate::fast_path::FastPath;
use crate::limits::{BLOCK, PAGE};
use crate::memory::BlockUse;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED_DIRTY: u64 = 3 << 5;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// The length of the `out` instruction in the entry.
const OUT_BYTES: u64 = 2;
/// `out %al, $port`: of one byte, so that the bitmap needs to open one port.
const OUT: u8 = 0xe6;
/// Ports that the I/O permission bitmap speaks of; all others are denied by its length.
const BITMAP_PORTS: usize = 128;
/// Vector of the general-protection exception.
const GENERAL_PROTECTION: u64 = 13;
/// Where in the entry's page the probe finds a `syscall` instruction.
const PROBE_OFFSET: u64 = 256;
/// Where in the entry's page the addresses are that the entry knows of the fast path.
const FAST_EXIT: u64 = 128;
const FAST_ENTRY: u64 = 136;
/// One past the highest system-call number that the fast path may answer.
const FAST_NUMBERS: u32 = 512;
/// Where in the entry's page the routine is that loads the kept extended state, and its length.
const RESTORE_OFFSET: u64 = 512;
const RESTORE_BYTES: u64 = 38;
/// The 64-bit TSS without its bitmap.
const TSS_BYTES: usize = 104;

/// One guest's supervisor area.
#[derive(Debug)]
pub(super) struct Area {
    host: *mut u8,
    bytes: u64,
    address: u64,
    space: u64,
    /// Offset of the `out` instruction in the entry's page.
    out: u64,
}

// SAFETY: the mapping belongs to this value alone and has no thread affinity.
unsafe impl Send for Area {}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nobody uses after this value.
        let _ = unsafe { rustix::mm::munmap(self.host.cast(), self.bytes as usize) };
    }
}

impl Area {
    /// Build the area for an address space of `space` bytes, and the fast path in it if it has one.
    pub(super) fn new(space: u64, kind: EntryKind, fast: Option<FastPath>, xcr0: u64) -> Result<Self, Errno> {
        let bytes = area_bytes(space);
        // SAFETY: a new mapping at an address the kernel chooses.
        let host = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                bytes as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let mut area = Self { host: host.cast(), bytes, address: area_address(space), space, out: 0 };
        area.fill_descriptors(kind);
        area.fill_code();
        area.fill_entry(kind, fast);
        area.fill_restore(xcr0);
        area.fill_tables();
        Ok(area)
    }

    pub(super) const fn address(&self) -> u64 {
        self.address
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn host_address(&self) -> u64 {
        self.host as u64
    }

    /// Guest address of the system-call entry.
    pub(super) const fn entry(&self) -> u64 {
        self.address + ENTRY
    }

    /// Guest address behind the `out` of the entry, where its return instruction is.
    pub(super) const fn entry_return(&self) -> u64 {
        self.entry() + self.out + OUT_BYTES
    }

    /// Whether this is an address in the entry at which the call has not been handed to the host yet.
    pub(super) fn is_entry(&self, rip: u64) -> bool {
        (self.entry()..=self.entry() + self.out).contains(&rip)
    }

    /// Guest address of the `out` of the entry.
    pub(super) const fn entry_out(&self) -> u64 {
        self.entry() + self.out
    }

    /// Guest address of the probe's instructions, in user mode: `rdtsc`, `syscall`.
    pub(super) const fn probe(&self) -> u64 {
        self.entry() + PROBE_OFFSET
    }

    /// Guest address of the routine that loads the kept extended state and goes on with the registers of [`Area::keep_registers`].
    pub(super) const fn restore(&self) -> u64 {
        self.entry() + RESTORE_OFFSET
    }

    /// Whether this is an address in that routine, which has not gone on yet.
    pub(super) fn is_restore(&self, rip: u64) -> bool {
        (self.restore()..self.restore() + RESTORE_BYTES).contains(&rip)
    }

    /// The extended state that the routine loads, in the standard format of XSAVE.
    pub(super) fn keep_extended(&self, state: &[u8]) {
        assert!(KEPT + state.len() as u64 <= KEPT_RAX, "the extended state fits into its page");
        self.store_bytes(KEPT, state);
    }

    /// What the routine, which needs RAX and RDX, goes on with.
    pub(super) fn keep_registers(&self, rax: u64, rdx: u64, rip: u64) {
        self.store(KEPT_RAX, rax);
        self.store(KEPT_RDX, rdx);
        self.store(KEPT_RIP, rip);
    }

    /// Guest address of the page-table routine.
    pub(super) const fn editor(&self) -> u64 {
        self.address + EDITOR
    }

    /// The exception vector whose handler holds this address.
    pub(super) fn handler_vector(&self, rip: u64) -> Option<u8> {
        let offset = rip.checked_sub(self.address + HANDLERS)?;
        u8::try_from(offset / HANDLER_BYTES).ok().filter(|&vector| u64::from(vector) < VECTORS)
    }

    /// A supervisor stack pointer for the page-table routine.
    pub(super) const fn stack_top(&self) -> u64 {
        self.address + STACK_TOP - 16
    }

    fn store(&self, offset: u64, value: u64) {
        assert!(offset.is_multiple_of(8) && offset < self.bytes, "offset {offset:#x} outside the supervisor area");
        let word = self.host.wrapping_add(offset as usize).cast::<u64>();
        // SAFETY: the offset is inside the mapping and aligned; nothing else accesses it now.
        unsafe { word.write_volatile(value) };
    }

    /// Read a word of the area, for exception frames; `None` outside it.
    pub(super) fn load(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.address).filter(|offset| offset.is_multiple_of(8) && *offset < self.bytes)?;
        let word = self.host.wrapping_add(offset as usize).cast::<u64>();
        // SAFETY: the offset is inside the mapping and aligned; nothing else accesses it now.
        Some(unsafe { word.read_volatile() })
    }

    fn store_bytes(&self, offset: u64, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.store(offset + index as u64 * 8, u64::from_le_bytes(word));
        }
    }

    fn fill_descriptors(&self, kind: EntryKind) {
        let segment = |access: u64, flags: u64| 0xffff | 0xf << 48 | access << 40 | flags << 52;
        let (long, wide) = (0xa, 0xc);
        // Index 4 (selector 0x23) would be 32-bit user code: absent. SYSRET needs user data and code behind it.
        for (index, descriptor) in [(2, segment(0x9b, long)), (3, segment(0x93, wide)), (5, segment(0xf3, wide)), (6, segment(0xfb, long))]
        {
            self.store(GDT + index * 8, descriptor);
        }
        let base = self.address + TSS;
        let limit = (TSS_BYTES + BITMAP_PORTS / 8) as u64;
        let selector = u64::from(TSS_SELECTOR);
        self.store(GDT + selector, limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56);
        self.store(GDT + selector + 8, base >> 32);

        let mut tss = vec![0_u8; TSS_BYTES];
        tss[4..12].copy_from_slice(&(self.address + STACK_TOP - 16).to_le_bytes());
        tss[102..104].copy_from_slice(&(TSS_BYTES as u16).to_le_bytes());
        // A clear bit permits the port to user mode, which needs it only where the entry runs in user mode; an `out` elsewhere
        // is recognised by its address and is the guest's SIGSEGV.
        let mut bitmap = vec![0xff_u8; BITMAP_PORTS / 8 + 1];
        if kind == EntryKind::UserMode {
            bitmap[usize::from(PORT_SYSTEM_CALL / 8)] &= !(1 << (PORT_SYSTEM_CALL % 8));
        }
        tss.extend(bitmap);
        self.store_bytes(TSS, &tss);

        for vector in 0..GATES {
            // Behind the exceptions there is nothing that could come: those gates lead to the handler of #GP.
            let handled = if vector < VECTORS { vector } else { GENERAL_PROTECTION };
            let handler = self.address + HANDLERS + handled * HANDLER_BYTES;
            // `int3` and `into` may be used by programs (privilege level 3), all else only by the processor.
            let access = if vector == 3 || vector == 4 { 0xee } else { 0x8e };
            self.store(IDT + vector * 16, handler & 0xffff | u64::from(KERNEL_CS) << 16 | access << 40 | (handler >> 16 & 0xffff) << 48);
            self.store(IDT + vector * 16 + 8, handler >> 32);
        }
    }

    fn fill_code(&self) {
        let out = |port: u16| [OUT, port as u8];
        for vector in 0..VECTORS {
            // out %al, $port; hlt
            let [a, b] = out(PORT_EXCEPTION);
            self.store_bytes(HANDLERS + vector * HANDLER_BYTES, &[a, b, 0xf4]);
        }
        // For the probe to start from: rdtsc; syscall (which leaves EAX and EDX alone).
        self.store_bytes(ENTRY + PROBE_OFFSET, &[0x0f, 0x31, 0x0f, 0x05]);
        let [a, b] = out(PORT_EDITED);
        // mov %rax, (%rdi); invlpg (%rsi); out %al, $port; hlt
        self.store_bytes(EDITOR, &[0x48, 0x89, 0x07, 0x0f, 0x01, 0x3e, a, b, 0xf4]);
    }

    /// The system-call entry: `out` to the host; with a fast path, calls whose bit is set go there instead, unless it is that one
    /// which asks for the host. The return instruction is all in which implementations of KVM differ.
    fn fill_entry(&mut self, kind: EntryKind, fast: Option<FastPath>) {
        let resume: &[u8] = match kind {
            // jmp *%rcx
            EntryKind::UserMode => &[0xff, 0xe1],
            // sysretq
            EntryKind::SupervisorMode => &[0x48, 0x0f, 0x07],
        };
        let mut code = Vec::new();
        if let Some(fast) = fast {
            let start = self.entry();
            self.store(ENTRY + FAST_EXIT, fast.exit());
            self.store(ENTRY + FAST_ENTRY, fast.entry());
            // An instruction whose operand is at an address relative to its end.
            let operand = |code: &mut Vec<u8>, opcode: &[u8], target: u64| {
                code.extend(opcode);
                let end = start + code.len() as u64 + 4;
                // The fast path lies right below the area: the distance fits.
                code.extend((target.wrapping_sub(end) as u32).to_le_bytes());
            };
            let mut to_host = Vec::new();
            // cmp FAST_EXIT, %rcx; je host
            operand(&mut code, &[0x48, 0x3b, 0x0d], start + FAST_EXIT);
            code.extend([0x74, 0]);
            to_host.push(code.len());
            // cmp $(FAST_NUMBERS - 1), %rax; ja host
            code.extend([0x48, 0x3d]);
            code.extend((FAST_NUMBERS - 1).to_le_bytes());
            code.extend([0x77, 0]);
            to_host.push(code.len());
            // bt %rax, answered; jnc host
            operand(&mut code, &[0x48, 0x0f, 0xa3, 0x05], fast.answered());
            code.extend([0x73, 0]);
            to_host.push(code.len());
            // mov %rcx, saved.rcx; mov FAST_ENTRY, %rcx
            operand(&mut code, &[0x48, 0x89, 0x0d], fast.saved());
            operand(&mut code, &[0x48, 0x8b, 0x0d], start + FAST_ENTRY);
            code.extend(resume);
            let host = code.len();
            for end in to_host {
                // A few dozen bytes.
                code[end - 1] = (host - end) as u8;
            }
        }
        self.out = code.len() as u64;
        // out %al, $port
        code.extend([OUT, PORT_SYSTEM_CALL as u8]);
        code.extend(resume);
        self.store_bytes(ENTRY, &code);
    }

    /// In user mode, as a program's own code would do it; XRSTOR needs no more (AMD64 manual volume 2, section 11.5).
    fn fill_restore(&self, xcr0: u64) {
        let start = self.restore();
        let mut code = Vec::new();
        // mov $low, %eax; mov $high, %edx
        for (opcode, half) in [(0xb8, xcr0 as u32), (0xba, (xcr0 >> 32) as u32)] {
            code.push(opcode);
            code.extend(half.to_le_bytes());
        }
        // xrstor64 KEPT; mov KEPT_RAX, %rax; mov KEPT_RDX, %rdx; jmp *KEPT_RIP
        for (opcode, target) in [
            (&[0x48_u8, 0x0f, 0xae, 0x2d] as &[u8], KEPT),
            (&[0x48, 0x8b, 0x05], KEPT_RAX),
            (&[0x48, 0x8b, 0x15], KEPT_RDX),
            (&[0xff, 0x25], KEPT_RIP),
        ] {
            code.extend(opcode);
            let end = start + code.len() as u64 + 4;
            code.extend(((self.address + target).wrapping_sub(end) as u32).to_le_bytes());
        }
        debug_assert_eq!(code.len() as u64, RESTORE_BYTES, "what is_restore takes for its length");
        self.store_bytes(ENTRY + RESTORE_OFFSET, &code);
    }

    fn fill_tables(&self) {
        let table = PRESENT | WRITABLE | USER | ACCESSED_DIRTY & !(1 << 6);
        self.store(PML4, (self.address + PDPT) | table);
        for gib in 0..self.space.div_ceil(1 << 30) {
            self.store(PDPT + gib * 8, (self.address + DIRECTORIES + gib * PAGE) | table);
        }
        self.store(PDPT + (self.address >> 30) * 8, (self.address + AREA_DIRECTORY) | table);
        // The first block of the area page by page, so that user mode sees the entry and what it loads, and nothing else; the rest as a whole.
        self.store(AREA_DIRECTORY, (self.address + AREA_TABLE) | table);
        let supervisor = PRESENT | WRITABLE | ACCESSED_DIRTY;
        for page in 0..BLOCK / PAGE {
            let entry = match page * PAGE {
                ENTRY => PRESENT | USER | ACCESSED_DIRTY,
                KEPT => PRESENT | USER | ACCESSED_DIRTY | NO_EXECUTE,
                HANDLERS | EDITOR => PRESENT | ACCESSED_DIRTY,
                _ => supervisor | NO_EXECUTE,
            };
            self.store(AREA_TABLE + page * 8, (self.address + page * PAGE) | entry);
        }
        for block in 1..self.bytes / BLOCK {
            self.store(AREA_DIRECTORY + block * 8, (self.address + block * BLOCK) | supervisor | LARGE | NO_EXECUTE);
        }
    }

    /// Offset of the entry of a block of the address space.
    pub(super) const fn entry_offset(block: u64) -> u64 {
        DIRECTORIES + block * 8
    }

    /// The entry that lets user mode use a block as it needs.
    pub(super) const fn entry_value(block: u64, usage: BlockUse) -> u64 {
        let common = (block * BLOCK) | PRESENT | WRITABLE | USER | ACCESSED_DIRTY | LARGE;
        match usage {
            BlockUse::Unused => 0,
            BlockUse::Data => common | NO_EXECUTE,
            BlockUse::Code => common,
        }
    }

    /// The entry of a block as it is.
    pub(super) fn block_entry(&self, block: u64) -> u64 {
        self.load(self.address + Self::entry_offset(block)).unwrap_or(0)
    }

    /// Fill an entry that is absent.
    pub(super) fn fill_block(&self, block: u64, value: u64) {
        assert_eq!(self.block_entry(block) & PRESENT, 0, "a present page-table entry is changed from inside the guest only");
        self.store(Self::entry_offset(block), value);
    }
}
