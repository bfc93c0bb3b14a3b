//! What the in-guest fast path has to know of epoll sets, and what it does to them.

use super::epoll::{EpollSet, Looked, Ready};
use super::{Errno, File, FileId, Files, PollEvents, Readiness, View};

/// A member of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberView {
    /// The number under which it was added.
    pub fd: i32,
    /// What it watches.
    pub file: FileId,
    /// As `epoll_ctl` was told, without bits that mean nothing.
    pub events: u32,
    /// As `epoll_ctl` was told.
    pub data: u64,
    /// No report has disarmed it.
    pub armed: bool,
    /// What its file was at its last report.
    pub seen: Option<Readiness>,
}

impl Files {
    /// The members of a set, in the order in which they report.
    pub fn epoll_members(&self, set: FileId) -> impl Iterator<Item = MemberView> + '_ {
        let set = match self.get(set).map(|slot| &slot.file) {
            Ok(File::Epoll(set)) => Some(set),
            _ => None,
        };
        set.into_iter().flat_map(EpollSet::views)
    }

    /// Whether another set has this one as a member.
    #[must_use]
    pub fn is_nested(&self, set: FileId) -> bool {
        self.iter().any(|(_, slot)| matches!(&slot.file, File::Epoll(other) if other.watches(set)))
    }

    /// Whether no member but those that `known` answers true for is ready, or can be before the guest has exited: what a host
    /// descriptor shows changes at any time. (A timer that expires makes the guest exit.)
    #[must_use]
    pub fn others_are_quiet(&self, set: FileId, known: impl Fn(FileId) -> bool, view: &View) -> bool {
        let Ok(File::Epoll(set)) = self.get(set).map(|slot| &slot.file) else { return false };
        let changes = |file| matches!(self.get(file).map(|slot| &slot.file), Ok(File::Socket(_) | File::Console(_) | File::Epoll(_)));
        let mut looked = Looked::new();
        set.quiet(
            |file| known(file) || !changes(file),
            |file| if known(file) { Readiness::default() } else { self.look(file, view, &mut looked) },
        )
    }

    /// As [`Files::epoll_look`], of the members alone whose files `known` answers true for.
    ///
    /// # Errors
    ///
    /// EBADF, EINVAL.
    pub fn epoll_look_at(&self, set: FileId, most: usize, known: impl Fn(FileId) -> bool, view: &View) -> Result<Vec<Ready>, Errno> {
        let File::Epoll(set) = &self.get(set)?.file else { return Err(Errno::INVAL) };
        let mut looked = Looked::new();
        let readiness = |file| if known(file) { self.look(file, view, &mut looked) } else { Readiness::of(PollEvents::empty()) };
        Ok(set.ready(most, readiness))
    }
}
