#![expect(unsafe_code, reason = "the union of exits in the shared kvm_run page")]
//! One VM with its one vCPU: run until an exit, registers in and out through the shared page, page-table entries, dirty pages.
//!
//! Invariants: `state` is what user mode sees, whatever mode the vCPU stopped in: after a system call RIP is behind the
//! `syscall`. An RIP at our `out` is never saved. `exit_reason` is looked at only when KVM_RUN returned 0, and cleared before.
//! RIP is always set explicitly before a run that follows an I/O exit.
//!
//! UNSAFETY: a member of the union is looked at only after `exit_reason` has said that it is the valid one; the page is mapped as
//! long as the vCPU.

use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    kvm_regs, kvm_sregs,
};
use kvm_ioctls::{VcpuFd, VmFd};
use rustix::io::Errno;

use super::area::Area;
use super::dirty_log::DirtyLog;
use super::kick::{self, KickFlag, Kicker};
use super::layout::{PORT_EDITED, PORT_EXCEPTION, PORT_SYSTEM_CALL, SPACE_MAX};
use super::memslots::Memslots;
use super::registers::RegisterAccess;
use super::vector_state::{Places, VectorState};
use super::{Host, OpenKvmError, cpu_state, fault, segments};
use crate::cpu::Registers;
use crate::fast_path::{FastPath, Interrupted};
use crate::limits::BLOCK;
use crate::memory::{AddressSpace, BlockUse};
use crate::platform::{Exception, Exit, RunVmError};

/// Vectors that push an error code.
const WITH_ERROR_CODE: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;

/// Vector of the general-protection exception.
const GENERAL_PROTECTION: u8 = 13;
/// The trap flag: an exception behind each instruction.
const TRAP: u64 = 1 << 8;
/// Kicks that may come while the guest loads its extended state and does nothing else.
const RESTORE_ATTEMPTS: usize = 1000;
/// Pieces of a string I/O instruction that are waited for before the VM is given up.
const IO_PIECES: usize = 64;

/// What user mode sees of the processor, besides the extended state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UserState {
    /// General registers.
    pub registers: Registers,
    /// Base of FS.
    pub fs_base: u64,
    /// Base of GS.
    pub gs_base: u64,
}

/// In what mode the vCPU stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// In user mode: any state can be put in directly.
    User,
    /// In the system-call entry in supervisor mode: its return instruction can be used.
    Entry,
    /// In supervisor mode elsewhere: segments must be set.
    Supervisor,
}

/// A VM with one vCPU.
#[derive(Debug)]
pub struct Vm {
    vcpu: VcpuFd,
    dirty_log: DirtyLog,
    access: RegisterAccess,
    vm: VmFd,
    slots: Memslots,
    area: Area,
    sregs: kvm_sregs,
    stopped: Stopped,
    state: UserState,
    /// The state as KVM has it, to know what to hand over.
    loaded: UserState,
    retried_at: Option<u64>,
    /// The extended state that [`Vm::restore_extended`] brings back.
    kept: Vec<u8>,
    /// The guest has not loaded it yet: it does when it runs next.
    restores: bool,
    /// What user mode was to see when it was last asked to.
    unrestored: UserState,
    /// KVM's registers are not `loaded` any more.
    stale: bool,
    /// KVM's data segments are not the ones in `sregs` any more.
    stale_segments: bool,
    /// The guest's time-stamp counter counts as the host's.
    has_host_counter: bool,
    /// Where the extended state has the registers of AVX-512.
    places: Places,
}

impl Vm {
    /// A VM for this address space; `log_dirty` for one that will be reset.
    ///
    /// # Errors
    ///
    /// [`OpenKvmError`].
    pub fn new(space: &AddressSpace, log_dirty: bool) -> Result<Self, OpenKvmError> {
        let host = Host::get()?;
        let system = |what| move |errno| OpenKvmError::Ioctl(what, errno);
        if space.size() > SPACE_MAX {
            return Err(OpenKvmError::Lacks("room for an address space of more than 480 GiB"));
        }
        let vm = host.kvm.create_vm().map_err(OpenKvmError::ioctl("create a VM"))?;
        let with_ring = log_dirty && host.capabilities.dirty_ring;
        if with_ring {
            DirtyLog::enable_ring(&vm)?;
        }
        let area =
            Area::new(space.size(), host.capabilities.entry, space.fast_path(), host.xcr0()).map_err(system("map the supervisor area"))?;
        let slots = Memslots::new(&vm, (area.address(), area.host_address(), area.bytes()), space.size(), log_dirty)
            .map_err(system("add a memslot"))?;
        let mut vcpu = vm.create_vcpu(0).map_err(OpenKvmError::ioctl("create a vCPU"))?;
        let sregs = cpu_state::initialise(&vcpu, &host.processor, &area).map_err(system("set up a vCPU"))?;
        let dirty_log = match log_dirty {
            false => DirtyLog::Off,
            true if with_ring => DirtyLog::ring(&vcpu).map_err(system("map the dirty ring"))?,
            true => DirtyLog::Bitmaps,
        };
        let access = if host.capabilities.sync_registers { RegisterAccess::Shared } else { RegisterAccess::Calls };
        access.attach(&mut vcpu, sregs);
        let (state, loaded) = (UserState::default(), UserState::default());
        Ok(Self {
            vcpu,
            dirty_log,
            access,
            vm,
            slots,
            area,
            sregs,
            stopped: Stopped::User,
            state,
            loaded,
            retried_at: None,
            kept: Vec::new(),
            has_host_counter: host.capabilities.time_stamp_counter,
            places: host.processor.places,
            restores: false,
            unrestored: UserState::default(),
            stale: false,
            stale_segments: false,
        })
    }

    /// Memory slots in use. They are never given back, and cost kernel memory: 0.1 MiB each on shadow-paging hosts.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.count()
    }

    /// A kicker for the calling thread, which is going to run this vCPU.
    ///
    /// # Errors
    ///
    /// EAGAIN where the user has too many timers.
    pub fn kicker(&mut self) -> Result<Kicker, Errno> {
        Kicker::attach(&raw mut self.vcpu.get_kvm_run().immediate_exit)
    }

    /// What a kick of a thread that runs this vCPU sets.
    pub fn kick_flag(&mut self) -> KickFlag {
        KickFlag(&raw mut self.vcpu.get_kvm_run().immediate_exit)
    }

    /// What user mode sees.
    #[must_use]
    pub const fn state(&self) -> &UserState {
        &self.state
    }

    /// As [`Vm::state`], to change it before the next run.
    pub const fn state_mut(&mut self) -> &mut UserState {
        &mut self.state
    }

    /// The extended state of the running thread.
    ///
    /// # Errors
    ///
    /// What the ioctl says; never on a working KVM.
    pub fn extended(&self) -> Result<Vec<u8>, Errno> {
        if self.restores { Ok(self.kept.clone()) } else { cpu_state::get_extended(&self.vcpu) }
    }

    /// Whether the guest's time-stamp counter counts as the host's, so that clocks can be made of it.
    #[must_use]
    pub const fn has_host_counter(&self) -> bool {
        self.has_host_counter
    }

    /// Replace the extended state.
    ///
    /// # Errors
    ///
    /// EINVAL where reserved bits are set.
    pub fn set_extended(&mut self, area: &[u8]) -> Result<(), Errno> {
        self.restores = false;
        cpu_state::set_extended(&self.vcpu, area)
    }

    /// Replace the extended state, and keep it for [`Vm::restore_extended`].
    ///
    /// # Errors
    ///
    /// As for [`Vm::set_extended`].
    pub fn keep_extended(&mut self, area: &[u8]) -> Result<(), Errno> {
        self.set_extended(area)?;
        self.area.keep_extended(area);
        self.kept = area.to_vec();
        Ok(())
    }

    /// Bring back the extended state that was kept: the guest loads it itself, as the first thing in the next run, which spares an
    /// ioctl (5 us on kvm_pvm).
    pub const fn restore_extended(&mut self) {
        self.restores = !self.kept.is_empty();
    }

    /// Let the guest load what [`Vm::restore_extended`] has announced, and do nothing else, so that it can be looked at.
    ///
    /// # Errors
    ///
    /// As for [`Vm::run`], and where it does not load it.
    pub fn finish_restore(&mut self, space: &mut AddressSpace) -> Result<(), RunVmError> {
        let (state, mut kicked) = (self.state, false);
        for _ in 0..RESTORE_ATTEMPTS {
            if !self.restores {
                break;
            }
            // A system call that nobody answers inside, right behind the routine.
            self.state.registers = Registers { rax: u64::MAX, rip: self.area.probe(), rflags: 0x202, ..Registers::default() };
            match self.run(space)? {
                Exit::SystemCall => {}
                Exit::Kicked => {
                    self.clear_kick();
                    kicked = true;
                }
                exit => return Err(RunVmError::Unexpected(format!("{exit:?} where the extended state is loaded"))),
            }
        }
        (self.state, self.stale) = (state, true);
        if kicked {
            // It was meant for the next run: whoever armed it takes it for coming.
            self.vcpu.set_kvm_immediate_exit(1);
        }
        if self.restores { Err(RunVmError::Unexpected("no end of kicks where the extended state is loaded".into())) } else { Ok(()) }
    }

    /// Clear a kick that has been seen. The caller looks at everything a kick may be about *after* this.
    pub fn clear_kick(&mut self) {
        self.vcpu.set_kvm_immediate_exit(0);
    }

    /// Run guest code until an exit.
    ///
    /// # Errors
    ///
    /// What KVM_RUN says beyond EINTR, EAGAIN and EFAULT, and exits that leave nothing to go on from; never on a working KVM.
    pub fn run(&mut self, space: &mut AddressSpace) -> Result<Exit, RunVmError> {
        self.update_tables(space)?;
        if !is_canonical(self.state.registers.rip) {
            // Not handed to the processor: VMX refuses to enter with it, and an Intel processor's `sysretq` raises its fault in
            // supervisor mode, on the user's stack. Everywhere a program gets a general-protection fault.
            return Ok(Exit::Exception(Exception { vector: GENERAL_PROTECTION, error_code: 0, address: 0 }));
        }
        loop {
            self.load()?;
            let run = self.vcpu.get_kvm_run();
            run.exit_reason = u32::MAX;
            let outcome = self.vcpu.run().map(|_| ()).map_err(|error| Errno::from_raw_os_error(error.errno()));
            if let Some(exit) = self.decode(space, outcome)? {
                return Ok(exit);
            }
        }
    }

    /// Hand over the user's state, in the cheapest way that the mode allows.
    fn load(&mut self) -> Result<(), Errno> {
        let UserState { mut registers, fs_base, gs_base } = self.state;
        registers.rflags = Registers::user_rflags(registers.rflags);
        if self.restores && registers.rflags & TRAP != 0 {
            // The routine is no part of the program, which single-steps.
            self.restores = false;
            cpu_state::set_extended(&self.vcpu, &self.kept)?;
        }
        let returns = !self.restores
            && self.stopped == Stopped::Entry
            && registers.rcx == registers.rip
            && Registers::user_rflags(registers.r11) == registers.rflags;
        let mut sregs_changed = self.stale_segments || fs_base != self.loaded.fs_base || gs_base != self.loaded.gs_base;
        if self.restores {
            self.unrestored = self.state;
            self.area.keep_registers(registers.rax, registers.rdx, registers.rip);
            registers.rip = self.area.restore();
        }
        if returns {
            registers.rip = self.area.entry_return();
            // The entry runs with the flags that SFMASK left; sysretq takes the user's from R11.
            registers.rflags = 2;
        } else if self.stopped != Stopped::User {
            (self.sregs.cs, self.sregs.ss) = cpu_state::user_segments();
            sregs_changed = true;
        }
        if returns || self.restores || self.stale || self.stopped != Stopped::User || self.state.registers != self.loaded.registers {
            self.access.put_general(&mut self.vcpu, to_kvm(&registers))?;
        }
        if sregs_changed {
            (self.sregs.fs.base, self.sregs.gs.base) = (fs_base, gs_base);
            self.access.put_special(&mut self.vcpu, self.sregs)?;
        }
        (self.stale, self.stale_segments) = (false, false);
        Ok(())
    }

    /// Put the data segments back to those of a fresh process: a program can load selectors into them, which is a way to
    /// tell something to the next request.
    pub fn restore_segments(&mut self) {
        segments::clear();
        if self.has_selectors() {
            cpu_state::clear_data_segments(&mut self.sregs);
            self.stale_segments = true;
        }
    }

    /// Whether the data segments are those of a fresh process; to be asked by the thread that runs this vCPU.
    #[must_use]
    pub fn has_fresh_segments(&self) -> bool {
        !self.has_selectors() && segments::are_null()
    }

    const fn has_selectors(&self) -> bool {
        let kvm_sregs { ds, es, fs, gs, .. } = &self.sregs;
        ds.selector | es.selector | fs.selector | gs.selector != 0
    }

    /// What an exit means; `None` to run on.
    fn decode(&mut self, space: &AddressSpace, outcome: Result<(), Errno>) -> Result<Option<Exit>, RunVmError> {
        let (regs, sregs) = self.access.take(&mut self.vcpu)?;
        self.sregs = sregs;
        let user_mode = sregs.cs.selector & 3 == 3;
        self.state = UserState { registers: from_kvm(&regs), fs_base: sregs.fs.base, gs_base: sregs.gs.base };
        // What KVM has: below, an RIP in the entry or the fast path is turned into one of the program's.
        self.loaded = self.state;
        self.stopped = if user_mode { Stopped::User } else { Stopped::Supervisor };
        let interrupted = match outcome {
            Ok(()) if self.is_ring_full() => {
                self.rearm(space)?;
                true
            }
            outcome => matches!(outcome, Err(Errno::INTR | Errno::AGAIN)),
        };
        let restored = std::mem::take(&mut self.restores);
        if restored && self.area.is_restore(regs.rip) {
            return self.decode_unrestored(interrupted, outcome);
        }
        let exit = match outcome {
            _ if interrupted => {
                if self.area.handler_vector(regs.rip).is_some() || self.exception_is_due()? {
                    // Between the exception and its `out`: finish that first, or it would come to whatever runs next. The kick stays
                    // pending in the flag's owner.
                    self.clear_kick();
                    let state = self.continue_handler(space)?;
                    self.retried_at = None;
                    return Ok(Some(state));
                }
                Some(self.kicked(space))
            }
            Ok(()) => self.decode_exit(space, regs.rip)?,
            Err(Errno::FAULT) => self.decode_fault(space),
            Err(errno) => return Err(errno.into()),
        };
        if exit.is_some() {
            self.retried_at = None;
        }
        Ok(exit)
    }

    /// An exit in the routine that loads the kept extended state: nothing of the program has run.
    fn decode_unrestored(&mut self, interrupted: bool, outcome: Result<(), Errno>) -> Result<Option<Exit>, RunVmError> {
        self.state = self.unrestored;
        self.loaded = self.state;
        (self.restores, self.stale) = (true, true);
        match outcome {
            _ if interrupted => Ok(Some(Exit::Kicked)),
            Err(errno) => Err(errno.into()),
            Ok(()) => Err(self.unexpected("where the extended state is loaded")),
        }
    }

    /// Whether KVM has ended the run because it has no room to tell of written pages. It may have an exception to deliver, then, or
    /// stand anywhere in the entry: this exit is as an interruption.
    fn is_ring_full(&mut self) -> bool {
        self.vcpu.get_kvm_run().exit_reason == KVM_EXIT_DIRTY_RING_FULL
    }

    /// The error for the exit that KVM has just told of.
    fn unexpected(&mut self, place: &str) -> RunVmError {
        let reason = self.vcpu.get_kvm_run().exit_reason;
        let name = match reason {
            KVM_EXIT_SHUTDOWN => " (shutdown: the virtual processor could not deliver an exception)",
            KVM_EXIT_FAIL_ENTRY => " (the processor refused to run the guest)",
            _ => "",
        };
        RunVmError::Unexpected(format!("KVM's exit {reason}{name} {place}"))
    }

    /// An RIP in the entry or in the fast path is turned into one of the program's.
    fn settle(&mut self, space: &AddressSpace) -> Interrupted {
        let registers = &mut self.state.registers;
        if registers.rip == self.area.entry_return() {
            (registers.rip, registers.rflags) = (registers.rcx, registers.r11);
            return Interrupted::Program;
        }
        let fast = space.fast_path();
        if self.area.is_entry(registers.rip) {
            self.settle_entry(fast, space);
            return Interrupted::Asked;
        }
        fast.map_or(Interrupted::Program, |fast| fast.settle(space.memory(), registers))
    }

    /// Nothing but the moment is the matter: a call that was not answered is made again.
    fn kicked(&mut self, space: &AddressSpace) -> Exit {
        if self.settle(space) == Interrupted::Asked {
            self.state.registers.rip = self.state.registers.rip.wrapping_sub(2);
        }
        Exit::Kicked
    }

    /// Whether KVM is about to deliver an exception at the present RIP.
    fn exception_is_due(&self) -> Result<bool, Errno> {
        let events = self.vcpu.get_vcpu_events().map_err(|error| Errno::from_raw_os_error(error.errno()))?;
        Ok(events.exception.injected != 0 || events.exception.pending != 0)
    }

    /// The registers of a system call that has come to the entry.
    fn settle_entry(&mut self, fast: Option<FastPath>, space: &AddressSpace) {
        let registers = &mut self.state.registers;
        if let Some(fast) = fast {
            fast.restore(space.memory(), registers);
        }
        (registers.rip, registers.rflags) = (registers.rcx, registers.r11);
    }

    /// What an access or an exception comes to that the entry or the fast path met: the host makes the call, and finds what is wrong.
    const fn met_by_call(interrupted: Interrupted) -> Option<Exit> {
        match interrupted {
            Interrupted::Program => None,
            Interrupted::Asked => Some(Exit::SystemCall),
            Interrupted::Answered => Some(Exit::Kicked),
        }
    }

    fn continue_handler(&mut self, space: &AddressSpace) -> Result<Exit, RunVmError> {
        for _ in 0..8 {
            self.vcpu.get_kvm_run().exit_reason = u32::MAX;
            match self.vcpu.run().map(|_| ()).map_err(|error| Errno::from_raw_os_error(error.errno())) {
                Err(Errno::INTR | Errno::AGAIN) => self.clear_kick(),
                outcome => {
                    if let Some(exit) = self.decode(space, outcome)? {
                        return Ok(exit);
                    }
                }
            }
        }
        Ok(Exit::Forbidden("an exception handler that does not finish"))
    }

    fn decode_exit(&mut self, space: &AddressSpace, rip: u64) -> Result<Option<Exit>, RunVmError> {
        let run = self.vcpu.get_kvm_run();
        let exit = match run.exit_reason {
            KVM_EXIT_IO => {
                // SAFETY: exit_reason says that this member of the union is valid.
                let io = unsafe { run.__bindgen_anon_1.io };
                match io.port {
                    PORT_SYSTEM_CALL if rip == self.area.entry_out() || rip == self.area.entry_return() => {
                        if self.stopped == Stopped::Supervisor {
                            self.stopped = Stopped::Entry;
                        }
                        self.settle_entry(space.fast_path(), space);
                        Exit::SystemCall
                    }
                    PORT_EXCEPTION if self.area.handler_vector(rip).is_some() => self.decode_exception(space, rip),
                    _ => {
                        self.finish_io()?;
                        Exit::Forbidden("an I/O instruction")
                    }
                }
            }
            KVM_EXIT_MMIO => {
                self.finish_io()?;
                Exit::Forbidden("an access that no memory answers")
            }
            KVM_EXIT_INTERNAL_ERROR | KVM_EXIT_HLT => Exit::Forbidden("an instruction that cannot be run in a virtual machine"),
            // A shutdown, an entry that failed: nothing is known of the processor's state any more.
            _ => return Err(self.unexpected("in the program")),
        };
        Ok(Some(exit))
    }

    /// Let KVM finish an access that is not answered: it would otherwise complete it in the next run, over the registers
    /// of whoever runs then.
    fn finish_io(&mut self) -> Result<(), RunVmError> {
        self.stale = true;
        for _ in 0..IO_PIECES {
            // A kick that comes meanwhile is lost; the run loop arms its timer again when it sees that the moment has passed.
            let kicked = std::mem::replace(&mut self.vcpu.get_kvm_run().immediate_exit, 1);
            let outcome = self.vcpu.run().map(|_| ()).map_err(|error| Errno::from_raw_os_error(error.errno()));
            self.vcpu.get_kvm_run().immediate_exit = kicked;
            match outcome {
                // A string instruction goes on with its next piece.
                Ok(()) => {}
                Err(_) => return Ok(()),
            }
        }
        Err(RunVmError::Unexpected("an I/O instruction that does not end".into()))
    }

    fn decode_exception(&mut self, space: &AddressSpace, rip: u64) -> Exit {
        let vector = self.area.handler_vector(rip).unwrap_or(6);
        let mut at = self.state.registers.rsp;
        let mut pop = || {
            let word = self.area.load(at);
            at = at.wrapping_add(8);
            word.unwrap_or(0)
        };
        let error_code = if WITH_ERROR_CODE & 1 << vector != 0 { pop() } else { 0 };
        let (user_rip, _cs, rflags, rsp) = (pop(), pop(), pop(), pop());
        let registers = &mut self.state.registers;
        (registers.rip, registers.rflags, registers.rsp) = (user_rip, rflags, rsp);
        let exception = Exit::Exception(Exception { vector, error_code, address: self.sregs.cr2 });
        Self::met_by_call(self.settle(space)).unwrap_or(exception)
    }

    fn decode_fault(&mut self, space: &AddressSpace) -> Option<Exit> {
        if let Some(exit) = Self::met_by_call(self.settle(space)) {
            self.retried_at = None;
            return Some(exit);
        }
        let UserState { registers, fs_base, gs_base } = self.state;
        let vectors = || VectorState { area: self.extended().unwrap_or_default(), places: self.places };
        let found = fault::find(space, &registers, (fs_base, gs_base), &vectors);
        if found.is_none() && self.retried_at != Some(registers.rip) {
            // Nothing wrong to be seen: mappings may have changed under KVM's feet. Once more.
            self.retried_at = Some(registers.rip);
            return None;
        }
        self.retried_at = None;
        Some(Exit::MemoryFault(found))
    }

    /// Bring page tables and memslots up to date with the mappings.
    fn update_tables(&mut self, space: &mut AddressSpace) -> Result<(), RunVmError> {
        for (first, last) in space.take_stale_blocks() {
            for block in first..last {
                let usage = space.block_use(block);
                let (wanted, current) = (Area::entry_value(block, usage), self.area.block_entry(block));
                if usage == BlockUse::Unused || wanted == current {
                    // An entry that is not needed any more may stay: the host mapping below refuses every access.
                    continue;
                }
                self.slots.cover(&self.vm, space.host_base(), block * BLOCK, (block + 1) * BLOCK)?;
                if current == 0 {
                    self.area.fill_block(block, wanted);
                } else {
                    self.edit_entry(space, block, wanted)?;
                }
            }
        }
        Ok(())
    }

    /// Change a present entry from inside the guest.
    fn edit_entry(&mut self, space: &AddressSpace, block: u64, value: u64) -> Result<(), RunVmError> {
        let registers = Registers {
            rax: value,
            rdi: self.area.address() + Area::entry_offset(block),
            rsi: block * BLOCK,
            rip: self.area.editor(),
            rsp: self.area.stack_top(),
            rflags: 2,
            ..Registers::default()
        };
        let mut sregs = self.sregs;
        (sregs.cs, sregs.ss) = cpu_state::supervisor_segments();
        let mut found_full = 0;
        loop {
            self.access.put_general(&mut self.vcpu, to_kvm(&registers))?;
            self.access.put_special(&mut self.vcpu, sregs)?;
            let run = self.vcpu.get_kvm_run();
            let kicked = std::mem::take(&mut run.immediate_exit);
            run.exit_reason = u32::MAX;
            let outcome = self.vcpu.run().map(|_| ()).map_err(|error| Errno::from_raw_os_error(error.errno()));
            let run = self.vcpu.get_kvm_run();
            if kicked != 0 {
                run.immediate_exit = 1;
            }
            // SAFETY: exit_reason says that this member of the union is valid.
            let edited = run.exit_reason == KVM_EXIT_IO && unsafe { run.__bindgen_anon_1.io.port } == PORT_EDITED;
            match outcome {
                Ok(()) if edited => break,
                // The routine may be run again from its start: it stores the same value.
                // Once is enough on a working KVM; one that never has room must not keep us here.
                Ok(()) if self.is_ring_full() && found_full < 8 => {
                    found_full += 1;
                    self.rearm(space)?;
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Ok(()) => return Err(self.unexpected("where a page-table entry is changed")),
                Err(errno) => return Err(errno.into()),
            }
        }
        let (_, sregs) = self.access.take(&mut self.vcpu)?;
        self.sregs = sregs;
        self.stopped = Stopped::Supervisor;
        Ok(())
    }

    /// Put the pages that the guest has written since the last harvest into the memory's dirty set.
    ///
    /// # Errors
    ///
    /// What KVM says; never on a working one. Nothing is known of what was written, then.
    pub fn harvest(&mut self, space: &AddressSpace) -> Result<(), Errno> {
        self.dirty_log.harvest(&self.vm, &self.slots, space)
    }

    /// [`Vm::rearm`] before the log of written pages is full.
    ///
    /// # Errors
    ///
    /// As for [`Vm::harvest`].
    pub fn rearm_if_filling(&mut self, space: &AddressSpace) -> Result<(), Errno> {
        if self.dirty_log.is_filling() { self.rearm(space) } else { Ok(()) }
    }

    /// Harvest, and let KVM report every page anew when it is written next. The pages stay in the dirty set.
    ///
    /// # Errors
    ///
    /// As for [`Vm::harvest`].
    pub fn rearm(&mut self, space: &AddressSpace) -> Result<(), Errno> {
        self.harvest(space)?;
        self.dirty_log.rearm(&self.vm)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        kick::forget(self.kick_flag());
    }
}

/// Whether bits 47 to 63 of an address are alike.
const fn is_canonical(address: u64) -> bool {
    (address.cast_signed() << 16 >> 16).cast_unsigned() == address
}

fn from_kvm(regs: &kvm_regs) -> Registers {
    let kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } = *regs;
    Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn to_kvm(registers: &Registers) -> kvm_regs {
    let Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } = *registers;
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

#[cfg(test)]
mod tests;
