//! From a program file to a process that can start: ELF, its interpreter, `#!` scripts, the initial stack.
//!
//! The counterpart in Linux is `execve(2)`. Files are opened through the program's permissions only; which files a program
//! needs to start at all is what [`implicit_files`] says, and the permissions always contain those.

mod elf;
mod error;
mod image;
mod ld_cache;
mod libraries;
mod script;
mod stack;
pub mod symbols;
mod tsc;
pub mod vdso;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

use crate::config::{SandboxConfig, Volume};
use crate::cpu::{FIXED_RFLAGS, Registers};
use crate::limits::{PAGE, STACK_BYTES};
use crate::linux::process::Identity;
use crate::memory::{AddressSpace, Backing, MapRequest, Placement, Protection};
use elf::{Elf, ReadAt, USER_END};
use image::{Mapped, Role};
use stack::{Stack, at};

pub use elf::ElfError;
pub use error::{LoadError, Reason};
pub use libraries::implicit_files;
pub use stack::StackError;
pub use tsc::TscClock;

/// Parent process id that every program sees; nothing else in the VM has it.
const PARENT: i32 = 1;
/// What stays inaccessible below the stack (Linux's `stack_guard_gap`), bytes.
const STACK_GUARD_BYTES: u64 = 1 << 20;
/// Clock ticks per second that `times(2)` and /proc count in.
const CLOCK_TICKS: u64 = 100;

/// Opens host files by guest path, as far as the program's permissions go; never blocks (a FIFO is opened, not waited for).
pub trait OpenProgram {
    /// Open for reading.
    ///
    /// # Errors
    ///
    /// What `open(2)` answers; EACCES or ENOENT where permission is missing.
    fn open_program(&self, path: &[u8]) -> Result<OwnedFd, Errno>;
}

impl<F: Fn(&[u8]) -> Result<OwnedFd, Errno>> OpenProgram for F {
    fn open_program(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self(path)
    }
}

/// What to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// Absolute guest path of the program file.
    pub program: Vec<u8>,
    /// `argv`, with `argv[0]`.
    pub arguments: Vec<Vec<u8>>,
    /// `environ`.
    pub environment: Vec<Vec<u8>>,
    /// Relative interpreters count from here.
    pub working_directory: Vec<u8>,
    /// Host paths that appear elsewhere in the guest.
    pub volumes: Vec<Volume>,
}

impl From<&SandboxConfig> for Command {
    fn from(config: &SandboxConfig) -> Self {
        Self {
            program: config.program.clone().into_bytes(),
            arguments: std::iter::once(&config.name).chain(&config.arguments).map(|argument| argument.clone().into_bytes()).collect(),
            environment: config.environment.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect(),
            working_directory: config.working_directory.clone().into_bytes(),
            volumes: config.volumes.clone(),
        }
    }
}

/// A process that can start.
#[derive(Debug)]
pub struct Loaded {
    /// Registers of the main thread: RIP, RSP and RFLAGS; everything else is zero, as Linux starts a program.
    pub registers: Registers,
    /// What the process is.
    pub identity: Identity,
    /// Name of the main thread (`comm`): the file's name, at most 15 bytes, zero-terminated.
    pub name: [u8; 16],
    /// Address of the 16 bytes of AT_RANDOM: a fork gets fresh ones there.
    pub random_address: u64,
    /// Address of the page that the vDSO reads the time from; see [`vdso`] for who writes it.
    pub clock_page: Option<u64>,
}

/// Load the program of `command` into an empty address space.
///
/// # Errors
///
/// [`LoadError`]; the address space is then of no use any more.
pub fn load(command: &Command, files: &impl OpenProgram, space: &mut AddressSpace) -> Result<Loaded, LoadError> {
    let program = find(command, files)?;
    let interpreter = program.elf.interpreter.as_deref().map(|path| open_interpreter(command, files, &program, path)).transpose()?;

    let mapped = map_image(space, &program, Role::Program)?;
    // Before anything else is placed, so that the address space can keep room for the heap.
    space.set_brk_start(mapped.end);
    let interpreted =
        interpreter.map(|interpreter| map_image(space, &interpreter, Role::Interpreter).map(|mapped| (interpreter, mapped))).transpose()?;

    let vdso = vdso::map(space).map_err(|errno| LoadError::Map { path: "[vdso]".into(), errno })?;

    let entry = interpreted.as_ref().map_or((program.elf.entry, mapped.bias), |(interpreter, mapped)| (interpreter.elf.entry, mapped.bias));
    let identity = identity(command, &program, auxv(&program, mapped, interpreted.as_ref().map(|(_, mapped)| mapped.bias), vdso.image));
    let stack = place_stack(space, command, &program, &identity)?;
    Ok(Loaded {
        registers: Registers {
            rip: user_address(entry.0.wrapping_add(entry.1), &program)?,
            rsp: stack.pointer,
            rflags: FIXED_RFLAGS,
            ..Registers::default()
        },
        name: thread_name(&command.program),
        identity: Identity { auxv: stack.auxv, ..identity },
        random_address: stack.random_address,
        clock_page: Some(vdso.clock_page),
    })
}

/// An ELF file that is about to be mapped.
struct Image {
    /// Guest path it was opened by.
    path: Vec<u8>,
    file: Arc<OwnedFd>,
    elf: Elf,
    /// `argv` for it.
    arguments: Vec<Vec<u8>>,
}

/// The ELF file to run: the program, or the interpreter at the end of a chain of scripts.
fn find(command: &Command, files: &impl OpenProgram) -> Result<Image, LoadError> {
    let mut path = command.program.clone();
    let mut arguments = command.arguments.clone();
    for depth in 0..=script::NESTED_MAX {
        let file = open(files, &path).map_err(|error| if depth == 0 { error } else { error.of_interpreter(&command.program) })?;
        let mut head = [0; script::HEAD_BYTES];
        let length = file.read_at(0, &mut head).map_err(|errno| LoadError::not_readable(&path, errno))?;
        let head = head.get(..length).unwrap_or_default();
        let interpreter = match script::parse(head) {
            None => return parse_image(file, path, arguments),
            Some(parsed) => parsed.map_err(|script::NoInterpreter| LoadError::not_executable(&path, Reason::ScriptWithoutInterpreter))?,
        };
        // The script's own name takes the place of argv[0].
        arguments.splice(..arguments.len().min(1), std::iter::once(interpreter.path.clone()).chain(interpreter.argument).chain([path]));
        path = absolute(command, interpreter.path);
    }
    Err(LoadError::not_executable(&command.program, Reason::ScriptsNested))
}

fn open_interpreter(command: &Command, files: &impl OpenProgram, program: &Image, path: &[u8]) -> Result<Image, LoadError> {
    let path = absolute(command, path.to_vec());
    let file = open(files, &path).map_err(|error| error.of_interpreter(&program.path))?;
    parse_image(file, path, Vec::new())
}

/// Relative interpreters count from the working directory.
fn absolute(command: &Command, path: Vec<u8>) -> Vec<u8> {
    if path.starts_with(b"/") {
        return path;
    }
    [command.working_directory.as_slice(), b"/", &path].concat()
}

fn parse_image(file: OwnedFd, path: Vec<u8>, arguments: Vec<Vec<u8>>) -> Result<Image, LoadError> {
    let elf = Elf::parse(&file).map_err(|error| LoadError::not_executable(&path, Reason::Elf(error)))?;
    Ok(Image { path, file: Arc::new(file), elf, arguments })
}

/// Open a file that is to be executed: a regular file that the user may execute.
fn open(files: &impl OpenProgram, path: &[u8]) -> Result<OwnedFd, LoadError> {
    let file = files.open_program(path).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR => LoadError::NotFound { path: error::show(path) },
        errno => LoadError::not_readable(path, errno),
    })?;
    let status = rustix::fs::fstat(&file).map_err(|errno| LoadError::not_readable(path, errno))?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(LoadError::not_executable(path, Reason::Directory)),
        _ => return Err(LoadError::not_executable(path, Reason::NotRegular)),
    }
    // By way of /proc, because access(2) takes a path, and the path must not be resolved a second time.
    let this = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::accessat(CWD, this, Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(file),
        Err(Errno::ACCESS) => Err(LoadError::not_executable(path, Reason::NoPermission)),
        Err(errno) => Err(LoadError::not_readable(path, errno)),
    }
}

fn map_image(space: &mut AddressSpace, image: &Image, role: Role) -> Result<Mapped, LoadError> {
    let name = Arc::from(String::from_utf8_lossy(&image.path));
    image::map(space, &image.elf, &image.file, &name, role).map_err(|errno| LoadError::Map { path: error::show(&image.path), errno })
}

fn user_address(address: u64, program: &Image) -> Result<u64, LoadError> {
    if address < USER_END { Ok(address) } else { Err(LoadError::not_executable(&program.path, Reason::Elf(ElfError::Entry))) }
}

/// The auxiliary vector without what points into the stack.
fn auxv(program: &Image, mapped: Mapped, interpreter_base: Option<u64>, vdso: u64) -> Vec<(u64, u64)> {
    let hardware = rustix::param::linux_hwcap().0 as u64;
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    vec![
        (at::SYSINFO_EHDR, vdso),
        (at::MINSIGSTKSZ, crate::linux::signal_frame::STACK_BYTES_MIN),
        // The host's own value: CPUID leaf 1 is the host's.
        (at::HWCAP, hardware),
        (at::PAGESZ, PAGE),
        (at::CLKTCK, CLOCK_TICKS),
        (at::PHDR, program.elf.headers_address.map_or(0, |address| address.wrapping_add(mapped.bias))),
        (at::PHENT, 56),
        (at::PHNUM, u64::from(program.elf.headers_count)),
        (at::BASE, interpreter_base.unwrap_or(0)),
        (at::FLAGS, 0),
        (at::ENTRY, program.elf.entry.wrapping_add(mapped.bias)),
        (at::UID, u64::from(rustix::process::getuid().as_raw())),
        (at::EUID, u64::from(user)),
        (at::GID, u64::from(rustix::process::getgid().as_raw())),
        (at::EGID, u64::from(group)),
        (at::SECURE, 0),
        // FSGSBASE and MWAIT in user mode are not promised.
        (at::HWCAP2, 0),
    ]
}

fn identity(command: &Command, program: &Image, auxv: Vec<(u64, u64)>) -> Identity {
    Identity {
        executable: executable_path(command, program),
        arguments: program.arguments.clone(),
        environment: command.environment.clone(),
        auxv,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        ppid: PARENT,
    }
}

/// The executable's path with all symbolic links resolved, as /proc/self/exe shows it, in the guest's names.
fn executable_path(command: &Command, program: &Image) -> Vec<u8> {
    let link = format!("/proc/self/fd/{}", program.file.as_raw_fd());
    let Ok(host) = rustix::fs::readlink(link, Vec::new()) else { return program.path.clone() };
    let host = host.into_bytes();
    for volume in &command.volumes {
        if let Some(rest) = host.strip_prefix(volume.host.trim_end_matches('/').as_bytes())
            && (rest.is_empty() || rest.starts_with(b"/"))
        {
            return [volume.guest.as_bytes(), rest].concat();
        }
    }
    if host.starts_with(b"/") { host } else { program.path.clone() }
}

fn thread_name(program: &[u8]) -> [u8; 16] {
    let base = program.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().take(15).zip(base) {
        *to = *from;
    }
    name
}

/// Map the stack with a gap below it and fill it.
fn place_stack(space: &mut AddressSpace, command: &Command, program: &Image, identity: &Identity) -> Result<Stack, LoadError> {
    let failed = |errno| LoadError::Map { path: "[stack]".into(), errno };
    let mut protection = Protection::READ | Protection::WRITE;
    protection.set(Protection::EXEC, program.elf.executable_stack);
    // The gap stays mapped without any permission, so that nothing is ever placed right below the stack.
    let gap = MapRequest {
        placement: Placement::Anywhere,
        length: STACK_GUARD_BYTES + STACK_BYTES,
        protection: Protection::empty(),
        backing: Backing::Anonymous,
        label: "",
    };
    let bottom = space.map(gap).map_err(failed)? + STACK_GUARD_BYTES;
    let whole =
        MapRequest { placement: Placement::Fixed(bottom), length: STACK_BYTES, protection, backing: Backing::Anonymous, label: "[stack]" };
    space.map(whole).map_err(failed)?;

    let mut random = [0; 16];
    fill_random(&mut random).map_err(|errno| LoadError::Random { errno })?;
    let contents = stack::Contents {
        arguments: &identity.arguments,
        environment: &identity.environment,
        file_name: &command.program,
        auxv: &identity.auxv,
        random,
    };
    let stack = stack::build(bottom + STACK_BYTES, &contents)?;
    space.memory().write_bytes(stack.pointer, &stack.bytes).map_err(failed)?;
    Ok(stack)
}

fn fill_random(mut buffer: &mut [u8]) -> Result<(), Errno> {
    while !buffer.is_empty() {
        match rustix::rand::getrandom(&mut *buffer, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => buffer = buffer.get_mut(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
