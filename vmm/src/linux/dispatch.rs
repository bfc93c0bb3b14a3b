//! One system call from number to outcome.
