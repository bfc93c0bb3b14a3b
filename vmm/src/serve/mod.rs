//! Serving: connections in, each request to a request VM, responses out.
//!
//! The threads of a worker wait on one shared epoll set, everything in it EPOLLONESHOT (leader/follower): the thread that is
//! woken reads the request, runs its own VM, writes the response, and puts the connection back into the set for the next request. No
//! hand-over between threads, and no queue in user space unless all VMs are busy for a while: then the watch, a thread without a VM,
//! reads requests in the threads' place and lets them wait in line. A client that is slow to send its request, or to take its
//! response, waits in the set and holds no VM.

mod buffer;
mod busy_poll;
mod connection;
mod control;
mod exchange;
pub mod http1;
mod proxy_protocol;
mod shared;
mod storage;
mod table;
#[cfg(test)]
mod tests;
mod thread;
mod upload;
mod worker;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use exchange::run_in_memory;
pub use worker::{ServeError, serve};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
