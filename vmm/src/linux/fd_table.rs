//! Descriptors: small numbers that name open file descriptions.

use super::Errno;
use super::file::FileId;
use crate::clone_in_place::clone_in_place;
use crate::limits::FDS_MAX;

/// A descriptor number that is in range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fd(u16);

impl Fd {
    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0 as u32
    }
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The open file description.
    pub file: FileId,
    /// FD_CLOEXEC.
    pub close_on_exec: bool,
}

/// The table. It does not count references: [`super::file::Files`] does, and callers keep the two in step through
/// [`super::Kernel`]'s `install_fd` and `close_fd`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FdTable {
    entries: Vec<Option<Entry>>,
}

clone_in_place!(FdTable {} lists { entries });

impl FdTable {
    /// The open file description behind a number that a guest named.
    ///
    /// # Errors
    ///
    /// EBADF.
    pub fn get(&self, fd: i32) -> Result<FileId, Errno> {
        self.entry(fd).map(|entry| entry.file)
    }

    /// The entry of a number that a guest named.
    ///
    /// # Errors
    ///
    /// EBADF.
    pub fn entry(&self, fd: i32) -> Result<Entry, Errno> {
        usize::try_from(fd).ok().and_then(|fd| self.entries.get(fd).copied().flatten()).ok_or(Errno::BADF)
    }

    /// The entry, to change its flags.
    ///
    /// # Errors
    ///
    /// EBADF.
    pub fn entry_mut(&mut self, fd: i32) -> Result<&mut Entry, Errno> {
        usize::try_from(fd).ok().and_then(|fd| self.entries.get_mut(fd)).and_then(Option::as_mut).ok_or(Errno::BADF)
    }

    /// The lowest free number at or above `lowest`, below `limit` (the soft RLIMIT_NOFILE).
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn lowest_free(&self, lowest: usize, limit: usize) -> Result<Fd, Errno> {
        let limit = limit.min(FDS_MAX);
        let free = self
            .entries
            .iter()
            .enumerate()
            .skip(lowest)
            .find(|(_, entry)| entry.is_none())
            .map_or_else(|| self.entries.len().max(lowest), |(index, _)| index);
        if free >= limit { Err(Errno::MFILE) } else { u16::try_from(free).map(Fd).map_err(|_| Errno::MFILE) }
    }

    /// A number that a guest chose (`dup2`).
    ///
    /// # Errors
    ///
    /// EBADF where it is out of range.
    pub fn chosen(fd: i32, limit: usize) -> Result<Fd, Errno> {
        u16::try_from(fd).ok().filter(|&fd| usize::from(fd) < limit.min(FDS_MAX)).map(Fd).ok_or(Errno::BADF)
    }

    /// Set an entry; returns the one that was there, whose reference the caller drops.
    pub fn set(&mut self, fd: Fd, entry: Option<Entry>) -> Option<Entry> {
        let index = usize::from(fd.0);
        if self.entries.len() <= index {
            self.entries.resize(index + 1, None);
        }
        let previous = std::mem::replace(&mut self.entries[index], entry);
        while self.entries.last() == Some(&None) {
            self.entries.pop();
        }
        previous
    }

    /// All open descriptors in order.
    pub fn iter(&self) -> impl Iterator<Item = (Fd, Entry)> + '_ {
        self.entries.iter().enumerate().filter_map(|(index, entry)| Some((Fd(u16::try_from(index).ok()?), (*entry)?)))
    }
}
