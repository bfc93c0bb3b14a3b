//! Steps through the host's file system that a guest's path makes us take: one component or a run of plain ones, never
//! through a symbolic link, and always onto an `O_PATH` descriptor, which neither blocks nor has an effect on what it names.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Longest symbolic link that is read, bytes.
const LINK_MAX: usize = 4096;

/// File systems that speak for the host's kernel, its devices or other processes, by `statfs(2)`'s `f_type`: nothing on
/// them is ever a guest's, wherever they are mounted.
const KERNEL_FILE_SYSTEMS: &[u32] = &[
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0xcafe_4a11, // bpf
    0x1cd1,      // devpts
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0x6265_6570, // configfs
    0x4249_4e4d, // binfmt_misc
    0x9584_58f6, // hugetlbfs
    0x6e73_6673, // nsfs
    0x6573_5543, // fusectl
    0x0187,      // autofs
    0x1980_0202, // mqueue
];

/// What a name in a host directory is.
#[derive(Debug)]
pub enum Step {
    /// An object that is not a symbolic link, and whether it is a directory.
    Object(OwnedFd, bool),
    /// A symbolic link: its own descriptor, and where it leads.
    Link(OwnedFd, Vec<u8>),
    /// Nothing.
    Absent,
}

/// Look `name` (one component) up in `directory`.
///
/// # Errors
///
/// As `openat(2)`, ENOENT aside.
pub fn step(directory: &OwnedFd, name: &[u8]) -> Result<Step, Errno> {
    let handle = match rustix::fs::openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(handle) => handle,
        Err(Errno::NOENT) => return Ok(Step::Absent),
        Err(errno) => return Err(errno),
    };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode);
    if kind != FileType::Symlink {
        return Ok(Step::Object(handle, kind == FileType::Directory));
    }
    let target = read_link(&handle)?;
    Ok(Step::Link(handle, target))
}

/// Where a symbolic link leads, by its own descriptor.
///
/// # Errors
///
/// As `readlinkat(2)`.
pub fn read_link(handle: &OwnedFd) -> Result<Vec<u8>, Errno> {
    Ok(rustix::fs::readlinkat(handle, "", Vec::with_capacity(LINK_MAX))?.into_bytes())
}

/// Walk plain components below `directory` to a directory in one call. `None` where that is not possible (a link, a
/// missing component, a file): the caller then goes step by step and finds out why.
#[must_use]
pub fn descend(directory: &OwnedFd, path: &[u8]) -> Option<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(directory, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve).ok()
}

/// Refuse what belongs to the host's kernel rather than to its files.
///
/// # Errors
///
/// EACCES.
pub fn refuse_kernel_file_systems(handle: &OwnedFd) -> Result<(), Errno> {
    let magic = rustix::fs::fstatfs(handle)?.f_type as u32;
    if KERNEL_FILE_SYSTEMS.contains(&magic) { Err(Errno::ACCESS) } else { Ok(()) }
}

/// The host path that names an open descriptor of this process, whatever has happened to its name since.
#[must_use]
pub fn by_descriptor(handle: impl AsFd) -> String {
    format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd())
}

/// Open what `handle` (an `O_PATH` descriptor) names. The type was looked at on the very object that is opened, so no
/// device or FIFO can be slipped in between.
///
/// # Errors
///
/// As `open(2)`; EACCES for devices, ENXIO for sockets and FIFOs.
pub fn open_object(handle: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    match FileType::from_raw_mode(rustix::fs::fstat(handle)?.st_mode) {
        FileType::RegularFile | FileType::Directory => {}
        FileType::CharacterDevice | FileType::BlockDevice => return Err(Errno::ACCESS),
        FileType::Symlink => return Err(Errno::LOOP),
        _ => return Err(Errno::NXIO),
    }
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    rustix::fs::open(by_descriptor(handle), flags, Mode::empty())
}

/// `fstat(2)`.
///
/// # Errors
///
/// As the call.
pub fn status(handle: &OwnedFd) -> Result<Stat, Errno> {
    rustix::fs::fstat(handle)
}

/// Whether a descriptor names a directory.
#[must_use]
pub fn is_directory(handle: &OwnedFd) -> bool {
    rustix::fs::fstat(handle).is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Directory)
}
