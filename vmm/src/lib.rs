//! The data plane of kvmserver: a Linux program in a KVM virtual machine, frozen, forked, and reset after every request.
//!
//! Reading order:
//!
//! 1. [`memory`]: guest addresses, the one door to guest bytes, the mirrored address space, the set of dirty pages.
//! 2. [`cpu`]: what a processor's state is.
//! 3. [`fast_path`]: where the code is that answers calls inside a guest, and the memory through which it is told.
//! 4. [`platform`]: that which runs guest code until an exit (KVM).
//! 5. [`linux`]: our Linux: threads, signals, files, and the table of system calls. It never sees a platform.
//! 6. [`loader`]: from a program file to a process that can start.
//! 7. [`sandbox`]: the three together, and the life of a snapshot: boot, freeze, fork, run, reset, verify.
//! 8. [`storage`]: the program beside the request VMs that keeps state, and the calls to it.
//! 9. [`serve`]: connections in, requests to sandboxes, responses out.

mod clone_in_place;
pub mod config;
pub mod cpu;
pub mod fast_path;
#[cfg(test)]
mod fuzzing;
#[cfg(feature = "python")]
mod guest_files;
pub mod limits;
pub mod linux;
pub mod loader;
pub mod memory;
mod panics;
pub mod platform;
#[cfg(feature = "python")]
mod python;
pub mod sandbox;
pub mod serve;
pub mod stats;
pub mod storage;
pub mod withheld;
