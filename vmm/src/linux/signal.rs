//! Signals.

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct ThreadSignals;

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct ProcessSignals;
