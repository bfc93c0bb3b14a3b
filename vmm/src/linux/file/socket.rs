//! Sockets on host sockets, checked against grants.

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct Socket;
