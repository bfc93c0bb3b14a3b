//! The client connection as the guest sees it, and its listener.

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct Stream;

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct Listener;
