//! Copies that do not pass through the program: sendfile(2), splice(2), tee(2), copy_file_range(2).
//!
//! A copy has a source, whose bytes are looked at first and taken only when the target has them, and a target that takes what
//! fits. Nothing here touches guest memory but the offsets.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use linux_raw_sys::general as abi;

use super::io::{open_for, wait_for};
use crate::linux::file::channel::ChannelId;
use crate::linux::file::local::{PairEnd, Side};
use crate::linux::file::ops::{SendFlags, broken_pipe};
use crate::linux::file::special::Node as SpecialNode;
use crate::linux::file::{File, FileId, PollEvents};
use crate::linux::table::{Arg, Entry, full, partial};
use crate::linux::{Answer, Attempt, Call, Errno};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(abi::__NR_sendfile, "sendfile", &[Arg::Fd, Arg::Fd, Arg::Pointer, Arg::Uint], sendfile),
    partial(
        abi::__NR_splice,
        "splice",
        &[Arg::Fd, Arg::Pointer, Arg::Fd, Arg::Pointer, Arg::Uint, Arg::Hex],
        splice,
        "EINVAL for outgoing sockets and datagrams, upon which programs read and write instead",
    ),
    full(abi::__NR_tee, "tee", &[Arg::Fd, Arg::Fd, Arg::Uint, Arg::Hex], tee),
    full(
        abi::__NR_copy_file_range,
        "copy_file_range",
        &[Arg::Fd, Arg::Pointer, Arg::Fd, Arg::Pointer, Arg::Uint, Arg::Hex],
        copy_file_range,
    ),
];

/// Most bytes one call copies: less than was asked for is always allowed, and one call must not hold the VM for long.
const COPY_MAX: u64 = 64 << 20;
/// Bytes copied in one piece.
const PIECE: usize = 128 << 10;

/// One side of a copy.
#[derive(Debug, Clone)]
enum End {
    /// A host file at an offset.
    File(Arc<OwnedFd>, u64),
    /// The channel behind a pipe or stream.
    Channel(ChannelId),
    /// /dev/null and the like: takes everything.
    Sink,
    /// A standard stream.
    Console,
}

/// An offset argument: where it is in guest memory, if it was given, and its value.
#[derive(Debug, Clone, Copy)]
struct Offset {
    address: u64,
    start: u64,
}

/// Read an offset argument; without one the file's own position counts.
fn offset(call: &Call<'_>, id: FileId, address: u64) -> Result<Offset, Errno> {
    let position = match &call.kernel.files.get(id)?.file {
        File::Host(file) => Some(file.position),
        _ => None,
    };
    let start = match (address, position) {
        (0, position) => position.unwrap_or(0),
        (_, None) => return Err(Errno::SPIPE),
        (address, Some(_)) => call.memory().read::<u64>(address)?,
    };
    i64::try_from(start).map_err(|_| Errno::INVAL)?;
    Ok(Offset { address, start })
}

/// Move an offset on by what was copied.
fn advance(call: &mut Call<'_>, id: FileId, offset: Offset, count: u64) -> Result<(), Errno> {
    let end = offset.start.saturating_add(count);
    if offset.address != 0 {
        return call.memory().write(offset.address, &end);
    }
    if let File::Host(file) = &mut call.kernel.files.get_mut(id)?.file {
        file.position = end;
    }
    Ok(())
}

fn source(call: &Call<'_>, id: FileId, start: u64) -> Result<End, Errno> {
    open_for(call.kernel, id, abi::O_WRONLY)?;
    match &call.kernel.files.get(id)?.file {
        File::Host(file) if file.is_directory() => Err(Errno::ISDIR),
        File::Host(file) => Ok(End::File(Arc::clone(file.descriptor()), start)),
        File::Pipe(pipe) if pipe.side == Side::Reader => Ok(End::Channel(pipe.channel)),
        other => other.pair().filter(|end| !PairEnd::is_message(end)).map(|end| End::Channel(end.incoming)).ok_or(Errno::INVAL),
    }
}

fn target(call: &Call<'_>, id: FileId, start: u64) -> Result<End, Errno> {
    open_for(call.kernel, id, abi::O_RDONLY)?;
    let slot = call.kernel.files.get(id)?;
    match &slot.file {
        File::Host(_) if slot.flags & abi::O_APPEND != 0 => Err(Errno::INVAL),
        File::Host(file) => Ok(End::File(Arc::clone(file.descriptor()), start)),
        File::Special(file) if matches!(file.node(), SpecialNode::Device(_)) => Ok(End::Sink),
        File::Console(_) => Ok(End::Console),
        File::Pipe(pipe) if pipe.side == Side::Writer => Ok(End::Channel(pipe.channel)),
        other => other.pair().filter(|end| !PairEnd::is_message(end)).map(|end| End::Channel(end.outgoing)).ok_or(Errno::INVAL),
    }
}

/// Look at the next bytes of a source, `done` bytes into the copy. Empty means its end.
fn look(call: &Call<'_>, source: &End, done: u64, most: usize) -> Result<Vec<u8>, Errno> {
    match source {
        End::File(file, start) => {
            let mut bytes = vec![0; most];
            let count = crate::linux::file::host::retry(|| rustix::io::pread(file, &mut bytes[..], start.saturating_add(done)))?;
            bytes.truncate(count);
            Ok(bytes)
        }
        End::Channel(id) => {
            let channel = call.kernel.files.channels.get(*id)?;
            match channel.peek(most) {
                bytes if bytes.is_empty() && channel.writers > 0 => Err(Errno::AGAIN),
                bytes => Ok(bytes),
            }
        }
        End::Sink | End::Console => Err(Errno::INVAL),
    }
}

/// Bytes that a target could take now; EAGAIN where none.
fn room(call: &mut Call<'_>, target: &End) -> Result<usize, Errno> {
    let End::Channel(id) = target else { return Ok(PIECE) };
    let channel = call.kernel.files.channels.get(*id)?;
    if channel.deaf() {
        return Err(broken_pipe(call, SendFlags::empty()));
    }
    match channel.space() {
        0 => Err(Errno::AGAIN),
        space => Ok(space.min(PIECE)),
    }
}

/// Give bytes to a target that has room for them; returns how many it took.
fn put(call: &mut Call<'_>, id: FileId, target: &End, done: u64, bytes: &[u8]) -> Result<usize, Errno> {
    match target {
        End::File(file, start) => crate::linux::file::host::retry(|| rustix::io::pwrite(file, bytes, start.saturating_add(done))),
        End::Channel(channel) => Ok(call.kernel.files.channel(*channel)?.push(bytes)),
        End::Sink => Ok(bytes.len()),
        End::Console => match &mut call.kernel.files.get_mut(id)?.file {
            File::Console(console) => console.write_bytes(bytes),
            _ => Err(Errno::BADF),
        },
    }
}

/// The bytes have arrived: take them from where they came.
fn take(call: &mut Call<'_>, source: &End, count: usize) -> Result<(), Errno> {
    if let End::Channel(id) = source {
        call.kernel.files.channel(*id)?.consume(count);
    }
    Ok(())
}

/// What a copy is between.
struct Copy {
    from: (FileId, End),
    to: (FileId, End),
    length: u64,
    nonblocking: bool,
    /// Return what there is instead of waiting for all of it (splice).
    eager: bool,
}

/// Why a copy stopped short.
enum Stop {
    Over,
    Wait(FileId, PollEvents),
    Failed(Errno),
}

impl Copy {
    /// Copy on from what earlier attempts did (`call.progress`), until all is done or something stops it.
    fn run(&self, call: &mut Call<'_>) -> Stop {
        while call.progress < self.length {
            match self.piece(call) {
                Ok(0) => return Stop::Over,
                Ok(count) => call.progress = call.progress.saturating_add(count as u64),
                Err(stop) => return stop,
            }
        }
        Stop::Over
    }

    fn piece(&self, call: &mut Call<'_>) -> Result<usize, Stop> {
        let ((from, source), (to, target)) = (&self.from, &self.to);
        let left = usize::try_from(self.length - call.progress).unwrap_or(PIECE);
        let classify = |errno, id: &FileId, events| if errno == Errno::AGAIN { Stop::Wait(*id, events) } else { Stop::Failed(errno) };
        let room = room(call, target).map_err(|errno| classify(errno, to, PollEvents::OUT))?;
        let bytes = look(call, source, call.progress, room.min(left).min(PIECE)).map_err(|errno| classify(errno, from, PollEvents::IN))?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let done = call.progress;
        let count = put(call, *to, target, done, &bytes).map_err(|errno| classify(errno, to, PollEvents::OUT))?;
        take(call, source, count).map_err(Stop::Failed)?;
        Ok(count)
    }

    /// The answer of a copy that stopped: `None` where it is over, with `call.progress` bytes copied.
    fn answer(&self, call: &Call<'_>, stop: &Stop) -> Option<Answer> {
        let some = call.progress > 0;
        match stop {
            Stop::Over => None,
            Stop::Failed(_) | Stop::Wait(..) if some && (self.eager || self.nonblocking || matches!(stop, Stop::Failed(_))) => None,
            Stop::Failed(errno) => Some(Err(*errno)),
            Stop::Wait(..) if self.nonblocking => Some(Err(Errno::AGAIN)),
            Stop::Wait(..) if some && call.attempt == Attempt::Interrupted => None,
            Stop::Wait(id, events) => Some(wait_for(*id, *events)),
        }
    }
}

fn sendfile(call: &mut Call<'_>) -> Answer {
    let (to, from) = (call.file(0)?, call.file(1)?);
    let input = offset(call, from, call.args[2])?;
    let source = source(call, from, input.start)?;
    if !matches!(source, End::File(..)) {
        return Err(Errno::INVAL);
    }
    let output = offset(call, to, 0)?;
    let target = target(call, to, output.start)?;
    let nonblocking = call.kernel.files.get(to)?.nonblocking();
    let copy = Copy { from: (from, source), to: (to, target), length: call.args[3].min(COPY_MAX), nonblocking, eager: false };
    finish(call, &copy, Some((from, input)), Some((to, output)))
}

fn finish(call: &mut Call<'_>, copy: &Copy, input: Option<(FileId, Offset)>, output: Option<(FileId, Offset)>) -> Answer {
    let stop = copy.run(call);
    if let Some(answer) = copy.answer(call, &stop) {
        return answer;
    }
    let count = call.progress;
    for (id, offset) in [input, output].into_iter().flatten() {
        advance(call, id, offset, count)?;
    }
    Ok(count.into())
}

const SPLICE_FLAGS: u32 = abi::SPLICE_F_MOVE | abi::SPLICE_F_NONBLOCK | abi::SPLICE_F_MORE | abi::SPLICE_F_GIFT;

fn is_pipe(call: &Call<'_>, id: FileId) -> Result<bool, Errno> {
    Ok(matches!(call.kernel.files.get(id)?.file, File::Pipe(_)))
}

fn splice(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(5);
    if flags & !SPLICE_FLAGS != 0 {
        return Err(Errno::INVAL);
    }
    let (from, to) = (call.file(0)?, call.file(2)?);
    let (from_pipe, to_pipe) = (is_pipe(call, from)?, is_pipe(call, to)?);
    if !from_pipe && !to_pipe {
        return Err(Errno::INVAL);
    }
    if from_pipe && call.args[1] != 0 || to_pipe && call.args[3] != 0 {
        return Err(Errno::SPIPE);
    }
    let (input, output) = (offset(call, from, call.args[1])?, offset(call, to, call.args[3])?);
    let (source, target) = (source(call, from, input.start)?, target(call, to, output.start)?);
    if let (End::Channel(one), End::Channel(other)) = (&source, &target)
        && one == other
    {
        return Err(Errno::INVAL);
    }
    let files = &call.kernel.files;
    let asked = flags & abi::SPLICE_F_NONBLOCK != 0;
    let nonblocking = asked || files.get(from)?.nonblocking() || files.get(to)?.nonblocking();
    let copy = Copy { from: (from, source), to: (to, target), length: call.args[4].min(COPY_MAX), nonblocking, eager: true };
    finish(call, &copy, Some((from, input)), Some((to, output)))
}

fn tee(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(3);
    let (from, to) = (call.file(0)?, call.file(1)?);
    if flags & !SPLICE_FLAGS != 0 || !is_pipe(call, from)? || !is_pipe(call, to)? {
        return Err(Errno::INVAL);
    }
    let (source, target) = (source(call, from, 0)?, target(call, to, 0)?);
    if let (End::Channel(one), End::Channel(other)) = (&source, &target)
        && one == other
    {
        return Err(Errno::INVAL);
    }
    let wait = |errno: Errno, id, events| match errno {
        Errno::AGAIN if flags & abi::SPLICE_F_NONBLOCK == 0 => wait_for(id, events),
        errno => Err(errno),
    };
    if call.args[2] == 0 {
        return Ok(0_u64.into());
    }
    let most = match room(call, &target) {
        Ok(room) => room.min(usize::try_from(call.args[2]).unwrap_or(usize::MAX)),
        Err(errno) => return wait(errno, to, PollEvents::OUT),
    };
    match look(call, &source, 0, most) {
        Ok(bytes) => Ok(put(call, to, &target, 0, &bytes)?.into()),
        Err(errno) => wait(errno, from, PollEvents::IN),
    }
}

fn copy_file_range(call: &mut Call<'_>) -> Answer {
    if call.uint(5) != 0 {
        return Err(Errno::INVAL);
    }
    let (from, to) = (call.file(0)?, call.file(2)?);
    let (input, output) = (offset(call, from, call.args[1])?, offset(call, to, call.args[3])?);
    let target = match target(call, to, output.start) {
        Err(Errno::INVAL) if call.kernel.files.get(to)?.flags & abi::O_APPEND != 0 => return Err(Errno::BADF),
        target => target?,
    };
    let (End::File(source, start), End::File(target, end)) = (source(call, from, input.start)?, target) else {
        return Err(Errno::INVAL);
    };
    let (mut start, mut end) = (start, end);
    let length = usize::try_from(call.args[4].min(COPY_MAX)).map_err(|_| Errno::INVAL)?;
    let count = rustix::fs::copy_file_range(source, Some(&mut start), target, Some(&mut end), length)?;
    advance(call, from, input, count as u64)?;
    advance(call, to, output, count as u64)?;
    Ok(count.into())
}
