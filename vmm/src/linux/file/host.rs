//! Regular files and directories of the host; offsets are kept here.

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct HostFile;
