//! `execve`: the process goes on with another program.
//!
//! The new program is loaded twice: first into an address space of its own, which costs a few host calls and shows every
//! error while the old program can still be told, then for good.

use std::sync::Arc;

use rustix::io::Errno;

use super::Sandbox;
use super::boot::open_program;
use crate::cpu::CpuState;
use crate::linux::signal::ThreadSignals;
use crate::linux::thread::{Thread, Threads, Tid};
use crate::linux::{Execute, dispatch};
use crate::loader::{Command, Loaded, load};
use crate::memory::AddressSpace;

impl Sandbox {
    /// Replace the program, or give the call its errno.
    pub(super) fn execute(&mut self, tid: Tid, execute: Execute) {
        let command = Command {
            program: execute.path,
            arguments: execute.arguments,
            environment: execute.environment,
            working_directory: self.kernel.process.cwd.path.clone(),
            volumes: self.kernel.grants.volumes().to_vec(),
        };
        let tried = AddressSpace::new(self.space.size(), self.space.commit_limit())
            .map_err(|_| Errno::NOMEM)
            .and_then(|mut scratch| {
                scratch.set_aside(self.space.size() - self.space.aside())?;
                Ok(scratch)
            })
            .and_then(|mut scratch| self.load_into(&command, &mut scratch).map(drop));
        if let Err(errno) = tried {
            self.kernel.threads.get_mut(tid).cpu.registers.rax = dispatch::error_value(errno);
            return;
        }
        if self.replace(&command).is_err() {
            // The old program is gone and the new one would not load although it had: as on Linux, nothing is left to return to.
            self.kernel.process.exit_status = Some(128 + 9);
        }
    }

    fn load_into(&self, command: &Command, space: &mut AddressSpace) -> Result<Loaded, Errno> {
        load(command, &|path: &[u8]| open_program(&self.kernel, path), space).map_err(|error| error.errno())
    }

    fn replace(&mut self, command: &Command) -> Result<(), Errno> {
        self.space.clear()?;
        // Taken out for the duration of the load, which reads the kernel and writes the space.
        let kernel = &self.kernel;
        let loaded = load(command, &|path: &[u8]| open_program(kernel, path), &mut self.space).map_err(|error| error.errno())?;
        let pid = self.kernel.process.pid;
        let old = self.kernel.threads.find(pid).map(|thread| (thread.signals.blocked, thread.signals.pending.clone(), thread.cpu_time_ns));
        let (blocked, pending, cpu_time_ns) = old.unwrap_or_default();
        let signals = ThreadSignals { blocked, pending, ..ThreadSignals::default() };
        let cpu = CpuState { registers: loaded.registers, ..CpuState::default() };
        self.kernel.threads = Threads::new(Thread { tid: pid, cpu, signals, name: loaded.name, cpu_time_ns, ..Thread::default() });
        self.kernel.futexes = Default::default();
        self.kernel.process.signals.reset_for_exec();
        self.kernel.process.identity = Arc::new(loaded.identity);
        let closing: Vec<u32> =
            self.kernel.process.fds.iter().filter(|(_, entry)| entry.close_on_exec).map(|(fd, _)| fd.number()).collect();
        for fd in closing {
            let _ = self.kernel.close_fd(fd.cast_signed());
        }
        self.on_vcpu = pid;
        self.random.0 = loaded.random_address;
        self.vm.set_extended(&self.initial_extended)?;
        self.update_clock_page();
        Ok(())
    }
}
