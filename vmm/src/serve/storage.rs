//! The storage programs of a worker: one that all request VMs call, or one for each of them.

use rustix::io::Errno;

use super::worker::ServeError;
use crate::config::StorageConfig;
use crate::sandbox::{RemoteLink, Suspended};
use crate::storage::{Message, Storage, StorageStats};

/// The storage programs.
#[derive(Debug)]
pub(super) struct StoragePrograms {
    /// One, or as many as there are request VMs.
    programs: Vec<Storage>,
    boot_time_ns: u64,
}

const fn system(errno: Errno) -> ServeError {
    ServeError::System("set up the storage program", errno)
}

impl StoragePrograms {
    /// For `threads` request VMs; goes on with a suspended program, if there is one to go on with.
    pub(super) fn new(config: &StorageConfig, threads: usize, suspended: Option<Suspended>) -> Result<Self, ServeError> {
        let (count, lanes) = if config.one_to_one { (threads, 1) } else { (1, threads) };
        let programs: Vec<Storage> = (0..count).map(|_| Storage::new(config, lanes)).collect::<Result<_, _>>().map_err(system)?;
        let this = Self { programs, boot_time_ns: config.boot_time_ns };
        if !config.one_to_one {
            match suspended {
                Some(suspended) => this.programs[0].resume(suspended)?,
                None => this.boot(0),
            }
            this.programs[0].look_after(true).map_err(system)?;
        }
        Ok(this)
    }

    /// Where each request VM has its own: start the one of this VM.
    pub(super) fn start(&self, number: usize) -> Result<(), ServeError> {
        if self.programs.len() == 1 && number > 0 || self.programs[number].is_looked_after() {
            return Ok(());
        }
        self.boot(number);
        self.programs[number].look_after(true).map_err(system)
    }

    /// Start one; where that fails, the thread that looks after it says so when it has tried again.
    fn boot(&self, number: usize) {
        let _ = self.programs[number].boot(self.boot_time_ns);
    }

    /// What connects a request VM with its storage program.
    pub(super) fn link(&self, number: usize) -> RemoteLink {
        let (program, lane) = if self.programs.len() == 1 { (0, number) } else { (number, 0) };
        let program = &self.programs[program];
        RemoteLink { remote: program.remote(), lane, area: program.lanes()[lane].clone() }
    }

    pub(super) fn take_messages(&self) -> Vec<Message> {
        self.programs.iter().flat_map(Storage::take_messages).collect()
    }

    pub(super) fn stats(&self) -> StorageStats {
        let mut sum = StorageStats::default();
        for program in &self.programs {
            sum.add(&program.stats());
        }
        sum
    }
}
