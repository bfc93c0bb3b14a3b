//! Which thread runs next, and what the kernel as a whole waits for.
