//! One system call from number to outcome, and what the outcome does to the thread that made it.

use super::gate::RemoteCall;
use super::thread::{Blocked, State, Tid};
use super::{Answer, Attempt, Call, Errno, Execute, Kernel, MonotonicNs, Outcome, table};
use crate::memory::AddressSpace;

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// The result is in the thread's RAX (or all its registers were replaced): it can go on.
    Done,
    /// The process is to run another program; if that fails, the call has to be given its errno.
    Execute(Box<Execute>),
    /// The storage program has to be asked.
    Remote(RemoteCall),
    /// A signal came while the thread slept: it will make the call again after the handler.
    Restarted,
    /// The thread sleeps.
    Blocked,
    /// The thread is no more.
    ThreadEnded,
    /// The process is no more; its status is in [`super::process::Process::exit_status`].
    ProcessEnded,
}

/// The largest errno: results in the last page of the number range are errors.
const ERRNO_MAX: u64 = 4095;

impl Kernel {
    /// The thread's registers say that it has just made a system call: answer it.
    pub fn system_call(&mut self, space: &mut AddressSpace, tid: Tid) -> Applied {
        let registers = self.threads.get_mut(tid).cpu.registers;
        // Only the lower half of RAX counts, as on Linux (T29).
        let number = registers.rax as u32 as usize;
        let args = [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
        self.attempt(space, tid, (number, args), Attempt::First, None, 0)
    }

    /// A sleeping thread's wait may be over: let the handler look again.
    pub fn retry(&mut self, space: &mut AddressSpace, tid: Tid, attempt: Attempt) -> Applied {
        let thread = self.threads.get_mut(tid);
        let State::Blocked(blocked) = std::mem::take(&mut thread.state) else { return Applied::Done };
        self.attempt(space, tid, (blocked.number, blocked.args), attempt, blocked.wait.deadline, blocked.progress)
    }

    fn attempt(
        &mut self,
        space: &mut AddressSpace,
        tid: Tid,
        (number, args): (usize, [u64; 6]),
        attempt: Attempt,
        saved_deadline: Option<MonotonicNs>,
        progress: u64,
    ) -> Applied {
        let mut call = Call { kernel: self, space, tid, number, args, attempt, saved_deadline, progress };
        let answer = match table::find(number) {
            Some(entry) => (entry.handler)(&mut call),
            None => Err(Errno::NOSYS),
        };
        let progress = call.progress;
        self.apply(space, tid, (number, args), attempt, progress, answer)
    }

    fn apply(
        &mut self,
        space: &mut AddressSpace,
        tid: Tid,
        (number, args): (usize, [u64; 6]),
        attempt: Attempt,
        progress: u64,
        answer: Answer,
    ) -> Applied {
        let result = match answer {
            Ok(Outcome::Return(value)) => value,
            Ok(Outcome::Execute(execute)) => return Applied::Execute(execute),
            Ok(Outcome::Remote(remote)) => return Applied::Remote(remote),
            Ok(Outcome::Replaced) => return Applied::Done,
            Ok(Outcome::ExitThread(status)) => {
                self.exit_thread(space, tid, status);
                return if self.process.exit_status.is_some() { Applied::ProcessEnded } else { Applied::ThreadEnded };
            }
            Ok(Outcome::ExitProcess(status)) => {
                self.process.exit_status = Some(status);
                return Applied::ProcessEnded;
            }
            Ok(Outcome::Block(wait)) if attempt == Attempt::Interrupted => {
                self.futexes.remove(tid);
                if self.call_restarts(tid, wait.restart) {
                    // The instruction is made again after the handler: two bytes back to `syscall`, with its number.
                    let registers = &mut self.threads.get_mut(tid).cpu.registers;
                    registers.rip = registers.rip.wrapping_sub(2);
                    registers.rax = number as u64;
                    self.threads.get_mut(tid).state = State::Runnable;
                    return Applied::Restarted;
                } else {
                    error_value(Errno::INTR)
                }
            }
            Ok(Outcome::Block(wait)) => {
                self.threads.get_mut(tid).state = State::Blocked(Blocked { number, args, wait, progress, woken: false });
                return Applied::Blocked;
            }
            Err(errno) => error_value(errno),
        };
        let thread = self.threads.get_mut(tid);
        thread.state = State::Runnable;
        thread.cpu.registers.rax = result;
        Applied::Done
    }

    /// Make an `Answer` of a call's result register, for traces.
    pub fn result_of(rax: u64) -> Result<u64, Errno> {
        let negated = rax.wrapping_neg();
        match i32::try_from(negated) {
            Ok(number) if (1..=ERRNO_MAX).contains(&negated) => Err(Errno::from_raw_os_error(number)),
            _ => Ok(rax),
        }
    }
}

/// RAX of a call that failed.
#[must_use]
pub fn error_value(errno: Errno) -> u64 {
    i64::from(-errno.raw_os_error()).cast_unsigned()
}
