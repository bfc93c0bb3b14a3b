//! Pipe, socketpair, eventfd, timerfd, signalfd.

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct PipeEnd;

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct PairEnd;

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct EventFd;

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct TimerFd;

/// Placeholder until its owner merges.
#[derive(Debug, Clone, Default)]
pub struct SignalFd;
