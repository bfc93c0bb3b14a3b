//! Sending and receiving on host sockets.

use super::ops::{Received, RecvFlags, SendFlags, Step, broken_pipe};
use super::socket_address::{Address, Kind};
use super::{Errno, File, FileId};
use crate::linux::Call;
use crate::memory::Segment;

fn kind(call: &Call<'_>, file: FileId) -> Result<Kind, Errno> {
    match &call.kernel.files.get(file)?.file {
        File::Socket(socket) => Ok(socket.base.kind),
        _ => Err(Errno::NOTSOCK),
    }
}

pub(super) fn receive(call: &mut Call<'_>, file: FileId, _segments: &[Segment], _flags: RecvFlags) -> Result<Step<Received>, Errno> {
    kind(call, file)?;
    Err(Errno::NOTCONN)
}

pub(super) fn send(
    call: &mut Call<'_>,
    file: FileId,
    _segments: &[Segment],
    flags: SendFlags,
    _to: Option<&Address>,
) -> Result<Step<u64>, Errno> {
    if kind(call, file)? == Kind::Stream { Err(broken_pipe(call, flags)) } else { Err(Errno::DESTADDRREQ) }
}
