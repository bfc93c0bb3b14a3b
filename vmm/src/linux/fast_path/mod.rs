//! The in-guest fast path as our Linux sees it: what it is told before a run ([`tell`]), and what it has answered, which is done
//! again here at the next exit ([`replay`]).
//!
//! Between two exits nothing happens to a VM but what its own program does, time, and what arrives at host descriptors. So what is
//! told stays true until the guest's own calls change it, and the code in the guest keeps track of those that it answers. Everything
//! else goes to the host.

pub mod replay;
pub mod tell;
#[cfg(test)]
mod tests;

use linux_raw_sys::general as nr;

use super::Kernel;
use super::file::stream_host::StreamHandle;
use super::file::{File, FileId};

/// Whether an open file is the guest's end of a client's stream.
fn is_client(kernel: &Kernel, file: FileId, client: StreamHandle) -> bool {
    matches!(kernel.files.get(file).map(|slot| &slot.file), Ok(File::Stream(stream)) if stream.end.incoming == client.incoming)
}

fn has_one_descriptor(kernel: &Kernel, file: FileId) -> bool {
    kernel.process.fds.iter().filter(|(_, entry)| entry.file == file).count() == 1
}

/// Whether the fast path knows how ready a file is: the client's stream, listeners at which nobody waits but the client, eventfds.
fn is_known(kernel: &Kernel, file: FileId, client: StreamHandle) -> bool {
    match kernel.files.get(file).map(|slot| &slot.file) {
        Ok(File::Listener(listener)) => {
            listener.listening
                && listener.queue.len() <= 1
                && listener.queue.iter().all(|pending| pending.incoming == client.incoming && !pending.inner)
        }
        Ok(File::Stream(stream)) => stream.end.incoming == client.incoming,
        Ok(File::Event(event)) => !event.has_refused() && has_one_descriptor(kernel, file),
        _ => false,
    }
}

/// Whether all that was told is still so after this call was answered by the host: calls about memory, names, identity, time.
#[must_use]
pub fn is_neutral(number: usize) -> bool {
    matches!(
        u32::try_from(number),
        Ok(nr::__NR_stat
            | nr::__NR_fstat
            | nr::__NR_lstat
            | nr::__NR_newfstatat
            | nr::__NR_statx
            | nr::__NR_access
            | nr::__NR_readlink
            | nr::__NR_getcwd
            | nr::__NR_getdents64
            | nr::__NR_lseek
            | nr::__NR_pread64
            | nr::__NR_mmap
            | nr::__NR_mprotect
            | nr::__NR_munmap
            | nr::__NR_mremap
            | nr::__NR_madvise
            | nr::__NR_brk
            | nr::__NR_uname
            | nr::__NR_sysinfo
            | nr::__NR_getrlimit
            | nr::__NR_getrusage
            | nr::__NR_getuid
            | nr::__NR_geteuid
            | nr::__NR_getgid
            | nr::__NR_getegid
            | nr::__NR_getppid
            | nr::__NR_time
            | nr::__NR_gettimeofday
            | nr::__NR_clock_gettime
            | nr::__NR_clock_getres
            | nr::__NR_sched_getaffinity
            | nr::__NR_getrandom)
    )
}
