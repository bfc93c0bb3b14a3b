//! The in-guest fast path around a run of guest code: what it is told before, and what it has answered, which counts before anything
//! else does.

use linux_raw_sys::general::SIGSEGV;
use rustix::io::Errno;

use super::{RunEnd, Sandbox};
use crate::linux::file::stream_host::StreamHandle;
use crate::linux::thread::Tid;
use crate::linux::{Kernel, fast_path};

/// What the fast path of a VM knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Told {
    /// Perhaps what it was told in another run: it has to be told anew, or that it knows nothing.
    #[default]
    Stale,
    /// That it knows nothing.
    Nothing,
    /// What this thread can find while it serves this client.
    All(Tid, StreamHandle),
}

impl Sandbox {
    /// Before the guest runs: tell the fast path what it can answer to this thread.
    pub(super) fn tell_fast_path(&mut self, tid: Tid, client: Option<StreamHandle>) -> Result<(), Errno> {
        let Some(fast) = self.space.fast_path() else { return Ok(()) };
        let wanted = client.map_or(Told::Nothing, |client| Told::All(tid, client));
        if self.told == wanted {
            return Ok(());
        }
        let memory = self.space.memory();
        let told = match client {
            Some(client) => self.kernel.tell_fast_path(memory, fast, tid, client)?,
            None => false,
        };
        if !told {
            fast_path::tell::nothing(memory, fast)?;
        }
        self.told = if told { wanted } else { Told::Nothing };
        Ok(())
    }

    /// After the guest has run: do what the fast path has answered.
    ///
    /// # Errors
    ///
    /// The end of the run, where the guest has put something into the log that cannot have been.
    pub(super) fn replay_fast_path(&mut self) -> Result<(), RunEnd> {
        let (Some(fast), Told::All(tid, client)) = (self.space.fast_path(), self.told) else { return Ok(()) };
        if fast.logged(self.space.memory()) == 0 {
            return Ok(());
        }
        self.told = Told::Stale;
        let Ok(calls) = self.kernel.replay_fast_path(self.space.memory(), fast, tid, client) else {
            self.kernel.note("the program wrote to memory that is not its own (the fast path's): its run is over".into());
            return Err(self.killed(tid, SIGSEGV.cast_signed()));
        };
        self.counters.calls_in_guest += calls.len() as u64;
        for call in calls {
            let result = Kernel::result_of(call.result.cast_unsigned());
            self.record(tid, (call.number as usize, call.args), Some(result), false);
        }
        Ok(())
    }

    /// A system call was answered by the host: what the fast path was told may not be so any more.
    pub(super) fn doubt_fast_path(&mut self, number: usize) {
        if !fast_path::is_neutral(number) {
            self.told = Told::Stale;
        }
    }
}
