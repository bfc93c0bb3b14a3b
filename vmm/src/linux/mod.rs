//! Our Linux: one process with its threads, signals, descriptors and files; it answers system calls as the man pages say.
//!
//! It never sees a platform: a call is `(Kernel, AddressSpace, thread, number, arguments)` in, an [`Outcome`] out, and the run
//! loop in [`crate::sandbox`] applies it. Everything here except host descriptors is plain data: cloning a [`Kernel`] is what
//! a fork of a snapshot does, and assigning a clone is what a reset does.
//!
//! **Blocking.** A handler that cannot answer yet returns [`Outcome::Block`] with what it waits for. The thread sleeps; when
//! the wait may be over, the *same handler runs again* with [`Attempt::Woken`] (or `TimedOut`, or `Interrupted` by a signal)
//! and looks again. Deadlines are absolute and survive the retries ([`Call::deadline`]); so does the progress of a partial
//! transfer ([`Call::progress`]).

pub mod abi;
pub mod clock;
pub mod dispatch;
pub mod exit;
pub mod fast_path;
pub mod fd_table;
pub mod file;
pub mod futex;
pub mod futex_pi;
#[cfg(test)]
mod futex_tests;
pub mod gate;
pub mod grants;
pub mod guest_path;
pub mod host_path;
pub mod path;
pub mod process;
#[cfg(test)]
mod process_tests;
pub mod rseq;
pub mod scheduler;
pub mod signal;
pub mod signal_delivery;
pub mod signal_frame;
#[cfg(test)]
mod signal_tests;
pub mod signal_timers;
pub mod syscalls;
pub mod table;
mod table_names;
#[cfg(test)]
mod testing;
pub mod thread;
pub mod trace;
mod trace_names;

use std::sync::Arc;

pub use rustix::io::Errno;

use crate::clone_in_place::clone_in_place;
use crate::memory::{AddressSpace, GuestMemory};
use clock::Clock;
use fd_table::FdTable;
use file::{FileId, Files, PollEvents};
use futex::FutexTable;
use gate::Role;
use grants::Grants;
use process::Process;
use thread::{State, Thread, Threads, Tid};

/// A moment on the guest's CLOCK_MONOTONIC, nanoseconds.
pub type MonotonicNs = u64;

/// What a handler answers.
#[derive(Debug)]
pub enum Outcome {
    /// The call returns this value in RAX.
    Return(u64),
    /// The call cannot answer yet.
    Block(Wait),
    /// The calling thread ends (`exit`).
    ExitThread(i32),
    /// The whole process ends (`exit_group`).
    ExitProcess(i32),
    /// The storage program is to answer; whoever runs the VM puts its result into RAX.
    Remote(gate::RemoteCall),
    /// The process is to run another program (`execve`).
    Execute(Box<Execute>),
    /// The handler has put new registers into the thread (`rt_sigreturn`, `execve`): RAX is not touched.
    Replaced,
}

/// The program that a process is to run instead of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execute {
    /// Canonical guest path of the file.
    pub path: Vec<u8>,
    /// `argv`.
    pub arguments: Vec<Vec<u8>>,
    /// `environ`.
    pub environment: Vec<Vec<u8>>,
}

impl Outcome {
    /// Success without a value.
    pub const OK: Self = Self::Return(0);
}

impl From<usize> for Outcome {
    fn from(value: usize) -> Self {
        Self::Return(value as u64)
    }
}

impl From<u64> for Outcome {
    fn from(value: u64) -> Self {
        Self::Return(value)
    }
}

impl From<fd_table::Fd> for Outcome {
    fn from(fd: fd_table::Fd) -> Self {
        Self::Return(u64::from(fd.number()))
    }
}

/// What every handler returns.
pub type Answer = Result<Outcome, Errno>;

/// A handler of the system-call table.
pub type Handler = fn(&mut Call<'_>) -> Answer;

/// Why a handler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// The thread has just made the call.
    First,
    /// Something the thread waits for may have happened.
    Woken,
    /// The deadline has passed: look once more, then answer as the call does at a timeout.
    TimedOut,
    /// A signal is to be delivered: answer with what has been done so far, or block again, which becomes EINTR or a restart.
    Interrupted,
}

/// What a signal does to a blocked call (`signal(7)`, "Interruption of system calls").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// The call fails with EINTR whenever a handler runs.
    Never,
    /// The call is made again after a handler with SA_RESTART.
    IfAsked,
    /// The call is made again after any handler: programs do not expect EINTR of it (the locks of `futex(2)`).
    Always,
}

/// What a thread waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitFor {
    /// Only the deadline or a signal.
    Nothing,
    /// Any of these files having any of these events.
    Files(Vec<(FileId, PollEvents)>),
    /// A wake on the futex queue the thread has put itself into.
    Futex,
    /// A call to the storage program.
    Call,
    /// One of these signals becoming pending (`rt_sigtimedwait`), as a signal mask.
    Signals(u64),
}

/// A blocked thread's condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// What ends it.
    pub on: WaitFor,
    /// When it ends by itself.
    pub deadline: Option<MonotonicNs>,
    /// What a signal does to the call.
    pub restart: Restart,
}

/// A system call as its handler sees it.
#[derive(Debug)]
pub struct Call<'a> {
    /// Our Linux.
    pub kernel: &'a mut Kernel,
    /// The caller's address space.
    pub space: &'a mut AddressSpace,
    /// The calling thread.
    pub tid: Tid,
    /// System-call number.
    pub number: usize,
    /// RDI, RSI, RDX, R10, R8, R9.
    pub args: [u64; 6],
    /// Why the handler runs.
    pub attempt: Attempt,
    /// The deadline that the first attempt set, if this is a retry.
    pub saved_deadline: Option<MonotonicNs>,
    /// What earlier attempts of this call have already transferred; kept across retries.
    pub progress: u64,
}

impl Call<'_> {
    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        self.space.memory()
    }

    /// The calling thread.
    pub fn thread(&mut self) -> &mut Thread {
        self.kernel.threads.get_mut(self.tid)
    }

    /// The calling thread's process.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.kernel.process
    }

    /// Argument `index` as the C `int` that it is: the upper half of the register does not count.
    #[must_use]
    pub const fn int(&self, index: usize) -> i32 {
        self.args[index] as u32 as i32
    }

    /// Argument `index` as a C `unsigned int`.
    #[must_use]
    pub const fn uint(&self, index: usize) -> u32 {
        self.args[index] as u32
    }

    /// Whether the deadline has passed.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.attempt == Attempt::TimedOut
    }

    /// The absolute deadline of this call: `timeout` nanoseconds from the first attempt; `None` waits for ever.
    pub fn deadline(&self, timeout: Option<u64>) -> Option<MonotonicNs> {
        if self.attempt == Attempt::First {
            timeout.map(|timeout| self.kernel.clock.monotonic().saturating_add(timeout))
        } else {
            self.saved_deadline
        }
    }

    /// The open file description behind descriptor argument `index`.
    ///
    /// # Errors
    ///
    /// EBADF.
    pub fn file(&self, index: usize) -> Result<FileId, Errno> {
        self.kernel.process.fds.get(self.int(index))
    }
}

/// Everything of our Linux that a snapshot contains besides memory and processor state.
#[derive(Debug)]
pub struct Kernel {
    /// The one process (fork and exec come later; nothing outside this struct may assume it).
    pub process: Process,
    /// Its threads.
    pub threads: Threads,
    /// Open file descriptions and the buffers between them.
    pub files: Files,
    /// Threads that wait on futexes.
    pub futexes: FutexTable,
    /// The guest's clocks.
    pub clock: Clock,
    /// What the program may touch, and what never changes about it.
    pub grants: Arc<Grants>,
    /// What it is to the gate between request VMs and the storage program.
    pub role: Role,
    /// Lines for the log about what the program did (unknown calls and such), bounded; the run loop takes them.
    pub notes: Vec<String>,
}

clone_in_place!(Kernel { process, threads, files, futexes, clock, grants, role, notes });

impl Kernel {
    /// Say something about the guest in the log; lines past a small bound are dropped until the run loop has taken them.
    pub fn note(&mut self, line: String) {
        if self.notes.len() < 64 {
            self.notes.push(line);
        }
    }

    /// The descriptor table of the process.
    pub const fn fds(&mut self) -> &mut FdTable {
        &mut self.process.fds
    }
}
