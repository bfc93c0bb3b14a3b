//! epoll sets.

use super::FileId;

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct EpollSet;

impl EpollSet {
    /// Placeholder until its owner merges.
    pub fn forget(&mut self, _file: FileId) {}
}
