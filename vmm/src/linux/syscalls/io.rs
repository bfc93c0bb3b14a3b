//! read(2), write(2) and their relatives, and lseek(2), for every kind of file.

use linux_raw_sys::general as abi;
use rustix::fs::SeekFrom;

use crate::limits::{RW_BYTES_MAX, SHM_BYTES_MAX};
use crate::linux::file::host::{HostFile, WriteTo};
use crate::linux::file::ops::{self, RecvFlags, SendFlags};
use crate::linux::file::shm::InodeId;
use crate::linux::file::special::{Node as SpecialNode, SpecialFile};
use crate::linux::file::{File, FileId, PollEvents};
use crate::linux::table::{Arg, Entry, full};
use crate::linux::{Answer, Attempt, Call, Errno, Kernel, Outcome, Restart, Wait, WaitFor};
use crate::memory::Segment;

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(abi::__NR_read, "read", &[Arg::Fd, Arg::OutBuffer, Arg::Uint], read),
    full(abi::__NR_write, "write", &[Arg::Fd, Arg::Buffer, Arg::Uint], write),
    full(abi::__NR_readv, "readv", &[Arg::Fd, Arg::Pointer, Arg::Uint], readv),
    full(abi::__NR_writev, "writev", &[Arg::Fd, Arg::Pointer, Arg::Uint], writev),
    full(abi::__NR_pread64, "pread64", &[Arg::Fd, Arg::OutBuffer, Arg::Uint, Arg::Int], pread64),
    full(abi::__NR_pwrite64, "pwrite64", &[Arg::Fd, Arg::Buffer, Arg::Uint, Arg::Int], pwrite64),
    full(abi::__NR_preadv, "preadv", &[Arg::Fd, Arg::Pointer, Arg::Uint, Arg::Int, Arg::Int], preadv),
    full(abi::__NR_pwritev, "pwritev", &[Arg::Fd, Arg::Pointer, Arg::Uint, Arg::Int, Arg::Int], pwritev),
    full(abi::__NR_preadv2, "preadv2", &[Arg::Fd, Arg::Pointer, Arg::Uint, Arg::Int, Arg::Int, Arg::Hex], preadv2),
    full(abi::__NR_pwritev2, "pwritev2", &[Arg::Fd, Arg::Pointer, Arg::Uint, Arg::Int, Arg::Int, Arg::Hex], pwritev2),
    full(abi::__NR_lseek, "lseek", &[Arg::Fd, Arg::Int, Arg::Int], lseek),
];

/// Where in the file a transfer happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// At the file's own offset, which moves on.
    Current,
    /// At this offset; the file's own stays.
    Offset(u64),
}

impl At {
    /// The offset argument of pread(2) and relatives.
    fn offset(argument: u64) -> Result<Self, Errno> {
        i64::try_from(argument).map(|_| Self::Offset(argument)).map_err(|_| Errno::INVAL)
    }

    /// The offset argument of preadv2(2): -1 means the file's own.
    fn offset_or_current(argument: u64) -> Result<Self, Errno> {
        if argument == u64::MAX { Ok(Self::Current) } else { Self::offset(argument) }
    }
}

fn one_segment(call: &Call<'_>) -> Result<Vec<Segment>, Errno> {
    let (address, length) = (call.args[1], call.args[2]);
    // A length that is negative as a signed number is refused; one that is merely too long is shortened.
    i64::try_from(length).map_err(|_| Errno::INVAL)?;
    Ok(vec![Segment { address, length: length.min(RW_BYTES_MAX) }])
}

fn many_segments(call: &Call<'_>) -> Result<Vec<Segment>, Errno> {
    call.memory().read_iovec(call.args[1], call.args[2])
}

fn read(call: &mut Call<'_>) -> Answer {
    let id = readable(call)?;
    let segments = one_segment(call)?;
    transfer_in(call, id, &segments, At::Current)
}

fn readv(call: &mut Call<'_>) -> Answer {
    let id = readable(call)?;
    let segments = many_segments(call)?;
    transfer_in(call, id, &segments, At::Current)
}

fn pread64(call: &mut Call<'_>) -> Answer {
    let at = At::offset(call.args[3])?;
    let id = readable(call)?;
    let segments = one_segment(call)?;
    transfer_in(call, id, &segments, at)
}

fn preadv(call: &mut Call<'_>) -> Answer {
    let at = At::offset(call.args[3])?;
    let id = readable(call)?;
    let segments = many_segments(call)?;
    transfer_in(call, id, &segments, at)
}

fn preadv2(call: &mut Call<'_>) -> Answer {
    let at = At::offset_or_current(call.args[3])?;
    let flags = call.uint(5);
    if flags & !(abi::RWF_HIPRI | abi::RWF_NOWAIT) != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let id = readable(call)?;
    let segments = many_segments(call)?;
    if flags & abi::RWF_NOWAIT != 0 && !matches!(call.kernel.files.get(id)?.file, File::Host(_)) {
        return Err(Errno::OPNOTSUPP);
    }
    transfer_in(call, id, &segments, at)
}

fn write(call: &mut Call<'_>) -> Answer {
    let id = writable(call)?;
    let segments = one_segment(call)?;
    transfer_out(call, id, &segments, At::Current, false)
}

fn writev(call: &mut Call<'_>) -> Answer {
    let id = writable(call)?;
    let segments = many_segments(call)?;
    transfer_out(call, id, &segments, At::Current, false)
}

fn pwrite64(call: &mut Call<'_>) -> Answer {
    let at = At::offset(call.args[3])?;
    let id = writable(call)?;
    let segments = one_segment(call)?;
    transfer_out(call, id, &segments, at, false)
}

fn pwritev(call: &mut Call<'_>) -> Answer {
    let at = At::offset(call.args[3])?;
    let id = writable(call)?;
    let segments = many_segments(call)?;
    transfer_out(call, id, &segments, at, false)
}

fn pwritev2(call: &mut Call<'_>) -> Answer {
    let at = At::offset_or_current(call.args[3])?;
    let flags = call.uint(5);
    let synchronous = flags & (abi::RWF_DSYNC | abi::RWF_SYNC) != 0;
    if flags & !(abi::RWF_HIPRI | abi::RWF_DSYNC | abi::RWF_SYNC | abi::RWF_APPEND) != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let id = writable(call)?;
    let segments = many_segments(call)?;
    let answer = transfer_out(call, id, &segments, at, flags & abi::RWF_APPEND != 0)?;
    if synchronous && let File::Host(file) = &call.kernel.files.get(id)?.file {
        rustix::fs::fdatasync(file.descriptor())?;
    }
    Ok(answer)
}

/// The file of argument 0, opened for reading.
fn readable(call: &Call<'_>) -> Result<FileId, Errno> {
    let id = call.file(0)?;
    open_for(call.kernel, id, abi::O_WRONLY)?;
    Ok(id)
}

/// The file of argument 0, opened for writing.
fn writable(call: &Call<'_>) -> Result<FileId, Errno> {
    let id = call.file(0)?;
    open_for(call.kernel, id, abi::O_RDONLY)?;
    Ok(id)
}

/// EBADF where a file was opened with O_PATH, or in the access mode that forbids what is wanted.
pub(super) fn open_for(kernel: &Kernel, id: FileId, forbidden: u32) -> Result<(), Errno> {
    let flags = kernel.files.get(id)?.flags;
    if flags & abi::O_PATH != 0 || flags & abi::O_ACCMODE == forbidden { Err(Errno::BADF) } else { Ok(()) }
}

/// Wait until a file is ready.
pub(super) fn wait_for(id: FileId, events: PollEvents) -> Answer {
    Ok(Outcome::Block(Wait { on: WaitFor::Files(vec![(id, events)]), deadline: None, restart: Restart::IfAsked }))
}

fn transfer_in(call: &mut Call<'_>, id: FileId, segments: &[Segment], at: At) -> Answer {
    let (kernel, memory) = (&mut *call.kernel, call.space.memory());
    let slot = kernel.files.get_mut(id)?;
    let nonblocking = slot.nonblocking();
    match &mut slot.file {
        File::Host(file) => {
            let offset = if let At::Offset(offset) = at { offset } else { file.position };
            let count = file.read_at(memory, segments, 0, offset)?;
            if at == At::Current {
                file.position = offset.saturating_add(count as u64);
            }
            Ok(count.into())
        }
        File::Special(_) => read_special(call, id, segments, at),
        File::Console(_) if at != At::Current => Err(Errno::SPIPE),
        File::Console(console) => match console.read(memory, segments) {
            Err(Errno::AGAIN) if !nonblocking => wait_for(id, PollEvents::IN),
            answer => Ok(answer?.into()),
        },
        _ if at != At::Current => Err(Errno::SPIPE),
        _ => ops::read_stream_like(call, id, segments, RecvFlags::empty()),
    }
}

fn read_special(call: &mut Call<'_>, id: FileId, segments: &[Segment], at: At) -> Answer {
    // Taken out while the text is made: the text may describe this very file.
    let File::Special(mut file) = call.kernel.files.get(id)?.file.clone() else { return Err(Errno::BADF) };
    let offset = if let At::Offset(offset) = at { offset } else { file.position };
    let count = match file.node() {
        SpecialNode::Directory => return Err(Errno::ISDIR),
        SpecialNode::Device(device) => device.read(call.memory(), segments)?,
        SpecialNode::Link(_) => return Err(Errno::INVAL),
        SpecialNode::Memory(inode) => {
            let data = call.kernel.files.shm.get(inode)?.data();
            let rest = usize::try_from(offset).ok().and_then(|offset| data.get(offset..)).unwrap_or(&[]);
            call.memory().scatter(segments, 0, rest)?
        }
        SpecialNode::Text(_) => {
            let text = file.text(call.kernel, call.space, offset)?;
            let rest = usize::try_from(offset).ok().and_then(|offset| text.get(offset..)).unwrap_or(&[]);
            call.memory().scatter(segments, 0, rest)?
        }
    };
    if at == At::Current {
        file.position = offset.saturating_add(count as u64);
    }
    call.kernel.files.get_mut(id)?.file = File::Special(file);
    Ok(count.into())
}

fn transfer_out(call: &mut Call<'_>, id: FileId, segments: &[Segment], at: At, append: bool) -> Answer {
    let (kernel, memory) = (&mut *call.kernel, call.space.memory());
    let (size_limit, _) = kernel.process.rlimits[abi::RLIMIT_FSIZE as usize];
    let slot = kernel.files.get_mut(id)?;
    let append = append || slot.flags & abi::O_APPEND != 0;
    match &mut slot.file {
        File::Host(file) => {
            let to = match at {
                // Linux appends even with pwrite(2) (a documented bug that programs know).
                _ if append => WriteTo::End,
                At::Offset(offset) => WriteTo::Offset(offset),
                At::Current => WriteTo::Offset(file.position),
            };
            let Some(segments) = within_size_limit(file, segments, to, size_limit)? else { return Err(too_large(call)) };
            let count = file.write_at(memory, &segments, 0, to)?;
            match (at, to) {
                (At::Current, WriteTo::Offset(offset)) => file.position = offset.saturating_add(count as u64),
                (At::Current, WriteTo::End) if count > 0 => file.position = file.size()?,
                _ => {}
            }
            Ok(count.into())
        }
        File::Special(file) => {
            let file = file.clone();
            match file.memory() {
                Some(inode) => write_memory(call, id, inode, segments, if append { None } else { Some(at) }),
                None => write_special(call, &file, segments),
            }
        }
        File::Console(_) if at != At::Current => Err(Errno::SPIPE),
        File::Console(_) => write_console(call, id, segments),
        _ if at != At::Current => Err(Errno::SPIPE),
        _ => ops::write_stream_like(call, id, segments, SendFlags::empty()),
    }
}

/// The segments cut to what RLIMIT_FSIZE leaves room for; `None` where it leaves none.
fn within_size_limit(file: &HostFile, segments: &[Segment], to: WriteTo, limit: u64) -> Result<Option<Vec<Segment>>, Errno> {
    if limit == u64::MAX {
        return Ok(Some(segments.to_vec()));
    }
    let offset = if let WriteTo::Offset(offset) = to { offset } else { file.size()? };
    let mut room = limit.saturating_sub(offset);
    if room == 0 && segments.iter().any(|segment| segment.length > 0) {
        return Ok(None);
    }
    let cut = segments.iter().map(|segment| {
        let length = segment.length.min(room);
        room -= length;
        Segment { address: segment.address, length }
    });
    Ok(Some(cut.collect()))
}

/// SIGXFSZ for the caller, and EFBIG.
pub(super) fn too_large(call: &mut Call<'_>) -> Errno {
    call.kernel.send_thread_signal(call.tid, abi::SIGXFSZ as i32);
    Errno::FBIG
}

fn write_special(call: &mut Call<'_>, file: &SpecialFile, segments: &[Segment]) -> Answer {
    match file.node() {
        SpecialNode::Device(device) => Ok(device.write(segments)?.into()),
        SpecialNode::Text(text) if text.is_writable() => {
            let bytes = call.memory().gather(segments, 0, 4096)?;
            let tid = crate::linux::file::special_process::thread_of(file.path()).unwrap_or(call.tid);
            let thread = call.kernel.threads.find(tid).ok_or(Errno::SRCH)?;
            // /proc/PID/comm: at most fifteen bytes count, up to a line's end.
            let name: Vec<u8> = bytes.iter().copied().take_while(|byte| *byte != b'\n' && *byte != 0).take(15).collect();
            thread.name = [0; 16];
            thread.name[..name.len()].copy_from_slice(&name);
            Ok(bytes.len().into())
        }
        _ => Err(Errno::BADF),
    }
}

/// Write to a file in memory, at its end where no place is given.
fn write_memory(call: &mut Call<'_>, id: FileId, inode: InodeId, segments: &[Segment], at: Option<At>) -> Answer {
    let bytes = call.memory().gather(segments, 0, SHM_BYTES_MAX)?;
    let now = call.kernel.clock.realtime();
    let File::Special(file) = &call.kernel.files.get(id)?.file else { return Err(Errno::BADF) };
    let offset = match at {
        None => call.kernel.files.shm.get(inode)?.data().len() as u64,
        Some(At::Offset(offset)) => offset,
        Some(At::Current) => file.position,
    };
    let count = call.kernel.files.shm.write(inode, offset, &bytes, now)?;
    if !matches!(at, Some(At::Offset(_)))
        && let File::Special(file) = &mut call.kernel.files.get_mut(id)?.file
    {
        file.position = offset.saturating_add(count as u64);
    }
    Ok(count.into())
}

/// Everything is written before the call returns, however often it has to wait (unless O_NONBLOCK or a signal ends it).
fn write_console(call: &mut Call<'_>, id: FileId, segments: &[Segment]) -> Answer {
    let total = segments.iter().fold(0_u64, |sum, segment| sum.saturating_add(segment.length)).min(RW_BYTES_MAX);
    loop {
        let slot = call.kernel.files.get_mut(id)?;
        let nonblocking = slot.nonblocking();
        let File::Console(console) = &mut slot.file else { return Err(Errno::BADF) };
        match console.write(call.space.memory(), segments, call.progress) {
            Ok(count) => {
                call.progress = call.progress.saturating_add(count as u64);
                if count == 0 || call.progress >= total {
                    return Ok(call.progress.into());
                }
            }
            Err(Errno::AGAIN) if call.progress > 0 && (nonblocking || call.attempt == Attempt::Interrupted) => {
                return Ok(call.progress.into());
            }
            Err(Errno::AGAIN) if !nonblocking => return wait_for(id, PollEvents::OUT),
            Err(Errno::PIPE) if call.progress == 0 => return Err(ops::broken_pipe(call, SendFlags::empty())),
            Err(_) if call.progress > 0 => return Ok(call.progress.into()),
            Err(errno) => return Err(errno),
        }
    }
}

fn lseek(call: &mut Call<'_>) -> Answer {
    let (offset, whence) = (call.args[1].cast_signed(), call.uint(2));
    let id = call.file(0)?;
    if call.kernel.files.get(id)?.flags & abi::O_PATH != 0 {
        return Err(Errno::BADF);
    }
    let memory_size = memory_size(call.kernel, id);
    match &mut call.kernel.files.get_mut(id)?.file {
        File::Host(file) => {
            let position = match whence {
                abi::SEEK_SET => from(0, offset)?,
                abi::SEEK_CUR => from(file.position, offset)?,
                abi::SEEK_END if file.is_directory() => return Err(Errno::INVAL),
                abi::SEEK_END => from(file.size()?, offset)?,
                // These ask about the file and do not depend on the shared offset, which nothing else uses.
                abi::SEEK_DATA => rustix::fs::seek(file.descriptor(), SeekFrom::Data(u64::try_from(offset).map_err(|_| Errno::NXIO)?))?,
                abi::SEEK_HOLE => rustix::fs::seek(file.descriptor(), SeekFrom::Hole(u64::try_from(offset).map_err(|_| Errno::NXIO)?))?,
                _ => return Err(Errno::INVAL),
            };
            file.position = position;
            Ok(position.into())
        }
        File::Special(file) => {
            let position = match (file.node(), whence) {
                (SpecialNode::Device(_), _) => 0,
                (_, abi::SEEK_SET) => from(0, offset)?,
                (_, abi::SEEK_CUR) => from(file.position, offset)?,
                (SpecialNode::Memory(_), abi::SEEK_END) => from(memory_size, offset)?,
                _ => return Err(Errno::INVAL),
            };
            file.position = position;
            Ok(position.into())
        }
        File::Console(console) if !console.waits() => seek_console(console.descriptor(), offset, whence),
        _ => Err(Errno::SPIPE),
    }
}

/// The size of a file in memory; 0 for everything else.
fn memory_size(kernel: &Kernel, id: FileId) -> u64 {
    let inode = match kernel.files.get(id).map(|slot| &slot.file) {
        Ok(File::Special(file)) => file.memory(),
        _ => None,
    };
    inode.and_then(|inode| kernel.files.shm.get(inode).ok()).map_or(0, |inode| inode.data().len() as u64)
}

/// A standard stream that is a regular file of the host shares its offset with the shell that opened it, as natively.
fn seek_console(descriptor: &std::os::fd::OwnedFd, offset: i64, whence: u32) -> Answer {
    let to = match whence {
        abi::SEEK_SET => SeekFrom::Start(u64::try_from(offset).map_err(|_| Errno::INVAL)?),
        abi::SEEK_CUR => SeekFrom::Current(offset),
        abi::SEEK_END => SeekFrom::End(offset),
        _ => return Err(Errno::INVAL),
    };
    Ok(rustix::fs::seek(descriptor, to)?.into())
}

fn from(base: u64, offset: i64) -> Result<u64, Errno> {
    base.checked_add_signed(offset).filter(|&position| i64::try_from(position).is_ok()).ok_or(Errno::INVAL)
}
