//! /dev/shm: files in memory that belong to this VM alone. A snapshot has them, each fork has its own copy (shared until it is
//! written), and a reset brings the snapshot's back. They cannot be mapped: memory that is shared between mappings would have
//! to be shared between VMs too.
//!
//! Invariants: `bytes` is the sum of the sizes of all inodes and at most [`SHM_BYTES_MAX`]; an inode lives while it has a name or
//! is open.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Errno;
use crate::limits::{SHM_BYTES_MAX, SHM_FILES_MAX};

/// The number of a file in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeId(u32);

/// A file in memory.
#[derive(Debug, Clone, Default)]
pub struct Inode {
    data: Arc<Vec<u8>>,
    /// Names it has.
    pub links: u32,
    opens: u32,
    /// Permission bits.
    pub mode: u32,
    /// Last write, nanoseconds since the epoch.
    pub modified: u64,
}

impl Inode {
    /// Its content.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

/// All files in memory, by name.
#[derive(Debug, Clone, Default)]
pub struct Shm {
    inodes: Vec<Option<Inode>>,
    names: BTreeMap<Vec<u8>, InodeId>,
    bytes: usize,
}

impl Shm {
    /// The file with this name.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<InodeId> {
        self.names.get(name).copied()
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.keys().map(Vec::as_slice)
    }

    /// A file.
    ///
    /// # Errors
    ///
    /// ENOENT where it has gone.
    pub fn get(&self, id: InodeId) -> Result<&Inode, Errno> {
        self.inodes.get(id.0 as usize).and_then(Option::as_ref).ok_or(Errno::NOENT)
    }

    /// A file, to change its attributes.
    ///
    /// # Errors
    ///
    /// ENOENT where it has gone.
    pub fn get_mut(&mut self, id: InodeId) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(id.0 as usize).and_then(Option::as_mut).ok_or(Errno::NOENT)
    }

    /// A new empty file under a name that is free.
    ///
    /// # Errors
    ///
    /// ENOSPC where there are too many.
    pub fn create(&mut self, name: &[u8], mode: u32, now: u64) -> Result<InodeId, Errno> {
        let index = match self.inodes.iter().position(Option::is_none) {
            Some(index) => index,
            None if self.inodes.len() < SHM_FILES_MAX => {
                self.inodes.push(None);
                self.inodes.len() - 1
            }
            None => return Err(Errno::NOSPC),
        };
        let id = InodeId(u32::try_from(index).map_err(|_| Errno::NOSPC)?);
        if let Some(slot) = self.inodes.get_mut(index) {
            *slot = Some(Inode { links: 1, mode, modified: now, ..Inode::default() });
        }
        self.names.insert(name.to_vec(), id);
        Ok(id)
    }

    /// One more open file description names it.
    pub fn open(&mut self, id: InodeId) {
        if let Ok(inode) = self.get_mut(id) {
            inode.opens = inode.opens.saturating_add(1);
        }
    }

    /// One open file description fewer.
    pub fn close(&mut self, id: InodeId) {
        if let Ok(inode) = self.get_mut(id) {
            inode.opens = inode.opens.saturating_sub(1);
        }
        self.collect(id);
    }

    /// Give a file another name, which is free.
    ///
    /// # Errors
    ///
    /// ENOSPC where there are too many names, ENOENT where the file has gone.
    pub fn link(&mut self, id: InodeId, name: &[u8]) -> Result<(), Errno> {
        if self.names.len() >= SHM_FILES_MAX {
            return Err(Errno::NOSPC);
        }
        let inode = self.get_mut(id)?;
        inode.links = inode.links.saturating_add(1);
        self.names.insert(name.to_vec(), id);
        Ok(())
    }

    /// Take a name away.
    ///
    /// # Errors
    ///
    /// ENOENT.
    pub fn unlink(&mut self, name: &[u8]) -> Result<(), Errno> {
        let id = self.names.remove(name).ok_or(Errno::NOENT)?;
        if let Ok(inode) = self.get_mut(id) {
            inode.links = inode.links.saturating_sub(1);
        }
        self.collect(id);
        Ok(())
    }

    /// Give a name to what another name meant, in place of what it meant itself.
    ///
    /// # Errors
    ///
    /// ENOENT.
    pub fn rename(&mut self, old: &[u8], new: &[u8]) -> Result<(), Errno> {
        let id = self.find(old).ok_or(Errno::NOENT)?;
        if self.find(new) == Some(id) {
            return Ok(());
        }
        let _ = self.unlink(new);
        self.names.remove(old);
        self.names.insert(new.to_vec(), id);
        Ok(())
    }

    fn collect(&mut self, id: InodeId) {
        if let Some(slot) = self.inodes.get_mut(id.0 as usize)
            && slot.as_ref().is_some_and(|inode| inode.links == 0 && inode.opens == 0)
        {
            self.bytes -= slot.take().map_or(0, |inode| inode.data.len());
        }
    }

    /// Change a file's size; what is added is zero.
    ///
    /// # Errors
    ///
    /// ENOSPC, ENOENT.
    pub fn resize(&mut self, id: InodeId, size: u64, now: u64) -> Result<(), Errno> {
        let others = self.bytes - self.get(id)?.data.len();
        let room = SHM_BYTES_MAX - others;
        let size = usize::try_from(size).ok().filter(|&size| size <= room).ok_or(Errno::NOSPC)?;
        self.bytes = others + size;
        let inode = self.get_mut(id)?;
        inode.modified = now;
        Arc::make_mut(&mut inode.data).resize(size, 0);
        Ok(())
    }

    /// Write at an offset; returns how many bytes had room.
    ///
    /// # Errors
    ///
    /// ENOSPC where none had, ENOENT.
    pub fn write(&mut self, id: InodeId, offset: u64, bytes: &[u8], now: u64) -> Result<usize, Errno> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let size = self.get(id)?.data.len();
        let largest = SHM_BYTES_MAX - (self.bytes - size);
        let start = usize::try_from(offset).ok().filter(|&start| start < largest).ok_or(Errno::NOSPC)?;
        let end = start.saturating_add(bytes.len()).min(largest);
        if end > size {
            self.resize(id, end as u64, now)?;
        }
        let inode = self.get_mut(id)?;
        inode.modified = now;
        let place = Arc::make_mut(&mut inode.data).get_mut(start..end).ok_or(Errno::NOSPC)?;
        place.copy_from_slice(&bytes[..end - start]);
        Ok(end - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_lives_while_it_has_a_name_or_is_open() {
        let mut shm = Shm::default();
        let id = shm.create(b"a", 0o600, 1).expect("made");
        shm.open(id);
        assert_eq!(shm.write(id, 2, b"xy", 2), Ok(2));
        assert_eq!(shm.get(id).expect("there").data(), b"\0\0xy");
        shm.link(id, b"b").expect("linked");
        shm.unlink(b"a").expect("unlinked");
        shm.rename(b"b", b"c").expect("renamed");
        shm.unlink(b"c").expect("unlinked");
        assert!(shm.get(id).is_ok());
        shm.close(id);
        assert!(shm.get(id).is_err());
        assert_eq!(shm.bytes, 0);
    }

    #[test]
    fn memory_is_bounded_and_forks_are_apart() {
        let mut shm = Shm::default();
        let id = shm.create(b"a", 0o600, 1).expect("made");
        assert_eq!(shm.resize(id, SHM_BYTES_MAX as u64 + 1, 1), Err(Errno::NOSPC));
        assert_eq!(shm.write(id, SHM_BYTES_MAX as u64 - 1, b"xy", 1), Ok(1));
        assert_eq!(shm.write(id, SHM_BYTES_MAX as u64, b"y", 1), Err(Errno::NOSPC));
        shm.resize(id, 1, 1).expect("smaller");
        let mut fork = shm.clone();
        fork.write(id, 0, b"f", 2).expect("written");
        assert_eq!((shm.get(id).expect("there").data(), fork.get(id).expect("there").data()), (&b"\0"[..], &b"f"[..]));
    }

    #[test]
    fn renaming_replaces() {
        let mut shm = Shm::default();
        let (a, b) = (shm.create(b"a", 0o600, 1).expect("made"), shm.create(b"b", 0o600, 1).expect("made"));
        shm.rename(b"a", b"b").expect("renamed");
        assert_eq!((shm.find(b"a"), shm.find(b"b")), (None, Some(a)));
        assert!(shm.get(b).is_err());
        assert_eq!(shm.rename(b"a", b"b"), Err(Errno::NOENT));
    }
}
