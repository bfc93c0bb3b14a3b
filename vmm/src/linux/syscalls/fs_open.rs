//! open(2), creat(2), openat(2), openat2(2).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use linux_raw_sys::general as abi;
use rustix::fs::{Mode, OFlags};

use crate::limits::PATH_MAX;
use crate::linux::file::console::Console;
use crate::linux::file::host::HostFile;
use crate::linux::file::special::{Device, Node as SpecialNode, SHM, SpecialFile};
use crate::linux::file::{File, FileId};
use crate::linux::path::{AT_FDCWD, Found, Last, Node, Place, Scope, Walker};
use crate::linux::table::{Arg, Entry, full, partial};
use crate::linux::{Answer, Call, Errno, guest_path, host_path};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(abi::__NR_open, "open", &[Arg::Path, Arg::OpenFlags, Arg::Mode], open),
    full(abi::__NR_creat, "creat", &[Arg::Path, Arg::Mode], creat),
    full(abi::__NR_openat, "openat", &[Arg::Fd, Arg::Path, Arg::OpenFlags, Arg::Mode], openat),
    partial(
        abi::__NR_openat2,
        "openat2",
        &[Arg::Fd, Arg::Path, Arg::Pointer, Arg::Uint],
        openat2,
        "RESOLVE_NO_XDEV is refused with EINVAL",
    ),
];

/// Flags that open(2) knows; it ignores others, openat2(2) refuses them.
const KNOWN: u32 = abi::O_ACCMODE
    | abi::O_CREAT
    | abi::O_EXCL
    | abi::O_NOCTTY
    | abi::O_TRUNC
    | abi::O_APPEND
    | abi::O_NONBLOCK
    | abi::O_SYNC
    | abi::FASYNC
    | abi::O_DIRECT
    | abi::O_LARGEFILE
    | abi::O_DIRECTORY
    | abi::O_NOFOLLOW
    | abi::O_NOATIME
    | abi::O_CLOEXEC
    | abi::O_PATH
    | abi::O_TMPFILE;
/// Flags that count with O_PATH.
const WITH_PATH: u32 = abi::O_PATH | abi::O_DIRECTORY | abi::O_NOFOLLOW | abi::O_CLOEXEC;
/// The bit that makes O_TMPFILE differ from O_DIRECTORY.
const TMPFILE_BIT: u32 = abi::O_TMPFILE & !abi::O_DIRECTORY;
/// Flags that act once, at the time of opening.
const TRANSIENT: u32 = abi::O_CREAT | abi::O_EXCL | abi::O_NOCTTY | abi::O_TRUNC | abi::O_CLOEXEC | TMPFILE_BIT;
/// Tries to open or create a name that others keep making and removing.
const RACES_MAX: usize = 16;

/// How to open, checked.
#[derive(Debug, Clone, Copy)]
struct How {
    flags: u32,
    mode: u32,
}

impl How {
    /// Flags as open(2) takes them.
    fn new(flags: u32, mode: u32) -> Result<Self, Errno> {
        let flags = flags & KNOWN;
        let flags = if flags & abi::O_PATH != 0 { flags & WITH_PATH } else { flags };
        // No set-user-ID programs on the host: see chmod.
        let how = Self { flags, mode: mode & 0o1777 };
        let temporary = flags & TMPFILE_BIT != 0;
        if temporary && (flags & abi::O_DIRECTORY == 0 || !how.writes() || flags & abi::O_CREAT != 0) {
            return Err(Errno::INVAL);
        }
        if flags & abi::O_CREAT != 0 && flags & abi::O_DIRECTORY != 0 || flags & abi::O_ACCMODE == abi::O_ACCMODE {
            return Err(Errno::INVAL);
        }
        Ok(how)
    }

    const fn has(self, flag: u32) -> bool {
        self.flags & flag == flag
    }

    const fn reads(self) -> bool {
        matches!(self.flags & abi::O_ACCMODE, abi::O_RDONLY | abi::O_RDWR) && !self.has(abi::O_PATH)
    }

    const fn writes(self) -> bool {
        matches!(self.flags & abi::O_ACCMODE, abi::O_WRONLY | abi::O_RDWR)
    }

    /// Whether it could change anything below the path.
    const fn changes(self) -> bool {
        self.writes() || self.has(abi::O_CREAT) || self.has(abi::O_TRUNC)
    }

    const fn last(self) -> Last {
        if self.has(abi::O_NOFOLLOW) || self.has(abi::O_CREAT) && self.has(abi::O_EXCL) { Last::Keep } else { Last::Follow }
    }

    /// What the open file keeps.
    const fn kept(self) -> u32 {
        self.flags & !TRANSIENT | abi::O_LARGEFILE
    }

    /// What the host is asked for. O_APPEND is not among it: each write says where it goes, because the host's description is
    /// shared and the guest may change the flag later.
    fn host(self) -> OFlags {
        let passed = abi::O_ACCMODE | abi::O_TRUNC | abi::O_SYNC | abi::O_DIRECT | abi::O_NOATIME | abi::O_DIRECTORY;
        OFlags::from_bits_retain(self.flags & passed) | OFlags::CLOEXEC
    }
}

fn open(call: &mut Call<'_>) -> Answer {
    let how = How::new(call.uint(1), call.uint(2))?;
    open_path(call, AT_FDCWD, call.args[0], how, Scope::default())
}

fn creat(call: &mut Call<'_>) -> Answer {
    let how = How::new(abi::O_CREAT | abi::O_WRONLY | abi::O_TRUNC, call.uint(1))?;
    open_path(call, AT_FDCWD, call.args[0], how, Scope::default())
}

fn openat(call: &mut Call<'_>) -> Answer {
    let how = How::new(call.uint(2), call.uint(3))?;
    open_path(call, call.int(0), call.args[1], how, Scope::default())
}

fn openat2(call: &mut Call<'_>) -> Answer {
    let (address, size) = (call.args[2], call.args[3]);
    if size < 24 {
        return Err(Errno::INVAL);
    }
    if size > crate::limits::PAGE {
        return Err(Errno::TOOBIG);
    }
    let bytes = call.memory().read_vec(address, usize::try_from(size).map_err(|_| Errno::TOOBIG)?)?;
    if bytes.iter().skip(24).any(|byte| *byte != 0) {
        return Err(Errno::TOOBIG);
    }
    let [flags, mode, resolve] = call.memory().read::<[u64; 3]>(address)?;
    let flags = u32::try_from(flags).ok().filter(|flags| flags & !KNOWN == 0).ok_or(Errno::INVAL)?;
    if flags & abi::O_PATH != 0 && flags & !WITH_PATH != 0 {
        return Err(Errno::INVAL);
    }
    let creates = flags & abi::O_CREAT != 0 || flags & TMPFILE_BIT != 0;
    if mode & !0o7777 != 0 || mode != 0 && !creates {
        return Err(Errno::INVAL);
    }
    let scope = Scope::from_resolve(resolve)?;
    open_path(call, call.int(0), call.args[1], How::new(flags, mode as u32)?, scope)
}

/// A path argument.
pub(super) fn path_argument(call: &Call<'_>, address: u64) -> Result<Vec<u8>, Errno> {
    call.memory().read_string(address, PATH_MAX)
}

fn open_path(call: &mut Call<'_>, dirfd: i32, path: u64, how: How, scope: Scope) -> Answer {
    let path = path_argument(call, path)?;
    let opened = open_or_create(call, dirfd, &path, how, scope);
    let id = match opened {
        Ok(id) => id,
        Err(errno) => {
            let errno = if how.changes() { Walker::new(call.kernel, call.tid).refusal(&path, errno) } else { errno };
            note_refusal(call, "open", &path, errno);
            return Err(errno);
        }
    };
    Ok(call.kernel.install_fd(id, how.has(abi::O_CLOEXEC))?.into())
}

/// With `--verbose`, say which grant a program may be missing.
pub(super) fn note_refusal(call: &mut Call<'_>, what: &str, path: &[u8], errno: Errno) {
    if !call.kernel.grants.verbose || !matches!(errno, Errno::NOENT | Errno::ACCESS) {
        return;
    }
    let cwd = &call.kernel.process.cwd.path;
    let absolute = guest_path::fold(&if path.first() == Some(&b'/') { path.to_vec() } else { guest_path::join(cwd, path) });
    let access = call.kernel.grants.access(&absolute);
    if (!access.any() || errno == Errno::ACCESS) && !crate::linux::grants::Grants::is_ours(&absolute) {
        call.kernel.note(format!("no grant lets the program {what} {}", String::from_utf8_lossy(&absolute).escape_debug()));
    }
}

fn open_or_create(call: &mut Call<'_>, dirfd: i32, path: &[u8], how: How, scope: Scope) -> Result<FileId, Errno> {
    for _ in 0..RACES_MAX {
        let walker = Walker::new(call.kernel, call.tid);
        let found = walker.walk_in(dirfd, path, how.last(), scope)?;
        if how.has(TMPFILE_BIT) {
            return open_unnamed(call, found.existing()?, how);
        }
        if let Some(place) = &found.place {
            if how.has(abi::O_CREAT) && how.has(abi::O_EXCL) {
                return Err(Errno::EXIST);
            }
            if found.slash && !place.is_directory() {
                return Err(Errno::NOTDIR);
            }
            let place = place.clone();
            return open_place(call, place, how);
        }
        if !how.has(abi::O_CREAT) {
            return Err(Errno::NOENT);
        }
        match create(call, &found, how) {
            Err(Errno::EXIST) if !how.has(abi::O_EXCL) => {}
            answer => return answer,
        }
    }
    Err(Errno::AGAIN)
}

/// Make a regular file where there is nothing.
fn create(call: &mut Call<'_>, found: &Found, how: How) -> Result<FileId, Errno> {
    if found.slash {
        return Err(Errno::ISDIR);
    }
    let path = found.path();
    if found.directory.path == SHM {
        let mode = how.mode & !call.kernel.process.umask;
        let now = call.kernel.clock.realtime();
        let id = call.kernel.files.shm.create(&found.name, mode, now)?;
        return open_special(call, &path, SpecialNode::Memory(id), how);
    }
    let walker = Walker::new(call.kernel, call.tid);
    let (directory, name) = walker.holder(found)?;
    if how.reads() && !walker.access(&path).read && how.writes() {
        return Err(Errno::ACCESS);
    }
    let flags = how.host() | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::NOCTTY;
    let wanted = how.mode & !call.kernel.process.umask;
    let descriptor = rustix::fs::openat(&directory, name.as_slice(), flags, Mode::from_bits_retain(wanted))?;
    restore_mode(call, &descriptor, wanted)?;
    add_host(call, descriptor, &path, how)
}

/// Give a new file the bits that our own umask took from it.
pub(super) fn restore_mode(call: &Call<'_>, descriptor: &OwnedFd, wanted: u32) -> Result<(), Errno> {
    if call.kernel.grants.host_umask & wanted == 0 { Ok(()) } else { rustix::fs::fchmod(descriptor, Mode::from_bits_retain(wanted)) }
}

/// O_TMPFILE: a file without a name in a directory.
fn open_unnamed(call: &mut Call<'_>, directory: Place, how: How) -> Result<FileId, Errno> {
    let access = call.kernel.grants.access(&directory.path);
    let Node::Host(handle, is_directory) = &directory.node else { return Err(Errno::ACCESS) };
    if !is_directory {
        return Err(Errno::NOTDIR);
    }
    if !access.write || how.reads() && !access.read {
        return Err(Errno::ACCESS);
    }
    let wanted = how.mode & !call.kernel.process.umask;
    let exclusive = if how.has(abi::O_EXCL) { OFlags::EXCL } else { OFlags::empty() };
    let flags = how.host() | OFlags::TMPFILE | exclusive;
    let descriptor = rustix::fs::openat(handle, ".", flags, Mode::from_bits_retain(wanted))?;
    restore_mode(call, &descriptor, wanted)?;
    let inode = rustix::fs::fstat(&descriptor)?.st_ino;
    let path = guest_path::join(&directory.path, format!("#{inode}").as_bytes());
    add_host(call, descriptor, &path, how)
}

fn add_host(call: &mut Call<'_>, descriptor: OwnedFd, path: &[u8], how: How) -> Result<FileId, Errno> {
    let access = call.kernel.grants.access(path);
    call.kernel.files.add(File::Host(HostFile::new(Arc::new(descriptor), path, access)), how.kept())
}

/// Open what is there.
fn open_place(call: &mut Call<'_>, place: Place, how: How) -> Result<FileId, Errno> {
    if how.has(abi::O_PATH) && (place.is_directory() || !how.has(abi::O_DIRECTORY)) {
        return open_handle(call, place, how);
    }
    if how.has(abi::O_DIRECTORY) && !place.is_directory() {
        return Err(Errno::NOTDIR);
    }
    if place.is_link() {
        return Err(Errno::LOOP);
    }
    if place.is_directory() && (how.writes() || how.has(abi::O_CREAT)) {
        return Err(Errno::ISDIR);
    }
    match place.node {
        Node::Host(handle, _) => {
            let access = call.kernel.grants.access(&place.path);
            if how.reads() && !access.read || (how.writes() || how.has(abi::O_TRUNC)) && !access.write {
                return Err(Errno::ACCESS);
            }
            let descriptor = host_path::open_object(&handle, how.host())?;
            add_host(call, descriptor, &place.path, how)
        }
        Node::Special(node) => open_special(call, &place.path, node, how),
        Node::Open(id) => open_again(call, id, how),
        _ => call.kernel.files.add(File::Special(SpecialFile::on_the_way(&place.path)), how.kept()),
    }
}

/// O_PATH: only the place.
fn open_handle(call: &mut Call<'_>, place: Place, how: How) -> Result<FileId, Errno> {
    let file = match place.node {
        Node::Host(handle, _) | Node::HostLink(handle, _) => {
            File::Host(HostFile::new(handle, &place.path, call.kernel.grants.access(&place.path)))
        }
        Node::Special(node) => return add_special(call, &place.path, node, how.kept() & !abi::O_LARGEFILE),
        Node::Virtual => File::Special(SpecialFile::on_the_way(&place.path)),
        Node::VirtualLink(_) => return Err(Errno::LOOP),
        Node::Open(id) => {
            call.kernel.files.retain(id);
            return Ok(id);
        }
    };
    call.kernel.files.add(file, how.kept() & !abi::O_LARGEFILE)
}

fn open_special(call: &mut Call<'_>, path: &[u8], node: SpecialNode, how: How) -> Result<FileId, Errno> {
    match node {
        SpecialNode::Text(text) if how.writes() && !text.is_writable() => return Err(Errno::ACCESS),
        SpecialNode::Device(Device::Terminal) => {
            let terminal = terminal(call).ok_or(Errno::NXIO)?;
            return call.kernel.files.add(File::Console(terminal), how.kept());
        }
        SpecialNode::Memory(id) if how.has(abi::O_TRUNC) => {
            let now = call.kernel.clock.realtime();
            call.kernel.files.shm.resize(id, 0, now)?;
        }
        _ => {}
    }
    add_special(call, path, node, how.kept())
}

fn add_special(call: &mut Call<'_>, path: &[u8], node: SpecialNode, flags: u32) -> Result<FileId, Errno> {
    let file = call.kernel.files.add(File::Special(SpecialFile::new(path, node)), flags)?;
    if let SpecialNode::Memory(id) = node {
        call.kernel.files.shm.open(id);
    }
    Ok(file)
}

/// The terminal among the standard streams that are open.
fn terminal(call: &Call<'_>) -> Option<Console> {
    call.kernel.files.iter().find_map(|(_, slot)| match &slot.file {
        File::Console(console) if rustix::termios::isatty(console.descriptor()) => Some(console.clone()),
        _ => None,
    })
}

/// Open a file that is open already, by its name in /proc/self/fd.
fn open_again(call: &mut Call<'_>, id: FileId, how: How) -> Result<FileId, Errno> {
    let slot = call.kernel.files.get(id)?;
    let mode = slot.flags & abi::O_ACCMODE;
    let fits = mode == abi::O_RDWR || mode == how.flags & abi::O_ACCMODE;
    match &slot.file {
        _ if !fits => Err(Errno::ACCESS),
        File::Console(console) => {
            let console = console.clone();
            call.kernel.files.add(File::Console(console), how.kept())
        }
        // A pipe has one description a side here: the new descriptor shares it.
        File::Pipe(_) => {
            call.kernel.files.retain(id);
            Ok(id)
        }
        _ => Err(Errno::NXIO),
    }
}
