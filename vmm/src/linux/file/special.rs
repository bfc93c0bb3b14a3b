//! Generated files of /proc, /dev and /sys.

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct SpecialFile;
