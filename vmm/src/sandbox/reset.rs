//! Reset: undo everything a run has done.
//!
//! | what | how | cost |
//! | --- | --- | --- |
//! | mappings, program break | the ranges that changed are mapped anew from the snapshot | host calls per changed range |
//! | memory | hot pages copied back, others dropped | 0.1 us a hot page |
//! | memory shared with the storage program | what was touched is zeroed | one host call where nothing was |
//! | threads, registers, signals, timers, fds, epoll sets, futexes, names, limits, cwd, umask | the kernel's data is assigned from the snapshot | a few us |
//! | extended state (x87, SSE, AVX, AVX-512) | loaded inside the guest when it runs next | 0.1 us |
//! | FS, GS, data segments | with the general registers at the next run | - |
//! | clock | monotonic time resumes at the snapshot's instant | - |

use rustix::io::Errno;

use super::fast_path::Told;
use super::hot_pages::Plan;
use super::verify::Skip;
use super::{RunEnd, Sandbox};
use crate::limits::PAGE;
use crate::linux::clock::host_monotonic;
use crate::memory::Keep;

/// Slots that runs may add: 4 GiB of addresses.
const SPARE_SLOTS: u64 = 128;

impl Sandbox {
    /// Return to the snapshot. `limit` is the number of written bytes above which memory is given back instead of copied.
    ///
    /// # Errors
    ///
    /// The sandbox is poisoned and has to be thrown away.
    pub fn reset(&mut self, limit: u64) -> Result<(), Errno> {
        self.reset_except(limit, Skip::Nothing)
    }

    /// [`Sandbox::reset`] that forgets one thing, to show that verification finds it.
    pub(super) fn reset_except(&mut self, limit: u64, skip: Skip) -> Result<(), Errno> {
        let Some(frozen) = self.frozen.clone() else { return Ok(()) };
        let before = host_monotonic();
        self.vm.harvest(&self.space)?;
        self.counters.dirty_pages = self.space.memory().dirty().pages().len() as u64;
        let keep = self.counters.dirty_pages.saturating_mul(PAGE) <= limit;
        let plan = self.hot.observe(self.space.memory().dirty().pages(), keep);
        if plan == Plan::Relearn {
            self.vm.rearm(&self.space)?;
        }
        self.vm.rearm_if_filling(&self.space)?;
        if skip != Skip::Mapping {
            self.counters.remapped_ranges = self.space.restore_mappings()? as u64;
        }
        if skip == Skip::Page {
            let forgotten = self.last_changed_page()?;
            self.space.memory().dirty_mut().retain(|page| Some(page) != forgotten);
        }
        if let Some(side) = &self.caller {
            self.space.clear_shared(side.address, &side.area)?;
        }
        let hot = &self.hot;
        let is_hot = |page| hot.is_hot(page);
        let (copied, dropped) =
            self.space.restore_pages(if keep && plan == Plan::CopyHot { Keep::These(&is_hot) } else { Keep::Nothing })?;
        (self.counters.copied_pages, self.counters.dropped_pages) = (copied as u64, dropped as u64);
        let fds = self.kernel.process.fds.clone();
        self.kernel.clone_from(&frozen.kernel);
        if skip == Skip::Descriptor {
            self.kernel.process.fds = fds;
        }
        if skip != Skip::Register {
            self.vm.restore_extended();
        }
        if skip != Skip::Segment {
            self.vm.restore_segments();
        }
        self.on_vcpu = frozen.on_vcpu;
        // Another program may have taken the process over.
        self.random.0 = frozen.random_address;
        self.retried_fault = None;
        self.remote_call = None;
        self.told = Told::Stale;
        self.recorder.clear();
        let now = host_monotonic();
        self.postpone_tick(now);
        self.counters.reset_ns = now.saturating_sub(before);
        Ok(())
    }

    /// Whether a run has made KVM hold so much more than the snapshot needs, for good, that the VM should rather be made anew.
    #[must_use]
    pub fn is_bloated(&self) -> bool {
        self.frozen.as_ref().is_some_and(|frozen| self.vm.slots() as u64 > frozen.slots + SPARE_SLOTS)
    }

    /// After [`Sandbox::reset`] (and its verification): ready for [`Sandbox::resume_clock`] and the next run.
    ///
    /// # Errors
    ///
    /// The sandbox is poisoned and has to be thrown away.
    pub fn start_over(&mut self) -> Result<(), RunEnd> {
        self.begin().map_err(|errno| self.broken("start a run", errno))
    }
}
