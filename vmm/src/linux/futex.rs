//! Futexes.

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct FutexTable;
