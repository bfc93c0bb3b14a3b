//! Why a program cannot start: one sentence and one hint each, and the exit code that a shell would give.

use rustix::io::Errno;
use thiserror::Error;

use super::{ElfError, StackError};

/// Why a file is not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Reason {
    /// It is a directory.
    #[error("it is a directory")]
    Directory,
    /// It is a device, a socket or a pipe.
    #[error("it is not a regular file")]
    NotRegular,
    /// It has no execute permission for this user.
    #[error("it has no execute permission")]
    NoPermission,
    /// Its first line is `#!` without an interpreter, or one that is too long.
    #[error("its first line names no interpreter behind #!")]
    ScriptWithoutInterpreter,
    /// Scripts that interpret one another without end.
    #[error("more than five scripts interpret one another")]
    ScriptsNested,
    /// It is no ELF program for this machine.
    #[error("{0}")]
    Elf(ElfError),
}

/// Why a program could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LoadError {
    /// There is no such file.
    #[error("program not found: {path}")]
    NotFound {
        /// Guest path.
        path: String,
    },
    /// The ELF interpreter or the interpreter of a script is missing.
    #[error("cannot run {program}: its interpreter {interpreter} is not found")]
    InterpreterNotFound {
        /// The program that names it.
        program: String,
        /// The path it names.
        interpreter: String,
    },
    /// A file exists but cannot be opened or read.
    #[error("cannot read {path}: {errno}")]
    NotReadable {
        /// Guest path.
        path: String,
        /// What the host said.
        errno: Errno,
    },
    /// A file that cannot be executed.
    #[error("cannot execute {path}: {reason}")]
    NotExecutable {
        /// Guest path.
        path: String,
        /// Why.
        reason: Reason,
    },
    /// Arguments and environment do not fit (E2BIG), or cannot be passed.
    #[error("cannot start the program: {0}")]
    Arguments(#[from] StackError),
    /// There is no room for the program in the guest's address space.
    #[error("cannot map {path} into the guest's address space: {errno}")]
    Map {
        /// Guest path or name of the mapping.
        path: String,
        /// What the address space said.
        errno: Errno,
    },
    /// The host gave no random bytes.
    #[error("cannot get random bytes from the host: {errno}")]
    Random {
        /// What the host said.
        errno: Errno,
    },
}

impl LoadError {
    pub(super) fn not_readable(path: &[u8], errno: Errno) -> Self {
        Self::NotReadable { path: show(path), errno }
    }

    pub(super) fn not_executable(path: &[u8], reason: Reason) -> Self {
        Self::NotExecutable { path: show(path), reason }
    }

    /// A file that `program` names as its interpreter: "not found" is then said of the interpreter.
    pub(super) fn of_interpreter(self, program: &[u8]) -> Self {
        match self {
            Self::NotFound { path } => Self::InterpreterNotFound { program: show(program), interpreter: path },
            other => other,
        }
    }

    /// What to do about it; may be empty.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NotFound { .. } => "check the name, or give the path of the file".into(),
            Self::InterpreterNotFound { interpreter, .. } => format!("install what provides {interpreter}"),
            Self::NotReadable { path, errno: Errno::ACCESS | Errno::PERM } => {
                format!("the user must be able to read it, and --allow-read={path} grants it to the program")
            }
            Self::NotExecutable { path, reason: Reason::NoPermission } => format!("chmod +x {path}"),
            Self::NotExecutable { reason: Reason::Elf(ElfError::NotElf), .. } => "a script must begin with a line such as #!/bin/sh".into(),
            Self::Map { .. } => "raise --max-address-space".into(),
            _ => String::new(),
        }
    }

    /// Exit code of `kvmserver run`: 127 where something is missing, 126 where it cannot be executed, as in a shell.
    #[must_use]
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound { .. } | Self::InterpreterNotFound { .. } => 127,
            Self::NotReadable { .. } | Self::NotExecutable { .. } | Self::Arguments(_) => 126,
            Self::Map { .. } | Self::Random { .. } => 1,
        }
    }

    /// What `execve(2)` answers.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NotFound { .. } | Self::InterpreterNotFound { .. } => Errno::NOENT,
            Self::NotReadable { errno, .. } | Self::Map { errno, .. } | Self::Random { errno } => *errno,
            Self::NotExecutable { reason, .. } => match reason {
                Reason::Directory | Reason::NotRegular | Reason::NoPermission => Errno::ACCESS,
                Reason::ScriptsNested => Errno::LOOP,
                Reason::ScriptWithoutInterpreter | Reason::Elf(_) => Errno::NOEXEC,
            },
            Self::Arguments(_) => Errno::TOOBIG,
        }
    }

    /// The kind under which Python knows it (see `_vmm.pyi`).
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self.exit_code() {
            127 => "program_not_found",
            126 => "program_not_executable",
            _ => "system",
        }
    }
}

/// A path for a message: control characters escaped, bytes that are not UTF-8 replaced.
pub(super) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path)
        .chars()
        .flat_map(|character| if character.is_control() { character.escape_default().collect() } else { vec![character] })
        .collect()
}
