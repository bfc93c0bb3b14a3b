//! That which runs guest code until an exit. It knows nothing of Linux: an exit is a system call, a processor fault, or an interruption.

pub mod kvm;

/// Why guest code cannot run on: its VM is lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunVmError {
    /// What the system call says.
    #[error("{0}")]
    Call(#[from] rustix::io::Errno),
    /// The VM stopped in a way that nothing can go on from; the text says how, and where.
    #[error("{0}")]
    Unexpected(String),
}

/// Why guest code stopped running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// A `syscall` instruction; the registers are as it left them, RIP behind it.
    SystemCall,
    /// The processor raised an exception; RIP is at the instruction (or behind it, for traps).
    Exception(Exception),
    /// An access that no exception explains: the memory fault that was found, or `None` where none was found.
    MemoryFault(Option<MemoryFault>),
    /// A kick: look at deadlines, signals and other threads.
    Kicked,
    /// The guest did what no program may (an I/O instruction, an instruction that KVM cannot emulate); the text says what.
    Forbidden(&'static str),
}

/// A processor exception (AMD64 manual volume 2, chapter 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Vector number, 0 to 31.
    pub vector: u8,
    /// Error code, 0 where the vector has none.
    pub error_code: u64,
    /// CR2: the address of a page fault.
    pub address: u64,
}

/// What was wrong with an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryFault {
    /// The first address of the access that has it.
    pub address: u64,
    /// Whether the access was a write.
    pub write: bool,
    /// Whether it was an instruction fetch.
    pub fetch: bool,
    /// What it is.
    pub kind: FaultKind,
}

/// The kinds of memory faults, as siginfo tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Nothing is mapped there (SEGV_MAPERR).
    Unmapped,
    /// The mapping does not allow it (SEGV_ACCERR).
    Protected,
    /// The mapping allows it but its file has no such page (BUS_ADRERR).
    Beyond,
}
