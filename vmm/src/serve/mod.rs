//! Serving: connections in, each request to a request VM, responses out.
//!
//! The threads of a worker wait on one shared epoll set, everything in it EPOLLONESHOT (leader/follower): the thread that is
//! woken reads the request, runs its own VM, and writes the response. No hand-over between threads, no queue in user space.
//! A client that is slow to send its request, or to take its response, waits in the set and holds no VM.

mod connection;
mod control;
pub mod http1;
mod request;
mod storage;
mod worker;

pub use request::run_in_memory;
pub use worker::{ServeError, serve};
