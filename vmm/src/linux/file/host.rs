//! Regular files and directories of the host, and whatever O_PATH may name there. The offset is ours, so a fork of a snapshot
//! has its own; the host's descriptor is shared, and nothing that lives in it is ever used.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::ReadWriteFlags;

use super::attributes::{Attributes, StatxTime};
use super::{Errno, File, Files, PollEvents, Readiness};
use crate::limits::RW_BYTES_MAX;
use crate::linux::grants::Access;
use crate::linux::path::Node;
use crate::linux::{guest_path, host_path};
use crate::memory::{GuestMemory, Segment};

/// An open file of the host.
#[derive(Debug, Clone)]
pub struct HostFile {
    descriptor: Arc<OwnedFd>,
    path: Arc<[u8]>,
    access: Access,
    directory: bool,
    link: bool,
    /// The file offset: bytes in a regular file, the host's cookie of the next entry in a directory.
    pub position: u64,
    /// A description of its own for `flock(2)` locks, which belong to it alone.
    pub lock: Option<Arc<OwnedFd>>,
    /// A description of its own for open-file-description locks.
    pub range_lock: Option<Arc<OwnedFd>>,
    /// A description, shared by all files of the process with the same inode, for the process's record locks.
    pub record_lock: Option<Arc<OwnedFd>>,
}

impl HostFile {
    /// An open file that the guest knows by a canonical path and that grants let it use so.
    #[must_use]
    pub fn new(descriptor: Arc<OwnedFd>, path: &[u8], access: Access) -> Self {
        let kind = rustix::fs::fstat(&descriptor).map_or(FileType::Unknown, |status| FileType::from_raw_mode(status.st_mode));
        Self {
            descriptor,
            path: path.into(),
            access,
            directory: kind == FileType::Directory,
            link: kind == FileType::Symlink,
            position: 0,
            lock: None,
            range_lock: None,
            record_lock: None,
        }
    }

    /// The host's descriptor; never use its offset.
    #[must_use]
    pub const fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }

    /// The canonical guest path it was opened by.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Its name, or that of a directory above it, has changed.
    pub fn renamed(&mut self, from: &[u8], to: &[u8]) {
        if let Some(path) = guest_path::moved(&self.path, from, to) {
            self.path = path.into();
        }
    }

    /// The path for people: /proc/self/maps, reports.
    #[must_use]
    pub fn name(&self) -> Arc<str> {
        String::from_utf8_lossy(&self.path).into()
    }

    /// What grants allowed when it was opened.
    #[must_use]
    pub const fn access(&self) -> Access {
        self.access
    }

    /// Whether it has no name any more.
    #[must_use]
    pub fn is_unlinked(&self) -> bool {
        rustix::fs::fstat(&self.descriptor).is_ok_and(|status| status.st_nlink == 0)
    }

    /// Whether it is a directory.
    #[must_use]
    pub const fn is_directory(&self) -> bool {
        self.directory
    }

    /// A fork of a snapshot begins: record locks belong to the process that made them (`fork(2)`).
    pub fn after_fork(&mut self) {
        self.record_lock = None;
    }

    /// It as a place in the tree of names.
    #[must_use]
    pub fn node(&self) -> Node {
        if self.link {
            let target = host_path::read_link(&self.descriptor).unwrap_or_default();
            return Node::HostLink(Arc::clone(&self.descriptor), target);
        }
        Node::Host(Arc::clone(&self.descriptor), self.directory)
    }

    /// Regular files and directories never keep anybody waiting.
    #[must_use]
    pub const fn readiness() -> Readiness {
        let events = PollEvents::IN.union(PollEvents::OUT).union(PollEvents::RDNORM).union(PollEvents::WRNORM);
        Readiness::of(events)
    }

    /// Its attributes.
    ///
    /// # Errors
    ///
    /// As `fstat(2)`.
    pub fn attributes(&self) -> Result<Attributes, Errno> {
        attributes_of(&self.descriptor)
    }

    /// Another description of the same file, with nothing shared: what a lock needs.
    ///
    /// # Errors
    ///
    /// As `open(2)`.
    pub fn reopen(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        host_path::open_object(&self.descriptor, flags)
    }

    /// Read at `offset` into guest memory.
    ///
    /// # Errors
    ///
    /// As `preadv(2)`; EISDIR for a directory.
    pub fn read_at(&self, memory: &GuestMemory, segments: &[Segment], skip: u64, offset: u64) -> Result<usize, Errno> {
        if self.directory {
            return Err(Errno::ISDIR);
        }
        let segments = rest(segments, skip);
        memory.with_writable(&segments, RW_BYTES_MAX, |slices| retry(|| rustix::io::preadv(&self.descriptor, slices, offset)))
    }

    /// Write guest memory at `offset`, or at the end of the file.
    ///
    /// # Errors
    ///
    /// As `pwritev(2)`.
    pub fn write_at(&self, memory: &GuestMemory, segments: &[Segment], skip: u64, to: WriteTo) -> Result<usize, Errno> {
        let segments = rest(segments, skip);
        memory.with_readable(&segments, RW_BYTES_MAX, |slices| {
            retry(|| match to {
                WriteTo::Offset(offset) => rustix::io::pwritev(&self.descriptor, slices, offset),
                // The offset counts for nothing here; -1 would touch that of the shared description.
                WriteTo::End => rustix::io::pwritev2(&self.descriptor, slices, 0, ReadWriteFlags::APPEND),
            })
        })
    }

    /// Its size in bytes.
    ///
    /// # Errors
    ///
    /// As `fstat(2)`.
    pub fn size(&self) -> Result<u64, Errno> {
        Ok(u64::try_from(rustix::fs::fstat(&self.descriptor)?.st_size).unwrap_or(0))
    }

    /// A fresh description of this directory, positioned at `cookie`: positions are kept in the description, and the one we
    /// hold is shared with other VMs.
    ///
    /// # Errors
    ///
    /// As `open(2)` and `lseek(2)`.
    pub fn directory_at(&self, cookie: u64) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&self.descriptor, ".", flags, Mode::empty())?;
        if cookie != 0 {
            let cookie = i64::try_from(cookie).map_err(|_| Errno::INVAL)?;
            rustix::fs::seek(&directory, rustix::fs::SeekFrom::Start(cookie.cast_unsigned()))?;
        }
        Ok(directory)
    }
}

impl Files {
    /// All open files of the host.
    pub fn host_files_mut(&mut self) -> impl Iterator<Item = &mut HostFile> {
        self.slots.iter_mut().flatten().filter_map(|slot| if let File::Host(file) = &mut slot.file { Some(file) } else { None })
    }
}

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteTo {
    /// A byte offset.
    Offset(u64),
    /// The end of the file, whatever it is at that moment (O_APPEND).
    End,
}

/// The segments without their first `skip` bytes.
fn rest(segments: &[Segment], skip: u64) -> Vec<Segment> {
    let mut skip = skip;
    let rest = segments.iter().filter_map(|segment| {
        let cut = skip.min(segment.length);
        skip -= cut;
        (segment.length > cut).then(|| Segment { address: segment.address.wrapping_add(cut), length: segment.length - cut })
    });
    rest.collect()
}

/// The run loop's kick may interrupt a host call before it has done anything: that is not the guest's EINTR.
pub fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            answer => return answer,
        }
    }
}

/// The attributes of whatever a descriptor names.
///
/// # Errors
///
/// As `fstat(2)`.
pub fn attributes_of(descriptor: &OwnedFd) -> Result<Attributes, Errno> {
    Ok(Attributes::from(&rustix::fs::fstat(descriptor)?))
}

/// When the file that a descriptor names was made, where the file system knows.
#[must_use]
pub fn birth_of(descriptor: &OwnedFd) -> Option<StatxTime> {
    let mask = rustix::fs::StatxFlags::BTIME;
    let status = rustix::fs::statx(descriptor, "", rustix::fs::AtFlags::EMPTY_PATH, mask).ok()?;
    let known = status.stx_mask & linux_raw_sys::general::STATX_BTIME != 0;
    known.then(|| StatxTime::new(status.stx_btime.tv_sec, status.stx_btime.tv_nsec))
}
