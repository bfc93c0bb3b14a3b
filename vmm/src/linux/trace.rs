//! strace-like lines for system calls, formatted from the table.
