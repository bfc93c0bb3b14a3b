//! The guest's standard input, output and error.

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct Console;
