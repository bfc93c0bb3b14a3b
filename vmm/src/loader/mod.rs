//! From a program file to a process that can start: ELF, its interpreter, `#!` scripts.
