//! Counters: of one run, and of a worker over all its runs.

use serde::Serialize;

use crate::storage::StorageStats;

/// What one run has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RunCounters {
    /// VM exits.
    pub exits: u64,
    /// System calls that the host answered.
    pub system_calls: u64,
    /// System calls that were answered inside the VM.
    pub calls_in_guest: u64,
    /// Processor exceptions and memory faults of the guest that became a signal for it. Pages that the host brings in without an exit, and
    /// page-table entries brought up to date, are not among them.
    pub faults: u64,
    /// Page faults that the host's kernel dealt with for the VM's thread during the run: pages of the guest that were brought in, mapped
    /// again after a reset, or copied on write (`ru_minflt` of getrusage(2)).
    pub page_faults: u64,
    /// Switches between guest threads.
    pub switches: u64,
    /// Pages found written at the reset.
    pub dirty_pages: u64,
    /// Pages copied back at the reset.
    pub copied_pages: u64,
    /// Pages dropped at the reset.
    pub dropped_pages: u64,
    /// Ranges mapped anew at the reset.
    pub remapped_ranges: u64,
    /// Nanoseconds the reset took.
    pub reset_ns: u64,
    /// Nanoseconds of the run, without the reset.
    pub run_ns: u64,
}

impl RunCounters {
    /// Add another run's.
    pub const fn add(&mut self, other: &Self) {
        self.exits += other.exits;
        self.system_calls += other.system_calls;
        self.calls_in_guest += other.calls_in_guest;
        self.faults += other.faults;
        self.page_faults += other.page_faults;
        self.switches += other.switches;
        self.dirty_pages += other.dirty_pages;
        self.copied_pages += other.copied_pages;
        self.dropped_pages += other.dropped_pages;
        self.remapped_ranges += other.remapped_ranges;
        self.reset_ns += other.reset_ns;
        self.run_ns += other.run_ns;
    }
}

/// What a worker has done: the JSON of its `stats` event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ServeStats {
    /// Connections open now.
    pub open_connections: u64,
    /// VMs that have a request now, or are reset after one.
    pub busy_vms: u64,
    /// Bytes of requests and responses that wait for their clients now.
    pub held_bytes: u64,
    /// Requests that wait for a VM now, known by name because all were busy for a while.
    pub waiting_requests: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Requests given to a VM.
    pub requests: u64,
    /// Requests answered in full.
    pub responses: u64,
    /// Requests refused before they reached a VM (400, 408, 413, 431, 501, 505).
    pub refused: u64,
    /// Runs that ended in a crash, an exit, a limit: by `RunEnd` name.
    pub failures: std::collections::BTreeMap<String, u64>,
    /// Resets.
    pub resets: u64,
    /// Events that a thread found without going to sleep before (`--busy-poll`).
    pub awake_waits: u64,
    /// VMs thrown away because a reset or its verification failed.
    pub discarded: u64,
    /// Panics of kvmserver itself: each has cost a VM, or a connection.
    pub internal_errors: u64,
    /// Sums over all runs.
    pub totals: RunCounters,
    /// What the storage program has done, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageStats>,
}

impl ServeStats {
    /// Add another VM's.
    pub fn add(&mut self, other: &Self) {
        self.open_connections += other.open_connections;
        self.held_bytes += other.held_bytes;
        self.busy_vms += other.busy_vms;
        self.waiting_requests += other.waiting_requests;
        self.connections += other.connections;
        self.requests += other.requests;
        self.responses += other.responses;
        self.refused += other.refused;
        self.resets += other.resets;
        self.awake_waits += other.awake_waits;
        self.discarded += other.discarded;
        self.internal_errors += other.internal_errors;
        for (end, count) in &other.failures {
            *self.failures.entry(end.clone()).or_default() += count;
        }
        self.totals.add(&other.totals);
        if let Some(storage) = &other.storage {
            self.storage.get_or_insert_default().add(storage);
        }
    }
}

/// How many page faults the host's kernel has dealt with for this thread so far, without reading from a disk.
pub(crate) fn page_faults_of_thread() -> u64 {
    // It fails for no thread that asks for itself (getrusage(2)).
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD);
    usage.map_or(0, |usage| usage.minor_page_faults().cast_unsigned())
}
