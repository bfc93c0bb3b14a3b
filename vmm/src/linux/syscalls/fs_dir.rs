//! Directories: getdents64(2), getdents(2), getcwd(2), chdir(2), fchdir(2), and the file mode creation mask.

use std::mem::MaybeUninit;
use std::sync::Arc;

use linux_raw_sys::general as abi;
use rustix::fs::{FileType, RawDir};

use super::fs_open::path_argument;
use crate::linux::file::special::{self, Node as SpecialNode};
use crate::linux::file::{File, FileId};
use crate::linux::path::{AT_FDCWD, Directory, Last, Node, Place, Walker};
use crate::linux::table::{Arg, Entry, full};
use crate::linux::{Answer, Call, Errno, Outcome, guest_path};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(abi::__NR_getdents64, "getdents64", &[Arg::Fd, Arg::Pointer, Arg::Uint], getdents64),
    full(abi::__NR_getdents, "getdents", &[Arg::Fd, Arg::Pointer, Arg::Uint], getdents),
    full(abi::__NR_getcwd, "getcwd", &[Arg::Pointer, Arg::Uint], getcwd),
    full(abi::__NR_chdir, "chdir", &[Arg::Path], chdir),
    full(abi::__NR_fchdir, "fchdir", &[Arg::Fd], fchdir),
    full(abi::__NR_umask, "umask", &[Arg::Mode], umask),
];

/// Most bytes of entries that one call returns.
const ENTRIES_BYTES_MAX: usize = 64 << 10;

/// One entry of a directory.
struct DirectoryEntry {
    inode: u64,
    /// Where the next entry is.
    next: u64,
    kind: u8,
    name: Vec<u8>,
}

impl DirectoryEntry {
    /// `struct linux_dirent64`, padded to eight bytes.
    fn to_new(&self) -> Vec<u8> {
        let length = (19 + self.name.len() + 1).next_multiple_of(8);
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&self.inode.to_ne_bytes());
        bytes.extend_from_slice(&self.next.to_ne_bytes());
        bytes.extend_from_slice(&(length as u16).to_ne_bytes());
        bytes.push(self.kind);
        bytes.extend_from_slice(&self.name);
        bytes.resize(length, 0);
        bytes
    }

    /// `struct linux_dirent`: the type is in the last byte.
    fn to_old(&self) -> Vec<u8> {
        let length = (18 + self.name.len() + 2).next_multiple_of(8);
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&self.inode.to_ne_bytes());
        bytes.extend_from_slice(&self.next.to_ne_bytes());
        bytes.extend_from_slice(&(length as u16).to_ne_bytes());
        bytes.extend_from_slice(&self.name);
        bytes.resize(length - 1, 0);
        bytes.push(self.kind);
        bytes
    }
}

fn getdents64(call: &mut Call<'_>) -> Answer {
    list(call, DirectoryEntry::to_new)
}

fn getdents(call: &mut Call<'_>) -> Answer {
    list(call, DirectoryEntry::to_old)
}

fn list(call: &mut Call<'_>, encode: fn(&DirectoryEntry) -> Vec<u8>) -> Answer {
    let id = call.file(0)?;
    super::io::open_for(call.kernel, id, u32::MAX)?;
    let size = (call.uint(2) as usize).min(ENTRIES_BYTES_MAX);
    let mut output = Output { bytes: Vec::new(), size, encode, next: None };
    match &call.kernel.files.get(id)?.file {
        File::Host(file) if file.is_directory() => {
            let directory = file.directory_at(file.position)?;
            list_host(&directory, &mut output)?;
        }
        File::Special(file) if file.node() == SpecialNode::Directory => {
            let place = Place { path: file.path().to_vec(), node: file.place_node() };
            list_generated(call, &place, file.position, &mut output)?;
        }
        _ => return Err(Errno::NOTDIR),
    }
    call.memory().write_bytes(call.args[1], &output.bytes)?;
    if let Some(next) = output.next {
        move_to(call, id, next)?;
    }
    Ok(output.bytes.len().into())
}

fn move_to(call: &mut Call<'_>, id: FileId, position: u64) -> Result<(), Errno> {
    match &mut call.kernel.files.get_mut(id)?.file {
        File::Host(file) => file.position = position,
        File::Special(file) => file.position = position,
        _ => {}
    }
    Ok(())
}

/// Entries collected for the guest.
struct Output {
    bytes: Vec<u8>,
    size: usize,
    encode: fn(&DirectoryEntry) -> Vec<u8>,
    next: Option<u64>,
}

impl Output {
    /// Take an entry; false where it has no room. EINVAL where not even the first has.
    fn push(&mut self, entry: &DirectoryEntry) -> Result<bool, Errno> {
        let bytes = (self.encode)(entry);
        if self.bytes.len() + bytes.len() > self.size {
            return if self.bytes.is_empty() { Err(Errno::INVAL) } else { Ok(false) };
        }
        self.bytes.extend_from_slice(&bytes);
        self.next = Some(entry.next);
        Ok(true)
    }
}

fn list_host(directory: &std::os::fd::OwnedFd, output: &mut Output) -> Result<(), Errno> {
    let mut buffer = vec![MaybeUninit::uninit(); output.size.clamp(1024, ENTRIES_BYTES_MAX)];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let entry = DirectoryEntry {
            inode: entry.ino(),
            next: entry.next_entry_cookie(),
            kind: kind_number(entry.file_type()),
            name: entry.file_name().to_bytes().to_vec(),
        };
        if !output.push(&entry)? {
            break;
        }
    }
    Ok(())
}

/// DT_* of `readdir(3)`.
fn kind_number(kind: FileType) -> u8 {
    let kind = match kind {
        FileType::RegularFile => abi::DT_REG,
        FileType::Directory => abi::DT_DIR,
        FileType::Symlink => abi::DT_LNK,
        FileType::Fifo => abi::DT_FIFO,
        FileType::Socket => abi::DT_SOCK,
        FileType::CharacterDevice => abi::DT_CHR,
        FileType::BlockDevice => abi::DT_BLK,
        FileType::Unknown => abi::DT_UNKNOWN,
    };
    kind as u8
}

fn list_generated(call: &Call<'_>, place: &Place, position: u64, output: &mut Output) -> Result<(), Errno> {
    let walker = Walker::new(call.kernel, call.tid);
    let names = match place.node {
        Node::Virtual => call.kernel.grants.names_below(&place.path),
        _ => special::list(call.kernel, &place.path),
    };
    let own = [(b".".to_vec(), place.path.clone()), (b"..".to_vec(), guest_path::parent(&place.path).to_vec())];
    let others = names.into_iter().map(|name| (name.clone(), guest_path::join(&place.path, &name)));
    let first = usize::try_from(position).unwrap_or(usize::MAX);
    for (index, (name, path)) in own.into_iter().chain(others).enumerate().skip(first) {
        let kind = if index < 2 { Some(abi::DT_DIR as u8) } else { walker.child(place, &name)?.map(|child| child_kind(&child)) };
        // A granted name that does not exist yet is not listed.
        let Some(kind) = kind else { continue };
        let entry = DirectoryEntry { inode: special::inode(&path), next: index as u64 + 1, kind, name };
        if !output.push(&entry)? {
            break;
        }
    }
    Ok(())
}

fn child_kind(place: &Place) -> u8 {
    let kind = match &place.node {
        Node::Virtual | Node::Host(_, true) | Node::Special(SpecialNode::Directory) => abi::DT_DIR,
        Node::HostLink(..) | Node::VirtualLink(_) | Node::Special(SpecialNode::Link(_)) => abi::DT_LNK,
        Node::Special(SpecialNode::Device(_)) => abi::DT_CHR,
        Node::Special(SpecialNode::Text(_) | SpecialNode::Memory(_)) => abi::DT_REG,
        Node::Host(handle, false) => {
            return rustix::fs::fstat(handle).map_or(abi::DT_UNKNOWN as u8, |status| kind_number(FileType::from_raw_mode(status.st_mode)));
        }
        Node::Open(_) => abi::DT_UNKNOWN,
    };
    kind as u8
}

fn getcwd(call: &mut Call<'_>) -> Answer {
    let cwd = &call.kernel.process.cwd;
    if let Some(handle) = &cwd.handle
        && rustix::fs::fstat(handle)?.st_nlink == 0
    {
        return Err(Errno::NOENT);
    }
    let mut path = cwd.path.clone();
    path.push(0);
    if (path.len() as u64) > call.args[1] {
        return Err(Errno::RANGE);
    }
    call.memory().write_bytes(call.args[0], &path)?;
    Ok(path.len().into())
}

fn chdir(call: &mut Call<'_>) -> Answer {
    let path = path_argument(call, call.args[0])?;
    let place = Walker::new(call.kernel, call.tid).walk(AT_FDCWD, &path, Last::Follow)?.existing()?;
    change_directory(call, place)
}

fn fchdir(call: &mut Call<'_>) -> Answer {
    let place = Walker::new(call.kernel, call.tid).open_file(call.file(0)?)?;
    change_directory(call, place)
}

fn change_directory(call: &mut Call<'_>, place: Place) -> Answer {
    if !place.is_directory() {
        return Err(Errno::NOTDIR);
    }
    let handle = if let Node::Host(handle, _) = place.node {
        // The right to search it is the host's to give.
        let search = rustix::fs::Access::EXEC_OK;
        rustix::fs::accessat(rustix::fs::CWD, crate::linux::host_path::by_descriptor(&*handle), search, rustix::fs::AtFlags::empty())?;
        Some(Arc::clone(&handle))
    } else {
        None
    };
    call.process().cwd = Directory { path: place.path, handle };
    Ok(Outcome::OK)
}

fn umask(call: &mut Call<'_>) -> Answer {
    let mask = call.uint(0) & 0o777;
    let previous = std::mem::replace(&mut call.process().umask, mask);
    Ok(Outcome::Return(u64::from(previous)))
}
