//! The process: what its threads share besides memory.

use std::sync::Arc;

use linux_raw_sys::general as sys;

use super::MonotonicNs;
use super::fd_table::FdTable;
use super::path::Directory;
use super::signal::ProcessSignals;
use super::thread::Tid;
use crate::clone_in_place::clone_in_place;
use crate::limits::{FDS_MAX, SIGNALS_MAX, STACK_BYTES, THREADS_MAX};

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Process id, also the main thread's id. Never 0 or 1, so that no program takes itself for init.
    pub pid: Tid,
    /// Descriptors.
    pub fds: FdTable,
    /// Actions, pending signals of the process, and its timers.
    pub signals: ProcessSignals,
    /// Working directory.
    pub cwd: Directory,
    /// File mode creation mask.
    pub umask: u32,
    /// What it is.
    pub identity: Arc<Identity>,
    /// Soft and hard resource limits by RLIMIT_* number (`getrlimit(2)`).
    pub rlimits: [(u64, u64); 16],
    /// PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_TIMERSLACK, PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER and such small state.
    pub prctl: PrctlState,
    /// What to do when the process has ended.
    pub exit_status: Option<i32>,
    /// Process group; a program started from a shell leads its own.
    pub pgid: Tid,
    /// `setsid(2)` has been called; until then the session is that of the parent.
    pub leads_session: bool,
    /// `setpriority(2)` nice value, -20 to 19.
    pub nice: i32,
    /// `ioprio_set(2)`; 0 for none.
    pub io_priority: u32,
    /// CLOCK_MONOTONIC when it began.
    pub started: MonotonicNs,
    /// Which refused system calls the log has been told about, a bit a number.
    pub noted_calls: [u64; 8],
}

clone_in_place!(Process {
    pid,
    fds,
    signals,
    cwd,
    umask,
    identity,
    rlimits,
    prctl,
    exit_status,
    pgid,
    leads_session,
    nice,
    io_priority,
    started,
    noted_calls,
});

impl Process {
    /// A process that has just been loaded.
    #[must_use]
    pub fn new(pid: Tid, cwd: Directory, umask: u32, identity: Arc<Identity>, started: MonotonicNs) -> Self {
        Self {
            pid,
            fds: FdTable::default(),
            signals: ProcessSignals::default(),
            cwd,
            umask,
            identity,
            rlimits: default_rlimits(),
            prctl: PrctlState::default(),
            exit_status: None,
            pgid: pid,
            leads_session: false,
            nice: 0,
            io_priority: 0,
            started,
            noted_calls: [0; 8],
        }
    }

    /// Session id.
    #[must_use]
    pub fn sid(&self) -> Tid {
        if self.leads_session { self.pid } else { self.identity.ppid }
    }
}

/// The limits that a program starts with, soft and hard, by RLIMIT_* number: Linux's defaults, with our own bounds where they
/// are tighter.
#[must_use]
pub fn default_rlimits() -> [(u64, u64); 16] {
    let infinity = u64::MAX;
    let mut limits = [(infinity, infinity); 16];
    let mut set = |resource: u32, soft: u64, hard: u64| {
        if let Some(limit) = limits.get_mut(resource as usize) {
            *limit = (soft, hard);
        }
    };
    set(sys::RLIMIT_STACK, STACK_BYTES, infinity);
    set(sys::RLIMIT_CORE, 0, infinity);
    set(sys::RLIMIT_NPROC, THREADS_MAX as u64, THREADS_MAX as u64);
    set(sys::RLIMIT_NOFILE, 1024, FDS_MAX as u64);
    set(sys::RLIMIT_MEMLOCK, 8 << 20, 8 << 20);
    set(sys::RLIMIT_SIGPENDING, SIGNALS_MAX as u64, SIGNALS_MAX as u64);
    set(sys::RLIMIT_MSGQUEUE, 819_200, 819_200);
    set(sys::RLIMIT_NICE, 0, 0);
    set(sys::RLIMIT_RTPRIO, 0, 0);
    limits
}

/// Small per-process settings of `prctl(2)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrctlState {
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// PR_SET_DUMPABLE.
    pub not_dumpable: bool,
    /// PR_SET_PDEATHSIG.
    pub parent_death_signal: i32,
    /// PR_SET_CHILD_SUBREAPER.
    pub child_subreaper: bool,
    /// PR_SET_TIMERSLACK, nanoseconds; 0 for the default of 50,000.
    pub timer_slack: u64,
    /// PR_SET_THP_DISABLE.
    pub thp_disable: bool,
    /// PR_SET_KEEPCAPS.
    pub keep_capabilities: bool,
    /// `personality(2)`.
    pub personality: u32,
    /// Registrations of `membarrier(2)`, by its command bits.
    pub membarrier: u32,
}

/// What is fixed once a program is loaded: the source of /proc/self and of `getuid` and friends.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// Guest path of the executable (`/proc/self/exe`).
    pub executable: Vec<u8>,
    /// `argv`, for /proc/self/cmdline.
    pub arguments: Vec<Vec<u8>>,
    /// The environment, for /proc/self/environ.
    pub environment: Vec<Vec<u8>>,
    /// Auxiliary vector as pairs, for /proc/self/auxv.
    pub auxv: Vec<(u64, u64)>,
    /// User and group id: those of the user who runs kvmserver.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Parent process id that `getppid` shows.
    pub ppid: Tid,
}
