//! What a program may touch.

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct Grants;
