//! Threads: what hangs off one, and the table of them.

use super::signal::ThreadSignals;
use super::{MonotonicNs, Wait};
use crate::clone_in_place::clone_in_place;
use crate::cpu::CpuState;

/// A thread id; the main thread's is the process id.
pub type Tid = i32;

/// A system call that sleeps.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocked {
    /// Its number.
    pub number: usize,
    /// Its arguments.
    pub args: [u64; 6],
    /// What it waits for.
    pub wait: Wait,
    /// What it has transferred so far.
    pub progress: u64,
    /// Set when the wait is over: the handler must run again.
    pub woken: bool,
}

/// What a thread is doing.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum State {
    /// It can run guest code.
    #[default]
    Runnable,
    /// It is inside a system call.
    Blocked(Blocked),
}

/// One thread.
#[derive(Debug, Default)]
pub struct Thread {
    /// Its id.
    pub tid: Tid,
    /// What it is doing.
    pub state: State,
    /// Its processor state; that of the thread on the vCPU is brought up to date at each exit (general registers, FS, GS).
    pub cpu: CpuState,
    /// Its mask, pending signals and alternate stack.
    pub signals: ThreadSignals,
    /// CLONE_CHILD_CLEARTID / `set_tid_address`: the word that is zeroed and woken when the thread ends; 0 for none.
    pub clear_tid: u64,
    /// `set_robust_list`: address of the list head; 0 for none.
    pub robust_list: u64,
    /// The registered restartable-sequence area (`rseq`), its length and signature; 0 for none.
    pub rseq: (u64, u32, u32),
    /// PR_SET_NAME, at most 15 bytes and a zero.
    pub name: [u8; 16],
    /// Nanoseconds of processor time it has used.
    pub cpu_time_ns: u64,
    /// Set by FUTEX_WAKE and relatives for a thread that waits on a futex.
    pub futex_woken: bool,
    /// What the woken futex wait answers: the index for `futex_waitv`, else 0.
    pub futex_answer: u32,
    /// `rt_sigreturn` has put a new area into `cpu.extended`; whoever enters guest code loads it and clears this.
    pub extended_changed: bool,
    /// A thread just made: its extended state is that of this one, which is on the processor at that moment.
    pub inherit_extended_from: Option<Tid>,
}

clone_in_place!(Thread {
    tid,
    state,
    cpu,
    signals,
    clear_tid,
    robust_list,
    rseq,
    name,
    cpu_time_ns,
    futex_woken,
    futex_answer,
    extended_changed,
    inherit_extended_from,
});

/// Numbers of threads wrap around below this, as `kernel.pid_max` does on 64-bit Linux.
const TID_END: Tid = 4 << 20;
/// Where numbers go on after wrapping around; the low ones stay free for the program's main thread and its parent.
const TID_RESTART: Tid = 300;

const fn following(tid: Tid) -> Tid {
    if tid >= TID_END - 1 { TID_RESTART } else { tid + 1 }
}

/// All threads of the VM, and who is next.
#[derive(Debug, Default)]
pub struct Threads {
    /// In order of their ids.
    by_tid: Vec<Thread>,
    next_tid: Tid,
    /// The process id, which is never given to another thread.
    main: Tid,
    /// The thread that last entered guest code; when it changes, restartable sequences of the next one are aborted.
    pub last_entered: Tid,
    /// Processor time of threads that have ended, nanoseconds.
    pub ended_cpu_time_ns: u64,
    /// Exit status of the main thread, where it ended before others.
    pub main_status: Option<i32>,
    /// The thread whose registers are on the vCPU.
    pub current: Tid,
    /// When the current thread's time slice ends, if others can run.
    pub slice_end: Option<MonotonicNs>,
}

clone_in_place!(Threads { next_tid, main, last_entered, ended_cpu_time_ns, main_status, current, slice_end } lists { by_tid });

impl Threads {
    /// A table with the main thread only.
    #[must_use]
    pub fn new(main: Thread) -> Self {
        let tid = main.tid;
        Self { by_tid: vec![main], next_tid: following(tid), main: tid, current: tid, last_entered: tid, ..Self::default() }
    }

    /// Where the thread with this id is, or would be.
    fn index(&self, tid: Tid) -> Result<usize, usize> {
        self.by_tid.binary_search_by_key(&tid, |thread| thread.tid)
    }

    /// The thread with this id.
    ///
    /// # Panics
    ///
    /// Where there is none: ids come from the kernel's own state here; for ids from a guest use [`Threads::find`].
    #[expect(clippy::panic, reason = "a caller's broken invariant, not a guest's doing")]
    pub fn get_mut(&mut self, tid: Tid) -> &mut Thread {
        match self.find(tid) {
            Some(thread) => thread,
            None => panic!("thread {tid} is not in the table"),
        }
    }

    /// The thread with an id that a guest named, if there is one.
    pub fn find(&mut self, tid: Tid) -> Option<&mut Thread> {
        let index = self.index(tid).ok()?;
        self.by_tid.get_mut(index)
    }

    /// The thread with this id, to look at.
    #[must_use]
    pub fn peek(&self, tid: Tid) -> Option<&Thread> {
        self.by_tid.get(self.index(tid).ok()?)
    }

    /// Add a thread under a new id, which is also returned.
    pub fn add(&mut self, mut thread: Thread) -> Tid {
        let mut tid = self.next_tid;
        // Numbers are used again only after a whole round, as in Linux; the table is far smaller than the round.
        let index = loop {
            match self.index(tid) {
                Err(index) if tid != self.main => break index,
                _ => tid = following(tid),
            }
        };
        self.next_tid = following(tid);
        thread.tid = tid;
        self.by_tid.insert(index, thread);
        tid
    }

    /// Remove a thread that has ended.
    pub fn remove(&mut self, tid: Tid) -> Option<Thread> {
        self.index(tid).ok().map(|index| self.by_tid.remove(index))
    }

    /// All of them, in order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Thread> {
        self.by_tid.iter()
    }

    /// All of them, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Thread> {
        self.by_tid.iter_mut()
    }

    /// Processor time of the process, nanoseconds.
    #[must_use]
    pub fn cpu_time_ns(&self) -> u64 {
        self.iter().fold(self.ended_cpu_time_ns, |sum, thread| sum.saturating_add(thread.cpu_time_ns))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_tid.len()
    }

    /// Whether all have ended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_tid.is_empty()
    }

    /// The first runnable thread after `tid` in round-robin order, `tid` itself last.
    #[must_use]
    pub fn next_runnable(&self, tid: Tid) -> Option<Tid> {
        let runnable = |thread: &&Thread| matches!(&thread.state, State::Runnable | State::Blocked(Blocked { woken: true, .. }));
        let (before, after) = self.by_tid.split_at(self.by_tid.partition_point(|thread| thread.tid <= tid));
        after.iter().chain(before).find(runnable).map(|thread| thread.tid)
    }
}
