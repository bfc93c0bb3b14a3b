//! Socket options: `getsockopt(2)`, `setsockopt(2)`.

use linux_raw_sys::{general, net as raw};

use crate::linux::file::socket_options::{self, Facts};
use crate::linux::file::{File, FileId};
use crate::linux::table::{Arg, Entry, partial};
use crate::linux::{Answer, Call, Errno, Outcome};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    partial(
        general::__NR_setsockopt,
        "setsockopt",
        &[Arg::Fd, Arg::Int, Arg::Int, Arg::Pointer, Arg::Uint],
        setsockopt,
        "a list of harmless options; others are unknown",
    ),
    partial(
        general::__NR_getsockopt,
        "getsockopt",
        &[Arg::Fd, Arg::Int, Arg::Int, Arg::Pointer, Arg::Pointer],
        getsockopt,
        "likewise; no TCP_INFO",
    ),
];

/// No option that we know is longer.
const VALUE_MAX: usize = 64;

/// `int setsockopt(int fd, int level, int option, const void *value, socklen_t length)`.
fn setsockopt(call: &mut Call<'_>) -> Answer {
    let file = call.file(0)?;
    call.kernel.files.get(file)?.file.socket()?;
    let length = usize::try_from(call.int(4)).map_err(|_| Errno::INVAL)?;
    let value = call.memory().read_vec(call.args[3], length.min(VALUE_MAX))?;
    let (level, option) = (call.uint(1), call.uint(2));
    let slot = call.kernel.files.get_mut(file)?;
    socket_options::set(slot.file.socket_mut()?, level, option, &value)?;
    if let File::Socket(socket) = &slot.file
        && let Some(host) = &socket.host
    {
        socket_options::apply_all(host, &socket.base);
    }
    Ok(Outcome::OK)
}

/// `int getsockopt(int fd, int level, int option, void *value, socklen_t *length)`.
fn getsockopt(call: &mut Call<'_>) -> Answer {
    let file = call.file(0)?;
    call.kernel.files.get(file)?.file.socket()?;
    let room: i32 = call.memory().read(call.args[4])?;
    let room = usize::try_from(room).map_err(|_| Errno::INVAL)?;
    let (level, option) = (call.uint(1), call.uint(2));
    let value = if (level, option) == (raw::SOL_SOCKET, raw::SO_ERROR) {
        take_error(call, file)?.to_ne_bytes().to_vec()
    } else {
        let facts = facts(call, file)?;
        socket_options::get(call.kernel.files.get(file)?.file.socket()?, facts, level, option)?
    };
    let length = value.len().min(room);
    call.memory().write_bytes(call.args[3], value.get(..length).unwrap_or(&value))?;
    // At most 16 bytes.
    call.memory().write(call.args[4], &(length as u32))?;
    Ok(Outcome::OK)
}

fn facts(call: &Call<'_>, file: FileId) -> Result<Facts, Errno> {
    let process = &call.kernel.process;
    let listening = matches!(&call.kernel.files.get(file)?.file, File::Listener(listener) if listener.listening);
    let peer = [process.pid.cast_unsigned(), process.identity.uid, process.identity.gid];
    // Sockets have no numbers of their own; descriptions do, and differ as cookies should.
    Ok(Facts { listening, peer, cookie: u64::from(file.number()).saturating_add(1) })
}

/// SO_ERROR: the pending error, which is thereby forgotten.
fn take_error(call: &mut Call<'_>, file: FileId) -> Result<i32, Errno> {
    let slot = call.kernel.files.get_mut(file)?;
    if let Some(errno) = slot.file.socket_mut()?.error.take() {
        return Ok(errno.raw_os_error());
    }
    if let File::Socket(socket) = &mut slot.file {
        return Ok(socket.take_host_error().map_or(0, Errno::raw_os_error));
    }
    Ok(0)
}
