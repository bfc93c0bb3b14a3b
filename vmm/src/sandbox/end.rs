//! How a run ends, in words and as JSON.

use serde::Serialize;

/// A closed list; each has one HTTP status, one log line and one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum RunEnd {
    /// The program waits for clients with a listener open.
    Ready {
        /// `epoll`, `poll`, `select` or `accept`.
        wait: &'static str,
        /// What it listens on.
        listeners: Vec<ListenerReport>,
        /// Nanoseconds since the start of the boot.
        init_ns: u64,
    },
    /// The program closed the stream, or completed its answer and waits again.
    Responded,
    /// The program ended by itself.
    Exited {
        /// Its exit status, 0 to 255.
        status: i32,
    },
    /// A signal ended the program.
    Killed {
        /// Signal number.
        signal: i32,
        /// Where and doing what.
        detail: String,
    },
    /// The time was up.
    TimedOut {
        /// What it was doing.
        detail: String,
    },
    /// It wrote to more memory than it may.
    OutOfMemory {
        /// How much.
        detail: String,
    },
    /// All its threads sleep and nothing can wake them.
    Deadlocked {
        /// What they wait in.
        detail: String,
    },
    /// The program closed the stream without a byte of an answer.
    NoAnswer,
    /// The client went away before it was answered.
    ClientGone,
    /// The platform failed; the VM has to be thrown away.
    Broken {
        /// What failed.
        detail: String,
    },
}

/// An address that the program listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListenerReport {
    /// `inet`, `inet6` or `unix`.
    pub family: &'static str,
    /// The address, or the path.
    pub address: String,
    /// The port; 0 for unix.
    pub port: u16,
}

impl RunEnd {
    /// Its name in statistics and JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ready { .. } => "ready",
            Self::Responded => "responded",
            Self::Exited { .. } => "exited",
            Self::Killed { .. } => "killed",
            Self::TimedOut { .. } => "timed_out",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::Deadlocked { .. } => "deadlocked",
            Self::NoAnswer => "no_answer",
            Self::ClientGone => "client_gone",
            Self::Broken { .. } => "broken",
        }
    }

    /// The status that a client gets if nothing was sent yet.
    #[must_use]
    pub const fn http_status(&self) -> u16 {
        match self {
            Self::TimedOut { .. } => 504,
            _ => 502,
        }
    }

    /// One sentence for the log.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::Ready { .. } => "the program is ready".into(),
            Self::Responded => "the program has answered".into(),
            Self::Exited { status } => format!("the program exited with status {status} instead of answering"),
            Self::Killed { signal, detail } => {
                format!("the program was killed by signal {signal} ({}): {detail}", signal_name(*signal))
            }
            Self::TimedOut { detail } => format!("the program took too long: {detail}"),
            Self::OutOfMemory { detail } => format!("the program used too much memory: {detail}"),
            Self::Deadlocked { detail } => format!("the program waits for nothing that can happen: {detail}"),
            Self::NoAnswer => "the program closed the connection without an answer".into(),
            Self::ClientGone => "the client went away before it was answered".into(),
            Self::Broken { detail } => format!("the virtual machine failed: {detail}"),
        }
    }
}

/// The name of a signal, for people.
const fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        26 => "SIGVTALRM",
        27 => "SIGPROF",
        31 => "SIGSYS",
        _ => "a signal",
    }
}
