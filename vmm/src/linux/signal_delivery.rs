//! From a pending signal to a running handler or the end of the process, and faults of the processor as signals.

use linux_raw_sys::general as sys;

use super::signal::{DefaultAction, SIG_DFL, SIG_IGN, Signal, SignalInfo, Target, Trap, bit, default_action, flags};
use super::signal_frame::{self, ExtendedLayout, Frame, StackT};
use super::thread::Tid;
use super::{Errno, Kernel};
use crate::cpu::ExtendedState;
use crate::memory::AddressSpace;

/// Vector of a page fault.
pub const PAGE_FAULT: u8 = 14;

/// What [`Kernel::deliver_signals`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Nothing to be seen by the thread.
    None,
    /// The thread's registers are those of a handler now.
    Handler,
    /// The process is to end.
    Killed {
        /// By this signal.
        signal: Signal,
        /// Natively a core dump would be written.
        core: bool,
    },
}

impl Kernel {
    /// Deliver what is pending for a thread that is about to enter guest code. The run loop calls it before every entry: it is also
    /// where a restartable sequence is aborted after another thread has run, and where temporary masks end.
    ///
    /// Several signals are delivered at once, as in Linux: each handler's frame lies on top of the one before, so the last one runs
    /// first.
    pub fn deliver_signals(&mut self, space: &mut AddressSpace, tid: Tid, extended: &mut dyn ExtendedState) -> Delivery {
        if self.process.signals.extended.area_bytes == 0 {
            self.process.signals.extended = ExtendedLayout::of(&extended.load(), extended.features());
        }
        if self.threads.last_entered != tid {
            self.threads.last_entered = tid;
            self.abort_sequence(space, tid);
        }
        let mut delivery = Delivery::None;
        loop {
            if self.signal_pending(tid) {
                match self.deliver_pending(space, tid, extended) {
                    Delivery::None => {}
                    Delivery::Handler => delivery = Delivery::Handler,
                    killed @ Delivery::Killed { .. } => return killed,
                }
            }
            // Going back to the old mask may uncover more.
            if self.threads.peek(tid).is_none_or(|thread| thread.signals.saved_mask.is_none()) {
                return delivery;
            }
            self.end_temporary_mask(tid);
        }
    }

    fn deliver_pending(&mut self, space: &mut AddressSpace, tid: Tid, extended: &mut dyn ExtendedState) -> Delivery {
        let mut delivery = Delivery::None;
        while let Some(info) = self.take_unblocked(tid) {
            let action = self.process.signals.action(info.signal);
            match (action.handler, default_action(info.signal)) {
                (SIG_IGN, _) | (SIG_DFL, DefaultAction::Ignore) => {}
                (SIG_DFL, DefaultAction::Terminate { core }) => return Delivery::Killed { signal: info.signal, core },
                _ => {
                    if self.enter_handler(space, tid, info, extended).is_ok() {
                        delivery = Delivery::Handler;
                    } else {
                        self.frame_failed(tid, info.signal);
                    }
                }
            }
        }
        delivery
    }

    fn take_unblocked(&mut self, tid: Tid) -> Option<SignalInfo> {
        let wanted = !self.threads.peek(tid)?.signals.blocked;
        self.take_signal(tid, wanted)
    }

    /// Push the frame and make the thread's registers those of the handler.
    fn enter_handler(&mut self, space: &AddressSpace, tid: Tid, info: SignalInfo, extended: &mut dyn ExtendedState) -> Result<(), Errno> {
        self.abort_sequence(space, tid);
        let action = self.process.signals.action(info.signal);
        if action.flags & flags::RESETHAND != 0 {
            self.process.signals.set_action(info.signal, super::signal::Action { handler: SIG_DFL, ..action });
        }
        let layout = self.process.signals.extended;
        let thread = self.threads.find(tid).ok_or(Errno::SRCH)?;
        // A state that sigreturn has just brought back is not on the processor yet.
        let area = if thread.extended_changed { thread.cpu.extended.clone() } else { extended.load() };
        let signals = &mut thread.signals;
        let mask = signals.saved_mask.unwrap_or(signals.blocked);
        let frame = Frame { info, action, mask, stack: signals.stack, trap: signals.trap, area, layout: &layout };
        thread.cpu.registers = frame.push(space.memory(), &thread.cpu.registers)?;
        extended.store(&layout.initial());
        thread.extended_changed = false;
        signals.saved_mask = None;
        if signals.stack.flags & sys::SS_AUTODISARM != 0 {
            signals.stack = super::signal::AlternateStack::default();
        }
        let own = if action.flags & flags::NODEFER == 0 { bit(info.signal) } else { 0 };
        let blocked = signals.blocked | action.mask | own;
        self.set_mask(tid, blocked);
        Ok(())
    }

    /// A frame could not be written: SIGSEGV, which kills at once where it was SIGSEGV's own frame.
    fn frame_failed(&mut self, tid: Tid, signal: Signal) {
        let fault = sys::SIGSEGV.cast_signed();
        if signal == fault {
            self.process.signals.set_action(fault, super::signal::Action::default());
        }
        self.force_signal(tid, SignalInfo::kernel(fault));
    }

    /// Turn a fault of the processor into the signal that Linux sends for it (`sigaction(2)`, `si_code`).
    ///
    /// The thread's registers must be those of the faulting instruction. `address` is `si_addr`: the data address of a page
    /// fault, else the instruction's.
    pub fn fault_signal(&mut self, tid: Tid, signal: Signal, code: i32, address: u64, trap_number: u64, error_code: u64) {
        if let Some(thread) = self.threads.find(tid) {
            let trap = &mut thread.signals.trap;
            let cr2 = if trap_number == u64::from(PAGE_FAULT) { address } else { trap.address };
            *trap = Trap { number: trap_number, error_code, address: cr2 };
        }
        self.force_signal(tid, SignalInfo::fault(signal, code, address));
    }

    /// Send a signal that cannot be blocked or ignored: where it is, the process dies of it.
    pub fn force_signal(&mut self, tid: Tid, info: SignalInfo) {
        let set = bit(info.signal);
        let blocked = self.threads.peek(tid).map_or(0, |thread| thread.signals.blocked);
        let action = self.process.signals.action(info.signal);
        if blocked & set != 0 || action.handler == SIG_IGN {
            self.process.signals.set_action(info.signal, super::signal::Action { handler: SIG_DFL, ..action });
            self.set_mask(tid, blocked & !set);
        }
        // Below 32 and for a thread that exists: never refused.
        let _ = self.queue_signal(Target::Thread(tid), info);
    }

    /// `rt_sigreturn`: bring back what the frame at the thread's stack pointer holds. A frame that cannot be restored is SIGSEGV.
    pub fn return_from_signal(&mut self, space: &AddressSpace, tid: Tid) {
        let layout = self.process.signals.extended;
        let Some(thread) = self.threads.find(tid) else { return };
        match signal_frame::pop(space.memory(), &thread.cpu.registers, &layout) {
            Ok(restored) => {
                thread.cpu.registers = restored.registers;
                thread.cpu.extended = restored.area;
                thread.extended_changed = true;
                // As Linux: a stack that cannot be set is left as it is.
                let _ = self.set_alternate_stack(tid, &restored.stack);
                self.set_mask(tid, restored.mask);
            }
            Err(_) => self.force_signal(tid, SignalInfo::kernel(sys::SIGSEGV.cast_signed())),
        }
    }

    /// `sigaltstack(2)`, the setting half.
    ///
    /// # Errors
    ///
    /// EPERM while the thread runs on it, EINVAL for unknown flags, ENOMEM where it is too small.
    pub fn set_alternate_stack(&mut self, tid: Tid, wanted: &StackT) -> Result<(), Errno> {
        let thread = self.threads.find(tid).ok_or(Errno::SRCH)?;
        if thread.signals.stack.active(thread.cpu.registers.rsp) {
            return Err(Errno::PERM);
        }
        thread.signals.stack = match wanted.flags & !sys::SS_AUTODISARM {
            sys::SS_DISABLE => super::signal::AlternateStack { base: 0, size: 0, flags: wanted.flags },
            0 | sys::SS_ONSTACK if wanted.size < u64::from(sys::MINSIGSTKSZ) => return Err(Errno::NOMEM),
            0 | sys::SS_ONSTACK => super::signal::AlternateStack { base: wanted.base, size: wanted.size, flags: wanted.flags },
            _ => return Err(Errno::INVAL),
        };
        Ok(())
    }
}
